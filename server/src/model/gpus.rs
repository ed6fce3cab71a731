//! GPUs by NVIDIA: whether `LibTorch` can use any, decided once.
//!
//! The server is linked to the part of `LibTorch` that computes on CPUs. The part for GPUs, `libtorch_cuda.so`, is
//! loaded when it is wanted, if it is there: beside the program's other libraries, or where `LD_LIBRARY_PATH` leads.
//! So one program serves on both, and does not load gigabytes for nothing. It has to be done before `LibTorch` is
//! asked for a GPU for the first time: it remembers the answer.
#![expect(unsafe_code, reason = "loads libraries, and calls the driver")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The part of `LibTorch` that computes on GPUs.
const LIBRARY: &str = "libtorch_cuda.so";
/// What parts of cuDNN need of the system.
const COMPRESSION: &str = "libz.so.1";
/// The driver, whose interface is stable (CUDA driver API).
const DRIVER: &str = "libcuda.so.1";

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// The oldest compute capability that CUDA 13 has code for (Turing).
const OLDEST: (i32, i32) = (7, 5);

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// What its maker calls it.
    pub name: String,
    /// Its compute capability, as in 9.0.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub memory: u64,
}

impl Gpu {
    /// Whether it multiplies bfloat16 natively, and can run flash attention (Ampere and later).
    pub const fn is_modern(&self) -> bool {
        self.capability.0 >= 8
    }
}

/// Why there are none.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    /// The machine has none.
    None(String),
    /// It has some, and they cannot be used.
    Unusable(String),
}

static FOUND: OnceLock<Result<Vec<Gpu>, Missing>> = OnceLock::new();

fn told(found: &'static Result<Vec<Gpu>, Missing>) -> Result<&'static [Gpu], &'static str> {
    found.as_deref().map_err(|missing| match missing {
        Missing::None(why) | Missing::Unusable(why) => why.as_str(),
    })
}

/// Those that `LibTorch` can use, or why there are none. Loads what is needed for it the first time.
pub fn load() -> Result<&'static [Gpu], &'static str> {
    told(FOUND.get_or_init(find))
}

/// The same, where [`load`] was called.
pub fn loaded() -> Result<&'static [Gpu], &'static str> {
    FOUND.get().map_or(Err("GPUs were not looked for"), told)
}

/// Why the machine's GPUs cannot be used, where it has some and they were looked for.
pub fn refused() -> Option<&'static str> {
    match FOUND.get() {
        Some(Err(Missing::Unusable(why))) => Some(why),
        _ => None,
    }
}

fn find() -> Result<Vec<Gpu>, Missing> {
    let gpus = driver_gpus()?;
    if gpus.is_empty() {
        return Err(Missing::None("the driver sees no GPU".to_owned()));
    }
    usable(gpus).map_err(Missing::Unusable)
}

fn usable(gpus: Vec<Gpu>) -> Result<Vec<Gpu>, String> {
    // cuDNN loads its parts when it is first asked, and ends the process where one of them lacks it.
    // SAFETY: the system's; it does nothing when it is loaded.
    let compression = unsafe { Library::open(Some(COMPRESSION), RTLD_NOW) };
    std::mem::forget(compression.map_err(|_| {
        format!("{COMPRESSION}, which cuDNN needs, is not here (Debian: apt install zlib1g)")
    })?);
    // SAFETY: the library is LibTorch's own, of the version that we were linked to; what it does when it is loaded is
    // to register its operators.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        let why = crate::models::one_line(&error);
        format!("LibTorch's part for GPUs cannot be loaded ({why}): TORCH_CUDA_VERSION=cu130 make libtorch brings it")
    })?;
    // What it has registered stays, so it has to stay, too.
    std::mem::forget(library);
    let usable = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if usable == 0 {
        return Err("LibTorch can use none of them: is the driver too old for its CUDA?".to_owned());
    }
    recent(gpus.into_iter().take(usable))
}

/// Those before the first that is too old: GPUs are used by ranges of their indices. CUDA counts the fastest first.
fn recent(gpus: impl IntoIterator<Item = Gpu>) -> Result<Vec<Gpu>, String> {
    let mut found = Vec::new();
    for gpu in gpus {
        let Gpu { ref name, capability: (major, minor), .. } = gpu;
        if (major, minor) < OLDEST {
            let why = format!(
                "{name} has compute capability {major}.{minor}, and LibTorch's part for GPUs needs {}.{}",
                OLDEST.0, OLDEST.1
            );
            if found.is_empty() {
                return Err(why);
            }
            tracing::warn!("this GPU, and those after it, are not used: {why}");
            break;
        }
        found.push(gpu);
    }
    Ok(found)
}

/// What the driver's result at its start means, where it fails.
fn failure(code: c_int, what: &str) -> Missing {
    match code {
        NO_DEVICE => Missing::None("the driver sees no GPU".to_owned()),
        _ => Missing::Unusable(format!("the driver fails at {what} with its error {code}")),
    }
}

/// A function of the driver; its result is 0 where all went well.
macro_rules! driver {
    ($library:ident, $name:literal, fn($($argument:ty),*)) => {{
        // SAFETY: the driver's interface says that it has this type.
        unsafe { $library.get::<unsafe extern "C" fn($($argument),*) -> c_int>($name) }
            .map_err(|error| Missing::Unusable(format!("the driver is not as expected: {error}")))?
    }};
}

/// What the driver tells, which is less work for it than for `LibTorch`. `CUDA_VISIBLE_DEVICES` counts.
fn driver_gpus() -> Result<Vec<Gpu>, Missing> {
    /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `…_MINOR`.
    const CAPABILITY: [c_int; 2] = [75, 76];
    // SAFETY: the driver of the system; it does nothing before it is initialised.
    let library = unsafe { Library::open(Some(DRIVER), RTLD_NOW) }
        .map_err(|_| Missing::None(format!("no driver for GPUs is here ({DRIVER})")))?;
    let init = driver!(library, b"cuInit", fn(u32));
    let count = driver!(library, b"cuDeviceGetCount", fn(*mut c_int));
    let get = driver!(library, b"cuDeviceGet", fn(*mut c_int, c_int));
    let name = driver!(library, b"cuDeviceGetName", fn(*mut c_char, c_int, c_int));
    let attribute = driver!(library, b"cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int));
    let memory = driver!(library, b"cuDeviceTotalMem_v2", fn(*mut usize, c_int));
    let check = |code: c_int, what: &str| match code {
        0 => Ok(()),
        code => Err(failure(code, what)),
    };
    let mut gpus = Vec::new();
    // SAFETY: each call gets places that live, of the size that it is told.
    unsafe {
        check(init(0), "starting")?;
        let mut found = 0;
        check(count(&raw mut found), "counting GPUs")?;
        for index in 0..found {
            let mut device = 0;
            check(get(&raw mut device, index), "finding a GPU")?;
            let mut text = [0; 256];
            check(name(text.as_mut_ptr(), 255, device), "naming a GPU")?;
            let name = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
            let mut capability = [0; 2];
            for (value, which) in capability.iter_mut().zip(CAPABILITY) {
                check(attribute(value, which, device), "asking a GPU what it can do")?;
            }
            let mut bytes = 0;
            check(memory(&raw mut bytes, device), "asking a GPU for its memory")?;
            gpus.push(Gpu { name, capability: (capability[0], capability[1]), memory: bytes as u64 });
        }
    }
    std::mem::forget(library);
    Ok(gpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, capability: (i32, i32)) -> Gpu {
        Gpu { name: name.into(), capability, memory: 1 << 30 }
    }

    #[test]
    fn gpus_that_are_too_old_are_not_used() {
        let names =
            |gpus: &[Gpu]| recent(gpus.to_vec()).map(|gpus| gpus.into_iter().map(|gpu| gpu.name).collect());
        let (new, turing, old) = (gpu("new", (9, 0)), gpu("turing", (7, 5)), gpu("old", (7, 0)));
        assert_eq!(names(&[new.clone(), turing]), Ok(vec!["new".to_owned(), "turing".to_owned()]));
        assert_eq!(names(&[new, old.clone()]), Ok(vec!["new".to_owned()]));
        let why = "old has compute capability 7.0, and LibTorch's part for GPUs needs 7.5";
        assert_eq!(names(&[old]), Err::<Vec<String>, _>(why.to_owned()));
    }

    #[test]
    fn a_driver_that_fails_is_no_machine_without_gpus() {
        assert!(matches!(failure(100, "starting"), Missing::None(_)));
        let why = "the driver fails at starting with its error 803".to_owned();
        assert_eq!(failure(803, "starting"), Missing::Unusable(why));
    }

    #[test]
    fn what_there_is_or_why_not_is_found_once() {
        let found = load();
        assert_eq!(found, load());
        assert_eq!(found, loaded());
        match found {
            Ok(gpus) => assert!(!gpus.is_empty() && gpus.iter().all(|gpu| gpu.memory > 0), "{gpus:?}"),
            Err(why) => assert!(why.contains("driver") || why.contains("LibTorch"), "{why}"),
        }
    }
}
