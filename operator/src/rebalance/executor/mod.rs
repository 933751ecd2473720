//! Moves partitions in small batches. Every step is derived anew from what the data plane says; the job's own word only informs.
//!
//! For each batch: both shards whole (libraries included), no child process on either, no other job → `CLUSTER MIGRATESLOTS` → until
//! every reachable node names the target as the owner → until all replicas of the target are past the offset it had then. Trouble on
//! the way cancels the job first, and ownership then says what came of it. A promotion waits for that (see [`Gate`]).

mod hold;
pub mod step;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    hold::Hold,
    step::{Batch, Facts, Step, next},
};
use super::failpoint;
use crate::{
    dataplane::{
        link::{LinkError, Links},
        migrations,
        observe::{Depth, observe},
        prober::Gate,
        types::{Desired, NodeId, NodeView, Observation, Problem, Reason},
    },
    lease::LeaseGuard,
};

/// Between two looks at a running job.
const POLL: Duration = Duration::from_millis(60);
/// Between two looks at every node while a job copies: each costs all of them about a millisecond, which messages want.
const LOOK: Duration = Duration::from_millis(500);
/// A batch that is not over by then is cancelled.
const BATCH_DEADLINE: Duration = Duration::from_secs(120);
/// How long a batch waits for its shards to be whole before it gives up and lets the controller speak.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// After a cancel the job must be gone within this time; a promotion waits no longer.
const CANCEL_DEADLINE: Duration = Duration::from_secs(2);

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchEnd {
    /// The target owns all of it and its replicas hold it.
    Moved,
    /// It was cancelled, or not begun: the data plane is as it says, and the batch may be tried again.
    Interrupted(String),
    /// It cannot go on without a change.
    Blocked(Box<Problem>),
}

/// Moves batches of one ChatCluster.
#[derive(Clone)]
pub struct Executor {
    /// Connections.
    pub links: Links,
    /// The lease.
    pub guard: LeaseGuard,
    /// Keeps promotions away while a batch runs.
    pub gate: Gate,
}

impl Executor {
    /// Moves one batch, or finds out that it is moved already. `stop` is asked again and again; once it says so the job is cancelled.
    pub async fn run(
        &self,
        desired: &Desired,
        batch: &Batch,
        stop: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<BatchEnd, LinkError> {
        let _held = self.gate.moving().await;
        let begun = Instant::now();
        let mut started = None;
        let mut landed_at = None;
        let mut hold = Hold::new(self, desired);
        failpoint::hit(failpoint::BEFORE_START);
        loop {
            let seen = observe(&self.links, desired, if started.is_some() { Depth::Roles } else { Depth::Full }).await;
            let jobs = self.jobs(desired, batch, &seen).await;
            let hurried = self.gate.is_wanted() || stop();
            let facts = Facts {
                desired,
                seen: &seen,
                jobs: jobs.as_ref().map(Vec::as_slice).ok(),
                landed_at,
                begun: started.is_some(),
                overdue: begun.elapsed() > BATCH_DEADLINE,
                impatient: begun.elapsed() > READY_DEADLINE,
                stop: hurried,
            };
            let step = next(batch, &facts);
            if !matches!(step, Step::Hold { .. }) {
                hold.release().await;
            }
            match step {
                Step::Hold { pod, id } => {
                    hold.keep(&pod, &id).await?;
                    if self.gate.is_wanted() {
                        // What is held back stays so for longer than the promotion takes, and the next batch goes on with it.
                        return Ok(BatchEnd::Interrupted("a promotion goes first".to_owned()));
                    }
                }
                Step::Start { pod, id, target, slots } => {
                    self.start(desired, &pod, &id, &target, &slots).await?;
                    started = Some(Instant::now());
                    failpoint::hit(failpoint::AFTER_START);
                }
                Step::Wait(why) => {
                    tracing::debug!(cluster = %desired.cluster, %why, "a batch of slots waits");
                    if started.is_some() {
                        failpoint::hit(failpoint::IN_PROGRESS);
                        self.while_copying(desired, batch, &seen, stop).await;
                    }
                }
                Step::Landed { offset } => {
                    failpoint::hit(failpoint::LANDED);
                    landed_at = Some(offset);
                }
                Step::Cancel { pod, id, why } => {
                    failpoint::hit(failpoint::BEFORE_CANCEL);
                    self.cancel(desired, batch, &seen, &pod, &id).await?;
                    failpoint::hit(failpoint::AFTER_CANCEL);
                    return Ok(BatchEnd::Interrupted(why));
                }
                Step::Done => {
                    failpoint::hit(failpoint::DONE);
                    return Ok(BatchEnd::Moved);
                }
                Step::Interrupted(why) => return Ok(BatchEnd::Interrupted(why)),
                Step::Blocked(problem) => return Ok(BatchEnd::Blocked(Box::new(problem))),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits while the job copies, as its two primaries say; for no longer than until the next look at all nodes is due.
    async fn while_copying(
        &self,
        desired: &Desired,
        batch: &Batch,
        seen: &Observation,
        stop: &(dyn Fn() -> bool + Send + Sync),
    ) {
        let end = Instant::now() + LOOK;
        while Instant::now() < end && !self.gate.is_wanted() && !stop() {
            let jobs = self.jobs(desired, batch, seen).await.unwrap_or_default();
            let copies = jobs.iter().any(|j| j.is_active() && j.export) && !jobs.iter().any(migrations::Job::is_final);
            if !copies {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn start(
        &self,
        desired: &Desired,
        pod: &str,
        id: &NodeId,
        target: &NodeId,
        slots: &crate::dataplane::slots::SlotSet,
    ) -> Result<(), LinkError> {
        let Some(address) = address_of(desired, pod) else { return Ok(()) };
        let mut command = redis::cmd("CLUSTER");
        command.arg("MIGRATESLOTS").arg("SLOTSRANGE").arg(slots.arguments()).arg("NODE").arg(target.as_str());
        match self.links.write(address, id, &command, &self.guard).await {
            Ok(_) => {
                tracing::info!(cluster = %desired.cluster, from = pod, to = target.short(), %slots, "slots begin to move");
                Ok(())
            }
            // A refusal changed nothing, and the next look says why it was refused; an open outcome is decided by that look as well.
            Err(error) => {
                tracing::warn!(cluster = %desired.cluster, from = pod, %slots, %error, "the move was not accepted; looking again");
                if matches!(error, LinkError::Lease(_)) { Err(error) } else { Ok(()) }
            }
        }
    }

    /// Cancels at the giver, writes held back: the job may be over by the time this arrives, with the slots gone to the taker, and
    /// then the giver must hear of that before it goes on with writes. Until neither reports a running job, or is not in reach: a dead
    /// node's jobs died with it.
    async fn cancel(
        &self,
        desired: &Desired,
        batch: &Batch,
        seen: &Observation,
        pod: &str,
        id: &NodeId,
    ) -> Result<(), LinkError> {
        let end = Instant::now() + CANCEL_DEADLINE;
        let mut hold = Hold::new(self, desired);
        hold.pause(pod, id).await?;
        loop {
            let jobs = self.jobs(desired, batch, seen).await.unwrap_or_default();
            let running: Vec<_> = jobs.iter().filter(|j| j.is_active()).collect();
            if !running.is_empty() && !running.iter().any(|j| j.is_final()) {
                let Some(address) = address_of(desired, pod) else { break };
                let mut command = redis::cmd("CLUSTER");
                command.arg("CANCELSLOTMIGRATIONS");
                match self.links.write(address, id, &command, &self.guard).await {
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(cluster = %desired.cluster, %pod, %error, "a move could not be cancelled");
                    }
                }
            }
            let now = observe(&self.links, desired, Depth::Roles).await;
            let told = step::untold(batch, &Facts::of(desired, &now)).is_none();
            if running.is_empty() && told {
                hold.release().await;
                break;
            }
            if Instant::now() > end {
                // What is held back goes on by itself; the next batch looks again.
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The jobs that the primaries of both shards report; a node that does not answer has none that could be asked about.
    async fn jobs(
        &self,
        desired: &Desired,
        batch: &Batch,
        seen: &Observation,
    ) -> Result<Vec<migrations::Job>, LinkError> {
        let ours = |node: &NodeView| node.shard == batch.from || node.shard == batch.to;
        let told = migrations::ask(&self.links, desired, seen, ours).await?;
        Ok(told.into_iter().flat_map(|(_, jobs)| jobs).collect())
    }
}

fn address_of(desired: &Desired, pod: &str) -> Option<SocketAddr> {
    desired.member(pod).and_then(|(_, m)| m.address)
}

/// For a batch that cannot be carried out.
fn blocked(shard: &str, reason: Reason, message: String) -> Problem {
    Problem::new(reason, message).of(shard)
}
