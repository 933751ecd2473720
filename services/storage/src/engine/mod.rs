//! What the storage layer asks of its engine: atomic operations on one partition, and reads that show nothing uncommitted.
//!
//! [`valkey`] keeps the data; the engine in memory is for tests.

mod error;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod valkey;

use std::{borrow::Cow, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error as ThisError;
use tokio::time::Instant;

use crate::{core::model::cursor, weight};

/// A message to store.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    pub(crate) conversation_id: String,
    pub(crate) sender_id: String,
    pub(crate) client_msg_id: String,
    /// Packed by [`crate::codec`].
    pub(crate) row: Bytes,
    /// Bytes of the row that say who wrote it under which id.
    pub(crate) identity_len: usize,
    pub(crate) now_ms: i64,
    pub(crate) privileged: bool,
    pub(crate) hot_limit: u64,
    /// What makes the conversation, where it does not stand: carried out with the message, or not at all. Empty: nothing does.
    pub(crate) opening: Vec<Op>,
}

/// Where a message stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) seq: u64,
    /// The stored row, when an earlier call had stored a message of this identity: whether it says the same is for the caller to see.
    pub(crate) earlier: Option<Bytes>,
}

/// Which cursor of a user moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CursorKind {
    Read,
    /// Of a device.
    Delivered(String),
    Cleared,
}

impl CursorKind {
    /// The field of the conversation's cursors in which that of a user stands. Ids hold no slash, so a user and a device make one field.
    pub(crate) fn field(&self, user_id: &str) -> String {
        match self {
            Self::Read => format!("r{user_id}"),
            Self::Cleared => format!("c{user_id}"),
            Self::Delivered(device) => cursor::delivered(user_id, device),
        }
    }
}

/// A cursor to move forward.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    pub(crate) conversation_id: String,
    pub(crate) user_id: String,
    pub(crate) kind: CursorKind,
    /// 0: to the end.
    pub(crate) seq: u64,
    /// An outbox body with a place for the new value (see [`crate::event::open_body`]); empty: no event.
    pub(crate) event: Bytes,
}

/// The cursor after the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) seq: u64,
    pub(crate) moved: bool,
}

/// What must hold for a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expect {
    Value(Bytes),
    Absent,
    /// Fewer fields than this whose names begin with the field's name, which is one letter or empty; else the call is refused as FULL.
    Fewer(u64),
    /// The field is a member's row: that member may write to its conversation at this time (Unix ms). Else the rule's refusal.
    MayWrite(i64),
    /// A number that counts; its successor takes the place of the mark ([`kith_contract::found`]) in whatever is set and emitted.
    Next,
}

/// A condition on one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) field: Field,
    pub(crate) expect: Expect,
}

/// A field of one of the partition's hashes, the key without its tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) name: String,
}

impl Field {
    pub(crate) fn new(key: impl Into<String>, name: impl Into<String>) -> Self {
        Self { key: key.into(), name: name.into() }
    }
}

/// One write of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Set(Field, Bytes),
    /// Unless it is there.
    SetNew(Field, Bytes),
    Delete(Field),
    Score {
        key: String,
        score: i64,
        member: String,
    },
    /// Of a member that is there.
    Rescore {
        key: String,
        score: i64,
        member: String,
    },
    Unscore {
        key: String,
        member: String,
    },
    /// The conversation's changes of members between these member versions stand in its set of changes, of which the newest are kept.
    Noted {
        conversation_id: String,
        from: u64,
        to: u64,
    },
    /// An outbox body.
    Emit(Bytes),
}

/// One write of a restoration from the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    /// Nothing is emitted: what is restored is on the event log.
    Op(Op),
    /// A message's row; nothing changes where it stands already.
    Row { conversation_id: String, seq: u64, row: Bytes },
    /// By which a retry of its sender finds a message.
    Sent { conversation_id: String, sender_id: String, client_msg_id: String, sent_at: i64, seq: u64 },
}

/// Conditions and writes that happen together or not at all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Swap {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) ops: Vec<Op>,
}

/// What to read with [`Engine::get`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Want {
    Field(Field),
    /// A whole hash: one whose size is small and bounded.
    All(String),
    /// How many fields of a hash begin with a letter (none: all of them), or how many entries a list has.
    Count {
        key: String,
        prefix: &'static str,
    },
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Field(Option<Bytes>),
    All(Vec<(String, Bytes)>),
    Count(u64),
}

/// Which fields of a hash that is read in pages, by their names: behind `after` and before `end` (empty: none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) key: String,
    pub(crate) after: String,
    pub(crate) end: &'static str,
    pub(crate) limit: u32,
}

/// A page of a hash, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldPage {
    pub(crate) fields: Vec<(String, Bytes)>,
    pub(crate) more: bool,
}

/// A conversation to enter into a user's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) user_id: String,
    pub(crate) conversation_id: String,
    pub(crate) activity: i64,
    /// Entries that the list may hold.
    pub(crate) most: u64,
    /// Whether any entry of a full list gives way, the oldest first; else a cleared one alone does.
    pub(crate) gives_way: bool,
    /// Outbox bodies; in the second is a place for the conversation that gave way.
    pub(crate) entered: Bytes,
    pub(crate) left: Bytes,
}

/// Where an entry stands in a list: by activity, then by conversation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) struct Spot(pub(crate) i64, pub(crate) String);

impl ListRow {
    /// Where it stands.
    pub(crate) fn spot(&self) -> Spot {
        Spot(self.activity, self.conversation_id.clone())
    }
}

impl Got {
    /// The value of a field that was asked for.
    pub(crate) fn field(self) -> Option<Bytes> {
        match self {
            Self::Field(value) => value,
            Self::All(_) | Self::Count(_) => None,
        }
    }
}

/// Which messages of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Window {
    Newest,
    Before(u64),
    After(u64),
}

/// Which messages of a conversation, and how many: of messages, and of bytes as [`crate::weight`] counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Page {
    pub(crate) window: Window,
    pub(crate) limit: u32,
    pub(crate) bytes: usize,
    /// Whether the first message comes whatever it weighs.
    pub(crate) first: bool,
}

impl Page {
    /// As much as one page gathers, one message at least.
    pub(crate) fn whole(window: Window, limit: u32) -> Self {
        Self { window, limit, bytes: weight::GATHERED, first: true }
    }
}

/// A stored message with what came upon it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) row: Bytes,
    pub(crate) overlay: Option<Bytes>,
}

/// A page of a conversation, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) seq: u64,
    pub(crate) floor: u64,
    pub(crate) messages: Vec<Stored>,
    /// There was no room in the bytes for the next message of the window.
    pub(crate) cut: bool,
}

/// The newest message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Last {
    /// There is none, or it was not asked for.
    #[default]
    None,
    /// Its row, and what came upon it.
    Row(Bytes, Option<Bytes>),
    /// There was no room in the bytes for it.
    Over,
}

/// A conversation as one user sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeadRow {
    /// The conversation's hash; empty: no such conversation.
    pub(crate) fields: Vec<(String, Bytes)>,
    pub(crate) member: Option<Bytes>,
    pub(crate) read: Option<Bytes>,
    pub(crate) own: Option<Bytes>,
    pub(crate) cleared: Option<Bytes>,
    pub(crate) delivered: Option<Bytes>,
    pub(crate) last: Last,
}

/// One member in join order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberRow {
    pub(crate) user_id: String,
    pub(crate) order: i64,
    pub(crate) row: Option<Bytes>,
}

/// A page of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberPage {
    pub(crate) version: u64,
    pub(crate) count: u64,
    pub(crate) members: Vec<MemberRow>,
}

/// One change of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberChange {
    pub(crate) user_id: String,
    /// The member version that it came with.
    pub(crate) version: u64,
    /// None: no member any more.
    pub(crate) row: Option<Bytes>,
}

/// Which changes of members: after a member version, and behind the change of a version and a member that was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) version: u64,
    pub(crate) behind: Option<(u64, String)>,
    pub(crate) limit: u32,
}

/// A page of changes of members, by version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangePage {
    pub(crate) version: u64,
    pub(crate) count: u64,
    /// None: what has changed since then is not known.
    pub(crate) changes: Option<Vec<MemberChange>>,
}

/// One entry of a user's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListRow {
    pub(crate) conversation_id: String,
    pub(crate) activity: i64,
    pub(crate) settings: Option<Bytes>,
}

/// Why an append, a cursor or a condition was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoConversation,
    NotMember,
    Blocked,
    Muted,
    Dissolved,
    HotLimit,
    NoUser,
    /// A set holds as much as it may.
    Full,
    /// A restoration came to a partition that is at its version, or above.
    NotAbove,
}

/// Why an operation did not answer.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub(crate) enum EngineError {
    /// Another instance holds the partition.
    #[error("the partition is held by {0:?}")]
    WrongHolder(Option<String>),
    /// Not done, or not known to be done.
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
    /// A bound was reached; nothing was done.
    #[error("{0}")]
    Exhausted(&'static str, Duration),
    /// Not in time: not done, or not known to be done.
    #[error("not in time")]
    Deadline,
    /// The data do not allow it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// A condition of a compare-and-swap does not hold.
    #[error("a condition does not hold")]
    Conflict,
    /// Stored data are damaged or missing.
    #[error("{0}")]
    DataLoss(String),
    /// The engine or its library failed at the call: it would fail again.
    #[error("the storage engine failed at the call")]
    Internal,
}

impl EngineError {
    /// Nothing was written: a retry is safe, and finds the claim that follows.
    pub(crate) fn moved() -> Self {
        Self::Unavailable("the partition changed hands: try again".into())
    }
}

/// The engine under the storage layer.
#[async_trait]
pub(crate) trait Engine: Send + Sync + 'static {
    /// Whether this instance holds the partition now.
    fn holds(&self, partition: u32) -> bool;
    /// Whether calls to these partitions, made one after the other, take effect in that order while none of them changes hands. A refusal
    /// is one of its call alone.
    fn in_order(&self, partitions: &[u32]) -> bool;
    /// The version of the partition's newest committed event.
    async fn version(&self, partition: u32, end: Instant) -> Result<u64, EngineError>;
    async fn append(&self, partition: u32, append: Append, end: Instant) -> Result<Appended, EngineError>;
    async fn cursor(&self, partition: u32, cursor: Cursor, end: Instant) -> Result<Moved, EngineError>;
    /// Raises activity hints of entries that the list holds; says whether it holds all of them.
    async fn hints(
        &self,
        partition: u32,
        user_id: &str,
        hints: Vec<(String, i64)>,
        end: Instant,
    ) -> Result<bool, EngineError>;
    /// Enters a conversation into a list, and an entry gives way where it is full; one that stands is raised. Says whether anything was told.
    async fn enter(&self, partition: u32, entry: Entry, end: Instant) -> Result<bool, EngineError>;
    async fn swap(&self, partition: u32, swap: Swap, end: Instant) -> Result<(), EngineError>;
    /// [`Engine::swap`] for what takes away, or writes over little: it is done at full memory, too, so that users can free what is theirs.
    async fn free(&self, partition: u32, swap: Swap, end: Instant) -> Result<(), EngineError>;
    async fn get(&self, partition: u32, wants: Vec<Want>, end: Instant) -> Result<Vec<Got>, EngineError>;
    /// None: no such conversation.
    async fn history(
        &self,
        partition: u32,
        conversation_id: &str,
        page: Page,
        end: Instant,
    ) -> Result<Option<History>, EngineError>;
    /// In the order of `conversation_ids`, all of one partition; with their last messages as far as these together weigh at most `last`.
    async fn heads(
        &self,
        partition: u32,
        user_id: &str,
        device_id: &str,
        last: usize,
        conversation_ids: Vec<String>,
        end: Instant,
    ) -> Result<Vec<HeadRow>, EngineError>;
    /// None: no such conversation.
    async fn members(
        &self,
        partition: u32,
        conversation_id: &str,
        after: i64,
        limit: u32,
        end: Instant,
    ) -> Result<Option<MemberPage>, EngineError>;
    /// What has changed of the members since a version; none: no such conversation.
    async fn changes(
        &self,
        partition: u32,
        conversation_id: &str,
        since: Since,
        end: Instant,
    ) -> Result<Option<ChangePage>, EngineError>;
    /// Entries of a user's list behind a spot (none: from the top), newest first.
    async fn list(
        &self,
        partition: u32,
        user_id: &str,
        behind: Option<&Spot>,
        limit: u32,
        end: Instant,
    ) -> Result<Vec<ListRow>, EngineError>;
    /// A page of a hash that is read in pages: friends and requests (`f:`), blocks (`b:`).
    async fn field_page(&self, partition: u32, range: Range, end: Instant) -> Result<FieldPage, EngineError>;
}

/// A partition that is being restored by its holder: nobody else writes to it.
#[async_trait]
pub(crate) trait Restoring: Send + Sync {
    /// Fields as they are stored.
    async fn fields(&self, fields: Vec<Field>) -> Result<Vec<Option<Bytes>>, EngineError>;
    /// Writes, and the version that they bring the partition to; refused if that is not above the stored one. A row for a place where
    /// another one stands, or that lies below the newest, is DATA_LOSS, and nothing is written.
    async fn restore(&self, ver: u64, writes: Vec<Write>) -> Result<(), EngineError>;
}
