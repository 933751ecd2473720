//! gRPC connections to the instances of other services: mTLS, one channel an instance, deadlines.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::service_fn;

use crate::{error::Error, request::Inject};
use kith_kit::{
    config::Config,
    tls::{self, Reloading, TlsError},
};

/// Opening a connection, TLS included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a peer that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(3);
/// Above the largest answer (200 messages of 64 KiB would be too much for one; pages are bounded in bytes by storage).
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What a generated client is made over.
pub type Transport = InterceptedService<Channel, Inject>;

/// Channels to the instances of one component; connects lazily and keeps them.
#[derive(Clone)]
pub struct Dialer {
    component: &'static str,
    tls: Option<(Arc<Reloading<rustls::ClientConfig>>, rustls_pki_types::ServerName<'static>)>,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Dialer {
    /// For `component` of the ChatCluster in `config`.
    pub fn new(config: &Config, component: &'static str) -> Result<Self, TlsError> {
        let tls = match &config.tls {
            None => None,
            Some(files) => {
                let reloading = Reloading::new(files.clone(), |files| {
                    let mut config = tls::client_config(files)?;
                    config.alpn_protocols = vec![b"h2".to_vec()];
                    Ok(config)
                })?;
                Some((Arc::new(reloading), tls::server_name(component, &config.cluster.name)?))
            }
        };
        Ok(Self { component, tls, channels: Arc::default() })
    }

    /// Without TLS.
    #[cfg(test)]
    pub(crate) fn plain(component: &'static str) -> Self {
        Self { component, tls: None, channels: Arc::default() }
    }

    /// The channel to `address` (`host:port`); connects at the first call and again after a loss.
    pub fn channel(&self, address: &str) -> Transport {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return InterceptedService::new(channel.clone(), Inject);
        }
        let channel = self.connect_lazily(address);
        channels.insert(address.to_owned(), channel.clone());
        InterceptedService::new(channel, Inject)
    }

    /// Forgets the channels of instances that are gone.
    pub fn retain(&self, live: &[String]) {
        self.channels.lock().retain(|address, _| live.iter().any(|l| l == address));
    }

    fn connect_lazily(&self, address: &str) -> Channel {
        // The connector dials `address` itself; the URI only gives the requests an authority.
        let endpoint = Endpoint::from_static("http://kith.internal")
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_DEADLINE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let address = address.to_owned();
        let component = self.component;
        let tls = self.tls.clone();
        endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (address, tls) = (address.clone(), tls.clone());
            async move {
                let connect = async {
                    let tcp = TcpStream::connect(&address).await?;
                    tcp.set_nodelay(true)?;
                    Ok::<_, std::io::Error>(match tls {
                        None => Connection::Plain(tcp),
                        Some((config, name)) => {
                            Connection::Tls(Box::new(TlsConnector::from(config.get()).connect(name, tcp).await?))
                        }
                    })
                };
                match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
                    Ok(Ok(connection)) => Ok(TokioIo::new(connection)),
                    Ok(Err(error)) => {
                        tracing::debug!(component, %address, %error, "connection refused or broken");
                        Err(error)
                    }
                    Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long")),
                }
            }
        }))
    }
}

/// A connection with or without TLS.
enum Connection {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

mod io {
    //! Forwards reads and writes to whichever stream it is.

    use std::{
        io::{IoSlice, Result},
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Connection;

    macro_rules! forward {
        ($self:ident, $s:ident => $call:expr) => {
            match $self.get_mut() {
                Connection::Plain(stream) => {
                    let $s = Pin::new(stream);
                    $call
                }
                Connection::Tls(stream) => {
                    let $s = Pin::new(stream.as_mut());
                    $call
                }
            }
        };
    }

    impl AsyncRead for Connection {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
            forward!(self, s => s.poll_read(cx, buf))
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
            forward!(self, s => s.poll_write(cx, buf))
        }
        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            forward!(self, s => s.poll_flush(cx))
        }
        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            forward!(self, s => s.poll_shutdown(cx))
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            forward!(self, s => s.poll_write_vectored(cx, bufs))
        }
        fn is_write_vectored(&self) -> bool {
            match self {
                Self::Plain(s) => s.is_write_vectored(),
                Self::Tls(s) => s.is_write_vectored(),
            }
        }
    }
}

/// Asks an instance whether it is healthy; none when nothing came back within the time.
pub(crate) async fn health(transport: Transport, within: Duration) -> Option<Result<(), Error>> {
    let mut client = HealthClient::new(transport);
    let asked = client.check(HealthCheckRequest::default());
    let answer = tokio::time::timeout(within, asked).await.ok()?;
    Some(answer.map(drop).map_err(Error::from))
}

/// Whether an instance answers at all within the time, be it with a refusal.
pub(crate) async fn is_alive(transport: Transport, within: Duration) -> bool {
    health(transport, within).await.is_some_and(|answer| answer.err().is_none_or(|refusal| !refusal.unanswered))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_instance_that_refuses_hangs_up_or_says_nothing_does_not_live() {
        let dialer = Dialer::plain("storage");
        let within = Duration::from_millis(400);
        // Nobody listens there any more.
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = refusing.local_addr().unwrap().to_string();
        drop(refusing);
        // Whoever connects is hung up on.
        let hanging_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hung_up = hanging_up.local_addr().unwrap().to_string();
        tokio::spawn(async move { while hanging_up.accept().await.is_ok() {} });
        // Connections are taken by the kernel, and nothing is ever said.
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = mute.local_addr().unwrap().to_string();
        for address in [&refused, &hung_up, &silent] {
            for _ in 0..3 {
                let answer = health(dialer.channel(address), within).await;
                assert!(answer.is_none_or(|a| a.is_err_and(|e| e.unanswered)), "{address}");
                assert!(!is_alive(dialer.channel(address), within).await, "{address}");
            }
        }
    }
}
