//! The load client: conversations in which both sides send at a steady rate, retry as the contract says, and write every promise into
//! the ledger; afterwards everything is read back from history, from each device and from the event log.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kith_kit::backoff::Backoff;
use rand::RngExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{ClientError, Device, DeviceOptions, Draft, Message},
    kafka::LogError,
    ledger::{Ledger, Report},
    target::{Target, TargetError, User, unique},
};

/// Calls at once while users are made and histories are read.
const PARALLEL: usize = 16;
/// A message that is not stored after so long is given up: longer than any stated refusal.
const GIVE_UP: Duration = Duration::from_secs(60);
/// First pause before a retry; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(400);

/// How sends travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// POST /v1/messages.
    #[default]
    Http,
    /// The `send` frame.
    Socket,
}

/// What load to make.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Direct conversations; each has two users.
    pub pairs: usize,
    /// Further users who are connected and say nothing: what they are shown is not theirs.
    pub bystanders: usize,
    /// Messages per second over all of them.
    pub rate: f64,
    /// Bytes of text.
    pub payload: usize,
    /// How.
    pub via: Via,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { pairs: 10, bystanders: 0, rate: 50.0, payload: 64, via: Via::Http }
    }
}

struct Side {
    user: User,
    device: Arc<Device>,
}

struct Pair {
    id: String,
    sides: [Side; 2],
}

/// A running load.
pub struct Load {
    target: Target,
    ledger: Arc<Ledger>,
    pairs: Vec<Pair>,
    bystanders: Vec<Side>,
    senders: JoinSet<()>,
    stop: CancellationToken,
}

/// Why a load could not start or be checked.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Users, devices.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Reading history.
    #[error("reading back: {0}")]
    Client(#[from] ClientError),
    /// The event log.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Load {
    /// Makes the users, connects their devices and starts to send.
    pub async fn start(target: &Target, options: LoadOptions) -> Result<Self, LoadError> {
        let ledger = Arc::new(Ledger::default());
        let pairs: Vec<Pair> =
            stream::iter(0..options.pairs).map(|_| make_pair(target)).buffer_unordered(PARALLEL).try_collect().await?;
        let bystanders: Vec<Side> = stream::iter(0..options.bystanders)
            .map(|_| make_side(target))
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let stop = CancellationToken::new();
        let mut senders = JoinSet::new();
        let every = Duration::from_secs_f64(2.0 * options.pairs as f64 / options.rate.max(0.001));
        for pair in &pairs {
            for (at, side) in pair.sides.iter().enumerate() {
                let sender = Sender {
                    user: side.user.clone(),
                    device: side.device.clone(),
                    peer: pair.sides[1 - at].user.id.clone(),
                    conversation: pair.id.clone(),
                    ledger: ledger.clone(),
                    via: options.via,
                    payload: options.payload,
                };
                senders.spawn(sender.run(every, stop.clone()));
            }
        }
        Ok(Self { target: target.clone(), ledger, pairs, bystanders, senders, stop })
    }

    /// The record so far.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Waits until so many more messages were acknowledged; proves that the platform serves.
    pub async fn progress(&self, messages: u64, deadline: Duration) -> Result<(), crate::wait::TimedOut> {
        let wanted = self.ledger.count() + messages;
        crate::wait::await_until("acknowledged messages", deadline, || async {
            let now = self.ledger.count();
            if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
        })
        .await
    }

    /// Waits until every conversation has taken a message that was acknowledged from now on: no partition is left closed.
    pub async fn all_serve(&self, deadline: Duration) -> Result<(), crate::wait::TimedOut> {
        let now = Instant::now();
        crate::wait::await_until("every conversation to take a message", deadline, || async {
            let shut: Vec<&str> =
                self.pairs.iter().map(|p| p.id.as_str()).filter(|id| !self.ledger.took_since(id, now)).collect();
            if shut.is_empty() { Ok(()) } else { Err(format!("{} do not, first {}", shut.len(), shut[0])) }
        })
        .await
    }

    /// Stops sending, reads everything back and compares, allowing `deadline` for the last deliveries and events.
    pub async fn finish(mut self, deadline: Duration) -> Result<Report, LoadError> {
        self.stop.cancel();
        while self.senders.join_next().await.is_some() {}
        let end = Instant::now() + deadline;
        let histories: Vec<(&Pair, Vec<Message>)> = stream::iter(&self.pairs)
            .map(|pair| async move {
                let left = end.saturating_duration_since(Instant::now());
                Ok::<_, ClientError>((pair, pair.sides[0].user.api.whole_history(&pair.id, left).await?))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        for (pair, history) in &histories {
            self.ledger.check_history(&pair.id, history);
            self.check_delivery(pair, history, end).await;
        }
        for bystander in &self.bystanders {
            bystander.device.inbox(|inbox| self.ledger.check_bystander(&bystander.user.id, inbox));
        }
        self.check_log(&histories, end).await?;
        Ok(self.ledger.report())
    }

    async fn check_delivery(&self, pair: &Pair, history: &[Message], end: Instant) {
        for side in &pair.sides {
            let left = end.saturating_duration_since(Instant::now());
            let others: Vec<u64> = history.iter().filter(|m| m.sender_id != side.user.id).map(|m| m.seq).collect();
            let all = side.device.until("every message", left, |inbox| {
                others.iter().all(|seq| inbox.get(&pair.id, *seq).is_some()).then_some(())
            });
            if let Err(missing) = all.await {
                tracing::warn!(conversation = %pair.id, user = %side.user.id, %missing, "not everything was shown");
            }
            side.device.inbox(|inbox| self.ledger.check_delivery(&side.user.id, inbox, &pair.id, history));
        }
    }

    /// The log may be a moment behind: it is read again until nothing differs or the time is up.
    async fn check_log(&self, histories: &[(&Pair, Vec<Message>)], end: Instant) -> Result<(), LogError> {
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(10));
            let replay = self.target.replay(left).await?;
            let mut found: Vec<String> =
                histories.iter().flat_map(|(pair, history)| replay.differences(&pair.id, history)).collect();
            found.extend(replay.faults.iter().cloned());
            if found.is_empty() || Instant::now() >= end {
                self.ledger.log_differences(&found);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn make_pair(target: &Target) -> Result<Pair, TargetError> {
    let sides = [make_side(target).await?, make_side(target).await?];
    let id = kith_contract::ids::direct_conversation_id(&sides[0].user.id, &sides[1].user.id)
        .map_err(|e| ClientError::Contract(e.to_string()))?;
    Ok(Pair { id, sides })
}

async fn make_side(target: &Target) -> Result<Side, TargetError> {
    let user = target.new_user("load").await?;
    let device = Arc::new(target.device(&user, DeviceOptions::default()).await?);
    Ok(Side { user, device })
}

/// One side of a conversation: sends, waits for the answer, sends the next.
struct Sender {
    user: User,
    device: Arc<Device>,
    peer: String,
    conversation: String,
    ledger: Arc<Ledger>,
    via: Via,
    payload: usize,
}

impl Sender {
    /// Open loop: what is late is sent at once, and its latency counts from when it was due.
    async fn run(self, every: Duration, stop: CancellationToken) {
        let mut due = Instant::now() + every.mul_f64(rand::rng().random_range(0.0..1.0));
        let text = "x".repeat(self.payload.max(1));
        while stop.run_until_cancelled(tokio::time::sleep_until(due.into())).await.is_some() {
            self.send(&Draft::to(&self.peer, &text).with_id(unique("m")), due).await;
            due += every;
        }
    }

    async fn send(&self, draft: &Draft, due: Instant) {
        let end = Instant::now() + GIVE_UP;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        loop {
            let result = match self.via {
                Via::Http => self.user.api.send(draft).await,
                Via::Socket => self.device.send(draft).await,
            };
            match result {
                Ok(sent) => return self.ledger.acknowledged(&self.user.id, &draft.client_msg_id, &sent, due.elapsed()),
                Err(error) => {
                    self.ledger.failed_try(&self.conversation, error.code().unwrap_or("no answer"));
                    if !error.is_retryable() || Instant::now() >= end {
                        tracing::warn!(%error, conversation = %self.conversation, "given up");
                        return self.ledger.gave_up(&draft.client_msg_id);
                    }
                    tokio::time::sleep(backoff.after_refusal(error.retry_after())).await;
                }
            }
        }
    }
}
