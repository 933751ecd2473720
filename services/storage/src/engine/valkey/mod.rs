//! The engine on Valkey in cluster mode: one function call per mutation, committed in groups by the primary's writer.

mod claims;
mod coalesce;
mod fields;
mod group;
mod history;
mod hub;
mod node;
mod nudge;
mod partition;
mod repair;
mod topology;
mod trim;
mod view;
mod wire;
mod writer;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kith_kit::{config::Config, readiness::Readiness, valkey::Connector};
use redis::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{hub::Hub, view::View};
use coalesce::Coalesce;
use node::Item;
pub(crate) use partition::{Backlog, Claim, Loss, Partition, Pending};
use partition::{Doubt, State};
pub(crate) use repair::{Held, Standing};
use wire::{Call, Emits, Verdict};

use super::{
    Append, Appended, ChangePage, Cursor, Engine, EngineError, Entry, FieldPage, Got, HeadRow, History, Last, ListRow,
    MemberPage, Moved, Page, Range, Since, Spot, Swap, Want, Window,
};
use crate::outbox::Outbox;

/// How long reading the outbox back may take, and a look at who holds a partition.
const DRAIN: Duration = Duration::from_secs(5);
const PROBE: Duration = Duration::from_secs(1);
const OUTBOX_FULL: EngineError = EngineError::Exhausted(
    "the event log does not take events and the outbox is full: nothing was stored",
    Duration::from_secs(1),
);

/// The engine on Valkey.
pub(crate) struct ValkeyEngine {
    hub: Arc<Hub>,
    /// Pages of hot conversations.
    pages: Coalesce<(String, Page), Option<History>>,
}

impl ValkeyEngine {
    /// Starts watching, claiming and publishing.
    pub(crate) fn start(
        config: &Config,
        connector: Connector,
        seeds: Vec<String>,
        view: Arc<View>,
        outbox: Outbox,
        readiness: Readiness,
        end: CancellationToken,
    ) -> Self {
        let (wanted, to_claim) = mpsc::unbounded_channel();
        let watcher = topology::Watcher::new(connector.clone(), seeds);
        let k = config.durability.ack_replicas;
        let hub = Hub::new(connector, watcher.clone(), view, outbox, &config.cluster, k, wanted);
        readiness.expect(claims::PART);
        tokio::spawn(watcher.run(end.clone()));
        tokio::spawn(trim::quiet(hub.clone(), end.clone()));
        tokio::spawn(claims::run(hub.clone(), to_claim, readiness, end));
        Self { hub, pages: Coalesce::default() }
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The claim under which a call runs; made first when the partition should be this instance's.
    async fn claim(&self, number: u32, end: Instant) -> Result<Arc<Claim>, EngineError> {
        let Some(partition) = self.hub.partitions.get(number as usize) else {
            return Err(EngineError::DataLoss(format!("partition {number} does not exist")));
        };
        if let Some(claim) = partition.claim() {
            return Ok(claim);
        }
        match self.hub.decided(partition, end).await? {
            Decided::Open(claim) => Ok(claim),
            Decided::Lost(loss) => Err(EngineError::DataLoss(loss.what)),
        }
    }

    async fn write(
        &self,
        number: u32,
        function: &str,
        build: impl FnOnce(Call) -> (Call, Emits) + Send,
        end: Instant,
    ) -> Result<Vec<Value>, EngineError> {
        if self.hub.outbox.is_full() {
            return Err(OUTBOX_FULL);
        }
        let claim = self.claim(number, end).await?;
        let partition = &self.hub.partitions[number as usize];
        Self::submit(partition, claim, function, build, end)?
            .await
            .map_err(|_| EngineError::Unavailable("the storage engine's node is gone".into()))?
    }

    /// Queues a call; its answer comes when it is committed. Calls of one partition keep the order of these.
    fn submit(
        partition: &Arc<Partition>,
        claim: Arc<Claim>,
        function: &str,
        build: impl FnOnce(Call) -> (Call, Emits),
        end: Instant,
    ) -> Result<oneshot::Receiver<Result<Vec<Value>, EngineError>>, EngineError> {
        let (call, emits) = build(Call::mutation(function, &partition.key, &claim.token, Outbox::trim(partition)));
        let (done, answer) = oneshot::channel();
        let node = claim.node.clone();
        let item = Item {
            partition: partition.clone(),
            claim: Some(claim),
            command: call.command,
            bytes: call.bytes,
            emits,
            end,
            done,
        };
        node.submit(item)?;
        Ok(answer)
    }

    async fn swap_by(&self, function: &str, partition: u32, swap: &Swap, end: Instant) -> Result<(), EngineError> {
        let build = |call| {
            let (call, bodies) = wire::swap(call, swap);
            (call, Emits::Bodies(bodies))
        };
        self.write(partition, function, build, end).await.map(drop)
    }

    async fn read(
        &self,
        number: u32,
        function: &str,
        build: impl FnOnce(Call) -> Call + Send,
        end: Instant,
    ) -> Result<Vec<Value>, EngineError> {
        self.read_in_doubt(number, function, build, end).await.map(|(values, _)| values)
    }

    async fn read_in_doubt(
        &self,
        number: u32,
        function: &str,
        build: impl FnOnce(Call) -> Call + Send,
        end: Instant,
    ) -> Result<(Vec<Value>, Option<Doubt>), EngineError> {
        let claim = self.claim(number, end).await?;
        self.hub.read(&self.hub.partitions[number as usize], &claim, function, build, end).await
    }
}

/// A partition whose claim is decided.
enum Decided {
    Open(Arc<Claim>),
    Lost(Loss),
}

impl Hub {
    /// Waits until a partition is open or known to be lost; claims it when nobody does and it should be this instance's.
    async fn decided(self: &Arc<Self>, partition: &Arc<Partition>, end: Instant) -> Result<Decided, EngineError> {
        let number = partition.number;
        let mut state = partition.state.subscribe();
        loop {
            let seen = state.borrow_and_update().clone();
            match seen {
                State::Open(claim) => return Ok(Decided::Open(claim)),
                State::Lost(loss) => return Ok(Decided::Lost(loss)),
                State::Repairing => {
                    return Err(EngineError::DataLoss(format!("partition {number} is being repaired")));
                }
                State::Closed(_) => {
                    self.owned(number)?;
                    claims::start(self, partition);
                }
                State::Claiming => {}
            }
            match tokio::time::timeout_at(end, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(EngineError::Unavailable("storage is ending".into())),
                Err(_) => return Err(EngineError::Unavailable("the partition is not open yet: try again".into())),
            }
        }
    }

    /// Whether a partition should be this instance's; the refusal names its owner.
    fn owned(&self, number: u32) -> Result<(), EngineError> {
        let owner = self.view.owner(number);
        if owner.as_deref() == Some(self.view.me()) { Ok(()) } else { Err(EngineError::WrongHolder(owner)) }
    }

    async fn read(
        &self,
        partition: &Partition,
        claim: &Arc<Claim>,
        function: &str,
        build: impl FnOnce(Call) -> Call + Send,
        end: Instant,
    ) -> Result<(Vec<Value>, Option<Doubt>), EngineError> {
        let call = build(Call::reading(function, &partition.key, &claim.token));
        let asked = async {
            let mut connection = claim.node.reader().await?;
            let mut pipeline = redis::Pipeline::with_capacity(1);
            pipeline.add_command(call.command);
            connection.pipeline(&pipeline).await
        };
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout_at(end, asked) => answer,
            () = claim.node.deposed.cancelled() => return Err(EngineError::moved()),
        };
        let values = match answer {
            Err(_) => return Err(EngineError::Deadline),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a read did not come back");
                self.watcher.look_again();
                return Err(EngineError::Unavailable("the storage engine does not answer: try again".into()));
            }
            Ok(Ok(values)) => values,
        };
        let Some(value) = values.into_iter().next() else { return Err(EngineError::Unavailable("no answer".into())) };
        match wire::verdict(value) {
            Verdict::Done(values) => {
                let doubt = claim.reached(values.first().and_then(wire::number).unwrap_or(0), end).await?;
                Ok((values, doubt))
            }
            Verdict::Fenced(holder) => {
                self.fenced(partition, claim, holder.clone());
                Err(EngineError::WrongHolder(holder))
            }
            Verdict::Elsewhere => {
                self.watcher.look_again();
                Err(EngineError::Unavailable("the partition is moving: try again".into()))
            }
            Verdict::Refused(error) => Err(error),
        }
    }

    /// Looks whether others have claimed what this instance holds; each partition that was is dropped.
    pub(crate) async fn probe(&self) {
        let end = Instant::now() + PROBE;
        let held = self.partitions.iter().filter_map(|p| Some((p, p.claim()?)));
        let looks = held.map(|(partition, claim)| async move {
            // Whatever the answer: a claim that is fenced is closed by it.
            drop(self.read(partition, &claim, "k1_get", |call| call, end).await);
        });
        futures::future::join_all(looks).await;
    }

    /// The partition's version, and its outbox behind `after`; all of it committed.
    pub(crate) async fn outbox_entries(
        &self,
        partition: &Partition,
        claim: &Arc<Claim>,
        after: u64,
        limit: usize,
        bytes: u64,
    ) -> Result<(u64, Vec<Pending>), EngineError> {
        let end = Instant::now() + DRAIN;
        let build = |call: Call| call.number(after).number(limit).number(bytes).arg("1");
        let (values, doubt) = self.read(partition, claim, "k1_outbox", build, end).await?;
        let mut ver = values.first().and_then(wire::number).unwrap_or(0);
        let mut entries = wire::named(&format!("outbox of partition {}", partition.number), wire::read_outbox(values))?;
        if doubt.is_some() {
            ver = ver.min(claim.committed());
            entries.retain(|entry| entry.ver <= ver);
        }
        Ok((ver, entries))
    }
}

impl Claim {
    /// Whether it stands no more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_void()
    }
}

impl Partition {
    /// From now on calls run under `claim`.
    pub(crate) fn open(&self, claim: &Arc<Claim>) {
        self.state.send_replace(State::Open(claim.clone()));
    }

    /// The claim that stands now.
    pub(crate) fn current(&self) -> Option<Arc<Claim>> {
        self.claim()
    }
}

fn key_of(want: &Want) -> String {
    match want {
        Want::Field(field) => format!("{} {}", field.key, field.name),
        Want::All(key) | Want::Count { key, .. } => key.clone(),
    }
}

fn unreadable(what: &str) -> EngineError {
    EngineError::DataLoss(format!("the function library's answer to {what} cannot be read"))
}

#[async_trait]
impl Engine for ValkeyEngine {
    fn holds(&self, partition: u32) -> bool {
        self.hub.partitions.get(partition as usize).is_some_and(|p| p.claim().is_some())
    }

    fn in_order(&self, partitions: &[u32]) -> bool {
        // One node has one writer, with one queue.
        let mut claims = partitions.iter().map(|p| self.hub.partitions.get(*p as usize)?.claim());
        let Some(Some(first)) = claims.next() else { return false };
        claims.all(|claim| claim.is_some_and(|c| Arc::ptr_eq(&c.node, &first.node)))
    }

    async fn version(&self, partition: u32, end: Instant) -> Result<u64, EngineError> {
        let claim = self.claim(partition, end).await?;
        let held = &self.hub.partitions[partition as usize];
        let (values, doubt) = self.hub.read(held, &claim, "k1_get", |call| call, end).await?;
        let ver = values.first().and_then(wire::number).ok_or_else(|| unreadable("a version"))?;
        Ok(if doubt.is_some() { ver.min(claim.committed()) } else { ver })
    }

    async fn append(&self, partition: u32, append: Append, end: Instant) -> Result<Appended, EngineError> {
        let values = self.write(partition, "k1_append", |call| wire::append(call, &append), end).await?;
        let mut values = values.into_iter().skip(1);
        let seq = values.next().as_ref().and_then(wire::number).ok_or_else(|| unreadable("append"))?;
        Ok(Appended { seq, earlier: values.next().and_then(wire::bytes) })
    }

    async fn cursor(&self, partition: u32, cursor: Cursor, end: Instant) -> Result<Moved, EngineError> {
        let build = |call| (wire::cursor(call, &cursor), Emits::Cursor(cursor.event.clone()));
        let values = self.write(partition, "k1_cursor", build, end).await?;
        let seq = values.get(1).and_then(wire::number).ok_or_else(|| unreadable("cursor"))?;
        Ok(Moved { seq, moved: values.get(2).and_then(wire::number) == Some(1) })
    }

    async fn hints(
        &self,
        partition: u32,
        user_id: &str,
        hints: Vec<(String, i64)>,
        end: Instant,
    ) -> Result<bool, EngineError> {
        let build = |mut call: Call| {
            call = call.arg(user_id);
            for (conversation_id, activity) in &hints {
                call = call.arg(conversation_id).number(*activity);
            }
            (call, Emits::Nothing)
        };
        let values = self.write(partition, "k1_hints", build, end).await?;
        Ok(values.get(1).and_then(wire::number) == Some(0))
    }

    async fn enter(&self, partition: u32, entry: Entry, end: Instant) -> Result<bool, EngineError> {
        let build = |call| {
            let call = wire::enter(call, &entry);
            let Entry { entered, left, .. } = entry;
            (call, Emits::Entry { entered, left })
        };
        let values = self.write(partition, "k1_enter", build, end).await?;
        Ok(values.get(1).and_then(wire::number).is_some_and(|told| told > 0))
    }

    async fn swap(&self, partition: u32, swap: Swap, end: Instant) -> Result<(), EngineError> {
        self.swap_by("k1_cas", partition, &swap, end).await
    }

    async fn free(&self, partition: u32, swap: Swap, end: Instant) -> Result<(), EngineError> {
        self.swap_by("k1_free", partition, &swap, end).await
    }

    async fn get(&self, partition: u32, wants: Vec<Want>, end: Instant) -> Result<Vec<Got>, EngineError> {
        let values = self.read(partition, "k1_get", |call| wire::get(call, &wants), end).await?;
        wire::named(&wants.first().map_or_else(String::new, key_of), wire::read_get(&wants, values))
    }

    async fn history(
        &self,
        partition: u32,
        conversation_id: &str,
        page: Page,
        end: Instant,
    ) -> Result<Option<History>, EngineError> {
        let key = (conversation_id.to_owned(), page);
        self.pages.read(key, self.page(partition, conversation_id, page, end)).await
    }

    async fn heads(
        &self,
        partition: u32,
        user_id: &str,
        device_id: &str,
        last: usize,
        conversation_ids: Vec<String>,
        end: Instant,
    ) -> Result<Vec<HeadRow>, EngineError> {
        let build = |call| wire::heads(call, user_id, device_id, last, &conversation_ids);
        let (values, doubt) = self.read_in_doubt(partition, "k1_heads", build, end).await?;
        let mut rows = wire::named(&format!("heads of partition {partition}"), wire::read_heads(values))?;
        let Some(doubt) = doubt else { return Ok(rows) };
        for (id, row) in conversation_ids.iter().zip(&mut rows) {
            let Some(first) = doubt.first(id) else { continue };
            let known = first.saturating_sub(1);
            wire::lower(&mut row.own, known);
            // It moves with what is sent.
            wire::lower(&mut row.read, known);
            if let Some((_, seq)) = row.fields.iter_mut().find(|(name, _)| name == "s") {
                *seq = known.to_string().into();
            }
            if row.last != Last::None {
                // Of one that is in doubt no more was taken than this.
                let page = Page { window: Window::Before(first), limit: 1, bytes: last, first: false };
                row.last = match self.history(partition, id, page, end).await? {
                    Some(History { cut: true, .. }) => Last::Over,
                    page => page.and_then(|mut p| p.messages.pop()).map_or(Last::None, |m| Last::Row(m.row, m.overlay)),
                };
            }
        }
        Ok(rows)
    }

    async fn members(
        &self,
        partition: u32,
        conversation_id: &str,
        after: i64,
        limit: u32,
        end: Instant,
    ) -> Result<Option<MemberPage>, EngineError> {
        let build = |call: Call| call.arg(conversation_id).number(after).number(limit);
        let values = self.read(partition, "k1_members", build, end).await?;
        wire::named(&format!("j:{conversation_id}"), wire::read_members(values))
    }

    async fn changes(
        &self,
        partition: u32,
        conversation_id: &str,
        since: Since,
        end: Instant,
    ) -> Result<Option<ChangePage>, EngineError> {
        let build = |call| wire::changed(call, conversation_id, &since);
        let values = self.read(partition, "k1_changed", build, end).await?;
        wire::named(&format!("w:{conversation_id}"), wire::read_changed(values))
    }

    async fn list(
        &self,
        partition: u32,
        user_id: &str,
        behind: Option<&Spot>,
        limit: u32,
        end: Instant,
    ) -> Result<Vec<ListRow>, EngineError> {
        let values = self.read(partition, "k1_walk", |call| wire::walk(call, user_id, behind, limit), end).await?;
        wire::named(&format!("l:{user_id}"), wire::read_list(values))
    }

    async fn field_page(&self, partition: u32, range: Range, end: Instant) -> Result<FieldPage, EngineError> {
        self.indexed_page(partition, &range, end).await
    }
}
