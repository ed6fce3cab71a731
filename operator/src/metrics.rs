//! What is counted, under the names that dashboards for controllers know.

use std::time::Duration;

use kube::runtime::controller::Action;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::controller::Error;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    controller: &'static str,
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: String,
}

const CONTROLLER: &str = "embeddingmodel";

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    total: Family<Outcome, Counter>,
    errors: Family<Step, Counter>,
    time: Histogram,
    leader: Family<Name, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let total = Family::<Outcome, Counter>::default();
        registry.register(
            "controller_runtime_reconcile",
            "Reconciles by their result: success, requeue_after or error",
            total.clone(),
        );
        let errors = Family::<Step, Counter>::default();
        registry.register(
            "controller_runtime_reconcile_errors",
            "Reconciles that failed, by the step that did",
            errors.clone(),
        );
        // From 5 ms to 80 s.
        let time = Histogram::new(exponential_buckets(0.005, 2.0, 15));
        registry.register(
            "controller_runtime_reconcile_time_seconds",
            "How long a reconcile takes",
            time.clone(),
        );
        let leader = Family::<Name, Gauge>::default();
        registry.register(
            "leader_election_master_status",
            "1 while this replica holds the lease, else 0",
            leader.clone(),
        );
        Self { registry, total, errors, time, leader }
    }

    /// A reconcile ended.
    pub fn reconciled(&self, result: &Result<Action, Error>, took: Duration) {
        self.time.observe(took.as_secs_f64());
        let label = match result {
            Ok(action) if *action == Action::await_change() => "success",
            Ok(_) => "requeue_after",
            Err(error) => {
                self.errors.get_or_create(&Step { controller: CONTROLLER, step: error.step() }).inc();
                "error"
            }
        };
        self.total.get_or_create(&Outcome { controller: CONTROLLER, result: label }).inc();
    }

    /// Whether this replica holds the lease of that name.
    pub fn leads(&self, lease: &str, leads: bool) {
        self.leader.get_or_create(&Name { name: lease.to_owned() }).set(leads.into());
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
