//! What a request may ask of its vectors, and what that comes to for a model: pure.
//!
//! ```text
//! Options (what the caller says) ─┐
//!                                 ├ decide ─▶ Decided (prompt, overflow, length, norm, space) or why not
//! Offer (what the model has) ─────┘
//! ```
//!
//! Every surface fills in what its API has a field for. Nothing that is asked for is left out
//! in silence: what the model cannot do is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::space::{self, Space};
use crate::tokenize::{How, Overflow};

/// Why a request cannot have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No prompt has this name.
    #[error("the model has no prompt \"{name}\"; {}", has(prompts))]
    UnknownPrompt {
        /// The name.
        name: String,
        /// The names that there are.
        prompts: Vec<String>,
    },
    /// The type of input is not known.
    #[error("input type \"{name}\" is not known; known: {}", known.join(", "))]
    UnknownInputType {
        /// What was said.
        name: String,
        /// What could have been said.
        known: Vec<String>,
    },
    /// Two fields say different things about the prompt.
    #[error("{first} and {second} say two things about the prompt: leave one of them out")]
    TwoPrompts {
        /// One field.
        first: &'static str,
        /// The other one.
        second: &'static str,
    },
    /// A prompt that would cost more than its texts.
    #[error("prompt has {bytes} bytes; the limit is {MOST_PROMPT}")]
    PromptTooLong {
        /// Its length.
        bytes: usize,
    },
    /// This server wants to know what its texts are.
    #[error(
        "this server embeds no text without knowing what it is: say input_type (query or document), or append it \
         to the model's name (MODEL:query, MODEL:document)"
    )]
    InputTypeMissing,
    /// The model's vectors cannot have this length.
    #[error("dimensions must be {}, not {wanted}: {}", one_of(allowed), shortening(allowed))]
    Dimensions {
        /// What was asked for.
        wanted: u64,
        /// What can be had.
        allowed: Vec<usize>,
    },
    /// Vectors are wanted of a model that has none.
    #[error(
        "the model is a cross-encoder: it scores texts and pairs of texts (/rerank, /v1/rerank, /v2/rerank, \
         /predict) and makes no vectors; for vectors, name an embedding model"
    )]
    NoVectors,
    /// Scores are wanted of a model that has none.
    #[error(
        "the model makes vectors (/v1/embeddings, /embed, /similarity) and no scores; to rank or classify, name a \
         cross-encoder"
    )]
    NoScores,
    /// An order is wanted of a model with several scores a pair.
    #[error("the model has {labels} labels, and only one with a single label can rank; ask it at /predict")]
    NoRanking {
        /// How many labels it has.
        labels: usize,
    },
    /// The caller expects vectors of another space.
    #[error(
        "these vectors would be of the space {is}, and {expected} is expected: vectors of two spaces cannot be compared"
    )]
    OtherSpace {
        /// What the caller expects.
        expected: String,
        /// What it would get.
        is: Space,
    },
}

fn has(prompts: &[String]) -> String {
    if prompts.is_empty() { "it has none".to_owned() } else { format!("it has {}", prompts.join(", ")) }
}

fn one_of(allowed: &[usize]) -> String {
    let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
    allowed.join(" or ")
}

const fn shortening(allowed: &[usize]) -> &'static str {
    if allowed.len() > 1 {
        "the model was trained for these lengths"
    } else {
        "the model's vectors cannot be shortened without losing what they mean"
    }
}

/// What a caller says. Nothing of it has to be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What the texts are: query, document, or what other APIs call these.
    pub input_type: Option<String>,
    /// The same, from the end of the model's name (`e5:query`).
    pub suffix: Option<String>,
    /// A prompt of the model, by its name.
    pub prompt_name: Option<String>,
    /// The prompt itself.
    pub prompt: Option<String>,
    /// What becomes of texts that are too long.
    pub overflow: Option<Overflow>,
    /// The length of the vectors.
    pub dimensions: Option<u64>,
    /// Whether vectors are divided by their norm; otherwise as the model says.
    pub normalize: Option<bool>,
    /// The space that the vectors must be of.
    pub expected_space: Option<String>,
}

/// What a model has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt for texts of which nothing is said.
    pub default_prompt: Option<String>,
    /// Whether the prompt's tokens are pooled with the others.
    pub include_prompt: bool,
    /// Whether a request has to say what its texts are.
    pub require_input_type: bool,
    /// What becomes of texts that are too long, where a request does not say.
    pub overflow: Overflow,
    /// Lengths to which its vectors can be shortened; its own is the last.
    pub dimensions: Vec<usize>,
    /// Whether its vectors are divided by their norm.
    pub normalizes: bool,
    /// What decides which vectors can be compared with its own.
    pub space: space::Base,
}

/// Whether vectors of this space are those that the caller expects, if it expects any.
pub(crate) fn check_space(expected: Option<&str>, is: &Space) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != is.to_string() => {
            Err(Error::OtherSpace { expected: expected.to_owned(), is: is.clone() })
        }
        _ => Ok(()),
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// How texts become tokens.
    pub how: How,
    /// The name of the prompt, if it has one.
    pub prompt_name: Option<String>,
    /// The length of the vectors.
    pub dimensions: usize,
    /// Whether they are divided by their norm.
    pub normalize: bool,
    /// What they can be compared with.
    pub space: Space,
}

/// The most bytes of a request's own prompt. It is put before each of its texts: one of 10 MB would be ten
/// thousand texts of 10 MB.
const MOST_PROMPT: usize = 64 * 1024;

/// What APIs call a text that is looked for with; models name their prompts so, too.
const QUERY: [&str; 4] = ["query", "search_query", "retrieval.query", "retrieval_query"];
/// What APIs call a text that is found.
const DOCUMENT: [&str; 8] = [
    "document",
    "passage",
    "search_document",
    "retrieval.passage",
    "retrieval.document",
    "retrieval_document",
    "retrieval_passage",
    "corpus",
];
/// Other things that texts are for; a model may have a prompt of that name.
const OTHER: [&str; 9] = [
    "classification",
    "clustering",
    "text-matching",
    "separation",
    "semantic_similarity",
    "question_answering",
    "fact_verification",
    "code.query",
    "code.passage",
];

/// Whether a word at the end of a model's name (`NAME:query`) can be meant as the type of input.
pub fn is_input_type(word: &str, prompts: &BTreeMap<String, String>) -> bool {
    QUERY.contains(&word) || DOCUMENT.contains(&word) || prompts.contains_key(word)
}

/// Whether two words say the same about what texts are.
pub fn is_same_input_type(one: &str, other: &str) -> bool {
    one == other
        || [QUERY.as_slice(), &DOCUMENT].iter().any(|group| group.contains(&one) && group.contains(&other))
}

impl Offer {
    /// The length of its vectors where nothing is said.
    pub fn native(&self) -> usize {
        self.dimensions.last().copied().unwrap_or(0)
    }

    fn prompt_of_default(&self) -> (Option<String>, &str) {
        let text = self.default_prompt.as_ref().and_then(|name| self.prompts.get(name));
        (text.and(self.default_prompt.clone()), text.map_or("", String::as_str))
    }

    /// The prompt for a type of input. A model that names none for it gets what it gets when nothing
    /// is said: as sentence-transformers does.
    fn prompt_of_type(&self, name: &str) -> Result<(Option<String>, &str), Error> {
        let group: &[&str] = match name {
            _ if QUERY.contains(&name) => &QUERY,
            _ if DOCUMENT.contains(&name) => &DOCUMENT,
            _ if OTHER.contains(&name) || self.prompts.contains_key(name) => &[],
            _ => {
                let mut known: BTreeSet<&str> =
                    QUERY.iter().chain(&DOCUMENT).chain(&OTHER).copied().collect();
                known.extend(self.prompts.keys().map(String::as_str));
                let known = known.into_iter().map(str::to_owned).collect();
                return Err(Error::UnknownInputType { name: name.to_owned(), known });
            }
        };
        let named = std::iter::once(&name).chain(group).find_map(|name| self.prompts.get_key_value(*name));
        Ok(named.map_or_else(|| self.prompt_of_default(), |(name, text)| (Some(name.clone()), text.as_str())))
    }

    fn prompt(&self, options: &Options) -> Result<(Option<String>, &str), Error> {
        let said = [("input_type", &options.input_type), ("the model's name", &options.suffix)];
        let mut types = said.into_iter().filter_map(|(field, value)| Some((field, value.as_ref()?)));
        let mut of_type = None;
        if let Some((first, name)) = types.next() {
            let prompt = self.prompt_of_type(name)?;
            if let Some((second, name)) = types.next()
                && self.prompt_of_type(name)? != prompt
            {
                return Err(Error::TwoPrompts { first, second });
            }
            of_type = Some((first, prompt));
        }
        let Some(name) = &options.prompt_name else {
            return Ok(of_type.map_or_else(|| self.prompt_of_default(), |(_, prompt)| prompt));
        };
        let Some(text) = self.prompts.get(name) else {
            let prompts = self.prompts.keys().cloned().collect();
            return Err(Error::UnknownPrompt { name: name.clone(), prompts });
        };
        match of_type {
            Some((first, prompt)) if prompt.1 != text => {
                Err(Error::TwoPrompts { first, second: "prompt_name" })
            }
            _ => Ok((Some(name.clone()), text)),
        }
    }

    /// What a request's options come to.
    pub fn decide(&self, options: &Options) -> Result<Decided, Error> {
        let silent = [&options.input_type, &options.suffix, &options.prompt_name, &options.prompt];
        if self.require_input_type && silent.iter().all(|said| said.is_none()) {
            return Err(Error::InputTypeMissing);
        }
        let (prompt_name, prompt) = match &options.prompt {
            None => self.prompt(options)?,
            Some(prompt) => {
                let others = [
                    ("input_type", &options.input_type),
                    ("the model's name", &options.suffix),
                    ("prompt_name", &options.prompt_name),
                ];
                if let Some((first, _)) = others.into_iter().find(|(_, value)| value.is_some()) {
                    return Err(Error::TwoPrompts { first, second: "prompt" });
                }
                if prompt.len() > MOST_PROMPT {
                    return Err(Error::PromptTooLong { bytes: prompt.len() });
                }
                (None, prompt.as_str())
            }
        };
        let dimensions = match options.dimensions {
            None => self.native(),
            Some(wanted) => {
                let fits = |&&allowed: &&usize| allowed as u64 == wanted;
                let allowed = || self.dimensions.clone();
                *self
                    .dimensions
                    .iter()
                    .find(fits)
                    .ok_or_else(|| Error::Dimensions { wanted, allowed: allowed() })?
            }
        };
        let normalize = options.normalize.unwrap_or(self.normalizes);
        let space = self.space.space(dimensions, normalize);
        check_space(options.expected_space.as_deref(), &space)?;
        let how = How {
            prompt: Arc::from(prompt),
            unpooled_prompt: !self.include_prompt,
            overflow: options.overflow.unwrap_or(self.overflow),
            most_of_second: None,
        };
        Ok(Decided { how, prompt_name, dimensions, normalize, space })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(prompts: &[(&str, &str)], default_prompt: Option<&str>) -> Offer {
        Offer {
            prompts: prompts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect(),
            default_prompt: default_prompt.map(str::to_owned),
            include_prompt: true,
            require_input_type: false,
            overflow: Overflow::TruncateEnd,
            dimensions: vec![64, 128, 384],
            normalizes: true,
            space: space::Base::of_test("m"),
        }
    }

    #[test]
    fn a_request_brings_no_prompt_that_costs_more_than_its_texts() {
        let of = |bytes: usize| {
            let options = Options { prompt: Some("x".repeat(bytes)), ..Options::default() };
            offer(&[], None).decide(&options).map(|decided| decided.how.prompt.len())
        };
        assert_eq!(of(MOST_PROMPT), Ok(MOST_PROMPT));
        assert_eq!(of(MOST_PROMPT + 1), Err(Error::PromptTooLong { bytes: MOST_PROMPT + 1 }));
    }

    #[expect(clippy::unnecessary_wraps, reason = "the fields of options are so")]
    fn said(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn what_other_apis_call_queries_and_documents_reaches_the_models_own_prompts() {
        let e5 = offer(&[("query", "query: "), ("passage", "passage: ")], None);
        let nomic = offer(
            &[
                ("search_query", "search_query: "),
                ("search_document", "search_document: "),
                ("clustering", "c: "),
            ],
            Some("search_document"),
        );
        let bge = offer(&[("query", "Represent: ")], None);
        let plain = offer(&[], None);
        for (model, input_type, expected) in [
            (&e5, None, ""),
            (&e5, Some("query"), "query: "),
            (&e5, Some("search_query"), "query: "),
            (&e5, Some("retrieval.query"), "query: "),
            (&e5, Some("document"), "passage: "),
            (&e5, Some("search_document"), "passage: "),
            (&e5, Some("clustering"), ""),
            (&nomic, None, "search_document: "),
            (&nomic, Some("query"), "search_query: "),
            (&nomic, Some("passage"), "search_document: "),
            (&nomic, Some("clustering"), "c: "),
            (&nomic, Some("classification"), "search_document: "),
            (&bge, Some("query"), "Represent: "),
            (&bge, Some("document"), ""),
            (&plain, Some("query"), ""),
        ] {
            let options = Options { input_type: input_type.map(str::to_owned), ..Options::default() };
            assert_eq!(&*model.decide(&options).unwrap().how.prompt, expected, "{input_type:?}");
            let by_suffix = Options { suffix: options.input_type.clone(), ..Options::default() };
            assert_eq!(model.decide(&by_suffix).unwrap(), model.decide(&options).unwrap());
        }
    }

    #[test]
    fn a_prompt_can_be_named_or_given_but_not_twice() {
        let e5 = offer(&[("query", "query: "), ("passage", "passage: ")], Some("passage"));
        let named = Options { prompt_name: said("query"), ..Options::default() };
        assert_eq!(e5.decide(&named).unwrap().prompt_name.as_deref(), Some("query"));
        let given = Options { prompt: said("find: "), ..Options::default() };
        let decided = e5.decide(&given).unwrap();
        assert_eq!((&*decided.how.prompt, decided.prompt_name), ("find: ", None));
        // Agreeing is no contradiction.
        let both = Options { input_type: said("search_query"), suffix: said("query"), ..named.clone() };
        assert_eq!(&*e5.decide(&both).unwrap().how.prompt, "query: ");
        for (options, message) in [
            (
                Options { input_type: said("document"), ..named.clone() },
                "input_type and prompt_name say two things about the prompt: leave one of them out",
            ),
            (
                Options { input_type: said("query"), suffix: said("document"), ..Options::default() },
                "input_type and the model's name say two things about the prompt: leave one of them out",
            ),
            (
                Options { prompt: said(""), ..named },
                "prompt_name and prompt say two things about the prompt: leave one of them out",
            ),
            (
                Options { prompt_name: said("q"), ..Options::default() },
                "the model has no prompt \"q\"; it has passage, query",
            ),
        ] {
            assert_eq!(e5.decide(&options).unwrap_err().to_string(), message);
        }
        let unknown = Options { input_type: said("banana"), ..Options::default() };
        let message = e5.decide(&unknown).unwrap_err().to_string();
        assert!(
            message.starts_with("input type \"banana\" is not known; known: classification, "),
            "{message}"
        );
    }

    #[test]
    fn a_server_can_insist_on_knowing_what_texts_are() {
        let strict = Offer { require_input_type: true, ..offer(&[], None) };
        assert_eq!(strict.decide(&Options::default()), Err(Error::InputTypeMissing));
        for options in [
            Options { input_type: said("query"), ..Options::default() },
            Options { suffix: said("query"), ..Options::default() },
            Options { prompt: said(""), ..Options::default() },
        ] {
            assert!(strict.decide(&options).is_ok(), "{options:?}");
        }
    }

    #[test]
    fn vectors_are_shortened_only_to_what_the_model_was_trained_for() {
        let model = offer(&[], None);
        let of = |dimensions| model.decide(&Options { dimensions: Some(dimensions), ..Options::default() });
        assert_eq!(of(384).unwrap(), model.decide(&Options::default()).unwrap());
        assert_eq!(of(64).unwrap().dimensions, 64);
        assert_ne!(of(64).unwrap().space, of(384).unwrap().space);
        assert_eq!(
            of(65).unwrap_err().to_string(),
            "dimensions must be 64 or 128 or 384, not 65: the model was trained for these lengths"
        );
        let fixed = Offer { dimensions: vec![384], ..offer(&[], None) };
        let options = Options { dimensions: Some(64), ..Options::default() };
        assert_eq!(
            fixed.decide(&options).unwrap_err().to_string(),
            "dimensions must be 384, not 64: the model's vectors cannot be shortened without losing what they mean"
        );
    }

    #[test]
    fn a_caller_gets_no_vector_of_another_space_than_it_expects() {
        let model = offer(&[("query", "q: ")], None);
        let space = model.decide(&Options::default()).unwrap().space;
        let expects = |space: &str| Options { expected_space: said(space), ..Options::default() };
        assert_eq!(model.decide(&expects(&space.to_string())).unwrap().space, space);
        // Queries and documents share a space.
        let query = Options { input_type: said("query"), ..expects(&space.to_string()) };
        assert_eq!(model.decide(&query).unwrap().space, space);
        let error = model.decide(&expects("es1-0")).unwrap_err();
        assert_eq!(error, Error::OtherSpace { expected: "es1-0".to_owned(), is: space.clone() });
        assert!(error.to_string().contains("es1-0") && error.to_string().contains(&space.to_string()));
        let raw = Options { normalize: Some(false), ..expects(&space.to_string()) };
        assert!(model.decide(&raw).is_err());
    }
}
