//! The kernels in plain Rust, in f64: what the others are tested against.
//!
//! They take the same operands, so what differs is the order of sums, the polynomials,
//! and the rounding of what is stored.

use super::element::Element;

/// `x Wᵀ + b`: `x` `[rows, depth]`, `weight` `[columns, depth]`, which is rounded to operands here.
pub(super) fn linear<T: Element>(x: &[T], weight: &[f32], bias: &[f32], depth: usize) -> Vec<f64> {
    let columns = bias.len();
    let rounded: Vec<f64> = weight.iter().map(|&weight| T::of(weight).into()).collect();
    x.chunks_exact(depth)
        .flat_map(|row| {
            (0..columns).map(|column| {
                let weights = &rounded[column * depth..][..depth];
                let product: f64 = row.iter().zip(weights).map(|(&x, weight)| x.into() * weight).sum();
                product + f64::from(bias[column])
            })
        })
        .collect()
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
}

pub(super) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// Normalises one row.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + eps).sqrt();
    x.iter()
        .zip(weight.iter().zip(bias))
        .map(|(&x, (&weight, &bias))| (f64::from(x) - mean) * scale * f64::from(weight) + f64::from(bias))
        .collect()
}

/// Attention of one text: `qkv` `[length, 3 × heads × size]` → `[length, heads × size]`.
pub(super) fn attention<T: Element>(qkv: &[T], length: usize, heads: usize, size: usize) -> Vec<f64> {
    let hidden = heads * size;
    let at = |row: usize, part: usize, head: usize, column: usize| -> f64 {
        qkv[row * 3 * hidden + part * hidden + head * size + column].into()
    };
    let mut context = vec![0.0; length * hidden];
    for head in 0..heads {
        for row in 0..length {
            let score = |key| {
                let products = (0..size).map(|column| at(row, 0, head, column) * at(key, 1, head, column));
                products.sum::<f64>() / (size as f64).sqrt()
            };
            let scores: Vec<f64> = (0..length).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for column in 0..size {
                let value = |(key, weight): (usize, &f64)| weight * at(key, 2, head, column);
                context[row * hidden + head * size + column] =
                    weights.iter().enumerate().map(value).sum::<f64>() / sum;
            }
        }
    }
    context
}
