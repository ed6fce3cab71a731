//! Fetching models from a hub on loopback that fails in every way it can.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_server::fetch::{
    Bar, Cache, Error, Fetched, Hub, Log, Manifest, Progress, ProxySettings, Repo, Source, Token, fetch,
    import, stderr_progress,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

#[path = "support/hub.rs"]
mod hub;
mod support;

#[path = "fetch/archives.rs"]
mod archives;
#[path = "fetch/command.rs"]
mod command;
#[path = "fetch/hf_cache.rs"]
mod hf_cache;
#[path = "fetch/pickled.rs"]
mod pickled;
#[path = "fetch/room.rs"]
mod room;

use hub::{FakeHub, Fault, SIGNATURE, Seen, Tree, noise};

const REPO: &str = "test-org/tiny-model";
const TOKEN: &str = "hf_not_to_be_seen";
const PASSWORD: &str = "proxy-secret";
/// A read timeout that a busy machine does not reach by itself.
const STALL: Duration = Duration::from_secs(1);
const WEIGHTS: &str = "model.safetensors";
/// What a server needs of `Tree::sentence_model`.
const NEEDED: [&str; 11] = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A fake hub, an empty cache, and settings that waste no time.
struct Bench {
    hub: FakeHub,
    settings: Hub,
    cache: Cache,
    directory: TempDir,
    manifest: Option<Manifest>,
}

impl Bench {
    async fn new(tree: Tree) -> Self {
        Self::with(FakeHub::start(tree).await)
    }

    fn with(hub: FakeHub) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            settings: quick(&hub.endpoint),
            hub,
            cache: Cache::new(directory.path().join("cache")),
            directory,
            manifest: None,
        }
    }

    async fn fetch(&self, revision: &str) -> Result<Fetched, Error> {
        self.fetch_telling(revision, &mut Recorder::default()).await
    }

    async fn fetch_telling(&self, revision: &str, progress: &mut dyn Progress) -> Result<Fetched, Error> {
        let source = source(&self.hub.tree().repo, revision);
        let result = fetch(&self.cache, &source, &self.settings, self.manifest.as_ref(), progress);
        let result = result.await;
        if let Err(error) = &result {
            let told = format!("{} {error:?}", told(error));
            assert!(!told.contains(TOKEN), "the token is in {told}");
            assert!(!told.contains(SIGNATURE), "a signature is in {told}");
            assert!(!told.contains(PASSWORD), "a password is in {told}");
        }
        result
    }

    /// The message of the error that fetching ends in.
    async fn failure(&self, revision: &str) -> String {
        self.fetch(revision).await.unwrap_err().to_string()
    }

    /// Names in the model's directory of the cache, in order.
    fn model_directory(&self) -> Vec<String> {
        let path = self.cache.root().join("models--test-org--tiny-model");
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn partial(&self, file: &str) -> PathBuf {
        self.cache
            .root()
            .join("models--test-org--tiny-model")
            .join(format!(".partial-{}", self.hub.tree().commit))
            .join(file)
    }

    fn write_partial(&self, file: &str, bytes: &[u8]) {
        let path = self.partial(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn quick(endpoint: &Url) -> Hub {
    let mut settings = Hub::new(endpoint.clone());
    settings.retries = 3;
    settings.backoff_base = Duration::from_millis(1);
    settings.backoff_max = Duration::from_millis(5);
    settings
}

fn source(repo: &str, revision: &str) -> Source {
    Source::new(repo.parse::<Repo>().unwrap(), revision).unwrap()
}

/// An error and its causes.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// All files below a directory.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn add(root: &Path, below: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(root.join(below)).unwrap() {
            let name = below.join(entry.unwrap().file_name());
            if root.join(&name).is_dir() {
                add(root, &name, all);
            } else {
                let bytes = std::fs::read(root.join(&name)).unwrap();
                all.insert(name.to_str().unwrap().to_owned(), bytes);
            }
        }
    }
    let mut all = BTreeMap::new();
    add(directory, Path::new(""), &mut all);
    all
}

/// Asserts that the directory holds exactly `files` of the tree, and the record.
fn assert_holds(directory: &Path, tree: &Tree, files: &[&str]) {
    let mut found = contents(directory);
    let record: serde_json::Value = serde_json::from_slice(&found.remove(".fetched.json").unwrap()).unwrap();
    let expected: BTreeMap<_, _> =
        files.iter().map(|file| ((*file).to_owned(), tree.files[*file].bytes.to_vec())).collect();
    assert!(found == expected, "found {:?}, expected {files:?}, or other bytes", found.keys());
    let listed: serde_json::Map<_, _> = files
        .iter()
        .map(|file| {
            let kept = json!({"size": tree.files[*file].bytes.len(), "sha256": tree.sha256(file)});
            ((*file).to_owned(), kept)
        })
        .collect();
    let expected = json!({"repo": tree.repo, "commit": tree.commit, "files": listed});
    assert_eq!(record, expected);
}

fn size(tree: &Tree, files: &[&str]) -> u64 {
    files.iter().map(|file| tree.files[*file].bytes.len() as u64).sum()
}

/// The ranges that were asked for of a file on the cdn, in order.
fn ranges(requests: &[Seen], file: &str) -> Vec<Option<String>> {
    requests
        .iter()
        .filter(|seen| seen.host == "cdn" && seen.path.ends_with(file))
        .map(|seen| seen.range.clone())
        .collect()
}

fn manifest(files: &[(&str, String)]) -> Manifest {
    let files: BTreeMap<_, _> = files.iter().cloned().collect();
    json!({"files": files}).to_string().parse().unwrap()
}

fn whole_manifest(tree: &Tree) -> Manifest {
    manifest(&NEEDED.map(|file| (file, tree.sha256(file))))
}

fn status(status: u16, code: Option<&'static str>) -> Fault {
    Fault::Status { status, code, retry_after: None }
}

/// A small model with one LFS file of so many bytes: requests are easy to count.
fn plain_model(weights: usize) -> Tree {
    Tree::new(REPO)
        .with("config.json", "{}")
        .with("tokenizer.json", "{}")
        .with_lfs(WEIGHTS, noise(9, weights))
}

const PLAIN: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

type Callback = Box<dyn FnMut(&str, u64) + Send>;

/// Notes what it is told, and calls back when so much of a file is here.
#[derive(Default)]
struct Recorder {
    events: Vec<String>,
    advanced: BTreeMap<String, u64>,
    on_advance: Option<Callback>,
    on_converting: Option<Callback>,
}

impl Progress for Recorder {
    fn resolved(&mut self, commit: &str, files: usize, total_bytes: u64) {
        self.events.push(format!("resolved {} {files} {total_bytes}", &commit[..6]));
    }
    fn started(&mut self, file: &str, have: u64) {
        self.events.push(format!("started {file} {have}"));
    }
    fn advanced(&mut self, file: &str, have: u64) {
        self.advanced.insert(file.to_owned(), have);
        if let Some(callback) = &mut self.on_advance {
            callback(file, have);
        }
    }
    fn converting(&mut self, file: &str, done: u64, total: u64) {
        if done == total {
            self.events.push(format!("converted {file} {total}"));
        }
        if let Some(callback) = &mut self.on_converting {
            callback(file, done);
        }
    }
    fn retrying(&mut self, what: &str, why: &Error, _pause: Duration) {
        self.events.push(format!("retrying {what}: {why}"));
    }
    fn finished(&mut self, fetched: &Fetched) {
        self.events.push(format!("finished {}", fetched.downloaded_bytes));
    }
}

// ---- The whole way ----

#[tokio::test]
async fn a_branch_is_fetched_with_exactly_the_files_a_server_needs() {
    let bench = Bench::new(Tree::sentence_model(REPO)).await;
    let tree = bench.hub.tree();
    let fetched = bench.fetch("main").await.unwrap();
    let bytes = size(&tree, &NEEDED);
    assert_eq!(
        fetched,
        Fetched {
            directory: bench.cache.root().join("models--test-org--tiny-model").join(&tree.commit),
            repo: REPO.to_owned(),
            revision: "main".to_owned(),
            commit: tree.commit.clone(),
            files: NEEDED.len(),
            bytes,
            downloaded_bytes: bytes,
        }
    );
    assert_holds(&fetched.directory, &tree, &NEEDED);
    assert_eq!(
        bench.model_directory(),
        [format!(".lock-{}", tree.commit), tree.commit.clone(), "refs".to_owned()]
    );
    assert_eq!(bench.cache.find(&source(REPO, "main")).unwrap(), Some(fetched.directory));
    let taken: Vec<_> =
        bench.hub.requests().into_iter().filter(|seen| seen.path.contains("/resolve/")).collect();
    assert_eq!(taken.len(), NEEDED.len(), "each file once: {taken:?}");
}

#[tokio::test]
async fn progress_hears_the_plan_every_file_and_the_end() {
    let bench = Bench::new(plain_model(100_000)).await;
    let mut recorder = Recorder::default();
    bench.fetch_telling("main", &mut recorder).await.unwrap();
    assert_eq!(
        recorder.events,
        [
            "resolved 012345 3 100004",
            "started config.json 0",
            "started tokenizer.json 0",
            "started model.safetensors 0",
            "finished 100004",
        ]
    );
    assert_eq!(recorder.advanced[WEIGHTS], 100_000);
}

#[tokio::test]
async fn a_commit_that_is_here_needs_no_network() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    let commit = bench.hub.tree().commit;
    let first = bench.fetch(&commit).await.unwrap();
    assert_eq!(first.downloaded_bytes, 1_004);
    bench.hub.requests();
    // Nothing listens there.
    bench.settings.endpoint = closed_port().await;
    let mut recorder = Recorder::default();
    let second = bench.fetch_telling(&commit, &mut recorder).await.unwrap();
    assert_eq!(second, Fetched { downloaded_bytes: 0, ..first });
    assert_eq!(bench.hub.requests(), []);
    assert_eq!(recorder.events, ["finished 0"]);
}

#[tokio::test]
async fn a_branch_is_resolved_again_and_only_then_downloaded_again() {
    let bench = Bench::new(plain_model(1_000)).await;
    let old = bench.fetch("main").await.unwrap();
    bench.hub.requests();

    let again = bench.fetch("main").await.unwrap();
    assert_eq!(again.downloaded_bytes, 0);
    let asked: Vec<_> = bench.hub.requests().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/api/models/test-org/tiny-model/revision/main"]);

    bench.hub.change(|tree| {
        tree.commit = "f".repeat(40);
        *tree = tree.clone().with_lfs(WEIGHTS, noise(10, 2_000));
    });
    let new = bench.fetch("main").await.unwrap();
    assert_eq!((new.commit, new.downloaded_bytes), ("f".repeat(40), 2_004));
    assert!(old.directory.is_dir(), "the old commit stays");
    let now = bench.cache.find(&source(REPO, "main")).unwrap();
    assert_eq!(now, Some(new.directory));
}

#[tokio::test]
async fn a_branch_stands_for_what_it_last_did_when_the_hub_does_not_answer() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    let first = bench.fetch("main").await.unwrap();
    bench.hub.fault("hub", "/revision/main", 9, status(503, None));
    let second = bench.fetch("main").await.unwrap();
    assert_eq!((&second.directory, second.downloaded_bytes), (&first.directory, 0));

    bench.settings.endpoint = closed_port().await;
    assert_eq!(bench.fetch("main").await.unwrap(), second);
    let other = bench.fetch("v2").await.unwrap_err();
    assert!(other.is_unreachable(), "{other}");
}

#[tokio::test]
async fn a_branch_needs_no_writing_to_a_cache_that_has_it() {
    let bench = Bench::new(plain_model(1_000)).await;
    let first = bench.fetch("main").await.unwrap();
    let refs = bench.cache.root().join("models--test-org--tiny-model/refs");
    // A note is written by renaming, which gives it another inode.
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(refs.join("main")).unwrap());
    let noted = inode();
    assert_eq!(bench.fetch("main").await.unwrap().directory, first.directory);
    assert_eq!(inode(), noted);

    // Permissions do not stop root, this does.
    std::fs::remove_dir_all(&refs).unwrap();
    std::fs::write(&refs, "a file in its place").unwrap();
    assert_eq!(bench.fetch("main").await.unwrap().directory, first.directory);
}

#[tokio::test]
async fn a_branch_with_slashes_is_asked_for_and_remembered_as_one_name() {
    let bench = Bench::new(plain_model(1_000)).await;
    bench.hub.change(|tree| tree.refs = vec!["refs/pr/1".to_owned()]);
    let fetched = bench.fetch("refs/pr/1").await.unwrap();
    assert_eq!(bench.hub.requests()[0].path, "/api/models/test-org/tiny-model/revision/refs%2Fpr%2F1");
    let note = bench.cache.root().join("models--test-org--tiny-model/refs/refs%2Fpr%2F1");
    assert_eq!(std::fs::read_to_string(note).unwrap(), fetched.commit);
}

#[tokio::test]
async fn a_mirror_may_have_a_path_and_a_repository_no_organization() {
    let mut tree = plain_model(1_000);
    "bert-tiny".clone_into(&mut tree.repo);
    let bench = Bench::with(FakeHub::start_at(tree, "/mirrors/hub").await);
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    assert!(fetched.directory.starts_with(bench.cache.root().join("models--bert-tiny")));
    assert_eq!(bench.hub.requests()[0].path, "/mirrors/hub/api/models/bert-tiny/revision/main");
}

#[tokio::test]
async fn a_sharded_model_is_fetched_with_its_index() {
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let tree = plain_model(1_000)
        .without(WEIGHTS)
        .with("model.safetensors.index.json", index.to_string())
        .with_lfs("model-1.safetensors", noise(1, 2_000))
        .with_lfs("model-2.safetensors", noise(2, 2_000))
        .with_lfs("model-3.safetensors", noise(3, 2_000));
    let bench = Bench::new(tree).await;
    let fetched = bench.fetch("main").await.unwrap();
    let files = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_holds(&fetched.directory, &bench.hub.tree(), &files);
}

// ---- The token ----

#[tokio::test]
async fn the_token_goes_to_the_hub_and_never_to_the_cdn() {
    // Another port of the same host is another place, too.
    for host in ["localhost", "127.0.0.1"] {
        let mut bench = Bench::new(Tree::sentence_model(REPO)).await;
        bench.hub.require_token(TOKEN);
        bench.settings.token = Some(Token::new(TOKEN));
        let mut cdn = bench.hub.cdn();
        cdn.set_host(Some(host)).unwrap();
        bench.hub.set_cdn(cdn);
        bench.fetch("main").await.unwrap();
        let requests = bench.hub.requests();
        for seen in &requests {
            let expected = (seen.host == "hub").then(|| format!("Bearer {TOKEN}"));
            assert_eq!(seen.authorization, expected, "{seen:?}");
        }
        assert_eq!(requests.iter().filter(|seen| seen.host == "cdn").count(), 2);
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let repo_401 = status(401, Some("RepoNotFound"));
    let table = [
        (
            "/revision/main",
            repo_401.clone(),
            false,
            "not authorized; the repository may not exist, or is private or gated: check the name, \
             and set HF_TOKEN to a token that may read it",
        ),
        (
            "/revision/main",
            repo_401,
            true,
            "the token is not valid for it; check the name, and that HF_TOKEN is current and may \
             read the repository",
        ),
        (
            "/resolve/0123456789abcdef0123456789abcdef01234567/config.json",
            status(403, Some("GatedRepo")),
            true,
            "the repository is gated; accept its terms on its page with your account, and set \
             HF_TOKEN to a token of that account",
        ),
        (
            "/resolve/0123456789abcdef0123456789abcdef01234567/config.json",
            status(401, Some("GatedRepo")),
            false,
            "the repository is gated; accept its terms on its page with your account, and set \
             HF_TOKEN to a token of that account",
        ),
        ("/revision/main", status(403, None), true, "access denied; the token may lack the right to read it"),
        (
            "/revision/main",
            status(404, Some("RepoNotFound")),
            true,
            "there is no such repository; check the name",
        ),
        (
            "/revision/main",
            status(404, Some("RevisionNotFound")),
            false,
            "it has no revision \"main\"; check the commit, tag or branch",
        ),
        (
            "/config.json",
            status(404, Some("EntryNotFound")),
            false,
            "it lists config.json but does not have it",
        ),
    ];
    for (path, fault, with_token, expected) in table {
        let mut bench = Bench::new(plain_model(10)).await;
        bench.settings.token = with_token.then(|| Token::new(TOKEN));
        bench.hub.fault("hub", path, 1, fault);
        let host = bench.hub.endpoint.origin().ascii_serialization();
        assert_eq!(bench.failure("main").await, format!("asking {host} for {REPO}: {expected}"));
        let after = bench.hub.requests();
        assert!(after.last().unwrap().path.ends_with(path), "tried again: {after:?}");
    }
}

#[tokio::test]
async fn a_storage_hosts_refusal_is_not_taken_for_the_hubs() {
    let bench = Bench::new(plain_model(10)).await;
    bench.hub.fault("cdn", WEIGHTS, 1, status(403, None));
    let host = bench.hub.cdn().origin().ascii_serialization();
    assert_eq!(bench.failure("main").await, format!("asking {host}: unexpected status 403"));
}

// ---- Trouble that passes ----

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let bench = Bench::new(plain_model(300_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Cut(100_000));
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Cut(50_000));
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    assert_eq!(fetched.downloaded_bytes, fetched.bytes, "no byte twice");
    assert_eq!(
        ranges(&bench.hub.requests(), WEIGHTS),
        [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]
    );
}

#[tokio::test]
async fn getting_further_resets_the_count_of_tries() {
    let bench = Bench::new(plain_model(100_000)).await;
    // More breaks than the three tries in a row that the settings allow.
    bench.hub.fault("cdn", WEIGHTS, 8, Fault::Cut(10_000));
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS).len(), 9);
}

#[tokio::test]
async fn a_server_that_never_gets_past_a_byte_is_not_asked_for_ever() {
    let bench = Bench::new(plain_model(100_000)).await;
    let fault = Fault::CutFromStart(10_000);
    bench.hub.fault("cdn", WEIGHTS, 99, fault);
    let error = bench.fetch("main").await.unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stalled_answer_is_given_up_and_taken_up() {
    let mut bench = Bench::new(plain_model(100_000)).await;
    bench.settings.read_timeout = STALL;
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Stall(40_000));
    let mut recorder = Recorder::default();
    let fetched = bench.fetch_telling("main", &mut recorder).await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    let cdn = bench.hub.cdn().origin().ascii_serialization();
    let told = format!("retrying model.safetensors: reading from {cdn}: no byte for 1s");
    assert!(recorder.events.contains(&told), "{:?}", recorder.events);
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [None, Some("bytes=40000-".to_owned())]);
}

#[tokio::test]
async fn server_errors_are_retried_as_often_as_allowed_and_no_more() {
    let bench = Bench::new(plain_model(1_000)).await;
    bench.hub.fault("hub", "/revision/main", 3, status(502, None));
    bench.hub.fault("cdn", WEIGHTS, 3, status(500, None));
    bench.fetch("main").await.unwrap();

    let bench = Bench::new(plain_model(1_000)).await;
    bench.hub.fault("hub", "/revision/main", 9, status(502, None));
    let host = bench.hub.endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure("main").await,
        format!("asking {host}: it answered with status 502; try again later")
    );
    assert_eq!(bench.hub.requests().len(), 4);
}

#[tokio::test]
async fn too_many_requests_are_waited_out_for_as_long_as_asked() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    bench.settings.backoff_max = Duration::from_secs(30);
    bench.hub.fault(
        "hub",
        "/revision/main",
        1,
        Fault::Status { status: 429, code: None, retry_after: Some(1) },
    );
    let start = std::time::Instant::now();
    bench.fetch("main").await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn too_many_requests_end_in_advice_after_bounded_waits() {
    let bench = Bench::new(plain_model(1_000)).await;
    let hour = Fault::Status { status: 429, code: None, retry_after: Some(3_600) };
    bench.hub.fault("hub", "/revision/main", 9, hour);
    let host = bench.hub.endpoint.origin().ascii_serialization();
    let failure = tokio::time::timeout(Duration::from_secs(20), bench.failure("main")).await;
    assert_eq!(
        failure.unwrap(),
        format!(
            "asking {host}: too many requests from this address or token (status 429); wait some \
             minutes, or set HF_TOKEN for a higher limit"
        )
    );
    assert_eq!(bench.hub.requests().len(), 4);
}

// ---- Servers that do ranges badly, or send the wrong bytes ----

#[tokio::test]
async fn a_server_that_does_ranges_badly_sends_the_file_from_its_start() {
    let table = [(Fault::IgnoreRange, 1), (Fault::NotSatisfiable, 2), (Fault::WrongRange, 2)];
    for (fault, requests) in table {
        let bench = Bench::new(plain_model(100_000)).await;
        let tree = bench.hub.tree();
        bench.write_partial(WEIGHTS, &tree.files[WEIGHTS].bytes[..60_000]);
        bench.hub.fault("cdn", WEIGHTS, 1, fault.clone());
        let fetched = bench.fetch("main").await.unwrap();
        assert_holds(&fetched.directory, &tree, &PLAIN);
        assert_eq!(fetched.downloaded_bytes, 100_004, "no useless byte is read: {fault:?}");
        let mut asked = vec![Some("bytes=60000-".to_owned()), None];
        asked.truncate(requests);
        assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), asked, "{fault:?}");
    }
}

#[tokio::test]
async fn what_an_earlier_run_left_is_checked_before_it_is_used() {
    let tree = plain_model(100_000);
    let good = tree.files[WEIGHTS].bytes.to_vec();
    let mut bad = good.clone();
    bad[7] ^= 1;
    let rest = |from: usize| Some(format!("bytes={from}-"));
    let table = [
        ("whole and right", good.clone(), vec![]),
        ("half and right", good[..50_000].to_vec(), vec![rest(50_000)]),
        ("whole and wrong", bad.clone(), vec![None]),
        ("half and wrong", bad[..50_000].to_vec(), vec![rest(50_000), None]),
        ("too long", [good.clone(), vec![0]].concat(), vec![None]),
        ("empty", vec![], vec![None]),
    ];
    for (name, left, asked) in table {
        let bench = Bench::new(tree.clone()).await;
        bench.write_partial(WEIGHTS, &left);
        bench.write_partial("of-an-older-version/file.bin", b"not part of the model");
        let fetched = bench.fetch("main").await.unwrap();
        assert_holds(&fetched.directory, &tree, &PLAIN);
        assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), asked, "{name}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_and_then_refused() {
    let bench = Bench::new(plain_model(10_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Wrong);
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);

    let bench = Bench::new(plain_model(10_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 9, Fault::Wrong);
    let mut wrong = bench.hub.tree().files[WEIGHTS].bytes.to_vec();
    wrong[0] ^= 1;
    let found = Tree::new(REPO).with(WEIGHTS, wrong).sha256(WEIGHTS);
    assert_eq!(
        bench.failure("main").await,
        format!(
            "verifying model.safetensors: expected the hub's sha256 {}, found {found}",
            bench.hub.tree().sha256(WEIGHTS)
        )
    );
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [None, None]);
    assert!(!bench.partial(WEIGHTS).exists(), "the wrong file is deleted");
    assert_eq!(bench.cache.find(&source(REPO, "main")).unwrap(), None);
}

#[tokio::test]
async fn a_small_file_with_wrong_bytes_is_refused_by_its_git_id() {
    let bench = Bench::new(plain_model(10)).await;
    let file = "0123456789abcdef0123456789abcdef01234567/config.json";
    // A fault that only concerns bytes has no effect on the redirect before.
    bench.hub.fault("hub", file, 9, Fault::Wrong);
    let error = bench.fetch("main").await.unwrap_err();
    let blob = bench.hub.tree().files["config.json"].git_id();
    assert!(
        error.to_string().starts_with(&format!("verifying config.json: expected git blob id {blob}, found ")),
        "{error}"
    );
}

#[tokio::test]
async fn too_many_bytes_are_refused_before_the_disk_is_full_of_them() {
    let bench = Bench::new(plain_model(10_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 9, Fault::Longer(50));
    let error = bench.fetch("main").await.unwrap_err();
    assert!(
        matches!(&error, Error::WrongSize { file, expected: 10_000, .. } if file == WEIGHTS),
        "{error:?}"
    );
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS).len(), 2);
    assert!(!bench.partial(WEIGHTS).exists());
}

#[tokio::test]
async fn too_few_bytes_are_asked_for_again() {
    let bench = Bench::new(plain_model(10_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Shorter(100));
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [None, Some("bytes=9900-".to_owned())]);
}

#[tokio::test]
async fn a_file_that_stays_too_short_is_an_error_in_the_end() {
    let bench = Bench::new(plain_model(10_000)).await;
    bench.hub.fault("cdn", WEIGHTS, 99, Fault::Shorter(100));
    let error = bench.fetch("main").await.unwrap_err();
    assert!(matches!(error, Error::Truncated { have: 9_900, size: 10_000, .. }), "{error:?}");
}

// ---- Repositories that cannot be used ----

#[tokio::test]
async fn a_repository_that_cannot_run_is_refused_before_its_weights_are_fetched() {
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let evil = json!({"weight_map": {"a": "../evil.safetensors"}});
    let sharded = |index: serde_json::Value| {
        plain_model(10).without(WEIGHTS).with("model.safetensors.index.json", index.to_string())
    };
    let table = [
        (
            plain_model(10).without("config.json"),
            "choosing files of test-org/tiny-model: it has no config.json, which the server needs",
        ),
        (
            plain_model(10).without("tokenizer.json"),
            "choosing files of test-org/tiny-model: it has no tokenizer.json, which the server needs",
        ),
        (
            plain_model(10).without(WEIGHTS).with_lfs("pytorch_model.pt", noise(1, 10)),
            "choosing files of test-org/tiny-model: it has no model.safetensors or pytorch_model.bin, which the \
             server needs",
        ),
        (
            sharded(index).with_lfs("model-1.safetensors", noise(1, 10)),
            "choosing files of test-org/tiny-model: its index names model-2.safetensors, which it does not have",
        ),
        (
            sharded(evil),
            "taking the file name \"../evil.safetensors\" from model.safetensors.index.json: \
             it is not a plain relative path, refused",
        ),
        (
            plain_model(10).with("modules.json", r#"[{"path": "/etc"}]"#),
            "taking the file name \"/etc\" from modules.json: it is not a plain relative path, refused",
        ),
    ];
    for (tree, expected) in table {
        let bench = Bench::new(tree).await;
        assert_eq!(bench.failure("main").await, expected);
        let cdn: Vec<_> = bench.hub.requests().into_iter().filter(|s| s.host == "cdn").collect();
        assert_eq!(cdn, []);
    }
}

#[tokio::test]
async fn names_that_are_no_plain_paths_are_passed_over() {
    let mut tree = plain_model(10);
    for evil in ["../evil", "/evil", "..\\evil", "a/../../evil", "config.json/../evil"] {
        tree = tree.with(evil, "evil");
    }
    let bench = Bench::new(tree).await;
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    let all = contents(bench.directory.path());
    assert!(!all.keys().any(|name| name.contains("evil")), "{:?}", all.keys());
}

#[tokio::test]
async fn an_answer_that_is_no_hubs_is_named_as_such() {
    let bench = Bench::new(plain_model(10)).await;
    bench.hub.fault("hub", "/revision/main", 1, Fault::Html);
    let host = bench.hub.endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure("main").await,
        format!(
            "reading the file list from {host}: the answer is not a hub's JSON; a login page or a \
             proxy may be answering in its place, or HF_ENDPOINT is not a hub"
        )
    );

    let bench = Bench::new(plain_model(10)).await;
    bench.hub.change(|tree| tree.commit = "../../evil".to_owned());
    let host = bench.hub.endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure("main").await,
        format!("reading the file list from {host}: \"../../evil\" is not a commit")
    );
}

#[tokio::test]
async fn a_hub_that_answers_with_another_commit_is_refused() {
    let bench = Bench::new(plain_model(10)).await;
    let asked = "a".repeat(40);
    bench.hub.change(|tree| tree.refs.push(asked.clone()));
    let host = bench.hub.endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure(&asked).await,
        format!(
            "reading the file list from {host}: commit {asked} was asked for, {} answered",
            bench.hub.tree().commit
        )
    );
}

#[tokio::test]
async fn redirects_have_an_end() {
    let bench = Bench::new(plain_model(10)).await;
    let host = bench.hub.endpoint.origin().ascii_serialization();
    bench.hub.fault("hub", "/round", 99, Fault::Redirect("/round".to_owned()));
    bench.hub.fault("hub", "/revision/main", 1, Fault::Redirect("/round".to_owned()));
    assert_eq!(bench.failure("main").await, format!("following a redirect of {host}: more than 10 in a row"));
    assert_eq!(bench.hub.requests().len(), 11);

    bench.hub.fault("hub", "/revision/main", 1, Fault::Redirect("file:///etc/passwd".to_owned()));
    assert_eq!(
        bench.failure("main").await,
        format!("following a redirect of {host}: it leads to another protocol")
    );
}

// ---- The manifest, and importing ----

#[tokio::test]
async fn a_manifest_has_to_agree_with_every_file() {
    let tree = Tree::sentence_model(REPO);
    let hashes = NEEDED.map(|file| (file, tree.sha256(file)));
    let other = "0".repeat(64);
    let with = |file: &'static str, hash: &str| {
        let mut hashes = hashes.to_vec();
        hashes.retain(|(name, _)| *name != file);
        hashes.push((file, hash.to_owned()));
        manifest(&hashes)
    };
    let without: Vec<_> = hashes.iter().filter(|(name, _)| *name != WEIGHTS).cloned().collect();
    let wrong = |file: &str| {
        format!("verifying {file}: expected the manifest's sha256 {other}, found {}", tree.sha256(file))
    };
    let table = [
        (with(WEIGHTS, &other), wrong(WEIGHTS)),
        (with("config.json", &other), wrong("config.json")),
        (with("modules.json", &other), wrong("modules.json")),
        (manifest(&without), "checking model.safetensors by the manifest: it is not listed there".to_owned()),
        (
            with("extra.json", &other),
            "checking the manifest: it lists extra.json, which test-org/tiny-model does not have".to_owned(),
        ),
    ];
    for (manifest, expected) in table {
        let mut bench = Bench::new(tree.clone()).await;
        bench.manifest = Some(manifest);
        assert_eq!(bench.failure("main").await, expected);
        assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [], "refused before the weights");
        assert_eq!(bench.cache.find(&source(REPO, "main")).unwrap(), None);
    }

    let mut bench = Bench::new(tree.clone()).await;
    bench.manifest = Some(whole_manifest(&tree));
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &tree, &NEEDED);
    // A manifest that comes later holds for what is here already.
    bench.manifest = Some(with(WEIGHTS, &other));
    assert_eq!(bench.failure(&tree.commit).await, wrong(WEIGHTS));
    assert_eq!(bench.failure("main").await, wrong(WEIGHTS));
}

fn write_tree(tree: &Tree, directory: &Path) {
    for (file, blob) in &tree.files {
        let path = directory.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &blob.bytes).unwrap();
    }
}

#[test]
fn a_local_directory_is_imported_by_its_manifest() {
    let tree = Tree::sentence_model(REPO);
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    write_tree(&tree, &from);
    let cache = Cache::new(directory.path().join("cache"));
    let pinned = source(REPO, &tree.commit);
    let imported = import(&cache, &pinned, &from, &whole_manifest(&tree)).unwrap();
    let expected = Fetched {
        directory: cache.root().join("models--test-org--tiny-model").join(&tree.commit),
        repo: REPO.to_owned(),
        revision: tree.commit.clone(),
        commit: tree.commit.clone(),
        files: NEEDED.len(),
        bytes: size(&tree, &NEEDED),
        downloaded_bytes: 0,
    };
    assert_eq!(imported, expected);
    assert_holds(&imported.directory, &tree, &NEEDED);

    // The second time nothing is read: the source may be gone.
    std::fs::remove_dir_all(&from).unwrap();
    let again = import(&cache, &pinned, &from, &whole_manifest(&tree)).unwrap();
    assert_eq!(again, expected);
}

#[test]
fn an_import_that_does_not_fit_its_manifest_leaves_no_model() {
    let tree = Tree::sentence_model(REPO);
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    write_tree(&tree, &from);
    let cache = Cache::new(directory.path().join("cache"));
    let hashes = NEEDED.map(|file| (file, tree.sha256(file)));
    let mut wrong = hashes.to_vec();
    wrong.retain(|(file, _)| *file != WEIGHTS);
    let unlisted = manifest(&wrong);
    wrong.push((WEIGHTS, "0".repeat(64)));
    let mut extra = hashes.to_vec();
    extra.push(("absent.json", "0".repeat(64)));
    let table = [
        (
            tree.commit.as_str(),
            manifest(&wrong),
            format!(
                "verifying model.safetensors: expected the manifest's sha256 {}, found {}",
                "0".repeat(64),
                tree.sha256(WEIGHTS)
            ),
        ),
        (
            tree.commit.as_str(),
            unlisted,
            "checking model.safetensors by the manifest: it is not listed there".to_owned(),
        ),
        (
            tree.commit.as_str(),
            manifest(&extra),
            format!("checking the manifest: it lists absent.json, which {} does not have", from.display()),
        ),
        (
            "main",
            whole_manifest(&tree),
            "importing test-org/tiny-model: revision \"main\" must be a full commit, 40 hexadecimal \
             digits in lower case"
                .to_owned(),
        ),
    ];
    for (revision, manifest, expected) in table {
        let error = import(&cache, &source(REPO, revision), &from, &manifest).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(cache.find(&source(REPO, &tree.commit)).unwrap(), None);
    }
}

// ---- Interruption, damage and company ----

#[tokio::test]
async fn a_fetch_that_is_dropped_leaves_no_model_and_is_taken_up() {
    let mut bench = Bench::new(plain_model(300_000)).await;
    bench.settings.read_timeout = Duration::from_mins(1);
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Stall(120_000));
    let (reached, mut wait) = tokio::sync::mpsc::channel(1);
    let mut recorder = Recorder {
        on_advance: Some(Box::new(move |file, have| {
            if file == WEIGHTS && have == 120_000 {
                reached.try_send(()).unwrap();
            }
        })),
        ..Recorder::default()
    };
    tokio::select! {
        _ = bench.fetch_telling("main", &mut recorder) => panic!("it stalls"),
        () = async { wait.recv().await.unwrap() } => {}
    }
    let tree = bench.hub.tree();
    assert_eq!(bench.cache.find(&source(REPO, "main")).unwrap(), None);
    assert_eq!(bench.cache.find(&source(REPO, &tree.commit)).unwrap(), None);
    assert_eq!(
        bench.model_directory(),
        [format!(".lock-{}", tree.commit), format!(".partial-{}", tree.commit)]
    );
    bench.hub.requests();

    let mut recorder = Recorder::default();
    let fetched = bench.fetch_telling("main", &mut recorder).await.unwrap();
    assert_holds(&fetched.directory, &tree, &PLAIN);
    assert_eq!(fetched.downloaded_bytes, 180_000, "nothing twice");
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [Some("bytes=120000-".to_owned())]);
    assert!(
        recorder.events.contains(&"started model.safetensors 120000".to_owned()),
        "{:?}",
        recorder.events
    );
}

#[tokio::test]
async fn a_damaged_model_is_not_found_and_fetched_again() {
    let bench = Bench::new(plain_model(1_000)).await;
    let tree = bench.hub.tree();
    let pinned = source(REPO, &tree.commit);
    let fetched = bench.fetch(&tree.commit).await.unwrap();
    let damages: [fn(&Path); 5] = [
        |model| std::fs::remove_file(model.join("config.json")).unwrap(),
        |model| std::fs::write(model.join(WEIGHTS), "short").unwrap(),
        |model| std::fs::remove_file(model.join(".fetched.json")).unwrap(),
        |model| std::fs::write(model.join(".fetched.json"), "{").unwrap(),
        |model| {
            // The record of another commit, copied here.
            let record = std::fs::read_to_string(model.join(".fetched.json")).unwrap();
            let other = record.replace("0123456789abcdef", "fedcba9876543210");
            std::fs::write(model.join(".fetched.json"), other).unwrap();
        },
    ];
    for damage in damages {
        damage(&fetched.directory);
        assert_eq!(bench.cache.find(&pinned).unwrap(), None);
        let again = bench.fetch(&tree.commit).await.unwrap();
        assert_holds(&again.directory, &tree, &PLAIN);
        assert_eq!(again.downloaded_bytes, 1_004);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fetches_at_once_download_once() {
    let mut bench = Bench::new(plain_model(500_000)).await;
    // Long enough for the second to meet the first.
    bench.settings.read_timeout = STALL;
    bench.hub.fault("cdn", WEIGHTS, 1, Fault::Stall(250_000));
    let (one, two) = tokio::join!(bench.fetch("main"), bench.fetch("main"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.directory, two.directory);
    assert_holds(&one.directory, &bench.hub.tree(), &PLAIN);
    let mut downloaded = [one.downloaded_bytes, two.downloaded_bytes];
    downloaded.sort_unstable();
    assert_eq!(downloaded, [0, 500_004]);
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [None, Some("bytes=250000-".to_owned())]);
}

#[tokio::test]
async fn a_full_disk_is_named_with_the_directory_to_make_room_in() {
    let bench = Bench::new(plain_model(10)).await;
    let weights = bench.partial(WEIGHTS);
    std::fs::create_dir_all(weights.parent().unwrap()).unwrap();
    // Linux's device that is always full.
    std::os::unix::fs::symlink("/dev/full", &weights).unwrap();
    assert_eq!(
        bench.failure("main").await,
        format!(
            "writing to {}: no space left; make room there, or choose another cache directory",
            weights.parent().unwrap().display()
        )
    );
    assert_eq!(ranges(&bench.hub.requests(), WEIGHTS), [None], "trying again makes no room");
}

#[tokio::test]
async fn the_bar_and_the_log_follow_a_fetch_that_stumbles() {
    let reporters: [Box<dyn Progress>; 3] =
        [Box::new(Bar::default()), Box::new(Log::default()), stderr_progress()];
    for mut reporter in reporters {
        let bench = Bench::new(plain_model(10_000)).await;
        bench.hub.fault("hub", "/revision/main", 1, status(503, None));
        bench.hub.fault("cdn", WEIGHTS, 1, Fault::Cut(5_000));
        let fetched = bench.fetch_telling("main", reporter.as_mut()).await.unwrap();
        assert_eq!(fetched.downloaded_bytes, 10_004);
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_named() {
    let bench = Bench::new(plain_model(10)).await;
    std::fs::write(bench.cache.root(), "a file in its place").unwrap();
    let error = bench.fetch("main").await.unwrap_err();
    let model = bench.cache.root().join("models--test-org--tiny-model");
    assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(&model)), "{error:?}");
}

// ---- Networks ----

async fn closed_port() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    format!("http://{address}").parse().unwrap()
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_unreachable_at_once() {
    let mut bench = Bench::new(plain_model(10)).await;
    bench.settings.backoff_base = Duration::from_mins(1);
    bench.settings.backoff_max = Duration::from_mins(1);
    let closed = closed_port().await;
    // RFC 6761: a name that never resolves.
    for endpoint in [closed, "http://hub.invalid".parse().unwrap()] {
        bench.settings.endpoint = endpoint.clone();
        let fetched = tokio::time::timeout(Duration::from_secs(20), bench.fetch("main")).await;
        let error = fetched.unwrap().unwrap_err();
        assert!(error.is_unreachable());
        assert_eq!(
            error.to_string(),
            format!(
                "connecting to {}: unreachable; check the network, the endpoint (HF_ENDPOINT, or --url) \
                 and whether a proxy is needed (HTTPS_PROXY)",
                endpoint.origin().ascii_serialization()
            )
        );
    }
}

#[tokio::test]
async fn a_storage_host_that_is_not_there_is_tried_again_then_named() {
    let bench = Bench::new(plain_model(10)).await;
    let closed = closed_port().await;
    bench.hub.set_cdn(closed.clone());
    let mut recorder = Recorder::default();
    let error = bench.fetch_telling("main", &mut recorder).await.unwrap_err();
    assert!(error.to_string().contains(&closed.origin().ascii_serialization()), "{error}");
    let tries = recorder.events.iter().filter(|event| event.starts_with("retrying"));
    assert_eq!(tries.count(), 3);
}

/// Puts TLS before a listener. Gives its address, and its authority's certificate.
async fn tls_front(target: &Url) -> (Url, String) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = address(target);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut outside) = acceptor.accept(stream).await {
                    let mut inside = TcpStream::connect(target).await.unwrap();
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    let url = format!("https://localhost:{port}").parse().unwrap();
    (url, key.cert.pem())
}

#[tokio::test]
async fn a_private_authority_is_trusted_only_with_its_file() {
    let mut bench = Bench::new(plain_model(100_000)).await;
    let (endpoint, hub_pem) = tls_front(&bench.hub.endpoint).await;
    let (cdn, cdn_pem) = tls_front(&bench.hub.cdn()).await;
    bench.hub.set_cdn(cdn);
    bench.settings.endpoint = endpoint.clone();
    let host = endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure("main").await,
        format!(
            "connecting to {host}: TLS failed; if a proxy or a mirror has a certificate of a private \
             authority, give that authority's certificate as the extra CA file"
        )
    );

    let ca_file = bench.directory.path().join("ca.pem");
    bench.settings.ca_file = Some(ca_file.clone());
    let expected = format!("reading extra CA certificates from {}", ca_file.display());
    assert_eq!(bench.failure("main").await, expected);
    std::fs::write(&ca_file, "not a certificate").unwrap();
    assert_eq!(bench.failure("main").await, expected);

    std::fs::write(&ca_file, hub_pem + &cdn_pem).unwrap();
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
}

#[tokio::test]
async fn nothing_goes_from_https_to_http() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    let (endpoint, pem) = tls_front(&bench.hub.endpoint).await;
    let ca_file = bench.directory.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    bench.settings.ca_file = Some(ca_file);
    bench.settings.endpoint = endpoint.clone();
    let host = endpoint.origin().ascii_serialization();
    assert_eq!(
        bench.failure("main").await,
        format!("following a redirect of {host}: it leads from https to http, refused")
    );
    assert!(bench.hub.requests().iter().all(|seen| seen.host == "hub"));
}

/// A proxy that passes everything on to where `hosts` says, and notes the
/// first line of each connection's first request.
async fn proxy(hosts: BTreeMap<String, std::net::SocketAddr>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_on(client, hosts.clone(), Arc::clone(&notes)));
        }
    });
    (address.to_string(), seen)
}

async fn pass_on(
    mut client: TcpStream,
    hosts: BTreeMap<String, std::net::SocketAddr>,
    notes: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let text = String::from_utf8(head.clone()).unwrap();
    let line = text.lines().next().unwrap().to_owned();
    let target = line.split(' ').nth(1).unwrap().to_owned();
    notes.lock().unwrap().push(line.clone());
    let connect = line.starts_with("CONNECT ");
    let host = if connect {
        target
    } else {
        let url: Url = target.parse().unwrap();
        format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap())
    };
    let Some(address) = hosts.get(&host) else {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
        client.write_all(refusal).await.unwrap();
        return;
    };
    let mut server = TcpStream::connect(address).await.unwrap();
    if connect {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    } else {
        server.write_all(&head).await.unwrap();
    }
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

fn address(url: &Url) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()))
}

#[tokio::test]
async fn http_goes_through_its_proxy_except_to_the_hosts_of_no_proxy() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    let hosts = BTreeMap::from([("hub.test:80".to_owned(), address(&bench.hub.endpoint))]);
    let (proxy, seen) = proxy(hosts).await;
    bench.settings.endpoint = "http://hub.test".parse().unwrap();
    bench.settings.proxy =
        ProxySettings { http: Some(proxy), https: None, no_proxy: Some("localhost".to_owned()) };
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.is_empty());
    for line in seen {
        assert!(line.starts_with("GET http://hub.test/"), "{line}");
    }
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let mut bench = Bench::new(plain_model(1_000)).await;
    let (hub, hub_pem) = tls_front(&bench.hub.endpoint).await;
    let (cdn, cdn_pem) = tls_front(&bench.hub.cdn()).await;
    let ca_file = bench.directory.path().join("ca.pem");
    std::fs::write(&ca_file, hub_pem + &cdn_pem).unwrap();
    bench.settings.ca_file = Some(ca_file);
    bench.hub.set_cdn(cdn.clone());
    bench.settings.endpoint = hub.clone();
    let names = [&hub, &cdn].map(|url| format!("localhost:{}", url.port().unwrap()));
    let hosts = names.iter().cloned().zip([address(&hub), address(&cdn)]).collect();
    let (proxy, seen) = proxy(hosts).await;
    bench.settings.proxy.https = Some(format!("http://{proxy}"));
    let fetched = bench.fetch("main").await.unwrap();
    assert_holds(&fetched.directory, &bench.hub.tree(), &PLAIN);
    let lines = names.map(|name| format!("CONNECT {name} HTTP/1.1"));
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    seen.dedup();
    let mut expected = lines.to_vec();
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_proxy_that_does_not_pass_requests_on_is_named_as_the_cause() {
    let mut bench = Bench::new(plain_model(10)).await;
    let passing = "the proxy did not pass the request on; check HTTPS_PROXY, HTTP_PROXY and NO_PROXY";
    let asking = "the proxy asks for credentials; put them in the proxy's address \
                  (http://user:password@host:port)";
    let (refusing, _) = proxy(BTreeMap::new()).await;
    let closed = closed_port().await;
    let closed = format!("http://me:{PASSWORD}@127.0.0.1:{}", closed.port().unwrap());
    let table = [
        ("http://hub.test", closed.as_str(), passing, true),
        ("https://hub.test", closed.as_str(), passing, true),
        ("https://hub.test", refusing.as_str(), passing, true),
        ("http://hub.test", refusing.as_str(), asking, false),
    ];
    for (endpoint, proxy, expected, unreachable) in table {
        bench.settings.endpoint = endpoint.parse().unwrap();
        bench.settings.proxy =
            ProxySettings { http: Some(proxy.to_owned()), https: Some(proxy.to_owned()), no_proxy: None };
        let error = bench.fetch("main").await.unwrap_err();
        assert_eq!(error.to_string(), format!("connecting to {endpoint} through the proxy: {expected}"));
        assert_eq!(error.is_unreachable(), unreachable);
    }
    bench.settings.proxy.http = Some("http://".to_owned());
    assert_eq!(
        bench.failure("main").await,
        "using the http proxy setting: it is not a proxy's address (http://host:port)"
    );
}

#[tokio::test]
async fn an_endpoint_has_to_be_a_plain_address() {
    let mut bench = Bench::new(plain_model(10)).await;
    let table = [
        ("ftp://hub.test", "using hub endpoint ftp://hub.test: it has to start with https:// or http://"),
        (
            "https://me:secret@hub.test",
            "using hub endpoint https://hub.test: it has a user name or password in it; give a token instead",
        ),
        ("https://hub.test/?a=b", "using hub endpoint https://hub.test: it has a query or a fragment"),
    ];
    for (endpoint, expected) in table {
        bench.settings.endpoint = endpoint.parse().unwrap();
        assert_eq!(bench.failure("main").await, expected);
    }
}

// ---- Honesty ----

/// Lets the hub's own client library fetch this revision, into `hf` beside the cache; what it saw.
async fn client_library(bench: &Bench, revision: &str) -> serde_json::Value {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.python");
    assert!(packages.exists(), "the Python packages of this test are missing: run `make python`");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let endpoint = bench.hub.endpoint.as_str().trim_end_matches('/').to_owned();
    let (home, revision) = (bench.directory.path().to_owned(), revision.to_owned());
    let run = move || {
        Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hub_client.py"))
            .args([REPO, &revision, "1_Pooling/config.json"])
            // Nothing of the machine's settings, and no proxy.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PYTHONPATH", packages)
            .env("HOME", &home)
            .env("HF_HOME", home.join("hf"))
            .env("HF_ENDPOINT", endpoint)
            .env("HF_TOKEN", TOKEN)
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            .output()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hubs_own_client_library_understands_the_fake_hub() {
    let bench = Bench::new(Tree::sentence_model(REPO)).await;
    bench.hub.require_token(TOKEN);
    bench.hub.change(|tree| tree.refs.push("refs/pr/1".to_owned()));
    let report = client_library(&bench, "refs/pr/1").await;

    let tree = bench.hub.tree();
    let files: BTreeMap<_, _> = tree
        .files
        .iter()
        .map(|(path, blob)| {
            let lfs = blob.lfs.then(|| blob.sha256());
            let seen = json!({
                "size": blob.bytes.len(), "blob_id": blob.git_id(), "lfs_sha256": lfs
            });
            (path, seen)
        })
        .collect();
    let snapshot: BTreeMap<_, _> = tree.files.iter().map(|(path, blob)| (path, blob.sha256())).collect();
    assert_eq!(
        report,
        json!({
            "version": "1.33.0",
            "id": REPO,
            "commit": tree.commit,
            "snapshot_commit": tree.commit,
            "files": files,
            "snapshot": snapshot,
            "single": tree.sha256("1_Pooling/config.json"),
        })
    );
    for seen in bench.hub.requests() {
        let expected = (seen.host == "hub").then(|| format!("Bearer {TOKEN}"));
        assert_eq!(seen.authorization, expected, "{seen:?}");
    }
}
