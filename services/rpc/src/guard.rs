//! What every call to a gRPC server passes: whether its caller may make it, its request id, and an answer even when its handler panics.

use std::{
    any::Any,
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http_body::Frame;
use parking_lot::Mutex;
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::{
    error::{Error, reason},
    request,
    server::{Allow, Identity, Peer},
};
use kith_platform::may_call;

/// The path of every reflection call.
const REFLECTION: &str = "/grpc.reflection.";
/// A caller's refusals are logged once in so long.
const QUIET: Duration = Duration::from_secs(60);
/// Callers whose refusals are remembered: more certificates than a ChatCluster has.
const REMEMBERED: usize = 1_024;

/// The error of a call whose handler panicked; the panic is logged and counted.
pub fn panicked(call: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(call, panic = text.unwrap_or("not a text"), "a handler panicked");
    metrics::counter!("kith_panics_total").increment(1);
    Error::internal("a fault of the platform; it has been logged")
}

/// Refuses callers that are not allowed, and runs the rest under their request id.
#[derive(Clone)]
pub(crate) struct Guard {
    /// Who may call; none: everyone.
    allow: Option<Allow>,
    refusals: Arc<Refusals>,
}

impl Guard {
    /// Lets those call that `allow` says; without it everyone.
    pub(crate) fn new(allow: Option<Allow>) -> Self {
        Self { allow, refusals: Arc::default() }
    }
}

/// Why a caller may not make a call.
fn refusal(allow: Allow, peer: Option<&Peer>, path: &str) -> Option<Error> {
    let identity = peer.map(|p| &p.identity);
    match allow {
        Allow::Platform => {
            let known = matches!(identity, Some(Identity::Service(component)) if may_call(component, path));
            (!known).then(|| Error::denied(reason::NOT_ALLOWED, "this certificate may not call this method"))
        }
        Allow::Lines => {
            let shown = !path.starts_with(REFLECTION) || matches!(identity, Some(Identity::Line(_)));
            (!shown).then(|| Error::unauthenticated("show the client certificate of a business line"))
        }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Guarded { inner, guard: self.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let peer = request.extensions().get::<Peer>();
        if let Some(refused) = self.guard.allow.and_then(|allow| refusal(allow, peer, &path)) {
            self.guard.refusals.note(peer, &path);
            return Box::pin(async move { Ok(Status::from(refused).into_http()) });
        }
        let id = request::accept(request.headers().get(request::HEADER).and_then(|v| v.to_str().ok()));
        let span = tracing::debug_span!("rpc", path, request_id = %id);
        // `clone` and swap: the instance that was polled ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answer = async move { inner.call(request).await };
        Box::pin(async move {
            let answer = request::scope(Some(&id), AssertUnwindSafe(answer).catch_unwind());
            match answer.instrument(span).await {
                Ok(Ok(response)) => Ok(response.map(|body| Body::new(Caught { body: Some(body), path }))),
                Ok(Err(error)) => Err(error),
                Err(panic) => Ok(Status::from(panicked(&path, &*panic)).into_http()),
            }
        })
    }
}

/// Who was refused lately, so that one wrong caller does not fill the log.
#[derive(Default)]
struct Refusals(Mutex<HashMap<Identity, Instant>>);

impl Refusals {
    fn note(&self, peer: Option<&Peer>, path: &str) {
        metrics::counter!("kith_calls_refused_total").increment(1);
        let identity = peer.map(|p| p.identity.clone()).unwrap_or_default();
        let mut told = self.0.lock();
        if told.get(&identity).is_some_and(|at| at.elapsed() < QUIET) {
            return;
        }
        if told.len() >= REMEMBERED {
            told.clear();
        }
        told.insert(identity, Instant::now());
        tracing::warn!(?peer, path, "calls refused: the certificate may not call this method");
    }
}

/// An answer whose stream may panic: then it ends with INTERNAL.
struct Caught {
    /// None once it is over.
    body: Option<Body>,
    path: String,
}

impl http_body::Body for Caught {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
            Ok(polled) => polled,
            Err(panic) => {
                this.body = None;
                let status = Status::from(panicked(&this.path, &*panic));
                let mut trailers = http::HeaderMap::new();
                Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
