//! The layers of an encoder, computed by one thread or by several together.
//!
//! # Flow
//!
//! The tokens of a few texts go through all layers together, one after the other in memory, so that nothing is
//! padded. Per layer of an encoder that normalises sums, as BERT (Devlin et al., 2018):
//!
//! ```text
//! x ─▶ QKV + bias ─▶ attention of each text ─▶ out + bias + state ─▶ norm ─▶ x, state
//! x ─▶ up + bias, activated ──────────────────▶ down + bias + state ─▶ norm ─▶ x, state
//! ```
//!
//! and of one that normalises what goes in (and, as Gemma 3, what comes out):
//!
//! ```text
//! state ─▶ norm ─▶ x ─▶ QKV ─▶ norm, turn ─▶ attention ─▶ out (─▶ norm) + state ─▶ state
//! state ─▶ norm ─▶ x ─▶ up, gated ──────────────────────▶ down (─▶ norm) + state ─▶ state
//! ```
//!
//! `x` is the operand of the next product; `state` is the sum in f32, the residual. Where a sum itself is
//! normalised, and operands are f32, `x` is `state` itself.
//!
//! Each arrow is a phase of a [`crew`](super::crew). Of a product, members compute some columns each, of attention
//! some heads, of norms and turns some rows: so that of the weights, which a short text waits for, each reads a part.
//! No sum depends on who computes it, and results are the same to the bit, however many there are.

mod pass;

use super::attention::{Added, Heads, Scratch};
use super::buffer::Buffer;
use super::crew::Crew;
use super::element::Element;
use super::elementwise::Norm;
use super::gemm::{self, GATED, Isa, MicroKernel, Packed, padded_rows};
use super::turn::{QueryKeyNorms, Rotation};
use crate::model::Spare;
use crate::model::encoder::{HiddenAct, Order};
pub(crate) use pass::Common;
use pass::{Pass, Shared, Texts};

/// A linear layer.
#[derive(Debug)]
pub(crate) struct Linear<T: Element> {
    weight: Packed<T>,
    /// One a column, padding included.
    bias: Vec<f32>,
}

impl<T: Element> Linear<T> {
    /// Of `weight` `[columns, depth]`, row by row, and `bias` `[columns]`.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn new(weight: &[f32], mut bias: Vec<f32>, depth: usize) -> Self {
        let weight = Packed::new(weight, bias.len(), depth);
        bias.resize(weight.columns(), 0.0);
        Self { weight, bias }
    }

    /// How many columns it has, padding included.
    pub(crate) const fn columns(&self) -> usize {
        self.weight.columns()
    }

    /// Of two layers of so many columns each, `weight` `[2 × columns, depth]`: what the first one makes is to be
    /// activated and multiplied with what the second one makes.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn gated<K: MicroKernel<Element = T>>(weight: &[f32], bias: &[f32], depth: usize) -> Self {
        assert_eq!(weight.len(), bias.len() * depth, "a weight of {} × {depth}", bias.len());
        let rows = || gemm::gated_rows::<K>(bias.len() / 2);
        let zeros = vec![0.0; depth];
        let of_row = |row: Option<usize>| row.map_or(zeros.as_slice(), |row| &weight[row * depth..][..depth]);
        let in_turns: Vec<f32> = rows().flat_map(of_row).copied().collect();
        let bias = rows().map(|row| row.map_or(0.0, |row| bias[row])).collect();
        Self::new(&in_turns, bias, depth)
    }
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer<T: Element> {
    /// `[hidden]` → queries, keys and values of all heads ([`Heads::joined`]).
    pub(crate) query_key_value: Linear<T>,
    /// How queries and keys are normalised.
    pub(crate) query_key_norms: Option<QueryKeyNorms>,
    /// Which of the [`Shape::ropes`] turns them.
    pub(crate) rope: Option<usize>,
    /// The greatest distance at which tokens see each other.
    pub(crate) reach: Option<usize>,
    /// [`Heads::width`] → `[hidden]`, of what the heads made.
    pub(crate) attention_output: Linear<T>,
    /// `[hidden]` → `[inner]`, or as [`Linear::gated`] has it.
    pub(crate) up: Linear<T>,
    /// `[inner]` → `[hidden]`.
    pub(crate) down: Linear<T>,
    /// Those of attention, of its output before the sum, of the feed-forward, and of its output.
    pub(crate) norms: [Option<Norm>; 4],
}

/// What all layers have in common.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Width of a token's state, without padding.
    pub(crate) hidden: usize,
    /// Heads of attention.
    pub(crate) heads: Heads,
    /// Width of a head, without padding.
    pub(crate) head: usize,
    /// Where norms are.
    pub(crate) order: Order,
    /// What the feed-forward does.
    pub(crate) activation: HiddenAct,
    /// Whether it multiplies.
    pub(crate) gated: bool,
    /// Whether a token sees only those before it.
    pub(crate) causal: bool,
    /// What is added to scores.
    pub(crate) added: Option<Added>,
    /// Angles of one step of rotary positions, for each kind of layer: `[half a head]`.
    pub(crate) ropes: Vec<Vec<f32>>,
    /// How many layers there are; those with weights come in turn.
    pub(crate) depth: usize,
}

/// What comes before the layers.
#[derive(Debug)]
pub(crate) struct Start<T: Element> {
    /// Width of an embedding, without padding.
    pub(crate) width: usize,
    /// Of embeddings.
    pub(crate) norm: Option<Norm>,
    /// From embeddings to states, where these are wider.
    pub(crate) projection: Option<Linear<T>>,
}

/// All layers, and what is before and behind them.
#[derive(Debug)]
pub(crate) struct Encoder<K: MicroKernel> {
    isa: Isa<K>,
    shape: Shape,
    start: Start<K::Element>,
    layers: Vec<Layer<K::Element>>,
    final_norm: Option<Norm>,
}

/// The memory of a forward. Widths are padded.
#[derive(Debug)]
pub(crate) struct Workspace<T: Element> {
    rows: usize,
    /// `[padded rows, hidden]`
    state: Buffer<f32>,
    /// `[padded rows, hidden]`; empty where operands are what is in `state`.
    rounded: Buffer<T>,
    /// `[padded rows, hidden]`, of what is normalised before it is added; or `[padded rows, embedding]`.
    apart: Buffer<f32>,
    /// `[padded rows, embedding]`, where it is projected.
    embedded: Buffer<T>,
    /// `[padded rows, queries + keys + values]`
    joined: Buffer<T>,
    /// `[padded rows, width of heads]`
    context: Buffer<T>,
    /// `[padded rows, inner]`
    inner: Buffer<T>,
    /// One a member of the crew.
    attention: Vec<Scratch<T>>,
    /// The same: queries of a row.
    row: Vec<Buffer<f32>>,
    /// As [`Shape::ropes`].
    rotations: Vec<Rotation>,
}

impl<T: Element> Workspace<T> {
    /// For so many tokens at once.
    pub(crate) fn new<K: MicroKernel<Element = T>>(encoder: &Encoder<K>, rows: usize) -> Self {
        let Encoder { shape, start, .. } = encoder;
        let padded = padded_rows(rows);
        let (hidden, embedding) = (encoder.stride(), T::padded(start.width));
        let projected = start.projection.is_some();
        let apart = if projected { hidden.max(embedding) } else { hidden };
        let some = |is_there: bool, width: usize| if is_there { padded * width } else { 0 };
        Self {
            rows,
            state: Buffer::zeroed(padded * hidden),
            rounded: Buffer::zeroed(some(T::ROUNDS || shape.order != Order::Post, hidden)),
            apart: Buffer::zeroed(some(projected || shape.order == Order::Sandwich, apart)),
            embedded: Buffer::zeroed(some(projected, embedding)),
            joined: Buffer::zeroed(padded * shape.heads.joined()),
            context: Buffer::zeroed(padded * shape.heads.width()),
            inner: Buffer::zeroed(padded * encoder.inner()),
            attention: Vec::new(),
            row: Vec::new(),
            rotations: shape.ropes.iter().map(|frequencies| Rotation::new(frequencies, rows)).collect(),
        }
    }

    /// How many tokens it has room for.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }
}

impl<K: MicroKernel> Encoder<K> {
    /// Puts the parts together.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn new(
        isa: Isa<K>,
        shape: Shape,
        start: Start<K::Element>,
        layers: Vec<Layer<K::Element>>,
        final_norm: Option<Norm>,
    ) -> Self {
        let encoder = Self { isa, shape, start, layers, final_norm };
        let Self { shape, start, layers, final_norm, .. } = &encoder;
        let hidden = encoder.stride();
        let fits = |linear: &Linear<K::Element>, columns: usize, depth: usize| {
            let found = (linear.weight.columns(), linear.weight.depth());
            assert_eq!(found, (columns, depth), "a layer's sizes");
            assert_eq!(linear.bias.len(), columns, "a bias for each column");
        };
        shape.heads.check();
        assert!(shape.head > 0 && shape.head <= shape.heads.size, "heads of {}", shape.head);
        assert!(shape.ropes.iter().all(|rope| 2 * rope.len() == shape.head), "halves of heads");
        assert!(!layers.is_empty() && shape.depth.is_multiple_of(layers.len()), "{} layers", layers.len());
        let embedding = K::Element::padded(start.width);
        match &start.projection {
            Some(projection) => fits(projection, hidden, embedding),
            None => assert_eq!(start.width, shape.hidden, "embeddings as wide as states"),
        }
        if let Some(norm) = &start.norm {
            norm.check(embedding);
        }
        if let Some(norm) = final_norm {
            norm.check(hidden);
        }
        for layer in layers {
            let up = layer.up.weight.columns();
            let inner = if shape.gated { up / 2 } else { up };
            assert!(!shape.gated || inner.is_multiple_of(GATED), "{inner} columns of a gated layer");
            fits(&layer.query_key_value, shape.heads.joined(), hidden);
            fits(&layer.attention_output, hidden, shape.heads.width());
            fits(&layer.up, up, hidden);
            fits(&layer.down, hidden, inner);
            layer.norms.iter().flatten().for_each(|norm| norm.check(hidden));
            assert!(layer.rope.is_none_or(|rope| rope < shape.ropes.len()), "a rope that there is");
            let [attention, attention_output, feed_forward, output] =
                layer.norms.each_ref().map(Option::is_some);
            let sandwich = shape.order == Order::Sandwich;
            assert!(
                (attention_output, output) == (sandwich, sandwich) && feed_forward,
                "norms of {:?}",
                shape.order
            );
            assert!(attention || shape.order != Order::Post, "a norm of the sum");
        }
        encoder
    }

    /// Width of a token's state.
    pub(crate) const fn hidden(&self) -> usize {
        self.shape.hidden
    }

    /// The same with padding.
    fn stride(&self) -> usize {
        K::Element::padded(self.shape.hidden)
    }

    /// Width of an embedding.
    pub(crate) const fn embedding(&self) -> usize {
        self.start.width
    }

    /// Width of the widest feed-forward's inner state, padding included.
    fn inner(&self) -> usize {
        self.layers.iter().map(|layer| layer.down.weight.depth()).max().unwrap_or(0)
    }

    /// The states of the tokens of texts of these lengths, `[tokens, hidden]`, computed by this thread and by
    /// others of the `crew`, as many as are spare. `embed` writes the sum of the embeddings of each token first, in order,
    /// into a row `[embedding]` for each.
    ///
    /// # Panics
    ///
    /// Where the workspace is of another encoder, or has no room for so many.
    pub(crate) fn forward<'a, E>(
        &self,
        lengths: &[usize],
        workspace: &'a mut Workspace<K::Element>,
        (crew, spare): (&Crew, &Spare),
        embed: impl FnOnce(&mut dyn Iterator<Item = &mut [f32]>) -> Result<(), E>,
    ) -> Result<&'a [f32], E> {
        let (stride, tokens) = (self.stride(), lengths.iter().sum::<usize>());
        let Workspace {
            rows,
            state,
            rounded,
            apart,
            embedded,
            joined,
            context,
            inner,
            attention,
            row,
            rotations,
        } = workspace;
        assert!(tokens <= *rows, "{tokens} tokens, room for {rows}");
        let padded = padded_rows(tokens);
        let heads = self.shape.heads;
        let projected = self.start.projection.is_some();
        let embedding = K::Element::padded(self.start.width);
        assert!(
            state.len() >= padded * stride
                && inner.len() >= padded * self.inner()
                && joined.len() >= padded * heads.joined()
                && context.len() >= padded * heads.width()
                && (!projected || embedded.len() >= padded * embedding)
                && rotations.len() == self.shape.ropes.len(),
            "a workspace of its own"
        );
        {
            let (into, width) = if projected { (&mut *apart, embedding) } else { (&mut *state, stride) };
            let into = &mut into[..tokens * width];
            // The last forward's result lies where the padding was.
            if self.start.width < width {
                into.fill(0.0);
            }
            embed(&mut into.chunks_exact_mut(width).map(|row| &mut row[..self.start.width]))?;
        }
        let members = spare.threads + 1;
        attention.resize_with(members.max(attention.len()), || Scratch::new(*rows, heads));
        row.resize_with(members.max(row.len()), || Buffer::zeroed(heads.width()));
        let places: Vec<usize> = lengths.iter().flat_map(|&length| 0..length).collect();
        let texts = Texts { lengths, places: &places };
        let shared = Shared {
            state: Common::of(state),
            rounded: Common::of(rounded),
            apart: Common::of(apart),
            embedded: Common::of(embedded),
            joined: Common::of(joined),
            context: Common::of(context),
            inner: Common::of(inner),
            attention: Common::of(attention),
            row: Common::of(row),
            rotations,
        };
        // SAFETY: sizes were checked here and in `new`, the `Isa` proves the instructions, and the buffers are
        // borrowed until all members are through.
        crew.run(spare, |member| unsafe { Pass::run(self, member, &texts, &shared) });
        let hidden = self.shape.hidden;
        if hidden < stride {
            for at in 1..tokens {
                state.copy_within(at * stride..at * stride + hidden, at * hidden);
            }
        }
        Ok(&state[..tokens * hidden])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::gemm::tests::{for_each_isa, numbers};
    use super::*;

    const HIDDEN: usize = 88;
    const INNER: usize = 200;

    /// Of an encoder of that order, with all that there is in it.
    fn layer<K: MicroKernel>(seed: u64, order: Order, heads: Heads) -> Layer<K::Element> {
        let hidden = K::Element::padded(HIDDEN);
        let weight = |count: usize, seed| numbers(count, seed).iter().map(|x| x * 0.2).collect::<Vec<f32>>();
        let linear = |columns: usize, depth: usize, seed| {
            Linear::new(&weight(columns * depth, seed), numbers(columns, seed + 1), depth)
        };
        let gated = order != Order::Post;
        let up = if gated {
            let weight = weight(2 * INNER * HIDDEN, seed + 6);
            Linear::gated::<K>(&weight, &numbers(2 * INNER, seed + 7), HIDDEN)
        } else {
            linear(INNER, HIDDEN, seed + 6)
        };
        let inner = if gated { up.columns() / 2 } else { INNER };
        let norm = |is_there: bool, seed| is_there.then(|| norm(seed).padded(hidden));
        let sandwich = order == Order::Sandwich;
        Layer {
            query_key_value: linear(heads.joined(), HIDDEN, seed),
            query_key_norms: None,
            rope: gated.then_some(0),
            reach: gated.then_some(9),
            attention_output: linear(HIDDEN, heads.width(), seed + 2),
            up,
            down: linear(HIDDEN, inner, seed + 8),
            norms: [norm(true, 10), norm(sandwich, 12), norm(true, 14), norm(sandwich, 16)],
        }
    }

    fn norm(seed: u64) -> Norm {
        let (weight, bias) = (numbers(HIDDEN, seed), numbers(HIDDEN, seed + 1));
        Norm { weight, bias, eps: 1e-5, centred: true, columns: HIDDEN }
    }

    fn encoder<K: MicroKernel>(isa: Isa<K>, order: Order) -> Encoder<K> {
        let heads =
            Heads { query: 4, key_value: if order == Order::Post { 4 } else { 2 }, size: 32, scale: 0.2 };
        let hidden = K::Element::padded(HIDDEN);
        let shape = Shape {
            hidden: HIDDEN,
            heads,
            head: 24,
            order,
            activation: HiddenAct::Gelu,
            gated: order != Order::Post,
            causal: false,
            added: None,
            ropes: vec![(0..12).map(|pair| 0.5f32.powi(pair)).collect()],
            depth: 4,
        };
        let start = Start { width: HIDDEN, norm: Some(norm(1).padded(hidden)), projection: None };
        let layers = vec![layer::<K>(10, order, heads), layer::<K>(30, order, heads)];
        Encoder::new(isa, shape, start, layers, Some(norm(3).padded(hidden)))
    }

    fn states<K: MicroKernel>(
        encoder: &Encoder<K>,
        lengths: &[usize],
        workspace: &mut Workspace<K::Element>,
        threads: (&Crew, &Spare),
    ) -> Vec<u32> {
        let embeddings = numbers(lengths.iter().sum::<usize>() * HIDDEN, 77);
        let states = encoder.forward(lengths, workspace, threads, |rows| {
            for (row, embedding) in rows.zip(embeddings.chunks_exact(HIDDEN)) {
                row.copy_from_slice(embedding);
            }
            Ok::<_, ()>(())
        });
        let states = states.unwrap();
        assert_eq!(states.len(), embeddings.len());
        states.iter().map(|state| state.to_bits()).collect()
    }

    #[test]
    fn states_are_the_same_to_the_bit_by_any_number_of_threads() {
        for_each_isa!(|isa| {
            for order in [Order::Post, Order::Pre, Order::Sandwich] {
                let encoder = encoder(isa, order);
                for lengths in [vec![1], vec![7], vec![3, 40, 1, 9]] {
                    let rows = lengths.iter().sum();
                    let mut workspace = Workspace::new(&encoder, rows);
                    let alone =
                        states(&encoder, &lengths, &mut workspace, (&Crew::default(), &Spare::default()));
                    assert!(alone.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{order:?}");
                    // One after the other in the same memory: nothing is left behind in it.
                    let mut workspace = Workspace::new(&encoder, 64);
                    let crew = Crew::default();
                    for threads in [3, 0, 1, 2, 3, 3] {
                        for still in [true, false] {
                            let spare = Spare { threads, still: Arc::new(AtomicBool::new(still)) };
                            let together = states(&encoder, &lengths, &mut workspace, (&crew, &spare));
                            assert_eq!(together, alone, "{spare:?} {order:?}");
                        }
                    }
                }
            }
        });
    }
}
