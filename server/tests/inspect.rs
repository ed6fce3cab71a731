//! `embedding-server inspect` as a program: it says what `serve` then reports, and refuses what `serve` refuses.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "support/hub.rs"]
mod hub;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use embedding_server::model::digests;
use serde_json::{Value, json};
use support::directory::copy;
use support::process::{Memory, Server, command};
use support::tiny::{Stored, Tiny};
use support::{cross_encoder, minilm};

use hub::{FakeHub, Fault, Tree};

const REPO: &str = "org/tiny";
/// By how many MiB a model may be larger than its estimate. Less than what its tokenizer and its workers take, so that
/// an estimate without its weights, or without what comes on top, is seen.
const SLACK: u64 = 10;

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families")
}

fn run(arguments: &[&str]) -> Output {
    command(&["inspect", "--log", "error"]).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

/// What is told as JSON.
fn facts(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    serde_json::from_str(stdout(&output)).unwrap()
}

/// The exit code, and what went wrong.
fn refusal(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    assert!(output.stdout.is_empty(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    let last = told.lines().last().and_then(|line| line.strip_prefix("error: "));
    (output.status.code(), last.unwrap_or(&told).to_owned())
}

/// All that `/models` says of a model, under the same names.
fn assert_told(facts: &Value, model: &Value) {
    for (name, served) in model.as_object().unwrap() {
        let told = match (name.as_str(), &facts[name]) {
            ("name" | "state", _) => continue,
            // There, their names.
            ("prompts", Value::Object(prompts)) => prompts.keys().cloned().collect(),
            (_, told) => told.clone(),
        };
        assert_eq!(&told, served, "{name} of {}", model["source"]);
    }
    assert_eq!(model["state"], "ready", "{model}");
}

/// A copy of all tiny models, whose tensors are hashed: so their spaces are known.
fn hashed_families() -> (tempfile::TempDir, Vec<String>) {
    let all = tempfile::tempdir().unwrap();
    let mut models = Vec::new();
    for entry in fs::read_dir(families()).unwrap() {
        let from = entry.unwrap().path();
        let to = all.path().join(from.file_name().unwrap());
        copy(&from, &to);
        digests::keep(&to).unwrap();
        models.push(to.display().to_string());
    }
    assert!(models.len() > 30, "{models:?}");
    (all, models)
}

#[test]
fn what_is_told_of_every_family_is_what_a_server_reports() {
    let (_all, models) = hashed_families();
    for options in
        [vec!["--device", "cpu"], vec!["--device", "cpu", "--implementation", "packed", "--dtype", "float32"]]
    {
        let named = models.iter().flat_map(|model| ["--model", model]);
        let arguments: Vec<&str> = named.chain(["--workers", "1"]).chain(options.iter().copied()).collect();
        let reported = Server::healthy(&arguments).get("/models").json();
        let reported = reported["models"].as_array().unwrap();
        assert_eq!(reported.len(), models.len());
        for (model, reported) in models.iter().zip(reported) {
            let facts = facts(&[[model.as_str()].as_slice(), &options].concat());
            assert_told(&facts, reported);
            assert!(!facts["family"].as_str().unwrap().is_empty(), "{facts}");
        }
    }
}

#[test]
fn an_implementation_that_is_named_as_another_serves_and_one_that_is_refused_does_not() {
    for model in ["bert-old-names", "bert-layer-norm", "jina-v2"] {
        let path = families().join(model).display().to_string();
        let facts = facts(&[&path, "--implementation", "packed", "--device", "cpu"]);
        for other in facts["others"].as_array().unwrap() {
            let name = other["implementation"].as_str().unwrap();
            let arguments = ["--implementation", name, "--device", "cpu", "--model", &path];
            if other["refused"].is_null() {
                let models = Server::healthy(&arguments).get("/models").json();
                assert_eq!(models["models"][0]["numerics"], other["numerics"], "{model} {name}");
            } else {
                let (code, why) = refusal(&[&path, "--implementation", name, "--device", "cpu"]);
                assert_eq!(code, Some(1), "{model} {name}: {why}");
                assert!(why.ends_with(other["refused"].as_str().unwrap()), "{why}: {other}");
                assert_eq!(why, served_refusal(&arguments), "{model} {name}");
            }
        }
    }
}

/// What `serve` ends in, without the model's name.
fn served_refusal(arguments: &[&str]) -> String {
    let serve = ["serve", "--host", "127.0.0.1", "--port", "0", "--log", "error"];
    let output = command(&serve).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    let line = told.lines().last().unwrap().strip_prefix("error: ").unwrap();
    let unnamed = line.strip_prefix("model ").and_then(|line| line.split_once(": ")).map(|(_, why)| why);
    unnamed.unwrap_or(line).to_owned()
}

#[test]
fn a_directory_that_cannot_be_served_is_refused_as_serve_refuses_it() {
    type Change = fn(&mut Tiny);
    let table: &[(&str, Change, fn(&Path))] = &[
        ("config.json: no such file", |_| (), |path| fs::remove_file(path.join("config.json")).unwrap()),
        (
            "config.json: not a valid configuration",
            |_| (),
            |path| {
                fs::write(path.join("config.json"), "{").unwrap();
            },
        ),
        (
            "architecture \"llama\" is not supported",
            |tiny| tiny.config["model_type"] = json!("llama"),
            |_| (),
        ),
        ("hidden_size is 0, outside", |tiny| tiny.config["hidden_size"] = json!(0), |_| ()),
        (
            "tokenizer.json: no such file",
            |_| (),
            |path| {
                fs::remove_file(path.join("tokenizer.json")).unwrap();
            },
        ),
        ("tokenizer.json", |_| (), |path| fs::write(path.join("tokenizer.json"), "{}").unwrap()),
        ("makes ids up to", |tiny| tiny.config["vocab_size"] = json!(100), |_| ()),
        ("module path \"../x\" leads out", |tiny| tiny.modules[1]["path"] = json!("../x"), |_| ()),
        (
            "tensor encoder.layer.1.output.dense.bias: is missing; expected shape [16]",
            |tiny| drop(tiny.tensors.remove("encoder.layer.1.output.dense.bias")),
            |_| (),
        ),
        (
            "has shape [16, 32], but the configuration says [24, 16]",
            |tiny| {
                tiny.config["intermediate_size"] = json!(24);
                tiny.tensors.insert("encoder.layer.0.intermediate.dense.weight".into(), matrix(16, 32));
            },
            |_| (),
        ),
        (
            "cut off?",
            |_| (),
            |path| {
                let file = fs::File::options().write(true).open(path.join("model.safetensors")).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            },
        ),
        (
            "a Python pickle, which can execute code",
            |_| (),
            |path| {
                fs::write(path.join("model.safetensors"), b"PK\x03\x04 and more").unwrap();
            },
        ),
        (
            "`embedding-server convert ",
            |_| (),
            |path| {
                fs::rename(path.join("model.safetensors"), path.join("pytorch_model.bin")).unwrap();
            },
        ),
        (
            "model-2.safetensors: no such file",
            |_| (),
            |path| {
                fs::rename(path.join("model.safetensors"), path.join("model-1.safetensors")).unwrap();
                let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
                fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
            },
        ),
        (
            "default_prompt_name \"q\" is not among its prompts",
            |tiny| {
                let name = "config_sentence_transformers.json".to_owned();
                tiny.files.push((name, br#"{"default_prompt_name": "q"}"#.to_vec()));
            },
            |_| (),
        ),
    ];
    for (expected, change, damage) in table {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let written = tiny.write();
        damage(written.path());
        let path = written.path().display().to_string();
        let (code, why) = refusal(&[&path]);
        assert_eq!(code, Some(1), "{expected}: {why}");
        assert!(why.contains(expected) && why.starts_with(&path), "{expected}: {why}");
        assert_eq!(why, served_refusal(&["--model", &format!("m={path}")]));
    }
    let gone = "/not/there";
    assert_eq!(refusal(&[gone]), (Some(1), format!("{gone}: no such directory")));
    assert_eq!(refusal(&["a b"]).0, Some(1));
}

fn matrix(rows: usize, columns: usize) -> Stored {
    let dtype = safetensors::Dtype::F32;
    Stored { shape: vec![rows, columns], values: vec![0.5; rows * columns], dtype }
}

#[test]
fn a_server_takes_no_more_memory_than_was_estimated_and_no_less_than_its_weights() {
    let path = minilm().display().to_string();
    for options in
        [vec!["--device", "cpu"], vec!["--device", "cpu", "--implementation", "packed", "--dtype", "float32"]]
    {
        let memory = facts(&[[path.as_str()].as_slice(), &options].concat())["memory"].clone();
        let server = Server::healthy(&[["--model", &path].as_slice(), &options].concat());
        let Memory { now, peak } = server.memory();
        let of = |name: &str| memory[name].as_u64().unwrap() >> 20;
        assert!(of("weights") <= now && peak <= of("total"), "{options:?}: {now} and {peak} MiB, {memory}");
        // What a server has anyway would hide an estimate that leaves the model out.
        let log = server.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ready = lines.find(|line| line["message"] == "ready").unwrap();
        let taken = ready["memory_mib"].as_u64().unwrap();
        let bounds = of("weights") * 8 / 10..=of("weights") + of("loading") + SLACK;
        assert!(bounds.contains(&taken), "{options:?}: {taken} MiB, {memory}");
    }
}

#[test]
fn the_text_is_short_and_says_the_same() {
    let lines_of = |path: &Path| {
        let path = path.display().to_string();
        let options = ["--device", "cpu", "--implementation", "packed", "--dtype", "float32"];
        let text = stdout(&run(&[[path.as_str()].as_slice(), &options].concat())).replace(&path, "PATH");
        // The rest depends on the machine.
        let lines = text.lines().map(str::to_owned);
        lines.take_while(|line| !line.starts_with("instead")).collect::<Vec<_>>()
    };
    assert_eq!(
        lines_of(&families().join("qwen3")),
        [
            "model         PATH",
            "kind          embedding",
            "architecture  qwen3 (Qwen decoders)",
            "parameters    32896",
            "weights       133.9 kB in 1 file, F32",
            "vectors       32 dimensions, of norm 1",
            "longest text  40 tokens",
            "pooling       lasttoken",
            "modules       Normalize",
            "prompts       document: \"\"",
            "              query: \"Instruct: rank the text\\nQuery:\"",
            "served by     packed, float32 on cpu",
            "memory        about 500 MB, an estimate:",
            "              131.6 kB weights, as packed holds them",
            "              69.2 kB while they are read",
            "              500 MB for the program, the tokenizer and forwards",
        ]
    );
    let told = lines_of(&cross_encoder("several")).join("\n");
    assert!(told.contains("kind          cross-encoder: scores of "), "{told}");
    let told = lines_of(&families().join("qwen3-reranker")).join("\n");
    assert!(told.contains("\nasked         Given a web search query"), "{told}");
}

/// A hub with a model, and a cache of its own.
struct Bench {
    hub: FakeHub,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(tree: Tree) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hub = runtime.block_on(FakeHub::start(tree));
        Self { hub, folder: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    fn options(&self) -> Vec<String> {
        let cache = self.folder.path().join("cache").display().to_string();
        let hf = self.folder.path().join("hf").display().to_string();
        let all = [
            "--retries",
            "0",
            "--hf-endpoint",
            self.hub.endpoint.as_str(),
            "--cache-dir",
            &cache,
            "--hf-cache",
            &hf,
        ];
        all.map(str::to_owned).to_vec()
    }

    fn with<T>(&self, arguments: &[&str], f: impl FnOnce(&[&str]) -> T) -> T {
        let options = self.options();
        let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
        all.extend(arguments);
        f(&all)
    }
}

#[test]
fn of_a_repository_only_what_is_small_is_fetched_and_nothing_is_kept() {
    let tiny = Tiny::new().write();
    let bench = Bench::new(Tree::of_directory(REPO, tiny.path()));
    let there = bench.with(&[REPO], facts);
    let commit = bench.hub.tree().commit;
    assert_eq!(there["source"], format!("{REPO}@{commit}"));
    assert_eq!(there["found"], "not here: at the hub");
    let small: u64 = ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"]
        .map(|file| fs::metadata(tiny.file(file)).unwrap().len())
        .iter()
        .sum();
    assert_eq!(there["downloaded_bytes"], small + 65_536);
    let ranges: Vec<_> =
        bench.hub.requests().into_iter().filter(|seen| seen.host == "cdn").map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some("bytes=0-65535".to_owned())]);
    assert!(!bench.folder.path().join("cache").exists(), "the cache is left as it is");
    // All else is as in a directory.
    let mut here = facts(&[&tiny.path().display().to_string()]);
    for name in ["source", "found", "downloaded_bytes"] {
        here[name] = there[name].clone();
    }
    assert_eq!(there, here);

    // Fetched, it is looked at in the cache, where hashes are known.
    let fetched = bench.with(&[REPO], |all| command(&["fetch"]).args(all).output().unwrap());
    assert!(fetched.status.success(), "{fetched:?}");
    bench.hub.requests();
    let cached = bench.with(&[REPO, "--offline"], facts);
    assert_eq!((&cached["found"], &cached["downloaded_bytes"]), (&json!("in the cache"), &json!(0)));
    assert!(cached["space"].as_str().unwrap().starts_with("es1-"), "{cached}");
    assert_eq!(bench.hub.requests(), []);
    let by_branch = bench.with(&[REPO], facts);
    assert_eq!(by_branch, cached, "the hub is only asked what the branch stands for");
    assert_eq!(bench.hub.requests().len(), 1);
}

#[test]
fn headers_are_read_however_long_they_are_and_whatever_the_hub_does_with_ranges() {
    let mut tiny = Tiny::new();
    for extra in 0..1000 {
        tiny.tensors.insert(format!("a.tensor.that.is.never.used.{extra}"), matrix(1, 1));
    }
    let tiny = tiny.write();
    let bench = Bench::new(Tree::of_directory(REPO, tiny.path()));
    for fault in [None, Some(Fault::IgnoreRange)] {
        let whole = fault.is_some();
        if let Some(fault) = fault {
            bench.hub.fault("cdn", "model.safetensors", 2, fault);
        }
        assert_eq!(bench.with(&[REPO], facts)["weights"]["unused_tensors"], 1000, "{whole}");
        let seen = bench.hub.requests().into_iter().filter(|seen| seen.host == "cdn").count();
        assert_eq!(seen, 2, "the beginning, and all of the header");
    }
}

#[test]
fn a_repository_that_cannot_be_looked_at_ends_with_the_code_that_fetch_ends_with() {
    let mut tiny = Tiny::new();
    tiny.config["model_type"] = json!("llama");
    let bench = Bench::new(Tree::of_directory(REPO, tiny.write().path()));
    let commit = bench.hub.tree().commit;
    for (arguments, code, beginning) in [
        (vec!["org/gone"], 77, "asking ".to_owned()),
        (vec!["org/tiny@gone"], 77, "asking ".to_owned()),
        (vec![REPO, "--hf-endpoint", "http://127.0.0.1:9"], 69, "connecting to ".to_owned()),
        (vec![REPO, "--offline"], 1, format!("{REPO}@main is not in the cache, and --offline")),
        (vec![REPO], 1, format!("{REPO}@{commit}/config.json: architecture \"llama\" is not supported")),
    ] {
        let mut options = bench.options();
        if arguments.contains(&"--hf-endpoint") {
            options.drain(2..4);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let (found, why) = refusal(&[options.as_slice(), &arguments].concat());
        assert_eq!(found, Some(code), "{arguments:?}: {why}");
        assert!(why.starts_with(&beginning), "{arguments:?}: {why}");
    }
    let onnx = Tree::new(REPO).with("config.json", "{}").with("tokenizer.json", "{}").with("model.onnx", "");
    let (code, why) = Bench::new(onnx).with(&[REPO], refusal);
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("it has no model.safetensors or pytorch_model.bin"), "{why}");
}

#[test]
fn of_pickled_weights_it_is_told_what_the_configuration_promises() {
    let tiny = Tiny::new().write();
    let here = facts(&[&tiny.path().display().to_string()]);
    fs::rename(tiny.file("model.safetensors"), tiny.file("pytorch_model.bin")).unwrap();
    let bench = Bench::new(Tree::of_directory(REPO, tiny.path()));
    let there = bench.with(&[REPO], facts);
    assert_eq!(there["weights"]["pickled"], true);
    assert_eq!(there["weights"]["bytes"], here["weights"]["bytes"]);
    for same in ["parameters", "memory", "numerics", "dimensions"] {
        assert_eq!(there[same], here[same]);
    }
    // Where only a module's are, the others count as well.
    let t5 = tempfile::tempdir().unwrap();
    let copied = t5.path().join("t5");
    copy(&families().join("t5"), &copied);
    let whole = facts(&[&copied.display().to_string()]);
    let module = copied.join("2_Dense");
    fs::rename(module.join("model.safetensors"), module.join("pytorch_model.bin")).unwrap();
    let partly = Bench::new(Tree::of_directory(REPO, &copied)).with(&[REPO], facts);
    for same in ["files", "bytes"] {
        assert_eq!(partly["weights"][same], whole["weights"][same]);
    }
    let text = bench.with(&[REPO], |all| stdout(&run(all)).to_owned());
    assert!(text.contains("pickled") && text.contains("not known     whether its tensors fit"), "{text}");
}

#[test]
fn what_the_other_cache_has_is_looked_at_there() {
    let (tiny, bench) = (Tiny::new().write(), Bench::new(Tree::new("org/other")));
    let tree = Tree::of_directory(REPO, tiny.path());
    let commit = "ab".repeat(20);
    let model = bench.folder.path().join("hf/models--org--tiny");
    let (snapshot, absent) = (model.join("snapshots").join(&commit), model.join(".no_exist").join(&commit));
    for folder in [&model.join("refs"), &model.join("blobs"), &snapshot.join("1_Pooling"), &absent] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(model.join("refs/main"), &commit).unwrap();
    for file in ["config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json"] {
        if !tree.files.contains_key(file) {
            fs::write(absent.join(file), "").unwrap();
        }
    }
    let blob_of = |file: &str| {
        let blob = &tree.files[file];
        model.join("blobs").join(if blob.lfs { blob.sha256() } else { blob.git_id() })
    };
    for (file, blob) in &tree.files {
        fs::write(blob_of(file), &blob.bytes).unwrap();
        std::os::unix::fs::symlink(blob_of(file), snapshot.join(file)).unwrap();
    }
    let facts = bench.with(&[REPO, "--offline"], facts);
    assert_eq!(facts["found"], "in the Hugging Face cache");
    assert_eq!((&facts["source"], &facts["dimensions"]), (&json!(format!("{REPO}@{commit}")), &json!(16)));
    assert!(!bench.folder.path().join("cache").exists(), "nothing is taken");

    // Still JSON that means something, and another.
    for file in ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"] {
        let mut bytes = tree.files[file].bytes.to_vec();
        let place = bytes.iter().position(|&byte| byte == b'{').unwrap();
        bytes[place..].rotate_left(1);
        fs::write(blob_of(file), &bytes).unwrap();
        let output = bench.with(&["--log", "warn", REPO, "--offline"], |all| {
            command(&["inspect"]).args(all).output().unwrap()
        });
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{file} is not there, or damaged")), "{told}");
        assert!(told.contains(&format!("{REPO}@main is not in the cache, and --offline")), "{told}");
        fs::write(blob_of(file), &tree.files[file].bytes).unwrap();
    }
}

#[test]
fn what_is_too_large_to_be_looked_at_is_not_fetched() {
    const MIB: u64 = 1 << 20;
    let tiny = Tiny::new().write();
    let tree = Tree::of_directory(REPO, tiny.path());
    let modules: Vec<_> = (0..20)
        .map(|number| json!({"idx": number, "name": "", "path": format!("{number}"), "type": "x.Pooling"}))
        .collect();
    let mut many = tree.clone().with("modules.json", json!(modules).to_string());
    for number in 0..20 {
        many = many.with(&format!("{number}/config.json"), "{}");
        many.claimed_sizes.insert(format!("{number}/config.json"), 16 * MIB);
    }
    many.claimed_sizes.insert("tokenizer.json".to_owned(), 250 * MIB);
    let claiming = |file: &str, size: u64| {
        let mut tree = tree.clone();
        tree.claimed_sizes.insert(file.to_owned(), size);
        tree
    };
    let header = |length: u64, size: usize| {
        let bytes = [length.to_le_bytes().as_slice(), &vec![b' '; size]].concat();
        tree.clone().with_lfs("model.safetensors", bytes)
    };
    let mut long = header(17 * MIB, 100_000);
    long.claimed_sizes.insert("model.safetensors".to_owned(), 100 * MIB);
    for (tree, expected) in [
        (claiming("config.json", 20 * MIB), "config.json has 20.00 MiB, more than the 16.00 MiB that"),
        (claiming("modules.json", 70 * MIB), "modules.json has 70.00 MiB, more than the 64.00 MiB that"),
        (claiming("tokenizer.json", 1 << 40), "tokenizer.json has 1.00 TiB, more than the 256.00 MiB that"),
        (claiming("tokenizer.json", u64::MAX), "tokenizer.json has 16.00 EiB, more than the 256.00 MiB that"),
        (long, "its first bytes promise a header of 17825792 bytes"),
        (many, "its files have more than the 512.00 MiB that are taken to look at a model: fetch it"),
    ] {
        let bench = Bench::new(tree);
        let (code, why) = bench.with(&[REPO], refusal);
        assert_eq!(code, Some(1), "{why}");
        assert!(why.contains(expected), "{why}");
        let asked = |part: &str| bench.hub.requests().iter().filter(|seen| seen.path.contains(part)).count();
        assert!(asked("/resolve/") <= 5, "nothing that is too much is asked for: {why}");
    }
}

#[test]
fn sizes_that_no_number_holds_are_added_up_nevertheless() {
    let tiny = Tiny::new().write();
    let mut tree = Tree::of_directory(REPO, tiny.path()).without("model.safetensors");
    let index = json!({"weight_map": {"a": "1.bin", "b": "2.bin"}});
    tree = tree.with("pytorch_model.bin.index.json", index.to_string());
    for file in ["1.bin", "2.bin"] {
        tree = tree.with_lfs(file, "");
        tree.claimed_sizes.insert(file.to_owned(), u64::MAX);
    }
    let bench = Bench::new(tree);
    assert_eq!(bench.with(&[REPO], facts)["weights"]["bytes"], u64::MAX);
    let fetched = bench.with(&[REPO], |all| command(&["fetch"]).args(all).output().unwrap());
    let told = String::from_utf8(fetched.stderr).unwrap();
    assert!(told.contains("are free there; make room"), "{told}");
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let tiny = Tiny::new().write();
    for signal in ["-TERM", "-INT"] {
        let bench = Bench::new(Tree::of_directory(REPO, tiny.path()));
        bench.hub.fault("hub", "tokenizer.json", 1, Fault::Stall(10));
        let folder = bench.folder.path().join("temporary");
        fs::create_dir(&folder).unwrap();
        let child = bench.with(&[REPO], |all| {
            let mut command = command(&["inspect", "--log", "error"]);
            command.args(all).env("TMPDIR", &folder).stderr(Stdio::piped()).spawn().unwrap()
        });
        // Until it waits for the rest.
        let begun = Instant::now();
        while !bench.hub.requests().iter().any(|seen| seen.path.ends_with("tokenizer.json")) {
            assert!(begun.elapsed() < Duration::from_mins(1));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let expected =
            format!("error: stopped by SIG{}, before anything was told of {REPO}@main", &signal[1..]);
        assert_eq!(told.lines().last(), Some(expected.as_str()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn prompts_that_are_wanted_and_not_in_the_files_are_told() {
    let tiny = Tiny::new().write();
    let repo = "intfloat/e5-large-v2";
    let bench = Bench::new(Tree::of_directory(repo, tiny.path()));
    let facts = bench.with(&[repo], facts);
    assert_eq!(facts["wanted_prompts"], json!({"query": "query: ", "document": "passage: "}));
    let text = bench.with(&[repo], |all| stdout(&run(all)).to_owned());
    assert!(text.contains("--prompt 'query=query: '\n"), "{text}");
}
