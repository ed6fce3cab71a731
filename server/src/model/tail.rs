//! What follows the encoder: pooling, dense layers, normalisation. A normalisation
//! that comes last is left to the caller of the model.
//!
//! Shared by every implementation, so that they can differ in the encoder alone.
//! It runs in f32 whatever the encoder's dtype: it is a vanishing part of the
//! work, and its rounding would go straight into the vectors.

use tch::{Device, Kind, TchError, Tensor};

use super::directory::{self, DenseActivation, Directory};
use super::pooling::Pooling;
use super::weights::{self, Weights};
use super::{Error, TokenBatch};
use crate::space;

#[derive(Debug)]
enum Module {
    Dense { weight: Tensor, bias: Option<Tensor>, activation: DenseActivation },
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
    pub(crate) fn load(
        directory: &Directory,
        device: Device,
    ) -> Result<(Self, Vec<space::Tensor>), weights::Error> {
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
                    let weight = weights.get(&name("weight"), &[dense.out_features, dense.in_features])?;
                    let bias = dense.bias.then(|| weights.get(&name("bias"), &[dense.out_features]));
                    let bias = bias.transpose()?;
                    // By its place among the modules: two can have tensors of one name.
                    read.extend(weights.into_read().into_iter().map(|tensor| space::Tensor {
                        name: format!("module.{place}.{}", tensor.name),
                        ..tensor
                    }));
                    Ok(Module::Dense {
                        weight: weight.f_to_device(device)?,
                        bias: bias.map(|bias| bias.f_to_device(device)).transpose()?,
                        activation: dense.activation,
                    })
                }
            })
            .collect::<Result<_, weights::Error>>()?;
        Ok((Self { pooling: directory.pooling, modules }, read))
    }

    /// A second handle on the same weights.
    pub(crate) fn share(&self) -> Self {
        let share = |module: &Module| match module {
            Module::Normalize => Module::Normalize,
            Module::Dense { weight, bias, activation } => Module::Dense {
                weight: weight.shallow_clone(),
                bias: bias.as_ref().map(Tensor::shallow_clone),
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
                    // torch.nn.functional.normalize: the floor keeps a zero vector zero.
                    let norm = vectors.f_norm_scalaropt_dim(2, [1i64], true)?.f_clamp_min(1e-12)?;
                    vectors.f_div(&norm)?
                }
                Module::Dense { weight, bias, activation } => {
                    let y = vectors.f_matmul(&weight.f_transpose(0, 1)?)?;
                    let y = bias.as_ref().map_or_else(|| Ok(y.shallow_clone()), |bias| y.f_add(bias))?;
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
