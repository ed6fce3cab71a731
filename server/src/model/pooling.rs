//! From token states to one vector a text (`sentence_transformers.models.Pooling`).

use serde_json::Value;
#[cfg(feature = "torch")]
use tch::{Kind, TchError, Tensor};

#[cfg(feature = "torch")]
use super::torch::{Reduce, segment_reduce};

/// Which token states make the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Their mean.
    Mean,
    /// The first one (`[CLS]`).
    Cls,
    /// The maximum of each dimension.
    Max,
    /// The last one.
    LastToken,
}

/// The pooling module's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Which token states make the vector.
    pub mode: Mode,
    /// Whether the prompt's tokens take part.
    pub include_prompt: bool,
}

impl Default for Pooling {
    /// What sentence-transformers takes for a model without modules.
    fn default() -> Self {
        Self { mode: Mode::Mean, include_prompt: true }
    }
}

/// Keys that sentence-transformers wrote before 5.5, one boolean a mode.
const FLAGS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

impl Pooling {
    /// Reads a pooling module's `config.json`; `width` is that of a token state.
    /// The error is a sentence fragment about the file.
    pub fn from_json(config: &Value, width: i64) -> Result<Self, String> {
        let named =
            ["embedding_dimension", "word_embedding_dimension"].iter().find_map(|key| config.get(key));
        if let Some(dimension) = named.and_then(Value::as_i64)
            && dimension != width
        {
            return Err(format!("pools vectors of {dimension} dimensions, but the encoder makes {width}"));
        }
        let modes: Vec<&str> = match config.get("pooling_mode") {
            Some(Value::String(mode)) => vec![mode],
            Some(Value::Array(modes)) => modes.iter().map(|mode| mode.as_str().unwrap_or("?")).collect(),
            _ => FLAGS
                .iter()
                .filter(|(key, _)| config.get(key).and_then(Value::as_bool) == Some(true))
                .map(|&(_, mode)| mode)
                .collect(),
        };
        let mode = match modes.as_slice() {
            [] | ["mean"] => Mode::Mean,
            ["cls"] => Mode::Cls,
            ["max"] => Mode::Max,
            ["lasttoken"] => Mode::LastToken,
            other => {
                return Err(format!(
                    "pooling mode {} is not supported; supported: mean, cls, max, lasttoken, one of them",
                    other.join(" + ")
                ));
            }
        };
        let include_prompt = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { mode, include_prompt })
    }

    /// The mode's name as configuration files have it.
    pub const fn name(&self) -> &'static str {
        match self.mode {
            Mode::Mean => "mean",
            Mode::Cls => "cls",
            Mode::Max => "max",
            Mode::LastToken => "lasttoken",
        }
    }

    /// Pools the token states of one text, `[tokens, width]` row by row, into `vector` `[width]`.
    /// The first `unpooled` tokens, fewer than all, take no part in a mean or a maximum.
    pub(crate) fn text(self, states: &[f32], unpooled: usize, vector: &mut [f32]) {
        let width = vector.len();
        let mut rows = states.chunks_exact(width);
        match self.mode {
            Mode::Cls => vector.copy_from_slice(&states[..width]),
            Mode::LastToken => vector.copy_from_slice(&states[states.len() - width..]),
            Mode::Mean => {
                vector.fill(0.0);
                let count = (rows.len() - unpooled) as f32;
                for row in rows.skip(unpooled) {
                    vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                for sum in vector.iter_mut() {
                    *sum /= count;
                }
            }
            Mode::Max => {
                vector.copy_from_slice(rows.nth(unpooled).unwrap_or_default());
                for row in rows {
                    // A NaN stays one: `f32::max` would hide it.
                    vector.iter_mut().zip(row).for_each(|(most, value)| {
                        if *value > *most || value.is_nan() {
                            *most = *value;
                        }
                    });
                }
            }
        }
    }

    /// Pools packed token states on `LibTorch`.
    ///
    /// `states` is `[rows, hidden]`; text *i* owns `lengths[i]` rows, in order, and
    /// rows after the last text are ignored. The first `unpooled[i]` of them, fewer than
    /// all, take no part in a mean or a maximum. Result: `[texts, hidden]`, f32.
    #[cfg(feature = "torch")]
    pub(crate) fn forward(
        self,
        states: &Tensor,
        lengths: &[i64],
        unpooled: &[i64],
    ) -> Result<Tensor, TchError> {
        let total: i64 = lengths.iter().sum();
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        match self.mode {
            Mode::Cls | Mode::LastToken => {
                let rows: Vec<i64> = match self.mode {
                    Mode::Cls => ends.zip(lengths).map(|(end, length)| end - length).collect(),
                    _ => ends.map(|end| end - 1).collect(),
                };
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(states.device())?;
                states.f_index_select(0, &rows)?.f_to_kind(Kind::Float)
            }
            Mode::Mean | Mode::Max => {
                let reduce = if self.mode == Mode::Mean { Reduce::Mean } else { Reduce::Max };
                // Summed in f32: a bf16 sum of hundreds of tokens loses whole digits.
                let states = states.f_narrow(0, 0, total)?.f_to_kind(Kind::Float)?;
                if unpooled.iter().all(|&tokens| tokens == 0) {
                    return segment_reduce(&states, lengths, reduce);
                }
                let texts = || ends.clone().zip(lengths).zip(unpooled);
                let rows: Vec<i64> =
                    texts().flat_map(|((end, length), unpooled)| end - length + unpooled..end).collect();
                let lengths: Vec<i64> = texts().map(|((_, length), unpooled)| length - unpooled).collect();
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(states.device())?;
                segment_reduce(&states.f_index_select(0, &rows)?, &lengths, reduce)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_and_names_choose_the_mode() {
        let table = [
            (json!({}), Ok("mean")),
            (json!({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": true}), Ok("mean")),
            (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}), Ok("cls")),
            (json!({"pooling_mode": "lasttoken"}), Ok("lasttoken")),
            (json!({"pooling_mode": ["max"]}), Ok("max")),
            (
                json!({"word_embedding_dimension": 5}),
                Err("pools vectors of 5 dimensions, but the encoder makes 4"),
            ),
            (
                json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
                Err(
                    "pooling mode cls + mean is not supported; supported: mean, cls, max, lasttoken, one of them",
                ),
            ),
        ];
        for (config, expected) in table {
            let got = Pooling::from_json(&config, 4);
            assert_eq!(got.as_ref().map(Pooling::name).map_err(String::as_str), expected, "{config}");
        }
    }

    #[test]
    fn each_mode_pools_its_own_rows_and_ignores_the_padding() {
        let states = [[1.0f32, -10.0], [3.0, -2.0], [5.0, 6.0], [99.0, 99.0]];
        let table = [
            (Mode::Mean, [2.0f32, -6.0, 5.0, 6.0]),
            (Mode::Cls, [1.0, -10.0, 5.0, 6.0]),
            (Mode::Max, [3.0, -2.0, 5.0, 6.0]),
            (Mode::LastToken, [3.0, -2.0, 5.0, 6.0]),
        ];
        for (mode, expected) in table {
            assert_eq!(pooled(mode, &states, &[2, 1], &[0, 0]), expected, "{mode:?}");
        }
    }

    #[test]
    fn a_prompt_that_is_not_to_be_pooled_is_left_out_of_means_and_maxima() {
        let states = [[9.0f32, 9.0], [1.0, -10.0], [3.0, -2.0], [5.0, 6.0]];
        let table = [
            (Mode::Mean, [2.0f32, -6.0, 5.0, 6.0]),
            (Mode::Max, [3.0, -2.0, 5.0, 6.0]),
            (Mode::Cls, [9.0, 9.0, 5.0, 6.0]),
            (Mode::LastToken, [3.0, -2.0, 5.0, 6.0]),
        ];
        for (mode, expected) in table {
            assert_eq!(pooled(mode, &states, &[3, 1], &[1, 0]), expected, "{mode:?}");
        }
    }

    /// What both ways to pool make of the texts, row by row.
    fn pooled(mode: Mode, states: &[[f32; 2]], lengths: &[i64], unpooled: &[i64]) -> Vec<f32> {
        let pooling = Pooling { mode, include_prompt: false };
        let mut rest = states.as_flattened();
        let mut vectors = Vec::new();
        for (&length, &unpooled) in lengths.iter().zip(unpooled) {
            let (own, others) = rest.split_at(2 * length as usize);
            let mut vector = [0.0; 2];
            pooling.text(own, unpooled as usize, &mut vector);
            vectors.extend(vector);
            rest = others;
        }
        #[cfg(feature = "torch")]
        {
            let tensor = pooling.forward(&Tensor::from_slice2(states), lengths, unpooled).unwrap();
            assert_eq!(Vec::<f32>::try_from(tensor.view(-1)).unwrap(), vectors, "{mode:?}");
        }
        vectors
    }
}
