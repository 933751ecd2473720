//! Whether the cluster bus carries news of a node to everybody and back. Pure.
//!
//! A slot move ends with the taker telling the others that it owns the slots now. The giver holds writes back until it hears that,
//! and goes on with writes when it has not heard it in time: they are acknowledged, and thrown away as soon as it does hear it. So no
//! move may begin where the two do not hear each other, or where the others do not know the taker as it is.

use super::types::{KnownNode, NodeId, NodeState, Observation};

/// Why not everybody is in touch with `id` over the bus, in words; `None` when all are. With a shard, its members alone count.
pub fn out_of_touch(seen: &Observation, id: &NodeId, shard: Option<&str>) -> Option<String> {
    let Some((node, state)) = seen.by_id(id) else { return Some(format!("{} does not answer", id.short())) };
    let mut others = seen.up().filter(|(n, other)| other.id != *id && shard.is_none_or(|shard| n.shard == shard));
    others.find_map(|(other_node, other)| {
        deafness(other, state)
            .or_else(|| deafness(state, other))
            .map(|why| format!("{} and {}: {why}", other_node.pod, node.pod))
    })
}

/// Why `listener` does not have the latest news of `speaker`.
fn deafness(listener: &NodeState, speaker: &NodeState) -> Option<&'static str> {
    let Some(known) = listener.knows(&speaker.id) else { return Some("one does not know the other yet") };
    if !known.connected || !known.heard {
        return Some("the bus between them has carried nothing yet");
    }
    if known.failed || known.suspected {
        return Some("one believes that the other fails");
    }
    // A replica is listed with the epoch of its primary, and the two may learn of it one after the other.
    let epoch = |node: &KnownNode| node.primary.then_some(node.epoch);
    (speaker.myself().and_then(epoch) != epoch(known)).then_some("one has not heard the other's latest news")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::{Fake, desired};

    fn formed() -> (Observation, NodeId) {
        let wish = desired(2);
        let fake = Fake::formed(&wish);
        let seen = fake.observe(&wish);
        let primary = fake.nodes.iter().find(|n| n.shard == "demo-1" && n.replicates.is_none()).expect("a primary");
        let id = primary.id.clone();
        (seen, id)
    }

    fn of<'a>(seen: &'a mut Observation, pod: &str) -> &'a mut NodeState {
        let node = seen.nodes.iter_mut().find(|n| n.pod == pod).expect("a pod");
        match &mut node.seen {
            crate::dataplane::types::Seen::Up(state) => state,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_cluster_is_in_touch() {
        let (seen, id) = formed();
        assert_eq!(out_of_touch(&seen, &id, None), None);
    }

    #[test]
    fn a_node_that_one_other_does_not_know_does_not_hear_or_has_old_news_of_is_out_of_touch() {
        let (seen, id) = formed();
        let spoil = |change: &dyn Fn(&mut KnownNode)| {
            let mut seen = seen.clone();
            of(&mut seen, "demo-0-valkey-1").view.iter_mut().filter(|n| n.id == id).for_each(change);
            out_of_touch(&seen, &id, None).expect("a reason")
        };
        assert!(spoil(&|n| n.handshake = true).contains("does not know"));
        assert!(spoil(&|n| n.heard = false).contains("carried nothing"));
        assert!(spoil(&|n| n.connected = false).contains("carried nothing"));
        assert!(spoil(&|n| n.suspected = true).contains("fails"));
        assert!(spoil(&|n| n.epoch = 0).contains("latest news"));
        assert!(spoil(&|n| n.epoch = 0).contains("demo-0-valkey-1"));
    }

    #[test]
    fn a_node_that_does_not_hear_another_itself_is_out_of_touch() {
        let (mut seen, id) = formed();
        let pod = seen.by_id(&id).expect("up").0.pod.clone();
        of(&mut seen, &pod).view.retain(|n| n.myself);
        assert!(out_of_touch(&seen, &id, None).is_some() && out_of_touch(&seen, &id, Some("demo-1")).is_some());
    }
}
