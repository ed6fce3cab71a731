//! A node that is not there: it plays scheduler and kubelet for the pods of one namespace, so
//! that the real controllers see pods live and fail. Nothing runs or takes room, and the logs are
//! what a test says.

mod logs;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::pin::pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Event, Node, ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinSet};

use self::logs::{Logs, Port};
use super::cluster::{ControlPlane, Namespace};

/// The user that a node's requests are from, so that they can be told from those of tests.
pub const USER: &str = "fake-kubelet";

/// Where the API server finds the node.
const ADDRESS: &str = "127.0.0.1";
/// How often a kubelet renews its node's lease.
const RENEWAL: Duration = Duration::from_secs(10);
/// Before the first restart of a container that crashed; it doubles as a kubelet's does, which
/// begins with ten seconds.
const FIRST_RESTART: Duration = Duration::from_secs(1);
/// Longer delays do not grow.
const LONGEST_RESTART: Duration = Duration::from_secs(8);
/// Between attempts while the API server cannot be reached.
const RETRY: Duration = Duration::from_millis(100);

/// What happens to a pod. What ends a container ends the pod where its restart policy says so
/// (pods of Jobs); else the container is restarted, and ends so again: `CrashLoopBackOff`.
/// In pods of several containers it happens to the first; the others do well.
#[derive(Clone, Debug)]
pub enum Play {
    /// The containers run, and are ready some time later.
    Run { ready_after: Duration },
    /// The containers run and their readiness probes go on failing.
    NeverReady,
    /// All containers end well, with this termination message.
    Succeed { termination_message: String },
    /// The container ends by itself, with this termination message.
    Fail { exit_code: i32, message: String },
    /// The container ends at once, each time it is started.
    CrashLoop { exit_code: i32 },
    /// The system kills the container for its memory.
    OomKill,
    /// The image cannot be had.
    ImagePullBackOff,
    /// The container cannot be made: a Secret it names is missing, for example.
    ConfigError(String),
    /// No node is good for the pod; with the scheduler's message.
    Unschedulable(String),
    /// The init containers end well with this termination message, then the rest happens. The
    /// others let them end without one.
    Init { termination_message: String, then: Box<Play> },
    /// The first init container ends so.
    InitFail { exit_code: i32, message: String },
}

impl Play {
    /// Run, and be ready at once.
    pub fn ready() -> Self {
        Self::Run { ready_after: Duration::ZERO }
    }

    pub fn unschedulable(message: &str) -> Self {
        Self::Unschedulable(message.to_owned())
    }

    pub fn succeed(termination_message: &str) -> Self {
        Self::Succeed { termination_message: termination_message.to_owned() }
    }

    pub fn fail(exit_code: i32, message: &str) -> Self {
        Self::Fail { exit_code, message: message.to_owned() }
    }

    /// This, after init containers that ended with a message.
    pub fn after_init(self, termination_message: &str) -> Self {
        Self::Init { termination_message: termination_message.to_owned(), then: Box::new(self) }
    }
}

type Script = Box<dyn Fn(&Pod) -> Option<Play> + Send + Sync>;

/// A node to be.
pub struct Builder {
    allocatable: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    job_message: String,
    script: Script,
}

/// A node, until it is dropped: then its pods stay as they are.
pub struct FakeNode {
    pub name: String,
    stage: Arc<Stage>,
    logs: Logs,
    _tasks: JoinSet<()>,
}

impl FakeNode {
    /// Pods of Jobs succeed and all others run, unless a script says else.
    pub fn builder() -> Builder {
        let allocatable = [("cpu", "8"), ("memory", "32Gi"), ("ephemeral-storage", "100Gi"), ("pods", "110")];
        Builder {
            allocatable: allocatable.map(|(name, amount)| (name.to_owned(), amount.to_owned())).into(),
            labels: BTreeMap::new(),
            job_message: String::new(),
            script: Box::new(|_| None),
        }
    }

    /// Lets something else happen from now on to a pod that is there.
    pub fn play(&self, pod: &str, play: Play) {
        let mut actors = self.stage.actors();
        let actor = actors.values_mut().find(|actor| actor.pod == pod && !actor.leaving);
        let actor = actor.unwrap_or_else(|| panic!("the node has not seen a pod {pod}"));
        actor.task.abort();
        actor.task = self.stage.perform(&actor.body, play);
    }

    /// What the containers of pods whose names begin so have written, from now on: the API server
    /// has it for who reads their logs. Where several beginnings fit, the longest counts; where
    /// none does, the pod's logs are not found.
    pub fn logs(&self, pod_name_prefix: &str, text: &str) {
        self.logs.set(pod_name_prefix, text);
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        for actor in self.stage.actors().values() {
            actor.task.abort();
        }
    }
}

impl Builder {
    /// What the node offers of a resource, like `nvidia.com/gpu`. It is only told, never counted.
    #[must_use]
    pub fn allocatable(mut self, resource: &str, amount: &str) -> Self {
        self.allocatable.insert(resource.to_owned(), amount.to_owned());
        self
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The termination message of Jobs' pods that the script says nothing about.
    #[must_use]
    pub fn job_message(mut self, message: &str) -> Self {
        message.clone_into(&mut self.job_message);
        self
    }

    /// Asked once for each new pod; `None` is what pods usually do.
    #[must_use]
    pub fn script(mut self, script: impl Fn(&Pod) -> Option<Play> + Send + Sync + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    /// Registers the node and begins to play the pods of the namespace, which it has to itself.
    pub async fn start(self, plane: &ControlPlane, namespace: &Namespace) -> FakeNode {
        let client = plane.client_as(USER, &["system:masters"]);
        let name = format!("node-of-{namespace}");
        let (logs, port) = (Logs::default(), Port::open().await);
        self.register(&client, &name, port.number()).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        renew(&leases, &name).await;
        let stage = Arc::new(Stage {
            node: name.clone(),
            pods: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client, namespace),
            script: self.script,
            job_message: self.job_message,
            actors: Mutex::default(),
            addresses: AtomicU16::new(1),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let name = name.clone();
            async move {
                loop {
                    tokio::time::sleep(RENEWAL).await;
                    renew(&leases, &name).await;
                }
            }
        });
        tasks.spawn(Arc::clone(&stage).watch());
        tasks.spawn({
            let (logs, namespace) = (logs.clone(), namespace.clone());
            async move { logs.serve(&namespace, port).await }
        });
        FakeNode { name, stage, logs, _tasks: tasks }
    }

    async fn register(&self, client: &Client, name: &str, port: u16) {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
        labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
        labels.insert("kubernetes.io/arch".to_owned(), "amd64".to_owned());
        let now = Timestamp::now();
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now});
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {
                "capacity": self.allocatable,
                "allocatable": self.allocatable,
                // No host name: the API server would prefer it, and it leads nowhere.
                "addresses": [{"type": "InternalIP", "address": ADDRESS}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
                "conditions": [
                    condition("Ready", "True", "KubeletReady"),
                    condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                    condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                ],
            },
        });
        let node: Node = serde_json::from_value(node).expect("a node");
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &node).await.expect("the node can be registered");
    }
}

async fn renew(leases: &Api<Lease>, name: &str) {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{:.6}", Timestamp::now())},
    });
    let (how, lease) = (PatchParams::apply(USER).force(), Patch::Apply(&lease));
    until_told(&format!("renewing the lease of {name}"), || leases.patch(name, &how, &lease)).await;
}

/// Asks until the API server answers, which restarts in some tests. Nothing where what is asked
/// about is gone.
async fn until_told<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = kube::Result<T>>,
{
    loop {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(kube::Error::Api(status)) if status.code == 404 => return None,
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                // A test that waits for it fails soon, and this says why.
                complain(what, &status);
                return None;
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// Says what a component of Kubernetes would say about an object of a namespace, as an event;
/// about a pod, its kubelet or the scheduler.
pub async fn tell(client: Client, about: &ObjectReference, type_: &str, reason: &str, message: &str) {
    let namespace = about.namespace.clone().unwrap_or_default();
    let now = Timestamp::now();
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "told-"},
        "involvedObject": about,
        "type": type_,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": Time(now),
        "lastTimestamp": Time(now),
        "source": {"component": USER},
    });
    let event: Event = serde_json::from_value(event).expect("an event");
    let events: Api<Event> = Api::namespaced(client, &namespace);
    events.create(&PostParams::default(), &event).await.expect("the API server takes it");
}

fn complain(what: &str, error: &dyn Display) {
    eprintln!("{USER}: {what}: {error}");
}

/// What the tasks of a node share.
struct Stage {
    node: String,
    pods: Api<Pod>,
    claims: Api<PersistentVolumeClaim>,
    script: Script,
    job_message: String,
    /// By uid: a pod's name may come back.
    actors: Mutex<HashMap<String, Actor>>,
    addresses: AtomicU16,
}

struct Actor {
    pod: String,
    body: Arc<tokio::sync::Mutex<Body>>,
    task: AbortHandle,
    leaving: bool,
}

impl Stage {
    fn actors(&self) -> std::sync::MutexGuard<'_, HashMap<String, Actor>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(self: Arc<Self>) {
        let mut pods =
            pin!(watcher(self.pods.clone(), watcher::Config::default()).default_backoff().applied_objects());
        while let Some(pod) = pods.next().await {
            // An error means that it watches anew.
            if let Ok(pod) = pod {
                self.see(pod);
            }
        }
    }

    fn see(self: &Arc<Self>, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        let spec = pod.spec.as_ref();
        if spec.and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| *node != self.node) {
            return;
        }
        let deleted = pod.metadata.deletion_timestamp.is_some();
        let mut actors = self.actors();
        if let Some(actor) = actors.get_mut(&uid) {
            if deleted && !actor.leaving {
                actor.leaving = true;
                actor.task.abort();
                actor.task = self.leave(&actor.body);
            }
            return;
        }
        let name = pod.name_any();
        let play = (self.script)(&pod).unwrap_or_else(|| self.usual(&pod));
        let body = Arc::new(tokio::sync::Mutex::new(Body::new(pod, self)));
        let task = if deleted { self.leave(&body) } else { self.perform(&body, play) };
        actors.insert(uid, Actor { pod: name, body, task, leaving: deleted });
    }

    fn usual(&self, pod: &Pod) -> Play {
        if pod.owner_references().iter().any(|owner| owner.kind == "Job") {
            Play::succeed(&self.job_message)
        } else {
            Play::ready()
        }
    }

    fn perform(self: &Arc<Self>, body: &Arc<tokio::sync::Mutex<Body>>, play: Play) -> AbortHandle {
        let (stage, body) = (Arc::clone(self), Arc::clone(body));
        tokio::spawn(async move {
            // Whoever has it was aborted, and leaves it at its next wait.
            let mut body = body.lock().await;
            body.perform(&stage, play).await;
        })
        .abort_handle()
    }

    fn leave(self: &Arc<Self>, body: &Arc<tokio::sync::Mutex<Body>>) -> AbortHandle {
        let (stage, body) = (Arc::clone(self), Arc::clone(body));
        tokio::spawn(async move {
            let mut body = body.lock().await;
            body.leave(&stage).await;
        })
        .abort_handle()
    }
}

/// What a kubelet knows of a pod.
struct Body {
    name: String,
    uid: String,
    restart_policy: String,
    bound: bool,
    claims: Vec<String>,
    address: String,
    started: Option<Timestamp>,
    phase: &'static str,
    conditions: BTreeMap<&'static str, Condition>,
    init: Vec<Instance>,
    containers: Vec<Instance>,
}

#[derive(PartialEq)]
struct Condition {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
    since: Timestamp,
}

/// A container.
struct Instance {
    name: String,
    image: String,
    /// An init container that stays, beside the containers.
    sidecar: bool,
    state: Value,
    last_state: Value,
    restarts: u32,
    /// Whether its startup probe has passed: never in one that ends at once.
    started: bool,
    ready: bool,
}

/// How a container ended.
struct Exit {
    code: i32,
    reason: &'static str,
    message: String,
}

impl Body {
    fn new(pod: Pod, stage: &Stage) -> Self {
        let [high, low] = stage.addresses.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        let spec = pod.spec.unwrap_or_default();
        let volumes = spec.volumes.unwrap_or_default();
        Self {
            name,
            uid,
            restart_policy: spec.restart_policy.unwrap_or_default(),
            bound: spec.node_name.is_some(),
            claims: volumes
                .into_iter()
                .filter_map(|volume| Some(volume.persistent_volume_claim?.claim_name))
                .collect(),
            address: format!("10.244.{high}.{low}"),
            started: None,
            phase: "Pending",
            conditions: BTreeMap::new(),
            init: spec.init_containers.unwrap_or_default().into_iter().map(Instance::new).collect(),
            containers: spec.containers.into_iter().map(Instance::new).collect(),
        }
    }

    async fn perform(&mut self, stage: &Stage, play: Play) {
        if let Play::Unschedulable(message) = play {
            self.condition("PodScheduled", false, Some("Unschedulable"), Some(message));
            self.publish(stage).await;
            return;
        }
        self.schedule(stage).await;
        self.prepare(stage).await;
        let (init_message, play) = match play {
            Play::Init { termination_message, then } => (termination_message, *then),
            play => (String::new(), play),
        };
        if let Play::InitFail { exit_code, message } = play {
            return self.fail_init(stage, exit_code, message).await;
        }
        self.run_init(stage, &init_message).await;
        match play {
            Play::Run { ready_after } => self.run(stage, ready_after).await,
            Play::NeverReady => {
                self.start(0);
                self.publish(stage).await;
            }
            Play::Succeed { termination_message: message } => {
                self.end(stage, &Exit { code: 0, reason: "Completed", message }).await;
            }
            Play::Fail { exit_code, message } => {
                self.end(stage, &Exit { code: exit_code, reason: "Error", message }).await;
            }
            Play::CrashLoop { exit_code } => {
                self.end(stage, &Exit { code: exit_code, reason: "Error", message: String::new() }).await;
            }
            Play::OomKill => {
                self.end(stage, &Exit { code: 137, reason: "OOMKilled", message: String::new() }).await;
            }
            Play::ImagePullBackOff => {
                let image = self.containers[0].image.clone();
                let failed = format!("failed to pull and unpack image \"{image}\": not found");
                self.block(stage, "ErrImagePull", &failed).await;
                let waits = format!("Back-off pulling image \"{image}\": ErrImagePull: {failed}");
                self.block(stage, "ImagePullBackOff", &waits).await;
            }
            Play::ConfigError(message) => self.block(stage, "CreateContainerConfigError", &message).await,
            play @ (Play::Unschedulable(_) | Play::Init { .. } | Play::InitFail { .. }) => {
                complain(&self.name, &format!("init containers cannot be followed by {play:?}"));
            }
        }
    }

    /// Does what the scheduler does, which waits for volumes.
    async fn schedule(&mut self, stage: &Stage) {
        if self.bound {
            return;
        }
        for claim in self.claims.clone() {
            loop {
                let claim = until_told("reading a claim", || stage.claims.get_opt(&claim)).await.flatten();
                let status = claim.and_then(|claim| claim.status);
                if status.and_then(|status| status.phase).is_some_and(|phase| phase == "Bound") {
                    break;
                }
                let message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
                if self.condition("PodScheduled", false, Some("Unschedulable"), Some(message.to_owned())) {
                    self.publish(stage).await;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": self.name, "uid": self.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": stage.node},
        });
        let parameters = PostParams::default();
        until_told(&format!("binding {}", self.name), || {
            stage.pods.create_subresource::<_, Value>("binding", &self.name, &parameters, &binding)
        })
        .await;
        // The API server has set the condition with the binding.
        self.conditions.remove("PodScheduled");
        self.bound = true;
    }

    /// The node has the pod, and has started no container.
    async fn prepare(&mut self, stage: &Stage) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(Timestamp::now());
        self.condition("PodReadyToStartContainers", true, None, None);
        let reason = if self.init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        for instance in self.init.iter_mut().chain(&mut self.containers) {
            instance.state = json!({"waiting": {"reason": reason}});
        }
        self.publish(stage).await;
    }

    async fn run_init(&mut self, stage: &Stage, message: &str) {
        for index in 0..self.init.len() {
            let instance = &mut self.init[index];
            if instance.is_over() || instance.ready {
                continue;
            }
            instance.run();
            if instance.sidecar {
                instance.ready = true;
            } else {
                let exit = Exit { code: 0, reason: "Completed", message: message.to_owned() };
                instance.end(&exit);
                instance.ready = true;
            }
            self.publish(stage).await;
        }
    }

    async fn fail_init(&mut self, stage: &Stage, code: i32, message: String) {
        let exit = Exit { code, reason: "Error", message };
        let Some(first) = self.init.first_mut() else {
            return complain(&self.name, &"there is no init container that could fail");
        };
        first.run();
        if self.restart_policy == "Never" {
            first.end(&exit);
            self.phase = "Failed";
            return self.publish(stage).await;
        }
        let mut delay = FIRST_RESTART;
        loop {
            self.init[0].run();
            self.publish(stage).await;
            self.init[0].end(&exit);
            self.publish(stage).await;
            self.init[0].back_off(&self.name, delay);
            self.publish(stage).await;
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_RESTART);
        }
    }

    /// All containers run; those from `ready` on are ready.
    fn start(&mut self, ready: usize) {
        self.phase = "Running";
        for (index, instance) in self.containers.iter_mut().enumerate() {
            instance.run();
            instance.started = true;
            instance.ready = index > 0 || ready > 0;
        }
    }

    async fn run(&mut self, stage: &Stage, ready_after: Duration) {
        if !ready_after.is_zero() {
            self.start(0);
            self.publish(stage).await;
            tokio::time::sleep(ready_after).await;
        }
        self.start(1);
        self.publish(stage).await;
    }

    async fn end(&mut self, stage: &Stage, exit: &Exit) {
        self.start(0);
        self.containers[0].started = false;
        self.publish(stage).await;
        let restarts = match self.restart_policy.as_str() {
            "Never" => false,
            "OnFailure" => exit.code != 0,
            _ => true,
        };
        if !restarts {
            let well = Exit { code: 0, reason: "Completed", message: exit.message.clone() };
            for (index, instance) in self.containers.iter_mut().enumerate() {
                instance.end(if index == 0 { exit } else { &well });
            }
            self.finish(exit.code == 0);
            return self.publish(stage).await;
        }
        // The first time at once, as a kubelet does.
        self.containers[0].end(exit);
        self.publish(stage).await;
        self.containers[0].run();
        self.publish(stage).await;
        let mut delay = FIRST_RESTART;
        loop {
            self.containers[0].end(exit);
            self.publish(stage).await;
            self.containers[0].back_off(&self.name, delay);
            self.publish(stage).await;
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_RESTART);
            self.containers[0].run();
            self.publish(stage).await;
        }
    }

    fn finish(&mut self, well: bool) {
        self.phase = if well { "Succeeded" } else { "Failed" };
        let exit = Exit { code: 0, reason: "Completed", message: String::new() };
        for instance in self.init.iter_mut().filter(|instance| instance.sidecar) {
            instance.end(&exit);
        }
    }

    /// The first container cannot be started.
    async fn block(&mut self, stage: &Stage, reason: &str, message: &str) {
        for instance in self.containers.iter_mut().skip(1) {
            instance.run();
            instance.ready = true;
        }
        self.containers[0].state = json!({"waiting": {"reason": reason, "message": message}});
        self.containers[0].ready = false;
        self.publish(stage).await;
    }

    /// Ends the containers of a pod that is deleted, and lets the API server forget it. A server
    /// ends well when it is asked to; a Job's pod that did not get to its end has failed.
    async fn leave(&mut self, stage: &Stage) {
        if self.bound && !matches!(self.phase, "Succeeded" | "Failed") {
            let serves = self.restart_policy == "Always";
            let (code, reason) = if serves { (0, "Completed") } else { (143, "Error") };
            let exit = Exit { code, reason, message: String::new() };
            for instance in self.containers.iter_mut().filter(|instance| instance.is_running()) {
                instance.end(&exit);
            }
            self.finish(serves);
            self.publish(stage).await;
        }
        let mut now = DeleteParams::default().grace_period(0);
        now.preconditions = Some(Preconditions { uid: Some(self.uid.clone()), ..Preconditions::default() });
        until_told(&format!("removing {}", self.name), || stage.pods.delete(&self.name, &now)).await;
    }

    /// Sets a condition, which keeps its time where it was so before. Whether it was not.
    fn condition(
        &mut self,
        kind: &'static str,
        status: bool,
        reason: Option<&'static str>,
        message: Option<String>,
    ) -> bool {
        let before = self.conditions.get(kind);
        let since = before
            .filter(|before| before.status == status)
            .map_or_else(Timestamp::now, |before| before.since);
        let now = Condition { status, reason, message, since };
        let changed = before != Some(&now);
        self.conditions.insert(kind, now);
        changed
    }

    /// The conditions that follow from the containers, by a kubelet's rules.
    fn conclude(&mut self) {
        let done = match self.phase {
            "Succeeded" => Some("PodCompleted"),
            "Failed" => Some("PodFailed"),
            _ => None,
        };
        let incomplete = names(&self.init, |instance| !instance.ready);
        if incomplete.is_empty() {
            self.condition("Initialized", true, done.filter(|reason| *reason == "PodCompleted"), None);
        } else {
            let message = format!("containers with incomplete status: [{incomplete}]");
            self.condition("Initialized", false, Some("ContainersNotInitialized"), Some(message));
        }
        let unready = names(&self.containers, |instance| !instance.ready);
        let reason = done.or_else(|| (!unready.is_empty()).then_some("ContainersNotReady"));
        let message = match done {
            None if !unready.is_empty() => Some(format!("containers with unready status: [{unready}]")),
            _ => None,
        };
        for kind in ["ContainersReady", "Ready"] {
            self.condition(kind, reason.is_none(), reason, message.clone());
        }
    }

    async fn publish(&mut self, stage: &Stage) {
        let placed = self.started.is_some();
        if placed {
            self.conclude();
        }
        let conditions: Vec<_> = self
            .conditions
            .iter()
            .map(|(kind, condition)| {
                json!({
                    "type": kind,
                    "status": if condition.status { "True" } else { "False" },
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastTransitionTime": condition.since,
                })
            })
            .collect();
        let mut status = json!({"phase": self.phase, "conditions": conditions});
        if placed {
            let address = &self.address;
            status["startTime"] = json!(self.started);
            status["hostIP"] = json!(ADDRESS);
            status["hostIPs"] = json!([{"ip": ADDRESS}]);
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{"ip": address}]);
            status["initContainerStatuses"] = self.init.iter().map(Instance::status).collect();
            status["containerStatuses"] = self.containers.iter().map(Instance::status).collect();
        }
        // Strategic: conditions are merged by type, so that those of others stay.
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.uid}, "status": status}));
        let parameters = PatchParams::default();
        until_told(&format!("the status of {}", self.name), || {
            stage.pods.patch_status(&self.name, &parameters, &patch)
        })
        .await;
    }
}

impl Instance {
    fn new(container: Container) -> Self {
        Self {
            name: container.name,
            image: container.image.unwrap_or_default(),
            sidecar: container.restart_policy.is_some_and(|policy| policy == "Always"),
            state: Value::Null,
            last_state: Value::Null,
            restarts: 0,
            started: false,
            ready: false,
        }
    }

    fn is_running(&self) -> bool {
        self.state.get("running").is_some()
    }

    fn is_over(&self) -> bool {
        self.state.get("terminated").is_some()
    }

    /// It runs, as another instance where it ended before.
    fn run(&mut self) {
        if self.is_running() {
            return;
        }
        if self.is_over() {
            self.last_state = self.state.take();
        }
        if !self.last_state.is_null() {
            self.restarts += 1;
        }
        self.state = json!({"running": {"startedAt": Timestamp::now()}});
    }

    fn end(&mut self, exit: &Exit) {
        let now = Timestamp::now();
        let started = self.state.pointer("/running/startedAt").cloned();
        self.ready = false;
        self.started = false;
        self.state = json!({"terminated": {
            "exitCode": exit.code,
            "reason": exit.reason,
            "message": exit.message,
            "startedAt": started.unwrap_or_else(|| json!(now)),
            "finishedAt": now,
            "containerID": self.id(),
        }});
    }

    /// It ended and waits to be restarted.
    fn back_off(&mut self, pod: &str, delay: Duration) {
        let message = format!("back-off {delay:?} restarting failed container={} pod={pod}", self.name);
        self.last_state = std::mem::replace(
            &mut self.state,
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}}),
        );
    }

    fn id(&self) -> String {
        format!("fake://{}/{}", self.name, self.restarts)
    }

    fn status(&self) -> Value {
        let exists = self.is_running() || !self.last_state.is_null() || self.is_over();
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": if exists { self.image.as_str() } else { "" },
            "containerID": exists.then(|| self.id()),
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restarts,
            "ready": self.ready,
            "started": self.is_running() && self.started,
        })
    }
}

fn names(instances: &[Instance], which: impl Fn(&Instance) -> bool) -> String {
    let names: Vec<_> =
        instances.iter().filter(|instance| which(instance)).map(|instance| &*instance.name).collect();
    names.join(" ")
}
