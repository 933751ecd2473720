//! Nodes join: they meet, follow their shard's primary, and what is gone is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{Action, Scene, describe, emptied, problem};
use crate::dataplane::types::{KnownNode, NodeId, NodeState, Problem, Reason};

/// Nodes that know nobody get epochs of their own, in the order of the members.
pub(super) fn epochs(scene: &Scene) -> Vec<Action> {
    let mut next = scene.seen.up().map(|(_, s)| s.current_epoch).max().unwrap_or(0);
    let mut actions = Vec::new();
    for (node, state) in scene.seen.up() {
        let alone = state.view.len() == 1 && state.myself().is_some_and(|me| me.epoch == 0);
        if alone && state.current_epoch == 0 {
            next += 1;
            actions.push(Action::SetEpoch { pod: node.pod.clone(), epoch: next });
        }
    }
    actions
}

/// The node that others are introduced to: it knows the most members, then owns the most slots.
fn anchor<'a>(scene: &'a Scene) -> Option<(&'a str, &'a NodeState)> {
    let ids: BTreeSet<&NodeId> = scene.seen.up().map(|(_, s)| &s.id).collect();
    let rank = |s: &NodeState| {
        let known = s.view.iter().filter(|n| !n.handshake && ids.contains(&n.id)).count();
        (known, scene.ownership.slots_of(&s.id).len())
    };
    let mut best: Option<(&str, &NodeState)> = None;
    for (node, state) in scene.seen.up() {
        if best.is_none_or(|(_, b)| rank(state) > rank(b)) {
            best = Some((&node.pod, state));
        }
    }
    best
}

/// Members that the cluster does not know and that hold something all the same. Letting them in could take slots or data away from
/// their owners, so they stay outside until a person has looked.
pub(super) fn strangers(scene: &Scene, problems: &mut Vec<Problem>) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let Some((_, anchor)) = anchor(scene) else { return found };
    for (node, state) in scene.seen.up() {
        let known = state.id == anchor.id || anchor.knows(&state.id).is_some() || state.knows(&anchor.id).is_some();
        if known {
            continue;
        }
        let slots = state.own_slots();
        let marked = state.owners.contains(&scene.desired.cluster_uid);
        if slots.is_empty() && (state.keys == 0 || marked) {
            continue;
        }
        found.insert(state.id.clone());
        let message = format!(
            "{} holds {} keys and claims {} slots, but the cluster does not know it; it is not let in, since that could take slots from their owners.",
            node.pod,
            state.keys,
            slots.len()
        );
        let command = format!("{} (throws away what it holds)", emptied(&node.pod, "CLUSTER RESET HARD"));
        problems.push(problem(&node.shard, Reason::ForeignData, message).with_command(command));
    }
    found
}

/// Whether `entry` shows that the two nodes speak, or will without help: the bus itself reconnects to an address that is right.
fn in_touch(entry: Option<&KnownNode>, address: SocketAddr) -> bool {
    entry.is_some_and(|n| n.connected && !n.failed || n.address == Some(address))
}

/// Introduces the members to the anchor; once that is done, to each other where gossip has not managed it.
pub(super) fn meet(scene: &Scene, strangers: &BTreeSet<NodeId>) -> Vec<Action> {
    let Some((anchor_pod, anchor)) = anchor(scene) else { return Vec::new() };
    let able = |id: &NodeId| !strangers.contains(id);
    let mut actions = introduce(scene, anchor_pod, anchor, &able);
    if actions.is_empty() {
        for (node, state) in scene.seen.up().filter(|(_, s)| able(&s.id) && s.id != anchor.id) {
            // Somebody that the anchor reaches and this node does not: only a wrong address is worth an introduction, the rest is gossip's.
            let wrong = |id: &NodeId| able(id) && state.knows(id).is_some_and(|n| !n.connected);
            actions.extend(introduce(scene, &node.pod, state, &wrong));
        }
    }
    actions
}

fn introduce(scene: &Scene, pod: &str, state: &NodeState, able: &dyn Fn(&NodeId) -> bool) -> Vec<Action> {
    let mut actions = Vec::new();
    for (other, other_state) in scene.seen.up().filter(|(_, s)| s.id != state.id && able(&s.id)) {
        let Some((_, member)) = scene.desired.member(&other.pod) else { continue };
        let Some(address) = member.address else { continue };
        let handshake = state.view.iter().any(|n| n.handshake && n.address == Some(address));
        if !handshake && !in_touch(state.knows(&other_state.id), address) {
            actions.push(Action::Meet {
                pod: pod.to_owned(),
                other: other.pod.clone(),
                address,
                bus_port: member.bus_port,
            });
        }
    }
    actions
}

/// Members that own nothing follow their shard's primary.
///
/// The others believe that a primary of their acquaintance became a replica only when the primary that it names has at least the epoch that
/// it had itself; of anything else they ignore every later message (`clusterProcessPacket` of the engine, "Ignore stale message"). A shard
/// without slots comes to that when its dead primary returns: nobody claims slots of it, so it goes on as a primary beside its heir. The
/// one that leads rises first, then, also when the operator died in between.
pub(super) fn replicate(scene: &Scene) -> Vec<Action> {
    let mut actions = Vec::new();
    for (shard, primary) in scene.desired.shards.iter().zip(&scene.primaries) {
        let Some(primary) = primary else { continue };
        // Following a primary that is not there would end in an empty copy, and promotion counts replicas as they are.
        let Some((leader, leading)) = scene.seen.by_id(primary).filter(|(_, s)| s.is_primary()) else { continue };
        let epoch = leading.myself().map_or(0, |me| me.epoch);
        let mut outranked = false;
        let mut follow = Vec::new();
        for member in &shard.members {
            let Some(state) = scene.seen.state(&member.pod).filter(|s| s.id != *primary) else { continue };
            let follows = state.myself().and_then(|me| me.replicates.as_ref()) == Some(primary);
            let free = scene.ownership.slots_of(&state.id).is_empty() && state.own_slots().is_empty();
            let able = !state.is_primary() || state.keys == 0;
            let joins = !follows && free && able && state.knows(primary).is_some();
            // A node without a mark was never of this shard, and the others take its word.
            let acquainted = (joins || follows) && state.owners.contains(&scene.desired.cluster_uid);
            outranked |= acquainted && known_as_primary(scene, &state.id).is_some_and(|known| known > epoch);
            // What it will hold counts for a promotion only when that is written down.
            if joins && (member.copy || !scene.desired.formed) {
                follow.push(Action::Replicate { pod: member.pod.clone(), primary: primary.clone() });
            }
        }
        if outranked {
            actions.push(Action::Raise { pod: leader.pod.clone() });
        } else {
            actions.extend(follow);
        }
    }
    actions
}

/// The highest epoch with which anybody takes this node for a primary, itself included.
fn known_as_primary(scene: &Scene, id: &NodeId) -> Option<u64> {
    let told = scene.seen.up().flat_map(|(_, state)| &state.view).filter(|known| known.id == *id && known.primary);
    told.map(|known| known.epoch).max()
}

/// Nodes that the cluster knows and that are no members: forgotten when they own nothing, cannot be reached, and every member
/// was seen (else one of the absent could be meant). An owner of slots is never forgotten.
pub(super) fn forget(scene: &Scene) -> Vec<Action> {
    if !scene.seen.is_complete() {
        return Vec::new();
    }
    strays(scene)
        .into_iter()
        .filter(|(_, stray)| !stray.owns && !stray.alive)
        .map(|(id, stray)| Action::Forget { pods: stray.known_by, id })
        .collect()
}

#[derive(Default)]
pub(super) struct Stray {
    pub(super) owns: bool,
    pub(super) alive: bool,
    pub(super) known_by: Vec<String>,
    pub(super) address: Option<SocketAddr>,
}

/// Nodes in some view that are no member that was seen.
pub(super) fn strays(scene: &Scene) -> BTreeMap<NodeId, Stray> {
    let members: BTreeSet<&NodeId> = scene.seen.up().map(|(_, s)| &s.id).collect();
    let mut strays: BTreeMap<NodeId, Stray> = BTreeMap::new();
    for (node, state) in scene.seen.up() {
        for known in state.view.iter().filter(|n| !n.handshake && !members.contains(&n.id)) {
            let stray = strays.entry(known.id.clone()).or_default();
            stray.owns |= !known.slots.is_empty() || scene.ownership.owners.contains_key(&known.id);
            stray.alive |= known.connected && !known.failed && !known.suspected;
            stray.known_by.push(node.pod.clone());
            stray.address = stray.address.or(known.address);
        }
    }
    strays
}

/// What is to be said about nodes that belong to no shard; only when every member was seen.
pub(super) fn stray_problems(scene: &Scene) -> Vec<Problem> {
    if !scene.seen.is_complete() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (id, stray) in strays(scene) {
        let at = stray.address.map(|a| format!(" at {a}")).unwrap_or_default();
        if stray.owns {
            let slots = scene.ownership.slots_of(&id);
            let message = format!(
                "Slots {slots} belong to node {id}{at}, which is no pod of any shard. Their data are there; bring its volume back. Giving the slots to another node loses what they hold."
            );
            let command = scene.primaries.iter().flatten().next().map(|p| {
                format!("valkey-cli CLUSTER SETSLOT <slot> NODE {p} on {}, for each of them", describe(scene, p))
            });
            let problem = Problem::new(Reason::OwnerMissing, message);
            problems.push(match command {
                Some(command) => problem.with_command(command),
                None => problem,
            });
        } else if stray.alive {
            let message = format!("Node {id}{at} takes part in the cluster and belongs to no shard; it owns nothing.");
            let command = format!("valkey-cli CLUSTER RESET HARD on it, then CLUSTER FORGET {id} on every pod");
            problems.push(Problem::new(Reason::StrayNode, message).with_command(command));
        }
    }
    problems
}
