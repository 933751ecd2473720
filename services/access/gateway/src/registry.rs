//! The sessions of this gateway: who they are and how to reach the connection of each.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use kith_proto::sessions::v1::Session;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{frame::close, machine::io::Delivery};

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
    /// A close code of the contract.
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
#[derive(Debug)]
pub(crate) struct Registry {
    known: RwLock<Known>,
    per_user: usize,
}

#[derive(Debug, Default)]
struct Known {
    sessions: HashMap<String, Arc<Handle>>,
    /// Of each user, the sessions by id.
    users: HashMap<String, Vec<String>>,
}

impl Registry {
    /// For `per_user` devices of one user at once.
    pub(crate) fn new(per_user: u32) -> Self {
        Self { known: RwLock::default(), per_user: per_user as usize }
    }

    /// Makes a session known. Where its user has as many other devices here already, it ends at once. One of the same device does not count:
    /// it is about to be replaced.
    pub(crate) fn insert(&self, handle: &Arc<Handle>) {
        let Session { session_id, user_id, device_id, .. } = &handle.session;
        let mut known = self.known.write();
        let Known { sessions, users } = &mut *known;
        let of_user = users.entry(user_id.clone()).or_default();
        let devices = of_user.iter().filter_map(|id| sessions.get(id)).map(|h| h.session.device_id.as_str());
        let others: HashSet<&str> = devices.filter(|device| device != device_id).collect();
        let full = others.len() >= self.per_user;
        of_user.push(session_id.clone());
        sessions.insert(session_id.clone(), handle.clone());
        drop(known);
        if full {
            let reason = format!("more than {} connections of this user at this gateway", self.per_user);
            handle.kick(Kick { code: close::TOO_MANY, reason });
        }
    }

    pub(crate) fn remove(&self, session_id: &str) {
        let mut known = self.known.write();
        let Known { sessions, users } = &mut *known;
        let Some(handle) = sessions.remove(session_id) else { return };
        if let Some(of_user) = users.get_mut(&handle.session.user_id) {
            of_user.retain(|id| id != session_id);
            if of_user.is_empty() {
                users.remove(&handle.session.user_id);
            }
        }
    }

    pub(crate) fn get(&self, session_id: &str) -> Option<Arc<Handle>> {
        self.known.read().sessions.get(session_id).cloned()
    }

    pub(crate) fn contains(&self, session_id: &str) -> bool {
        self.known.read().sessions.contains_key(session_id)
    }

    pub(crate) fn len(&self) -> usize {
        self.known.read().sessions.len()
    }

    /// All of them, as they are now.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Handle>> {
        self.known.read().sessions.values().cloned().collect()
    }

    /// The connections of many sessions.
    pub(crate) fn find(&self, session_ids: &[String]) -> Vec<Arc<Handle>> {
        let known = self.known.read();
        session_ids.iter().filter_map(|id| known.sessions.get(id).cloned()).collect()
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
        let (sender, mut commands) = mpsc::channel(256);
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

    #[test]
    fn a_user_has_so_many_devices_at_a_gateway_and_others_are_not_touched() {
        let registry = Registry::new(2);
        let open = |user: &str, device: &str, id: &str| {
            let text = str::to_owned;
            let session =
                Session { session_id: text(id), user_id: text(user), device_id: text(device), ..Session::default() };
            let cut = Arc::<Cut>::default();
            registry.insert(&Arc::new(Handle::new(session, mpsc::channel(1).0, cut.clone())));
            cut
        };
        let first = [open("alice", "d1", "s1"), open("alice", "d2", "s2")];
        let third = open("alice", "d3", "s3");
        assert_eq!(third.kick().map(|kick| kick.code), Some(close::TOO_MANY));
        registry.remove("s3");
        assert!(!open("alice", "d2", "s4").is_cut(), "the same device again");
        assert!(!open("bob", "d1", "s5").is_cut());
        registry.remove("s1");
        assert!(!open("alice", "d3", "s6").is_cut(), "there is room again");
        assert!(first.iter().all(|cut| !cut.is_cut()));
        for id in ["s2", "s4", "s5", "s6"] {
            registry.remove(id);
        }
        assert!(registry.known.read().users.is_empty());
    }
}
