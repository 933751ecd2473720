//! The writer of one primary: it gathers calls and commits them in groups.
//!
//! A group is one pipeline that ends with WAIT. How many replicas must hold it the primary itself says in the same pipeline: a function that
//! the operator alone loads, so no instance counts by what held when it started. Nothing is answered before the whole group is on the
//! primary's disk and on enough replicas. A refusal concerns its own call; a short WAIT or a lost connection leaves the outcome of the group open, so the claims of all its
//! partitions end and are made again: what the store holds then decides.
//!
//! Everything goes over one connection, so calls take effect in the order in which they were queued. While a group is under way the calls
//! that come in gather for the next; once they are many, that one is sent behind the first, and the primary begins with it as soon as the
//! first is acknowledged instead of when this process has heard of it.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use kith_kit::{
    backoff::jittered,
    valkey::{Connection, Connector, ValkeyError, WANTED},
};
use redis::{Pipeline, Value, cmd};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    group::{ANSWER, Answer, DEPTH, Gathered, Group, OVERLAP, UnderWay},
    hub::Hub,
    node::{FULL, Item, QUEUE},
    nudge::Nudger,
    partition::{Claim, Partition, Pending},
    topology::Primary,
    wire::{self, Emits, Verdict},
};
use crate::engine::EngineError;

/// The least time from one group to the next: what comes in meanwhile shares its disk writes and its round trip to the replicas. A call that
/// finds the writer at rest does not wait.
const SPACING: Duration = Duration::from_millis(2);
/// How long replicas may take to acknowledge a group.
const WAIT_MS: u64 = 1_000;
/// Between two looks at replicas that are behind.
const SETTLE: Duration = Duration::from_millis(50);
/// After a connection that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two lines of the log about a primary that cannot be reached.
const TELL: Duration = Duration::from_secs(1);

/// Commits what a primary's queue holds.
pub(super) struct Writer {
    primary: Primary,
    connector: Connector,
    connection: Option<Connection>,
    nudger: Arc<Nudger>,
    /// What groups have taken of late.
    usual: Duration,
    hub: Arc<Hub>,
    /// Another primary has its slots: what waits for this one goes there.
    deposed: CancellationToken,
    /// When it was last told that the primary cannot be reached.
    told: Option<Instant>,
    under_way: UnderWay,
    /// Replicas that the primary wanted for a write when it was last heard.
    wanted: u32,
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
    pub(super) fn new(primary: Primary, connector: Connector, hub: Arc<Hub>, deposed: CancellationToken) -> Self {
        let nudger = Arc::new(Nudger::new(connector.clone(), primary.address.clone()));
        let wanted = hub.ack_replicas();
        Self {
            wanted,
            primary,
            connector,
            connection: None,
            nudger,
            usual: Duration::ZERO,
            hub,
            deposed,
            told: None,
            under_way: UnderWay::default(),
            unsettled: Vec::new(),
        }
    }

    /// Runs until the queue's last sender is gone and everything is answered.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Item>) {
        let deposed = self.deposed.clone();
        let mut gathered = Gathered { items: Vec::with_capacity(OVERLAP), bytes: 0 };
        let mut next = Instant::now();
        let mut open = true;
        while open || !gathered.items.is_empty() || !self.under_way.0.is_empty() {
            let due = self.is_due(&gathered);
            if due && Instant::now() >= next {
                next = Instant::now() + SPACING;
                self.send(gathered.take()).await;
                continue;
            }
            let (deadline, nudge_at) = (self.under_way.deadline(), self.under_way.nudge_at(self.usual));
            let idle = self.under_way.0.is_empty() && gathered.items.is_empty();
            tokio::select! {
                biased;
                answer = self.under_way.answered(), if deadline.is_some() => self.finish(answer),
                () = deposed.cancelled(), if deadline.is_some() => self.lost("another primary has its slots"),
                first = queue.recv(), if open && !gathered.is_full() => match first {
                    None => open = false,
                    Some(first) => {
                        gathered.add(first);
                        while !gathered.is_full() && let Ok(item) = queue.try_recv() {
                            gathered.add(item);
                        }
                    }
                },
                () = tokio::time::sleep_until(next), if due => {}
                () = at(nudge_at) => self.nudge(),
                () = at(deadline) => self.lost("no answer in time"),
                // Without a call there is still something to wait for.
                () = tokio::time::sleep(SETTLE), if idle && !self.unsettled.is_empty() => self.settle_up().await,
            }
        }
    }

    /// Whether what has gathered may go, but for the spacing.
    fn is_due(&self, gathered: &Gathered) -> bool {
        match self.under_way.0.len() {
            0 => !gathered.items.is_empty(),
            // A connection that has ended is made anew when what was sent over it is given up.
            sent => {
                let stands = self.connection.as_ref().is_some_and(|c| !c.is_closed());
                sent < DEPTH && gathered.items.len() >= OVERLAP && stands
            }
        }
    }

    /// Asks whether the replicas have caught up with what is unsettled.
    async fn settle_up(&mut self) {
        let Some(mut connection) = self.connection.clone().filter(|c| !c.is_closed()) else {
            self.connection = None;
            return self.give_up();
        };
        let mut pipeline = Pipeline::with_capacity(2);
        self.add_wait(&mut pipeline);
        match tokio::time::timeout(ANSWER, connection.pipeline(&pipeline)).await {
            Ok(Ok(mut values)) => {
                let enough = self.is_enough(&mut values);
                self.settle(Vec::new(), Vec::new(), enough);
            }
            Ok(Err(error)) => self.lost(&error.to_string()),
            Err(_) => self.lost("no answer in time"),
        }
    }

    /// The connection over which they were sent is gone: only the store knows what became of them.
    fn give_up(&mut self) {
        for Unsettled { partition, claim, .. } in self.unsettled.drain(..) {
            self.hub.void(&partition, &claim);
        }
    }

    /// Puts a group on its way.
    async fn send(&mut self, gathered: Vec<Item>) {
        let now = Instant::now();
        if self.unsettled.len() >= QUEUE {
            for item in gathered {
                answer(item, Err(FULL));
            }
            if self.under_way.0.is_empty() {
                self.settle_up().await;
            }
            return;
        }
        let mut items = Vec::with_capacity(gathered.len());
        for item in gathered {
            if item.claim.as_ref().is_some_and(|c| c.is_void()) {
                answer(item, Err(EngineError::moved()));
            } else if item.end <= now {
                answer(item, Err(EngineError::Deadline));
            } else {
                items.push(item);
            }
        }
        if items.is_empty() {
            return;
        }
        let mut connection = match self.connection.clone() {
            // Behind others only over theirs, which covers them: if it has ended, they and this group end with it.
            Some(theirs) if !self.under_way.0.is_empty() => theirs,
            _ => match self.deposed.clone().run_until_cancelled(self.connected()).await {
                Some(Ok(connection)) => connection,
                Some(Err(error)) => return self.unreachable(items, &error).await,
                None => return items.into_iter().for_each(|item| answer(item, Err(EngineError::moved()))),
            },
        };
        let mut pipeline = Pipeline::with_capacity(items.len() + 2);
        for item in &mut items {
            pipeline.add_command(std::mem::take(&mut item.command));
        }
        self.add_wait(&mut pipeline);
        metrics::histogram!("kith_storage_group_items").record(items.len() as f64);
        let answer = async move { connection.pipeline(&pipeline).await }.boxed();
        self.under_way.0.push_back(Group { items, sent: now, first_since: now, nudged: 0, answer, answered: None });
    }

    /// What ends a pipeline: how many replicas are wanted, behind the calls, and the wait for as many as were wanted last.
    fn add_wait(&self, pipeline: &mut Pipeline) {
        pipeline.add_command(cmd("FCALL_RO").arg(WANTED).arg(0).take());
        pipeline.add_command(cmd("WAIT").arg(self.wanted).arg(WAIT_MS).take());
    }

    /// Takes the two answers to [`Self::add_wait`]: whether as many replicas as the primary wants hold what was before them.
    fn is_enough(&mut self, values: &mut Vec<Value>) -> bool {
        let (held, told) = (values.pop(), values.pop());
        // Where no operator has said anything yet, what the configuration says.
        let told = told.as_ref().and_then(wire::number).and_then(|n| u32::try_from(n).ok());
        let wanted = told.unwrap_or_else(|| self.hub.ack_replicas());
        if wanted != self.wanted {
            tracing::warn!(node = %self.primary.address, before = self.wanted, wanted, "the primary wants another number of replicas for a write");
            self.wanted = wanted;
        }
        matches!(held, Some(Value::Int(n)) if n >= i64::from(wanted))
    }

    /// The first group under way is answered.
    fn finish(&mut self, answer: Answer) {
        match answer {
            Ok(mut values) if self.under_way.0.front().is_some_and(|g| values.len() == g.items.len() + 2) => {
                let Some(group) = self.under_way.take_first() else { return };
                self.usual = (self.usual * 7 + group.first_since.elapsed()) / 8;
                metrics::histogram!("kith_storage_commit_seconds").record(group.sent.elapsed().as_secs_f64());
                let enough = self.is_enough(&mut values);
                self.settle(group.items, values, enough);
            }
            Ok(_) => self.lost("an answer of another length"),
            Err(error) => self.lost(&error.to_string()),
        }
    }

    /// Lets the first group's replicas be nudged, with one of its calls' claims.
    fn nudge(&mut self) {
        let Some(group) = self.under_way.0.front_mut() else { return };
        group.nudged += 1;
        if let Some(item) = group.items.iter().find(|item| item.claim.is_some())
            && let Some(claim) = item.claim.clone()
        {
            tokio::spawn(self.nudger.clone().nudge(item.partition.clone(), claim));
        }
    }

    async fn connected(&mut self) -> Result<Connection, ValkeyError> {
        match &self.connection {
            Some(connection) if !connection.is_closed() => Ok(connection.clone()),
            _ => {
                self.give_up();
                let fresh = self.connector.connect(&self.primary.address, ANSWER * DEPTH as u32).await?;
                self.hub.check_library(&fresh).await?;
                self.connection = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }

    /// No connection: nothing was sent.
    async fn unreachable(&mut self, items: Vec<Item>, error: &ValkeyError) {
        if self.told.is_none_or(|at| at.elapsed() > TELL) {
            tracing::warn!(%error, node = %self.primary.address, calls = items.len(), "the storage engine's primary cannot be reached");
            self.told = Some(Instant::now());
        }
        self.connection = None;
        self.hub.watcher.look_again();
        for item in items {
            answer(item, Err(EngineError::Unavailable("the storage engine cannot be reached: try again".into())));
        }
        tokio::time::sleep(jittered(PAUSE)).await;
    }

    /// Answers did not come: every call under way may or may not be done.
    fn lost(&mut self, why: &str) {
        let items: Vec<Item> = self.under_way.0.drain(..).flat_map(|group| group.items).collect();
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
                    // Where it made its conversation, that is in doubt as well.
                    Emits::Message { conversation_id, .. } if !wire::opened(values) => {
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

/// Resolves then; never without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn answer(item: Item, outcome: Result<Vec<Value>, EngineError>) {
    // An error means that the caller has gone.
    drop(item.done.send(outcome));
}
