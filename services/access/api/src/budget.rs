//! What requests and their answers weigh, and how long each is held in the budget of the process: see [`kith_rpc::budget`].

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::{Frame, SizeHint};
use kith_clients::{auth::Claims, storage::PAGE_BYTES};
use kith_rpc::{budget::Held, error::Error};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::{MAX_BODY_BYTES, Shared};

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
pub(crate) struct Slot(Arc<Mutex<Option<Kept>>>);

type Kept = (Arc<Claims>, Place, Held);

impl Slot {
    pub(crate) fn fill(&self, claims: Arc<Claims>, place: Place, held: Held) {
        *self.0.lock() = Some((claims, place, held));
    }
}

/// Of an instance's places for requests that are worked on, what one user may have: one in so many.
const USERS_SHARE: usize = 8;

/// The places of an instance for requests that are worked on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct InFlight(Arc<Places>);

struct Places {
    all: Arc<Semaphore>,
    per_user: usize,
    users: Mutex<HashMap<String, usize>>,
}

/// A request's place; given back when it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    user: String,
    _one: OwnedSemaphorePermit,
}

impl InFlight {
    /// For so many requests at once.
    pub(crate) fn new(requests: u32) -> Self {
        let all = requests.max(1) as usize;
        let per_user = all.div_ceil(USERS_SHARE);
        Self(Arc::new(Places { all: Arc::new(Semaphore::new(all)), per_user, users: Mutex::default() }))
    }

    /// A place for a request of `user`; RESOURCE_EXHAUSTED when that user's are taken, or all.
    pub(crate) fn enter(&self, user: &str) -> Result<Place, Error> {
        let wait = Duration::from_secs(1);
        let mut users = self.0.users.lock();
        let of_user = users.get(user).copied().unwrap_or(0);
        if of_user >= self.0.per_user {
            return Err(Error::exhausted("too many requests of this user at once: wait for their answers", wait));
        }
        let one = self.0.all.clone().try_acquire_owned();
        let one = one.map_err(|_| Error::exhausted("the platform is busy: come back later", wait))?;
        users.insert(user.to_owned(), of_user + 1);
        Ok(Place { places: self.0.clone(), user: user.to_owned(), _one: one })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.places.users.lock();
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// Marks the answer to a caller who is known and whose requests are counted.
#[derive(Clone)]
pub(crate) struct Counted;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_an_eighth_of_the_places_and_others_find_theirs() {
        let places = InFlight::new(16);
        let held: Vec<_> = (0..2).map(|_| places.enter("mallory").unwrap()).collect();
        assert_eq!(places.enter("mallory").err().unwrap().http_status(), 429);
        let others: Vec<_> = (0..14).map(|n| places.enter(&format!("u{n}")).unwrap()).collect();
        assert!(places.enter("late").is_err(), "all are taken");
        drop((held, others));
        assert!(places.enter("mallory").is_ok());
        assert!(places.0.users.lock().is_empty(), "who works on nothing is not remembered");
    }
}
