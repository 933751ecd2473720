//! One partition as this instance knows it: whether it is held, under which claim, and how far its writes are committed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::node::Node;
use crate::engine::EngineError;

/// The right to write to a partition on one node, until it is fenced or void.
pub(crate) struct Claim {
    /// Random; what the engine compares.
    pub(super) token: [u8; 16],
    pub(super) node: Arc<Node>,
    /// The highest version that is known to be committed.
    committed: AtomicU64,
    void: AtomicBool,
    moved: Notify,
    doubt: Mutex<Doubt>,
}

/// Writes that stand on the primary and are not known to be on enough replicas: they may be lost with it, so reads leave them out.
#[derive(Clone, Default)]
pub(super) struct Doubt {
    /// The highest version in doubt; 0: none.
    upto: u64,
    /// The first message in doubt of each conversation.
    messages: HashMap<String, u64>,
    /// More than messages is in doubt.
    other: bool,
}

impl Doubt {
    /// The first message of a conversation that must not be shown.
    pub(super) fn first(&self, conversation_id: &str) -> Option<u64> {
        self.messages.get(conversation_id).copied()
    }
}

impl Claim {
    pub(super) fn new(token: [u8; 16], node: Arc<Node>, committed: u64) -> Self {
        Self {
            token,
            node,
            committed: AtomicU64::new(committed),
            void: AtomicBool::new(false),
            moved: Notify::new(),
            doubt: Mutex::default(),
        }
    }

    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(super) fn commit(&self, ver: u64) {
        self.committed.fetch_max(ver, Ordering::AcqRel);
        let mut doubt = self.doubt.lock();
        if doubt.upto != 0 && doubt.upto <= self.committed() {
            *doubt = Doubt::default();
        }
        drop(doubt);
        self.moved.notify_waiters();
    }

    /// A write up to `ver` stands on the primary alone; `message` says which, if it is one.
    pub(super) fn doubt(&self, ver: u64, message: Option<(String, u64)>) {
        let mut doubt = self.doubt.lock();
        doubt.upto = doubt.upto.max(ver);
        match message {
            Some((conversation_id, seq)) => {
                doubt.messages.entry(conversation_id).or_insert(seq);
            }
            None => doubt.other = true,
        }
        drop(doubt);
        self.moved.notify_waiters();
    }

    pub(super) fn is_void(&self) -> bool {
        self.void.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.void.store(true, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Waits until everything up to `ver` is committed: what a read has seen may be shown then. What is left in doubt meanwhile, the reader
    /// must leave out: only messages, else the wait goes on.
    pub(super) async fn reached(&self, ver: u64, end: Instant) -> Result<Option<Doubt>, EngineError> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.committed() >= ver {
                return Ok(None);
            }
            let known = Some(&*self.doubt.lock()).filter(|d| d.upto >= ver && !d.other).cloned();
            if known.is_some() {
                return Ok(known);
            }
            if self.is_void() {
                return Err(EngineError::Unavailable(
                    "the storage engine changed hands during the call: try again".into(),
                ));
            }
            if tokio::time::timeout_at(end, moved).await.is_err() {
                return Err(EngineError::Deadline);
            }
        }
    }
}

/// Whether and how a partition is held.
#[derive(Clone)]
pub(crate) enum State {
    /// Not held; who fenced it, if that is why.
    Closed(Option<String>),
    /// This instance is about to hold it.
    Claiming,
    Open(Arc<Claim>),
    /// Stored data are older than what was acknowledged: closed until repaired.
    Lost(Loss),
    /// This instance restores it from the event log.
    Repairing,
}

/// Why a partition is closed until it is repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) what: String,
    /// The stored version, where the store could be read: then the event log may help.
    pub(crate) stored: Option<u64>,
}

/// An event that is committed and not yet on the event log.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) ver: u64,
    pub(crate) body: Bytes,
    pub(crate) row: Option<Bytes>,
}

impl Pending {
    pub(crate) fn bytes(&self) -> u64 {
        // What the engine and the queue need beside the texts.
        (self.body.len() + self.row.as_ref().map_or(0, Bytes::len) + 64) as u64
    }
}

/// How far a partition's outbox is published.
#[derive(Default)]
pub(crate) struct Backlog {
    /// The highest version that Kafka has acknowledged under this claim.
    pub(crate) published: u64,
    /// The highest version that the engine was told to trim.
    pub(crate) trimmed: u64,
    /// Committed events in order, ending with the newest; older ones may be in the engine alone.
    pub(crate) queue: VecDeque<Pending>,
    pub(crate) queue_bytes: u64,
    /// Bytes counted against the bound.
    pub(crate) bytes: u64,
    /// Whether a task publishes this partition now.
    pub(crate) running: bool,
}

/// One partition.
pub(crate) struct Partition {
    pub(crate) number: u32,
    /// `{tag}v`
    pub(super) key: String,
    pub(super) state: watch::Sender<State>,
    /// The highest version that this instance has ever committed: less in the store is loss.
    pub(super) high: AtomicU64,
    pub(crate) backlog: Mutex<Backlog>,
}

impl Partition {
    pub(super) fn new(number: u32, key: String) -> Self {
        Self {
            number,
            key,
            state: watch::Sender::new(State::Closed(None)),
            high: AtomicU64::new(0),
            backlog: Mutex::default(),
        }
    }

    pub(super) fn claim(&self) -> Option<Arc<Claim>> {
        match &*self.state.borrow() {
            State::Open(claim) => Some(claim.clone()),
            _ => None,
        }
    }

    /// Records a commit under `claim`.
    pub(super) fn commit(&self, claim: &Claim, ver: u64) {
        self.high.fetch_max(ver, Ordering::AcqRel);
        claim.commit(ver);
    }

    /// Ends `claim` if it still stands; says whether it did.
    pub(super) fn close(&self, claim: &Arc<Claim>, next: State) -> bool {
        claim.end();
        self.state.send_if_modified(|state| {
            let stands = matches!(state, State::Open(open) if Arc::ptr_eq(open, claim));
            if stands {
                *state = next;
            }
            stands
        })
    }
}
