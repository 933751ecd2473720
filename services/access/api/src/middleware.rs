//! What every request passes through: its id, its trace and metrics, a deadline, CORS, and problem documents for whatever no handler answered.

use std::{
    any::Any,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    body::HttpBody,
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
};
use kith_rpc::{
    error::Error,
    http::{problem, problem_with},
    origins::Origins,
    request,
};
use tokio::time::Instant;
use tonic::Code;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use tracing::Instrument;

use crate::{
    budget::{self, Counted},
    openapi,
    state::Shared,
};

/// Above the 5 s that a call to storage may take, twice (a first message opens its conversation).
const DEADLINE: Duration = Duration::from_secs(12);
/// How long a browser remembers what CORS allows.
const PREFLIGHT_AGE: Duration = Duration::from_secs(86_400);
/// What is left of a refused body is read up to about this many bytes, and its connection used again; with more it is closed.
const DRAINED: u64 = 4_096;
const REQUEST_ID: HeaderName = HeaderName::from_static(request::HEADER);

/// Wraps the routes.
pub(crate) fn around(routes: Router<Shared>, app: &Shared) -> Router<Shared> {
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), budget::weigh))
        .layer(from_fn(deadline))
        .layer(cors(app.origins.clone()))
        .layer(from_fn(observe))
        .layer(from_fn_with_state(app.clone(), refuse_late))
}

/// Pages of the host itself may call, and those that the Gateway names.
fn cors(origins: Origins) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, request| {
            origins.allow(origin, &request.headers, &request.uri)
        }))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            REQUEST_ID,
        ])
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(PREFLIGHT_AGE)
}

/// Runs a request under its id; the answer carries it.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let id = request::accept(given);
    let unread = request.body().size_hint().upper().unwrap_or(u64::MAX);
    // HTTP/2 ends the stream alone, and has no such header.
    let one_at_a_time = request.version() < Version::HTTP_2;
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let span = tracing::info_span!("http", method, route, request_id = %id);
    let answer = request::scope(Some(&id), next.run(request)).instrument(span.clone());
    let mut response = answer.await;
    let status = response.status();
    span.in_scope(|| {
        let elapsed_ms = started.elapsed().as_secs_f64() * 1_000.0;
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), elapsed_ms, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), elapsed_ms, "answered");
        }
    });
    let labels = [("method", method.to_owned()), ("route", route), ("status", status.as_str().to_owned())];
    metrics::counter!("kith_http_requests_total", &labels).increment(1);
    metrics::histogram!("kith_http_request_seconds", &labels[..2]).record(started.elapsed());
    // What was refused before its body was read leaves a connection that cannot be used again: the client is told.
    if one_at_a_time && unread > DRAINED && (status.is_client_error() || status.is_server_error()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // Accepted ids are printable ASCII.
    if let Ok(value) = HeaderValue::try_from(&*id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Lets refusals wait of those who ask too much; without a user to count for, of an address that fails too often. Outside of what is
/// observed: this time is nobody's work.
async fn refuse_late(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
    let response = next.run(request).await;
    let status = response.status();
    let too_often = |address: IpAddr| app.strangers.check(&address.to_string()).is_err();
    let stranger = status.is_client_error() && response.extensions().get::<Counted>().is_none();
    if status == StatusCode::TOO_MANY_REQUESTS || (stranger && address.is_some_and(too_often)) {
        app.refusals.wait().await;
    }
    response
}

/// Methods as labels: a closed set, so that nobody can fill the metrics.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem(&Error::new(Code::DeadlineExceeded, "no answer in time: retry with the same ids")),
    }
}

// By value, as the layer's handler trait has it.
#[allow(clippy::needless_pass_by_value)]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not a text"), "a handler panicked");
    problem(&Error::internal("a fault of the platform; it has been logged"))
}

async fn unknown_route(uri: Uri) -> Response {
    problem(&Error::not_found(format!("no such resource: {}", uri.path())))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let detail = format!("{} does not take {method}: see {}", uri.path(), openapi::PATH);
    problem_with(&Error::new(Code::Unimplemented, detail), StatusCode::METHOD_NOT_ALLOWED)
}
