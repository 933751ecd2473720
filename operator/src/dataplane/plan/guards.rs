//! What keeps the operator from writing, and what it has to say.

use super::{Scene, emptied, form, join, problem};
use crate::dataplane::types::{Problem, Reason, Seen};

/// Signs that the data are not this ChatCluster's. While there is one, nothing is written.
pub(super) fn foreign(scene: &Scene) -> Vec<Problem> {
    let uid = &scene.desired.cluster_uid;
    let mut problems = Vec::new();
    for (node, state) in scene.seen.up() {
        if let Some(other) = state.owners.iter().find(|o| *o != uid) {
            let message = format!(
                "{} holds data of the ChatCluster with UID {other}, this one has {uid}. Nothing was written. To adopt the data, set spec.restoreFrom; else delete the claim and its volume.",
                node.pod
            );
            problems.push(problem(&node.shard, Reason::ForeignData, message));
        }
    }
    if problems.is_empty() && !scene.desired.formed && !form::is_virgin(scene) {
        let marked = scene.seen.up().any(|(_, s)| s.owners.contains(uid));
        let held = scene.seen.up().find(|(_, s)| s.keys > 0 || s.view.iter().any(|n| !n.slots.is_empty()));
        if let Some((node, state)) = held.filter(|_| !marked) {
            let message = format!(
                "{} holds data of an earlier cluster ({} keys, {} slots in its node list), and none of it carries this ChatCluster's mark. Nothing was written. Delete the claim and its volume, or set spec.restoreFrom.",
                node.pod,
                state.keys,
                state.own_slots().len()
            );
            problems.push(problem(&node.shard, Reason::ForeignData, message));
        }
    }
    problems
}

/// Everything else that is worth words.
pub(super) fn problems(scene: &Scene) -> Vec<Problem> {
    let mut problems = unseen(scene);
    problems.extend(uncovered(scene));
    problems.extend(disputed(scene));
    problems.extend(split(scene));
    problems.extend(stuck_members(scene));
    problems.extend(join::stray_problems(scene));
    problems
}

fn unseen(scene: &Scene) -> Vec<Problem> {
    let mut problems = Vec::new();
    for node in &scene.seen.nodes {
        match &node.seen {
            Seen::Up(state) if state.loading => problems.push(loading(node)),
            Seen::Up(_) => {}
            Seen::Loading => problems.push(loading(node)),
            Seen::Ended => {
                let message = format!("{} does not run: nobody listens at its address", node.pod);
                problems.push(problem(&node.shard, Reason::MemberUnreachable, message));
            }
            Seen::Down(why) => {
                let message = format!("{} does not answer: {why}", node.pod);
                problems.push(problem(&node.shard, Reason::MemberUnreachable, message));
            }
        }
    }
    problems
}

fn loading(node: &crate::dataplane::types::NodeView) -> Problem {
    problem(&node.shard, Reason::MemberLoading, format!("{} still loads its data", node.pod))
}

fn uncovered(scene: &Scene) -> Option<Problem> {
    let unowned = &scene.ownership.unowned;
    if unowned.is_empty() || scene.seen.up().next().is_none() {
        return None;
    }
    if form::is_virgin(scene) || !scene.desired.formed && scene.ownership.is_blank() {
        return Some(Problem::new(Reason::NotJoined, "The shards are still being joined; no slot has an owner yet."));
    }
    let message = format!(
        "Slots {unowned} have no owner. Their data may be on a member that is not in reach; bring it back. Giving the slots to a node that lacks the data loses what they held."
    );
    let problem = Problem::new(Reason::SlotsUncovered, message);
    let primary = scene.primaries.iter().flatten().find_map(|id| scene.seen.by_id(id));
    Some(match primary {
        Some((node, _)) => problem.with_command(format!(
            "kubectl exec {} -- valkey-cli CLUSTER ADDSLOTSRANGE {}",
            node.pod,
            unowned.arguments().join(" ")
        )),
        None => problem,
    })
}

fn disputed(scene: &Scene) -> Option<Problem> {
    let disputed = &scene.ownership.disputed;
    if disputed.is_empty() {
        return None;
    }
    let message = format!(
        "Slots {disputed} are claimed by two nodes. The higher epoch wins as soon as both can speak; writes to the loser are refused by the storage layer's claims."
    );
    Some(Problem::new(Reason::OwnershipDisputed, message))
}

fn split(scene: &Scene) -> Vec<Problem> {
    let partitions = scene.desired.partitions;
    let mut problems = Vec::new();
    for (id, slots) in &scene.ownership.owners {
        let whole = slots.whole_partitions(partitions).len() as u32;
        let each = u32::from(crate::dataplane::slots::slots_per_partition(partitions));
        if whole * each != slots.len() && scene.ownership.unowned.is_empty() {
            let message = format!(
                "{} owns parts of partitions (slots {slots}); a move was interrupted. The next rebalance brings them together.",
                super::describe(scene, id)
            );
            problems.push(Problem::new(Reason::PartitionSplit, message));
        }
    }
    problems
}

/// Members that should be replicas and cannot become ones without throwing keys away.
fn stuck_members(scene: &Scene) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (shard, primary) in scene.desired.shards.iter().zip(&scene.primaries) {
        let Some(primary) = primary else { continue };
        for member in &shard.members {
            let Some(state) = scene.seen.state(&member.pod).filter(|s| s.id != *primary && s.is_primary()) else {
                continue;
            };
            let free = scene.ownership.slots_of(&state.id).is_empty();
            if free && state.keys > 0 && scene.seen.by_id(primary).is_some() {
                let message = format!(
                    "{} holds {} keys of slots that {} owns now and did not become its replica by itself.",
                    member.pod,
                    state.keys,
                    super::describe(scene, primary)
                );
                let command = emptied(&member.pod, &format!("CLUSTER REPLICATE {primary}"));
                let command = format!("{command} (throws its copy away; the primary's is kept)");
                problems.push(problem(&shard.name, Reason::ReplicaLagging, message).with_command(command));
            }
        }
    }
    problems
}
