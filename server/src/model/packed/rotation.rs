//! Rotary positions (Su et al., 2021) on `LibTorch`.

use tch::{Kind, TchError, Tensor};

use crate::model::encoder::Rope;

/// Cosines and sines of rotary positions, for each token of a batch.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `[tokens, 1, head size / 2]`, f32.
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// For tokens at these positions. The arithmetic is that of transformers, in f32.
    pub(super) fn new(rope: Rope, head_size: i64, positions: &Tensor) -> Result<Self, TchError> {
        let frequencies = rope.frequencies(head_size);
        let frequencies = Tensor::f_from_slice(&frequencies)?.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(1)?.f_mul(&frequencies)?.f_unsqueeze(1)?;
        Ok(Self { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// Rotates heads `[tokens, heads, head size]`: the first half of a head with the second.
    pub(super) fn rotate(&self, heads: &Tensor) -> Result<Tensor, TchError> {
        let wide = heads.f_to_kind(Kind::Float)?;
        let halves = wide.f_chunk(2, -1)?;
        let [first, second] = halves.as_slice() else {
            return Err(TchError::Shape("a head of width 1 has no halves".into()));
        };
        let ahead = first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?;
        let behind = second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?;
        Tensor::f_cat(&[ahead, behind], -1)?.f_to_kind(heads.kind())
    }
}
