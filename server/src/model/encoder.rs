//! What an encoder computes, in one description for every architecture.
//!
//! ```text
//! config.json ─ families::read ─▶ Encoder ─┬─ tensors()  names and shapes in model.safetensors
//!                                          ├─ packed     computes any of them
//!                                          └─ fused      computes those that fit its kernels
//! ```
//!
//! An implementation reads from it what to compute and what it does not know, never which family it is.

mod distances;

use std::collections::BTreeMap;

pub use distances::{Bias, Distances, Rope};

/// The activation of a feed-forward, by its names in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenAct {
    /// GELU by the error function (`gelu`).
    Gelu,
    /// GELU by the tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// max(0, x) (`relu`).
    Relu,
    /// x · sigmoid(x) (`silu`, `swish`).
    Silu,
}

impl HiddenAct {
    /// The names that transformers has for them.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    /// The first of its names.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, act)| *act == self).map_or("", |(name, _)| name)
    }
}

/// What brings a row of states to one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// How.
    pub kind: NormKind,
    /// Added to the variance, or to the mean of squares.
    pub eps: f64,
    /// Whether it adds a bias; only a [`NormKind::Layer`] does.
    pub bias: bool,
}

/// The kinds of [`Norm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `LayerNorm` (Ba et al., 2016).
    Layer,
    /// `RMSNorm` (Zhang and Sennrich, 2019).
    Rms,
    /// The same, multiplied by one more than the weight, as Gemma has it.
    RmsPlusOne,
}

/// Where a layer has its norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// After each residual sum, as BERT.
    Post,
    /// Before attention and feed-forward, and once after the last layer.
    Pre,
    /// As [`Order::Pre`], and after attention and feed-forward before the sum, as Gemma 3.
    Sandwich,
}

/// Attention heads. Several heads of queries may share one of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub query: i64,
    /// Heads of keys and of values; they divide those of queries.
    pub key_value: i64,
    /// The width of each.
    pub size: i64,
}

/// Learned embeddings of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Rows of their table.
    pub rows: i64,
    /// The id of the padding token where positions count tokens that are not padding, from the number after
    /// that id on, as fairseq's models do (`RoBERTa`, `MPNet`). Otherwise they count from 0.
    pub padding: Option<i64>,
}

impl Learned {
    /// How many positions a text can have.
    pub const fn usable(self) -> i64 {
        match self.padding {
            Some(padding) => self.rows - padding - 1,
            None => self.rows,
        }
    }

    /// The row of each token of a text.
    pub fn of_text(self, ids: &[i64]) -> impl Iterator<Item = i64> {
        let mut next = self.padding.map_or(0, |padding| padding + 1);
        ids.iter().map(move |&id| {
            if Some(id) == self.padding {
                return id;
            }
            next += 1;
            next - 1
        })
    }
}

/// Whether linear layers add biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four layers, each with a bias or without")]
pub struct Biases {
    /// Those of queries, keys and values.
    pub query_key_value: bool,
    /// That of the attention's output.
    pub attention_output: bool,
    /// That into the feed-forward.
    pub up: bool,
    /// That out of it.
    pub down: bool,
}

impl Biases {
    /// All do.
    pub const ALL: Self = Self { query_key_value: true, attention_output: true, up: true, down: true };
    /// None does.
    pub const NONE: Self = Self { query_key_value: false, attention_output: false, up: false, down: false };
}

/// How queries and keys are normalised before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head of its own, with the same weights.
    Head,
    /// All heads together.
    Whole,
}

/// Queries, keys and values in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyValue {
    /// Three layers.
    Apart([&'static str; 3]),
    /// One under the other in one layer.
    Joined(&'static str),
}

/// The layer into the feed-forward in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    /// One, which is no gate.
    Plain(&'static str),
    /// Two: what goes through the activation, and what is multiplied with it.
    Apart([&'static str; 2]),
    /// Both in one, what goes through the activation first.
    GateFirst(&'static str),
    /// Both in one, what goes through the activation second.
    GateSecond(&'static str),
}

/// What the file calls its tensors, without `.weight` and `.bias`; empty where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// What all names may begin with, by the class that saved them.
    pub prefixes: &'static [&'static str],
    /// The embeddings of token ids, by either name.
    pub words: &'static [&'static str],
    /// Embeddings of positions.
    pub positions: &'static str,
    /// Embeddings of segments.
    pub segments: &'static str,
    /// The norm of embeddings.
    pub embedding_norm: &'static str,
    /// From embeddings to a wider state.
    pub projection: &'static str,
    /// The table of [`Bias::Buckets`].
    pub buckets: &'static str,
    /// What the names of a layer begin with; `{}` is its number.
    pub layer: &'static str,
    /// Queries, keys and values.
    pub query_key_value: QueryKeyValue,
    /// The norms of queries and of keys.
    pub query_key_norm: [&'static str; 2],
    /// The output of attention.
    pub attention_output: &'static str,
    /// The norm of attention, before or after it.
    pub attention_norm: &'static str,
    /// The norm of its output before the sum.
    pub attention_output_norm: &'static str,
    /// Into the feed-forward.
    pub up: Up,
    /// Out of it.
    pub down: &'static str,
    /// The norm of the feed-forward, before or after it.
    pub feed_forward_norm: &'static str,
    /// The norm of its output before the sum.
    pub feed_forward_output_norm: &'static str,
    /// The norm after the last layer.
    pub final_norm: &'static str,
}

/// An encoder's architecture and sizes. See the module.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Encoder {
    /// Its family, as `model_type` has it.
    pub architecture: &'static str,
    /// Rows of the table of token ids.
    pub vocab_size: i64,
    /// Width of a token state.
    pub hidden_size: i64,
    /// Width of an embedding, before it is projected to `hidden_size` where that is another.
    pub embedding_size: i64,
    /// Width of the feed-forward's inner state.
    pub intermediate_size: i64,
    /// How many layers.
    pub layers: i64,
    /// Whether they all have the weights of the first, as ALBERT's.
    pub shared_layer: bool,
    /// Heads of attention.
    pub heads: Heads,
    /// What embeddings of token ids are multiplied with.
    pub embedding_scale: Option<f64>,
    /// Whether embeddings are normalised before the first layer.
    pub embedding_norm: bool,
    /// Rows of the table of segments; 0 where there are none.
    pub segments: i64,
    /// Embeddings of positions.
    pub learned: Option<Learned>,
    /// The most positions where no table limits them.
    pub max_positions: Option<i64>,
    /// What is added to scores of attention.
    pub bias: Option<Bias>,
    /// What each layer's attention does with distances.
    pub distances: Vec<Distances>,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// What scores of attention are multiplied with, where it is not one over the root of a head's width.
    pub score_scale: Option<f64>,
    /// How queries and keys are normalised.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// All its norms.
    pub norm: Norm,
    /// Where they are.
    pub order: Order,
    /// Whether the first layer's attention is normalised before: not where that was just done.
    pub first_norm: bool,
    /// What the feed-forward does.
    pub activation: HiddenAct,
    /// Whether it multiplies what went through the activation with what did not (GLU, Shazeer, 2020).
    pub gated: bool,
    /// Whether linear layers add biases.
    pub biases: Biases,
    /// What the tensors are called.
    pub names: &'static Names,
}

/// A linear layer in the file: several, one under the other, make one of the encoder's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Its name without `.weight` and `.bias`.
    pub name: String,
    /// Rows of its weight.
    pub out_features: i64,
    /// Columns of it.
    pub in_features: i64,
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether its first half of rows is to come second.
    pub swapped: bool,
}

impl Encoder {
    /// The different rotary positions of its layers.
    pub fn ropes(&self) -> Vec<Rope> {
        let mut ropes: Vec<Rope> = Vec::new();
        for rope in self.distances.iter().filter_map(|distances| distances.rope) {
            if !ropes.contains(&rope) {
                ropes.push(rope);
            }
        }
        ropes
    }

    /// How wide all heads of queries are together.
    pub const fn query_width(&self) -> i64 {
        self.heads.query * self.heads.size
    }

    /// The same of keys, and of values.
    pub const fn key_value_width(&self) -> i64 {
        self.heads.key_value * self.heads.size
    }

    /// The longest text in tokens; nothing where only memory limits it.
    pub fn longest(&self) -> Option<i64> {
        let learned = self.learned.map(Learned::usable);
        [learned, self.max_positions].into_iter().flatten().min()
    }

    fn in_layer(&self, layer: i64, part: &str) -> String {
        let start = self.names.layer.replace("{}", &layer.to_string());
        format!("{start}{part}")
    }

    /// Queries, keys and values of a layer.
    pub fn query_key_value(&self, layer: i64) -> Vec<Affine> {
        let widths = [self.query_width(), self.key_value_width(), self.key_value_width()];
        let affine = |name, out_features| Affine {
            name: self.in_layer(layer, name),
            out_features,
            in_features: self.hidden_size,
            bias: self.biases.query_key_value,
            swapped: false,
        };
        match self.names.query_key_value {
            QueryKeyValue::Apart(names) => {
                names.into_iter().zip(widths).map(|(name, width)| affine(name, width)).collect()
            }
            QueryKeyValue::Joined(name) => vec![affine(name, widths.iter().sum())],
        }
    }

    /// The output of a layer's attention.
    pub fn attention_output(&self, layer: i64) -> Affine {
        Affine {
            name: self.in_layer(layer, self.names.attention_output),
            out_features: self.hidden_size,
            in_features: self.query_width(),
            bias: self.biases.attention_output,
            swapped: false,
        }
    }

    /// Into a layer's feed-forward; where it is gated, what goes through the activation first.
    pub fn up(&self, layer: i64) -> Vec<Affine> {
        let inner = self.intermediate_size;
        let affine = |name, out_features, swapped| Affine {
            name: self.in_layer(layer, name),
            out_features,
            in_features: self.hidden_size,
            bias: self.biases.up,
            swapped,
        };
        match self.names.up {
            Up::Plain(name) => vec![affine(name, inner, false)],
            Up::Apart(names) => names.map(|name| affine(name, inner, false)).to_vec(),
            Up::GateFirst(name) => vec![affine(name, 2 * inner, false)],
            Up::GateSecond(name) => vec![affine(name, 2 * inner, true)],
        }
    }

    /// Out of a layer's feed-forward.
    pub fn down(&self, layer: i64) -> Affine {
        Affine {
            name: self.in_layer(layer, self.names.down),
            out_features: self.hidden_size,
            in_features: self.intermediate_size,
            bias: self.biases.down,
            swapped: false,
        }
    }

    /// From embeddings to states, where these are wider.
    pub fn projection(&self) -> Option<Affine> {
        (!self.names.projection.is_empty()).then(|| Affine {
            name: self.names.projection.to_owned(),
            out_features: self.hidden_size,
            in_features: self.embedding_size,
            bias: true,
            swapped: false,
        })
    }

    /// The layers that have weights of their own.
    pub fn own_layers(&self) -> std::ops::Range<i64> {
        0..if self.shared_layer { 1 } else { self.layers }
    }

    /// The norms of a layer: its attention's, its attention's output's, its feed-forward's, and that one's
    /// output's.
    pub fn layer_norms(&self, layer: i64) -> [Option<String>; 4] {
        let names = self.names;
        let outputs = self.order == Order::Sandwich;
        let norm = |is_there: bool, part: &str| is_there.then(|| self.in_layer(layer, part));
        [
            norm(layer > 0 || self.first_norm, names.attention_norm),
            norm(outputs, names.attention_output_norm),
            norm(true, names.feed_forward_norm),
            norm(outputs, names.feed_forward_output_norm),
        ]
    }

    /// The norms of a layer's queries and keys, and how wide they are.
    pub fn query_key_norms(&self, layer: i64) -> Option<[(String, i64); 2]> {
        let widths = match self.query_key_norm? {
            QueryKeyNorm::Head => [self.heads.size; 2],
            QueryKeyNorm::Whole => [self.query_width(), self.key_value_width()],
        };
        let [query, key] = self.names.query_key_norm.map(|name| self.in_layer(layer, name));
        Some([(query, widths[0]), (key, widths[1])])
    }

    /// The tables: of token ids (by either of its names), positions, segments and classes of distances, with
    /// their shapes.
    pub fn tables(&self) -> Vec<(Vec<String>, [i64; 2])> {
        let names = self.names;
        let weight = |name: &str| format!("{name}.weight");
        let width = self.embedding_size;
        let words = names.words.iter().map(|name| weight(name)).collect();
        let mut tables = vec![(words, [self.vocab_size, width])];
        if let Some(learned) = self.learned {
            tables.push((vec![weight(names.positions)], [learned.rows, width]));
        }
        if self.segments > 0 {
            tables.push((vec![weight(names.segments)], [self.segments, width]));
        }
        if let Some(Bias::Buckets { count, .. }) = self.bias {
            tables.push((vec![weight(names.buckets)], [count, self.heads.query]));
        }
        tables
    }

    /// The names of all tensors but those of tables, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let affine = |Affine { name, out_features, in_features, bias, swapped: _ }: Affine| {
            let bias = bias.then(|| (format!("{name}.bias"), vec![out_features]));
            std::iter::once((format!("{name}.weight"), vec![out_features, in_features])).chain(bias)
        };
        let norm = |(name, width): (String, i64)| {
            let bias = self.norm.bias.then(|| (format!("{name}.bias"), vec![width]));
            std::iter::once((format!("{name}.weight"), vec![width])).chain(bias)
        };
        let (names, hidden) = (self.names, self.hidden_size);
        let mut all = Vec::new();
        let first = self.embedding_norm.then(|| (names.embedding_norm.to_owned(), self.embedding_size));
        all.extend(first.into_iter().flat_map(norm));
        all.extend(self.projection().into_iter().flat_map(affine));
        for layer in self.own_layers() {
            all.extend(self.query_key_value(layer).into_iter().flat_map(affine));
            all.extend(self.query_key_norms(layer).into_iter().flatten().flat_map(norm));
            all.extend(affine(self.attention_output(layer)));
            all.extend(self.up(layer).into_iter().flat_map(affine));
            all.extend(affine(self.down(layer)));
            let norms = self.layer_norms(layer).into_iter().flatten();
            all.extend(norms.flat_map(|name| norm((name, hidden))));
        }
        let last = Some(names.final_norm.to_owned()).filter(|name| !name.is_empty());
        all.extend(last.into_iter().flat_map(|name| norm((name, hidden))));
        all
    }

    /// What of the configuration the vectors depend on, besides the tensors and their shapes. What is as in BERT
    /// goes without saying: so what a later version learns to do changes the space of no model that it knew before.
    ///
    /// It is hashed: the words are never to change. `docs/vector-spaces.md` explains them.
    pub(super) fn decides(&self) -> BTreeMap<String, String> {
        // All of it, so that nothing is forgotten.
        let Self {
            architecture,
            vocab_size: _,
            hidden_size,
            embedding_size: _,
            intermediate_size: _,
            layers,
            shared_layer,
            heads,
            embedding_scale,
            embedding_norm,
            segments: _,
            learned,
            max_positions: _,
            bias,
            distances,
            causal,
            score_scale,
            query_key_norm,
            norm,
            order,
            first_norm,
            activation,
            gated,
            biases: _,
            names: _,
        } = self;
        let mut all = BTreeMap::new();
        let mut say = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
        say("model_type", (*architecture).to_owned());
        say("hidden_act", activation.name().to_owned());
        say("layer_norm_eps", norm.eps.to_string());
        say("num_attention_heads", heads.query.to_string());
        say("num_hidden_layers", layers.to_string());
        let mut differs = |is_so: bool, name: &str, value: String| {
            if is_so {
                say(name, value);
            }
        };
        differs(heads.key_value != heads.query, "num_key_value_heads", heads.key_value.to_string());
        differs(heads.query * heads.size != *hidden_size, "head_dim", heads.size.to_string());
        differs(*shared_layer, "shared_layer", "true".to_owned());
        differs(
            embedding_scale.is_some(),
            "embedding_scale",
            embedding_scale.unwrap_or_default().to_string(),
        );
        differs(!embedding_norm, "embedding_norm", "false".to_owned());
        let positions = match learned {
            None => Some("none".to_owned()),
            Some(Learned { padding: Some(padding), .. }) => Some(format!("after padding {padding}")),
            Some(Learned { padding: None, .. }) => None,
        };
        differs(positions.is_some(), "positions", positions.unwrap_or_default());
        let added = match bias {
            None => None,
            Some(Bias::Alibi) => Some("alibi".to_owned()),
            Some(Bias::Buckets { count, max_distance }) => Some(format!("buckets {count} {max_distance}")),
        };
        differs(added.is_some(), "distance_bias", added.unwrap_or_default());
        let of_layer = |distances: &Distances| {
            let rope = distances.rope.map(|Rope { theta, factor }| format!("rope {theta} {factor}"));
            let reach = distances.reach.map(|reach| format!("reach {reach}"));
            [rope, reach].into_iter().flatten().collect::<Vec<_>>().join(" ")
        };
        let distances: Vec<_> = distances.iter().map(of_layer).collect();
        differs(distances.iter().any(|layer| !layer.is_empty()), "distances", distances.join(", "));
        differs(*causal, "causal", "true".to_owned());
        differs(score_scale.is_some(), "score_scale", score_scale.unwrap_or_default().to_string());
        let query_key = match query_key_norm {
            None => None,
            Some(QueryKeyNorm::Head) => Some("head"),
            Some(QueryKeyNorm::Whole) => Some("whole"),
        };
        differs(query_key.is_some(), "query_key_norm", query_key.unwrap_or_default().to_owned());
        let kind = match norm.kind {
            NormKind::Layer => "layer",
            NormKind::Rms => "rms",
            NormKind::RmsPlusOne => "rms plus one",
        };
        differs(norm.kind != NormKind::Layer, "norm", kind.to_owned());
        let place = match order {
            Order::Post => "post",
            Order::Pre => "pre",
            Order::Sandwich => "sandwich",
        };
        differs(*order != Order::Post, "norm_order", place.to_owned());
        differs(!first_norm, "first_norm", "false".to_owned());
        differs(*gated, "gated", "true".to_owned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_fairseq_leave_padding_out_and_begin_behind_its_id() {
        let positions =
            |padding, ids: &[i64]| -> Vec<i64> { Learned { rows: 10, padding }.of_text(ids).collect() };
        assert_eq!(positions(None, &[5, 1, 6]), [0, 1, 2]);
        assert_eq!(positions(Some(1), &[5, 1, 6]), [2, 1, 3]);
        assert_eq!(Learned { rows: 514, padding: Some(1) }.usable(), 512);
    }
}
