//! The raw spec becomes a model that can be built, or a refusal that says why not.
//!
//! After this nothing reads the raw spec. What the schema's rules say is said again here,
//! for objects that were stored before a rule existed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};
use regex::RegexBuilder;
use serde::Serialize;
use url::{Host, Url};

use super::build::names;
use super::object::is_owned_by;
use super::observe::Observed;
use crate::config::Config;
use crate::crd::rules::{
    DOTS, DOTS_MESSAGE, HOST_MESSAGE, LOCAL, MAX_NAME, ORIGIN, PROMPT_NAME, PROMPT_NAME_MESSAGE,
    REPO_MESSAGE, REVISION_MESSAGE,
};
use crate::crd::source::{Archive, FilledClaim, HuggingFace, ModelImage, patterns};
use crate::crd::status::Reason;
use crate::crd::{
    AccessMode, Autoscaling, Device, Dtype, EmbeddingModel, EmbeddingModelSpec, Gpu, Inference, ModelCache,
    Monitoring, Network, PodTemplate, QUANTITY, Resources, ServiceOptions, SpaceChangePolicy,
};

/// Why a model is not built: somebody has to change something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The word.
    pub reason: Reason,
    /// What is wrong, and where.
    pub message: String,
}

impl Refusal {
    fn spec(message: impl Into<String>) -> Self {
        Self { reason: Reason::InvalidSpec, message: message.into() }
    }
}

/// A model that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidModel {
    /// The resource's name, which is its Service's.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its unique id.
    pub uid: String,
    /// What makes our objects go when it goes.
    pub owner: OwnerReference,
    /// The model's name in the HTTP API.
    pub model_name: String,
    /// Where the files come from and how they get to the pods.
    pub files: Files,
    /// How the server computes.
    pub inference: Inference,
    /// How many replicas, unless `autoscaling` says.
    pub replicas: i32,
    /// How the number of replicas follows the load.
    pub autoscaling: Option<Autoscaling>,
    /// The server's CPU and memory.
    pub resources: Resources,
    /// The server's GPUs.
    pub gpu: Option<Gpu>,
    /// The server's image.
    pub image: String,
    /// The Service.
    pub service: ServiceOptions,
    /// Proxies, authorities, who may call.
    pub network: Network,
    /// More for the pods.
    pub pods: PodTemplate,
    /// Metrics.
    pub monitoring: Monitoring,
    /// The seconds that a start may take, where the user says so.
    pub startup_timeout_seconds: Option<i32>,
    /// What decides the pods' template, besides this program and what was fetched.
    pub template_key: String,
    /// What decides how files are fetched, whatever they are.
    pub fetch_key: String,
    /// Whether objects are to be left as they are.
    pub paused: bool,
    /// Whether the vector space may change.
    pub space_change_policy: SpaceChangePolicy,
    /// The vector space that the model's users say that their indexes are of.
    pub expected_space: Option<String>,
}

/// How a model's files get to its pods.
#[derive(Clone, Debug, PartialEq)]
pub enum Files {
    /// A Job fetches them into a volume, which pods mount.
    Cached {
        /// What is fetched.
        download: Download,
        /// The volume.
        cache: ModelCache,
    },
    /// Each pod fetches them for itself.
    Ephemeral(Download),
    /// They are in a volume of the user's.
    Claim {
        /// The volume.
        claim: FilledClaim,
        /// How many pods can mount it.
        reach: Reach,
    },
    /// They are in an image.
    Image(ModelImage),
}

/// How many pods can mount a volume at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One (`ReadWriteOncePod`).
    OnePod,
    /// Those of one node (`ReadWriteOnce`).
    OneNode,
    /// Those of many nodes (`ReadWriteMany`, `ReadOnlyMany`).
    ManyNodes,
}

/// What is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Download {
    /// From a hub, whose address is known.
    Hub {
        /// The repository.
        repo: HuggingFace,
        /// The hub.
        endpoint: String,
    },
    /// An archive.
    Archive(Archive),
}

impl Download {
    /// What is fetched, in short. Not from the hub that the operator is configured with: a
    /// model does not become another one when that changes.
    pub fn key(&self) -> String {
        match self {
            Self::Hub { repo, .. } => names::short_hash(&(&repo.repo, &repo.revision, &repo.endpoint)),
            Self::Archive(archive) => names::short_hash(&archive.sha256),
        }
    }

    /// The source as a user would write it.
    pub fn describe(&self) -> String {
        match self {
            Self::Hub { repo, .. } => repo.repo.clone(),
            Self::Archive(archive) => archive.url.clone(),
        }
    }
}

impl ValidModel {
    /// How many pods can have the model's files at the same time.
    pub fn reach(&self) -> Reach {
        reach_of_files(&self.files)
    }

    /// Whether all pods have to be on the node of one volume.
    pub fn on_one_node(&self) -> bool {
        self.reach() != Reach::ManyNodes
    }
}

/// Whether the model can be built, beside the claims that are there: the one that its source
/// names, and that of its cache.
pub fn validate(model: &EmbeddingModel, observed: &Observed, config: &Config) -> Result<ValidModel, Refusal> {
    let spec = &model.spec;
    let name = model.name_any();
    name_is_good(&name)?;
    let (Some(namespace), Some(uid), Some(owner)) =
        (model.namespace(), model.uid(), model.controller_owner_ref(&()))
    else {
        return Err(Refusal::spec("the object has no namespace or uid: it is not from a cluster"));
    };
    looks_good("cache.size", &spec.cache.size.0, QUANTITY)?;
    if !is_above_zero(&spec.cache.size) {
        return Err(Refusal::spec("cache.size must be above 0"));
    }
    if spec.cache.ephemeral && spec.cache.retain {
        return Err(Refusal::spec("cache.retain contradicts cache.ephemeral: leave one of them out"));
    }
    if let Some(autoscaling) = &spec.autoscaling {
        if autoscaling.min_replicas > autoscaling.max_replicas {
            return Err(Refusal::spec("autoscaling.minReplicas must not be above autoscaling.maxReplicas"));
        }
        let says_cpu =
            spec.resources.requests.contains_key("cpu") || spec.resources.limits.contains_key("cpu");
        if autoscaling.cpu_target().is_some() && !says_cpu {
            return Err(Refusal::spec(
                "autoscaling needs resources.requests.cpu, because it aims at a part of it",
            ));
        }
    }
    match (&spec.gpu, spec.inference.device) {
        (Some(_), Device::Cpu) => {
            return Err(Refusal::spec("inference.device CPU contradicts gpu: leave one of them out"));
        }
        (None, Device::Cuda) => return Err(Refusal::spec("inference.device CUDA needs gpu")),
        _ => {}
    }
    if spec.gpu.is_none() && spec.inference.dtype == Dtype::Float16 {
        return Err(Refusal::spec("inference.dtype Float16 needs gpu"));
    }
    if spec
        .network
        .allow_from
        .iter()
        .any(|peer| peer.pod_selector.is_none() && peer.namespace_selector.is_none())
    {
        return Err(Refusal::spec("network.allowFrom: podSelector or namespaceSelector is needed"));
    }
    volumes_are_good(&spec.pod_template)?;
    prompts_are_good(&spec.inference, &spec.pod_template)?;
    let files = files(model, observed.source_claim.as_ref(), config)?;
    if reach_of_files(&files) != Reach::ManyNodes && has_required_pod_affinity(&spec.pod_template) {
        return Err(Refusal::spec(
            "podTemplate.affinity.podAffinity: required terms cannot be met beside a volume that the pods of one node \
             share, because that is a required term, too, and one pod has to meet them all: make them preferred, or use \
             cache.accessModes [ReadWriteMany] or cache.ephemeral",
        ));
    }
    if let Files::Cached { cache, .. } = &files {
        stays_the_same_volume(cache, observed.cache(&name).as_ref(), &uid)?;
    }
    let image = match (&spec.image, &spec.gpu) {
        (Some(image), _) => image.clone(),
        (None, None) => config.server_image.clone(),
        (None, Some(_)) => config.server_cuda_image.clone().ok_or_else(|| Refusal {
            reason: Reason::NoCudaImage,
            message:
                "gpu: the operator is configured without a CUDA image (--server-cuda-image), and spec.image \
                      names none"
                    .into(),
        })?,
    };
    Ok(ValidModel {
        model_name: spec.model_name.clone().unwrap_or_else(|| name.clone()),
        files,
        template_key: template_key(model),
        fetch_key: fetch_key(model, &image),
        image,
        owner,
        uid,
        namespace,
        name,
        inference: spec.inference.clone(),
        replicas: spec.replicas,
        autoscaling: spec.autoscaling.clone(),
        resources: spec.resources.clone(),
        gpu: spec.gpu.clone(),
        service: spec.service.clone(),
        network: spec.network.clone(),
        pods: spec.pod_template.clone(),
        monitoring: spec.monitoring.clone(),
        startup_timeout_seconds: spec.startup_timeout_seconds,
        paused: spec.paused,
        space_change_policy: spec.space_change_policy,
        expected_space: expected_space(model),
    })
}

/// What the annotation says; no more of it than a space can have, because the status repeats it.
fn expected_space(model: &EmbeddingModel) -> Option<String> {
    let space = model.annotations().get(names::SPACE_ANNOTATION)?.trim();
    (!space.is_empty()).then(|| space[..space.floor_char_boundary(MAX_SPACE)].to_owned())
}

fn reach_of_files(files: &Files) -> Reach {
    match files {
        Files::Cached { cache, .. } if !cache.access_modes.contains(&AccessMode::ReadWriteMany) => {
            Reach::OneNode
        }
        Files::Claim { reach, .. } => *reach,
        Files::Cached { .. } | Files::Ephemeral(_) | Files::Image(_) => Reach::ManyNodes,
    }
}

fn has_required_pod_affinity(pods: &PodTemplate) -> bool {
    let affinity = pods.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
    let terms = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    terms.is_some_and(|terms| !terms.is_empty())
}

fn name_is_good(name: &str) -> Result<(), Refusal> {
    let good = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good {
        return Ok(());
    }
    Err(Refusal::spec(format!(
        "metadata.name must have at most {MAX_NAME} characters, lower-case letters, digits and '-', and begin with a \
         letter: the Service gets this name"
    )))
}

fn is_above_zero(size: &Quantity) -> bool {
    let number = size.0.strip_prefix('+').unwrap_or(&size.0);
    number.chars().take_while(|c| c.is_ascii_digit() || *c == '.').any(|c| matches!(c, '1'..='9'))
}

fn volumes_are_good(pods: &PodTemplate) -> Result<(), Refusal> {
    for volume in &pods.volumes {
        let sources = [
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.empty_dir.is_some(),
            volume.persistent_volume_claim.is_some(),
        ];
        if sources.into_iter().filter(|&is| is).count() != 1 {
            return Err(Refusal::spec(format!(
                "podTemplate.volumes: {}: exactly one of configMap, secret, emptyDir and persistentVolumeClaim is \
                 needed",
                volume.name
            )));
        }
        if ["model", "tmp", "trusted-ca"].contains(&volume.name.as_str()) {
            return Err(Refusal::spec(
                "podTemplate.volumes: the names model, tmp and trusted-ca are the operator's own",
            ));
        }
    }
    for mount in &pods.volume_mounts {
        if !pods.volumes.iter().any(|volume| volume.name == mount.name) {
            return Err(Refusal::spec(format!(
                "podTemplate.volumeMounts: {}: podTemplate.volumes has no {}",
                mount.mount_path, mount.name
            )));
        }
    }
    Ok(())
}

/// The longest space that a status can tell.
const MAX_SPACE: usize = 128;

/// Variables of the server that would give it prompts behind the operator's back: the vector
/// space that it tells would not be that of the pods.
const PROMPT_VARIABLES: [(&str, &str); 2] =
    [("EMBEDDING_PROMPTS", "prompts"), ("EMBEDDING_DEFAULT_PROMPTS", "defaultPrompt")];

fn prompts_are_good(inference: &Inference, pods: &PodTemplate) -> Result<(), Refusal> {
    if !inference.prompts.keys().all(|name| matches(PROMPT_NAME, name)) {
        return Err(Refusal::spec(format!("inference.prompts: {PROMPT_NAME_MESSAGE}")));
    }
    for (variable, field) in PROMPT_VARIABLES {
        if pods.env.iter().any(|set| set.name == variable) {
            return Err(Refusal::spec(format!("podTemplate.env: {variable}: use inference.{field} instead")));
        }
    }
    Ok(())
}

fn files(
    model: &EmbeddingModel,
    source_claim: Option<&PersistentVolumeClaim>,
    config: &Config,
) -> Result<Files, Refusal> {
    let source = &model.spec.source;
    let download = match (&source.hugging_face, &source.persistent_volume_claim, &source.http, &source.image)
    {
        (Some(repo), None, None, None) => {
            looks_good("source.huggingFace.repo", &repo.repo, patterns::REPO)?;
            let name = &repo.repo;
            if name.contains("..") || name.contains("--") || name.strip_suffix(".git").is_some() {
                return Err(Refusal::spec(format!("source.huggingFace: {REPO_MESSAGE}")));
            }
            let revision = &repo.revision;
            looks_good("source.huggingFace.revision", revision, patterns::REVISION)?;
            if ["..", "//", "/."].iter().any(|bad| revision.contains(bad)) {
                return Err(Refusal::spec(format!("source.huggingFace: {REVISION_MESSAGE}")));
            }
            let endpoint = repo.endpoint.clone().unwrap_or_else(|| config.hub_endpoint.clone());
            if repo.endpoint.is_some() {
                looks_good("source.huggingFace.endpoint", &endpoint, patterns::ENDPOINT)?;
                address_is_good("source.huggingFace.endpoint", &endpoint, config)?;
            }
            if model.spec.cache.ephemeral && !is_commit(&repo.revision) {
                return Err(Refusal::spec(
                    "with cache.ephemeral the revision must be a full commit of 40 digits, or each replica could \
                     resolve it to another",
                ));
            }
            Download::Hub { repo: repo.clone(), endpoint }
        }
        (None, Some(claim), None, None) => {
            let path = claim.path.as_deref();
            path.map_or(Ok(()), |path| {
                looks_good("source.persistentVolumeClaim.path", path, patterns::PATH)
            })?;
            let Some(found) = source_claim else {
                return Err(Refusal {
                    reason: Reason::ReferenceMissing,
                    message: format!(
                        "source.persistentVolumeClaim: there is no PersistentVolumeClaim {} in this namespace",
                        claim.claim_name
                    ),
                });
            };
            let reach = reach_of(found);
            let most = model.spec.autoscaling.as_ref().map_or(model.spec.replicas, |it| it.max_replicas);
            if reach == Reach::OnePod && most > 1 {
                return Err(Refusal::spec(format!(
                    "PersistentVolumeClaim {} can be mounted by one pod at a time (ReadWriteOncePod): replicas and \
                     autoscaling.maxReplicas must be at most 1",
                    claim.claim_name
                )));
            }
            return Ok(Files::Claim { claim: claim.clone(), reach });
        }
        (None, None, Some(archive), None) => {
            looks_good("source.http.url", &archive.url, patterns::URL)?;
            looks_good("source.http.sha256", &archive.sha256, patterns::SHA256)?;
            address_is_good("source.http.url", &archive.url, config)?;
            Download::Archive(archive.clone())
        }
        (None, None, None, Some(image)) => {
            looks_good("source.image.reference", &image.reference, patterns::REFERENCE)?;
            let path = image.path.as_deref();
            path.map_or(Ok(()), |path| looks_good("source.image.path", path, patterns::PATH))?;
            return Ok(Files::Image(image.clone()));
        }
        _ => {
            return Err(Refusal::spec(
                "source: exactly one of huggingFace, persistentVolumeClaim, http and image is needed",
            ));
        }
    };
    let cache = model.spec.cache.clone();
    Ok(if cache.ephemeral { Files::Ephemeral(download) } else { Files::Cached { download, cache } })
}

fn reach_of(claim: &PersistentVolumeClaim) -> Reach {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let has = |mode: &str| modes.iter().any(|found| found == mode);
    if has("ReadWriteMany") || has("ReadOnlyMany") {
        Reach::ManyNodes
    } else if has("ReadWriteOncePod") {
        // The API server allows it no other mode.
        Reach::OnePod
    } else {
        Reach::OneNode
    }
}

/// A volume's class and access modes are settled when it is made. `uid` is the model's; a
/// claim of others is told of when ours is applied.
fn stays_the_same_volume(
    cache: &ModelCache,
    found: Option<&PersistentVolumeClaim>,
    uid: &str,
) -> Result<(), Refusal> {
    let ours = |claim: &&PersistentVolumeClaim| {
        claim.metadata.deletion_timestamp.is_none()
            && (claim.annotations().contains_key(names::RETAINED_BY_ANNOTATION) || is_owned_by(*claim, uid))
    };
    let Some((claim, spec)) = found.filter(ours).and_then(|claim| Some((claim, claim.spec.as_ref()?))) else {
        return Ok(());
    };
    let settled = |field: &str, has: String, wanted: String| {
        Err(Refusal::spec(format!(
            "cache.{field} cannot change from {has} to {wanted}: PersistentVolumeClaim {} has it; go back, or \
             delete the claim to have one made anew",
            claim.name_any()
        )))
    };
    // Without a class in either, the cluster's default was, or will be, filled in.
    if let (Some(has), Some(wanted)) = (&spec.storage_class_name, &cache.storage_class_name)
        && has != wanted
    {
        return settled("storageClassName", has.clone(), wanted.clone());
    }
    let mut has = spec.access_modes.clone().unwrap_or_default();
    has.sort_unstable();
    let wanted = cache.access_mode_names();
    if has != wanted {
        return settled("accessModes", has.join(", "), wanted.join(", "));
    }
    Ok(())
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn looks_good(field: &str, text: &str, pattern: &str) -> Result<(), Refusal> {
    if matches(pattern, text) { Ok(()) } else { Err(Refusal::spec(format!("{field}: must match {pattern}"))) }
}

/// As the API server does it: all patterns are of ASCII.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern = RegexBuilder::new(pattern).unicode(false).build();
    pattern.expect("the patterns of the schema are good").is_match(text)
}

/// Whether an address may be asked: see `HOST` in [`crate::crd::rules`].
fn address_is_good(field: &str, address: &str, config: &Config) -> Result<(), Refusal> {
    let wrong = || Refusal::spec(format!("{field}: {HOST_MESSAGE}"));
    if !matches(ORIGIN, address) || LOCAL.iter().any(|local| matches(local, address)) {
        return Err(wrong());
    }
    if matches(DOTS, address) {
        return Err(Refusal::spec(format!("{field}: {DOTS_MESSAGE}")));
    }
    // The same once more by the program's own reading of addresses.
    let url = Url::parse(address).map_err(|_| wrong())?;
    let good = match url.host() {
        None => false,
        Some(Host::Ipv4(ip)) => !is_local(ip.into()),
        Some(Host::Ipv6(ip)) => !is_local(ip.into()),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name != "localhost"
                && !name.ends_with(".localhost")
                && name != "metadata"
                && name != "metadata.google.internal"
        }
    };
    if !good {
        return Err(wrong());
    }
    // By whole origins: `https://hub.example` does not allow `https://hub.example.evil`. And as
    // `--allowed-endpoints` is read: `https://Hub.Example:443` is the same.
    let address = url.as_str();
    let allowed = |beginning: &String| {
        let beginning = beginning.trim_end_matches('/');
        address.strip_prefix(beginning).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if config.allowed_endpoints.is_empty() || config.allowed_endpoints.iter().any(allowed) {
        return Ok(());
    }
    Err(Refusal {
        reason: Reason::NotAllowed,
        message: format!(
            "{field}: the operator allows {} (--allowed-endpoints)",
            config.allowed_endpoints.join(", ")
        ),
    })
}

/// Addresses of this machine and of its link, and those where clouds keep metadata.
fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let metadata: [IpAddr; 3] = [
        Ipv4Addr::new(100, 100, 100, 200).into(),
        Ipv4Addr::new(192, 0, 0, 192).into(),
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(),
    ];
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip.is_loopback() || ip.is_unspecified() || link_local || metadata.contains(&ip)
}

/// A hash of what may be mended about a download that fails.
fn fetch_key(model: &EmbeddingModel, image: &str) -> String {
    let EmbeddingModelSpec { source, network, pod_template, .. } = &model.spec;
    names::short_hash(&(source, &network.proxy, &network.trusted_ca, pod_template, image))
}

/// A hash of what the user says about the pods. What only concerns other objects is left
/// out, and so is all that a new version of the operator could decide differently: pods
/// restart for their user and not for us.
fn template_key(model: &EmbeddingModel) -> String {
    let mut spec = model.spec.clone();
    spec.replicas = 1;
    spec.autoscaling = None;
    spec.service = ServiceOptions::default();
    spec.network.allow_from = Vec::new();
    spec.monitoring = Monitoring::default();
    spec.paused = false;
    spec.space_change_policy = SpaceChangePolicy::default();
    spec.cache.size = ModelCache::default().size;
    spec.cache.retain = false;
    if !spec.cache.ephemeral {
        // How the files get into the volume is the fetch's business.
        spec.network.proxy = None;
        spec.network.trusted_ca = None;
        if let Some(archive) = &mut spec.source.http {
            // The hash counts.
            archive.url.clear();
        }
        if let Some(repo) = &mut spec.source.hugging_face {
            // The commit counts, and is known when pods are built.
            repo.token_secret_ref = None;
            repo.endpoint = None;
            repo.revision.clear();
        }
    }
    names::short_hash(&(spec, model.annotations().get(names::UPDATE_ANNOTATION)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::diagnose::tests::observed;
    use super::*;

    fn model(spec: &Value) -> EmbeddingModel {
        serde_json::from_value(json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {"name": "m", "namespace": "default", "uid": "u"},
            "spec": spec,
        }))
        .unwrap()
    }

    fn hub(more: &Value) -> Value {
        let mut spec = json!({"source": {"huggingFace": {"repo": "org/name"}}});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        spec
    }

    /// Another key restarts every pod of every model when the operator is upgraded.
    ///
    /// Where this fails: leave a new field out of what is hashed while it has its default
    /// (`skip_serializing_if`); never write another key here for a spec that was there before.
    #[test]
    fn keys_of_templates_and_fetches_stay_what_they_were_in_earlier_versions() {
        let most = json!({
            "source": {"http": {"url": "https://x.test/m.tar.gz", "sha256": "0".repeat(64)}},
            "modelName": "n",
            "inference": {"dtype": "BFloat16", "maxBatchTokens": 1, "maxWaitingTexts": 2, "maxConcurrentRequests": 3},
            "replicas": 4,
            "autoscaling": {"maxReplicas": 5},
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}},
            "gpu": {"count": 2},
            "cache": {"size": "3Gi", "storageClassName": "c", "accessModes": ["ReadWriteMany"], "retain": true},
            "service": {"port": 81, "annotations": {"a": "b"}},
            "network": {"proxy": {"httpProxy": "http://p"}, "trustedCA": {"configMapRef": {"name": "ca"}}},
            "podTemplate": {"env": [{"name": "A", "value": "b"}], "nodeSelector": {"a": "b"}},
            "monitoring": {"serviceMonitor": true},
            "image": "i",
            "startupTimeoutSeconds": 60,
        });
        let ephemeral = json!({
            "source": {"huggingFace": {"repo": "a/b", "revision": "0".repeat(40), "tokenSecretRef": {"name": "t", "key": "k"}}},
            "cache": {"ephemeral": true},
        });
        let claim = json!({"source": {"persistentVolumeClaim": {"claimName": "c", "path": "p"}}});
        let image = json!({"source": {"image": {"reference": format!("r/m@sha256:{}", "0".repeat(64))}}});
        let keys: Vec<_> = [hub(&json!({})), most, ephemeral, claim, image]
            .iter()
            .map(model)
            .map(|model| format!("{} {}", template_key(&model), fetch_key(&model, "image")))
            .collect();
        assert_eq!(
            keys,
            [
                "a81959f0 20779d1a",
                "e6bb5e8a ec8b59d8",
                "a4703566 f64b81c0",
                "884e11c3 732b5df9",
                "526411f0 87af0504"
            ]
        );
        let download = |spec: &Value| match files(&model(spec), None, &Config::for_tests()).unwrap() {
            Files::Cached { download, .. } => download.key(),
            other => panic!("{other:?}"),
        };
        assert_eq!(download(&hub(&json!({}))), "ce9ae6d8");
    }

    #[test]
    fn a_volume_that_is_there_keeps_its_class_and_modes() {
        let claim = |spec: Value, ours: bool| {
            let owner =
                json!({"apiVersion": "v1", "kind": "x", "name": "m", "uid": if ours { "u" } else { "t" }});
            observed(&json!({"children": [{
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "m-cache", "ownerReferences": [owner]},
                "spec": spec,
            }]}))
        };
        let fast = || json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"});
        let wanted = |cache: Value| model(&hub(&json!({"cache": cache})));
        let told = |cache: Value, there: &Observed| {
            validate(&wanted(cache), there, &Config::for_tests()).err().map(|refusal| refusal.message)
        };
        let there = claim(fast(), true);
        assert_eq!(told(json!({"storageClassName": "fast"}), &there), None);
        assert_eq!(told(json!({}), &there), None);
        // It was grown, or the model says less: it stays as large, which is no error.
        assert_eq!(told(json!({"size": "1Gi"}), &there), None);
        assert_eq!(
            told(json!({"storageClassName": "slow"}), &there).unwrap(),
            "cache.storageClassName cannot change from fast to slow: PersistentVolumeClaim m-cache has it; go back, or \
             delete the claim to have one made anew"
        );
        let message = told(json!({"accessModes": ["ReadWriteMany", "ReadWriteOnce"]}), &there).unwrap();
        assert!(message.contains("from ReadWriteOnce to ReadWriteMany, ReadWriteOnce"), "{message}");
        // Of somebody else's claim it is told that it is in the way.
        assert_eq!(told(json!({"storageClassName": "slow"}), &claim(fast(), false)), None);
    }

    #[test]
    fn required_pod_affinities_are_refused_where_the_volume_is_one() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}});
        let told = |affinity: &str, cache: Value| {
            let pods =
                json!({"affinity": {affinity: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
            let spec = hub(&json!({"podTemplate": pods, "cache": cache}));
            validate(&model(&spec), &Observed::default(), &Config::for_tests()).err().map(|it| it.message)
        };
        let message = told("podAffinity", json!({})).unwrap();
        assert!(message.starts_with("podTemplate.affinity.podAffinity: required terms"), "{message}");
        assert_eq!(told("podAffinity", json!({"accessModes": ["ReadWriteMany"]})), None);
        assert_eq!(told("podAntiAffinity", json!({})), None);
    }

    #[test]
    fn only_a_target_of_cpu_needs_a_request_of_cpu() {
        let targets = |autoscaling: &Value| {
            let mut autoscaling = autoscaling.clone();
            autoscaling["maxReplicas"] = json!(3);
            let of = |resources: Value| {
                let spec = hub(&json!({"autoscaling": autoscaling, "resources": resources}));
                validate(&model(&spec), &Observed::default(), &Config::for_tests())
                    .map(|valid| valid.autoscaling.unwrap().cpu_target())
                    .map_err(|refusal| refusal.message)
            };
            (of(json!({"requests": {"cpu": "1"}})), of(json!({})))
        };
        let needed =
            || Err("autoscaling needs resources.requests.cpu, because it aims at a part of it".to_owned());
        assert_eq!(targets(&json!({})), (Ok(Some(80)), needed()));
        assert_eq!(targets(&json!({"targetCPUUtilizationPercentage": 60})), (Ok(Some(60)), needed()));
        assert_eq!(targets(&json!({"targetQueuedTokensPerReplica": 1})), (Ok(None), Ok(None)));
        let both = json!({"targetCPUUtilizationPercentage": 60, "targetQueuedTokensPerReplica": 1});
        assert_eq!(targets(&both), (Ok(Some(60)), needed()));
    }

    #[test]
    fn prompts_are_said_where_they_are_known_and_by_names_that_a_flag_can_have() {
        let told = |more: &Value| {
            let spec = hub(more);
            validate(&model(&spec), &Observed::default(), &Config::for_tests()).err().map(|it| it.message)
        };
        for name in ["query", "search_query", "retrieval.query", "text-matching", "_1", &"n".repeat(63)] {
            assert_eq!(told(&json!({"inference": {"prompts": {name: "a=b: c,d"}}})), None, "{name}");
        }
        for name in ["", "-q", "a=b", "m:query", "a,b", "a b", "ä", &"n".repeat(64)] {
            let message = told(&json!({"inference": {"prompts": {name: ""}}}));
            assert_eq!(message, Some(format!("inference.prompts: {PROMPT_NAME_MESSAGE}")), "{name}");
        }
        let variable = |name: &str| json!({"podTemplate": {"env": [{"name": name, "value": "x"}]}});
        assert_eq!(
            told(&variable("EMBEDDING_PROMPTS")).unwrap(),
            "podTemplate.env: EMBEDDING_PROMPTS: use inference.prompts instead"
        );
        assert_eq!(
            told(&variable("EMBEDDING_DEFAULT_PROMPTS")).unwrap(),
            "podTemplate.env: EMBEDDING_DEFAULT_PROMPTS: use inference.defaultPrompt instead"
        );
        assert_eq!(told(&variable("EMBEDDING_ON_OVERFLOW")), None);
    }

    #[test]
    fn an_expected_space_is_one_line_of_a_status() {
        let expected = |says: &str| {
            let mut model = model(&hub(&json!({})));
            model.annotations_mut().insert(names::SPACE_ANNOTATION.into(), says.into());
            validate(&model, &Observed::default(), &Config::for_tests()).unwrap().expected_space
        };
        assert_eq!(expected(" es1-a\n").as_deref(), Some("es1-a"));
        assert_eq!(expected(" "), None);
        assert_eq!(expected(&"ä".repeat(10_000)), Some("ä".repeat(64)));
    }

    #[test]
    fn what_becomes_of_other_spaces_is_no_wish_about_the_pods() {
        let key = |more: &Value| template_key(&model(&hub(more)));
        assert_eq!(key(&json!({"spaceChangePolicy": "Refuse"})), key(&json!({})));
        assert_ne!(key(&json!({"inference": {"onOverflow": "Error"}})), key(&json!({})));
    }

    #[test]
    fn the_modes_of_a_filled_claim_say_how_many_pods_can_have_it() {
        let source = |more: &Value| {
            let mut spec = json!({"source": {"persistentVolumeClaim": {"claimName": "c"}}});
            for (field, value) in more.as_object().unwrap() {
                spec[field] = value.clone();
            }
            model(&spec)
        };
        let with = |modes: &[&str], more: &Value| {
            let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": modes}});
            validate(&source(more), &observed(&json!({"sourceClaim": claim})), &Config::for_tests())
        };
        let table: [(&[&str], Reach); 4] = [
            (&["ReadWriteOncePod"], Reach::OnePod),
            (&["ReadWriteOnce"], Reach::OneNode),
            (&["ReadWriteOnce", "ReadOnlyMany"], Reach::ManyNodes),
            (&["ReadWriteMany"], Reach::ManyNodes),
        ];
        for (modes, expected) in table {
            assert_eq!(with(modes, &json!({})).unwrap().reach(), expected, "{modes:?}");
            let two = with(modes, &json!({"replicas": 2}));
            assert_eq!(two.is_ok(), expected != Reach::OnePod, "{modes:?}");
        }
        let scaled = json!({"autoscaling": {"maxReplicas": 2}, "resources": {"requests": {"cpu": "1"}}});
        let refusal = with(&["ReadWriteOncePod"], &scaled).unwrap_err();
        assert!(
            refusal.message.starts_with("PersistentVolumeClaim c can be mounted by one pod"),
            "{refusal}"
        );
    }
}
