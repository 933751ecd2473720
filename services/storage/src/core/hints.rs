//! The activity hints by which users' lists are ordered, written lazily.
//!
//! No row is written per recipient per message. When a message is stored and the conversation's hints are older than a minute (longer in
//! large groups), the hints of its members' entries are raised in the background. So an entry's place is at most that much behind the
//! truth: a conversation that is active now stands among those active within the last minute, and pages are sorted by the true activity
//! within themselves. A hint that is lost with a crash comes with the next message.

use std::{collections::HashMap, time::Duration};

use kith_kit::ids;
use kith_proto::storage::v1::Step;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Core, peers};

/// How old hints may be, for every so many members.
const STALE_MS: i64 = 60_000;
const MEMBERS_PER_STALE: u32 = 500;
const MOST_STALE_MS: i64 = 3_600_000;
/// Conversations remembered; the oldest are forgotten, which costs one early hint each.
const REMEMBERED: usize = 100_000;
/// Jobs waiting; more are dropped: the next message asks again.
const JOBS: usize = 4_096;
/// Jobs done at once.
const GROUP: usize = 64;
const PAGE: u32 = 500;
const GATHER: Duration = Duration::from_millis(20);

pub(super) struct Job {
    conversation_id: String,
    sender_id: String,
    at_ms: i64,
}

pub(super) struct Hints {
    /// When hints are due again.
    due: Mutex<HashMap<String, i64>>,
    jobs: mpsc::Sender<Job>,
}

impl Hints {
    pub(super) fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS);
        (Self { due: Mutex::default(), jobs }, queue)
    }

    /// The lists have this activity already.
    pub(super) fn fresh(&self, conversation_id: &str, at_ms: i64) {
        self.set_due(conversation_id, at_ms + STALE_MS);
    }

    fn set_due(&self, conversation_id: &str, due_ms: i64) {
        let mut due = self.due.lock();
        if due.len() >= REMEMBERED {
            let now = due_ms - STALE_MS;
            due.retain(|_, at| *at > now);
            if due.len() >= REMEMBERED {
                due.clear();
            }
        }
        due.insert(conversation_id.to_owned(), due_ms);
    }

    /// Whether the conversation is known to stand; false says nothing.
    pub(super) fn knows(&self, conversation_id: &str) -> bool {
        self.due.lock().contains_key(conversation_id)
    }

    /// A message was stored.
    pub(super) fn stored(&self, conversation_id: &str, sender_id: &str, at_ms: i64) {
        if self.due.lock().get(conversation_id).is_some_and(|due| at_ms < *due) {
            return;
        }
        self.set_due(conversation_id, at_ms + STALE_MS);
        let job = Job { conversation_id: conversation_id.to_owned(), sender_id: sender_id.to_owned(), at_ms };
        if self.jobs.try_send(job).is_err() {
            self.due.lock().remove(conversation_id);
            metrics::counter!("kith_storage_hints_dropped_total").increment(1);
        }
    }
}

/// Raises hints as long as the core lives.
pub(super) fn start(core: &Core, mut jobs: mpsc::Receiver<Job>) {
    let weak = std::sync::Arc::downgrade(&core.0);
    tokio::spawn(async move {
        let mut group = Vec::new();
        while jobs.recv_many(&mut group, GROUP).await > 0 {
            let Some(inner) = weak.upgrade() else { return };
            let core = Core(inner);
            let mut steps = Vec::new();
            for job in group.drain(..) {
                core.raise(job, &mut steps).await;
            }
            core.send_hints(steps).await;
            tokio::time::sleep(GATHER).await;
        }
    });
}

impl Core {
    async fn raise(&self, job: Job, steps: &mut Vec<Step>) {
        let Job { conversation_id, sender_id, at_ms } = job;
        if conversation_id.starts_with("d:") {
            // An id with colons may be read in several ways: a hint for a list without the entry changes nothing.
            steps.push(peers::hint(&sender_id, &conversation_id, at_ms));
            for peer in ids::direct_peers(&conversation_id, &sender_id) {
                steps.push(peers::hint(peer, &conversation_id, at_ms));
            }
            return;
        }
        let partition = self.partition(&conversation_id);
        let mut after = -1;
        loop {
            let page = match self.engine().members(partition, &conversation_id, after, PAGE, Self::end()).await {
                Ok(Some(page)) => page,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, %conversation_id, "hints wait for the next message");
                    return;
                }
            };
            let factor = 1 + i64::try_from(page.count).unwrap_or(0) / i64::from(MEMBERS_PER_STALE);
            self.0.hints.set_due(&conversation_id, at_ms + (STALE_MS * factor).min(MOST_STALE_MS));
            let Some(last) = page.members.last() else { return };
            after = last.order;
            let full = page.members.len() == PAGE as usize;
            steps.extend(page.members.iter().map(|m| peers::hint(&m.user_id, &conversation_id, at_ms)));
            if !full {
                return;
            }
            self.send_hints(std::mem::take(steps)).await;
        }
    }

    async fn send_hints(&self, mut steps: Vec<Step>) {
        while !steps.is_empty() {
            let rest = steps.split_off(steps.len().min(peers::MOST_STEPS));
            let chunk = std::mem::replace(&mut steps, rest);
            if let Err(error) = self.apply(chunk).await {
                tracing::debug!(%error, "hints wait for the next message");
            }
        }
    }
}
