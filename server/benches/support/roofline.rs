//! What the machine could do: the rates of matrix products and of nothing but products.
//!
//! Measured in the same rounds as everybody else, on all CPUs at once with a thread each, as
//! many small embedders would use them: what one core does alone, times the cores, is more
//! than a machine gives whose cores share a clock or are two threads of one.

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use embedding_server::kernels::cpu::{Cpu, InstructionSet};
use embedding_server::model::Directory;
use tch::{Kind, Tensor};

use super::machine;

/// How long each rate is measured.
const WINDOW: Duration = Duration::from_millis(150);

/// Rows of a product: as many tokens as a worker computes at once.
const TOKENS: i64 = 512;

/// The sizes that decide how much there is to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    hidden: i64,
    intermediate: i64,
    layers: i64,
}

impl Sizes {
    /// Those of the model in `directory`.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Self> {
        let encoder = Directory::read(directory)?.encoder;
        Ok(Self {
            hidden: encoder.hidden_size,
            intermediate: encoder.intermediate_size,
            layers: encoder.layers,
        })
    }

    /// (inputs, outputs) of the linear layers of a layer: queries, keys and values at once; the
    /// attention's output; up; down.
    const fn linears(self) -> [(i64, i64); 4] {
        let Self { hidden, intermediate, .. } = self;
        [(hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden)]
    }

    /// What a layer's linear layers compute for a token, a product and a sum being two.
    fn operations_per_layer(self) -> f64 {
        self.linears().iter().map(|(inputs, outputs)| (2 * inputs * outputs) as f64).sum()
    }

    /// What is computed for a text of this many tokens: linear layers, and attention's scores and
    /// sums, 2 · tokens² · hidden each a layer. Everything else is a hundredth of it.
    pub(crate) fn operations(self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let layers = self.layers as f64;
        layers * tokens * (self.operations_per_layer() + 4.0 * tokens * self.hidden as f64)
    }
}

/// The rates of a round, in operations a second of all CPUs; NaN for what the CPU lacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roofline {
    /// `LibTorch`'s matrix products of the model's sizes in bfloat16.
    pub(crate) bf16: f64,
    /// The same in float32.
    pub(crate) f32: f64,
    /// The CPU's fastest bfloat16 instruction, from registers alone.
    pub(crate) peak: f64,
}

impl Roofline {
    /// Measures for half a second.
    pub(crate) fn measure(sizes: Sizes, native_bf16: bool) -> Self {
        Self {
            bf16: if native_bf16 { products(sizes, Kind::BFloat16) } else { f64::NAN },
            f32: products(sizes, Kind::Float),
            peak: instruction().map_or(f64::NAN, |(_, compute)| on_all_cpus(|| Box::new(compute))),
        }
    }

    /// The rate of `LibTorch`'s products in a number format.
    pub(crate) fn of(self, dtype: &str) -> f64 {
        if dtype == "bfloat16" { self.bf16 } else { self.f32 }
    }
}

/// The operations a second of `prepare`d pieces of work, each of which tells how many it was: all
/// CPUs begin together and go on for a window.
fn on_all_cpus(prepare: impl Fn() -> Box<dyn FnMut() -> f64> + Sync) -> f64 {
    let cpus = machine::cpus();
    let start = Barrier::new(cpus);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus)
            .map(|_| {
                scope.spawn(|| {
                    let mut work = prepare();
                    work();
                    start.wait();
                    let begun = Instant::now();
                    let mut operations = 0.0;
                    while begun.elapsed() < WINDOW {
                        operations += work();
                    }
                    operations / begun.elapsed().as_secs_f64()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).sum()
    })
}

/// `LibTorch`'s rate for the linear layers of a layer, without bias.
fn products(sizes: Sizes, kind: Kind) -> f64 {
    on_all_cpus(|| {
        // This thread's alone: everybody else has computed before and keeps their number.
        tch::set_num_threads(1);
        let random =
            |rows, columns| Tensor::randn([rows, columns], (Kind::Float, tch::Device::Cpu)).to_kind(kind);
        let layers: Vec<(Tensor, Tensor)> = sizes
            .linears()
            .iter()
            .map(|&(inputs, outputs)| (random(TOKENS, inputs), random(outputs, inputs)))
            .collect();
        Box::new(move || {
            let _no_grad = tch::no_grad_guard();
            for (input, weights) in &layers {
                let _ = black_box(input.linear(weights, None::<Tensor>));
            }
            TOKENS as f64 * sizes.operations_per_layer()
        })
    })
}

/// The name of the CPU's fastest bfloat16 instruction, and a piece of work of nothing else.
pub(crate) fn instruction() -> Option<(&'static str, fn() -> f64)> {
    #[cfg(target_arch = "x86_64")]
    let fastest = Cpu::this().sets().first().and_then(|set| match set {
        InstructionSet::AmxBf16 => Some(("tdpbf16ps", x86::tiles as fn() -> f64)),
        InstructionSet::Avx512Bf16 => Some(("vdpbf16ps", x86::dots as fn() -> f64)),
        InstructionSet::Avx512F32 => None,
    });
    #[cfg(not(target_arch = "x86_64"))]
    let fastest = None;
    fastest
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "instructions that have no safe form")]
mod x86 {
    use std::arch::asm;

    use embedding_server::kernels::cpu::SIXTEEN_ROWS;

    /// How often a piece of work repeats its instructions: tens of microseconds.
    const REPEATS: u64 = 10_000;

    /// Sixteen independent sums: more than the instruction's latency times its ports.
    pub(super) fn dots() -> f64 {
        // SAFETY: `instruction` has seen that the CPU has AVX-512 BF16; only registers are
        // touched, and all of them are named.
        unsafe {
            asm!(
                "vpxord zmm16, zmm16, zmm16",
                "vpxord zmm17, zmm17, zmm17",
                "vpxord zmm0, zmm0, zmm0",
                "vpxord zmm1, zmm1, zmm1",
                "vpxord zmm2, zmm2, zmm2",
                "vpxord zmm3, zmm3, zmm3",
                "vpxord zmm4, zmm4, zmm4",
                "vpxord zmm5, zmm5, zmm5",
                "vpxord zmm6, zmm6, zmm6",
                "vpxord zmm7, zmm7, zmm7",
                "vpxord zmm8, zmm8, zmm8",
                "vpxord zmm9, zmm9, zmm9",
                "vpxord zmm10, zmm10, zmm10",
                "vpxord zmm11, zmm11, zmm11",
                "vpxord zmm12, zmm12, zmm12",
                "vpxord zmm13, zmm13, zmm13",
                "vpxord zmm14, zmm14, zmm14",
                "vpxord zmm15, zmm15, zmm15",
                "2:",
                "vdpbf16ps zmm0, zmm16, zmm17",
                "vdpbf16ps zmm1, zmm16, zmm17",
                "vdpbf16ps zmm2, zmm16, zmm17",
                "vdpbf16ps zmm3, zmm16, zmm17",
                "vdpbf16ps zmm4, zmm16, zmm17",
                "vdpbf16ps zmm5, zmm16, zmm17",
                "vdpbf16ps zmm6, zmm16, zmm17",
                "vdpbf16ps zmm7, zmm16, zmm17",
                "vdpbf16ps zmm8, zmm16, zmm17",
                "vdpbf16ps zmm9, zmm16, zmm17",
                "vdpbf16ps zmm10, zmm16, zmm17",
                "vdpbf16ps zmm11, zmm16, zmm17",
                "vdpbf16ps zmm12, zmm16, zmm17",
                "vdpbf16ps zmm13, zmm16, zmm17",
                "vdpbf16ps zmm14, zmm16, zmm17",
                "vdpbf16ps zmm15, zmm16, zmm17",
                "dec {repeats}",
                "jnz 2b",
                repeats = inout(reg) REPEATS => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _,
                out("zmm17") _,
                options(nomem, nostack),
            );
        }
        // 16 sums of 2 products and 2 additions an instruction.
        (REPEATS * 16 * 16 * 4) as f64
    }

    /// Six independent tiles of sums.
    pub(super) fn tiles() -> f64 {
        // SAFETY: `instruction` has seen that the CPU has AMX and that the kernel lets this
        // process use it. The configuration is read, tiles are touched, and released.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {repeats}",
                "jnz 2b",
                "tilerelease",
                configuration = in(reg) &raw const SIXTEEN_ROWS,
                repeats = inout(reg) REPEATS => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        // 16 × 16 sums of 32 products and 32 additions an instruction.
        (REPEATS * 6 * 16 * 16 * 64) as f64
    }
}
