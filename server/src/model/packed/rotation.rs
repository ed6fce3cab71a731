//! Rotary positions (Su et al., 2021) on `LibTorch`.

use tch::{Device, Kind, TchError, Tensor};

use crate::model::encoder::Rope;

/// Cosines and sines of all positions that a text may have.
#[derive(Debug)]
pub(super) struct Table {
    rope: Rope,
    /// `[positions, 1, head size / 2]`, f32.
    cos: Tensor,
    sin: Tensor,
}

impl Table {
    /// The arithmetic is that of transformers, in f32.
    pub(super) fn new(rope: Rope, head_size: i64, positions: i64, device: Device) -> Result<Self, TchError> {
        let frequencies = Tensor::f_from_slice(&rope.frequencies(head_size))?;
        let positions = Tensor::f_arange(positions, (Kind::Float, Device::Cpu))?.f_unsqueeze(1)?;
        let angles = positions.f_mul(&frequencies)?.f_unsqueeze(1)?;
        Ok(Self {
            rope,
            cos: angles.f_cos()?.f_to_device(device)?,
            sin: angles.f_sin()?.f_to_device(device)?,
        })
    }

    /// Of which positions it is.
    pub(super) const fn rope(&self) -> Rope {
        self.rope
    }

    /// For tokens at these positions, rotating heads of that dtype. On a CPU it is done in f32.
    pub(super) fn at(&self, positions: &Tensor, kind: Kind) -> Result<Rotation, TchError> {
        let kind = if positions.device() == Device::Cpu { Kind::Float } else { kind };
        let of = |table: &Tensor| table.f_index_select(0, positions)?.f_to_kind(kind);
        Ok(Rotation { cos: of(&self.cos)?, sin: of(&self.sin)? })
    }

    pub(super) fn share(&self) -> Self {
        Self { rope: self.rope, cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

/// Those of each token of a batch: `[tokens, 1, head size / 2]`.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Rotates heads `[tokens, heads, head size]`: the first half of a head with the second.
    pub(super) fn rotate(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let wide = heads.f_to_kind(self.cos.kind())?;
        let halves = wide.f_chunk(2, -1)?;
        let [first, second] = halves.as_slice() else {
            return Err(TchError::Shape("a head of width 1 has no halves".into()));
        };
        let ahead = first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?;
        let behind = second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?;
        Tensor::f_cat(&[ahead, behind], -1)?.f_to_kind(heads.kind())
    }
}
