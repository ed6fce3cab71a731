//! What the operator tells back: the status, its conditions and their reasons.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last saw and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingModelStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Replicas that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Replicas that can embed.
    #[serde(default)]
    pub ready_replicas: i32,

    /// The pods' labels, as autoscalers want them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,

    /// Where clients in the cluster call the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub endpoint: Option<String>,

    /// What was learned about the model when it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,

    /// The volume with the model's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,

    /// How changes reach the pods, and why in this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,

    /// Ready, ModelCached, Available, Progressing, UpdateAvailable, SpaceChanged and Degraded;
    /// Reconciling and Stalled only while they hold.
    #[serde(default)]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

impl EmbeddingModelStatus {
    /// The condition of that type.
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_.name())
    }

    /// Whether the condition of that type is there and true.
    pub fn holds(&self, type_: ConditionType) -> bool {
        self.condition(type_).is_some_and(|condition| condition.status == "True")
    }
}

/// What was learned about the model when it was fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// The source in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub source: Option<String>,

    /// The commit that is served, or the hash of the archive or image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub resolved_revision: Option<String>,

    /// The model's architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub architecture: Option<String>,

    /// The length of its vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<i32>,

    /// The vector space of the answers to requests that ask for nothing special: what their
    /// X-Embedding-Space says. Only vectors of the same space can be compared. Absent where
    /// the files were not fetched, or by a version of the server that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub space: Option<String>,

    /// The longest input in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i32>,

    /// The size of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// The volume with the model's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// The PersistentVolumeClaim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub claim_name: Option<String>,

    /// How much of the model is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,

    /// How much the model has in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
}

/// How changes reach the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Surge, NoSurge or Recreate.
    pub strategy: Strategy,

    /// Why in this way.
    #[schemars(length(max = 1024))]
    pub because: String,
}

/// How a new version replaces the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// A new pod becomes ready before an old one goes.
    #[default]
    Surge,
    /// An old pod goes before its replacement comes.
    NoSurge,
    /// All old pods go before new ones come.
    Recreate,
}

/// The types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// An embed through the Service succeeds now, for this generation.
    Ready,
    /// The files of the wanted source are in the cluster.
    ModelCached,
    /// Some replica can embed, of whatever generation.
    Available,
    /// The operator or the cluster works on getting to the wanted state.
    Progressing,
    /// This version of the operator would run other pods, when asked to.
    UpdateAvailable,
    /// The vectors are of another space than before, or would be if that were not refused.
    SpaceChanged,
    /// Something is wrong that keeps the wanted state from being reached.
    Degraded,
    /// For kstatus: present and true while the wanted state is not reached yet.
    Reconciling,
    /// For kstatus: present and true while nothing goes on without somebody's help.
    Stalled,
}

impl ConditionType {
    /// Every type.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::ModelCached,
        Self::Available,
        Self::Progressing,
        Self::UpdateAvailable,
        Self::SpaceChanged,
        Self::Degraded,
        Self::Reconciling,
        Self::Stalled,
    ];

    /// The name in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::ModelCached => "ModelCached",
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::UpdateAvailable => "UpdateAvailable",
            Self::SpaceChanged => "SpaceChanged",
            Self::Degraded => "Degraded",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

/// Why a condition is what it is: the whole vocabulary. `docs/operator.md` says of each
/// what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    // The good ones.
    /// Every replica can embed.
    Ready,
    /// The wanted state is reached.
    Reconciled,
    /// The model's files are in the cluster.
    Cached,
    /// Nothing is wrong.
    Healthy,
    /// The pods are what this operator would make.
    UpToDate,
    /// The vectors are of the space that they were of.
    SpaceUnchanged,
    /// Nobody told what space the vectors are of.
    SpaceUnknown,

    // On the way.
    /// The model is being fetched.
    Fetching,
    /// The volume is not there yet.
    WaitingForVolume,
    /// An object of a model of the same name that was deleted is still on its way out.
    WaitingForDeletion,
    /// Replicas start or are replaced.
    RollingOut,
    /// A newer pod template is ready to be rolled out.
    NewPodTemplate,

    // As asked.
    /// No replica is wanted.
    ScaledToZero,
    /// The operator leaves the model's objects as they are.
    Paused,
    /// The vectors are of another space than before, which is allowed.
    SpaceChangeAllowed,

    // What somebody has to mend.
    /// The spec asks for something that cannot be.
    InvalidSpec,
    /// The operator's configuration does not allow what the spec asks for.
    NotAllowed,
    /// No CUDA image is configured.
    NoCudaImage,
    /// An object that is not ours has a name that we need.
    NameConflict,
    /// The volume cannot be provided or changed.
    VolumeFailed,
    /// A claim, Secret, ConfigMap or service account that the spec names is missing.
    ReferenceMissing,
    /// The download failed.
    FetchFailed,
    /// The hub refuses the token, or the repository does not exist.
    SourceRefused,
    /// The wanted files or prompts make vectors of another space, which is refused.
    SpaceChangeRefused,
    /// A quota or policy forbids pods.
    QuotaExceeded,
    /// An image cannot be pulled.
    ImagePullFailed,
    /// The server ends again and again.
    CrashLoop,
    /// The server was killed because it used more memory than its limit.
    OutOfMemory,
    /// No node can run a pod.
    Unschedulable,
    /// The server runs and does not become healthy.
    ProbeFailed,
    /// The rollout does not get on.
    RolloutStuck,
    /// Less replicas can embed than wanted.
    ReplicasUnavailable,
    /// No replica can embed.
    Unavailable,
    /// The API server refused a write.
    ApplyFailed,
}

impl Reason {
    /// Every reason, for documentation and tests.
    pub const ALL: [Self; 34] = [
        Self::Ready,
        Self::Reconciled,
        Self::Cached,
        Self::Healthy,
        Self::UpToDate,
        Self::SpaceUnchanged,
        Self::SpaceUnknown,
        Self::Fetching,
        Self::WaitingForVolume,
        Self::WaitingForDeletion,
        Self::RollingOut,
        Self::NewPodTemplate,
        Self::ScaledToZero,
        Self::Paused,
        Self::SpaceChangeAllowed,
        Self::InvalidSpec,
        Self::NotAllowed,
        Self::NoCudaImage,
        Self::NameConflict,
        Self::VolumeFailed,
        Self::ReferenceMissing,
        Self::FetchFailed,
        Self::SourceRefused,
        Self::SpaceChangeRefused,
        Self::QuotaExceeded,
        Self::ImagePullFailed,
        Self::CrashLoop,
        Self::OutOfMemory,
        Self::Unschedulable,
        Self::ProbeFailed,
        Self::RolloutStuck,
        Self::ReplicasUnavailable,
        Self::Unavailable,
        Self::ApplyFailed,
    ];

    /// The word in the status.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}
