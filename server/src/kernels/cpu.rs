//! Which instructions the fused encoder may use: decided once, at start.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// A set of instructions that kernels are written for, in the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstructionSet {
    /// Tiles of bfloat16 (Intel AMX), with AVX-512 BF16 around them.
    AmxBf16,
    /// AVX-512 with its bfloat16 dot product (Intel Cooper Lake, AMD Zen 4, and later).
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL), computing in float32 (Intel Skylake-X and later, AMD Zen 4 and later).
    Avx512F32,
}

impl InstructionSet {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::AmxBf16, Self::Avx512Bf16, Self::Avx512F32];

    /// Its name in flags, logs and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AmxBf16 => "amx_bf16",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Avx512F32 => "avx512_f32",
        }
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InstructionSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|set| set.name() == text)
            .ok_or_else(|| format!("expected {}", Self::ALL.map(Self::name).join(" or ")))
    }
}

/// What this CPU, and the kernel under it, let a program use. Looked at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    sets: Vec<InstructionSet>,
    /// Why AMX is not among them, where the CPU has it and something else is in the way.
    amx_refused: Option<String>,
}

impl Cpu {
    /// The CPU that this runs on.
    pub fn this() -> &'static Self {
        static THIS: LazyLock<Cpu> = LazyLock::new(Cpu::detect);
        &THIS
    }

    /// What it has, the fastest first.
    pub fn sets(&self) -> &[InstructionSet] {
        &self.sets
    }

    /// Why it has AMX and it cannot be used, if that is so.
    pub fn amx_refused(&self) -> Option<&str> {
        self.amx_refused.as_deref()
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
        let (amx, amx_refused) = match if bf16 { amx() } else { Ok(false) } {
            Ok(amx) => (amx, None),
            Err(why) => (false, Some(why)),
        };
        let has = |set: &InstructionSet| match set {
            InstructionSet::AmxBf16 => amx,
            InstructionSet::Avx512Bf16 => bf16,
            InstructionSet::Avx512F32 => avx512,
        };
        Self { sets: InstructionSet::ALL.into_iter().filter(has).collect(), amx_refused }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self { sets: Vec::new(), amx_refused: None }
    }
}

/// Whether tiles of bfloat16 can be used; the error says what is in the way of a CPU that has them.
#[cfg(target_arch = "x86_64")]
fn amx() -> Result<bool, String> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    // CPUID.(7,0).EDX: bit 22 AMX-BF16, bit 24 AMX-TILE (Intel SDM, volume 2).
    let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == 1 << 22 | 1 << 24;
    if !has {
        return Ok(false);
    }
    request_tiles()?;
    Ok(true)
}

/// Asks the kernel for the tiles' state: 8 KiB a thread that it does not save unasked.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_tiles() -> Result<(), String> {
    // linux/arch/x86/include/uapi/asm/prctl.h; feature 18 is XTILEDATA.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: takes two numbers. The permission is the process's, its threads have it too.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
    if result == 0 {
        Ok(())
    } else {
        Err(format!("the kernel refuses AMX tiles: {}", std::io::Error::last_os_error()))
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn request_tiles() -> Result<(), String> {
    Err("AMX tiles are used on Linux only".into())
}

/// How a thread's AMX tiles are laid out: the operand of `ldtilecfg` (Intel SDM, volume 1, chapter 18).
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles with 16 rows of 64 bytes: their largest.
pub static SIXTEEN_ROWS: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_told_by_their_names() {
        for set in InstructionSet::ALL {
            assert_eq!(set.name().parse(), Ok(set));
        }
        assert_eq!(
            "avx2".parse::<InstructionSet>(),
            Err("expected amx_bf16 or avx512_bf16 or avx512_f32".to_owned())
        );
    }

    #[test]
    fn what_needs_more_is_never_without_what_needs_less() {
        let sets = Cpu::this().sets();
        assert_eq!(sets, &InstructionSet::ALL[InstructionSet::ALL.len() - sets.len()..]);
    }
}
