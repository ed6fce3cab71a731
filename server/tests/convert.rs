//! What `torch.save` wrote becomes what safetensors would have written, and what somebody else wrote does no harm.
//!
//! `pickles/` is made by `scripts/pickle-fixtures`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use embedding_server::convert::{Conversion, Error, Written, target_name, write_index};
use proptest::prelude::*;
use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

mod support;

#[path = "convert/command.rs"]
mod command;
#[path = "convert/hostile.rs"]
mod hostile;

fn pickles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles")
}

/// All that are one file.
const FIXTURES: [&str; 10] = [
    "big-endian",
    "dtypes",
    "dtypes-old",
    "module",
    "module-old",
    "several",
    "strided",
    "strided-old",
    "tied",
    "tied-old",
];

fn convert(bin: &Path, target: &Path) -> Result<Written, Error> {
    Conversion::read(bin)?.write(target)?.finish()
}

/// Bytes as a file, and what becomes of it.
struct Desk {
    directory: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn bin(&self) -> PathBuf {
        self.directory.path().join("pytorch_model.bin")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("model.safetensors")
    }

    /// The safetensors file that the bytes become, or the error without the name of the directory.
    fn convert(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        std::fs::write(self.bin(), bytes).unwrap();
        self.again()
    }

    fn again(&self) -> Result<Vec<u8>, String> {
        match convert(&self.bin(), &self.target()) {
            Ok(_) => Ok(std::fs::read(self.target()).unwrap()),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() < 500, "{text}");
                let directory = format!("{}/", self.directory.path().display());
                Err(text.strip_prefix(&directory).expect("the error names the file").to_owned())
            }
        }
    }
}

#[test]
fn every_format_and_layout_becomes_the_file_that_safetensors_writes() {
    for name in FIXTURES {
        let same = match name {
            "big-endian" => "several",
            name => name.strip_suffix("-old").unwrap_or(name),
        };
        let expected = std::fs::read(pickles().join(format!("{same}.safetensors"))).unwrap();
        let desk = Desk::new();
        let bin = pickles().join(format!("{name}.bin"));
        let conversion = Conversion::read(&bin).unwrap();
        assert_eq!(conversion.size(), expected.len() as u64, "{name}");
        let written = convert(&bin, &desk.target()).unwrap();
        let found = std::fs::read(desk.target()).unwrap();
        assert!(found == expected, "{name} becomes other bytes");
        let sha256 = embedding_server::space::hex(&Sha256::digest(&found));
        assert_eq!(written, Written { bytes: found.len() as u64, sha256 }, "{name}");
    }
}

#[test]
fn a_model_that_was_pickled_becomes_the_model_that_it_was() {
    for (model, files) in [
        ("distilbert-dense", ["model", "2_Dense/model"].as_slice()),
        ("bert-sharded", &["model-00001-of-00003", "model-00002-of-00003", "model-00003-of-00003"]),
    ] {
        let desk = Desk::new();
        let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families").join(model);
        for file in files {
            let bin = file.replace("model", "pytorch_model") + ".bin";
            convert(&pickles().join(model).join(bin), &desk.target()).unwrap();
            let (found, expected) = [desk.target(), family.join(format!("{file}.safetensors"))]
                .map(|path| std::fs::read(path).unwrap())
                .into();
            let (found, expected) =
                (SafeTensors::deserialize(&found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
            assert_eq!(found.len(), expected.len(), "{file}");
            for (name, tensor) in expected.tensors() {
                assert_eq!(found.tensor(&name).unwrap(), tensor, "{name}");
            }
        }
    }
}

#[test]
fn what_is_converted_keeps_its_name() {
    for (bin, target) in [
        ("pytorch_model.bin", "model.safetensors"),
        ("2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        ("other.bin", "other.safetensors"),
    ] {
        assert_eq!(target_name(bin), target);
    }
}

/// A directory with the shards of a model, as pickles and converted.
fn shards() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(pickles().join("bert-sharded")).unwrap() {
        let (path, name) =
            (entry.as_ref().unwrap().path(), entry.unwrap().file_name().into_string().unwrap());
        let copy = directory.path().join(&name);
        std::fs::copy(path, &copy).unwrap();
        if name.strip_suffix(".bin").is_some() {
            convert(&copy, &directory.path().join(target_name(&name))).unwrap();
        }
    }
    directory
}

#[test]
fn an_index_is_made_of_what_the_shards_have() {
    let directory = shards();
    let bin_index = directory.path().join("pytorch_model.bin.index.json");
    let written = write_index(&bin_index).unwrap();
    let made = std::fs::read(directory.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(written.bytes, made.len() as u64);
    let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/bert-sharded");
    let published = std::fs::read(family.join("model.safetensors.index.json")).unwrap();
    let published: serde_json::Value = serde_json::from_slice(&published).unwrap();
    assert_eq!(made["weight_map"], published["weight_map"]);
    assert_eq!(made["metadata"], serde_json::json!({"total_size": published["metadata"]["total_size"]}));

    let told = |json: &str| {
        std::fs::write(&bin_index, json).unwrap();
        let error = write_index(&bin_index).unwrap_err().to_string();
        error.strip_prefix(&format!("{}: ", bin_index.display())).unwrap().to_owned()
    };
    let first = "pytorch_model-00001-of-00003.bin";
    for (json, problem) in [
        (
            format!(r#"{{"weight_map": {{"gone": "{first}"}}}}"#),
            format!("says that gone is in {first}, which does not have it"),
        ),
        (
            r#"{"weight_map": {"a": "../evil.bin"}}"#.to_owned(),
            "names ../evil.bin, which is no .bin file beside it".to_owned(),
        ),
        (
            r#"{"weight_map": {"a": "model.pt"}}"#.to_owned(),
            "names model.pt, which is no .bin file beside it".to_owned(),
        ),
        (
            r#"{"weight_map": {"a": "x\u001b[2J.bin"}}"#.to_owned(),
            "names x\\u{1b}[2J.bin, which is no .bin file beside it".to_owned(),
        ),
        (r#"{"weight_map": {}}"#.to_owned(), "names no file".to_owned()),
        (
            r#"{"weight_map": {"a": "a.bin", "b": "pytorch_a.bin"}}"#.to_owned(),
            "names a.bin and pytorch_a.bin, and both would become a.safetensors".to_owned(),
        ),
        (
            "[]".to_owned(),
            "not a valid index: invalid length 0, expected struct Index with 1 element at line 1 column 2"
                .to_owned(),
        ),
    ] {
        assert_eq!(told(&json), problem);
    }
    std::fs::copy(directory.path().join(target_name(first)), directory.path().join("twin.safetensors"))
        .unwrap();
    let twice = told(&format!(r#"{{"weight_map": {{"a": "{first}", "b": "twin.bin"}}}}"#));
    assert!(twice.starts_with("names two files with the tensor "), "{twice}");
    assert!(twice.ends_with(": model-00001-of-00003.safetensors, twin.safetensors"), "{twice}");
}

#[test]
fn a_target_is_whole_or_not_there_and_what_was_left_is_written_over() {
    let desk = Desk::new();
    let bin = pickles().join("strided.bin");
    let partial = desk.directory.path().join(".model.safetensors.partial");
    let begin = || Conversion::read(&bin).unwrap().write(&desk.target());

    let mut writing = begin().unwrap();
    assert!(writing.step().unwrap().is_some());
    assert!(partial.exists() && !desk.target().exists());
    assert!(matches!(begin().unwrap_err(), Error::Busy { .. }));
    drop(writing);
    assert!(!partial.exists() && !desk.target().exists(), "nothing stays of what was dropped");

    // As after a power failure.
    std::fs::write(&partial, vec![7; 100_000]).unwrap();
    std::fs::write(desk.target(), "an older one").unwrap();
    let mut writing = begin().unwrap();
    let mut steps = Vec::new();
    while let Some(written) = writing.step().unwrap() {
        steps.push(written);
    }
    assert!(steps.is_sorted() && steps.last() == Some(&writing.size()), "{steps:?}");
    assert_eq!(std::fs::read(desk.target()).unwrap(), b"an older one");
    writing.finish().unwrap();
    let expected = std::fs::read(pickles().join("strided.safetensors")).unwrap();
    assert!(std::fs::read(desk.target()).unwrap() == expected);
    assert!(!partial.exists());

    let nowhere =
        Conversion::read(&bin).unwrap().write(Path::new("/not/there/model.safetensors")).unwrap_err();
    assert_eq!(nowhere.to_string(), "/not/there/model.safetensors: cannot be written");
    let error = Conversion::read(Path::new("/not/there/pytorch_model.bin")).unwrap_err();
    assert_eq!(error.to_string(), "/not/there/pytorch_model.bin: cannot be read");
}

#[test]
fn nothing_is_written_through_what_has_the_name_of_the_unfinished_file() {
    let targets = ["model.safetensors", "model.safetensors.index.json"];
    let odd = ["link", "link to nothing", "hard link", "pipe", "folder"];
    for (what, target) in odd.iter().flat_map(|what| targets.map(|target| (*what, target))) {
        let directory = shards();
        let at = |name: &str| directory.path().join(name);
        let name = &format!(".{target}.partial");
        std::fs::write(at("precious"), "mine").unwrap();
        match what {
            "link" => symlink("precious", at(name)).unwrap(),
            "link to nothing" => symlink("nothing", at(name)).unwrap(),
            "hard link" => std::fs::hard_link(at("precious"), at(name)).unwrap(),
            "pipe" => rustix::fs::mkfifoat(rustix::fs::CWD, at(name), rustix::fs::Mode::RWXU).unwrap(),
            _ => std::fs::create_dir(at(name)).unwrap(),
        }
        let result = match target {
            "model.safetensors" => convert(&pickles().join("strided.bin"), &at(target)),
            _ => write_index(&at("pytorch_model.bin.index.json")),
        };
        let Err(Error::Write { path, source }) = result else { panic!("{what}: {result:?}") };
        assert_eq!(path, at(target), "{what}");
        assert_eq!(source.to_string(), format!("{name}, beside it, is no plain file; remove it"), "{what}");
        assert_eq!(std::fs::read(at("precious")).unwrap(), b"mine", "{what}");
        assert!(!at("nothing").exists() && !at(target).exists(), "{what}");
        assert!(at(name).symlink_metadata().is_ok(), "{what}: it is not ours to remove");
    }
}

#[test]
fn a_link_of_the_name_of_the_target_is_replaced_and_not_followed() {
    for to in ["precious", "nothing"] {
        let desk = Desk::new();
        let at = |name: &str| desk.directory.path().join(name);
        std::fs::write(at("precious"), "mine").unwrap();
        symlink(to, desk.target()).unwrap();
        convert(&pickles().join("strided.bin"), &desk.target()).unwrap();
        assert!(desk.target().symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read(at("precious")).unwrap(), b"mine");
        assert!(!at("nothing").exists());
    }
}

#[test]
fn only_what_the_same_pickle_has_become_is_replaced_where_that_is_asked_for() {
    let desk = Desk::new();
    let again = || Conversion::read(&pickles().join("strided.bin"))?.write_beside(&desk.target())?.finish();
    let first = again().unwrap();
    assert_eq!(again().unwrap(), first);
    let whole = std::fs::read(desk.target()).unwrap();
    let mut tuned = whole.clone();
    *tuned.last_mut().unwrap() ^= 1;
    let mut renamed = whole.clone();
    renamed[12] ^= 1;
    for other in [&tuned, &renamed, &whole[..whole.len() - 1], &[whole.as_slice(), b"1"].concat(), b""] {
        std::fs::write(desk.target(), other).unwrap();
        let error = again().unwrap_err();
        assert!(error.is_refusal());
        assert_eq!(
            error.to_string(),
            format!(
                "{}: is there already and is not what strided.bin becomes; move one of the two away",
                desk.target().display()
            )
        );
        assert!(std::fs::read(desk.target()).unwrap() == *other);
        assert!(!desk.directory.path().join(".model.safetensors.partial").exists());
    }
}

/// Whatever the bytes are, they become a safetensors file that is not much larger, or one line of text.
fn survives(desk: &Desk, length: usize) -> bool {
    let write = || -> Result<_, Error> {
        let mut writing = Conversion::read(&desk.bin())?.write(&desk.target())?;
        while writing.step()?.is_some() {}
        Ok(writing)
    };
    match write() {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 500, "{text}");
            false
        }
        // Not finished: to put thousands of files on the disk takes minutes.
        Ok(_writing) => {
            let made = std::fs::read(desk.directory.path().join(".model.safetensors.partial")).unwrap();
            SafeTensors::deserialize(&made).unwrap();
            assert!(made.len() <= 8 * length + 100_000, "{} bytes of {length}", made.len());
            true
        }
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    for name in FIXTURES {
        let desk = Desk::new();
        let bytes = std::fs::read(pickles().join(format!("{name}.bin"))).unwrap();
        std::fs::write(desk.bin(), &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(desk.bin()).unwrap();
        // The rows of large storages are alike.
        let step = if bytes.len() > 10_000 { 37 } else { 1 };
        for length in (0..bytes.len()).rev().step_by(step) {
            file.set_len(length as u64).unwrap();
            assert!(!survives(&desk, length), "{name} is taken after {length} bytes");
        }
    }
}

#[test]
fn no_flipped_bit_does_harm() {
    for name in FIXTURES {
        let desk = Desk::new();
        let mut bytes = std::fs::read(pickles().join(format!("{name}.bin"))).unwrap();
        let step = if bytes.len() > 10_000 { 101 } else { 1 };
        let (mut taken, mut refused) = (0, 0);
        for place in (0..bytes.len()).step_by(step) {
            let bit = 1 << (place * 3 % 8);
            bytes[place] ^= bit;
            std::fs::write(desk.bin(), &bytes).unwrap();
            *(if survives(&desk, bytes.len()) { &mut taken } else { &mut refused }) += 1;
            bytes[place] ^= bit;
        }
        // In the numbers of a tensor every bit is as good as the other.
        assert!(taken > 0 && refused > 0, "{name}: {taken} taken, {refused} refused");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_do_harm(
        fixture in prop::sample::select(&FIXTURES[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..40, 0usize..9), 1..6),
    ) {
        let mut bytes = std::fs::read(pickles().join(format!("{fixture}.bin"))).unwrap();
        // One byte becomes some of another: overwritten, inserted or removed.
        for (place, byte, inserted, removed) in changes {
            let place = place.index(bytes.len());
            let end = bytes.len().min(place + removed);
            bytes.splice(place..end, std::iter::repeat_n(byte, inserted));
            if bytes.is_empty() {
                bytes.push(byte);
            }
        }
        let desk = Desk::new();
        std::fs::write(desk.bin(), &bytes).unwrap();
        survives(&desk, bytes.len());
    }
}
