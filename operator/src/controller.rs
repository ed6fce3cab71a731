//! Reconciling: observe → validate → build → apply → report.
//!
//! ```text
//! EmbeddingModel ─▶ observe ─▶ validate ─▶ build ─▶ apply ─┐
//!                   (I/O)      (pure)      (pure)   (I/O)  │
//!                      └────────── any Error ──────────────┤
//!                                Outcome ─▶ report ─▶ one status write, requeue
//! ```
//!
//! Errors are values that reach `report`, so the status always tells the truth. There is no
//! finalizer: owner references collect what was made for a model, and a retained cache is a
//! claim without one.

pub mod apply;
pub mod build;
pub mod diagnose;
pub mod events;
pub mod fetched;
pub mod object;
pub mod observe;
pub mod report;
pub mod same;
pub mod space;
pub mod validate;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use rand::Rng as _;
use serde_json::json;
use tokio::sync::Semaphore;

use self::build::names;
use self::fetched::State;
use self::object::Kind;
use self::report::Outcome;
use self::validate::Refusal;
use crate::config::Config;
use crate::crd::EmbeddingModel;
use crate::crd::status::{ConditionType, EmbeddingModelStatus, Reason};
use crate::metrics::Metrics;
use crate::mutex::lock;

/// How long until a model in order is looked at again, for what no watch tells.
const RESYNC: Duration = Duration::from_mins(10);
/// How long until a model on its way is looked at again: causes of trouble are told by
/// events, which are not watched.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long until what was refused is looked at again: what it refers to may have come.
const REFUSED: Duration = Duration::from_secs(15);
/// How long until a model that needs help is looked at again. What is watched tells earlier
/// when that came; this is for what only events tell.
const STALLED: Duration = Duration::from_secs(30);
/// So many errors in a row may be a moment's.
const SHORT: u32 = 3;
/// The longest wait after errors in a row.
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// What all reconciles share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// How the operator is configured.
    pub config: Config,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    recorder: Recorder,
    /// Errors in a row, by model.
    failures: Mutex<HashMap<ObjectRef<EmbeddingModel>, u32>>,
    /// Models as they were when their status was written last, until the watch shows that.
    written: Mutex<HashMap<ObjectRef<EmbeddingModel>, EmbeddingModel>>,
    /// How far fetches are, and when that was asked.
    progress: Mutex<HashMap<ObjectRef<EmbeddingModel>, (Instant, Option<observe::Progress>)>>,
}

impl Context {
    /// For one client.
    pub fn new(client: Client, config: Config, metrics: Arc<Metrics>) -> Arc<Self> {
        let reporter = Reporter { controller: names::FIELD_MANAGER.into(), instance: None };
        let recorder = Recorder::new(client.clone(), reporter);
        Arc::new(Self {
            client,
            config,
            metrics,
            recorder,
            failures: Mutex::default(),
            written: Mutex::default(),
            progress: Mutex::default(),
        })
    }

    /// The status that the model has: the watch may lag behind what was written.
    fn status_of(&self, model: &EmbeddingModel) -> Option<EmbeddingModelStatus> {
        let version = |model: &EmbeddingModel| model.resource_version()?.parse::<u64>().ok();
        let mut written = lock(&self.written);
        let reference = ObjectRef::from_obj(model);
        match written.get(&reference) {
            Some(last) if last.uid() == model.uid() && version(last) > version(model) => last.status.clone(),
            Some(_) => {
                written.remove(&reference);
                model.status.clone()
            }
            None => model.status.clone(),
        }
    }

    fn wrote(&self, model: EmbeddingModel) {
        let mut written = lock(&self.written);
        written.insert(ObjectRef::from_obj(&model), model);
    }

    /// How far the model's fetch is: asked, and so told in the status, every ten seconds at
    /// most, however often the model is looked at.
    async fn progress_of(
        &self,
        model: &EmbeddingModel,
        observed: &observe::Observed,
    ) -> Option<observe::Progress> {
        let reference = ObjectRef::from_obj(model);
        let known = lock(&self.progress).get(&reference).copied();
        if let Some((asked, known)) = known
            && asked.elapsed() < PROGRESS
        {
            return known;
        }
        let now = observe::progress(&self.client, model, observed).await;
        let mut progress = lock(&self.progress);
        if now.is_some() {
            progress.insert(reference, (Instant::now(), now));
        } else {
            progress.remove(&reference);
        }
        now
    }

    /// Remembers nothing of a model that is gone.
    fn forget(&self, reference: &ObjectRef<EmbeddingModel>) {
        lock(&self.failures).remove(reference);
        lock(&self.written).remove(reference);
        lock(&self.progress).remove(reference);
        self.metrics.forget(reference);
    }

    /// How many reconciles of the model have failed in a row, so far.
    fn failed_before(&self, model: &EmbeddingModel) -> u32 {
        let failures = lock(&self.failures);
        failures.get(&ObjectRef::from_obj(model)).copied().unwrap_or_default()
    }

    fn failures_of(&self, model: &EmbeddingModel, failed: bool) -> u32 {
        let mut failures = lock(&self.failures);
        let reference = ObjectRef::from_obj(model);
        if !failed {
            failures.remove(&reference);
            return 0;
        }
        let count = failures.entry(reference).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

/// A reconcile that did not get to its end, by the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Looking.
    #[error("cannot see what is there")]
    Observe(#[source] observe::Error),
    /// Writing.
    #[error("cannot make what should be")]
    Apply(#[source] apply::Error),
    /// Telling.
    #[error("cannot write the status")]
    Report(#[source] kube::Error),
}

impl Error {
    /// The step; a label of metrics.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Apply(_) => "apply",
            Self::Report(_) => "report",
        }
    }
}

/// One reconcile.
pub async fn reconcile(model: Arc<EmbeddingModel>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let _active = context.metrics.begins();
    let result = reconcile_steps(&model, &context).await;
    context.metrics.reconciled(&result, begun.elapsed());
    if result.is_ok() {
        context.failures_of(&model, false);
    }
    result
}

async fn reconcile_steps(model: &EmbeddingModel, context: &Context) -> Result<Action, Error> {
    if model.metadata.deletion_timestamp.is_some() {
        // Owner references do the rest.
        context.forget(&ObjectRef::from_obj(model));
        return Ok(Action::await_change());
    }
    let client = &context.client;
    let now = Timestamp::now();
    let mut observed = match observe::observe(client, model).await {
        Ok(observed) => observed,
        Err(error) => {
            // That nothing can be seen for a moment says nothing about the model.
            if error.is_for_long() || model.status.is_none() || context.failed_before(model) >= SHORT {
                let outcome = Outcome::Failed {
                    reason: Reason::ApplyFailed,
                    message: with_causes(&error),
                    wanted: None,
                };
                report(context, model, None, &outcome, now).await?;
            }
            return Err(Error::Observe(error));
        }
    };
    observed.progress = context.progress_of(model, &observed).await;
    let valid = match validate::validate(model, &observed, &context.config) {
        Ok(valid) => valid,
        Err(refusal) => {
            report(context, model, Some(&observed), &Outcome::Refused(&refusal), now).await?;
            return Ok(Action::requeue(with_jitter(refused_for(&refusal))));
        }
    };
    let desired = build::build(&valid, &observed, &context.config, now);
    let applied = if valid.paused { Ok(0) } else { apply::apply(client, &valid, &observed, &desired).await };
    match applied {
        Ok(writes) => {
            let outcome = Outcome::Applied { model: &valid, desired: &desired, writes };
            let status = report(context, model, Some(&observed), &outcome, now).await?;
            Ok(Action::requeue(with_jitter(next_look(&desired.files, &status, now))))
        }
        Err(error) => {
            let outcome = Outcome::Failed {
                reason: error.reason(),
                message: with_causes(&error),
                wanted: Some((&valid, &desired)),
            };
            report(context, model, Some(&observed), &outcome, now).await?;
            Err(Error::Apply(error))
        }
    }
}

fn refused_for(refusal: &Refusal) -> Duration {
    if refusal.reason == Reason::ReferenceMissing { REFUSED } else { RESYNC }
}

fn next_look(files: &State, status: &EmbeddingModelStatus, now: Timestamp) -> Duration {
    if let Some(wait) = fetched::wait(files, now) {
        return wait.clamp(Duration::from_secs(1), RESYNC);
    }
    let scaled_to_zero = || {
        let ready = status.condition(ConditionType::Ready);
        ready.is_some_and(|ready| ready.reason == Reason::ScaledToZero.name())
    };
    if status.holds(ConditionType::Ready) || scaled_to_zero() {
        RESYNC
    } else if status.holds(ConditionType::Stalled) {
        STALLED
    } else {
        PROGRESS
    }
}

/// So that models that began together do not come back together.
fn with_jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(1.0..1.2))
}

/// Waits longer after each error in a row, and remembers the count by model.
#[expect(clippy::needless_pass_by_value, reason = "the controller calls it so")]
fn after_error(model: Arc<EmbeddingModel>, error: &Error, context: Arc<Context>) -> Action {
    let failures = context.failures_of(&model, true);
    let wait =
        Duration::from_secs(1).saturating_mul(2u32.saturating_pow(failures.min(16) - 1)).min(MAX_BACKOFF);
    tracing::warn!(
        model = %ObjectRef::from_obj(&*model),
        step = error.step(),
        error = with_causes(error),
        retry_in_s = wait.as_secs(),
        "reconciling failed"
    );
    Action::requeue(with_jitter(wait))
}

/// What the API server said, or why it could not be asked, on one line.
pub(crate) fn told(error: &kube::Error) -> String {
    match error {
        // The error itself says it twice, and for programmers.
        kube::Error::Api(status) if !status.message.is_empty() => status.message.replace('\n', " "),
        error => with_causes(error),
    }
}

/// An error and its causes, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // That of an answer of the API server repeats it, whole and for programmers.
        let cause_text = match cause.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if !status.message.is_empty() => {
                text = format!("{text}: {}", status.message);
                break;
            }
            _ => cause.to_string(),
        };
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

/// Writes the status where it changed, and events where `Ready` or the vector space did.
async fn report(
    context: &Context,
    model: &EmbeddingModel,
    observed: Option<&observe::Observed>,
    outcome: &Outcome<'_>,
    now: Timestamp,
) -> Result<EmbeddingModelStatus, Error> {
    let model = &EmbeddingModel { status: context.status_of(model), ..model.clone() };
    let status = report::status(model, observed, outcome, now);
    context.metrics.set_conditions(&ObjectRef::from_obj(model), &status);
    if report::is_same(model.status.as_ref(), &status) {
        return Ok(status);
    }
    let api: Api<EmbeddingModel> =
        Api::namespaced(context.client.clone(), &model.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": EmbeddingModel::api_version(&()),
        "kind": EmbeddingModel::kind(&()),
        "metadata": {"uid": model.uid()},
        "status": status,
    });
    let force = PatchParams::apply(names::FIELD_MANAGER).force();
    match api.patch_status(&model.name_any(), &force, &Patch::Apply(&patch)).await {
        Ok(written) => context.wrote(written),
        // It is gone: nothing to tell. In a conflict another one may have its name, or somebody
        // was faster: the next try sees.
        Err(kube::Error::Api(error)) if error.is_not_found() => return Ok(status),
        Err(error) => return Err(Error::Report(error)),
    }
    let old = model.status.as_ref();
    for event in [events::transition(old, &status), events::space_change(old, &status)].into_iter().flatten()
    {
        let reference: ObjectReference = model.object_ref(&());
        if let Err(error) = context.recorder.publish(&event, &reference).await {
            // Events are a courtesy; the status has the truth.
            tracing::warn!(error = told(&error), "cannot publish an event");
        }
    }
    Ok(status)
}

/// Reconciles the models of these namespaces (none: of all) until `stop` is done, and what
/// is under way has ended.
pub async fn run(
    context: Arc<Context>,
    namespaces: &[String],
    concurrency: u16,
    stop: impl Future<Output = ()> + Send + Sync + Clone + 'static,
) {
    // Each namespace once, or each model would be reconciled by two at a time.
    let scopes: BTreeSet<Option<&str>> = if namespaces.is_empty() {
        [None].into()
    } else {
        namespaces.iter().map(|name| Some(name.as_str())).collect()
    };
    // Of all namespaces together.
    let permits = Arc::new(Semaphore::new(concurrency.into()));
    let controllers = scopes.into_iter().map(|scope| {
        let controller = controller(&context.client, scope);
        let unready = stopped_before_ready(controller.store(), stop.clone());
        let controller = controller
            .with_config(kube::runtime::controller::Config::default().concurrency(concurrency))
            .graceful_shutdown_on(stop.clone());
        let remembering = Arc::clone(&context);
        let permits = Arc::clone(&permits);
        let permitted = move |model, context| {
            let permits = Arc::clone(&permits);
            async move {
                let _permit = permits.acquire().await;
                reconcile(model, context).await
            }
            .boxed()
        };
        let runs = controller.run(permitted, after_error, Arc::clone(&context)).for_each(move |result| {
            match result {
                Ok((model, _)) => tracing::debug!(%model, "reconciled"),
                // Told where it is handled.
                Err(kube::runtime::controller::Error::ReconcilerFailed(..)) => {}
                Err(kube::runtime::controller::Error::ObjectNotFound(model)) => {
                    tracing::debug!(%model, "gone");
                    let mut reference = ObjectRef::new(&model.name);
                    reference.namespace.clone_from(&model.namespace);
                    remembering.forget(&reference);
                }
                Err(error) => tracing::warn!(error = with_causes(&error), "watching"),
            }
            std::future::ready(())
        });
        async move {
            tokio::select! {
                () = runs => {}
                () = unready => {}
            }
        }
    });
    futures_util::future::join_all(controllers).await;
}

/// Done when `stop` is before the models were listed. Nothing is under way then, and the
/// controller would wait for that list for ever, because it has stopped to watch.
async fn stopped_before_ready(models: reflector::Store<EmbeddingModel>, stop: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = models.wait_until_ready() => std::future::pending().await,
        () = stop => {}
    }
}

/// Between errors of one watch. Each has its own: with the controller's one for all, an error
/// of one makes all of them wait, and when the API server comes back, where each has an error
/// or two, the operator would be deaf for minutes.
#[derive(Debug, Default)]
struct WatchBackoff {
    errors: u32,
}

/// Between errors of any watch, for the controller, which has to have one.
#[derive(Debug)]
struct NoBackoff;

impl Iterator for NoBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }
}

impl Backoff for NoBackoff {
    fn reset(&mut self) {}
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Duration::from_millis(50 << self.errors.min(6));
        self.errors = self.errors.saturating_add(1);
        Some(with_jitter(wait))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.errors = 0;
    }
}

fn controller(client: &Client, namespace: Option<&str>) -> Controller<EmbeddingModel> {
    let models: Api<EmbeddingModel> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let ours = watcher::Config::default().labels(names::MODEL_LABEL);
    let (reader, writer) = reflector::store();
    let models = watcher(models, watcher::Config::default())
        .backoff(WatchBackoff::default())
        .reflect(writer)
        // Those that are deleted as well: they are forgotten at once.
        .touched_objects();
    let mut controller = Controller::for_stream(models, reader).trigger_backoff(NoBackoff);
    // The other's definition may not be there.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::ServiceMonitor) {
        let resource = kind.resource();
        let api: Api<DynamicObject> = scoped(client, namespace, &resource);
        let objects = watcher(api, ours.clone()).backoff(WatchBackoff::default()).touched_objects();
        controller = controller.watches_stream_with(objects, |object| model_of(&object), resource);
    }
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let pods = watcher(pods, ours).backoff(WatchBackoff::default()).touched_objects();
    controller.watches_stream(pods, |pod| model_of(&pod))
}

fn scoped(client: &Client, namespace: Option<&str>, resource: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// The model that an object with our label belongs to: the one that owns it, whatever the label
/// became; else the one that the label names.
fn model_of<K: kube::Resource>(object: &K) -> Option<ObjectRef<EmbeddingModel>> {
    let (meta, kind) = (object.meta(), EmbeddingModel::kind(&()));
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.kind == kind);
    let labelled = || meta.labels.as_ref()?.get(names::MODEL_LABEL);
    let name = owner.map(|owner| &owner.name).or_else(labelled)?;
    Some(ObjectRef::new(name).within(meta.namespace.as_ref()?))
}
