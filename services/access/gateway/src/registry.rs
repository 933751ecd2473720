//! The sessions of this gateway: who they are and how to reach the connection of each.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use kith_proto::sessions::v1::Session;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::machine::io::Delivery;

/// Deliveries that wait for one connection; with more its reader is too slow.
pub(crate) const QUEUE: usize = 256;
/// Bytes of those. What is more is left out, and read from storage when the client has taken the rest: as much at once as it may have.
const QUEUE_BYTES: usize = 4 << 20;

/// What the rest of the gateway tells a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// Show this.
    Deliver(Delivery),
    /// Something may have been lost.
    Suspect,
    /// Deliveries were left out: there was no room for them.
    LeftOut,
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
    /// Bytes of the deliveries among them.
    queued: AtomicUsize,
    /// Whether deliveries were left out of which the connection has not heard yet.
    left_out: AtomicBool,
    cut: Arc<Cut>,
    /// Whether an owner has been told of it.
    reported: AtomicBool,
}

impl Handle {
    pub(crate) fn new(session: Session, commands: mpsc::Sender<Command>, cut: Arc<Cut>) -> Self {
        let token_issued_at = AtomicI64::new(session.token_issued_at);
        Self {
            session,
            token_issued_at,
            commands,
            queued: AtomicUsize::new(0),
            left_out: AtomicBool::new(false),
            cut,
            reported: AtomicBool::new(false),
        }
    }

    /// Hands a command over; one that finds no room ends the connection: a delivery is lost to it.
    pub(crate) fn tell(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            metrics::counter!("kith_gateway_overflows_total").increment(1);
            self.cut.token.cancel();
        }
    }

    /// Hands a delivery over. Messages for which there is no room are left out; the connection is told once, and reads them itself.
    pub(crate) fn deliver(&self, delivery: Delivery) {
        let bytes = delivery.bytes();
        let before = self.queued.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= QUEUE_BYTES;
        if fits || matches!(delivery, Delivery::Event(_)) {
            return self.tell(Command::Deliver(delivery));
        }
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        if !self.left_out.swap(true, Ordering::AcqRel) {
            metrics::counter!("kith_gateway_left_out_total").increment(1);
            self.tell(Command::LeftOut);
        }
    }

    /// The connection has taken a command.
    pub(crate) fn taken(&self, command: &Command) {
        match command {
            Command::Deliver(delivery) => {
                self.queued.fetch_sub(delivery.bytes(), Ordering::Relaxed);
            }
            // Before it reads: what is left out from now on may not be in what it reads.
            Command::LeftOut => self.left_out.store(false, Ordering::Release),
            Command::Suspect | Command::Recheck | Command::Drain { .. } => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::order::Item;

    fn messages(bytes: usize) -> Delivery {
        let json = "x".repeat(bytes).into();
        let items = Arc::new([Item { conversation_id: "c".into(), seq: 1, json }]);
        Delivery::Messages { items, more: Arc::new([]), catch_up: false, done: false, failed: false }
    }

    #[test]
    fn messages_that_wait_for_a_slow_reader_are_bounded_in_bytes_and_the_connection_is_told_what_is_left_out() {
        let (sender, mut commands) = mpsc::channel(QUEUE);
        let cut = Arc::<Cut>::default();
        let handle = Handle::new(Session::default(), sender, cut.clone());
        for _ in 0..20 {
            handle.deliver(messages(1 << 20));
        }
        handle.deliver(Delivery::Event("e".into()));
        let mut taken = |handle: &Handle| {
            let mut words = String::new();
            while let Ok(command) = commands.try_recv() {
                handle.taken(&command);
                words.push(match command {
                    Command::Deliver(Delivery::Messages { .. }) => 'm',
                    Command::Deliver(Delivery::Event(_)) => 'e',
                    Command::LeftOut => 'l',
                    _ => '?',
                });
            }
            words
        };
        assert_eq!(taken(&handle), "mmmmle", "events are small, and nothing else would bring them back");
        assert_eq!(handle.queued.load(Ordering::Relaxed), 0);
        handle.deliver(messages(2 * QUEUE_BYTES));
        handle.deliver(messages(1));
        assert_eq!(taken(&handle), "ml", "one always has room");
        assert!(!cut.is_cut());
    }
}
