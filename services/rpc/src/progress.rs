//! A connection that must get on: its first bytes come soon, and what is written is taken sooner or later.

use std::{
    io::{Error, ErrorKind, IoSlice, Result},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A peer that takes no byte for so long is gone, or holds on to memory that others need.
pub(crate) const WRITE_STALL: Duration = Duration::from_secs(30);

/// Bounds how long a peer may say nothing at the beginning, and take nothing later on.
pub(crate) struct Progress<S> {
    inner: S,
    /// Bytes that must be read before `opening` is over.
    wanted: usize,
    opening: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
    stalled_after: Duration,
    /// Whether a write waits for the peer now.
    waits: Arc<AtomicBool>,
}

impl<S> Progress<S> {
    /// The first `wanted` bytes must have come within `opening`.
    pub(crate) fn new(inner: S, wanted: usize, opening: Duration) -> Self {
        let opening = Some(Box::pin(sleep_until(Instant::now() + opening)));
        Self { inner, wanted, opening, stall: None, stalled_after: WRITE_STALL, waits: Arc::default() }
    }

    /// Tells whether a write waits for the peer.
    pub(crate) fn waits(&self) -> Arc<AtomicBool> {
        self.waits.clone()
    }

    /// What came of a write: with none of it taken for too long, an error.
    fn got_on<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<Result<T>>) -> Poll<Result<T>> {
        if outcome.is_ready() {
            if self.stall.take().is_some() {
                self.waits.store(false, Ordering::Relaxed);
            }
            return outcome;
        }
        self.waits.store(true, Ordering::Relaxed);
        let after = self.stalled_after;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + after)));
        ready!(stall.as_mut().poll(cx));
        metrics::counter!("kith_connections_stalled_total").increment(1);
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Progress<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(opening) = &mut self.opening {
            if outcome.is_pending() {
                ready!(opening.as_mut().poll(cx));
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the peer says nothing")));
            }
            self.wanted = self.wanted.saturating_sub(buf.filled().len() - before);
            if self.wanted == 0 {
                self.opening = None;
            }
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Progress<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.got_on(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.got_on(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.got_on(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.got_on(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_peer_that_says_too_little_at_first_is_given_up() {
        let (mut client, server) = duplex(64);
        let mut server = Progress::new(server, 4, SHORT);
        client.write_all(b"GE").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.read(&mut buffer).await.unwrap(), 2);
        assert_eq!(server.read(&mut buffer).await.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_begun_may_be_silent_for_as_long_as_the_server_likes() {
        let (mut client, server) = duplex(64);
        let mut server = Progress::new(server, 4, SHORT);
        client.write_all(b"GET ").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.read(&mut buffer).await.unwrap(), 4);
        assert!(tokio::time::timeout(SHORT * 3, server.read(&mut buffer)).await.is_err(), "it still waits");
        client.write_all(b"/").await.unwrap();
        assert_eq!(server.read(&mut buffer).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (mut client, server) = duplex(4);
        let mut server = Progress { stalled_after: SHORT, ..Progress::new(server, 1, SHORT) };
        let waits = server.waits();
        let reader = tokio::spawn(async move {
            // Slower in all than the bound, and getting on.
            for _ in 0..8 {
                tokio::time::sleep(SHORT / 4).await;
                client.read_u8().await.unwrap();
            }
            client
        });
        server.write_all(&[0; 12]).await.unwrap();
        assert!(!waits.load(Ordering::Relaxed));
        let _client = reader.await.unwrap();
        assert_eq!(server.write_all(&[0; 12]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(waits.load(Ordering::Relaxed));
    }

    /// TLS writes whole records, and a flush waits for all of them: what is taken of them counts, however slowly it is.
    #[tokio::test]
    async fn a_peer_that_takes_records_of_tls_slowly_is_not_given_up_and_one_that_takes_nothing_is() {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server_config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        server_config.max_fragment_size = Some(1 << 10);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client_config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, server) = duplex(1 << 10);
        let progress = Progress { stalled_after: SHORT, ..Progress::new(server, 1, SHORT) };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config));
        let connecting = connector.connect("localhost".try_into().unwrap(), client);
        let (client, server) = tokio::join!(connecting, acceptor.accept(progress));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        let reader = tokio::spawn(async move {
            // A part of a record at a time: each is taken well within the bound, and what TLS holds at once is not.
            let mut taken = vec![0; 1 << 10];
            for _ in 0..96 {
                tokio::time::sleep(SHORT / 32).await;
                client.read_exact(&mut taken).await.unwrap();
            }
            client
        });
        let begun = Instant::now();
        server.write_all(&vec![0; 96 << 10]).await.unwrap();
        server.flush().await.unwrap();
        assert!(begun.elapsed() > SHORT * 2, "slower in all than the bound, and getting on");
        let _client = reader.await.unwrap();
        let stalled = async {
            server.write_all(&vec![0; 256 << 10]).await?;
            server.flush().await
        };
        assert_eq!(stalled.await.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
