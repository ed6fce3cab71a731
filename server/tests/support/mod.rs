//! What several test files share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;

/// The directory of the real all-MiniLM-L6-v2.
pub fn minilm() -> PathBuf {
    let cache = std::env::var_os("RUSTBERT_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/.rustbert"),
        PathBuf::from,
    );
    let directory = cache
        .join("models--sentence-transformers--all-MiniLM-L6-v2")
        .join("c9745ed1d9f207416be6d2e6f8de32d1f16199bf");
    assert!(directory.is_dir(), "the tests need the real model in {}: run `make model`", directory.display());
    directory
}

/// The cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different dimensions");
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
