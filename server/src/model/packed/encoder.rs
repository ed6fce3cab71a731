//! Any encoder that an [`Encoder`] describes, on `LibTorch`.

use tch::{Device, Kind, TchError, Tensor};

use super::norm::Norm;
use super::rotation::{Rotation, Table};
use crate::model::encoder::{Affine, Distances, Encoder, HiddenAct, Order, QueryKeyNorm, Rope};
use crate::model::tail::tensors::Tail;
use crate::model::torch::{
    Activation, Attention, Linear, Path, Texts, activated, packed_attention, use_gpu, values, whole_numbers,
};
use crate::model::weights::Weights;
use crate::model::{Directory, Dtype, Error, Model, TokenBatch};
use crate::space;

/// The row count that the weights' layout is tuned for: about one batch.
const TUNED_ROWS: i64 = 512;

/// In which dtype, and where.
type At = (Kind, Device);

/// `[rows, in]` → `[rows, out]`, of several layers of the file.
fn linear(weights: &Weights, parts: &[Affine], (kind, device): At) -> Result<Linear, Error> {
    let (weight, bias) = weights.affine(parts)?;
    let out_features = bias.len() as i64;
    let moved = |tensor: Tensor| tensor.f_to_kind(kind)?.f_to_device(device);
    let weight = Tensor::f_from_slice(&weight)?.f_view([out_features, -1])?;
    Ok(Linear::new(&moved(weight)?, &moved(Tensor::f_from_slice(&bias)?)?, TUNED_ROWS)?)
}

/// The dtype of the sums that layers add to. Where they are normalised before they are used, and not after each
/// step, they grow from layer to layer, and bfloat16 would lose what a layer adds.
fn sum_kind(encoder: &Encoder, kind: Kind) -> Kind {
    if encoder.order == Order::Post { kind } else { Kind::Float }
}

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    query_key_norms: Option<[Norm; 2]>,
    attention_output: Linear,
    up: Linear,
    down: Linear,
    /// As [`Encoder::layer_norms`] has them.
    norms: [Option<Norm>; 4],
}

impl Layer {
    fn load(weights: &Weights, index: i64, encoder: &Encoder, at: At) -> Result<Self, Error> {
        let norm = |name: &str, width| Norm::load(weights, name, width, &encoder.norm, at);
        let sum = (sum_kind(encoder, at.0), at.1);
        let of_sum = |name: &str| Norm::load(weights, name, encoder.hidden_size, &encoder.norm, sum);
        let [a, b, c, d] = encoder.layer_norms(index).map(|name| name.map(|name| of_sum(&name)).transpose());
        let query_key_norms = match encoder.query_key_norms(index) {
            Some([(query, wide), (key, narrow)]) => Some([norm(&query, wide)?, norm(&key, narrow)?]),
            None => None,
        };
        Ok(Self {
            query_key_value: linear(weights, &encoder.query_key_value(index), at)?,
            query_key_norms,
            attention_output: linear(weights, &[encoder.attention_output(index)], at)?,
            up: linear(weights, &encoder.up(index), at)?,
            down: linear(weights, &[encoder.down(index)], at)?,
            norms: [a?, b?, c?, d?],
        })
    }

    fn share(&self) -> Self {
        let share = |norm: &Option<Norm>| norm.as_ref().map(Norm::share);
        let [a, b, c, d] = &self.norms;
        Self {
            query_key_value: self.query_key_value.clone(),
            query_key_norms: self.query_key_norms.as_ref().map(|[query, key]| [query.share(), key.share()]),
            attention_output: self.attention_output.clone(),
            up: self.up.clone(),
            down: self.down.clone(),
            norms: [share(a), share(b), share(c), share(d)],
        }
    }
}

/// What the layers of one forward need besides the states.
struct Batch {
    texts: Texts,
    /// The rotations that some layer asks for.
    rotations: Vec<(Rope, Rotation)>,
}

/// An encoder with its tail.
#[derive(Debug)]
pub(in crate::model) struct Packed {
    encoder: Encoder,
    /// `[vocabulary, embedding]`, f32, scaled as the encoder says.
    words: Tensor,
    /// `[positions, embedding]`, f32; where there are none, one row of zeros that all positions share. The embedding
    /// of segment 0 is added: a lone text is all segment 0.
    positions: Tensor,
    /// `[2, embedding]`, f32: what segment 1 adds, being in the second row, where a pair's second
    /// text is; zeros where the model has one segment.
    second_segment: Tensor,
    /// What is added to scores of attention, by head and distance: `[heads, 2 × longest − 1]`, f32.
    added: Option<Tensor>,
    embedding_norm: Option<Norm>,
    projection: Option<Linear>,
    /// One where all share it.
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
    /// Of each rope that some layer asks for.
    ropes: Vec<Table>,
    tail: Tail,
    kind: Kind,
    device: Device,
    /// By which way attention is computed.
    path: Path,
}

/// By which way attention is computed on a device.
fn path(encoder: &Encoder, (kind, device): At) -> Result<Path, TchError> {
    if device == Device::Cpu {
        return Ok(Path::Runs);
    }
    // What flash attention is written for; whether the GPU can run it, it says itself.
    let fits = kind != Kind::Float && encoder.bias.is_none() && encoder.heads.size % 8 == 0;
    if !fits || encoder.heads.size > 256 {
        return Ok(Path::Padded);
    }
    let of = |heads: i64| Tensor::f_zeros([1, heads, encoder.heads.size], (kind, device));
    let (q, k) = (of(encoder.heads.query)?, of(encoder.heads.key_value)?);
    let how = Attention { scale: None, causal: false, reach: None, bias: None, path: Path::Flash };
    match packed_attention([&q, &k, &k], &Texts::new(&[1], device)?, &how) {
        Ok(_) => Ok(Path::Flash),
        Err(error) => {
            tracing::info!(%error, "flash attention does not run on this GPU; texts are padded");
            Ok(Path::Padded)
        }
    }
}

impl Packed {
    /// Loads the encoder and its tail onto a device; with the tensors that were read.
    pub(in crate::model) fn load(
        directory: &Directory,
        dtype: Dtype,
        device: Device,
    ) -> Result<(Self, Vec<space::Tensor>), Error> {
        let encoder = &directory.encoder;
        let kind = match dtype {
            Dtype::Float32 => Kind::Float,
            Dtype::BFloat16 => Kind::BFloat16,
            Dtype::Float16 => Kind::Half,
        };
        let at = (kind, device);
        let weights = Weights::open(&directory.path)?.of(encoder);
        let tables = weights.tables(encoder)?;
        let table = |values: &[f32]| {
            Tensor::f_from_slice(values)?.f_view([-1, encoder.embedding_size])?.f_to_device(device)
        };
        let words = table(&tables.words)?;
        let none = || Tensor::f_zeros([1, encoder.embedding_size], (Kind::Float, device));
        let segments = tables.segments.as_deref().map_or_else(none, table)?;
        let positions = tables.positions.as_deref().map_or_else(none, table)?;
        let added = match encoder.bias {
            Some(bias) => {
                let heads = encoder.heads.query;
                let values = bias.values(heads as usize, directory.max_tokens, tables.buckets.as_deref());
                Some(Tensor::f_from_slice(&values)?.f_view([heads, -1])?.f_to_device(device)?)
            }
            None => None,
        };
        let first = segments.f_get(0)?;
        let second = segments.f_get((segments.size()[0] - 1).min(1))?;
        let (tail, of_tail) = Tail::load(directory, device)?;
        let norm = |name: &str, width, kind| Norm::load(&weights, name, width, &encoder.norm, (kind, device));
        let names = &encoder.names;
        let model = Self {
            words: match encoder.embedding_scale {
                Some(scale) => words.f_mul_scalar(scale)?,
                None => words,
            },
            positions: positions.f_add(&first)?,
            second_segment: Tensor::f_stack(&[first.f_zeros_like()?, second.f_sub(&first)?], 0)?,
            added,
            embedding_norm: encoder
                .embedding_norm
                .then(|| norm(names.embedding_norm, encoder.embedding_size, Kind::Float))
                .transpose()?,
            projection: encoder.projection().map(|affine| linear(&weights, &[affine], at)).transpose()?,
            layers: encoder
                .own_layers()
                .map(|index| Layer::load(&weights, index, encoder, at))
                .collect::<Result<_, _>>()?,
            final_norm: Some(names.final_norm)
                .filter(|name| !name.is_empty())
                .map(|name| norm(name, encoder.hidden_size, sum_kind(encoder, kind)))
                .transpose()?,
            ropes: encoder
                .ropes()
                .into_iter()
                .map(|rope| Table::new(rope, encoder.heads.size, directory.max_tokens as i64, device))
                .collect::<Result<_, _>>()?,
            tail,
            kind,
            device,
            path: path(encoder, at)?,
            encoder: encoder.clone(),
        };
        let mut read = weights.into_read();
        read.extend(of_tail);
        Ok((model, read))
    }

    /// The states of the batch's tokens, and of a few rows more: `[rows, hidden]`.
    fn encode(&self, batch: &TokenBatch) -> Result<Tensor, TchError> {
        let lengths = batch.lengths();
        // oneDNN compiles a kernel for each row count it meets: a few padding rows
        // keep their number small. They are no text's, so nothing sees them.
        let rows = if self.device == Device::Cpu { padded_rows(batch.tokens()) } else { batch.tokens() };
        let of_tokens = |mut values: Vec<i64>| {
            values.resize(rows, 0);
            whole_numbers(&values, self.device)
        };
        let words = self.words.f_index_select(0, &of_tokens(batch.ids().to_vec())?)?;
        let mut embedded = match self.encoder.learned {
            Some(learned) => {
                let positions = batch.texts().flat_map(|text| learned.of_text(text.ids)).collect();
                words.f_add(&self.positions.f_index_select(0, &of_tokens(positions)?)?)?
            }
            None => words.f_add(&self.positions)?,
        };
        if let Some(segments) = batch.segments() {
            embedded = embedded.f_add(&self.second_segment.f_index_select(0, &of_tokens(segments)?)?)?;
        }
        if let Some(norm) = &self.embedding_norm {
            embedded = norm.forward(&embedded)?;
        }
        let x = match &self.projection {
            Some(projection) => projection.forward(&embedded.f_to_kind(self.kind)?, Activation::Identity)?,
            None => embedded,
        };
        let mut x = x.f_to_kind(sum_kind(&self.encoder, self.kind))?;
        let mut around = Batch { texts: Texts::new(lengths, self.device)?, rotations: Vec::new() };
        if !self.ropes.is_empty() {
            let places = of_tokens(lengths.iter().flat_map(|&length| 0..length).collect())?;
            for table in &self.ropes {
                around.rotations.push((table.rope(), table.at(&places, self.kind)?));
            }
        }
        for index in 0..self.encoder.layers as usize {
            let distances = self.encoder.distances.get(index).copied().unwrap_or_default();
            let layer = self.layers.get(index).or_else(|| self.layers.first());
            if let Some(layer) = layer {
                x = self.layer(layer, &x, distances, &around)?;
            }
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Token states `[rows, hidden]` → the same, one layer on.
    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        distances: Distances,
        batch: &Batch,
    ) -> Result<Tensor, TchError> {
        let [attention_norm, attention_output_norm, feed_forward_norm, feed_forward_output_norm] =
            &layer.norms;
        let normed = |norm: &Option<Norm>, x: &Tensor| match norm {
            Some(norm) => norm.forward(x),
            None => Ok(x.shallow_clone()),
        };
        // The residual sum, and the norms around it.
        let add =
            |output: &Linear, y: &Tensor, x: &Tensor, after: &Option<Norm>, own: &Option<Norm>| match self
                .encoder
                .order
            {
                Order::Post => normed(after, &output.forward_add(y, x)?),
                Order::Pre if self.kind == x.kind() => output.forward_add(y, x),
                Order::Pre => output.forward(y, Activation::Identity)?.f_add(x),
                Order::Sandwich => {
                    let y = output.forward(y, Activation::Identity)?.f_to_kind(x.kind())?;
                    normed(own, &y)?.f_add(x)
                }
            };
        let before = |norm: &Option<Norm>, x: &Tensor| match self.encoder.order {
            Order::Post => Ok(x.shallow_clone()),
            Order::Pre | Order::Sandwich => normed(norm, x)?.f_to_kind(self.kind),
        };
        let context = self.attention(layer, &before(attention_norm, x)?, distances, batch)?;
        let x = add(&layer.attention_output, &context, x, attention_norm, attention_output_norm)?;
        let inner = self.inner(layer, &before(feed_forward_norm, &x)?)?;
        add(&layer.down, &inner, &x, feed_forward_norm, feed_forward_output_norm)
    }

    /// The feed-forward's inner state: `[rows, hidden]` → `[rows, intermediate]`.
    fn inner(&self, layer: &Layer, x: &Tensor) -> Result<Tensor, TchError> {
        let activation = self.encoder.activation;
        let fused = match activation {
            HiddenAct::Gelu => Some(Activation::Gelu),
            HiddenAct::GeluTanh => Some(Activation::GeluTanh),
            HiddenAct::Relu => Some(Activation::Relu),
            HiddenAct::Silu => None,
        };
        if let Some(fused) = fused.filter(|_| !self.encoder.gated) {
            return layer.up.forward(x, fused);
        }
        let y = layer.up.forward(x, Activation::Identity)?;
        if !self.encoder.gated {
            return activated(&y, activation);
        }
        let inner = self.encoder.intermediate_size;
        activated(&y.f_narrow(1, 0, inner)?, activation)?.f_mul(&y.f_narrow(1, inner, inner)?)
    }

    /// `[rows, hidden]` → `[rows, heads × size]`: what each token takes over from those that it sees.
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        distances: Distances,
        batch: &Batch,
    ) -> Result<Tensor, TchError> {
        let heads = self.encoder.heads;
        let joined = layer.query_key_value.forward(x, Activation::Identity)?;
        let joined = joined.f_view([-1, heads.query + 2 * heads.key_value, heads.size])?;
        let part = |from: i64, count: i64| joined.f_narrow(1, from, count);
        let v = part(heads.query + heads.key_value, heads.key_value)?;
        let rope = batch.rotations.iter().find(|(rope, _)| Some(*rope) == distances.rope);
        let turned = |part: Tensor| match rope {
            Some((_, rotation)) => rotation.rotate(&part),
            None => Ok(part),
        };
        let (q, k) = if let Some([query, key]) = &layer.query_key_norms {
            let whole = self.encoder.query_key_norm == Some(QueryKeyNorm::Whole);
            let normed = |norm: &Norm, part: &Tensor| {
                if !whole {
                    return norm.forward(part);
                }
                norm.forward(&part.f_flatten(1, -1)?)?.f_view_as(part)
            };
            let (q, k) = (part(0, heads.query)?, part(heads.query, heads.key_value)?);
            (turned(normed(query, &q)?)?, turned(normed(key, &k)?)?)
        } else {
            // Together: they lie side by side.
            let both = turned(part(0, heads.query + heads.key_value)?)?;
            (both.f_narrow(1, 0, heads.query)?, both.f_narrow(1, heads.query, heads.key_value)?)
        };
        let how = Attention {
            scale: self.encoder.score_scale,
            causal: self.encoder.causal,
            reach: distances.reach,
            bias: self.added.as_ref(),
            path: self.path,
        };
        packed_attention([&q, &k, &v], &batch.texts, &how)
    }
}

/// The next row count of a coarse ladder: at most an eighth more than `tokens`.
fn padded_rows(tokens: usize) -> usize {
    let step = (tokens.next_power_of_two() / 16).max(4);
    tokens.next_multiple_of(step)
}

impl Model for Packed {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Ok(values(&self.tail.forward(&self.encode(batch)?, batch)?)?)
    }

    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Ok(values(&self.encode(batch)?.f_narrow(0, 0, batch.tokens() as i64)?)?)
    }

    fn settle(&mut self) -> Result<(), Error> {
        match self.device {
            Device::Cuda(index) => Ok(use_gpu(index)?),
            _ => Ok(()),
        }
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        let share = |norm: &Option<Norm>| norm.as_ref().map(Norm::share);
        Ok(Box::new(Self {
            encoder: self.encoder.clone(),
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            second_segment: self.second_segment.shallow_clone(),
            added: self.added.as_ref().map(Tensor::shallow_clone),
            embedding_norm: share(&self.embedding_norm),
            projection: self.projection.clone(),
            layers: self.layers.iter().map(Layer::share).collect(),
            final_norm: share(&self.final_norm),
            ropes: self.ropes.iter().map(Table::share).collect(),
            tail: self.tail.share(),
            kind: self.kind,
            device: self.device,
            path: self.path,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::padded_rows;

    #[test]
    fn row_counts_are_few_and_little_more_than_needed() {
        let mut seen: Vec<usize> = (1..=8192).map(padded_rows).collect();
        for (index, &rows) in seen.iter().enumerate() {
            let tokens = index + 1;
            assert!(rows >= tokens && rows <= (tokens + tokens / 8).max(tokens + 3), "{tokens} → {rows}");
        }
        seen.dedup();
        assert!(seen.len() < 80, "{} row counts", seen.len());
    }
}
