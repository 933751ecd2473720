//! A connection for one caller at a time: a question is written, its answers are read, and between two questions nothing is kept but the
//! socket.
//!
//! It takes no task, no channel and no buffer of its own, so that a process can hold very many. A question whose answers were not all read,
//! for whatever reason, closes the connection: no answer is ever taken for another question's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value, parse_redis_value_async};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{Login, ValkeyError};

/// Read at a time. Most answers are smaller; the parser alone would ask the socket for 64 bytes first.
const CHUNK: usize = 4_096;

/// The way to a node.
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted, and the node verified.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection to one node, for one caller at a time. Sets no deadlines: a caller gives up by dropping the call, and the connection with it.
pub struct Dialogue {
    address: Box<str>,
    stream: Stream,
    /// A question is under way, or was given up.
    open_question: bool,
}

impl Dialogue {
    /// Logs in.
    pub(super) async fn begin(address: &str, stream: Stream, login: Option<&Login>) -> Result<Self, ValkeyError> {
        let mut dialogue = Self { address: address.into(), stream, open_question: false };
        if let Some(login) = login {
            let mut auth = redis::cmd("AUTH");
            auth.arg(login.username.as_deref()).arg(&login.password);
            let answer = dialogue.exchange(&auth.get_packed_command(), 1).await?.pop();
            check_login(answer.as_ref()).map_err(|source| dialogue.failed(source))?;
        }
        Ok(dialogue)
    }

    /// The node's `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether a question can be asked: the last one was answered, and the node has not hung up since.
    pub fn is_open(&mut self) -> bool {
        !self.open_question && self.stream.is_silent()
    }

    /// One command; a refusal by the server is an error.
    pub async fn command(&mut self, command: &Cmd) -> Result<Value, ValkeyError> {
        match self.exchange(&command.get_packed_command(), 1).await?.pop() {
            Some(Value::ServerError(error)) => Err(self.failed(error.into())),
            Some(value) => Ok(value),
            None => Err(self.failed(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
        }
    }

    /// All commands in one write; one value each, refusals as [`Value::ServerError`]. An error means that the outcome of every one of
    /// them is unknown.
    pub async fn pipeline(&mut self, commands: &Pipeline) -> Result<Vec<Value>, ValkeyError> {
        self.exchange(&commands.get_packed_pipeline(), commands.len()).await
    }

    async fn exchange(&mut self, question: &[u8], answers: usize) -> Result<Vec<Value>, ValkeyError> {
        let values = if std::mem::replace(&mut self.open_question, true) {
            Err(io::Error::new(io::ErrorKind::NotConnected, "an earlier question was given up").into())
        } else {
            ask(&mut self.stream, question, answers).await
        };
        match values {
            Ok(values) => {
                self.open_question = false;
                Ok(values)
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: RedisError) -> ValkeyError {
        ValkeyError::Redis { address: self.address.to_string(), source }
    }
}

async fn ask(stream: &mut Stream, question: &[u8], answers: usize) -> Result<Vec<Value>, RedisError> {
    stream.write_all(question).await?;
    stream.flush().await?;
    let mut values = Vec::with_capacity(answers);
    let (mut reader, mut decoder) = (BufReader::with_capacity(CHUNK, stream), fresh());
    for _ in 0..answers {
        values.push(parse_redis_value_async(&mut decoder, &mut reader).await?);
    }
    if decoder.buffer().is_empty() && reader.buffer().is_empty() {
        Ok(values)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "more answers than questions").into())
    }
}

/// The parser's state has a type of a library that is none of this crate's own.
fn fresh<T: Default>() -> T {
    T::default()
}

/// An error says that the login was refused, and nothing of what the node said: it may repeat what it was given.
fn check_login(answer: Option<&Value>) -> Result<(), RedisError> {
    match answer {
        Some(Value::Okay) => Ok(()),
        Some(Value::ServerError(_)) => Err((ErrorKind::AuthenticationFailed, "Password authentication failed").into()),
        _ => Err((ErrorKind::Server(ServerErrorKind::ResponseError), "the answer to the login is none").into()),
    }
}

impl Stream {
    /// Whether the node neither said anything nor hung up: nobody asked it, so both end the connection.
    fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        // Nobody waits; whoever reads next asks to be woken anew.
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(self).poll_read(&mut context, &mut read).is_pending()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
