//! The pods of shards that are whole: new templates reach them one at a time, replicas before primaries and never a primary itself; primaries
//! are spread over the nodes. Pure.
//!
//! StatefulSets of shards are `OnDelete`, so that nothing but this restarts a copy. A primary with an old template first hands over to a
//! replica with the new one, and is restarted as the replica that it then is.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::ResourceExt;

use crate::{
    apply::Live,
    build::meta,
    dataplane::{
        readiness::{Readiness, ShardHealth},
        types::{Desired, DesiredShard, HandOver, Presence},
    },
};

/// The label by which a StatefulSet's controller marks the template that a pod was made from.
const REVISION: &str = "controller-revision-hash";

/// The one thing that is to be done about the pods of the shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Replace this pod, which is no primary.
    Restart {
        /// The pod.
        pod: String,
        /// For the log and the Event.
        why: String,
    },
    /// The primary of a shard gives its place to a replica, alive.
    HandOver {
        /// The shard.
        shard: String,
        /// From whom to whom.
        hand_over: HandOver,
        /// For the log and the Event.
        why: String,
    },
}

/// What the decision rests on.
pub(super) struct Scene<'a> {
    /// The wish.
    pub(super) desired: &'a Desired,
    /// How the shards are, as this pass saw them.
    pub(super) readiness: &'a Readiness,
    /// Their StatefulSets.
    pub(super) sets: &'a Live<StatefulSet>,
    /// All pods.
    pub(super) pods: &'a Live<Pod>,
    /// Whether a primary died a moment ago: its conversations have waited once, and the next fault may follow on the first.
    pub(super) shaken: bool,
}

/// Decides. Nothing happens while any shard is not whole or a pod is on its way.
pub(super) fn next(scene: &Scene<'_>) -> Option<Step> {
    let settled = scene.desired.members().all(|(_, m)| m.presence == Presence::Running);
    if !scene.readiness.is_ready() || !settled {
        return None;
    }
    let shards: Vec<(&DesiredShard, &ShardHealth)> = scene
        .desired
        .shards
        .iter()
        .filter_map(|shard| Some((shard, scene.readiness.shards.iter().find(|h| h.shard == shard.name)?)))
        .collect();
    let rolling = shards.iter().find_map(|(shard, health)| roll(scene, shard, health));
    rolling.or_else(|| if scene.shaken { None } else { spread(scene.desired, &shards) })
}

/// Whether a pod was made from another template than the newest; `None` while the StatefulSet's controller has not said which that is.
fn is_old(set: &StatefulSet, pod: &Pod) -> Option<bool> {
    let status = set.status.as_ref()?;
    if status.observed_generation < set.metadata.generation {
        return None;
    }
    let newest = status.update_revision.as_ref()?;
    Some(pod.labels().get(REVISION)? != newest)
}

fn roll(scene: &Scene<'_>, shard: &DesiredShard, health: &ShardHealth) -> Option<Step> {
    let set = scene.sets.get(&meta::shard_name(&shard.name))?;
    let primary = health.primary.as_deref()?;
    let mut old = Vec::new();
    for member in &shard.members {
        if is_old(set, scene.pods.get(&member.pod)?)? {
            old.push(member.pod.as_str());
        }
    }
    if let Some(pod) = old.iter().find(|pod| **pod != primary) {
        let why = format!("pod {pod} has an old template; {primary} serves");
        return Some(Step::Restart { pod: (*pod).to_owned(), why });
    }
    let from = old.first()?;
    let hand_over = HandOver { from: (*from).to_owned(), to: None };
    let why = format!("{from} has an old template and hands over before it is restarted");
    Some(Step::HandOver { shard: shard.name.clone(), hand_over, why })
}

/// Takes a primary off the node that has most of them, if another node with a replica of it has at least two fewer.
fn spread(desired: &Desired, shards: &[(&DesiredShard, &ShardHealth)]) -> Option<Step> {
    let host = |pod: &str| desired.member(pod).and_then(|(_, m)| m.node.as_deref());
    let mut primaries: BTreeMap<&str, usize> =
        desired.members().filter_map(|(_, m)| Some((m.node.as_deref()?, 0))).collect();
    for (_, health) in shards {
        *primaries.get_mut(host(health.primary.as_deref()?)?)? += 1;
    }
    let mut best: Option<(usize, Step)> = None;
    for (shard, health) in shards {
        let from = health.primary.as_deref()?;
        let crowded = primaries.get(host(from)?).copied()?;
        for member in shard.members.iter().filter(|m| m.pod != from) {
            let Some(there) = member.node.as_deref().and_then(|n| primaries.get(n)).copied() else { continue };
            let gain = crowded.saturating_sub(there);
            if gain >= 2 && best.as_ref().is_none_or(|(g, _)| gain > *g) {
                let hand_over = HandOver { from: from.to_owned(), to: Some(member.pod.clone()) };
                let why = format!(
                    "node {} holds {crowded} primaries and node {} holds {there}",
                    host(from).unwrap_or_default(),
                    member.node.as_deref().unwrap_or_default()
                );
                best = Some((gain, Step::HandOver { shard: shard.name.clone(), hand_over, why }));
            }
        }
    }
    best.map(|(_, step)| step)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        readiness::readiness,
    };

    struct Stage {
        desired: Desired,
        readiness: Readiness,
        sets: Live<StatefulSet>,
        pods: Live<Pod>,
    }

    impl Stage {
        fn new(shards: usize) -> Self {
            let desired = Desired { formed: true, ..desired(shards) };
            let fake = Fake::formed(&Desired { formed: false, ..desired.clone() });
            let readiness = readiness(&desired, &fake.observe(&desired));
            assert!(readiness.is_ready(), "{readiness:?}");
            let sets = desired.shards.iter().map(|s| (format!("{}-valkey", s.name), set("new"))).collect();
            let pods = desired.members().map(|(_, m)| (m.pod.clone(), pod(&m.pod, "new"))).collect();
            Self { desired, readiness, sets, pods }
        }

        fn next(&self) -> Option<Step> {
            self.next_when(false)
        }

        fn next_when(&self, shaken: bool) -> Option<Step> {
            let Self { desired, readiness, sets, pods } = self;
            next(&Scene { desired, readiness, sets, pods, shaken })
        }

        fn primary(&self, shard: usize) -> String {
            self.readiness.shards[shard].primary.clone().expect("a primary")
        }
    }

    fn set(revision: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"generation": 2}, "status": {"observedGeneration": 2, "replicas": 3, "updateRevision": revision}
        }))
        .expect("a StatefulSet")
    }

    fn pod(name: &str, revision: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {REVISION: revision}}})).expect("a pod")
    }

    #[test]
    fn a_new_template_reaches_replicas_first_and_the_primary_after_a_hand_over() {
        let mut stage = Stage::new(1);
        assert_eq!(stage.next(), None);
        let primary = stage.primary(0);
        for (name, live) in &mut stage.pods {
            *live = pod(name, "old");
        }
        for _ in 0..2 {
            let Some(Step::Restart { pod: restarted, .. }) = stage.next() else { panic!("a restart") };
            assert_ne!(restarted, primary);
            stage.pods.insert(restarted.clone(), pod(&restarted, "new"));
        }
        let Some(Step::HandOver { hand_over, .. }) = stage.next() else { panic!("a hand-over") };
        assert_eq!(hand_over, HandOver { from: primary.clone(), to: None });
        // Another one is the primary now: the old one is a replica like any other.
        let other = stage.desired.shards[0].members.iter().find(|m| m.pod != primary).expect("a replica").pod.clone();
        stage.readiness.shards[0].primary = Some(other);
        assert!(matches!(stage.next(), Some(Step::Restart { pod, .. }) if pod == primary));
    }

    #[test]
    fn nothing_is_restarted_while_a_copy_is_missing_or_the_controller_is_behind() {
        let mut stage = Stage::new(1);
        stage.sets.insert("demo-0-valkey".to_owned(), set("newer"));
        assert!(stage.next().is_some());
        stage.desired.shards[0].members[1].presence = Presence::Starting;
        assert_eq!(stage.next(), None);
        stage.desired.shards[0].members[1].presence = Presence::Running;
        let status = stage.sets.get_mut("demo-0-valkey").and_then(|s| s.status.as_mut()).expect("a status");
        status.observed_generation = Some(1);
        assert_eq!(stage.next(), None);
    }

    #[test]
    fn primaries_leave_a_crowded_node_and_then_stay() {
        let mut stage = Stage::new(3);
        assert_eq!(stage.next(), None, "formed with one primary a node");
        for (shard, health) in stage.desired.shards.iter().zip(&mut stage.readiness.shards) {
            health.primary = Some(shard.members[0].pod.clone());
        }
        assert_eq!(stage.next_when(true), None, "not right after a failover");
        let mut moves = 0;
        while let Some(Step::HandOver { shard, hand_over, .. }) = stage.next() {
            let health = stage.readiness.shards.iter_mut().find(|h| h.shard == shard).expect("the shard");
            assert_eq!(health.primary.as_deref(), Some(hand_over.from.as_str()));
            health.primary = hand_over.to;
            moves += 1;
            assert!(moves < 5, "it never ends");
        }
        assert_eq!(moves, 2);
    }
}
