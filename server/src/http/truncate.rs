//! `truncate` and `truncation`, as other APIs have them: what becomes of texts that are too long.
//!
//! Cohere and NVIDIA's NIM say `NONE`, `START` or `END`, which name the part that is left away; Jina,
//! Voyage and Ollama say whether anything is.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::tokenize::Overflow;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truncate(pub(super) Overflow);

struct TruncateVisitor;

impl Visitor<'_> for TruncateVisitor {
    type Value = Truncate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`NONE`, `START`, `END` or a boolean")
    }

    fn visit_bool<E>(self, truncate: bool) -> Result<Truncate, E> {
        Ok(Truncate(if truncate { Overflow::TruncateEnd } else { Overflow::Error }))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Truncate, E> {
        match text {
            "NONE" => Ok(Truncate(Overflow::Error)),
            "START" => Ok(Truncate(Overflow::TruncateStart)),
            "END" => Ok(Truncate(Overflow::TruncateEnd)),
            other => Err(E::unknown_variant(other, &["NONE", "START", "END"])),
        }
    }
}

impl<'de> Deserialize<'de> for Truncate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TruncateVisitor)
    }
}

impl PartialSchema for Truncate {
    fn schema() -> RefOr<Schema> {
        let end = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["NONE", "START", "END"]));
        let whether = ObjectBuilder::new().schema_type(Type::Boolean);
        OneOfBuilder::new()
            .item(end)
            .item(whether)
            .description(Some("The part that texts lose that are too long, or whether they lose any."))
            .into()
    }
}

impl ToSchema for Truncate {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_part_that_is_left_away_or_whether_one_is() {
        for (json, expected) in [
            ("\"NONE\"", Overflow::Error),
            ("\"START\"", Overflow::TruncateStart),
            ("\"END\"", Overflow::TruncateEnd),
            ("true", Overflow::TruncateEnd),
            ("false", Overflow::Error),
        ] {
            assert_eq!(serde_json::from_str::<Truncate>(json).unwrap(), Truncate(expected), "{json}");
        }
        for json in ["\"MIDDLE\"", "\"end\"", "1", "null", "[]"] {
            assert!(serde_json::from_str::<Truncate>(json).is_err(), "{json}");
        }
    }
}
