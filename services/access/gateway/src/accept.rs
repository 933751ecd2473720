//! `GET /v1/connect`: from an HTTP request to a connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Extension, Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode, Uri, header},
    response::Response,
    routing::get,
};
use kith_contract::frames::SUBPROTOCOL;
use kith_rpc::{
    admission::Seat,
    error::{Error, reason},
    http::{problem, problem_with},
    origins::Origins,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connection::{self, Arrival},
    frame::{self, close},
    jobs::Worker,
    machine::io::Settings,
};

/// Most connections are idle: small buffers that grow with need.
const READ_BUFFER: usize = 2 << 10;
const WRITE_BUFFER: usize = 8 << 10;
/// What the socket buffers for a slow reader before writing waits.
const MAX_WRITE_BUFFER: usize = 4 << 20;

/// What the handler works with.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    worker: Arc<Worker>,
    settings: Settings,
    origins: Origins,
    max_connections: usize,
    open: AtomicUsize,
    tracker: TaskTracker,
    /// Ends all connections at once.
    end: CancellationToken,
}

impl Gate {
    pub(crate) fn new(worker: Arc<Worker>, settings: Settings, origins: Origins, max_connections: u32) -> Self {
        Self(Arc::new(Inner {
            worker,
            settings,
            origins,
            max_connections: max_connections as usize,
            open: AtomicUsize::new(0),
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
        }))
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Ends what is left, and waits until it is gone.
    pub(crate) async fn end(&self) {
        self.0.end.cancel();
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// A place for one more connection.
    fn enter(&self) -> Option<Place> {
        let entered = self.0.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        (entered < self.0.max_connections).then_some(place)
    }
}

/// One connection's place; given back when it is dropped.
struct Place(Gate);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The routes of a gateway.
pub(crate) fn router(gate: Gate) -> Router {
    Router::new()
        .route("/v1/connect", get(connect))
        .fallback(|uri: Uri| async move { problem(&Error::not_found(format!("no such resource: {}", uri.path()))) })
        .method_not_allowed_fallback(|| async {
            problem_with(&Error::invalid("use GET to open a WebSocket"), StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(gate)
}

async fn connect(
    State(gate): State<Gate>,
    uri: Uri,
    headers: HeaderMap,
    seat: Option<Extension<Arc<Seat>>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let status = rejection.status();
            return problem_with(&Error::invalid(format!("open a WebSocket here: {}", rejection.body_text())), status);
        }
    };
    // A browser sends any page's request; what the page may do is for the server to say. Apps send no origin.
    if !gate.0.origins.allow_request(&headers, &uri) {
        return problem(&Error::denied(reason::NOT_ALLOWED, "Origin: pages of this origin may not connect"));
    }
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    // A client that names none gets JSON; one that names only others would not understand it.
    if upgrade.selected_protocol().is_none() && upgrade.requested_protocols().next().is_some() {
        return problem(&Error::invalid(format!("Sec-WebSocket-Protocol: this gateway speaks {SUBPROTOCOL}")));
    }
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(frame::MAX_FRAME_BYTES)
        .max_frame_size(frame::MAX_FRAME_BYTES);
    let token = bearer(&headers);
    let tracker = gate.0.tracker.clone();
    match gate.enter() {
        Some(place) => upgrade.on_upgrade(move |socket| {
            tracker.track_future(async move {
                let Inner { worker, settings, end, .. } = &*place.0.0;
                let seat = seat.map(|Extension(seat)| seat);
                connection::serve(socket, worker.clone(), settings.clone(), Arrival { token, seat }, end.clone()).await;
                drop(place);
            })
        }),
        None => upgrade.on_upgrade(refuse),
    }
}

/// Browsers see no HTTP status of a failed upgrade, so the refusal is a close code.
async fn refuse(mut socket: WebSocket) {
    metrics::counter!("kith_gateway_closes_total", "code" => close::TOO_MANY.to_string()).increment(1);
    let frame = CloseFrame { code: close::TOO_MANY, reason: "too many connections: reconnect with back-off".into() };
    if let Err(error) = socket.send(Message::Close(Some(frame))).await {
        tracing::debug!(%error, "a refused client was gone already");
    }
}

/// The token of the header; a header that is no bearer token is a token that does not verify.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    let token = value
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    Some(token.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_is_no_bearer_token_does_not_count_as_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(header::AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some(""));
        headers.insert(header::AUTHORIZATION, "bearer a.b.c".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("a.b.c"));
    }
}
