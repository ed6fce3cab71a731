//! The vector space that the operator tells of is the one that the server serves.

use std::path::Path;

use embedding_server::config::{Cli, Command};
use embedding_server::fetch_command;
use embedding_server::model::Directory;
use embedding_server::models::{self, Manner};
use embedding_server::space::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::settings;
use crate::support::tiny::Tiny;

/// What fetches say and what spaces the server serves then. The operator makes the same of them
/// (operator/src/controller/space.rs).
const SPACES: &str = "../operator/tests/fetched-spaces.json";

/// Fetches a small model whose files have these prompts.
fn fetch_tiny(prompts: &Value, cache: &Path) -> Value {
    let mut tiny = Tiny::new();
    tiny.files.push(("config_sentence_transformers.json".into(), prompts.to_string().into_bytes()));
    let written = tiny.write();
    let files =
        ["config.json", "modules.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"];
    let hash = |file: &&str| {
        let digest = Sha256::digest(std::fs::read(written.file(file)).unwrap());
        (file.to_string(), json!(hex(&digest)))
    };
    let hashes: serde_json::Map<_, _> =
        files.iter().chain(&["config_sentence_transformers.json"]).map(hash).collect();
    let manifest = written.file("manifest.json");
    std::fs::write(&manifest, json!({"files": hashes}).to_string()).unwrap();
    let line = ["embedding-server", "fetch", "org/tiny@0123456789012345678901234567890123456789", "--from"];
    let line = line.into_iter().map(Into::into).chain([
        written.path().as_os_str().to_owned(),
        "--manifest".into(),
        manifest.into_os_string(),
        "--cache-dir".into(),
        cache.as_os_str().to_owned(),
    ]);
    let Command::Fetch(arguments) = Cli::parse_with_default(line).command else { panic!("it fetches") };
    serde_json::to_value(fetch_command::run(&arguments.resolve().unwrap()).unwrap()).unwrap()
}

#[test]
fn the_space_that_is_served_is_the_one_that_the_operator_makes_of_what_a_fetch_said() {
    let query = || json!({"query": "q: ", "quoted": "\"ä\\\t$(X)"});
    let mut table = Vec::new();
    for own in
        [json!({}), json!({"prompts": query()}), json!({"prompts": query(), "default_prompt_name": "query"})]
    {
        let cache = tempfile::tempdir().unwrap();
        let mut summary = fetch_tiny(&own, cache.path());
        let directory = summary["directory"].as_str().unwrap().to_owned();
        summary["directory"] = json!("/models");
        for (prompts, default_prompt) in [
            (json!({}), None),
            (json!({"query": "other: ", "passage": ""}), None),
            (json!({"query": "q: ", "passage": "p: "}), Some("passage")),
        ] {
            let manner = Manner {
                prompts: serde_json::from_value(prompts.clone()).unwrap(),
                default_prompt: default_prompt.map(str::to_owned),
                ..Manner::default()
            };
            let preference = settings().preference;
            let model = models::load(
                Directory::read(Path::new(&directory)).unwrap(),
                "m".into(),
                preference,
                &manner,
            );
            table.push(json!({
                "summary": summary,
                "prompts": prompts,
                "default_prompt": default_prompt,
                "space": model.unwrap().about.space().to_string(),
            }));
        }
    }
    let table = serde_json::to_string_pretty(&table).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SPACES);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == table,
        "{SPACES} is not what the server says: run `UPDATE_GENERATED=1 cargo test -p embedding-server --locked --test \
         contract` and commit it; {table}"
    );
}
