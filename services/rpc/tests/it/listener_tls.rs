//! A listener that ends TLS itself: who is served, who is cut off, and what a renewed certificate changes; through real sockets.
use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use kith_kit::{config::CertFiles, shutdown::CancellationToken, tls};
use kith_rpc::{
    admission::Seats,
    http::{Bounds, serve},
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// Above what a connection may take that says nothing.
const SOON: Duration = Duration::from_secs(20);
/// Above the time after which files are looked at again.
const RENEWED: Duration = Duration::from_secs(30);

struct Server {
    port: u16,
    dir: tempfile::TempDir,
    _end: tokio_util::sync::DropGuard,
}

/// A server with a new certificate, and that certificate.
async fn server(unknown_per_address: usize) -> (Server, CertificateDer<'static>) {
    let dir = tempfile::tempdir().expect("a folder");
    let cert = issue(&dir);
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let app = Router::new().route("/", get(|| async { "hello" }));
    let seats = Seats { all: 64, unknown_per_address, per_caller: 8 };
    let bounds = Bounds { seats, idle: Duration::from_secs(90), grace: Duration::from_secs(1) };
    let files = CertFiles { cert: path(&dir, "tls.crt"), key: path(&dir, "tls.key") };
    let tls = tls::listener(&files, &["h2", "http/1.1"]).expect("TLS");
    let end = CancellationToken::new();
    tokio::spawn(serve(listener, Some(tls), app, bounds, end.clone()));
    (Server { port, dir, _end: end.drop_guard() }, cert)
}

fn path(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

/// Puts a new certificate into the folder.
fn issue(dir: &tempfile::TempDir) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let cert = params.self_signed(&key).expect("a certificate");
    std::fs::write(path(dir, "tls.crt"), cert.pem()).expect("a file");
    std::fs::write(path(dir, "tls.key"), key.serialize_pem()).expect("a file");
    cert.der().clone()
}

/// A client that trusts these certificates.
fn client(trusted: &[&CertificateDer<'static>], protocols: &[&[u8]]) -> Arc<ClientConfig> {
    tls::install_provider();
    let mut roots = RootCertStore::empty();
    for cert in trusted {
        roots.add((*cert).clone()).expect("a root");
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

impl Server {
    async fn connect_from(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{from}:0").parse().expect("an address")).expect("an address of this machine");
        socket.connect(([127, 0, 0, 1], self.port).into()).await.expect("a connection")
    }

    async fn connect(&self, client: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = self.connect_from("127.0.0.1").await;
        TlsConnector::from(client).connect("localhost".try_into().expect("a name"), socket).await
    }
}

/// Asks and reads the first bytes of the answer; none when the connection is over.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let mut answer = [0; 1_024];
    if stream.write_all(REQUEST).await.is_err() {
        return String::new();
    }
    let read = tokio::time::timeout(SOON, stream.read(&mut answer)).await.expect("an answer or an end").unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// Waits for the server to end a connection; what it said until then.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end, too.
    drop(tokio::time::timeout(SOON, stream.read_to_end(&mut said)).await.expect("an end"));
    said
}

/// The first bytes of a handshake.
fn hello() -> Vec<u8> {
    let name = "localhost".try_into().expect("a name");
    let mut connection = rustls::ClientConnection::new(client(&[], &[]), name).expect("a connection");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("bytes");
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_tls_is_answered_over_http_1_and_http_2() {
    let (server, cert) = server(64).await;
    for protocols in [&[b"http/1.1".as_slice()][..], &[]] {
        let mut stream = server.connect(client(&[&cert], protocols)).await.expect("a handshake");
        for _ in 0..2 {
            let answer = ask(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        }
    }
    let stream = server.connect(client(&[&cert], &[b"h2", b"http/1.1"])).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = axum::http::Request::get("https://localhost/").body(()).expect("a request");
    let (response, _) = requests.send_request(request, true).expect("a request");
    assert_eq!(response.await.expect("an answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_finish_a_handshake_or_says_nothing_after_it_is_cut_off_within_seconds() {
    let (server, cert) = server(64).await;
    let hello = hello();
    let mut held = Vec::new();
    for opening in [&[][..], &hello[..1], &hello[..hello.len() / 2], &hello[..]] {
        let mut socket = server.connect_from("127.0.0.1").await;
        socket.write_all(opening).await.expect("some bytes");
        held.push(socket);
    }
    let mut silent = server.connect(client(&[&cert], &[])).await.expect("a handshake");
    for mut socket in held {
        ended(&mut socket).await;
    }
    ended(&mut silent).await;
    let mut other = server.connect(client(&[&cert], &[])).await.expect("a handshake");
    assert!(ask(&mut other).await.ends_with("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_handshakes_of_one_address_take_no_place_of_others() {
    let (server, cert) = server(3).await;
    let hello = hello();
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut socket = server.connect_from("127.0.0.66").await;
        socket.write_all(&hello).await.expect("some bytes");
        held.push(socket);
    }
    let mut one_more = server.connect_from("127.0.0.66").await;
    let closed = tokio::time::timeout(Duration::from_secs(5), one_more.read(&mut [0])).await.expect("closed at once");
    assert_eq!(closed.unwrap_or(0), 0);
    let mut other = server.connect(client(&[&cert], &[])).await.expect("a handshake");
    assert!(ask(&mut other).await.ends_with("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_plain_text_or_does_not_trust_the_certificate_is_closed_and_others_are_served() {
    let (server, cert) = server(64).await;
    let mut plain = server.connect_from("127.0.0.1").await;
    plain.write_all(REQUEST).await.expect("some bytes");
    let said = ended(&mut plain).await;
    // An alert of TLS, and nothing of HTTP.
    assert_eq!(said.first(), Some(&21), "{said:?}");
    assert!(server.connect(client(&[], &[])).await.is_err());
    assert!(server.connect(client(&[&cert], &[b"spdy/3"])).await.is_err(), "no protocol that both speak");
    let mut other = server.connect(client(&[&cert], &[])).await.expect("a handshake");
    assert!(ask(&mut other).await.ends_with("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_to_new_connections_while_old_ones_live() {
    let (server, first) = server(64).await;
    let mut old = server.connect(client(&[&first], &[])).await.expect("a handshake");
    assert!(ask(&mut old).await.ends_with("hello"));
    let second = issue(&server.dir);
    let renewed = async {
        let mut looks = tokio::time::interval(Duration::from_millis(200));
        loop {
            looks.tick().await;
            // The old connection would be idle for too long otherwise, as long as nobody knows whose it is.
            assert!(ask(&mut old).await.ends_with("hello"), "the old connection lives");
            let stream = server.connect(client(&[&first, &second], &[])).await.expect("a handshake");
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            if shown.as_ref() == Some(&second) {
                return;
            }
        }
    };
    tokio::time::timeout(RENEWED, renewed).await.expect("the new certificate");
    assert!(ask(&mut old).await.ends_with("hello"), "the old connection lives");
}
