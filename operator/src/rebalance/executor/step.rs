//! The next step of a batch, from what the data plane says. Pure.

use super::{super::migrations::Job, blocked};
use crate::dataplane::{
    ownership::Ownership,
    readiness::readiness,
    slots::SlotSet,
    types::{Desired, NodeId, NodeState, Observation, Problem, Reason, Role},
};

/// Whole partitions that go from one shard to another in one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The shard that gives.
    pub from: String,
    /// The shard that takes.
    pub to: String,
    /// The partitions.
    pub partitions: Vec<u32>,
    /// Bytes they hold, as estimated.
    pub bytes: u64,
}

impl Batch {
    /// Its slots.
    pub fn slots(&self, desired: &Desired) -> SlotSet {
        SlotSet::of_partitions(self.partitions.iter().copied(), desired.partitions)
    }
}

/// What the step rests on.
pub struct Facts<'a> {
    /// The wish.
    pub desired: &'a Desired,
    /// The look.
    pub seen: &'a Observation,
    /// The jobs that both primaries report; none when one did not answer that question.
    pub jobs: Option<&'a [Job]>,
    /// The target's offset when its ownership was first seen by this run.
    pub landed_at: Option<u64>,
    /// Whether this run has started a job.
    pub begun: bool,
    /// Whether the batch has taken too long.
    pub overdue: bool,
    /// Whether the shards have not been whole for too long.
    pub impatient: bool,
    /// Whether a person or a promotion wants it to end.
    pub stop: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Tell the giver's primary to migrate.
    Start {
        /// The primary's pod.
        pod: String,
        /// Its node id.
        id: NodeId,
        /// Who takes.
        target: NodeId,
        /// What is still to be moved.
        slots: SlotSet,
    },
    /// Look again.
    Wait(String),
    /// The target owns all; its replicas must pass this offset.
    Landed {
        /// The offset.
        offset: u64,
    },
    /// Cancel what runs.
    Cancel {
        /// The primaries to tell.
        pods: Vec<(String, NodeId)>,
        /// Why.
        why: String,
    },
    /// All is done.
    Done,
    /// Nothing runs and nothing is to be done now.
    Interrupted(String),
    /// It cannot go on.
    Blocked(Problem),
}

/// Where the slots of the batch are.
struct Place {
    at_source: SlotSet,
    at_target: SlotSet,
    elsewhere: SlotSet,
    /// Every reachable node says the same about these slots.
    agreed: bool,
}

fn place(
    batch: &SlotSet,
    source: Option<&NodeId>,
    target: &NodeId,
    ownership: &Ownership,
    seen: &Observation,
) -> Place {
    let at = |id: &NodeId| ownership.slots_of(id).intersection(batch);
    let at_source = source.map(at).unwrap_or_default();
    let at_target = at(target);
    let elsewhere = batch.difference(&at_source).difference(&at_target);
    // What a node tells clients about the target's part of the batch must be the same everywhere.
    let told = |state: &NodeState| {
        let all = state.shards.iter().filter(|(id, _)| id == target).map(|(_, s)| s.intersection(batch));
        all.fold(SlotSet::empty(), |sum, s| sum.union(&s))
    };
    let agreed = seen.up().all(|(_, s)| told(s) == at_target);
    Place { at_source, at_target, elsewhere, agreed }
}

/// Decides.
pub fn next(batch: &Batch, facts: &Facts) -> Step {
    let ready = readiness(facts.desired, facts.seen);
    let ownership = Ownership::of(facts.seen);
    let health = |name: &str| ready.shards.iter().find(|s| s.shard == name);
    let (Some(source), Some(target)) = (health(&batch.from), health(&batch.to)) else {
        let message = format!("{} or {} does not exist any more", batch.from, batch.to);
        return Step::Blocked(blocked(&batch.to, Reason::OwnerMissing, message));
    };
    let primaries: Vec<(String, NodeId)> =
        [source, target].iter().filter_map(|s| s.primary.clone().zip(s.primary_id.clone())).collect();
    let running: Vec<&Job> = facts.jobs.unwrap_or_default().iter().filter(|j| j.is_active()).collect();
    if facts.stop || facts.overdue {
        let why = if facts.stop { "it was to end" } else { "it took too long" }.to_owned();
        // A job that cannot be asked about is cancelled all the same.
        let may_run = !running.is_empty() || facts.begun && facts.jobs.is_none();
        return if may_run { Step::Cancel { pods: primaries, why } } else { Step::Interrupted(why) };
    }
    let Some(target_id) = &target.primary_id else {
        return give_up(facts, &running, primaries, &batch.to, "it has no primary".to_owned());
    };
    let slots = batch.slots(facts.desired);
    let place = place(&slots, source.primary_id.as_ref(), target_id, &ownership, facts.seen);
    if place.at_target == slots && place.agreed && running.is_empty() {
        return landed(facts, target_id, &batch.to);
    }
    if let Some(foreign) = running.iter().find(|j| !slots.contains_all(&j.slots)) {
        let why = format!("another move of slots {} was under way", foreign.slots);
        return Step::Cancel { pods: primaries, why };
    }
    if !running.is_empty() {
        let trouble = source.primary.is_none() || target.primary.is_none();
        if trouble {
            return Step::Cancel { pods: primaries, why: "a primary stopped answering".to_owned() };
        }
        return Step::Wait(format!("slots {slots}: {}", running[0].state));
    }
    if !place.elsewhere.is_empty() {
        let message = format!("slots {} belong to neither {} nor {}", place.elsewhere, batch.from, batch.to);
        if facts.impatient || ownership.agreed {
            return Step::Blocked(blocked(&batch.from, Reason::OwnershipDisputed, message));
        }
        return Step::Wait(message);
    }
    if !place.agreed || place.at_source.is_empty() {
        return wait(facts, &batch.to, "the nodes do not agree yet who owns the slots".to_owned());
    }
    for (name, health) in [(&batch.from, source), (&batch.to, target)] {
        if !health.whole {
            return wait(facts, name, format!("{name} is not whole: {}", words(&ready.problems, name)));
        }
    }
    let child = facts.seen.up().any(|(n, s)| s.child && primaries.iter().any(|(pod, _)| *pod == n.pod));
    if child || facts.jobs.is_none() {
        return wait(facts, &batch.from, "a save or a rewrite runs".to_owned());
    }
    match primaries.into_iter().next() {
        Some((pod, id)) => Step::Start { pod, id, target: target_id.clone(), slots: place.at_source },
        None => Step::Wait("no primary answers".to_owned()),
    }
}

fn words(problems: &[Problem], shard: &str) -> String {
    problems.iter().find(|p| p.shard.as_deref() == Some(shard)).map(|p| p.message.clone()).unwrap_or_default()
}

fn wait(facts: &Facts, shard: &str, why: String) -> Step {
    if facts.impatient && !facts.begun {
        Step::Blocked(blocked(shard, Reason::ReplicaLagging, why))
    } else {
        Step::Wait(why)
    }
}

fn give_up(facts: &Facts, running: &[&Job], pods: Vec<(String, NodeId)>, shard: &str, why: String) -> Step {
    if running.is_empty() { wait(facts, shard, why) } else { Step::Cancel { pods, why } }
}

/// The target owns the batch. It counts when its replicas hold what it took: a failover now must not lose it.
fn landed(facts: &Facts, target: &NodeId, shard: &str) -> Step {
    let Some((_, primary)) = facts.seen.by_id(target) else {
        return wait(facts, shard, "the new owner does not answer".to_owned());
    };
    let Some(goal) = facts.landed_at else { return Step::Landed { offset: primary.offset } };
    let members = facts.desired.shard(shard).map(|s| s.members.as_slice()).unwrap_or_default();
    let past = members.iter().all(|m| {
        facts.seen.state(&m.pod).is_some_and(|s| {
            s.id == *target
                || matches!(s.role, Role::Replica { link_up: true, .. })
                    && s.history.id == primary.history.id
                    && s.offset >= goal
        })
    });
    if past { Step::Done } else { wait(facts, shard, "replicas of the new owner are behind".to_owned()) }
}
