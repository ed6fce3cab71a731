//! Reading a configuration, with errors that say what was expected.

use serde_json::Value;

use crate::model::encoder::HiddenAct;

/// The fields of a `config.json`. Errors are sentence fragments about the file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a Value);

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A whole number between 1 and `most`.
    pub(super) fn size(self, name: &str, most: i64) -> Result<i64, String> {
        let value = self.get(name).ok_or_else(|| format!("{name} is missing"))?;
        let size = value.as_i64().ok_or_else(|| format!("{name} is {value}, and no whole number"))?;
        if (1..=most).contains(&size) {
            Ok(size)
        } else {
            Err(format!("{name} is {size}, outside 1..={most}"))
        }
    }

    /// The same, or what it is where it is not said.
    pub(super) fn size_or(self, name: &str, most: i64, default: i64) -> Result<i64, String> {
        if self.get(name).is_some() { self.size(name, most) } else { Ok(default) }
    }

    /// A finite number of 0 or more.
    pub(super) fn number_or(self, name: &str, default: f64) -> Result<f64, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(format!("{name} is {value}, and no number of 0 or more")),
        }
    }

    /// True or false.
    pub(super) fn flag_or(self, name: &str, default: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| format!("{name} is {value}, and neither true nor false"))
    }

    /// A text.
    pub(super) fn text_or(self, name: &str, default: &'a str) -> Result<&'a str, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_str().ok_or_else(|| format!("{name} is {value}, and no text"))
    }

    /// The activation that a field names.
    pub(super) fn activation(self, name: &str, default: &'a str) -> Result<HiddenAct, String> {
        let said = self.text_or(name, default)?;
        let known = HiddenAct::NAMES.iter().find(|(name, _)| *name == said);
        known.map(|(_, act)| *act).ok_or_else(|| {
            let known: Vec<_> = HiddenAct::NAMES.iter().map(|(name, _)| *name).collect();
            format!("{name} \"{said}\" is not supported; supported: {}", known.join(", "))
        })
    }

    /// Refuses any value of a field but these; that it is missing or null is one that always will do.
    pub(super) fn only(self, name: &str, values: &[Value]) -> Result<(), String> {
        match self.get(name) {
            Some(value) if !values.contains(value) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                let supported = if values.is_empty() { "null".to_owned() } else { values.join(", ") };
                Err(format!("{name} is {value}, which is not supported; supported: {supported}"))
            }
            _ => Ok(()),
        }
    }

    /// The width of a head, where heads divide the state's.
    pub(super) fn head_size(hidden: i64, name: &str, heads: i64) -> Result<i64, String> {
        if hidden % heads == 0 {
            Ok(hidden / heads)
        } else {
            Err(format!("hidden_size {hidden} is no multiple of {name} {heads}"))
        }
    }
}

/// Limits beyond which a size is no model's, but a mistake that would ask for absurd memory.
pub(super) mod most {
    pub(crate) const VOCABULARY: i64 = 1 << 24;
    pub(crate) const HIDDEN: i64 = 1 << 16;
    pub(crate) const LAYERS: i64 = 1 << 10;
    pub(crate) const HEADS: i64 = 1 << 10;
    pub(crate) const INTERMEDIATE: i64 = 1 << 18;
    pub(crate) const POSITIONS: i64 = 1 << 20;
    pub(crate) const SEGMENTS: i64 = 1 << 10;
}
