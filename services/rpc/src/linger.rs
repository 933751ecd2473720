//! The end of a connection whose peer still sends: what was written last reaches it all the same.
//!
//! A socket that is closed with unread bytes is reset, and a reset throws away what the peer has not read yet, such as the refusal of a body
//! or of a frame that is too long. So the server's direction is closed first, and for a moment what still comes is read and thrown away
//! (RFC 9112, section 9.6).

use std::{
    io::{Error, ErrorKind, IoSlice, Result},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::admission::Seat;

/// How long the rest is read.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const MOST: usize = 16 << 20;

/// A socket that ends as the first lines of this file say; until then it keeps its seat.
pub(crate) struct Linger {
    socket: Option<TcpStream>,
    seat: Arc<Seat>,
    /// Something was written that the peer may not have read yet.
    spoke: bool,
    /// The peer has ended its direction, or the connection is broken.
    over: bool,
    abrupt: Arc<AtomicBool>,
}

impl Linger {
    pub(crate) fn new(socket: TcpStream, seat: Arc<Seat>) -> Self {
        Self { socket: Some(socket), seat, spoke: false, over: false, abrupt: Arc::default() }
    }

    /// Once set, the socket is closed at once: for a peer that holds on to what others need.
    pub(crate) fn abrupt(&self) -> Arc<AtomicBool> {
        self.abrupt.clone()
    }

    /// Lets the socket do something, and notes when that shows its end.
    fn poll<T>(&mut self, step: impl FnOnce(Pin<&mut TcpStream>) -> Poll<Result<T>>) -> Poll<Result<T>> {
        // Taken by `drop` alone.
        let Some(socket) = &mut self.socket else { return Poll::Ready(Err(Error::from(ErrorKind::NotConnected))) };
        let outcome = step(Pin::new(socket));
        self.over |= matches!(outcome, Poll::Ready(Err(_)));
        outcome
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        let lingers = self.spoke && !self.over && !self.abrupt.load(Ordering::Relaxed);
        let Some(socket) = self.socket.take().filter(|_| lingers) else { return };
        // Most peers have said goodbye by now: then there is nothing to wait for.
        if matches!(socket.try_read(&mut [0]), Ok(0)) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let seat = self.seat.clone();
        runtime.spawn(async move {
            // Whatever is not over by then is reset.
            drop(tokio::time::timeout(LINGER, drain(socket)).await);
            drop(seat);
        });
    }
}

async fn drain(mut socket: TcpStream) -> Result<()> {
    socket.shutdown().await?;
    let mut rest = vec![0; 16 << 10];
    let mut left = MOST;
    while left > 0 {
        match socket.read(&mut rest).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

impl AsyncRead for Linger {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let outcome = self.poll(|socket| socket.poll_read(cx, buf));
        if outcome.is_ready() && room > 0 && buf.filled().len() == before {
            self.over = true;
        }
        outcome
    }
}

impl AsyncWrite for Linger {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.spoke = true;
        self.poll(|socket| socket.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(|socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(|socket| socket.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.spoke = true;
        self.poll(|socket| socket.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
