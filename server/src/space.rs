//! The fingerprint of a vector space: equal where two vectors may be compared, different where
//! anything that decides it is. docs/vector-spaces.md describes it for other implementations.
//!
//! # How it is made
//!
//! ```text
//! the model's files ─▶ Files ┐
//! its prompts ───────────────┴▶ Base ┐
//! length and norm of its vectors ────┴▶ Space
//! ```
//!
//! In steps, so that who knows the files' fingerprint (`fetch` tells it) can tell the space.
//!
//! # What is in it
//!
//! The weights that are read, the tokenizer, the architecture's configuration, the pooling, what
//! follows it, the configured prompts, the longest input, the length of the vectors and whether they
//! are normalised. Not in it: which of the prompts a request applied (queries and documents are to be
//! compared), what becomes of long texts, and the device and number format that compute, which change
//! a vector by less than a rounding.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The version of what is hashed, and how; part of what is hashed.
const VERSION: &str = "1";
/// How many bytes of the hash are told: 128 bits, of which no two are met by chance.
const TOLD: usize = 16;

/// A sha256.
pub type Digest = [u8; 32];

/// A tensor that a model computes with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tensor {
    /// Its name, without the prefix of the class that it was saved from.
    pub name: String,
    /// How its numbers are stored, by safetensors' name: `F32`, `F16`, `BF16`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Of its bytes.
    pub sha256: Digest,
}

/// What of a model's files decides its space, but for the prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Every tensor that is read, in any order.
    pub tensors: Vec<Tensor>,
    /// Of `tokenizer.json`.
    pub tokenizer: Digest,
    /// Whether texts are lowercased before they are tokenised.
    pub lowercase: bool,
    /// The architecture, and what of its configuration it computes by; by name.
    pub architecture: BTreeMap<String, String>,
    /// The pooling, and the modules after it, in order.
    pub modules: Vec<String>,
    /// The longest input in tokens.
    pub max_tokens: usize,
}

/// The fingerprint of a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Files(Digest);

/// What decides which vectors can be compared, but for their length and norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Base(Digest);

/// A vector space, as it is told: `es1-` and 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(String);

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A digest in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
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

impl Parts {
    /// The lines that are hashed.
    fn lines(&self) -> Vec<String> {
        let mut tensors = self.tensors.clone();
        tensors.sort();
        let tensors = tensors.iter().map(|tensor| {
            let shape: Vec<_> = tensor.shape.iter().map(ToString::to_string).collect();
            format!(
                "tensor {} {} {} {}",
                quoted(&tensor.name),
                tensor.dtype,
                shape.join("x"),
                hex(&tensor.sha256)
            )
        });
        let mut lines = vec![format!("embedding-space {VERSION}")];
        lines.extend(tensors);
        lines.push(format!("tokenizer {}", hex(&self.tokenizer)));
        lines.push(format!("lowercase {}", self.lowercase));
        lines.extend(
            self.architecture.iter().map(|(name, value)| format!("architecture {name} {}", quoted(value))),
        );
        lines.extend(self.modules.iter().map(|module| format!("module {module}")));
        lines.push(format!("max_tokens {}", self.max_tokens));
        lines
    }

    /// The fingerprint of all of it.
    pub fn files(&self) -> Files {
        Files(sha256_of_lines(&self.lines()))
    }
}

fn sha256_of_lines(lines: &[String]) -> Digest {
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().into()
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Files {
    /// With the model's prompts by name, and the name of the prompt of texts of which nothing is
    /// said.
    pub fn with_prompts(&self, prompts: &BTreeMap<String, String>, default_prompt: Option<&str>) -> Base {
        let mut lines = vec![format!("files {self}")];
        lines.extend(prompts.iter().map(|(name, text)| format!("prompt {} {}", quoted(name), quoted(text))));
        lines.push(format!("default_prompt {}", default_prompt.map_or_else(|| "null".into(), quoted)));
        Base(sha256_of_lines(&lines))
    }
}

impl Base {
    /// The space of its vectors of this length, divided by their norm or not.
    pub fn space(&self, dimensions: usize, normalized: bool) -> Space {
        let lines = [
            format!("base {}", hex(&self.0)),
            format!("dimensions {dimensions}"),
            format!("normalized {normalized}"),
        ];
        Space(format!("es{VERSION}-{}", hex(&sha256_of_lines(&lines)[..TOLD])))
    }

    /// The space of the states of its tokens, which are no vectors of texts.
    pub fn of_states(&self) -> Space {
        let lines = [format!("base {}", hex(&self.0)), "states".to_owned()];
        Space(format!("es{VERSION}-{}", hex(&sha256_of_lines(&lines)[..TOLD])))
    }

    /// One for tests of what is around it.
    pub fn of_test(name: &str) -> Self {
        Self(Sha256::digest(name.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tensor(name: &str, byte: u8) -> Tensor {
        Tensor { name: name.to_owned(), dtype: "F32".to_owned(), shape: vec![2, 3], sha256: [byte; 32] }
    }

    fn parts() -> Parts {
        Parts {
            tensors: vec![tensor("a", 1), tensor("b", 2)],
            tokenizer: [3; 32],
            lowercase: false,
            architecture: BTreeMap::from([("model_type".to_owned(), "bert".to_owned())]),
            modules: vec!["pooling mean include_prompt=true".to_owned()],
            max_tokens: 256,
        }
    }

    #[test]
    fn each_part_changes_it_and_the_order_of_tensors_does_not() {
        let files = parts().files();
        let mut shuffled = parts();
        shuffled.tensors.reverse();
        assert_eq!(files, shuffled.files());

        let changes: [(&str, &dyn Fn(&mut Parts)); 11] = [
            ("a tensor's bytes", &|parts| parts.tensors[0].sha256 = [9; 32]),
            ("a tensor's name", &|parts| parts.tensors[0].name = "c".to_owned()),
            ("a tensor's dtype", &|parts| parts.tensors[0].dtype = "F16".to_owned()),
            ("a tensor's shape", &|parts| parts.tensors[0].shape = vec![3, 2]),
            ("a tensor less", &|parts| drop(parts.tensors.pop())),
            ("the tokenizer", &|parts| parts.tokenizer = [4; 32]),
            ("lowercasing", &|parts| parts.lowercase = true),
            ("the architecture", &|parts| {
                parts.architecture.insert("hidden_act".to_owned(), "relu".to_owned());
            }),
            ("the pooling", &|parts| parts.modules[0] = "pooling cls include_prompt=true".to_owned()),
            ("another module", &|parts| parts.modules.push("dense identity".to_owned())),
            ("the longest input", &|parts| parts.max_tokens = 128),
        ];
        let mut seen = HashSet::from([files]);
        for (what, change) in changes {
            let mut other = parts();
            change(&mut other);
            assert!(seen.insert(other.files()), "{what}");
        }
    }

    #[test]
    fn prompts_length_and_norm_change_it() {
        let files = parts().files();
        let prompts = |prompts: &[(&str, &str)]| -> BTreeMap<String, String> {
            prompts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
        };
        let query = prompts(&[("query", "query: ")]);
        let bases = [
            files.with_prompts(&prompts(&[]), None),
            files.with_prompts(&query, None),
            files.with_prompts(&query, Some("query")),
            files.with_prompts(&prompts(&[("query", "Q: ")]), None),
            files.with_prompts(&prompts(&[("query", "query: "), ("passage", "")]), None),
            // One that is called like the word for none.
            files.with_prompts(&query, Some("null")),
        ];
        let mut seen = HashSet::new();
        for base in bases {
            for (dimensions, normalized) in [(384, true), (384, false), (128, true)] {
                assert!(seen.insert(base.space(dimensions, normalized)));
            }
        }
    }

    #[test]
    fn it_is_the_sha256_of_the_documented_lines() {
        assert_eq!(
            parts().lines(),
            [
                "embedding-space 1".to_owned(),
                format!("tensor \"a\" F32 2x3 {}", "01".repeat(32)),
                format!("tensor \"b\" F32 2x3 {}", "02".repeat(32)),
                format!("tokenizer {}", "03".repeat(32)),
                "lowercase false".to_owned(),
                "architecture model_type \"bert\"".to_owned(),
                "module pooling mean include_prompt=true".to_owned(),
                "max_tokens 256".to_owned(),
            ]
        );
        // By `sha256sum`, step by step.
        assert_eq!(
            parts().files().to_string(),
            "e47a7cc12e8074716d46abb5dbdecef488981ffb12023947b7ec00cfa1e2f83f"
        );
        let prompts = BTreeMap::from([("query".to_owned(), "query: ".to_owned())]);
        let base = parts().files().with_prompts(&prompts, None);
        let space = base.space(384, true);
        assert_eq!(space.to_string(), "es1-1aa414ab2542e390c88904105941454b");

        let documented = include_str!("../../docs/vector-spaces.md");
        let base = format!("base {}\ndimensions 384\nnormalized true", hex(&base.0));
        for text in [parts().lines().join("\n"), format!("files {}", parts().files()), base] {
            assert!(documented.contains(&text), "{text}");
        }
        assert!(documented.contains(&format!("their space is `{space}`")));
    }
}
