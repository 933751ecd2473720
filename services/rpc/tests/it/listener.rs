//! Listeners against peers that say nothing, or too little: through real sockets.
use std::time::Duration;

use axum::{
    Extension, Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use kith_kit::shutdown::CancellationToken;
use kith_rpc::{
    admission::{Seat, Seats},
    http::{Bounds, serve},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
/// Above what a connection may take that says nothing.
const SOON: Duration = Duration::from_secs(20);

struct Server {
    port: u16,
    _end: tokio_util::sync::DropGuard,
}

/// A server whose handler knows its caller where the path is `/known`.
async fn server(unknown_per_address: usize) -> Server {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let known = |Extension(seat): Extension<std::sync::Arc<Seat>>| async move {
        seat.known_as("alice");
        "hello alice"
    };
    let app = Router::new().route("/", get(|| async { "hello" })).route("/known", get(known));
    let app = app.route("/small", post(|_: Bytes| async { "small" }).layer(DefaultBodyLimit::max(1_024)));
    let seats = Seats { all: 64, unknown_per_address, per_caller: 8 };
    let bounds = Bounds { seats, idle: Duration::from_secs(90), grace: Duration::from_secs(1) };
    let end = CancellationToken::new();
    tokio::spawn(serve(listener, None, app, bounds, end.clone()));
    Server { port, _end: end.drop_guard() }
}

impl Server {
    async fn connect_from(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{from}:0").parse().expect("an address")).expect("an address of this machine");
        socket.connect(([127, 0, 0, 1], self.port).into()).await.expect("a connection")
    }
}

/// Asks for a path and reads the first bytes of the answer; nothing when the connection is over.
async fn ask(socket: &mut TcpStream, request: &[u8]) -> usize {
    let mut answer = [0; 1_024];
    if socket.write_all(request).await.is_err() {
        return 0;
    }
    tokio::time::timeout(SOON, socket.read(&mut answer)).await.expect("an answer or an end").unwrap_or(0)
}

/// Waits for the server to end a connection.
async fn ended(mut socket: TcpStream) -> bool {
    let read = async { while socket.read(&mut [0; 1_024]).await.is_ok_and(|n| n > 0) {} };
    tokio::time::timeout(SOON, read).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_or_half_a_request_are_closed_within_seconds() {
    let server = server(64).await;
    let openings: [&[u8]; 6] =
        [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HT", REQUEST];
    let mut held = Vec::new();
    for opening in openings {
        let mut socket = server.connect_from("127.0.0.1").await;
        socket.write_all(opening).await.unwrap();
        held.push(socket);
    }
    for (socket, opening) in held.into_iter().zip(openings) {
        assert!(ended(socket).await, "{:?} still stands", String::from_utf8_lossy(opening));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_of_one_address_take_no_place_of_others() {
    let server = server(3).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(server.connect_from("127.0.0.66").await);
    }
    let mut one_more = server.connect_from("127.0.0.66").await;
    assert_eq!(ask(&mut one_more, REQUEST).await, 0, "closed at once");
    let mut other = server.connect_from("127.0.0.67").await;
    assert!(ask(&mut other, REQUEST).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_is_known_waits_between_requests_and_makes_room_for_others() {
    let server = server(1).await;
    let mut known = server.connect_from("127.0.0.1").await;
    let request: &[u8] = b"GET /known HTTP/1.1\r\nHost: x\r\n\r\n";
    assert!(ask(&mut known, request).await > 0);
    let unknown = server.connect_from("127.0.0.1").await;
    assert!(ended(unknown).await, "one that says nothing ends");
    assert!(ask(&mut known, request).await > 0, "one that is known is still served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_a_body_that_is_too_long_reads_the_refusal() {
    let server = server(64).await;
    let body = vec![b'x'; 8 << 20];
    for _ in 0..20 {
        let mut socket = server.connect_from("127.0.0.1").await;
        let head = format!("POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await.unwrap();
        // All of it is sent before a byte of the answer is read, as simple clients do.
        socket.write_all(&body).await.expect("the rest of the body is taken");
        let mut answer = String::new();
        tokio::time::timeout(SOON, socket.read_to_string(&mut answer)).await.expect("an end").expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}
