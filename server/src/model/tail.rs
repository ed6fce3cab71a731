//! What follows the encoder: pooling, dense layers, normalisation.
//!
//! Shared by every implementation, so that they can differ in the encoder alone.
//! It runs in f32 whatever the encoder's dtype: it is a vanishing part of the
//! work, and its rounding would go straight into the vectors.

use tch::{Device, TchError, Tensor};

use super::directory::{self, DenseActivation, Directory};
use super::pooling::Pooling;
use super::weights::{self, Weights};

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
    /// Loads the dense layers' weights onto `device`.
    pub(crate) fn load(directory: &Directory, device: Device) -> Result<Self, weights::Error> {
        let modules = directory
            .tail
            .iter()
            .map(|module| match module {
                directory::Tail::Normalize => Ok(Module::Normalize),
                directory::Tail::Dense(dense) => {
                    let weights = Weights::open(&dense.path)?;
                    let weight = weights.get("linear.weight", &[dense.out_features, dense.in_features])?;
                    let bias =
                        dense.bias.then(|| weights.get("linear.bias", &[dense.out_features])).transpose()?;
                    Ok(Module::Dense {
                        weight: weight.f_to_device(device)?,
                        bias: bias.map(|bias| bias.f_to_device(device)).transpose()?,
                        activation: dense.activation,
                    })
                }
            })
            .collect::<Result<_, weights::Error>>()?;
        Ok(Self { pooling: directory.pooling, modules })
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
    pub(crate) fn forward(&self, states: &Tensor, lengths: &[i64]) -> Result<Tensor, TchError> {
        let mut vectors = self.pooling.forward(states, lengths)?;
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
