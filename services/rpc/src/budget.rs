//! Bytes that callers may have under way at once: of the whole process, and of one caller.
//!
//! What an answer will weigh is not known before it is made, and by then it takes its memory. So room is held for what it can come to, then
//! for what it is, until the caller has taken it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// What one permit stands for.
const UNIT: usize = 1 << 10;
/// Of all callers, and of one.
const ALL: usize = 96 << 20;
const CALLER: usize = 16 << 20;
/// How long who may be refused waits for others to be through.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The budget of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Arc<Semaphore>,
    callers: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// What one caller may hold.
    share: usize,
    refused: &'static str,
}

/// Bytes that are held; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    /// Of this one.
    own: Option<OwnedSemaphorePermit>,
    /// Of all callers.
    all: Option<OwnedSemaphorePermit>,
    caller: String,
    budget: Budget,
}

impl Budget {
    /// Of a process; `refused` is the name of the counter of refusals.
    pub fn new(refused: &'static str) -> Self {
        Self::with_share(refused, CALLER)
    }

    /// The same, of which one caller may hold `share` bytes: where a caller is a whole back end.
    pub fn with_share(refused: &'static str, share: usize) -> Self {
        let all = Arc::new(Semaphore::new(ALL / UNIT));
        Self(Arc::new(Inner { all, callers: Mutex::default(), share: share.clamp(UNIT, ALL), refused }))
    }

    /// At least one, and never more than a caller has.
    fn units(&self, bytes: usize) -> u32 {
        bytes.div_ceil(UNIT).clamp(1, self.0.share / UNIT) as u32
    }

    /// Holds `bytes` for `caller`, as soon as there is room.
    pub async fn wait(&self, caller: &str, bytes: usize) -> Held {
        let units = self.units(bytes);
        let own = || Arc::new(Semaphore::new(self.0.share / UNIT));
        let own = self.0.callers.lock().entry(caller.to_owned()).or_insert_with(own).clone();
        // Made at once: whoever gives up waiting forgets the caller, too.
        let mut held = Held { own: None, all: None, caller: caller.to_owned(), budget: self.clone() };
        // The caller's own first: who has too much under way waits for themselves and takes nothing from others. Neither is ever closed.
        held.own = own.acquire_many_owned(units).await.ok();
        held.all = self.0.all.clone().acquire_many_owned(units).await.ok();
        held
    }

    /// [`Budget::wait`]; RESOURCE_EXHAUSTED when there is no room for too long.
    pub async fn hold(&self, caller: &str, bytes: usize) -> Result<Held, Error> {
        tokio::time::timeout(PATIENCE, self.wait(caller, bytes)).await.map_err(|_| self.refuse())
    }

    fn refuse(&self) -> Error {
        metrics::counter!(self.0.refused).increment(1);
        Error::exhausted("too many large answers are under way: read those that were asked for", Duration::from_secs(2))
    }

    /// Forgets a caller of whom nothing is held.
    fn forget(&self, caller: &str) {
        let mut callers = self.0.callers.lock();
        // Who waits holds a clone of it.
        if callers
            .get(caller)
            .is_some_and(|own| Arc::strong_count(own) == 1 && own.available_permits() == self.0.share / UNIT)
        {
            callers.remove(caller);
        }
    }
}

impl Held {
    /// Gives back what is held above `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let keep = self.budget.units(bytes) as usize;
        for held in [&mut self.own, &mut self.all].into_iter().flatten() {
            drop(held.split(held.num_permits().saturating_sub(keep)));
        }
    }

    /// Holds `bytes`, where an answer has come to more than was held; RESOURCE_EXHAUSTED when there is no room for too long.
    pub async fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let budget = self.budget.clone();
        let more = async {
            for held in [&mut self.own, &mut self.all].into_iter().flatten() {
                let missing = budget.units(bytes).saturating_sub(held.num_permits() as u32);
                if let Ok(more) = held.semaphore().clone().acquire_many_owned(missing).await {
                    held.merge(more);
                }
            }
        };
        tokio::time::timeout(PATIENCE, more).await.map_err(|_| budget.refuse())
    }

    /// What is held waits for its caller alone from now on: however slowly that one takes it, others are served.
    pub fn made(&mut self, bytes: usize) {
        self.shrink(bytes);
        self.all = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop((self.own.take(), self.all.take()));
        self.budget.forget(&self.caller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget::new("kith_test_over_budget_total")
    }

    #[tokio::test]
    async fn a_caller_who_holds_too_much_waits_for_themselves_and_others_do_not() {
        let budget = budget();
        let held = budget.hold("mallory", CALLER).await.unwrap();
        let refused = budget.hold("mallory", UNIT).await.err().unwrap();
        assert_eq!(refused.http_status(), 429);
        assert!(refused.retry_after.is_some());
        drop(budget.hold("alice", CALLER).await.unwrap());
        drop(held);
        drop(budget.hold("mallory", CALLER).await.unwrap());
        assert!(budget.0.callers.lock().is_empty(), "who holds nothing is not remembered");
        assert_eq!(budget.0.all.available_permits(), ALL / UNIT);
    }

    #[tokio::test]
    async fn what_an_answer_does_not_need_is_given_back_at_once() {
        let budget = budget();
        let mut held = budget.hold("alice", CALLER).await.unwrap();
        held.shrink(UNIT);
        let more = budget.hold("alice", CALLER - UNIT).await;
        assert!(more.is_ok());
        held.shrink(CALLER);
        drop((held, more));
        assert!(budget.0.callers.lock().is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_comes_to_more_than_was_held_takes_the_rest_or_is_refused() {
        let budget = budget();
        let mut held = budget.hold("alice", UNIT).await.unwrap();
        held.grow(CALLER).await.unwrap();
        assert_eq!(budget.0.all.available_permits(), (ALL - CALLER) / UNIT);
        held.shrink(UNIT);
        let other = budget.hold("alice", CALLER - UNIT).await.unwrap();
        assert_eq!(held.grow(2 * UNIT).await.unwrap_err().http_status(), 429);
        drop((held, other));
        assert_eq!(budget.0.all.available_permits(), ALL / UNIT);
        assert!(budget.0.callers.lock().is_empty());
    }

    #[tokio::test]
    async fn many_callers_together_hold_no_more_than_the_process_may() {
        let budget = budget();
        let mut held = Vec::new();
        for n in 0..ALL / CALLER {
            held.push(budget.hold(&format!("u{n}"), CALLER).await.unwrap());
        }
        assert!(budget.hold("one more", UNIT).await.is_err());
        held.pop();
        assert!(budget.hold("one more", CALLER).await.is_ok());
    }

    #[tokio::test]
    async fn answers_that_slow_callers_do_not_take_count_against_them_alone() {
        let budget = budget();
        let mut held = Vec::new();
        for n in 0..2 * ALL / CALLER {
            let mut one = budget.hold(&format!("u{n}"), CALLER).await.unwrap();
            one.made(CALLER);
            held.push(one);
        }
        assert!(budget.hold("u0", UNIT).await.is_err());
        assert_eq!(budget.0.all.available_permits(), ALL / UNIT);
        drop(held);
        assert!(budget.0.callers.lock().is_empty());
    }
}
