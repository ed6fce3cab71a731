//! The operator and the server agree: every container of the operator's golden manifests
//! (operator/tests/golden) is a command line that this server understands, and means what
//! the manifest around it says.
//!
//! # Flow
//! Variables belong to the process, and other tests run in this one: a child of this test
//! binary parses each command line, with exactly the container's variables, and writes down
//! what it means. The tests compare that with the manifest.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use embedding_server::config::{Cli, Command, What};
use embedding_server::fetch::{Cache, Manifest, Source, import};
use embedding_server::http::{Shared, router};
use embedding_server::metrics::Metrics;
use embedding_server::models::{Manner, Models, Origin};
use embedding_server::tokenize::Overflow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt as _;

#[path = "contract/spaces.rs"]
mod spaces;
mod support;

/// Where the child finds its command line; it writes beside it.
const TASK: &str = "EMBEDDING_TEST_OF_THE_CONTRACT";
/// What Kubernetes reads a container's last words from, unless told otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What a command line means, as far as a manifest has to fit it.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Meaning {
    Serve {
        host: String,
        port: u16,
        cache: PathBuf,
        offline: bool,
        shutdown: u64,
        models: Vec<(String, Place)>,
        texts: Texts,
    },
    Fetch {
        cache: PathBuf,
        offline: bool,
        summary_file: Option<PathBuf>,
        place: Place,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    Directory(PathBuf),
    Repository { repo: String, revision: String },
}

/// What becomes of texts, where requests do not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Texts {
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    on_overflow: String,
    require_input_type: bool,
}

/// A container, and what is around it.
#[derive(Debug)]
struct Found {
    /// For messages.
    place: String,
    file: PathBuf,
    /// What was asked of the operator.
    wish: Value,
    pod: Value,
    container: Value,
    arguments: Arguments,
    variables: Variables,
    meaning: Option<Meaning>,
}

fn of_source(source: &Source) -> Place {
    Place::Repository { repo: source.repo.to_string(), revision: source.revision().to_owned() }
}

fn texts(manner: &Manner) -> Texts {
    Texts {
        prompts: manner.prompts.clone(),
        default_prompt: manner.default_prompt.clone(),
        // By the words of the resource.
        on_overflow: match manner.overflow {
            Overflow::TruncateEnd => "Truncate".into(),
            other => format!("{other:?}"),
        },
        require_input_type: manner.require_input_type,
    }
}

/// In the child: what the command line means.
fn meaning(arguments: Vec<String>) -> Meaning {
    let program = std::iter::once("embedding-server".to_owned());
    match Cli::parse_with_default(program.chain(arguments).map(Into::into)).command {
        Command::Serve(args) => {
            let config = args.resolve().unwrap();
            let place = |origin: &Origin| match origin {
                Origin::Directory(path) => Place::Directory(path.clone()),
                Origin::Repository(source) => of_source(source),
            };
            Meaning::Serve {
                host: config.host,
                port: config.port,
                cache: config.sources.cache.root().to_owned(),
                offline: config.sources.hub.is_none(),
                shutdown: config.shutdown_timeout.as_secs(),
                texts: texts(&config.models[0].manner),
                models: config.models.iter().map(|spec| (spec.name.clone(), place(&spec.origin))).collect(),
            }
        }
        Command::Fetch(args) => {
            let summary_file = args.summary_file.clone();
            let config = args.resolve().unwrap();
            Meaning::Fetch {
                cache: config.sources.cache.root().to_owned(),
                offline: config.sources.hub.is_none(),
                summary_file,
                place: match &config.what {
                    What::Repository { source, .. } => of_source(source),
                    What::Archive(archive) => Place::Directory(config.sources.cache.directory_of(archive)),
                },
            }
        }
        Command::Convert(_) => panic!("no object of the operator converts a directory"),
        Command::Inspect(_) => panic!("no object of the operator asks what a model is"),
        Command::Healthcheck(_) => panic!("no object of the operator asks for health by a command"),
    }
}

type Arguments = Vec<String>;
type Variables = BTreeMap<String, String>;

/// In the parent: what these command lines mean, with these variables and no others.
fn ask(lines: &[&Arguments], variables: &Variables) -> Result<Vec<Meaning>, String> {
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("task.json");
    std::fs::write(&task, serde_json::to_vec(lines).unwrap()).unwrap();
    let output = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_command_line_means_what_its_flags_and_variables_say", "--nocapture"])
        .env_clear()
        // What the binary itself needs to run.
        .envs(
            ["HOME", "PATH", "LD_LIBRARY_PATH"]
                .map(|name| (name, std::env::var_os(name).unwrap_or_default())),
        )
        .envs(variables)
        .env(TASK, &task)
        .output()
        .unwrap();
    match std::fs::read(task.with_extension("meaning")) {
        Ok(json) => Ok(serde_json::from_slice(&json).unwrap()),
        Err(_) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn a_command_line_means_what_its_flags_and_variables_say() {
    if let Some(task) = std::env::var_os(TASK).map(PathBuf::from) {
        let lines: Vec<Arguments> = serde_json::from_slice(&std::fs::read(&task).unwrap()).unwrap();
        let meanings = lines.into_iter().map(|line| {
            // So that the last one is named when the program does not go on.
            eprintln!("{line:?}");
            meaning(line)
        });
        let meanings = serde_json::to_vec(&meanings.collect::<Vec<_>>()).unwrap();
        std::fs::write(task.with_extension("meaning"), meanings).unwrap();
        return;
    }
    let ask = |arguments: &[&str], variables: &[(&str, &str)]| {
        let line: Arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        ask(&[&line], &variables.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
    };
    let meanings = ask(&["serve", "--offline"], &[("PORT", "7"), ("EMBEDDING_MODEL", "")]).unwrap();
    assert!(matches!(meanings[..], [Meaning::Serve { port: 7, offline: true, .. }]), "{meanings:?}");
    assert!(ask(&["serve", "--no-such-flag"], &[]).unwrap_err().contains("--no-such-flag"));
}

// ---- The manifests ----

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path} in {value}"))
}

/// The pod that a document is about, if any.
fn pod(document: &Value) -> Option<&Value> {
    match document["kind"].as_str()? {
        "Deployment" | "Job" => Some(&document["spec"]["template"]["spec"]),
        "ControllerRevision" => document.pointer("/data/pods/spec"),
        _ => None,
    }
}

/// All containers of all golden manifests.
fn all() -> &'static [Found] {
    static ALL: OnceLock<Vec<Found>> = OnceLock::new();
    ALL.get_or_init(|| {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/tests/golden");
        let entries = std::fs::read_dir(&golden)
            .unwrap_or_else(|error| panic!("the operator's golden manifests: {}: {error}", golden.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        assert!(!files.is_empty(), "no golden manifests in {}", golden.display());
        let mut all: Vec<_> = files.iter().flat_map(|file| containers(file)).collect();
        // One child for all that have the same variables: starting one takes longest.
        let sets: BTreeSet<_> = all.iter().map(|found| found.variables.clone()).collect();
        for variables in sets {
            let mut same: Vec<_> = all.iter_mut().filter(|found| found.variables == variables).collect();
            let lines: Vec<_> = same.iter().map(|found| &found.arguments).collect();
            let meanings = ask(&lines, &variables).unwrap_or_else(|why| panic!("with {variables:?}: {why}"));
            same.iter_mut().zip(meanings).for_each(|(found, meaning)| found.meaning = Some(meaning));
        }
        all
    })
}

fn containers(file: &Path) -> Vec<Found> {
    let yaml = std::fs::read_to_string(file).unwrap();
    // The golden manifests are named after the examples that they come from.
    let wish = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/examples").join(file.file_name().unwrap());
    let wish: Value = serde_yaml::from_str(&std::fs::read_to_string(wish).unwrap()).unwrap();
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&yaml) {
        let document = Value::deserialize(document).unwrap();
        let Some(pod) = pod(&document) else { continue };
        let containers = list(pod, "/containers").iter().chain(list(pod, "/initContainers"));
        for container in containers {
            let place = format!(
                "{}: {} {}: container {}",
                file.file_name().unwrap().display(),
                text(&document, "/kind"),
                text(&document, "/metadata/name"),
                text(container, "/name")
            );
            assert!(container["command"].is_null(), "{place}: the image's own command is the server");
            let arguments = list(container, "/args").iter();
            let variables = list(container, "/env").iter().map(|variable| {
                // What comes from elsewhere has some value.
                let value = variable["value"].as_str().unwrap_or("from-elsewhere");
                (text(variable, "/name").to_owned(), value.to_owned())
            });
            found.push(Found {
                place,
                file: file.to_owned(),
                wish: wish.clone(),
                pod: pod.clone(),
                container: container.clone(),
                arguments: arguments.map(|argument| given(argument.as_str().unwrap())).collect(),
                variables: variables.collect(),
                meaning: None,
            });
        }
    }
    assert!(!found.is_empty(), "{} has no container", file.display());
    found
}

/// An argument as the kubelet gives it to a container.
fn given(argument: &str) -> String {
    let text = argument.replace("$$", "\0");
    assert!(!text.contains("$("), "{argument}: no argument of the operator has a variable in it");
    text.replace('\0', "$")
}

impl Found {
    /// The mount that a path is in: the volume's name, and whether it can be written.
    fn mount(&self, path: &Path) -> (String, bool) {
        let mounts = list(&self.container, "/volumeMounts");
        let mount = mounts
            .iter()
            .filter(|mount| path.starts_with(text(mount, "/mountPath")))
            .max_by_key(|mount| text(mount, "/mountPath").len())
            .unwrap_or_else(|| panic!("{}: {} is in no volume", self.place, path.display()));
        let name = text(mount, "/name");
        let volume = list(&self.pod, "/volumes").iter().find(|volume| volume["name"] == name);
        let volume = volume.unwrap_or_else(|| panic!("{}: there is no volume {name}", self.place));
        let writable = mount["readOnly"] != json!(true)
            && (volume["emptyDir"].is_object()
                || volume["persistentVolumeClaim"].is_object()
                    && volume["persistentVolumeClaim"]["readOnly"] != json!(true));
        (name.to_owned(), writable)
    }
}

/// What a resource says that becomes of texts.
fn wished_texts(wish: &Value) -> Texts {
    let inference = &wish["spec"]["inference"];
    let of = |field: &str| inference.get(field).cloned();
    Texts {
        prompts: of("prompts").map(|prompts| serde_json::from_value(prompts).unwrap()).unwrap_or_default(),
        default_prompt: of("defaultPrompt").map(|name| name.as_str().unwrap().to_owned()),
        on_overflow: of("onOverflow").map_or("Truncate".into(), |word| word.as_str().unwrap().to_owned()),
        require_input_type: of("requireInputType") == Some(json!(true)),
    }
}

#[test]
fn there_are_servers_and_fetchers_of_every_kind() {
    let count = |wanted: fn(&Meaning) -> bool| {
        all().iter().filter(|found| found.meaning.as_ref().is_some_and(wanted)).count()
    };
    for (count, what) in [
        (count(|meaning| matches!(meaning, Meaning::Serve { .. })), "serve"),
        (count(|meaning| matches!(meaning, Meaning::Fetch { place: Place::Repository { .. }, .. })), "fetch"),
        (
            count(|meaning| matches!(meaning, Meaning::Fetch { place: Place::Directory(_), .. })),
            "fetch --url",
        ),
        (
            count(|meaning| matches!(meaning, Meaning::Serve { texts, .. } if !texts.prompts.is_empty())),
            "serve --prompt",
        ),
    ] {
        assert!(count > 0, "no container runs {what}: this test would prove nothing about it");
    }
}

#[tokio::test]
async fn a_server_listens_serves_and_stops_as_its_pod_says() {
    for found in all() {
        let Found { place, container, pod, .. } = found;
        let Some(Meaning::Serve { host, port, cache, offline, shutdown, models, texts }) = &found.meaning
        else {
            continue;
        };
        assert_eq!(host, "0.0.0.0", "{place}");
        let ports = list(container, "/ports").iter().filter(|port| port["name"] == "http");
        let ports: Vec<_> = ports.map(|port| port["containerPort"].clone()).collect();
        assert_eq!(ports, [json!(port)], "{place}");
        assert!(offline, "{place}: a server does not fetch");

        let [(name, location)] = models.as_slice() else { panic!("{place}: {models:?}") };
        assert_eq!(*texts, wished_texts(&found.wish), "{place}");
        let given = found.wish.pointer("/spec/modelName").unwrap_or(&found.wish["metadata"]["name"]);
        assert_eq!(name, given, "{place}: not the name that clients were promised");
        let wish = |path: &str| found.wish.pointer(&format!("/spec/source/{path}")).and_then(Value::as_str);
        let below = |folder: Option<&str>| folder.map_or(cache.clone(), |folder| cache.join(folder));
        let wished = match (wish("huggingFace/repo"), wish("http/sha256")) {
            (Some(repo), _) => Err(repo),
            (None, Some(sha256)) => Ok(cache.join("archives").join(sha256)),
            (None, None) => Ok(below(wish("image/path").or(wish("persistentVolumeClaim/path")))),
        };
        let is_wished = match location {
            Place::Repository { repo, .. } => wished == Err(repo),
            Place::Directory(path) => wished.as_ref() == Ok(path),
        };
        assert!(is_wished, "{place}: serves {location:?}, not {wished:?}");
        match location {
            Place::Directory(path) => _ = found.mount(path),
            Place::Repository { repo, revision } => {
                found.mount(cache);
                let commit = revision.len() == 40 && revision.bytes().all(|digit| digit.is_ascii_hexdigit());
                assert!(commit, "{place}: {repo}@{revision} may be another one at the next start");
            }
        }

        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let get = &container[probe]["httpGet"];
            assert!(get["port"] == "http" || get["port"] == json!(port), "{place}: {probe}");
            let path = text(get, "/path");
            let shared = Shared::new(
                Models::new(["model"]),
                std::sync::Arc::new(Metrics::new()),
                support::http_settings(),
            );
            let request = Request::get(path).body(Body::empty()).unwrap();
            let status = router(shared).oneshot(request).await.unwrap().status();
            assert_ne!(status, StatusCode::NOT_FOUND, "{place}: {probe} asks for {path}");
        }
        assert_eq!(text(container, "/livenessProbe/httpGet/path"), "/livez", "{place}");
        assert_eq!(text(container, "/readinessProbe/httpGet/path"), "/health", "{place}");

        let seconds = |value: &Value, path| value.pointer(path).and_then(Value::as_u64);
        let grace = seconds(pod, "/terminationGracePeriodSeconds").unwrap_or(30);
        let drain = seconds(container, "/lifecycle/preStop/sleep/seconds").unwrap_or(0);
        assert!(grace >= drain + shutdown, "{place}: killed after {grace} s, needs {drain} + {shutdown}");
    }
}

#[test]
fn a_fetcher_writes_where_its_pod_lets_it() {
    for found in all() {
        let Found { place, container, .. } = found;
        let Some(Meaning::Fetch { cache, offline, summary_file, .. }) = &found.meaning else { continue };
        assert!(!offline, "{place}: it could not fetch");
        let (volume, writable) = found.mount(cache);
        assert!(writable, "{place}: volume {volume} cannot be written");
        let log = container["terminationMessagePath"].as_str().unwrap_or(TERMINATION_LOG);
        assert_eq!(summary_file.as_deref(), Some(Path::new(log)), "{place}");
    }
}

/// Fetches something that stands for the source, and gives where it is.
fn fetched(cache: &Cache, source: &Source) -> PathBuf {
    let from = tempfile::tempdir().unwrap();
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    for file in files {
        std::fs::write(from.path().join(file), "{}").unwrap();
    }
    // `printf '{}' | sha256sum`
    let sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let hashes: BTreeMap<_, _> = files.iter().map(|file| (*file, sha256)).collect();
    let manifest: Manifest = json!({"files": hashes}).to_string().parse().unwrap();
    import(cache, source, from.path(), &manifest).unwrap().directory
}

#[test]
fn a_server_looks_where_its_fetcher_writes() {
    let mut pairs = 0;
    for fetcher in all() {
        let Some(Meaning::Fetch { cache: written, place: fetch, .. }) = &fetcher.meaning else { continue };
        let servers = all().iter().filter(|found| found.file == fetcher.file);
        for server in servers {
            let Some(Meaning::Serve { cache: read, models, .. }) = &server.meaning else { continue };
            let place = format!("{} and {}", fetcher.place, server.place);
            assert_eq!(written, read, "{place}");
            assert_eq!(fetcher.mount(written).0, server.mount(read).0, "{place}: not the same volume");
            let of = |found: &Found| {
                let (name, _) = found.mount(read);
                list(&found.pod, "/volumes").iter().find(|volume| volume["name"] == name.as_str()).cloned()
            };
            assert_eq!(of(fetcher), of(server), "{place}: not the same volume");
            match (fetch, &models[0].1) {
                (Place::Repository { repo, .. }, Place::Repository { repo: served, revision: commit }) => {
                    assert_eq!(repo, served, "{place}");
                    // The commit is what the fetch said that it is.
                    let folder = tempfile::tempdir().unwrap();
                    let cache = Cache::new(folder.path());
                    let source = Source::new(repo.parse().unwrap(), commit).unwrap();
                    let destination = fetched(&cache, &source);
                    assert_eq!(cache.find(&source).unwrap(), Some(destination), "{place}");
                }
                (Place::Directory(unpacked), Place::Directory(served)) => {
                    assert_eq!(unpacked, served, "{place}");
                }
                (fetch, served) => panic!("{place}: fetches {fetch:?} and serves {served:?}"),
            }
            pairs += 1;
        }
    }
    assert!(pairs > 0);
}
