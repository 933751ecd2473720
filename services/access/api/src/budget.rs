//! What requests and their answers weigh, and how long each is held in the budget of the process: see [`kith_rpc::budget`].

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Extension,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::{Frame, SizeHint};
use kith_clients::{auth::Claims, storage::PAGE_BYTES};
use kith_rpc::budget::Held;
use parking_lot::Mutex;

use crate::{extract::MAX_BODY_BYTES, places::Place, state::Shared};

/// What an answer can come to that is no page.
const ANSWER: usize = 64 << 10;

/// Marks a request whose answer is a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfPage;

/// The layer of routes whose answers are pages: they hold messages, or many items with texts in them.
pub(crate) const PAGE: Extension<OfPage> = Extension(OfPage);

/// Where a request keeps what is held for it, until its answer takes it over.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Kept>>>);

type Kept = (Arc<Claims>, Place, Held);

impl Slot {
    pub(crate) fn fill(&self, claims: Arc<Claims>, place: Place, held: Held) {
        *self.0.lock() = Some((claims, place, held));
    }
}

/// Marks the answer to a caller who is known and whose requests are counted.
#[derive(Clone)]
pub(crate) struct Counted;

/// What a request and its answer can come to.
pub(crate) fn weight(parts: &Parts) -> usize {
    let answer = if parts.extensions.get::<OfPage>().is_some() { PAGE_BYTES } else { ANSWER };
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let body = match length {
        Some(length) => MAX_BODY_BYTES.min(length),
        None if parts.headers.contains_key(header::TRANSFER_ENCODING) => MAX_BODY_BYTES,
        None => 0,
    };
    answer + body
}

/// Lets an answer hold what it weighs until the client has taken it.
pub(crate) async fn weigh(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let response = next.run(request).await;
    let Some((claims, place, mut held)) = slot.0.lock().take() else { return response };
    // Nobody works on it any more.
    drop(place);
    let mut response =
        match response.body().size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)) {
            None => response,
            Some(bytes) => {
                held.shrink(bytes);
                let taken = async {
                    held.grow(bytes).await?;
                    // What waits from here on waits for its own user alone.
                    held.made(bytes);
                    app.taken.take(&claims.sub, bytes).await
                };
                match taken.await {
                    Ok(()) => response,
                    Err(error) => error.into_response(),
                }
            }
        };
    response.extensions_mut().insert(Counted);
    response.map(|body| Body::new(Weighed { body, _held: held }))
}

/// A body and what is held for it.
struct Weighed {
    body: Body,
    _held: Held,
}

impl HttpBody for Weighed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
