//! AMX tiles on CPUs that have none, for tests.
//!
//! There, a tile instruction raises SIGILL. The handler decodes it, does in plain Rust what the
//! manual says it does (Intel SDM, volume 2; palette 1), and goes on behind it. So the code of
//! [`super::gemm`] for AMX runs instruction by instruction on any CPU with AVX-512: its addresses,
//! strides, loops and tile numbers are tested, though not the hardware. On a CPU with AMX nothing is
//! emulated.

use std::cell::RefCell;
use std::sync::Once;

use half::bf16;

use super::gemm::{Amx, Isa};

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// The tiles of a thread.
struct State {
    configured: bool,
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

thread_local! {
    static STATE: RefCell<State> =
        const { RefCell::new(State { configured: false, tiles: [[[0; ROW_BYTES]; ROWS]; TILES] }) };
}

/// Tiles: those of the CPU, else emulated ones.
pub(super) fn amx() -> Isa<Amx> {
    static INSTALL: Once = Once::new();
    if let Some(amx) = Isa::detect() {
        return amx;
    }
    INSTALL.call_once(|| {
        // SAFETY: the handler touches its own thread's state and what the instruction names.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
    Isa::assume()
}

/// Emulates the instruction at the program counter, or ends the process as SIGILL would.
extern "C" fn illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t`; the bytes at the program counter were fetched.
    let done = unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = std::slice::from_raw_parts(registers[libc::REG_RIP as usize] as *const u8, 16);
        STATE.with_borrow_mut(|state| state.step(code, registers)).inspect(|length| {
            registers[libc::REG_RIP as usize] += *length as i64;
        })
    };
    if done.is_none() {
        // SAFETY: takes a signal's number and its default action.
        unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
            libc::raise(libc::SIGILL);
        }
    }
}

/// General registers by their numbers in instructions.
const GENERAL: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The fields of a memory operand, and the length of its encoding from its `ModRM` byte on.
struct Operand {
    base: usize,
    /// What the rows of a tile are apart.
    stride: usize,
    length: usize,
}

/// Decodes `ModRM`, SIB and displacement.
fn operand(code: &[u8], vex: [u8; 2], registers: &[i64]) -> Option<Operand> {
    let modrm = code[0];
    let general = |number: u8| registers[GENERAL[usize::from(number)] as usize] as usize;
    // VEX.X and VEX.B are stored inverted.
    let (extend_index, extend_base) = ((!vex[0] >> 6 & 1) << 3, (!vex[0] >> 5 & 1) << 3);
    let with_index = modrm & 7 == 4;
    let (base, stride, at) = if with_index {
        let sib = code[1];
        let index = sib >> 3 & 7 | extend_index;
        let stride = if index == 4 { 0 } else { general(index) << (sib >> 6) };
        (general(sib & 7 | extend_base), stride, 2)
    } else {
        (general(modrm & 7 | extend_base), 0, 1)
    };
    let (displacement, length) = match modrm >> 6 {
        // A base of rbp or r13 without displacement means something else; nobody emits it here.
        0 if (if with_index { code[1] } else { modrm }) & 7 == 5 => return None,
        0 => (0, at),
        1 => (isize::from(code[at] as i8), at + 1),
        2 => (i32::from_le_bytes(code[at..at + 4].try_into().ok()?) as isize, at + 4),
        _ => return None,
    };
    Some(Operand { base: base.wrapping_add_signed(displacement), stride, length })
}

impl State {
    /// Does what the instruction at the beginning of `code` says; its length.
    ///
    /// # Safety
    ///
    /// It is executed with these registers.
    unsafe fn step(&mut self, code: &[u8], registers: &[i64]) -> Option<usize> {
        // All tile instructions have the three-byte prefix of VEX, map 0F38, with 128 bits, W0.
        let [0xc4, map, form, opcode, modrm, ..] = *code else { return None };
        if map & 0x1f != 2 || form & 0x84 != 0 {
            return None;
        }
        let vex = [map, form];
        let tile = usize::from(modrm >> 3 & 7);
        let memory = || operand(&code[4..], vex, registers);
        // SAFETY: the addresses are what the instruction would have accessed.
        unsafe {
            match (opcode, form & 3, modrm >> 6) {
                (0x49, 0, 0..=2) => {
                    let operand = memory()?;
                    let expected: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
                    assert_eq!(*(operand.base as *const [u8; 8]), expected, "palette 1 from row 0 on");
                    let bytes = *((operand.base + 16) as *const [u16; 8]);
                    let rows = *((operand.base + 48) as *const [u8; 8]);
                    assert_eq!((bytes, rows), ([64; 8], [16; 8]), "whole tiles");
                    *self = Self { configured: true, tiles: [[[0; ROW_BYTES]; ROWS]; TILES] };
                    Some(4 + operand.length)
                }
                (0x49, 0, 3) if modrm == 0xc0 => {
                    self.configured = false;
                    Some(5)
                }
                _ if !self.configured => None,
                (0x49, 3, 3) => {
                    self.tiles[tile] = [[0; ROW_BYTES]; ROWS];
                    Some(5)
                }
                (0x4b, 3, 0..=2) => {
                    let operand = memory()?;
                    for (row, bytes) in self.tiles[tile].iter_mut().enumerate() {
                        *bytes = *((operand.base + row * operand.stride) as *const [u8; ROW_BYTES]);
                    }
                    Some(4 + operand.length)
                }
                (0x4b, 2, 0..=2) => {
                    let operand = memory()?;
                    for (row, bytes) in self.tiles[tile].iter().enumerate() {
                        *((operand.base + row * operand.stride) as *mut [u8; ROW_BYTES]) = *bytes;
                    }
                    Some(4 + operand.length)
                }
                (0x5c, 2, 3) => {
                    let (a, b) = (usize::from(modrm & 7), usize::from(!form >> 3 & 7));
                    self.multiply(tile, a, b);
                    Some(5)
                }
                _ => None,
            }
        }
    }

    /// TDPBF16PS: `c[m][n] += a[m][k] · b[k][n]` over pairs of bfloat16.
    fn multiply(&mut self, c: usize, a: usize, b: usize) {
        let pair = |bytes: &[u8]| [0, 2].map(|at| bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32());
        for row in 0..ROWS {
            for k in 0..ROWS {
                let left = pair(&self.tiles[a][row][4 * k..]);
                for column in 0..ROWS {
                    let right = pair(&self.tiles[b][k][4 * column..]);
                    let bytes = &mut self.tiles[c][row][4 * column..][..4];
                    let sum = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    let sum = sum + left[0] * right[0] + left[1] * right[1];
                    bytes.copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }
}
