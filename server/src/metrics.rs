//! Every metric that the server exports, declared together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::batcher::{Lane, Why};
use crate::embedder::Text;
use crate::worker::Report;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BatchLabels {
    model: String,
    why: WhyLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    model: String,
    lane: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as the variants are named")]
enum WhyLabel {
    drained,
    shared,
    full,
}

/// All metrics. Each field's meaning is its help text in [`Metrics::new`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<PathLabel, Histogram>,
    in_flight: Gauge,
    connections: Gauge,
    texts: Family<ModelLabel, Counter>,
    tokens: Family<ModelLabel, Counter>,
    truncated: Family<ModelLabel, Counter>,
    chunked: Family<ModelLabel, Counter>,
    had_prompt: Family<ModelLabel, Counter>,
    rejected: Family<ModelLabel, Counter>,
    cache_hits: Family<ModelLabel, Counter>,
    cache_misses: Family<ModelLabel, Counter>,
    cache_bytes: Gauge,
    cache_entries: Gauge,
    batches: Family<BatchLabels, Counter>,
    batch_texts: Family<ModelLabel, Histogram>,
    batch_tokens: Family<ModelLabel, Histogram>,
    batch_seconds: Family<ModelLabel, Histogram>,
    waiting_texts: Family<ModelLabel, Gauge>,
    waiting_tokens: Family<ModelLabel, Gauge>,
    lane_waiting_texts: Family<LaneLabels, Gauge>,
    lane_waiting_tokens: Family<LaneLabels, Gauge>,
    waited_seconds: Family<LaneLabels, Histogram>,
    ready: Family<ModelLabel, Gauge>,
    /// The models that were told of at the last scrape.
    told: Mutex<Vec<String>>,
}

/// What a model is at.
#[derive(Clone, Copy, Debug)]
pub struct ModelStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it can embed.
    pub ready: bool,
    /// (texts, tokens) that wait in each of [`Lane::ALL`].
    pub waiting: [(usize, usize); 2],
}

/// From a millisecond (one short text) to two minutes (a bulk request).
const SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0, 120.0];
/// Powers of two: batches are as large as the load makes them.
const TEXTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const TOKENS: [f64; 9] = [16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16384.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Declares every metric.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("embedding");
        let metrics = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            texts: Family::default(),
            tokens: Family::default(),
            truncated: Family::default(),
            chunked: Family::default(),
            had_prompt: Family::default(),
            rejected: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            cache_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            batches: Family::default(),
            batch_texts: Family::new_with_constructor(|| Histogram::new(TEXTS)),
            batch_tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
            batch_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            waiting_texts: Family::default(),
            waiting_tokens: Family::default(),
            lane_waiting_texts: Family::default(),
            lane_waiting_tokens: Family::default(),
            waited_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            ready: Family::default(),
            told: Mutex::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The server's version", version);
        registry.register("http_requests", "Requests answered", m.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            m.request_seconds.clone(),
        );
        registry.register("http_requests_in_flight", "Requests under way", m.in_flight.clone());
        registry.register("http_connections", "Open connections", m.connections.clone());
        registry.register("texts", "Texts embedded", m.texts.clone());
        registry.register("tokens", "Tokens embedded, special tokens included", m.tokens.clone());
        registry.register("truncated_texts", "Texts cut at the model's limit", m.truncated.clone());
        registry.register("chunked_texts", "Texts embedded in several pieces", m.chunked.clone());
        registry.register(
            "texts_with_prompt",
            "Texts that began with their prompt, which was not put before them again",
            m.had_prompt.clone(),
        );
        registry.register(
            "rejected_requests",
            "Requests refused because too many texts were waiting",
            m.rejected.clone(),
        );
        registry.register(
            "cache_hits",
            "Texts whose vector was kept, or made for another request",
            m.cache_hits.clone(),
        );
        registry.register("cache_misses", "Texts whose vector was not kept", m.cache_misses.clone());
        registry.register("cache_bytes", "Bytes of the vectors that are kept, about", m.cache_bytes.clone());
        registry.register("cache_entries", "Vectors that are kept", m.cache_entries.clone());
        registry.register("batches", "Forwards, by why the batch had its size", m.batches.clone());
        registry.register("batch_texts", "Texts in a forward", m.batch_texts.clone());
        registry.register("batch_tokens", "Tokens in a forward", m.batch_tokens.clone());
        registry.register_with_unit(
            "batch_duration",
            "Time of a forward",
            Unit::Seconds,
            m.batch_seconds.clone(),
        );
        registry.register("waiting_texts", "Texts in line before the workers", m.waiting_texts.clone());
        registry.register("waiting_tokens", "Tokens in line before the workers", m.waiting_tokens.clone());
        registry.register(
            "lane_waiting_texts",
            "Texts in line before the workers, by how urgent they are",
            m.lane_waiting_texts.clone(),
        );
        registry.register(
            "lane_waiting_tokens",
            "Tokens in line before the workers, by how urgent they are",
            m.lane_waiting_tokens.clone(),
        );
        registry.register_with_unit(
            "batch_waited",
            "How long the text of a forward that had waited longest had been in line",
            Unit::Seconds,
            m.waited_seconds.clone(),
        );
        registry.register("model_ready", "Whether the model can embed (1) or not (0)", m.ready.clone());
        Self { registry, ..metrics }
    }

    /// A request came in; drop the guard when it is answered.
    pub fn begin_request(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A connection was opened; drop the guard when it is closed.
    pub fn begin_connection(&self) -> InFlight {
        self.connections.inc();
        InFlight(self.connections.clone())
    }

    /// A request was answered. `path` is the route's pattern, never what was typed.
    pub fn request(&self, method: &'static str, path: &str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, path: path.to_owned(), status }).inc();
        self.request_seconds.get_or_create(&PathLabel { path: path.to_owned() }).observe(took.as_secs_f64());
    }

    /// A model embedded a request's texts.
    pub fn embedded(&self, model: &str, texts: &[Text]) {
        let label = ModelLabel { model: model.to_owned() };
        let count = |is: &dyn Fn(&Text) -> bool| texts.iter().filter(|text| is(text)).count() as u64;
        self.texts.get_or_create(&label).inc_by(texts.len() as u64);
        self.tokens.get_or_create(&label).inc_by(texts.iter().map(|text| text.tokens as u64).sum());
        self.truncated.get_or_create(&label).inc_by(count(&|text| text.truncated));
        self.chunked.get_or_create(&label).inc_by(count(&|text| text.pieces > 1));
        self.had_prompt.get_or_create(&label).inc_by(count(&|text| text.had_prompt));
    }

    /// A model refused a request because too much waits.
    pub fn rejected(&self, model: &str) {
        self.rejected.get_or_create(&ModelLabel { model: model.to_owned() }).inc();
    }

    /// So many of a request's texts had a vector that was kept, or not.
    pub fn looked_up(&self, model: &str, hits: usize, misses: usize) {
        let label = ModelLabel { model: model.to_owned() };
        self.cache_hits.get_or_create(&label).inc_by(hits as u64);
        self.cache_misses.get_or_create(&label).inc_by(misses as u64);
    }

    /// How full the cache is, as of this scrape.
    pub fn cache(&self, entries: usize, bytes: u64) {
        self.cache_entries.set(entries as i64);
        self.cache_bytes.set(bytes as i64);
    }

    /// A worker finished a batch.
    pub fn batch(&self, model: &str, report: &Report) {
        let why = match report.why {
            Why::Drained => WhyLabel::drained,
            Why::Shared => WhyLabel::shared,
            Why::Full => WhyLabel::full,
        };
        self.batches.get_or_create(&BatchLabels { model: model.to_owned(), why }).inc();
        let label = ModelLabel { model: model.to_owned() };
        self.batch_texts.get_or_create(&label).observe(report.texts as f64);
        self.batch_tokens.get_or_create(&label).observe(report.tokens as f64);
        self.batch_seconds.get_or_create(&label).observe(report.took.as_secs_f64());
        let label = LaneLabels { model: model.to_owned(), lane: report.lane.name() };
        self.waited_seconds.get_or_create(&label).observe(report.waited.as_secs_f64());
    }

    /// What each model is at, as of this scrape; of those that are gone, nothing.
    pub fn models(&self, models: &[ModelStatus<'_>]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in told.iter().filter(|name| models.iter().all(|model| model.name != **name)) {
            let label = ModelLabel { model: gone.clone() };
            for gauges in [&self.ready, &self.waiting_texts, &self.waiting_tokens] {
                gauges.remove(&label);
            }
            for lane in Lane::ALL {
                let label = LaneLabels { model: gone.clone(), lane: lane.name() };
                self.lane_waiting_texts.remove(&label);
                self.lane_waiting_tokens.remove(&label);
            }
        }
        for model in models {
            self.model(model.name, model.ready, model.waiting);
        }
        *told = models.iter().map(|model| model.name.to_owned()).collect();
    }

    fn model(&self, model: &str, ready: bool, waiting: [(usize, usize); 2]) {
        let label = ModelLabel { model: model.to_owned() };
        self.ready.get_or_create(&label).set(i64::from(ready));
        self.waiting_texts.get_or_create(&label).set(waiting.iter().map(|(texts, _)| *texts as i64).sum());
        self.waiting_tokens.get_or_create(&label).set(waiting.iter().map(|(_, tokens)| *tokens as i64).sum());
        for (lane, (texts, tokens)) in Lane::ALL.into_iter().zip(waiting) {
            let label = LaneLabels { model: model.to_owned(), lane: lane.name() };
            self.lane_waiting_texts.get_or_create(&label).set(texts as i64);
            self.lane_waiting_tokens.get_or_create(&label).set(tokens as i64);
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Counts down what [`Metrics::begin_request`] or [`Metrics::begin_connection`] counted up.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
