use half::bf16;
use proptest::prelude::*;

use super::super::guarded::{Against, Guarded};
use super::super::{scalar, tile_emulator};
use super::avx512::Lane;
use super::*;

/// Numbers between −1 and 1 that look random, the same each time.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn rounded<T: Element>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&value| T::of(value)).collect()
}

/// What is rounded off of a number near 1, at most.
pub(crate) fn rounding<T: Element>() -> f64 {
    if T::ROUNDS { 1.0 / 256.0 } else { f64::from(f32::EPSILON) }
}

/// The CPU's own, or says that it is missing.
pub(crate) fn avx512<T: Lane>() -> Option<Isa<Avx512<T>>> {
    let isa = Isa::detect();
    if isa.is_none() {
        eprintln!("NOT RUN: this CPU has no {}; its kernels are tested on one that has", T::SET);
    }
    isa
}

/// Tiles, if need be emulated: on a CPU that has all else.
pub(crate) fn amx() -> Option<Isa<Amx>> {
    let missing = !Cpu::this().sets().contains(&InstructionSet::AmxBf16);
    if missing {
        avx512::<bf16>()?;
        eprintln!("EMULATED: this CPU has no AMX; its instructions are interpreted");
    }
    Some(tile_emulator::amx())
}

/// The same for all that can be run here.
macro_rules! for_each_isa {
    (|$isa:ident| $body:block) => {
        if let Some($isa) = $crate::kernels::gemm::tests::avx512::<half::bf16>() $body
        if let Some($isa) = $crate::kernels::gemm::tests::avx512::<f32>() $body
        if let Some($isa) = $crate::kernels::gemm::tests::amx() $body
    };
}
pub(crate) use for_each_isa;

/// Input with NaN in the rows that are there for whole tiles only: they must not be seen.
fn input<T: Element>(rows: usize, depth: usize, seed: u64, scale: f32) -> Vec<T> {
    let mut x: Vec<T> = numbers(rows * depth, seed).iter().map(|&x| T::of(x * scale)).collect();
    x.resize(padded_rows(rows) * depth, T::of(f32::NAN));
    x
}

fn close(got: impl Into<f64>, expected: f64, tolerance: f64) -> bool {
    (got.into() - expected).abs() <= tolerance
}

type Function = fn(f64) -> f64;

/// All panels; the target has room for them.
fn linear<K: MicroKernel>(
    _: Isa<K>,
    x: &[K::Element],
    rows: usize,
    weight: &Packed<K::Element>,
    bias: &[f32],
    target: Target<K::Element>,
) {
    // SAFETY: the CPU has the instructions, or they are emulated; nobody else has the target.
    unsafe {
        let _ready = K::ready();
        for at in 0..panels_of::<K>(weight) {
            panel::<K>(x, rows, weight, bias, at, target);
        }
    }
}

/// Checks all outputs of a layer against the scalar twin; memory against guards on one side.
fn check<K: MicroKernel>(
    isa: Isa<K>,
    rows: usize,
    columns: usize,
    depth: usize,
    scale: f32,
    against: Against,
) {
    let weight = numbers(columns * depth, 3);
    let bias = numbers(columns, 4);
    let packed = Packed::<K::Element>::new(&weight, columns, depth);
    let plain: Vec<K::Element> = input(rows, depth, 5, scale);
    // The padding of the depth is multiplied with zeros, so it must be finite: the engine's is zero.
    let mut padded = vec![K::Element::of(0.0); padded_rows(rows) * packed.depth()];
    for (to, from) in padded.chunks_exact_mut(packed.depth()).zip(plain.chunks_exact(depth)) {
        to[..depth].copy_from_slice(from);
    }
    let mut padded_bias = bias.clone();
    padded_bias.resize(packed.columns(), 0.0);

    let x = Guarded::of(&padded, against);
    let b = Guarded::of(&padded_bias, against);
    let expected = scalar::linear(&plain[..rows * depth], &weight, &bias, depth);
    // Sums in another order: each addition is off by half a unit of the largest partial sum.
    let tolerance = f64::from(scale) * depth as f64 * f64::from(f32::EPSILON) + 1e-6;
    let rounded = |value: f64| value.abs() * rounding::<K::Element>() + tolerance;
    let name = |what: &str| format!("{what} of {rows} × {columns} × {depth}, {}", K::SET);

    let activations: [(Option<HiddenAct>, Function); 5] = [
        (None, |y| y),
        (Some(HiddenAct::Gelu), scalar::gelu),
        (Some(HiddenAct::GeluTanh), scalar::gelu_tanh),
        (Some(HiddenAct::Relu), |y| y.max(0.0)),
        (Some(HiddenAct::Silu), scalar::silu),
    ];
    for (activation, function) in activations {
        let mut y = Guarded::of(&vec![K::Element::of(1.0); rows * packed.columns()], against);
        let target = match activation {
            None => Target::Store(y.as_mut_ptr()),
            Some(activation) => Target::Activate(activation, y.as_mut_ptr()),
        };
        linear(isa, &x, rows, &packed, &b, target);
        for (row, y) in y.chunks_exact(packed.columns()).enumerate() {
            for (column, &y) in y.iter().enumerate() {
                if column >= columns {
                    assert_eq!(y, K::Element::of(0.0), "padding, {}", name("row"));
                    continue;
                }
                let expected = function(expected[row * columns + column]);
                assert!(
                    close(y, expected, rounded(expected) + 1e-6),
                    "{} at {row}, {column}: {y:?} for {expected}",
                    name(&format!("{activation:?}"))
                );
            }
        }
    }

    let residual = numbers(rows * packed.columns(), 6);
    let mut y = Guarded::of(&residual, against);
    linear(isa, &x, rows, &packed, &b, Target::Add(y.as_mut_ptr()));
    for row in 0..rows {
        for column in 0..columns {
            let at = row * packed.columns() + column;
            let expected = expected[row * columns + column] + f64::from(residual[at]);
            assert!(close(y[at], expected, tolerance), "{}: {} for {expected}", name("sum"), y[at]);
        }
    }
    let mut put = Guarded::of(&vec![1.0f32; y.len()], against);
    linear(isa, &x, rows, &packed, &b, Target::Put(put.as_mut_ptr()));
    for (row, put) in put.chunks_exact(packed.columns()).enumerate() {
        for (column, &put) in put.iter().take(columns).enumerate() {
            let expected = expected[row * columns + column];
            assert!(close(put, expected, tolerance), "{}: {put} for {expected}", name("put"));
        }
    }
}

/// A gated layer against the scalar twin: `inner` columns of `depth`.
fn check_gated<K: MicroKernel>(isa: Isa<K>, rows: usize, inner: usize, depth: usize, against: Against) {
    let depth = depth.next_multiple_of(K::Element::STEP);
    let (weight, bias) = (numbers(2 * inner * depth, 3), numbers(2 * inner, 4));
    let order: Vec<Option<usize>> = gated_rows::<K>(inner).collect();
    let of_row = |row: &Option<usize>| match row {
        Some(row) => weight[row * depth..][..depth].to_vec(),
        None => vec![0.0; depth],
    };
    let in_turns: Vec<f32> = order.iter().flat_map(of_row).collect();
    let packed = Packed::<K::Element>::new(&in_turns, order.len(), depth);
    let in_turns: Vec<f32> = order.iter().map(|row| row.map_or(0.0, |row| bias[row])).collect();
    let plain: Vec<K::Element> = input(rows, depth, 5, 0.1);
    let (x, b) = (Guarded::of(&plain, against), Guarded::of(&in_turns, against));
    let expected = scalar::linear(&plain[..rows * depth], &weight, &bias, depth);
    let width = order.len() / 2;
    assert!(width >= inner && width.is_multiple_of(GATED));
    let functions: [(HiddenAct, Function); 4] = [
        (HiddenAct::Gelu, scalar::gelu),
        (HiddenAct::GeluTanh, scalar::gelu_tanh),
        (HiddenAct::Relu, |y| y.max(0.0)),
        (HiddenAct::Silu, scalar::silu),
    ];
    for (activation, function) in functions {
        let mut y = Guarded::of(&vec![K::Element::of(1.0); rows * width], against);
        linear(isa, &x, rows, &packed, &b, Target::Gate(activation, y.as_mut_ptr()));
        for (y, expected) in y.chunks_exact(width).zip(expected.chunks_exact(2 * inner)) {
            for (column, &y) in y.iter().enumerate() {
                let expected =
                    if column < inner { function(expected[column]) * expected[inner + column] } else { 0.0 };
                let bound = expected.abs() * rounding::<K::Element>() + 1e-4;
                assert!(
                    close(y, expected, bound),
                    "{y:?} for {expected}, {activation:?} of {inner}, {}",
                    K::SET
                );
            }
        }
    }
}

#[test]
fn a_gated_layer_multiplies_its_halves_whatever_they_are_wide() {
    for_each_isa!(|isa| {
        for inner in [1, 16, 31, 32, 33, 48, 96, 100] {
            for rows in [1, 7, 33] {
                check_gated(isa, rows, inner, 64, Against::End);
            }
        }
        check_gated(isa, 3, 40, 32, Against::Start);
    });
}

#[test]
fn every_remainder_of_rows_and_columns_is_what_the_scalar_twin_says() {
    for_each_isa!(|isa| {
        for rows in [1, 2, 5, 6, 7, 12, 15, 16, 17, 31, 32, 33, 50] {
            for columns in [32, 64, 96, 160] {
                check(isa, rows, columns, 64, 1.0, Against::End);
            }
        }
        // Sizes that have to be padded, and no memory read before the buffers.
        for (rows, columns, depth) in [(3, 33, 30), (17, 40, 100), (1, 1, 1), (6, 100, 31)] {
            check(isa, rows, columns, depth, 1.0, Against::Start);
            check(isa, rows, columns, depth, 1.0, Against::End);
        }
    });
}

#[test]
fn large_and_tiny_numbers_are_multiplied_as_well() {
    for_each_isa!(|isa| {
        for scale in [1e-30, 1e-3, 1e4, 1e20] {
            check(isa, 7, 96, 96, scale, Against::End);
        }
    });
}

#[test]
fn nothing_to_do_is_done() {
    for_each_isa!(|isa| {
        let packed = Packed::new(&[1.0; 32 * 32], 32, 32);
        let x = rounded(&vec![1.0; padded_rows(0) * 32]);
        let nowhere: &mut [_] = &mut [];
        linear(isa, &x, 0, &packed, &[0.0; 32], Target::Store(nowhere.as_mut_ptr()));
    });
}

#[test]
fn micro_kernels_stay_within_the_packed_weights() {
    /// All shapes of a tile, between guards.
    fn tiles<K: MicroKernel>(_: Isa<K>) {
        let step = K::Element::STEP;
        let ones = |count| vec![K::Element::of(1.0); count];
        for (rows, blocks) in (1..=K::ROWS).flat_map(|rows| (1..=K::BLOCKS).map(move |blocks| (rows, blocks)))
        {
            let steps = 2;
            let depth = (steps * step) as f32;
            for against in [Against::Start, Against::End] {
                let a = Guarded::of(&ones(padded_rows(rows) * steps * step), against);
                let b = Guarded::of(&ones(blocks * steps * step * BLOCK), against);
                let mut c = Guarded::of(&vec![0f32; K::ROWS * K::BLOCKS * BLOCK], against);
                // SAFETY: the CPU has the instructions, or they are emulated; the sizes are those that the
                // micro-kernel asks for.
                unsafe {
                    let _ready = K::ready();
                    K::tile(Tile {
                        a: a.as_ptr(),
                        stride: steps * step,
                        rows,
                        b: b.as_ptr(),
                        b_stride: steps * step * BLOCK,
                        blocks,
                        steps,
                        c: c.as_mut_ptr(),
                        c_stride: K::BLOCKS * BLOCK,
                    });
                }
                for row in c.chunks_exact(K::BLOCKS * BLOCK).take(rows) {
                    assert!(
                        row[..blocks * BLOCK].iter().all(|&sum| sum.to_bits() == depth.to_bits()),
                        "{rows} × {blocks}: {row:?}"
                    );
                    assert!(row[blocks * BLOCK..].iter().all(|&sum| sum.to_bits() == 0), "{rows} × {blocks}");
                }
            }
        }
    }
    for_each_isa!(|isa| {
        tiles(isa);
    });
}

#[test]
#[should_panic(expected = "input of 2048 for 50 rows")]
fn too_small_an_input_is_refused() {
    let packed = Packed::new(&[1.0; 32 * 32], 32, 32);
    let isa = Isa::<Avx512<bf16>>::assume();
    let mut y = [bf16::ONE; 1600];
    linear(isa, &[bf16::ONE; 2048], 50, &packed, &[0.0; 32], Target::Store(y.as_mut_ptr()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_is_what_the_scalar_twin_says(
        rows in 1usize..70,
        columns in 1usize..200,
        depth in 1usize..200,
        end: bool,
    ) {
        for_each_isa!(|isa| {
            check(isa, rows, columns, depth, 1.0, if end { Against::End } else { Against::Start });
        });
    }
}
