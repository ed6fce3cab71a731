//! What follows the encoder: pooling, dense layers, normalisation. A normalisation
//! that comes last is left to the caller of the model.
//!
//! Shared by every implementation, so that they can differ in the encoder alone.
//! It runs in f32 whatever the encoder's dtype: it is a vanishing part of the
//! work, and its rounding would go straight into the vectors.

#[cfg(feature = "torch")]
pub(super) mod tensors;

use super::directory::{self, DenseActivation, Directory};
use super::encoder::{Encoder, HiddenAct};
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
    /// `(x - mean) / √(variance + eps) · weight + bias`.
    LayerNorm {
        /// `[width]`.
        weight: Vec<f32>,
        /// `[width]`; zeros where the module has none.
        bias: Vec<f32>,
        /// Added to the variance.
        eps: f64,
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
            Self::LayerNorm { weight, bias, eps } => {
                let count = vector.len() as f64;
                let mean = vector.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
                let squares: f64 = vector.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
                let scale = 1.0 / (squares / count + eps).sqrt();
                for ((value, weight), bias) in vector.iter_mut().zip(weight).zip(bias) {
                    *value = ((f64::from(*value) - mean) * scale) as f32 * weight + bias;
                }
                vector
            }
            Self::Dense { weight, bias, activation } => {
                let row = |(weights, bias): (&[f32], &f32)| {
                    let products = weights.iter().zip(&vector).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let y = products.sum::<f64>() as f32 + bias;
                    activated(y, *activation)
                };
                weight.chunks_exact(vector.len()).zip(bias).map(row).collect()
            }
        }
    }
}

/// The tensors that were read of a module, by its place among the modules: two can have tensors of one name.
fn of_module(place: usize, weights: Weights) -> impl Iterator<Item = space::Tensor> {
    let tensors = weights.into_read().into_iter();
    tensors.map(move |tensor| space::Tensor { name: format!("module.{place}.{}", tensor.name), ..tensor })
}

/// The row of the answer that counts for it, less the one that counts against it, `[hidden]`; with the tensor that they
/// are of, where it is one of its own.
fn answer_weight(
    answer: &directory::Answer,
    encoder: &Encoder,
) -> Result<(Vec<f32>, Option<space::Tensor>), weights::Error> {
    let weights = Weights::open(&answer.path)?;
    let shape = [encoder.vocab_size, encoder.hidden_size];
    let (weights, name) = if answer.tied {
        let weights = weights.of(encoder);
        let name = weights.words(encoder);
        (weights, name)
    } else {
        (weights, directory::Answer::TENSOR.to_owned())
    };
    let mut row = weights.row(&name, shape, answer.yes)?;
    if let Some(no) = answer.no {
        row.iter_mut().zip(weights.row(&name, shape, no)?).for_each(|(yes, no)| *yes -= no);
    }
    let own = if answer.tied { None } else { Some(weights.describe(&name)?) };
    Ok((row, own))
}

/// What an activation makes of a number.
fn activated(y: f32, activation: DenseActivation) -> f32 {
    let wide = f64::from(y);
    match activation {
        DenseActivation::Identity => y,
        DenseActivation::Tanh => y.tanh(),
        DenseActivation::Hidden(HiddenAct::Relu) => y.max(0.0),
        DenseActivation::Hidden(HiddenAct::Silu) => (wide / (1.0 + (-wide).exp())) as f32,
        DenseActivation::Hidden(HiddenAct::Gelu) => {
            (wide * 0.5 * (1.0 + libm::erf(wide * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
        DenseActivation::Hidden(HiddenAct::GeluTanh) => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            (wide * 0.5 * (1.0 + inner.tanh())) as f32
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
                directory::Tail::LayerNorm(norm) => {
                    let weights = Weights::open(&norm.path)?;
                    let name = |part: &str| format!("{}.{part}", norm.tensors);
                    let weight = weights.values(&name("weight"), &[norm.width])?;
                    let bias = if norm.bias {
                        weights.values(&name("bias"), &[norm.width])?
                    } else {
                        vec![0.0; norm.width as usize]
                    };
                    read.extend(of_module(place, weights));
                    Ok(Module::LayerNorm { weight, bias, eps: norm.eps })
                }
                directory::Tail::Answer(answer) => {
                    let (weight, of_answer) = answer_weight(answer, &directory.encoder)?;
                    let own = of_answer.map(|tensor| {
                        let name = format!("module.{place}.{}", tensor.name);
                        space::Tensor { name, ..tensor }
                    });
                    read.extend(own);
                    Ok(Module::Dense { weight, bias: vec![0.0], activation: DenseActivation::Identity })
                }
                directory::Tail::Dense(dense) => {
                    let weights = Weights::open(&dense.path)?;
                    let name = |part: &str| format!("{}.{part}", dense.tensors);
                    let weight = weights.values(&name("weight"), &[dense.out_features, dense.in_features])?;
                    let bias = if dense.bias {
                        weights.values(&name("bias"), &[dense.out_features])?
                    } else {
                        vec![0.0; dense.out_features as usize]
                    };
                    read.extend(of_module(place, weights));
                    Ok(Module::Dense { weight, bias, activation: dense.activation })
                }
            })
            .collect::<Result<_, weights::Error>>()?;
        Ok((Self { pooling: directory.pooling.clone(), modules }, read))
    }

    /// The states of one text's tokens `[tokens, hidden]` → its vector. The first `unpooled` tokens,
    /// fewer than all, take no part.
    pub(super) fn text(&self, states: &[f32], hidden: usize, unpooled: usize) -> Vec<f32> {
        let vector = self.pooling.text(states, hidden, unpooled);
        self.modules.iter().fold(vector, |vector, module| module.forward(vector))
    }
}
