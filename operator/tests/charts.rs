//! The charts: what Helm 3 and 4 make of them, and what a real API server says to that.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "charts/conform.rs"]
mod conform;
#[path = "charts/every_value.rs"]
mod every_value;
#[path = "charts/helm.rs"]
mod helm;
#[path = "charts/metrics.rs"]
mod metrics;
#[path = "charts/pairs.rs"]
mod pairs;
#[path = "charts/readme.rs"]
mod readme;
#[path = "charts/release.rs"]
mod release;
#[path = "charts/render.rs"]
mod render;
mod support;
#[path = "charts/values.rs"]
mod values;

use std::process::Command;

use clap::{CommandFactory as _, Parser as _};
use embedding_operator::config::Cli;
use serde_json::{Value, json};

use every_value::check;
use helm::{Helm, chart, root};
use render::{container, of, one, refusal, render, settings, yaml};
use values::values_text;

const OPERATOR: &str = "embedding-operator";
const MODELS: &str = "embedding-models";
/// What objects of the release are called.
const NAME: &str = "release-embedding-operator";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn both_charts_pass_helm_lint_without_a_warning() {
    let models = read("charts/embedding-models/examples/values.yaml");
    for helm in Helm::all() {
        let version = helm.says(&["version", "--short"], None, "").unwrap();
        assert!(version.starts_with(&format!("v{}.", helm.version)), "{version}");
        for (chart, values) in [(OPERATOR, "{}"), (MODELS, "{}"), (MODELS, &models)] {
            let said = helm.lint(chart, values).unwrap_or_else(|error| panic!("{error}"));
            assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
        }
    }
}

#[test]
fn without_values_it_is_what_one_would_install() {
    let objects = render(OPERATOR, &json!({}));
    let kinds: Vec<String> = objects.iter().map(|object| of(object).0).collect();
    let expected = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(kinds, expected);
    let labels = json!({
        "app.kubernetes.io/instance": "release",
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/name": OPERATOR,
        "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
    });
    let selector = json!({"app.kubernetes.io/instance": "release", "app.kubernetes.io/name": OPERATOR});
    let place =
        |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    let expected = json!({
        "replicas": 2,
        "selector": {"matchLabels": selector},
        "template": {
            "metadata": {
                "annotations": {"kubectl.kubernetes.io/default-container": "operator"},
                "labels": labels,
            },
            "spec": {
                "automountServiceAccountToken": true,
                "containers": [{
                    "args": [
                        "--admin-address=0.0.0.0:8080",
                        "--concurrency=8",
                        "--fetch-retry=60",
                        "--hub-endpoint=https://huggingface.co",
                        "--leader-election=true",
                        format!("--lease-name={NAME}"),
                        "--log=info",
                        "--log-format=json",
                        concat!("--server-image=embedding-server:", env!("CARGO_PKG_VERSION")),
                    ],
                    "env": [place("POD_NAME", "metadata.name"), place("POD_NAMESPACE", "metadata.namespace")],
                    "image": concat!("embedding-operator:", env!("CARGO_PKG_VERSION")),
                    "imagePullPolicy": "IfNotPresent",
                    "livenessProbe": {
                        "failureThreshold": 6,
                        "httpGet": {"path": "/healthz", "port": "admin"},
                        "periodSeconds": 10,
                        "timeoutSeconds": 3,
                    },
                    "name": "operator",
                    "ports": [{"containerPort": 8080, "name": "admin", "protocol": "TCP"}],
                    "readinessProbe": {
                        "httpGet": {"path": "/readyz", "port": "admin"},
                        "periodSeconds": 5,
                        "timeoutSeconds": 3,
                    },
                    "resources": {
                        "limits": {"memory": "256Mi"},
                        "requests": {"cpu": "20m", "memory": "64Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": true,
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }],
                "enableServiceLinks": false,
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "securityContext": {
                    "runAsGroup": 65532,
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "serviceAccountName": NAME,
                "terminationGracePeriodSeconds": 30,
                "topologySpreadConstraints": [{
                    "labelSelector": {"matchLabels": selector},
                    "matchLabelKeys": ["pod-template-hash"],
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                }],
            },
        },
    });
    assert_eq!(one(&objects, "Deployment")["spec"], expected);
    // Settings that the chart does not change are the program's own.
    let (ours, own) = (settings(&objects), Cli::try_parse_from([OPERATOR]).unwrap());
    assert_eq!(ours.config(), own.config());
    assert_eq!((ours.concurrency, ours.admin_address), (own.concurrency, own.admin_address));
    check(&json!({}), &objects);
}

#[test]
fn images_are_named_by_registry_tag_and_digest() {
    let cuda = json!({"repository": "cuda", "registry": "own.test"});
    let table = [
        (json!({"image": {"tag": "9"}}), "embedding-operator:9", None),
        (
            json!({"image": {"tag": "9", "digest": DIGEST}}),
            concat!(
                "embedding-operator@sha256:",
                "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
            ),
            None,
        ),
        (
            json!({"image": {"registry": "own.test"}, "server": {"cudaImage": cuda}}),
            concat!("own.test/embedding-operator:", env!("CARGO_PKG_VERSION")),
            Some(concat!("own.test/cuda:", env!("CARGO_PKG_VERSION"), "-cuda")),
        ),
        (
            json!({"global": {"imageRegistry": "all.test/mirror/"}, "image": {"registry": "own.test"}, "server": {"cudaImage": cuda}}),
            concat!("all.test/mirror/embedding-operator:", env!("CARGO_PKG_VERSION")),
            Some(concat!("all.test/mirror/cuda:", env!("CARGO_PKG_VERSION"), "-cuda")),
        ),
    ];
    for (values, image, cuda) in table {
        let objects = render(OPERATOR, &values);
        assert_eq!(container(&objects)["image"], image, "{values}");
        assert_eq!(settings(&objects).server_cuda_image.as_deref(), cuda, "{values}");
    }
}

#[test]
fn values_that_contradict_each_other_are_refused_with_what_to_do() {
    let table = [
        (
            json!({"clusterWide": true, "watchNamespaces": ["a", "b"]}),
            "both scopes are set: clusterWide is true, and watchNamespaces has a, b. Unset watchNamespaces to look after all \
          namespaces, or clusterWide to look after those only.",
        ),
        (
            json!({"clusterWide": false}),
            "no scope is set: clusterWide is false, and watchNamespaces is empty. List the namespaces in watchNamespaces, or \
          unset clusterWide to look after all of them.",
        ),
        (
            json!({"leaderElection": {"enabled": false}}),
            "replicas is 2, and leaderElection.enabled is false: all of them would work at once. Set replicas to 1, or \
          leaderElection.enabled to true.",
        ),
        (json!({"serviceAccount": {"create": false}}), "Name the account that it is to use."),
        (
            json!({"metrics": {"serviceMonitor": {"enabled": true}, "service": {"enabled": false}}}),
            "Set metrics.service.enabled to true.",
        ),
        (json!({"enabled": false}), "leave the chart out"),
    ];
    for (values, told) in table {
        let said = refusal(OPERATOR, &values);
        assert_eq!(said.matches(told).count(), Helm::all().len(), "{values}: {said}");
    }
}

#[test]
fn what_a_value_sets_is_set_by_nothing_else() {
    let helm = &Helm::all()[0];
    let cli = Cli::command();
    let arguments =
        cli.get_arguments().filter_map(|argument| Some((argument.get_long()?, argument.get_env()?)));
    let mut seen = 0;
    for (flag, variable) in arguments {
        let variable = variable.to_str().unwrap();
        for (values, name) in [
            (json!({"extraArgs": [format!("--{flag}=x")]}), format!("extraArgs has --{flag},")),
            (json!({"extraArgs": [format!("--{flag}"), "x"]}), format!("extraArgs has --{flag},")),
            (json!({"extraEnv": [{"name": variable, "value": "x"}]}), format!("extraEnv has {variable},")),
        ] {
            let said = helm.template(OPERATOR, "ops", &values).expect_err(&name);
            assert!(said.contains(&name) && said.contains("which comes from another value: "), "{said}");
        }
        seen += 1;
    }
    assert!(seen >= 14, "{seen} flags");
    // And each is set, where it has a value.
    let values = json!({
        "watchNamespaces": ["a"],
        "hub": {"allowedEndpoints": ["https://a.test"]},
        "server": {"cudaImage": {"repository": "cuda"}},
    });
    let objects = helm.template(OPERATOR, "ops", &values).unwrap();
    let container = container(&objects);
    let arguments: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    for argument in cli.get_arguments().filter(|argument| argument.get_env().is_some()) {
        let flag = format!("--{}=", argument.get_long().unwrap());
        let variable = argument.get_env().unwrap().to_str().unwrap();
        let by_variable = container["env"].as_array().unwrap().iter().any(|entry| entry["name"] == variable);
        let by_flag = arguments.iter().filter(|argument| argument.starts_with(&flag)).count();
        assert_eq!(by_flag + usize::from(by_variable), 1, "{flag}");
    }
}

#[test]
fn models_become_objects_and_what_no_model_has_is_refused() {
    let source = json!({"huggingFace": {"repo": "org/name"}});
    let values = json!({
        "commonLabels": {"team": "search", "tier": "one"},
        "commonAnnotations": {"example.com/a": "b"},
        "models": {
            "first": {"spec": {"source": source, "replicas": 2}},
            "second": {
                "labels": {"tier": "two"},
                "annotations": {"helm.sh/resource-policy": "keep"},
                "spec": {"source": source, "cache": {"size": "20Gi"}},
            },
            "none": null,
        },
    });
    let model = |name: &str, tier: &str, annotations: Value, spec: Value| {
        json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {
                "name": name,
                "namespace": "ops",
                "labels": {
                    "app.kubernetes.io/instance": "release",
                    "app.kubernetes.io/managed-by": "Helm",
                    "helm.sh/chart": concat!("embedding-models-", env!("CARGO_PKG_VERSION")),
                    "team": "search",
                    "tier": tier,
                },
                "annotations": annotations,
            },
            "spec": spec,
        })
    };
    let first =
        model("first", "one", json!({"example.com/a": "b"}), json!({"source": source, "replicas": 2}));
    let second = model(
        "second",
        "two",
        json!({"example.com/a": "b", "helm.sh/resource-policy": "keep"}),
        json!({"source": source, "cache": {"size": "20Gi"}}),
    );
    assert_eq!(render(MODELS, &values), [first, second]);
    assert!(render(MODELS, &json!({})).is_empty());

    let of = |model: Value| json!({"models": {"m": model}});
    for (values, name) in [
        (of(json!({"spec": {"source": source, "replica": 2}})), "replica"),
        (of(json!({"spec": {"source": {"huggingFace": {"repo": "org/name", "token": "x"}}}})), "token"),
        (of(json!({"spec": {"source": source, "replicas": -1}})), "replicas"),
        (
            of(
                json!({"spec": {"source": source, "podTemplate": {"volumes": [{"name": "v", "emptydir": {}}]}}}),
            ),
            "emptydir",
        ),
        (of(json!({"spec": {}})), "source"),
        (of(json!({})), "spec"),
        (of(json!({"spec": {"source": source}, "name": "x"})), "name"),
        (json!({"models": {"Upper": {"spec": {"source": source}}}}), "Upper"),
        (json!({"models": [{"spec": {"source": source}}]}), "models"),
        (json!({"model": {}}), "model"),
        (json!({"enabled": false}), "leave the chart out"),
    ] {
        let said = refusal(MODELS, &values);
        assert!(said.matches(name).count() >= Helm::all().len(), "{values}: {said}");
    }
}

/// Values that make all examples of models.
fn example_models() -> Value {
    let mut models = serde_json::Map::new();
    for entry in std::fs::read_dir(root().join("crds/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let model = yaml(&std::fs::read_to_string(path).unwrap());
            models.insert(
                model["metadata"]["name"].as_str().unwrap().to_owned(),
                json!({"spec": model["spec"]}),
            );
        }
    }
    json!({ "models": models })
}

#[test]
fn every_example_of_a_model_is_one_for_the_chart() {
    let values = example_models();
    let objects = render(MODELS, &values);
    assert_eq!(objects.len(), values["models"].as_object().unwrap().len());
    for object in objects {
        assert_eq!(object["spec"], values["models"][&of(&object).2]["spec"]);
    }
}

/// Files that are made from the code or from other files. `UPDATE_GENERATED=1` writes them.
mod generated {
    use super::*;
    use crate::support::generated::assert_generated;

    #[test]
    fn the_chart_has_the_definition_and_the_schema_of_the_types() {
        let folder = tempfile::tempdir().unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_crdgen")).arg(folder.path()).status().unwrap();
        assert!(made.success());
        for file in [
            "crds/embeddingmodels.yaml",
            "charts/embedding-operator/templates/crds.yaml",
            "charts/embedding-models/values.schema.json",
        ] {
            let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
            assert_generated(&root().join(file), &text);
        }
    }

    #[test]
    fn the_readme_of_each_chart_has_every_value() {
        const MARK: &str = "<!-- GENERATED from values.yaml by `make generate`: to the end. -->\n\n";
        for name in [OPERATOR, MODELS] {
            let path = chart(name).join("README.md");
            let text = std::fs::read_to_string(&path).unwrap();
            let (written, _) =
                text.split_once(MARK).unwrap_or_else(|| panic!("{} lacks {MARK}", path.display()));
            assert_generated(&path, &format!("{written}{MARK}{}", readme::table(&values_text(name))));
        }
    }

    #[test]
    fn the_charts_are_of_the_version_of_the_program() {
        for name in [OPERATOR, MODELS] {
            let about = yaml(&std::fs::read_to_string(chart(name).join("Chart.yaml")).unwrap());
            for version in ["version", "appVersion"] {
                assert_eq!(about[version], env!("CARGO_PKG_VERSION"), "{name}: {version}");
            }
        }
    }
}
