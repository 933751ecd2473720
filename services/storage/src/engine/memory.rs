//! The engine in memory, for tests: the same operations, each atomic. A schedule can put other tasks in between and lose answers.

mod changes;
mod damage;
mod lists;
mod pages;
mod rules;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Append, Appended, ChangePage, Cursor, CursorKind, Engine, EngineError, Entry, Expect, Field, FieldPage, Got,
    HeadRow, History, ListRow, MemberPage, MemberRow, Moved, Op, Page, Range, Refusal, Restoring, Since, Spot, Swap,
    Want, Write,
};
use crate::{
    core::model::{cursor, whole},
    event,
};

/// All partitions.
#[derive(Default)]
pub(crate) struct MemoryEngine {
    partitions: Mutex<HashMap<u32, Data>>,
    schedule: Mutex<VecDeque<u8>>,
    full: Mutex<Full>,
}

/// Whose memory is full.
#[derive(Default)]
enum Full {
    #[default]
    None,
    All,
    One(u32),
}

/// One partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) ver: u64,
    pub(crate) hashes: HashMap<String, BTreeMap<String, Bytes>>,
    pub(crate) scores: HashMap<String, BTreeMap<String, i64>>,
    pub(crate) messages: HashMap<String, BTreeMap<u64, Bytes>>,
    /// By conversation, sender and the sender's id.
    pub(crate) seen: HashMap<(String, String, String), u64>,
    pub(crate) outbox: Vec<(u64, Bytes)>,
}

/// What happens to the next mutation.
enum Fate {
    Done,
    /// Nothing is done.
    Lost,
    /// It is done, but nobody hears of it.
    Unheard,
}

impl MemoryEngine {
    /// What comes to the next calls: each takes a byte; its low bits say how often others run first, the rest whether its answer is lost.
    pub(crate) fn schedule(&self, bytes: impl IntoIterator<Item = u8>) {
        *self.schedule.lock() = bytes.into_iter().collect();
    }

    /// Every event of a partition in version order, with the row of each message.
    pub(crate) fn events(&self) -> Vec<(u32, u64, Bytes, Option<Bytes>)> {
        let partitions = self.partitions.lock();
        let mut events = Vec::new();
        for (number, data) in partitions.iter() {
            for (ver, body) in &data.outbox {
                let place = std::str::from_utf8(body).ok().and_then(|b| b.strip_prefix(['m', 'M'])?.split_once(' '));
                let row = place.and_then(|(seq, id)| data.messages.get(id)?.get(&seq.parse().ok()?).cloned());
                events.push((*number, *ver, body.clone(), row));
            }
        }
        events.sort_by_key(|(number, ver, ..)| (*number, *ver));
        events
    }

    /// Everything as it is now.
    pub(crate) fn copy(&self) -> BTreeMap<u32, Data> {
        let partitions = self.partitions.lock();
        // A read leaves an empty partition, which is none.
        let written = partitions.iter().filter(|(_, data)| **data != Data::default());
        written.map(|(number, data)| (*number, data.clone())).collect()
    }

    /// An engine with these data.
    pub(crate) fn with(data: BTreeMap<u32, Data>) -> Self {
        Self { partitions: Mutex::new(data.into_iter().collect()), ..Self::default() }
    }

    /// Changes one partition by hand.
    pub(crate) fn by_hand<T>(&self, partition: u32, change: impl FnOnce(&mut Data) -> T) -> T {
        change(self.partitions.lock().entry(partition).or_default())
    }

    /// Whether its memory is full: nothing that grows is done.
    pub(crate) fn fill(&self, full: bool) {
        *self.full.lock() = if full { Full::All } else { Full::None };
    }

    /// Fills the memory of the shard that holds one partition.
    pub(crate) fn fill_one(&self, partition: u32) {
        *self.full.lock() = Full::One(partition);
    }

    async fn grow<T>(
        &self,
        partition: u32,
        change: impl FnOnce(&mut Data) -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        let full = match *self.full.lock() {
            Full::None => false,
            Full::All => true,
            Full::One(one) => one == partition,
        };
        if full {
            return Err(EngineError::Exhausted("the storage engine's memory is full", Duration::from_secs(10)));
        }
        self.write(partition, change).await
    }

    async fn turn(&self) -> Fate {
        let next = self.schedule.lock().pop_front().unwrap_or(0);
        for _ in 0..next & 3 {
            tokio::task::yield_now().await;
        }
        match next >> 2 {
            1..4 => Fate::Lost,
            4..8 => Fate::Unheard,
            _ => Fate::Done,
        }
    }

    async fn write<T>(
        &self,
        partition: u32,
        change: impl FnOnce(&mut Data) -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        let lost = || EngineError::Unavailable("the outcome is not known".into());
        match self.turn().await {
            Fate::Lost => Err(lost()),
            fate => {
                let done = change(self.partitions.lock().entry(partition).or_default())?;
                if matches!(fate, Fate::Unheard) { Err(lost()) } else { Ok(done) }
            }
        }
    }

    async fn read<T>(&self, partition: u32, look: impl FnOnce(&Data) -> T + Send) -> Result<T, EngineError> {
        self.turn().await;
        Ok(look(self.partitions.lock().entry(partition).or_default()))
    }
}

impl Data {
    fn field(&self, key: &str, name: &str) -> Option<&Bytes> {
        self.hashes.get(key)?.get(name)
    }

    /// A stored number that counts something; damaged: DATA_LOSS.
    fn count(&self, key: &str, name: &str) -> Result<Option<u64>, EngineError> {
        let damaged = || EngineError::DataLoss(format!("{key} {name}"));
        self.field(key, name).map(|value| whole(value).ok_or_else(damaged)).transpose()
    }

    fn set(&mut self, key: String, name: impl Into<String>, value: impl Into<Bytes>) {
        self.hashes.entry(key).or_default().insert(name.into(), value.into());
    }

    fn emit(&mut self, body: Bytes) {
        self.ver += 1;
        self.outbox.push((self.ver, body));
    }

    fn cursor(&mut self, c: &Cursor) -> Result<Moved, EngineError> {
        let Some(last) = self.count(&format!("c:{}", c.conversation_id), "s")? else {
            return Err(EngineError::Refused(Refusal::NoConversation));
        };
        if self.field(&format!("g:{}", c.conversation_id), &c.user_id).is_none() {
            return Err(EngineError::Refused(Refusal::NotMember));
        }
        let name = c.kind.field(&c.user_id);
        let key = format!("r:{}", c.conversation_id);
        let now = self.count(&key, &name)?.unwrap_or(0);
        let want = if c.seq == 0 { last } else { c.seq.min(last) };
        if want <= now {
            return Ok(Moved { seq: now, moved: false });
        }
        let fresh = self.field(&key, &name).is_none();
        self.set(key.clone(), name, want.to_string());
        if let CursorKind::Delivered(device) = &c.kind
            && fresh
            && let Some((devices, forgotten)) =
                cursor::note_device(self.field(&key, &cursor::devices(&c.user_id)), device)
        {
            if let Some(device) = forgotten {
                self.hashes.entry(key.clone()).or_default().remove(&cursor::delivered(&c.user_id, &device));
            }
            self.set(key, cursor::devices(&c.user_id), devices);
        }
        if !c.event.is_empty() {
            self.emit(event::filled(&c.event, want));
        }
        Ok(Moved { seq: want, moved: true })
    }

    fn swap(&mut self, swap: Swap) -> Result<(), EngineError> {
        let mut found = None;
        for condition in &swap.conditions {
            let Field { key, name } = &condition.field;
            let holds = match &condition.expect {
                Expect::Absent => self.field(key, name).is_none(),
                Expect::Value(value) => self.field(key, name) == Some(value),
                Expect::Fewer(most) if self.number_of(key, name) >= *most => {
                    return Err(EngineError::Refused(Refusal::Full));
                }
                Expect::Fewer(_) => true,
                Expect::MayWrite(now_ms) => {
                    self.may_write(key.strip_prefix("g:").unwrap_or_default(), name, *now_ms)?;
                    true
                }
                Expect::Next => {
                    found = Some(self.next(key, name)?);
                    true
                }
            };
            if !holds {
                return Err(EngineError::Conflict);
            }
        }
        for op in swap.ops {
            self.write_op(match (op, found) {
                (Op::Set(field, value), Some(found)) => Op::Set(field, event::filled(&value, found)),
                (Op::SetNew(field, value), Some(found)) => Op::SetNew(field, event::filled(&value, found)),
                (Op::Emit(body), Some(found)) => Op::Emit(event::filled(&body, found)),
                (op, _) => op,
            });
        }
        Ok(())
    }

    fn write_op(&mut self, op: Op) {
        match op {
            Op::Set(field, value) => self.set(field.key, field.name, value),
            Op::SetNew(Field { key, name }, value) => {
                self.hashes.entry(key).or_default().entry(name).or_insert(value);
            }
            Op::Delete(field) => {
                self.hashes.entry(field.key).or_default().remove(&field.name);
            }
            Op::Score { key, score, member } => {
                self.scores.entry(key).or_default().insert(member, score);
            }
            Op::Rescore { key, score, member } => {
                if let Some(stored) = self.scores.get_mut(&key).and_then(|m| m.get_mut(&member)) {
                    *stored = score;
                }
            }
            Op::Unscore { key, member } => {
                self.scores.entry(key).or_default().remove(&member);
            }
            Op::Noted { conversation_id, from, to } => self.note_changes(&conversation_id, from, to),
            Op::Emit(body) => self.emit(body),
        }
    }

    fn restore(&mut self, ver: u64, writes: Vec<Write>) -> Result<(), EngineError> {
        if ver <= self.ver {
            return Err(EngineError::Refused(Refusal::NotAbove));
        }
        self.rewrite(writes)?;
        self.ver = ver;
        Ok(())
    }

    /// Writes whatever the version is.
    pub(crate) fn rewrite(&mut self, writes: Vec<Write>) -> Result<(), EngineError> {
        let mut next = self.clone();
        for write in writes {
            match write {
                Write::Op(op) => next.write_op(op),
                Write::Row { conversation_id, seq, row } => {
                    let rows = next.messages.entry(conversation_id.clone()).or_default();
                    let newest = rows.last_key_value().map_or(0, |(seq, _)| *seq);
                    if seq > newest {
                        rows.insert(seq, row);
                    } else if rows.get(&seq) != Some(&row) {
                        return Err(EngineError::DataLoss(format!("m:{conversation_id} {seq}")));
                    }
                }
                Write::Sent { conversation_id, sender_id, client_msg_id, seq, .. } => {
                    next.seen.insert((conversation_id, sender_id, client_msg_id), seq);
                }
            }
        }
        *self = next;
        Ok(())
    }

    fn all(&self, key: &str) -> Vec<(String, Bytes)> {
        let fields = self.hashes.get(key).into_iter().flatten();
        fields.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Members of a scored set in order.
    fn scored(&self, key: &str) -> Vec<(i64, String)> {
        let members = self.scores.get(key).into_iter().flatten();
        let mut members: Vec<_> = members.map(|(member, score)| (*score, member.clone())).collect();
        members.sort();
        members
    }
}

/// One partition of the engine that is being restored.
pub(crate) struct RestoringMemory<'a>(pub(crate) &'a MemoryEngine, pub(crate) u32);

#[async_trait]
impl Restoring for RestoringMemory<'_> {
    async fn fields(&self, fields: Vec<Field>) -> Result<Vec<Option<Bytes>>, EngineError> {
        let look = |data: &Data| fields.iter().map(|f| data.field(&f.key, &f.name).cloned()).collect();
        self.0.read(self.1, look).await
    }

    async fn restore(&self, ver: u64, writes: Vec<Write>) -> Result<(), EngineError> {
        self.0.write(self.1, |data| data.restore(ver, writes)).await
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn holds(&self, _: u32) -> bool {
        true
    }

    fn in_order(&self, _: &[u32]) -> bool {
        false
    }

    async fn version(&self, partition: u32, _: Instant) -> Result<u64, EngineError> {
        Ok(self.partitions.lock().get(&partition).map_or(0, |data| data.ver))
    }

    async fn append(&self, partition: u32, append: Append, _: Instant) -> Result<Appended, EngineError> {
        self.grow(partition, |data| data.append(append)).await
    }

    async fn cursor(&self, partition: u32, cursor: Cursor, _: Instant) -> Result<Moved, EngineError> {
        self.write(partition, |data| data.cursor(&cursor)).await
    }

    async fn hints(
        &self,
        partition: u32,
        user: &str,
        hints: Vec<(String, i64)>,
        _: Instant,
    ) -> Result<bool, EngineError> {
        Ok(self.partitions.lock().entry(partition).or_default().raise(user, hints))
    }

    async fn enter(&self, partition: u32, entry: Entry, _: Instant) -> Result<bool, EngineError> {
        self.grow(partition, |data| data.enter(entry)).await
    }

    async fn swap(&self, partition: u32, swap: Swap, _: Instant) -> Result<(), EngineError> {
        self.grow(partition, |data| data.swap(swap)).await
    }

    async fn free(&self, partition: u32, swap: Swap, _: Instant) -> Result<(), EngineError> {
        self.write(partition, |data| data.swap(swap)).await
    }

    async fn get(&self, partition: u32, wants: Vec<Want>, _: Instant) -> Result<Vec<Got>, EngineError> {
        let look = |data: &Data| {
            let got = |want| match want {
                Want::Field(Field { key, name }) => Got::Field(data.field(&key, &name).cloned()),
                Want::All(key) => Got::All(data.all(&key)),
                Want::Count { key, prefix } => Got::Count(data.number_of(&key, prefix)),
            };
            wants.into_iter().map(got).collect()
        };
        self.read(partition, look).await
    }

    async fn history(&self, partition: u32, id: &str, page: Page, _: Instant) -> Result<Option<History>, EngineError> {
        self.read(partition, |data| data.history(id, page)).await?
    }

    async fn heads(
        &self,
        partition: u32,
        user: &str,
        device: &str,
        last: usize,
        ids: Vec<String>,
        _: Instant,
    ) -> Result<Vec<HeadRow>, EngineError> {
        self.read(partition, |data| data.heads(&ids, user, device, last)).await
    }

    async fn members(
        &self,
        partition: u32,
        id: &str,
        after: i64,
        limit: u32,
        _: Instant,
    ) -> Result<Option<MemberPage>, EngineError> {
        let look = |data: &Data| {
            let head = format!("c:{id}");
            let Some(version) = data.count(&head, "mv")? else { return Ok(None) };
            let count = data.count(&head, "n")?.unwrap_or(0);
            let page = data.scored(&format!("j:{id}")).into_iter().filter(|(order, _)| *order > after);
            let members = page.take(limit as usize).map(|(order, user_id)| MemberRow {
                row: data.field(&format!("g:{id}"), &user_id).cloned(),
                user_id,
                order,
            });
            Ok(Some(MemberPage { version, count, members: members.collect() }))
        };
        self.read(partition, look).await?
    }

    async fn changes(
        &self,
        partition: u32,
        id: &str,
        since: Since,
        _: Instant,
    ) -> Result<Option<ChangePage>, EngineError> {
        self.read(partition, |data| data.changes(id, &since)).await?
    }

    async fn list(
        &self,
        partition: u32,
        user: &str,
        behind: Option<&Spot>,
        limit: u32,
        _: Instant,
    ) -> Result<Vec<ListRow>, EngineError> {
        self.read(partition, |data| data.list(user, behind, limit as usize)).await
    }

    async fn field_page(&self, partition: u32, range: Range, _: Instant) -> Result<FieldPage, EngineError> {
        self.read(partition, |data| data.page(&range)).await
    }
}
