//! The examples of docs/http-api.md, asked of real servers: each path has one, and each answer is the one that is
//! shown.
//!
//! An answer may leave things out (`…`): the end of an array or of a string, or a value.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeSet;

use embedding_server::http;
use serde_json::Value;
use support::cross_encoder;
use support::process::{Server, send};

/// Numbers are shown with four digits.
const ROUNDING: f64 = 0.000_06;

/// A request as it is shown, and its answer.
struct Example {
    method: String,
    path: String,
    body: String,
    status: u16,
    content_type: Option<String>,
    answer: Option<Value>,
}

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/http-api.md")).unwrap()
}

/// The shown JSON, in which what is left out is a string.
fn complete(shown: &str) -> Value {
    let mut text = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for c in shown.chars() {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        match c {
            '…' if !quoted => text.push_str("\"…\""),
            c => text.push(c),
        }
    }
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

fn examples() -> Vec<Example> {
    let document = document();
    let example = |part: &str| {
        let (request, rest) = part.split_once("```\n\n→ ").expect("an answer under each request");
        let (line, body) = request.split_once('\n').unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        let (status, rest) = rest.split_once('\n').unwrap();
        let (status, note) =
            status.split_once(", ").map_or((status, None), |(status, note)| (status, Some(note)));
        let content_type = note.and_then(|note| note.strip_prefix('`')?.strip_suffix('`'));
        let answer = note.is_none().then(|| {
            let (answer, _) = rest.trim_start().strip_prefix("```json\n").unwrap().split_once("```").unwrap();
            complete(answer)
        });
        Example {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.trim().to_owned(),
            status: status.parse().unwrap(),
            content_type: content_type.map(str::to_owned),
            answer,
        }
    };
    document.split("```http\n").skip(1).filter(|part| !part.starts_with("X-")).map(example).collect()
}

/// Whether `found` is what is shown.
fn is_shown(shown: &Value, found: &Value) -> bool {
    match (shown, found) {
        (Value::String(text), _) if text == "…" => true,
        (Value::String(text), Value::String(found)) => {
            text.strip_suffix('…').map_or(text == found, |begin| found.starts_with(begin))
        }
        (Value::Number(shown), Value::Number(found)) if shown.is_f64() => {
            (shown.as_f64().unwrap() - found.as_f64().unwrap()).abs() < ROUNDING
        }
        (Value::Array(shown), Value::Array(found)) => {
            let pairs =
                |shown: &[Value]| shown.iter().zip(found).all(|(shown, found)| is_shown(shown, found));
            match shown.split_last() {
                Some((last, begin)) if last == "…" => begin.len() < found.len() && pairs(begin),
                _ => shown.len() == found.len() && pairs(shown),
            }
        }
        (Value::Object(shown), Value::Object(found)) => {
            shown.keys().eq(found.keys()) && shown.iter().all(|(name, value)| is_shown(value, &found[name]))
        }
        _ => shown == found,
    }
}

/// Whether it is an example of that operation; the last part of a pattern can be several.
fn is_of(example: &Example, method: &str, pattern: &str) -> bool {
    let path = example.path.split('?').next().unwrap_or_default();
    let fits = match pattern.split_once('{') {
        Some((begin, _)) => path.starts_with(begin) && path.len() > begin.len(),
        None => path == pattern,
    };
    fits && example.method == method
}

#[test]
fn every_operation_has_an_example() {
    let examples = examples();
    let described: Value = serde_json::from_str(&http::document()).unwrap();
    for (pattern, item) in described["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let shown = examples.iter().any(|example| is_of(example, &method, pattern));
            assert!(shown, "docs/http-api.md has no example of {method} {pattern}");
        }
    }
}

#[test]
fn every_example_is_answered_as_it_is_shown() {
    let of = |name: &str, folder: &str| {
        let model = format!("{name}={}", cross_encoder(folder).display());
        Server::healthy(&["--dtype", "float32", "--model", &model])
    };
    let (ranker, classifier) = (of("ranker", "one"), of("classifier", "several"));
    // Which the answer of `/models` tells: what `auto` chooses depends on the CPU.
    let default = Server::healthy(&["--offline", "--dtype", "float32", "--implementation", "packed"]);
    let changeable = Server::healthy(&["--offline", "--allow-model-changes"]);
    for Example { method, path, body, status, content_type, answer } in examples() {
        let server = match path.as_str() {
            "/models" if method == "POST" => &changeable,
            path if path.ends_with("/rerank") => &ranker,
            "/predict" => &classifier,
            _ => &default,
        };
        let headers = [("Content-Type", "application/json")];
        let found = send(server.address, &method, &path, &headers, body.as_bytes()).unwrap();
        assert_eq!(found.status, status, "{method} {path}: {}", found.body);
        match (answer, content_type) {
            (Some(shown), _) => {
                let found = found.json();
                assert!(
                    is_shown(&shown, &found),
                    "{method} {path}: {shown}\nis shown, and answered is\n{found}"
                );
            }
            (None, Some(shown)) => {
                let line = format!("content-type: {shown}");
                assert!(found.head.lines().any(|found| found.eq_ignore_ascii_case(&line)), "{}", found.head);
            }
            (None, None) => assert_eq!(found.body, "", "{method} {path}"),
        }
    }
}

/// Of the table: each code with its status.
fn tabled() -> BTreeSet<(String, String)> {
    let document = document();
    let (_, table) = document.split_once("| status | code | when |\n").unwrap();
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| "));
    let row = |row: &str| {
        let mut cells = row.split(" | ").map(str::to_owned);
        let (status, codes) = (cells.next().unwrap(), cells.next().unwrap());
        codes.split(", ").map(|code| (code.trim_matches('`').to_owned(), status.clone())).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

/// Of the description of our own API: the same.
fn described() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(&http::document()).unwrap();
    let mut codes = BTreeSet::new();
    for path in ["/embeddings", "/models", "/health"] {
        for operation in document["paths"][path].as_object().unwrap().values() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let referred = response["$ref"].as_str().map(|reference| &reference[1..]);
                let response = referred.map_or(response, |place| document.pointer(place).unwrap());
                let description = response["description"].as_str().unwrap();
                let lines =
                    description.split("; ").filter_map(|line| line.strip_prefix('`')?.split_once("`: "));
                codes.extend(lines.map(|(code, _)| (code.to_owned(), status.clone())));
            }
        }
    }
    codes
}

#[test]
fn the_table_of_errors_has_every_code_that_is_answered() {
    let mut expected = described();
    // Of no operation.
    for (code, status) in [("no_such_path", "404"), ("method_not_allowed", "405")] {
        expected.insert((code.to_owned(), status.to_owned()));
    }
    assert_eq!(tabled(), expected);
}

#[test]
fn what_is_left_out_is_anything_and_all_else_is_what_is_shown() {
    for (shown, found, same) in [
        ("[0.1234, …]", "[0.12338, 2]", true),
        ("[0.1234, …]", "[0.1234]", false),
        ("[0.1234]", "[0.1234, 2]", false),
        ("[0.1234]", "[0.1236]", false),
        (r#"{"a": …, "b": "x…"}"#, r#"{"a": [1], "b": "xyz"}"#, true),
        (r#"{"a": …}"#, r#"{"a": 1, "b": 2}"#, false),
        (r#"{"a": "\"…"}"#, r#"{"a": "\"b"}"#, true),
        (r#"{"a": 1}"#, r#"{"a": 2}"#, false),
    ] {
        assert_eq!(is_shown(&complete(shown), &complete(found)), same, "{shown} {found}");
    }
}
