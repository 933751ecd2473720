//! One primary: the writer that commits to it in groups, and the connection for reads.
//!
//! The writer drains its queue into one pipeline that ends with WAIT. Nothing is answered before the whole group is on the primary's disk
//! and on enough replicas. A refusal concerns its own call; a short WAIT or a lost connection leaves the outcome of the group open, so the
//! claims of all its partitions end and are made again: what the store holds then decides.

use std::{sync::Arc, time::Duration};

use kith_kit::valkey::{Connection, Connector, ValkeyError};
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{
    hub::Hub,
    partition::{Claim, Partition, Pending},
    topology::Primary,
    wire::{self, Call, Emits, Verdict},
};
use crate::{engine::EngineError, jitter::jittered};

/// Calls waiting for a primary; beyond it callers are told to come back.
const QUEUE: usize = 8_192;
/// Calls in one group, and the bytes at which a group is full.
const GROUP: usize = 512;
const GROUP_BYTES: usize = 1 << 20;
/// The least time from one group to the next: what comes in meanwhile shares its disk writes and its round trip to the replicas. A call that
/// finds the writer at rest does not wait.
const SPACING: Duration = Duration::from_millis(2);
/// How long replicas may take to acknowledge a group.
const WAIT_MS: u64 = 1_000;
/// How long a group may take in all; longer than WAIT, so that a slow replica is told from a silent primary.
const ANSWER: Duration = Duration::from_millis(2_500);
const READ_ANSWER: Duration = Duration::from_secs(2);
/// A group that is not answered after this, and after three times what groups take, gets a nudge, and again, a few times. On a busy machine
/// all groups take longer, and nudges would only add to what it has to do.
const NUDGE: Duration = Duration::from_millis(5);
const NUDGES: usize = 3;
/// Between two looks at replicas that are behind.
const SETTLE: Duration = Duration::from_millis(50);
/// After a connection that failed.
const PAUSE: Duration = Duration::from_millis(50);
pub(super) const FULL: EngineError =
    EngineError::Exhausted("the storage engine's queue is full", Duration::from_millis(250));

/// One call to the engine.
pub(super) struct Item {
    pub(super) partition: Arc<Partition>,
    /// None: the call makes a claim.
    pub(super) claim: Option<Arc<Claim>>,
    pub(super) command: Cmd,
    pub(super) bytes: usize,
    pub(super) emits: Emits,
    pub(super) end: Instant,
    pub(super) done: oneshot::Sender<Result<Vec<Value>, EngineError>>,
}

/// A primary of the engine.
pub(crate) struct Node {
    pub(super) primary: Primary,
    queue: mpsc::Sender<Item>,
    reader: Mutex<Option<Connection>>,
    connector: Connector,
}

impl Node {
    /// Starts the writer; it ends when the last handle is dropped.
    pub(super) fn start(primary: Primary, hub: &Arc<Hub>) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE);
        let connector = hub.connector.clone();
        let writer = Writer {
            primary: primary.clone(),
            connector: connector.clone(),
            connection: None,
            nudger: None,
            usual: Duration::ZERO,
            hub: hub.clone(),
            unsettled: Vec::new(),
        };
        tokio::spawn(writer.run(items));
        Arc::new(Self { primary, queue, reader: Mutex::new(None), connector })
    }

    /// Puts a call into the queue; a full queue refuses at once.
    pub(super) fn submit(&self, item: Item) -> Result<(), EngineError> {
        self.queue.try_send(item).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => FULL,
            mpsc::error::TrySendError::Closed(_) => {
                EngineError::Unavailable("the storage engine's node is gone".into())
            }
        })
    }

    /// Waits for a place in the queue: for claims, which no caller bounds.
    pub(super) async fn submit_patiently(&self, item: Item) -> Result<(), EngineError> {
        let gone = |_| EngineError::Unavailable("the storage engine's node is gone".into());
        self.queue.send(item).await.map_err(gone)
    }

    /// The connection for reads, opened when there is none.
    pub(super) async fn reader(&self) -> Result<Connection, ValkeyError> {
        let mut reader = self.reader.lock().await;
        match &*reader {
            Some(connection) if !connection.is_closed() => Ok(connection.clone()),
            _ => {
                let fresh = self.connector.connect(&self.primary.address, READ_ANSWER).await?;
                *reader = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }
}

struct Writer {
    primary: Primary,
    connector: Connector,
    connection: Option<Connection>,
    nudger: Option<Connection>,
    /// What groups have taken of late.
    usual: Duration,
    hub: Arc<Hub>,
    /// Calls that are done on the primary; too few replicas had acknowledged them in time. In the order in which they were sent over
    /// `connection`, so the next WAIT that succeeds on it covers them.
    unsettled: Vec<Unsettled>,
}

/// A call whose caller was told that its outcome is open.
struct Unsettled {
    partition: Arc<Partition>,
    claim: Arc<Claim>,
    ver: u64,
    events: Vec<Pending>,
}

impl Writer {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        let mut group = Vec::with_capacity(GROUP);
        let mut next = Instant::now();
        loop {
            let first = if self.unsettled.is_empty() {
                items.recv().await
            } else {
                // Without a call there is still something to wait for.
                match tokio::time::timeout(SETTLE, items.recv()).await {
                    Ok(first) => first,
                    Err(_) => {
                        self.settle_up().await;
                        continue;
                    }
                }
            };
            let Some(first) = first else { return };
            tokio::time::sleep_until(next).await;
            next = Instant::now() + SPACING;
            let mut bytes = first.bytes;
            group.push(first);
            while group.len() < GROUP && bytes < GROUP_BYTES {
                let Ok(next) = items.try_recv() else { break };
                bytes += next.bytes;
                group.push(next);
            }
            self.commit(&mut group).await;
        }
    }

    /// Asks whether the replicas have caught up with what is unsettled.
    async fn settle_up(&mut self) {
        let Some(mut connection) = self.connection.clone().filter(|c| !c.is_closed()) else {
            self.connection = None;
            return self.give_up();
        };
        let k = self.hub.ack_replicas();
        let wait = connection.command(cmd("WAIT").arg(k).arg(WAIT_MS)).await;
        match wait {
            Ok(Value::Int(n)) => self.settle(Vec::new(), Vec::new(), n >= i64::from(k)),
            Ok(_) => self.lost(Vec::new(), "an answer of another kind"),
            Err(error) => self.lost(Vec::new(), &error.to_string()),
        }
    }

    /// The connection over which they were sent is gone: only the store knows what became of them.
    fn give_up(&mut self) {
        for Unsettled { partition, claim, .. } in self.unsettled.drain(..) {
            self.hub.void(&partition, &claim);
        }
    }

    async fn commit(&mut self, group: &mut Vec<Item>) {
        let now = Instant::now();
        if self.unsettled.len() >= QUEUE {
            group.drain(..).for_each(|item| answer(item, Err(FULL)));
            return self.settle_up().await;
        }
        let mut sent = Vec::with_capacity(group.len());
        for item in group.drain(..) {
            if item.claim.as_ref().is_some_and(|c| c.is_void()) {
                // Nothing was sent: a retry is safe, and finds the claim that follows.
                answer(item, Err(EngineError::Unavailable("the partition changed hands: try again".into())));
            } else if item.end <= now {
                answer(item, Err(EngineError::Deadline));
            } else {
                sent.push(item);
            }
        }
        if sent.is_empty() {
            return;
        }
        let mut connection = match self.connected().await {
            Ok(connection) => connection,
            Err(error) => return self.unreachable(sent, &error).await,
        };
        let mut pipeline = Pipeline::with_capacity(sent.len() + 1);
        let mut items = Vec::with_capacity(sent.len());
        for mut item in sent {
            pipeline.add_command(std::mem::take(&mut item.command));
            items.push(item);
        }
        let k = self.hub.ack_replicas();
        pipeline.add_command(cmd("WAIT").arg(k).arg(WAIT_MS).take());
        let nudge = items.iter().find_map(|i| Some((i.partition.clone(), i.claim.clone()?)));
        let outcome = tokio::time::timeout(ANSWER, async {
            let mut answer = std::pin::pin!(connection.pipeline(&pipeline));
            tokio::select! {
                biased;
                outcome = &mut answer => outcome,
                () = self.nudge(nudge) => answer.await,
            }
        })
        .await;
        metrics::histogram!("kith_storage_group_items").record(items.len() as f64);
        let took = now.elapsed();
        self.usual = (self.usual * 7 + took) / 8;
        metrics::histogram!("kith_storage_commit_seconds").record(took.as_secs_f64());
        match outcome {
            Ok(Ok(mut values)) if values.len() == items.len() + 1 => {
                let acknowledged = values.pop();
                let enough = matches!(acknowledged, Some(Value::Int(n)) if n >= i64::from(k));
                self.settle(items, values, enough);
            }
            Ok(Ok(_)) => self.lost(items, "an answer of another length"),
            Ok(Err(error)) => self.lost(items, &error.to_string()),
            Err(_) => self.lost(items, "no answer in time"),
        }
    }

    /// Writes something small over another connection while a group waits for its replicas.
    ///
    /// Valkey (9.1 at least) leaves Nagle's algorithm on at the replica's end of the replication connection. An acknowledgement that follows
    /// the one which replicas send every second by themselves is held back there until the primary's kernel confirms the first: with
    /// something to send at once, else 40 ms later. The primary has nothing to send, since the next group waits for this one.
    async fn nudge(&mut self, of: Option<(Arc<Partition>, Arc<Claim>)>) {
        let Some((partition, claim)) = of else { return };
        let patience = NUDGE.max(self.usual * 3);
        for _ in 0..NUDGES {
            tokio::time::sleep(patience).await;
            let mut nudger = match self.nudger.clone().filter(|c| !c.is_closed()) {
                Some(nudger) => nudger,
                None => match self.connector.connect(&self.primary.address, READ_ANSWER).await {
                    Ok(fresh) => self.nudger.insert(fresh).clone(),
                    // The group's own connection tells what is wrong.
                    Err(_) => return,
                },
            };
            metrics::counter!("kith_storage_nudges_total").increment(1);
            // Writes the version that it finds. Whatever the answer is, the group's own says it too.
            let touch = Call::mutation("k1_trim", &partition.key, &claim.token, 0);
            drop(nudger.command(&touch.command).await);
        }
    }

    async fn connected(&mut self) -> Result<Connection, ValkeyError> {
        match &self.connection {
            Some(connection) if !connection.is_closed() => Ok(connection.clone()),
            _ => {
                self.give_up();
                let fresh = self.connector.connect(&self.primary.address, ANSWER).await?;
                self.hub.check_library(&fresh).await?;
                self.connection = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }

    /// No connection: nothing was sent.
    async fn unreachable(&mut self, items: Vec<Item>, error: &ValkeyError) {
        tracing::warn!(%error, node = %self.primary.address, calls = items.len(), "the storage engine's primary cannot be reached");
        self.connection = None;
        self.hub.watcher.look_again();
        for item in items {
            answer(item, Err(EngineError::Unavailable("the storage engine cannot be reached: try again".into())));
        }
        tokio::time::sleep(jittered(PAUSE)).await;
    }

    /// The answer did not come: every call may or may not be done.
    fn lost(&mut self, items: Vec<Item>, why: &str) {
        tracing::warn!(why, node = %self.primary.address, calls = items.len(), "the storage engine lost a group: its outcome is open");
        metrics::counter!("kith_storage_groups_lost_total").increment(1);
        self.connection = None;
        self.give_up();
        self.hub.watcher.look_again();
        for item in items {
            if let Some(claim) = &item.claim {
                self.hub.void(&item.partition, claim);
            }
            answer(item, Err(EngineError::Unavailable("the outcome is not known: retry with the same ids".into())));
        }
    }

    fn settle(&mut self, items: Vec<Item>, values: Vec<Value>, enough: bool) {
        if enough {
            for Unsettled { partition, claim, ver, events } in self.unsettled.drain(..) {
                if !claim.is_void() {
                    self.hub.committed(&partition, &claim, ver, events);
                }
            }
        } else if !items.is_empty() {
            tracing::warn!(node = %self.primary.address, calls = items.len(), "too few replicas acknowledged a group in time");
            metrics::counter!("kith_storage_short_waits_total").increment(1);
        }
        for (item, value) in items.into_iter().zip(values) {
            match wire::verdict(value) {
                Verdict::Done(values) if enough => self.done(item, values),
                Verdict::Done(values) => self.doubt(item, &values),
                Verdict::Fenced(holder) => {
                    if let Some(claim) = &item.claim {
                        self.hub.fenced(&item.partition, claim, holder.clone());
                    }
                    answer(item, Err(EngineError::WrongHolder(holder)));
                }
                Verdict::Elsewhere => {
                    self.hub.watcher.look_again();
                    if let Some(claim) = &item.claim {
                        self.hub.void(&item.partition, claim);
                    }
                    answer(item, Err(EngineError::Unavailable("the partition is moving: try again".into())));
                }
                Verdict::Refused(error) => answer(item, Err(error)),
            }
        }
    }

    /// Done on the primary, perhaps nowhere else: reads leave it out, and it is committed with the next WAIT that succeeds.
    fn doubt(&mut self, item: Item, values: &[Value]) {
        if let Some(claim) = item.claim.clone().filter(|c| !c.is_void()) {
            let ver = values.first().and_then(wire::number).unwrap_or(0);
            let events = wire::emitted(&item.emits, ver, values);
            if !events.is_empty() {
                let message = match &item.emits {
                    Emits::Message { conversation_id, .. } => {
                        values.get(1).and_then(wire::number).map(|seq| (conversation_id.clone(), seq))
                    }
                    _ => None,
                };
                claim.doubt(ver, message);
            }
            self.unsettled.push(Unsettled { partition: item.partition.clone(), claim, ver, events });
        }
        let why = "too few replicas answered in time: retry with the same ids";
        answer(item, Err(EngineError::Unavailable(why.into())));
    }

    fn done(&self, item: Item, values: Vec<Value>) {
        if let Some(claim) = &item.claim {
            if claim.is_void() {
                // Deposed while the group was on its way: whether the successor has it is for the next claim to see.
                return answer(
                    item,
                    Err(EngineError::Unavailable("the outcome is not known: retry with the same ids".into())),
                );
            }
            let ver = values.first().and_then(wire::number).unwrap_or(0);
            let pending = wire::emitted(&item.emits, ver, &values);
            self.hub.committed(&item.partition, claim, ver, pending);
        }
        answer(item, Ok(values));
    }
}

fn answer(item: Item, outcome: Result<Vec<Value>, EngineError>) {
    // An error means that the caller has gone.
    drop(item.done.send(outcome));
}
