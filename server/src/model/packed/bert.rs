//! BERT (Devlin et al., 2018), as transformers' `BertModel` computes it.

use tch::{Device, Kind, TchError, Tensor};

use crate::model::directory::{BertConfig, Encoder, HiddenAct};
use crate::model::tail::tensors::{Tail, values};
use crate::model::torch::{Activation, Linear, packed_attention};
use crate::model::weights::Weights;
use crate::model::{Directory, Dtype, Error, Model, TokenBatch};
use crate::space;

/// The row count that the weights' layout is tuned for: about one batch.
const TUNED_ROWS: i64 = 512;

#[derive(Debug)]
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &BertConfig, kind: Kind) -> Result<Self, Error> {
        let [weight, bias] = weights.layer_norm(name, config.hidden_size)?;
        Ok(Self {
            weight: Tensor::f_from_slice(&weight)?.f_to_kind(kind)?,
            bias: Tensor::f_from_slice(&bias)?.f_to_kind(kind)?,
            eps: config.layer_norm_eps,
        })
    }

    /// `[rows, hidden]` → the same, each row normalised in f32 inside.
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }

    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(weights: &Weights, index: i64, config: &BertConfig, kind: Kind) -> Result<Self, Error> {
        let hidden = config.hidden_size;
        let inner = config.intermediate_size;
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let get = |part: &str, out: i64, input: i64| -> Result<(Tensor, Tensor), Error> {
            Ok((
                weights.get(&name(&format!("{part}.weight")), &[out, input])?,
                weights.get(&name(&format!("{part}.bias")), &[out])?,
            ))
        };
        let pack = |(weight, bias): (Tensor, Tensor)| -> Result<Linear, Error> {
            Ok(Linear::prepack(&weight.f_to_kind(kind)?, &bias.f_to_kind(kind)?, TUNED_ROWS)?)
        };
        let [(q, qb), (k, kb), (v, vb)] = [
            get("attention.self.query", hidden, hidden)?,
            get("attention.self.key", hidden, hidden)?,
            get("attention.self.value", hidden, hidden)?,
        ];
        Ok(Self {
            query_key_value: pack((Tensor::f_cat(&[q, k, v], 0)?, Tensor::f_cat(&[qb, kb, vb], 0)?))?,
            attention_output: pack(get("attention.output.dense", hidden, hidden)?)?,
            attention_norm: LayerNorm::load(weights, &name("attention.output.LayerNorm"), config, kind)?,
            intermediate: pack(get("intermediate.dense", inner, hidden)?)?,
            output: pack(get("output.dense", hidden, inner)?)?,
            output_norm: LayerNorm::load(weights, &name("output.LayerNorm"), config, kind)?,
        })
    }

    /// Token states `[rows, hidden]` → the same, one layer on.
    fn forward(
        &self,
        x: &Tensor,
        lengths: &[i64],
        heads: i64,
        activation: Activation,
    ) -> Result<Tensor, TchError> {
        let qkv = self.query_key_value.forward(x, Activation::Identity)?;
        let context = packed_attention(&qkv, lengths, heads)?;
        let x = self.attention_norm.forward(&self.attention_output.forward_add(&context, x)?)?;
        let inner = self.intermediate.forward(&x, activation)?;
        self.output_norm.forward(&self.output.forward_add(&inner, &x)?)
    }

    fn share(&self) -> Self {
        Self {
            query_key_value: self.query_key_value.clone(),
            attention_output: self.attention_output.clone(),
            attention_norm: self.attention_norm.share(),
            intermediate: self.intermediate.clone(),
            output: self.output.clone(),
            output_norm: self.output_norm.share(),
        }
    }
}

/// A BERT encoder with its tail.
#[derive(Debug)]
pub(in crate::model) struct Bert {
    /// `[vocabulary, hidden]`, f32.
    words: Tensor,
    /// `[positions, hidden]`, f32, with the embedding of segment 0 added: a lone
    /// text is all segment 0.
    positions: Tensor,
    /// `[2, hidden]`, f32: what segment 1 adds, being in the second row, where a pair's second
    /// text is; zeros where the model has one segment.
    second_segment: Tensor,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    tail: Tail,
    heads: i64,
    activation: Activation,
    kind: Kind,
}

impl Bert {
    /// Loads the encoder and its tail for the CPU; with the tensors that were read.
    pub(in crate::model) fn load(
        directory: &Directory,
        dtype: Dtype,
    ) -> Result<(Self, Vec<space::Tensor>), Error> {
        let Encoder::Bert(config) = &directory.encoder;
        let kind = match dtype {
            Dtype::Float32 => Kind::Float,
            Dtype::BFloat16 => Kind::BFloat16,
        };
        let weights = Weights::open(&directory.path)?
            .with_prefix_of("embeddings.word_embeddings.weight", &["", "bert."]);
        let hidden = config.hidden_size;
        let table =
            |name: &str, rows: i64| weights.get(&format!("embeddings.{name}.weight"), &[rows, hidden]);
        let segments = table("token_type_embeddings", config.type_vocab_size)?;
        let first = segments.f_get(0)?;
        let second = segments.f_get((config.type_vocab_size - 1).min(1))?;
        let (tail, of_tail) = Tail::load(directory, Device::Cpu)?;
        let model = Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?.f_add(&first)?,
            second_segment: Tensor::f_stack(&[first.f_zeros_like()?, second.f_sub(&first)?], 0)?,
            embedding_norm: LayerNorm::load(&weights, "embeddings.LayerNorm", config, Kind::Float)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(&weights, index, config, kind))
                .collect::<Result<_, _>>()?,
            tail,
            heads: config.num_attention_heads,
            activation: match config.activation() {
                HiddenAct::Relu => Activation::Relu,
                HiddenAct::GeluTanh => Activation::GeluTanh,
                HiddenAct::Gelu => Activation::Gelu,
            },
            kind,
        };
        let mut read = weights.into_read();
        read.extend(of_tail);
        Ok((model, read))
    }

    /// The states of the batch's tokens, and of a few rows more: `[rows, hidden]`.
    fn encode(&self, batch: &TokenBatch) -> Result<Tensor, TchError> {
        let lengths = batch.lengths();
        let mut ids = batch.ids().to_vec();
        let mut positions: Vec<i64> = lengths.iter().flat_map(|&length| 0..length).collect();
        // oneDNN compiles a kernel for each row count it meets: a few padding rows
        // keep their number small. They are no text's, so nothing sees them.
        let rows = padded_rows(ids.len());
        ids.resize(rows, 0);
        positions.resize(rows, 0);

        let words = self.words.f_index_select(0, &Tensor::f_from_slice(&ids)?)?;
        let positions = self.positions.f_index_select(0, &Tensor::f_from_slice(&positions)?)?;
        let mut embedded = words.f_add(&positions)?;
        if let Some(mut segments) = batch.segments() {
            segments.resize(rows, 0);
            let second = self.second_segment.f_index_select(0, &Tensor::f_from_slice(&segments)?)?;
            embedded = embedded.f_add(&second)?;
        }
        let mut x = self.embedding_norm.forward(&embedded)?.f_to_kind(self.kind)?;
        for layer in &self.layers {
            x = layer.forward(&x, lengths, self.heads, self.activation)?;
        }
        Ok(x)
    }
}

/// The next row count of a coarse ladder: at most an eighth more than `tokens`.
fn padded_rows(tokens: usize) -> usize {
    let step = (tokens.next_power_of_two() / 16).max(4);
    tokens.next_multiple_of(step)
}

impl Model for Bert {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        values(&self.tail.forward(&self.encode(batch)?, batch)?)
    }

    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        values(&self.encode(batch)?.f_narrow(0, 0, batch.tokens() as i64)?)
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(Self {
            words: self.words.shallow_clone(),
            positions: self.positions.shallow_clone(),
            second_segment: self.second_segment.shallow_clone(),
            embedding_norm: self.embedding_norm.share(),
            layers: self.layers.iter().map(Layer::share).collect(),
            tail: self.tail.share(),
            heads: self.heads,
            activation: self.activation,
            kind: self.kind,
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
