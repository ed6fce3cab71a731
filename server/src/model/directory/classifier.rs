//! A directory with a sequence classification model, which sentence-transformers loads as a
//! `CrossEncoder`: a head of a few linear layers ([`HEADS`]) makes a logit a label.
//!
//! ```text
//! config.json   architectures: ["…ForSequenceClassification"], id2label or num_labels,
//!               sentence_transformers.activation_fn (before version 4 of sentence-transformers:
//!               sbert_ce_default_activation_function)
//! modules.json  none, or nothing but a Transformer
//! config_sentence_transformers.json  model_type: CrossEncoder, activation_fn (from version 5.4 on)
//! ```
//!
//! A directory of such weights whose `modules.json` has a pooling makes vectors: its classifier is not
//! read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{Dense, DenseActivation, Error, MODULES, Module, Tail, VectorNorm, json_if_there, unsupported};
use crate::model::encoder::{Encoder, HiddenAct};
use crate::model::pooling::{Mode, Pooling};
use crate::scores::{Activation, Classifier};

/// How all the classes end.
const CLASS: &str = "ForSequenceClassification";
/// The most labels; a model's own limit is its memory.
const MOST_LABELS: usize = 1 << 16;

/// What a class of transformers has after the encoder.
#[derive(Clone, Copy)]
enum Head {
    /// The first token's state, a layer and tanh, and the labels' layer: what these two are called.
    Pooler([&'static str; 2]),
    /// The same with `ReLU`.
    Relu([&'static str; 2]),
    /// A layer, an activation and a `LayerNorm`, and the labels' layer, of the first token or the mean.
    ModernBert,
    /// The labels' layer alone, of the last token.
    LastToken(&'static str),
}

/// The classes that are supported.
const HEADS: &[(&str, Head)] = &[
    ("BertForSequenceClassification", Head::Pooler(["bert.pooler.dense", "classifier"])),
    ("RobertaForSequenceClassification", Head::Pooler(["classifier.dense", "classifier.out_proj"])),
    ("XLMRobertaForSequenceClassification", Head::Pooler(["classifier.dense", "classifier.out_proj"])),
    ("CamembertForSequenceClassification", Head::Pooler(["classifier.dense", "classifier.out_proj"])),
    ("MPNetForSequenceClassification", Head::Pooler(["classifier.dense", "classifier.out_proj"])),
    ("AlbertForSequenceClassification", Head::Pooler(["albert.pooler", "classifier"])),
    ("NewForSequenceClassification", Head::Pooler(["new.pooler.dense", "classifier"])),
    ("DistilBertForSequenceClassification", Head::Relu(["pre_classifier", "classifier"])),
    ("ModernBertForSequenceClassification", Head::ModernBert),
    ("Qwen2ForSequenceClassification", Head::LastToken("score")),
    ("Qwen3ForSequenceClassification", Head::LastToken("score")),
];

/// Their names.
pub fn classes() -> impl Iterator<Item = &'static str> {
    HEADS.iter().map(|(class, _)| *class)
}

#[derive(Default, Deserialize)]
struct Class {
    architectures: Option<Vec<String>>,
}

// Read only where the class is the right one: others may mean something else by these names.
#[derive(Default, Deserialize)]
struct Config {
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    sentence_transformers: Option<Saved>,
    sbert_ce_default_activation_function: Option<String>,
}

/// What sentence-transformers keeps of a cross-encoder.
#[derive(Default, Deserialize)]
struct Saved {
    model_type: Option<String>,
    activation_fn: Option<String>,
}

/// What is classified by the model in `path`, with its head as modules; nothing where it makes vectors.
pub(super) fn read(
    path: &Path,
    encoder: &Encoder,
) -> Result<Option<(Classifier, (Pooling, Vec<Tail>))>, Error> {
    let file = path.join("config.json");
    let class: Class = json_if_there(&file)?.unwrap_or_default();
    let modules: Option<Vec<Module>> = json_if_there(&path.join(MODULES))?;
    let saved_at = path.join("config_sentence_transformers.json");
    let saved: Saved = json_if_there(&saved_at)?.unwrap_or_default();
    let found = class.architectures.iter().flatten().find(|class| class.ends_with(CLASS));
    let is_class = found.is_some();
    let alone = modules.as_ref().is_none_or(|modules| modules.len() == 1);
    if saved.model_type.as_deref() == Some("CrossEncoder") && !(is_class && alone) {
        let problem = format!("a CrossEncoder is supported where it is a lone …{CLASS}; this one is not");
        return Err(unsupported(&saved_at, problem));
    }
    if !(is_class && alone) {
        return Ok(None);
    }
    let class = found.map_or("", String::as_str);
    let Some((_, head)) = HEADS.iter().find(|(known, _)| *known == class) else {
        let known: Vec<_> = classes().collect();
        let problem = format!("class \"{class}\" is not supported; supported: {}", known.join(", "));
        return Err(unsupported(&file, problem));
    };
    let config: Config = json_if_there(&file)?.unwrap_or_default();
    let labels = labels(&file, &config)?;
    // Without a list of modules, sentence-transformers does not look into its own configuration.
    let saved = if modules.is_some() { saved } else { Saved::default() };
    let old = config.sbert_ce_default_activation_function;
    let own = match config.sentence_transformers {
        Some(Saved { activation_fn: Some(own), .. }) => Some(own),
        _ => old,
    };
    let said = [(&saved_at, saved.activation_fn), (&file, own)];
    let mut activations =
        said.iter().filter_map(|(file, class)| activation(file, class.as_deref()?).transpose());
    let default = if labels.len() == 1 { Activation::Sigmoid } else { Activation::Identity };
    let activation = activations.next().transpose()?.unwrap_or(default);
    let head = head_modules(*head, path, encoder, labels.len() as i64)?;
    Ok(Some((Classifier { labels, activation }, head)))
}

/// The names of the labels, in the order of the logits.
fn labels(file: &Path, config: &Config) -> Result<Vec<String>, Error> {
    let named = |labels: &BTreeMap<String, String>| -> Option<Vec<String>> {
        (0..labels.len()).map(|place| labels.get(&place.to_string()).cloned()).collect()
    };
    let labels = match &config.id2label {
        Some(labels) => named(labels)
            .ok_or_else(|| unsupported(file, "the keys of id2label are not 0, 1, 2 and so on".into()))?,
        // transformers' default is two.
        None => (0..config.num_labels.unwrap_or(2).min(MOST_LABELS + 1))
            .map(|place| format!("LABEL_{place}"))
            .collect(),
    };
    if labels.is_empty() || labels.len() > MOST_LABELS {
        let problem = format!("{} labels; a classifier has between 1 and {MOST_LABELS}", labels.len());
        return Err(unsupported(file, problem));
    }
    Ok(labels)
}

/// The activation of that class; nothing where it is none of PyTorch's, which sentence-transformers
/// does not trust, and leaves out as it is left out here.
fn activation(file: &Path, class: &str) -> Result<Option<Activation>, Error> {
    if !class.starts_with("torch.") {
        tracing::warn!(file = %file.display(), class, "an activation function that is not PyTorch's is not applied");
        return Ok(None);
    }
    match class.rsplit('.').next().unwrap_or_default() {
        "Identity" => Ok(Some(Activation::Identity)),
        "Sigmoid" => Ok(Some(Activation::Sigmoid)),
        _ => Err(unsupported(
            file,
            format!("activation_fn \"{class}\" is not supported; supported: Identity, Sigmoid"),
        )),
    }
}

/// What `ModernBERT`'s configuration says of its head.
#[derive(Deserialize)]
struct ModernBert {
    #[serde(default = "cls", rename = "classifier_pooling")]
    pooling: String,
    #[serde(default, rename = "classifier_bias")]
    bias: bool,
    #[serde(default = "gelu", rename = "classifier_activation")]
    activation: String,
}

fn cls() -> String {
    "cls".to_owned()
}

fn gelu() -> String {
    "gelu".to_owned()
}

/// The head as modules.
fn head_modules(
    head: Head,
    path: &Path,
    encoder: &Encoder,
    labels: i64,
) -> Result<(Pooling, Vec<Tail>), Error> {
    let hidden = encoder.hidden_size;
    let dense = |tensors, out_features, bias, activation| {
        let path = path.to_owned();
        Tail::Dense(Dense { path, tensors, in_features: hidden, out_features, bias, activation })
    };
    let two = |[first, second]: [&'static str; 2], activation| {
        vec![dense(first, hidden, true, activation), dense(second, labels, true, DenseActivation::Identity)]
    };
    Ok(match head {
        Head::Pooler(names) => (Pooling::of(Mode::Cls), two(names, DenseActivation::Tanh)),
        Head::Relu(names) => (Pooling::of(Mode::Cls), two(names, DenseActivation::Hidden(HiddenAct::Relu))),
        Head::LastToken(name) => {
            (Pooling::of(Mode::LastToken), vec![dense(name, labels, false, DenseActivation::Identity)])
        }
        Head::ModernBert => {
            let file = path.join("config.json");
            let config: ModernBert = super::json(&file, super::NOT_A_MODEL)?;
            let mode = match config.pooling.as_str() {
                "cls" => Mode::Cls,
                "mean" => Mode::Mean,
                other => {
                    let problem =
                        format!("classifier_pooling \"{other}\" is not supported; supported: cls, mean");
                    return Err(unsupported(&file, problem));
                }
            };
            let said = config.activation;
            let act = HiddenAct::NAMES.iter().find(|(name, _)| *name == said).map(|(_, act)| *act);
            let act = act.ok_or_else(|| {
                unsupported(&file, format!("classifier_activation \"{said}\" is not supported"))
            })?;
            let norm = VectorNorm {
                path: path.to_owned(),
                tensors: "head.norm",
                width: hidden,
                eps: encoder.norm.eps,
                bias: encoder.norm.bias,
            };
            let modules = vec![
                dense("head.dense", hidden, config.bias, DenseActivation::Hidden(act)),
                Tail::LayerNorm(norm),
                dense("classifier", labels, true, DenseActivation::Identity),
            ];
            (Pooling::of(mode), modules)
        }
    })
}
