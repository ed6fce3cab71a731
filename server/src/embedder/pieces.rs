//! From what the model made of the pieces of a text to its vector.

/// What the model made of a piece of a text.
pub(super) struct Piece {
    pub(super) values: Vec<f32>,
    pub(super) tokens: usize,
}

/// The vector of a text from those of its pieces: their mean, in which each counts as much as it has
/// tokens. What counts is where a piece's vector points, so that of models that do not normalise no
/// piece outweighs the others by its length.
pub(super) fn mean(mut pieces: Vec<Piece>) -> Vec<f32> {
    if pieces.len() == 1 {
        return pieces.remove(0).values;
    }
    let total: usize = pieces.iter().map(|piece| piece.tokens).sum();
    let mut sum = vec![0.0f64; pieces.first().map_or(0, |piece| piece.values.len())];
    for piece in &pieces {
        let weight = piece.tokens as f64 / total as f64 / norm(&piece.values);
        sum.iter_mut().zip(&piece.values).for_each(|(sum, value)| *sum += weight * f64::from(*value));
    }
    sum.into_iter().map(|value| value as f32).collect()
}

/// As `torch.nn.functional.normalize`: the floor keeps a zero vector zero.
fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt().max(1e-12)
}

/// A vector of the wanted length and norm.
pub(super) fn finished(mut vector: Vec<f32>, dimensions: usize, normalize: bool) -> Vec<f32> {
    vector.truncate(dimensions);
    if normalize {
        let norm = norm(&vector);
        for value in &mut vector {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
    vector
}
