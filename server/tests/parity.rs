//! The vectors are those of Python's sentence-transformers.
//!
//! `scripts/parity-fixture` made the texts and their vectors.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]
#![expect(clippy::print_stdout, reason = "a test's figures are worth seeing")]

mod support;

use std::sync::Arc;

use embedding_server::kernels::cpu::{Cpu, InstructionSet};
use embedding_server::metrics::Metrics;
use embedding_server::model::{
    self, Directory, Dtype, Implementation, Machine, Plan, Preference, TokenBatch,
};
use embedding_server::models::{self, Manner, Models, Settings};
use embedding_server::options::Options;
use embedding_server::tokenize::{Encode, How, Tokenizer, Tokens};
use embedding_server::worker::Threads;
use serde_json::json;
use support::golden::Golden;
use support::tiny::{Tiny, Written, serialize};
use support::{cosine, minilm, serving, settings};

fn tokenized(texts: &[String]) -> Vec<Tokens> {
    let directory = Directory::read(&minilm()).unwrap();
    let tokenizer = Tokenizer::load(&directory, 30_522).unwrap();
    texts.iter().map(|text| tokenizer.encode(text, &How::default()).unwrap()).collect()
}

const fn plan(implementation: Implementation, dtype: Dtype) -> Plan {
    Plan::on_cpu(implementation, dtype)
}

const fn fused(set: InstructionSet) -> Plan {
    Plan { kernels: Some(set), ..plan(Implementation::Fused, Dtype::of(set)) }
}

/// The least cosine that is good enough.
const fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float32 => 0.999_999,
        Dtype::BFloat16 | Dtype::Float16 => 0.9999,
    }
}

/// The smallest cosine to the fixture over all texts, embedded in batches of
/// `size` texts in order of length.
fn smallest_cosine(plan: Plan, size: usize) -> f64 {
    let Plan { implementation, dtype, .. } = plan;
    let fixture = Golden::read();
    let tokens = tokenized(&fixture.texts);
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&index| tokens[index].len());
    let mut model = model::load_path(&minilm(), plan).unwrap();
    let mut smallest = f64::INFINITY;
    for chunk in order.chunks(size) {
        let batch: TokenBatch = chunk.iter().map(|&index| &tokens[index].pieces[0]).collect();
        let values = model.embed(&batch).unwrap();
        for (vector, &index) in values.chunks_exact(384).zip(chunk) {
            let cosine = cosine(vector, &fixture.vectors[index]);
            if cosine < smallest {
                smallest = cosine;
                println!("{implementation} {dtype}: {cosine:.8} at {:.40?}", fixture.texts[index]);
            }
        }
    }
    smallest
}

#[test]
fn the_fixture_has_at_least_300_texts_and_their_vectors() {
    let fixture = Golden::read();
    assert!(fixture.texts.len() >= 300);
    assert_eq!(fixture.texts.len(), fixture.vectors.len());
    assert_eq!(fixture.texts.len(), fixture.tokens.len());
}

#[test]
fn every_text_has_as_many_tokens_as_in_python_and_long_ones_are_reported_as_cut() {
    let fixture = Golden::read();
    for ((text, python), ours) in fixture.texts.iter().zip(&fixture.tokens).zip(tokenized(&fixture.texts)) {
        assert_eq!(ours.len(), *python, "{text:.60?}");
    }
    let hello = |words: usize| tokenized(&["hello ".repeat(words)]).remove(0);
    assert_eq!((hello(254).len(), hello(254).truncated), (256, false));
    assert_eq!((hello(255).len(), hello(255).truncated), (256, true));
}

#[test]
fn packed_fp32_vectors_are_those_of_python() {
    let smallest = smallest_cosine(plan(Implementation::Packed, Dtype::Float32), 16);
    assert!(smallest >= 0.99999, "{smallest}");
}

#[test]
fn rust_bert_vectors_are_those_of_python() {
    let smallest = smallest_cosine(plan(Implementation::RustBert, Dtype::Float32), 16);
    assert!(smallest >= 0.99999, "{smallest}");
}

#[test]
fn packed_bf16_vectors_are_nearly_those_of_python() {
    if !Machine::detect().can_bf16 {
        println!("this CPU cannot compute in bfloat16: only the refusal is tested");
        let wish = Preference { dtype: Some(Dtype::BFloat16), ..settings().preference };
        let refusal = Plan::decide(wish, Machine::detect()).unwrap_err().to_string();
        assert!(refusal.starts_with("--dtype bfloat16: this CPU lacks"), "{refusal}");
        return;
    }
    let smallest = smallest_cosine(plan(Implementation::Packed, Dtype::BFloat16), 16);
    assert!(smallest >= 0.9997, "{smallest}");
}

/// Every set of instructions that this CPU has for the fused implementation; says which it lacks.
fn kernels() -> &'static [InstructionSet] {
    let sets = Cpu::this().sets();
    for missing in InstructionSet::ALL.iter().filter(|set| !sets.contains(set)) {
        println!("NOT RUN: fused vectors with {missing}, which this CPU lacks");
    }
    sets
}

#[test]
fn fused_token_states_in_fp32_are_those_of_packed() {
    if !kernels().contains(&InstructionSet::Avx512F32) {
        return;
    }
    let tokens = tokenized(&Golden::read().texts);
    let batch: TokenBatch = tokens.iter().map(|tokens| &tokens.pieces[0]).collect();
    let states = |plan| model::load_path(&minilm(), plan).unwrap().states(&batch).unwrap();
    let ours = states(fused(InstructionSet::Avx512F32));
    let packed = states(plan(Implementation::Packed, Dtype::Float32));
    assert_eq!((ours.len(), packed.len()), (batch.tokens() * 384, batch.tokens() * 384));
    let cosines =
        ours.chunks_exact(384).zip(packed.chunks_exact(384)).map(|(ours, packed)| cosine(ours, packed));
    let smallest = cosines.fold(f64::INFINITY, f64::min);
    println!("{smallest:.8} at the worst of {} tokens", batch.tokens());
    assert!(smallest >= bound(Dtype::Float32), "{smallest}");
}

#[test]
fn fused_vectors_are_nearly_those_of_python_with_all_instructions_that_there_are() {
    for &set in kernels() {
        for size in [1, 16, 100] {
            let smallest = smallest_cosine(fused(set), size);
            assert!(smallest >= bound(Dtype::of(set)), "{set}: {smallest}");
        }
    }
    if kernels().is_empty() {
        let wish = Preference { implementation: Some(Implementation::Fused), ..settings().preference };
        let refusal = Plan::decide(wish, Machine::detect()).unwrap_err().to_string();
        assert!(refusal.contains("this CPU lacks"), "{refusal}");
    }
}

/// The real model behind the real batcher.
fn in_service(name: &str, plan: Plan) -> (Arc<Models>, Arc<Metrics>) {
    let settings = Settings {
        preference: Preference {
            implementation: Some(plan.implementation),
            dtype: Some(plan.dtype),
            kernels: plan.kernels,
            ..settings().preference
        },
        threads: Threads { workers: 2, per_worker: 1 },
        ..settings()
    };
    let directory = Directory::read(&minilm()).unwrap();
    let loaded = models::load(directory, "test".into(), settings.preference, &Manner::default()).unwrap();
    assert_eq!(loaded.about.plan, plan);
    serving(&settings, [(name, [].as_slice(), loaded)])
}

/// The count of a histogram's observations above `bound`, and of all.
fn observations(metrics: &Metrics, histogram: &str, bound: &str) -> (u64, u64) {
    let text = metrics.encode().unwrap();
    let value = |start: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no {start} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let below = value(&format!("{histogram}_bucket{{le=\"{bound}\""));
    let all = value(&format!("{histogram}_count"));
    (all - below, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_does_not_depend_on_what_its_text_was_batched_with() {
    let fixture = Golden::read();
    let fused = kernels().iter().map(|&set| fused(set));
    let exact = [Implementation::Packed, Implementation::RustBert];
    for plan in exact.map(|implementation| plan(implementation, Dtype::Float32)).into_iter().chain(fused) {
        let (models, metrics) = in_service("minilm", plan);
        let front_door = models.get(None).unwrap().embedder;
        // Texts of every kind of length, the very long ones among them.
        let picked: Vec<usize> = (0..fixture.texts.len()).step_by(4).collect();
        let mut alone = Vec::new();
        for &index in &picked {
            alone.push(
                front_door.embed_texts(vec![fixture.texts[index].clone()]).await.unwrap().vectors.remove(0),
            );
        }
        let (batched, lone) = observations(&metrics, "embedding_batch_texts", "1.0");
        assert_eq!((batched, lone), (0, picked.len() as u64), "each text was alone");

        // All of them again, at once, in requests of 1, 2, 3, … texts, in another order
        // each time: the batcher mixes them as it likes.
        for round in 0..3usize {
            let mut order: Vec<usize> = (0..picked.len()).collect();
            order.rotate_left(round * 17 % picked.len());
            if round == 1 {
                order.reverse();
            }
            let mut requests = Vec::new();
            let mut rest = order.as_slice();
            for size in 1.. {
                let (own, others) = rest.split_at(size.min(rest.len()));
                if own.is_empty() {
                    break;
                }
                let texts = own.iter().map(|&place| fixture.texts[picked[place]].clone()).collect();
                let front_door = Arc::clone(&front_door);
                let own = own.to_vec();
                requests
                    .push(tokio::spawn(async move { (own, front_door.embed_texts(texts).await.unwrap()) }));
                rest = others;
            }
            for request in requests {
                let (places, embedded) = request.await.unwrap();
                for (place, vector) in places.into_iter().zip(embedded.vectors) {
                    let cosine = cosine(&vector, &alone[place]);
                    assert!(
                        cosine >= 0.999_999,
                        "{plan:?}: {cosine} for {:.40?}",
                        fixture.texts[picked[place]]
                    );
                }
            }
        }
        let (batched, all) = observations(&metrics, "embedding_batch_texts", "1.0");
        println!("{plan:?}: {batched} batches of more than one text, {all} in all");
        assert!(batched >= 10, "{batched} of {all} batches had more than one text");
        models.stop();
    }
}

/// Vectors of a few texts, in fp32.
fn embed(written: &Written, implementation: Implementation) -> Vec<Vec<f32>> {
    embed_by(written, plan(implementation, Dtype::Float32))
}

/// Vectors of a few texts.
fn embed_by(written: &Written, plan: Plan) -> Vec<Vec<f32>> {
    let directory = Directory::read(written.path()).unwrap();
    let tokenizer = Tokenizer::load(&directory, 30_522).unwrap();
    let texts = ["", "a few words", "a few more words than that", "one two three"];
    let tokens: Vec<Tokens> =
        texts.iter().map(|text| tokenizer.encode(text, &How::default()).unwrap()).collect();
    let batch: TokenBatch = tokens.iter().map(|tokens| &tokens.pieces[0]).collect();
    let values = model::load_path(written.path(), plan).unwrap().embed(&batch).unwrap();
    values.chunks_exact(directory.dimensions()).map(<[f32]>::to_vec).collect()
}

fn assert_same(name: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>], bound: f64) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        let cosine = cosine(ours, theirs);
        assert!(cosine >= bound, "{name}: {cosine}");
    }
}

#[test]
fn packed_and_rust_bert_agree_on_every_configuration_that_both_know() {
    type Change = fn(&mut Tiny);
    let table: [(&str, Change); 8] = [
        ("mean", |_| {}),
        ("cls", |tiny| tiny.pooling = json!({"pooling_mode_cls_token": true})),
        ("max", |tiny| tiny.pooling = json!({"pooling_mode": "max"})),
        ("last token", |tiny| tiny.pooling = json!({"pooling_mode": "lasttoken"})),
        ("relu", |tiny| tiny.config["hidden_act"] = json!("relu")),
        ("gelu_new", |tiny| tiny.config["hidden_act"] = json!("gelu_new")),
        ("one head", |tiny| tiny.config["num_attention_heads"] = json!(1)),
        ("not normalised", |tiny| drop(tiny.modules.as_array_mut().unwrap().pop())),
    ];
    let plain = embed(&Tiny::new().write(), Implementation::Packed);
    for (name, change) in table {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let written = tiny.write();
        let packed = embed(&written, Implementation::Packed);
        assert_same(name, &packed, &embed(&written, Implementation::RustBert), 0.99999);
        let normalizes = Directory::read(written.path()).unwrap().normalizes();
        assert_eq!(normalizes, name != "not normalised", "{name}");
        // Each setting but these two must matter, or agreement would prove nothing.
        let same = packed.iter().zip(&plain).all(|(a, b)| cosine(a, b) > 0.99999);
        assert_eq!(same, matches!(name, "mean" | "not normalised" | "gelu_new"), "{name}");
    }
}

#[test]
fn fused_agrees_with_packed_on_every_configuration() {
    type Change = fn(&mut Tiny);
    let table: [(&str, (usize, usize, usize), Change); 10] = [
        ("heads of 32", (64, 2, 128), |_| {}),
        ("heads of 64", (128, 2, 64), |_| {}),
        ("an inner width that has to be padded", (96, 3, 100), |_| {}),
        ("one head", (32, 1, 33), |_| {}),
        ("cls", (64, 2, 128), |tiny| tiny.pooling = json!({"pooling_mode_cls_token": true})),
        ("max", (64, 2, 128), |tiny| tiny.pooling = json!({"pooling_mode": "max"})),
        ("last token", (64, 2, 128), |tiny| tiny.pooling = json!({"pooling_mode": "lasttoken"})),
        ("relu", (64, 2, 128), |tiny| tiny.config["hidden_act"] = json!("relu")),
        ("gelu_new", (64, 2, 128), |tiny| tiny.config["hidden_act"] = json!("gelu_new")),
        ("not normalised", (64, 2, 128), |tiny| drop(tiny.modules.as_array_mut().unwrap().pop())),
    ];
    for &set in kernels() {
        for (name, (hidden, heads, inner), change) in &table {
            let mut tiny = Tiny::sized(*hidden, *heads, *inner);
            change(&mut tiny);
            let written = tiny.write();
            let packed = embed(&written, Implementation::Packed);
            let bound = match Dtype::of(set) {
                Dtype::Float32 => 0.999_999,
                Dtype::BFloat16 | Dtype::Float16 => 0.9995,
            };
            assert_same(&format!("{name}, {set}"), &embed_by(&written, fused(set)), &packed, bound);

            let directory = Directory::read(written.path()).unwrap();
            let space = |plan| {
                let (_, tensors) = model::load(&directory, plan).unwrap();
                directory.fingerprint(tensors).unwrap().with_prompts(&directory.prompts, None)
            };
            assert_eq!(
                space(fused(set)),
                space(plan(Implementation::Packed, Dtype::Float32)),
                "the same space, {name}"
            );
        }
    }
}

#[test]
fn weights_are_the_same_however_they_are_published() {
    let plain = embed(&Tiny::new().write(), Implementation::Packed);

    let mut prefixed = Tiny::new();
    prefixed.tensors =
        prefixed.tensors.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor)).collect();
    let mut tensorflow = Tiny::new();
    tensorflow.tensors = tensorflow
        .tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (name, tensor)
        })
        .collect();
    for (name, tiny) in [("prefixed", &prefixed), ("TensorFlow's names", &tensorflow)] {
        let written = tiny.write();
        for implementation in [Implementation::Packed, Implementation::RustBert] {
            assert_same(name, &embed(&written, implementation), &plain, 0.999_999);
        }
    }

    let sharded = Tiny::new();
    let written = sharded.write();
    std::fs::remove_file(written.file("model.safetensors")).unwrap();
    let mut shards = [sharded.tensors.clone(), sharded.tensors.clone()];
    let mut weight_map = serde_json::Map::new();
    for (index, name) in sharded.tensors.keys().enumerate() {
        shards[1 - index % 2].remove(name);
        weight_map.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", index % 2 + 1)));
    }
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", index + 1);
        std::fs::write(written.file(&name), serialize(shard)).unwrap();
    }
    std::fs::write(
        written.file("model.safetensors.index.json"),
        json!({"weight_map": weight_map}).to_string(),
    )
    .unwrap();
    assert_same("sharded", &embed(&written, Implementation::Packed), &plain, 0.999_999);

    for (dtype, bound) in [(safetensors::Dtype::F16, 0.9999), (safetensors::Dtype::BF16, 0.999)] {
        let mut tiny = Tiny::new();
        tiny.tensors.values_mut().for_each(|tensor| tensor.dtype = dtype);
        assert_same("half precision", &embed(&tiny.write(), Implementation::Packed), &plain, bound);
    }
}

#[test]
fn a_dense_module_and_a_default_prompt_take_part() {
    let mut tiny = Tiny::new();
    tiny.modules.as_array_mut().unwrap().insert(
        2,
        json!({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}),
    );
    let mut dense = std::collections::BTreeMap::new();
    let weight = tiny.tensors["encoder.layer.0.output.dense.weight"].clone();
    dense.insert("linear.weight".to_owned(), support::tiny::Stored { shape: vec![32, 16], ..weight.clone() });
    dense.insert("linear.bias".to_owned(), tiny.tensors["encoder.layer.0.intermediate.dense.bias"].clone());
    let config = json!({"in_features": 16, "out_features": 32, "bias": true,
        "activation_function": "torch.nn.modules.activation.Tanh"});
    tiny.files.push(("2_Dense/config.json".into(), config.to_string().into_bytes()));
    tiny.files.push(("2_Dense/model.safetensors".into(), serialize(&dense)));
    let written = tiny.write();
    let vectors = embed(&written, Implementation::Packed);

    // The same by hand: a linear layer with tanh on the vectors of a model without it.
    let mut without = Tiny::new();
    without.modules.as_array_mut().unwrap().pop();
    let pooled = embed(&without.write(), Implementation::Packed);
    let bias = &dense["linear.bias"].values;
    let by_hand: Vec<Vec<f32>> = pooled
        .iter()
        .map(|input| {
            let row = |out: usize| -> f32 {
                let products = weight.values[out * 16..][..16].iter().zip(input).map(|(w, x)| w * x);
                (products.sum::<f32>() + bias[out]).tanh()
            };
            (0..32).map(row).collect()
        })
        .collect();
    assert_same("dense", &vectors, &by_hand, 0.999_999);

    let mut prompted = Tiny::new();
    let prompts = json!({"prompts": {"query": "a few "}, "default_prompt_name": "query"});
    prompted.files.push(("config_sentence_transformers.json".into(), prompts.to_string().into_bytes()));
    let written = prompted.write();
    let directory = Directory::read(written.path()).unwrap();
    let tokenizer = Tokenizer::load(&directory, 30_522).unwrap();
    let loaded = models::load(directory, "test".into(), settings().preference, &Manner::default()).unwrap();
    let how = loaded.about.offer.decide(&Options::default()).unwrap().how;
    let whole = tokenizer.encode("a few words", &How::default()).unwrap();
    assert_eq!(tokenizer.encode("words", &how).unwrap(), whole);
    let again = tokenizer.encode("a few words", &how).unwrap();
    assert_eq!((again.pieces, again.had_prompt), (whole.pieces, true), "it has the prompt already");
}
