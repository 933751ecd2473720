//! Forming: which partitions a shard gets at first, who is its first primary, and whether slots may be given out at all.

use std::collections::BTreeMap;

use super::{Action, Scene};
use crate::dataplane::{
    slots::SlotSet,
    types::{Desired, DesiredShard, NodeId, Observation, Presence},
};

/// Whole partitions by weight, in one run per shard, all of them given out. Deterministic, so that forming that was interrupted goes on
/// as it began.
pub fn allocate(desired: &Desired) -> Vec<(String, SlotSet)> {
    let weight = |shard: &DesiredShard| if shard.draining { 0 } else { u64::from(shard.weight) };
    let total: u64 = desired.shards.iter().map(weight).sum();
    let partitions = u64::from(desired.partitions);
    let mut given = Vec::with_capacity(desired.shards.len());
    let (mut sum, mut from) = (0, 0);
    for shard in &desired.shards {
        sum += weight(shard);
        // With total = 0 nobody may own anything; the caller's problem then says so.
        let to = (sum * partitions).checked_div(total).unwrap_or(0);
        given.push((shard.name.clone(), SlotSet::of_partitions(from as u32..to as u32, desired.partitions)));
        from = to;
    }
    given
}

/// Chooses the first primary of each shard that has none and never had one: spread over the Kubernetes nodes.
pub(super) fn designate(desired: &Desired, seen: &Observation, primaries: &mut [Option<NodeId>]) {
    let mut load: BTreeMap<&str, u32> = BTreeMap::new();
    let host = |pod: &str| desired.member(pod).and_then(|(_, m)| m.node.as_deref()).unwrap_or_default();
    for id in primaries.iter().flatten() {
        if let Some((node, _)) = seen.by_id(id) {
            *load.entry(host(&node.pod)).or_default() += 1;
        }
    }
    for (shard, primary) in desired.shards.iter().zip(primaries.iter_mut()) {
        if primary.is_some() {
            continue;
        }
        let able = shard.members.iter().filter(|m| matches!(m.presence, Presence::Running | Presence::Starting));
        let choice = able
            .filter_map(|m| seen.state(&m.pod).filter(|s| s.is_primary()).map(|s| (m, s)))
            .min_by_key(|(m, _)| load.get(host(&m.pod)).copied().unwrap_or(0));
        // All members must have been seen: one of the absent could be the primary of old.
        let all_seen = shard.members.iter().all(|m| seen.state(&m.pod).is_some());
        if let Some((member, state)) = choice.filter(|_| all_seen) {
            *load.entry(host(&member.pod)).or_default() += 1;
            *primary = Some(state.id.clone());
        }
    }
}

/// Whether this is a cluster that never held anything, so that slots may be given out: no status, no key and no slot says otherwise,
/// and every member was asked.
pub(super) fn is_virgin(scene: &Scene) -> bool {
    let of_a_shard = |id: &NodeId| scene.primaries.iter().any(|p| p.as_ref() == Some(id));
    !scene.desired.formed
        && !scene.desired.shards.is_empty()
        && scene.seen.is_complete()
        && scene.seen.up().all(|(_, s)| s.keys == 0 && !s.loading)
        && scene.ownership.owners.keys().all(of_a_shard)
}

/// Gives out the slots that nobody owns, to shards that are whole.
pub(super) fn slots(scene: &Scene) -> Vec<Action> {
    if scene.ownership.unowned.is_empty() || !is_virgin(scene) {
        return Vec::new();
    }
    let mut actions = Vec::new();
    for ((shard, primary), (_, wanted)) in
        scene.desired.shards.iter().zip(&scene.primaries).zip(allocate(scene.desired))
    {
        let slots = wanted.intersection(&scene.ownership.unowned);
        let Some((node, state)) = primary.as_ref().and_then(|id| scene.seen.by_id(id)) else { return Vec::new() };
        let marked = state.owners.contains(&scene.desired.cluster_uid);
        let ready = marked && super::super::readiness::is_whole(scene.desired, shard, primary.as_ref(), scene.seen);
        if !ready {
            // One shard that is not whole holds all back: clients should never meet a cluster that is half there.
            return Vec::new();
        }
        if !slots.is_empty() {
            actions.push(Action::AddSlots { pod: node.pod.clone(), slots });
        }
    }
    actions
}
