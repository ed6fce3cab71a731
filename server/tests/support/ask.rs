//! Requests to the router as a value, and what it answers.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use embedding_server::http::{self, Shared};
use embedding_server::models::Loaded;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::{http_settings, serving, settings};

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    /// Null where the body is empty.
    pub body: Value,
}

impl Answer {
    /// A header's value; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of an answer that went well.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body
    }
}

/// A server of these models.
pub fn server(models: Vec<(&str, Loaded)>) -> Arc<Shared> {
    let models = models.into_iter().map(|(name, loaded)| (name, [].as_slice(), loaded));
    let (models, metrics) = serving(&settings(), models);
    Shared::new(models, metrics, http_settings())
}

pub async fn send(shared: &Arc<Shared>, request: Request<Body>) -> Answer {
    let response = http::router(Arc::clone(shared)).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
    };
    Answer { status: head.status, headers: head.headers, body }
}

pub fn request(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

pub async fn post(shared: &Arc<Shared>, path: &str, body: Value) -> Answer {
    send(shared, request(path, body.to_string())).await
}

pub async fn get(shared: &Arc<Shared>, path: &str) -> Answer {
    send(shared, Request::get(path).body(Body::empty()).unwrap()).await
}
