//! How many requests may be under way at once.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Shared};

/// Refuses a request where as many as allowed are under way; its place is free when its
/// answer is made, or its caller has left.
pub(super) async fn concurrency(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(places) = &shared.places else { return next.run(request).await };
    match places.try_acquire() {
        Ok(_place) => next.run(request).await,
        Err(_) => ApiError::too_many_requests(shared.settings.max_concurrent_requests).into_response(),
    }
}
