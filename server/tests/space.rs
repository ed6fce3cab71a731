//! The fingerprint of a model's vector space, of real directories: the same however a model is
//! published and computed, another one for everything that decides which vectors may be compared.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use embedding_server::model::digests::{self, FILE};
use embedding_server::model::{Directory, Dtype, Implementation, Machine, Preference, inventory};
use embedding_server::models::{self, Manner};
use embedding_server::space::Space;
use embedding_server::tokenize::Overflow;
use serde_json::json;
use support::settings;
use support::tiny::{Stored, Tiny, Written, serialize};

fn computed(path: &Path, implementation: Implementation, manner: &Manner) -> Space {
    let preference = Preference {
        implementation: Some(implementation),
        dtype: Some(Dtype::Float32),
        ..settings().preference
    };
    let directory = Directory::read(path).unwrap();
    models::load(directory, "test".into(), preference, manner).unwrap().about.space()
}

fn space(written: &Written) -> Space {
    computed(written.path(), Implementation::Packed, &Manner::default())
}

/// As `fetch` tells it, who loads no model.
fn told(written: &Written) -> Space {
    let directory = Directory::read(written.path()).unwrap();
    let files = directory.fingerprint(inventory::tensors(&directory).unwrap()).unwrap();
    let base = files.with_prompts(&directory.prompts, directory.default_prompt_name.as_deref());
    base.space(directory.dimensions(), directory.normalizes())
}

#[test]
fn a_model_has_one_space_however_it_is_published_and_computed() {
    let tiny = Tiny::new();
    let plain = tiny.write();
    let expected = space(&plain);
    assert_eq!(space(&Tiny::new().write()), expected, "of another copy");
    assert_eq!(computed(plain.path(), Implementation::RustBert, &Manner::default()), expected, "rust_bert");
    assert_eq!(told(&plain), expected, "without loading it");
    let rough = if Machine::detect().can_bf16 { Dtype::BFloat16 } else { Dtype::Float32 };
    let preference = Preference {
        implementation: Some(Implementation::Packed),
        dtype: Some(rough),
        ..settings().preference
    };
    let manner = Manner {
        overflow: Overflow::ChunkMean,
        require_input_type: true,
        matryoshka: vec![8],
        ..Manner::default()
    };
    let directory = Directory::read(plain.path()).unwrap();
    let rougher = models::load(directory, "another".into(), preference, &manner).unwrap();
    assert_eq!(rougher.about.space(), expected, "in another number format, with other manners");

    let renamed = |rename: &dyn Fn(&str) -> String| {
        let mut tiny = Tiny::new();
        tiny.tensors = tiny.tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        space(&tiny.write())
    };
    assert_eq!(renamed(&|name| format!("bert.{name}")), expected, "with a prefix");
    let tensorflow = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    };
    assert_eq!(renamed(&tensorflow), expected, "with TensorFlow's names");

    let mut dense = Tiny::new();
    let weight = dense.tensors["embeddings.LayerNorm.weight"].clone();
    let square = Stored { shape: vec![16, 16], values: weight.values.repeat(16), ..weight.clone() };
    let modules = dense.modules.as_array_mut().unwrap();
    modules.insert(2, json!({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}));
    let config = json!({"in_features": 16, "out_features": 16, "bias": true}).to_string();
    let tensors = [("linear.weight".to_owned(), square), ("linear.bias".to_owned(), weight)].into();
    dense.files.push(("2_Dense/config.json".into(), config.into_bytes()));
    dense.files.push(("2_Dense/model.safetensors".into(), serialize(&tensors)));
    let dense = dense.write();
    let of_dense = space(&dense);
    assert_ne!(of_dense, expected);
    assert_eq!(told(&dense), of_dense, "with a dense module, without loading it");
    assert_eq!(computed(dense.path(), Implementation::RustBert, &Manner::default()), of_dense);

    let mut unread = Tiny::new();
    let pooler = unread.tensors["encoder.layer.0.attention.self.query.weight"].clone();
    unread.tensors.insert("pooler.dense.weight".into(), pooler);
    assert_eq!(space(&unread.write()), expected, "with a tensor that nothing reads");

    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut weight_map = serde_json::Map::new();
    for (index, (name, tensor)) in tiny.tensors.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", index % 2 + 1);
        weight_map.insert(name.clone(), json!(file));
        shards[index % 2].insert(name.clone(), tensor.clone());
    }
    let sharded = tiny.write();
    std::fs::remove_file(sharded.file("model.safetensors")).unwrap();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", index + 1);
        std::fs::write(sharded.file(&name), serialize(shard)).unwrap();
    }
    let index = json!({"weight_map": weight_map}).to_string();
    std::fs::write(sharded.file("model.safetensors.index.json"), index).unwrap();
    assert_eq!(space(&sharded), expected, "in two files");

    let mut unrelated = Tiny::new();
    unrelated.config["attention_probs_dropout_prob"] = json!(0.3);
    unrelated.files.push(("README.md".into(), b"about it".to_vec()));
    assert_eq!(space(&unrelated.write()), expected, "with another dropout and a README");
}

#[test]
fn everything_that_decides_its_vectors_changes_its_space() {
    type Change = fn(&mut Tiny);
    let changes: [(&str, Change); 14] = [
        ("one bit of one weight", |tiny| {
            let tensor = tiny.tensors.get_mut("encoder.layer.1.output.dense.bias").unwrap();
            tensor.values[3] = f32::from_bits(tensor.values[3].to_bits() ^ 1);
        }),
        ("weights in another format", |tiny| {
            tiny.tensors.values_mut().for_each(|tensor| tensor.dtype = safetensors::Dtype::F16);
        }),
        ("two tensors that change places", |tiny| {
            let (key, value) =
                ("encoder.layer.0.attention.self.key.bias", "encoder.layer.0.attention.self.value.bias");
            let (key_tensor, value_tensor) = (tiny.tensors[key].clone(), tiny.tensors[value].clone());
            tiny.tensors.insert(key.into(), value_tensor);
            tiny.tensors.insert(value.into(), key_tensor);
        }),
        ("the activation", |tiny| tiny.config["hidden_act"] = json!("relu")),
        ("the number of heads", |tiny| tiny.config["num_attention_heads"] = json!(4)),
        ("the epsilon", |tiny| tiny.config["layer_norm_eps"] = json!(1e-5)),
        ("a layer less", |tiny| tiny.config["num_hidden_layers"] = json!(1)),
        ("the pooling", |tiny| tiny.pooling = json!({"pooling_mode_cls_token": true})),
        ("a prompt that is not pooled", |tiny| tiny.pooling["include_prompt"] = json!(false)),
        ("no normalisation", |tiny| drop(tiny.modules.as_array_mut().unwrap().pop())),
        ("the longest input", |tiny| {
            let config = json!({"max_seq_length": 32}).to_string();
            tiny.files.push(("sentence_bert_config.json".into(), config.into_bytes()));
        }),
        ("lowercasing", |tiny| {
            let config = json!({"do_lower_case": true}).to_string();
            tiny.files.push(("sentence_bert_config.json".into(), config.into_bytes()));
        }),
        ("prompts", |tiny| {
            let config = json!({"prompts": {"query": "q: "}}).to_string();
            tiny.files.push(("config_sentence_transformers.json".into(), config.into_bytes()));
        }),
        ("a default prompt", |tiny| {
            let config = json!({"prompts": {"query": "q: "}, "default_prompt_name": "query"}).to_string();
            tiny.files.push(("config_sentence_transformers.json".into(), config.into_bytes()));
        }),
    ];
    let mut seen = HashMap::from([(space(&Tiny::new().write()), "nothing")]);
    for (what, change) in changes {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let found = space(&tiny.write());
        assert_eq!(seen.insert(found, what), None, "{what}");
    }
    let other_tokenizer = Tiny::new().write();
    let path = other_tokenizer.file("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"lowercase\":true", "\"lowercase\":false")).unwrap();
    assert_eq!(seen.insert(space(&other_tokenizer), "the tokenizer"), None);

    // What is set when the server starts counts as what is in the files.
    let plain = Tiny::new().write();
    let query = || [("query".to_owned(), "q: ".to_owned())].into();
    let prompted = Manner { prompts: query(), ..Manner::default() };
    let found = computed(plain.path(), Implementation::Packed, &prompted);
    assert_eq!(seen.get(&found), Some(&"prompts"));
    let default = Manner { default_prompt: Some("query".into()), ..prompted };
    let found = computed(plain.path(), Implementation::Packed, &default);
    assert_eq!(seen.get(&found), Some(&"a default prompt"));
}

#[test]
fn kept_hashes_are_believed_only_while_the_weights_are_those_that_were_hashed() {
    let written = Tiny::new().write();
    let expected = space(&written);
    digests::keep(written.path()).unwrap();
    let kept = std::fs::read_to_string(written.file(FILE)).unwrap();
    assert_eq!(space(&written), expected);

    // That they are read at all shows where they are wrong.
    let digit = kept.rfind(|c: char| c.is_ascii_hexdigit()).unwrap();
    let other = if &kept[digit..=digit] == "0" { "1" } else { "0" };
    std::fs::write(written.file(FILE), format!("{}{other}{}", &kept[..digit], &kept[digit + 1..])).unwrap();
    assert_ne!(space(&written), expected);

    // Changed weights of the same length.
    std::fs::write(written.file(FILE), &kept).unwrap();
    let mut changed = Tiny::new();
    changed.tensors.get_mut("encoder.layer.0.output.dense.bias").unwrap().values[0] += 1.0;
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(written.file("model.safetensors"), serialize(&changed.tensors)).unwrap();
    assert_eq!(space(&written), space(&changed.write()));

    // Half a file is none.
    std::fs::write(written.file("model.safetensors"), serialize(&Tiny::new().tensors)).unwrap();
    std::fs::write(written.file(FILE), &kept[..kept.len() / 2]).unwrap();
    assert_eq!(space(&written), expected);
}
