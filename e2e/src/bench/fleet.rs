//! Many users on sockets, as light as can be: each frame is looked at for what is counted and no more, acknowledgements are coalesced.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kith_contract::{
    frames::{
        self,
        server::{FrameKind, Glance},
    },
    kinds::MessageType,
    message::SendMessage,
};
use parking_lot::RwLock;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{BenchError, Phase};
use crate::{
    client::{
        Connection,
        connection::{Closed, Reader, TokenIn, Writer},
        frame::ClientFrame,
        model::Position,
    },
    target::{Target, TargetError, User, unique},
};

/// Users made at once.
const PARALLEL: usize = 16;
/// Sends that may wait in a user's own queue.
const QUEUE: usize = 1_024;
/// How often a user acknowledges what it was shown.
const ACK_EVERY: Duration = Duration::from_millis(200);
/// Frames written with one flush.
const BATCH: usize = 64;

/// Phases by number; what arrives late is counted where it belongs.
type Phases = Arc<RwLock<Vec<Phase>>>;

/// One send.
struct Job {
    phase: usize,
    due: Instant,
    n: u64,
    to: Arc<str>,
}

struct Member {
    user: User,
    id: Arc<str>,
    jobs: mpsc::Sender<Job>,
    task: JoinHandle<()>,
}

/// Connected users.
pub(super) struct Fleet {
    members: Vec<Member>,
    phases: Phases,
    origin: Instant,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &self.members {
            member.task.abort();
        }
    }
}

impl Fleet {
    /// Makes and connects `count` users who send texts of `payload` bytes.
    pub(super) async fn connect(target: &Target, count: usize, payload: usize) -> Result<Self, BenchError> {
        let phases = Phases::default();
        let origin = Instant::now();
        let text: Arc<str> = "x".repeat(payload.max(1)).into();
        let members = stream::iter(0..count)
            .map(|n| {
                let (phases, text) = (phases.clone(), text.clone());
                async move {
                    let user = target.user_on(&unique(&format!("u{n}")), "d1", "ios").await?;
                    let (api, place) = (&user.api, TokenIn::Header);
                    let connection =
                        Connection::open_trusting(api.trust(), &target.ws, api.token(), place, None).await?;
                    let (jobs, orders) = mpsc::channel(QUEUE);
                    let member = Task { phases, origin, text, me: user.id.clone(), acks: HashMap::new() };
                    let task = tokio::spawn(member.run(connection, orders));
                    Ok::<_, TargetError>(Member { id: user.id.as_str().into(), user, jobs, task })
                }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(Self { members, phases, origin })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// A user's HTTP calls.
    pub(super) fn user(&self, at: usize) -> &User {
        &self.members[at].user
    }

    /// Begins a phase; the answer says how to send in it.
    pub(super) fn begin(&self, lasts: Duration) -> (Phase, Outgoing) {
        let phase = Phase::begin(lasts);
        let mut phases = self.phases.write();
        phases.push(phase.clone());
        let ways = self.members.iter().map(|m| (m.id.clone(), m.jobs.clone())).collect();
        (phase.clone(), Outgoing { phase, number: phases.len() - 1, ways })
    }

    /// Connections that have ended: none should.
    pub(super) fn ended(&self) -> usize {
        self.members.iter().filter(|m| m.task.is_finished()).count()
    }

    /// Waits until everything that was sent is answered and everything acknowledged is delivered.
    pub(super) async fn drain(&self, phase: &Phase, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            let stats = phase.stats();
            if (stats.open() == 0 && stats.delivered >= stats.acked) || Instant::now() >= end {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The moment from which due times are counted in ids.
    pub(super) fn origin(&self) -> Instant {
        self.origin
    }
}

/// How a phase sends.
#[derive(Clone)]
pub(super) struct Outgoing {
    phase: Phase,
    number: usize,
    ways: Vec<(Arc<str>, mpsc::Sender<Job>)>,
}

impl Outgoing {
    /// One user writes to another.
    pub(super) fn send(&self, from: usize, to: usize, n: u64, due: Instant) {
        self.phase.due();
        let job = Job { phase: self.number, due, n, to: self.ways[to].0.clone() };
        if self.ways[from].1.try_send(job).is_err() {
            self.phase.stuck();
        }
    }

    /// The number that ids of this phase carry.
    pub(super) fn number(&self) -> usize {
        self.number
    }
}

struct Task {
    phases: Phases,
    origin: Instant,
    text: Arc<str>,
    me: String,
    acks: HashMap<String, u64>,
}

/// `phase-nanoseconds-number`: who sees the id knows when the message was due.
pub(super) fn message_id(phase: usize, origin: Instant, due: Instant, n: u64) -> String {
    format!("{phase}-{}-{n}", due.saturating_duration_since(origin).as_nanos())
}

fn read_id(origin: Instant, id: &str) -> Option<(usize, Instant)> {
    let mut parts = id.split('-');
    let phase = parts.next()?.parse().ok()?;
    let nanos = parts.next()?.parse().ok()?;
    Some((phase, origin + Duration::from_nanos(nanos)))
}

impl Task {
    async fn run(mut self, connection: Connection, mut orders: mpsc::Receiver<Job>) {
        let Connection { mut reader, mut writer, .. } = connection;
        let mut tick = tokio::time::interval(ACK_EVERY);
        let mut ping = tokio::time::interval(Duration::from_secs(10));
        loop {
            let step = tokio::select! {
                frame = next(&mut reader) => frame.map(|text| self.look(&text)),
                job = orders.recv() => match job {
                    Some(job) => self.send(job, &mut orders, &mut writer).await,
                    None => return,
                },
                _ = tick.tick() => self.ack(&mut writer).await,
                _ = ping.tick() => writer.send(&ClientFrame::Ping).await,
            };
            if let Err(closed) = step {
                tracing::warn!(user = %self.me, %closed, "a socket of the load has ended");
                return;
            }
        }
    }

    async fn send(&self, job: Job, orders: &mut mpsc::Receiver<Job>, writer: &mut Writer) -> Result<(), Closed> {
        let mut texts = vec![self.frame(&job)];
        while texts.len() < BATCH
            && let Ok(job) = orders.try_recv()
        {
            texts.push(self.frame(&job));
        }
        writer.send_texts(texts).await
    }

    fn frame(&self, job: &Job) -> String {
        let id = message_id(job.phase, self.origin, job.due, job.n);
        let message = SendMessage {
            client_msg_id: id.clone(),
            conversation_id: None,
            recipient_id: Some(job.to.to_string()),
            kind: MessageType::Text.to_string(),
            content: BTreeMap::from([("text", &*self.text)]),
            mentions: Vec::new(),
            ext: BTreeMap::new(),
        };
        // Strings always serialize.
        serde_json::to_string(&frames::ClientFrame::Send { id, message }).unwrap_or_default()
    }

    fn phase(&self, id: &str) -> Option<(Phase, Instant)> {
        let (phase, due) = read_id(self.origin, id)?;
        Some((self.phases.read().get(phase)?.clone(), due))
    }

    fn look(&mut self, text: &str) {
        let Ok(frame) = serde_json::from_str::<Glance<'_>>(text) else {
            tracing::warn!(%text, "a frame outside the contract");
            return;
        };
        let own = frame.id.as_deref().and_then(|id| self.phase(id));
        match (frame.kind, own) {
            (FrameKind::Sent, Some((phase, due))) => phase.acked(due),
            (FrameKind::Error, Some((phase, _))) => phase.refused(frame.code.as_deref().unwrap_or("?")),
            (FrameKind::Messages, _) => {
                for message in &frame.messages {
                    let known = self.acks.entry(message.conversation_id.clone().into_owned()).or_insert(0);
                    *known = message.seq.max(*known);
                    if message.sender_id != self.me
                        && let Some((phase, due)) = self.phase(&message.client_msg_id)
                    {
                        phase.delivered(due);
                    }
                }
            }
            _ => {}
        }
    }

    async fn ack(&mut self, writer: &mut Writer) -> Result<(), Closed> {
        if self.acks.is_empty() {
            return Ok(());
        }
        let acks =
            self.acks.drain().take(100).map(|(conversation_id, seq)| Position { conversation_id, seq }).collect();
        writer.send(&ClientFrame::Ack { acks }).await
    }
}

async fn next(reader: &mut Reader) -> Result<tokio_tungstenite::tungstenite::Utf8Bytes, Closed> {
    reader.next_text().await
}
