//! HTTP servers of the access layer: bounded connections, header deadline, graceful end; and errors as problem documents (RFC 9457).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::error::Error;

/// A client that does not finish its request head in this time is dropped.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 pings find clients that vanished.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(10);
/// The pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The content type of problem documents.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once; the next ones wait in the listener's backlog.
    pub connections: usize,
    /// How long open requests may go on after the end was asked for.
    pub grace: Duration,
}

/// Serves `app` on `listener` until `shutdown`; then open connections finish their requests within the grace period.
pub async fn serve(listener: TcpListener, app: Router, bounds: Bounds, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let tracker = TaskTracker::new();
    let builder = Arc::new(builder());
    loop {
        let accepted = async {
            // Never closed, so acquiring fails never.
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let Some(Some((permit, accepted))) = shutdown.run_until_cancelled(accepted).await else { break };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let (app, builder, shutdown) = (app.clone(), builder.clone(), shutdown.clone());
        tracker.spawn(async move {
            let _permit = permit;
            let service = app.map_request(move |mut request: Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(ConnectInfo::<SocketAddr>(address));
                request.map(Body::new)
            });
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(socket), TowerToHyperService::new(service));
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%address, error, "a connection ended with an error");
            }
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(bounds.grace, tracker.wait()).await.is_err() {
        tracing::warn!("open requests did not end within the grace period");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .max_concurrent_streams(256)
        .max_header_list_size(16 << 10);
    builder
}

/// A problem document.
#[derive(Debug, Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The answer for an error, with the status of the contract's table.
pub fn problem(error: &Error) -> Response {
    problem_with(error, StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
}

/// The answer for an error with a status of its own (405, 413, 415, …).
pub fn problem_with(error: &Error, status: StatusCode) -> Response {
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &error.detail,
        code: error.code_name(),
        reason: error.reason.as_deref(),
    };
    // These fields always serialize.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
    let after = error.retry_after.or((error.code == tonic::Code::ResourceExhausted).then_some(Duration::from_secs(1)));
    if let Some(after) = after {
        let seconds = after.as_millis().div_ceil(1_000).max(1);
        if let Ok(value) = HeaderValue::try_from(seconds.to_string()) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        problem(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_bound_says_when_to_come_back() {
        let response = problem(&Error::exhausted("too many requests", Duration::from_millis(1_200)));
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
    }

    #[tokio::test]
    async fn a_problem_names_code_and_reason() {
        let response =
            problem(&Error::denied(crate::error::reason::BLOCKED, "the recipient does not take your messages"));
        let body = axum::body::to_bytes(response.into_body(), 4_096).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["code"], "PERMISSION_DENIED");
        assert_eq!(json["reason"], "BLOCKED");
        assert_eq!(json["status"], 403);
        assert_eq!(json["title"], "Forbidden");
    }
}
