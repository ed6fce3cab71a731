//! Pages for people: what is served, and how near texts are to one another (`/`); the API (`/docs`).
//!
//! Each page is one file that loads nothing but this server's own answers. Its policy says so, too: the
//! browser then runs nothing but the page's own script, which it knows by its hash.

use std::sync::LazyLock;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::error::{ApiError, Body, TeiBody};
use super::refusals::{AnyErrors, Own, Tei};
use super::{Shared, SharedState};

const STYLE: &str = include_str!("pages/style.css");

static START: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("pages/start.html"), include_str!("pages/start.js")));
static DOCS: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("pages/docs.html"), include_str!("pages/docs.js")));

struct Page {
    html: String,
    policy: HeaderValue,
}

impl Page {
    fn new(frame: &str, script: &str) -> Self {
        let html = frame.replace("{style}", STYLE).replace("{script}", script);
        let policy = format!(
            "default-src 'none'; connect-src 'self'; img-src data:; style-src {}; script-src {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(script)
        );
        // Base64 and the text above fit into a header; without a policy, nothing would be allowed.
        let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self { html, policy }
    }

    /// The page, where pages are not turned off.
    fn response(&'static self, shared: &Shared, request: &Request) -> Result<Response, ApiError> {
        if !shared.settings.pages {
            return Err(ApiError::no_such_path(request.uri().path()));
        }
        let fixed: [(HeaderName, HeaderValue); 3] = [
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        let policy = [(header::CONTENT_SECURITY_POLICY, self.policy.clone())];
        Ok((fixed, policy, Html(self.html.as_str())).into_response())
    }
}

/// How a policy names a script or a style.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// A page for people: what is served, and how near texts are to one another.
#[utoipa::path(
    get,
    path = "/",
    tag = "Pages",
    operation_id = "start_page",
    responses(
        (status = 200, description = "the page", body = String, content_type = "text/html"),
        (status = 404, description = "`--no-ui`", body = TeiBody<'_>),
        AnyErrors<Tei>,
    ),
)]
pub(super) async fn start(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    START.response(&shared, &request)
}

/// The API's description as a page for people.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "Pages",
    operation_id = "docs_page",
    responses(
        (status = 200, description = "the page", body = String, content_type = "text/html"),
        (status = 404, description = "`--no-ui`", body = Body<'_>),
        AnyErrors<Own>,
    ),
)]
pub(super) async fn docs(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    DOCS.response(&shared, &request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_allows_what_its_page_has_and_nothing_else() {
        for page in [&*START, &*DOCS] {
            let policy = page.policy.to_str().unwrap();
            for (begin, end, directive) in [
                ("<style>", "</style>", "style-src"),
                ("<script type=\"module\">", "</script>", "script-src"),
            ] {
                let (_, after) = page.html.split_once(begin).unwrap();
                let (content, _) = after.split_once(end).unwrap();
                assert!(policy.contains(&format!("{directive} {};", hash(content))), "{policy}\n{content}");
            }
            assert!(policy.starts_with("default-src 'none'; connect-src 'self'; img-src data:; style-src"));
            // No style in an attribute, and no script: a hash does not allow these.
            assert!(!page.html.contains(" style=") && !page.html.contains(" onclick="));
        }
    }
}
