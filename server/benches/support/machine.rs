//! What the figures were measured on.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::read_to_string;

use serde_json::{Value, json};

/// CPU features that decide which kernels run.
const FEATURES: [&str; 7] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"];

/// How many CPUs this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether the CPU computes bfloat16 itself.
pub(crate) fn has_bf16(machine: &Value) -> bool {
    let features = machine["features"].as_array().into_iter().flatten().filter_map(Value::as_str);
    features.into_iter().any(|feature| feature.ends_with("bf16"))
}

/// The machine and the versions of what is compared.
pub(crate) fn describe() -> Value {
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        let line = cpuinfo.lines().find(|line| names.iter().any(|name| line.starts_with(name)))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let features: Vec<&str> =
        FEATURES.into_iter().filter(|feature| flags.split(' ').any(|flag| flag == *feature)).collect();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpu": field(&["model name", "CPU part"]).unwrap_or_else(|| "unknown".to_owned()),
        "family": field(&["cpu family", "CPU architecture"]),
        "model": field(&["model\t"]),
        "features": features,
        "cpus": cpus(),
        "load_average": load.split(' ').next(),
        "embedding-server": env!("CARGO_PKG_VERSION"),
        "rust-bert": locked("rust-bert"),
        "tch": locked("tch"),
        "libtorch": libtorch(),
    })
}

/// The same in a few lines for people.
pub(crate) fn paragraph(machine: &Value, peers: &BTreeMap<String, String>) -> String {
    let text = |name: &str| machine[name].as_str().unwrap_or("unknown").to_owned();
    let features: Vec<&str> =
        machine["features"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut lines = format!(
        "CPU: {} (family {}, model {}; {}), {} CPUs used, load average before: {}.\n",
        text("cpu"),
        text("family"),
        text("model"),
        features.join(" "),
        machine["cpus"],
        text("load_average"),
    );
    let _ = write!(
        lines,
        "Versions: embedding-server {}, rust-bert {}, tch {}, LibTorch {}",
        text("embedding-server"),
        text("rust-bert"),
        text("tch"),
        text("libtorch"),
    );
    for (name, version) in peers {
        let _ = write!(lines, ", {name} {version}");
    }
    lines.push_str(".\n");
    lines
}

/// The version of a package in Cargo.lock.
fn locked(name: &str) -> Option<&'static str> {
    let lock = include_str!("../../../Cargo.lock");
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{name}\"")).skip(1);
    lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')
}

/// The version that `LibTorch`'s own header tells.
fn libtorch() -> Option<String> {
    let header = format!("{}/include/torch/headeronly/version.h", std::env::var("LIBTORCH").ok()?);
    let header = read_to_string(header).ok()?;
    header.split("#define TORCH_VERSION \\").nth(1)?.split('"').nth(1).map(str::to_owned)
}
