//! What follows the encoder: pooling, dense layers, normalisation. A normalisation
//! that comes last is left to the caller of the model.
//!
//! Shared by every implementation, so that they can differ in the encoder alone.
//! It runs in f32 whatever the encoder's dtype: it is a vanishing part of the
//! work, and its rounding would go straight into the vectors.

#[cfg(feature = "torch")]
pub(super) mod tensors;

use super::directory::{self, DenseActivation, Directory};
use super::pooling::Pooling;
use super::weights::{self, Weights};
use crate::space;

/// A module after the pooling, with its weights.
#[derive(Debug)]
pub(super) enum Module {
    /// `activation(weight x + bias)`.
    Dense {
        /// `[out_features, in_features]`, row by row.
        weight: Vec<f32>,
        /// `[out_features]`; zeros where the module has none.
        bias: Vec<f32>,
        /// What follows.
        activation: DenseActivation,
    },
    /// Division by the norm.
    Normalize,
}

/// What a norm is at least, so that a zero vector stays zero (`torch.nn.functional.normalize`).
const LEAST_NORM: f64 = 1e-12;

impl Module {
    /// What it makes of one vector.
    fn forward(&self, mut vector: Vec<f32>) -> Vec<f32> {
        match self {
            Self::Normalize => {
                let squares: f64 = vector.iter().map(|&value| f64::from(value).powi(2)).sum();
                let norm = squares.sqrt().max(LEAST_NORM) as f32;
                for value in &mut vector {
                    *value /= norm;
                }
                vector
            }
            Self::Dense { weight, bias, activation } => {
                let row = |(weights, bias): (&[f32], &f32)| {
                    let products = weights.iter().zip(&vector).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let y = products.sum::<f64>() as f32 + bias;
                    match activation {
                        DenseActivation::Identity => y,
                        DenseActivation::Tanh => y.tanh(),
                    }
                };
                weight.chunks_exact(vector.len()).zip(bias).map(row).collect()
            }
        }
    }
}

/// The pooling and the modules after it, computed without `LibTorch`.
#[derive(Debug)]
pub(super) struct Tail {
    pooling: Pooling,
    modules: Vec<Module>,
}

impl Tail {
    /// Reads the modules' weights; with the tensors that were read.
    pub(super) fn read(directory: &Directory) -> Result<(Self, Vec<space::Tensor>), weights::Error> {
        let mut read = Vec::new();
        let modules = directory
            .unnormalized_tail()
            .iter()
            .enumerate()
            .map(|(place, module)| match module {
                directory::Tail::Normalize => Ok(Module::Normalize),
                directory::Tail::Dense(dense) => {
                    let weights = Weights::open(&dense.path)?;
                    let name = |part: &str| format!("{}.{part}", dense.tensors);
                    let weight = weights.values(&name("weight"), &[dense.out_features, dense.in_features])?;
                    let bias = if dense.bias {
                        weights.values(&name("bias"), &[dense.out_features])?
                    } else {
                        vec![0.0; dense.out_features as usize]
                    };
                    // By its place among the modules: two can have tensors of one name.
                    read.extend(weights.into_read().into_iter().map(|tensor| space::Tensor {
                        name: format!("module.{place}.{}", tensor.name),
                        ..tensor
                    }));
                    Ok(Module::Dense { weight, bias, activation: dense.activation })
                }
            })
            .collect::<Result<_, weights::Error>>()?;
        Ok((Self { pooling: directory.pooling, modules }, read))
    }

    /// The states of one text's tokens `[tokens, hidden]` → its vector. The first `unpooled` tokens,
    /// fewer than all, take no part in a mean or a maximum.
    pub(super) fn text(&self, states: &[f32], hidden: usize, unpooled: usize) -> Vec<f32> {
        let mut vector = vec![0.0; hidden];
        self.pooling.text(states, unpooled, &mut vector);
        self.modules.iter().fold(vector, |vector, module| module.forward(vector))
    }
}
