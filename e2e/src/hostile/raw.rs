//! Attacks below the HTTP API: connections that say nothing, half a request, or take nothing.

use std::time::{Duration, Instant};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::MissedTickBehavior,
};

use super::attack::{Attack, Attacker};

/// Connections that are opened at once.
const OPENING: usize = 32;
/// A silent connection that stands for so long was not noticed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections on which large pages are asked for and not read, and requests on each.
const READERS: usize = 32;
const PAGES: usize = 8;
/// Streams of the HTTP/2 connection without a window.
const STREAMS: usize = 100;
/// How long one such round lasts, unless the platform ends it.
const ROUND: Duration = Duration::from_secs(60);
/// Between two rounds: a refused connection is not tried a million times a second.
const PAUSE: Duration = Duration::from_millis(20);

/// What is said on a silent connection before nothing more is.
const OPENINGS: [&[u8]; 6] = [
    b"",
    b"G",
    b"GET /v1/me HTTP/1.1\r\nHost: x\r\n",
    b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{",
];

/// Between two new silent connections. An address has some 28,000 ports and each is taken for a minute or two after its connection: who opens
/// more exhausts the machine that attacker, platform and the others share here, and nobody's connections are made any more.
const OPENS_EVERY: Duration = Duration::from_millis(10);

/// Holds as many silent connections to each door as it can.
pub(super) async fn silent(attacker: &Attacker) {
    let mut pace = tokio::time::interval(OPENS_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let pace = &tokio::sync::Mutex::new(pace);
    let hold = |n: usize| async move {
        let to = if n.is_multiple_of(2) { attacker.api } else { attacker.ws };
        loop {
            pace.lock().await.tick().await;
            let answer = match attacker.connect(to).await {
                Err(_) => "not connected".to_owned(),
                Ok(socket) => stay_silent(socket, OPENINGS[(n / 2) % OPENINGS.len()]).await,
            };
            attacker.count(Attack::Silent, answer);
            tokio::time::sleep(PAUSE).await;
        }
    };
    let mut held = FuturesUnordered::new();
    for n in 0..attacker.silent * 2 {
        held.push(hold(n));
        if n.is_multiple_of(OPENING) {
            // Lets those before get their turn; none of them ever ends.
            let _ = tokio::time::timeout(PAUSE, held.next()).await;
        }
    }
    held.next().await;
}

/// How long it took until the server had enough.
async fn stay_silent(mut socket: TcpStream, opening: &[u8]) -> String {
    if socket.write_all(opening).await.is_err() {
        return "cut off at once".to_owned();
    }
    let begun = Instant::now();
    let mut answer = [0; 512];
    loop {
        match tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await {
            Err(_) => return "NEVER ENDED".to_owned(),
            Ok(Ok(0) | Err(_)) => {
                let seconds = begun.elapsed().as_secs();
                let within = [2, 5, 10, 20, 40, 80].into_iter().find(|bound| seconds < *bound).unwrap_or(120);
                return format!("ended within {within} s");
            }
            Ok(Ok(_)) => {}
        }
    }
}

/// Asks for the largest pages there are and reads none of them.
pub(super) async fn slow_readers(attacker: &Attacker) {
    let all = || {
        let (conversation, api) = (&attacker.conversation, attacker.api());
        format!(
            "GET /v1/conversations/{conversation}/messages?limit=200 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
            api.token()
        )
        .repeat(PAGES)
    };
    let reader = || async {
        loop {
            let answer = match attacker.connect(attacker.api).await {
                Err(_) => "not connected".to_owned(),
                Ok(mut socket) => match socket.write_all(all().as_bytes()).await {
                    Err(_) => "cut off at once".to_owned(),
                    Ok(()) => cut_off(&socket).await,
                },
            };
            attacker.count(Attack::SlowReaders, answer);
            tokio::time::sleep(PAUSE).await;
        }
    };
    join_all((0..READERS).map(|_| reader())).await;
}

/// Waits, without reading, until the peer is gone. A reset is all that can be seen without reading.
async fn cut_off(socket: &TcpStream) -> String {
    let begun = Instant::now();
    while begun.elapsed() < ROUND {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // A first byte that is there says nothing; an end or a reset does.
        match socket.peek(&mut [0; 1]).await {
            Ok(0) => return "ended".to_owned(),
            Ok(_) => {}
            Err(_) => return "cut off".to_owned(),
        }
    }
    "read nothing for a minute".to_owned()
}

/// The same on one connection of HTTP/2 that never opens its window.
pub(super) async fn zero_window(attacker: &Attacker) {
    loop {
        let answer = match tokio::time::timeout(ROUND, without_window(attacker)).await {
            Err(_) => "stood for a minute".to_owned(),
            Ok(Ok(refused)) => format!("ended, {refused} of {STREAMS} refused"),
            Ok(Err(error)) if error.is_io() || error.is_go_away() => "cut off".to_owned(),
            Ok(Err(_)) => "refused".to_owned(),
        };
        attacker.count(Attack::ZeroWindow, answer);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Answers how many of the streams were refused once the connection is over.
async fn without_window(attacker: &Attacker) -> Result<usize, h2::Error> {
    let socket = attacker.connect(attacker.api).await.map_err(|_| h2::Reason::REFUSED_STREAM)?;
    let (mut client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(socket).await?;
    let ask = async {
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            client = client.ready().await?;
            let request = http::Request::builder()
                .uri(format!("http://x/v1/conversations/{}/messages?limit=200", attacker.conversation))
                .header("authorization", format!("Bearer {}", attacker.api().token()))
                .body(())
                .map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
            answers.push(client.send_request(request, true)?.0);
        }
        let answers = join_all(answers).await;
        let refused = answers.iter().filter(|a| a.as_ref().is_ok_and(|a| a.status() == 429)).count();
        // The bodies are held, and none of them is read.
        std::future::pending::<()>().await;
        drop(answers);
        Ok::<_, h2::Error>(refused)
    };
    tokio::select! {
        ended = connection => ended.map(|()| 0),
        asked = ask => asked,
    }
}

/// Requests that are none, on connections of their own.
pub(super) async fn broken_requests(attacker: &Attacker) {
    let requests: [Vec<u8>; 5] = [
        b"GET /v1/me HTTP/9.9\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec(), b"X: y\r\n".repeat(20_000)].concat(),
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), vec![0xff; 4_096]].concat(),
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
    ];
    for n in 0_usize.. {
        let to = if n.is_multiple_of(2) { attacker.api } else { attacker.ws };
        let answer = match attacker.connect(to).await {
            Err(_) => "not connected",
            Ok(mut socket) => {
                // Whether it is written or read to the end does not matter: the server has to get over it.
                let _ = socket.write_all(&requests[n % requests.len()]).await;
                let mut answer = Vec::new();
                match tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await {
                    Ok(_) => "broken ended",
                    Err(_) => "BROKEN NEVER ENDED",
                }
            }
        };
        attacker.count(Attack::Garbage, answer);
        tokio::time::sleep(PAUSE).await;
    }
}
