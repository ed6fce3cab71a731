//! BERT (Devlin et al., 2018) and encoders of its shape, of our own kernels, without `LibTorch`.
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

use super::encoder::{self, Affine, Biases, Distances, HiddenAct, Learned, NormKind, Order};
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
    let encoder = &directory.encoder;
    let size = encoder.heads.size as usize;
    if !Heads::SIZES.contains(&size) {
        return Err(format!("its attention heads are {size} wide, and the kernels know {:?}", Heads::SIZES));
    }
    let norm = encoder.norm;
    for (is_other, what) in [
        (encoder.order != Order::Post || norm.kind != NormKind::Layer || !norm.bias, "norms"),
        (encoder.gated || activation(encoder).is_none(), "feed-forward"),
        (encoder.biases != Biases::ALL, "linear layers without biases"),
        (encoder.bias.is_some() || encoder.learned.is_none(), "positions"),
        (encoder.distances.iter().any(|layer| *layer != Distances::default()), "positions"),
        (encoder.heads.key_value != encoder.heads.query, "attention heads"),
        (encoder.query_width() != encoder.hidden_size, "attention heads"),
        (encoder.causal || encoder.query_key_norm.is_some() || encoder.score_scale.is_some(), "attention"),
        (encoder.embedding_size != encoder.hidden_size || encoder.embedding_scale.is_some(), "embeddings"),
        (!encoder.embedding_norm, "embeddings"),
        (encoder.shared_layer, "layers that share their weights"),
    ] {
        if is_other {
            return Err(format!("its {what} are not BERT's, which the kernels are written for"));
        }
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

/// The kernels' activation of the feed-forward, if they have it.
const fn activation(encoder: &encoder::Encoder) -> Option<Activation> {
    match encoder.activation {
        HiddenAct::Gelu => Some(Activation::Gelu),
        HiddenAct::GeluTanh => Some(Activation::GeluTanh),
        HiddenAct::Relu => Some(Activation::Relu),
        HiddenAct::Silu => None,
    }
}

fn linear<T: Element>(weights: &Weights, parts: &[Affine]) -> Result<Linear<T>, Error> {
    let (weight, bias) = weights.affine(parts)?;
    let depth = weight.len() / bias.len();
    Ok(Linear::new(&weight, bias, depth))
}

fn layer_norm(weights: &Weights, name: &str, encoder: &encoder::Encoder) -> Result<LayerNorm, Error> {
    let [weight, bias] = weights.norm(name, encoder.hidden_size, &encoder.norm)?;
    Ok(LayerNorm { weight, bias, eps: encoder.norm.eps as f32 })
}

fn layer<T: Element>(weights: &Weights, index: i64, encoder: &encoder::Encoder) -> Result<Layer<T>, Error> {
    let [attention, _, feed_forward, _] = encoder.layer_norms(index);
    let norm = |name: Option<String>| layer_norm(weights, &name.unwrap_or_default(), encoder);
    Ok(Layer {
        query_key_value: linear(weights, &encoder.query_key_value(index))?,
        attention_output: linear(weights, &[encoder.attention_output(index)])?,
        attention_norm: norm(attention)?,
        up: linear(weights, &encoder.up(index))?,
        down: linear(weights, &[encoder.down(index)])?,
        output_norm: norm(feed_forward)?,
    })
}

/// What all handles on a model share.
#[derive(Debug)]
struct Shared<K: MicroKernel> {
    /// `[vocabulary, hidden]`.
    words: Vec<f32>,
    /// `[positions, hidden]`, with the embedding of segment 0 added: a lone text is all segment 0.
    positions: Vec<f32>,
    /// Which of them a token has.
    learned: Learned,
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
        let encoder = &directory.encoder;
        let weights = Weights::open(&directory.path)?.of(encoder);
        let hidden = encoder.hidden_size as usize;
        let mut tables = encoder.tables().into_iter().map(|table| weights.table(&table));
        let mut next = || tables.next().unwrap_or_else(|| Ok(vec![0.0; hidden]));
        // In this order ([`fits`]): the table of segments may be missing, which is as if it were zeros.
        let (words, mut positions, segments) = (next()?, next()?, next()?);
        let first = &segments[..hidden];
        let second = row_of(&segments, 1, hidden).unwrap_or(first);
        for position in positions.chunks_exact_mut(hidden) {
            add(position, first);
        }
        let learned = encoder.learned.ok_or_else(|| Error::Unavailable("it has no positions".into()))?;
        let (tail, of_tail) = Tail::read(directory)?;
        let heads = Heads { count: encoder.heads.query as usize, size: encoder.heads.size as usize };
        let layers =
            (0..encoder.layers).map(|index| layer(&weights, index, encoder)).collect::<Result<_, _>>()?;
        let norm = layer_norm(&weights, encoder.names.embedding_norm, encoder)?;
        let activation =
            activation(encoder).ok_or_else(|| Error::Unavailable("it has another activation".into()))?;
        let shared = Shared {
            second_segment: second.iter().zip(first).map(|(second, first)| second - first).collect(),
            words,
            positions,
            learned,
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
                let positions = shared.learned.of_text(text.ids);
                for (((place, &id), position), row) in
                    text.ids.iter().enumerate().zip(positions).zip(&mut rows)
                {
                    shared.embed(id, position, place >= text.second, row)?;
                }
            }
            Ok(())
        })
    }
}

impl<K: MicroKernel> Shared<K> {
    /// Writes the embedding of a token into `row` `[hidden]`.
    fn embed(&self, id: i64, position: i64, second: bool, row: &mut [f32]) -> Result<(), Error> {
        let missing = |what: &str| Error::Tokens(format!("{what} is not in the model's table"));
        let hidden = self.encoder.hidden();
        let row_at = |table, index: i64| usize::try_from(index).ok().and_then(|at| row_of(table, at, hidden));
        let word = row_at(self.words.as_slice(), id);
        row.copy_from_slice(word.ok_or_else(|| missing(&format!("token id {id}")))?);
        let place = row_at(&self.positions, position);
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
