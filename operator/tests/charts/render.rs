//! What Helm makes of values, and what is in it.

use clap::Parser as _;
use embedding_operator::config::Cli;
use serde_json::Value;

use super::OPERATOR;
use super::helm::{Helm, documents};

pub(crate) fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

/// What both Helms make of the values: the same.
pub(crate) fn render(name: &str, values: &Value) -> Vec<Value> {
    rendered(name, values).objects
}

/// A release of a chart.
pub(crate) struct Rendered {
    /// As each Helm writes it.
    pub(crate) texts: Vec<String>,
    pub(crate) objects: Vec<Value>,
}

pub(crate) fn rendered(name: &str, values: &Value) -> Rendered {
    let written = Helm::all().iter().map(|helm| {
        let text = helm.manifest(name, "ops", values);
        text.unwrap_or_else(|error| panic!("Helm {}: {error}\nof {values}", helm.version))
    });
    let texts: Vec<String> = written.collect();
    let mut all = texts.iter().map(|text| {
        let mut objects = documents(text);
        // They differ in the order of kinds that they do not know.
        objects.sort_by_key(of);
        objects
    });
    let objects = all.next().unwrap();
    assert!(all.all(|other| other == objects), "one Helm makes something else than the other of {values}");
    Rendered { texts, objects }
}

/// What is said by both Helms against the values.
pub(crate) fn refusal(name: &str, values: &Value) -> String {
    let refusals = Helm::all().iter().map(|helm| {
        let rendered = helm.template(name, "ops", values);
        rendered.map(|_| ()).expect_err(&format!("Helm {} takes {values}", helm.version))
    });
    refusals.collect::<Vec<_>>().join("\n")
}

/// Kind, namespace and name.
pub(crate) fn of(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

pub(crate) fn all<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = all(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

pub(crate) fn container(objects: &[Value]) -> &Value {
    &one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
}

/// The operator's settings, as the program itself reads the container's arguments.
pub(crate) fn settings(objects: &[Value]) -> Cli {
    let arguments = container(objects)["args"].as_array().unwrap();
    let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
    Cli::try_parse_from([OPERATOR].into_iter().chain(arguments)).unwrap_or_else(|error| panic!("{error}"))
}
