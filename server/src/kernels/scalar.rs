//! The kernels in plain Rust, in f64: what the others are tested against.
//!
//! They take the same operands, so what differs is the order of sums, the polynomials,
//! and the rounding of what is stored.

use super::attention::Heads;
use super::element::Element;
use super::elementwise::Norm;

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

pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Normalises one row.
pub(super) fn norm(x: &[f32], norm: &Norm) -> Vec<f64> {
    let x = &x[..norm.columns];
    let count = x.len() as f64;
    let mean = if norm.centred { x.iter().map(|&x| f64::from(x)).sum::<f64>() / count } else { 0.0 };
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    x.iter()
        .zip(norm.weight.iter().zip(&norm.bias))
        .map(|(&x, (&weight, &bias))| (f64::from(x) - mean) * scale * f64::from(weight) + f64::from(bias))
        .collect()
}

/// Attention of one text: `joined` `[length, query + key + value]` → `[length, heads × size]`. `added` is by head,
/// query and key, negative infinity where a query does not see a key.
pub(super) fn attention<T: Element>(
    joined: &[T],
    length: usize,
    heads: Heads,
    added: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let Heads { query, key_value, size, scale } = heads;
    let at = |row: usize, head: usize, column: usize| -> f64 {
        joined[row * heads.joined() + head * size + column].into()
    };
    let mut context = vec![0.0; length * heads.width()];
    for head in 0..query {
        let key_head = query + head / (query / key_value);
        for row in 0..length {
            let score = |key| {
                let products = (0..size).map(|column| at(row, head, column) * at(key, key_head, column));
                products.sum::<f64>() * f64::from(scale) + added(head, row, key)
            };
            let scores: Vec<f64> = (0..length).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for column in 0..size {
                let value = |(key, weight): (usize, &f64)| weight * at(key, key_head + key_value, column);
                context[row * heads.width() + head * size + column] =
                    weights.iter().enumerate().map(value).sum::<f64>() / sum;
            }
        }
    }
    context
}
