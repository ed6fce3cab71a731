//! The API's description, against the router that it describes.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use http_body_util::BodyExt;
use serde_json::Value;
use support::{http_settings, settings, shared};
use tower::ServiceExt;

/// The model that the examples name.
const MODEL: &str = "all-minilm-l6-v2";

fn server() -> Arc<Shared> {
    shared(&[(MODEL, Fake::new(4))], &settings(), http_settings())
}

async fn call(shared: &Arc<Shared>, request: Request<Body>) -> Response<Body> {
    http::router(Arc::clone(shared)).oneshot(request).await.unwrap()
}

fn document() -> Value {
    serde_json::from_str(&http::document()).unwrap()
}

/// What a reference of the description leads to.
fn referred(reference: &Value) -> Value {
    document().pointer(reference["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap().clone()
}

/// An operation of the description.
struct Operation {
    path: String,
    method: String,
    content: Value,
}

fn operations() -> Vec<Operation> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let of_a_path = |(path, item): (&String, &Value)| {
        let methods = item.as_object().unwrap().clone().into_iter();
        let path = path.clone();
        methods.map(move |(method, content)| Operation {
            path: path.clone(),
            method: method.to_uppercase(),
            content,
        })
    };
    paths.iter().flat_map(of_a_path).collect()
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else() {
    let shared = server();
    let mut routes = BTreeSet::new();
    for pattern in http::patterns(&shared) {
        // One part, or all that follow.
        let path = pattern.replace("{*", "{");
        // A method that nobody has: the answer says which there are.
        let request = Request::builder().method("NONE").uri(path.replace(['{', '}'], "")).body(Body::empty());
        let response = call(&shared, request.unwrap()).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{pattern}");
        let methods = response.headers()[header::ALLOW].to_str().unwrap().split(',');
        routes.extend(methods.filter(|method| *method != "HEAD").map(|method| format!("{method} {path}")));
    }
    let described: BTreeSet<_> =
        operations().iter().map(|operation| format!("{} {}", operation.method, operation.path)).collect();
    assert_eq!(described, routes);
}

#[test]
fn every_operation_has_a_name_of_its_own_a_tag_and_a_summary() {
    let mut names = BTreeMap::new();
    let document = document();
    let tags: Vec<_> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    for Operation { path, method, content } in operations() {
        let name = content["operationId"].as_str().unwrap().to_owned();
        let other = names.insert(name.clone(), path.clone());
        assert_eq!(other, None, "{name} is the name of two operations");
        assert!(content["summary"].is_string(), "{method} {path} has no summary");
        assert!(content["tags"].as_array().unwrap().iter().all(|tag| tags.contains(&tag)), "{method} {path}");
    }
}

#[test]
fn every_type_that_is_referred_to_is_there() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in &found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(found.contains(&format!("#/components/schemas/{name}")), "nothing is of the type {name}");
    }
}

#[tokio::test]
async fn errors_are_described_in_the_shape_that_they_have() {
    let shared = server();
    for Operation { path, method, content } in operations() {
        // A method that there is not is refused in the shape of the path's API.
        let request = Request::builder().method("NONE").uri(path.replace(['{', '}'], ""));
        let response = call(&shared, request.body(Body::empty()).unwrap()).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let fields: BTreeSet<_> = body.as_object().unwrap().keys().cloned().collect();
        let response = referred(&content["responses"]["504"]);
        let reference = &response["content"]["application/json"]["schema"];
        let schema = referred(reference);
        let described: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, fields, "{method} {path}: {reference}");
    }
}

/// The path of an operation with the examples of its parameters in it.
fn example_path(operation: &Operation) -> String {
    let Operation { path, method, content } = operation;
    let mut place = path.clone();
    let mut query = Vec::new();
    for parameter in content["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        match (parameter["in"].as_str().unwrap(), parameter["example"].as_str()) {
            ("path", Some(example)) => place = place.replace(&format!("{{{name}}}"), example),
            ("query", Some(example)) => query.push(format!("{name}={}", example.replace(' ', "+"))),
            (_, None) if parameter["required"] == true => panic!("{method} {path}: {name} has no example"),
            _ => {}
        }
    }
    if query.is_empty() { place } else { format!("{place}?{}", query.join("&")) }
}

/// The bodies that an operation has as examples; one that takes none has an empty one.
fn example_bodies(operation: &Operation) -> Vec<String> {
    let media = &operation.content["requestBody"]["content"]["application/json"];
    if media.is_null() {
        return vec![String::new()];
    }
    let named = media["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
    let examples: Vec<_> = named.chain(media.get("example")).map(ToString::to_string).collect();
    assert!(!examples.is_empty(), "{} {} has no example", operation.method, operation.path);
    examples
}

#[tokio::test]
async fn every_example_is_answered_where_there_is_a_model_for_it() {
    let (models, metrics) = support::in_service(MODEL, support::loaded_scoring(&["relevant"]));
    let changeable = server();
    // Nobody loads what is asked for; that it will be is the answer.
    let _added = changeable.models.allow_changes();
    let servers = [server(), Shared::new(models, metrics, http_settings()), changeable];
    let succeeds = |status: &String| status.starts_with('2');
    let all = operations();
    let answered =
        |operation: &&Operation| operation.content["responses"].as_object().unwrap().keys().any(succeeds);
    for operation in all.iter().filter(answered) {
        let path = example_path(operation);
        for body in example_bodies(operation) {
            let mut answers = Vec::new();
            for shared in &servers {
                let request = Request::builder().method(operation.method.as_str()).uri(&path);
                let request = request.header(header::CONTENT_TYPE, "application/json");
                let response = call(shared, request.body(body.clone().into()).unwrap()).await;
                let status = response.status();
                answers.push((status, response.into_body().collect().await.unwrap().to_bytes()));
            }
            let success = answers.iter().any(|(status, _)| status.is_success());
            assert!(success, "{} {path} {body}: {answers:?}", operation.method);
        }
    }
}

#[tokio::test]
async fn the_description_is_served() {
    let shared = server();
    let response = call(&shared, Request::get("/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, http::document().as_bytes());
}
