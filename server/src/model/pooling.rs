//! From token states to one vector a text (`sentence_transformers.models.Pooling`).

use serde_json::Value;
#[cfg(feature = "torch")]
use tch::{Kind, TchError, Tensor};

#[cfg(feature = "torch")]
use super::torch::{Reduce, segment_reduce, whole_numbers};

/// Which token states make the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The first one (`[CLS]`).
    Cls,
    /// The maximum of each dimension.
    Max,
    /// Their mean.
    Mean,
    /// Their sum, divided by the root of their number.
    MeanSqrtLen,
    /// Their mean, in which the first counts once, the second twice, and so on.
    WeightedMean,
    /// The last one.
    LastToken,
}

impl Mode {
    /// Their names in configuration files, with the keys that sentence-transformers wrote before 5.5, one boolean
    /// a mode; in the order in which it puts several side by side.
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Cls, "cls", "pooling_mode_cls_token"),
        (Self::Max, "max", "pooling_mode_max_tokens"),
        (Self::Mean, "mean", "pooling_mode_mean_tokens"),
        (Self::MeanSqrtLen, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        (Self::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
        (Self::LastToken, "lasttoken", "pooling_mode_lasttoken"),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(mode, ..)| *mode)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, ..)| *mode == self).map_or("", |(_, name, _)| name)
    }
}

/// The pooling module's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Which token states make the vector; the vectors of several lie side by side in one.
    pub modes: Vec<Mode>,
    /// Whether the prompt's tokens take part.
    pub include_prompt: bool,
}

impl Default for Pooling {
    /// What sentence-transformers takes for a model without modules.
    fn default() -> Self {
        Self::of(Mode::Mean)
    }
}

impl Pooling {
    /// One mode, of all tokens.
    pub fn of(mode: Mode) -> Self {
        Self { modes: vec![mode], include_prompt: true }
    }

    /// Reads a pooling module's `config.json`; `width` is that of a token state.
    /// The error is a sentence fragment about the file.
    pub fn from_json(config: &Value, width: i64) -> Result<Self, String> {
        let width_said =
            ["embedding_dimension", "word_embedding_dimension"].iter().find_map(|key| config.get(key));
        if let Some(dimension) = width_said.and_then(Value::as_i64)
            && dimension != width
        {
            return Err(format!("pools vectors of {dimension} dimensions, but the encoder makes {width}"));
        }
        let names: Vec<&str> = match config.get("pooling_mode") {
            Some(Value::String(mode)) => vec![mode],
            Some(Value::Array(modes)) => modes.iter().map(|mode| mode.as_str().unwrap_or("?")).collect(),
            _ => Mode::ALL
                .iter()
                .filter(|(_, _, key)| config.get(key).and_then(Value::as_bool) == Some(true))
                .map(|&(_, name, _)| name)
                .collect(),
        };
        let mode = |name: &&str| {
            Mode::named(name).ok_or_else(|| {
                let known: Vec<_> = Mode::ALL.iter().map(|(_, name, _)| *name).collect();
                format!("pooling mode {name} is not supported; supported: {}", known.join(", "))
            })
        };
        let mut modes = names.iter().map(mode).collect::<Result<Vec<_>, _>>()?;
        if modes.is_empty() {
            modes.push(Mode::Mean);
        }
        let include_prompt = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { modes, include_prompt })
    }

    /// The modes' names as configuration files have them, with a plus between.
    pub fn name(&self) -> String {
        self.modes.iter().map(|mode| mode.name()).collect::<Vec<_>>().join("+")
    }

    /// The width of what it makes of token states `width` wide.
    pub(crate) const fn width(&self, width: i64) -> i64 {
        width * self.modes.len() as i64
    }

    /// Pools the token states of one text, `[tokens, width]` row by row, to `[modes × width]`.
    /// The first `unpooled` tokens, fewer than all, take no part.
    pub(crate) fn text(&self, states: &[f32], width: usize, unpooled: usize) -> Vec<f32> {
        let mut vector = vec![0.0; width * self.modes.len()];
        for (mode, vector) in self.modes.iter().zip(vector.chunks_exact_mut(width)) {
            let mut rows = states.chunks_exact(width).skip(unpooled);
            let count = rows.len() as f32;
            match mode {
                Mode::Cls => vector.copy_from_slice(rows.next().unwrap_or_default()),
                Mode::LastToken => vector.copy_from_slice(rows.next_back().unwrap_or_default()),
                Mode::Mean => average(rows.map(|row| (row, 1.0)), count, vector),
                Mode::MeanSqrtLen => average(rows.map(|row| (row, 1.0)), count.sqrt(), vector),
                Mode::WeightedMean => {
                    // Of its place in the text, that of a prompt before it counted.
                    let weights = || (unpooled + 1..).map(|weight| weight as f32);
                    let whole = weights().take(rows.len()).sum();
                    average(rows.zip(weights()), whole, vector);
                }
                Mode::Max => {
                    vector.copy_from_slice(rows.next().unwrap_or_default());
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
        vector
    }

    /// Pools packed token states on `LibTorch`.
    ///
    /// `states` is `[rows, hidden]`; text *i* owns `lengths[i]` rows, in order, and
    /// rows after the last text are ignored. The first `unpooled[i]` of them, fewer than
    /// all, take no part. Result: `[texts, modes × hidden]`, f32.
    #[cfg(feature = "torch")]
    pub(crate) fn forward(
        &self,
        states: &Tensor,
        lengths: &[i64],
        unpooled: &[i64],
    ) -> Result<Tensor, TchError> {
        let texts = Texts { states, lengths, unpooled };
        let pooled = self.modes.iter().map(|mode| texts.pooled(*mode)).collect::<Result<Vec<_>, _>>()?;
        match pooled.as_slice() {
            [one] => Ok(one.shallow_clone()),
            several => Tensor::f_cat(several, 1),
        }
    }
}

/// The sum of weighted rows, divided by `whole`.
fn average<'a>(rows: impl Iterator<Item = (&'a [f32], f32)>, whole: f32, vector: &mut [f32]) {
    vector.fill(0.0);
    for (row, weight) in rows {
        vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
    }
    for sum in vector.iter_mut() {
        *sum /= whole;
    }
}

/// Some rows.
#[cfg(feature = "torch")]
fn select(states: &Tensor, rows: &[i64]) -> Result<Tensor, TchError> {
    states.f_index_select(0, &whole_numbers(rows, states.device())?)
}

/// The token states of texts that lie one after the other.
#[cfg(feature = "torch")]
struct Texts<'a> {
    states: &'a Tensor,
    lengths: &'a [i64],
    unpooled: &'a [i64],
}

#[cfg(feature = "torch")]
impl Texts<'_> {
    /// The rows of each text that take part.
    fn rows(&self) -> impl Iterator<Item = std::ops::Range<i64>> {
        let mut end = 0;
        self.lengths.iter().zip(self.unpooled).map(move |(length, unpooled)| {
            let start = end + unpooled;
            end += length;
            start..end
        })
    }

    fn floats(&self, values: &[f32]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(values)?.f_to_device(self.states.device())
    }

    fn pooled(&self, mode: Mode) -> Result<Tensor, TchError> {
        let of_text = |of: fn(std::ops::Range<i64>) -> f32| -> Result<Tensor, TchError> {
            self.floats(&self.rows().map(of).collect::<Vec<_>>())?.f_unsqueeze(1)
        };
        match mode {
            Mode::Cls | Mode::LastToken => {
                let row =
                    |rows: std::ops::Range<i64>| if mode == Mode::Cls { rows.start } else { rows.end - 1 };
                let rows: Vec<i64> = self.rows().map(row).collect();
                select(self.states, &rows)?.f_to_kind(Kind::Float)
            }
            Mode::Max => self.reduced(Reduce::Max, false),
            Mode::Mean => self.reduced(Reduce::Mean, false),
            Mode::MeanSqrtLen => self
                .reduced(Reduce::Mean, false)?
                .f_mul(&of_text(|rows| ((rows.end - rows.start) as f32).sqrt())?),
            // The weights' mean is 1.
            Mode::WeightedMean => self.reduced(Reduce::Mean, true),
        }
    }

    /// `[texts, hidden]`, f32; with each row multiplied, where that is wanted, by its place in its text, over
    /// the mean of these.
    fn reduced(&self, reduce: Reduce, weighted: bool) -> Result<Tensor, TchError> {
        let total: i64 = self.lengths.iter().sum();
        // Summed in f32: a bf16 sum of hundreds of tokens loses whole digits.
        let mut states = self.states.f_narrow(0, 0, total)?.f_to_kind(Kind::Float)?;
        if self.unpooled.iter().any(|&tokens| tokens > 0) {
            let rows: Vec<i64> = self.rows().flatten().collect();
            states = select(&states, &rows)?;
        }
        if weighted {
            let weights = self.rows().zip(self.unpooled).flat_map(|(rows, &unpooled)| {
                let weights = unpooled + 1..unpooled + 1 + rows.end - rows.start;
                let mean = (weights.start + weights.end - 1) as f32 / 2.0;
                weights.map(move |weight| weight as f32 / mean)
            });
            states = states.f_mul(&self.floats(&weights.collect::<Vec<f32>>())?.f_unsqueeze(1)?)?;
        }
        let lengths: Vec<i64> = self.rows().map(|rows| rows.end - rows.start).collect();
        segment_reduce(&states, &lengths, reduce)
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
            (json!({"pooling_mode": ["mean", "cls"]}), Ok("mean+cls")),
            (
                json!({"word_embedding_dimension": 5}),
                Err("pools vectors of 5 dimensions, but the encoder makes 4"),
            ),
            (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}), Ok("cls+mean")),
            (
                json!({"pooling_mode": ["mean", "median"]}),
                Err(
                    "pooling mode median is not supported; supported: cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken",
                ),
            ),
        ];
        for (config, expected) in table {
            let got = Pooling::from_json(&config, 4);
            assert_eq!(
                got.map(|pooling| pooling.name()),
                expected.map(str::to_owned).map_err(str::to_owned),
                "{config}"
            );
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
            (Mode::WeightedMean, [7.0 / 3.0, -14.0 / 3.0, 5.0, 6.0]),
            (Mode::MeanSqrtLen, [2.0 * 2f32.sqrt(), -6.0 * 2f32.sqrt(), 5.0, 6.0]),
        ];
        for (mode, expected) in table {
            assert_near(mode, &pooled(mode, &states, &[2, 1], &[0, 0]), &expected);
        }
    }

    #[test]
    fn a_prompt_that_is_not_to_be_pooled_is_left_out() {
        let states = [[9.0f32, 9.0], [1.0, -10.0], [3.0, -2.0], [5.0, 6.0]];
        let table = [
            (Mode::Mean, [2.0f32, -6.0, 5.0, 6.0]),
            (Mode::Max, [3.0, -2.0, 5.0, 6.0]),
            (Mode::Cls, [1.0, -10.0, 5.0, 6.0]),
            (Mode::LastToken, [3.0, -2.0, 5.0, 6.0]),
            (Mode::WeightedMean, [(2.0 + 9.0) / 5.0, (-20.0 - 6.0) / 5.0, 5.0, 6.0]),
        ];
        for (mode, expected) in table {
            assert_near(mode, &pooled(mode, &states, &[3, 1], &[1, 0]), &expected);
        }
    }

    fn assert_near(mode: Mode, ours: &[f32], expected: &[f32]) {
        assert_eq!(ours.len(), expected.len());
        let near = |(ours, expected): (&f32, &f32)| (ours - expected).abs() < 1e-5;
        assert!(ours.iter().zip(expected).all(near), "{mode:?}: {ours:?}, not {expected:?}");
    }

    /// What both ways to pool make of the texts, row by row.
    fn pooled(mode: Mode, states: &[[f32; 2]], lengths: &[i64], unpooled: &[i64]) -> Vec<f32> {
        let pooling = Pooling { include_prompt: false, ..Pooling::of(mode) };
        let mut rest = states.as_flattened();
        let mut vectors = Vec::new();
        for (&length, &unpooled) in lengths.iter().zip(unpooled) {
            let (own, others) = rest.split_at(2 * length as usize);
            vectors.extend(pooling.text(own, 2, unpooled as usize));
            rest = others;
        }
        #[cfg(feature = "torch")]
        {
            let tensor = pooling.forward(&Tensor::from_slice2(states), lengths, unpooled).unwrap();
            assert_near(mode, &Vec::<f32>::try_from(tensor.view(-1)).unwrap(), &vectors);
        }
        vectors
    }
}
