//! Requests of clients that know which vector space their index is of.

use std::net::SocketAddr;

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::load;

/// An answer, and the space that it says it is of.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) space: Option<String>,
    pub(crate) body: Value,
}

/// Asks a model's Service for a vector as an OpenAI client does, which may expect a space.
pub(crate) async fn ask(address: SocketAddr, model: &str, expected: Option<&str>) -> Result<Answer, String> {
    let mut request = Request::post("/v1/embeddings")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::HOST, address.to_string());
    if let Some(space) = expected {
        request = request.header("X-Expect-Embedding-Space", space);
    }
    let body = json!({"model": model, "input": "a short text"}).to_string();
    let mut connection = load::connect(address).await?;
    let answer = connection.send_request(request.body(Body::from(body)).unwrap()).await;
    let answer = answer.map_err(|error| format!("sending: {error:?}"))?;
    let space = answer.headers().get("X-Embedding-Space").map(|space| space.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| format!("receiving: {error:?}"))?;
    Ok(Answer { status, space, body: serde_json::from_slice(&body.to_bytes()).unwrap_or_default() })
}
