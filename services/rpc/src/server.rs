//! gRPC servers: mTLS with who may call, health, reflection, request ids, deadlines, graceful end.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

use crate::{
    admission::{Admission, Seat, Seats},
    guard::Guard,
    progress::Progress,
};
use kith_kit::{
    config::Config,
    tls::{self, ClientCerts, Reloading},
};

pub use crate::guard::panicked;

/// A TLS handshake that takes longer is dropped, and so is a connection whose HTTP/2 preface does not follow as soon.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of an HTTP/2 preface.
const PREFACE: usize = 24;
/// Connections of one server; of an address without a certificate that has been verified; of one certificate's name.
const SEATS: Seats = Seats { all: 8_192, unknown_per_address: 64, per_caller: 4_096 };
/// How long open calls may go on after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);

/// The package that business lines call.
const LINES: &str = "kith.business.v1";

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Identity {
    /// No client certificate, or no TLS at all.
    #[default]
    Anonymous,
    /// A part of the platform.
    Service(String),
    /// A business line.
    Line(String),
}

/// What a handler finds in a request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Who, by certificate.
    pub identity: Identity,
    /// From where.
    pub address: Option<SocketAddr>,
}

/// Why a server ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// gRPC.
    #[error("gRPC server: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// Reflection descriptors.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The same, of one package.
    #[error("gRPC reflection: {0}")]
    Descriptors(#[from] prost::DecodeError),
    /// The listener.
    #[error("gRPC listener: {0}")]
    Io(#[from] std::io::Error),
}

/// Who may call a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// The components of the same ChatCluster, each what [`kith_platform::may_call`] says; without TLS (processes on one machine) everyone.
    Platform,
    /// Everyone: the handlers ask which business line calls. Reflection shows their package alone, and asks for a line's certificate too.
    Lines,
}

/// Serves `routes` on `listener` until `shutdown`, then lets open calls end within ten seconds.
pub async fn serve(
    config: &Config,
    listener: TcpListener,
    routes: Routes,
    allow: Allow,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let clients = if matches!(allow, Allow::Lines) { ClientCerts::Optional } else { ClientCerts::Required };
    let acceptor = match &config.tls {
        None => None,
        Some(files) => Some(Arc::new(Reloading::new(files.clone(), move |files| {
            let mut config = tls::server_config(files, clients)?;
            config.alpn_protocols = vec![b"h2".to_vec()];
            Ok(config)
        })?)),
    };
    let incoming = accept(listener, acceptor, config.cluster.uid.clone(), shutdown.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure();
    let reflection = match allow {
        Allow::Platform => reflection.register_encoded_file_descriptor_set(kith_proto::DESCRIPTORS),
        Allow::Lines => reflection.register_file_descriptor_set(package(LINES)?),
    };
    let reflection = reflection.build_v1()?;
    let server = Server::builder()
        .layer(Guard::new(config.tls.is_some().then_some(allow)))
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(4_096)
        .add_routes(routes)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tokio::select! {
        ended = server => ended?,
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("open calls did not end within the grace period");
        }
    }
    Ok(())
}

/// The descriptors of a package and of what its files import.
fn package(name: &str) -> Result<FileDescriptorSet, ServeError> {
    let mut rest = FileDescriptorSet::decode(kith_proto::DESCRIPTORS)?.file;
    let mut wanted: Vec<String> = rest.iter().filter(|f| f.package() == name).map(|f| f.name().to_owned()).collect();
    let mut file = Vec::new();
    while let Some(next) = wanted.pop() {
        if let Some(at) = rest.iter().position(|f| f.name() == next) {
            let found = rest.swap_remove(at);
            wanted.extend(found.dependency.iter().cloned());
            file.push(found);
        }
    }
    Ok(FileDescriptorSet { file })
}

type Accepted = std::io::Result<Connection>;

/// Accepts connections and shakes hands concurrently, so that a slow client holds nobody up.
fn accept(
    listener: TcpListener,
    tls: Option<Arc<Reloading<rustls::ServerConfig>>>,
    uid: String,
    shutdown: CancellationToken,
) -> impl Stream<Item = Accepted> {
    let (ready, accepted) = mpsc::channel::<Accepted>(64);
    let uid: Arc<str> = uid.into();
    let admission = Admission::new(SEATS);
    tokio::spawn(async move {
        loop {
            let Some(place) = admission.place().await else { return };
            let socket = tokio::select! {
                () = shutdown.cancelled() => return,
                socket = listener.accept() => socket,
            };
            let (socket, address) = match socket {
                Ok(found) => found,
                Err(error) => {
                    // Out of file descriptors, most likely: leave the others time to go.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(seat) = admission.seat(place, address) else { continue };
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY");
            }
            let (ready, tls, uid) = (ready.clone(), tls.clone(), uid.clone());
            tokio::spawn(async move {
                let connection = match tls {
                    None => {
                        // Processes on one machine: nobody can say who they are.
                        seat.known_as("this machine");
                        Connection::new(Stream2::Plain(socket), Identity::Anonymous, address, seat)
                    }
                    Some(config) => {
                        let handshake = TlsAcceptor::from(config.get()).accept(socket);
                        match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
                            Ok(Ok(stream)) => {
                                let identity = identify(&stream, &uid);
                                if let Identity::Service(name) | Identity::Line(name) = &identity {
                                    seat.known_as(name);
                                }
                                Connection::new(Stream2::Tls(Box::new(stream)), identity, address, seat)
                            }
                            Ok(Err(error)) => {
                                tracing::debug!(%address, %error, "TLS handshake failed");
                                return;
                            }
                            Err(_) => {
                                tracing::debug!(%address, "TLS handshake took too long");
                                return;
                            }
                        }
                    }
                };
                // An error means that the server has ended; the connection is dropped with it.
                drop(ready.send(Ok(connection)).await);
            });
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(accepted).map(|c| c)
}

/// Who a verified certificate stands for; another cluster's certificate is anonymous.
fn identify(stream: &tokio_rustls::server::TlsStream<TcpStream>, uid: &str) -> Identity {
    let certs = stream.get_ref().1.peer_certificates();
    certs.and_then(|c| c.first()).and_then(|cert| identity_of(cert, uid)).unwrap_or_default()
}

fn identity_of(cert: &[u8], uid: &str) -> Option<Identity> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| {
        let x509_parser::extensions::GeneralName::URI(uri) = name else { return None };
        let rest = uri.strip_prefix("kith://")?.strip_prefix(uid)?.strip_prefix('/')?;
        match rest.split_once('/')? {
            ("service", name) => Some(Identity::Service(name.to_owned())),
            ("line", name) => Some(Identity::Line(name.to_owned())),
            _ => None,
        }
    })
}

/// An accepted connection and who is at its other end.
struct Connection {
    stream: Progress<Stream2>,
    peer: Peer,
    _seat: Arc<Seat>,
}

impl Connection {
    fn new(stream: Stream2, identity: Identity, address: SocketAddr, seat: Arc<Seat>) -> Self {
        let stream = Progress::new(stream, PREFACE, HANDSHAKE_DEADLINE);
        Self { stream, peer: Peer { identity, address: Some(address) }, _seat: seat }
    }
}

enum Stream2 {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Forwards reads and writes: of a connection to its stream, of a stream to whichever it is.
macro_rules! forward {
    ($type:ty, $s:ident, $wrap:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<std::io::Result<()>> {
                $wrap!(self, $s => $s.poll_read(cx, buf))
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
                $wrap!(self, $s => $s.poll_write(cx, buf))
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
                $wrap!(self, $s => $s.poll_flush(cx))
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
                $wrap!(self, $s => $s.poll_shutdown(cx))
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> Poll<std::io::Result<usize>> {
                $wrap!(self, $s => $s.poll_write_vectored(cx, bufs))
            }
            fn is_write_vectored(&self) -> bool {
                self.vectored()
            }
        }
    };
}

macro_rules! inner {
    ($self:ident, $s:ident => $call:expr) => {{
        let $s = Pin::new(&mut $self.get_mut().stream);
        $call
    }};
}

macro_rules! either {
    ($self:ident, $s:ident => $call:expr) => {
        match $self.get_mut() {
            Stream2::Plain(stream) => {
                let $s = Pin::new(stream);
                $call
            }
            Stream2::Tls(stream) => {
                let $s = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

forward!(Connection, s, inner);
forward!(Stream2, s, either);

impl Connection {
    fn vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Stream2 {
    fn vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{FileDescriptorProto, ServiceDescriptorProto};

    use super::*;

    #[test]
    fn lines_are_shown_their_own_package_and_what_it_imports() {
        let shown = package(LINES).unwrap().file;
        let mut names: Vec<&str> = shown.iter().map(FileDescriptorProto::name).collect();
        names.sort_unstable();
        assert_eq!(names, ["kith/business/v1/business.proto", "kith/chat/v1/message.proto"]);
        let services: Vec<&str> = shown.iter().flat_map(|f| &f.service).map(ServiceDescriptorProto::name).collect();
        assert_eq!(services, ["ImBusiness"]);
    }
}
