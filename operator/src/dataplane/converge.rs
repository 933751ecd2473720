//! One pass over the data plane: look, plan, do, look again, until nothing is left to do or time is up.

use std::time::{Duration, Instant};

use super::{
    apply::apply,
    link::Links,
    observe::{Depth, observe},
    plan::plan,
    readiness::{Readiness, readiness},
    types::{Desired, Observation, Problem},
};
use crate::lease::LeaseGuard;

/// The bus takes about this long to carry news.
const SETTLE: Duration = Duration::from_millis(150);

/// What a pass came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The last look.
    pub seen: Observation,
    /// What StorageReady is made from; of the last look.
    pub readiness: Readiness,
    /// What stands in the way; of the last look, failed commands included.
    pub problems: Vec<Problem>,
    /// Commands that were carried out.
    pub actions: usize,
    /// Whether more is to be done: come back soon.
    pub unfinished: bool,
}

/// Brings the data plane to what is desired, for at most `budget`. Without anything to do it only reads.
pub async fn converge(links: &Links, guard: &LeaseGuard, desired: &Desired, budget: Duration) -> Outcome {
    let end = Instant::now() + budget;
    links.keep_only(&desired.members().filter_map(|(_, m)| m.address).collect::<Vec<_>>()).await;
    let mut actions = 0;
    loop {
        let seen = observe(links, desired, Depth::Full).await;
        let mut next = plan(desired, &seen);
        let mut unfinished = !next.actions.is_empty();
        let mut failed = false;
        if unfinished {
            match apply(links, guard, desired, &seen, &next.actions).await {
                Ok(()) => actions += next.actions.len(),
                Err(error) => {
                    tracing::warn!(cluster = %desired.cluster, %error, "a data plane step failed; the next pass decides anew");
                    next.problems.push(error.problem());
                    failed = true;
                }
            }
        }
        let readiness = readiness(desired, &seen);
        // After a change the cluster needs a moment to agree; waiting for it here saves a whole pass.
        let settling = actions > 0 && !readiness.is_ready() && seen.is_complete();
        if failed || Instant::now() + SETTLE >= end || !unfinished && !settling {
            unfinished |= settling;
            return Outcome { seen, readiness, problems: next.problems, actions, unfinished };
        }
        tokio::time::sleep(SETTLE).await;
    }
}
