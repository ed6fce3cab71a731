//! What goes before something comes, and what stays.

use std::fs::File;
use std::path::Path;

use embedding_server::fetch::{Archive, Place, fetch_archive};

use crate::{Bench, Recorder, WEIGHTS, contents, plain_model};

const OTHER: &str = "models--org--other";

fn commit(digit: char) -> String {
    String::from(digit).repeat(40)
}

fn write(root: &Path, file: &str, content: &str) {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Files of the cache that are not of the model that is fetched.
fn others(root: &Path) -> Vec<String> {
    let files = contents(root).into_keys();
    files.filter(|file| !file.starts_with("models--test-org") && !file.contains(".lock-")).collect()
}

/// A cache with much of what may be in one.
async fn full() -> Bench {
    let bench = Bench::new(plain_model(1000)).await;
    let root = bench.cache.root();
    for (file, content) in [
        (format!("{OTHER}/{}/config.json", commit('a')), "a"),
        (format!("{OTHER}/{}/1_Pooling/config.json", commit('a')), "a"),
        (format!("{OTHER}/{}/config.json", commit('b')), "b"),
        (format!("{OTHER}/.partial-{}/config.json", commit('c')), "c"),
        (format!("{OTHER}/refs/main"), &commit('a')),
        (format!("{OTHER}/refs/kept"), &commit('b')),
        (format!("archives/{}/config.json", "d".repeat(64)), "d"),
        (format!("archives/{}/config.json", "e".repeat(64)), "e"),
        (format!("archives/.partial-{}/.archive.tar.gz", "f".repeat(64)), "f"),
        // Not ours, wherever it is.
        ("models--org--other/notes/readme.txt".to_owned(), "kept"),
        ("lost+found/1".to_owned(), "kept"),
        (format!("somebody/{}/config.json", commit('a')), "kept"),
    ] {
        write(root, &file, content);
    }
    bench
}

fn places(keep: &[String]) -> Vec<Place> {
    keep.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn without_a_list_everything_stays() {
    let bench = full().await;
    let before = others(bench.cache.root());
    bench.fetch("main").await.unwrap();
    assert_eq!(others(bench.cache.root()), before);
}

#[tokio::test]
async fn only_what_is_wanted_or_kept_stays_and_what_is_not_ours() {
    let mut bench = full().await;
    let root = bench.cache.root().to_owned();
    // Not a folder of the cache but a link to one: not followed.
    let outside = bench.directory.path().join("outside");
    write(&outside, "config.json", "outside");
    std::os::unix::fs::symlink(&outside, root.join(OTHER).join(commit('9'))).unwrap();
    let keep = [format!("org/other@{}", commit('b')), format!("/models/archives/{}", "e".repeat(64))];
    bench.cache = bench.cache.clone().keeping(places(&keep));
    bench.write_partial(WEIGHTS, b"resumed");
    let fetched = bench.fetch("main").await.unwrap();
    assert!(fetched.directory.is_dir());
    assert_eq!(
        others(&root),
        [
            format!("archives/{}/config.json", "e".repeat(64)),
            "lost+found/1".to_owned(),
            format!("models--org--other/{}/config.json", commit('9')),
            format!("models--org--other/{}/config.json", commit('b')),
            "models--org--other/notes/readme.txt".to_owned(),
            "models--org--other/refs/kept".to_owned(),
            format!("somebody/{}/config.json", commit('a')),
        ]
    );
    assert!(outside.join("config.json").is_file());

    // The next revision of the same model, and then the archive: the first goes, with its ref.
    bench.hub.change(|tree| {
        tree.commit = commit('7');
        *tree = tree.clone().with_lfs(WEIGHTS, "new");
    });
    bench.fetch(&commit('7')).await.unwrap();
    assert!(!fetched.directory.exists());
    let model = bench.model_directory();
    assert!(model.contains(&commit('7')) && !model.contains(&fetched.commit), "{model:?}");
    assert!(contents(&root.join("models--test-org--tiny-model/refs")).is_empty());

    let archive = Archive::new("http://127.0.0.1:9/m.tgz", &"e".repeat(64)).unwrap();
    let settings = &bench.settings;
    // Nobody is there; what makes room has done so.
    fetch_archive(&bench.cache, &archive, settings, &mut Recorder::default()).await.unwrap_err();
    assert!(!bench.model_directory().contains(&commit('7')));
    assert!(root.join("archives").join("e".repeat(64)).is_dir());
}

#[tokio::test]
async fn a_model_that_is_here_already_makes_room_too() {
    let mut bench = full().await;
    let fetched = bench.fetch("main").await.unwrap();
    bench.cache = bench.cache.clone().keeping([]);
    bench.fetch(&fetched.commit).await.unwrap();
    assert!(fetched.directory.is_dir());
    assert!(!others(bench.cache.root()).iter().any(|file| file.starts_with("archives/")));
}

#[tokio::test]
async fn what_another_process_writes_stays() {
    let mut bench = full().await;
    let root = bench.cache.root().to_owned();
    let lock = File::create(root.join(OTHER).join(format!(".lock-{}", commit('c')))).unwrap();
    lock.lock().unwrap();
    bench.cache = bench.cache.clone().keeping([]);
    bench.fetch("main").await.unwrap();
    let partial = format!("models--org--other/.partial-{}/config.json", commit('c'));
    assert!(others(&root).contains(&partial));
    drop(lock);
    bench.fetch("main").await.unwrap();
    assert!(!others(&root).contains(&partial));
}

#[tokio::test]
async fn too_little_room_is_an_error_before_the_download() {
    let bench = Bench::new(plain_model(1000)).await;
    bench.hub.change(|tree| {
        tree.claimed_sizes.insert(WEIGHTS.to_owned(), 1 << 60);
    });
    let error = bench.failure("main").await;
    let partial = bench.partial("");
    let beginning =
        format!("fetching 1.15 EB into {}: only ", partial.to_str().unwrap().trim_end_matches('/'));
    assert!(error.starts_with(&beginning), "{error}");
    assert!(error.ends_with("make room, choose a larger volume, or another cache directory"), "{error}");
    assert!(bench.hub.requests().iter().all(|seen| seen.host == "hub" && !seen.path.contains("resolve")));
}
