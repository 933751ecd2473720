//! Who is dead: what is remembered from probe to probe, and what follows from it. Pure; time is passed in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    ownership::Ownership,
    promote::{LastKnown, Verdict, verdict},
    types::{Desired, DesiredShard, NodeId, NodeState, Observation, Presence, Problem, Reason, Role, Seen},
};

/// A primary that has not answered for this long is dead, unless one of its replicas still hears it. Clients are refused for this time
/// and one probe more, and five seconds are what they were promised.
pub const DEAD_AFTER: Duration = Duration::from_secs(2);

/// For so long after a primary fell silent it is looked at more often.
const RESTLESS: Duration = Duration::from_secs(5);

/// What a probe leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Promote this replica: its primary is dead.
    Takeover {
        /// The shard.
        shard: String,
        /// The pod.
        pod: String,
        /// Its node id.
        id: NodeId,
        /// Whom it replaces.
        dead: NodeId,
        /// Whether a person took the risk of loss.
        forced: bool,
    },
    /// The primary's pod is being deleted or to be restarted and still serves: hand over without a gap.
    Switchover {
        /// The shard.
        shard: String,
        /// The pod of the primary.
        from: String,
        /// The pod that takes over.
        to: String,
    },
}

/// The findings of one probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What to do, at most one thing per shard.
    pub orders: Vec<Order>,
    /// Shards whose primary is silent or dead, in words.
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone)]
struct Memory {
    id: NodeId,
    /// Pod and its UID where the primary last answered; unknown to an operator that came after it fell silent.
    home: Option<(String, String)>,
    last: LastKnown,
    /// The last answer, or the first probe that missed it.
    since: Instant,
}

/// Remembers the primaries of one ChatCluster.
#[derive(Debug, Default)]
pub struct Watch {
    shards: HashMap<String, Memory>,
    /// Pods that were promoted because a person let them be, by shard, for as long as the wish stands: it holds once.
    forced: HashMap<String, String>,
    restless: bool,
}

impl Watch {
    /// Takes in one probe.
    pub fn look(&mut self, now: Instant, desired: &Desired, seen: &Observation) -> Findings {
        let ownership = Ownership::of(seen);
        self.restless = false;
        self.shards.retain(|name, _| desired.shard(name).is_some());
        self.forced
            .retain(|name, pod| desired.shard(name).is_some_and(|shard| shard.force_promote.as_ref() == Some(pod)));
        let mut findings = Findings::default();
        for shard in &desired.shards {
            let current = ownership.primary_of(shard, seen);
            let Some(id) = current.or_else(|| self.shards.get(&shard.name).map(|m| m.id.clone())) else { continue };
            let alive = seen.by_id(&id).filter(|(_, s)| s.is_primary() && !s.loading);
            match alive {
                Some((node, state)) => self.alive(now, desired, shard, &node.pod, state, seen, &mut findings),
                None => self.silent(now, desired, shard, &id, seen, &mut findings),
            }
        }
        findings
    }

    /// The node that was last known to be the primary of a shard.
    pub fn primary(&self, shard: &str) -> Option<&NodeId> {
        self.shards.get(shard).map(|memory| &memory.id)
    }

    /// Takes in that the primary of a shard answered, as what it was at the last look.
    pub fn heard(&mut self, shard: &str, now: Instant) {
        if let Some(memory) = self.shards.get_mut(shard) {
            memory.since = now;
        }
    }

    /// Takes in that `pod` was promoted by force: the wish is used up, however long its annotation stays.
    pub fn was_forced(&mut self, shard: &str, pod: &str) {
        self.forced.insert(shard.to_owned(), pod.to_owned());
    }

    /// Whether a primary fell silent a moment ago: clients wait, and what decides may show any moment.
    pub fn is_restless(&self) -> bool {
        self.restless
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one probe")]
    fn alive(
        &mut self,
        now: Instant,
        desired: &Desired,
        shard: &DesiredShard,
        pod: &str,
        state: &NodeState,
        seen: &Observation,
        findings: &mut Findings,
    ) {
        let member = desired.member(pod).map(|(_, m)| m);
        let memory = Memory {
            id: state.id.clone(),
            home: member.map(|m| (m.pod.clone(), m.uid.clone())),
            last: LastKnown { history: Some(state.history.clone()) },
            since: now,
        };
        self.shards.insert(shard.name.clone(), memory);
        let leaving = member.is_some_and(|m| m.presence == Presence::Terminating);
        let asked = shard.hand_over.as_ref().filter(|h| h.from == pod);
        let wished = asked.and_then(|h| h.to.as_deref());
        if (leaving || asked.is_some())
            && let Some(to) = successor(shard, state, seen, wished)
        {
            findings.orders.push(Order::Switchover { shard: shard.name.clone(), from: pod.to_owned(), to });
        }
    }

    fn silent(
        &mut self,
        now: Instant,
        desired: &Desired,
        shard: &DesiredShard,
        id: &NodeId,
        seen: &Observation,
        findings: &mut Findings,
    ) {
        let fresh = || Memory { id: id.clone(), home: None, last: LastKnown::default(), since: now };
        let memory = self.shards.entry(shard.name.clone()).or_insert_with(fresh);
        if memory.id != *id {
            *memory = fresh();
        }
        let dead = is_gone(shard, memory, seen) || has_ended(memory, seen);
        let silent_for = now.saturating_duration_since(memory.since);
        self.restless |= silent_for < RESTLESS;
        if !dead && silent_for < DEAD_AFTER {
            return;
        }
        let unforced;
        let shard = if self.forced.contains_key(&shard.name) {
            unforced = DesiredShard { force_promote: None, ..shard.clone() };
            &unforced
        } else {
            shard
        };
        let found = match verdict(desired, shard, id, &memory.last, seen) {
            Verdict::Promote { pod, id: new, forced } => {
                let order = Order::Takeover { shard: shard.name.clone(), pod, id: new, dead: id.clone(), forced };
                findings.orders.push(order);
                format!("The primary (node {}) is dead; a replica takes over.", id.short())
            }
            Verdict::Wait(why) => format!("The primary (node {}) does not answer: {why}.", id.short()),
            // It may be back in a moment.
            Verdict::Blocked(_) if silent_for < DEAD_AFTER => return,
            Verdict::Blocked(problem) => {
                findings.problems.push(*problem);
                return;
            }
        };
        findings.problems.push(Problem::new(Reason::PrimaryDown, found).of(&shard.name));
    }
}

/// Whether the primary will not come back by itself: the pod where it last answered is no more, or, when that is unknown, every member
/// that does not answer is gone.
fn is_gone(shard: &DesiredShard, memory: &Memory, seen: &Observation) -> bool {
    match &memory.home {
        Some((pod, uid)) => {
            shard.members.iter().find(|m| m.pod == *pod).is_none_or(|m| m.uid != *uid || m.presence == Presence::Gone)
        }
        None => shard.members.iter().filter(|m| seen.state(&m.pod).is_none()).all(|m| m.presence == Presence::Gone),
    }
}

/// Whether the process that was the primary is no more where it last answered: nobody listens there, or another one loads the data. What it
/// acknowledged its replicas hold, and none of them waits for its return.
fn has_ended(memory: &Memory, seen: &Observation) -> bool {
    memory.home.as_ref().is_some_and(|(pod, _)| match seen.seen(pod) {
        Some(Seen::Ended | Seen::Loading) => true,
        Some(Seen::Up(state)) => state.id == memory.id && state.loading,
        _ => false,
    })
}

/// The replica that should follow a living primary: in step, its pod to stay; the one that is wished for, else the furthest.
pub fn successor(
    shard: &DesiredShard,
    primary: &NodeState,
    seen: &Observation,
    wished: Option<&str>,
) -> Option<String> {
    let staying = shard.members.iter().filter(|m| m.presence == Presence::Running);
    staying
        .filter_map(|m| seen.state(&m.pod).map(|s| (m, s)))
        .filter(|(_, s)| {
            let follows = s.myself().and_then(|me| me.replicates.as_ref()) == Some(&primary.id);
            follows
                && matches!(s.role, Role::Replica { link_up: true, .. })
                && !s.loading
                && s.history.id == primary.history.id
        })
        .max_by_key(|(m, s)| (wished == Some(m.pod.as_str()), s.offset))
        .map(|(m, _)| m.pod.clone())
}

#[cfg(test)]
mod tests;
