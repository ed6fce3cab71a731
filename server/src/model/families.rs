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
    /// A setting of `config.json` that tells them from another family with the same `model_type`, and its value.
    pub told_by: Option<(&'static str, &'static str)>,
    /// What the server calls them ([`Encoder::architecture`]).
    pub architectures: &'static [&'static str],
    /// What people call it, with models that are of it.
    pub name: &'static str,
    /// Repositories that hold such models.
    pub examples: &'static [Example],
    /// What of it is refused, and what has to be known besides.
    pub limits: &'static str,
    read: fn(Fields<'_>) -> Result<Encoder, String>,
}

/// A repository, and what its authors say belongs before texts.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// Its name.
    pub repository: &'static str,
    /// Before queries; empty where nothing is.
    pub query: &'static str,
    /// Before documents.
    pub document: &'static str,
}

impl Example {
    /// A model that wants nothing before texts.
    const fn plain(repository: &'static str) -> Self {
        Self::with(repository, "", "")
    }

    const fn with(repository: &'static str, query: &'static str, document: &'static str) -> Self {
        Self { repository, query, document }
    }

    const fn e5(repository: &'static str) -> Self {
        Self::with(repository, "query: ", "passage: ")
    }

    const fn nomic(repository: &'static str) -> Self {
        Self::with(repository, "search_query: ", "search_document: ")
    }

    /// Models that were trained with one instruction before queries, as BGE was.
    const fn bge(repository: &'static str) -> Self {
        Self::with(repository, "Represent this sentence for searching relevant passages: ", "")
    }
}

/// All of them. Of two with the same `model_type`, the one that is told by a setting comes first.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["bert"],
        told_by: Some(("position_embedding_type", "alibi")),
        architectures: &["jina_bert"],
        name: "JinaBERT v2",
        examples: &[
            Example::plain("jinaai/jina-embeddings-v2-base-en"),
            Example::plain("jinaai/jina-embeddings-v2-base-code"),
        ],
        limits: "`feed_forward_type` geglu or reglu",
        read: jina::read,
    },
    Family {
        model_types: &["bert"],
        told_by: None,
        architectures: &["bert"],
        name: "BERT",
        examples: &[
            Example::plain("sentence-transformers/all-MiniLM-L6-v2"),
            Example::bge("BAAI/bge-base-en-v1.5"),
            Example::e5("intfloat/e5-large-v2"),
            Example::plain("thenlper/gte-base"),
            Example::bge("mixedbread-ai/mxbai-embed-large-v1"),
        ],
        limits: "absolute positions; no decoders; rust_bert only with `layer_norm_eps` 1e-12",
        read: bert::read,
    },
    Family {
        model_types: &["roberta", "xlm-roberta", "camembert"],
        told_by: None,
        architectures: &["roberta", "xlm-roberta"],
        name: "RoBERTa, XLM-RoBERTa",
        examples: &[
            Example::e5("intfloat/multilingual-e5-large"),
            Example::plain("BAAI/bge-m3"),
            Example::plain("sentence-transformers/all-distilroberta-v1"),
        ],
        limits: "absolute positions; no decoders; of bge-m3 the dense vectors",
        read: roberta::read,
    },
    Family {
        model_types: &["distilbert"],
        told_by: None,
        architectures: &["distilbert"],
        name: "DistilBERT",
        examples: &[Example::plain("sentence-transformers/multi-qa-distilbert-cos-v1")],
        limits: "",
        read: distilbert::read,
    },
    Family {
        model_types: &["mpnet"],
        told_by: None,
        architectures: &["mpnet"],
        name: "MPNet",
        examples: &[
            Example::plain("sentence-transformers/all-mpnet-base-v2"),
            Example::plain("sentence-transformers/multi-qa-mpnet-base-dot-v1"),
        ],
        limits: "",
        read: mpnet::read,
    },
    Family {
        model_types: &["albert"],
        told_by: None,
        architectures: &["albert"],
        name: "ALBERT",
        examples: &[Example::plain("sentence-transformers/paraphrase-albert-small-v2")],
        limits: "absolute positions; one group of layers",
        read: albert::read,
    },
    Family {
        model_types: &["t5", "mt5"],
        told_by: None,
        architectures: &["t5"],
        name: "T5 encoders",
        examples: &[
            Example::plain("sentence-transformers/sentence-t5-base"),
            Example::plain("sentence-transformers/gtr-t5-base"),
        ],
        limits: "512 tokens, where no file says how many",
        read: t5::read,
    },
    Family {
        model_types: &["nomic_bert"],
        told_by: None,
        architectures: &["nomic_bert"],
        name: "NomicBERT",
        examples: &[Example::nomic("nomic-ai/nomic-embed-text-v1.5")],
        limits: "no scaling of positions; no mixture of experts",
        read: nomic_bert::read,
    },
    Family {
        model_types: &["modernbert"],
        told_by: None,
        architectures: &["modernbert"],
        name: "ModernBERT",
        examples: &[
            Example::plain("Alibaba-NLP/gte-modernbert-base"),
            Example::nomic("nomic-ai/modernbert-embed-base"),
        ],
        limits: "",
        read: modernbert::read,
    },
    Family {
        model_types: &["new", "gte"],
        told_by: None,
        architectures: &["new"],
        name: "GTE v1.5",
        examples: &[
            Example::plain("Alibaba-NLP/gte-base-en-v1.5"),
            Example::plain("Alibaba-NLP/gte-multilingual-base"),
        ],
        limits: "rotary positions, scaled by `ntk` or not; dense vectors only",
        read: gte::read,
    },
    Family {
        model_types: &["qwen3", "qwen2"],
        told_by: None,
        architectures: &["qwen3", "qwen2"],
        name: "Qwen decoders",
        examples: &[
            Example::with("Qwen/Qwen3-Embedding-0.6B", QWEN3_QUERY, ""),
            Example::with("Alibaba-NLP/gte-Qwen2-1.5B-instruct", GTE_QWEN2_QUERY, ""),
        ],
        limits: "no sliding windows; no scaling of positions but linear; texts end as gte-Qwen2's `tokenization_qwen.py` has it, \
                 which is not run",
        read: qwen::read,
    },
    Family {
        model_types: &["gemma3_text"],
        told_by: None,
        architectures: &["gemma3_text"],
        name: "Gemma 3",
        examples: &[Example::with(
            "google/embeddinggemma-300m",
            "task: search result | query: ",
            "title: none | text: ",
        )],
        limits: "no soft caps",
        read: gemma3::read,
    },
];

const QWEN3_QUERY: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:";
/// With a space behind it.
const GTE_QWEN2_QUERY: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ";

impl Family {
    fn has(&self, model_type: &str, fields: Fields<'_>) -> bool {
        let is_told = |(field, value): (&str, &str)| fields.get(field).and_then(Value::as_str) == Some(value);
        self.model_types.contains(&model_type) && self.told_by.is_none_or(is_told)
    }

    /// That of an encoder.
    pub fn of(encoder: &Encoder) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.architectures.contains(&encoder.architecture))
    }
}

/// Reads a `config.json`; the error is a fragment about that file.
pub fn read(config: &Value) -> Result<Encoder, String> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    let family = FAMILIES.iter().find(|family| family.has(model_type, Fields(config)));
    let family = family.ok_or_else(|| {
        let mut known: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        known.dedup();
        format!("architecture \"{model_type}\" is not supported; supported: {}", known.join(", "))
    })?;
    (family.read)(Fields(config))
}
