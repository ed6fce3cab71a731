//! Each architecture makes the vectors that Python makes, and does not without what its configuration says.
//!
//! `families/NAME/` is a tiny model each, made by `scripts/family-fixtures`. Of each:
//!
//! - parity: the server's own tokens, and with every implementation that fits, alone and in a batch, the vectors and
//!   the token states of Python's, to a cosine of 0.99999 in float32;
//! - bfloat16: the same model with smaller weights, to 0.999 of its own float32. With the weights as they are, which
//!   are large so that every mistake shows, rounding shows as much: Python's own bfloat16 is at 0.9876 with
//!   `modernbert`;
//! - mutations: with one setting of its files changed, its vectors change as much as Python's did, or it is refused.
//!   So every such setting is read, and parity means something.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]
#![allow(clippy::print_stdout, reason = "what ran on this machine is to be seen")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use embedding_server::model::{
    self, Device, DeviceChoice, Directory, Dtype, Implementation, Machine, Model, Plan, Preference,
    TokenBatch, inventory,
};
use embedding_server::tokenize::{Encode, How, Overflow, Tokenizer, Tokens};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Stored, TensorView};
use serde_json::Value;
use support::cosine;
use support::directory::copied;

/// The bound of float32.
const BOUND: f64 = 0.99999;
/// The bound of bfloat16.
const ROUNDED: f64 = 0.999;
/// Of scores and logits.
const SCORE: f32 = 1e-4;

/// This package's, also where the test was built elsewhere (`scripts/gpu-check`).
fn manifest_dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn folder(name: &str) -> PathBuf {
    manifest_dir().join("tests/families").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(tensor.dtype(), Stored::F32);
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A model's directory with its tokenizer.
struct Opened {
    directory: Directory,
    tokenizer: Tokenizer,
}

impl Opened {
    /// The error, on one line, where it is refused.
    fn new(path: &Path) -> Result<Self, String> {
        let directory = Directory::read(path).map_err(|error| error.to_string())?;
        let tokenizer =
            Tokenizer::load(&directory, directory.encoder.vocab_size).map_err(|error| error.to_string())?;
        Ok(Self { directory, tokenizer })
    }

    /// A text with the prompt of that name.
    fn tokens(&self, entry: &Value) -> Tokens {
        let name = entry["prompt_name"].as_str().or(self.directory.default_prompt_name.as_deref());
        let prompt = name.map_or("", |name| &self.directory.prompts[name]);
        let how = How {
            prompt: Arc::from(prompt),
            unpooled_prompt: !self.directory.pooling.include_prompt,
            overflow: Overflow::TruncateEnd,
            ..How::default()
        };
        self.tokenizer.encode(entry["text"].as_str().unwrap(), &how).unwrap()
    }

    fn pair(&self, entry: &Value) -> Tokens {
        let [first, second] = [0, 1].map(|place| entry["pair"][place].as_str().unwrap());
        self.tokenizer.encode_pair(first, second, &How::default()).unwrap()
    }

    /// With a plan; nothing where rust-bert does not know it.
    fn load(&self, plan: Plan) -> Option<Box<dyn Model>> {
        match model::load(&self.directory, plan) {
            Ok((model, read)) => {
                let known = inventory::tensors(&self.directory).unwrap();
                let files = [read, known].map(|tensors| self.directory.fingerprint(tensors).unwrap());
                assert_eq!(files[0], files[1], "{plan:?} computes with the tensors that `fetch` tells of");
                Some(model)
            }
            Err(error) => {
                assert_eq!(plan.implementation, Implementation::RustBert, "{error}");
                None
            }
        }
    }
}

/// Every way to compute a model on this machine in that dtype.
fn plans(dtype: Dtype) -> Vec<Plan> {
    let cpu_way = [Implementation::Packed, Implementation::Fused, Implementation::RustBert];
    let ways = cpu_way.map(|implementation| (implementation, DeviceChoice::Cpu));
    let gpu_way = (Implementation::Packed, DeviceChoice::Cuda(Some(0)));
    let plan = |(implementation, device)| {
        let wish =
            Preference { implementation: Some(implementation), dtype: Some(dtype), device, kernels: None };
        Plan::decide(wish, Machine::for_choice(wish)).ok()
    };
    ways.into_iter().chain([gpu_way]).filter_map(plan).collect()
}

/// Where there is no GPU, that is to be seen; and `scripts/gpu-check` wants one.
#[test]
fn all_of_this_runs_on_a_gpu_where_there_is_one() {
    let device = DeviceChoice::Cuda(Some(0));
    match Machine::for_choice(Preference { implementation: None, dtype: None, device, kernels: None }).gpus {
        Ok(_) => assert!(plans(Dtype::Float16).iter().any(|plan| plan.device != Device::Cpu)),
        Err(why) => {
            println!("NOT RUN on a GPU: {why}");
            assert!(std::env::var_os("EMBEDDING_TEST_GPU").is_none(), "a GPU is wanted");
        }
    }
}

/// Vectors and token states of some texts.
struct Outputs {
    vectors: Vec<Vec<f32>>,
    states: Vec<Vec<f32>>,
}

impl Outputs {
    fn of_python(folder: &Path) -> Self {
        let bytes = fs::read(folder.join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let vectors = file.tensor("vectors").unwrap();
        let width = vectors.shape()[1];
        let states =
            (0..vectors.shape()[0]).map(|text| floats(&file.tensor(&format!("states.{text}")).unwrap()));
        Self {
            vectors: floats(&vectors).chunks_exact(width).map(<[f32]>::to_vec).collect(),
            states: states.collect(),
        }
    }

    /// Each text alone.
    fn one_by_one(model: &mut dyn Model, texts: &[Tokens]) -> Self {
        let alone = |tokens: &Tokens| [&tokens.pieces[0]].into_iter().collect::<TokenBatch>();
        Self {
            vectors: texts.iter().map(|tokens| model.embed(&alone(tokens)).unwrap()).collect(),
            states: texts.iter().map(|tokens| model.states(&alone(tokens)).unwrap()).collect(),
        }
    }

    /// The least cosines of a vector and of a token state `hidden` wide; nothing where their numbers differ.
    fn least_cosines(&self, other: &Self, hidden: usize) -> Option<[f64; 2]> {
        let least = |ours: &[f32], theirs: &[f32], width: usize| {
            let pairs = ours.chunks_exact(width).zip(theirs.chunks_exact(width));
            pairs.map(|(ours, theirs)| cosine(ours, theirs)).fold(1.0, f64::min)
        };
        let same = |ours: &[Vec<f32>], theirs: &[Vec<f32>]| {
            ours.iter().map(Vec::len).eq(theirs.iter().map(Vec::len))
        };
        if !same(&self.vectors, &other.vectors) || !same(&self.states, &other.states) {
            return None;
        }
        let width = self.vectors[0].len();
        let flat = |rows: &[Vec<f32>]| rows.concat();
        Some([
            least(&flat(&self.vectors), &flat(&other.vectors), width),
            least(&flat(&self.states), &flat(&other.states), hidden),
        ])
    }
}

/// The vectors of other poolings of the same states: the mode, whether a prompt takes part, and a vector a text.
fn poolings_of_python(folder: &Path) -> Vec<(String, bool, Vec<Vec<f32>>)> {
    let bytes = fs::read(folder.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let pooling = |name: &str| {
        let settings = name.strip_prefix("vectors.")?;
        let tensor = file.tensor(name).unwrap();
        let vectors = floats(&tensor).chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec).collect();
        Some(match settings.strip_suffix(".without_prompt") {
            Some(mode) => (mode.to_owned(), false, vectors),
            None => (settings.to_owned(), true, vectors),
        })
    };
    file.names().into_iter().filter_map(pooling).collect()
}

fn ids(tokens: &Tokens) -> Vec<u32> {
    assert_eq!(tokens.pieces.len(), 1);
    tokens.pieces[0].ids.clone()
}

/// The largest difference between numbers.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max)
}

/// What all pieces make in one batch, longest first as the server has them.
fn in_one_batch(model: &mut dyn Model, texts: &[Tokens]) -> Vec<Vec<f32>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(texts[place].len()));
    let batch: TokenBatch = order.iter().map(|&place| &texts[place].pieces[0]).collect();
    let values = model.embed(&batch).unwrap();
    let mut rows = vec![Vec::new(); texts.len()];
    for (row, place) in values.chunks_exact(values.len() / texts.len()).zip(order) {
        rows[place] = row.to_vec();
    }
    rows
}

/// Compares the vectors of other poolings; what they are.
fn other_poolings(path: &Path, entries: &[Value]) -> Vec<String> {
    let mut did = Vec::new();
    for (mode, include_prompt, vectors) in poolings_of_python(path) {
        let copy = copied(path);
        let settings = serde_json::json!({"pooling_mode": mode, "include_prompt": include_prompt});
        fs::write(copy.path().join("1_Pooling/config.json"), settings.to_string()).unwrap();
        let pooled = Opened::new(copy.path()).unwrap();
        let texts: Vec<Tokens> = entries.iter().map(|entry| pooled.tokens(entry)).collect();
        for plan in plans(Dtype::Float32) {
            let Some(mut model) = pooled.load(plan) else { continue };
            let alone = Outputs::one_by_one(&mut *model, &texts).vectors;
            for ours in [alone, in_one_batch(&mut *model, &texts)] {
                for (ours, python) in ours.iter().zip(&vectors) {
                    let size = python.iter().fold(1.0, |most: f32, value| most.max(value.abs()));
                    assert!(difference(ours, python) < 1e-4 * size, "{plan:?} {settings}");
                }
            }
        }
        did.push(format!("{mode}{}", if include_prompt { "" } else { " without prompt" }));
    }
    did
}

fn parity(name: &str) {
    let path = folder(name);
    let reference = json(&path.join("reference.json"));
    let entries = reference["texts"].as_array().unwrap();
    let opened = Opened::new(&path).unwrap();
    let hidden = opened.directory.encoder.hidden_size as usize;
    assert_eq!(Some(opened.directory.max_tokens as u64), reference["max_tokens"].as_u64());
    let texts: Vec<Tokens> = entries.iter().map(|entry| opened.tokens(entry)).collect();
    for (tokens, entry) in texts.iter().zip(entries) {
        assert_eq!(serde_json::json!(ids(tokens)), entry["ids"], "{entry}");
    }
    let longest = texts.iter().map(Tokens::len).max().unwrap();
    assert!(
        entries.len() >= 8 && longest == opened.directory.max_tokens,
        "a fixture has texts of all lengths"
    );
    let python = Outputs::of_python(&path);
    let mut did = Vec::new();
    for plan in plans(Dtype::Float32) {
        let Some(mut model) = opened.load(plan) else { continue };
        let ours = Outputs::one_by_one(&mut *model, &texts);
        let least = ours.least_cosines(&python, hidden).expect("as many numbers as Python's");
        assert!(least.iter().all(|least| *least >= BOUND), "{plan:?}: {least:?}");
        for ((alone, batched), python) in
            ours.vectors.iter().zip(in_one_batch(&mut *model, &texts)).zip(&python.vectors)
        {
            let size = python.iter().fold(1.0, |most: f32, value| most.max(value.abs()));
            // A GPU has other kernels for other sizes, which add in another order.
            let rounding = if plan.device == Device::Cpu { 1e-5 } else { 1e-4 };
            assert!(difference(alone, &batched) < rounding * size, "{plan:?}");
            // Normalisation that comes last is left to the caller.
            if !opened.directory.normalizes() {
                assert!(difference(alone, python) < 1e-3 * size, "{plan:?}");
            }
        }
        did.push(format!("{} float32 on {}", plan.implementation, plan.device));
    }
    let softer = softened(&path);
    let soft = Opened::new(softer.path()).unwrap();
    let float32 = Plan::on_cpu(Implementation::Packed, Dtype::Float32);
    let exact = Outputs::one_by_one(&mut *soft.load(float32).unwrap(), &texts);
    for plan in [Dtype::BFloat16, Dtype::Float16].into_iter().flat_map(plans) {
        let Some(mut model) = soft.load(plan) else { continue };
        let rounded = Outputs::one_by_one(&mut *model, &texts);
        let [vector, _] = rounded.least_cosines(&exact, hidden).unwrap();
        assert!((ROUNDED..1.0 - 1e-9).contains(&vector), "{plan:?}: {vector}");
        // Where texts lie one after the other, none may see another.
        for (alone, batched) in rounded.vectors.iter().zip(in_one_batch(&mut *model, &texts)) {
            let cosine = cosine(alone, &batched);
            assert!(cosine >= ROUNDED, "{plan:?}: in a batch {cosine}");
        }
        did.push(format!("{} {} {vector:.5} on {}", plan.implementation, plan.dtype, plan.device));
    }
    let later = path.join("config.transformers5.json");
    if later.exists() {
        let copy = copied(&path);
        fs::copy(&later, copy.path().join("config.json")).unwrap();
        let respelled = Opened::new(copy.path()).unwrap();
        assert_eq!(space(&respelled.directory), space(&opened.directory), "of the same model");
        let mut model = respelled.load(float32).unwrap();
        let ours = Outputs::one_by_one(&mut *model, &texts);
        let least = ours.least_cosines(&python, hidden).unwrap();
        assert!(least.iter().all(|least| *least >= BOUND), "as transformers 5 has it: {least:?}");
        did.push("as transformers 5 has it".to_owned());
    }
    did.extend(other_poolings(&path, entries));
    println!("{name}: {} texts; {}", texts.len(), did.join(", "));
    mutations(&path, |changed, mutation| {
        let Ok(opened) = Opened::new(changed) else { return Change::Refused };
        let Ok((mut model, _)) = model::load(&opened.directory, float32) else { return Change::Refused };
        let texts: Vec<Tokens> = entries.iter().map(|entry| opened.tokens(entry)).collect();
        let Ok(ours) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Outputs::one_by_one(&mut *model, &texts)
        })) else {
            return Change::Refused;
        };
        let Some([vector, state]) = ours.least_cosines(&python, hidden) else { return Change::Other };
        // Cosines do not see that a vector is longer.
        let distance = |(ours, python): (&Vec<f32>, &Vec<f32>)| {
            let norm =
                |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let apart = norm(&mut ours.iter().zip(python).map(|(ours, python)| ours - python));
            f64::from(apart / norm(&mut python.iter().copied()))
        };
        let distance = ours.vectors.iter().zip(&python.vectors).map(distance).fold(0.0, f64::max);
        let changes = vector < BOUND || state < BOUND || distance > 0.1;
        assert!(changes, "{mutation} changes nothing: {vector} {state} {distance}");
        // As far as Python went, from the same reference.
        for (ours, theirs) in [(vector, "vector_cosine"), (state, "state_cosine")] {
            if let Some(theirs) = mutation[theirs].as_f64() {
                assert!((ours - theirs).abs() < 1e-3, "{mutation}: {ours}");
            }
        }
        Change::AsPythons
    });
}

/// What a changed setting did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Change {
    /// The model is refused.
    Refused,
    /// As many tokens or dimensions are no longer there.
    Other,
    /// The same as in Python.
    AsPythons,
}

/// Runs each mutation of a file.
fn mutations(path: &Path, mut check: impl FnMut(&Path, &Value) -> Change) {
    let file = path.join("mutations.json");
    if !file.exists() {
        return;
    }
    let all = json(&file);
    let mut counts = BTreeMap::<Change, usize>::new();
    for mutation in all["mutations"].as_array().unwrap() {
        // The others are of Python's code.
        let Some(file) = mutation["file"].as_str() else { continue };
        let copy = copied(path);
        let file = copy.path().join(file);
        let mut value = json(&file);
        let field = mutation["field"].as_str().unwrap();
        let pointer = format!("/{}", field.replace('.', "/"));
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        match value.pointer_mut(parent).unwrap() {
            Value::Object(fields) if mutation["deleted"] == true => drop(fields.remove(last)),
            Value::Object(fields) => drop(fields.insert(last.to_owned(), mutation["value"].clone())),
            other => panic!("{mutation} is of {other}"),
        }
        fs::write(&file, serde_json::to_vec(&value).unwrap()).unwrap();
        *counts.entry(check(copy.path(), mutation)).or_default() += 1;
    }
    println!("  settings changed: {counts:?}");
}

/// A copy whose linear layers' weights are half as large, as those of trained models are, where they are in float32.
fn softened(path: &Path) -> tempfile::TempDir {
    let copy = copied(path);
    let file = copy.path().join("model.safetensors");
    let Ok(bytes) = fs::read(&file) else { return copy };
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let is_linear = |name: &str, tensor: &TensorView<'_>| {
        let is_table =
            ["embed", "shared", "relative_attention_bias"].iter().any(|table| name.contains(table));
        tensor.shape().len() == 2 && tensor.dtype() == Stored::F32 && !is_table
    };
    let halved: Vec<(String, Vec<u8>, Vec<usize>, Stored)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let data = if is_linear(name, &tensor) {
                floats(&tensor).into_iter().flat_map(|value| (value / 2.0).to_le_bytes()).collect()
            } else {
                tensor.data().to_vec()
            };
            (name.to_owned(), data, tensor.shape().to_vec(), tensor.dtype())
        })
        .collect();
    let views = halved.iter().map(|(name, data, shape, dtype)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    copy
}

/// Scores of pairs.
fn scores(name: &str) {
    let moved_as_pythons = |moved: f32, mutation: &Value| {
        let theirs = mutation["logits_moved_by"].as_f64().unwrap() as f32;
        (moved - theirs).abs() < 0.02 + theirs / 100.0
    };
    pairs(&folder(name), |logits| logits, moved_as_pythons);
}

/// Scores of a model that answers with a token: one logit less the other.
fn answers(name: &str) {
    // Mutations tell how far the two moved, and not their difference.
    pairs(&folder(name), |logits| vec![logits[1] - logits[0]], |_, _| true);
}

/// Scores of pairs, of logits that are made of Python's.
fn pairs(
    path: &Path,
    logits_of: impl Fn(Vec<f32>) -> Vec<f32>,
    moved_as_pythons: impl Fn(f32, &Value) -> bool,
) {
    let name = path.file_name().unwrap().display();
    let reference = json(&path.join("reference.json"));
    let entries = reference["pairs"].as_array().unwrap();
    let opened = Opened::new(path).unwrap();
    let classifier = opened.directory.classifier.clone().expect("a cross-encoder");
    let logits = |entry: &Value| logits_of(serde_json::from_value(entry["logits"].clone()).unwrap());
    let pairs: Vec<Tokens> = entries.iter().map(|entry| opened.pair(entry)).collect();
    for (tokens, entry) in pairs.iter().zip(entries) {
        assert_eq!(serde_json::json!(ids(tokens)), entry["ids"], "{entry}");
    }
    let mut did = Vec::new();
    for plan in plans(Dtype::Float32) {
        let Some(mut model) = opened.load(plan) else { continue };
        let batched = in_one_batch(&mut *model, &pairs);
        for ((entry, tokens), batched) in entries.iter().zip(&pairs).zip(batched) {
            let alone = model.embed(&[&tokens.pieces[0]].into_iter().collect()).unwrap();
            let scores: Vec<f32> = alone.iter().map(|logit| classifier.activation.of(*logit)).collect();
            let expected: Vec<f32> = serde_json::from_value(entry["scores"].clone()).unwrap();
            assert!(difference(&alone, &logits(entry)) < SCORE, "{plan:?} {entry}: {alone:?}");
            assert!(difference(&scores, &expected) < SCORE, "{plan:?} {entry}: {scores:?}");
            assert!(difference(&alone, &batched) < SCORE, "{plan:?} {entry}");
        }
        did.push(format!("{} float32", plan.implementation));
    }
    println!("{name}: {} pairs; {}", pairs.len(), did.join(", "));
    let float32 = Plan::on_cpu(Implementation::Packed, Dtype::Float32);
    mutations(path, |changed, mutation| {
        let Ok(opened) = Opened::new(changed) else { return Change::Refused };
        let Ok((mut model, _)) = model::load(&opened.directory, float32) else { return Change::Refused };
        let moved = entries.iter().map(|entry| {
            let ours = model.embed(&[&opened.pair(entry).pieces[0]].into_iter().collect()).unwrap();
            difference(&ours, &logits(entry))
        });
        let moved = moved.fold(0.0, f32::max);
        assert!(moved > 10.0 * SCORE && moved_as_pythons(moved, mutation), "{mutation}: {moved}");
        Change::AsPythons
    });
}

/// A test for each, of the name of its folder.
macro_rules! families {
    ($all:ident, $check:ident: $($test:ident = $name:literal),* $(,)?) => {
        const $all: &[&str] = &[$($name),*];
        $(#[test] fn $test() { $check($name) })*
    };
}

families! { VECTORS, parity:
    albert = "albert",
    bert_bf16 = "bert-bf16",
    bert_concatenated = "bert-concatenated",
    bert_fp16 = "bert-fp16",
    bert_layer_norm = "bert-layer-norm",
    bert_no_modules = "bert-no-modules",
    bert_old_names = "bert-old-names",
    bert_poolings = "bert-poolings",
    bert_sharded = "bert-sharded",
    distilbert = "distilbert",
    distilbert_dense = "distilbert-dense",
    gemma3 = "gemma3",
    gte = "gte",
    gte_multilingual = "gte-multilingual",
    gte_no_segments = "gte-no-segments",
    jina_v2 = "jina-v2",
    jina_v2_code = "jina-v2-code",
    modernbert = "modernbert",
    modernbert_biases = "modernbert-biases",
    modernbert_prefix = "modernbert-prefix",
    mpnet = "mpnet",
    nomic_bert = "nomic-bert",
    qwen2 = "qwen2",
    qwen3 = "qwen3",
    qwen3_prefix = "qwen3-prefix",
    roberta = "roberta",
    roberta_prefix = "roberta-prefix",
    t5 = "t5",
    t5_gated = "t5-gated",
    xlm_roberta = "xlm-roberta",
    xlm_roberta_cls = "xlm-roberta-cls",
}

families! { SCORES, scores:
    distilbert_classifier = "distilbert-classifier",
    gte_reranker = "gte-reranker",
    modernbert_reranker = "modernbert-reranker",
    qwen3_classifier = "qwen3-classifier",
    roberta_classifier = "roberta-classifier",
    xlm_roberta_reranker = "xlm-roberta-reranker",
}

/// The space of a directory's vectors, without computing any.
fn space(directory: &Directory) -> String {
    let files = directory.fingerprint(inventory::tensors(directory).unwrap()).unwrap();
    let base = files.with_prompts(&directory.prompts, directory.default_prompt_name.as_deref());
    base.space(directory.dimensions(), directory.normalizes()).to_string()
}

/// Clients keep spaces with their vectors: another one for the same model would have them embed everything anew.
#[test]
fn the_space_of_each_model_is_what_it_always_was() {
    let file = manifest_dir().join("tests/family-spaces.json");
    let names = [VECTORS, SCORES, ANSWERS].concat();
    let of = |name: &&str| (name.to_string(), space(&Directory::read(&folder(name)).unwrap()));
    let spaces: BTreeMap<String, String> = names.iter().map(of).collect();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&file, serde_json::to_string_pretty(&spaces).unwrap() + "\n").unwrap();
    }
    let known: BTreeMap<String, String> = serde_json::from_value(json(&file)).unwrap();
    assert_eq!(spaces, known);
}

families! { ANSWERS, answers:
    qwen3_reranker = "qwen3-reranker",
}

/// As gte-Qwen2 is published: what ends texts stands in code of the repository, which is not run.
#[test]
fn texts_of_qwen2_end_as_the_repositorys_own_code_has_it() {
    let path = folder("qwen2");
    let reference = json(&path.join("reference.json"));
    // A text of no tokens at all is refused.
    let entries: Vec<_> =
        reference["texts"].as_array().unwrap().iter().filter(|entry| entry["text"] != "").collect();
    let made = |processor: fn(&Value) -> Value, settings: Value| {
        let copy = copied(&path);
        let file = copy.path().join("tokenizer.json");
        let mut tokenizer = json(&file);
        tokenizer["post_processor"] = processor(&tokenizer["post_processor"]);
        fs::write(&file, tokenizer.to_string()).unwrap();
        let file = copy.path().join("tokenizer_config.json");
        let mut config = json(&file);
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        fs::write(&file, config.to_string()).unwrap();
        let opened = Opened::new(copy.path()).unwrap();
        let all: Vec<_> = entries.iter().map(|entry| ids(&opened.tokens(entry))).collect();
        (all, space(&opened.directory))
    };
    let whole: fn(&Value) -> Value = Value::clone;
    // Without the template that ends texts.
    let bare: fn(&Value) -> Value = |processor| processor["processors"][0].clone();
    let code =
        serde_json::json!(["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]);
    let own = |add: bool, end: Value| serde_json::json!({"auto_map": {"AutoTokenizer": code}, "add_eos_token": add, "eos_token": end});
    let (text, object) = ("<|endoftext|>".into(), serde_json::json!({"content": "<|endoftext|>"}));
    let python: Vec<Vec<u32>> =
        entries.iter().map(|entry| serde_json::from_value(entry["ids"].clone()).unwrap()).collect();
    let (theirs, their_space) = made(bare, own(true, text));
    assert_eq!(theirs, python);
    assert_eq!(made(bare, own(true, object)), (theirs, their_space.clone()));
    assert_eq!(made(whole, own(true, "<|endoftext|>".into())).0, python, "not twice");
    // As transformers has it, who was not asked to.
    let unasked = serde_json::json!({"add_eos_token": true});
    for (settings, what) in [(own(false, "<|endoftext|>".into()), "not set"), (unasked, "no code of its own")]
    {
        let (ids, space) = made(bare, settings);
        assert!(ids.iter().zip(&python).all(|(ids, python)| ids.last() != python.last()), "{what}");
        assert_ne!(space, their_space, "{what}");
    }
}

#[test]
fn a_language_model_ranks_where_something_says_so_and_is_refused_otherwise() {
    let reranker = folder("qwen3-reranker");
    let read = |copy: &Path| Directory::read(copy).map_err(|error| error.to_string());
    let kind = |copy: &Path| read(copy).unwrap().classifier.map(|classifier| classifier.labels);
    let yes = Some(vec!["yes".to_owned()]);
    assert_eq!(kind(&reranker), yes, "by the name of its directory");
    let copy = copied(&reranker);
    let refused = read(copy.path()).unwrap_err();
    let expected = "config.json: a language model (Qwen3ForCausalLM) without modules.json, which would say how it embeds; \
                    to rank with it as with Qwen3-Reranker, add \"classifier_from_token\": [\"no\", \"yes\"]";
    assert!(refused.ends_with(expected), "{refused}");
    let config = copy.path().join("config.json");
    let mut value = json(&config);
    value["classifier_from_token"] = serde_json::json!(["no", "yes"]);
    fs::write(&config, value.to_string()).unwrap();
    pairs(copy.path(), |logits| vec![logits[1] - logits[0]], |_, _| true);
    value["classifier_from_token"] = serde_json::json!(["no", "certainly"]);
    fs::write(&config, value.to_string()).unwrap();
    assert!(
        read(copy.path()).unwrap_err().ends_with("tokenizer.json: has no token \"certainly\" to answer with")
    );

    // As sentence-transformers saves it; with a layer of its own in place of the table of tokens, of which half is
    // taken: the difference is half as large.
    let copy = copied(&reranker);
    let modules = serde_json::json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_LogitScore",
         "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"},
    ]);
    fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    fs::create_dir(copy.path().join("1_LogitScore")).unwrap();
    let vocabulary = json(&reranker.join("tokenizer.json"));
    let id = |token: &str| vocabulary["model"]["vocab"][token].as_u64().unwrap();
    let score = serde_json::json!({"true_token_id": id("yes"), "false_token_id": id("no")});
    fs::write(copy.path().join("1_LogitScore/config.json"), score.to_string()).unwrap();
    pairs(copy.path(), |logits| vec![logits[1] - logits[0]], |_, _| true);
    let config = copy.path().join("config.json");
    let mut value = json(&config);
    value["tie_word_embeddings"] = serde_json::json!(false);
    fs::write(&config, value.to_string()).unwrap();
    let weights = copy.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = tensors.iter().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap().1;
    let half: Vec<u8> = floats(&words).iter().flat_map(|value| (value / 2.0).to_le_bytes()).collect();
    let head = TensorView::new(words.dtype(), words.shape().to_vec(), &half).unwrap();
    let all = tensors.iter().chain([("lm_head.weight", head)]);
    fs::write(&weights, safetensors::serialize(all, None).unwrap()).unwrap();
    let opened = Opened::new(copy.path()).unwrap();
    for plan in plans(Dtype::Float32) {
        let Some(mut model) = opened.load(plan) else { continue };
        for entry in json(&copy.path().join("reference.json"))["pairs"].as_array().unwrap() {
            let logits: Vec<f32> = serde_json::from_value(entry["logits"].clone()).unwrap();
            let ours = model.embed(&[&opened.pair(entry).pieces[0]].into_iter().collect()).unwrap();
            assert!(difference(&ours, &[(logits[1] - logits[0]) / 2.0]) < SCORE, "{plan:?}");
        }
    }
}

#[test]
fn no_fixture_is_forgotten() {
    let entries = fs::read_dir(folder("")).unwrap();
    let mut there: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.sort_unstable();
    let mut listed = [VECTORS, SCORES, ANSWERS].concat();
    listed.sort_unstable();
    assert_eq!(there, listed);
}
