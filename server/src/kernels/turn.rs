//! What is done with queries and keys before they meet: norms, and rotary positions (Su et al., 2021).
//!
//! Row by row, in f32: an operand is read and rounded once. It is plain Rust that the compiler turns into vector
//! instructions; the products around it take a hundred times as long.

use super::attention::Heads;
use super::element::Element;
use super::elementwise::Norm;
use super::gemm::{BLOCK, Isa, MicroKernel};

/// Cosines and sines of rotary positions, of all positions that a text may have.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// `[positions][cosines, sines]`, half a head each.
    values: Vec<f32>,
    half: usize,
}

impl Rotation {
    /// For so many positions; `frequencies` `[half a head]` are the angles of one step. The arithmetic is that of
    /// transformers, in f32.
    pub(crate) fn new(frequencies: &[f32], positions: usize) -> Self {
        let angles = |position| frequencies.iter().map(move |frequency| position as f32 * frequency);
        let of_position = |position| angles(position).map(f32::cos).chain(angles(position).map(f32::sin));
        Self { values: (0..positions).flat_map(of_position).collect(), half: frequencies.len() }
    }

    /// Cosines and sines of a position.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.values[2 * position * self.half..][..2 * self.half].split_at(self.half)
    }
}

/// How queries and keys are normalised.
#[derive(Debug)]
pub(crate) struct QueryKeyNorms {
    /// Of queries; parameters lie as what they are of does in memory: of one head, or of all.
    pub(crate) query: Norm,
    /// Of keys.
    pub(crate) key: Norm,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    /// How they lie in memory.
    pub(crate) heads: Heads,
    /// How wide a head of the model is, without padding.
    pub(crate) own: usize,
    /// First.
    pub(crate) norms: Option<&'a QueryKeyNorms>,
    /// Then.
    pub(crate) rotation: Option<&'a Rotation>,
}

impl Turn<'_> {
    /// Whether there is anything to do.
    pub(crate) const fn is_needed(&self) -> bool {
        self.norms.is_some() || self.rotation.is_some()
    }

    /// Does it to the queries and keys of rows `[rows, query + key + value]`, which are at these places in their
    /// texts; `row` is memory for one, `[heads × size]`.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn rows<K: MicroKernel>(
        &self,
        _: Isa<K>,
        joined: &mut [K::Element],
        places: &[usize],
        row: &mut [f32],
    ) {
        let Heads { query, key_value, size, .. } = self.heads;
        assert_eq!(joined.len(), places.len() * self.heads.joined(), "a place for each row");
        assert!(self.own > 0 && self.own <= size && size.is_multiple_of(BLOCK) && row.len() >= query * size);
        assert!(self.rotation.is_none_or(|rotation| 2 * rotation.half == self.own), "halves of a head");
        for norm in self.norms.iter().flat_map(|norms| [&norms.query, &norms.key]) {
            norm.check(norm.weight.len());
        }
        for (joined, &place) in joined.chunks_exact_mut(self.heads.joined()).zip(places) {
            let (queries, others) = joined.split_at_mut(query * size);
            // SAFETY: every instruction set includes AVX-512; the sizes were checked.
            unsafe {
                self.part(queries, place, self.norms.map(|norms| &norms.query), row);
                self.part(&mut others[..key_value * size], place, self.norms.map(|norms| &norms.key), row);
            }
        }
    }

    /// # Safety
    ///
    /// The CPU has AVX-512, and computes with `T`. `part` is whole heads, whose width is a multiple of [`BLOCK`], and
    /// `row` is as long or longer.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn part<T: Element>(&self, part: &mut [T], place: usize, norm: Option<&Norm>, row: &mut [f32]) {
        let (size, own) = (self.heads.size, self.own);
        let row = &mut row[..part.len()];
        for (wide, value) in row.iter_mut().zip(part.iter()) {
            *wide = value.widen();
        }
        if let Some(norm) = norm {
            for group in row.chunks_exact_mut(norm.weight.len()) {
                normalise(group, norm, size, own);
            }
        }
        if let Some(rotation) = self.rotation {
            let (cos, sin) = rotation.at(place);
            for head in row.chunks_exact_mut(size) {
                let (first, second) = head[..own].split_at_mut(own / 2);
                for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
                }
            }
        }
        for (to, values) in part.chunks_exact_mut(BLOCK).zip(row.chunks_exact(BLOCK)) {
            // SAFETY: 16 of each.
            unsafe { T::store(to.as_mut_ptr(), std::arch::x86_64::_mm512_loadu_ps(values.as_ptr())) };
        }
    }
}

/// Normalises some heads together, each `size` wide in memory, of which `own` count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn normalise(group: &mut [f32], norm: &Norm, size: usize, own: usize) {
    let count = norm.columns as f32;
    let sum = |group: &[f32], of: &dyn Fn(f32) -> f32| -> f32 {
        // So many sums that they need not wait for each other.
        let mut lanes = [0.0f32; BLOCK];
        for head in group.chunks_exact(size) {
            for values in head[..own].chunks(BLOCK) {
                lanes.iter_mut().zip(values).for_each(|(lane, &value)| *lane += of(value));
            }
        }
        lanes.iter().sum()
    };
    let mean = if norm.centred { sum(group, &|value| value) / count } else { 0.0 };
    let variance = sum(group, &|value| (value - mean) * (value - mean)) / count;
    let scale = 1.0 / (variance + norm.eps).sqrt();
    for ((value, weight), bias) in group.iter_mut().zip(&norm.weight).zip(&norm.bias) {
        *value = (*value - mean) * scale * weight + bias;
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::tests::{for_each_isa, numbers, rounded, rounding};
    use super::super::guarded::{Against, Guarded};
    use super::*;

    /// What one head becomes, in f64.
    fn expected(head: &[f64], norm: Option<&Norm>, frequencies: &[f32], place: usize) -> Vec<f64> {
        let count = head.len() as f64;
        let mut head = head.to_vec();
        if let Some(norm) = norm {
            let mean = if norm.centred { head.iter().sum::<f64>() / count } else { 0.0 };
            let variance = head.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            for ((value, &weight), &bias) in head.iter_mut().zip(&norm.weight).zip(&norm.bias) {
                *value = (*value - mean) * scale * f64::from(weight) + f64::from(bias);
            }
        }
        let half = frequencies.len();
        let mut turned = head.clone();
        for (pair, &frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(place as f32 * frequency);
            turned[pair] = head[pair] * angle.cos() - head[pair + half] * angle.sin();
            turned[pair + half] = head[pair + half] * angle.cos() + head[pair] * angle.sin();
        }
        turned
    }

    fn check<K: MicroKernel>(isa: Isa<K>, heads: Heads, own: usize, centred: bool, with_norm: bool) {
        let places = [0, 7, 3];
        let frequencies: Vec<f32> =
            (0..own / 2).map(|pair| 100f32.powf(-(pair as f32) / own as f32)).collect();
        let norm = |seed| {
            let norm = Norm {
                weight: numbers(own, seed),
                bias: numbers(own, seed + 1),
                eps: 1e-5,
                centred,
                columns: own,
            };
            norm.padded(heads.size)
        };
        let norms = QueryKeyNorms { query: norm(1), key: norm(3) };
        let rotation = Rotation::new(&frequencies, 8);
        let mut values = numbers(places.len() * heads.joined(), 5);
        for (at, value) in values.iter_mut().enumerate() {
            if at % heads.size >= own {
                *value = 0.0;
            }
        }
        let before: Vec<K::Element> = rounded(&values);
        let mut joined = Guarded::of(&before, Against::End);
        let mut row = Guarded::of(&vec![0.0; heads.width()], Against::End);
        let norms = with_norm.then_some(&norms);
        let turn = Turn { heads, own, norms, rotation: Some(&rotation) };
        turn.rows(isa, &mut joined, &places, &mut row);
        for (at, (now, before)) in
            joined.chunks_exact(heads.size).zip(before.chunks_exact(heads.size)).enumerate()
        {
            let all = heads.query + 2 * heads.key_value;
            let (place, head) = (places[at / all], at % all);
            if head >= heads.query + heads.key_value {
                assert_eq!(now, before, "values stay as they are");
                continue;
            }
            let norm = norms.map(|norms| if head < heads.query { &norms.query } else { &norms.key });
            let wide: Vec<f64> = before[..own].iter().map(|&value| value.into()).collect();
            for (now, expected) in now.iter().zip(expected(&wide, norm, &frequencies, place)) {
                let bound = 3.0 * rounding::<K::Element>() + 1e-5;
                assert!(((*now).into() - expected).abs() < bound, "{now:?} for {expected}, head {head}");
            }
            assert!(now[own..].iter().all(|&value| value == K::Element::of(0.0)), "padding stays zero");
        }
    }

    #[test]
    fn queries_and_keys_are_normalised_and_turned_head_by_head() {
        for_each_isa!(|isa| {
            for (query, key_value, own) in [(2, 2, 32usize), (4, 2, 16), (3, 1, 24), (2, 1, 6), (1, 1, 64)] {
                let heads = Heads { query, key_value, size: own.next_multiple_of(32), scale: 1.0 };
                for (centred, with_norm) in [(false, true), (true, true), (true, false)] {
                    check(isa, heads, own, centred, with_norm);
                }
            }
        });
    }

    #[test]
    fn a_norm_of_all_heads_is_over_all_their_values_and_no_padding() {
        for_each_isa!(|isa| {
            let heads = Heads { query: 2, key_value: 2, size: 32, scale: 1.0 };
            let own = 8;
            let weight: Vec<f32> = (0..64).map(|at| if at % 32 < own { 1.0 } else { 0.0 }).collect();
            let norm = || Norm {
                weight: weight.clone(),
                bias: vec![0.0; 64],
                eps: 0.0,
                centred: true,
                columns: 2 * own,
            };
            let norms = QueryKeyNorms { query: norm(), key: norm() };
            let turn = Turn { heads, own, norms: Some(&norms), rotation: None };
            let values: Vec<f32> =
                (0..heads.joined()).map(|at| if at % 32 < own { at as f32 } else { 0.0 }).collect();
            let mut joined = rounded(&values);
            turn.rows(isa, &mut joined, &[0], &mut [0.0; 64]);
            let queries: Vec<f64> = joined[..64]
                .iter()
                .enumerate()
                .filter(|(at, _)| at % 32 < own)
                .map(|(_, &x)| x.into())
                .collect();
            let mean = queries.iter().sum::<f64>() / 16.0;
            let variance = queries.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 16.0;
            assert!(mean.abs() < 1e-2 && (variance - 1.0).abs() < 2e-2, "{mean} {variance}");
        });
    }
}
