//! Which tensors a model computes with, told from its directory without loading it: `fetch` tells
//! the fingerprint of the model's space by that.

use super::directory::{Directory, Encoder, Tail};
use super::weights::{Error, Weights};
use crate::space;

/// The tensors that the implementations read, as [`super::load`] tells them after reading.
pub fn tensors(directory: &Directory) -> Result<Vec<space::Tensor>, Error> {
    let Encoder::Bert(config) = &directory.encoder;
    let weights =
        Weights::open(&directory.path)?.with_prefix_of("embeddings.word_embeddings.weight", &["", "bert."]);
    let mut names: Vec<String> = ["word", "position", "token_type"]
        .map(|table| format!("embeddings.{table}_embeddings.weight"))
        .into_iter()
        .chain(both("embeddings.LayerNorm"))
        .collect();
    for layer in 0..config.num_hidden_layers {
        let part = |part: &str| format!("encoder.layer.{layer}.{part}");
        let parts = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ];
        names.extend(parts.iter().flat_map(|name| both(&part(name))));
    }
    let mut tensors = names.iter().map(|name| weights.describe(name)).collect::<Result<Vec<_>, _>>()?;
    for (place, module) in directory.unnormalized_tail().iter().enumerate() {
        if let Tail::Dense(dense) = module {
            let weights = Weights::open(&dense.path)?;
            for name in both(dense.tensors).into_iter().take(1 + usize::from(dense.bias)) {
                let tensor = weights.describe(&name)?;
                tensors.push(space::Tensor { name: format!("module.{place}.{name}"), ..tensor });
            }
        }
    }
    Ok(tensors)
}

/// A module's weight and bias.
fn both(module: &str) -> [String; 2] {
    ["weight", "bias"].map(|part| format!("{module}.{part}"))
}
