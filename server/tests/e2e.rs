//! Both programs on a cluster with a real node: installed by the chart, used as users do.
//!
//! `make e2e` starts such a cluster on this machine (`docs/e2e.md`), gives it the images and
//! runs this. The tests share one installation and run one after the other.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]
#![allow(clippy::print_stdout, reason = "a test's figures are worth seeing")]

#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/custom_metrics.rs"]
mod custom_metrics;
#[path = "support/hub.rs"]
mod hub;
#[path = "e2e/load.rs"]
mod load;
#[path = "e2e/spaces.rs"]
mod spaces;

mod support;

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cluster::{Cluster, Namespace, root, until};
use custom_metrics::{CustomMetrics, WAITING_TOKENS};
use hub::{FakeHub, Tree};
use load::Load;
use serde_json::{Value, json};
use spaces::Answer;
use support::golden::Golden;
use support::{cosine, minilm};

const REPO: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// Of the hub of these tests; what crds/examples/minimal.yaml asks for.
const FIRST: &str = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf";
const SECOND: &str = "2222222222222222222222222222222222222222";
const TOKEN: &str = "hf_right";
/// How long a model may take until it serves, on a busy machine.
const START: Duration = Duration::from_mins(4);
/// Requests a second while something happens to a model.
const RATE: u32 = 20;

/// A cluster with the operator on it, and a hub beside it.
struct World {
    cluster: Cluster,
    hub: FakeHub,
    runtime: tokio::runtime::Runtime,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = Cluster::from_environment();
    let mut tree = Tree::of_directory(REPO, &minilm()).with_download("minilm.tar.gz", archive(&minilm()));
    FIRST.clone_into(&mut tree.commit);
    let hub = runtime.block_on(FakeHub::start_on(tree, &cluster.host_ip));
    let mut cdn = hub.cdn();
    cdn.set_host(Some(&cluster.host_ip)).unwrap();
    hub.set_cdn(cdn);
    let world = World { cluster, hub, runtime };
    world.install(&[]);
    world
});

impl World {
    /// Installs the operator, or upgrades it, as the README says, but with the hub of the tests.
    fn install(&self, more: &[&str]) {
        let command = quick_start().into_iter().find(|command| command.starts_with("helm ")).unwrap();
        let endpoint = format!("hub.endpoint={}", self.hub.endpoint.as_str().trim_end_matches('/'));
        let mut arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        arguments.extend(["--set", &endpoint, "--set", "fetchRetrySeconds=5", "--timeout", "3m"]);
        arguments.extend(more);
        self.cluster.helm(&arguments);
    }
}

/// The commands of the README's section on Kubernetes, one an item.
fn quick_start() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("\n## On Kubernetes\n").nth(1).unwrap();
    let block = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    block.replace("\\\n", "").lines().map(str::to_owned).collect()
}

/// A model with little need, which `more` changes.
fn apply(namespace: &Namespace<'_>, name: &str, more: &Value) {
    let mut spec = json!({
        "source": {"huggingFace": {"repo": REPO}},
        "resources": {"requests": {"cpu": "100m", "memory": "400Mi"}},
        "cache": {"size": "500Mi"},
    });
    merge(&mut spec, more);
    namespace.apply(&json!({
        "apiVersion": "embeddings.kagent.dev/v1alpha1",
        "kind": "EmbeddingModel",
        "metadata": {"name": name},
        "spec": spec,
    }));
}

/// A Secret with a token for the hub.
fn give_token(namespace: &Namespace<'_>, token: &str) {
    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub"},
        "stringData": {"token": token},
    }));
}

/// As a JSON merge patch does.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                if value.is_null() {
                    into.remove(name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// The files of a directory, as people pack them.
fn archive(directory: &Path) -> Vec<u8> {
    let mut builder =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    builder.append_dir_all("minilm", directory).unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

/// Texts, some of each kind, and their vectors by Python's sentence-transformers.
fn golden() -> (Vec<String>, Vec<Vec<f32>>) {
    let Golden { texts, vectors, .. } = Golden::read();
    texts.into_iter().zip(vectors).step_by(7).take(24).unzip()
}

/// Asserts that what the model's Service answers are Python's vectors.
fn assert_serves(namespace: &Namespace<'_>, name: &str) {
    let (texts, vectors) = golden();
    let answer = WORLD.runtime.block_on(load::post(
        namespace.service(name),
        "/embeddings",
        &json!({"texts": texts, "model": name}),
    ));
    let (status, body) = answer.unwrap();
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let found: Vec<Vec<f32>> = serde_json::from_value(answer["embeddings"].clone()).unwrap();
    assert_eq!(found.len(), vectors.len());
    let smallest = found.iter().zip(&vectors).map(|(a, b)| cosine(a, b)).fold(f64::INFINITY, f64::min);
    println!("{name}: smallest cosine to Python over {} texts: {smallest:.6}", texts.len());
    assert!(smallest > 0.9995, "{smallest}");
}

/// A load of short texts on a model's Service, half of it over kept connections.
fn load(namespace: &Namespace<'_>, name: &str) -> Load {
    let body = json!({"texts": ["a short text"], "model": name});
    Load::start(&WORLD.runtime, namespace.service(name), "/embeddings", &body, RATE)
}

#[test]
fn a_0_the_readmes_quick_start_ends_with_a_vector() {
    let world = &*WORLD;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The first has been done.
    let rest: Vec<_> = quick_start().into_iter().filter(|command| !command.starts_with("helm ")).collect();
    let script = rest.join("\n").replace("9000", &port.to_string());
    let said = world.cluster.shell(&script);
    println!("{script}\n{}…", said.chars().take(400).collect::<String>());
    let vector = said.lines().last().unwrap();
    let answer: Value = serde_json::from_str(vector).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(answer["dimensions"], 384);
    world.cluster.kubectl(&["delete", "em/minilm", "--wait", "--timeout=60s"]);
}

#[test]
fn a_a_model_of_each_source_serves_pythons_vectors() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("sources");
    apply(&namespace, "hub", &json!({}));
    let archive = world.hub.tree().downloads["minilm.tar.gz"].sha256();
    let url = world.hub.endpoint.join("downloads/minilm.tar.gz").unwrap();
    let source = json!({"huggingFace": null, "http": {"url": url.as_str(), "sha256": archive}});
    apply(&namespace, "archive", &json!({"source": source}));
    namespace.until_ready("hub", START);
    namespace.until_ready("archive", START);
    assert_serves(&namespace, "hub");
    assert_serves(&namespace, "archive");
    let told = namespace.model("hub");
    assert_eq!(told["status"]["model"]["resolvedRevision"], FIRST);
    assert_eq!(told["status"]["model"]["dimensions"], 384);

    // A claim with the files in it: the archive's, which now is somebody's.
    let path = format!("archives/{archive}");
    let claim = json!({"claimName": "archive-cache", "path": path});
    apply(
        &namespace,
        "filled",
        &json!({"source": {"huggingFace": null, "persistentVolumeClaim": claim}, "cache": null}),
    );
    let reference = world.cluster.load_model_image(&minilm());
    apply(
        &namespace,
        "image",
        &json!({"source": {"huggingFace": null, "image": {"reference": reference}}, "cache": null}),
    );
    for name in ["filled", "image"] {
        namespace.until_ready(name, START);
        assert_serves(&namespace, name);
    }
    for name in ["filled", "image", "hub", "archive"] {
        namespace.kubectl(&["delete", "em", name, "--wait", "--timeout=60s"]);
    }
    until("nothing is left of the models", Duration::from_mins(2), || {
        let kinds = "all,pvc,networkpolicies,controllerrevisions,serviceaccounts,hpa,pdb,endpointslices";
        let selector = "-lembeddings.kagent.dev/model";
        let left = namespace.kubectl(&["get", kinds, selector, "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn b_no_request_fails_while_a_model_is_changed() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("changes");
    apply(&namespace, "m", &json!({}));
    namespace.until_ready("m", START);
    assert_serves(&namespace, "m");
    let load = load(&namespace, "m");
    let mut done = Vec::new();
    let mut step = |what: &'static str, act: &dyn Fn()| {
        let begun = Instant::now();
        act();
        namespace.until_ready("m", START);
        done.push(format!("{what}: {:.0} s", begun.elapsed().as_secs_f64()));
    };
    step("1 → 3 replicas", &|| {
        namespace.kubectl(&["scale", "em/m", "--replicas=3"]);
    });
    step("another revision", &|| {
        world.hub.change(|tree| {
            SECOND.clone_into(&mut tree.commit);
            tree.refs.push("v2".to_owned());
        });
        namespace.patch("m", &json!({"spec": {"source": {"huggingFace": {"revision": "v2"}}}}));
        until("the second revision serves", START, || {
            let model = namespace.model("m");
            let commit = &model["status"]["model"]["resolvedRevision"];
            if *commit == SECOND && namespace.is_ready("m") {
                Ok(())
            } else {
                Err(model["status"].to_string())
            }
        });
    });
    step("another image", &|| {
        namespace.patch("m", &json!({"spec": {"image": world.cluster.server_image_again()}}));
    });
    step("a pod is deleted", &|| {
        let pod = namespace.pods("m")[0].clone();
        namespace.kubectl(&["delete", "pod", &pod, "--wait=false"]);
        until("the pod has gone", START, || {
            if namespace.pods("m").contains(&pod) { Err(pod.clone()) } else { Ok(()) }
        });
    });
    step("3 → 1 replicas", &|| {
        namespace.kubectl(&["scale", "em/m", "--replicas=1"]);
        until("one pod is left", START, || {
            let pods = namespace.pods("m");
            if pods.len() == 1 { Ok(()) } else { Err(pods.join(" ")) }
        });
    });
    step("the operator is killed", &|| {
        let operator =
            ["-n", "embeddings", "delete", "pod", "-l", "app.kubernetes.io/name=embedding-operator"];
        world.cluster.kubectl(&[&operator[..], &["--force", "--grace-period=0"]].concat());
        world.cluster.kubectl(&["-n", "embeddings", "rollout", "status", "deploy", "--timeout=2m"]);
    });
    step("the API server is away for 15 s", &|| {
        world.cluster.on_node(&["pkill", "-STOP", "-x", "kube-apiserver"]);
        std::thread::sleep(Duration::from_secs(15));
        world.cluster.on_node(&["pkill", "-CONT", "-x", "kube-apiserver"]);
        until("the API server answers", Duration::from_mins(1), || {
            let output = world.cluster.try_kubectl(&["get", "--raw", "/readyz"]);
            if output.status.success() { Ok(()) } else { Err("not ready".into()) }
        });
    });
    let report = load.end();
    println!("{}\n{report}", done.join("\n"));
    assert!(report.sent > 500 && report.over_kept > 200, "{report}");
    assert_eq!(report.failures, Vec::<String>::new(), "{report}");
    world.hub.change(|tree| FIRST.clone_into(&mut tree.commit));
}

#[test]
fn c_a_server_that_is_killed_serves_again() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("killed");
    apply(&namespace, "m", &json!({"replicas": 2}));
    namespace.until_ready("m", START);
    let load = load(&namespace, "m");
    std::thread::sleep(Duration::from_secs(3));
    let pod = namespace.pods("m")[0].clone();
    let restarts = || namespace.restarts(&pod);
    let uid = namespace.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.metadata.uid}"]);
    world.cluster.kill_container(&uid);
    let killed = Instant::now();
    until("it was started again", START, || if restarts() > 0 { Ok(()) } else { Err(String::new()) });
    namespace.until_ready("m", START);
    println!("killed; all replicas serve again after {:.1} s", killed.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(3));
    let report = load.end();
    println!("{report}");
    // What was under way on it, and what was sent before its endpoint went.
    assert!(report.last_failure < Some(Duration::from_secs(15) + Duration::from_secs(3)), "{report}");
    assert!(report.failures.len() < report.sent / 4, "{report}");
    assert_serves(&namespace, "m");
}

#[test]
fn d_what_goes_wrong_is_told_and_heals() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("wrong");
    // A repository that is not there.
    apply(&namespace, "repo", &json!({"source": {"huggingFace": {"repo": "nobody/nothing"}}}));
    // A limit that is too small for the model.
    let small = json!({"requests": {"cpu": "100m", "memory": "60Mi"}, "limits": {"memory": "60Mi"}});
    apply(&namespace, "memory", &json!({"resources": small}));
    // A volume that is too small for it.
    let volume = world.cluster.small_volume(&namespace, "disk-cache", 20);
    apply(&namespace, "disk", &json!({"cache": {"storageClassName": volume.class, "size": "20Mi"}}));
    let told = |name: &str, reason: &str, says: &str| {
        namespace.until_not_ready(name, reason, says, START);
    };
    told("repo", "SourceRefused", "nobody/nothing");
    told("memory", "OutOfMemory", "resources.limits.memory");
    told("disk", "FetchFailed", "");
    println!("disk: {}", namespace.message("disk"));
    namespace.patch("repo", &json!({"spec": {"source": {"huggingFace": {"repo": REPO}}}}));
    namespace.patch("memory", &json!({"spec": {"resources": {"limits": {"memory": "1500Mi"}}}}));
    volume.grow(500);
    for name in ["repo", "memory", "disk"] {
        namespace.until_ready(name, START);
    }
    assert_serves(&namespace, "disk");
    for name in ["repo", "memory", "disk"] {
        namespace.kubectl(&["delete", "em", name]);
    }

    // A token that is wrong, and then is not.
    world.hub.require_token(TOKEN);
    give_token(&namespace, "hf_wrong");
    let source = json!({"huggingFace": {"tokenSecretRef": {"name": "hub"}}});
    apply(&namespace, "token", &json!({"source": source}));
    told("token", "SourceRefused", "the token is not valid");
    assert!(!namespace.model("token")["status"].to_string().contains("hf_wrong"));
    give_token(&namespace, TOKEN);
    namespace.until_ready("token", START);
}

#[test]
fn e_autoscaling_follows_the_load() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("scaled");
    let autoscaling = json!({"maxReplicas": 2, "targetCPUUtilizationPercentage": 50});
    let source = json!({"huggingFace": {"tokenSecretRef": {"name": "hub"}}});
    give_token(&namespace, TOKEN);
    // Clients that never wait cost all that the limit grants, however fast the engine is; half of
    // what is requested is the target.
    let resources = json!({"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "400m"}});
    apply(&namespace, "m", &json!({"autoscaling": autoscaling, "source": source, "resources": resources}));
    namespace.until_ready("m", START);
    let texts = vec!["a text of a client that asks at once again"; 16];
    let body = json!({"texts": texts, "model": "m"});
    let load = Load::of_clients(&world.runtime, namespace.service("m"), "/embeddings", &body, 2);
    namespace.until_replicas("m", 2, START);
    let up = load.end();
    namespace.until_replicas("m", 1, START);
    println!("{up}");
    assert_eq!(up.failures, Vec::<String>::new(), "{up}");
}

#[test]
fn e_b_autoscaling_follows_the_queue() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("queued");
    give_token(&namespace, TOKEN);
    let autoscaling = json!({"maxReplicas": 2, "targetQueuedTokensPerReplica": 500});
    let source = json!({"huggingFace": {"tokenSecretRef": {"name": "hub"}}});
    // So slow that tokens wait, whatever the machine.
    let resources = json!({"limits": {"cpu": "200m"}});
    apply(&namespace, "m", &json!({"autoscaling": autoscaling, "source": source, "resources": resources}));
    namespace.until_ready("m", START);
    // No API, no metric: the autoscaler says so, and lets the model be.
    namespace.until_scaling("m", false, WAITING_TOKENS, START);
    assert_eq!(namespace.pods("m").len(), 1);
    let metrics = CustomMetrics::start(&world.runtime, &namespace);
    namespace.until_scaling("m", true, WAITING_TOKENS, START);
    // As people look, too.
    let path = format!("{}/namespaces/{}/pods/*/{WAITING_TOKENS}", custom_metrics::PATH, namespace.name);
    let told: Value = serde_json::from_str(&world.cluster.kubectl(&["get", "--raw", &path])).unwrap();
    assert_eq!(told["items"][0]["value"], "0", "{told}");

    let text = |number| format!("text {number} of a bulk request: {}", "many words that wait ".repeat(5));
    let body = json!({"texts": (0..16).map(text).collect::<Vec<_>>(), "model": "m"});
    let load = Load::of_clients(&world.runtime, namespace.service("m"), "/embeddings", &body, 8);
    namespace.until_replicas("m", 2, START);
    // With both at work.
    std::thread::sleep(Duration::from_secs(15));
    let report = load.end();
    namespace.until_replicas("m", 1, START);
    println!("{report}\ntokens in line, each time that they were asked for: {metrics}");
    assert_eq!(report.failures, Vec::<String>::new(), "{report}");
    let events = namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
    let why = format!("New size: 2; reason: pods metric {WAITING_TOKENS} above target");
    assert!(events.contains(&why), "{events}");
}

/// The model's space as its status tells it.
fn told_space(namespace: &Namespace<'_>, name: &str) -> String {
    let space = namespace.model(name)["status"]["model"]["space"].clone();
    space.as_str().unwrap_or_else(|| panic!("the status of {name} tells no space")).to_owned()
}

/// Asks for a vector; asserts that one of another space than is expected is never answered.
fn ask(namespace: &Namespace<'_>, name: &str, expected: Option<&str>) -> Answer {
    let asked = spaces::ask(namespace.service(name), name, expected);
    let answer = WORLD.runtime.block_on(asked).unwrap_or_else(|error| panic!("{name}: {error}"));
    if answer.status == 200 {
        assert_eq!(answer.body["data"][0]["embedding"].as_array().unwrap().len(), 384);
        assert!(expected.is_none() || answer.space.as_deref() == expected, "{expected:?}: {answer:?}");
    } else {
        assert_eq!((answer.status, &answer.body["data"]), (412, &Value::Null), "{answer:?}");
        let says = answer.body["error"]["message"].as_str().unwrap();
        assert!(says.contains(expected.unwrap()), "it names the space: {says}");
    }
    answer
}

#[test]
fn e_c_two_revisions_are_two_spaces() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("spaces");
    give_token(&namespace, TOKEN);
    let source = json!({"huggingFace": {"tokenSecretRef": {"name": "hub"}}});
    apply(&namespace, "old", &json!({"source": source}));
    namespace.until_ready("old", START);
    let files = world.hub.tree();
    world.hub.change(|tree| {
        SECOND.clone_into(&mut tree.commit);
        *tree = tree.clone().with("sentence_bert_config.json", r#"{"max_seq_length": 128}"#);
    });
    let prompts = json!({"query": "query: ", "passage": "$(HOME) \"ä\": "});
    apply(&namespace, "new", &json!({"source": source}));
    apply(&namespace, "prompted", &json!({"source": source, "inference": {"prompts": prompts}}));
    let mut known = Vec::new();
    for name in ["old", "new", "prompted"] {
        namespace.until_ready(name, START);
        let space = told_space(&namespace, name);
        assert_eq!(ask(&namespace, name, None).space.as_deref(), Some(&*space), "{name}: status and answers");
        assert!(!known.contains(&space), "{name}: {space} of {known:?}");
        known.push(space);
    }
    println!("spaces of two revisions, and of the second with prompts: {known:?}");
    let old = known[0].as_str();
    for (name, status) in [("old", 200), ("new", 412), ("prompted", 412)] {
        assert_eq!(ask(&namespace, name, Some(old)).status, status, "{name}");
    }

    // The same Service, while the other revision is rolled out.
    let revision = json!({"spec": {"source": {"huggingFace": {"revision": SECOND}}}});
    namespace.patch("old", &revision);
    let (begun, mut answers) = (Instant::now(), [0, 0]);
    while answers[1] < 10 {
        assert!(begun.elapsed() < START, "the second revision does not come: {}", namespace.model("old"));
        let status = ask(&namespace, "old", Some(old)).status;
        // Until the old pod has gone, both may answer.
        answers[usize::from(status == 412)] += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    namespace.until_ready("old", START);
    println!("while it was rolled out, {} answers with a vector and {} without", answers[0], answers[1]);
    assert_eq!(told_space(&namespace, "old"), known[1]);
    let conditions = namespace.model("old")["status"]["conditions"].clone();
    let changed = conditions.as_array().unwrap().iter().find(|it| it["type"] == "SpaceChanged").unwrap();
    assert_eq!((&changed["status"], &changed["reason"]), (&json!("True"), &json!("SpaceChangeAllowed")));
    assert!(changed["message"].as_str().unwrap().contains(old), "{changed}");
    world.hub.change(|tree| *tree = files);
    for name in ["old", "new", "prompted"] {
        namespace.kubectl(&["delete", "em", name, "--wait", "--timeout=60s"]);
    }
}

#[test]
fn f_an_upgrade_restarts_no_pod_and_an_uninstall_leaves_the_models() {
    let world = &*WORLD;
    let namespace = world.cluster.namespace("upgrade");
    let source = json!({"huggingFace": {"tokenSecretRef": {"name": "hub"}}});
    give_token(&namespace, TOKEN);
    apply(&namespace, "m", &json!({"source": source}));
    namespace.until_ready("m", START);
    let before = namespace.pod_uids("m");
    let offered = || {
        let model = namespace.model("m");
        let conditions = model["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "UpdateAvailable").unwrap().clone()
    };
    assert_eq!(offered()["status"], "False");

    // Another build of the operator, whose template of the same spec is another one; and
    // another default image.
    let image = world.cluster.server_image_again();
    let (repository, tag) = image.rsplit_once(':').unwrap();
    let (repository, tag) =
        (format!("server.image.repository={repository}"), format!("server.image.tag={tag}"));
    let another = concat!("image.tag=", env!("CARGO_PKG_VERSION"), "-another");
    for upgrade in [&["--set", another][..], &["--set", another, "--set", &repository, "--set", &tag]] {
        world.install(upgrade);
        until("an update can be had", START, || {
            let update = offered();
            if update["status"] == "True" { Ok(()) } else { Err(update.to_string()) }
        });
        println!("{}", offered()["message"]);
        assert_eq!(namespace.pod_uids("m"), before);
    }
    assert_serves(&namespace, "m");
    namespace.kubectl(&["annotate", "em/m", "embeddings.kagent.dev/update=now"]);
    until("other pods", START, || {
        let pods = namespace.pod_uids("m");
        if pods != before && pods.len() == 1 && namespace.is_ready("m") {
            Ok(())
        } else {
            Err(pods.join(" "))
        }
    });
    let grace = "jsonpath={.items[*].spec.terminationGracePeriodSeconds}";
    let grace = namespace.kubectl(&["get", "pods", "-lapp.kubernetes.io/component=server", "-o", grace]);
    assert!(grace.split(' ').any(|seconds| seconds == "41"), "of the other template: {grace}");

    let before = namespace.pod_uids("m");
    world.cluster.helm(&["uninstall", "embeddings", "--namespace", "embeddings", "--wait"]);
    assert_serves(&namespace, "m");
    assert_eq!(namespace.pod_uids("m"), before);
    world.install(&["--take-ownership"]);
    namespace.kubectl(&["delete", "em/m", "--wait", "--timeout=60s"]);
}
