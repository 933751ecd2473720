//! The TLS handshake of a client that is not known yet: it is over by its deadline, one way or the other.

use std::{
    io::{Error, ErrorKind, Result},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Ends TLS on `io`. A handshake that is not done at `until` is given up, and `abrupt` set: such a peer is not waited for. A failed one is
/// told to the peer in TLS's own words and counted by what went wrong.
pub(crate) async fn handshake<S>(
    config: Arc<ServerConfig>,
    io: S,
    abrupt: &AtomicBool,
    until: Instant,
) -> Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut shaking = pin!(TlsAcceptor::from(config).accept(io));
    let outcome = timeout_at(until, shaking.as_mut()).await.unwrap_or_else(|_| {
        abrupt.store(true, Ordering::Relaxed);
        Err(Error::new(ErrorKind::TimedOut, "the handshake took too long"))
    });
    if let Err(error) = &outcome {
        metrics::counter!("kith_tls_handshakes_failed_total", "reason" => reason(error.kind())).increment(1);
    }
    outcome
}

/// A closed set, so that nobody can fill the metrics.
fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::TimedOut => "late",
        // What came is no TLS, or none that both sides speak.
        ErrorKind::InvalidData => "refused",
        // Load balancers look whether the port is open, and say nothing.
        _ => "gone",
    }
}
