//! The tail on `LibTorch`, on any device.

use tch::{Device, Kind, TchError, Tensor};

use super::super::directory::{DenseActivation, Directory};
use super::super::pooling::Pooling;
use super::super::{Error, TokenBatch};
use super::LEAST_NORM;
use crate::space;

#[derive(Debug)]
enum Module {
    Dense { weight: Tensor, bias: Tensor, activation: DenseActivation },
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
        let load = |module| -> Result<Module, TchError> {
            let super::Module::Dense { weight, bias, activation } = module else {
                return Ok(Module::Normalize);
            };
            let weight = Tensor::f_from_slice(&weight)?.f_reshape([bias.len() as i64, -1])?;
            let bias = Tensor::f_from_slice(&bias)?;
            Ok(Module::Dense {
                weight: weight.f_to_device(device)?,
                bias: bias.f_to_device(device)?,
                activation,
            })
        };
        let modules = plain.modules.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok((Self { pooling: plain.pooling, modules }, read))
    }

    /// A second handle on the same weights.
    pub(crate) fn share(&self) -> Self {
        let share = |module: &Module| match module {
            Module::Normalize => Module::Normalize,
            Module::Dense { weight, bias, activation } => Module::Dense {
                weight: weight.shallow_clone(),
                bias: bias.shallow_clone(),
                activation: *activation,
            },
        };
        Self { pooling: self.pooling, modules: self.modules.iter().map(share).collect() }
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
                    }
                }
            };
        }
        Ok(vectors)
    }
}

/// The values of a tensor on any device, row by row, as f32.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let tensor = tensor.f_contiguous()?.f_to_kind(Kind::Float)?;
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}
