//! The `EmbeddingModel` resource: what can be asked for, and what is told back.
//!
//! The schema in `crds/` is generated from these types ([`definition`]). A field is here
//! only when something behaves differently for it. What the schema cannot say in types
//! and bounds is said by the rules in [`rules`]; [`crate::controller::validate`] holds
//! the same rules for objects that were stored before a rule existed.

#![allow(
    clippy::allow_attributes,
    clippy::doc_markdown,
    clippy::duplicated_attributes,
    reason = "docs are what `kubectl explain` shows; each column of a table has a type of its own"
)]

pub mod pod_template;
pub mod rules;
mod schema;
pub mod source;
pub mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use pod_template::PodTemplate;
pub use schema::{QUANTITY, definition, yaml};
pub use source::Source;
pub use status::EmbeddingModelStatus;

/// The API group of everything of ours: resources, labels, annotations.
pub const GROUP: &str = "embeddings.kagent.dev";

/// A text embedding model that is served in the cluster: where it comes from, what it
/// may use, and how many replicas of the server run it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "embeddings.kagent.dev",
    version = "v1alpha1",
    kind = "EmbeddingModel",
    plural = "embeddingmodels",
    shortname = "em",
    category = "kagent",
    namespaced,
    derive = "Default",
    derive = "PartialEq",
    status = "EmbeddingModelStatus",
    doc = "An EmbeddingModel is a text embedding model that is served in the cluster.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.source"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.model.resolvedRevision",
        priority = 1
    ),
    printcolumn(
        name = "Dimensions",
        type_ = "integer",
        json_path = ".status.model.dimensions",
        priority = 1
    ),
    printcolumn(name = "Space", type_ = "string", json_path = ".status.model.space", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingModelSpec {
    /// Where the model's files come from: exactly one of the kinds of source.
    pub source: Source,

    /// The model's name in the HTTP API. Default: the name of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"))]
    pub model_name: Option<String>,

    /// How the server computes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inference: Inference,

    /// What becomes of a change of the vector space: of other vectors, which cannot be
    /// compared with those in an index. `Allow` rolls it out, and the condition SpaceChanged
    /// tells of it. `Refuse` keeps the source and the prompts from being changed, and files
    /// that make other vectors from being served.
    #[serde(default, skip_serializing_if = "is_default")]
    pub space_change_policy: SpaceChangePolicy,

    /// How many replicas of the server run. Beside autoscaling it is ignored.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// Scales the number of replicas by load instead of keeping `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,

    /// CPU and memory of each replica of the server. The server runs as many threads as
    /// its CPU limit allows.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,

    /// GPUs of each replica. With it the CUDA image runs, and the pods tolerate the
    /// taint that has the resource's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,

    /// Where the model's files are kept in the cluster.
    #[serde(default)]
    pub cache: ModelCache,

    /// The Service that clients call.
    #[serde(default)]
    pub service: ServiceOptions,

    /// How the download leaves the cluster, and who may call the server.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: Network,

    /// More for the pods that serve and fetch the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pod_template: PodTemplate,

    /// Metrics for a Prometheus operator.
    #[serde(default, skip_serializing_if = "is_default")]
    pub monitoring: Monitoring,

    /// The server's image. Default: the one that the operator is configured with, which
    /// an upgrade of the operator changes only for models that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"))]
    pub image: Option<String>,

    /// Seconds that a replica may take from its start until it can embed. Default: by the
    /// size of the model, from five minutes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86400))]
    pub startup_timeout_seconds: Option<i32>,

    /// While true, the operator leaves everything that it made for this model as it is;
    /// the status still reports.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
}

/// How the server computes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inference {
    /// Where to compute. `Auto` is a GPU where the model has one, else the CPU.
    #[serde(default, skip_serializing_if = "is_default")]
    pub device: Device,

    /// The number format. `Auto` is bfloat16 where the hardware computes it natively,
    /// else float32.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: Dtype,

    /// The most tokens that are embedded in one forward pass. Default: the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_batch_tokens: Option<i32>,

    /// The most texts, of all requests under way, that a replica takes on; a request
    /// that goes over it is refused with 429. Default: the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_waiting_texts: Option<i32>,

    /// The most requests that a replica works on at once; one that goes over it is refused
    /// with 429. Default: no limit but that of texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_concurrent_requests: Option<i32>,

    /// Texts that are put before inputs, by the names by which requests ask for them (query,
    /// passage). They win over those of that name in the model's files. Names have letters,
    /// digits, '.', '_' and '-'. Part of the vector space: another prompt makes other vectors.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "schema::prompts")]
    pub prompts: BTreeMap<String, String>,

    /// The name of the prompt for inputs of which a request says nothing. Default: the one
    /// that the model's files name, if they do. Part of the vector space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = rules::PROMPT_NAME))]
    pub default_prompt: Option<String>,

    /// What becomes of inputs that are longer than the model takes, where a request does
    /// not say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_overflow: OnOverflow,

    /// Refuses requests that do not say what their inputs are (query, document): a prompt
    /// that was forgotten costs quality in silence.
    #[serde(default, skip_serializing_if = "is_default")]
    pub require_input_type: bool,
}

/// What becomes of inputs that are too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnOverflow {
    /// The end is left away, and the answer says so.
    #[default]
    Truncate,
    /// The request is refused.
    Error,
    /// It is embedded in pieces, and the answer is their mean.
    ChunkMean,
}

/// What becomes of a change of the vector space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SpaceChangePolicy {
    /// It is rolled out, and told.
    #[default]
    Allow,
    /// What is served stays, and that it does is told.
    Refuse,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// A GPU where the model has one, else the CPU.
    #[default]
    Auto,
    /// The CPU, also where there is a GPU.
    #[serde(rename = "CPU")]
    Cpu,
    /// A GPU; the server does not start without one.
    #[serde(rename = "CUDA")]
    Cuda,
}

/// In which number format to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dtype {
    /// bfloat16 where the hardware computes it natively, else float32, or on a GPU float16.
    #[default]
    Auto,
    /// 32-bit floating point.
    Float32,
    /// 16-bit brain floating point.
    BFloat16,
    /// 16-bit floating point, on GPUs.
    Float16,
}

/// Scales the number of replicas by load: by the CPU use, by the tokens that wait, or by
/// what asks for more of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// The least replicas.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,

    /// The most replicas.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,

    /// The CPU use, in percent of the request, that scaling aims at. Default: 80, where
    /// there is no other target.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "targetCPUUtilizationPercentage")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_utilization_percentage: Option<i32>,

    /// The tokens waiting in a replica's queue, on average, that scaling aims at. Needs a
    /// custom metrics API in the cluster that knows embedding_waiting_tokens of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub target_queued_tokens_per_replica: Option<i32>,

    /// How fast to scale up and down, as in a HorizontalPodAutoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// CPU and memory of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// GPUs of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// How many.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,

    /// The name under which the nodes offer them.
    #[serde(default = "nvidia_gpu")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub resource_name: String,
}

/// Where the model's files are kept in the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelCache {
    /// How large the volume is: room for two revisions of the model. It can grow where
    /// the storage class allows expansion, and never shrinks.
    #[serde(default = "ten_gibibytes")]
    #[schemars(schema_with = "schema::quantity")]
    pub size: Quantity,

    /// The storage class of the volume. Default: the cluster's. Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,

    /// How the volume can be mounted. With ReadWriteOnce all replicas run on the node
    /// that has the volume; with ReadWriteMany they spread. Cannot be changed later.
    #[serde(default = "read_write_once")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub access_modes: Vec<AccessMode>,

    /// Whether the volume outlives this resource. A resource of the same name and source
    /// takes it up again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retain: bool,

    /// Fetches the model into each pod's own scratch space, without a volume. The
    /// revision has to be a full commit then, or replicas could serve different vectors.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ephemeral: bool,
}

/// How a volume can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// By the pods of one node.
    ReadWriteOnce,
    /// By pods on many nodes.
    ReadWriteMany,
}

/// The Service that clients call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceOptions {
    /// How the Service is reached.
    #[serde(default, rename = "type")]
    pub kind: ServiceType,

    /// The Service's port.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,

    /// Annotations of the Service, for load balancers and meshes.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// How a Service is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From inside the cluster.
    #[default]
    ClusterIP,
    /// At a port of every node.
    NodePort,
    /// Through the cloud's load balancer.
    LoadBalancer,
}

/// How the download leaves the cluster, and who may call the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Proxies for the download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,

    /// Certificate authorities that the download trusts besides the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "trustedCA")]
    pub trusted_ca: Option<TrustedCa>,

    /// Who may call the server: any of these. Empty: everyone. Needs a network plugin
    /// that enforces NetworkPolicies.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub allow_from: Vec<Peer>,
}

/// Proxies for the download.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// The proxy for http:// addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^(https?|socks5h?)://[!-~]+$"))]
    pub http_proxy: Option<String>,

    /// The proxy for https:// addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^(https?|socks5h?)://[!-~]+$"))]
    pub https_proxy: Option<String>,

    /// Hosts, domains and address ranges that are reached without a proxy, separated by
    /// commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^[!-~ ]+$"))]
    pub no_proxy: Option<String>,
}

/// Certificate authorities that the download trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustedCa {
    /// The ConfigMap, in the resource's namespace, with a PEM bundle.
    pub config_map_ref: ConfigMapKey,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,

    /// The key with the PEM bundle.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub key: String,
}

/// Pods that may call the server. Both selectors together are pods with these labels in
/// namespaces with those.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Pods by their labels; alone, in the resource's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,

    /// Namespaces by their labels; alone, all their pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// Metrics for a Prometheus operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// Makes a ServiceMonitor, where the cluster has that kind of resource.
    #[serde(default, skip_serializing_if = "is_default")]
    pub service_monitor: bool,

    /// Labels of the ServiceMonitor, by which a Prometheus selects it.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "schema::labels")]
    pub labels: BTreeMap<String, String>,
}

impl Autoscaling {
    /// The CPU use that scaling aims at, in percent of the request, where it does.
    pub fn cpu_target(&self) -> Option<i32> {
        let alone = self.target_queued_tokens_per_replica.is_none();
        self.target_cpu_utilization_percentage.or_else(|| alone.then(eighty))
    }
}

impl Default for ModelCache {
    fn default() -> Self {
        Self {
            size: ten_gibibytes(),
            storage_class_name: None,
            access_modes: read_write_once(),
            retain: false,
            ephemeral: false,
        }
    }
}

impl ModelCache {
    /// The access modes as a claim has them, sorted.
    pub fn access_mode_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.access_modes.iter().map(|mode| format!("{mode:?}")).collect();
        names.sort_unstable();
        names
    }
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self { kind: ServiceType::default(), port: eighty(), annotations: BTreeMap::new() }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

const fn one() -> i32 {
    1
}

const fn eighty() -> i32 {
    80
}

fn nvidia_gpu() -> String {
    "nvidia.com/gpu".into()
}

fn ca_crt() -> String {
    "ca.crt".into()
}

fn ten_gibibytes() -> Quantity {
    Quantity("10Gi".into())
}

fn read_write_once() -> Vec<AccessMode> {
    vec![AccessMode::ReadWriteOnce]
}
