//! rust-bert's `BertModel`, loaded from safetensors: the second implementation,
//! and the reference of the first in the parity tests.
//!
//! It pads every text to the longest of the batch, and computes in f32.

use rust_bert::bert::{BertConfig, BertEmbeddings, BertModel};
use tch::{Device, TchError, Tensor, nn};

use super::tail::tensors::Tail;
use super::torch::values;
use super::weights::Weights;
use super::{Directory, Error, Implementation, Model, TokenBatch};
use crate::space;

/// rust-bert writes this into every `LayerNorm`, whatever the configuration says.
const LAYER_NORM_EPS: f64 = 1e-12;

pub(super) struct Bert {
    model: BertModel<BertEmbeddings>,
    // The model's tensors live in here.
    variables: nn::VarStore,
    config: BertConfig,
    tail: Tail,
}

impl Bert {
    /// Loads the encoder and its tail for the CPU; with the tensors that were read.
    pub(super) fn load(directory: &Directory) -> Result<(Self, Vec<space::Tensor>), Error> {
        let encoder = &directory.encoder;
        let config = check(directory)?;
        let weights = Weights::open(&directory.path)?.of(encoder);
        check_shapes(&weights, &config)?;
        let (model, mut variables) = build(&config);
        for (name, mut variable) in variables.variables() {
            let tensor = weights.get(&published_name(&weights, &name), &variable.size())?;
            tch::no_grad(|| variable.f_copy_(&tensor))?;
        }
        variables.freeze();
        let (tail, of_tail) = Tail::load(directory, Device::Cpu)?;
        let mut read = weights.into_read();
        read.extend(of_tail);
        Ok((Self { model, variables, config, tail }, read))
    }

    /// The states of the batch's tokens: `[tokens, hidden]`.
    fn encode(&self, batch: &TokenBatch) -> Result<Tensor, Error> {
        let lengths = batch.lengths();
        let texts = lengths.len() as i64;
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let mut ids = vec![0i64; (texts * longest) as usize];
        let mut mask = vec![0i64; ids.len()];
        let mut segments = vec![0i64; ids.len()];
        let mut own_segments = batch.segments().unwrap_or_default().into_iter();
        let mut rest = batch.ids();
        for (row, &length) in lengths.iter().enumerate() {
            let (own, others) = rest.split_at(length as usize);
            let start = row * longest as usize;
            ids[start..start + own.len()].copy_from_slice(own);
            mask[start..start + own.len()].fill(1);
            segments[start..]
                .iter_mut()
                .zip(own_segments.by_ref().take(own.len()))
                .for_each(|(at, own)| *at = own);
            rest = others;
        }
        let ids = Tensor::f_from_slice(&ids)?.f_view([texts, longest])?;
        let mask = Tensor::f_from_slice(&mask)?.f_view([texts, longest])?;
        let segments = Tensor::f_from_slice(&segments)?.f_view([texts, longest])?;
        let states = self
            .model
            .forward_t(Some(&ids), Some(&mask), Some(&segments), None, None, None, None, false)
            .map_err(|error| Error::RustBert(error.to_string()))?
            .hidden_state;
        // Packed again, so that the tail is the same for every implementation.
        let own_rows = mask.f_view([-1i64])?.f_nonzero()?.f_squeeze()?.f_view([-1i64])?;
        let packed = states.f_view([texts * longest, -1])?.f_index_select(0, &own_rows)?;
        Ok(packed)
    }
}

/// The configuration of a model that it knows; refuses others.
pub(super) fn check(directory: &Directory) -> Result<BertConfig, Error> {
    let encoder = &directory.encoder;
    let path = directory.path.join("config.json");
    if !Implementation::RustBert.knows(encoder.architecture) {
        return Err(Error::Unavailable(format!(
            "{}: \"{}\" is none of the architectures that rust_bert serves here: bert; use --implementation packed",
            path.display(),
            encoder.architecture
        )));
    }
    if (encoder.norm.eps - LAYER_NORM_EPS).abs() > f64::EPSILON * LAYER_NORM_EPS {
        return Err(Error::Unavailable(format!(
            "{}: layer_norm_eps is {:e}, and rust-bert knows only {LAYER_NORM_EPS:e}; use --implementation packed",
            path.display(),
            encoder.norm.eps
        )));
    }
    // Through JSON, because the crate's activation type is private to it.
    let config = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.ok_or_else(|| Error::RustBert(format!("{} is not a configuration it accepts", path.display())))
}

/// Compares the configuration with the file: rust-bert sets aside what the configuration
/// says, and ends in a panic where that is absurd.
fn check_shapes(weights: &Weights, config: &BertConfig) -> Result<(), Error> {
    let hidden = config.hidden_size;
    let check = |name: String, shape: &[i64]| weights.check(&name, shape);
    for (part, rows) in [
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_position_embeddings),
        ("token_type_embeddings", config.type_vocab_size),
    ] {
        check(format!("embeddings.{part}.weight"), &[rows, hidden])?;
    }
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}.weight");
        check(name("attention.self.query"), &[hidden, hidden])?;
        check(name("intermediate.dense"), &[config.intermediate_size, hidden])?;
    }
    Ok(())
}

fn build(config: &BertConfig) -> (BertModel<BertEmbeddings>, nn::VarStore) {
    let variables = nn::VarStore::new(Device::Cpu);
    let model = BertModel::new_with_optional_pooler(variables.root(), config, false);
    (model, variables)
}

/// The name under which the checkpoint has a variable: some keep TensorFlow's
/// names of `LayerNorm`'s two tensors.
fn published_name(weights: &Weights, name: &str) -> String {
    if weights.contains(name) {
        return name.to_owned();
    }
    let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    if weights.contains(&old) { old } else { name.to_owned() }
}

impl Model for Bert {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Ok(values(&self.tail.forward(&self.encode(batch)?, batch)?)?)
    }

    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Ok(values(&self.encode(batch)?)?)
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        let (model, mut variables) = build(&self.config);
        let shared = self.variables.variables();
        for (name, mut variable) in variables.variables() {
            let tensor = shared
                .get(&name)
                .ok_or_else(|| Error::RustBert(format!("{name} is missing in the model to share")))?;
            share_data(&mut variable, tensor)?;
        }
        variables.freeze();
        Ok(Box::new(Self { model, variables, config: self.config.clone(), tail: self.tail.share() }))
    }
}

/// Makes `variable` use the storage of `tensor`.
fn share_data(variable: &mut Tensor, tensor: &Tensor) -> Result<(), TchError> {
    tch::no_grad(|| variable.f_set_data(tensor))
}
