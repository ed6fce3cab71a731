//! Where a model's files come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What admits nothing that a shell or a path could abuse.
pub mod patterns {
    /// A repository of a hub.
    pub const REPO: &str = r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?(/[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?)?$";
    /// A commit, tag or branch.
    pub const REVISION: &str = r"^[A-Za-z0-9_]([A-Za-z0-9._/-]*[A-Za-z0-9_-])?$";
    /// A hub's address.
    pub const ENDPOINT: &str = r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?$";
    /// An archive's address.
    pub const URL: &str = r"^https?://[A-Za-z0-9.:\[\]_-]+/[A-Za-z0-9._~/%+,=@-]+\.(tar\.gz|tgz)$";
    /// A sha256.
    pub const SHA256: &str = r"^[0-9a-f]{64}$";
    /// A directory in a volume or image.
    pub const PATH: &str = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$";
    /// An image by its digest.
    pub const REFERENCE: &str = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$";
}

/// Where the model's files come from: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A repository of the Hugging Face hub, or of a mirror that speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFace>,

    /// A volume that has the model's files already, for clusters without a way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<FilledClaim>,

    /// An archive of the model's files at an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Archive>,

    /// An OCI image that holds the model's files. Needs Kubernetes 1.35.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ModelImage>,
}

/// A repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFace {
    /// The repository: organisation/name.
    #[schemars(
        length(min = 1, max = 193),
        regex(pattern = patterns::REPO)
    )]
    pub repo: String,

    /// A commit, tag or branch. A tag or branch is resolved to its commit once, when the
    /// model is fetched; every replica serves that commit until this source changes.
    #[serde(default = "main_branch")]
    #[schemars(
        length(min = 1, max = 240),
        regex(pattern = patterns::REVISION)
    )]
    pub revision: String,

    /// An access token for private and gated repositories. The download sends it to the
    /// endpoint, and to nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,

    /// The hub's address. Default: the operator's, which is the public hub's unless
    /// configured otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = patterns::ENDPOINT)
    )]
    pub endpoint: Option<String>,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name, in the resource's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,

    /// The key that holds the token.
    #[serde(default = "token")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub key: String,
}

/// A volume that has the model's files already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilledClaim {
    /// The PersistentVolumeClaim's name, in the resource's namespace. It is mounted
    /// read-only.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub claim_name: String,

    /// The model's directory in the volume. Default: the volume's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = patterns::PATH)
    )]
    pub path: Option<String>,
}

/// An archive of a model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// The address of a gzipped tar archive.
    #[schemars(
        length(min = 1, max = 2048),
        regex(pattern = patterns::URL)
    )]
    pub url: String,

    /// The archive's sha256, in lower-case hexadecimal digits.
    #[schemars(length(min = 64, max = 64), regex(pattern = patterns::SHA256))]
    pub sha256: String,
}

/// An OCI image that holds a model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelImage {
    /// The image, by its digest.
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = patterns::REFERENCE)
    )]
    pub reference: String,

    /// The model's directory in the image. Default: the image's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 512),
        regex(pattern = patterns::PATH)
    )]
    pub path: Option<String>,
}

fn main_branch() -> String {
    "main".into()
}

fn token() -> String {
    "token".into()
}
