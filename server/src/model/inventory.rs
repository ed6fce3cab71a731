//! Which tensors a model computes with, told from its directory without loading it: `fetch` tells
//! the fingerprint of the model's space by that, and `inspect` what is wrong with the files.

use std::path::PathBuf;

use safetensors::Dtype;

use super::directory::{Answer, Directory, Tail};
use super::weights::{Error, Weights};
use crate::space;

/// What a tensor is for. It decides as what an implementation holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A table, of which rows are looked up.
    Table,
    /// The weight of a linear layer of the encoder.
    Linear,
    /// Anything else of the encoder: biases and norms.
    Small,
    /// Of a module after the encoder.
    Module,
    /// The layer of a language model's answer, of which two rows are read.
    Answer,
}

/// A tensor that the implementations read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// What it may be called, without a prefix.
    pub names: Vec<String>,
    /// Its shape.
    pub shape: Vec<i64>,
    /// What it is for.
    pub role: Role,
}

impl Needed {
    /// How many numbers it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size.max(0).unsigned_abs()).product()
    }
}

/// Tensors of one folder.
#[derive(Clone, Debug)]
pub struct Group {
    /// The folder.
    pub folder: PathBuf,
    /// The place of the module that they are of; nothing for the encoder.
    pub module: Option<usize>,
    /// The tensors.
    pub tensors: Vec<Needed>,
}

impl Group {
    fn open(&self, directory: &Directory) -> Result<Weights, Error> {
        let weights = Weights::open(&self.folder)?;
        Ok(if self.module.is_none() { weights.of(&directory.encoder) } else { weights })
    }

    /// A tensor as the fingerprint names it: two modules can have tensors of one name.
    fn named(&self, tensor: space::Tensor) -> space::Tensor {
        match self.module {
            None => tensor,
            Some(place) => space::Tensor { name: format!("module.{place}.{}", tensor.name), ..tensor },
        }
    }
}

/// What a configuration promises: every tensor that the implementations read. Reads no file.
pub fn needed(directory: &Directory) -> Vec<Group> {
    let encoder = &directory.encoder;
    let tables = encoder.tables().into_iter();
    let tables = tables.map(|(names, shape)| Needed { names, shape: shape.to_vec(), role: Role::Table });
    let others = encoder.tensors().into_iter().map(|(name, shape)| {
        let role = if shape.len() == 2 { Role::Linear } else { Role::Small };
        Needed { names: vec![name], shape, role }
    });
    let folder = directory.path.clone();
    let mut groups = vec![Group { folder, module: None, tensors: tables.chain(others).collect() }];
    for (place, module) in directory.unnormalized_tail().iter().enumerate() {
        let of = |name: &str, shape: &[i64]| {
            let (names, shape) = (vec![name.to_owned()], shape.to_vec());
            Needed { names, shape, role: Role::Module }
        };
        let both = |name: &str, weight: &[i64], bias: bool| {
            let bias = bias.then(|| of(&format!("{name}.bias"), &weight[..1]));
            std::iter::once(of(&format!("{name}.weight"), weight)).chain(bias).collect()
        };
        let (folder, tensors) = match module {
            Tail::Dense(dense) => {
                (&dense.path, both(dense.tensors, &[dense.out_features, dense.in_features], dense.bias))
            }
            Tail::LayerNorm(norm) => (&norm.path, both(norm.tensors, &[norm.width], norm.bias)),
            Tail::Answer(answer) if !answer.tied => {
                let layer = of(Answer::TENSOR, &[encoder.vocab_size, encoder.hidden_size]);
                (&answer.path, vec![Needed { role: Role::Answer, ..layer }])
            }
            Tail::Answer(_) | Tail::Normalize => continue,
        };
        groups.push(Group { folder: folder.clone(), module: Some(place), tensors });
    }
    groups
}

/// What is told of each tensor that is [`needed`], in their order.
fn each<T>(
    directory: &Directory,
    tell: impl Fn(&Group, &Weights, &Needed) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut told = Vec::new();
    for group in needed(directory) {
        let weights = group.open(directory)?;
        for tensor in &group.tensors {
            told.push(tell(&group, &weights, tensor)?);
        }
    }
    Ok(told)
}

/// The tensors that the implementations read, as [`super::load`] tells them after reading.
pub fn tensors(directory: &Directory) -> Result<Vec<space::Tensor>, Error> {
    each(directory, |group, weights, tensor| {
        Ok(group.named(weights.describe(&weights.first_of(&tensor.names))?))
    })
}

/// The same where their hashes are known already; nothing where some are not.
pub fn known(directory: &Directory) -> Option<Vec<space::Tensor>> {
    let known = each(directory, |group, weights, tensor| {
        Ok(weights.describe_known(&weights.first_of(&tensor.names)).map(|tensor| group.named(tensor)))
    });
    known.ok()?.into_iter().collect()
}

/// As what each of the tensors that are [`needed`] is stored, in their order. An error where one is missing, has
/// another shape than the configuration says, or numbers that cannot be read. Reads no numbers.
pub fn stored(directory: &Directory) -> Result<Vec<Dtype>, Error> {
    each(directory, |_, weights, tensor| weights.dtype(&weights.first_of(&tensor.names), &tensor.shape))
}
