//! What is left of a request's body when its answer is made: a refusal does not wait for it.
//!
//! Unread, it would stand before the next request on the connection, so that hyper closes it, also when the rest is
//! but on its way; and a client that has just sent its next request there finds no answer. So a little is read and
//! thrown away, and where there is more, the answer says that the connection ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// The most that is thrown away, and how long it may take to come.
const MOST: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// A body that comes back when who was to read it lets go of it.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Who would have it may have left.
            drop(back.send(std::mem::take(&mut self.body)));
        }
    }
}

/// The body of a request, if it may be left over.
pub(super) struct Leftover(Option<oneshot::Receiver<Body>>);

impl Leftover {
    /// The same request, whose body comes back.
    pub(super) fn of(request: Request) -> (Request, Self) {
        // HTTP/2 has streams, of which each ends alone. Who waits for a 100 has sent nothing, and is not to be asked.
        let is_on_its_way = request.version() < Version::HTTP_2
            && !request.body().is_end_stream()
            && !request.headers().contains_key(header::EXPECT);
        if !is_on_its_way {
            return (request, Self(None));
        }
        let (sender, receiver) = oneshot::channel();
        let lend = |body| Body::new(Lent { body, back: Some(sender) });
        (request.map(lend), Self(Some(receiver)))
    }

    /// Throws away what is left, or says in the answer that the connection ends.
    pub(super) async fn clear(self, response: &mut Response) {
        let Some(mut body) = self.0.and_then(|mut back| back.try_recv().ok()) else { return };
        let mut left = MOST;
        let drained = async {
            // So long that the rest of it is not worth waiting for.
            if body.size_hint().lower() > MOST as u64 {
                return false;
            }
            while !body.is_end_stream() {
                match body.frame().await {
                    None => return true,
                    Some(Err(_)) => return false,
                    Some(Ok(frame)) => match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                        Some(rest) => left = rest,
                        None => return false,
                    },
                }
            }
            true
        };
        if !tokio::time::timeout(PATIENCE, drained).await.unwrap_or(false) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}
