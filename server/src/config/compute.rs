//! Which device, number format and instructions compute: what `serve` and `inspect` are both told.

use clap::{Args, ValueEnum};

use crate::kernels::cpu::InstructionSet;
use crate::model::{DeviceChoice, Dtype, Implementation, Preference};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DtypeArg {
    /// bfloat16 where the device computes it natively, else float32 on a CPU, and float16 on a GPU.
    Auto,
    /// Single precision.
    Float32,
    /// bfloat16 products, summed in single precision.
    Bfloat16,
    /// Half precision, on GPUs.
    Float16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImplementationArg {
    /// The fastest that can serve the model.
    Auto,
    /// Our own kernels, for CPUs with AVX-512 or AMX.
    Fused,
    /// Our padding-free forward on LibTorch, on CPUs and GPUs.
    Packed,
    /// rust-bert's model.
    #[value(name = "rust_bert")]
    RustBert,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KernelsArg {
    /// The fastest that the CPU and its kernel allow.
    Auto,
    /// Tiles of bfloat16.
    #[value(name = "amx_bf16")]
    AmxBf16,
    /// AVX-512 with its bfloat16 dot product.
    #[value(name = "avx512_bf16")]
    Avx512Bf16,
    /// AVX-512, in float32.
    #[value(name = "avx512_f32")]
    Avx512F32,
}

/// How models are computed.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ComputeArgs {
    /// Where to compute: `auto` on all GPUs that there are, else on the CPU; `cpu`; `cuda` on all GPUs; or `cuda:N` on one.
    #[arg(long, env = "EMBEDDING_DEVICE", default_value = "auto", help_heading = "Computing")]
    device: DeviceChoice,
    /// In which number format to compute.
    #[arg(long, env = "EMBEDDING_DTYPE", value_enum, default_value_t = DtypeArg::Auto, help_heading = "Computing")]
    dtype: DtypeArg,
    /// Which implementation of the model computes.
    #[arg(long, env = "EMBEDDING_IMPLEMENTATION", value_enum, default_value_t = ImplementationArg::Auto,
          help_heading = "Computing")]
    implementation: ImplementationArg,
    /// With which instructions the fused implementation computes.
    #[arg(long, env = "EMBEDDING_KERNELS", value_enum, default_value_t = KernelsArg::Auto,
          help_heading = "Computing")]
    kernels: KernelsArg,
}

impl ComputeArgs {
    /// What is asked for.
    pub(super) const fn preference(self) -> Preference {
        Preference {
            implementation: match self.implementation {
                ImplementationArg::Auto => None,
                ImplementationArg::Fused => Some(Implementation::Fused),
                ImplementationArg::Packed => Some(Implementation::Packed),
                ImplementationArg::RustBert => Some(Implementation::RustBert),
            },
            dtype: match self.dtype {
                DtypeArg::Auto => None,
                DtypeArg::Float32 => Some(Dtype::Float32),
                DtypeArg::Bfloat16 => Some(Dtype::BFloat16),
                DtypeArg::Float16 => Some(Dtype::Float16),
            },
            device: self.device,
            kernels: match self.kernels {
                KernelsArg::Auto => None,
                KernelsArg::AmxBf16 => Some(InstructionSet::AmxBf16),
                KernelsArg::Avx512Bf16 => Some(InstructionSet::Avx512Bf16),
                KernelsArg::Avx512F32 => Some(InstructionSet::Avx512F32),
            },
        }
    }
}
