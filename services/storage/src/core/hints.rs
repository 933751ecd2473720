//! The activity hints by which users' lists are ordered, written lazily.
//!
//! No row is written per recipient per message. When a message is stored and the conversation's hints are older than a minute (longer in
//! large groups), the hints of its members' entries are raised in the background; of what comes within that time, the last one raises them
//! when it is over. So an entry's place is at most that much behind the truth, and right soon after the last message. A hint that is lost
//! with a crash comes with the next message, or with the next page that shows the conversation.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use kith_contract::ids;
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
/// How often it is looked for hints that have become due.
const LOOK: Duration = Duration::from_secs(1);
/// What writing a hint takes, and clocks that differ.
const SLACK_MS: i64 = 5_000;

/// How far behind the truth the hint of a conversation's entries may be.
pub(super) fn most_stale(conversation_id: &str) -> i64 {
    SLACK_MS + if conversation_id.starts_with("d:") { STALE_MS } else { MOST_STALE_MS }
}

pub(super) struct Job {
    conversation_id: String,
    sender_id: String,
    at_ms: i64,
}

/// When a conversation's hints are due again, and the newest message that waits for that.
struct Due {
    at_ms: i64,
    waits: Option<(String, i64)>,
}

#[derive(Default)]
struct Dues {
    by_id: HashMap<String, Due>,
    /// Those with a message that waits, by when they are due.
    queue: BinaryHeap<Reverse<(i64, String)>>,
}

pub(super) struct Hints {
    dues: Mutex<Dues>,
    jobs: mpsc::Sender<Job>,
}

impl Dues {
    fn set(&mut self, conversation_id: &str, at_ms: i64) {
        if let Some(due) = self.by_id.get_mut(conversation_id) {
            due.at_ms = at_ms;
            return;
        }
        if self.by_id.len() >= REMEMBERED {
            let now = at_ms - STALE_MS;
            self.by_id.retain(|_, due| due.at_ms > now || due.waits.is_some());
            if self.by_id.len() >= REMEMBERED {
                self.by_id.clear();
                self.queue.clear();
            }
        }
        self.by_id.insert(conversation_id.to_owned(), Due { at_ms, waits: None });
    }

    /// Messages that have waited until their hints were due.
    fn overdue(&mut self, now_ms: i64) -> Vec<Job> {
        let mut jobs = Vec::new();
        while self.queue.peek().is_some_and(|Reverse((at, _))| *at <= now_ms) {
            let Some(Reverse((_, conversation_id))) = self.queue.pop() else { break };
            let Some(due) = self.by_id.get_mut(&conversation_id) else { continue };
            if due.at_ms > now_ms {
                // A large group's hints are due later than it seemed.
                self.queue.push(Reverse((due.at_ms, conversation_id)));
            } else if let Some((sender_id, at_ms)) = due.waits.take() {
                due.at_ms = now_ms + STALE_MS;
                jobs.push(Job { conversation_id, sender_id, at_ms });
            }
        }
        jobs
    }
}

impl Hints {
    pub(super) fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS);
        (Self { dues: Mutex::default(), jobs }, queue)
    }

    /// The lists have this activity already.
    pub(super) fn fresh(&self, conversation_id: &str, at_ms: i64) {
        self.set_due(conversation_id, at_ms + STALE_MS);
    }

    /// The next message raises the hints at once.
    pub(super) fn forget(&self, conversation_id: &str) {
        self.dues.lock().by_id.remove(conversation_id);
    }

    fn set_due(&self, conversation_id: &str, due_ms: i64) {
        self.dues.lock().set(conversation_id, due_ms);
    }

    /// Whether the conversation is known to stand; false says nothing.
    pub(super) fn knows(&self, conversation_id: &str) -> bool {
        self.dues.lock().by_id.contains_key(conversation_id)
    }

    /// A message was stored.
    pub(super) fn stored(&self, conversation_id: &str, sender_id: &str, at_ms: i64) {
        {
            let mut dues = self.dues.lock();
            let Dues { by_id, queue } = &mut *dues;
            if let Some(due) = by_id.get_mut(conversation_id).filter(|due| at_ms < due.at_ms) {
                match &mut due.waits {
                    Some((_, newest)) => *newest = at_ms.max(*newest),
                    None => {
                        due.waits = Some((sender_id.to_owned(), at_ms));
                        queue.push(Reverse((due.at_ms, conversation_id.to_owned())));
                    }
                }
                return;
            }
            dues.set(conversation_id, at_ms + STALE_MS);
        }
        let job = Job { conversation_id: conversation_id.to_owned(), sender_id: sender_id.to_owned(), at_ms };
        if self.jobs.try_send(job).is_err() {
            self.forget(conversation_id);
            metrics::counter!("kith_storage_hints_dropped_total").increment(1);
        }
    }
}

/// Raises hints as long as the core lives.
pub(super) fn start(core: &Core, mut jobs: mpsc::Receiver<Job>) {
    let weak = std::sync::Arc::downgrade(&core.0);
    tokio::spawn(async move {
        let mut group = Vec::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            let ended = tokio::select! {
                taken = jobs.recv_many(&mut group, GROUP) => taken == 0,
                _ = look.tick() => false,
            };
            let Some(inner) = weak.upgrade().filter(|_| !ended) else { return };
            let core = Core(inner);
            group.extend(core.0.hints.dues.lock().overdue(Core::now()));
            if group.is_empty() {
                continue;
            }
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
            steps.push(peers::hint(&sender_id, &conversation_id, at_ms));
            steps.extend(
                ids::direct_peer(&conversation_id, &sender_id).map(|peer| peers::hint(peer, &conversation_id, at_ms)),
            );
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
            self.0.hints.set_due(&conversation_id, at_ms + STALE_MS.saturating_mul(factor).min(MOST_STALE_MS));
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

    pub(super) async fn send_hints(&self, mut steps: Vec<Step>) {
        while !steps.is_empty() {
            let rest = steps.split_off(steps.len().min(peers::MOST_STEPS));
            let chunk = std::mem::replace(&mut steps, rest);
            if let Err(error) = self.apply(chunk).await {
                tracing::debug!(%error, "hints wait for the next message");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(jobs: &mut mpsc::Receiver<Job>) -> Vec<(String, i64)> {
        std::iter::from_fn(|| jobs.try_recv().ok()).map(|job| (job.conversation_id, job.at_ms)).collect()
    }

    #[test]
    fn the_last_message_of_a_burst_raises_the_hints_too() {
        let (hints, mut jobs) = Hints::new();
        for at in [1_000, 2_000, 59_000] {
            hints.stored("d:a:b", "a", at);
        }
        assert_eq!(taken(&mut jobs), [("d:a:b".to_owned(), 1_000)]);
        let due = |now| hints.dues.lock().overdue(now).into_iter().map(|job| job.at_ms).collect::<Vec<_>>();
        assert!(due(60_999).is_empty());
        assert_eq!(due(61_000), [59_000]);
        assert!(due(200_000).is_empty(), "once");
        hints.stored("d:a:b", "a", 130_000);
        assert_eq!(taken(&mut jobs), [("d:a:b".to_owned(), 130_000)]);
    }

    #[test]
    fn after_a_clear_the_next_message_raises_the_hints_at_once() {
        let (hints, mut jobs) = Hints::new();
        hints.stored("d:a:b", "a", 1_000);
        hints.forget("d:a:b");
        hints.stored("d:a:b", "b", 2_000);
        assert_eq!(taken(&mut jobs).len(), 2);
        assert!(hints.dues.lock().overdue(i64::MAX - STALE_MS).is_empty());
    }
}
