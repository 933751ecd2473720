//! Bytes that requests and answers may take at once: of the whole process, and of one caller.
//!
//! What an answer will weigh is not known before it is made, and by then it takes its memory. So a request is weighed by what its route can
//! come to, held until the answer is made, and then by what it is, held until the client has taken it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request},
    http::{Method, header, request::Parts},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use kith_kit::error::Error;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::MAX_BODY_BYTES;

/// What one permit stands for.
const UNIT: usize = 1 << 10;
/// Of all callers, and of one.
const ALL: usize = 96 << 20;
const CALLER: usize = 16 << 20;
/// What one page of a list can come to, and any other answer.
const PAGE: usize = 4 << 20;
const ANSWER: usize = 64 << 10;
/// Routes whose answers are pages of messages or of conversations.
const PAGES: [(Method, &str); 3] =
    [(Method::GET, "/v1/conversations"), (Method::GET, "/v1/conversations/{id}/messages"), (Method::POST, "/v1/sync")];
/// How long a request waits for others to be through.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The budget of a process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Inner>);

struct Inner {
    all: Arc<Semaphore>,
    callers: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Bytes that are held; given back when it is dropped.
pub(crate) struct Held {
    /// Of all callers and of this one; none once it is over.
    permits: Option<[OwnedSemaphorePermit; 2]>,
    caller: String,
    budget: Budget,
}

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Inner { all: Arc::new(Semaphore::new(ALL / UNIT)), callers: Mutex::default() }))
    }
}

impl Budget {
    /// Holds `bytes` for `caller`, as soon as there is room; RESOURCE_EXHAUSTED when there is none for too long.
    pub(crate) async fn hold(&self, caller: &str, bytes: usize) -> Result<Held, Error> {
        let units = units(bytes);
        let own = self.0.callers.lock().entry(caller.to_owned()).or_insert_with(own).clone();
        // The caller's own first: who has too much under way waits for themselves and takes nothing from others.
        let both = async {
            let own = own.acquire_many_owned(units).await;
            let all = self.0.all.clone().acquire_many_owned(units).await;
            // Neither is ever closed.
            own.ok().zip(all.ok())
        };
        match tokio::time::timeout(PATIENCE, both).await {
            Ok(Some((own, all))) => {
                Ok(Held { permits: Some([all, own]), caller: caller.to_owned(), budget: self.clone() })
            }
            Ok(None) | Err(_) => {
                self.forget(caller);
                metrics::counter!("kith_api_over_budget_total").increment(1);
                Err(Error::exhausted(
                    "too many large answers are under way: read those that were asked for",
                    Duration::from_secs(2),
                ))
            }
        }
    }

    /// Forgets a caller of whom nothing is held.
    fn forget(&self, caller: &str) {
        let mut callers = self.0.callers.lock();
        // Who waits holds a clone of it.
        if callers
            .get(caller)
            .is_some_and(|own| Arc::strong_count(own) == 1 && own.available_permits() == CALLER / UNIT)
        {
            callers.remove(caller);
        }
    }
}

impl Held {
    /// Gives back what is held above `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let keep = units(bytes) as usize;
        for held in self.permits.iter_mut().flatten() {
            drop(held.split(held.num_permits().saturating_sub(keep)));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permits.take());
        self.budget.forget(&self.caller);
    }
}

fn own() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CALLER / UNIT))
}

/// At least one, and never more than a caller has.
fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT).clamp(1, CALLER / UNIT) as u32
}

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
        if PAGES.iter().any(|(method, page)| *method == parts.method && *page == route) { PAGE } else { ANSWER };
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
    response.map(|body| {
        if let Some(bytes) = body.size_hint().exact() {
            held.shrink(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        Body::new(Weighed { body, _held: held })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_who_holds_too_much_waits_for_themselves_and_others_do_not() {
        let budget = Budget::default();
        let held = budget.hold("mallory", CALLER).await.unwrap();
        let refused = budget.hold("mallory", UNIT).await.err().unwrap();
        assert_eq!(refused.http_status(), 429);
        assert!(refused.retry_after.is_some());
        drop(budget.hold("alice", CALLER).await.unwrap());
        drop(held);
        drop(budget.hold("mallory", CALLER).await.unwrap());
        assert!(budget.0.callers.lock().is_empty(), "who holds nothing is not remembered");
        assert_eq!(budget.0.all.available_permits(), ALL / UNIT);
    }

    #[tokio::test]
    async fn what_an_answer_does_not_need_is_given_back_at_once() {
        let budget = Budget::default();
        let mut held = budget.hold("alice", CALLER).await.unwrap();
        held.shrink(UNIT);
        let more = budget.hold("alice", CALLER - UNIT).await;
        assert!(more.is_ok());
        held.shrink(CALLER);
        drop((held, more));
        assert!(budget.0.callers.lock().is_empty());
    }

    #[tokio::test]
    async fn many_callers_together_hold_no_more_than_the_process_may() {
        let budget = Budget::default();
        let mut held = Vec::new();
        for n in 0..ALL / CALLER {
            held.push(budget.hold(&format!("u{n}"), CALLER).await.unwrap());
        }
        assert!(budget.hold("one more", UNIT).await.is_err());
        held.pop();
        assert!(budget.hold("one more", CALLER).await.is_ok());
    }
}
