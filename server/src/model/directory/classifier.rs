//! A directory with a sequence classification model, which sentence-transformers loads as a
//! `CrossEncoder`: BERT's pooler and a linear layer make a logit a label.
//!
//! ```text
//! config.json   architectures: ["BertForSequenceClassification"], id2label or num_labels,
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

use super::{Dense, DenseActivation, Error, MODULES, Module, Tail, json_if_there, unsupported};
use crate::model::pooling::{Mode, Pooling};
use crate::scores::{Activation, Classifier};

/// The class of transformers that it is.
const CLASS: &str = "BertForSequenceClassification";
/// The most labels; a model's own limit is its memory.
const MOST_LABELS: usize = 1 << 16;

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

/// What is classified by the model in `path`; nothing where it makes vectors.
pub(super) fn read(path: &Path) -> Result<Option<Classifier>, Error> {
    let file = path.join("config.json");
    let class: Class = json_if_there(&file)?.unwrap_or_default();
    let modules: Option<Vec<Module>> = json_if_there(&path.join(MODULES))?;
    let saved_at = path.join("config_sentence_transformers.json");
    let saved: Saved = json_if_there(&saved_at)?.unwrap_or_default();
    let is_class = class.architectures.iter().flatten().any(|class| class == CLASS);
    let alone = modules.as_ref().is_none_or(|modules| modules.len() == 1);
    if saved.model_type.as_deref() == Some("CrossEncoder") && !(is_class && alone) {
        let problem = format!("a CrossEncoder is supported where it is a lone {CLASS}; this one is not");
        return Err(unsupported(&saved_at, problem));
    }
    if !(is_class && alone) {
        return Ok(None);
    }
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
    Ok(Some(Classifier { labels, activation }))
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

/// The head as modules: BERT's pooler, which looks at the first token, and the classifier.
pub(super) fn modules(classifier: &Classifier, path: &Path, hidden: i64) -> (Pooling, Vec<Tail>) {
    let dense = |tensors, out_features, activation| {
        let path = path.to_owned();
        Tail::Dense(Dense { path, tensors, in_features: hidden, out_features, bias: true, activation })
    };
    let labels = classifier.labels.len() as i64;
    let tail = vec![
        dense("bert.pooler.dense", hidden, DenseActivation::Tanh),
        dense("classifier", labels, DenseActivation::Identity),
    ];
    (Pooling { mode: Mode::Cls, include_prompt: true }, tail)
}
