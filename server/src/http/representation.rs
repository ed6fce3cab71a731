//! How vectors are written in answers: as numbers of some type, or as the base64 of their bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::quantize::{NumberType, Numbers};

/// What Cohere, Jina and NIM call a type of embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Representation {
    /// An array of numbers.
    Numbers(NumberType),
    /// The base64 of little-endian floats.
    Base64,
}

// Not derived: serde_json calls anything but a string there a mistake in the JSON.
impl<'de> Deserialize<'de> for Representation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == "base64" {
            return Ok(Self::Base64);
        }
        NumberType::named(&name).map(Self::Numbers).ok_or_else(|| D::Error::unknown_variant(&name, &KNOWN))
    }
}

const KNOWN: [&str; 6] = ["float", "int8", "uint8", "binary", "ubinary", "base64"];

impl PartialSchema for Representation {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(KNOWN))
            .description(Some("How a vector is written: as numbers of a type, or as the base64 of floats."))
            .into()
    }
}

impl ToSchema for Representation {}

/// A vector as it is written.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Written {
    /// An array.
    Numbers(Numbers),
    /// A string.
    Base64(String),
}

impl PartialSchema for Written {
    fn schema() -> RefOr<Schema> {
        let numbers = ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::Number));
        let base64 = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The base64 of the numbers, little-endian."));
        let either = OneOfBuilder::new().item(numbers).item(base64);
        either.description(Some("A vector as it was asked for.")).into()
    }
}

impl ToSchema for Written {
    fn name() -> std::borrow::Cow<'static, str> {
        "Vector".into()
    }
}

impl Written {
    /// Numbers as an array.
    pub(super) const fn array(numbers: Numbers) -> Self {
        Self::Numbers(numbers)
    }

    /// Their bytes in standard base64, as clients decode them.
    pub(super) fn base64(numbers: &Numbers) -> Self {
        Self::Base64(STANDARD.encode(numbers.bytes()))
    }

    /// A vector in that representation.
    pub(super) fn of(vector: Vec<f32>, representation: Representation) -> Self {
        match representation {
            Representation::Numbers(kind) => Self::array(Numbers::of(vector, kind)),
            Representation::Base64 => Self::base64(&Numbers::Float(vector)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_representation_is_a_value_of_json() {
        for (name, json) in [
            ("float", "[1.0,-2.0]"),
            ("int8", "[57,-114]"),
            ("uint8", "[185,14]"),
            ("binary", "[0]"),
            ("ubinary", "[128]"),
            ("base64", "\"AACAPwAAAMA=\""),
        ] {
            let representation: Representation = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            let written = Written::of(vec![1.0, -2.0], representation);
            assert_eq!(serde_json::to_string(&written).unwrap(), json, "{name}");
        }
        for json in ["\"fp16\"", "1", "null"] {
            assert!(serde_json::from_str::<Representation>(json).is_err(), "{json}");
        }
    }
}
