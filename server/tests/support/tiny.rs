//! Small BERT models with random weights, made in a temporary directory, to be
//! changed and damaged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};

use super::minilm;

const VOCABULARY: usize = 30_522;
const HIDDEN: usize = 16;
const INNER: usize = 32;
const POSITIONS: usize = 64;
const LAYERS: usize = 2;

/// A tensor to be written.
#[derive(Clone)]
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    pub dtype: Dtype,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.values.iter();
        Cow::Owned(match self.dtype {
            Dtype::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
            other => panic!("{other:?} is not written here"),
        })
    }

    fn data_len(&self) -> usize {
        self.data().len()
    }
}

/// A model that is not yet written.
pub struct Tiny {
    pub config: Value,
    pub modules: Value,
    pub pooling: Value,
    pub tensors: BTreeMap<String, Stored>,
    /// Extra files: path in the directory, content.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A temporary directory with a model in it.
pub struct Written {
    directory: tempfile::TempDir,
}

impl Written {
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Tiny {
    /// Two layers, 16 dimensions, `MiniLM`'s tokenizer.
    pub fn new() -> Self {
        Self::sized(HIDDEN, 2, INNER)
    }

    /// The same with other sizes.
    pub fn sized(hidden: usize, heads: usize, inner: usize) -> Self {
        let mut tensors = BTreeMap::new();
        let mut seed = 1u32;
        let mut add = |name: String, shape: &[usize], center: f32| {
            let values = (0..shape.iter().product())
                .map(|_| {
                    // A linear congruential generator (Numerical Recipes).
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    center + 0.4 * ((seed >> 8) as f32 / 8_388_608.0 - 1.0)
                })
                .collect();
            tensors.insert(name, Stored { shape: shape.to_vec(), values, dtype: Dtype::F32 });
        };
        add("embeddings.word_embeddings.weight".into(), &[VOCABULARY, hidden], 0.0);
        add("embeddings.position_embeddings.weight".into(), &[POSITIONS, hidden], 0.0);
        add("embeddings.token_type_embeddings.weight".into(), &[2, hidden], 0.0);
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            for (part, out, input) in [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", inner, hidden),
                ("output.dense", hidden, inner),
            ] {
                add(name(&format!("{part}.weight")), &[out, input], 0.0);
                add(name(&format!("{part}.bias")), &[out], 0.0);
            }
            norms.extend([name("attention.output.LayerNorm"), name("output.LayerNorm")]);
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[hidden], 1.0);
            add(format!("{norm}.bias"), &[hidden], 0.0);
        }
        Self {
            config: json!({
                "model_type": "bert",
                "architectures": ["BertModel"],
                "vocab_size": VOCABULARY,
                "hidden_size": hidden,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": heads,
                "intermediate_size": inner,
                "hidden_act": "gelu",
                "attention_probs_dropout_prob": 0.1,
                "hidden_dropout_prob": 0.1,
                "initializer_range": 0.02,
                "max_position_embeddings": POSITIONS,
                "type_vocab_size": 2,
                "layer_norm_eps": 1e-12,
            }),
            modules: json!([
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
            ]),
            pooling: json!({"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": true}),
            tensors,
            files: Vec::new(),
        }
    }

    /// Writes the directory.
    pub fn write(&self) -> Written {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let json = |name: &str, value: &Value| std::fs::write(path.join(name), value.to_string()).unwrap();
        std::fs::create_dir(path.join("1_Pooling")).unwrap();
        json("config.json", &self.config);
        json("modules.json", &self.modules);
        json("1_Pooling/config.json", &self.pooling);
        std::fs::copy(minilm().join("tokenizer.json"), path.join("tokenizer.json")).unwrap();
        std::fs::write(path.join("model.safetensors"), serialize(&self.tensors)).unwrap();
        for (name, content) in &self.files {
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        Written { directory }
    }
}

/// The bytes of a safetensors file.
pub fn serialize(tensors: &BTreeMap<String, Stored>) -> Vec<u8> {
    safetensors::serialize(tensors.iter(), None).unwrap()
}
