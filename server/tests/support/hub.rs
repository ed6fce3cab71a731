//! A model hub on loopback that speaks the real one's protocol for one
//! repository in memory, and fails on request.
//!
//! Small files come from the hub itself after a relative redirect, large (LFS)
//! files after a redirect to a second listener, the "cdn", by an address with
//! a signature. Downloads (archives, not part of the repository) are at `/downloads/NAME`.
//! `hub_client.py` checks with the hub's own client library that
//! the protocol is the real one.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "several test crates include this file, each uses a part"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use sha1::Digest as _;
use tokio::net::TcpListener;
use url::Url;

/// In the cdn's addresses; must never be seen in an error or a log.
pub(crate) const SIGNATURE: &str = "signed-secret";

/// A repository at one commit.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// Branches and tags that stand for the commit.
    pub(crate) refs: Vec<String>,
    pub(crate) files: BTreeMap<String, Blob>,
    /// What lies beside the repository: at `/downloads/NAME`, for everybody.
    pub(crate) downloads: BTreeMap<String, Blob>,
    /// What the hub says of a file's size where that is not the truth.
    pub(crate) claimed_sizes: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Bytes,
    pub(crate) lfs: bool,
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `hub` or `cdn`.
    pub(crate) host: &'static str,
    pub(crate) method: String,
    /// As sent, percent-encoded, without the query.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

/// What goes wrong. Numbers are bytes of that answer's body.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Status {
        status: u16,
        code: Option<&'static str>,
        retry_after: Option<u64>,
    },
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes; the connection stays.
    Stall(usize),
    /// One byte is another.
    Wrong,
    /// All of the file, with status 200, whatever part was asked for.
    IgnoreRange,
    /// As `IgnoreRange`, and the connection breaks after so many bytes.
    CutFromStart(usize),
    /// 416, whatever part was asked for.
    NotSatisfiable,
    /// Status 206 with the first bytes instead of those asked for.
    WrongRange,
    /// So many bytes too many, without a length beforehand.
    Longer(usize),
    /// So many bytes too few, without a length beforehand.
    Shorter(usize),
    /// A login page.
    Html,
    Redirect(String),
}

#[derive(Debug)]
struct Rule {
    host: &'static str,
    path_end: String,
    times: usize,
    fault: Fault,
}

#[derive(Debug)]
struct State {
    tree: Mutex<Tree>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    /// Where LFS files are redirected to.
    cdn: Mutex<Url>,
    prefix: String,
    token: Mutex<Option<String>>,
}

/// The running hub. It stops with the runtime that it was started in.
#[derive(Debug, Clone)]
pub(crate) struct FakeHub {
    /// To be used as the hub's endpoint.
    pub(crate) endpoint: Url,
    state: Arc<State>,
}

impl Tree {
    pub(crate) fn new(repo: &str) -> Self {
        Self {
            repo: repo.to_owned(),
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            refs: vec!["main".to_owned()],
            files: BTreeMap::new(),
            downloads: BTreeMap::new(),
            claimed_sizes: BTreeMap::new(),
        }
    }

    /// Something to download that is not part of the repository.
    pub(crate) fn with_download(mut self, name: &str, bytes: impl Into<Bytes>) -> Self {
        self.downloads.insert(name.to_owned(), Blob { bytes: bytes.into(), lfs: true });
        self
    }

    /// A sentence-transformers model with much beside it that no server needs.
    /// The weights are noise.
    pub(crate) fn sentence_model(repo: &str) -> Self {
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        Self::new(repo)
            .with(".gitattributes", "*.safetensors filter=lfs\n")
            .with("README.md", "# A model\n")
            .with("config.json", r#"{"model_type": "bert"}"#)
            .with("tokenizer.json", r#"{"version": "1.0"}"#)
            .with("tokenizer_config.json", "{}")
            .with("special_tokens_map.json", "{}")
            .with("vocab.txt", "[PAD]\n")
            .with("modules.json", modules.to_string())
            .with("config_sentence_transformers.json", "{}")
            .with("sentence_bert_config.json", r#"{"max_seq_length": 256}"#)
            .with("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#)
            .with("2_Dense/config.json", r#"{"in_features": 8}"#)
            .with_lfs("2_Dense/model.safetensors", noise(2, 10_000))
            .with_lfs("2_Dense/pytorch_model.bin", noise(3, 10_000))
            .with_lfs("model.safetensors", noise(1, 300_000))
            .with_lfs("pytorch_model.bin", noise(4, 300_000))
            .with_lfs("onnx/model.onnx", noise(5, 50_000))
    }

    /// All files of a directory, `*.safetensors` and large ones as LFS.
    pub(crate) fn of_directory(repo: &str, directory: &Path) -> Self {
        fn add(tree: Tree, root: &Path, below: &str) -> Tree {
            let entries = std::fs::read_dir(root.join(below)).expect("list the directory");
            entries.fold(tree, |tree, entry| {
                let entry = entry.expect("an entry");
                let name = entry.file_name().into_string().expect("a name in UTF-8");
                let path = if below.is_empty() { name } else { format!("{below}/{name}") };
                if entry.path().is_dir() {
                    return add(tree, root, &path);
                }
                let bytes = std::fs::read(entry.path()).expect("read a file");
                if bytes.len() > 1 << 20 || Path::new(&path).extension().is_some_and(|e| e == "safetensors") {
                    tree.with_lfs(&path, bytes)
                } else {
                    tree.with(&path, bytes)
                }
            })
        }
        add(Self::new(repo), directory, "")
    }

    pub(crate) fn with(mut self, path: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        self.files.insert(path.to_owned(), Blob { bytes, lfs: false });
        self
    }

    pub(crate) fn with_lfs(mut self, path: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        self.files.insert(path.to_owned(), Blob { bytes, lfs: true });
        self
    }

    pub(crate) fn without(mut self, path: &str) -> Self {
        self.files.remove(path).expect("the file was there");
        self
    }

    pub(crate) fn sha256(&self, path: &str) -> String {
        hex(&sha2::Sha256::digest(&self.files[path].bytes))
    }
}

impl Blob {
    pub(crate) fn sha256(&self) -> String {
        hex(&sha2::Sha256::digest(&self.bytes))
    }

    fn pointer(&self) -> String {
        format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n",
            self.sha256(),
            self.bytes.len()
        )
    }

    /// Git's id of what is in the repository: the file, or its LFS pointer.
    pub(crate) fn git_id(&self) -> String {
        let content = if self.lfs { self.pointer().into() } else { self.bytes.clone() };
        let mut sha1 = sha1::Sha1::new();
        sha1.update(format!("blob {}\0", content.len()));
        sha1.update(&content);
        hex(&sha1.finalize())
    }

    fn etag(&self) -> String {
        let id = if self.lfs { self.sha256() } else { self.git_id() };
        format!("\"{id}\"")
    }
}

impl FakeHub {
    pub(crate) async fn start(tree: Tree) -> Self {
        Self::start_at(tree, "").await
    }

    /// A mirror, whose endpoint has a path.
    pub(crate) async fn start_at(tree: Tree, prefix: &str) -> Self {
        let (hub, hub_url) = listen("127.0.0.1", prefix).await;
        let (cdn, mut cdn_url) = listen("127.0.0.1", "").await;
        // Another host by name too: the hub's own client does not look at ports.
        cdn_url.set_host(Some("localhost")).expect("a host");
        Self::of(tree, prefix, (hub, hub_url), (cdn, cdn_url))
    }

    /// At an address that others reach.
    pub(crate) async fn start_on(tree: Tree, ip: &str) -> Self {
        Self::of(tree, "", listen(ip, "").await, listen(ip, "").await)
    }

    fn of(
        tree: Tree,
        prefix: &str,
        (hub, hub_url): (TcpListener, Url),
        (cdn, cdn_url): (TcpListener, Url),
    ) -> Self {
        let state = Arc::new(State {
            tree: Mutex::new(tree),
            rules: Mutex::default(),
            seen: Mutex::default(),
            cdn: Mutex::new(cdn_url),
            prefix: prefix.to_owned(),
            token: Mutex::default(),
        });
        serve(hub, Arc::clone(&state), State::hub);
        serve(cdn, Arc::clone(&state), State::cdn);
        Self { endpoint: hub_url, state }
    }

    /// Makes the next `times` requests to `host` whose path ends in `path_end` fail.
    pub(crate) fn fault(&self, host: &'static str, path_end: &str, times: usize, fault: Fault) {
        self.state.rules.lock().expect("no panic").push(Rule {
            host,
            path_end: path_end.to_owned(),
            times,
            fault,
        });
    }

    /// Refuses everyone who does not send this token.
    pub(crate) fn require_token(&self, token: &str) {
        *self.state.token.lock().expect("no panic") = Some(token.to_owned());
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Tree)) {
        change(&mut self.state.tree.lock().expect("no panic"));
    }

    pub(crate) fn tree(&self) -> Tree {
        self.state.tree.lock().expect("no panic").clone()
    }

    /// The cdn's address.
    pub(crate) fn cdn(&self) -> Url {
        self.state.cdn.lock().expect("no panic").clone()
    }

    /// Redirects to another address of the cdn.
    pub(crate) fn set_cdn(&self, url: Url) {
        *self.state.cdn.lock().expect("no panic") = url;
    }

    /// All requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().expect("no panic"))
    }
}

async fn listen(ip: &str, prefix: &str) -> (TcpListener, Url) {
    let listener = TcpListener::bind((ip, 0)).await.expect("an address of this machine");
    let address = listener.local_addr().expect("a bound address");
    let url = format!("http://{address}{prefix}").parse().expect("an address");
    (listener, url)
}

type Answer = Response<Body>;

fn serve(listener: TcpListener, state: Arc<State>, answer: fn(&State, &Request) -> Answer) {
    let router = axum::Router::new().fallback(move |request: Request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, &request)) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
}

impl State {
    fn hub(&self, request: &Request) -> Answer {
        let fault = self.saw("hub", request);
        if let Some(answer) = fault.as_ref().and_then(refusal) {
            return answer;
        }
        let tree = self.tree.lock().expect("no panic").clone();
        let authorization = header_text(request.headers(), "authorization");
        if let Some(name) = request.uri().path().strip_prefix("/downloads/") {
            return match tree.downloads.get(name) {
                Some(blob) => file(request, blob, &tree, fault.as_ref()),
                None => plain(404),
            };
        }
        let token = self.token.lock().expect("no panic").clone();
        if token.is_some_and(|token| authorization != Some(format!("Bearer {token}"))) {
            // The real hub does not tell whether a private repository exists.
            return error(401, "RepoNotFound", "Invalid username or password.");
        }
        let path = request.uri().path();
        let Some(path) = path.strip_prefix(&self.prefix) else {
            return plain(404);
        };
        let repo = &tree.repo;
        let query = request.uri().query().unwrap_or_default();
        let blobs = url::form_urlencoded::parse(query.as_bytes())
            .any(|(key, value)| key == "blobs" && value.eq_ignore_ascii_case("true"));
        let after = |start: String| path.strip_prefix(&start).map(decoded);
        if let Some(revision) = after(format!("/api/models/{repo}/revision/")) {
            return at(&tree, &revision).unwrap_or_else(|| model_info(&tree, blobs));
        }
        if let Some(revision) = after(format!("/api/models/{repo}/tree/")) {
            return at(&tree, &revision).unwrap_or_else(|| file_tree(&tree));
        }
        if let Some(rest) = after(format!("/api/resolve-cache/models/{repo}/{}/", tree.commit)) {
            return match tree.files.get(&rest) {
                Some(blob) => file(request, blob, &tree, fault.as_ref()),
                None => error(404, "EntryNotFound", "Entry not found"),
            };
        }
        if let Some((revision, file)) =
            path.strip_prefix(&format!("/{repo}/resolve/")).and_then(|rest| rest.split_once('/'))
        {
            return at(&tree, &decoded(revision)).unwrap_or_else(|| self.resolve(&tree, &decoded(file)));
        }
        error(404, "RepoNotFound", "Repository not found")
    }

    fn resolve(&self, tree: &Tree, path: &str) -> Answer {
        let Some(blob) = tree.files.get(path) else {
            return error(404, "EntryNotFound", "Entry not found");
        };
        let answer =
            Response::builder().header("X-Repo-Commit", &tree.commit).header(header::ACCEPT_RANGES, "bytes");
        let answer = if blob.lfs {
            let mut cdn = self.cdn.lock().expect("no panic").clone();
            let name = path.rsplit('/').next().unwrap_or(path);
            cdn.set_path(&format!("/lfs/{}/{name}", blob.sha256()));
            cdn.set_query(Some(&format!("X-Amz-Signature={SIGNATURE}")));
            answer
                .status(StatusCode::FOUND)
                .header("X-Linked-Etag", blob.etag())
                .header("X-Linked-Size", blob.bytes.len())
                .header(header::LOCATION, cdn.as_str())
        } else {
            let Tree { repo, commit, .. } = tree;
            let path = path.replace('/', "%2F");
            answer.status(StatusCode::TEMPORARY_REDIRECT).header(header::ETAG, blob.etag()).header(
                header::LOCATION,
                format!("{}/api/resolve-cache/models/{repo}/{commit}/{path}", self.prefix),
            )
        };
        answer.body(Body::empty()).expect("an answer")
    }

    fn cdn(&self, request: &Request) -> Answer {
        let fault = self.saw("cdn", request);
        if let Some(answer) = fault.as_ref().and_then(refusal) {
            return answer;
        }
        // Real storage refuses a request that authorizes itself twice.
        let signed = request.uri().query() == Some(&format!("X-Amz-Signature={SIGNATURE}"));
        if !signed || request.headers().contains_key(header::AUTHORIZATION) {
            return plain(400);
        }
        let tree = self.tree.lock().expect("no panic").clone();
        let sha256 = request.uri().path().split('/').nth(2).unwrap_or_default();
        match tree.files.values().find(|blob| blob.lfs && blob.sha256() == sha256) {
            Some(blob) => file(request, blob, &tree, fault.as_ref()),
            None => plain(403),
        }
    }

    /// Records the request, and says what is to go wrong with it.
    fn saw(&self, host: &'static str, request: &Request) -> Option<Fault> {
        let path = request.uri().path().to_owned();
        let mut rules = self.rules.lock().expect("no panic");
        let rule = rules
            .iter_mut()
            .find(|rule| rule.times > 0 && rule.host == host && path.ends_with(&rule.path_end));
        let fault = rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        self.seen.lock().expect("no panic").push(Seen {
            host,
            method: request.method().to_string(),
            path,
            query: request.uri().query().map(str::to_owned),
            authorization: header_text(request.headers(), "authorization"),
            range: header_text(request.headers(), "range"),
        });
        fault
    }
}

/// The answer of a fault that is not about a file's bytes.
fn refusal(fault: &Fault) -> Option<Answer> {
    let answer = match fault {
        Fault::Status { status, code, retry_after } => {
            let mut answer = Response::builder().status(*status);
            if let Some(code) = code {
                answer = answer.header("X-Error-Code", *code);
            }
            if let Some(seconds) = retry_after {
                answer = answer.header(header::RETRY_AFTER, *seconds);
            }
            answer.body(Body::empty())
        }
        Fault::Html => Response::builder()
            .header(header::CONTENT_TYPE, "text/html")
            .body(Body::from("<html><body>Please log in to this network.</body></html>")),
        Fault::Redirect(location) => Response::builder()
            .status(StatusCode::FOUND)
            .header(header::LOCATION, location)
            .body(Body::empty()),
        _ => return None,
    };
    Some(answer.expect("an answer"))
}

/// An error if the tree does not have the revision.
fn at(tree: &Tree, revision: &str) -> Option<Answer> {
    let known = tree.commit == revision || tree.refs.iter().any(|name| name == revision);
    (!known).then(|| error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}")))
}

fn model_info(tree: &Tree, blobs: bool) -> Answer {
    let sibling = |(path, blob): (&String, &Blob)| {
        if !blobs {
            return json!({"rfilename": path});
        }
        let size = tree.claimed_sizes.get(path).copied().unwrap_or(blob.bytes.len() as u64);
        let mut sibling = json!({"rfilename": path, "size": size, "blobId": blob.git_id()});
        if blob.lfs {
            sibling["lfs"] = json!({
                "sha256": blob.sha256(),
                "size": size,
                "pointerSize": blob.pointer().len(),
            });
        }
        sibling
    };
    json_answer(&json!({
        "_id": "0123456789abcdef01234567",
        "id": tree.repo,
        "modelId": tree.repo,
        "sha": tree.commit,
        "private": false,
        "gated": false,
        "disabled": false,
        "downloads": 7,
        "likes": 1,
        "tags": ["sentence-transformers", "safetensors"],
        "lastModified": "2024-01-02T03:04:05.000Z",
        "createdAt": "2024-01-02T03:04:05.000Z",
        "siblings": tree.files.iter().map(sibling).collect::<Vec<_>>(),
    }))
}

fn file_tree(tree: &Tree) -> Answer {
    let entry = |(path, blob): (&String, &Blob)| {
        let mut entry = json!({
            "type": "file",
            "path": path,
            "size": blob.bytes.len(),
            "oid": blob.git_id(),
        });
        if blob.lfs {
            entry["lfs"] = json!({
                "oid": blob.sha256(),
                "size": blob.bytes.len(),
                "pointerSize": blob.pointer().len(),
            });
        }
        entry
    };
    json_answer(&Value::Array(tree.files.iter().map(entry).collect()))
}

/// The bytes of a file, or the part that was asked for, or what the fault makes of them.
fn file(request: &Request, blob: &Blob, tree: &Tree, fault: Option<&Fault>) -> Answer {
    let size = blob.bytes.len();
    let answer = Response::builder()
        .header("X-Repo-Commit", &tree.commit)
        .header(header::ETAG, blob.etag())
        .header(header::ACCEPT_RANGES, "bytes");
    let range = header_text(request.headers(), "range").map(|range| {
        let (first, last) = range
            .strip_prefix("bytes=")
            .and_then(|bounds| bounds.split_once('-'))
            .expect("one range of bytes");
        let first: usize = first.parse().expect("a first byte");
        (first, last.parse().unwrap_or(usize::MAX).min(size.saturating_sub(1)))
    });
    let (status, first, last) = match (range, fault) {
        (None, _) | (_, Some(Fault::IgnoreRange | Fault::CutFromStart(_))) => {
            (200, 0, size.saturating_sub(1))
        }
        (Some(_), Some(Fault::WrongRange)) => (206, 0, size - 1),
        (Some(_), Some(Fault::NotSatisfiable)) => (416, 0, 0),
        (Some((first, _)), _) if first >= size => (416, 0, 0),
        (Some((first, last)), _) => (206, first, last),
    };
    let answer = answer.status(status);
    let answer = match status {
        416 => {
            return answer
                .header(header::CONTENT_RANGE, format!("bytes */{size}"))
                .body(Body::empty())
                .expect("an answer");
        }
        206 => answer.header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}")),
        _ => answer,
    };
    let mut part = blob.bytes.slice(first..size.min(last + 1));
    if matches!(fault, Some(Fault::Wrong)) {
        let mut wrong = part.to_vec();
        wrong[0] ^= 1;
        part = wrong.into();
    }
    let length = part.len();
    let (body, length) = match fault {
        _ if request.method() == Method::HEAD => (Body::empty(), Some(length)),
        Some(Fault::Cut(after) | Fault::CutFromStart(after)) => (cut(part.slice(..*after)), Some(length)),
        Some(Fault::Stall(after)) => {
            let stalled = stream::iter([Ok::<_, Infallible>(part.slice(..*after))]).chain(stream::pending());
            (Body::from_stream(stalled), Some(length))
        }
        Some(Fault::Longer(by)) => {
            let pieces = [part, Bytes::from(vec![0; *by])].map(Ok::<_, Infallible>);
            (Body::from_stream(stream::iter(pieces)), None)
        }
        Some(Fault::Shorter(by)) => {
            let pieces = [Ok::<_, Infallible>(part.slice(..length.saturating_sub(*by)))];
            (Body::from_stream(stream::iter(pieces)), None)
        }
        _ => (Body::from(part), Some(length)),
    };
    let answer = match length {
        Some(length) => answer.header(header::CONTENT_LENGTH, length),
        None => answer,
    };
    answer.body(body).expect("an answer")
}

/// Bytes, and then a broken connection.
fn cut(bytes: Bytes) -> Body {
    let pieces = [Ok(bytes), Err("cut")];
    Body::from_stream(stream::iter(pieces).then(|piece| async {
        if piece.is_err() {
            // Only a connection that had the time to send breaks in the middle.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        piece
    }))
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Response::builder()
        .status(status)
        .header("X-Error-Code", code)
        .header("X-Error-Message", message)
        .body(Body::from(json!({"error": message}).to_string()))
        .expect("an answer")
}

fn plain(status: u16) -> Answer {
    Response::builder().status(status).body(Body::empty()).expect("an answer")
}

fn json_answer(value: &Value) -> Answer {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .body(Body::from(value.to_string()))
        .expect("an answer")
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.to_str().expect("a header in ASCII").to_owned())
}

fn decoded(part: &str) -> String {
    url::form_urlencoded::parse(format!("part={part}").as_bytes())
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = b"0123456789abcdef";
    let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.map(|nibble| char::from(digits[usize::from(nibble)])).collect()
}
