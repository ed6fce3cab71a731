//! What attention makes of distances between tokens: rotations of queries and keys, and numbers that are added to
//! scores.

use tch::{Kind, TchError, Tensor};

use crate::model::encoder::{Bias, Heads, Rope};

/// Cosines and sines of rotary positions, for each token of a batch.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `[tokens, 1, head size / 2]`, f32.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// For tokens at these positions. The arithmetic is that of transformers, in f32.
    pub(super) fn new(rope: Rope, head_size: i64, positions: &Tensor) -> Result<Self, TchError> {
        let half = head_size / 2;
        let frequency = |pair: i64| {
            let exponent = (2 * pair) as f32 / head_size as f32;
            1.0 / (rope.theta as f32).powf(exponent) / rope.factor as f32
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&frequencies)?.f_unsqueeze(1)?;
        Ok(Self { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// Rotates heads `[tokens, heads, head size]`: the first half of a head with the second.
    pub(super) fn rotate(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let wide = heads.f_to_kind(Kind::Float)?;
        let halves = wide.f_chunk(2, -1)?;
        let [first, second] = halves.as_slice() else {
            return Err(TchError::Shape("a head of width 1 has no halves".into()));
        };
        let ahead = first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?;
        let behind = second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?;
        Tensor::f_cat(&[ahead, behind], -1)?.f_to_kind(heads.kind())
    }
}

/// What is added to scores by head and by how far a key is ahead of its query: `[heads, 2 × longest − 1]`, f32.
///
/// `buckets` `[count, heads]` is the learned table, where there is one.
pub(super) fn added(
    bias: Bias,
    heads: Heads,
    longest: i64,
    buckets: Option<&Tensor>,
) -> Result<Option<Tensor>, TchError> {
    let distances = (1 - longest)..longest;
    match (bias, buckets) {
        (Bias::Alibi, _) => {
            let rows = slopes(heads.query).into_iter().flat_map(|slope| {
                distances.clone().map(move |distance| -slope * distance.unsigned_abs() as f32)
            });
            let values: Vec<f32> = rows.collect();
            Ok(Some(Tensor::f_from_slice(&values)?.f_view([heads.query, -1])?))
        }
        (Bias::Buckets { count, max_distance }, Some(table)) => {
            let classes: Vec<i64> = distances.map(|distance| class(distance, count, max_distance)).collect();
            let classes = Tensor::f_from_slice(&classes)?.f_to_device(table.device())?;
            Ok(Some(table.f_index_select(0, &classes)?.f_transpose(0, 1)?.f_contiguous()?))
        }
        (Bias::Buckets { .. }, None) => Ok(None),
    }
}

/// The class of a distance, as T5's code has it: half of the classes for keys ahead of the query; of each half, one
/// half for a distance each, and the rest for ever longer stretches, up to `max_distance`.
fn class(distance: i64, count: i64, max_distance: i64) -> i64 {
    let half = count / 2;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let distance = distance.abs();
    if distance < exact {
        return side + distance;
    }
    // In f32, as there: at the border of two classes the rounding decides.
    let stretch = (distance as f32 / exact as f32).ln() / ((max_distance as f64 / exact as f64).ln() as f32);
    let class = exact + (stretch * (half - exact) as f32) as i64;
    side + class.min(half - 1)
}

/// The slope of each head (Press et al., 2021): geometric for a power of two; for another number, those of the power
/// of two below it, and then every other one of the power above.
fn slopes(heads: i64) -> Vec<f32> {
    let below = 1i64 << heads.ilog2();
    let of = |count: i64, step: i64| {
        (0..count)
            .step_by(step as usize)
            .map(move |head| 2f64.powf(-8.0 * (head + 1) as f64 / count as f64) as f32)
    };
    of(below, 1).chain(of(2 * below, 2)).take(heads as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        // 12 heads: those of 8, and the first, third, fifth and seventh of 16.
        let twelve = slopes(12);
        assert_eq!(twelve[..8], slopes(8));
        assert_eq!(twelve[8..], [slopes(16)[0], slopes(16)[2], slopes(16)[4], slopes(16)[6]]);
    }

    #[test]
    fn distances_have_the_classes_of_t5() {
        // Of 32 classes and distances up to 128, as T5's code computes them.
        for (distance, expected) in [
            (0, 0),
            (-1, 1),
            (-7, 7),
            (-8, 8),
            (-11, 8),
            (-12, 9),
            (-16, 10),
            (-127, 15),
            (-128, 15),
            (-4000, 15),
            (1, 17),
            (7, 23),
            (8, 24),
            (128, 31),
        ] {
            assert_eq!(class(distance, 32, 128), expected, "{distance}");
        }
    }
}
