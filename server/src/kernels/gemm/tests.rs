use proptest::prelude::*;

use super::super::cpu::Cpu;
use super::super::guarded::{Against, Guarded};
use super::super::{scalar, tile_emulator};
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

pub(crate) fn rounded(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

/// All that can be run here: the CPU's own, and tiles, if need be emulated. Says what is missing.
pub(crate) fn sets() -> Vec<Isa> {
    if !Cpu::this().sets().contains(&InstructionSet::Avx512Bf16) {
        eprintln!("NOT RUN: this CPU has no AVX-512 BF16; kernels are tested on one that has");
        return Vec::new();
    }
    if !Cpu::this().sets().contains(&InstructionSet::AmxBf16) {
        eprintln!("EMULATED: this CPU has no AMX; its instructions are interpreted");
    }
    vec![Isa::assume(InstructionSet::Avx512Bf16), tile_emulator::amx()]
}

/// Input with NaN in the rows that are there for whole tiles only: they must not be seen.
fn input(rows: usize, depth: usize, seed: u64, scale: f32) -> Vec<bf16> {
    let mut x: Vec<bf16> = numbers(rows * depth, seed).iter().map(|&x| bf16::from_f32(x * scale)).collect();
    x.resize(padded_rows(rows) * depth, bf16::NAN);
    x
}

fn close(got: f32, expected: f64, tolerance: f64) -> bool {
    (f64::from(got) - expected).abs() <= tolerance
}

type Function = fn(f64) -> f64;

/// Checks all outputs of a layer against the scalar twin; memory against guards on one side.
fn check(isa: Isa, rows: usize, columns: usize, depth: usize, scale: f32, against: Against) {
    let weight = numbers(columns * depth, 3);
    let bias = numbers(columns, 4);
    let packed = Packed::new(&weight, columns, depth);
    let plain = input(rows, depth, 5, scale);
    // The padding of the depth is multiplied with zeros, so it must be finite: the engine's is zero.
    let mut padded = vec![bf16::ZERO; padded_rows(rows) * packed.depth()];
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
    let rounding = |value: f64| value.abs() / 256.0 + tolerance;
    let name = |what: &str| format!("{what} of {rows} × {columns} × {depth}, {:?}", isa.set());

    let activations: [(Option<Activation>, Function); 4] = [
        (None, |y| y),
        (Some(Activation::Gelu), scalar::gelu),
        (Some(Activation::GeluTanh), scalar::gelu_tanh),
        (Some(Activation::Relu), |y| y.max(0.0)),
    ];
    for (activation, function) in activations {
        let mut y = Guarded::of(&vec![bf16::ONE; rows * packed.columns()], against);
        let output = match activation {
            None => Output::Store(&mut y),
            Some(activation) => Output::Activate(activation, &mut y),
        };
        linear(isa, &x, rows, &packed, &b, output);
        for (row, y) in y.chunks_exact(packed.columns()).enumerate() {
            for (column, y) in y.iter().enumerate() {
                if column >= columns {
                    assert_eq!(*y, bf16::ZERO, "padding, {}", name("row"));
                    continue;
                }
                let expected = function(expected[row * columns + column]);
                assert!(
                    close(y.to_f32(), expected, rounding(expected) + 5e-5),
                    "{} at {row}, {column}: {y} for {expected}",
                    name(&format!("{activation:?}"))
                );
            }
        }
    }

    let residual = numbers(rows * packed.columns(), 6);
    let mut y = Guarded::of(&residual, against);
    linear(isa, &x, rows, &packed, &b, Output::Add(&mut y));
    for row in 0..rows {
        for column in 0..columns {
            let at = row * packed.columns() + column;
            let expected = expected[row * columns + column] + f64::from(residual[at]);
            assert!(close(y[at], expected, tolerance), "{}: {} for {expected}", name("sum"), y[at]);
        }
    }
}

#[test]
fn every_remainder_of_rows_and_columns_is_what_the_scalar_twin_says() {
    for isa in sets() {
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
    }
}

#[test]
fn large_and_tiny_numbers_are_multiplied_as_well() {
    for isa in sets() {
        for scale in [1e-30, 1e-3, 1e4, 1e20] {
            check(isa, 7, 96, 96, scale, Against::End);
        }
    }
}

#[test]
fn nothing_to_do_is_done() {
    for isa in sets() {
        let packed = Packed::new(&[1.0; 32 * 32], 32, 32);
        let x = vec![bf16::ONE; padded_rows(0) * 32];
        linear(isa, &x, 0, &packed, &[0.0; 32], Output::Store(&mut []));
    }
}

#[test]
fn micro_kernels_stay_within_the_packed_weights() {
    /// All shapes of a tile, between guards.
    fn tiles<K: MicroKernel>() {
        for (rows, blocks) in (1..=K::ROWS).flat_map(|rows| (1..=K::BLOCKS).map(move |blocks| (rows, blocks)))
        {
            let steps = 2;
            for against in [Against::Start, Against::End] {
                let a = Guarded::of(&vec![bf16::ONE; padded_rows(rows) * steps * STEP], against);
                let b = Guarded::of(&vec![bf16::ONE; blocks * steps * TILE], against);
                let mut c = Guarded::of(&vec![0f32; K::ROWS * K::BLOCKS * BLOCK], against);
                // SAFETY: the sizes are those that the micro-kernel asks for.
                unsafe {
                    K::tile(Tile {
                        a: a.as_ptr(),
                        stride: steps * STEP,
                        rows,
                        b: b.as_ptr(),
                        blocks,
                        steps,
                        c: c.as_mut_ptr(),
                        c_stride: K::BLOCKS * BLOCK,
                    });
                }
                for row in c.chunks_exact(K::BLOCKS * BLOCK).take(rows) {
                    assert!(
                        row[..blocks * BLOCK].iter().all(|&sum| sum.to_bits() == 64f32.to_bits()),
                        "{rows} × {blocks}: {row:?}"
                    );
                    assert!(row[blocks * BLOCK..].iter().all(|&sum| sum.to_bits() == 0), "{rows} × {blocks}");
                }
            }
        }
    }
    for isa in sets() {
        match isa.set() {
            InstructionSet::Avx512Bf16 => tiles::<Avx512>(),
            InstructionSet::AmxBf16 => {
                // SAFETY: tiles are there, or emulated.
                let _tiles = unsafe { Tiles::configure() };
                tiles::<Amx>();
            }
        }
    }
}

#[test]
#[should_panic(expected = "input of 2048 for 50 rows")]
fn too_small_an_input_is_refused() {
    let packed = Packed::new(&[1.0; 32 * 32], 32, 32);
    let isa = Isa::assume(InstructionSet::Avx512Bf16);
    linear(isa, &[bf16::ONE; 2048], 50, &packed, &[0.0; 32], Output::Store(&mut [bf16::ONE; 1600]));
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
        for isa in sets() {
            check(isa, rows, columns, depth, 1.0, if end { Against::End } else { Against::Start });
        }
    }
}
