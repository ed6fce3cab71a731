//! Vectors in other numbers than floats, as vector databases keep them to save room: pure.
//!
//! # The rule
//!
//! What a vector becomes depends on itself and on its length only, never on what else is embedded
//! with it: a query and a document that are embedded a year apart can be compared.
//!
//! - All integers are of the vector divided by its norm, whatever the model does: they say where it
//!   points, not how long it is.
//! - `int8`: a step is `R / 127` with `R = min(1, 8 / √dimensions)`, so that 0.408 is 127 where a vector
//!   has 384 dimensions. A value is rounded to the nearest step, and what is beyond ±`R` is ±127.
//!   The values of a vector of length 1 are `1 / √dimensions` on average: `R` leaves room for eight times
//!   that, and the rounding takes less than 0.0002 from the cosine between a vector and its integers.
//! - `uint8`: `int8` + 128, so that 128 is zero.
//! - `ubinary`: a bit a value, 1 where it is above zero; eight to a byte, the first in the highest bit,
//!   the last byte filled with zeros: as `numpy.packbits`.
//! - `binary`: the bytes of `ubinary` − 128.

use serde::Serialize;

/// How many times the average of a unit vector's values the integers reach.
const REACH: f64 = 8.0;
/// The largest integer; −128 is not used, so that a vector and its opposite have opposite integers.
const LARGEST: f64 = 127.0;

/// The numbers that a vector is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumberType {
    /// Single precision, as the model gives it.
    Float,
    /// A signed byte a value.
    Int8,
    /// An unsigned byte a value.
    Uint8,
    /// A bit a value, eight to a signed byte.
    Binary,
    /// A bit a value, eight to an unsigned byte.
    Ubinary,
}

impl NumberType {
    /// Its name in APIs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Binary => "binary",
            Self::Ubinary => "ubinary",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Float, Self::Int8, Self::Uint8, Self::Binary, Self::Ubinary];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

/// A vector in some type of numbers; in JSON, an array of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Numbers {
    /// Floats.
    Float(Vec<f32>),
    /// Signed bytes.
    Signed(Vec<i8>),
    /// Unsigned bytes.
    Unsigned(Vec<u8>),
}

impl Numbers {
    /// A vector as numbers of this type.
    pub fn of(vector: Vec<f32>, kind: NumberType) -> Self {
        match kind {
            NumberType::Float => Self::Float(vector),
            NumberType::Int8 => Self::Signed(int8(&vector)),
            NumberType::Uint8 => Self::Unsigned(
                int8(&vector).into_iter().map(|value| value.wrapping_add_unsigned(128) as u8).collect(),
            ),
            NumberType::Binary => {
                Self::Signed(bits(&vector).into_iter().map(|byte| byte.wrapping_sub(128) as i8).collect())
            }
            NumberType::Ubinary => Self::Unsigned(bits(&vector)),
        }
    }

    /// Their bytes, floats in little-endian order: what APIs put into base64.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Float(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Signed(values) => values.iter().map(|value| *value as u8).collect(),
            Self::Unsigned(values) => values.clone(),
        }
    }
}

/// The value of a unit vector of that length that becomes 127.
fn range(dimensions: usize) -> f64 {
    (REACH / (dimensions as f64).sqrt()).min(1.0)
}

fn int8(vector: &[f32]) -> Vec<i8> {
    let norm = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    // The floor keeps a zero vector zero.
    let scale = LARGEST / range(vector.len()) / norm.max(1e-12);
    let integer = |value: &f32| (f64::from(*value) * scale).round().clamp(-LARGEST, LARGEST) as i8;
    vector.iter().map(integer).collect()
}

fn bits(vector: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        let bit = |(place, value): (usize, &f32)| u8::from(*value > 0.0) << (7 - place);
        eight.iter().enumerate().map(bit).sum()
    };
    vector.chunks(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_type_of_number_is_what_its_rule_says() {
        use NumberType::{Binary, Float, Int8, Ubinary, Uint8};
        let four = [0.6f32, -0.8, 0.0, 0.0];
        // Of length 1 with 100 dimensions, where R is 0.8: 0.8 becomes 127, and 0.1 is 15.875 steps.
        let mut hundred = vec![0.0f32; 100];
        (hundred[0], hundred[1], hundred[2], hundred[3]) = (0.9, -0.1, 0.1, 0.412_310_57);
        let mut of_hundred = vec![0i8; 100];
        (of_hundred[0], of_hundred[1], of_hundred[2], of_hundred[3]) = (127, -16, 16, 65);
        for (vector, kind, expected) in [
            (four.to_vec(), Float, Numbers::Float(four.to_vec())),
            (four.to_vec(), Int8, Numbers::Signed(vec![76, -102, 0, 0])),
            // Three times as long, and pointing there, too.
            (four.map(|value| value * 3.0).to_vec(), Int8, Numbers::Signed(vec![76, -102, 0, 0])),
            (four.to_vec(), Uint8, Numbers::Unsigned(vec![204, 26, 128, 128])),
            (vec![1.0, 0.0], Int8, Numbers::Signed(vec![127, 0])),
            (vec![-1.0, 0.0], Uint8, Numbers::Unsigned(vec![1, 128])),
            (vec![0.0, 0.0], Int8, Numbers::Signed(vec![0, 0])),
            (hundred, Int8, Numbers::Signed(of_hundred)),
            (four.to_vec(), Ubinary, Numbers::Unsigned(vec![0b1000_0000])),
            (four.to_vec(), Binary, Numbers::Signed(vec![0])),
            (vec![-1.0; 8], Ubinary, Numbers::Unsigned(vec![0])),
            (vec![-1.0; 8], Binary, Numbers::Signed(vec![-128])),
            (vec![1.0; 8], Binary, Numbers::Signed(vec![127])),
            (
                [[1.0f32, -1.0].repeat(4), vec![0.5, 1e-9]].concat(),
                Ubinary,
                Numbers::Unsigned(vec![0b1010_1010, 0b1100_0000]),
            ),
        ] {
            assert_eq!(Numbers::of(vector.clone(), kind), expected, "{vector:?} {kind:?}");
        }
        for (dimensions, expected) in [(1, 1.0), (64, 1.0), (256, 0.5), (384, 0.408_248), (1024, 0.25)] {
            assert!((range(dimensions) - expected).abs() < 1e-6, "{dimensions}");
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats_and_of_bytes() {
        for (numbers, bytes) in [
            (Numbers::Float(vec![1.0, -2.0]), vec![0, 0, 128, 63, 0, 0, 0, 192]),
            (Numbers::Signed(vec![-1, 127]), vec![255, 127]),
            (Numbers::Unsigned(vec![128, 255]), vec![128, 255]),
        ] {
            assert_eq!(numbers.bytes(), bytes);
        }
    }

    #[test]
    fn names_are_those_of_the_apis() {
        for name in ["float", "int8", "uint8", "binary", "ubinary"] {
            assert_eq!(NumberType::named(name).map(NumberType::name), Some(name));
        }
        assert_eq!(NumberType::named("base64"), None);
    }

    proptest! {
        #[test]
        fn integers_point_where_the_vector_does(vector in prop::collection::vec(-1.0f32..1.0, 384)) {
            let Numbers::Signed(integers) = Numbers::of(vector.clone(), NumberType::Int8) else {
                panic!("int8 is signed");
            };
            let pairs = || vector.iter().zip(&integers).map(|(a, b)| (f64::from(*a), f64::from(*b)));
            let (dot, a, b) = pairs().fold((0.0, 0.0, 0.0), |(dot, a, b), (x, y)| (dot + x * y, a + x * x, b + y * y));
            prop_assert!(dot / (a * b).sqrt() > 1.0 - 2e-4);
        }
    }
}
