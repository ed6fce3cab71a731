//! Which tensors a model computes with, told from its directory without loading it: `fetch` tells
//! the fingerprint of the model's space by that.

use super::directory::{Answer, Directory, Tail};
use super::weights::{Error, Weights};
use crate::space;

/// The tensors that the implementations read, as [`super::load`] tells them after reading.
pub fn tensors(directory: &Directory) -> Result<Vec<space::Tensor>, Error> {
    let weights = Weights::open(&directory.path)?.of(&directory.encoder);
    let tables = directory.encoder.tables().into_iter().map(|(names, _)| weights.first_of(&names));
    let names: Vec<String> = tables.chain(directory.encoder.tensors()).collect();
    let mut tensors = names.iter().map(|name| weights.describe(name)).collect::<Result<Vec<_>, _>>()?;
    for (place, module) in directory.unnormalized_tail().iter().enumerate() {
        let (path, name, bias) = match module {
            Tail::Dense(dense) => (&dense.path, dense.tensors, dense.bias),
            Tail::LayerNorm(norm) => (&norm.path, norm.tensors, norm.bias),
            Tail::Answer(answer) if !answer.tied => {
                let tensor = Weights::open(&answer.path)?.describe(Answer::TENSOR)?;
                let name = format!("module.{place}.{}", tensor.name);
                tensors.push(space::Tensor { name, ..tensor });
                continue;
            }
            Tail::Answer(_) | Tail::Normalize => continue,
        };
        let weights = Weights::open(path)?;
        for name in both(name).into_iter().take(1 + usize::from(bias)) {
            let tensor = weights.describe(&name)?;
            tensors.push(space::Tensor { name: format!("module.{place}.{name}"), ..tensor });
        }
    }
    Ok(tensors)
}

/// A module's weight and bias.
fn both(module: &str) -> [String; 2] {
    ["weight", "bias"].map(|part| format!("{module}.{part}"))
}
