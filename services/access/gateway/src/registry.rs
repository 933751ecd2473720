//! The sessions of this gateway: who they are and how to reach the connection of each.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
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
    /// A kick may have been missed.
    Recheck,
    /// Tell the client to come back later, and close.
    Drain { after_ms: u64 },
}

/// How a connection is ended from outside, whatever it is doing: it may be waiting for a client that does not read.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    token: CancellationToken,
    kick: OnceLock<Kick>,
}

/// `sessions` ends the session.
#[derive(Debug, Clone)]
pub(crate) struct Kick {
    /// A close code of API.md.
    pub(crate) code: u16,
    /// In words.
    pub(crate) reason: String,
}

impl Cut {
    /// Resolves when the connection is to end.
    pub(crate) async fn cut(&self) {
        self.token.cancelled().await;
    }

    /// Whether it is.
    pub(crate) fn is_cut(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Why, when it is a kick; else the reader was too slow.
    pub(crate) fn kick(&self) -> Option<&Kick> {
        self.kick.get()
    }
}

/// A session and the way to its connection.
#[derive(Debug)]
pub(crate) struct Handle {
    /// As it is reported, but for `fresh` and the token.
    pub(crate) session: Session,
    /// When the newest token was issued, Unix ms.
    token_issued_at: AtomicI64,
    commands: mpsc::Sender<Command>,
    cut: Arc<Cut>,
    /// Whether an owner has been told of it.
    reported: AtomicBool,
}

impl Handle {
    pub(crate) fn new(session: Session, commands: mpsc::Sender<Command>, cut: Arc<Cut>) -> Self {
        let token_issued_at = AtomicI64::new(session.token_issued_at);
        Self { session, token_issued_at, commands, cut, reported: AtomicBool::new(false) }
    }

    /// Hands a command over; one that finds no room ends the connection: a delivery is lost to it.
    pub(crate) fn tell(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            metrics::counter!("kith_gateway_overflows_total").increment(1);
            self.cut.token.cancel();
        }
    }

    /// Ends the connection, ahead of everything else.
    pub(crate) fn kick(&self, kick: Kick) {
        // The first one stands.
        drop(self.cut.kick.set(kick));
        self.cut.token.cancel();
    }

    /// The client has given a newer token.
    pub(crate) fn renewed(&self, issued_at: i64) {
        self.token_issued_at.fetch_max(issued_at, Ordering::Relaxed);
    }

    /// The session as an owner is told of it now.
    pub(crate) fn report(&self, fresh: bool) -> Session {
        let token_issued_at = self.token_issued_at.load(Ordering::Relaxed);
        Session { fresh, token_issued_at, ..self.session.clone() }
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
