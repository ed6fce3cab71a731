//! Pickles and archives that nobody's `torch.save` wrote.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::support::process::Memory;
use crate::{Desk, survives};

/// A pickle, put together by hand.
#[derive(Clone, Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        self.raw(b"X").raw(&length).raw(text.as_bytes())
    }

    fn number(self, number: i64) -> Self {
        self.raw(b"\x8a\x08").raw(&number.to_le_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    fn sizes(self, sizes: &[i64]) -> Self {
        sizes.iter().fold(self.raw(b"("), |pickle, size| pickle.number(*size)).raw(b"t")
    }

    fn storage(self, class: &str, key: &str, numbers: i64) -> Self {
        self.raw(b"(").text("storage").global("torch", class).text(key).text("cpu").number(numbers).raw(b"tQ")
    }

    fn tensor(self, class: &str, numbers: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        let arguments =
            self.global("torch._utils", "_rebuild_tensor_v2").raw(b"(").storage(class, "0", numbers);
        let hooks = arguments
            .number(offset)
            .sizes(shape)
            .sizes(strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict");
        hooks.raw(b")RtR")
    }

    fn dict(self, name: &str, value: impl FnOnce(Self) -> Self) -> Self {
        value(self.raw(b"}").text(name)).raw(b"s.")
    }
}

/// How an archive is, where it is not as `torch.save` writes it.
#[derive(Default)]
struct Odd {
    /// Sizes and places in 64 bits, as in an archive of more than 4 GiB.
    large: bool,
    /// The kind of compression that the directory claims.
    method: u16,
    encrypted: bool,
    /// What is subtracted from where the second entry is said to begin.
    earlier: u32,
    /// Other names in front of the entries than in the directory.
    renamed: bool,
}

fn zip(entries: &[(&str, &[u8])], odd: &Odd) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    let (flags, method) = (u16::from(odd.encrypted), odd.method);
    for (number, (name, bytes)) in entries.iter().enumerate() {
        let (start, size) = (archive.len() as u32, bytes.len() as u32);
        let start = if number == 1 { start - odd.earlier } else { start };
        let own_name = if odd.renamed { name.to_uppercase() } else { (*name).to_owned() };
        let head = |signature: &[u8], size: u32, extra: u16| {
            let mut head = signature.to_vec();
            head.extend([20u16, flags, method, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
            head.extend([0, size, size].iter().flat_map(|field| field.to_le_bytes()));
            head.extend([name.len() as u16, extra].iter().flat_map(|field| field.to_le_bytes()));
            head
        };
        archive.extend(head(b"PK\x03\x04", size, 0));
        archive.extend(own_name.bytes());
        archive.extend_from_slice(bytes);
        let (said, at, extra) = if odd.large { (u32::MAX, u32::MAX, 28) } else { (size, start, 0) };
        directory.extend(head(b"PK\x01\x02\x14\x00", said, extra));
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.bytes());
        if odd.large {
            directory.extend(b"\x01\x00\x18\x00");
            directory.extend([size, size, start].iter().flat_map(|field| u64::from(*field).to_le_bytes()));
        }
    }
    let (start, size, count) = (archive.len() as u64, directory.len() as u64, entries.len() as u64);
    archive.extend(directory);
    if odd.large {
        let end = archive.len() as u64;
        archive.extend(b"PK\x06\x06");
        archive.extend(44u64.to_le_bytes());
        archive.extend([0; 12]);
        archive.extend([count, count, size, start].iter().flat_map(|field| field.to_le_bytes()));
        archive.extend(b"PK\x06\x07\x00\x00\x00\x00");
        archive.extend(end.to_le_bytes());
        archive.extend(b"\x01\x00\x00\x00");
        archive.extend(b"PK\x05\x06\x00\x00\x00\x00");
        archive.extend([0xff; 12]);
    } else {
        archive.extend(b"PK\x05\x06\x00\x00\x00\x00");
        archive.extend([count as u16, count as u16].iter().flat_map(|field| field.to_le_bytes()));
        archive.extend([size as u32, start as u32].iter().flat_map(|field| field.to_le_bytes()));
    }
    archive.extend([0, 0]);
    archive
}

/// An archive of a pickle and of a storage of 16 bytes.
fn file(pickle: &Pickle) -> Vec<u8> {
    zip(&[("m/data.pkl", &pickle.0), ("m/data/0", &[1; 16])], &Odd::default())
}

fn good() -> Pickle {
    Pickle::new().dict("a", |pickle| pickle.tensor("FloatStorage", 4, 0, &[2, 2], &[2, 1]))
}

/// The error of a file, without the file's name.
fn refusal(bytes: &[u8]) -> String {
    let error = Desk::new().convert(bytes).unwrap_err();
    error.strip_prefix("pytorch_model.bin: ").unwrap().to_owned()
}

#[test]
fn what_is_put_together_by_hand_here_is_as_torch_does_it() {
    let desk = Desk::new();
    let expected = desk.convert(&file(&good())).unwrap();
    let entries: [(&str, &[u8]); 2] = [("m/data.pkl", &good().0), ("m/data/0", &[1; 16])];
    let large = zip(&entries, &Odd { large: true, ..Odd::default() });
    assert!(desk.convert(&large).unwrap() == expected, "with sizes of 64 bits");
}

#[test]
fn what_is_no_part_of_a_tensor_is_refused_by_its_name() {
    let call = |module: &str, name: &str| {
        Pickle::new().dict("a", |pickle| pickle.global(module, name).raw(b"(").text("id").raw(b"tR"))
    };
    // The same, deep within a tensor: in the hooks that nobody looks at.
    let nested = Pickle::new().dict("a", |pickle| {
        let tensor =
            pickle.global("torch._utils", "_rebuild_tensor_v2").raw(b"(").storage("FloatStorage", "0", 4);
        tensor
            .number(0)
            .sizes(&[4])
            .sizes(&[1])
            .raw(b"\x89")
            .global("os", "system")
            .raw(b"(")
            .text("id")
            .raw(b"tRtR")
    });
    let plain = |value: fn(Pickle) -> Pickle| Pickle::new().dict("a", value);
    let no_part = |name: &str| format!("names {name}, which is no part of a tensor");
    let more = |what: &str| {
        format!(
            "holds more than a dictionary of tensors: a is {what}; save the weights alone, as \
             torch.save(model.state_dict(), FILE) does"
        )
    };
    let instruction = |byte: &str, place: usize| {
        format!("has the instruction 0x{byte} at byte {place} of its pickle, which torch.save does not write")
    };
    for (pickle, problem) in [
        (call("os", "system"), no_part("os.system")),
        (call("posix", "system"), no_part("posix.system")),
        (call("builtins", "eval"), no_part("builtins.eval")),
        (call("__builtin__", "getattr"), no_part("__builtin__.getattr")),
        (call("torch", "load"), no_part("torch.load")),
        (call("torch.storage", "_load_from_bytes"), no_part("torch.storage._load_from_bytes")),
        (call("torch._utils", "_rebuild_tensor_v3"), no_part("torch._utils._rebuild_tensor_v3")),
        (call("torch", "ComplexFloatStorage"), no_part("torch.ComplexFloatStorage")),
        (call("a\rb", "c\u{1b}[2J"), no_part("a\\rb.c\\u{1b}[2J")),
        (call(&"x".repeat(1000), "y"), no_part(&("x".repeat(100) + "…"))),
        (call(&"x".repeat(2000), "y"), "names something in its pickle without an end".to_owned()),
        (nested, no_part("os.system")),
        (plain(|p| p.global("torch", "FloatStorage").raw(b")R")), "has a storage that is called".to_owned()),
        (plain(|p| p.number(1).raw(b")R")), "calls a number, which makes no tensor".to_owned()),
        (plain(|p| p.raw(b"N)R")), "calls None, which makes no tensor".to_owned()),
        (plain(|p| p.raw(b"N}b")), "sets the state of None".to_owned()),
        (
            plain(|p| p.tensor("FloatStorage", 4, 0, &[4], &[1]).raw(b"}b")),
            "sets the state of a tensor".to_owned(),
        ),
        (plain(|p| p.number(7)), more("a number")),
        (plain(|p| p.text("x")), more("a text")),
        (plain(|p| p.raw(b"}")), more("a dictionary")),
        (plain(|p| p.storage("FloatStorage", "0", 4)), more("a storage")),
        (plain(|p| p.global("collections", "OrderedDict")), more("a class or function")),
        (plain(|p| p.text("pid").raw(b"Q")), "refers to something that is no storage of a tensor".to_owned()),
        (Pickle::new().raw(b"]."), "holds a list, and no dictionary of tensors".to_owned()),
        (Pickle::new().raw(b"}."), "has no tensor".to_owned()),
        (Pickle::new().raw(b"}K\x01K\x02s."), "has a number for the name of a tensor".to_owned()),
        (Pickle(b"\x80\x04}.".to_vec()), "is pickled by protocol 4; torch.save's is 2".to_owned()),
        // STACK_GLOBAL, INST, OBJ, NEWOBJ, EXT1, INT, FRAME.
        (Pickle::new().raw(b"\x93"), instruction("93", 2)),
        (Pickle::new().raw(b"(ios\nsystem\n"), instruction("69", 3)),
        (Pickle::new().raw(b"(o"), instruction("6f", 3)),
        (Pickle::new().raw(b"N)\x81"), instruction("81", 4)),
        (Pickle::new().raw(b"\x82\x01"), instruction("82", 2)),
        (Pickle::new().raw(b"I1\n"), instruction("49", 2)),
        (Pickle::new().raw(b"\x95\x00"), instruction("95", 2)),
    ] {
        let found = refusal(&file(&pickle));
        if problem == "has a storage that is called" {
            assert_eq!(found, "calls a class or function, which makes no tensor");
        } else {
            assert_eq!(found, problem);
        }
    }
}

#[test]
fn instructions_that_miss_their_values_are_refused() {
    let misses = "has a pickle with an instruction that misses its values";
    for bytes in [
        b".".as_slice(),
        b"t",
        b"R",
        b"a",
        b"(N.",
        b"N(R",
        b"\x85",
        b"(\x85",
        b"(Q",
        b"q\x00",
        b"h\x00",
        b"h\xff",
        b"j\xff\xff\xff\xff",
        b"Na",
        b"N(NNe",
        b"}Ns",
        b"}(NNNu",
        b"N(NNu",
        b"b",
        b"u",
    ] {
        assert_eq!(refusal(&file(&Pickle::new().raw(bytes))), misses, "{bytes:?}");
    }
    for bytes in [b"".as_slice(), b"X", b"X\x05\x00\x00\x00abc", b"\x8a\x04\x01", b"G1234567", b"K", b"}"] {
        assert_eq!(refusal(&file(&Pickle::new().raw(bytes))), "has a pickle that ends early", "{bytes:?}");
    }
    for (bytes, problem) in [
        (
            b"X\xff\xff\xff\xff".as_slice(),
            "has a text of 4294967295 bytes in its pickle; names have at most 1024",
        ),
        (b"X\x01\x00\x00\x00\xff", "has a text in its pickle that is no UTF-8"),
        (b"\x8a\x0a0123456789", "has a number of 10 bytes in its pickle, which no size of a tensor takes"),
        (b"cos\nsy", "names something in its pickle without an end"),
    ] {
        assert_eq!(refusal(&file(&Pickle::new().raw(bytes))), problem);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let strange = "makes a tensor of something strange";
    let leaves = "has a tensor a that leaves its storage";
    let other = |said: &str| format!("has a storage 0 of 16 bytes, but its pickle says {said}");
    let (max, half) = (i64::MAX, 1 << 62);
    for (class, numbers, offset, shape, strides, problem) in [
        ("FloatStorage", 5, 0, vec![4], vec![1], other("5 numbers of 4 bytes")),
        ("DoubleStorage", 4, 0, vec![4], vec![1], other("4 numbers of 8 bytes")),
        ("FloatStorage", max, 0, vec![4], vec![1], other("9223372036854775807 numbers of 4 bytes")),
        ("FloatStorage", half, 0, vec![4], vec![1], other("4611686018427387904 numbers of 4 bytes")),
        ("FloatStorage", -1, 0, vec![4], vec![1], "has a storage of -1 numbers".to_owned()),
        ("FloatStorage", 4, 1, vec![4], vec![1], leaves.to_owned()),
        ("FloatStorage", 4, max, vec![1], vec![1], leaves.to_owned()),
        ("FloatStorage", 4, -1, vec![4], vec![1], strange.to_owned()),
        ("FloatStorage", 4, 0, vec![5], vec![1], leaves.to_owned()),
        ("FloatStorage", 4, 0, vec![2, 2], vec![3, 1], leaves.to_owned()),
        ("FloatStorage", 4, 0, vec![2, 2], vec![max, 1], leaves.to_owned()),
        ("FloatStorage", 4, 0, vec![max, max], vec![0, 0], leaves.to_owned()),
        ("FloatStorage", 4, 0, vec![half, 4, 4], vec![0, 0, 0], leaves.to_owned()),
        ("FloatStorage", 4, 0, vec![-1], vec![1], strange.to_owned()),
        ("FloatStorage", 4, 0, vec![4], vec![-1], strange.to_owned()),
        ("FloatStorage", 4, 0, vec![2, 2], vec![1], strange.to_owned()),
        ("FloatStorage", 4, 0, vec![1; 17], vec![1; 17], strange.to_owned()),
        (
            "FloatStorage",
            4,
            0,
            vec![1 << 40],
            vec![0],
            "would become more than 8 times as large as it is: not a model".to_owned(),
        ),
        (
            "FloatStorage",
            4,
            0,
            vec![max, max, max, 0],
            vec![1, 1, 1, 1],
            "has tensors that no safetensors file can hold: Tensor invalid info".to_owned(),
        ),
    ] {
        let pickle =
            Pickle::new().dict("a", |pickle| pickle.tensor(class, numbers, offset, &shape, &strides));
        let found = refusal(&file(&pickle));
        if problem.starts_with("has tensors that no") {
            assert!(found.starts_with("has tensors that no safetensors file can hold: "), "{found}");
        } else {
            assert_eq!(found, problem, "{class} {numbers} {offset} {shape:?} {strides:?}");
        }
    }
    let twice = Pickle::new()
        .raw(b"}(")
        .text("a")
        .tensor("FloatStorage", 4, 0, &[4], &[1])
        .text("a")
        .tensor("FloatStorage", 4, 0, &[4], &[1])
        .raw(b"u.");
    assert_eq!(refusal(&file(&twice)), "has a tensor a twice");
    let reserved =
        Pickle::new().dict("__metadata__", |pickle| pickle.tensor("FloatStorage", 4, 0, &[4], &[1]));
    assert_eq!(
        refusal(&file(&reserved)),
        "has a tensor __metadata__ of a name that safetensors has for something else"
    );
    let negated = Pickle::new().dict("a", |pickle| {
        let tensor =
            pickle.global("torch._utils", "_rebuild_tensor_v2").raw(b"(").storage("FloatStorage", "0", 4);
        tensor.number(0).sizes(&[4]).sizes(&[1]).raw(b"\x89N}").text("neg").raw(b"\x88stR")
    });
    assert_eq!(
        refusal(&file(&negated)),
        "has a tensor that is conjugated, negated or otherwise not as it is stored"
    );
}

#[test]
fn a_dictionary_that_python_2_pickled_is_read() {
    // Texts are bytes, and an ordered dictionary is called with a list of pairs.
    let tensor = Pickle::new().0;
    assert_eq!(tensor, b"\x80\x02");
    let arguments = Pickle::new().global("collections", "OrderedDict").raw(b"(](]U\x01a");
    let pickle = arguments.tensor("FloatStorage", 4, 0, &[2, 2], &[2, 1]).raw(b"aaetR}U\x09_metadata}sb.");
    let pickle = Pickle(replaced(&pickle.0, b"(](]U\x01a", b"(](]U\x01aa"));
    let desk = Desk::new();
    assert!(desk.convert(&file(&pickle)).unwrap() == desk.convert(&file(&good())).unwrap());
    for list in [b"K\x01".as_slice(), b"](]K\x01ae", b"](NNe"] {
        let strange = Pickle::new().global("collections", "OrderedDict").raw(b"(").raw(list).raw(b"tR.");
        assert_eq!(refusal(&file(&strange)), "makes an OrderedDict of something strange", "{list:?}");
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..place], to, &bytes[place + from.len()..]].concat()
}

#[test]
fn archives_that_torch_does_not_write_are_refused() {
    let pickle = good().0;
    let entries: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &[1; 16])];
    let odd = |odd: Odd| zip(&entries, &odd);
    let with = |more: &[(&str, &[u8])]| zip(&[entries.as_slice(), more].concat(), &Odd::default());
    let stored = "has m/data.pkl compressed or encrypted, and torch.save stores what it has as it is";
    let mut longer = with(&[]);
    longer.extend(b"...");
    let mut deep = with(&[]);
    let end = deep.len();
    deep[end - 6..end - 2].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, problem) in [
        (odd(Odd { method: 8, ..Odd::default() }), stored),
        (odd(Odd { encrypted: true, ..Odd::default() }), stored),
        (odd(Odd { renamed: true, ..Odd::default() }), "has a damaged directory of its zip archive"),
        (
            odd(Odd { earlier: 30 + 10 + pickle.len() as u32, ..Odd::default() }),
            "has a damaged directory of its zip archive",
        ),
        (with(&[("m/data/0", &[1; 16])]), "has m/data/0 twice"),
        (
            with(&[("n/data.pkl", &pickle)]),
            "is a zip archive that torch.save did not write: it has 2 files of the name data.pkl",
        ),
        (
            zip(&[("m/code.py", b"")], &Odd::default()),
            "is a zip archive that torch.save did not write: it has 0 files of the name data.pkl",
        ),
        (zip(&entries[..1], &Odd::default()), "lacks the storage 0 that its pickle names"),
        (
            zip(&[entries[0], ("m/data/../../0", &[1; 16])], &Odd::default()),
            "lacks the storage 0 that its pickle names",
        ),
        (with(&[("m/byteorder", b"middle")]), "has an order of bytes that is neither little nor big"),
        (longer, "begins as a zip archive and does not end as one: cut off?"),
        (deep, "begins as a zip archive and does not end as one: cut off?"),
        (b"PK\x03\x04".to_vec(), "begins as a zip archive and does not end as one: cut off?"),
        (Vec::new(), "is nothing that torch.save writes"),
        (b"<html>not found</html>".to_vec(), "is nothing that torch.save writes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
            "is a Git LFS pointer and not the file itself: get it with `git lfs pull`",
        ),
    ] {
        assert_eq!(refusal(&bytes), problem);
    }
    // An entry in an entry: the second header stands in the first one's bytes.
    let inner = zip(&[("m/data/0", &[1; 16])], &Odd::default());
    let inner = &inner[..30 + 8 + 16];
    let both = zip(&[("m/data.pkl", inner), ("m/data/0", &[1; 16])], &Odd { earlier: 54, ..Odd::default() });
    assert_eq!(refusal(&both), "has entries that share bytes");
    let beyond = zip(&entries, &Odd::default());
    let beyond = replaced(
        &beyond,
        b"\x10\x00\x00\x00\x10\x00\x00\x00\x08\x00\x00\x00\x00\x00",
        b"\x00\x01\x00\x00\x00\x01\x00\x00\x08\x00\x00\x00\x00\x00",
    );
    assert_eq!(refusal(&beyond), "has m/data/0 beyond its end");
}

#[test]
fn bombs_cost_little_memory_and_time() {
    let values = "has a pickle of more than 1048576 values: not a model's";
    let tensors = "has more than 20000 tensors: not a model's";
    let whole = "would become more than 8 times as large as it is: not a model";
    let storage =
        || Pickle::new().raw(b"(").text("storage").global("torch", "FloatStorage").text("0").text("cpu");
    let arguments = || {
        let shape = vec![1; 16];
        Pickle::new()
            .global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"q\x00(")
            .storage("FloatStorage", "0", 4)
            .number(0)
            .sizes(&shape)
            .sizes(&shape)
            .raw(b"\x89Ntq\x01R")
    };
    // Names are no bomb.
    let mut named = Pickle::new().tensor("FloatStorage", 4, 0, &[4], &[1]).raw(b"q\x00}(");
    let mut name = String::new();
    for number in 0..19_000 {
        name.clear();
        write!(name, "{number}").unwrap();
        named = named.text(&name).raw(b"h\x00");
    }
    let named = named.raw(b"u\x86.");
    for (name, pickle, problem) in [
        ("values on the stack", Pickle::new().raw(&b"N".repeat(12 << 20)), values),
        ("marks", Pickle::new().raw(&b"(".repeat(12 << 20)), values),
        ("lists", Pickle::new().raw(&b"]".repeat(12 << 20)), values),
        ("dictionaries", Pickle::new().raw(&b"}".repeat(12 << 20)), values),
        ("tuples in tuples", Pickle::new().raw(b")").raw(&b"\x85".repeat(12 << 20)), values),
        ("lists in lists", Pickle::new().raw(b"]q\x00").raw(&b"h\x00a".repeat(4 << 20)), values),
        ("laughs", Pickle::new().raw(b")q\x00").raw(&b"h\x00h\x00\x86q\x00".repeat(1 << 20)), values),
        ("a large memo", Pickle::new().raw(b"Nr\xff\xff\xff\xff"), values),
        ("a memo of all numbers", Pickle::new().raw(b"Nr\x00\x00\xff\x00r\x01\x00\xff\x00"), values),
        ("storages", storage().number(4).raw(b"tq\x00").raw(&b"h\x00Q".repeat(2 << 20)), tensors),
        ("tensors", arguments().raw(&b"h\x00h\x01R".repeat(2 << 20)), tensors),
        (
            "pairs",
            Pickle::new()
                .global("collections", "OrderedDict")
                .raw(b"q\x00](")
                .raw(&b"](NNe".repeat(9000))
                .raw(b"e\x85q\x01")
                .raw(&b"h\x00h\x01R".repeat(1 << 20)),
            values,
        ),
        (
            "a longer pickle",
            Pickle::new().raw(&b"N".repeat(17 << 20)),
            "has a pickle or a note of 17825794 bytes; a model's has at most 16777216",
        ),
        ("nothing but names", named, "holds a tuple, and no dictionary of tensors"),
    ] {
        let bytes = file(&pickle);
        Memory::forget_peak("self");
        let before = Memory::of("self");
        let begun = Instant::now();
        assert_eq!(refusal(&bytes), problem, "{name}");
        let peak = Memory::of("self").peak - before.now;
        assert!(peak < 300, "{name}: {peak} MiB");
        assert!(begun.elapsed() < Duration::from_secs(20), "{name}: {:?}", begun.elapsed());
    }
    let huge = Pickle::new().dict("a", |pickle| pickle.tensor("FloatStorage", 4, 0, &[1 << 20], &[0]));
    assert_eq!(refusal(&file(&huge)), whole);
    // A tensor whose every number is somewhere else, over and over: the file has room for it, our time has not.
    let desk = Desk::new();
    let side: i64 = 12_000;
    let numbers = side * 2 * 1024;
    let pickle = Pickle::new()
        .dict("a", |pickle| pickle.tensor("ByteStorage", numbers, 0, &[side, side], &[1024, 1024]));
    let mut scattered = std::fs::File::create(desk.bin()).unwrap();
    let storage = vec![0; usize::try_from(numbers).unwrap()];
    scattered.write_all(&zip(&[("m/data.pkl", &pickle.0), ("m/data/0", &storage)], &Odd::default())).unwrap();
    assert_eq!(
        desk.again().unwrap_err(),
        "pytorch_model.bin: has tensors that are scattered over it: not a model"
    );
}

/// An instruction with operands that are likely to mean something.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let alone = prop::sample::select(b"(N)]}tRaesub.Q\x85\x86\x87\x88\x89".as_slice());
    let small = (prop::sample::select(b"Kqh".as_slice()), 0u8..6);
    let names = [
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "FloatStorage"),
    ];
    prop_oneof![
        4 => alone.prop_map(|byte| vec![byte]),
        3 => small.prop_map(|(byte, operand)| vec![byte, operand]),
        1 => prop::sample::select(&["storage", "0", "a", ""][..]).prop_map(|text| Pickle::default().text(text).0),
        1 => prop::sample::select(names.to_vec()).prop_map(|(module, name)| Pickle::default().global(module, name).0),
        1 => (-9i64..9).prop_map(|number| Pickle::default().number(number).0),
        1 => Just(Pickle::default().storage("FloatStorage", "0", 4).0),
        1 => Just(Pickle::default().tensor("FloatStorage", 4, 0, &[2, 2], &[1, 2]).0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn no_program_does_harm(program in prop::collection::vec(instruction(), 0..40), is_whole in any::<bool>()) {
        let mut pickle = Pickle::new();
        pickle.0.extend(program.concat());
        // Nearly a dictionary of tensors, half of the time.
        let pickle = if is_whole {
            pickle.raw(b"}").text("a").tensor("FloatStorage", 4, 0, &[4], &[1]).raw(b"s.")
        } else {
            pickle.raw(b".")
        };
        let bytes = file(&pickle);
        let desk = Desk::new();
        std::fs::write(desk.bin(), &bytes).unwrap();
        survives(&desk, bytes.len());
    }
}

#[test]
fn the_old_format_is_checked_as_the_new_one_is() {
    const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let machine = Pickle::new().raw(b"}.");
    let keys = Pickle::new().raw(b"](").text("0").raw(b"e.");
    let old = |pickle: &Pickle, keys: &Pickle, data: &[u8]| {
        [MAGIC, b"\x80\x02M\xe9\x03.", &machine.0, &pickle.0, &keys.0, data].concat()
    };
    let data = |numbers: u64| [numbers.to_le_bytes().as_slice(), &[1; 16]].concat();
    let desk = Desk::new();
    let expected = desk.convert(&file(&good())).unwrap();
    assert!(desk.convert(&old(&good(), &keys, &data(4))).unwrap() == expected);
    let twice = Pickle::new().raw(b"](").text("0").text("0").raw(b"e.");
    let other = Pickle::new().raw(b"](").text("1").raw(b"e.");
    let cut = "ends before its last storage does: cut off?";
    let huge = Pickle::new().dict("a", |p| p.tensor("FloatStorage", 1 << 60, 0, &[4], &[1]));
    for (bytes, problem) in [
        (old(&good(), &keys, &data(4)[..23]), cut),
        (old(&good(), &keys, &data(4)[..5]), "ends too early: cut off?"),
        (old(&good(), &keys, &data(5)), "has a storage 0 of 5 numbers, but its pickle says 4"),
        (old(&huge, &keys, &data(1 << 60)), cut),
        (old(&good(), &twice, &data(4).repeat(2)), "has the storage 0 twice"),
        (old(&good(), &other, &data(4)), "has a storage 1 of no tensor"),
        (old(&good(), &Pickle::new().raw(b"]."), &[]), "lacks the storage 0 that its pickle names"),
        (old(&good(), &Pickle::new().raw(b"}."), &[]), "has no list of its storages"),
        (
            old(&Pickle::new().global("os", "system").raw(b")R."), &keys, &data(4)),
            "names os.system, which is no part of a tensor",
        ),
        (MAGIC.to_vec(), "has a pickle that ends early"),
        (MAGIC[..14].to_vec(), "is nothing that torch.save writes"),
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR.".to_vec(), "is nothing that torch.save writes"),
    ] {
        assert_eq!(refusal(&bytes), problem);
    }
}
