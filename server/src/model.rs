//! What a model is to the rest of the server, and the implementations of it.
//!
//! ```text
//! directory ─ read ─▶ Directory ─ load ─▶ Box<dyn Model> ─ embed(TokenBatch) ─▶ Vectors
//!                                          ├ fused      our kernels for the CPU
//!                                          ├ packed     our padding-free forward on LibTorch
//!                                          └ rust_bert  rust-bert's model, padded
//! ```
//!
//! Tensors stay in here; outside there are token ids and `f32`s.

pub mod digests;
pub mod directory;
pub mod encoder;
pub mod fake;
pub mod families;
#[cfg(target_arch = "x86_64")]
mod fused;
#[cfg(feature = "torch")]
pub mod gpus;
pub mod inventory;
pub mod memory;
#[cfg(feature = "torch")]
mod packed;
pub mod pooling;
#[cfg(feature = "torch")]
mod rust_bert;
mod tail;
#[cfg(feature = "torch")]
mod torch;
pub mod weights;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(feature = "torch")]
use tch::TchError;

use crate::kernels::cpu::{Cpu, InstructionSet};
use crate::space;
pub use directory::Directory;

/// Why a model cannot be loaded or a batch cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory's configuration.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The directory's weights.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// What was asked for cannot be had on this machine or with this model.
    #[error("{0}")]
    Unavailable(String),
    /// Tokens that the model does not have.
    #[error("{0}")]
    Tokens(String),
    /// A device has not enough memory for it.
    #[error("the device has not enough memory: {0}")]
    OutOfMemory(String),
    /// A device failed, for good: every later call fails, too.
    #[error("the GPU has failed, and this process can use it no more: {0}")]
    DeviceFailed(String),
    /// `LibTorch` failed.
    #[cfg(feature = "torch")]
    #[error("LibTorch failed: {}", first_line(.0))]
    Torch(TchError),
    /// rust-bert failed.
    #[cfg(feature = "torch")]
    #[error("rust-bert failed: {0}")]
    RustBert(String),
}

/// How CUDA says that there is no memory; cuBLAS, which wants some for itself, has words of its own.
#[cfg(feature = "torch")]
const OUT_OF_MEMORY: [&str; 3] =
    ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"];
/// How CUDA says that the process can do no more with a GPU (CUDA Runtime API, `cudaError`: those after which "the
/// process must be terminated and relaunched").
#[cfg(feature = "torch")]
const FOR_GOOD: [&str; 9] = [
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
    "device-side assert",
    "hardware stack error",
    "uncorrectable ECC error",
    "launch timed out",
];

#[cfg(feature = "torch")]
impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        let line = first_line(&error);
        // LibTorch has a class for it, of which tch keeps the message.
        if OUT_OF_MEMORY.iter().any(|words| line.contains(words)) {
            Self::OutOfMemory(line)
        } else if FOR_GOOD.iter().any(|words| line.contains(words)) {
            Self::DeviceFailed(line)
        } else {
            Self::Torch(error)
        }
    }
}

/// The message without the C++ stack that LibTorch appends to it.
#[cfg(feature = "torch")]
fn first_line(error: &TchError) -> String {
    error
        .to_string()
        .split("\\nException raised")
        .next()
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The tokens of one text, or of a pair of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, special tokens included; at least one.
    pub ids: Vec<u32>,
    /// How many tokens at the beginning the pooling leaves out: those of a prompt, with the
    /// special tokens before it, where the model's pooling says so.
    pub unpooled: usize,
    /// Where the second text of a pair begins; `ids.len()` where there is none.
    pub second: usize,
}

impl From<Vec<u32>> for Sequence {
    /// Of one text, all of it pooled.
    fn from(ids: Vec<u32>) -> Self {
        Self { unpooled: 0, second: ids.len(), ids }
    }
}

/// One text, or a pair of texts, of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// Token ids.
    pub ids: &'a [i64],
    /// As [`Sequence::unpooled`].
    pub unpooled: usize,
    /// As [`Sequence::second`].
    pub second: usize,
}

/// Token ids of several texts, one after the other, without padding.
///
/// Texts of equal length should lie side by side: attention runs once for each
/// run of equal lengths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<i64>,
    lengths: Vec<i64>,
    /// As [`Sequence`] has them, a number a text.
    unpooled: Vec<i64>,
    seconds: Vec<i64>,
}

impl TokenBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a text; it has at least one token.
    pub fn push(&mut self, ids: &[u32]) {
        self.append(ids, 0, ids.len());
    }

    /// Appends a text or a pair of texts.
    pub fn push_sequence(&mut self, sequence: &Sequence) {
        self.append(&sequence.ids, sequence.unpooled, sequence.second);
    }

    fn append(&mut self, ids: &[u32], unpooled: usize, second: usize) {
        debug_assert!(!ids.is_empty(), "a text without tokens has no vector");
        self.ids.extend(ids.iter().map(|&id| i64::from(id)));
        self.lengths.push(ids.len() as i64);
        self.unpooled.push(unpooled as i64);
        self.seconds.push(second as i64);
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Number of tokens in all texts.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The ids of all texts, in order.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The token count of each text, in order.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// How many tokens at the beginning of each text the pooling leaves out.
    pub fn unpooled(&self) -> &[i64] {
        &self.unpooled
    }

    /// Its texts, in order.
    pub fn texts(&self) -> impl Iterator<Item = Text<'_>> {
        let mut rest = self.ids.as_slice();
        self.lengths.iter().zip(&self.unpooled).zip(&self.seconds).map(
            move |((&length, &unpooled), &second)| {
                let (ids, others) = rest.split_at(length as usize);
                rest = others;
                Text { ids, unpooled: unpooled as usize, second: second as usize }
            },
        )
    }

    /// The segment (0 or 1) of each token; nothing where no text is a pair: all are of segment 0.
    pub fn segments(&self) -> Option<Vec<i64>> {
        if self.seconds == self.lengths {
            return None;
        }
        let of_text = |(&length, &second): (&i64, &i64)| (0..length).map(move |at| i64::from(at >= second));
        Some(self.lengths.iter().zip(&self.seconds).flat_map(of_text).collect())
    }
}

impl<'a> FromIterator<&'a [u32]> for TokenBatch {
    fn from_iter<I: IntoIterator<Item = &'a [u32]>>(texts: I) -> Self {
        let mut batch = Self::new();
        texts.into_iter().for_each(|ids| batch.push(ids));
        batch
    }
}

impl<'a> FromIterator<&'a Sequence> for TokenBatch {
    fn from_iter<I: IntoIterator<Item = &'a Sequence>>(texts: I) -> Self {
        let mut batch = Self::new();
        texts.into_iter().for_each(|sequence| batch.push_sequence(sequence));
        batch
    }
}

/// A loaded model. It belongs to one thread at a time; [`Model::share`] makes a
/// second handle on the same weights for another thread.
pub trait Model: Send {
    /// The vectors of the batch's texts, in order: `texts × dimensions` values,
    /// row by row. They may hold NaN where the arithmetic produced it: the caller
    /// checks. A last division by the norm is left to the caller, too, who may want
    /// it otherwise ([`Directory::normalizes`]).
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error>;

    /// The states of the batch's tokens after the encoder, before any pooling:
    /// `tokens × hidden` values, row by row.
    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error>;

    /// Prepares the calling thread, which will compute with it from now on.
    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Lends it threads for the next forward. Implementations that have threads of their own take no notice.
    fn lend(&mut self, spare: Spare) {
        drop(spare);
    }

    /// A second handle on the same weights.
    fn share(&self) -> Result<Box<dyn Model>, Error>;
}

/// Threads that have nothing else to do: a forward may have their share of the CPUs.
#[derive(Clone, Debug, Default)]
pub struct Spare {
    /// How many.
    pub threads: usize,
    /// Whether that is still so. Once it is not, the forward goes on without them.
    pub still: Arc<AtomicBool>,
}

/// Which implementation computes the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// Our own kernels for the CPU, fused.
    Fused,
    /// Our padding-free forward on `LibTorch`, with oneDNN-prepacked linears.
    Packed,
    /// rust-bert's model, with padding.
    RustBert,
    /// A stand-in of the tests that hashes token ids.
    Fake,
}

impl Implementation {
    /// Those that serve, in the order in which they are preferred.
    pub const ALL: [Self; 3] = [Self::Fused, Self::Packed, Self::RustBert];

    /// Whether it knows models of an architecture. Ours compute whatever an [`encoder::Encoder`] describes.
    pub fn knows(self, architecture: &str) -> bool {
        self != Self::RustBert || architecture == "bert"
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::Packed => "packed",
            Self::RustBert => "rust_bert",
            Self::Fake => "fake",
        })
    }
}

/// The number format in which the encoder computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    Float32,
    /// bfloat16 products, summed in single precision.
    BFloat16,
    /// IEEE half precision products, summed in single precision: on GPUs.
    Float16,
}

impl Dtype {
    /// In which one the fused kernels compute with these instructions.
    pub const fn of(set: InstructionSet) -> Self {
        match set {
            InstructionSet::AmxBf16 | InstructionSet::Avx512Bf16 => Self::BFloat16,
            InstructionSet::Avx512F32 => Self::Float32,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
            Self::Float16 => "float16",
        })
    }
}

/// Where the encoder computes, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// All GPUs that there are, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by its index, or all.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(|index| Self::Cuda(Some(index)))
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

/// Where the encoder computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// Some GPUs, by the index of the first and their number; each has all of the model.
    Cuda(usize, usize),
}

impl Device {
    /// How many there are.
    pub const fn count(self) -> usize {
        match self {
            Self::Cpu => 1,
            Self::Cuda(_, count) => count,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(first, 1) => write!(f, "cuda:{first}"),
            Self::Cuda(first, count) => write!(f, "cuda:{first}-{}", first + count - 1),
        }
    }
}

/// How a model is to be computed, as asked for; `None` leaves it to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Which implementation.
    pub implementation: Option<Implementation>,
    /// In which number format.
    pub dtype: Option<Dtype>,
    /// Where.
    pub device: DeviceChoice,
    /// With which instructions the fused implementation computes.
    pub kernels: Option<InstructionSet>,
}

impl Preference {
    /// The option that asks for what only CPUs have, if one does.
    const fn of_cpus(&self) -> Option<&'static str> {
        match (self.implementation, self.kernels) {
            (Some(Implementation::Fused | Implementation::RustBert), _) => Some("--implementation"),
            (_, Some(_)) => Some("--kernels"),
            _ => None,
        }
    }

    /// Whether GPUs may be chosen, where there are some.
    pub const fn may_be_gpus(&self) -> bool {
        match self.device {
            DeviceChoice::Cpu => false,
            DeviceChoice::Auto => self.of_cpus().is_none(),
            DeviceChoice::Cuda(_) => true,
        }
    }
}

/// How a model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which implementation.
    pub implementation: Implementation,
    /// In which number format.
    pub dtype: Dtype,
    /// With which instructions, where the implementation is the fused one.
    pub kernels: Option<InstructionSet>,
    /// Where.
    pub device: Device,
}

impl Plan {
    /// Of one implementation in a dtype, on the CPU.
    pub const fn on_cpu(implementation: Implementation, dtype: Dtype) -> Self {
        Self { implementation, dtype, kernels: None, device: Device::Cpu }
    }

    /// Decides how to compute, from what is asked for and what the machine has.
    /// The error tells the user what to change.
    pub fn decide(preference: Preference, machine: Machine) -> Result<Self, Error> {
        if let Some(plan) = Self::on_gpus(preference, machine)? {
            return Ok(plan);
        }
        if preference.dtype == Some(Dtype::Float16) {
            return Err(Error::Unavailable(
                "--dtype float16: here only GPUs compute in it; use bfloat16 or float32".into(),
            ));
        }
        let wanted = |set: InstructionSet| preference.dtype.is_none_or(|dtype| dtype == Dtype::of(set));
        let kernels = match preference.kernels {
            Some(set) if !machine.kernels.contains(&set) => {
                return Err(Error::Unavailable(format!(
                    "--kernels {set}: this CPU has {}; leave --kernels at auto",
                    named(machine.kernels)
                )));
            }
            Some(set) if !wanted(set) => {
                return Err(Error::Unavailable(format!(
                    "--kernels {set}: they compute in {}, which --dtype does not ask for; leave one of the two \
                     at auto",
                    Dtype::of(set)
                )));
            }
            Some(set) => Some(set),
            None => machine.kernels.iter().copied().find(|&set| wanted(set)),
        };
        // What the CPU lacks where there are none.
        let needed = match preference.dtype {
            Some(Dtype::BFloat16) => "AVX-512 BF16 for bfloat16",
            _ => "AVX-512",
        };
        let implementation = preference.implementation.unwrap_or(if kernels.is_some() {
            Implementation::Fused
        } else {
            Implementation::Packed
        });
        if implementation == Implementation::Fused {
            return match kernels {
                Some(set) => Ok(Self { implementation, dtype: Dtype::of(set), kernels, device: Device::Cpu }),
                None => Err(Error::Unavailable(format!(
                    "--implementation fused: it needs {needed}, which this CPU lacks; leave --implementation at auto"
                ))),
            };
        }
        if !machine.libtorch {
            let why = match preference.implementation {
                Some(other) => format!("--implementation {other} needs it"),
                None => format!("its own kernels need {needed}, which this CPU lacks"),
            };
            return Err(Error::Unavailable(format!(
                "this build is without LibTorch, and {why}; use the build with it, which serves every model on \
                 every CPU"
            )));
        }
        let dtype = preference.dtype.unwrap_or(match (implementation, preference.kernels) {
            (Implementation::Packed, Some(set)) => Dtype::of(set),
            (Implementation::Packed, None) if machine.native_bf16 => Dtype::BFloat16,
            _ => Dtype::Float32,
        });
        if implementation == Implementation::RustBert && dtype == Dtype::BFloat16 {
            return Err(Error::Unavailable(
                "--implementation rust_bert computes in float32 only; leave --dtype at auto or float32"
                    .into(),
            ));
        }
        if dtype == Dtype::BFloat16 && !machine.can_bf16 {
            return Err(Error::Unavailable(
                "--dtype bfloat16: this CPU lacks what oneDNN needs for it (AVX-512 BW, VL and DQ, or \
                 AVX-NE-CONVERT); use --dtype float32"
                    .into(),
            ));
        }
        Ok(Self::on_cpu(implementation, dtype))
    }

    /// The same where GPUs are to compute; nothing where the CPU is.
    fn on_gpus(preference: Preference, machine: Machine) -> Result<Option<Self>, Error> {
        let chosen = preference.device;
        let of_cpus = preference.of_cpus();
        let refused = |why: String| Err(Error::Unavailable(format!("--device {chosen}: {why}")));
        let (gpus, which) = match (chosen, machine.gpus) {
            (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, Err(_)) => return Ok(None),
            (DeviceChoice::Auto, Ok(_)) if of_cpus.is_some() => return Ok(None),
            (DeviceChoice::Auto, Ok(gpus)) => (gpus, None),
            (DeviceChoice::Cuda(_), Err(why)) => return refused(format!("{why}; use --device cpu")),
            (DeviceChoice::Cuda(which), Ok(gpus)) => (gpus, which),
        };
        if let Some(option) = of_cpus {
            return refused(format!("{option} asks for what only CPUs have; leave it at auto"));
        }
        let device = match which {
            None => Device::Cuda(0, gpus.count),
            Some(index) if index < gpus.count => Device::Cuda(index, 1),
            Some(_) => return refused(format!("there are {} GPUs, counted from 0", gpus.count)),
        };
        let native = if gpus.bfloat16 { Dtype::BFloat16 } else { Dtype::Float16 };
        let dtype = preference.dtype.unwrap_or(native);
        Ok(Some(Self { implementation: Implementation::Packed, dtype, kernels: None, device }))
    }
}

fn named(sets: &[InstructionSet]) -> String {
    if sets.is_empty() {
        return "no instructions that it knows".to_owned();
    }
    sets.iter().map(|set| set.name()).collect::<Vec<_>>().join(" and ")
}

/// What the machine offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX).
    pub native_bf16: bool,
    /// Whether `packed` can compute in bfloat16 at all, however slowly: oneDNN lays weights
    /// out for it only on such CPUs.
    pub can_bf16: bool,
    /// What the fused kernels can compute with, the fastest first.
    pub kernels: &'static [InstructionSet],
    /// Whether this build has `LibTorch`.
    pub libtorch: bool,
    /// The GPUs that `LibTorch` can use, or why there are none.
    pub gpus: Result<Gpus, &'static str>,
}

/// GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// How many; at least one.
    pub count: usize,
    /// Whether all multiply bfloat16 natively.
    pub bfloat16: bool,
}

impl Machine {
    /// Looks at the machine that this runs on; at GPUs, where they may be chosen: to look for them loads libraries.
    pub fn for_choice(preference: Preference) -> Self {
        #[cfg(feature = "torch")]
        if preference.may_be_gpus() {
            // Its answer is what `detect` sees.
            let _ = gpus::load();
        }
        #[cfg(not(feature = "torch"))]
        let _ = preference;
        Self::detect()
    }

    /// Looks at the machine that this runs on; of GPUs, at those that were looked for before.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let (native_bf16, can_bf16) = (
            is_x86_feature_detected!("avx512bf16"),
            is_x86_feature_detected!("avxneconvert")
                || (is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")),
        );
        // aarch64's `bf16` feature is not yet detected by stable Rust, and this
        // project has not measured it: float32 is the safe answer.
        #[cfg(not(target_arch = "x86_64"))]
        let (native_bf16, can_bf16) = (false, false);
        Self {
            native_bf16,
            can_bf16,
            kernels: Cpu::this().sets(),
            libtorch: cfg!(feature = "torch"),
            #[cfg(feature = "torch")]
            gpus: gpus::loaded()
                .map(|gpus| Gpus { count: gpus.len(), bfloat16: gpus.iter().all(gpus::Gpu::is_modern) }),
            #[cfg(not(feature = "torch"))]
            gpus: Err("this build is without LibTorch, which computes on them"),
        }
    }
}

/// Loads the model in `directory` as `plan` says, onto each of its devices; with the tensors that it computes with.
pub fn load_everywhere(
    directory: &Directory,
    plan: Plan,
) -> Result<(Vec<Box<dyn Model>>, Vec<space::Tensor>), Error> {
    let (first, tensors) = load(directory, plan)?;
    let mut models = vec![first];
    if let Device::Cuda(first, count) = plan.device {
        for index in first + 1..first + count {
            models.push(load(directory, Plan { device: Device::Cuda(index, 1), ..plan })?.0);
        }
    }
    Ok((models, tensors))
}

/// Refuses what an implementation cannot do with a model, as far as its configuration tells.
pub fn check(directory: &Directory, implementation: Implementation) -> Result<(), Error> {
    match implementation {
        #[cfg(feature = "torch")]
        Implementation::RustBert => rust_bert::check(directory).map(drop),
        // Ours compute whatever an `Encoder` describes; without LibTorch, rust-bert is in no plan.
        _ => {
            let _ = directory;
            Ok(())
        }
    }
}

/// Loads the model in `directory` as `plan` says, onto the first of its devices; with the tensors that it computes with.
pub fn load(directory: &Directory, plan: Plan) -> Result<(Box<dyn Model>, Vec<space::Tensor>), Error> {
    match plan.implementation {
        #[cfg(target_arch = "x86_64")]
        Implementation::Fused => {
            let set = plan.kernels.ok_or_else(|| Error::Unavailable("no kernels were chosen".into()))?;
            fused::load(directory, set)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Implementation::Fused => {
            Err(Error::Unavailable("the fused implementation is written for x86-64".into()))
        }
        #[cfg(feature = "torch")]
        Implementation::Packed => {
            let device = match plan.device {
                Device::Cpu => tch::Device::Cpu,
                Device::Cuda(index, _) => tch::Device::Cuda(index),
            };
            let (model, tensors) = packed::Packed::load(directory, plan.dtype, device)?;
            Ok((Box::new(model), tensors))
        }
        #[cfg(feature = "torch")]
        Implementation::RustBert => {
            let (model, tensors) = rust_bert::Bert::load(directory)?;
            Ok((Box::new(model), tensors))
        }
        #[cfg(not(feature = "torch"))]
        Implementation::Packed | Implementation::RustBert => Err(Error::Unavailable(format!(
            "{} needs LibTorch, which this build is without",
            plan.implementation
        ))),
        Implementation::Fake => Ok((Box::new(fake::Fake::new(directory.dimensions())), Vec::new())),
    }
}

/// Reads and loads the model in `path` for a caller that wants nothing else of
/// the directory: tests and benchmarks.
pub fn load_path(path: &Path, plan: Plan) -> Result<Box<dyn Model>, Error> {
    load(&Directory::read(path)?, plan).map(|(model, _)| model)
}

/// Sets the number of threads that one operator of `LibTorch` may use on the calling thread.
#[cfg(feature = "torch")]
pub fn set_operator_threads(threads: usize) {
    // A thread's first use of LibTorch overwrites its number with the one that any
    // thread set last; asking for the number is such a use.
    tch::get_num_threads();
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// Without `LibTorch`, a forward has one thread.
#[cfg(not(feature = "torch"))]
pub const fn set_operator_threads(_: usize) {}

/// Gives back the memory of devices on which a model was.
#[cfg(feature = "torch")]
pub fn release_memory(device: Device) -> Result<(), Error> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(..) => Ok(torch::release_gpu_memory()?),
    }
}

/// CPUs keep none.
#[cfg(not(feature = "torch"))]
pub const fn release_memory(_: Device) -> Result<(), Error> {
    Ok(())
}

/// Prepares the calling thread for forwards: no autograd bookkeeping.
#[cfg(feature = "torch")]
pub fn enter_inference_mode() -> Result<(), Error> {
    Ok(torch::enter_inference_mode()?)
}

/// Prepares the calling thread for forwards.
#[cfg(not(feature = "torch"))]
pub const fn enter_inference_mode() -> Result<(), Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use InstructionSet::{AmxBf16, Avx512Bf16, Avx512F32};

    const BF16: Machine = Machine {
        native_bf16: true,
        can_bf16: true,
        kernels: &[Avx512Bf16, Avx512F32],
        libtorch: true,
        gpus: Err("no driver for GPUs is here (libcuda.so.1)"),
    };
    const AMX: Machine = Machine { kernels: &[AmxBf16, Avx512Bf16, Avx512F32], ..BF16 };
    /// AVX-512 without BF16: Intel Skylake-X, Ice Lake.
    const PLAIN: Machine = Machine { native_bf16: false, kernels: &[Avx512F32], ..BF16 };
    const SMALL: Machine = Machine { libtorch: false, ..BF16 };
    const SMALL_PLAIN: Machine = Machine { libtorch: false, ..PLAIN };
    const SMALL_OLD: Machine = Machine { libtorch: false, ..OLD };
    /// No more than AVX2.
    const OLD: Machine = Machine { can_bf16: false, kernels: &[], ..PLAIN };
    /// AVX2 with AVX-NE-CONVERT, as in Intel's small cores.
    const CONVERTS: Machine = Machine { can_bf16: true, ..OLD };

    fn preference(implementation: Option<Implementation>, dtype: Option<Dtype>) -> Preference {
        Preference { implementation, dtype, device: DeviceChoice::Auto, kernels: None }
    }

    #[test]
    fn the_plan_follows_the_wish_and_then_the_machine_and_the_model() {
        use Dtype::{BFloat16, Float32};
        use Implementation::{Fused, Packed, RustBert};
        let with = |kernels, wish| Preference { kernels: Some(kernels), ..wish };
        let (any, exact) = (preference(None, None), preference(None, Some(Float32)));
        let table = [
            (any, BF16, Fused, BFloat16, Some(Avx512Bf16)),
            (any, AMX, Fused, BFloat16, Some(AmxBf16)),
            (with(Avx512Bf16, any), AMX, Fused, BFloat16, Some(Avx512Bf16)),
            (with(Avx512F32, any), AMX, Fused, Float32, Some(Avx512F32)),
            (with(Avx512F32, exact), BF16, Fused, Float32, Some(Avx512F32)),
            (any, SMALL, Fused, BFloat16, Some(Avx512Bf16)),
            (exact, SMALL, Fused, Float32, Some(Avx512F32)),
            (any, SMALL_PLAIN, Fused, Float32, Some(Avx512F32)),
            (preference(Some(Packed), None), BF16, Packed, BFloat16, None),
            (preference(Some(Packed), Some(Float32)), BF16, Packed, Float32, None),
            (any, PLAIN, Fused, Float32, Some(Avx512F32)),
            (exact, BF16, Fused, Float32, Some(Avx512F32)),
            (exact, AMX, Fused, Float32, Some(Avx512F32)),
            (preference(Some(Fused), Some(Float32)), AMX, Fused, Float32, Some(Avx512F32)),
            (preference(None, Some(BFloat16)), BF16, Fused, BFloat16, Some(Avx512Bf16)),
            (preference(None, Some(BFloat16)), PLAIN, Packed, BFloat16, None),
            (preference(None, Some(BFloat16)), CONVERTS, Packed, BFloat16, None),
            (preference(Some(RustBert), None), BF16, RustBert, Float32, None),
            (any, OLD, Packed, Float32, None),
            (exact, OLD, Packed, Float32, None),
        ];
        for (wish, machine, implementation, dtype, kernels) in table {
            assert_eq!(
                Plan::decide(wish, machine).unwrap(),
                Plan { implementation, dtype, kernels, device: Device::Cpu },
                "{wish:?} {machine:?}"
            );
        }
    }

    #[test]
    fn gpus_compute_where_there_are_some_unless_something_of_the_cpu_is_asked_for() {
        use Dtype::{BFloat16, Float16, Float32};
        use Implementation::{Fused, Packed, RustBert};
        let with = |count, bfloat16| Machine { gpus: Ok(Gpus { count, bfloat16 }), ..AMX };
        let on = |device, implementation, dtype| Preference { device, ..preference(implementation, dtype) };
        let (auto, all, one) = (DeviceChoice::Auto, DeviceChoice::Cuda(None), DeviceChoice::Cuda(Some(1)));
        for (wish, machine, device, dtype) in [
            (on(auto, None, None), with(1, true), Device::Cuda(0, 1), BFloat16),
            (on(auto, None, None), with(2, false), Device::Cuda(0, 2), Float16),
            (on(all, None, Some(Float32)), with(4, true), Device::Cuda(0, 4), Float32),
            (on(one, Some(Packed), Some(Float16)), with(2, true), Device::Cuda(1, 1), Float16),
        ] {
            let plan = Plan { implementation: Packed, dtype, kernels: None, device };
            assert_eq!(Plan::decide(wish, machine).unwrap(), plan, "{wish:?}");
        }
        let kernels = Preference { kernels: Some(Avx512Bf16), ..preference(None, None) };
        for wish in [on(DeviceChoice::Cpu, None, None), on(auto, Some(Fused), None), kernels] {
            assert_eq!(Plan::decide(wish, with(1, true)).unwrap().device, Device::Cpu, "{wish:?}");
        }
        for (wish, machine, expected) in [
            (
                on(DeviceChoice::Cuda(Some(2)), None, None),
                with(2, true),
                "--device cuda:2: there are 2 GPUs, counted from 0",
            ),
            (
                on(all, Some(RustBert), None),
                with(1, true),
                "--device cuda: --implementation asks for what only CPUs have; leave it at auto",
            ),
            (
                Preference { device: all, ..kernels },
                with(1, true),
                "--device cuda: --kernels asks for what only CPUs have; leave it at auto",
            ),
            (
                on(DeviceChoice::Cpu, None, Some(Float16)),
                with(1, true),
                "--dtype float16: here only GPUs compute in it; use bfloat16 or float32",
            ),
        ] {
            assert_eq!(Plan::decide(wish, machine).unwrap_err().to_string(), expected);
        }
        let shown = [Device::Cpu, Device::Cuda(1, 1), Device::Cuda(0, 4)].map(|device| device.to_string());
        assert_eq!(shown, ["cpu", "cuda:1", "cuda:0-3"]);
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_what_to_do() {
        use Dtype::{BFloat16, Float32};
        use Implementation::{Fused, RustBert};
        let cuda = Preference { device: DeviceChoice::Cuda(Some(1)), ..preference(None, None) };
        let tiles = Preference { kernels: Some(AmxBf16), ..preference(None, None) };
        for (wish, machine, expected) in [
            (
                preference(None, Some(BFloat16)),
                OLD,
                "--dtype bfloat16: this CPU lacks what oneDNN needs for it (AVX-512 BW, VL and DQ, or AVX-NE-CONVERT); use --dtype float32",
            ),
            (
                preference(Some(RustBert), Some(BFloat16)),
                BF16,
                "--implementation rust_bert computes in float32 only; leave --dtype at auto or float32",
            ),
            (cuda, BF16, "--device cuda:1: no driver for GPUs is here (libcuda.so.1); use --device cpu"),
            (
                preference(Some(Fused), None),
                OLD,
                "--implementation fused: it needs AVX-512, which this CPU lacks; leave --implementation at auto",
            ),
            (
                preference(Some(Fused), Some(BFloat16)),
                PLAIN,
                "--implementation fused: it needs AVX-512 BF16 for bfloat16, which this CPU lacks; leave --implementation at auto",
            ),
            (
                preference(None, None),
                SMALL_OLD,
                "this build is without LibTorch, and its own kernels need AVX-512, which this CPU lacks; use the build with it, which serves every model on every CPU",
            ),
            (
                preference(None, Some(BFloat16)),
                SMALL_PLAIN,
                "this build is without LibTorch, and its own kernels need AVX-512 BF16 for bfloat16, which this CPU lacks; use the build with it, which serves every model on every CPU",
            ),
            (
                preference(Some(RustBert), None),
                SMALL,
                "this build is without LibTorch, and --implementation rust_bert needs it; use the build with it, which serves every model on every CPU",
            ),
            (
                Preference { kernels: Some(Avx512F32), ..preference(None, Some(BFloat16)) },
                BF16,
                "--kernels avx512_f32: they compute in float32, which --dtype does not ask for; leave one of the two at auto",
            ),
            (
                Preference { kernels: Some(Avx512Bf16), ..preference(None, Some(Float32)) },
                BF16,
                "--kernels avx512_bf16: they compute in bfloat16, which --dtype does not ask for; leave one of the two at auto",
            ),
            (
                tiles,
                BF16,
                "--kernels amx_bf16: this CPU has avx512_bf16 and avx512_f32; leave --kernels at auto",
            ),
            (
                tiles,
                OLD,
                "--kernels amx_bf16: this CPU has no instructions that it knows; leave --kernels at auto",
            ),
        ] {
            assert_eq!(Plan::decide(wish, machine).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn devices_are_named_as_in_pytorch() {
        for (text, device) in [
            ("auto", Ok(DeviceChoice::Auto)),
            ("cpu", Ok(DeviceChoice::Cpu)),
            ("cuda", Ok(DeviceChoice::Cuda(None))),
            ("cuda:3", Ok(DeviceChoice::Cuda(Some(3)))),
            ("cuda:x", Err("expected auto, cpu, cuda or cuda:N".to_owned())),
            ("gpu", Err("expected auto, cpu, cuda or cuda:N".to_owned())),
        ] {
            assert_eq!(text.parse(), device, "{text}");
        }
    }
}
