//! What several test files share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "each test binary is its own crate")]

pub mod process;
pub mod tiny;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use embedding_server::embedder::{About, Limits};
use embedding_server::http::{self, Shared};
use embedding_server::metrics::Metrics;
use embedding_server::model::fake::{Fake, Words};
use embedding_server::model::{DeviceChoice, Dtype, Implementation, Plan, Preference};
use embedding_server::models::{Loaded, Models, Settings};
use embedding_server::tokenize::Pool;
use embedding_server::worker::Threads;

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

/// Settings of a small server.
pub fn settings() -> Settings {
    Settings {
        preference: Preference { implementation: None, dtype: None, device: DeviceChoice::Auto },
        threads: Threads { workers: 2, per_worker: 1 },
        max_batch_tokens: 1024,
        limits: Limits { max_texts: 100, max_waiting_texts: 150 },
    }
}

/// What the HTTP surface of a small server allows.
pub fn http_settings() -> http::Settings {
    http::Settings {
        max_body_bytes: 10_000,
        max_concurrent_requests: 0,
        request_timeout: Duration::from_mins(1),
        forward_deadline: Duration::from_mins(1),
        cors_origins: Vec::new(),
    }
}

/// A fake model of 4 dimensions whose texts are cut at 8 tokens.
pub fn loaded(fake: &Fake) -> Loaded {
    Loaded {
        model: Box::new(fake.clone()),
        tokenizer: Arc::new(Words { max_tokens: 8 }),
        about: About {
            architecture: "fake",
            plan: Plan { implementation: Implementation::Fake, dtype: Dtype::Float32 },
            dimensions: 4,
            max_tokens: 8,
            pooling: "mean",
            source: "org/fake@0000".into(),
        },
    }
}

/// What a handler sees, with a fake model for each name.
pub fn shared(fakes: &[(&str, Fake)], settings: &Settings, http: http::Settings) -> Arc<Shared> {
    let metrics = Arc::new(Metrics::new());
    let models = Models::new(fakes.iter().map(|(name, _)| *name));
    let pool = Arc::new(Pool::new(2).unwrap());
    for (name, fake) in fakes {
        models.serve(name, loaded(fake), settings, &pool, &metrics).unwrap();
    }
    Shared::new(models, metrics, http)
}
