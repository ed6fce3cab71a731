//! A cross-encoder's scores are those of Python's sentence-transformers, and what its directory says is
//! believed or refused.
//!
//! `scripts/cross-encoder-fixture` made the models, the pairs and the scores.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::path::Path;

use embedding_server::embedder::Caller;
use embedding_server::model::{
    self, Directory, Dtype, Implementation, Machine, Plan, Preference, TokenBatch, inventory,
};
use embedding_server::models::{self, Loaded, Manner};
use embedding_server::options::{self, Options};
use embedding_server::scores::{Activation, Classifier, Kind};
use embedding_server::tokenize::{Encode, How, Overflow, Tokenizer, Tokens};
use serde_json::{Value, json};
use support::{cross_encoder, directory, python, settings};

/// Pieces that the server makes of pairs and texts, with what the model makes of them.
struct Ours {
    tokenizer: Tokenizer,
    model: Box<dyn model::Model>,
}

impl Ours {
    fn new(path: &Path, plan: Plan) -> Self {
        let directory = Directory::read(path).unwrap();
        let tokenizer = Tokenizer::load(&directory, 158).unwrap();
        Self { tokenizer, model: model::load_path(path, plan).unwrap() }
    }

    fn pairs(&self, how: &How) -> Vec<Tokens> {
        let pairs = python()["pairs"].as_array().unwrap().clone();
        let text = |pair: &Value, place: usize| pair[place].as_str().unwrap().to_owned();
        let encode = |pair: &Value| self.tokenizer.encode_pair(&text(pair, 0), &text(pair, 1), how).unwrap();
        pairs.iter().map(encode).collect()
    }

    /// A row of logits each, embedded in batches of several.
    fn logits(&mut self, tokens: &[Tokens]) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for some in tokens.chunks(7) {
            let batch: TokenBatch = some.iter().map(|tokens| &tokens.pieces[0]).collect();
            let values = self.model.embed(&batch).unwrap();
            rows.extend(values.chunks_exact(values.len() / some.len()).map(<[f32]>::to_vec));
        }
        rows
    }
}

const fn in_f32(implementation: Implementation) -> Plan {
    Plan::on_cpu(implementation, Dtype::Float32)
}

fn rows(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The largest difference between two tables of one shape.
fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs).flat_map(|(ours, theirs)| {
        assert_eq!(ours.len(), theirs.len());
        ours.iter().zip(theirs)
    });
    pairs.map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max)
}

fn loaded(path: &Path, implementation: Implementation) -> Loaded {
    let preference = Preference {
        implementation: Some(implementation),
        dtype: Some(Dtype::Float32),
        ..settings().preference
    };
    models::load(Directory::read(path).unwrap(), "test".into(), preference, &Manner::default()).unwrap()
}

#[test]
fn scores_are_those_of_python_with_one_label_and_with_several() {
    let python = python();
    let cut: Vec<_> = python["tokens"].as_array().unwrap().iter().map(|count| count == 48).collect();
    assert!(cut.len() >= 30 && cut.iter().filter(|cut| **cut).count() >= 10);
    for name in ["one", "several"] {
        for implementation in [Implementation::Packed, Implementation::RustBert] {
            let mut ours = Ours::new(&cross_encoder(name), in_f32(implementation));
            let pairs = ours.pairs(&How::default());
            let counts: Vec<_> = pairs.iter().map(Tokens::len).collect();
            assert_eq!(json!(counts), python["tokens"]);
            let theirs = &python[name];
            let logits = ours.logits(&pairs);
            let away = difference(&logits, &rows(&theirs["logits"]));
            assert!(away < 1e-4, "{name}, {implementation}: {away}");

            let Some(classifier) = Directory::read(&cross_encoder(name)).unwrap().classifier else {
                panic!("{name} is a cross-encoder");
            };
            let scores: Vec<Vec<f32>> = logits
                .iter()
                .map(|row| row.iter().map(|logit| classifier.activation.of(*logit)).collect())
                .collect();
            let expected = match name {
                "one" => theirs["scores"].as_array().unwrap().iter().map(|score| json!([score])).collect(),
                _ => theirs["scores"].clone(),
            };
            let away = difference(&scores, &rows(&expected));
            assert!(away < 1e-4, "{name}, {implementation}: {away}");
        }
    }
}

#[test]
fn pairs_cut_at_their_beginnings_and_single_texts_have_pythons_scores_too() {
    let python = python();
    let mut ours = Ours::new(&cross_encoder("several"), in_f32(Implementation::Packed));
    let from_start = How { overflow: Overflow::TruncateStart, ..How::default() };
    let pairs = ours.pairs(&from_start);
    let away = difference(&ours.logits(&pairs), &rows(&python["several"]["logits_from_left"]));
    assert!(away < 1e-4, "{away}");
    let cut: Vec<_> = pairs.iter().map(|tokens| tokens.truncated).collect();
    let whole: Vec<_> = ours.pairs(&How::default()).iter().map(|tokens| tokens.truncated).collect();
    assert_eq!(cut, whole);

    let second = |pair: &Value| ours.tokenizer.encode(pair[1].as_str().unwrap(), &How::default()).unwrap();
    let texts: Vec<_> = python["pairs"].as_array().unwrap().iter().map(second).collect();
    let away = difference(&ours.logits(&texts), &rows(&python["several"]["logits_of_second_alone"]));
    assert!(away < 1e-4, "{away}");
}

#[test]
fn scores_in_bfloat16_are_nearly_those_of_python() {
    if !Machine::detect().can_bf16 {
        return;
    }
    let mut ours = Ours::new(&cross_encoder("one"), Plan::on_cpu(Implementation::Packed, Dtype::BFloat16));
    let pairs = ours.pairs(&How::default());
    let away = difference(&ours.logits(&pairs), &rows(&python()["one"]["logits"]));
    assert!(away < 0.1, "{away}");
}

#[test]
fn a_cross_encoder_says_what_it_is_and_makes_no_vectors() {
    let one = loaded(&cross_encoder("one"), Implementation::Packed).about;
    let classifier = Classifier { labels: vec!["LABEL_0".into()], activation: Activation::Sigmoid };
    assert_eq!((one.kind, one.dimensions, one.max_tokens), (Kind::CrossEncoder(classifier), 1, 48));
    let several = loaded(&cross_encoder("several"), Implementation::Packed).about;
    let labels = ["contradiction", "entailment", "neutral"].map(str::to_owned).to_vec();
    let classifier = Classifier { labels, activation: Activation::Identity };
    assert_eq!((several.kind, several.dimensions), (Kind::CrossEncoder(classifier), 3));
}

#[test]
fn the_fingerprint_is_of_its_head_too() {
    let of = |path: &Path, implementation| loaded(path, implementation).about.space();
    let one = of(&cross_encoder("one"), Implementation::Packed);
    assert_eq!(of(&cross_encoder("one"), Implementation::RustBert), one);
    let directory = Directory::read(&cross_encoder("one")).unwrap();
    let files = directory.fingerprint(inventory::tensors(&directory).unwrap()).unwrap();
    let told = files.with_prompts(&directory.prompts, None).space(directory.dimensions(), false);
    assert_eq!(told, one, "without loading it");

    // One bit of the head.
    let changed = copied("one");
    let path = changed.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let size = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let at = header["classifier.weight"]["data_offsets"][0].as_u64().unwrap();
    bytes[8 + size + usize::try_from(at).unwrap()] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(of(changed.path(), Implementation::Packed), one);
}

/// A copy to be changed.
fn copied(name: &str) -> tempfile::TempDir {
    directory::copied(&cross_encoder(name))
}

/// What the server makes of a directory in which fields of a file were set; `null` takes one away.
fn with(name: &str, file: &str, fields: &Value) -> Result<Option<Classifier>, String> {
    let copy = copied(name);
    let path = copy.path().join(file);
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        match value {
            Value::Null => drop(content.as_object_mut().unwrap().remove(field)),
            value => content[field] = value.clone(),
        }
    }
    std::fs::write(&path, content.to_string()).unwrap();
    let read = Directory::read(copy.path()).map(|directory| directory.classifier);
    let place = format!("{}/", copy.path().display());
    read.map_err(|error| models::one_line(&error).replace(&place, ""))
}

#[test]
fn labels_and_activation_are_found_where_sentence_transformers_finds_them() {
    let (config, saved) = ("config.json", "config_sentence_transformers.json");
    let identity = "torch.nn.modules.linear.Identity";
    let table = [
        ("several", config, json!({}), 3, Activation::Identity),
        (
            "several",
            config,
            json!({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}),
            3,
            Activation::Sigmoid,
        ),
        (
            "several",
            config,
            json!({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}),
            3,
            Activation::Sigmoid,
        ),
        (
            "several",
            config,
            json!({"sbert_ce_default_activation_function": "my.own.Sigmoid"}),
            3,
            Activation::Identity,
        ),
        ("several", config, json!({"id2label": null, "num_labels": 1}), 1, Activation::Sigmoid),
        ("several", config, json!({"id2label": null}), 2, Activation::Identity),
        ("several", config, json!({"id2label": {"0": "same"}}), 1, Activation::Sigmoid),
        ("one", saved, json!({}), 1, Activation::Sigmoid),
        ("one", saved, json!({"activation_fn": identity}), 1, Activation::Identity),
        ("one", saved, json!({"activation_fn": null}), 1, Activation::Sigmoid),
        (
            "one",
            config,
            json!({"sentence_transformers": {"activation_fn": identity}}),
            1,
            Activation::Sigmoid,
        ),
    ];
    for (name, file, fields, labels, activation) in table {
        let found = with(name, file, &fields).unwrap().unwrap();
        assert_eq!((found.labels.len(), found.activation), (labels, activation), "{name} {fields}");
    }
    let both = json!({"id2label": null, "num_labels": 2});
    assert_eq!(with("several", config, &both).unwrap().unwrap().labels, ["LABEL_0", "LABEL_1"]);
}

#[test]
fn a_cross_encoder_that_cannot_be_served_is_refused_and_what_is_none_makes_vectors() {
    let (config, saved) = ("config.json", "config_sentence_transformers.json");
    for (name, file, fields, problem) in [
        (
            "one",
            saved,
            json!({"activation_fn": "torch.nn.modules.activation.Tanh"}),
            "config_sentence_transformers.json: activation_fn \"torch.nn.modules.activation.Tanh\" is not supported; supported: Identity, Sigmoid",
        ),
        (
            "several",
            config,
            json!({"id2label": {"0": "a", "2": "b"}}),
            "config.json: the keys of id2label are not 0, 1, 2 and so on",
        ),
        (
            "several",
            config,
            json!({"id2label": {}}),
            "config.json: 0 labels; a classifier has between 1 and 65536",
        ),
        (
            "one",
            config,
            json!({"architectures": ["BertModel"]}),
            "config_sentence_transformers.json: a CrossEncoder is supported where it is a lone …ForSequenceClassification; this one is not",
        ),
    ] {
        assert_eq!(with(name, file, &fields), Err(problem.to_owned()), "{fields}");
    }
    assert_eq!(with("several", config, &json!({"architectures": ["BertModel"]})), Ok(None));

    // The same weights with a pooling, as embedding models are published that were classifiers once.
    let pooled = copied("several");
    let modules = json!([
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    std::fs::write(pooled.path().join("modules.json"), modules.to_string()).unwrap();
    std::fs::create_dir(pooled.path().join("1_Pooling")).unwrap();
    std::fs::write(pooled.path().join("1_Pooling/config.json"), "{}").unwrap();
    let about = loaded(pooled.path(), Implementation::Packed).about;
    assert_eq!((about.kind, about.dimensions), (Kind::Embedding, 24));
}

#[tokio::test]
async fn a_front_door_gives_what_its_model_has_and_says_what_to_ask_instead() {
    let ask = Options::default();
    for name in ["one", "several"] {
        let loaded = loaded(&cross_encoder(name), Implementation::Packed);
        let (models, _) = support::in_service(name, loaded);
        let embedder = models.get(None).unwrap().embedder;
        assert_eq!(embedder.decide(&ask), Err(options::Error::NoVectors));
        assert_eq!(embedder.decide_states(&ask), Err(options::Error::NoVectors));
        let ranking = embedder.decide_ranking(&ask).map(drop);
        assert_eq!(
            ranking,
            if name == "one" { Ok(()) } else { Err(options::Error::NoRanking { labels: 3 }) }
        );
        let (classifier, decided) = embedder.decide_scores(&ask).unwrap();
        let pairs: Vec<(String, String)> = serde_json::from_value(python()["pairs"].clone()).unwrap();
        let inputs = pairs
            .into_iter()
            .map(|(first, second)| embedding_server::tokenize::Input::Pair(first.into(), second))
            .collect();
        let scored = embedder.score(inputs, &decided.how, Caller::default()).await.unwrap();
        assert!(scored.logits.iter().all(|row| row.len() == classifier.labels.len()));
        let away = difference(&scored.logits, &rows(&python()[name]["logits"]));
        assert!(away < 1e-4, "{name}: {away}");
        models.stop();
    }
}
