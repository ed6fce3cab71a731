//! The pods: one that serves, and what it has in common with one that fetches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, ImageVolumeSource, KeyToPath, Lifecycle, LifecycleHandler,
    PersistentVolumeClaimVolumeSource, PodAffinity, PodAffinityTerm, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext,
    SleepAction, Toleration, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use super::records::Template;
use crate::controller::fetched::Here;
use crate::controller::same;
use crate::controller::validate::{Download, Files, ValidModel};
use crate::crd::{Device, Dtype, OnOverflow};

/// Where models are in a container.
pub(super) const MODELS: &str = "/models";
/// Where the extra certificate authorities are.
const TRUSTED_CA: &str = "/etc/embedding/trusted-ca";
/// The port that the server listens on.
pub(super) const PORT: i32 = 9000;
/// The user that pods run as; not root, and nobody's on common systems.
const USER: i64 = 65532;
/// Seconds that endpoints take to leave out a pod that is going: it serves meanwhile.
const DRAIN: i64 = 5;
/// Seconds that requests under way get after that.
const SHUTDOWN: i64 = 25;
/// Seconds between two looks at whether a server has started.
const STARTUP_PERIOD: i32 = 5;
/// The least seconds that a start may take.
const STARTUP: i64 = 300;
/// Where the size of a model is unknown.
const STARTUP_UNKNOWN: i64 = 900;
/// Bytes that even slow storage reads in a second.
const SLOW_STORAGE: i64 = 10_000_000;

/// The template of the pods that serve these files.
pub(super) fn template(model: &ValidModel, here: &Here) -> Template {
    let key = names::short_hash(&(&model.template_key, &here.summary.commit));
    let startup = startup_seconds(model, here);
    let mut labels = model.pods.labels.clone();
    labels.extend(names::component_labels(&model.name, names::SERVER));
    let mut annotations = model.pods.annotations.clone();
    annotations.insert(names::CONFIG_ANNOTATION.into(), key.clone());
    let pods = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![server(model, here, startup)],
            init_containers: match &model.files {
                Files::Ephemeral(download) => Some(vec![fetcher(model, download, None)]),
                _ => None,
            },
            volumes: Some(volumes(model)),
            termination_grace_period_seconds: Some(DRAIN + SHUTDOWN + 10),
            topology_spread_constraints: spread(model),
            ..common(model)
        }),
    };
    let cached_at = match &model.files {
        Files::Cached { download, .. } => Some(super::location(download, &here.summary.commit)),
        _ => None,
    };
    let revision = match &model.files {
        Files::Cached { download: Download::Hub { repo, .. }, .. } => Some(repo.revision.clone()),
        _ => None,
    };
    let inference = &model.inference;
    Template {
        key,
        pods,
        startup_seconds: startup,
        summary: here.summary.clone(),
        cached_at,
        fetch: here.key.clone(),
        revision,
        prompts: inference.prompts.clone(),
        default_prompt: inference.default_prompt.clone(),
        space_before: None,
    }
}

fn startup_seconds(model: &ValidModel, here: &Here) -> i64 {
    if let Some(seconds) = model.startup_timeout_seconds {
        return seconds.into();
    }
    if matches!(model.files, Files::Ephemeral(_)) {
        // Not by what a pod has learned meanwhile: the template would change with it.
        return STARTUP_UNKNOWN;
    }
    here.summary.bytes.map_or(STARTUP_UNKNOWN, |bytes| STARTUP + bytes / SLOW_STORAGE)
}

/// What decides where a pod can run and what it may do: the same for serving and fetching.
pub(super) fn common(model: &ValidModel) -> PodSpec {
    let pods = &model.pods;
    PodSpec {
        affinity: affinity(model),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: Some(pods.image_pull_secrets.clone()).filter(|secrets| !secrets.is_empty()),
        node_selector: Some(pods.node_selector.clone()).filter(|labels| !labels.is_empty()),
        priority_class_name: pods.priority_class_name.clone(),
        runtime_class_name: pods.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            fs_group: Some(USER),
            // Else each start would change the owner of every file of the model.
            fs_group_change_policy: Some("OnRootMismatch".into()),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        service_account_name: Some(pods.service_account_name.clone().unwrap_or_else(|| model.name.clone())),
        tolerations: Some(tolerations(model)).filter(|tolerations| !tolerations.is_empty()),
        ..PodSpec::default()
    }
}

fn tolerations(model: &ValidModel) -> Vec<Toleration> {
    let mut tolerations = model.pods.tolerations.clone();
    if let Some(gpu) = &model.gpu {
        tolerations.push(Toleration {
            key: Some(gpu.resource_name.clone()),
            operator: Some("Exists".into()),
            effect: Some("NoSchedule".into()),
            ..Toleration::default()
        });
    }
    tolerations
}

/// A volume that one node at a time can mount holds all of the model's pods on its node.
/// The first pod may go anywhere, because it matches the term itself.
fn affinity(model: &ValidModel) -> Option<Affinity> {
    let mut affinity = model.pods.affinity.clone();
    if model.on_one_node() {
        let term = PodAffinityTerm {
            label_selector: Some(LabelSelector {
                match_labels: Some([(names::MODEL_LABEL.to_owned(), model.name.clone())].into()),
                ..LabelSelector::default()
            }),
            topology_key: "kubernetes.io/hostname".into(),
            ..PodAffinityTerm::default()
        };
        affinity
            .get_or_insert_default()
            .pod_affinity
            .get_or_insert_with(PodAffinity::default)
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .push(term);
    }
    affinity
}

fn spread(model: &ValidModel) -> Option<Vec<TopologySpreadConstraint>> {
    let mine = LabelSelector {
        match_labels: Some(names::selector(&model.name, names::SERVER)),
        ..LabelSelector::default()
    };
    if !model.pods.topology_spread_constraints.is_empty() {
        let mut constraints = model.pods.topology_spread_constraints.clone();
        for constraint in &mut constraints {
            constraint.label_selector.get_or_insert_with(|| mine.clone());
        }
        return Some(constraints);
    }
    // Soft, so that a small cluster runs what it can.
    (!model.on_one_node()).then(|| {
        vec![TopologySpreadConstraint {
            label_selector: Some(mine),
            // Pods of one version spread among themselves. Else those that a rollout is about to
            // remove count too, and when they are gone, nodes are left without a replica.
            match_label_keys: Some(vec!["pod-template-hash".into()]),
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".into(),
            when_unsatisfiable: "ScheduleAnyway".into(),
            ..TopologySpreadConstraint::default()
        }]
    })
}

fn server(model: &ValidModel, here: &Here, startup: i64) -> Container {
    let mut mounts = vec![mount("tmp", "/tmp", false), mount("model", MODELS, true)];
    mounts.extend(model.pods.volume_mounts.clone());
    Container {
        name: names::SERVER.into(),
        image: Some(model.image.clone()),
        args: Some(arguments(model, here)),
        env: Some(model.pods.env.clone()).filter(|env| !env.is_empty()),
        ports: Some(vec![ContainerPort {
            container_port: PORT,
            name: Some("http".into()),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(Probe {
            failure_threshold: Some(
                i32::try_from(startup).unwrap_or(i32::MAX).saturating_add(STARTUP_PERIOD - 1)
                    / STARTUP_PERIOD,
            ),
            ..probe("/health", STARTUP_PERIOD)
        }),
        readiness_probe: Some(probe("/health", 5)),
        liveness_probe: Some(Probe { failure_threshold: Some(3), ..probe("/livez", 10) }),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: DRAIN }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: resources(model),
        security_context: Some(locked_down()),
        // So that the status can tell what a server said that ends again and again.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// The server's command line; its environment belongs to the user, and flags win.
fn arguments(model: &ValidModel, here: &Here) -> Vec<String> {
    let location = match &model.files {
        Files::Cached { download, .. } | Files::Ephemeral(download) => {
            super::location(download, &here.summary.commit)
        }
        Files::Claim { claim, .. } => below(MODELS, claim.path.as_deref()),
        Files::Image(image) => below(MODELS, image.path.as_deref()),
    };
    let device = match (&model.gpu, model.inference.device) {
        (Some(_), _) => "cuda",
        (None, _) => "cpu",
    };
    let mut arguments = vec!["serve".to_owned()];
    let mut flag = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    flag("model", format!("{}={location}", model.model_name));
    flag("cache-dir", MODELS.into());
    flag("host", "0.0.0.0".into());
    flag("port", PORT.to_string());
    flag("device", device.into());
    match model.inference.dtype {
        Dtype::Auto => {}
        Dtype::Float32 => flag("dtype", "float32".into()),
        Dtype::BFloat16 => flag("dtype", "bfloat16".into()),
        Dtype::Float16 => flag("dtype", "float16".into()),
    }
    if let Some(tokens) = model.inference.max_batch_tokens {
        flag("max-batch-tokens", tokens.to_string());
    }
    if let Some(texts) = model.inference.max_waiting_texts {
        flag("max-waiting-texts", texts.to_string());
    }
    if let Some(requests) = model.inference.max_concurrent_requests {
        flag("max-concurrent-requests", requests.to_string());
    }
    for (name, text) in &model.inference.prompts {
        flag("prompt", verbatim(&format!("{name}={text}")));
    }
    if let Some(name) = &model.inference.default_prompt {
        flag("default-prompt", name.clone());
    }
    match model.inference.on_overflow {
        OnOverflow::Truncate => {}
        OnOverflow::Error => flag("on-overflow", "error".into()),
        OnOverflow::ChunkMean => flag("on-overflow", "chunk_mean".into()),
    }
    flag("shutdown-timeout", SHUTDOWN.to_string());
    flag("log-format", "json".into());
    arguments.push("--offline".into());
    if model.inference.require_input_type {
        arguments.push("--require-input-type".into());
    }
    debug_assert!(model.gpu.is_some() || model.inference.device != Device::Cuda, "validate refuses it");
    arguments
}

/// Text as an argument in a manifest, where the kubelet would put variables in for `$(NAME)`.
fn verbatim(text: &str) -> String {
    text.replace('$', "$$")
}

fn below(root: &str, path: Option<&str>) -> String {
    path.map_or_else(|| root.to_owned(), |path| format!("{root}/{path}"))
}

pub(super) fn resources(model: &ValidModel) -> Option<ResourceRequirements> {
    let requests = model.resources.requests.clone();
    let mut limits = model.resources.limits.clone();
    if let Some(gpu) = &model.gpu {
        limits.insert(gpu.resource_name.clone(), Quantity(gpu.count.to_string()));
    }
    let filled = |map: BTreeMap<String, Quantity>| Some(map).filter(|map| !map.is_empty());
    let (requests, limits) = (filled(requests), filled(limits));
    (requests.is_some() || limits.is_some()).then_some(ResourceRequirements {
        requests,
        limits,
        claims: None,
    })
}

/// What the scheduler sets aside: a limit alone is a request, too.
pub(super) fn effective_requests(resources: ResourceRequirements) -> BTreeMap<String, Quantity> {
    let mut requests = resources.limits.unwrap_or_default();
    requests.extend(resources.requests.unwrap_or_default());
    requests
}

/// What `least` asks for, and as much as `other` asks the scheduler for.
pub(super) fn at_least(
    least: ResourceRequirements,
    other: Option<ResourceRequirements>,
) -> ResourceRequirements {
    let (mut requests, mut limits) = (least.requests.unwrap_or_default(), least.limits.unwrap_or_default());
    for (name, amount) in other.map(effective_requests).unwrap_or_default() {
        // Of what cannot be shared, a request without a limit is not allowed.
        let whole = name.contains('/') || name.starts_with("hugepages-");
        if let Some(limit) = limits.get_mut(&name)
            && same::is_more(&amount, limit)
        {
            *limit = amount.clone();
        }
        if whole {
            limits.insert(name.clone(), amount.clone());
        }
        if requests.get(&name).is_none_or(|request| same::is_more(&amount, request)) {
            requests.insert(name, amount);
        }
    }
    ResourceRequirements { requests: Some(requests), limits: Some(limits), claims: None }
}

fn volumes(model: &ValidModel) -> Vec<Volume> {
    let mut volumes = vec![scratch("tmp"), model_volume(model)];
    if matches!(model.files, Files::Ephemeral(_)) {
        volumes.extend(trusted_ca(model));
    }
    volumes.extend(model.pods.volumes.iter().map(|extra| Volume {
        name: extra.name.clone(),
        config_map: extra.config_map.clone(),
        secret: extra.secret.clone(),
        empty_dir: extra.empty_dir.clone(),
        persistent_volume_claim: extra.persistent_volume_claim.clone(),
        ..Volume::default()
    }));
    volumes
}

/// The volume with the model's files.
///
/// Pods mount our own volume read-only, but the volume is not attached so: the fetch of the
/// next revision writes to it on the same node.
pub(super) fn model_volume(model: &ValidModel) -> Volume {
    let claim = |claim_name: String, read_only: bool| PersistentVolumeClaimVolumeSource {
        claim_name,
        read_only: read_only.then_some(true),
    };
    let mut volume = Volume { name: "model".into(), ..Volume::default() };
    match &model.files {
        Files::Cached { .. } => {
            volume.persistent_volume_claim = Some(claim(names::cache(&model.name), false));
        }
        Files::Ephemeral(_) => {
            volume.empty_dir = Some(EmptyDirVolumeSource::default());
        }
        Files::Claim { claim: filled, .. } => {
            volume.persistent_volume_claim = Some(claim(filled.claim_name.clone(), true));
        }
        Files::Image(image) => {
            volume.image = Some(ImageVolumeSource {
                reference: Some(image.reference.clone()),
                pull_policy: Some("IfNotPresent".into()),
            });
        }
    }
    volume
}

pub(super) fn scratch(name: &str) -> Volume {
    Volume { name: name.into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

pub(super) fn trusted_ca(model: &ValidModel) -> Option<Volume> {
    let reference = &model.network.trusted_ca.as_ref()?.config_map_ref;
    Some(Volume {
        name: "trusted-ca".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: reference.name.clone(),
            items: Some(vec![KeyToPath { key: reference.key.clone(), path: "ca.crt".into(), mode: None }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    })
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// What "restricted" of the pod security standards asks for, and a root file system that
/// nothing writes to.
fn locked_down() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// The container that fetches. Only what is in `keep` stays in the cache beside what is fetched.
pub(super) fn fetcher(model: &ValidModel, download: &Download, keep: Option<&[String]>) -> Container {
    let mut arguments = vec!["fetch".to_owned()];
    let mut env = Vec::new();
    let set =
        |name: &str, value: &str| EnvVar { name: name.into(), value: Some(value.into()), value_from: None };
    match download {
        Download::Hub { repo, endpoint } => {
            arguments.push(format!("{}@{}", repo.repo, repo.revision));
            arguments.extend(["--hf-endpoint".into(), endpoint.clone()]);
            if let Some(token) = &repo.token_secret_ref {
                env.push(EnvVar {
                    name: "HF_TOKEN".into(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        secret_key_ref: Some(SecretKeySelector {
                            name: token.name.clone(),
                            key: token.key.clone(),
                            optional: None,
                        }),
                        ..EnvVarSource::default()
                    }),
                });
            }
        }
        Download::Archive(archive) => {
            arguments.extend([
                "--url".into(),
                archive.url.clone(),
                "--sha256".into(),
                archive.sha256.clone(),
            ]);
        }
    }
    arguments.extend(["--cache-dir".into(), MODELS.into()]);
    if keep.is_some_and(<[String]>::is_empty) {
        arguments.push("--keep-nothing-else".into());
    }
    for kept in keep.unwrap_or_default() {
        arguments.extend(["--keep".into(), kept.clone()]);
    }
    arguments.extend(["--summary-file".into(), "/dev/termination-log".into()]);
    arguments.extend(["--log-format".into(), "json".into()]);
    if let Some(proxy) = &model.network.proxy {
        for (name, value) in [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("NO_PROXY", &proxy.no_proxy),
        ] {
            env.extend(value.as_ref().map(|value| set(name, value)));
        }
    }
    let mut mounts = vec![mount("tmp", "/tmp", false), mount("model", MODELS, false)];
    if model.network.trusted_ca.is_some() {
        env.push(set("EMBEDDING_CA_FILE", &format!("{TRUSTED_CA}/ca.crt")));
        mounts.push(mount("trusted-ca", TRUSTED_CA, true));
    }
    let quantity = |text: &str| Quantity(text.into());
    Container {
        name: names::FETCH.into(),
        image: Some(model.image.clone()),
        args: Some(arguments),
        env: Some(env).filter(|env| !env.is_empty()),
        resources: Some(ResourceRequirements {
            requests: Some(
                [("cpu".to_owned(), quantity("100m")), ("memory".to_owned(), quantity("256Mi"))].into(),
            ),
            limits: Some([("memory".to_owned(), quantity("1Gi"))].into()),
            claims: None,
        }),
        security_context: Some(locked_down()),
        // The summary is written there; where the process dies before, its log is told.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}
