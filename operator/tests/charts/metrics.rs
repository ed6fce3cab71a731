//! What alerts and the dashboard ask for is what the programs export.

use std::collections::BTreeSet;
use std::time::Duration;

use embedding_operator::crd::status::EmbeddingModelStatus;
use embedding_operator::metrics::Metrics;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use regex::Regex;
use serde_json::{Value, json};

use super::render::{one, render};
use super::{OPERATOR, read};

/// What the operator exports, with each name of a histogram.
fn operator_metrics() -> BTreeSet<String> {
    let metrics = Metrics::new();
    metrics.leads("lease", true);
    metrics.set_conditions(&ObjectRef::new("model"), &EmbeddingModelStatus::default());
    metrics.reconciled(&Ok(Action::await_change()), Duration::ZERO);
    let text = metrics.text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.flat_map(|line| exported(line.split_once(' ').unwrap())).collect()
}

/// The names that samples of a metric have.
fn exported((name, kind): (&str, &str)) -> Vec<String> {
    let suffixes: &[&str] = match kind.to_lowercase().as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_sum", "_count"],
        "info" => &["_info"],
        other => panic!("{name} is of an unknown kind: {other}"),
    };
    suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect()
}

/// What the server exports: from its source, because it cannot be linked here.
fn server_metrics() -> BTreeSet<String> {
    let source = read("server/src/metrics.rs");
    let registered = Regex::new(
        r#"register(_with_unit)?\([ \n]*"([a-z_]+)",[ \n]*"[^"]*",[ \n]*(Unit::Seconds,[ \n]*)?(m\.)?([a-z_]+)"#,
    )
    .unwrap();
    let mut names = BTreeSet::new();
    for found in registered.captures_iter(&source) {
        let unit = if found.get(1).is_some() { "_seconds" } else { "" };
        let name = format!("embedding_{}{unit}", &found[2]);
        let kind = if found.get(4).is_some() {
            let field = format!(r"\n    {}: (Family<[A-Za-z]+, )?([A-Z][a-z]+)", &found[5]);
            Regex::new(&field).unwrap().captures(&source).unwrap()[2].to_owned()
        } else {
            "info".to_owned()
        };
        names.extend(exported((&name, &kind)));
    }
    assert_eq!(registered.find_iter(&source).count(), source.matches("registry.register").count());
    names
}

#[test]
fn alerts_and_the_dashboard_ask_for_metrics_that_are_exported() {
    let known: BTreeSet<String> = operator_metrics().union(&server_metrics()).cloned().collect();
    for name in ["embedding_model_ready", "embedding_batch_duration_seconds_bucket", "embedding_build_info"] {
        assert!(known.contains(name), "{name} is not in {known:#?}");
    }
    let values = json!({
        "watchNamespaces": ["a", "b"],
        "metrics": {"prometheusRule": {"enabled": true}, "dashboard": {"enabled": true}},
    });
    let objects = render(OPERATOR, &values);
    let dashboard = one(&objects, "ConfigMap")["data"]["embeddings.json"].as_str().unwrap();
    assert_eq!(dashboard, read("charts/embedding-operator/dashboards/embeddings.json"));
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let mut expressions: Vec<String> = Vec::new();
    let mut collect = |value: &Value| expressions.push(value.as_str().unwrap().to_owned());
    let panels = dashboard["panels"].as_array().unwrap();
    panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .for_each(|target| collect(&target["expr"]));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    variables
        .iter()
        .filter(|variable| variable["type"] == "query")
        .for_each(|variable| collect(&variable["query"]["query"]));
    let groups = one(&objects, "PrometheusRule")["spec"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    for rule in &rules {
        collect(&rule["expr"]);
    }
    assert!(expressions.len() > 35, "{} expressions", expressions.len());

    let metric = Regex::new(r"\b(embedding|controller_runtime|leader_election)_[a-z_]+\b").unwrap();
    let mut asked = BTreeSet::new();
    for expression in &expressions {
        let found: Vec<&str> = metric.find_iter(expression).map(|found| found.as_str()).collect();
        assert!(!found.is_empty() || expression.contains("up{"), "{expression}");
        for name in found {
            assert!(known.contains(name), "{name} is exported by nobody: {expression}");
            asked.insert(name.to_owned());
        }
        let parentheses = |c: char| expression.matches(c).count();
        assert_eq!(
            (parentheses('('), parentheses('{')),
            (parentheses(')'), parentheses('}')),
            "{expression}"
        );
    }
    assert!(asked.len() > 20, "{asked:?}");

    // Each alert says what it is about, how bad it is, and only of namespaces that are looked after.
    for rule in &rules {
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
        let expression = rule["expr"].as_str().unwrap();
        // The server knows a model by its name in the API, which kubectl does not.
        if rule["annotations"]["description"].as_str().unwrap().contains("kubectl describe em ") {
            assert!(
                expression.starts_with("max by (namespace, name) (embedding_operator_model_condition{"),
                "{rule}"
            );
        }
        let scope = if expression.contains("embedding_")
            && !expression.contains("up{")
            && !expression.contains("leader_")
        {
            r#"namespace=~"a|b""#
        } else {
            r#"namespace="ops",job="release-embedding-operator-metrics""#
        };
        assert_eq!(expression.matches(scope).count(), expression.matches('{').count(), "{expression}");
    }
}
