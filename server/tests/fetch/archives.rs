//! Archives from a server that fails, and archives that mean harm.

use std::io::Write as _;
use std::path::Path;

use embedding_server::fetch::{Archive, Cache, Error, Fetched, Token, fetch_archive};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::hub::{FakeHub, Fault, Tree, hex, noise};
use crate::{Bench, REPO, Recorder, TOKEN, contents, quick, status, told};

/// As it is in an address: where a signature would be.
const QUERY: &str = "X-Amz-Signature=download-secret";
const PATH: &str = "/downloads/model.tar.gz";

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What `tar` makes of these files.
fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        append(&mut builder, name, EntryType::Regular, bytes);
    }
    builder.into_inner().unwrap()
}

/// One entry, under whatever name.
fn append(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(kind);
    if kind.is_symlink() || kind.is_hard_link() {
        header.set_link_name("/etc/passwd").unwrap();
    }
    if name.len() < 100 {
        // The crate's own setter refuses what these tests need.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    } else {
        builder.append_data(&mut header, name, bytes).unwrap();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const MODULES: &[u8] = br#"[{"path": ""}, {"path": "1_Pooling"}]"#;

/// A model, packed as `folder` says.
fn model(folder: &str) -> Vec<u8> {
    let weights = noise(7, 300_000);
    let files: [(&str, &[u8]); 9] = [
        ("1_Pooling/config.json", b"{}"),
        ("1_Pooling/pytorch_model.bin.txt", b"nobody needs this"),
        ("README.md", b"nor this"),
        ("config.json", br#"{"model_type": "bert"}"#),
        ("model.safetensors", &weights),
        ("modules.json", MODULES),
        ("onnx/model.onnx", b"nor this"),
        ("pytorch_model.bin", b"a pickle"),
        ("tokenizer.json", b"{}"),
    ];
    let names: Vec<_> = files.iter().map(|(name, _)| format!("{folder}{name}")).collect();
    let files: Vec<_> = names.iter().map(String::as_str).zip(files.iter().map(|(_, bytes)| *bytes)).collect();
    gzip(&tarball(&files))
}

const TAKEN: [&str; 5] =
    ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"];

struct Shop {
    bench: Bench,
    archive: Archive,
}

impl Shop {
    async fn with(packed: Vec<u8>) -> Self {
        let sha256 = sha256(&packed);
        let tree = Tree::new(REPO).with_download("model.tar.gz", packed);
        let mut bench = Bench::with(FakeHub::start(tree).await);
        bench.settings.token = Some(Token::from(TOKEN));
        let archive = Archive::new(&address(&bench.hub), &sha256).unwrap();
        Self { bench, archive }
    }

    async fn fetch(&self) -> Result<Fetched, Error> {
        self.fetch_telling(&mut Recorder::default()).await
    }

    async fn fetch_telling(&self, progress: &mut Recorder) -> Result<Fetched, Error> {
        let result = fetch_archive(&self.bench.cache, &self.archive, &self.bench.settings, progress).await;
        for seen in self.bench.hub.requests() {
            assert_eq!(seen.authorization, None, "a token went to an archive's host");
        }
        if let Err(error) = &result {
            let told = format!("{} {error:?}", told(error));
            assert!(!told.contains("download-secret") && !told.contains(TOKEN), "a secret is in {told}");
        }
        result
    }

    async fn failure(&self) -> String {
        let error = self.fetch().await.unwrap_err();
        assert!(!self.bench.cache.directory_of(&self.archive).exists());
        error.to_string().replace(self.bench.hub.endpoint.as_str(), "HUB/")
    }

    fn partial(&self) -> std::path::PathBuf {
        self.bench.cache.root().join("archives").join(format!(".partial-{}", self.archive.sha256()))
    }
}

fn address(hub: &FakeHub) -> String {
    format!("{}?{QUERY}", hub.endpoint.join(PATH).unwrap())
}

fn assert_unpacked(directory: &Path) {
    let mut found = contents(directory);
    assert!(found.remove(".fetched.json").is_some());
    assert_eq!(found.keys().collect::<Vec<_>>(), TAKEN);
    assert_eq!(found["model.safetensors"], noise(7, 300_000));
    assert_eq!(found["modules.json"], MODULES);
}

#[tokio::test]
async fn an_archive_is_unpacked_with_exactly_the_files_a_server_needs() {
    let shop = Shop::with(model("")).await;
    let size = shop.bench.hub.tree().downloads["model.tar.gz"].bytes.len();
    let mut recorder = Recorder::default();
    let fetched = shop.fetch_telling(&mut recorder).await.unwrap();
    let sha256 = shop.archive.sha256().to_owned();
    assert_eq!(
        fetched,
        Fetched {
            directory: shop.bench.cache.root().join("archives").join(&sha256),
            repo: shop.bench.hub.endpoint.join(PATH).unwrap().to_string(),
            revision: sha256.clone(),
            commit: sha256.clone(),
            files: TAKEN.len(),
            bytes: 300_000 + 2 + 22 + 2 + MODULES.len() as u64,
            downloaded_bytes: size as u64,
        }
    );
    assert_unpacked(&fetched.directory);
    let record = std::fs::read_to_string(fetched.directory.join(".fetched.json")).unwrap();
    assert!(record.contains(PATH) && !record.contains("secret"), "{record}");
    assert_eq!(
        recorder.events,
        [
            format!("resolved {} 1 {size}", &sha256[..6]),
            "started .archive.tar.gz 0".to_owned(),
            format!("finished {size}"),
        ]
    );
    assert!(!shop.partial().exists(), "neither the archive nor its folder is kept");

    // Once more: nobody is asked, wherever it is said to be.
    let elsewhere = Archive::new("http://127.0.0.1:9/other.tgz", &sha256.to_uppercase()).unwrap();
    let settings = &shop.bench.settings;
    let again =
        fetch_archive(&shop.bench.cache, &elsewhere, settings, &mut Recorder::default()).await.unwrap();
    assert_eq!((again.directory, again.downloaded_bytes), (fetched.directory, 0));
    assert!(shop.bench.hub.requests().is_empty());
}

#[tokio::test]
async fn a_folder_around_the_model_is_stripped() {
    for folder in ["minilm/", "./minilm/", "./"] {
        let shop = Shop::with(model(folder)).await;
        assert_unpacked(&shop.fetch().await.unwrap().directory);
    }
    // A name that needs a header of its own.
    let shop = Shop::with(model(&format!("{}/", "long".repeat(40)))).await;
    assert_unpacked(&shop.fetch().await.unwrap().directory);
    // Only one.
    let shop = Shop::with(model("a/b/")).await;
    assert_eq!(
        shop.failure().await,
        "choosing files of HUB/downloads/model.tar.gz: it has no config.json, which the server needs"
    );
}

#[tokio::test]
async fn what_tar_itself_makes_is_read() {
    for format in ["gnu", "pax", "ustar", "v7"] {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("größe");
        let folder = if matches!(format, "gnu" | "pax") { folder } else { directory.path().join("m") };
        std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
        for (file, bytes) in [
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("modules.json", MODULES.to_vec()),
            ("1_Pooling/config.json", b"{}".to_vec()),
            ("model.safetensors", noise(7, 300_000)),
        ] {
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        let output = std::process::Command::new("tar")
            .args(["--format", format, "-czf", "-", "-C"])
            .arg(directory.path())
            .arg(folder.file_name().unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let shop = Shop::with(output.stdout).await;
        assert_unpacked(&shop.fetch().await.unwrap().directory);
    }
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let shop = Shop::with(model("")).await;
    shop.bench.hub.fault("hub", PATH, 1, Fault::Cut(100_000));
    let progress = &mut Recorder::default();
    let fetched =
        fetch_archive(&shop.bench.cache, &shop.archive, &shop.bench.settings, progress).await.unwrap();
    assert_unpacked(&fetched.directory);
    let requests = shop.bench.hub.requests();
    let ranges: Vec<_> = requests.into_iter().map(|seen| (seen.query.unwrap(), seen.range)).collect();
    assert_eq!(ranges, [(QUERY.to_owned(), None), (QUERY.to_owned(), Some("bytes=100000-".to_owned()))]);
}

#[tokio::test]
async fn an_earlier_run_is_taken_up_and_a_whole_archive_needs_no_network() {
    let packed = model("");
    let shop = Shop::with(packed.clone()).await;
    std::fs::create_dir_all(shop.partial()).unwrap();
    std::fs::write(shop.partial().join(".archive.tar.gz"), &packed[..100_000]).unwrap();
    let fetched = shop.fetch().await.unwrap();
    assert_unpacked(&fetched.directory);
    assert_eq!(fetched.downloaded_bytes, packed.len() as u64 - 100_000);

    // It died while it unpacked.
    let shop = Shop::with(packed.clone()).await;
    std::fs::create_dir_all(shop.partial()).unwrap();
    std::fs::write(shop.partial().join(".archive.tar.gz"), &packed).unwrap();
    std::fs::write(shop.partial().join("model.safetensors"), "half").unwrap();
    let fetched = shop.fetch().await.unwrap();
    assert_unpacked(&fetched.directory);
    assert_eq!(fetched.downloaded_bytes, 0);
    assert!(shop.bench.hub.requests().is_empty());
}

#[tokio::test]
async fn servers_that_do_ranges_badly_or_tell_no_size_send_it_whole() {
    for fault in [
        Fault::IgnoreRange,
        Fault::NotSatisfiable,
        Fault::WrongRange,
        Fault::Shorter(0),
        Fault::Redirect("/downloads/other.tar.gz".to_owned()),
    ] {
        let packed = model("");
        let shop = Shop::with(packed.clone()).await;
        shop.bench.hub.change(|tree| {
            let blob = tree.downloads["model.tar.gz"].clone();
            tree.downloads.insert("other.tar.gz".to_owned(), blob);
        });
        std::fs::create_dir_all(shop.partial()).unwrap();
        std::fs::write(shop.partial().join(".archive.tar.gz"), &packed[..1000]).unwrap();
        shop.bench.hub.fault("hub", PATH, 1, fault.clone());
        let fetched = shop.fetch().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_unpacked(&fetched.directory);
    }
}

#[tokio::test]
async fn another_archive_than_the_hash_says_is_refused_the_second_time() {
    let mut shop = Shop::with(model("")).await;
    let found = shop.archive.sha256().to_owned();
    shop.archive = Archive::new(&address(&shop.bench.hub), &"ab".repeat(32)).unwrap();
    assert_eq!(
        shop.failure().await,
        format!(
            "verifying HUB/downloads/model.tar.gz: its sha256 is {found}, expected {}; check the address, and \
             the hash with `sha256sum FILE` where the archive was made",
            "ab".repeat(32)
        )
    );
    assert!(contents(&shop.partial()).is_empty());

    // Once is bad luck on the way.
    let shop = Shop::with(model("")).await;
    shop.bench.hub.fault("hub", PATH, 1, Fault::Wrong);
    assert_unpacked(&shop.fetch().await.unwrap().directory);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    for (fault, message, refused) in [
        (404, "asking for HUB/downloads/model.tar.gz: there is no such file; check the address", true),
        (
            403,
            "asking for HUB/downloads/model.tar.gz: access denied (status 403); archives are fetched without \
             credentials: give an address that needs none, or a current signed one",
            true,
        ),
        (503, "asking HUB: it answered with status 503; try again later", false),
    ] {
        let shop = Shop::with(model("")).await;
        shop.bench.hub.fault("hub", PATH, 9, status(fault, None));
        let error = shop.fetch().await.unwrap_err();
        let text = error.to_string().replace(shop.bench.hub.endpoint.as_str(), "HUB/");
        let text = text.replace(&shop.bench.hub.endpoint.origin().ascii_serialization(), "HUB");
        assert_eq!((text.as_str(), error.is_refused()), (message, refused));
    }
    let nobody = Archive::new(crate::closed_port().await.join("m.tgz").unwrap().as_str(), &"ab".repeat(32));
    let directory = tempfile::tempdir().unwrap();
    let settings = quick(&"http://hub.test".parse().unwrap());
    let cache = Cache::new(directory.path());
    let failed = fetch_archive(&cache, &nobody.unwrap(), &settings, &mut Recorder::default()).await;
    assert!(failed.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn what_is_no_archive_is_named_and_not_kept() {
    let whole = model("");
    let whole_tar = tarball(&[("config.json", &[0; 5000])]);
    let no_tar = "unpacking HUB/downloads/model.tar.gz: it is not a gzipped tar archive, or it is damaged; \
                  make one with `tar -czf model.tar.gz DIRECTORY`";
    for packed in [
        b"<html>log in</html>".to_vec(),
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        tarball(&[("config.json", b"{}")]),
        gzip(b"not a tar archive, but packed"),
        gzip(&noise(1, 5000)),
        gzip(&whole_tar[..3000]),
    ] {
        let shop = Shop::with(packed).await;
        assert_eq!(shop.failure().await, no_tar);
        assert!(contents(&shop.partial()).is_empty());
    }
    let shop = Shop::with(gzip(&tarball(&[]))).await;
    let lacking =
        "choosing files of HUB/downloads/model.tar.gz: it has no config.json, which the server needs";
    assert_eq!(shop.failure().await, lacking);
}

/// A good model after what is bad: nothing of it may be taken.
fn hostile(bad: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    bad(&mut builder);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        append(&mut builder, name, EntryType::Regular, b"{}");
    }
    gzip(&builder.into_inner().unwrap())
}

#[tokio::test]
async fn archives_that_mean_harm_are_refused_as_a_whole() {
    let of = |name: &'static str, kind| hostile(move |builder| append(builder, name, kind, b""));
    let deep = "x/".repeat(80) + "../../evil";
    let table: Vec<(Vec<u8>, &str)> = vec![
        (of("../evil", EntryType::Regular), "the name \"../evil\" leads out of it"),
        (of("a/../../evil", EntryType::Regular), "the name \"a/../../evil\" leads out of it"),
        (of("..", EntryType::Directory), "the name \"..\" leads out of it"),
        (of("/etc/evil", EntryType::Regular), "the name \"/etc/evil\" leads out of it"),
        (
            hostile(|builder| {
                append(builder, "././@LongLink", EntryType::GNULongName, deep.as_bytes());
                append(builder, "innocent", EntryType::Regular, b"");
            }),
            "leads out of it",
        ),
        (
            hostile(|builder| {
                builder.append_pax_extensions([("path", b"/etc/evil".as_slice())]).unwrap();
                append(builder, "innocent", EntryType::Regular, b"");
            }),
            "the name \"/etc/evil\" leads out of it",
        ),
        (
            of("1_Pooling", EntryType::Symlink),
            "it has the link \"1_Pooling\"; pack the files themselves: tar --dereference --hard-dereference",
        ),
        (of("vocab.txt", EntryType::Link), "it has the link \"vocab.txt\""),
        (of("null", EntryType::Char), "\"null\" is neither a plain file nor a folder"),
        (of("disk", EntryType::Block), "\"disk\" is neither a plain file nor a folder"),
        (of("pipe", EntryType::Fifo), "\"pipe\" is neither a plain file nor a folder"),
        (of("config.json", EntryType::Regular), "it has config.json twice"),
        (
            hostile(|builder| append(builder, "zeros", EntryType::Regular, &vec![0; 50_000_000])),
            "times its own size: not a model",
        ),
        (
            // Says that it is larger than anything; `Continuous` for the sake of it.
            hostile(|builder| {
                builder.append_pax_extensions([("size", b"18446744073709551615".as_slice())]).unwrap();
                append(builder, "huge", EntryType::Continuous, b"");
            }),
            "times its own size: not a model",
        ),
        (
            hostile(|builder| append(builder, "x", EntryType::GNULongName, &noise(3, 10_000))),
            "a name in it has more than 4096 bytes",
        ),
        (
            hostile(|builder| append(builder, "x", EntryType::XHeader, &noise(3, 2_000_000))),
            "a header in it has more than 1048576 bytes",
        ),
        (
            hostile(|builder| append(builder, "modules.json", EntryType::Regular, &noise(3, 17 << 20))),
            "modules.json in it has more than 16777216 bytes",
        ),
        (
            hostile(|builder| {
                for number in 0..10_000 {
                    // Names that do not pack well, or the ratio would be the reason.
                    let name = sha256(format!("{number}").as_bytes());
                    append(builder, &name, EntryType::Directory, b"");
                }
            }),
            "it has more than 10000 files and folders: not a model",
        ),
        (
            hostile(|builder| {
                builder.append_pax_extensions([("GNU.sparse.major", b"1".as_slice())]).unwrap();
                append(builder, "holes", EntryType::Regular, b"");
            }),
            "it has a sparse file; pack without --sparse",
        ),
    ];
    for (packed, message) in table {
        let shop = Shop::with(packed).await;
        let error = shop.failure().await;
        assert!(error.starts_with("unpacking HUB/downloads/model.tar.gz: "), "{error}, not {message}");
        assert!(error.contains(message), "{error}, not {message}");
        assert!(contents(&shop.partial()).is_empty());
        let beside: Vec<_> = contents(shop.bench.directory.path()).into_keys().collect();
        assert_eq!(beside, [format!("cache/archives/.lock-{}", shop.archive.sha256())]);
    }
}

#[tokio::test]
async fn names_that_are_no_plain_paths_are_passed_over() {
    let packed = hostile(|builder| {
        append(builder, "..\\evil", EntryType::Regular, b"x");
        append(builder, "C:evil", EntryType::Regular, b"x");
        append(builder, "new\nline", EntryType::Regular, b"x");
    });
    let shop = Shop::with(packed).await;
    let fetched = shop.fetch().await.unwrap();
    let found: Vec<_> = contents(&fetched.directory).into_keys().collect();
    assert_eq!(found, [".fetched.json", "config.json", "model.safetensors", "tokenizer.json"]);
}

#[tokio::test]
async fn pickled_weights_are_converted_and_no_pickle_stays() {
    let pickles = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles");
    let weights = std::fs::read(pickles.join("module-old.bin")).unwrap();
    let packed = |weights: &[u8]| {
        let files: [(&str, &[u8]); 3] =
            [("m/config.json", b"{}"), ("m/tokenizer.json", b"{}"), ("m/pytorch_model.bin", weights)];
        gzip(&tarball(&files))
    };
    let shop = Shop::with(packed(&weights)).await;
    let mut recorder = Recorder::default();
    let fetched = shop.fetch_telling(&mut recorder).await.unwrap();
    let mut found = contents(&fetched.directory);
    let record: serde_json::Value = serde_json::from_slice(&found.remove(".fetched.json").unwrap()).unwrap();
    assert!(found.remove("tensors.sha256.json").is_some());
    let expected = std::fs::read(pickles.join("module.safetensors")).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(found["model.safetensors"] == expected);
    assert_eq!(
        record["files"]["model.safetensors"]["converted_from"],
        serde_json::json!({"file": "pytorch_model.bin", "sha256": sha256(&weights)})
    );
    assert_eq!(recorder.events[2], format!("converted pytorch_model.bin {}", expected.len()));

    let shop = Shop::with(packed(b"pickle")).await;
    assert_eq!(
        shop.failure().await,
        "converting pytorch_model.bin of HUB/downloads/model.tar.gz to safetensors"
    );
    assert!(contents(&shop.partial()).is_empty(), "it will not be better the next time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fetches_at_once_download_once() {
    let shop = Shop::with(model("")).await;
    let (mut one, mut two) = (Recorder::default(), Recorder::default());
    let (one, two) = tokio::join!(shop.fetch_telling(&mut one), shop.fetch_telling(&mut two));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.directory, two.directory);
    assert_eq!([one.downloaded_bytes, two.downloaded_bytes].iter().filter(|bytes| **bytes == 0).count(), 1);
}
