//! HTTP servers: admitted connections, in TLS or plain, that get on or end; graceful end; and errors as problem documents (RFC 9457).

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::ConnectInfo,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{ServiceExt, service_fn};

use crate::{
    admission::{Admission, Seat, Seats},
    error::Error,
    handshake::handshake,
    linger::Linger,
    pace::{Pace, UNKNOWN, Verdict},
    progress::Progress,
};
use kith_contract::problem::{self, Problem};
use kith_kit::tls::ListenerTls;

/// HTTP/2 pings find clients that vanished.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(10);
/// Requests of one HTTP/2 connection at once.
const STREAMS: u32 = 64;
/// How long a connection that was asked to end may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// The pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Whom it admits.
    pub seats: Seats,
    /// How long a known caller's connection may wait for its next request.
    pub idle: Duration,
    /// How long open requests may go on after the end was asked for.
    pub grace: Duration,
}

/// Serves `app` on `listener`, in TLS where that is given, until `shutdown`; then open connections finish their requests within the grace
/// period. A handler finds the connection's [`Seat`] in the extensions of its request and says there whose it is, when it knows.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ListenerTls>,
    app: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let admission = Admission::new(bounds.seats);
    let tracker = TaskTracker::new();
    let server = Arc::new(Server { tls, app, builder: builder(bounds.idle), shutdown: shutdown.clone() });
    loop {
        let accepted = async { Some((admission.place().await?, listener.accept().await)) };
        let Some(Some((place, accepted))) = shutdown.run_until_cancelled(accepted).await else { break };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = admission.seat(place, address) else { continue };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let pace = Arc::new(Mutex::new(Pace::new(bounds.idle, Instant::now())));
        tracker.spawn(Connection { seat, address, pace, server: server.clone() }.run(socket));
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(bounds.grace, tracker.wait()).await.is_err() {
        tracing::warn!("open requests did not end within the grace period");
    }
}

/// What all connections of a listener share.
struct Server {
    tls: Option<ListenerTls>,
    app: Router,
    builder: Builder<TokioExecutor>,
    shutdown: CancellationToken,
}

fn builder(idle: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // The time of a request's head runs from the end of the one before, so it bounds idleness, too: that is `Pace`'s.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(idle + UNKNOWN).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        // What is written beyond the peer's window is held here.
        .max_send_buf_size(64 << 10);
    builder
}

/// One connection while it is served.
struct Connection {
    seat: Arc<Seat>,
    address: SocketAddr,
    pace: Arc<Mutex<Pace>>,
    server: Arc<Server>,
}

/// What the layer above TLS sees and says of the socket below it.
struct Socket {
    /// Once set, the socket is closed at once.
    abrupt: Arc<AtomicBool>,
    /// Whether a write waits for the peer now.
    waits: Arc<AtomicBool>,
}

impl Connection {
    async fn run(self, socket: TcpStream) {
        // The first byte and the end of a handshake have one deadline, which runs from here.
        let until = tokio::time::Instant::now() + UNKNOWN;
        let socket = Linger::new(socket, self.seat.clone());
        let abrupt = socket.abrupt();
        // A byte tells that somebody is there; the rest of the request has its time in `Pace`. What the peer takes is looked at below TLS,
        // as it is without TLS: from above, a record that is taken slowly looks like one that is not taken.
        let io = Progress::new(socket, 1, UNKNOWN);
        let socket = Socket { abrupt, waits: io.waits() };
        let Some(tls) = &self.server.tls else { return self.serve(io, socket).await };
        let shaking = handshake(tls.get(), io, &socket.abrupt, until);
        match self.server.shutdown.run_until_cancelled(shaking).await {
            Some(Ok(stream)) => self.serve(stream, socket).await,
            // Anybody can cause this as often as they like, so it is counted and not told.
            Some(Err(error)) => tracing::debug!(address = %self.address, %error, "no TLS handshake"),
            None => {}
        }
    }

    async fn serve<S>(&self, io: S, socket: Socket)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (pace, seat, address) = (self.pace.clone(), self.seat.clone(), self.address);
        let app = self.server.app.clone();
        let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(address));
            request.extensions_mut().insert(seat.clone());
            let (app, at_work) = (app.clone(), AtWork::new(&pace));
            async move {
                let response = app.oneshot(request.map(Body::new)).await;
                response.map(|response| response.map(|body| at_work.answer(body)))
            }
        });
        let connection =
            self.server.builder.serve_connection_with_upgrades(TokioIo::new(io), TowerToHyperService::new(service));
        tokio::pin!(connection);
        let mut leaving: Option<tokio::time::Instant> = None;
        let ended = loop {
            let verdict = self.pace.lock().look(self.seat.is_known(), Instant::now());
            let until = match (leaving, verdict) {
                (_, Verdict::Stalled) => {
                    metrics::counter!("kith_connections_stalled_total").increment(1);
                    socket.abrupt.store(true, Ordering::Relaxed);
                    return;
                }
                // What was answered is still on its way to a slow reader, and ends by itself when nothing is taken.
                (_, Verdict::Idle) if socket.waits.load(Ordering::Relaxed) => tokio::time::Instant::now() + GOODBYE,
                (Some(end), _) => end,
                (None, Verdict::Wait(until)) => until.into(),
                (None, Verdict::Idle) => {
                    connection.as_mut().graceful_shutdown();
                    let end = tokio::time::Instant::now() + GOODBYE;
                    leaving = Some(end);
                    end
                }
            };
            tokio::select! {
                ended = connection.as_mut() => break ended,
                // Open requests go on; how long is the server's grace period.
                () = self.server.shutdown.cancelled(), if leaving.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await;
                }
                () = tokio::time::sleep_until(until) => if leaving.is_some_and(|end| end <= until) { return },
            }
        };
        if let Err(error) = ended {
            tracing::debug!(address = %self.address, error, "a connection ended with an error");
        }
    }
}

/// A request that a handler works on.
struct AtWork(Arc<Mutex<Pace>>);

impl AtWork {
    fn new(pace: &Arc<Mutex<Pace>>) -> Self {
        pace.lock().asked();
        Self(pace.clone())
    }

    fn answer(&self, body: Body) -> Body {
        let id = self.0.lock().answered(Instant::now());
        Body::new(Answer { body, pace: self.0.clone(), id })
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.lock().worked(Instant::now());
    }
}

/// An answer's body, which tells when some of it is taken and when it is through.
struct Answer {
    body: Body,
    pace: Arc<Mutex<Pace>>,
    id: u64,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.pace.lock().taken(self.id, Instant::now());
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.pace.lock().through(self.id, Instant::now());
    }
}

/// The answer for an error, with the status of the contract's table.
pub fn problem(error: &Error) -> Response {
    problem_with(error, StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
}

/// The answer for an error with a status of its own (405, 413, 415, …).
pub fn problem_with(error: &Error, status: StatusCode) -> Response {
    let document = Problem {
        kind: problem::TYPE.into(),
        title: status.canonical_reason().unwrap_or("Error").into(),
        status: status.as_u16(),
        detail: error.detail.as_ref().into(),
        code: error.code_name().into(),
        reason: error.reason.as_deref().map(Into::into),
    };
    // These fields always serialize.
    let body = serde_json::to_vec(&document).unwrap_or_default();
    let mut response = (status, [(header::CONTENT_TYPE, problem::MEDIA_TYPE)], body).into_response();
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
        assert_eq!(response.headers()[header::CONTENT_TYPE], problem::MEDIA_TYPE);
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
