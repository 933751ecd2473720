//! Who takes over from a dead primary. Pure.
//!
//! A write is acknowledged when k replicas hold it. Of R replicas, any R − k + 1 contain one that holds every acknowledged write,
//! and it is the one that is furthest in the newest history. With fewer in sight nobody is promoted.

use super::types::{
    Desired, DesiredShard, History, Member, NodeId, NodeState, Observation, Presence, Problem, Reason, Role, Seen,
};

/// A replica that hears its primary within this time has one that is alive, whatever the operator sees.
const SILENCE_S: u64 = 2;

/// What is to be done about a shard whose primary is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This pod takes over.
    Promote {
        /// The pod.
        pod: String,
        /// Its node id.
        id: NodeId,
        /// Whether a person took the risk of loss.
        forced: bool,
    },
    /// Not yet: something that ends by itself.
    Wait(String),
    /// Not without a person.
    Blocked(Box<Problem>),
}

/// What is remembered of the primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastKnown {
    /// The history that it wrote last.
    pub history: Option<History>,
}

struct Candidate<'a> {
    pod: &'a str,
    state: &'a NodeState,
    down_s: u64,
}

/// Decides about `shard`, whose primary `dead` is silent, or whose pod is gone. Even a pod that is gone may have left a process that
/// lives on for seconds (a deletion without grace ends the object first): while one replica hears the primary, the others' offsets are
/// not final, and a write that only that one holds may still be acknowledged.
pub fn verdict(
    desired: &Desired,
    shard: &DesiredShard,
    dead: &NodeId,
    last: &LastKnown,
    seen: &Observation,
) -> Verdict {
    let mut eligible: Vec<Candidate> = Vec::new();
    let mut loading = Vec::new();
    for member in shard.members.iter().filter(|member| counts(member, dead, seen)) {
        let state = match seen.seen(&member.pod) {
            Some(Seen::Up(state)) => state.as_ref(),
            Some(Seen::Loading) => {
                loading.push(member.pod.as_str());
                continue;
            }
            _ => continue,
        };
        let follows = state.myself().and_then(|me| me.replicates.as_ref()) == Some(dead);
        let Role::Replica { link_up, last_io_s, down_s, .. } = &state.role else { continue };
        if !follows {
            continue;
        }
        if state.loading {
            loading.push(member.pod.as_str());
            continue;
        }
        let heard = *link_up && last_io_s.is_some_and(|s| s < SILENCE_S);
        if heard {
            return Verdict::Wait(format!(
                "{} still hears the primary, which therefore lives, though the operator does not reach it",
                member.pod
            ));
        }
        eligible.push(Candidate {
            pod: &member.pod,
            state,
            down_s: if *link_up { 0 } else { down_s.unwrap_or(u64::MAX) },
        });
    }
    // While fewer replicas acknowledge than were asked for, no number of absent ones holds every acknowledged write.
    let asked = desired.ack_replicas.min(shard.acknowledged_by).min(shard.min_replicas_to_write);
    let k = if shard.lowered { 0 } else { asked };
    let copies = shard.members.iter().filter(|member| counts(member, dead, seen)).count();
    let needed = copies.saturating_sub(k as usize);
    if eligible.len() < needed && eligible.len() + loading.len() >= needed {
        return Verdict::Wait(format!("{} still loads its data", loading.join(", ")));
    }
    // A person's word counts only where the copies in sight are too few to tell: else one of them holds everything.
    let forced = shard.force_promote.as_deref().filter(|_| eligible.len() < needed);
    if let Some(forced) = forced.and_then(|pod| eligible.iter().find(|c| c.pod == pod)) {
        return promote(forced, true);
    }
    let best = furthest(&eligible, last);
    match best.filter(|_| eligible.len() >= needed) {
        Some(best) if is_going(shard, best.pod) && eligible.len() > needed => {
            // Its pod is being deleted: another one that is as far will do.
            let other = eligible.iter().find(|c| {
                !is_going(shard, c.pod) && c.state.offset == best.state.offset && c.state.history == best.state.history
            });
            promote(other.unwrap_or(best), false)
        }
        Some(best) => promote(best, false),
        None => Verdict::Blocked(Box::new(blocked(shard, dead, seen, needed, &eligible, best))),
    }
}

fn is_going(shard: &DesiredShard, pod: &str) -> bool {
    shard.members.iter().any(|m| m.pod == pod && m.presence == Presence::Terminating)
}

fn promote(candidate: &Candidate, forced: bool) -> Verdict {
    Verdict::Promote { pod: candidate.pod.to_owned(), id: candidate.state.id.clone(), forced }
}

/// The candidate that holds most: offsets count only within one history. Which of two histories is newer is known from the primary's last
/// answer; without one, from who lost its link last, since a new history begins with the loss of all links.
fn furthest<'a, 'b>(eligible: &'b [Candidate<'a>], last: &LastKnown) -> Option<&'b Candidate<'a>> {
    let newest = |c: &Candidate| {
        let known = last.history.as_ref();
        u8::from(known.is_some_and(|h| c.state.history.id == h.id)) * 2
            + u8::from(known.is_some_and(|h| {
                !h.previous.is_empty() && c.state.history.id == h.previous && h.previous.bytes().any(|b| b != b'0')
            }))
    };
    let mut best: Option<&Candidate> = None;
    for candidate in eligible {
        let better = best.is_none_or(|b| {
            if b.state.history.id == candidate.state.history.id {
                return candidate.state.offset > b.state.offset;
            }
            let (ours, theirs) = (newest(candidate), newest(b));
            ours > theirs || ours == theirs && candidate.down_s < b.down_s
        });
        if better {
            best = Some(candidate);
        }
    }
    best
}

/// Whether a member may hold what was acknowledged: it is written down as a copy, or is seen to follow the primary all the same (one that
/// comes back with an old volume joins by itself).
fn counts(member: &Member, dead: &NodeId, seen: &Observation) -> bool {
    let follows = |state: &NodeState| state.myself().and_then(|me| me.replicates.as_ref()) == Some(dead);
    member.copy || seen.state(&member.pod).is_some_and(follows)
}

fn blocked(
    shard: &DesiredShard,
    dead: &NodeId,
    seen: &Observation,
    needed: usize,
    eligible: &[Candidate],
    best: Option<&Candidate>,
) -> Problem {
    let names: Vec<&str> = eligible.iter().map(|c| c.pod).collect();
    let in_sight = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let wished = shard.force_promote.as_deref().filter(|pod| !names.contains(pod));
    let wished = wished.map(|pod| {
        format!(
            " {pod}, which kith.dev/force-promote names, is not promoted: it is no replica of that primary in sight."
        )
    });
    let message = format!(
        "The primary (node {}) is dead, and of its {} replicas {needed} must be in sight so that one certainly holds every acknowledged write; in sight: {in_sight}. Bring another copy back, the old primary's included.{}",
        dead.short(),
        shard.members.iter().filter(|member| counts(member, dead, seen)).count().saturating_sub(1),
        wished.unwrap_or_default()
    );
    let problem = Problem::new(Reason::FailoverBlocked, message).of(&shard.name);
    match best {
        Some(best) => problem.with_command(format!(
            "kubectl annotate storageshard {} kith.dev/force-promote={} (acknowledged messages may be lost)",
            shard.name, best.pod
        )),
        None => problem,
    }
}
