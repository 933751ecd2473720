//! One WebSocket: opened, authenticated, split into a reader and a writer, and why it ended.

use std::{sync::Arc, time::Duration};

use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message as Raw, Utf8Bytes,
        client::IntoClientRequest,
        handshake::client::{Request, Response},
        http::HeaderValue,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    error::ClientError,
    frame::{self, ClientFrame, Hello, SUBPROTOCOL, ServerFrame},
    model::exact,
    trust::Trust,
};

/// Opening a connection, the upgrade included.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// From the upgrade, or the auth frame, to the hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(8);
/// A frame that cannot be written for so long means a dead peer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("closed: {code:?} {reason}")]
pub struct Closed {
    /// The close code; none when the socket just broke.
    pub code: Option<u16>,
    /// The server's words, or the socket's.
    pub reason: String,
}

impl Closed {
    fn broken(reason: &(impl ToString + ?Sized)) -> Self {
        Self { code: None, reason: reason.to_string() }
    }
}

/// Where the token goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenIn {
    /// The `Authorization` header.
    Header,
    /// The first frame.
    Frame,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The upgrade was refused with this status.
    #[error("the upgrade was refused: {0}")]
    Status(u16),
    /// The server closed before the hello.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// No answer.
    #[error("no connection: {0}")]
    Unanswered(String),
    /// An answer outside the contract.
    #[error("outside the contract: {0}")]
    Contract(String),
}

impl OpenError {
    /// Whether a client must stay away.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Status(status) => (400..500).contains(status) && *status != 429 && *status != 408,
            Self::Closed(closed) => closed.code.is_some_and(super::frame::close::is_final),
            Self::Unanswered(_) => false,
            Self::Contract(_) => true,
        }
    }
}

/// An authenticated connection.
pub struct Connection {
    /// The server's greeting.
    pub hello: Hello,
    /// What comes.
    pub reader: Reader,
    /// What goes.
    pub writer: Writer,
}

/// The receiving half.
pub struct Reader(SplitStream<Stream>);

/// The sending half.
pub struct Writer(SplitSink<Stream, Raw>);

impl Connection {
    /// Connects to `url` (`ws://host:port`), authenticates and waits for the hello. `auth` is the auth frame; with
    /// [`TokenIn::Header`] its token goes into the header, and the frame is left out.
    pub async fn open(
        url: &str,
        token: &str,
        token_in: TokenIn,
        auth: Option<&ClientFrame<'_>>,
    ) -> Result<Self, OpenError> {
        Self::open_trusting(&Trust::nobody(), url, token, token_in, auth).await
    }

    /// The same for `wss://host:port`, too, where a certificate of those that are trusted must be shown.
    pub async fn open_trusting(
        trust: &Trust,
        url: &str,
        token: &str,
        token_in: TokenIn,
        auth: Option<&ClientFrame<'_>>,
    ) -> Result<Self, OpenError> {
        let halves = dial_trusting(trust, url, (token_in == TokenIn::Header).then_some(token)).await?;
        Self::greet(halves, token, token_in, auth).await
    }

    /// The same over a TCP connection that stands already.
    pub async fn open_on(
        stream: TcpStream,
        url: &str,
        token: &str,
        token_in: TokenIn,
        auth: Option<&ClientFrame<'_>>,
    ) -> Result<Self, OpenError> {
        let request = upgrade(url, (token_in == TokenIn::Header).then_some(token))?;
        let dialled = client_async_with_config(request, MaybeTlsStream::Plain(stream), Some(config()));
        Self::greet(upgraded(Box::pin(dialled)).await?, token, token_in, auth).await
    }

    async fn greet(
        (mut reader, mut writer): (Reader, Writer),
        token: &str,
        token_in: TokenIn,
        auth: Option<&ClientFrame<'_>>,
    ) -> Result<Self, OpenError> {
        match (token_in, auth) {
            (_, Some(frame)) => writer.send(frame).await?,
            (TokenIn::Frame, None) => writer.send(&frame::auth(token)).await?,
            (TokenIn::Header, None) => {}
        }
        match tokio::time::timeout(HELLO_DEADLINE, reader.next()).await {
            Err(_) => Err(OpenError::Unanswered("no hello in time".to_owned())),
            Ok(Err(closed)) => Err(closed.into()),
            Ok(Ok(ServerFrame::Hello(hello))) => Ok(Self { hello, reader, writer }),
            Ok(Ok(other)) => Err(OpenError::Contract(format!("a hello was due, not {other:?}"))),
        }
    }
}

/// Opens the socket without authenticating, for tests of what then happens.
pub async fn dial(url: &str, token: Option<&str>) -> Result<(Reader, Writer), OpenError> {
    dial_trusting(&Trust::nobody(), url, token).await
}

async fn dial_trusting(trust: &Trust, url: &str, token: Option<&str>) -> Result<(Reader, Writer), OpenError> {
    let connector = if url.starts_with("wss:") {
        // A WebSocket begins as HTTP/1.1.
        Connector::Rustls(Arc::new(trust.tls(&["http/1.1"]).map_err(|e| OpenError::Contract(e.to_string()))?))
    } else {
        Connector::Plain
    };
    let request = upgrade(url, token)?;
    let dialled = tokio_tungstenite::connect_async_tls_with_config(request, Some(config()), true, Some(connector));
    // With all of TLS in it, it is too large to be a part of others.
    upgraded(Box::pin(dialled)).await
}

fn upgrade(url: &str, token: Option<&str>) -> Result<Request, OpenError> {
    let contract = |e: &dyn std::fmt::Display| OpenError::Contract(e.to_string());
    let mut request = url.into_client_request().map_err(|e| contract(&e))?;
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| contract(&e))?;
        request.headers_mut().insert("authorization", value);
    }
    Ok(request)
}

/// The default buffer of 128 KiB a connection would make a thousand of them dear.
fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(8 << 10)
}

/// Waits for the upgrade and checks it.
async fn upgraded(
    dialled: impl Future<Output = Result<(Stream, Response), tungstenite::Error>>,
) -> Result<(Reader, Writer), OpenError> {
    let (stream, response) = match tokio::time::timeout(OPEN_DEADLINE, dialled).await {
        Err(_) => return Err(OpenError::Unanswered("no upgrade in time".to_owned())),
        Ok(Err(tungstenite::Error::Http(response))) => return Err(OpenError::Status(response.status().as_u16())),
        Ok(Err(error)) => return Err(OpenError::Unanswered(error.to_string())),
        Ok(Ok(opened)) => opened,
    };
    let chosen = response.headers().get("sec-websocket-protocol").and_then(|v| v.to_str().ok());
    if chosen != Some(SUBPROTOCOL) {
        return Err(OpenError::Contract(format!("subprotocol {chosen:?} instead of {SUBPROTOCOL}")));
    }
    let (sink, stream) = stream.split();
    Ok((Reader(stream), Writer(sink)))
}

impl Reader {
    /// The next frame, or how the connection ended. A frame that cannot be read ends it: the contract was broken.
    pub async fn next(&mut self) -> Result<ServerFrame, Closed> {
        let text = self.next_text().await?;
        exact(&text).map_err(|e| Closed::broken(&format!("unreadable frame: {e}: {text}")))
    }

    /// The next frame as it came.
    pub async fn next_text(&mut self) -> Result<Utf8Bytes, Closed> {
        loop {
            match self.0.next().await {
                None => return Err(Closed::broken("end of stream")),
                Some(Err(error)) => return Err(Closed::broken(&error)),
                Some(Ok(Raw::Text(text))) => return Ok(text),
                Some(Ok(Raw::Close(frame))) => {
                    return Err(frame.map_or_else(
                        || Closed::broken("closed without a code"),
                        |f| Closed { code: Some(f.code.into()), reason: f.reason.to_string() },
                    ));
                }
                Some(Ok(Raw::Binary(_))) => return Err(Closed::broken("a binary frame in a JSON protocol")),
                Some(Ok(Raw::Ping(_) | Raw::Pong(_) | Raw::Frame(_))) => {}
            }
        }
    }
}

impl Writer {
    /// Writes a frame.
    pub async fn send(&mut self, frame: &ClientFrame<'_>) -> Result<(), Closed> {
        self.send_text(serde_json::to_string(frame).map_err(|e| Closed::broken(&e))?).await
    }

    /// Writes any text, for tests of bad frames.
    pub async fn send_text(&mut self, text: String) -> Result<(), Closed> {
        match tokio::time::timeout(WRITE_DEADLINE, self.0.send(Raw::text(text))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Closed::broken(&error)),
            Err(_) => Err(Closed::broken("the socket takes nothing")),
        }
    }

    /// Says goodbye; the reader hears the answer.
    pub async fn say_goodbye(&mut self) -> Result<(), Closed> {
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.0.send(Raw::Close(Some(goodbye))).await.map_err(|error| Closed::broken(&error))
    }

    /// Writes several texts with one flush, for load clients.
    pub async fn send_texts(&mut self, texts: Vec<String>) -> Result<(), Closed> {
        let write = async {
            for text in texts {
                self.0.feed(Raw::text(text)).await?;
            }
            self.0.flush().await
        };
        match tokio::time::timeout(WRITE_DEADLINE, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Closed::broken(&error)),
            Err(_) => Err(Closed::broken("the socket takes nothing")),
        }
    }

    /// Closes in good order.
    pub async fn close(&mut self) {
        // What matters is that nothing more is sent; the peer may have gone first.
        drop(tokio::time::timeout(WRITE_DEADLINE, self.0.close()).await);
    }
}

impl From<Closed> for ClientError {
    fn from(closed: Closed) -> Self {
        Self::Unanswered(closed.to_string())
    }
}
