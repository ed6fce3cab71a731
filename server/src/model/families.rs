//! The architectures: for each a reader of its `config.json`, and the names of its tensors.
//!
//! [`FAMILIES`] is the whole list. To add one is to write what it computes as an
//! [`Encoder`](super::encoder::Encoder), in a file of its own, and to name it there.

mod albert;
mod bert;
mod distilbert;
mod fields;
mod gemma3;
mod gte;
mod jina;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod qwen;
mod roberta;
mod t5;

use serde_json::Value;

use super::encoder::Encoder;
use fields::Fields;

/// Architectures that are read the same way.
#[derive(Clone, Copy)]
pub struct Family {
    /// Their names in `model_type`.
    pub model_types: &'static [&'static str],
    /// What people call it, with models that are of it.
    pub name: &'static str,
    /// Repositories that hold such models.
    pub examples: &'static [&'static str],
    read: fn(Fields<'_>) -> Result<Encoder, String>,
}

/// All of them.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["bert"],
        name: "BERT, JinaBERT v2",
        examples: &[
            "sentence-transformers/all-MiniLM-L6-v2",
            "BAAI/bge-base-en-v1.5",
            "intfloat/e5-large-v2",
            "thenlper/gte-base",
            "jinaai/jina-embeddings-v2-base-en",
            "jinaai/jina-embeddings-v2-base-code",
        ],
        read: bert::read,
    },
    Family {
        model_types: &["roberta", "xlm-roberta", "camembert"],
        name: "RoBERTa, XLM-RoBERTa",
        examples: &[
            "intfloat/multilingual-e5-large",
            "BAAI/bge-m3",
            "sentence-transformers/all-distilroberta-v1",
        ],
        read: roberta::read,
    },
    Family {
        model_types: &["distilbert"],
        name: "DistilBERT",
        examples: &["sentence-transformers/multi-qa-distilbert-cos-v1"],
        read: distilbert::read,
    },
    Family {
        model_types: &["mpnet"],
        name: "MPNet",
        examples: &[
            "sentence-transformers/all-mpnet-base-v2",
            "sentence-transformers/multi-qa-mpnet-base-dot-v1",
        ],
        read: mpnet::read,
    },
    Family {
        model_types: &["albert"],
        name: "ALBERT",
        examples: &["sentence-transformers/paraphrase-albert-small-v2"],
        read: albert::read,
    },
    Family {
        model_types: &["t5", "mt5"],
        name: "T5 encoders",
        examples: &["sentence-transformers/sentence-t5-base", "sentence-transformers/gtr-t5-base"],
        read: t5::read,
    },
    Family {
        model_types: &["nomic_bert"],
        name: "NomicBERT",
        examples: &["nomic-ai/nomic-embed-text-v1.5"],
        read: nomic_bert::read,
    },
    Family {
        model_types: &["modernbert"],
        name: "ModernBERT",
        examples: &["Alibaba-NLP/gte-modernbert-base", "nomic-ai/modernbert-embed-base"],
        read: modernbert::read,
    },
    Family {
        model_types: &["new", "gte"],
        name: "GTE v1.5",
        examples: &["Alibaba-NLP/gte-base-en-v1.5", "Alibaba-NLP/gte-multilingual-base"],
        read: gte::read,
    },
    Family {
        model_types: &["qwen3", "qwen2"],
        name: "Qwen decoders",
        examples: &["Qwen/Qwen3-Embedding-0.6B", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"],
        read: qwen::read,
    },
    Family {
        model_types: &["gemma3_text"],
        name: "Gemma 3",
        examples: &["google/embeddinggemma-300m"],
        read: gemma3::read,
    },
];

/// Reads a `config.json`; the error is a fragment about that file.
pub fn read(config: &Value) -> Result<Encoder, String> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    let family = FAMILIES.iter().find(|family| family.model_types.contains(&model_type));
    let family = family.ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        format!("architecture \"{model_type}\" is not supported; supported: {}", known.join(", "))
    })?;
    (family.read)(Fields(config))
}
