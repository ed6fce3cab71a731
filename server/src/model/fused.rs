//! A BERT encoder (Devlin et al., 2018) of our own kernels, without `LibTorch`.
//!
//! The tokens of a few texts, [`CHUNK`] or a little less, go through the whole encoder together, so that what
//! lies between two products stays in the L2 cache ([`crate::kernels::encoder`]). Here are its weights, the
//! embeddings before it, and the tail behind it.
//!
//! All of it is generic over the micro-kernel, and with it over the operands' element: which one it is
//! is decided once, in [`load`].
//!
//! # Sharing
//!
//! Weights are behind an `Arc`; each handle has a workspace of its own and takes no lock.

use std::sync::Arc;

use half::bf16;

use super::directory::{self, BertConfig, HiddenAct};
use super::tail::Tail;
use super::weights::Weights;
use super::{Directory, Error, Model, Spare, Text, TokenBatch};
use crate::kernels::attention::Heads;
use crate::kernels::cpu::InstructionSet;
use crate::kernels::crew::Crew;
use crate::kernels::element::Element;
use crate::kernels::elementwise::LayerNorm;
use crate::kernels::encoder::{Encoder, Layer, Linear, Workspace};
use crate::kernels::gemm::{Activation, Amx, Avx512, Isa, MicroKernel};
use crate::space;

/// The most tokens that go through the encoder together, but for a single text of more.
const CHUNK: usize = 512;

/// Whether the kernels fit the encoder; the error is a fragment that says what does not.
pub(super) fn fits(directory: &Directory) -> Result<(), String> {
    let directory::Encoder::Bert(config) = &directory.encoder;
    let (hidden, heads) = (config.hidden_size as usize, config.num_attention_heads as usize);
    let size = hidden / heads;
    if !Heads::SIZES.contains(&size) {
        return Err(format!("its attention heads are {size} wide, and the kernels know {:?}", Heads::SIZES));
    }
    Ok(())
}

/// Loads the encoder of `directory` and its tail, to compute with `set`; with the tensors that were
/// read.
pub(super) fn load(
    directory: &Directory,
    set: InstructionSet,
) -> Result<(Box<dyn Model>, Vec<space::Tensor>), Error> {
    match set {
        InstructionSet::AmxBf16 => Bert::<Amx>::load(directory),
        InstructionSet::Avx512Bf16 => Bert::<Avx512<bf16>>::load(directory),
        InstructionSet::Avx512F32 => Bert::<Avx512<f32>>::load(directory),
    }
}

/// The linear layers of these names (each with its width), one under the other, `depth` deep.
fn linear<T: Element>(weights: &Weights, parts: &[(String, i64)], depth: i64) -> Result<Linear<T>, Error> {
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for (name, columns) in parts {
        weight.extend(weights.values(&format!("{name}.weight"), &[*columns, depth])?);
        bias.extend(weights.values(&format!("{name}.bias"), &[*columns])?);
    }
    Ok(Linear::new(&weight, bias, depth as usize))
}

fn layer_norm(weights: &Weights, name: &str, config: &BertConfig) -> Result<LayerNorm, Error> {
    let [weight, bias] = weights.layer_norm(name, config.hidden_size)?;
    Ok(LayerNorm { weight, bias, eps: config.layer_norm_eps as f32 })
}

fn layer<T: Element>(weights: &Weights, index: i64, config: &BertConfig) -> Result<Layer<T>, Error> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let name = |part: &str| format!("encoder.layer.{index}.{part}");
    let one = |part: &str, columns| [(name(part), columns)];
    let query_key_value =
        ["query", "key", "value"].map(|part| (name(&format!("attention.self.{part}")), hidden));
    Ok(Layer {
        query_key_value: linear(weights, &query_key_value, hidden)?,
        attention_output: linear(weights, &one("attention.output.dense", hidden), hidden)?,
        attention_norm: layer_norm(weights, &name("attention.output.LayerNorm"), config)?,
        up: linear(weights, &one("intermediate.dense", inner), hidden)?,
        down: linear(weights, &one("output.dense", hidden), inner)?,
        output_norm: layer_norm(weights, &name("output.LayerNorm"), config)?,
    })
}

/// What all handles on a model share.
#[derive(Debug)]
struct Shared<K: MicroKernel> {
    /// `[vocabulary, hidden]`.
    words: Vec<f32>,
    /// `[positions, hidden]`, with the embedding of segment 0 added: a lone text is all segment 0.
    positions: Vec<f32>,
    /// `[hidden]`: what the second text of a pair has added.
    second_segment: Vec<f32>,
    encoder: Encoder<K>,
    tail: Tail,
    /// Threads that help where handles are idle.
    crew: Crew,
}

/// A handle on a BERT encoder with its tail.
#[derive(Debug)]
struct Bert<K: MicroKernel> {
    shared: Arc<Shared<K>>,
    /// It grows to the longest text that it has met.
    workspace: Workspace<K::Element>,
    /// What else may compute the next forward.
    spare: Spare,
}

impl<K: MicroKernel> Bert<K> {
    fn load(directory: &Directory) -> Result<(Box<dyn Model>, Vec<space::Tensor>), Error> {
        let isa =
            Isa::<K>::detect().ok_or_else(|| Error::Unavailable(format!("this CPU has no {}", K::SET)))?;
        fits(directory).map_err(Error::Unavailable)?;
        let directory::Encoder::Bert(config) = &directory.encoder;
        let weights = Weights::open(&directory.path)?
            .with_prefix_of("embeddings.word_embeddings.weight", &["", "bert."]);
        let hidden = config.hidden_size as usize;
        let table = |name: &str, rows: i64| {
            weights.values(&format!("embeddings.{name}.weight"), &[rows, config.hidden_size])
        };
        let segments = table("token_type_embeddings", config.type_vocab_size)?;
        let first = &segments[..hidden];
        let second = row_of(&segments, 1, hidden).unwrap_or(first);
        let mut positions = table("position_embeddings", config.max_position_embeddings)?;
        for position in positions.chunks_exact_mut(hidden) {
            add(position, first);
        }
        let (tail, of_tail) = Tail::read(directory)?;
        let heads = Heads {
            count: config.num_attention_heads as usize,
            size: hidden / config.num_attention_heads as usize,
        };
        let activation = match config.activation() {
            HiddenAct::Gelu => Activation::Gelu,
            HiddenAct::GeluTanh => Activation::GeluTanh,
            HiddenAct::Relu => Activation::Relu,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| layer(&weights, index, config))
            .collect::<Result<_, _>>()?;
        let norm = layer_norm(&weights, "embeddings.LayerNorm", config)?;
        let shared = Shared {
            words: table("word_embeddings", config.vocab_size)?,
            positions,
            second_segment: second.iter().zip(first).map(|(second, first)| second - first).collect(),
            encoder: Encoder::new(isa, norm, layers, heads, activation),
            tail,
            crew: Crew::default(),
        };
        let mut read = weights.into_read();
        read.extend(of_tail);
        Ok((Box::new(Self::on(Arc::new(shared))), read))
    }

    fn on(shared: Arc<Shared<K>>) -> Self {
        let workspace = Workspace::new(&shared.encoder, CHUNK);
        Self { shared, workspace, spare: Spare::default() }
    }

    /// Computes the token states of some texts, `[tokens, hidden]`.
    fn encode(&mut self, texts: &[Text<'_>]) -> Result<&[f32], Error> {
        let Self { shared, workspace, spare } = self;
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let tokens = lengths.iter().sum();
        if tokens > workspace.rows() {
            *workspace = Workspace::new(&shared.encoder, tokens);
        }
        shared.encoder.forward(&lengths, workspace, (&shared.crew, spare), |state| {
            let mut rows = state.chunks_exact_mut(shared.encoder.hidden());
            for text in texts {
                for ((position, &id), row) in text.ids.iter().enumerate().zip(&mut rows) {
                    shared.embed(id, position, position >= text.second, row)?;
                }
            }
            Ok(())
        })
    }
}

impl<K: MicroKernel> Shared<K> {
    /// Writes the embedding of a token into `row` `[hidden]`.
    fn embed(&self, id: i64, position: usize, second: bool, row: &mut [f32]) -> Result<(), Error> {
        let missing = |what: &str| Error::Tokens(format!("{what} is not in the model's table"));
        let hidden = self.encoder.hidden();
        let word = usize::try_from(id).ok().and_then(|id| row_of(&self.words, id, hidden));
        row.copy_from_slice(word.ok_or_else(|| missing(&format!("token id {id}")))?);
        let place = row_of(&self.positions, position, hidden);
        add(row, place.ok_or_else(|| missing(&format!("position {position}")))?);
        if second {
            add(row, &self.second_segment);
        }
        Ok(())
    }
}

/// Row `index` of a table, if it has so many.
fn row_of(table: &[f32], index: usize, width: usize) -> Option<&[f32]> {
    let start = index.checked_mul(width)?;
    table.get(start..start.checked_add(width)?)
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// The batch's texts, in chunks of at most [`CHUNK`] tokens or one text.
fn chunks<'a>(batch: &'a TokenBatch) -> Vec<Vec<Text<'a>>> {
    let mut chunks: Vec<Vec<Text<'a>>> = Vec::new();
    let mut tokens = 0;
    for text in batch.texts() {
        match chunks.last_mut() {
            Some(chunk) if tokens + text.ids.len() <= CHUNK => chunk.push(text),
            _ => {
                tokens = 0;
                chunks.push(vec![text]);
            }
        }
        tokens += text.ids.len();
    }
    chunks
}

impl<K: MicroKernel> Model for Bert<K> {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        let mut vectors = Vec::new();
        for chunk in chunks(batch) {
            let hidden = self.shared.encoder.hidden();
            let shared = Arc::clone(&self.shared);
            let mut states = self.encode(&chunk)?;
            for text in chunk {
                let (own, others) = states.split_at(text.ids.len() * hidden);
                vectors.extend(shared.tail.text(own, hidden, text.unpooled));
                states = others;
            }
        }
        Ok(vectors)
    }

    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        let mut states = Vec::with_capacity(batch.tokens() * self.shared.encoder.hidden());
        for chunk in chunks(batch) {
            states.extend_from_slice(self.encode(&chunk)?);
        }
        Ok(states)
    }

    fn lend(&mut self, spare: Spare) {
        self.spare = spare;
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(Self::on(Arc::clone(&self.shared))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_the_order_and_the_budget() {
        let lengths = |batch: &TokenBatch| -> Vec<Vec<usize>> {
            let of = |chunk: Vec<Text<'_>>| chunk.iter().map(|text| text.ids.len()).collect();
            chunks(batch).into_iter().map(of).collect()
        };
        let batch: TokenBatch =
            [600, 400, 112, 1, 100].map(|length| vec![7u32; length]).iter().map(Vec::as_slice).collect();
        assert_eq!(lengths(&batch), [vec![600], vec![400, 112], vec![1, 100]]);
        assert!(lengths(&TokenBatch::new()).is_empty());
    }
}
