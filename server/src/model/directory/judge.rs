//! A directory with a language model that is asked whether a document answers a query, as Qwen3-Reranker is: the score
//! is the logit of the token `yes`, less that of `no`, behind a fixed question.
//!
//! ```text
//! config.json   architectures: ["…ForCausalLM"]
//! modules.json  a Transformer and a LogitScore, as sentence-transformers 5.4 and later save it; or none, and then
//!               config.json has classifier_from_token: ["no", "yes"], as vLLM has it, or the directory or the
//!               repository is called a reranker
//! ```
//!
//! A language model without `modules.json` and without such a sign is refused: nothing says whether it is to rank or
//! to embed, and how.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{Answer, Error, MODULES, Module, Tail, json, json_if_there, unsupported};
use crate::model::encoder::Encoder;
use crate::model::pooling::{Mode, Pooling};
use crate::scores::{Activation, Classifier};

/// How the classes of language models end.
const CLASS: &str = "ForCausalLM";

/// What a model is asked about a query and a document, as it was trained to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Before all else; never cut.
    pub before: &'static str,
    /// Before the instruction, the query and the document.
    pub parts: [&'static str; 3],
    /// After the document; never cut.
    pub after: &'static str,
    /// What is to be judged, where a request has no prompt that says it.
    pub instruction: &'static str,
}

/// Qwen3-Reranker's (Zhang et al., 2025; its model card).
const QWEN3: Question = Question {
    before: "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
             Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
    parts: ["<Instruct>: ", "\n<Query>: ", "\n<Document>: "],
    after: "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction: "Given a web search query, retrieve relevant passages that answer the query",
};

#[derive(Default, Deserialize)]
struct Config {
    architectures: Option<Vec<String>>,
    classifier_from_token: Option<[String; 2]>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// The module that makes a score of logits.
#[derive(Deserialize)]
struct LogitScore {
    true_token_id: u32,
    false_token_id: Option<u32>,
}

/// As much of `tokenizer.json` as is looked at.
#[derive(Deserialize)]
struct Vocabulary {
    model: Tokens,
}

#[derive(Deserialize)]
struct Tokens {
    vocab: HashMap<String, u32>,
}

/// What is judged by the model in `path`, and by what question; nothing where it is no language model, or embeds.
pub(super) fn read(path: &Path, encoder: &Encoder) -> Result<Option<(Classifier, Question, Tail)>, Error> {
    let file = path.join("config.json");
    let config: Config = json_if_there(&file)?.unwrap_or_default();
    let Some(class) = config.architectures.iter().flatten().find(|class| class.ends_with(CLASS)) else {
        return Ok(None);
    };
    let modules: Option<Vec<Module>> = json_if_there(&path.join(MODULES))?;
    let is_logit_score = |module: &Module| module.class.rsplit('.').next() == Some("LogitScore");
    let (yes, no) = match modules.as_deref() {
        Some([_, score]) if is_logit_score(score) => {
            let folder = super::inside(path, &path.join(MODULES), &score.path)?;
            let LogitScore { true_token_id, false_token_id } =
                json(&folder.join("config.json"), "the module LogitScore has no configuration")?;
            (true_token_id, false_token_id)
        }
        Some(_) => return Ok(None),
        None => {
            let [no, yes] = match config.classifier_from_token {
                Some(tokens) => tokens,
                None if is_called_reranker(path) => ["no", "yes"].map(str::to_owned),
                None => {
                    return Err(unsupported(
                        &file,
                        format!(
                            "a language model ({class}) without {MODULES}, which would say how it embeds; to rank \
                             with it as with Qwen3-Reranker, add \"classifier_from_token\": [\"no\", \"yes\"]"
                        ),
                    ));
                }
            };
            let file = path.join("tokenizer.json");
            let Vocabulary { model } = json(&file, "the model needs a tokenizer")?;
            let id = |token: &str| {
                let missing = || unsupported(&file, format!("has no token \"{token}\" to answer with"));
                model.vocab.get(token).copied().ok_or_else(missing)
            };
            (id(&yes)?, Some(id(&no)?))
        }
    };
    if encoder.architecture != "qwen3" {
        let problem =
            format!("a {} that judges documents is not supported; supported: qwen3", encoder.architecture);
        return Err(unsupported(&file, problem));
    }
    for id in [Some(yes), no].into_iter().flatten() {
        if i64::from(id) >= encoder.vocab_size {
            return Err(unsupported(
                &file,
                format!("vocab_size is {}, and {id} is an answer's token", encoder.vocab_size),
            ));
        }
    }
    let classifier = Classifier { labels: vec!["yes".to_owned()], activation: Activation::Sigmoid };
    let answer = Answer { path: path.to_owned(), yes, no, tied: config.tie_word_embeddings };
    Ok(Some((classifier, QWEN3, Tail::Answer(answer))))
}

/// The pooling of a model that answers with its next token.
pub(super) fn pooling() -> Pooling {
    Pooling::of(Mode::LastToken)
}

/// Whether the directory is called so, or the repository that a cache's directory of a commit is of.
fn is_called_reranker(path: &Path) -> bool {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let names = absolute.ancestors().take(2).filter_map(Path::file_name);
    names.into_iter().any(|name| name.to_string_lossy().to_lowercase().contains("reranker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reranker_is_known_by_the_name_of_its_directory_or_of_its_repository() {
        for (path, expected) in [
            ("/models/Qwen3-Reranker-0.6B", true),
            ("/cache/models--Qwen--Qwen3-Reranker-0.6B/0123456789", true),
            ("/rerankers/of/qwen3", false),
            ("/models/qwen3-embedding", false),
        ] {
            assert_eq!(is_called_reranker(Path::new(path)), expected, "{path}");
        }
    }
}
