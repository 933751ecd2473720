//! The first message: two users, one on a WebSocket, the other one over HTTP, and the milliseconds in between.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    client::{DeviceOptions, Draft},
    target::{Target, TargetError},
    wait::TimedOut,
};

/// A platform that has just come up may need a moment.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why the message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// A call.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A send.
    #[error("sending: {0}")]
    Send(#[from] crate::client::ClientError),
    /// The other side.
    #[error(transparent)]
    Delivery(#[from] TimedOut),
}

/// How long each part took.
#[derive(Debug, Clone, Copy)]
pub struct Smoke {
    /// Both tokens and users.
    pub tokens: Duration,
    /// The WebSocket up to its hello.
    pub connect: Duration,
    /// From the send to its acknowledgement.
    pub ack: Duration,
    /// From the send to the other side's socket.
    pub delivery: Duration,
    /// The message's place.
    pub seq: u64,
}

impl fmt::Display for Smoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
        write!(
            f,
            "alice → bob, seq {}: stored in {:.1} ms, on bob's socket in {:.1} ms (tokens {:.0} ms, connect {:.0} ms)",
            self.seq,
            ms(self.ack),
            ms(self.delivery),
            ms(self.tokens),
            ms(self.connect),
        )
    }
}

/// Sends one message from `from` to `to` and waits until it is on the socket.
pub async fn smoke(target: &Target, from: &str, to: &str) -> Result<Smoke, SmokeError> {
    let begin = Instant::now();
    let alice = target.user_on(from, "smoke-http", "ios").await?;
    let bob = target.user_on(to, "smoke-ws", "web").await?;
    let tokens = begin.elapsed();
    let begin = Instant::now();
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let connect = begin.elapsed();
    let draft = Draft::to(&bob.id, "Hello from Kith");
    let begin = Instant::now();
    let sent = alice.api.send_until_stored(&draft, DEADLINE).await?;
    let ack = begin.elapsed();
    device
        .until("the message on the other side's socket", DEADLINE, |inbox| {
            inbox.get(&sent.conversation_id, sent.seq).filter(|m| m.message_id == sent.message_id).map(drop)
        })
        .await?;
    let delivery = begin.elapsed();
    device.stop().await;
    Ok(Smoke { tokens, connect, ack, delivery, seq: sent.seq })
}
