//! The sessions of this gateway: who they are and how to reach the connection of each.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kith_proto::sessions::v1::Session;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::machine::io::Delivery;

/// Deliveries that wait for one connection; with more its reader is too slow.
pub(crate) const QUEUE: usize = 256;

/// What the rest of the gateway tells a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// Show this.
    Deliver(Delivery),
    /// Something may have been lost.
    Suspect,
    /// Close.
    Kick { code: u16, reason: String },
    /// Tell the client to come back later, and close.
    Drain { after_ms: u64 },
}

/// A session and the way to its connection.
#[derive(Debug)]
pub(crate) struct Handle {
    /// As it is reported, but for `fresh`.
    pub(crate) session: Session,
    commands: mpsc::Sender<Command>,
    /// Cancelled when the queue was full: a delivery is lost to this connection.
    slow: CancellationToken,
    /// Whether an owner has been told of it.
    reported: AtomicBool,
}

impl Handle {
    pub(crate) fn new(session: Session, commands: mpsc::Sender<Command>, slow: CancellationToken) -> Self {
        Self { session, commands, slow, reported: AtomicBool::new(false) }
    }

    /// Hands a command over; one that finds no room ends the connection.
    pub(crate) fn tell(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            metrics::counter!("kith_gateway_overflows_total").increment(1);
            self.slow.cancel();
        }
    }

    /// True once: the first report of a session is its login.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.reported.swap(true, Ordering::Relaxed)
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Registry(RwLock<HashMap<String, Arc<Handle>>>);

impl Registry {
    pub(crate) fn insert(&self, handle: Arc<Handle>) {
        self.0.write().insert(handle.session.session_id.clone(), handle);
    }

    pub(crate) fn remove(&self, session_id: &str) {
        self.0.write().remove(session_id);
    }

    pub(crate) fn get(&self, session_id: &str) -> Option<Arc<Handle>> {
        self.0.read().get(session_id).cloned()
    }

    pub(crate) fn contains(&self, session_id: &str) -> bool {
        self.0.read().contains_key(session_id)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.read().len()
    }

    /// All of them, as they are now.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Handle>> {
        self.0.read().values().cloned().collect()
    }

    /// The connections of many sessions.
    pub(crate) fn find(&self, session_ids: &[String]) -> Vec<Arc<Handle>> {
        let sessions = self.0.read();
        session_ids.iter().filter_map(|id| sessions.get(id).cloned()).collect()
    }
}
