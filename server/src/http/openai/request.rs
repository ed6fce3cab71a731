//! A request for vectors: OpenAI's fields, and those of the APIs that extend it.
//!
//! NVIDIA's NIM, Jina and Voyage took OpenAI's route and gave the same ideas other names. Each name is
//! understood, and two of them that say different things are an error.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::input::Input;
use crate::http::error::ApiError;
use crate::http::representation::{Representation, Written};
use crate::http::truncate::Truncate;
use crate::options::{Options, is_same_input_type};
use crate::quantize::{NumberType, Numbers};
use crate::tokenize::Overflow;

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OpenAiEmbedRequest)]
pub(in crate::http) struct EmbedRequest {
    pub(super) input: Input,
    /// A name of the model; can be left out where one is served.
    pub(super) model: Option<String>,
    encoding_format: Option<EncodingFormat>,
    /// The length of the vectors: the model's own, or one that it was trained to be shortened to.
    #[schema(minimum = 1)]
    dimensions: Option<u64>,
    /// NIM's and Voyage's.
    input_type: Option<String>,
    /// Ours: a prompt of the model by its name.
    prompt_name: Option<String>,
    /// Ours: the prompt itself.
    prompt: Option<String>,
    /// NIM's word, and Jina's boolean.
    truncate: Option<Truncate>,
    /// NIM's and Jina's.
    #[serde(alias = "encoding_type")]
    embedding_type: Option<EmbeddingType>,
    /// Jina's `input_type`.
    task: Option<String>,
    /// Jina's: whether vectors are divided by their norm.
    normalized: Option<bool>,
    /// Jina's, which cannot be done.
    late_chunking: Option<bool>,
    /// Jina's, which cannot be done.
    return_multivector: Option<bool>,
    /// Voyage's `dimensions`.
    #[schema(minimum = 1)]
    output_dimension: Option<u64>,
    /// Voyage's `embedding_type`.
    output_dtype: Option<OutputDtype>,
    /// Voyage's `truncate`.
    truncation: Option<bool>,
}

/// How a vector is written: as an array, or as the base64 of its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

// Not derived: serde_json calls anything but a string there a mistake in the JSON.
impl<'de> Deserialize<'de> for EncodingFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            other => Err(D::Error::unknown_variant(other, &["float", "base64"])),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OutputDtype(NumberType);

impl<'de> Deserialize<'de> for OutputDtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        NumberType::named(&name).map(Self).ok_or_else(|| D::Error::unknown_variant(&name, &DTYPES))
    }
}

const DTYPES: [&str; 5] = ["float", "int8", "uint8", "binary", "ubinary"];

impl PartialSchema for OutputDtype {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(DTYPES))
            .description(Some("The type of a vector's numbers."))
            .into()
    }
}

impl ToSchema for OutputDtype {}

/// A type, or an array of one: an answer has one vector a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EmbeddingType(Representation);

struct EmbeddingTypeVisitor;

impl<'de> Visitor<'de> for EmbeddingTypeVisitor {
    type Value = EmbeddingType;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a type of embedding, as a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<EmbeddingType, E> {
        Representation::deserialize(serde::de::value::StrDeserializer::new(name)).map(EmbeddingType)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<EmbeddingType, A::Error> {
        let mut types = Vec::new();
        while let Some(kind) = items.next_element()? {
            types.push(kind);
        }
        match types.as_slice() {
            [only] => Ok(EmbeddingType(*only)),
            _ => Err(A::Error::invalid_length(types.len(), &"one type: send a request for each")),
        }
    }
}

impl<'de> Deserialize<'de> for EmbeddingType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EmbeddingTypeVisitor)
    }
}

impl PartialSchema for EmbeddingType {
    fn schema() -> RefOr<Schema> {
        let array = ArrayBuilder::new().items(Representation::schema()).min_items(Some(1)).max_items(Some(1));
        OneOfBuilder::new()
            .item(Representation::schema())
            .item(array)
            .description(Some("How vectors are written; in an array, there is one."))
            .into()
    }
}

impl ToSchema for EmbeddingType {}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writing {
    kind: NumberType,
    base64: bool,
}

impl Writing {
    /// A vector as it is written.
    pub(super) fn write(self, vector: Vec<f32>) -> Written {
        let numbers = Numbers::of(vector, self.kind);
        if self.base64 { Written::base64(&numbers) } else { Written::array(numbers) }
    }
}

/// The one value of two fields.
fn one<T>(
    (first, one): (&str, Option<T>),
    (second, other): (&str, Option<T>),
    same: impl FnOnce(&T, &T) -> bool,
) -> Result<Option<T>, ApiError> {
    match (one, other) {
        (Some(one), Some(other)) if !same(&one, &other) => {
            let message = format!("{first} and {second} say two things: leave one of them out");
            Err(ApiError::bad_field(second, message))
        }
        (one, other) => Ok(one.or(other)),
    }
}

impl EmbedRequest {
    /// How the texts are to be embedded.
    pub(super) fn options(&self) -> Result<Options, ApiError> {
        if self.late_chunking == Some(true) {
            let message = "late_chunking cannot be done here: each text is embedded by itself";
            return Err(ApiError::bad_field("late_chunking", message));
        }
        if self.return_multivector == Some(true) {
            let message = "return_multivector cannot be done here: the models make one vector a text";
            return Err(ApiError::bad_field("return_multivector", message));
        }
        let truncation =
            self.truncation.map(|truncate| if truncate { Overflow::TruncateEnd } else { Overflow::Error });
        let overflow = one(
            ("truncate", self.truncate.map(|Truncate(overflow)| overflow)),
            ("truncation", truncation),
            PartialEq::eq,
        )?;
        let dimensions =
            one(("dimensions", self.dimensions), ("output_dimension", self.output_dimension), PartialEq::eq)?;
        let input_type =
            one(("input_type", self.input_type.clone()), ("task", self.task.clone()), |one, other| {
                is_same_input_type(one, other)
            })?;
        Ok(Options {
            input_type,
            prompt_name: self.prompt_name.clone(),
            prompt: self.prompt.clone(),
            overflow,
            dimensions,
            normalize: self.normalized,
            ..Options::default()
        })
    }

    /// How the vectors are to be written.
    pub(super) fn writing(&self) -> Result<Writing, ApiError> {
        let contradiction = |second: &str| {
            let message = format!("embedding_type and {second} say two things: leave one of them out");
            ApiError::bad_field(second, message)
        };
        let wanted = self.embedding_type.map(|EmbeddingType(representation)| representation);
        let dtype = self.output_dtype.map(|OutputDtype(kind)| kind);
        let kind = match wanted {
            Some(Representation::Numbers(kind)) => Some(kind),
            Some(Representation::Base64) => Some(NumberType::Float),
            None => None,
        };
        let base64 = match (wanted, self.encoding_format) {
            (Some(Representation::Base64), Some(EncodingFormat::Float)) => {
                return Err(contradiction("encoding_format"));
            }
            // OpenAI's clients ask for base64 by themselves, and take it for floats.
            (Some(Representation::Numbers(kind)), Some(EncodingFormat::Base64))
                if kind != NumberType::Float && dtype.is_none() =>
            {
                let message = format!(
                    "encoding_format base64 is of floats, which embedding_type {} is not: send encoding_format float",
                    kind.name()
                );
                return Err(ApiError::bad_field("encoding_format", message));
            }
            (wanted, format) => {
                wanted == Some(Representation::Base64) || format == Some(EncodingFormat::Base64)
            }
        };
        let kind = one(("embedding_type", kind), ("output_dtype", dtype), PartialEq::eq)?;
        Ok(Writing { kind: kind.unwrap_or(NumberType::Float), base64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<EmbedRequest, serde_json::Error> {
        let mut request: serde_json::Value = serde_json::from_str(json)?;
        request["input"] = "a".into();
        serde_json::from_value(request)
    }

    fn asked(json: &str) -> EmbedRequest {
        parsed(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn each_apis_words_come_to_the_same_options() {
        let (query, default) = (Some("query".to_owned()), Options::default);
        let query_name = query.clone();
        for (json, expected) in [
            ("{}", default()),
            (r#"{"user":"me","dimensions":null,"task":null,"truncate":null}"#, default()),
            (r#"{"input_type":"query"}"#, Options { input_type: query.clone(), ..default() }),
            (
                r#"{"input_type":"query","task":"retrieval.query"}"#,
                Options { input_type: query, ..default() },
            ),
            (
                r#"{"task":"text-matching"}"#,
                Options { input_type: Some("text-matching".into()), ..default() },
            ),
            (r#"{"prompt_name":"query"}"#, Options { prompt_name: query_name, ..default() }),
            (r#"{"prompt":"q: "}"#, Options { prompt: Some("q: ".into()), ..default() }),
            (r#"{"dimensions":2}"#, Options { dimensions: Some(2), ..default() }),
            (r#"{"output_dimension":2}"#, Options { dimensions: Some(2), ..default() }),
            (r#"{"dimensions":2,"output_dimension":2}"#, Options { dimensions: Some(2), ..default() }),
            (r#"{"truncate":"NONE"}"#, Options { overflow: Some(Overflow::Error), ..default() }),
            (r#"{"truncate":false}"#, Options { overflow: Some(Overflow::Error), ..default() }),
            (r#"{"truncation":false}"#, Options { overflow: Some(Overflow::Error), ..default() }),
            (r#"{"truncation":true}"#, Options { overflow: Some(Overflow::TruncateEnd), ..default() }),
            (r#"{"truncate":"START"}"#, Options { overflow: Some(Overflow::TruncateStart), ..default() }),
            (
                r#"{"normalized":false,"late_chunking":false}"#,
                Options { normalize: Some(false), ..default() },
            ),
        ] {
            assert_eq!(asked(json).options().unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn vectors_are_written_as_each_api_has_them() {
        use NumberType::{Binary, Float, Int8, Ubinary};
        for (json, kind, base64) in [
            ("{}", Float, false),
            (r#"{"encoding_format":"float"}"#, Float, false),
            (r#"{"encoding_format":"base64"}"#, Float, true),
            (r#"{"embedding_type":"base64"}"#, Float, true),
            (r#"{"embedding_type":"base64","encoding_format":"base64"}"#, Float, true),
            (r#"{"embedding_type":"float","encoding_format":"base64"}"#, Float, true),
            (r#"{"embedding_type":"ubinary","encoding_format":"float"}"#, Ubinary, false),
            (r#"{"embedding_type":["binary"]}"#, Binary, false),
            (r#"{"encoding_type":"binary"}"#, Binary, false),
            (r#"{"output_dtype":"int8"}"#, Int8, false),
            // Voyage's client asks so for everything, and decodes it.
            (r#"{"output_dtype":"int8","encoding_format":"base64"}"#, Int8, true),
            (r#"{"output_dtype":"int8","embedding_type":"int8"}"#, Int8, false),
        ] {
            assert_eq!(asked(json).writing().unwrap(), Writing { kind, base64 }, "{json}");
        }
    }

    #[test]
    fn what_contradicts_itself_or_cannot_be_done_is_refused() {
        for json in [
            r#"{"input_type":"query","task":"retrieval.passage"}"#,
            r#"{"dimensions":2,"output_dimension":4}"#,
            r#"{"truncate":"START","truncation":true}"#,
            r#"{"truncate":true,"truncation":false}"#,
            r#"{"late_chunking":true}"#,
            r#"{"return_multivector":true}"#,
            r#"{"embedding_type":"int8","output_dtype":"float"}"#,
            r#"{"embedding_type":"base64","output_dtype":"int8"}"#,
            r#"{"embedding_type":"base64","encoding_format":"float"}"#,
            r#"{"embedding_type":"ubinary","encoding_format":"base64"}"#,
        ] {
            let asked = asked(json);
            let error = asked.options().err().or_else(|| asked.writing().err());
            assert_eq!(error.unwrap_or_else(|| panic!("{json}")).code(), "invalid_field", "{json}");
        }
        for json in [
            r#"{"embedding_type":["float","binary"]}"#,
            r#"{"embedding_type":[]}"#,
            r#"{"embedding_type":"fp16"}"#,
            r#"{"output_dtype":"base64"}"#,
            r#"{"encoding_format":"int8"}"#,
        ] {
            assert!(parsed(json).is_err(), "{json}");
        }
    }
}
