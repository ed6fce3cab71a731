//! What attention makes of distances between tokens: rotations of queries and keys, windows, and numbers that are
//! added to scores.

/// Rotary position embeddings (Su et al., 2021), whose pairs are the halves of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// What all frequencies are divided by (linear scaling).
    pub factor: f64,
}

impl Rope {
    /// The angles of one step, of each pair of a head so wide: `[half a head]`. The arithmetic is that of
    /// transformers, in f32.
    pub fn frequencies(&self, head_size: i64) -> Vec<f32> {
        let frequency = |pair: i64| {
            let exponent = (2 * pair) as f32 / head_size as f32;
            1.0 / (self.theta as f32).powf(exponent) / self.factor as f32
        };
        (0..head_size / 2).map(frequency).collect()
    }
}

/// What a layer's attention does with distances between tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distances {
    /// Rotation of queries and keys.
    pub rope: Option<Rope>,
    /// The greatest distance at which tokens see each other; all do where there is none.
    pub reach: Option<i64>,
}

/// What is added to scores of attention by distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// A penalty for each step, which differs from head to head (`ALiBi`, Press et al., 2021), in both
    /// directions alike.
    Alibi,
    /// A learned number for each head and class of distances (T5, Raffel et al., 2019), half of the classes
    /// for what comes before and half for what comes after.
    Buckets {
        /// How many classes.
        count: i64,
        /// From which distance on there is only one class.
        max_distance: i64,
    },
}

impl Bias {
    /// What is added to scores, by head and by how far a key is ahead of its query, for texts up to `longest`:
    /// `[heads, 2 × longest − 1]`, from the distance `1 − longest` on. `buckets` is the learned table
    /// `[count, heads]`, where there is one.
    pub fn values(self, heads: usize, longest: usize, buckets: Option<&[f32]>) -> Vec<f32> {
        let longest = longest as i64;
        let distances = || (1 - longest)..longest;
        match self {
            Self::Alibi => slopes(heads as i64)
                .into_iter()
                .flat_map(|slope| distances().map(move |distance| -slope * distance.unsigned_abs() as f32))
                .collect(),
            Self::Buckets { count, max_distance } => {
                let classes: Vec<usize> =
                    distances().map(|distance| class(distance, count, max_distance) as usize).collect();
                let of = |head: usize, class: usize| {
                    buckets.and_then(|table| table.get(class * heads + head)).copied().unwrap_or(0.0)
                };
                (0..heads).flat_map(|head| classes.iter().map(move |&class| of(head, class))).collect()
            }
        }
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
