//! What to do next, from what was seen: ordered actions and the problems in words. Pure.
//!
//! A plan holds the actions of one stage only; the next look decides about the rest. So every step rests on what the data plane says
//! then, and a plan that was cut off by a crash is simply made again. Promotion is not here but in `promote`: it must not wait for a pass.

mod form;
mod guards;
mod join;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use form::allocate;

use super::{
    ownership::Ownership,
    slots::SlotSet,
    types::{Desired, LibraryState, NodeId, Observation, Problem, Reason, Role},
};

/// One change of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `CONFIG SET` on a pod.
    Set {
        /// The pod.
        pod: String,
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// Gives a node that knows no other its own configuration epoch, so that no two primaries start with the same.
    SetEpoch {
        /// The pod.
        pod: String,
        /// The epoch.
        epoch: u64,
    },
    /// Makes two verified pods know each other.
    Meet {
        /// Who is told.
        pod: String,
        /// Whom to meet.
        other: String,
        /// Where that one listens.
        address: SocketAddr,
        /// Its bus.
        bus_port: u16,
    },
    /// Gives a primary an epoch above all that it knows. Not while slots move; see [`Action::needs_rest`].
    Raise {
        /// The pod.
        pod: String,
    },
    /// Makes a pod without slots a replica.
    Replicate {
        /// The pod.
        pod: String,
        /// Of whom.
        primary: NodeId,
    },
    /// Tells a primary, and with it `storage`, how many replicas must hold a write.
    Tell {
        /// The pod.
        pod: String,
        /// How many.
        wanted: u32,
        /// At full memory: the bound meanwhile, and the one afterwards.
        room: Option<(u64, u64)>,
    },
    /// Loads the function library on a primary; its replicas get it from there.
    LoadLibrary {
        /// The pod.
        pod: String,
    },
    /// Writes the ChatCluster's mark on a primary.
    Mark {
        /// The pod.
        pod: String,
    },
    /// Gives slots that never had an owner to a primary. Only while a cluster is first formed.
    AddSlots {
        /// The pod.
        pod: String,
        /// The slots.
        slots: SlotSet,
    },
    /// Makes pods forget a node that owns nothing and is no member.
    Forget {
        /// Who forgets.
        pods: Vec<String>,
        /// Whom.
        id: NodeId,
    },
}

impl Action {
    /// Whether no slots may move and no primary may change meanwhile: an epoch decides who wins slots.
    pub fn needs_rest(&self) -> bool {
        matches!(self, Self::Raise { .. })
    }
}

/// What to do and what to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; all of one stage.
    pub actions: Vec<Action>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Whether nothing is to be done or said.
    pub fn is_clean(&self) -> bool {
        self.actions.is_empty() && self.problems.is_empty()
    }
}

/// Everything that the stages look at.
struct Scene<'a> {
    desired: &'a Desired,
    seen: &'a Observation,
    ownership: Ownership,
    /// The primary of each shard, in the order of `desired.shards`.
    primaries: Vec<Option<NodeId>>,
}

impl<'a> Scene<'a> {
    fn new(desired: &'a Desired, seen: &'a Observation) -> Self {
        let ownership = Ownership::of(seen);
        let mut primaries: Vec<_> = desired.shards.iter().map(|s| ownership.primary_of(s, seen)).collect();
        form::designate(desired, seen, &mut primaries);
        Self { desired, seen, ownership, primaries }
    }
}

/// The next stage.
pub fn plan(desired: &Desired, seen: &Observation) -> Plan {
    let scene = Scene::new(desired, seen);
    let mut plan = Plan { actions: Vec::new(), problems: guards::foreign(&scene) };
    if !plan.problems.is_empty() {
        // Data that may be somebody else's: nothing at all is written.
        return plan;
    }
    plan.problems = guards::problems(&scene);
    let strangers = join::strangers(&scene, &mut plan.problems);
    let stages: [&dyn Fn() -> Vec<Action>; 8] = [
        &|| settings(&scene),
        &|| join::epochs(&scene),
        &|| join::meet(&scene, &strangers),
        &|| join::replicate(&scene),
        &|| libraries(&scene),
        &|| form::slots(&scene),
        &|| join::forget(&scene),
        &|| tell(&scene),
    ];
    plan.actions = stages.iter().map(|stage| stage()).find(|actions| !actions.is_empty()).unwrap_or_default();
    plan
}

fn settings(scene: &Scene) -> Vec<Action> {
    let mut actions = Vec::new();
    for (node, state) in scene.seen.up() {
        let Some(shard) = scene.desired.shard(&node.shard) else { continue };
        let required = super::settings::required(scene.desired, shard);
        for (name, _) in &state.settings {
            if let Some((_, value)) = required.iter().find(|(n, _)| n == name) {
                actions.push(Action::Set { pod: node.pod.clone(), name: name.clone(), value: value.clone() });
            }
        }
    }
    actions
}

/// Libraries and marks go to primaries, before slots do. A primary that would refuse the write for want of replicas is left alone: the
/// problem is reported by what makes it want them.
fn libraries(scene: &Scene) -> Vec<Action> {
    let mut actions = Vec::new();
    for (shard, primary) in scene.desired.shards.iter().zip(&scene.primaries) {
        let Some((node, state)) = primary.as_ref().and_then(|id| scene.seen.by_id(id)) else { continue };
        let Role::Primary { replicas } = &state.role else { continue };
        if replicas.iter().filter(|r| r.online).count() < shard.min_replicas_to_write as usize {
            continue;
        }
        let behind = shard.members.iter().filter_map(|m| scene.seen.state(&m.pod)).any(|s| {
            let follows = s.myself().is_some_and(|me| me.replicates.as_ref() == primary.as_ref());
            let in_step = matches!(s.role, Role::Replica { link_up: true, .. }) && s.offset >= state.offset;
            follows && in_step && s.library != LibraryState::Present
        });
        if !state.owners.contains(&scene.desired.cluster_uid) {
            actions.push(Action::Mark { pod: node.pod.clone() });
        }
        if state.library != LibraryState::Present || behind {
            actions.push(Action::LoadLibrary { pod: node.pod.clone() });
        }
    }
    actions
}

/// What primaries say to `storage` of the replicas that must hold a write. Last, and each for itself: a primary that refuses it keeps nothing
/// else from being done.
fn tell(scene: &Scene) -> Vec<Action> {
    let shards = scene.desired.shards.iter().zip(&scene.primaries);
    let primaries = shards.filter_map(|(shard, primary)| Some((shard, scene.seen.by_id(primary.as_ref()?)?)));
    primaries
        .filter(|(shard, (_, state))| state.is_primary() && state.wanted != Some(shard.min_replicas_to_write))
        .map(|(shard, (node, state))| Action::Tell {
            pod: node.pod.clone(),
            wanted: shard.min_replicas_to_write,
            // At full memory the engine takes no library.
            room: (state.max_memory > 0 && state.memory + ROOM > state.max_memory)
                .then_some((state.memory.max(state.max_memory) + ROOM, state.max_memory)),
        })
        .collect()
}

/// Bytes that a small library may take.
const ROOM: u64 = 1 << 20;

/// For messages: a shard's primary that is known, wherever it is.
fn describe(scene: &Scene, id: &NodeId) -> String {
    match scene.seen.by_id(id) {
        Some((node, _)) => node.pod.clone(),
        None => format!("node {}", id.short()),
    }
}

/// The command with which a person empties `pod` and then tells it `next`. Without replicas it would refuse to be emptied; a later pass
/// puts the setting back.
fn emptied(pod: &str, next: &str) -> String {
    format!(
        "kubectl exec {pod} -- sh -c 'valkey-cli CONFIG SET min-replicas-to-write 0 && valkey-cli FLUSHALL && valkey-cli {next}'"
    )
}

/// A problem of this shard.
fn problem(shard: &str, reason: Reason, message: String) -> Problem {
    Problem::new(reason, message).of(shard)
}
