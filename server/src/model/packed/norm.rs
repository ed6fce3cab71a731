//! `LayerNorm` and `RMSNorm`.

use tch::{Device, Kind, TchError, Tensor};

use crate::model::Error;
use crate::model::encoder::{self, NormKind};
use crate::model::weights::Weights;

#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    kind: NormKind,
    eps: f64,
}

impl Norm {
    /// Loads the norm of rows `width` wide.
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        width: i64,
        norm: &encoder::Norm,
        place: (Kind, Device),
    ) -> Result<Self, Error> {
        let [weight, bias] = weights.norm(name, width, norm)?;
        let load = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_kind(place.0)?.f_to_device(place.1);
        Ok(Self { weight: load(&weight)?, bias: load(&bias)?, kind: norm.kind, eps: norm.eps })
    }

    /// `[.., width]` → the same, each row normalised, in f32 inside.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self.kind {
            NormKind::Layer => {
                x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
            }
            // In one kernel there.
            NormKind::Rms | NormKind::RmsPlusOne if x.device() != Device::Cpu => {
                x.f_rms_norm(self.weight.size(), Some(&self.weight), self.eps)
            }
            NormKind::Rms | NormKind::RmsPlusOne => {
                let wide = x.f_to_kind(Kind::Float)?;
                let squares = wide.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
                let scaled = wide.f_mul(&squares.f_add_scalar(self.eps)?.f_rsqrt()?)?;
                scaled.f_mul(&self.weight)?.f_to_kind(x.kind())
            }
        }
    }

    pub(super) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self }
    }
}
