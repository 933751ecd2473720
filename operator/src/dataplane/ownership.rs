//! Who owns which slot, from what all reachable nodes say. Pure.

use std::collections::BTreeMap;

use super::{
    slots::SlotSet,
    types::{DesiredShard, KnownNode, NodeId, NodeState, Observation},
};

/// The slots by owner, as the claim with the highest epoch says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Owners and what they own; nobody without slots is in it.
    pub owners: BTreeMap<NodeId, SlotSet>,
    /// Slots that nobody claims.
    pub unowned: SlotSet,
    /// Slots that two reachable nodes each call their own.
    pub disputed: SlotSet,
    /// Whether every reachable node tells clients the same.
    pub agreed: bool,
}

impl Ownership {
    /// From one observation.
    pub fn of(observation: &Observation) -> Self {
        let states: Vec<&NodeState> = observation.up().map(|(_, s)| s).collect();
        let own: BTreeMap<&NodeId, u64> =
            states.iter().filter_map(|s| s.myself()).map(|me| (&me.id, me.epoch)).collect();
        // Others go on naming a node for slots that it gave up without an heir; what it says itself counts, unless they know a later
        // epoch of it than it did when it was asked.
        let outdated = |teller: &NodeState, told: &KnownNode| {
            teller.id != told.id && own.get(&told.id).is_some_and(|epoch| *epoch >= told.epoch)
        };
        // The claim with the highest epoch counts, of two with one epoch that of the higher id: what later claims name is given already.
        let mut claims: Vec<(u64, &NodeId, &SlotSet)> = states
            .iter()
            .flat_map(|s| s.view.iter().filter(|n| !outdated(s, n)))
            .filter(|n| !n.slots.is_empty())
            .map(|n| (n.epoch, &n.id, &n.slots))
            .collect();
        claims.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)));
        let mut owners: BTreeMap<NodeId, SlotSet> = BTreeMap::new();
        let mut unowned = SlotSet::all();
        for (_, id, slots) in claims {
            let free = unowned.intersection(slots);
            if free.is_empty() {
                continue;
            }
            unowned = unowned.difference(&free);
            match owners.get_mut(id) {
                Some(owned) => *owned = owned.union(&free),
                None => drop(owners.insert(id.clone(), free)),
            }
        }
        Self { owners, unowned, disputed: disputed(&states), agreed: agreed(&states) }
    }

    /// What this node owns.
    pub fn slots_of(&self, id: &NodeId) -> SlotSet {
        self.owners.get(id).cloned().unwrap_or_default()
    }

    /// Whether nobody owns anything.
    pub fn is_blank(&self) -> bool {
        self.owners.is_empty()
    }

    /// The node that is, or was, the primary of `shard`: the owner of its slots, else the one that its members follow.
    pub fn primary_of(&self, shard: &DesiredShard, observation: &Observation) -> Option<NodeId> {
        let members: Vec<&NodeState> = shard.members.iter().filter_map(|m| observation.state(&m.pod)).collect();
        let followed = |state: &&NodeState| state.myself().and_then(|me| me.replicates.clone());
        let candidates = members.iter().map(|s| s.id.clone()).chain(members.iter().filter_map(followed));
        let mut best: Option<(u32, u64, NodeId)> = None;
        for id in candidates {
            let slots = self.slots_of(&id).len();
            let followers = members.iter().filter_map(followed).filter(|f| *f == id).count() as u64;
            if (slots > 0 || followers > 0) && best.as_ref().is_none_or(|b| (slots, followers) > (b.0, b.1)) {
                best = Some((slots, followers, id));
            }
        }
        best.map(|(_, _, id)| id)
    }
}

fn disputed(states: &[&NodeState]) -> SlotSet {
    let mut seen = SlotSet::empty();
    let mut twice = SlotSet::empty();
    for state in states.iter().filter(|s| s.is_primary()) {
        let own = state.own_slots();
        twice = twice.union(&seen.intersection(&own));
        seen = seen.union(&own);
    }
    twice
}

fn agreed(states: &[&NodeState]) -> bool {
    states.windows(2).all(|pair| pair[0].shards == pair[1].shards)
}
