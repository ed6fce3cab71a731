//! `input`: what is to be embedded, in every form that OpenAI's API and its relatives take.

use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};

/// What stands for a number that cannot be the id of a token: no vocabulary is that large.
const NO_ID: u32 = u32::MAX;

/// A string, an array of strings, or token ids in either nesting. Jina's clients write `{"text": "…"}`
/// for a string.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Texts(Vec<String>),
    /// An array of ids a text.
    TokenIds(Vec<Vec<u32>>),
    /// Some of each.
    Mixed,
}

#[derive(Debug, PartialEq, Eq)]
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Item, E> {
        Ok(Item::Id(NO_ID))
    }

    fn visit_u64<E>(self, id: u64) -> Result<Item, E> {
        Ok(Item::Id(u32::try_from(id).unwrap_or(NO_ID)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        while let Some(Id(id)) = items.next_element()? {
            ids.push(id);
        }
        Ok(Item::Ids(ids))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Item, A::Error> {
        let mut text = None;
        while let Some(field) = fields.next_key::<String>()? {
            if field != "text" {
                return Err(A::Error::unknown_field(&field, &["text"]));
            }
            text = Some(fields.next_value()?);
        }
        text.map(Item::Text).ok_or_else(|| A::Error::missing_field("text"))
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct Id(u32);

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the id of a token")
    }

    fn visit_i64<E>(self, _: i64) -> Result<Id, E> {
        Ok(Id(NO_ID))
    }

    fn visit_u64<E>(self, id: u64) -> Result<Id, E> {
        Ok(Id(u32::try_from(id).unwrap_or(NO_ID)))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_str<E>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut texts = Vec::with_capacity(items.size_hint().unwrap_or(0).min(1024));
        let (mut ids, mut arrays) = (Vec::new(), Vec::new());
        while let Some(item) = items.next_element()? {
            match item {
                Item::Text(text) => texts.push(text),
                Item::Id(id) => ids.push(id),
                Item::Ids(ids) => arrays.push(ids),
            }
        }
        Ok(match (ids.is_empty(), arrays.is_empty()) {
            (true, true) => Input::Texts(texts),
            (false, true) if texts.is_empty() => Input::TokenIds(vec![ids]),
            (true, false) if texts.is_empty() => Input::TokenIds(arrays),
            _ => Input::Mixed,
        })
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

impl PartialSchema for Input {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let of_jina = ObjectBuilder::new()
            .property("text", text())
            .required("text")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        let texts =
            ArrayBuilder::new().items(OneOfBuilder::new().item(text()).item(of_jina)).min_items(Some(1));
        let id = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let ids = || ArrayBuilder::new().items(id()).min_items(Some(1));
        let arrays = ArrayBuilder::new().items(ids()).min_items(Some(1));
        OneOfBuilder::new()
            .item(text())
            .item(texts)
            .item(ids())
            .item(arrays)
            .description(Some(
                "A text, or several (Jina's clients write an object for one); or ids of tokens, which are refused \
                 where `--openai-token-ids` does not say whose they are.",
            ))
            .into()
    }
}

impl ToSchema for Input {
    fn name() -> std::borrow::Cow<'static, str> {
        "OpenAiInput".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_takes_every_form_that_is_documented_for_it() {
        let texts = |texts: &[&str]| Input::Texts(texts.iter().map(|&text| text.to_owned()).collect());
        for (json, expected) in [
            (r#""a""#, texts(&["a"])),
            (r#"["a","b\n"]"#, texts(&["a", "b\n"])),
            (r#"[{"text":"a"},"b"]"#, texts(&["a", "b"])),
            ("[]", texts(&[])),
            ("[1,2,3]", Input::TokenIds(vec![vec![1, 2, 3]])),
            ("[[1,2],[],[3]]", Input::TokenIds(vec![vec![1, 2], vec![], vec![3]])),
            ("[-1,4294967296]", Input::TokenIds(vec![vec![NO_ID, NO_ID]])),
            (r#"["a",1]"#, Input::Mixed),
            (r#"[[1],"a"]"#, Input::Mixed),
            ("[1,[2]]", Input::Mixed),
        ] {
            assert_eq!(serde_json::from_str::<Input>(json).unwrap(), expected, "{json}");
        }
        for json in [
            "null",
            "1",
            "true",
            "{}",
            "[null]",
            "[true]",
            "[{}]",
            r#"["a",1.5]"#,
            "[[1.5]]",
            "[[[1]]]",
            r#"[["a"]]"#,
            r#"[{"image":"a"}]"#,
            r#"[{"text":"a","image":"b"}]"#,
        ] {
            assert!(serde_json::from_str::<Input>(json).is_err(), "{json}");
        }
    }
}
