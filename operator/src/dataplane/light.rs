//! Light probes: a small question to each primary that was well at the last full look, instead of everything to every member. Pure but for the
//! question.
//!
//! A light probe only confirms that nothing has changed. What it cannot confirm leads to a full look in the same round, and nothing but a
//! full look decides.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use futures::future::join_all;
use redis::{Pipeline, Value};

use super::{
    link::{LinkError, Links, READ_DEADLINE},
    parse,
    types::{AttachedReplica, Desired, DesiredShard, History, NodeId, Observation, Presence, Role},
    watch::{Findings, Watch},
};

/// The longest time between two full looks at a ChatCluster that is well. The shortest is half of it, so that those of many are spread.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Why a round looks at everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There was no full look yet, or the last one found something to be done, to be told or to be waited for.
    Unsettled,
    /// A primary is to hand over, or a pod is being deleted.
    Leaving,
    /// Slots that a dead primary was about to take are not seen to yet.
    Stranded,
    /// The shards, their pods or what is wished of them changed.
    Desired,
    /// Slots move.
    Moving,
    /// The last full look is long ago.
    Age,
    /// A primary did not answer, or refused.
    Silent,
    /// Another node answers where a primary was.
    Stranger,
    /// A primary is one no longer.
    Role,
    /// A primary writes another history: it began anew.
    History,
    /// A primary lost or gained a replica, or one fell out of step.
    Replicas,
}

impl Cause {
    /// As metrics spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unsettled => "unsettled",
            Self::Leaving => "leaving",
            Self::Stranded => "stranded",
            Self::Desired => "desired",
            Self::Moving => "moving",
            Self::Age => "age",
            Self::Silent => "silent",
            Self::Stranger => "stranger",
            Self::Role => "role",
            Self::History => "history",
            Self::Replicas => "replicas",
        }
    }

    /// Whether the engine itself showed something else than before.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Silent | Self::Stranger | Self::Role | Self::History | Self::Replicas)
    }
}

/// A primary as the last full look found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vital {
    /// Its shard.
    pub shard: String,
    address: SocketAddr,
    id: NodeId,
    history: History,
    replicas: Vec<AttachedReplica>,
}

/// What a light probe compares with: every shard had a primary, that answered, and nothing was to be done.
#[derive(Debug, Clone)]
pub struct Baseline {
    desired: Arc<Desired>,
    until: Instant,
    /// The primary of each shard.
    pub vitals: Vec<Vital>,
}

impl Baseline {
    /// From a full look and what followed from it. `rest`: for how long it holds.
    pub fn of(
        now: Instant,
        rest: Duration,
        desired: &Arc<Desired>,
        seen: &Observation,
        watch: &Watch,
        findings: &Findings,
    ) -> Result<Self, Cause> {
        if !findings.orders.is_empty() || !findings.problems.is_empty() || watch.is_restless() {
            return Err(Cause::Unsettled);
        }
        let leaving = desired.members().any(|(_, member)| member.presence == Presence::Terminating);
        if leaving || desired.shards.iter().any(|shard| shard.hand_over.is_some()) {
            return Err(Cause::Leaving);
        }
        let vitals = desired.shards.iter().map(|shard| vital(shard, desired, seen, watch)).collect::<Option<_>>();
        let vitals = vitals.ok_or(Cause::Unsettled)?;
        Ok(Self { desired: desired.clone(), until: now + rest, vitals })
    }
}

fn vital(shard: &DesiredShard, desired: &Desired, seen: &Observation, watch: &Watch) -> Option<Vital> {
    let (node, state) = seen.by_id(watch.primary(&shard.name)?)?;
    let Role::Primary { replicas } = &state.role else { return None };
    let address = desired.member(&node.pod)?.1.address?;
    (!state.loading).then(|| Vital {
        shard: shard.name.clone(),
        address,
        id: state.id.clone(),
        history: state.history.clone(),
        replicas: replicas.clone(),
    })
}

/// What is known before anybody is asked.
#[derive(Debug, Clone, Copy)]
pub struct Round<'a> {
    /// When it begins.
    pub now: Instant,
    /// What should be.
    pub desired: &'a Arc<Desired>,
    /// Whether slots move.
    pub moving: bool,
    /// Whether slots that a dead primary was about to take are still to be seen to.
    pub stranded: bool,
}

/// Whether this round may ask lightly, and whom; else why not.
pub fn may_be_light<'a>(baseline: &'a Result<Baseline, Cause>, round: &Round<'_>) -> Result<&'a Baseline, Cause> {
    let baseline = baseline.as_ref().map_err(|cause| *cause)?;
    if round.stranded {
        Err(Cause::Stranded)
    } else if !Arc::ptr_eq(&baseline.desired, round.desired) && baseline.desired != *round.desired {
        Err(Cause::Desired)
    } else if round.moving {
        Err(Cause::Moving)
    } else if round.now >= baseline.until {
        Err(Cause::Age)
    } else {
        Ok(baseline)
    }
}

/// The question: who are you, and how do you replicate. A node that loads its data refuses the first part.
static QUESTION: LazyLock<Pipeline> = LazyLock::new(|| {
    let mut question = Pipeline::with_capacity(2);
    question.cmd("CLUSTER").arg("MYID");
    question.cmd("INFO").arg("replication");
    question
});

/// Asks every primary at once; answers for each, in order, whether it is as it was.
pub async fn ask(links: &Links, baseline: &Baseline) -> Vec<Result<(), Cause>> {
    let one = |vital| async move { compare(vital, &links.ask(vital.address, &QUESTION, READ_DEADLINE).await) };
    join_all(baseline.vitals.iter().map(one)).await
}

/// Whether a primary is as it was.
fn compare(vital: &Vital, answer: &Result<Vec<Value>, LinkError>) -> Result<(), Cause> {
    let Ok([Value::BulkString(id), Value::BulkString(info)]) = answer.as_deref() else { return Err(Cause::Silent) };
    if id != vital.id.as_str().as_bytes() {
        return Err(Cause::Stranger);
    }
    let info = std::str::from_utf8(info).map_err(|_| Cause::Silent)?;
    let (mut role, mut id, mut previous, mut attached) = ("", "", "", 0);
    for (name, value) in info.lines().filter_map(|line| line.trim_end().split_once(':')) {
        match name {
            "role" if value != "master" => return Err(Cause::Role),
            "role" => role = value,
            "master_replid" => id = value,
            "master_replid2" => previous = value,
            _ if is_numbered_replica(name) => {
                let (was, is) = (vital.replicas.get(attached), parse::attached_replica(value));
                if was.is_none_or(|was| (was.address, was.online) != (is.address, is.online)) {
                    return Err(Cause::Replicas);
                }
                attached += 1;
            }
            _ => {}
        }
    }
    if role.is_empty() {
        Err(Cause::Silent)
    } else if id != vital.history.id || previous != vital.history.previous {
        Err(Cause::History)
    } else if attached != vital.replicas.len() {
        Err(Cause::Replicas)
    } else {
        Ok(())
    }
}

/// `slave0`, `slave1` and so on.
fn is_numbered_replica(name: &str) -> bool {
    name.strip_prefix("slave").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
