//! A cache of Hugging Face's own libraries, which has some of a model or all of it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use embedding_server::fetch::{Cache, Fetched, fetch_offline, import};
use serde_json::json;

use crate::hub::{Tree, noise};
use crate::pickled::{fingerprint, repository, twin};
use crate::support::process::{Server, command};
use crate::{
    Bench, NEEDED, PLAIN, REPO, Recorder, WEIGHTS, assert_holds, closed_port, contents, manifest,
    plain_model, source, whole_manifest, write_tree,
};

const MODEL: &str = "models--test-org--tiny-model";

/// What `snapshot_download` leaves of these files of a tree.
fn fill(root: &Path, tree: &Tree, files: &[&str]) {
    let model = root.join(MODEL);
    for file in files {
        let blob = &tree.files[*file];
        let name = if blob.lfs { blob.sha256() } else { blob.git_id() };
        let (blobs, pointer) = (model.join("blobs"), model.join("snapshots").join(&tree.commit).join(file));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(pointer.parent().unwrap()).unwrap();
        std::fs::write(blobs.join(&name), &blob.bytes).unwrap();
        let up = "../".repeat(2 + file.split('/').count() - 1);
        symlink(format!("{up}blobs/{name}"), pointer).unwrap();
    }
    for name in &tree.refs {
        let note = model.join("refs").join(name);
        std::fs::create_dir_all(note.parent().unwrap()).unwrap();
        std::fs::write(note, &tree.commit).unwrap();
    }
}

/// The list that newer versions of the library keep.
fn fill_tree(root: &Path, tree: &Tree) {
    let files: BTreeMap<_, _> = tree
        .files
        .iter()
        .map(|(file, blob)| {
            let mut leaf = json!({"size": blob.bytes.len(), "blob_id": blob.git_id()});
            if blob.lfs {
                leaf["lfs_sha256"] = blob.sha256().into();
                leaf["lfs_size"] = blob.bytes.len().into();
            }
            (file, leaf)
        })
        .collect();
    let folder = root.join(MODEL).join("trees");
    std::fs::create_dir_all(&folder).unwrap();
    let json = json!({"format_version": 1, "files": files});
    std::fs::write(folder.join(format!("{}.json", tree.commit)), json.to_string()).unwrap();
}

/// The notes that somebody has asked for these files, and there were none.
fn fill_absent(root: &Path, tree: &Tree, files: &[&str]) {
    let absent = root.join(MODEL).join(".no_exist").join(&tree.commit);
    std::fs::create_dir_all(&absent).unwrap();
    for file in files {
        std::fs::write(absent.join(file), "").unwrap();
    }
}

fn all(tree: &Tree) -> Vec<&str> {
    tree.files.keys().map(String::as_str).collect()
}

/// A hub, a cache, and another cache.
struct Desk {
    bench: Bench,
    hf: PathBuf,
}

impl Desk {
    async fn new(tree: Tree) -> Self {
        let mut bench = Bench::new(tree).await;
        let hf = bench.directory.path().join("huggingface/hub");
        bench.cache = bench.cache.clone().reading(&hf);
        Self { bench, hf }
    }

    fn tree(&self) -> Tree {
        self.bench.hub.tree()
    }

    fn blob(&self, file: &str) -> PathBuf {
        let blob = &self.tree().files[file];
        let name = if blob.lfs { blob.sha256() } else { blob.git_id() };
        self.hf.join(MODEL).join("blobs").join(name)
    }

    /// Fetches `main`; which files the hub was asked for.
    async fn fetch(&self) -> (Fetched, Vec<String>) {
        self.bench.hub.requests();
        let fetched = self.bench.fetch("main").await.unwrap();
        let mut asked: Vec<String> = self
            .bench
            .hub
            .requests()
            .into_iter()
            .filter_map(|seen| {
                Some(seen.path.split_once("/resolve/")?.1.split_once('/')?.1.replace("%2F", "/"))
            })
            .collect();
        asked.sort();
        (fetched, asked)
    }

    async fn offline(&self, revision: &str) -> Option<Fetched> {
        let source = source(REPO, revision);
        let manifest = self.bench.manifest.as_ref();
        fetch_offline(&self.bench.cache, &source, manifest, &mut Recorder::default()).await.unwrap()
    }

    /// Everything in the other cache, with the times of change.
    fn state(&self) -> BTreeMap<String, (Vec<u8>, i64, i64)> {
        let time = |file: &str| {
            let found = std::fs::symlink_metadata(self.hf.join(file)).unwrap();
            (found.mtime(), found.mtime_nsec())
        };
        let all = contents(&self.hf).into_iter();
        all.map(|(file, bytes)| (file.clone(), (bytes, time(&file).0, time(&file).1))).collect()
    }
}

#[tokio::test]
async fn what_the_other_cache_has_is_not_asked_for() {
    let desk = Desk::new(plain_model(3 << 20)).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &PLAIN);
    let before = desk.state();
    let mut recorder = Recorder::default();
    let fetched = desk.bench.fetch_telling("main", &mut recorder).await.unwrap();
    assert_holds_linked(&fetched, &tree);
    assert_eq!(fetched.downloaded_bytes, 0);
    let asked: Vec<_> = desk.bench.hub.requests().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/api/models/test-org/tiny-model/revision/main"]);
    assert_eq!(recorder.events, ["resolved 012345 3 0", "finished 0"]);
    // Large files are there once, small ones are copies.
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&fetched.directory.join(WEIGHTS)), inode(&desk.blob(WEIGHTS)));
    assert_ne!(inode(&fetched.directory.join("config.json")), inode(&desk.blob("config.json")));
    assert!(desk.state() == before);

    // It is ours now, whatever becomes of the other one.
    std::fs::remove_dir_all(&desk.hf).unwrap();
    assert_holds_linked(&desk.bench.fetch(&tree.commit).await.unwrap(), &tree);
}

fn assert_holds_linked(fetched: &Fetched, tree: &Tree) {
    assert_holds(&fetched.directory, tree, &PLAIN);
}

#[tokio::test]
async fn what_it_lacks_or_has_damaged_comes_from_the_hub() {
    let other = |desk: &Desk| desk.blob(WEIGHTS);
    let damages: [(&str, fn(&Path)); 5] = [
        ("missing", |blob| std::fs::remove_file(blob).unwrap()),
        ("another byte", |blob| {
            let mut bytes = std::fs::read(blob).unwrap();
            bytes[1_000_000] ^= 1;
            std::fs::write(blob, bytes).unwrap();
        }),
        ("cut off", |blob| {
            std::fs::File::options().write(true).open(blob).unwrap().set_len(1000).unwrap();
        }),
        ("a folder", |blob| {
            std::fs::remove_file(blob).unwrap();
            std::fs::create_dir(blob).unwrap();
        }),
        ("a link in a circle", |blob| {
            std::fs::remove_file(blob).unwrap();
            symlink(blob, blob).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let desk = Desk::new(plain_model(2 << 20)).await;
        fill(&desk.hf, &desk.tree(), &PLAIN);
        damage(&other(&desk));
        let before = std::fs::read(other(&desk)).ok();
        let (fetched, asked) = desk.fetch().await;
        assert_eq!(asked, [WEIGHTS], "{name}");
        assert_holds(&fetched.directory, &desk.tree(), &PLAIN);
        assert_eq!(std::fs::read(other(&desk)).ok(), before, "{name}: the other cache stays as it is");
    }

    let desk = Desk::new(plain_model(10).with("config.json", r#"{"model_type": "bert"}"#)).await;
    fill(&desk.hf, &desk.tree(), &["config.json"]);
    assert_eq!(desk.fetch().await.1, [WEIGHTS, "tokenizer.json"]);
    // Nothing at all.
    let desk = Desk::new(plain_model(10)).await;
    assert_eq!(desk.fetch().await.1, PLAIN);
}

#[tokio::test]
async fn weights_of_another_commit_are_the_same_weights() {
    let desk = Desk::new(plain_model(2 << 20)).await;
    let mut old = desk.tree();
    old.commit = "a".repeat(40);
    old = old.with("config.json", r#"{"older": true}"#).with("tokenizer.json", r#"{"older": true}"#);
    fill(&desk.hf, &old, &PLAIN);
    let (fetched, asked) = desk.fetch().await;
    assert_eq!(asked, ["config.json", "tokenizer.json"]);
    assert_holds(&fetched.directory, &desk.tree(), &PLAIN);
}

#[tokio::test]
async fn links_that_lead_out_of_the_cache_are_not_followed() {
    // A file, a folder of blobs, the snapshot, the model: each is what it should be, but elsewhere.
    let moves: [fn(&Desk) -> PathBuf; 4] = [
        |desk| desk.blob(WEIGHTS),
        |desk| desk.hf.join(MODEL).join("blobs"),
        |desk| desk.hf.join(MODEL).join("snapshots").join(desk.tree().commit),
        |desk| desk.hf.join(MODEL),
    ];
    for (number, place) in moves.into_iter().enumerate() {
        let desk = Desk::new(plain_model(10)).await;
        fill(&desk.hf, &desk.tree(), &PLAIN);
        let outside = desk.bench.directory.path().join("outside");
        std::fs::rename(place(&desk), &outside).unwrap();
        symlink(&outside, place(&desk)).unwrap();
        assert!(std::fs::read(desk.hf.join(MODEL).join("blobs")).is_err());
        assert_eq!(desk.offline("main").await, None, "{number}");
        let (fetched, asked) = desk.fetch().await;
        // Blobs are found without the snapshot.
        let expected = [[WEIGHTS].as_slice(), &PLAIN, &[], &PLAIN][number];
        assert_eq!(asked, expected, "{number}");
        assert_holds(&fetched.directory, &desk.tree(), &PLAIN);
    }
    // The cache itself may be elsewhere.
    let desk = Desk::new(plain_model(10)).await;
    fill(&desk.hf, &desk.tree(), &PLAIN);
    let outside = desk.bench.directory.path().join("outside");
    std::fs::rename(&desk.hf, &outside).unwrap();
    symlink(&outside, &desk.hf).unwrap();
    assert_eq!(desk.fetch().await.1, [""; 0]);
}

#[tokio::test]
async fn nothing_is_written_into_what_is_linked() {
    let desk = Desk::new(plain_model(2 << 20)).await;
    let tree = desk.tree();
    let blob = desk.bench.directory.path().join("blob");
    let shorter = noise(5, 2000);
    for left in ["an earlier run's link", "the same, for an import"] {
        std::fs::write(&blob, &shorter).unwrap();
        let partial = desk.bench.partial(WEIGHTS);
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::hard_link(&blob, &partial).unwrap();
        if left.starts_with("an") {
            desk.bench.fetch(&tree.commit).await.unwrap();
        } else {
            let from = desk.bench.directory.path().join("from");
            write_tree(&tree, &from);
            let hashes = PLAIN.map(|file| (file, tree.sha256(file)));
            import(&desk.bench.cache, &source(REPO, &tree.commit), &from, &manifest(&hashes)).unwrap();
        }
        assert!(std::fs::read(&blob).unwrap() == shorter, "{left}");
        let complete = desk.bench.cache.find(&source(REPO, &tree.commit)).unwrap().unwrap();
        assert_holds(&complete, &tree, &PLAIN);
        std::fs::remove_dir_all(complete).unwrap();
    }
}

#[tokio::test]
async fn a_manifest_holds_for_what_is_taken_from_there() {
    let mut desk = Desk::new(Tree::sentence_model(REPO)).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &NEEDED);
    desk.bench.manifest = Some(whole_manifest(&tree));
    let (fetched, asked) = desk.fetch().await;
    assert_eq!(asked, [""; 0]);
    assert_holds(&fetched.directory, &tree, &NEEDED);
}

#[tokio::test]
async fn a_whole_snapshot_needs_no_hub() {
    for model in ["distilbert-dense", "bert-no-modules", "xlm-roberta-reranker"] {
        for known_by in ["the list", "what was not there"] {
            let desk = Desk::new(Tree::of_directory(REPO, &twin(model))).await;
            let tree = desk.tree();
            fill(&desk.hf, &tree, &all(&tree));
            let is_listed = known_by == "the list";
            if is_listed {
                fill_tree(&desk.hf, &tree);
            } else {
                let decisive = ["modules.json", "config_sentence_transformers.json"];
                let absent: Vec<_> =
                    decisive.into_iter().filter(|file| !tree.files.contains_key(*file)).collect();
                fill_absent(&desk.hf, &tree, &absent);
            }
            let before = desk.state();
            let by_branch =
                desk.offline("main").await.unwrap_or_else(|| panic!("{model}, known by {known_by}"));
            assert_eq!((by_branch.revision.as_str(), &by_branch.commit), ("main", &tree.commit));
            assert_eq!(fingerprint(&by_branch.directory), fingerprint(&twin(model)));
            let inode = || std::fs::metadata(by_branch.directory.join("config.json")).unwrap().ino();
            let once = inode();
            let by_commit = desk.offline(&tree.commit).await.unwrap();
            assert_eq!(by_commit, Fetched { revision: tree.commit.clone(), ..by_branch.clone() });
            assert_eq!(inode(), once, "a server may be reading it");
            assert_eq!(
                desk.bench.model_directory(),
                [format!(".lock-{0}", tree.commit), tree.commit.clone()]
            );
            // Only what the hub has listed needs no hub ever after.
            let ours = desk.bench.cache.find(&source(REPO, &tree.commit)).unwrap();
            assert_eq!(ours.is_some(), is_listed, "{model}");
            assert_eq!(desk.offline("other").await, None);
            assert!(desk.state() == before);
            assert_eq!(desk.bench.hub.requests(), []);
        }
    }
}

#[tokio::test]
async fn a_snapshot_of_pickles_becomes_safetensors_of_ours() {
    for model in ["distilbert-dense", "bert-sharded"] {
        let desk = Desk::new(repository(model)).await;
        let tree = desk.tree();
        fill(&desk.hf, &tree, &all(&tree));
        fill_tree(&desk.hf, &tree);
        let before = desk.state();
        let fetched = desk.offline("main").await.unwrap();
        assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin(model)));
        assert!(desk.state() == before);
        std::fs::remove_dir_all(fetched.directory).unwrap();
        let (fetched, asked) = desk.fetch().await;
        assert_eq!(asked, [""; 0]);
        assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin(model)));
    }
}

#[tokio::test]
async fn a_snapshot_that_may_be_of_another_model_is_not_used_without_the_hub() {
    let weights = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    // Which is there after every download of a repository, also after one that did not come to its end.
    let tree = Tree::of_directory(REPO, &twin("distilbert-dense")).with(".gitattributes", "");
    let without = |file: &str| all(&tree).into_iter().filter(|name| *name != file).collect::<Vec<_>>();
    for (name, files, lists) in [
        // As transformers leaves it, which does not ask for the modules.
        ("weights alone", weights.to_vec(), false),
        ("weights alone, and the list", weights.to_vec(), true),
        (
            "weights alone, and what is there of each whole repository",
            [weights.as_slice(), &[".gitattributes"]].concat(),
            false,
        ),
        ("without modules", without("modules.json"), false),
        ("without the tokenizer's settings", without("tokenizer_config.json"), false),
        ("without prompts", without("config_sentence_transformers.json"), false),
        ("without its length", without("sentence_bert_config.json"), false),
        ("without its pooling", without("1_Pooling/config.json"), false),
        ("without a module's weights", without("2_Dense/model.safetensors"), false),
        ("without weights", without("model.safetensors"), false),
        ("without a tokenizer, and the list", without("tokenizer.json"), true),
    ] {
        let desk = Desk::new(tree.clone()).await;
        fill(&desk.hf, &tree, &files);
        if lists {
            fill_tree(&desk.hf, &tree);
        }
        assert_eq!(desk.offline("main").await, None, "{name}");
        assert_eq!(desk.bench.cache.find(&source(REPO, &tree.commit)).unwrap(), None, "{name}");
        // With the hub it saves what it has.
        let (fetched, asked) = desk.fetch().await;
        assert!(!asked.iter().any(|file| files.contains(&file.as_str())), "{name}: {asked:?}");
        assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin("distilbert-dense")));
    }
    // A blob that is not what its name says, and files that nobody can verify.
    for damage in ["flipped", "plain"] {
        let desk = Desk::new(tree.clone()).await;
        fill(&desk.hf, &tree, &all(&tree));
        if damage == "flipped" {
            let mut bytes = std::fs::read(desk.blob("model.safetensors")).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(desk.blob("model.safetensors"), bytes).unwrap();
        } else {
            // As where links cannot be made.
            let snapshot = desk.hf.join(MODEL).join("snapshots").join(&tree.commit);
            std::fs::remove_dir_all(&snapshot).unwrap();
            write_tree(&tree, &snapshot);
            std::fs::remove_dir_all(desk.hf.join(MODEL).join("blobs")).unwrap();
        }
        assert_eq!(desk.offline("main").await, None, "{damage}");
        // Plain files with a list can be.
        if damage == "plain" {
            fill_tree(&desk.hf, &tree);
            assert!(desk.offline("main").await.is_some());
        }
    }
}

#[tokio::test]
async fn what_no_hub_has_listed_is_asked_for_again_when_there_is_one() {
    let mut desk = Desk::new(Tree::of_directory(REPO, &twin("distilbert-dense"))).await;
    let tree = desk.tree();
    let files: Vec<_> = all(&tree).into_iter().filter(|file| *file != "modules.json").collect();
    fill(&desk.hf, &tree, &files);
    fill_absent(&desk.hf, &tree, &["modules.json"]);
    for revision in ["main", &tree.commit] {
        let wrong = desk.offline(revision).await.unwrap();
        assert_ne!(fingerprint(&wrong.directory), fingerprint(&twin("distilbert-dense")));
        // Nor does a hub that does not answer make it ours.
        let endpoint = std::mem::replace(&mut desk.bench.settings.endpoint, closed_port().await);
        assert_eq!(desk.bench.fetch(revision).await.unwrap().directory, wrong.directory);
        desk.bench.settings.endpoint = endpoint;
        let right = desk.bench.fetch(revision).await.unwrap();
        assert_eq!(fingerprint(&right.directory), fingerprint(&twin("distilbert-dense")));
        assert_eq!(desk.offline(revision).await.unwrap().directory, right.directory);
        std::fs::remove_dir_all(right.directory).unwrap();
    }
    // What comes into the snapshot is not passed over.
    let before = desk.offline("main").await.unwrap();
    assert!(!before.directory.join("modules.json").exists());
    fill(&desk.hf, &tree, &["modules.json"]);
    let after = desk.offline("main").await.unwrap();
    assert_eq!(fingerprint(&after.directory), fingerprint(&twin("distilbert-dense")));
    // A manifest says which files there are, as the hub does.
    let ours = || desk.bench.cache.find(&source(REPO, &tree.commit)).unwrap();
    assert_eq!(ours(), None);
    let unneeded = ["mutations.json", "reference.json", "reference.safetensors"];
    let hashes: Vec<_> = all(&tree)
        .into_iter()
        .filter(|file| !unneeded.contains(file))
        .map(|file| (file, tree.sha256(file)))
        .collect();
    let source = source(REPO, &tree.commit);
    let manifest = manifest(&hashes);
    let whole = fetch_offline(&desk.bench.cache, &source, Some(&manifest), &mut Recorder::default()).await;
    assert_eq!(ours(), whole.unwrap().map(|whole| whole.directory));
    assert!(ours().is_some());
}

#[tokio::test]
async fn a_list_that_gives_no_hash_of_a_file_does_not_hide_it() {
    let desk = Desk::new(Tree::of_directory(REPO, &twin("distilbert-dense"))).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &all(&tree));
    fill_tree(&desk.hf, &tree);
    let list = desk.hf.join(MODEL).join("trees").join(format!("{}.json", tree.commit));
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    json["files"]["modules.json"]["blob_id"] = "../modules".into();
    std::fs::write(&list, json.to_string()).unwrap();
    assert_eq!(desk.offline("main").await, None);
}

#[tokio::test]
async fn a_note_of_a_commit_that_is_none_is_not_read_to_its_end() {
    let desk = Desk::new(Tree::of_directory(REPO, &twin("bert-no-modules"))).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &all(&tree));
    fill_tree(&desk.hf, &tree);
    let note = desk.hf.join(MODEL).join("refs/main");
    std::fs::remove_file(&note).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &note, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(desk.offline("main").await, None);
    std::fs::remove_file(&note).unwrap();
    std::fs::write(&note, format!("{}{}", tree.commit, " ".repeat(1 << 20))).unwrap();
    assert_eq!(desk.offline("main").await, None);
    std::fs::write(&note, format!("{}\n", tree.commit)).unwrap();
    assert!(desk.offline("main").await.is_some());
}

#[tokio::test]
async fn a_list_of_modules_that_is_too_large_to_be_one_is_not_fetched() {
    let desk = Desk::new(Tree::of_directory(REPO, &twin("distilbert-dense"))).await;
    desk.bench.hub.change(|tree| {
        tree.claimed_sizes.insert("modules.json".to_owned(), 65 << 20);
    });
    let why = desk.bench.failure("main").await;
    assert!(
        why.ends_with("modules.json has 65.00 MiB, more than the 64.00 MiB that such a file may have"),
        "{why}"
    );
}

#[tokio::test]
async fn a_hub_that_does_not_answer_is_stood_in_for() {
    let mut desk = Desk::new(Tree::of_directory(REPO, &twin("bert-no-modules"))).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &all(&tree));
    fill_tree(&desk.hf, &tree);
    desk.bench.settings.endpoint = closed_port().await;
    for revision in ["main", &tree.commit] {
        let fetched = desk.bench.fetch(revision).await.unwrap();
        assert_eq!((fetched.revision.as_str(), fetched.downloaded_bytes), (revision, 0));
        std::fs::remove_dir_all(fetched.directory).unwrap();
    }
    let error = desk.bench.fetch("other").await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    // What refuses is no hub that does not answer.
    desk.bench.settings.endpoint = desk.bench.hub.endpoint.clone();
    desk.bench.hub.require_token("another");
    assert!(desk.bench.fetch("main").await.unwrap_err().is_refused());
}

#[tokio::test]
async fn half_a_download_outlives_a_damaged_cache() {
    let desk = Desk::new(plain_model(2 << 20)).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &PLAIN);
    std::fs::write(desk.blob(WEIGHTS), noise(1, 2 << 20)).unwrap();
    desk.bench.write_partial(WEIGHTS, &tree.files[WEIGHTS].bytes[..1 << 20]);
    let fetched = desk.bench.fetch("main").await.unwrap();
    assert_eq!(fetched.downloaded_bytes, 1 << 20);
    assert_holds(&fetched.directory, &tree, &PLAIN);
}

#[tokio::test]
async fn making_room_leaves_the_other_cache_alone_and_what_cannot_come_removes_nothing() {
    let mut desk = Desk::new(Tree::of_directory(REPO, &twin("bert-no-modules"))).await;
    let tree = desk.tree();
    fill(&desk.hf, &tree, &all(&tree));
    let old = desk.bench.cache.root().join("models--org--old").join("a".repeat(40));
    std::fs::create_dir_all(&old).unwrap();
    desk.bench.cache = Cache::new(desk.bench.cache.root()).reading(&desk.hf).keeping([]);
    let before = desk.state();
    // Whether there are modules is not known.
    assert_eq!(desk.offline("main").await, None);
    assert!(old.exists());
    fill_tree(&desk.hf, &tree);
    std::fs::rename(desk.blob("model.safetensors"), desk.hf.join("aside")).unwrap();
    assert_eq!(desk.offline("main").await, None);
    assert!(old.exists());
    std::fs::rename(desk.hf.join("aside"), desk.blob("model.safetensors")).unwrap();
    assert!(desk.offline("main").await.is_some());
    assert!(!old.exists());
    let after = desk.state();
    assert!(before.iter().all(|(file, state)| after.get(file) == Some(state)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_library_itself_has_fetched_is_used() {
    let desk =
        Desk::new(Tree::of_directory(REPO, &twin("distilbert-dense")).with(".gitattributes", "")).await;
    desk.bench.hub.change(|tree| tree.refs.push("refs/pr/1".to_owned()));
    let report = crate::client_library(&desk.bench, "refs/pr/1").await;
    let tree = desk.tree();
    assert_eq!(report["snapshot_commit"], tree.commit);
    let hub = desk.bench.directory.path().join("hf/hub");
    // The layout of these tests is the library's.
    let mut ours = tree.clone();
    ours.refs = vec!["refs/pr/1".to_owned()];
    fill(&desk.hf, &ours, &all(&ours));
    fill_tree(&desk.hf, &ours);
    let of = |root: &Path| -> BTreeMap<String, Option<PathBuf>> {
        let all = contents(&root.join(MODEL)).into_keys();
        all.map(|file| (file.clone(), std::fs::read_link(root.join(MODEL).join(&file)).ok())).collect()
    };
    assert_eq!(of(&desk.hf), of(&hub));
    let json = |root: &Path| -> serde_json::Value {
        let path = root.join(MODEL).join("trees").join(format!("{}.json", tree.commit));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    assert_eq!(json(&desk.hf), json(&hub));

    let cache = Cache::new(desk.bench.directory.path().join("fresh")).reading(&hub);
    let source = source(REPO, "refs/pr/1");
    let fetched = fetch_offline(&cache, &source, None, &mut Recorder::default()).await.unwrap().unwrap();
    assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin("distilbert-dense")));
}

#[test]
fn a_server_without_a_network_serves_from_it_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let hub = folder.path().join("home/hub");
    let tree = Tree::of_directory(REPO, &twin("distilbert-dense"));
    fill(&hub, &tree, &all(&tree));
    let cache = folder.path().join("cache");
    let offline = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("HF_HOME", folder.path().join("home")).env("HF_HUB_OFFLINE", "1");
        command.arg("--cache-dir").arg(&cache).args(["--log-format", "json"]);
        command
    };
    let twin = format!("twin={}", twin("distilbert-dense").display());
    let named = format!("model={REPO}");
    let mut server = Server::spawn(&mut offline(&[
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--model",
        &named,
        "--model",
        &twin,
    ]));
    server.wait_for_health("healthy");
    let embed = |model: &str| {
        let answer = server.post("/embeddings", &json!({"texts": ["the cat sat"], "model": model})).json();
        answer["embeddings"].clone()
    };
    assert_eq!(embed("model"), embed("twin"));

    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::remove_file(hub.join(MODEL).join("snapshots").join(&tree.commit).join("modules.json")).unwrap();
    let output = offline(&["fetch", REPO]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains(
            "taking test-org/tiny-model from the Hugging Face cache: its snapshot may lack modules.json, which \
             decides on the vectors; get all of the repository (`hf download test-org/tiny-model`, with \
             huggingface_hub 1.22 or newer), or fetch it with a network"
        ),
        "{stderr}"
    );
    let last = stderr.lines().last().unwrap();
    assert_eq!(
        last,
        "error: test-org/tiny-model@main is not in the cache, and --offline forbids to fetch it"
    );
    let output = offline(&["fetch", REPO, "--hf-cache", ""]).output().unwrap();
    assert!(!String::from_utf8(output.stderr).unwrap().contains("Hugging Face cache"));
}
