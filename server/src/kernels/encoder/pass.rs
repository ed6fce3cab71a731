//! What one member of a crew does in a forward.

use std::ops::Range;
use std::slice;

use super::super::attention::{self, Scratch, Sight};
use super::super::buffer::Buffer;
use super::super::crew::Member;
use super::super::element::Element;
use super::super::elementwise::Norm;
use super::super::gemm::{self, MicroKernel, Target};
use super::super::turn::{Rotation, Turn};
use super::{Encoder, Layer, Linear};
use crate::model::encoder::Order;

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
    pub(super) const fn of(values: &mut [T]) -> Self {
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
    /// The buffer lives on, and nobody writes these values while the result lives.
    unsafe fn seen<'a>(&self, which: Range<usize>) -> &'a [T] {
        assert!(which.start <= which.end && which.end <= self.len, "{which:?} of {}", self.len);
        // SAFETY: as the caller promises.
        unsafe { slice::from_raw_parts(self.start.add(which.start), which.len()) }
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
pub(super) struct Shared<'a, T: Element> {
    pub(super) state: Common<f32>,
    pub(super) rounded: Common<T>,
    pub(super) apart: Common<f32>,
    pub(super) embedded: Common<T>,
    pub(super) joined: Common<T>,
    pub(super) context: Common<T>,
    pub(super) inner: Common<T>,
    pub(super) attention: Common<Scratch<T>>,
    pub(super) row: Common<Buffer<f32>>,
    pub(super) rotations: &'a [Rotation],
}

/// The texts of a forward.
pub(super) struct Texts<'a> {
    pub(super) lengths: &'a [usize],
    /// The place of each token in its text.
    pub(super) places: &'a [usize],
}

/// Rows of a unit of norms and turns: some microseconds.
const ROWS: usize = 32;

/// A member's way through the phases.
///
/// In a phase each buffer is either read by all, or written in columns, heads or rows that are one unit's alone: that is
/// why its methods may use parts of them. [`Pass::run`] is where its callers promise the rest.
pub(super) struct Pass<'a, 'm, K: MicroKernel> {
    encoder: &'a Encoder<K>,
    member: &'a mut Member<'m>,
    texts: &'a Texts<'a>,
    shared: &'a Shared<'a, K::Element>,
    /// The member's own.
    scratch: &'a mut Scratch<K::Element>,
    row: &'a mut [f32],
}

impl<'a, K: MicroKernel> Pass<'a, '_, K> {
    /// All of it.
    ///
    /// # Safety
    ///
    /// The CPU has `K`'s instructions. The buffers of `shared` are of this encoder and have
    /// [`padded_rows`](gemm::padded_rows) of the texts' tokens, and there is a scratch and a row for each member. All
    /// members do this, and nobody else touches the buffers.
    pub(super) unsafe fn run(
        encoder: &'a Encoder<K>,
        member: &'a mut Member<'_>,
        texts: &'a Texts<'a>,
        shared: &'a Shared<'a, K::Element>,
    ) {
        let own = member.index()..member.index() + 1;
        // SAFETY: as the caller promises; nobody else has this member's index.
        unsafe {
            let ready = K::ready();
            let scratch = &mut shared.attention.some(own.clone())[0];
            let row = &mut shared.row.some(own)[0];
            let mut pass = Pass { encoder, member, texts, shared, scratch, row };
            pass.start();
            for index in 0..encoder.shape.depth {
                pass.layer(&encoder.layers[index % encoder.layers.len()]);
            }
            if let Some(last) = &encoder.final_norm {
                pass.norm(last);
            }
            drop(ready);
        }
    }

    /// A phase of rows: hands each unit's, with memory for one.
    fn rows(&mut self, mut work: impl FnMut(Range<usize>, &mut [f32])) {
        let tokens = self.texts.places.len();
        self.member.phase(tokens.div_ceil(ROWS), |unit| {
            work(unit * ROWS..((unit + 1) * ROWS).min(tokens), self.row);
        });
    }

    /// The values of some rows of a buffer so wide.
    const fn values(rows: &Range<usize>, width: usize) -> Range<usize> {
        rows.start * width..rows.end * width
    }

    /// Normalises the state in place; what is rounded of it is the next operand.
    fn norm(&mut self, norm: &Norm) {
        let (Shared { state, rounded, .. }, isa, width) =
            (self.shared, self.encoder.isa, self.encoder.stride());
        self.rows(|rows, _| {
            let values = Self::values(&rows, width);
            let of_rounded = if K::Element::ROUNDS { values.clone() } else { 0..0 };
            // SAFETY: rows of this unit.
            unsafe { norm.forward(isa, state.some(values), rounded.some(of_rounded)) };
        });
    }

    /// # Safety
    ///
    /// The target is one of the shared buffers, with room for all columns.
    unsafe fn linear(
        &mut self,
        linear: &Linear<K::Element>,
        x: &Common<K::Element>,
        target: Target<K::Element>,
    ) {
        let Linear { weight, bias } = linear;
        let tokens = self.texts.places.len();
        self.member.phase(gemm::panels_of::<K>(weight), |panel| {
            // SAFETY: the operand is read by all, the target's columns of this panel are this unit's.
            unsafe { gemm::panel::<K>(x.all(), tokens, weight, bias, panel, target) };
        });
    }

    /// What embeddings become before the first layer.
    fn start(&mut self) {
        let Shared { state, rounded, apart, embedded, .. } = self.shared;
        let super::Start { width, norm, projection } = &self.encoder.start;
        let (isa, width, hidden) = (self.encoder.isa, K::Element::padded(*width), self.encoder.stride());
        // SAFETY: rows of each unit, and phases one after the other.
        unsafe {
            match (projection, norm) {
                (None, Some(norm)) => return self.norm(norm),
                (None, None) => {}
                (Some(projection), norm) => {
                    self.rows(|rows, _| {
                        let values = Self::values(&rows, width);
                        let (from, to) = (apart.seen(values.clone()), embedded.some(values));
                        match norm {
                            Some(norm) => norm.apart(isa, from, to),
                            None => round(from, to),
                        }
                    });
                    self.linear(projection, embedded, Target::Put(state.start));
                }
            }
            // What a norm would have done.
            let is_read = self
                .encoder
                .layers
                .first()
                .is_some_and(|layer| self.own_norm(layer.norms[0].as_ref()).is_none());
            if is_read && K::Element::ROUNDS {
                self.rows(|rows, _| {
                    let values = Self::values(&rows, hidden);
                    round(state.seen(values.clone()), rounded.some(values));
                });
            }
        }
    }

    /// The norm of what goes in, where it is not that of the sum.
    fn own_norm<'n>(&self, norm: Option<&'n Norm>) -> Option<&'n Norm> {
        norm.filter(|_| self.encoder.shape.order != Order::Post)
    }

    /// The operand that the state is or becomes.
    fn operand(&mut self, norm: Option<&Norm>) -> &'a Common<K::Element> {
        let Shared { state, rounded, .. } = self.shared;
        let (isa, width) = (self.encoder.isa, self.encoder.stride());
        let Some(norm) = self.own_norm(norm) else { return K::Element::operands(state, rounded) };
        self.rows(|rows, _| {
            let values = Self::values(&rows, width);
            // SAFETY: rows of this unit.
            unsafe { norm.apart(isa, state.seen(values.clone()), rounded.some(values)) };
        });
        rounded
    }

    /// Adds what `linear` makes of `x` to the state: its own norm comes before the sum, `norm` behind it, where the
    /// order is so.
    fn add(&mut self, linear: &Linear<K::Element>, x: &Common<K::Element>, [norm, own]: [Option<&Norm>; 2]) {
        let Shared { state, apart, .. } = self.shared;
        let (isa, width) = (self.encoder.isa, self.encoder.stride());
        // SAFETY: rows of each unit, and phases one after the other.
        unsafe {
            if let Some(own) = own {
                self.linear(linear, x, Target::Put(apart.start));
                self.rows(|rows, _| {
                    let values = Self::values(&rows, width);
                    own.add(isa, apart.seen(values.clone()), state.some(values));
                });
            } else {
                self.linear(linear, x, Target::Add(state.start));
            }
            if let (Order::Post, Some(norm)) = (self.encoder.shape.order, norm) {
                self.norm(norm);
            }
        }
    }

    fn layer(&mut self, layer: &Layer<K::Element>) {
        let Shared { joined, context, inner, rotations, .. } = self.shared;
        let super::Shape { heads, head, activation, gated, causal, added, .. } = &self.encoder.shape;
        let [attention_norm, attention_output_norm, feed_forward_norm, output_norm] =
            layer.norms.each_ref().map(Option::as_ref);
        let (isa, texts) = (self.encoder.isa, self.texts);
        // SAFETY: rows and heads of each unit, and phases one after the other.
        unsafe {
            let x = self.operand(attention_norm);
            self.linear(&layer.query_key_value, x, Target::Store(joined.start));
            let rotation = layer.rope.map(|rope| &rotations[rope]);
            let turn = Turn { heads: *heads, own: *head, norms: layer.query_key_norms.as_ref(), rotation };
            if turn.is_needed() {
                self.rows(|rows, row| {
                    let joined = joined.some(Self::values(&rows, heads.joined()));
                    turn.rows(isa, joined, &texts.places[rows], row);
                });
            }
            let sight = Sight { causal: *causal, reach: layer.reach, added: added.as_ref() };
            self.member.phase(heads.key_value, |head| {
                let mut first = 0;
                for &length in texts.lengths {
                    let joined = &joined.all()[first * heads.joined()..];
                    let context = context.start.add(first * heads.width());
                    attention::head::<K>(*heads, head, joined, length, sight, self.scratch, context);
                    first += length;
                }
            });
            self.add(&layer.attention_output, context, [attention_norm, attention_output_norm]);
            let x = self.operand(feed_forward_norm);
            let target = if *gated { Target::Gate } else { Target::Activate };
            self.linear(&layer.up, x, target(*activation, inner.start));
            self.add(&layer.down, inner, [feed_forward_norm, output_norm]);
        }
    }
}

/// The same values as operands.
fn round<T: Element>(from: &[f32], to: &mut [T]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = T::of(from));
}
