//! The layers of a BERT encoder (Devlin et al., 2018), computed by one thread or by several together.
//!
//! # Flow
//!
//! The tokens of a few texts go through all layers together, one after the other in memory, so that nothing is
//! padded. Per layer:
//!
//! ```text
//! x ─▶ QKV + bias ─▶ attention of each text ─▶ out + bias + state ─▶ LayerNorm ─▶ x, state
//! x ─▶ up + bias, activated ──────────────────▶ down + bias + state ─▶ LayerNorm ─▶ x, state
//! ```
//!
//! `x` is the operand of the next product; `state` is the same in f32, the residual. Where operands are
//! bfloat16, `x` is a rounded copy; where they are f32, it is `state` itself.
//!
//! Each arrow is a phase of a [`crew`](super::crew). Of a product, members compute some columns each, of attention
//! some heads, of a `LayerNorm` some rows: so that of the weights, which a short text waits for, each reads a part.
//! No sum depends on who computes it, and results are the same to the bit, however many there are.

use std::ops::Range;
use std::slice;

use super::attention::{self, Heads, Scratch};
use super::buffer::Buffer;
use super::crew::{Crew, Member};
use super::element::Element;
use super::elementwise::LayerNorm;
use super::gemm::{self, Activation, Isa, MicroKernel, Packed, Target, padded_rows};
use crate::model::Spare;

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
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer<T: Element> {
    /// `[hidden]` → `[3 × hidden]`: queries, keys, values of all heads each.
    pub(crate) query_key_value: Linear<T>,
    /// `[hidden]` → `[hidden]`, of what the heads made.
    pub(crate) attention_output: Linear<T>,
    /// Follows the attention's residual.
    pub(crate) attention_norm: LayerNorm,
    /// `[hidden]` → `[inner]`.
    pub(crate) up: Linear<T>,
    /// `[inner]` → `[hidden]`.
    pub(crate) down: Linear<T>,
    /// Follows the feed-forward's residual.
    pub(crate) output_norm: LayerNorm,
}

/// Rows of a unit of `LayerNorm`: some microseconds.
const ROWS: usize = 32;

/// All layers, and the `LayerNorm` of the embeddings before them.
#[derive(Debug)]
pub(crate) struct Encoder<K: MicroKernel> {
    isa: Isa<K>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer<K::Element>>,
    heads: Heads,
    activation: Activation,
}

/// The memory of a forward.
#[derive(Debug)]
pub(crate) struct Workspace<T: Element> {
    rows: usize,
    /// `[padded rows, hidden]`
    state: Buffer<f32>,
    /// `[padded rows, hidden]`; empty where operands are f32, as the state is.
    rounded: Buffer<T>,
    /// `[padded rows, 3 × hidden]`
    query_key_value: Buffer<T>,
    /// `[padded rows, hidden]`
    context: Buffer<T>,
    /// `[padded rows, inner]`
    inner: Buffer<T>,
    /// One a member of the crew.
    attention: Vec<Scratch<T>>,
}

impl<T: Element> Workspace<T> {
    /// For so many tokens at once.
    pub(crate) fn new<K: MicroKernel<Element = T>>(encoder: &Encoder<K>, rows: usize) -> Self {
        let (padded, hidden, inner) = (padded_rows(rows), encoder.hidden(), encoder.inner());
        Self {
            rows,
            state: Buffer::zeroed(padded * hidden),
            rounded: Buffer::zeroed(if T::ROUNDS { padded * hidden } else { 0 }),
            query_key_value: Buffer::zeroed(padded * 3 * hidden),
            context: Buffer::zeroed(padded * hidden),
            inner: Buffer::zeroed(padded * inner),
            attention: Vec::new(),
        }
    }

    /// How many tokens it has room for.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }
}

/// A buffer of which members write parts, and read what others wrote.
#[derive(Debug)]
pub(crate) struct Common<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: what it points to is plain data, and its methods are unsafe: who calls them sees to it that nobody
// reads what another writes.
unsafe impl<T: Send + Sync> Sync for Common<T> {}

impl<T> Common<T> {
    const fn of(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// # Safety
    ///
    /// The buffer lives on, and nobody writes to it while the result lives.
    const unsafe fn all<'a>(&self) -> &'a [T] {
        // SAFETY: as the caller promises.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }

    /// # Safety
    ///
    /// The buffer lives on, and nobody else reads or writes these values while the result lives.
    unsafe fn some<'a>(&self, which: Range<usize>) -> &'a mut [T] {
        assert!(which.start <= which.end && which.end <= self.len, "{which:?} of {}", self.len);
        // SAFETY: as the caller promises.
        unsafe { slice::from_raw_parts_mut(self.start.add(which.start), which.len()) }
    }
}

/// A workspace as the members of a crew see it.
struct Shared<T: Element> {
    state: Common<f32>,
    rounded: Common<T>,
    query_key_value: Common<T>,
    context: Common<T>,
    inner: Common<T>,
    attention: Common<Scratch<T>>,
}

impl<K: MicroKernel> Encoder<K> {
    /// Puts the parts together.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn new(
        isa: Isa<K>,
        embedding_norm: LayerNorm,
        layers: Vec<Layer<K::Element>>,
        heads: Heads,
        activation: Activation,
    ) -> Self {
        let hidden = heads.hidden();
        let fits = |linear: &Linear<K::Element>, columns: usize, depth: usize| {
            assert_eq!((linear.weight.columns(), linear.weight.depth()), (columns, depth), "a layer's sizes");
        };
        assert!(Heads::SIZES.contains(&heads.size) && heads.count > 0, "heads of {}", heads.size);
        embedding_norm.check(hidden);
        for layer in &layers {
            let inner = layer.up.weight.columns();
            fits(&layer.query_key_value, 3 * hidden, hidden);
            fits(&layer.attention_output, hidden, hidden);
            fits(&layer.up, inner, hidden);
            fits(&layer.down, hidden, inner);
            layer.attention_norm.check(hidden);
            layer.output_norm.check(hidden);
        }
        Self { isa, embedding_norm, layers, heads, activation }
    }

    /// Width of a token's state.
    pub(crate) const fn hidden(&self) -> usize {
        self.heads.hidden()
    }

    /// Width of the widest feed-forward's inner state, padding included.
    fn inner(&self) -> usize {
        self.layers.iter().map(|layer| layer.up.weight.columns()).max().unwrap_or(0)
    }

    /// The states of the tokens of texts of these lengths, `[tokens, hidden]`, computed by this thread and by
    /// others of the `crew`, as many as are spare. `embed` writes the sums of the tokens' embeddings to such a matrix first.
    ///
    /// # Panics
    ///
    /// Where the workspace is of another encoder, or has no room for so many.
    pub(crate) fn forward<'a, E>(
        &self,
        lengths: &[usize],
        workspace: &'a mut Workspace<K::Element>,
        (crew, spare): (&Crew, &Spare),
        embed: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<&'a [f32], E> {
        let (hidden, tokens) = (self.hidden(), lengths.iter().sum::<usize>());
        let Workspace { rows, state, rounded, query_key_value, context, inner, attention } = workspace;
        assert!(tokens <= *rows, "{tokens} tokens, room for {rows}");
        let padded = padded_rows(tokens);
        assert!(
            state.len() >= padded * hidden && inner.len() >= padded * self.inner(),
            "a workspace of its own"
        );
        embed(&mut state[..tokens * hidden])?;
        let members = spare.threads + 1;
        attention.resize_with(members.max(attention.len()), || Scratch::new(*rows, self.heads));
        let shared = Shared {
            state: Common::of(state),
            rounded: Common::of(rounded),
            query_key_value: Common::of(query_key_value),
            context: Common::of(context),
            inner: Common::of(inner),
            attention: Common::of(attention),
        };
        // SAFETY: sizes were checked here and in `new`, the `Isa` proves the instructions, and the buffers are
        // borrowed until all members are through.
        crew.run(spare, |member| unsafe { self.part(member, lengths, tokens, &shared) });
        Ok(&state[..tokens * hidden])
    }

    /// What one member of the crew does.
    ///
    /// # Safety
    ///
    /// The CPU has `K`'s instructions. The buffers of `shared` have [`padded_rows`] of `tokens`, which are the sum
    /// of `lengths`; there is a scratch for each member. All members do this, and nobody else touches the buffers.
    unsafe fn part(
        &self,
        member: &mut Member<'_>,
        lengths: &[usize],
        tokens: usize,
        shared: &Shared<K::Element>,
    ) {
        let Shared { state, rounded, query_key_value, context, inner, attention } = shared;
        let hidden = self.hidden();
        // SAFETY: in a phase each buffer is either read by all, or written in columns, heads or rows that are one
        // unit's alone; who has an index has a scratch.
        unsafe {
            let ready = K::ready();
            let scratch = &mut attention.some(member.index()..member.index() + 1)[0];
            let norm = |member: &mut Member<'_>, norm: &LayerNorm| {
                member.phase(tokens.div_ceil(ROWS), |unit| {
                    let rows = unit * ROWS..((unit + 1) * ROWS).min(tokens);
                    let values = rows.start * hidden..rows.end * hidden;
                    let of_rounded = if K::Element::ROUNDS { values.clone() } else { 0..0 };
                    norm.forward(self.isa, state.some(values), rounded.some(of_rounded));
                });
            };
            let linear = |member: &mut Member<'_>, linear: &Linear<K::Element>, x: &Common<_>, target| {
                let Linear { weight, bias } = linear;
                member.phase(gemm::panels_of::<K>(weight), |panel| {
                    gemm::panel::<K>(x.all(), tokens, weight, bias, panel, target);
                });
            };
            let x = K::Element::operands(state, rounded);
            norm(member, &self.embedding_norm);
            for layer in &self.layers {
                linear(member, &layer.query_key_value, x, Target::Store(query_key_value.start));
                member.phase(self.heads.count, |head| {
                    let mut first = 0;
                    for &length in lengths {
                        let qkv = &query_key_value.all()[first * 3 * hidden..];
                        let context = context.start.add(first * hidden);
                        attention::head::<K>(self.heads, head, qkv, length, scratch, context);
                        first += length;
                    }
                });
                linear(member, &layer.attention_output, context, Target::Add(state.start));
                norm(member, &layer.attention_norm);
                linear(member, &layer.up, x, Target::Activate(self.activation, inner.start));
                linear(member, &layer.down, inner, Target::Add(state.start));
                norm(member, &layer.output_norm);
            }
            drop(ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::gemm::tests::{for_each_isa, numbers};
    use super::*;

    const HEADS: Heads = Heads { count: 3, size: 32 };
    const HIDDEN: usize = 96;

    fn layer<T: Element>(seed: u64) -> Layer<T> {
        let linear = |columns: usize, depth: usize, seed| {
            let weight: Vec<f32> = numbers(columns * depth, seed).iter().map(|x| x * 0.2).collect();
            Linear::new(&weight, numbers(columns, seed + 1), depth)
        };
        let norm =
            |seed| LayerNorm { weight: numbers(HIDDEN, seed), bias: numbers(HIDDEN, seed + 1), eps: 1e-5 };
        Layer {
            query_key_value: linear(3 * HIDDEN, HIDDEN, seed),
            attention_output: linear(HIDDEN, HIDDEN, seed + 2),
            attention_norm: norm(seed + 4),
            // Not a multiple of what columns are padded to.
            up: linear(200, HIDDEN, seed + 6),
            down: linear(HIDDEN, 200, seed + 8),
            output_norm: norm(seed + 10),
        }
    }

    fn states<K: MicroKernel>(
        encoder: &Encoder<K>,
        lengths: &[usize],
        workspace: &mut Workspace<K::Element>,
        threads: (&Crew, &Spare),
    ) -> Vec<u32> {
        let embed = |state: &mut [f32]| {
            state.copy_from_slice(&numbers(state.len(), 77));
            Ok::<_, ()>(())
        };
        let states = encoder.forward(lengths, workspace, threads, embed).unwrap();
        assert_eq!(states.len(), lengths.iter().sum::<usize>() * HIDDEN);
        states.iter().map(|state| state.to_bits()).collect()
    }

    #[test]
    fn states_are_the_same_to_the_bit_by_any_number_of_threads() {
        for_each_isa!(|isa| {
            let norm = LayerNorm { weight: numbers(HIDDEN, 1), bias: numbers(HIDDEN, 2), eps: 1e-5 };
            let layers = vec![layer(10), layer(30)];
            let encoder = Encoder::new(isa, norm, layers, HEADS, Activation::Gelu);
            for lengths in [vec![1], vec![7], vec![3, 40, 1, 9]] {
                let rows = lengths.iter().sum();
                let mut workspace = Workspace::new(&encoder, rows);
                let alone = states(&encoder, &lengths, &mut workspace, (&Crew::default(), &Spare::default()));
                assert!(alone.iter().all(|&bits| f32::from_bits(bits).is_finite()));
                // One after the other in the same memory: nothing is left behind in it.
                let mut workspace = Workspace::new(&encoder, 64);
                let crew = Crew::default();
                for threads in [3, 0, 1, 2, 3, 3] {
                    for still in [true, false] {
                        let spare = Spare { threads, still: Arc::new(AtomicBool::new(still)) };
                        let together = states(&encoder, &lengths, &mut workspace, (&crew, &spare));
                        assert_eq!(together, alone, "{spare:?}");
                    }
                }
            }
        });
    }
}
