//! The tail on `LibTorch`, on any device.

use tch::{Device, TchError, Tensor};

use super::super::directory::{DenseActivation, Directory};
use super::super::pooling::Pooling;
use super::super::{Error, TokenBatch};
use super::LEAST_NORM;
use crate::model::torch::activated;
use crate::space;

#[derive(Debug)]
enum Module {
    Dense { weight: Tensor, bias: Tensor, activation: DenseActivation },
    LayerNorm { weight: Tensor, bias: Tensor, eps: f64 },
    Normalize,
}

/// The modules after the encoder, with their weights.
#[derive(Debug)]
pub(crate) struct Tail {
    pooling: Pooling,
    modules: Vec<Module>,
}

impl Tail {
    /// Loads the dense layers' weights onto `device`; with the tensors that were read.
    pub(crate) fn load(directory: &Directory, device: Device) -> Result<(Self, Vec<space::Tensor>), Error> {
        let (plain, read) = super::Tail::read(directory)?;
        let to_device = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
        let load = |module| -> Result<Module, TchError> {
            Ok(match module {
                super::Module::Normalize => Module::Normalize,
                super::Module::LayerNorm { weight, bias, eps } => {
                    Module::LayerNorm { weight: to_device(&weight)?, bias: to_device(&bias)?, eps }
                }
                super::Module::Dense { weight, bias, activation } => Module::Dense {
                    weight: to_device(&weight)?.f_reshape([bias.len() as i64, -1])?,
                    bias: to_device(&bias)?,
                    activation,
                },
            })
        };
        let modules = plain.modules.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok((Self { pooling: plain.pooling, modules }, read))
    }

    /// A second handle on the same weights.
    pub(crate) fn share(&self) -> Self {
        let share = |module: &Module| match module {
            Module::Normalize => Module::Normalize,
            Module::LayerNorm { weight, bias, eps } => {
                Module::LayerNorm { weight: weight.shallow_clone(), bias: bias.shallow_clone(), eps: *eps }
            }
            Module::Dense { weight, bias, activation } => Module::Dense {
                weight: weight.shallow_clone(),
                bias: bias.shallow_clone(),
                activation: *activation,
            },
        };
        Self { pooling: self.pooling.clone(), modules: self.modules.iter().map(share).collect() }
    }

    /// Packed token states `[rows, hidden]` → one vector a text `[texts, dimensions]`, f32.
    pub(crate) fn forward(&self, states: &Tensor, batch: &TokenBatch) -> Result<Tensor, TchError> {
        let mut vectors = self.pooling.forward(states, batch.lengths(), batch.unpooled())?;
        for module in &self.modules {
            vectors = match module {
                Module::Normalize => {
                    let norm = vectors.f_norm_scalaropt_dim(2, [1i64], true)?.f_clamp_min(LEAST_NORM)?;
                    vectors.f_div(&norm)?
                }
                Module::Dense { weight, bias, activation } => {
                    let y = vectors.f_matmul(&weight.f_transpose(0, 1)?)?.f_add(bias)?;
                    match activation {
                        DenseActivation::Identity => y,
                        DenseActivation::Tanh => y.f_tanh()?,
                        DenseActivation::Hidden(act) => activated(&y, *act)?,
                    }
                }
                Module::LayerNorm { weight, bias, eps } => {
                    vectors.f_layer_norm(weight.size(), Some(weight), Some(bias), *eps, false)?
                }
            };
        }
        Ok(vectors)
    }
}
