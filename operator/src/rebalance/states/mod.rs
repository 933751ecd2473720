//! The life of a ShardRebalance: what its next status is and what is to be moved. Pure; time and world are passed in.
//!
//! New → PendingProposal → ProposalReady → Rebalancing → Verifying → Ready; a person may stop it (Stopped) or ask anew (refresh),
//! and what cannot go on is NotReady until it can. What has been moved is read off the shards each time, never remembered.

mod proposal;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kith_crds::{
    conditions::{self, Finding, reason},
    shardrebalance::{
        Command, HISTORY_MAX, Progress, RebalanceMode, RebalancePhase as Phase, Run, RunOutcome, ShardRebalanceSpec,
        ShardRebalanceStatus,
    },
};

pub use proposal::{batches, partitions_of, propose};

use super::{executor::step::Batch, inventory::Split, planner::ShardLoad};

/// Between two looks at something that waits for a person or for better days.
const CALM: Duration = Duration::from_secs(10);
/// Between two steps of something under way.
const SOON: Duration = Duration::from_millis(500);

/// The shards as they are.
#[derive(Debug, Clone)]
pub struct World {
    /// P.
    pub partitions: u32,
    /// Whether every shard is whole and all slots are served; else why not.
    pub whole: Result<(), String>,
    /// Name and effective weight (0: draining) of each shard, in order.
    pub weights: Vec<(String, u32)>,
    /// What each owns.
    pub owned: BTreeMap<String, Vec<u32>>,
    /// Partitions that lie on more than one shard.
    pub splits: Vec<Split>,
    /// Sizes; only measured when a proposal is to be computed.
    pub loads: Option<Vec<ShardLoad>>,
}

/// All that a decision rests on.
pub struct Input<'a> {
    /// The spec.
    pub spec: &'a ShardRebalanceSpec,
    /// Its generation.
    pub generation: Option<i64>,
    /// The status so far.
    pub status: &'a ShardRebalanceStatus,
    /// The annotation `kith.dev/rebalance`.
    pub annotation: Option<&'a str>,
    /// Another ShardRebalance of the same ChatCluster that moves slots.
    pub other_active: Option<&'a str>,
    /// The shards; absent with the reason when they could not be seen.
    pub world: Result<&'a World, String>,
    /// Now.
    pub now: Timestamp,
}

/// What to do besides writing the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Look again after this time.
    Again(Duration),
    /// Move these at the same time, then look again.
    Move(Vec<Batch>),
}

/// A decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The status to write, if it differs.
    pub status: ShardRebalanceStatus,
    /// What to do.
    pub next: Next,
}

/// Whether a proposal will be computed, so that sizes must be measured first.
pub fn needs_loads(input: &Input) -> bool {
    let phase = obey(input).0.phase;
    matches!(phase, Phase::New | Phase::PendingProposal | Phase::NotReady)
        || phase == Phase::ProposalReady && input.world.as_ref().is_ok_and(|w| is_stale(&input.status.clone(), w))
}

/// Decides.
pub fn decide(input: &Input) -> Decision {
    let (mut status, refused) = obey(input);
    status.observed_generation = input.generation;
    let next = match (&input.world, status.phase) {
        (_, Phase::Ready | Phase::Stopped) => Next::Again(CALM * 6),
        (Err(why), _) => wait(&mut status, why.clone()),
        (Ok(world), Phase::New | Phase::PendingProposal | Phase::NotReady) => pending(input, world, &mut status),
        (Ok(world), Phase::ProposalReady) => ready_to_go(input, world, &mut status),
        (Ok(world), Phase::Rebalancing) => rebalancing(input, world, &mut status),
        (Ok(world), Phase::Verifying) => verifying(input, world, &mut status),
    };
    if let Some(words) = refused {
        status.message = Some(words);
    }
    find(input, &mut status);
    Decision { status, next }
}

/// What comes of a batch that could not go on.
pub fn blocked(status: &mut ShardRebalanceStatus, generation: Option<i64>, why: &str, now: Timestamp) {
    status.phase = Phase::NotReady;
    status.message = Some(format!("A batch could not go on: {why}. It goes on by itself when that is put right."));
    if let Some(progress) = &mut status.progress {
        progress.batch = None;
    }
    conditions_of(status, generation, now);
}

/// Follows the annotation, once per value: the status after it, and words when it was refused.
fn obey(input: &Input) -> (ShardRebalanceStatus, Option<String>) {
    let mut status = input.status.clone();
    let Some(text) = input.annotation.map(str::trim) else {
        // Taken away: the same word may be said again later.
        status.handled_command = None;
        return (status, None);
    };
    if status.handled_command.as_deref() == Some(text) {
        return (status, None);
    }
    let command: Result<Command, _> = text.parse();
    let refused = match command {
        Err(error) => Some(error.to_string()),
        Ok(Command::Stop) => stop(input, &mut status),
        Ok(Command::Refresh) => refresh(&mut status),
        Ok(Command::Approve(id)) => approve(input, &mut status, &id),
    };
    status.handled_command = Some(text.to_owned());
    (status, refused)
}

fn stop(input: &Input, status: &mut ShardRebalanceStatus) -> Option<String> {
    if status.phase == Phase::Ready {
        return Some("It is done already; there is nothing to stop.".to_owned());
    }
    if status.phase.is_active() {
        end_run(status, RunOutcome::Stopped, "stopped by the annotation", input.now);
    }
    status.phase = Phase::Stopped;
    status.message =
        Some("Stopped. What was moved stays where it is; kith.dev/rebalance=refresh starts anew.".to_owned());
    None
}

fn refresh(status: &mut ShardRebalanceStatus) -> Option<String> {
    if status.phase.is_active() {
        return Some("Slots are moving: stop it first, then refresh.".to_owned());
    }
    status.phase = Phase::PendingProposal;
    status.proposal = None;
    status.progress = None;
    None
}

fn approve(input: &Input, status: &mut ShardRebalanceStatus, id: &str) -> Option<String> {
    let current = status.proposal.as_ref().map(|p| p.id.clone()).unwrap_or_default();
    if status.phase != Phase::ProposalReady {
        return Some(format!("There is no proposal to approve in the phase {:?}.", status.phase));
    }
    let stale = input.world.as_ref().is_ok_and(|w| is_stale(status, w));
    if id != current || stale {
        return Some(format!(
            "Proposal {id} was not approved: it is not the current one any more. Look at status.proposal and approve that."
        ));
    }
    if let Some(other) = input.other_active {
        return Some(format!(
            "Proposal {id} was not begun: {other} is moving slots. Approve it again when that is done."
        ));
    }
    begin(status, input.now);
    None
}

fn begin(status: &mut ShardRebalanceStatus, now: Timestamp) {
    let Some(proposal) = &status.proposal else { return };
    status.progress = Some(Progress {
        proposal_id: proposal.id.clone(),
        started_at: Time(now),
        moved_partitions: 0,
        moved_bytes: 0,
        batch: None,
    });
    status.phase = Phase::Rebalancing;
}

fn end_run(status: &mut ShardRebalanceStatus, outcome: RunOutcome, message: &str, now: Timestamp) {
    let Some(progress) = status.progress.take() else { return };
    status.history.insert(
        0,
        Run {
            proposal_id: progress.proposal_id,
            started_at: progress.started_at,
            finished_at: Time(now),
            outcome,
            moved_partitions: progress.moved_partitions,
            moved_bytes: progress.moved_bytes,
            message: Some(message.to_owned()),
        },
    );
    status.history.truncate(HISTORY_MAX);
}

fn wait(status: &mut ShardRebalanceStatus, why: String) -> Next {
    if status.phase == Phase::New {
        status.phase = Phase::PendingProposal;
    }
    status.message = Some(why);
    Next::Again(CALM)
}

/// Whether weights, shards or owners are not those that the proposal was made for.
fn is_stale(status: &ShardRebalanceStatus, world: &World) -> bool {
    let Some(proposal) = &status.proposal else { return true };
    let weights = proposal.shards.iter().map(|s| (s.name.clone(), s.weight));
    let same_shards = weights.eq(world.weights.iter().cloned());
    let owns = |shard: &str, list: &[u32]| {
        let owned = world.owned.get(shard).map(Vec::as_slice).unwrap_or_default();
        list.iter().all(|p| owned.binary_search(p).is_ok())
    };
    let at_home = proposal.moves.iter().all(|m| {
        // What lies on two shards is not owned by its giver; the move brings it together.
        partitions_of(&m.partitions).is_some_and(|list| owns(&m.from, &list) || owns(&m.to, &list))
    });
    !same_shards || !at_home
}

fn pending(input: &Input, world: &World, status: &mut ShardRebalanceStatus) -> Next {
    if let Err(why) = &world.whole {
        status.phase = if status.phase == Phase::NotReady { Phase::NotReady } else { Phase::PendingProposal };
        status.message = Some(format!("Waits until every shard is whole: {why}."));
        return Next::Again(CALM);
    }
    let resumes = status.phase == Phase::NotReady && status.progress.is_some();
    if resumes && remaining_is_sound(status, world) {
        status.phase = Phase::Rebalancing;
        return rebalancing(input, world, status);
    }
    if resumes {
        end_run(status, RunOutcome::Superseded, "the shards changed while it could not go on", input.now);
    }
    let Some(loads) = &world.loads else {
        return wait(status, "The shards are being measured.".to_owned());
    };
    match propose(input.spec, world, loads, input.now) {
        Err(why) => {
            status.phase = Phase::NotReady;
            status.message = Some(why);
            Next::Again(CALM)
        }
        Ok(None) => {
            status.phase = Phase::Ready;
            status.proposal = None;
            status.message = Some(format!(
                "Every shard is within {} % of its share; nothing needs to move.",
                input.spec.imbalance_percent
            ));
            Next::Again(CALM * 6)
        }
        Ok(Some(proposal)) => {
            // The same moves again keep their time, so that nothing is written.
            if status.proposal.as_ref().is_none_or(|old| old.id != proposal.id) {
                status.proposal = Some(proposal);
            }
            status.phase = Phase::ProposalReady;
            ready_to_go(input, world, status)
        }
    }
}

fn ready_to_go(input: &Input, world: &World, status: &mut ShardRebalanceStatus) -> Next {
    if is_stale(status, world) {
        status.phase = Phase::PendingProposal;
        status.message = Some("The shards or their weights changed; a new proposal is being computed.".to_owned());
        return Next::Again(SOON);
    }
    let id = status.proposal.as_ref().map(|p| p.id.clone()).unwrap_or_default();
    if let Some(other) = input.other_active {
        status.message = Some(format!("Proposal {id} waits: {other} is moving slots."));
        return Next::Again(CALM);
    }
    if input.spec.mode == RebalanceMode::Automatic {
        begin(status, input.now);
        return rebalancing(input, world, status);
    }
    status.message = Some(format!("Proposal {id} waits for approval: annotate with kith.dev/rebalance=approve={id}."));
    Next::Again(CALM)
}

/// Whether every partition of the proposal is at its giver or its taker, and the weights are those it was made for.
fn remaining_is_sound(status: &ShardRebalanceStatus, world: &World) -> bool {
    let Some(proposal) = &status.proposal else { return false };
    let same = proposal.shards.iter().map(|s| (s.name.clone(), s.weight)).eq(world.weights.iter().cloned());
    same && batches(proposal, world, u32::MAX, u64::MAX).is_some()
}

fn rebalancing(input: &Input, world: &World, status: &mut ShardRebalanceStatus) -> Next {
    if !remaining_is_sound(status, world) {
        let words =
            "shards or weights changed under way; the batch that ran is finished and a new proposal takes its place";
        end_run(status, RunOutcome::Superseded, words, input.now);
        status.phase = Phase::PendingProposal;
        status.proposal = None;
        status.message = Some(format!("Superseded: {words}."));
        return Next::Again(SOON);
    }
    let Some(proposal) = status.proposal.clone() else { return Next::Again(SOON) };
    let (moved, moved_bytes) = proposal::moved(&proposal, world);
    let rate = input.spec.max_bytes_per_second.to_bytes().unwrap_or(proposal::RATE_DEFAULT);
    let next = batches(&proposal, world, input.spec.max_concurrent_moves, rate).unwrap_or_default();
    if let Some(progress) = &mut status.progress {
        (progress.moved_partitions, progress.moved_bytes) = (moved, moved_bytes);
        let ranges: Vec<String> = next.iter().map(|b| proposal::ranges(&b.partitions)).collect();
        progress.batch = (!next.is_empty()).then(|| ranges.join(","));
    }
    status.message = Some(format!("{moved} of {} partitions moved.", proposal.partitions));
    if next.is_empty() {
        status.phase = Phase::Verifying;
        return Next::Again(Duration::ZERO);
    }
    Next::Move(next)
}

fn verifying(input: &Input, world: &World, status: &mut ShardRebalanceStatus) -> Next {
    if let Err(why) = &world.whole {
        status.message = Some(format!("All is moved; waits until every shard is whole: {why}."));
        return Next::Again(SOON * 2);
    }
    let Some(proposal) = status.proposal.clone() else {
        status.phase = Phase::PendingProposal;
        return Next::Again(SOON);
    };
    let (moved, bytes) = proposal::moved(&proposal, world);
    if moved < proposal.partitions {
        status.phase = Phase::Rebalancing;
        return Next::Again(SOON);
    }
    if let Some(progress) = &mut status.progress {
        (progress.moved_partitions, progress.moved_bytes, progress.batch) = (moved, bytes, None);
    }
    end_run(status, RunOutcome::Completed, "every move was made and seen by every node", input.now);
    status.phase = Phase::Ready;
    status.message = Some(format!("{moved} partitions were moved; every node names the new owners."));
    Next::Again(CALM * 6)
}

fn find(input: &Input, status: &mut ShardRebalanceStatus) {
    conditions_of(status, input.generation, input.now);
}

fn conditions_of(status: &mut ShardRebalanceStatus, generation: Option<i64>, now: Timestamp) {
    let words = status.message.clone().unwrap_or_default();
    let ready = match status.phase {
        Phase::Ready => Finding::holds(conditions::READY, reason::BALANCED, words.clone()),
        Phase::Stopped => Finding::fails(conditions::READY, reason::STOPPED, words.clone()),
        Phase::NotReady => Finding::fails(conditions::READY, reason::SHARD_NOT_WHOLE, words.clone()),
        _ => Finding::fails(conditions::READY, reason::REBALANCING, words.clone()),
    };
    let progressing = if status.phase.is_active() {
        Finding::holds(conditions::PROGRESSING, reason::REBALANCING, "slots move")
    } else {
        Finding::fails(conditions::PROGRESSING, reason::IDLE, "nothing moves")
    };
    let proposal = if status.phase == Phase::ProposalReady {
        Finding::holds(conditions::PROPOSAL_READY, reason::ALL_READY, words)
    } else {
        Finding::fails(conditions::PROPOSAL_READY, reason::IDLE, "no proposal waits for approval")
    };
    for finding in [ready, progressing, proposal] {
        conditions::set(&mut status.conditions, finding, generation, now);
    }
}
