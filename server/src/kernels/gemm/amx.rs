//! The micro-kernel of AMX: up to 32 × 32 sums in four tiles.
//!
//! Of the eight tile registers, `tmm0` to `tmm3` hold the sums, `tmm4` and `tmm5` 16 rows of the
//! input each, `tmm6` and `tmm7` a block of weights each: four loads for four products a step.
//! Stable Rust has no intrinsics for tiles, hence the assembly; each block of it begins with
//! zeroed sums and ends with stored ones, so no tile's content passes from one to the next.
//!
//! Instructions and the configuration's layout: Intel SDM, volume 2, and volume 1, chapter 18.

use std::arch::asm;

use half::bf16;

use super::super::cpu::SIXTEEN_ROWS;
use super::{BLOCK, Element, InstructionSet, MicroKernel, TILE_ROWS, Tile};

/// bfloat16 values of a tile's row.
const STEP: usize = bf16::STEP;

/// bfloat16 values of a block and step: a tile.
const TILE: usize = BLOCK * STEP;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx;

/// What the tiles of this thread look like while it lives: 16 rows of 64 bytes, all eight.
pub(crate) struct Tiles(());

impl Tiles {
    /// Configures the calling thread's tiles.
    ///
    /// # Safety
    ///
    /// The CPU has tiles, and the kernel lets this process use them.
    unsafe fn configure() -> Self {
        // SAFETY: reads 64 bytes; sets a state that nothing else in this program uses.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SIXTEEN_ROWS, options(nostack, preserves_flags, readonly));
        }
        Self(())
    }
}

impl Drop for Tiles {
    /// Back to the initial state, which the kernel need not save when it switches threads.
    fn drop(&mut self) {
        // SAFETY: the tiles were configured.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

impl MicroKernel for Amx {
    const SET: InstructionSet = InstructionSet::AmxBf16;
    const ROWS: usize = 2 * TILE_ROWS;
    const BLOCKS: usize = 2;
    type Element = bf16;
    type Ready = Tiles;

    unsafe fn ready() -> Tiles {
        // SAFETY: as the caller promises.
        unsafe { Tiles::configure() }
    }

    #[inline]
    unsafe fn tile(tile: Tile<bf16>) {
        let below = |tile: Tile<bf16>| Tile {
            a: tile.a.wrapping_add(TILE_ROWS * tile.stride),
            c: tile.c.wrapping_add(TILE_ROWS * tile.c_stride),
            ..tile
        };
        // SAFETY: as the caller promises; `below` is used where there are so many rows.
        unsafe {
            match (tile.rows > TILE_ROWS, tile.blocks) {
                (true, 2) => two_by_two(tile),
                (false, 2) => one_by_two(tile),
                (true, _) => {
                    one_by_one(tile);
                    one_by_one(below(tile));
                }
                (false, _) => one_by_one(tile),
            }
        }
    }
}

/// 32 rows × 2 blocks.
///
/// # Safety
///
/// See [`MicroKernel::tile`].
#[inline]
unsafe fn two_by_two(tile: Tile<bf16>) {
    let Tile { a, stride, b, b_stride, steps, c, c_stride, .. } = tile;
    const { assert!(STEP * size_of::<bf16>() == 64 && TILE * size_of::<bf16>() == 1024 && BLOCK * 4 == 64) };
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {stride}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tileloadd tmm7, [{b1} + {line}]",
            "tileloadd tmm5, [{a1} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64",
            "add {a1}, 64",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c0} + {c_stride}], tmm0",
            "tilestored [{c0} + {c_stride} + 64], tmm1",
            "tilestored [{c1} + {c_stride}], tmm2",
            "tilestored [{c1} + {c_stride} + 64], tmm3",
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.add(TILE_ROWS * stride) => _,
            stride = in(reg) stride * size_of::<bf16>(),
            b0 = inout(reg) b => _,
            b1 = inout(reg) b.add(b_stride) => _,
            line = in(reg) 64usize,
            c0 = in(reg) c,
            c1 = in(reg) c.add(TILE_ROWS * c_stride),
            c_stride = in(reg) c_stride * size_of::<f32>(),
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows × 2 blocks.
///
/// # Safety
///
/// See [`MicroKernel::tile`].
#[inline]
unsafe fn one_by_two(tile: Tile<bf16>) {
    let Tile { a, stride, b, b_stride, steps, c, c_stride, .. } = tile;
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {c_stride}], tmm0",
            "tilestored [{c} + {c_stride} + 64], tmm1",
            a = inout(reg) a => _,
            stride = in(reg) stride * size_of::<bf16>(),
            b0 = inout(reg) b => _,
            b1 = inout(reg) b.add(b_stride) => _,
            line = in(reg) 64usize,
            c = in(reg) c,
            c_stride = in(reg) c_stride * size_of::<f32>(),
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows × 1 block.
///
/// # Safety
///
/// See [`MicroKernel::tile`].
#[inline]
unsafe fn one_by_one(tile: Tile<bf16>) {
    let Tile { a, stride, b, steps, c, c_stride, .. } = tile;
    // SAFETY: as the caller promises.
    unsafe {
        asm!(
            "tilezero tmm0",
            "2:",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "add {a}, 64",
            "add {b}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {c_stride}], tmm0",
            a = inout(reg) a => _, stride = in(reg) stride * size_of::<bf16>(),
            b = inout(reg) b => _, line = in(reg) 64usize,
            c = in(reg) c, c_stride = in(reg) c_stride * size_of::<f32>(),
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack),
        );
    }
}
