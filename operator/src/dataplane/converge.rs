//! One pass over the data plane: look, plan, do, look again, until nothing is left to do or time is up.

use std::time::{Duration, Instant};

use super::{
    apply::{ApplyError, apply},
    link::Links,
    migrations,
    observe::{Depth, observe},
    plan::{Action, plan},
    prober::Gate,
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

/// Brings the data plane to what is desired, for at most `budget`. Without anything to do it only reads. `gate` is that of the prober.
pub async fn converge(links: &Links, guard: &LeaseGuard, gate: &Gate, desired: &Desired, budget: Duration) -> Outcome {
    let end = Instant::now() + budget;
    links.keep_only(&desired.members().filter_map(|(_, m)| m.address).collect::<Vec<_>>()).await;
    let mut actions = 0;
    loop {
        let seen = observe(links, desired, Depth::Full).await;
        let mut next = plan(desired, &seen);
        let mut unfinished = !next.actions.is_empty();
        let mut failed = false;
        if unfinished {
            match carry_out(links, guard, gate, desired, &seen, &next.actions).await {
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

/// Carries the actions out; those that need rest only while no slots move, and after another look that wants the same.
async fn carry_out(
    links: &Links,
    guard: &LeaseGuard,
    gate: &Gate,
    desired: &Desired,
    seen: &Observation,
    actions: &[Action],
) -> Result<(), ApplyError> {
    if !actions.iter().any(Action::needs_rest) {
        return apply(links, guard, desired, seen, actions).await;
    }
    let _held = gate.promoting().await;
    let seen = observe(links, desired, Depth::Full).await;
    let failed = |source| ApplyError { what: "CLUSTER GETSLOTMIGRATIONS".to_owned(), source };
    let jobs = migrations::ask(links, desired, &seen, |_| true).await.map_err(failed)?;
    // An earlier operator may have left a move that the engine goes on with.
    let moving = jobs.iter().flat_map(|(_, jobs)| jobs).any(migrations::Job::is_active);
    if moving || plan(desired, &seen).actions != actions {
        return Ok(());
    }
    apply(links, guard, desired, &seen, actions).await
}
