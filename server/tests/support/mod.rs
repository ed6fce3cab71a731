//! What several test files share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "each test binary is its own crate")]

pub mod ask;
pub mod directory;
pub mod golden;
pub mod process;
pub mod tiny;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use embedding_server::embedder::{About, Limits};
use embedding_server::http::{self, Shared};
use embedding_server::metrics::Metrics;
use embedding_server::model::fake::{Fake, Words};
use embedding_server::model::{DeviceChoice, Dtype, Implementation, Plan, Preference};
use embedding_server::models::{Loaded, Models, Settings};
use embedding_server::options::Offer;
use embedding_server::scores::{Activation, Classifier, Kind};
use embedding_server::space::Base;
use embedding_server::token_ids::TokenIds;
use embedding_server::tokenize::{Overflow, Pool};
use embedding_server::worker::Threads;
use serde_json::Value;

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
        preference: Preference {
            implementation: None,
            dtype: None,
            device: DeviceChoice::Auto,
            kernels: None,
        },
        threads: Threads { workers: 2, per_worker: 1 },
        forwards_on_gpu: 2,
        max_batch_tokens: Some(1024),
        limits: Limits { max_texts: 100, max_waiting_texts: 150 },
    }
}

/// What the HTTP surface of a small server allows.
pub fn http_settings() -> http::Settings {
    http::Settings {
        max_body_bytes: 10_000,
        max_texts: 10_000,
        max_concurrent_requests: 0,
        request_timeout: Duration::from_mins(1),
        forward_deadline: Duration::from_mins(1),
        cache_bytes: 0,
        token_ids: TokenIds::Refuse,
        cors_origins: Vec::new(),
        pages: true,
    }
}

/// A fake model of 4 dimensions whose texts are cut at 8 tokens.
pub fn loaded(fake: &Fake) -> Loaded {
    Loaded {
        models: vec![Box::new(fake.clone())],
        tokenizer: Arc::new(Words { max_tokens: 8 }),
        about: About {
            architecture: "fake",
            kind: Kind::Embedding,
            plan: Plan::on_cpu(Implementation::Fake, Dtype::Float32),
            dimensions: 4,
            max_tokens: 8,
            pooling: "mean".to_owned(),
            source: "org/fake@0000".into(),
            offer: offer(),
        },
    }
}

/// A fake cross-encoder with labels of these names, whose pairs are cut at 12 tokens.
pub fn loaded_scoring(labels: &[&str]) -> Loaded {
    let Loaded { about, .. } = loaded(&Fake::scoring(labels.len()));
    let classifier = Classifier {
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        activation: Activation::Sigmoid,
    };
    let about = About {
        kind: Kind::CrossEncoder(classifier),
        dimensions: labels.len(),
        max_tokens: 12,
        offer: Offer { dimensions: vec![labels.len()], prompts: BTreeMap::new(), ..about.offer },
        ..about
    };
    Loaded {
        models: vec![Box::new(Fake::scoring(labels.len()))],
        tokenizer: Arc::new(Words { max_tokens: 12 }),
        about,
    }
}

/// What requests may ask of it: two prompts, and half of its dimensions.
pub fn offer() -> Offer {
    Offer {
        prompts: [("query", "q: "), ("passage", "p: ")].map(|(name, text)| (name.into(), text.into())).into(),
        default_prompt: None,
        include_prompt: true,
        require_input_type: false,
        overflow: Overflow::TruncateEnd,
        dimensions: vec![2, 4],
        normalizes: false,
        space: Base::of_test("fake"),
    }
}

/// The directory of a small cross-encoder: with `one` label, or with `several`.
pub fn cross_encoder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cross_encoder").join(name)
}

/// Pairs of texts, and what Python makes of them by these cross-encoders.
pub fn python() -> Value {
    let path = cross_encoder("scores.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Models of these names, and other names, with their workers.
pub fn serving<'a>(
    settings: &Settings,
    models: impl IntoIterator<Item = (&'a str, &'a [String], Loaded)>,
) -> (Arc<Models>, Arc<Metrics>) {
    let (names, loaded): (Vec<_>, Vec<_>) =
        models.into_iter().map(|(name, aliases, loaded)| ((name, aliases), loaded)).unzip();
    let (models, metrics) = (Models::with_aliases(names.iter().copied()), Arc::new(Metrics::new()));
    let pool = Arc::new(Pool::new(2).unwrap());
    for ((name, _), loaded) in names.into_iter().zip(loaded) {
        models.serve(&models.slot(name).unwrap(), loaded, settings, &pool, &metrics).unwrap();
    }
    (models, metrics)
}

/// A model of that name, with its workers.
pub fn in_service(name: &str, loaded: Loaded) -> (Arc<Models>, Arc<Metrics>) {
    serving(&settings(), [(name, [].as_slice(), loaded)])
}

/// What a handler sees, with a fake model for each name.
pub fn shared(fakes: &[(&str, Fake)], settings: &Settings, http: http::Settings) -> Arc<Shared> {
    let fakes = fakes.iter().map(|(name, fake)| (*name, [].as_slice(), loaded(fake)));
    let (models, metrics) = serving(settings, fakes);
    Shared::new(models, metrics, http)
}
