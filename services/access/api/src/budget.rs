//! What requests and their answers weigh, and how long each is held in the budget of the process: see [`kith_kit::budget`].

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request},
    http::{Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::{Frame, SizeHint};
use kith_kit::{budget::Held, storage::PAGE_BYTES};
use parking_lot::Mutex;

use crate::app::MAX_BODY_BYTES;

/// What an answer can come to that is no page.
const ANSWER: usize = 64 << 10;
/// Routes whose answers hold messages, or many items with texts in them.
const PAGES: [(Method, &str); 8] = [
    (Method::GET, "/v1/conversations"),
    (Method::GET, "/v1/conversations/{id}"),
    (Method::PATCH, "/v1/conversations/{id}"),
    (Method::GET, "/v1/conversations/{id}/messages"),
    (Method::POST, "/v1/sync"),
    (Method::POST, "/v1/users:batchGet"),
    (Method::GET, "/v1/friends"),
    (Method::GET, "/v1/friends/requests"),
];

/// Where a request keeps what is held for it, until its answer takes it over.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Held>>>);

impl Slot {
    pub(crate) fn fill(&self, held: Held) {
        *self.0.lock() = Some(held);
    }
}

/// What a request and its answer can come to.
pub(crate) fn weight(parts: &Parts) -> usize {
    let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let answer =
        if PAGES.iter().any(|(method, page)| *method == parts.method && *page == route) { PAGE_BYTES } else { ANSWER };
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let body = match length {
        Some(length) => MAX_BODY_BYTES.min(length),
        None if parts.headers.contains_key(header::TRANSFER_ENCODING) => MAX_BODY_BYTES,
        None => 0,
    };
    answer + body
}

/// Lets an answer hold what it weighs until the client has taken it.
pub(crate) async fn weigh(mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let response = next.run(request).await;
    let Some(mut held) = slot.0.lock().take() else { return response };
    if let Some(bytes) = response.body().size_hint().exact() {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        held.shrink(bytes);
        if let Err(error) = held.grow(bytes).await {
            return error.into_response();
        }
    }
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
