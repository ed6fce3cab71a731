//! What is counted, under the names that dashboards for controllers know.

use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::controller::Error;
use crate::crd::EmbeddingModel;
use crate::crd::status::{ConditionType, EmbeddingModelStatus};

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
struct Of {
    controller: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelCondition {
    namespace: String,
    name: String,
    r#type: &'static str,
}

impl ModelCondition {
    fn new(model: &ObjectRef<EmbeddingModel>, type_: ConditionType) -> Self {
        let namespace = model.namespace.clone().unwrap_or_default();
        Self { namespace, name: model.name.clone(), r#type: type_.name() }
    }
}

const CONTROLLER: &str = "embeddingmodel";

/// A reconcile that is under way.
#[derive(Debug)]
pub struct Active(Gauge);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    total: Family<Outcome, Counter>,
    errors: Family<Step, Counter>,
    active: Gauge,
    limit: Gauge,
    time: Family<Of, Histogram, fn() -> Histogram>,
    leader: Family<Name, Gauge>,
    conditions: Family<ModelCondition, Gauge>,
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
        let (active, limit) = (Family::<Of, Gauge>::default(), Family::<Of, Gauge>::default());
        registry.register("controller_runtime_active_workers", "Reconciles under way", active.clone());
        registry.register(
            "controller_runtime_max_concurrent_reconciles",
            "The most reconciles under way at once",
            limit.clone(),
        );
        let (active, limit) = (
            active.get_or_create(&Of { controller: CONTROLLER }).clone(),
            limit.get_or_create(&Of { controller: CONTROLLER }).clone(),
        );
        // From 5 ms to 80 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.005, 2.0, 15));
        let time = Family::new_with_constructor(histogram);
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
        let conditions = Family::<ModelCondition, Gauge>::default();
        registry.register(
            "embedding_operator_model_condition",
            "1 while an EmbeddingModel has this condition, else 0",
            conditions.clone(),
        );
        // What never happened is 0, so that its first time is an increase.
        for result in ["success", "requeue_after", "error"] {
            drop(total.get_or_create(&Outcome { controller: CONTROLLER, result }));
        }
        for step in ["observe", "apply", "report"] {
            drop(errors.get_or_create(&Step { controller: CONTROLLER, step }));
        }
        Self { registry, total, errors, active, limit, time, leader, conditions }
    }

    /// A reconcile begins. It is under way until what this gives is dropped.
    pub fn begins(&self) -> Active {
        self.active.inc();
        Active(self.active.clone())
    }

    /// Reconciles under way.
    pub fn active(&self) -> i64 {
        self.active.get()
    }

    /// How many there may be at once.
    pub fn limit(&self, limit: u16) {
        self.limit.set(limit.into());
    }

    /// A reconcile ended.
    pub fn reconciled(&self, result: &Result<Action, Error>, took: Duration) {
        self.time.get_or_create(&Of { controller: CONTROLLER }).observe(took.as_secs_f64());
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

    /// What the conditions of a model are.
    pub fn set_conditions(&self, model: &ObjectRef<EmbeddingModel>, status: &EmbeddingModelStatus) {
        for type_ in ConditionType::ALL {
            let holds = status.holds(type_);
            self.conditions.get_or_create(&ModelCondition::new(model, type_)).set(holds.into());
        }
    }

    /// A model is gone.
    pub fn forget(&self, model: &ObjectRef<EmbeddingModel>) {
        for type_ in ConditionType::ALL {
            self.conditions.remove(&ModelCondition::new(model, type_));
        }
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_told_until_the_model_is_gone() {
        let metrics = Metrics::new();
        let conditions = |ready: &str| {
            let ready = json!({"type": "Ready", "status": ready, "reason": "x", "message": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            serde_json::from_value::<EmbeddingModelStatus>(json!({"conditions": [ready]})).unwrap()
        };
        let samples = || {
            let text = metrics.text();
            let samples = text.lines().filter(|line| line.starts_with("embedding_operator_model_condition{"));
            let mut samples: Vec<String> = samples.map(str::to_owned).collect();
            samples.sort_unstable();
            samples
        };
        let model = |name: &str| ObjectRef::new(name).within("search");
        metrics.set_conditions(&model("one"), &conditions("True"));
        metrics.set_conditions(&model("two"), &conditions("False"));
        let ready = |name: &str| {
            format!(
                "embedding_operator_model_condition{{namespace=\"search\",name=\"{name}\",type=\"Ready\"}} "
            )
        };
        let told = samples();
        assert_eq!(told.len(), 2 * ConditionType::ALL.len(), "{told:#?}");
        assert!(told.contains(&(ready("one") + "1")) && told.contains(&(ready("two") + "0")), "{told:#?}");
        assert_eq!(told.iter().filter(|sample| sample.ends_with(" 1")).count(), 1, "{told:#?}");

        metrics.set_conditions(&model("one"), &conditions("Unknown"));
        metrics.forget(&model("two"));
        let told = samples();
        assert_eq!(told.len(), ConditionType::ALL.len(), "{told:#?}");
        assert!(told.contains(&(ready("one") + "0")), "{told:#?}");
    }
}
