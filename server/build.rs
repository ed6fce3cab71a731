//! Compiles the bridge to `LibTorch` operators that tch does not bind, and tells
//! the linker where this build's `LibTorch` is.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        println!("cargo:rerun-if-changed=build.rs");
        return;
    }
    println!("cargo:rerun-if-changed=native");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // `.libtorch` is a link into the user's cache: binaries keep the real path,
    // so that they still start when the checkout moves.
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).and_then(|dir| fs::canonicalize(dir).ok());
    let Some(libtorch) = libtorch.filter(|dir| dir.join("include").is_dir()) else {
        println!("cargo:warning=LibTorch is not there yet; run `make libtorch` (or set LIBTORCH)");
        std::process::exit(1);
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include("native")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .file("native/bridge.cpp")
        .compile("embedding_bridge");
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Images keep the libraries beside the binary; a build machine has them where
    // `make libtorch` put them. Those for GPUs are loaded when the program runs.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{0}:{0}/gpu", lib.display());
}
