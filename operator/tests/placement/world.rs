//! A control plane with the real scheduler, and nodes that are not there: kwok plays their
//! kubelets (`stages.yaml`). A test has a namespace whose pods can only go to its own nodes.

use std::collections::BTreeMap;

use embedding_operator::config::Config;
use embedding_operator::controller::build::names;
use embedding_operator::crd::EmbeddingModel;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Node, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::cluster::{ControlPlane, Namespace, Process};
use crate::support::operator::{self, Operator, PATIENCE, SUMMARY};
use crate::support::wait::{wait_for, wait_for_object};

pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
/// Of nodes that have a kubelet: kwok plays it.
const KUBELET: &str = "placement.test/kubelet";
/// Of nodes: the namespace that they are for.
const NAMESPACE: &str = "placement.test/namespace";
/// The selector that the API server gives to the pods of a namespace.
const NODE_SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// Where it is "true", a pod runs and does not become ready.
pub(crate) const WAIT: &str = "placement.test/wait";

/// Seconds after which a node that says nothing counts as lost.
const GRACE: u32 = 20;
/// Seconds that a lease of a node is good for; kwok renews it four times as often.
const LEASE: u32 = 8;

static CLUSTER: OnceCell<Result<Cluster, String>> = OnceCell::const_new();

/// The control plane with what makes pods run.
pub(crate) struct Cluster {
    // The order in which they are dropped.
    kwok: Process,
    scheduler: Process,
    plane: ControlPlane,
}

impl Cluster {
    /// The one of this test binary, because it takes seconds to start.
    pub(crate) async fn shared() -> &'static Self {
        let cluster = CLUSTER.get_or_init(Self::try_start).await;
        cluster.as_ref().unwrap_or_else(|error| panic!("the cluster did not start: {error}"))
    }

    /// Another one, for a test in which no other nodes may be.
    pub(crate) async fn start() -> Self {
        Self::try_start().await.unwrap_or_else(|error| panic!("the cluster did not start: {error}"))
    }

    /// A namespace without nodes.
    pub(crate) async fn world(&self, prefix: &str) -> World<'_> {
        World::on(&self.plane, prefix).await
    }

    async fn try_start() -> Result<Self, String> {
        let grace = format!("--node-monitor-grace-period={GRACE}s");
        let plane = ControlPlane::start_with(&[&grace]).await?;
        let scheduler = plane.run("kube-scheduler", &scheduler_arguments(&plane))?;
        let kwok = plane.run("kwok", &kwok_arguments(&plane))?;
        let mut cluster = Self { kwok, scheduler, plane };
        cluster.runs_a_pod().await?;
        Ok(cluster)
    }

    /// Neither has a port that could be asked whether it works. A pod needs both.
    async fn runs_a_pod(&mut self) -> Result<(), String> {
        let world = self.world("first").await;
        world.add(Machine::new("a")).await;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "first"},
            "spec": {"containers": [{"name": "server", "image": "registry.test/server:1"}]},
        });
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), &world.namespace);
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        pods.create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())?;
        let runs = async || loop {
            if pods.get("first").await.is_ok_and(|pod| is_ready(&pod)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        if tokio::time::timeout(PATIENCE, runs()).await.is_err() {
            let logs = [self.scheduler.log_tail(), self.kwok.log_tail()].join("\n");
            return Err(format!("the first pod does not run on a fake node\n{logs}"));
        }
        world.nodes().delete(&world.name_of("a"), &DeleteParams::default()).await.expect("it can go");
        Ok(())
    }
}

/// As it comes, but for waits: a pod is tried again after a second.
fn scheduler_arguments(plane: &ControlPlane) -> Vec<String> {
    let configuration = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {
            "kubeconfig": plane.kubeconfig_file_as("system:kube-scheduler", &[]),
            "qps": 1000,
            "burst": 2000,
        },
        "leaderElection": {"leaderElect": false},
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 1,
    });
    let file = plane.write("scheduler.json", &configuration.to_string());
    vec![format!("--config={}", file.display()), "--secure-port=0".to_owned()]
}

fn kwok_arguments(plane: &ControlPlane) -> Vec<String> {
    let stages = include_str!("stages.yaml").replace("SUMMARY", SUMMARY);
    vec![
        format!("--kubeconfig={}", plane.kubeconfig_file_as("kwok", &["system:masters"]).display()),
        format!("--config={}", plane.write("stages.yaml", &stages).display()),
        format!("--manage-nodes-with-label-selector={KUBELET}=kwok"),
        format!("--node-lease-duration-seconds={LEASE}"),
    ]
}

/// A node to be: in a zone of its own, with eight processors.
pub(crate) struct Machine {
    name: &'static str,
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    allocatable: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn new(name: &'static str) -> Self {
        let allocatable = [("cpu", "8"), ("memory", "32Gi"), ("pods", "110")];
        Self {
            name,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            allocatable: allocatable.map(|(name, amount)| (name.to_owned(), amount.to_owned())).into(),
        }
    }

    #[must_use]
    pub(crate) fn zone(self, zone: &str) -> Self {
        self.label(ZONE, zone)
    }

    #[must_use]
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A taint that keeps pods away which do not tolerate it.
    #[must_use]
    pub(crate) fn taint(mut self, key: &str) -> Self {
        self.taints.push(json!({"key": key, "value": "true", "effect": "NoSchedule"}));
        self
    }

    #[must_use]
    pub(crate) fn allocatable(mut self, resource: &str, amount: &str) -> Self {
        self.allocatable.insert(resource.to_owned(), amount.to_owned());
        self
    }
}

/// A namespace with nodes of its own.
pub(crate) struct World<'a> {
    pub(crate) plane: &'a ControlPlane,
    pub(crate) namespace: Namespace,
    pub(crate) client: Client,
    pub(crate) models: Api<EmbeddingModel>,
}

impl<'a> World<'a> {
    async fn on(plane: &'a ControlPlane, prefix: &str) -> Self {
        let namespace = plane.namespace(prefix).await;
        let client = plane.client();
        let selector =
            json!({"metadata": {"annotations": {NODE_SELECTOR: format!("{NAMESPACE}={namespace}")}}});
        let namespaces: Api<NamespaceObject> = Api::all(client.clone());
        let patched = namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&selector)).await;
        patched.expect("a namespace can have an annotation");
        let models = operator::models(plane, &namespace);
        Self { plane, namespace, client, models }
    }

    /// Starts an operator.
    pub(crate) fn operator(&self) -> Operator {
        let config = Config { server_cuda_image: Some("registry.test/cuda:1".into()), ..operator::config() };
        Operator::start(self.plane, &self.namespace, config)
    }

    /// Objects of a type.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// What a node of this test is called in the cluster.
    pub(crate) fn name_of(&self, machine: &str) -> String {
        format!("{}-{machine}", self.namespace)
    }

    /// Adds a node, and waits until pods can go there.
    pub(crate) async fn add(&self, machine: Machine) {
        let name = self.name_of(machine.name);
        let mut labels = machine.labels;
        labels.entry(ZONE.to_owned()).or_insert_with(|| name.clone());
        labels.insert(HOSTNAME.to_owned(), name.clone());
        labels.insert(KUBELET.to_owned(), "kwok".to_owned());
        labels.insert(NAMESPACE.to_owned(), self.namespace.to_string());
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": machine.taints},
            "status": {"capacity": machine.allocatable, "allocatable": machine.allocatable},
        });
        let node: Node = serde_json::from_value(node).expect("a node");
        self.nodes().create(&PostParams::default(), &node).await.expect("the node can be registered");
        wait_for_object(&self.nodes(), &name, "a node that takes pods", PATIENCE, takes_pods).await;
    }

    /// Changes a node by a merge patch.
    pub(crate) async fn change_node(&self, machine: &str, patch: Value) {
        let (name, how) = (self.name_of(machine), PatchParams::default());
        self.nodes().patch(&name, &how, &Patch::Merge(&patch)).await.expect("a node can be changed");
    }

    /// Lets the kubelet of a node die: it says nothing any more, and ends no pod.
    pub(crate) async fn lose(&self, machine: &str) {
        self.change_node(machine, json!({"metadata": {"labels": {KUBELET: null}}})).await;
    }

    /// The servers of a model, but for those that are going.
    pub(crate) async fn servers(&self, model: &str) -> Vec<Pod> {
        let of_model = ListParams::default().labels(&names::server_selector(model));
        let pods = self.api::<Pod>().list(&of_model).await.expect("an administrator may list");
        pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// How many servers of a model are on each node.
    pub(crate) async fn places(&self, model: &str) -> BTreeMap<String, usize> {
        self.places_of(&self.servers(model).await)
    }

    /// How many of these pods are on each node.
    pub(crate) fn places_of(&self, pods: &[Pod]) -> BTreeMap<String, usize> {
        let mut places = BTreeMap::new();
        for pod in pods {
            *places.entry(self.place_of(pod)).or_default() += 1;
        }
        places
    }

    /// The node of a pod, without the namespace.
    fn place_of(&self, pod: &Pod) -> String {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        node.strip_prefix(&format!("{}-", self.namespace)).map(ToOwned::to_owned).unwrap_or(node)
    }

    /// Waits until the pods are there that `are` is true of.
    pub(crate) async fn wait_for_servers(
        &self,
        model: &str,
        what: &str,
        are: impl Fn(&[Pod]) -> bool,
    ) -> Vec<Pod> {
        wait_for(&format!("{what} of {model}"), PATIENCE, async || {
            let pods = self.servers(model).await;
            if are(&pods) { Ok(pods) } else { Err(serde_yaml::to_string(&pods).expect("YAML")) }
        })
        .await
    }

    /// Waits until all pods of a model have left a node, and has those made anew that the scheduler
    /// refused meanwhile. It would look at them again only after five minutes: that pods which they
    /// had to be beside are gone is no reason for it (kubernetes/kubernetes#141354).
    pub(crate) async fn leave(&self, machine: &str, model: &str) {
        let (pods, node) = (self.api::<Pod>(), self.name_of(machine));
        let there = ListParams::default()
            .labels(&names::server_selector(model))
            .fields(&format!("spec.nodeName={node}"));
        wait_for(&format!("{node} without {model}"), PATIENCE, async || match pods.list(&there).await {
            Ok(list) if list.items.is_empty() => Ok(()),
            Ok(list) => Err(serde_yaml::to_string(&list.items).expect("YAML")),
            Err(error) => Err(error.to_string()),
        })
        .await;
        let waiting = ListParams { field_selector: Some("spec.nodeName=".to_owned()), ..there };
        for pod in pods.list(&waiting).await.expect("an administrator may list") {
            pods.delete(&pod.name_any(), &DeleteParams::default()).await.expect("it may delete, too");
        }
    }

    /// Lets a pod that waits become ready.
    pub(crate) async fn release(&self, pod: &Pod) {
        let patch = json!({"metadata": {"annotations": {WAIT: "false"}}});
        let (name, how) = (pod.name_any(), PatchParams::default());
        self.api::<Pod>().patch(&name, &how, &Patch::Merge(&patch)).await.expect("a pod can be changed");
    }

    /// Asks once for a pod to leave its node, as a drain does.
    pub(crate) async fn evict(&self, pod: &Pod) -> kube::Result<()> {
        let mut config = self.plane.config();
        // Else the client asks on until it may.
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client");
        let pods: Api<Pod> = Api::namespaced(client, &self.namespace);
        pods.evict(&pod.name_any(), &EvictParams::default()).await.map(drop)
    }

    /// The answers to all evictions so far.
    pub(crate) fn evictions(&self) -> Vec<u16> {
        let asked = self.plane.audit().of("create", "pods").namespace(&self.namespace);
        let evictions = asked.filter(|entry| entry.object.subresource == "eviction");
        evictions.0.into_iter().map(|entry| entry.status.code).collect()
    }

    /// Runs `kubectl drain`.
    pub(crate) async fn drain(&self, machine: &str) {
        // What is in an emptyDir of a server is of no use to another one.
        self.kubectl(&["drain", &self.name_of(machine), "--delete-emptydir-data", "--timeout=60s"]).await;
    }

    /// Says that a node is off: what an administrator says who has looked.
    pub(crate) async fn declare_off(&self, machine: &str) {
        let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
        self.kubectl(&["taint", "node", &self.name_of(machine), taint]).await;
    }

    async fn kubectl(&self, arguments: &[&str]) {
        let done = self.plane.kubectl(arguments).await;
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }
}

/// Whether the control plane has seen that the kubelet is there.
fn takes_pods(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && taints.iter().all(|taint| !taint.key.starts_with("node.kubernetes.io/"))
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
