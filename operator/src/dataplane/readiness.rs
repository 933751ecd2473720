//! Whether the storage layer serves: from what every reachable node said in this very pass, never from pod readiness. Pure.

use super::{
    ownership::Ownership,
    slots::{SLOTS, SlotSet},
    types::{Desired, DesiredShard, Disk, LibraryState, NodeId, NodeState, Observation, Problem, Reason, Role, Seen},
};

/// A replica whose offset is no further behind than this counts as in step: what a busy primary writes between two looks.
const LAG_BYTES: u64 = 4 << 20;

/// What a member does with its shard's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It holds (replica) or gives (primary) the current data.
    InStep,
    /// It takes a full copy, or follows and is behind.
    Behind,
    /// It reads its own files.
    Loading,
    /// It answers and has no link to the shard's primary.
    Unlinked,
    /// It does not answer.
    Silent,
}

/// One copy of a shard, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// The pod.
    pub pod: String,
    /// Its node id, when it answered.
    pub id: Option<NodeId>,
    /// Whether it is the shard's primary.
    pub primary: bool,
    /// Whether it holds (replica) or gives (primary) the current data.
    pub in_step: bool,
    /// What it does with the data.
    pub copying: Copying,
    /// Bytes behind the primary.
    pub lag_bytes: u64,
    /// Up to where it holds the stream of changes.
    pub offset: u64,
    /// Whether it holds the function library.
    pub library: bool,
    /// What it says of its files.
    pub disk: Disk,
}

/// One shard, as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHealth {
    /// The shard's name.
    pub shard: String,
    /// The pod that is its primary, when that answered.
    pub primary: Option<String>,
    /// The primary's node id, reachable or not.
    pub primary_id: Option<NodeId>,
    /// Slots it owns.
    pub slots: SlotSet,
    /// Replicas that its primary says must hold a write; none when it was never told.
    pub wanted: Option<u32>,
    /// The history in which its primary writes: offsets of another one cannot be compared.
    pub history: String,
    /// Up to where its primary has written the stream of changes.
    pub offset: u64,
    /// Keys on its primary.
    pub keys: u64,
    /// Memory of its primary, bytes.
    pub memory: u64,
    /// Its bound; 0: none.
    pub max_memory: u64,
    /// Its members in order.
    pub members: Vec<MemberHealth>,
    /// A primary, every replica in step, the library everywhere.
    pub whole: bool,
}

impl ShardHealth {
    /// Whether the data plane says that nothing is left on it, so that it may be removed: no slot, and no key on any member.
    pub fn is_empty(&self, seen: &Observation) -> bool {
        let keyless = self.members.iter().all(|m| seen.state(&m.pod).is_some_and(|s| s.keys == 0));
        self.slots.is_empty() && keyless
    }
}

/// What StorageReady is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Every shard in order.
    pub shards: Vec<ShardHealth>,
    /// Slots that a reachable primary of a shard owns and serves.
    pub slots_served: u32,
    /// Whether every reachable node names the same owners.
    pub agreed: bool,
    /// Why it is not ready; empty when it is.
    pub problems: Vec<Problem>,
}

impl Readiness {
    /// Every slot owned once and served, all views equal, every shard whole.
    pub fn is_ready(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Judges one observation.
pub fn readiness(desired: &Desired, seen: &Observation) -> Readiness {
    let ownership = Ownership::of(seen);
    let shards: Vec<ShardHealth> = desired.shards.iter().map(|s| shard_health(desired, s, &ownership, seen)).collect();
    let slots_served: u32 = shards.iter().filter(|s| s.primary.is_some()).map(|s| s.slots.len()).sum();
    let mut problems = Vec::new();
    if shards.is_empty() || slots_served < u32::from(SLOTS) {
        let message = format!("{slots_served} of {SLOTS} slots are served by a primary that answers");
        problems.push(Problem::new(Reason::SlotsUncovered, message));
    }
    if !ownership.agreed || !ownership.disputed.is_empty() {
        problems.push(Problem::new(Reason::OwnershipDisputed, "The nodes do not yet agree about who owns which slot"));
    }
    for (health, shard) in shards.iter().zip(&desired.shards) {
        problems.extend(shard_problem(health, shard));
    }
    Readiness { shards, slots_served, agreed: ownership.agreed, problems }
}

fn shard_problem(health: &ShardHealth, shard: &DesiredShard) -> Option<Problem> {
    if health.whole {
        return None;
    }
    let problem = |reason, message: String| Some(Problem::new(reason, message).of(&shard.name));
    if health.primary.is_none() {
        return problem(Reason::PrimaryDown, "no primary answers".to_owned());
    }
    let names = |pick: &dyn Fn(&MemberHealth) -> bool| {
        health.members.iter().filter(|m| pick(m)).map(|m| m.pod.clone()).collect::<Vec<_>>().join(", ")
    };
    let lagging = names(&|m| !m.in_step);
    if !lagging.is_empty() {
        return problem(Reason::ReplicaLagging, format!("not in step with the primary: {lagging}"));
    }
    problem(
        Reason::LibraryMissing,
        format!("the function library is missing or of another version on {}", names(&|m| !m.library)),
    )
}

fn shard_health(desired: &Desired, shard: &DesiredShard, ownership: &Ownership, seen: &Observation) -> ShardHealth {
    let primary_id = ownership.primary_of(shard, seen);
    let primary = primary_id
        .as_ref()
        .and_then(|id| seen.by_id(id))
        .filter(|(n, s)| n.shard == shard.name && s.is_primary() && !s.loading);
    let members: Vec<MemberHealth> = shard
        .members
        .iter()
        .map(|member| {
            let state = seen.state(&member.pod);
            let is_primary = state.is_some_and(|s| primary.is_some_and(|(_, p)| p.id == s.id));
            let (in_step, lag_bytes) = match (state, primary) {
                (Some(_), Some(_)) if is_primary => (true, 0),
                (Some(state), Some((_, primary))) => step(state, primary),
                _ => (false, 0),
            };
            let library = state.is_some_and(|s| s.library == LibraryState::Present);
            MemberHealth {
                pod: member.pod.clone(),
                id: state.map(|s| s.id.clone()),
                primary: is_primary,
                in_step,
                copying: copying(&member.pod, seen, in_step),
                lag_bytes,
                offset: state.map_or(0, |s| s.offset),
                library,
                disk: state.map(|s| s.disk).unwrap_or_default(),
            }
        })
        .collect();
    let slots = primary_id.as_ref().map(|id| ownership.slots_of(id)).unwrap_or_default();
    ShardHealth {
        shard: shard.name.clone(),
        primary: primary.map(|(n, _)| n.pod.clone()),
        wanted: primary.and_then(|(_, s)| s.wanted),
        history: primary.map(|(_, s)| s.history.id.clone()).unwrap_or_default(),
        offset: primary.map_or(0, |(_, s)| s.offset),
        keys: primary.map_or(0, |(_, s)| s.keys),
        memory: primary.map_or(0, |(_, s)| s.memory),
        max_memory: primary.map_or(0, |(_, s)| s.max_memory),
        whole: is_whole(desired, shard, primary_id.as_ref(), seen),
        primary_id,
        slots,
        members,
    }
}

fn copying(pod: &str, seen: &Observation, in_step: bool) -> Copying {
    match seen.nodes.iter().find(|n| n.pod == pod).map(|n| &n.seen) {
        Some(Seen::Up(_)) if in_step => Copying::InStep,
        Some(Seen::Up(state)) if state.loading => Copying::Loading,
        Some(Seen::Up(state)) => match state.role {
            Role::Replica { link_up: true, .. } | Role::Replica { syncing: true, .. } => Copying::Behind,
            Role::Replica { .. } | Role::Primary { .. } => Copying::Unlinked,
        },
        Some(Seen::Loading) => Copying::Loading,
        Some(Seen::Ended | Seen::Down(_)) | None => Copying::Silent,
    }
}

/// Whether a member follows this primary, with the first transfer done and no more than a breath behind.
fn step(state: &NodeState, primary: &NodeState) -> (bool, u64) {
    let lag = primary.offset.saturating_sub(state.offset);
    let follows = state.myself().is_some_and(|me| me.replicates.as_ref() == Some(&primary.id));
    let linked = matches!(state.role, Role::Replica { link_up: true, .. }) && !state.loading;
    (follows && linked && lag <= LAG_BYTES && state.history.id == primary.history.id, lag)
}

/// Whether `primary` answers and all members of `shard` are there, in step, with the library.
pub(super) fn is_whole(desired: &Desired, shard: &DesiredShard, primary: Option<&NodeId>, seen: &Observation) -> bool {
    let Some((node, primary)) = primary.and_then(|id| seen.by_id(id)) else { return false };
    let enough = shard.members.len() > shard.replicas as usize;
    node.shard == shard.name
        && enough
        && primary.is_primary()
        && primary.owners.iter().all(|o| *o == desired.cluster_uid)
        && shard.members.iter().all(|member| {
            seen.state(&member.pod).is_some_and(|s| {
                s.library == LibraryState::Present && !s.loading && (s.id == primary.id || step(s, primary).0)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::{Fake, desired};

    #[test]
    fn each_member_says_what_it_does_with_its_data() {
        let wish = desired(1);
        let mut seen = Fake::formed(&wish).observe(&wish);
        let states =
            |seen: &Observation| readiness(&wish, seen).shards[0].members.iter().map(|m| m.copying).collect::<Vec<_>>();
        assert_eq!(states(&seen), [Copying::InStep; 3]);
        let replica = seen
            .nodes
            .iter()
            .position(|n| matches!(&n.seen, Seen::Up(state) if !state.is_primary()))
            .expect("a replica");
        let Seen::Up(state) = seen.nodes[replica].seen.clone() else { panic!("it answers") };
        let role = |link_up, syncing| Role::Replica { link_up, last_io_s: None, down_s: None, syncing };
        for (role, offset, loading, wanted) in [
            (role(true, false), 0, false, Copying::Behind),
            (role(false, true), 0, false, Copying::Behind),
            (role(false, false), state.offset, false, Copying::Unlinked),
            (Role::Primary { replicas: Vec::new() }, state.offset, false, Copying::Unlinked),
            (role(false, false), 0, true, Copying::Loading),
        ] {
            // A primary far ahead: what has nothing yet is behind.
            for node in &mut seen.nodes {
                if let Seen::Up(other) = &mut node.seen
                    && other.is_primary()
                    && other.id != state.id
                {
                    other.offset = state.offset + 2 * LAG_BYTES;
                }
            }
            seen.nodes[replica].seen =
                Seen::Up(Box::new(NodeState { role: role.clone(), offset, loading, ..(*state).clone() }));
            assert_eq!(states(&seen)[replica], wanted, "{role:?}");
        }
        for (silent, wanted) in [
            (Seen::Loading, Copying::Loading),
            (Seen::Ended, Copying::Silent),
            (Seen::Down("no answer".to_owned()), Copying::Silent),
        ] {
            seen.nodes[replica].seen = silent.clone();
            assert_eq!(states(&seen)[replica], wanted, "{silent:?}");
        }
    }
}
