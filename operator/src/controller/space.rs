//! The vector space of a model: what can be compared with its vectors, and what becomes of a
//! change of it. Pure.
//!
//! `fetch` tells the fingerprint of a model's files, and the spec has the prompts: of these
//! the space is made here as the server makes it (docs/vector-spaces.md).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::build::names::SPACE_ANNOTATION;
use super::fetched::Summary;
use crate::crd::SpaceChangePolicy;
use crate::crd::status::Reason;

/// The version of what is hashed, and how.
const VERSION: &str = "1";
/// How many bytes of the hash are told.
const TOLD: usize = 16;

/// The spaces that are at stake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spaces {
    /// That of the pods as they are decided upon, as far as it is known.
    pub served: Option<String>,
    /// The last one before it that was known.
    pub before: Option<String>,
    /// The one that is wanted and refused.
    pub refused: Option<String>,
    /// The one that the model's users say that their indexes are of.
    pub expected: Option<String>,
}

impl Spaces {
    /// Why what is wanted is not served, where it is not.
    pub fn refusal(&self) -> Option<String> {
        let wanted = self.refused.as_ref()?;
        let stays = match (&self.served, &self.expected) {
            (Some(served), _) => format!("those of {served} are served on"),
            (None, Some(expected)) => format!("{expected} is expected"),
            (None, None) => "what is served stays".into(),
        };
        Some(format!(
            "the wanted files and prompts make vectors of the space {wanted}; {stays}, because spaceChangePolicy is \
             Refuse: go back, or take the new ones by the policy Allow or the annotation {SPACE_ANNOTATION}={wanted}, \
             and make indexes anew"
        ))
    }

    /// Whether the space has changed, and what to do. `served` is as far as it is known by now,
    /// and `is_decided` says whether there are to be pods.
    pub fn verdict(&self, served: Option<&str>, is_decided: bool) -> (bool, Reason, String) {
        if let Some(refusal) = self.refusal() {
            return (true, Reason::SpaceChangeRefused, refusal);
        }
        let Some(served) = served else {
            let message = if is_decided {
                "the operator was not told the vector space; X-Embedding-Space of each answer has it"
            } else {
                "the vector space is known when the model is fetched"
            };
            return (false, Reason::SpaceUnknown, message.into());
        };
        let anew = "vectors of both cannot be compared: make indexes anew";
        let message = match (&self.expected, &self.before) {
            (Some(expected), _) if expected != served => format!(
                "vectors are of the space {served}, and the annotation {SPACE_ANNOTATION} expects {expected}; {anew}, then \
                 set the annotation to {served}"
            ),
            (None, Some(before)) if before != served => format!(
                "vectors are of the space {served}, and were of {before} before; {anew}, then set the annotation \
                 {SPACE_ANNOTATION} to {served}"
            ),
            _ => return (false, Reason::SpaceUnchanged, format!("vectors are of the space {served}")),
        };
        (true, Reason::SpaceChangeAllowed, message)
    }
}

/// The space of the answers of a server with these files, and these prompts beside those of
/// the files. None where the files' version of the server did not tell enough.
pub fn of(
    files: &Summary,
    prompts: &BTreeMap<String, String>,
    default_prompt: Option<&str>,
) -> Option<String> {
    let mut all = files.prompts.clone()?;
    all.extend(prompts.clone());
    let default_prompt = default_prompt.or(files.default_prompt.as_deref());
    let mut lines = vec![format!("files {}", files.space_files.as_ref()?)];
    lines.extend(all.iter().map(|(name, text)| format!("prompt {} {}", quoted(name), quoted(text))));
    lines.push(format!("default_prompt {}", default_prompt.map_or_else(|| "null".into(), quoted)));
    let base = hex(&sha256_of_lines(&lines));
    let lines = [
        format!("base {base}"),
        format!("dimensions {}", files.dimensions?),
        format!("normalized {}", files.normalizes?),
    ];
    Some(format!("es{VERSION}-{}", hex(&sha256_of_lines(&lines)[..TOLD])))
}

/// Whether pods of this space are not to be made. The one that is served may stay, and what the
/// users say that they have may come; where neither is known, so may anything.
pub fn is_refused(
    policy: SpaceChangePolicy,
    wanted: Option<&str>,
    served: Option<&str>,
    expected: Option<&str>,
) -> bool {
    let may: Vec<&str> = [served, expected].into_iter().flatten().collect();
    let known = wanted.filter(|_| policy == SpaceChangePolicy::Refuse && !may.is_empty());
    known.is_some_and(|wanted| !may.contains(&wanted))
}

/// A digest in hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Text of unknown content in one line.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn sha256_of_lines(lines: &[String]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    fn prompts(prompts: &[(&str, &str)]) -> BTreeMap<String, String> {
        prompts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    /// Of a model whose space a test of the server has, too (server/src/space.rs).
    fn files(own: &[(&str, &str)], default_prompt: Option<&str>) -> Summary {
        Summary {
            commit: "c".into(),
            dimensions: Some(384),
            normalizes: Some(true),
            space_files: Some("e47a7cc12e8074716d46abb5dbdecef488981ffb12023947b7ec00cfa1e2f83f".into()),
            prompts: Some(prompts(own)),
            default_prompt: default_prompt.map(str::to_owned),
            ..Summary::default()
        }
    }

    const QUERY: [(&str, &str); 1] = [("query", "query: ")];

    /// What a server serves after a fetch that said this: by server/tests/contract/spaces.rs.
    #[derive(Deserialize)]
    struct Served {
        summary: Summary,
        prompts: BTreeMap<String, String>,
        default_prompt: Option<String>,
        space: String,
    }

    #[test]
    fn it_is_what_the_server_serves() {
        let table: Vec<Served> =
            serde_json::from_str(include_str!("../../tests/fetched-spaces.json")).unwrap();
        assert!(table.len() > 6);
        for Served { summary, prompts, default_prompt, space } in table {
            assert_eq!(of(&summary, &prompts, default_prompt.as_deref()), Some(space), "{summary:?}");
        }
    }

    #[test]
    fn it_is_the_sha256_of_the_documented_lines() {
        let expected = Some("es1-1aa414ab2542e390c88904105941454b".to_owned());
        assert_eq!(of(&files(&QUERY, None), &prompts(&[]), None), expected);
        assert_eq!(of(&files(&[], None), &prompts(&QUERY), None), expected);
        // The spec's wins.
        assert_eq!(of(&files(&[("query", "q: ")], None), &prompts(&QUERY), None), expected);
    }

    #[test]
    fn prompts_the_default_among_them_length_and_norm_make_it() {
        let plain = files(&QUERY, None);
        let none = prompts(&[]);
        let mut short = plain.clone();
        short.dimensions = Some(128);
        let mut as_it_is = plain.clone();
        as_it_is.normalizes = Some(false);
        let spaces = [
            of(&plain, &none, None),
            of(&plain, &none, Some("query")),
            of(&plain, &prompts(&[("passage", "")]), None),
            of(&short, &none, None),
            of(&as_it_is, &none, None),
        ];
        for (number, space) in spaces.iter().enumerate() {
            assert!(space.is_some() && !spaces[..number].contains(space), "{spaces:?}");
        }
        assert_eq!(of(&files(&QUERY, Some("query")), &none, None), spaces[1]);
        assert_eq!(of(&files(&QUERY, Some("other")), &none, Some("query")), spaces[1]);
    }

    #[test]
    fn what_was_not_told_is_not_guessed() {
        type Change = fn(&mut Summary);
        let changes: [Change; 4] = [
            |files| files.space_files = None,
            // They were too long to be told.
            |files| files.prompts = None,
            |files| files.dimensions = None,
            |files| files.normalizes = None,
        ];
        for change in changes {
            let mut less = files(&QUERY, None);
            change(&mut less);
            assert_eq!(of(&less, &prompts(&QUERY), None), None);
        }
    }

    fn spaces(served: &str, before: &str, refused: &str, expected: &str) -> Spaces {
        let [served, before, refused, expected] =
            [served, before, refused, expected].map(|it| Some(it.to_owned()).filter(|it| !it.is_empty()));
        Spaces { served, before, refused, expected }
    }

    #[test]
    fn what_became_of_the_space_is_told_with_what_to_do() {
        use Reason::{SpaceChangeAllowed, SpaceChangeRefused, SpaceUnchanged, SpaceUnknown};
        for (spaces, reason, says) in [
            (spaces("a", "", "", ""), SpaceUnchanged, "vectors are of the space a"),
            (spaces("", "", "", ""), SpaceUnknown, "was not told"),
            (spaces("", "b", "", "b"), SpaceUnknown, "was not told"),
            (spaces("a", "b", "", ""), SpaceChangeAllowed, "space a, and were of b before"),
            (spaces("a", "a", "", ""), SpaceUnchanged, "space a"),
            // Whoever says what is expected has seen the change.
            (spaces("a", "b", "", "a"), SpaceUnchanged, "space a"),
            (spaces("a", "", "", "c"), SpaceChangeAllowed, "embeddings.kagent.dev/space expects c"),
            (spaces("a", "b", "", "c"), SpaceChangeAllowed, "expects c"),
            (spaces("a", "", "b", ""), SpaceChangeRefused, "space b; those of a are served on"),
            (spaces("", "", "b", "c"), SpaceChangeRefused, "space b; c is expected"),
            (spaces("", "", "b", ""), SpaceChangeRefused, "space b; what is served stays"),
        ] {
            let (holds, why, message) = spaces.verdict(spaces.served.as_deref(), true);
            assert_eq!((holds, why), (reason == SpaceChangeAllowed || reason == SpaceChangeRefused, reason));
            assert!(message.contains(says), "{message}");
            assert_eq!(spaces.refusal().is_some(), reason == SpaceChangeRefused);
        }
        let (_, why, message) = Spaces::default().verdict(None, false);
        assert_eq!(
            (why, message.as_str()),
            (SpaceUnknown, "the vector space is known when the model is fetched")
        );
    }

    #[test]
    fn what_is_refused_is_another_space_than_any_that_may_be() {
        use SpaceChangePolicy::{Allow, Refuse};
        let (a, b, c) = (Some("a"), Some("b"), Some("c"));
        for (policy, wanted, served, expected, refused) in [
            (Allow, b, a, None, false),
            (Refuse, b, a, None, true),
            (Refuse, a, a, None, false),
            // The first one, and one that nothing is known of.
            (Refuse, b, None, None, false),
            (Refuse, None, a, a, false),
            // What the users say counts before the first, and after a change that they await.
            (Refuse, b, None, a, true),
            (Refuse, b, a, b, false),
            (Refuse, c, a, b, true),
            (Refuse, a, a, b, false),
        ] {
            let is = is_refused(policy, wanted, served, expected);
            assert_eq!(is, refused, "{policy:?} {wanted:?} {served:?} {expected:?}");
        }
    }
}
