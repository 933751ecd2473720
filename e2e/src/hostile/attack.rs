//! The attacker: one user, one address, on a thread that yields the cores to everybody else, so that what it costs is what the platform
//! spends on it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    thread::JoinHandle,
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, join_all};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{HostileError, HostileOptions, calls, raw, socket, tally::Tally};
use crate::{
    client::{Api, ClientError, Draft},
    target::{Target, User, unique},
};

/// Large messages in the attacker's own conversation, for pages that weigh as much as they can.
const LARGE: usize = 40;
/// Bytes of text in each.
pub(super) const LARGE_BYTES: usize = 60 << 10;
/// How long the attacker prepares; a rate that makes it wait is part of that.
const PREPARE: Duration = Duration::from_secs(90);
/// How long the attacker tries to undo what it did.
const UNDO: Duration = Duration::from_secs(60);
/// Between two looks at whether the attacker's token still holds.
const RENEWAL: Duration = Duration::from_millis(500);
/// Between two logins of the attacker then: a user's logins come back so fast.
const LOGIN: Duration = Duration::from_secs(1);

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Positions and cursors at the edge of 64 bits, and those that nobody gave out.
    Numbers,
    /// Devices, requests, acknowledgements and cursors of what does not exist.
    MadeUp,
    /// Messages as large as they may be, as fast as they are taken.
    Bytes,
    /// Bodies and frames that are broken, deep, of the wrong shape or too large.
    Garbage,
    /// Connections that say nothing, or half a request.
    Silent,
    /// Pages of large messages that nobody reads.
    SlowReaders,
    /// The same on one HTTP/2 connection whose window is 0.
    ZeroWindow,
    /// Frames as fast as the socket takes them.
    Frames,
    /// Logins with a thousand made-up cursors, one after the other.
    Logins,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Numbers,
        Self::MadeUp,
        Self::Bytes,
        Self::Garbage,
        Self::Silent,
        Self::SlowReaders,
        Self::ZeroWindow,
        Self::Frames,
        Self::Logins,
    ];

    /// Its name in the tally.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Numbers => "numbers",
            Self::MadeUp => "made-up",
            Self::Bytes => "bytes",
            Self::Garbage => "garbage",
            Self::Silent => "silent",
            Self::SlowReaders => "slow readers",
            Self::ZeroWindow => "zero window",
            Self::Frames => "frames",
            Self::Logins => "logins",
        }
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who attacks.
pub(super) struct Attacker {
    pub(super) user_id: String,
    /// The calls of that user, with the newest token.
    current: Mutex<Api>,
    /// Another user of the attacker's, so that there is somebody to write to.
    pub(super) accomplice: User,
    /// Their conversation, full of large messages.
    pub(super) conversation: String,
    pub(super) silent: usize,
    /// Where the platform is.
    pub(super) api: SocketAddr,
    pub(super) ws: SocketAddr,
    target: Target,
    from: IpAddr,
    tally: Tally,
}

impl Attacker {
    /// Makes the users and their conversation.
    pub(super) async fn new(target: &Target, options: &HostileOptions) -> Result<Self, HostileError> {
        let http = Api::from_address(&target.api, options.from)?;
        let make = async |name: &str| {
            let made = target.user_on(&unique(name), "d1", "ios").await?;
            Ok::<_, HostileError>(User { api: http.with_token(made.api.token()), id: made.id })
        };
        let (user, accomplice) = (make("mallory").await?, make("mallet").await?);
        let mut conversation = String::new();
        let text = "x".repeat(LARGE_BYTES);
        for _ in 0..LARGE {
            let sent = user.api.send_until_stored(&Draft::to(&accomplice.id, &text), PREPARE).await?;
            conversation = sent.conversation_id;
        }
        Ok(Self {
            user_id: user.id,
            current: Mutex::new(user.api),
            accomplice,
            conversation,
            silent: options.silent,
            api: address(&target.api)?,
            ws: address(&target.ws)?,
            target: target.clone(),
            from: options.from,
            tally: Tally::default(),
        })
    }

    /// The attacker's calls, with the newest token.
    pub(super) fn api(&self) -> Api {
        self.current.lock().clone()
    }

    /// Gets a new token whenever the platform takes the old one no longer, as a device does that logs in again: who deletes hundreds of
    /// devices revokes his own tokens in the end, and attacks with a dead one cost the platform nothing.
    pub(super) async fn renew(&self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let refused = match self.api().raw(reqwest::Method::GET, "/v1/me", None).await {
                Ok(answer) => answer.status == 401,
                Err(_) => false,
            };
            if !refused {
                continue;
            }
            match self.target.user_on(&self.user_id, "d1", "ios").await {
                Ok(renewed) => {
                    let mut current = self.current.lock();
                    *current = current.with_token(renewed.api.token());
                    self.tally.count("tokens", "renewed");
                }
                Err(error) => tracing::warn!(%error, "the attacker gets no new token"),
            }
        }
    }

    /// Counts an answer.
    pub(super) fn count(&self, attack: Attack, answer: impl Into<String>) {
        self.tally.count(attack.name(), answer);
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// A connection from the attacker's address.
    pub(super) async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        match tokio::time::timeout(Duration::from_secs(2), socket.connect(to)).await {
            Ok(connected) => connected,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Attacks until `stop`, on a thread of its own that the kernel serves last.
    pub(super) fn start(self, attacks: Vec<Attack>, stop: CancellationToken) -> std::io::Result<JoinHandle<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("attacker".to_owned()).spawn(move || {
            // Zero names this thread alone.
            if let Err(error) = rustix::process::setpriority_process(None, 19) {
                tracing::warn!(%error, "the attacker takes the cores like everybody else");
            }
            runtime.block_on(async {
                let under_way = join_all(attacks.iter().map(|attack| self.attack(*attack, &stop)));
                tokio::join!(under_way, stop.run_until_cancelled(self.renew()));
            });
            self
        })
    }

    fn attack<'a>(&'a self, attack: Attack, stop: &'a CancellationToken) -> BoxFuture<'a, ()> {
        let endless = match attack {
            Attack::Numbers => calls::numbers(self).boxed(),
            Attack::MadeUp => calls::made_up(self).boxed(),
            Attack::Bytes => calls::bytes(self).boxed(),
            Attack::Garbage => calls::garbage(self).boxed(),
            Attack::Silent => raw::silent(self).boxed(),
            Attack::SlowReaders => raw::slow_readers(self).boxed(),
            Attack::ZeroWindow => raw::zero_window(self).boxed(),
            Attack::Frames => socket::frames(self).boxed(),
            Attack::Logins => socket::logins(self).boxed(),
        };
        async move {
            // None: the end was asked for, which is the only end there is.
            stop.run_until_cancelled(endless).await;
        }
        .boxed()
    }

    /// Every bound that the attacker ran into can be left again: a new device gets in, lists are answered, a message is stored.
    pub(super) async fn can_get_out(&self) -> Result<(), HostileError> {
        let device = self.target.user_on(&self.user_id, "a-new-device", "web").await?;
        let calm = || async {
            device.api.conversations(50, None).await?;
            device.api.sync(&std::collections::BTreeMap::new(), 10).await?;
            device.api.send(&Draft::to(&self.accomplice.id, "sorry")).await
        };
        crate::client::http::retried(UNDO, calm).await?;
        // The logins of this user are used up when the attacks end.
        crate::wait::await_every(LOGIN, "the new device to log in", UNDO, || async {
            let options = crate::client::DeviceOptions::default();
            self.target.device(&device, options).await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        Ok(())
    }
}

fn address(url: &str) -> Result<SocketAddr, ClientError> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    host.replace("localhost", "127.0.0.1").parse().map_err(|e| ClientError::Contract(format!("{url}: {e}")))
}
