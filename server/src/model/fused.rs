//! Encoders on our own kernels, without `LibTorch`: what [`packed`](super::packed) computes of an [`Encoder`],
//! on CPUs with AVX-512.
//!
//! The tokens of a few texts, [`CHUNK`] or a little less, go through the whole encoder together, so that what
//! lies between two products stays in the L2 cache ([`crate::kernels::encoder`]). Here are its weights, the
//! embeddings before it, and the tail behind it.
//!
//! All of it is generic over the micro-kernel, and with it over the operands' element: which one it is
//! is decided once, in [`load`].
//!
//! # Layout
//!
//! Heads of a width that the kernels do not know are padded with zeros, which change no sum: the rows of queries,
//! keys and values in their layer, and the columns of the layer behind attention.
//!
//! # Sharing
//!
//! Weights are behind an `Arc`; each handle has a workspace of its own and takes no lock.

use std::sync::Arc;

use half::bf16;

use super::encoder::{self, Affine, Encoder, Learned, NormKind, QueryKeyNorm};
use super::tail::Tail;
use super::weights::Weights;
use super::{Directory, Error, Model, Spare, Text, TokenBatch};
use crate::kernels::attention::{Added, Heads};
use crate::kernels::cpu::InstructionSet;
use crate::kernels::crew::Crew;
use crate::kernels::element::Element;
use crate::kernels::elementwise::Norm;
use crate::kernels::encoder::{self as kernel, Layer, Linear, Shape, Start, Workspace};
use crate::kernels::gemm::{Amx, Avx512, Isa, MicroKernel};
use crate::kernels::turn::QueryKeyNorms;
use crate::space;

/// The most tokens that go through the encoder together, but for a single text of more.
const CHUNK: usize = 512;

/// Loads the encoder of `directory` and its tail, to compute with `set`; with the tensors that were
/// read.
pub(super) fn load(
    directory: &Directory,
    set: InstructionSet,
) -> Result<(Box<dyn Model>, Vec<space::Tensor>), Error> {
    match set {
        InstructionSet::AmxBf16 => Fused::<Amx>::load(directory),
        InstructionSet::Avx512Bf16 => Fused::<Avx512<bf16>>::load(directory),
        InstructionSet::Avx512F32 => Fused::<Avx512<f32>>::load(directory),
    }
}

/// Groups of `own` values, `each` wide, as groups of `padded`: zeros behind each.
fn spread(values: &[f32], own: usize, padded: usize, each: usize) -> Vec<f32> {
    if own == padded {
        return values.to_vec();
    }
    let zeros = vec![0.0; (padded - own) * each];
    values.chunks_exact(own * each).flat_map(|group| group.iter().chain(&zeros)).copied().collect()
}

/// Reads an encoder's layers in the layout of the kernels.
struct Reader<'a> {
    encoder: &'a Encoder,
    weights: &'a Weights,
    heads: Heads,
}

impl Reader<'_> {
    /// `out_features` and the weight `[out, in]` of some layers of the file, and their biases.
    fn affine(&self, parts: &[Affine]) -> Result<(Vec<f32>, Vec<f32>), Error> {
        Ok(self.weights.affine(parts)?)
    }

    fn plain<T: Element>(&self, part: Affine) -> Result<Linear<T>, Error> {
        let depth = part.in_features as usize;
        let (weight, bias) = self.affine(&[part])?;
        Ok(Linear::new(&weight, bias, depth))
    }

    fn norm(&self, name: &str, columns: i64, padded: usize) -> Result<Norm, Error> {
        let norm = &self.encoder.norm;
        let [weight, bias] = self.weights.norm(name, columns, norm)?;
        let centred = norm.kind == NormKind::Layer;
        let columns = columns as usize;
        Ok(Norm { weight, bias, eps: norm.eps as f32, centred, columns }.padded(padded))
    }

    fn query_key_value<T: Element>(&self, layer: i64) -> Result<Linear<T>, Error> {
        let depth = self.encoder.hidden_size as usize;
        let (own, padded) = (self.encoder.heads.size as usize, self.heads.size);
        let (weight, bias) = self.affine(&self.encoder.query_key_value(layer))?;
        Ok(Linear::new(&spread(&weight, own, padded, depth), spread(&bias, own, padded, 1), depth))
    }

    fn attention_output<T: Element>(&self, layer: i64) -> Result<Linear<T>, Error> {
        let (own, padded) = (self.encoder.heads.size as usize, self.heads.size);
        let (weight, bias) = self.affine(&[self.encoder.attention_output(layer)])?;
        Ok(Linear::new(&spread(&weight, own, padded, 1), bias, self.heads.width()))
    }

    /// Into the feed-forward and out of it.
    fn feed_forward<K: MicroKernel>(&self, layer: i64) -> Result<[Linear<K::Element>; 2], Error> {
        let (hidden, inner) = (self.encoder.hidden_size as usize, self.encoder.intermediate_size as usize);
        let (weight, bias) = self.affine(&self.encoder.up(layer))?;
        if !self.encoder.gated {
            return Ok([Linear::new(&weight, bias, hidden), self.plain(self.encoder.down(layer))?]);
        }
        let up = Linear::gated::<K>(&weight, &bias, hidden);
        let padded = up.columns() / 2;
        let (weight, bias) = self.affine(&[self.encoder.down(layer)])?;
        Ok([up, Linear::new(&spread(&weight, inner, padded, 1), bias, padded)])
    }

    fn query_key_norms(&self, layer: i64) -> Result<Option<QueryKeyNorms>, Error> {
        let Some(kind) = self.encoder.query_key_norm else { return Ok(None) };
        let Some(names) = self.encoder.query_key_norms(layer) else { return Ok(None) };
        let (own, padded) = (self.encoder.heads.size as usize, self.heads.size);
        let norm = |(name, width): (String, i64)| -> Result<Norm, Error> {
            let norm = self.norm(&name, width, width as usize)?;
            Ok(match kind {
                QueryKeyNorm::Head => norm.padded(padded),
                QueryKeyNorm::Whole => Norm {
                    weight: spread(&norm.weight, own, padded, 1),
                    bias: spread(&norm.bias, own, padded, 1),
                    ..norm
                },
            })
        };
        let [query, key] = names;
        Ok(Some(QueryKeyNorms { query: norm(query)?, key: norm(key)? }))
    }

    /// A layer whose positions are turned by one of `ropes`.
    fn layer<K: MicroKernel>(&self, index: i64, ropes: &[encoder::Rope]) -> Result<Layer<K::Element>, Error> {
        let encoder = self.encoder;
        let hidden = K::Element::padded(encoder.hidden_size as usize);
        let norm = |name: &Option<String>| {
            name.as_ref().map(|name| self.norm(name, encoder.hidden_size, hidden)).transpose()
        };
        let [a, b, c, d] = encoder.layer_norms(index);
        let distances = encoder.distances.get(index as usize).copied().unwrap_or_default();
        // Attention first: of a layer that is missing, what its error names.
        let query_key_value = self.query_key_value(index)?;
        let [up, down] = self.feed_forward::<K>(index)?;
        Ok(Layer {
            query_key_value,
            query_key_norms: self.query_key_norms(index)?,
            rope: distances.rope.and_then(|rope| ropes.iter().position(|known| *known == rope)),
            reach: distances.reach.map(|reach| reach as usize),
            attention_output: self.attention_output(index)?,
            up,
            down,
            norms: [norm(&a)?, norm(&b)?, norm(&c)?, norm(&d)?],
        })
    }
}

/// What all handles share.
#[derive(Debug)]
struct Shared<K: MicroKernel> {
    /// `[vocabulary, embedding]`, scaled as the encoder says.
    words: Vec<f32>,
    /// `[positions, embedding]`, with the embedding of segment 0 added: a lone text is all segment 0. Where there are
    /// no positions, one row for all.
    positions: Vec<f32>,
    /// Which of them a token has.
    learned: Option<Learned>,
    /// `[embedding]`: what the second text of a pair has added.
    second_segment: Vec<f32>,
    encoder: kernel::Encoder<K>,
    tail: Tail,
    /// Threads that help where handles are idle.
    crew: Crew,
}

/// A handle on an encoder with its tail.
#[derive(Debug)]
struct Fused<K: MicroKernel> {
    shared: Arc<Shared<K>>,
    /// It grows to the longest text that it has met.
    workspace: Workspace<K::Element>,
    /// What else may compute the next forward.
    spare: Spare,
}

impl<K: MicroKernel> Fused<K> {
    fn load(directory: &Directory) -> Result<(Box<dyn Model>, Vec<space::Tensor>), Error> {
        let isa =
            Isa::<K>::detect().ok_or_else(|| Error::Unavailable(format!("this CPU has no {}", K::SET)))?;
        let encoder = &directory.encoder;
        let weights = Weights::open(&directory.path)?.of(encoder);
        let width = encoder.embedding_size as usize;
        let tables = weights.tables(encoder)?;
        let segments = tables.segments.unwrap_or_else(|| vec![0.0; width]);
        let mut words = tables.words;
        if let Some(scale) = encoder.embedding_scale {
            for word in &mut words {
                *word *= scale as f32;
            }
        }
        let mut positions = tables.positions.unwrap_or_else(|| vec![0.0; width]);
        let first = &segments[..width];
        let second = row_of(&segments, 1, width).unwrap_or(first);
        for position in positions.chunks_exact_mut(width) {
            add(position, first);
        }
        let (tail, of_tail) = Tail::read(directory)?;
        let own = encoder.heads.size as usize;
        let heads = Heads {
            query: encoder.heads.query as usize,
            key_value: encoder.heads.key_value as usize,
            size: own.next_multiple_of(Heads::STEP),
            scale: encoder.score_scale.unwrap_or_else(|| 1.0 / (own as f64).sqrt()) as f32,
        };
        let reader = Reader { encoder, weights: &weights, heads };
        let ropes = encoder.ropes();
        let added = encoder.bias.map(|bias| {
            let longest = directory.max_tokens;
            let values = bias.values(heads.query, longest, tables.buckets.as_deref());
            Added::new(&values, heads.query, longest)
        });
        let shape = Shape {
            hidden: encoder.hidden_size as usize,
            heads,
            head: own,
            order: encoder.order,
            activation: encoder.activation,
            gated: encoder.gated,
            causal: encoder.causal,
            added,
            ropes: ropes.iter().map(|rope| rope.frequencies(encoder.heads.size)).collect(),
            depth: encoder.layers as usize,
        };
        let names = &encoder.names;
        let start = Start {
            width,
            norm: encoder
                .embedding_norm
                .then(|| reader.norm(names.embedding_norm, encoder.embedding_size, K::Element::padded(width)))
                .transpose()?,
            projection: encoder.projection().map(|projection| reader.plain(projection)).transpose()?,
        };
        let layers =
            encoder.own_layers().map(|index| reader.layer::<K>(index, &ropes)).collect::<Result<_, _>>()?;
        let final_norm = Some(names.final_norm)
            .filter(|name| !name.is_empty())
            .map(|name| reader.norm(name, encoder.hidden_size, K::Element::padded(shape.hidden)))
            .transpose()?;
        let shared = Shared {
            second_segment: second.iter().zip(first).map(|(second, first)| second - first).collect(),
            words,
            positions,
            learned: encoder.learned,
            encoder: kernel::Encoder::new(isa, shape, start, layers, final_norm),
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
        shared.encoder.forward(&lengths, workspace, (&shared.crew, spare), |rows| {
            for text in texts {
                let mut positions = shared.learned.map(|learned| learned.of_text(text.ids));
                for (place, &id) in text.ids.iter().enumerate() {
                    let position = positions.as_mut().map_or(Some(0), Iterator::next).unwrap_or_default();
                    if let Some(row) = rows.next() {
                        shared.embed(id, position, place >= text.second, row)?;
                    }
                }
            }
            Ok(())
        })
    }
}

impl<K: MicroKernel> Shared<K> {
    /// Writes the embedding of a token into `row` `[embedding]`.
    fn embed(&self, id: i64, position: i64, second: bool, row: &mut [f32]) -> Result<(), Error> {
        let missing = |what: &str| Error::Tokens(format!("{what} is not in the model's table"));
        let width = self.encoder.embedding();
        let row_at = |table, index: i64| usize::try_from(index).ok().and_then(|at| row_of(table, at, width));
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

impl<K: MicroKernel> Model for Fused<K> {
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
