//! The next step of a batch, from what the data plane says. Pure.

use super::blocked;
use crate::dataplane::{
    bus,
    migrations::Job,
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

impl<'a> Facts<'a> {
    /// A look alone.
    pub fn of(desired: &'a Desired, seen: &'a Observation) -> Self {
        Self { desired, seen, jobs: None, landed_at: None, begun: false, overdue: false, impatient: false, stop: false }
    }
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
        /// The giver's pod; only it can.
        pod: String,
        /// Its node id.
        id: NodeId,
        /// Why.
        why: String,
    },
    /// Giver and taker both call slots of the batch their own: the giver has not been told yet, and must not go on with writes.
    Hold {
        /// The giver's pod.
        pod: String,
        /// Its node id.
        id: NodeId,
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
    if let Some((pod, id)) = untold(batch, facts) {
        return Step::Hold { pod, id };
    }
    let ready = readiness(facts.desired, facts.seen);
    let ownership = Ownership::of(facts.seen);
    let health = |name: &str| ready.shards.iter().find(|s| s.shard == name);
    let (Some(source), Some(target)) = (health(&batch.from), health(&batch.to)) else {
        let message = format!("{} or {} does not exist any more", batch.from, batch.to);
        return Step::Blocked(blocked(&batch.to, Reason::OwnerMissing, message));
    };
    let giver = source.primary.clone().zip(source.primary_id.clone());
    let running: Vec<&Job> = facts.jobs.unwrap_or_default().iter().filter(|j| j.is_active()).collect();
    let cancel = |why: String| cancel(&running, giver.clone(), target.primary.is_some(), why);
    if facts.stop || facts.overdue {
        let why = if facts.stop { "it was to end" } else { "it took too long" }.to_owned();
        // A job that cannot be asked about may run all the same.
        let may_run = !running.is_empty() || facts.begun && facts.jobs.is_none();
        return if may_run { cancel(why) } else { Step::Interrupted(why) };
    }
    let Some(target_id) = &target.primary_id else {
        let why = "it has no primary".to_owned();
        return if running.is_empty() { wait(facts, &batch.to, why) } else { cancel(why) };
    };
    let slots = batch.slots(facts.desired);
    let place = place(&slots, source.primary_id.as_ref(), target_id, &ownership, facts.seen);
    if place.at_target == slots && place.agreed && running.is_empty() {
        return landed(facts, target_id, &batch.to);
    }
    if let Some(foreign) = running.iter().find(|j| !slots.contains_all(&j.slots)) {
        return cancel(format!("another move of slots {} was under way", foreign.slots));
    }
    if !running.is_empty() {
        let trouble = source.primary.is_none() || target.primary.is_none();
        if trouble {
            return cancel("a primary stopped answering".to_owned());
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
    for id in [source.primary_id.as_ref(), Some(target_id)].into_iter().flatten() {
        if let Some(why) = bus::out_of_touch(facts.seen, id, None) {
            return not_before(facts, &batch.to, Reason::NotJoined, why);
        }
    }
    let primaries = [&source.primary, &target.primary];
    let child = facts.seen.up().any(|(n, s)| s.child && primaries.contains(&&Some(n.pod.clone())));
    if child || facts.jobs.is_none() {
        return wait(facts, &batch.from, "a save or a rewrite runs".to_owned());
    }
    match giver {
        Some((pod, id)) => Step::Start { pod, id, target: target_id.clone(), slots: place.at_source },
        None => Step::Wait("no primary answers".to_owned()),
    }
}

fn words(problems: &[Problem], shard: &str) -> String {
    problems.iter().find(|p| p.shard.as_deref() == Some(shard)).map(|p| p.message.clone()).unwrap_or_default()
}

fn wait(facts: &Facts, shard: &str, why: String) -> Step {
    not_before(facts, shard, Reason::ReplicaLagging, why)
}

fn not_before(facts: &Facts, shard: &str, reason: Reason, why: String) -> Step {
    if facts.impatient && !facts.begun { Step::Blocked(blocked(shard, reason, why)) } else { Step::Wait(why) }
}

/// Ends what runs where that is safe. A giver that is about to let go, or has, is waited for while the taker answers: that is over in
/// milliseconds, and what comes of it is the taker's to say. Without the taker nobody can know before its shard has a primary again.
fn cancel(running: &[&Job], giver: Option<(String, NodeId)>, taker_answers: bool, why: String) -> Step {
    let last = running.iter().any(|j| j.is_final());
    match giver {
        Some(_) if last && taker_answers => Step::Wait(format!("{why}, and is about to by itself")),
        Some((pod, id)) if !last => Step::Cancel { pod, id, why },
        _ => Step::Interrupted(why),
    }
}

/// The giver's primary, when it calls slots of the batch its own that a node of the taker calls its own as well.
pub(super) fn untold(batch: &Batch, facts: &Facts) -> Option<(String, NodeId)> {
    let slots = batch.slots(facts.desired);
    let of = |shard: &str| facts.seen.up().filter(|(n, s)| n.shard == shard && s.is_primary()).collect::<Vec<_>>();
    let takers = of(&batch.to);
    of(&batch.from).into_iter().find_map(|(node, giver)| {
        let claimed = giver.own_slots().intersection(&slots);
        let twice = takers.iter().any(|(_, taker)| !taker.own_slots().intersection(&claimed).is_empty());
        twice.then(|| (node.pod.clone(), giver.id.clone()))
    })
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
