//! A connection to one Valkey node: plain or TLS under the ChatCluster's CA, authenticated, with deadlines.
//!
//! Nothing here knows of slots or redirects: a caller that shards decides itself which node it speaks to, and what an answer means.

mod dialogue;

pub use dialogue::Dialogue;

use std::{path::PathBuf, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use self::dialogue::Stream;
use crate::{
    config::{Config, Tls, Valkey},
    tls::{self, Reloading, TlsError},
};

/// The component that Valkey pods' certificates name.
pub const COMPONENT: &str = "valkey";
/// The function, and the library that holds nothing else, by which a primary says how many replicas must hold a write before it is
/// acknowledged: the operator loads it, `storage` calls it.
pub const WANTED: &str = "kith_wanted";
/// Opening a connection: TCP, TLS and login.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Why a node could not be reached or did not answer.
#[derive(Debug, Error)]
pub enum ValkeyError {
    /// The certificate files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The password file.
    #[error("engine password {path}: {source}")]
    Password {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// TLS is asked for, but the process has no certificate.
    #[error("valkey.tls needs the process's certificate (tls)")]
    NoCertificate,
    /// TCP or the handshake failed.
    #[error("{address}: {source}")]
    Connect {
        /// The node.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// No connection or no answer in time.
    #[error("{0}: no answer in time")]
    Timeout(String),
    /// The node refused, or the connection broke.
    #[error("{address}: {source}")]
    Redis {
        /// The node.
        address: String,
        /// What it said.
        source: RedisError,
    },
}

/// Opens connections to the nodes of one ChatCluster's engine.
#[derive(Clone)]
pub struct Connector {
    username: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<(Arc<Reloading<rustls::ClientConfig>>, rustls_pki_types::ServerName<'static>)>,
}

impl Connector {
    /// For the engine of `config`, with the certificate of this process.
    pub fn new(config: &Config, valkey: &Valkey) -> Result<Self, ValkeyError> {
        Self::with_parts(valkey, config.tls.as_ref(), &config.cluster.name)
    }

    /// The same from its parts, for callers that have no service configuration.
    pub fn with_parts(valkey: &Valkey, files: Option<&Tls>, cluster: &str) -> Result<Self, ValkeyError> {
        let tls = if valkey.tls {
            let files = files.ok_or(ValkeyError::NoCertificate)?;
            Some((Arc::new(Reloading::new(files.clone(), tls::client_config)?), tls::server_name(COMPONENT, cluster)?))
        } else {
            None
        };
        Ok(Self { username: valkey.username.clone(), password_file: valkey.password_file.clone(), tls })
    }

    /// Connects to `address` (`host:port`). An answer that takes longer than `response_timeout` fails the call, not the connection: a
    /// caller that must know the outcome drops the connection then.
    pub async fn connect(&self, address: &str, response_timeout: Duration) -> Result<Connection, ValkeyError> {
        in_time(address, self.open(address, response_timeout)).await
    }

    /// The same for one caller at a time: what it takes is a socket and nothing else.
    pub async fn dialogue(&self, address: &str) -> Result<Dialogue, ValkeyError> {
        let begin = async {
            let (login, stream) = (self.login().await?, self.dial(address).await?);
            Dialogue::begin(address, stream, login.as_ref()).await
        };
        in_time(address, begin).await
    }

    async fn open(&self, address: &str, response_timeout: Duration) -> Result<Connection, ValkeyError> {
        let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        if let Some(login) = self.login().await? {
            info = info.set_password(login.password);
            if let Some(username) = login.username {
                info = info.set_username(username);
            }
        }
        match self.dial(address).await? {
            Stream::Plain(stream) => attach(address, &info, stream, response_timeout).await,
            Stream::Tls(stream) => attach(address, &info, *stream, response_timeout).await,
        }
    }

    /// Who logs in, if anybody does.
    async fn login(&self) -> Result<Option<Login>, ValkeyError> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let password = tokio::fs::read_to_string(path)
            .await
            .map_err(|source| ValkeyError::Password { path: path.clone(), source })?;
        Ok(Some(Login { username: self.username.clone(), password: password.trim_end().to_owned() }))
    }

    /// TCP and the handshake.
    async fn dial(&self, address: &str) -> Result<Stream, ValkeyError> {
        let failed = |source| ValkeyError::Connect { address: address.to_owned(), source };
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        Ok(match &self.tls {
            None => Stream::Plain(tcp),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.get());
                Stream::Tls(Box::new(connector.connect(name.clone(), tcp).await.map_err(failed)?))
            }
        })
    }
}

/// What comes of opening a connection, within the time that it may take.
fn in_time<T>(
    address: &str,
    opening: impl Future<Output = Result<T, ValkeyError>>,
) -> impl Future<Output = Result<T, ValkeyError>> {
    // Boxed before it is awaited: it is rare and large, and every read would carry it.
    let opening = tokio::time::timeout(CONNECT_DEADLINE, Box::pin(opening));
    async move { opening.await.unwrap_or_else(|_| Err(ValkeyError::Timeout(address.to_owned()))) }
}

/// A name and a password.
struct Login {
    /// Nobody's: the node's own default.
    username: Option<String>,
    password: String,
}

async fn attach<S>(
    address: &str,
    info: &RedisConnectionInfo,
    stream: S,
    response_timeout: Duration,
) -> Result<Connection, ValkeyError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(response_timeout));
    let (inner, driver) = MultiplexedConnection::new_with_config(info, stream, config)
        .await
        .map_err(|source| ValkeyError::Redis { address: address.to_owned(), source })?;
    let driver = Arc::new(Driver(tokio::spawn(driver)));
    Ok(Connection { address: address.into(), inner, driver })
}

/// Ends the socket's task with the last clone of its connection: a dropped connection sends nothing more.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A multiplexed connection to one node; clones share the socket.
#[derive(Clone)]
pub struct Connection {
    address: Arc<str>,
    inner: MultiplexedConnection,
    driver: Arc<Driver>,
}

impl Connection {
    /// The node's `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the socket is gone: every further call would fail.
    pub fn is_closed(&self) -> bool {
        self.driver.0.is_finished()
    }

    /// One command; a refusal by the server is an error.
    pub async fn command(&mut self, command: &Cmd) -> Result<Value, ValkeyError> {
        let failed = |source| ValkeyError::Redis { address: self.address.to_string(), source };
        match self.inner.send_packed_command(command).await {
            Ok(Value::ServerError(error)) => Err(failed(error.into())),
            Ok(value) => Ok(value),
            Err(source) => Err(failed(source)),
        }
    }

    /// All commands in one write; one value each, refusals as [`Value::ServerError`]. An error means that the outcome of every one of
    /// them is unknown.
    pub async fn pipeline(&mut self, commands: &Pipeline) -> Result<Vec<Value>, ValkeyError> {
        self.inner
            .send_packed_commands(commands, 0, commands.len())
            .await
            .map_err(|source| ValkeyError::Redis { address: self.address.to_string(), source })
    }
}
