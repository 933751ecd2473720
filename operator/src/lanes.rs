//! Turns of passes: one object that keeps its pass waiting never keeps others from theirs.
//!
//! A pass has a turn for a moment only; one that lasts longer goes on without it, and the next one of that object queues with its like, until
//! a pass of it is quick again. A pass that does not end is dropped at its deadline. That is safe wherever the process may end: every step
//! is derived anew from what stands.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::chatcluster::PassError;

/// Passes that are expected to be quick, at once: more would only wait for each other on the processor.
const QUICK: usize = 8;
/// Passes at once of objects that kept the last one waiting: they wait for the network, each for at most the deadline.
const SLOW: usize = 64;
/// How long a pass has its turn.
const TURN: Duration = Duration::from_secs(2);
/// No pass lasts longer. Well above what a first pass needs, which makes everything.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Names that are remembered at most.
const BOUND: usize = 10_000;

/// The turns of all controllers.
pub struct Lanes {
    quick: Semaphore,
    slow: Semaphore,
    turn: Duration,
    late: Mutex<HashSet<String>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { quick: Semaphore::new(QUICK), slow: Semaphore::new(SLOW), turn: TURN, late: Mutex::default() }
    }
}

impl Lanes {
    /// Runs a pass of the object `key` when it is its turn; none if `end` comes first.
    pub async fn run<T>(&self, key: &str, end: &CancellationToken, pass: impl Future<Output = T>) -> Option<T> {
        let late = self.late().contains(key);
        let lane = if late { &self.slow } else { &self.quick };
        // Nobody closes a lane.
        let turn = end.run_until_cancelled(lane.acquire()).await?.ok();
        let mut pass = pin!(pass);
        if let Ok(done) = tokio::time::timeout(self.turn, pass.as_mut()).await {
            if late {
                self.late().remove(key);
            }
            return Some(done);
        }
        let turn = turn.filter(|_| late);
        if !late {
            self.mark(key);
        }
        let done = pass.await;
        drop(turn);
        Some(done)
    }

    fn mark(&self, key: &str) {
        metrics::counter!("kith_operator_slow_passes_total").increment(1);
        let mut late = self.late();
        if late.len() >= BOUND {
            late.clear();
        }
        late.insert(key.to_owned());
    }

    fn late(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops a pass at its deadline.
pub async fn in_time<T>(pass: impl Future<Output = Result<T, PassError>>) -> Result<T, PassError> {
    tokio::time::timeout(DEADLINE, pass).await.unwrap_or(Err(PassError::Late))
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
        time::Instant,
    };

    use super::*;

    fn lanes(turn_ms: u64) -> (Arc<Lanes>, CancellationToken) {
        let lanes = Lanes { turn: Duration::from_millis(turn_ms), ..Lanes::default() };
        (Arc::new(lanes), CancellationToken::new())
    }

    #[tokio::test]
    async fn objects_that_keep_their_passes_waiting_keep_nobody_else_waiting() {
        let (lanes, end) = lanes(20);
        let sick: Vec<_> = (0..QUICK * 2)
            .map(|i| {
                let (lanes, end) = (lanes.clone(), end.clone());
                tokio::spawn(async move { lanes.run(&format!("sick-{i}"), &end, pending::<()>()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(lanes.quick.available_permits(), 0);
        // The first time it cannot be known who is sick: each holds a turn once.
        for i in 0..100 {
            lanes.run(&format!("well-{i}"), &end, ready(())).await;
        }
        while lanes.late().len() < sick.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for pass in &sick {
            pass.abort();
        }
        for i in 0..QUICK * 2 {
            let (lanes, end) = (lanes.clone(), end.clone());
            tokio::spawn(async move { lanes.run(&format!("sick-{i}"), &end, pending::<()>()).await });
        }
        tokio::task::yield_now().await;
        assert_eq!(lanes.quick.available_permits(), QUICK, "the next time they queue with their like");
    }

    #[tokio::test]
    async fn a_pass_that_is_quick_again_is_like_any_other() {
        let (lanes, end) = lanes(5);
        lanes.run("a", &end, tokio::time::sleep(Duration::from_millis(50))).await;
        assert!(lanes.late().contains("a"));
        assert_eq!(lanes.run("a", &end, ready(7)).await, Some(7));
        assert!(lanes.late().is_empty());
    }

    #[tokio::test]
    async fn nothing_begins_after_the_end_and_what_waits_is_let_go() {
        let (lanes, end) = lanes(60_000);
        let held: Vec<_> = (0..QUICK).map(|_| lanes.quick.try_acquire().expect("a turn")).collect();
        let begun = Instant::now();
        let waiting = lanes.run("b", &end, ready(7));
        let cancel = async { end.cancel() };
        assert_eq!(tokio::join!(waiting, cancel).0, None);
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(held);
    }
}
