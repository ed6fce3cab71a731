//! Each failure appears as a condition whose message names the object and the cause, and heals
//! by itself when the cause goes. The controllers that find failures are the real ones; only
//! what a kubelet, a scheduler or a hub would say is played.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use embedding_operator::config::Config;
use embedding_operator::crd::EmbeddingModel;
use embedding_operator::crd::status::{ConditionType, Reason};
use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use support::cluster::{ControlPlane, Namespace};
use support::kubelet::{self, FakeNode, Play};
use support::operator::{
    self, COMMIT, Operator, SUMMARY, USER, condition, config, hub, is, is_ready, message, models,
};
use support::volumes::Provisioner;
use support::wait::{wait_for, wait_for_object};
use tokio::task::JoinSet;

/// Real controllers wait between tries, and the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(3);

/// A namespace with an operator, a node and volumes, and everything that the status of its
/// models was.
struct Scene {
    plane: &'static ControlPlane,
    namespace: Namespace,
    models: Api<EmbeddingModel>,
    node: FakeNode,
    /// What happens to pods that fetch, and to those that serve.
    fetch: Role,
    server: Role,
    history: Arc<Mutex<Vec<EmbeddingModel>>>,
    /// Where in the history to look from.
    mark: usize,
    operator: Option<Operator>,
    volumes: Option<Provisioner>,
    tasks: JoinSet<()>,
}

/// What happens to new pods; nothing: what usually does.
#[derive(Clone, Default)]
struct Role(Arc<Mutex<Option<Play>>>);

impl Role {
    fn plays(&self, play: impl Into<Option<Play>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = play.into();
    }

    fn now(&self) -> Option<Play> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Scene {
    async fn new(prefix: &str) -> Self {
        Self::with(prefix, config()).await
    }

    async fn with(prefix: &str, config: Config) -> Self {
        let plane = ControlPlane::get().await;
        let namespace = plane.namespace(prefix).await;
        let (fetch, server) = (Role::default(), Role::default());
        let (fetching, serving) = (fetch.clone(), server.clone());
        let node = FakeNode::builder()
            .job_message(SUMMARY)
            .script(move |pod| match component(pod).as_str() {
                "fetch" => fetching.now(),
                _ => serving.now(),
            })
            .start(plane, &namespace)
            .await;
        let volumes = Provisioner::start(plane, &namespace).await;
        let models = models(plane, &namespace);
        let history = Arc::<Mutex<Vec<EmbeddingModel>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(record(models.clone(), Arc::clone(&history)));
        let operator = Some(Operator::start(plane, &namespace, config));
        let volumes = Some(volumes);
        Self { plane, namespace, models, node, fetch, server, history, mark: 0, operator, volumes, tasks }
    }

    /// Pods of Jobs are tried once instead of three times, half a minute in all.
    fn hurry(&mut self) {
        let jobs: Api<Job> = self.api();
        self.tasks.spawn(async move {
            let mut events =
                pin!(watcher(jobs.clone(), watcher::Config::default()).default_backoff().applied_objects());
            while let Some(event) = events.next().await {
                let Ok(job) = event else { continue };
                if job.spec.as_ref().and_then(|spec| spec.backoff_limit) == Some(0) {
                    continue;
                }
                let patch = Patch::Merge(json!({"spec": {"backoffLimit": 0}}));
                let _ = jobs.patch(&job.name_any(), &PatchParams::default(), &patch).await;
            }
        });
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.plane.client(), &self.namespace)
    }

    fn any(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.plane.client(), &self.namespace, &resource)
    }

    async fn create(&self, name: &str, spec: Value) {
        operator::create(&self.models, name, spec).await;
    }

    /// Changes a model, and looks only at what comes after that.
    async fn change(&mut self, name: &str, patch: Value) {
        self.now();
        operator::change(&self.models, name, patch).await;
    }

    /// From now on, only what comes later is looked at.
    fn now(&mut self) {
        self.mark = self.history().len();
    }

    fn history(&self) -> Vec<EmbeddingModel> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the model was once so since the last such time.
    async fn until(
        &mut self,
        name: &str,
        what: &str,
        is: impl Fn(&EmbeddingModel) -> bool,
    ) -> EmbeddingModel {
        let what = format!("{name}: {what}");
        let (index, model) = wait_for(&what, PATIENCE, async || {
            let history = self.history();
            let later = history.iter().enumerate().skip(self.mark);
            let mut mine = later.filter(|(_, model)| model.name_any() == name);
            match mine.find(|(_, model)| is(model)) {
                Some((index, model)) => Ok((index, model.clone())),
                None => Err(history.iter().rev().find(|model| model.name_any() == name).map_or_else(
                    || "nothing".to_owned(),
                    |model| serde_yaml::to_string(&model.status).expect("a status is YAML"),
                )),
            }
        })
        .await;
        self.mark = index;
        model
    }

    async fn until_ready(&mut self, name: &str) -> EmbeddingModel {
        let model = self.until(name, "ready", is_ready).await;
        assert_eq!(kstatus(&model), Kstatus::Current);
        model
    }

    /// Waits until `Ready` is false for a reason, and the message has all of these in it.
    async fn until_not_ready(&mut self, name: &str, reason: Reason, says: &[&str]) -> EmbeddingModel {
        let what = format!("not ready because of {reason:?}, which says {says:?}");
        self.until(name, &what, |model| {
            let message = message(model, "Ready");
            is(model, "Ready", "False", &reason.name()) && says.iter().all(|says| message.contains(says))
        })
        .await
    }

    /// Asserts that the model could be used all the time since the mark.
    fn served_since(&self, mark: usize, name: &str) {
        for model in self.history()[mark..].iter().filter(|model| model.name_any() == name) {
            assert_eq!(condition(model, "Available").0, "True", "{:?}", model.status);
        }
    }

    /// The pods that are to stay, of one component.
    async fn pods(&self, name: &str, component: &str) -> Vec<Pod> {
        let labels = format!("embeddings.kagent.dev/model={name},app.kubernetes.io/component={component}");
        let pods: Api<Pod> = self.api();
        let pods = pods.list(&ListParams::default().labels(&labels)).await.unwrap();
        pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    async fn uids(&self, name: &str) -> BTreeSet<String> {
        self.pods(name, "server").await.into_iter().filter_map(|pod| pod.uid()).collect()
    }

    /// Lets something else happen to the pods that are neither ready nor over.
    async fn replay(&self, name: &str, component: &str, play: Play) {
        for pod in self.pods(name, component).await {
            let status = pod.status.clone().unwrap_or_default();
            let ready =
                status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
            if !ready && !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                self.node.play(&pod.name_any(), play.clone());
            }
        }
    }

    /// How many Jobs the operator has made.
    fn jobs_made(&self) -> usize {
        let requests = self.plane.audit().user(USER).namespace(&self.namespace).of("patch", "jobs");
        requests.0.into_iter().map(|entry| entry.object.name).collect::<BTreeSet<_>>().len()
    }

    /// The type and reason of the events about a model, in order.
    async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events: Api<Event> = self.api();
        let mut events = events.list(&ListParams::default()).await.unwrap().items;
        events.retain(|event| {
            let about = event.regarding.as_ref();
            about.and_then(|about| about.kind.as_deref()) == Some("EmbeddingModel")
                && about.and_then(|about| about.name.as_deref()) == Some(name)
        });
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        for event in &events {
            assert_eq!(event.reporting_controller.as_deref(), Some("embedding-operator"));
            assert!(event.note.as_ref().is_some_and(|note| !note.is_empty()), "{event:?}");
        }
        events
            .into_iter()
            .map(|event| (event.type_.unwrap_or_default(), event.reason.unwrap_or_default()))
            .collect()
    }

    /// Makes what somebody else owns.
    async fn foreign(&self, api: &Api<DynamicObject>, object: Value) -> DynamicObject {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await.expect("the API server takes it")
    }

    /// Sets what a quota of the namespace allows, and waits until that holds.
    async fn quota(&self, hard: Value) {
        let quotas = self.any("", "v1", "ResourceQuota");
        let quota = json!({
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "tight"},
            "spec": {"hard": hard},
        });
        quotas.patch("tight", &PatchParams::apply("test").force(), &Patch::Apply(&quota)).await.unwrap();
        wait_for_object(&quotas, "tight", "a quota that holds", PATIENCE, |quota| {
            quota.data["status"]["hard"] == hard
        })
        .await;
    }

    /// Stops the operator, and asserts that every status was as conventions have it.
    async fn end(mut self) {
        if let Some(operator) = self.operator.take() {
            operator.stop().await;
        }
        let history = self.history();
        let names: BTreeSet<_> = history.iter().map(kube::ResourceExt::name_any).collect();
        for name in names {
            let mut before: Option<&EmbeddingModel> = None;
            for model in history.iter().filter(|model| model.name_any() == name) {
                follows_the_conventions(model);
                if let Some(before) = before {
                    times_change_with_the_status(before, model);
                }
                before = Some(model);
            }
        }
    }
}

fn component(pod: &Pod) -> String {
    pod.labels().get("app.kubernetes.io/component").cloned().unwrap_or_default()
}

async fn record(models: Api<EmbeddingModel>, history: Arc<Mutex<Vec<EmbeddingModel>>>) {
    let mut events = pin!(watcher(models, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        if let Ok(model) = event {
            history.lock().unwrap_or_else(PoisonError::into_inner).push(model);
        }
    }
}

/// What tools that know nothing of us make of a status (kstatus).
#[derive(Debug, PartialEq)]
enum Kstatus {
    InProgress,
    Current,
    Failed,
}

fn kstatus(model: &EmbeddingModel) -> Kstatus {
    let Some(status) = &model.status else { return Kstatus::InProgress };
    let of = |name: &str| status.conditions.iter().find(|condition| condition.type_ == name);
    let is_true = |name: &str| of(name).is_some_and(|condition| condition.status == "True");
    if status.observed_generation != model.metadata.generation || is_true("Reconciling") {
        Kstatus::InProgress
    } else if is_true("Stalled") {
        Kstatus::Failed
    } else if is_true("Ready") {
        Kstatus::Current
    } else {
        Kstatus::InProgress
    }
}

fn follows_the_conventions(model: &EmbeddingModel) {
    let Some(status) = &model.status else { return };
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    let always =
        ["Ready", "ModelCached", "Available", "Progressing", "UpdateAvailable", "SpaceChanged", "Degraded"];
    assert_eq!(types[..7], always, "{status:?}");
    assert!(types.len() <= 8, "reconciling or stalled, not both: {status:?}");
    let of = |type_: ConditionType| condition(model, type_.name()).0;
    for condition in &status.conditions {
        assert_eq!(condition.observed_generation, status.observed_generation, "{condition:?}");
        assert!(!condition.message.is_empty(), "{condition:?}");
        assert!(Reason::ALL.iter().any(|reason| reason.name() == condition.reason), "{condition:?}");
        if ["Reconciling", "Stalled"].contains(&condition.type_.as_str()) {
            assert_eq!(condition.status, "True", "only while it holds");
        }
    }
    assert!(status.observed_generation <= model.metadata.generation);
    let ready = of(ConditionType::Ready) == "True";
    if ready {
        assert_eq!(types.len(), 7, "{status:?}");
    }
    // What is not there yet is on its way, or waits for somebody; unless nothing is wanted.
    if !ready && status.observed_generation == model.metadata.generation && model.spec.replicas > 0 {
        assert_eq!(types.len(), 8, "{status:?}");
        assert_ne!(kstatus(model), Kstatus::Current);
    }
    let stalled = of(ConditionType::Stalled) == "True";
    assert!(!stalled || of(ConditionType::Degraded) == "True", "{status:?}");
    assert_eq!(
        of(ConditionType::Reconciling) == "True",
        of(ConditionType::Progressing) == "True",
        "{status:?}"
    );
}

fn times_change_with_the_status(before: &EmbeddingModel, after: &EmbeddingModel) {
    let conditions = |model: &EmbeddingModel| model.status.clone().unwrap_or_default().conditions;
    for was in conditions(before) {
        for is in conditions(after).into_iter().filter(|is| is.type_ == was.type_) {
            if was.status == is.status {
                assert_eq!(was.last_transition_time, is.last_transition_time, "{was:?} {is:?}");
            } else {
                assert!(was.last_transition_time.0 <= is.last_transition_time.0, "{was:?} {is:?}");
            }
        }
    }
}

fn warning(reason: Reason) -> (String, String) {
    ("Warning".to_owned(), reason.name())
}

fn attempt(job: &Job) -> u32 {
    job.labels()["embeddings.kagent.dev/attempt"].parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_fails_is_tried_again_until_it_succeeds() {
    let mut scene = Scene::new("fetch").await;
    scene.hurry();
    scene.fetch.plays(Play::fail(1, "error: https://hub.test: connection refused"));
    scene.create("minilm", json!({"source": hub()})).await;

    // The first visit tells something.
    let first = scene.until("minilm", "a status", |model| model.status.is_some()).await;
    assert_eq!(kstatus(&first), Kstatus::InProgress);
    let why = ["fetching org/name: https://hub.test: connection refused; next try at 2"];
    let failed = scene.until_not_ready("minilm", Reason::FetchFailed, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    assert!(is(&failed, "ModelCached", "False", "FetchFailed"), "{failed:?}");
    assert!(is(&failed, "Degraded", "True", "FetchFailed"), "{failed:?}");
    assert!(is(&failed, "Available", "False", "Unavailable"), "{failed:?}");

    scene
        .fetch
        .plays(Play::fail(77, "error: the hub refuses org/name: 401 Unauthorized: is the token good?"));
    scene.until_not_ready("minilm", Reason::Fetching, &[", try "]).await;
    let jobs: Api<Job> = scene.api();
    wait_for("a later try, and the earlier ones gone", PATIENCE, async || {
        let tries: Vec<u32> = jobs.list(&ListParams::default()).await.unwrap().iter().map(attempt).collect();
        if tries.len() == 1 && tries[0] > 1 { Ok(()) } else { Err(format!("{tries:?}")) }
    })
    .await;
    let why =
        ["fetching org/name: the hub refuses org/name: 401 Unauthorized: is the token good?; next try at 2"];
    let refused = scene.until_not_ready("minilm", Reason::SourceRefused, &why).await;
    assert!(is(&refused, "ModelCached", "False", "SourceRefused"), "{refused:?}");

    scene.fetch.plays(None);
    scene.until_ready("minilm").await;
    assert!(scene.jobs_made() >= 3);
    wait_for("the Jobs gone", PATIENCE, async || {
        let jobs = jobs.list(&ListParams::default()).await.unwrap();
        if jobs.items.is_empty() { Ok(()) } else { Err(jobs.items.len()) }
    })
    .await;
    let events = scene.events("minilm").await;
    assert!(events.contains(&warning(Reason::FetchFailed)), "{events:?}");
    assert!(events.contains(&warning(Reason::SourceRefused)), "{events:?}");
    assert!(events.contains(&("Normal".to_owned(), "Ready".to_owned())), "{events:?}");
    // That it is tried again is no news.
    assert!(!events.contains(&warning(Reason::Fetching)), "{events:?}");
    scene.end().await;
}

/// Without help from the test: a Job's own tries take half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_says_nothing_tells_how_it_ended() {
    let mut scene = Scene::new("silent").await;
    scene.fetch.plays(Play::fail(2, ""));
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_not_ready("minilm", Reason::FetchFailed, &["org/name", "exit code 2"]).await;
    scene.fetch.plays(None);
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_serves_on_while_its_new_revision_cannot_be_fetched() {
    let mut scene = Scene::new("revision").await;
    scene.hurry();
    let revision = |revision: &str| json!({"spec": {"source": {"huggingFace": {"revision": revision}}}});
    scene.create("minilm", json!({"source": hub(), "replicas": 2})).await;
    scene.until_ready("minilm").await;
    let deployments: Api<Deployment> = scene.api();
    let (uids, deployed) = (scene.uids("minilm").await, deployments.get("minilm").await.unwrap());
    assert_eq!(uids.len(), 2);
    assert_eq!(scene.jobs_made(), 1);

    scene.fetch.plays(Play::fail(77, "error: org/name has no revision v2: 404 Not Found"));
    scene.change("minilm", revision("v2")).await;
    let mark = scene.mark;
    let why = ["org/name", "no revision v2: 404 Not Found", "next try"];
    let failed = scene.until_not_ready("minilm", Reason::SourceRefused, &why).await;
    assert!(is(&failed, "ModelCached", "False", "SourceRefused"), "{failed:?}");
    assert!(is(&failed, "Available", "True", "Ready"), "{failed:?}");
    let about = failed.status.clone().unwrap().model.unwrap();
    assert_eq!(about.resolved_revision.as_deref(), Some(COMMIT), "what is served is told");
    // It is tried again, and nothing changes for those who use it.
    scene.until_not_ready("minilm", Reason::Fetching, &[", try "]).await;
    scene.until_not_ready("minilm", Reason::SourceRefused, &why).await;
    assert_eq!(scene.uids("minilm").await, uids);
    let now = deployments.get("minilm").await.unwrap();
    assert_eq!(now.metadata.generation, deployed.metadata.generation);

    // Back to what is there: nothing is fetched for it.
    scene.fetch.plays(Play::fail(1, "error: nothing should be fetched"));
    scene.change("minilm", revision("main")).await;
    let made = scene.jobs_made();
    scene.until_ready("minilm").await;
    assert_eq!(scene.uids("minilm").await, uids);
    assert_eq!(scene.jobs_made(), made);
    assert!(scene.pods("minilm", "fetch").await.is_empty(), "what is not wanted is not fetched");
    let now = deployments.get("minilm").await.unwrap();
    assert_eq!(now.metadata.generation, deployed.metadata.generation);

    // And a revision that is there replaces the pods, without a gap.
    let other = SUMMARY.replace(COMMIT, &COMMIT.replace('0', "f"));
    scene.fetch.plays(Play::succeed(&other));
    scene.change("minilm", revision("v3")).await;
    let model = scene.until_ready("minilm").await;
    let revision = model.status.unwrap().model.unwrap().resolved_revision.unwrap();
    assert_eq!(revision, COMMIT.replace('0', "f"));
    assert!(scene.uids("minilm").await.is_disjoint(&uids));
    scene.served_since(mark, "minilm");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_missing_is_named() {
    let mut scene = Scene::new("secret").await;
    scene.fetch.plays(Play::ConfigError("secret \"hub-token\" not found".to_owned()));
    let source =
        json!({"huggingFace": {"repo": "org/name", "tokenSecretRef": {"name": "hub-token", "key": "token"}}});
    scene.create("minilm", json!({"source": source})).await;
    let why = ["Pod minilm-fetch-", "container fetch", "secret \"hub-token\" not found"];
    let failed = scene.until_not_ready("minilm", Reason::ReferenceMissing, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    scene.replay("minilm", "fetch", Play::succeed(SUMMARY)).await;
    scene.until_ready("minilm").await;
    assert_eq!(scene.jobs_made(), 1);
    let events = scene.events("minilm").await;
    assert!(events.contains(&warning(Reason::ReferenceMissing)), "{events:?}");
    scene.end().await;
}

/// What a fetch says in an init container is told as that of a Job is.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_into_a_pod_that_fails_is_told_as_one_into_a_volume() {
    let mut scene = Scene::new("init").await;
    scene.server.plays(Play::InitFail { exit_code: 77, message: "error: 401 Unauthorized".to_owned() });
    let source = json!({"huggingFace": {"repo": "org/name", "revision": COMMIT}});
    scene.create("minilm", json!({"source": source, "cache": {"ephemeral": true}})).await;
    let why = ["Pod minilm-", "container fetch: 401 Unauthorized"];
    scene.until_not_ready("minilm", Reason::SourceRefused, &why).await;
    scene.server.plays(None);
    scene.replay("minilm", "server", Play::ready().after_init(SUMMARY)).await;
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_do_not_start_are_told_while_the_old_ones_serve() {
    let mut scene = Scene::new("pods").await;
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_ready("minilm").await;
    let mark = scene.mark;
    let table = [
        (
            "registry.test/other:1",
            Play::ImagePullBackOff,
            Reason::ImagePullFailed,
            vec!["container server", "image registry.test/other:1", "not found"],
        ),
        (
            "registry.test/other:2",
            Play::fail(3, "loading\nerror: /models/x has no config.json"),
            Reason::CrashLoop,
            vec!["container server", "exit code 3: error: /models/x has no config.json"],
        ),
        (
            "registry.test/other:3",
            Play::OomKill,
            Reason::OutOfMemory,
            vec!["container server", "limits.memory"],
        ),
        (
            "registry.test/other:4",
            Play::unschedulable("0/1 nodes are available: 1 Insufficient memory."),
            Reason::Unschedulable,
            vec!["0/1 nodes are available: 1 Insufficient memory."],
        ),
    ];
    for (image, play, reason, mut says) in table {
        let uids = scene.uids("minilm").await;
        assert_eq!(uids.len(), 1);
        scene.server.plays(play);
        scene.change("minilm", json!({"spec": {"image": image}})).await;
        says.push("Pod minilm-");
        let failed = scene.until_not_ready("minilm", reason, &says).await;
        assert_eq!(kstatus(&failed), Kstatus::Failed);
        assert!(is(&failed, "Available", "True", "Ready"), "{failed:?}");
        assert!(is(&failed, "ModelCached", "True", "Cached"), "{failed:?}");
        assert!(scene.uids("minilm").await.is_superset(&uids));

        if reason == Reason::CrashLoop {
            // It goes on and on, and is told once.
            tokio::time::sleep(Duration::from_secs(6)).await;
            let events = scene.events("minilm").await;
            assert_eq!(events.iter().filter(|event| **event == warning(reason)).count(), 1, "{events:?}");
            assert_eq!(events.last(), Some(&warning(reason)), "{events:?}");
        }
        scene.server.plays(None);
        scene.replay("minilm", "server", Play::ready()).await;
        scene.until_ready("minilm").await;
        let now = scene.uids("minilm").await;
        assert!(now.is_disjoint(&uids), "{now:?}");
    }
    scene.served_since(mark, "minilm");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_without_room_beside_the_volume_moves_the_model_as_a_whole() {
    let mut scene = Scene::new("moves").await;
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_ready("minilm").await;
    let old = scene.uids("minilm").await;
    let says = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod affinity rules. preemption: \
                0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    scene.server.plays(Play::unschedulable(says));
    scene.change("minilm", json!({"spec": {"resources": {"requests": {"cpu": "6"}}}})).await;
    let waits = scene.until_not_ready("minilm", Reason::Unschedulable, &["1 Insufficient cpu"]).await;
    assert!(is(&waits, "Available", "True", "Ready"), "{waits:?}");
    let because = |model: &EmbeddingModel| {
        let rollout = model.status.as_ref().and_then(|status| status.rollout.clone()).unwrap_or_default();
        format!("{:?}: {}", rollout.strategy, rollout.because)
    };
    let says =
        "Recreate: the node that has the volume (ReadWriteOnce) has no room for a new pod, and another has";
    scene.until("minilm", "told why it moves", |model| because(model).starts_with(says)).await;
    wait_for("the old pods have left", PATIENCE, async || {
        let left = scene.uids("minilm").await;
        if left.is_disjoint(&old) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    // Nothing holds the new one beside the volume any more.
    scene.server.plays(None);
    scene.replay("minilm", "server", Play::ready()).await;
    scene.until_ready("minilm").await;
    scene.until("minilm", "usual again", |model| because(model).starts_with("Surge")).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_made_anew_at_once_waits_for_what_was_the_last_ones() {
    let mut scene = Scene::new("anew").await;
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_ready("minilm").await;
    let old = scene.uids("minilm").await;
    scene.models.delete("minilm", &DeleteParams::default()).await.unwrap();
    let mark = scene.history().len();
    scene.now();
    scene.create("minilm", json!({"source": hub(), "replicas": 2})).await;
    scene.until_ready("minilm").await;
    let pods = scene.uids("minilm").await;
    assert!(pods.len() == 2 && pods.is_disjoint(&old), "{pods:?}");
    let mut waited = 0;
    for model in &scene.history()[mark..] {
        let (ready, reason) = condition(model, "Ready");
        assert_ne!(reason, "NameConflict", "{model:?}");
        assert_ne!(condition(model, "Degraded").0, "True", "{ready} {model:?}");
        waited += usize::from(reason == "WaitingForDeletion");
    }
    println!("it was told {waited} times to wait for the deletion");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_no_node_has_is_named() {
    let mut scene = Scene::new("gpu").await;
    let says = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 \
                Preemption is not helpful for scheduling.";
    scene.server.plays(Play::unschedulable(says));
    let spec =
        json!({"source": hub(), "gpu": {"count": 1}, "image": "registry.test/embedding-server:1-cuda"});
    scene.create("minilm", spec).await;
    scene
        .until_not_ready("minilm", Reason::Unschedulable, &["Pod minilm-", "3 Insufficient nvidia.com/gpu."])
        .await;
    scene.replay("minilm", "server", Play::ready()).await;
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_become_healthy_is_told_and_at_last_stuck() {
    let mut scene = Scene::new("probe").await;
    scene.server.plays(Play::NeverReady);
    scene.create("minilm", json!({"source": hub(), "startupTimeoutSeconds": 10})).await;
    scene.until_not_ready("minilm", Reason::RollingOut, &[]).await;
    let pods = wait_for("a pod that runs", PATIENCE, async || {
        let pods = scene.pods("minilm", "server").await;
        let phase = |pod: &Pod| pod.status.clone().unwrap_or_default().phase;
        if pods.iter().any(|pod| phase(pod).as_deref() == Some("Running")) { Ok(pods) } else { Err("none") }
    })
    .await;
    let pod = pods[0].object_ref(&());
    // A start takes its time: that is no failure.
    let says = "Startup probe failed: HTTP probe failed with statuscode: 503";
    kubelet::tell(scene.plane.client(), &pod, "Warning", "Unhealthy", says).await;
    // Longer than until the operator looks for events again.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let model = scene.models.get("minilm").await.unwrap();
    assert!(is(&model, "Degraded", "False", "Healthy"), "{model:?}");

    let says = "Readiness probe failed: HTTP probe failed with statuscode: 503";
    kubelet::tell(scene.plane.client(), &pod, "Warning", "Unhealthy", says).await;
    let why = ["Pod minilm-", "Readiness probe failed: HTTP probe failed with statuscode: 503"];
    let failed = scene.until_not_ready("minilm", Reason::ProbeFailed, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::InProgress, "it may get there yet");

    // The deadline is five minutes above the start's; while the model is paused it can be made
    // short. The real controller judges by it, and its verdict stays when the operator mends it.
    scene.change("minilm", json!({"spec": {"paused": true}})).await;
    scene.until_not_ready("minilm", Reason::Paused, &[]).await;
    let deployments: Api<Deployment> = scene.api();
    let soon = Patch::Merge(json!({"spec": {"progressDeadlineSeconds": 1, "minReadySeconds": 0}}));
    deployments.patch("minilm", &PatchParams::default(), &soon).await.unwrap();
    scene
        .until("minilm", "a deadline that is over", |model| is(model, "Stalled", "True", "ProbeFailed"))
        .await;
    scene.change("minilm", json!({"spec": {"paused": false}})).await;
    let failed = scene.until("minilm", "stalled", |model| {
        is(model, "Ready", "False", "ProbeFailed") && is(model, "Stalled", "True", "ProbeFailed")
    });
    assert_eq!(kstatus(&failed.await), Kstatus::Failed, "nobody waits any more");

    // Without the kubelet's words there are those of the Deployment.
    let events: Api<k8s_openapi::api::core::v1::Event> = scene.api();
    let about = ListParams::default().fields(&format!("involvedObject.uid={}", pods[0].uid().unwrap()));
    events.delete_collection(&DeleteParams::default(), &about).await.unwrap();
    let why = ["Deployment minilm", "has timed out progressing", "kubectl describe pods -l"];
    scene.until_not_ready("minilm", Reason::RolloutStuck, &why).await;

    scene.replay("minilm", "server", Play::ready()).await;
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_named_and_the_model_recovers_when_they_are_raised() {
    let mut scene = Scene::new("quota").await;
    scene.quota(json!({"persistentvolumeclaims": "0", "pods": "0"})).await;
    scene.create("minilm", json!({"source": hub()})).await;
    let why = ["PersistentVolumeClaim minilm-cache", "exceeded quota: tight", "persistentvolumeclaims=0"];
    let failed = scene.until_not_ready("minilm", Reason::QuotaExceeded, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    assert!(!message(&failed, "Ready").contains("ErrorResponse"), "{failed:?}");
    assert!(!message(&failed, "Ready").contains("Status {"), "{failed:?}");

    scene.quota(json!({"persistentvolumeclaims": "1", "pods": "0"})).await;
    let why = ["Job minilm-fetch-", "exceeded quota: tight", "limited: pods=0"];
    scene.until_not_ready("minilm", Reason::QuotaExceeded, &why).await;

    scene.quota(json!({"persistentvolumeclaims": "1", "pods": "1"})).await;
    scene.until_ready("minilm").await;
    // Changed, a quota is counted anew. What was counted when it was raised may lack the pod that came at once, on a
    // machine with much to do, and then a second one has room.
    for pods in ["2", "1"] {
        scene.quota(json!({"persistentvolumeclaims": "1", "pods": pods})).await;
    }

    scene.change("minilm", json!({"spec": {"replicas": 2}})).await;
    let mark = scene.mark;
    let why = ["Deployment minilm", "exceeded quota: tight", "limited: pods=1"];
    let failed = scene.until_not_ready("minilm", Reason::QuotaExceeded, &why).await;
    assert!(is(&failed, "Available", "True", "Ready"), "{failed:?}");
    scene.quota(json!({"persistentvolumeclaims": "1", "pods": "3"})).await;
    scene.until_ready("minilm").await;
    scene.served_since(mark, "minilm");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_class_that_does_not_exist_is_named() {
    let mut scene = Scene::new("class").await;
    // Nothing else provides volumes here.
    scene.volumes = None;
    let spec = json!({"source": hub(), "cache": {"storageClassName": "made-later"}});
    scene.create("minilm", spec).await;
    let waits = scene.until_not_ready("minilm", Reason::WaitingForVolume, &[]).await;
    assert_eq!(kstatus(&waits), Kstatus::InProgress);
    // The real controller says so, as an event.
    let why = ["PersistentVolumeClaim minilm-cache", "\"made-later\" not found"];
    let failed = scene.until_not_ready("minilm", Reason::VolumeFailed, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    assert!(is(&failed, "ModelCached", "False", "WaitingForVolume"), "{failed:?}");
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "made-later"},
        "provisioner": "test/none",
    });
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("storage.k8s.io", "v1", "StorageClass"));
    let classes: Api<DynamicObject> = Api::all_with(scene.plane.client(), &resource);
    scene.foreign(&classes, class).await;
    scene.volumes = Some(Provisioner::start(scene.plane, &scene.namespace).await);
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_lost_is_told_while_the_model_serves_and_can_be_made_anew() {
    let mut scene = Scene::new("lost").await;
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_ready("minilm").await;
    let claims: Api<PersistentVolumeClaim> = scene.api();
    let claim = claims.get("minilm-cache").await.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(scene.plane.client());
    let volume = claim.spec.unwrap().volume_name.unwrap();
    volumes.delete(&volume, &DeleteParams::default()).await.unwrap();
    let unprotected = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    volumes.patch(&volume, &PatchParams::default(), &unprotected).await.unwrap();

    // Pods that have the files serve on, and that is what Ready means.
    let lost =
        scene.until("minilm", "a lost volume", |model| is(model, "Degraded", "True", "VolumeFailed")).await;
    assert!(message(&lost, "Degraded").contains("PersistentVolumeClaim minilm-cache has lost its volume"));
    assert!(is_ready(&lost), "{lost:?}");
    assert_eq!(kstatus(&lost), Kstatus::Current);

    scene.now();
    claims.delete("minilm-cache", &DeleteParams::default()).await.unwrap();
    let pods: Api<Pod> = scene.api();
    for pod in scene.pods("minilm", "server").await {
        pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    scene.until("minilm", "fetching again", |model| is(model, "ModelCached", "False", "Fetching")).await;
    scene.until_ready("minilm").await;
    assert_eq!(scene.jobs_made(), 2);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expansion_that_is_refused_is_told_and_holds_up_nothing_else() {
    let mut scene = Scene::new("expand").await;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "rigid"},
        "provisioner": "test/none",
    });
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("storage.k8s.io", "v1", "StorageClass"));
    let classes: Api<DynamicObject> = Api::all_with(scene.plane.client(), &resource);
    scene.foreign(&classes, class).await;
    scene.create("minilm", json!({"source": hub(), "cache": {"storageClassName": "rigid"}})).await;
    scene.until_ready("minilm").await;

    // The spec asks for what is not so: not Ready. It can be used all the same.
    scene.change("minilm", json!({"spec": {"cache": {"size": "20Gi"}}})).await;
    let mark = scene.mark;
    let why =
        ["PersistentVolumeClaim minilm-cache", "storageclass that provisions the pvc must support resize"];
    let failed = scene.until_not_ready("minilm", Reason::VolumeFailed, &why).await;
    assert!(is(&failed, "Available", "True", "Ready"), "{failed:?}");
    assert!(is(&failed, "ModelCached", "True", "Cached"), "{failed:?}");
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    scene.change("minilm", json!({"spec": {"replicas": 3}})).await;
    scene
        .until("minilm", "three replicas", |model| {
            model.status.as_ref().is_some_and(|status| status.ready_replicas == 3)
        })
        .await;

    let flexible = Patch::Merge(json!({"allowVolumeExpansion": true}));
    classes.patch("rigid", &PatchParams::default(), &flexible).await.unwrap();
    scene.until_ready("minilm").await;
    scene.served_since(mark, "minilm");
    let claims: Api<PersistentVolumeClaim> = scene.api();
    let claim = serde_json::to_value(claims.get("minilm-cache").await.unwrap()).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "20Gi");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_with_the_files_that_is_missing_is_named() {
    let mut scene = Scene::new("claim").await;
    scene.create("minilm", json!({"source": {"persistentVolumeClaim": {"claimName": "weights"}}})).await;
    let why = ["PersistentVolumeClaim weights"];
    let failed = scene.until_not_ready("minilm", Reason::ReferenceMissing, &why).await;
    assert_eq!(kstatus(&failed), Kstatus::Failed);
    let claims = scene.any("", "v1", "PersistentVolumeClaim");
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fake",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    scene.foreign(&claims, claim).await;
    scene.until_ready("minilm").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operators_configuration_does_not_allow_is_refused_and_healed_by_it() {
    let allowed = vec!["https://hub.test".to_owned(), "https://mirror.test".to_owned()];
    let strict = Config { allowed_endpoints: allowed, ..config() };
    let mut scene = Scene::with("allowed", strict.clone()).await;
    let from = |endpoint: &str| json!({"huggingFace": {"repo": "org/name", "endpoint": endpoint}});
    scene.create("other", json!({"source": from("https://hub.test.evil.test")})).await;
    let why = ["source.huggingFace.endpoint", "https://hub.test, https://mirror.test", "--allowed-endpoints"];
    let refused = scene.until_not_ready("other", Reason::NotAllowed, &why).await;
    assert_eq!(kstatus(&refused), Kstatus::Failed);
    assert!(is(&refused, "ModelCached", "False", "NotAllowed"), "{refused:?}");
    scene.change("other", json!({"spec": {"source": from("https://mirror.test/hub")}})).await;
    scene.until_ready("other").await;

    scene.now();
    scene.create("gpu", json!({"source": hub(), "gpu": {}})).await;
    let why = ["gpu", "--server-cuda-image", "spec.image"];
    scene.until_not_ready("gpu", Reason::NoCudaImage, &why).await;
    let pods = scene.pods("gpu", "fetch").await;
    assert!(pods.is_empty() && scene.api::<Deployment>().get_opt("gpu").await.unwrap().is_none());
    // A spec that served before and is refused now serves on.
    let uids = scene.uids("other").await;
    scene.change("other", json!({"spec": {"gpu": {}}})).await;
    let mark = scene.mark;
    let refused = scene.until_not_ready("other", Reason::NoCudaImage, &[]).await;
    assert!(is(&refused, "Available", "True", "Ready"), "{refused:?}");
    assert!(is(&refused, "ModelCached", "True", "Cached"), "{refused:?}");
    assert_eq!(scene.uids("other").await, uids);
    scene.served_since(mark, "other");

    // The operator is started anew with an image for it.
    scene.now();
    scene.operator.take().unwrap().stop().await;
    let config = Config { server_cuda_image: Some("registry.test/embedding-server:1-cuda".into()), ..strict };
    scene.operator = Some(Operator::start(scene.plane, &scene.namespace, config));
    scene.until_ready("gpu").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_stays_and_its_name_is_told() {
    let mut scene = Scene::new("conflict").await;
    let service = json!({"ports": [{"port": 80}], "selector": {"app": "theirs"}});
    let claim = json!({
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fake",
        "resources": {"requests": {"storage": "1Gi"}},
    });
    let deployment = json!({
        "replicas": 0,
        "selector": {"matchLabels": {"app": "theirs"}},
        "template": {
            "metadata": {"labels": {"app": "theirs"}},
            "spec": {"containers": [{"name": "theirs", "image": "theirs"}]},
        },
    });
    // With our label, as what a deleted model left behind has it, and without.
    let ours = json!({"embeddings.kagent.dev/model": "e"});
    let table = [
        ("a", "", "Service", "a", service, json!({})),
        ("b", "", "PersistentVolumeClaim", "b-cache", claim, json!({})),
        ("c", "apps", "Deployment", "c", deployment.clone(), json!({})),
        ("d", "", "ServiceAccount", "d", Value::Null, json!({})),
        ("e", "apps", "Deployment", "e", deployment, ours),
    ];
    for (model, group, kind, name, spec, labels) in table {
        let api = scene.any(group, "v1", kind);
        let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        let metadata = json!({"name": name, "labels": labels});
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        if !spec.is_null() {
            object["spec"] = spec;
        }
        scene.foreign(&api, object).await;
        // The controllers have something to say about it, too.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = api.get(name).await.unwrap();

        scene.now();
        scene.create(model, json!({"source": hub()})).await;
        let why = format!("there is a {kind} {name} already");
        let failed = scene.until_not_ready(model, Reason::NameConflict, &[&why]).await;
        assert_eq!(kstatus(&failed), Kstatus::Failed);
        assert!(is(&failed, "Available", "False", "Unavailable"), "{failed:?}");
        // At least another try.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = api.get(name).await.unwrap();
        assert_eq!(after.resource_version(), before.resource_version(), "{after:?}");

        scene.now();
        api.delete(name, &DeleteParams::default()).await.unwrap();
        scene.until_ready(model).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_that_is_missing_is_named() {
    let mut scene = Scene::new("account").await;
    let spec = json!({"source": hub(), "podTemplate": {"serviceAccountName": "embedder"}});
    scene.create("minilm", spec).await;
    let why = ["Job minilm-fetch-", "serviceaccount \"embedder\" not found"];
    scene.until_not_ready("minilm", Reason::ReferenceMissing, &why).await;
    let accounts = scene.any("", "v1", "ServiceAccount");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "embedder"}});
    scene.foreign(&accounts, account).await;
    scene.until_ready("minilm").await;

    // The same for pods that serve; those that do, stay.
    accounts.delete("embedder", &DeleteParams::default()).await.unwrap();
    scene.change("minilm", json!({"spec": {"replicas": 2}})).await;
    let mark = scene.mark;
    let why = ["Deployment minilm", "serviceaccount \"embedder\" not found"];
    scene.until_not_ready("minilm", Reason::ReferenceMissing, &why).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "embedder"}});
    scene.foreign(&accounts, account).await;
    scene.until_ready("minilm").await;
    scene.served_since(mark, "minilm");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_transitions_and_are_not_repeated() {
    let mut scene = Scene::new("events").await;
    scene.server.plays(Play::ImagePullBackOff);
    scene.create("minilm", json!({"source": hub()})).await;
    scene.until_not_ready("minilm", Reason::ImagePullFailed, &[]).await;
    // The operator looks at it again and again meanwhile.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let events = scene.events("minilm").await;
    assert_eq!(events.last(), Some(&warning(Reason::ImagePullFailed)), "{events:?}");
    assert_eq!(events.iter().filter(|(type_, _)| type_ == "Warning").count(), 1, "{events:?}");
    scene.replay("minilm", "server", Play::ready()).await;
    scene.until_ready("minilm").await;
    wait_for("an event", PATIENCE, async || {
        let events = scene.events("minilm").await;
        if events.last() == Some(&("Normal".to_owned(), "Ready".to_owned())) {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        }
    })
    .await;
    let told = scene.events("minilm").await;
    let touch = json!({"metadata": {"annotations": {"example.com/touched": "yes"}}});
    scene.change("minilm", touch).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(scene.events("minilm").await, told);
    scene.end().await;
}

/// On a control plane of its own, because a default class holds for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_a_default_class_is_told() {
    let crds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let plane = ControlPlane::start(&crds).await;
    let namespace = plane.namespace("classless").await;
    let _node = FakeNode::builder().job_message(SUMMARY).start(&plane, &namespace).await;
    let operator = Operator::start(&plane, &namespace, config());
    let models = models(&plane, &namespace);
    operator::create(&models, "minilm", json!({"source": hub()})).await;
    wait_for_object(&models, "minilm", "no class", PATIENCE, |model| {
        is(model, "Ready", "False", "VolumeFailed")
            && message(model, "Ready").contains("PersistentVolumeClaim minilm-cache")
            && message(model, "Ready").contains("no storage class is set")
    })
    .await;
    let _volumes = Provisioner::start(&plane, &namespace).await;
    wait_for_object(&models, "minilm", "ready", PATIENCE, is_ready).await;
    operator.stop().await;
}
