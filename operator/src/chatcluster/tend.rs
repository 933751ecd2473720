//! The pods of shards that are whole: new templates reach them one at a time, replicas before primaries and never a primary itself; primaries
//! are spread over the nodes. Pure.
//!
//! StatefulSets of shards are `OnDelete`, so that nothing but this restarts a copy. A primary with an old template first hands over to a
//! replica with the new one, and is restarted as the replica that it then is.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::copies;
use crate::{
    apply::Live,
    dataplane::{
        readiness::{Readiness, ShardHealth},
        types::{Desired, DesiredShard, HandOver, Member, Presence},
    },
    render::meta,
};

/// The label by which a StatefulSet's controller marks the template that a pod was made from.
pub(super) const REVISION: &str = "controller-revision-hash";

/// A pod that has not run for so long is not about to.
pub(super) const STUCK_S: i64 = 60;

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
    /// The last known primary of each shard.
    pub(super) last_primaries: &'a BTreeMap<String, String>,
    /// Whether a primary died a moment ago: its conversations have waited once, and the next fault may follow on the first.
    pub(super) shaken: bool,
}

/// Decides. Nothing happens while any shard is not whole or a pod is on its way.
pub(super) fn next(scene: &Scene<'_>) -> Option<Step> {
    let settled = scene.desired.members().all(|(_, m)| m.presence == Presence::Running);
    let shards: Vec<(&DesiredShard, &ShardHealth)> = scene
        .desired
        .shards
        .iter()
        .filter_map(|shard| Some((shard, scene.readiness.shards.iter().find(|h| h.shard == shard.name)?)))
        .collect();
    // Pods that are to go may be what is not well.
    if let Some(leaving) = shards.iter().find_map(|(shard, health)| leave(shard, health)) {
        return Some(leaving);
    }
    if !scene.readiness.is_ready() || !settled {
        return None;
    }
    let rolling = shards.iter().find_map(|(shard, health)| roll(scene, shard, health));
    rolling.or_else(|| if scene.shaken { None } else { spread(scene.desired, &shards) })
}

/// A pod of an old template that has not run for long: the corrected template reaches it no other way. Found whatever state the rest is in,
/// since the rest may wait for it. Not while the newest template does not run either, and never the last primary unless another answers:
/// what merely crashed comes back by itself.
pub(super) fn stuck(scene: &Scene<'_>, now: Timestamp) -> Option<Step> {
    scene.desired.shards.iter().find_map(|shard| {
        let set = scene.sets.get(&meta::shard_name(&shard.name))?;
        let waits = |member: &&Member| matches!(member.presence, Presence::Starting | Presence::Gone);
        let age = |member: &Member| Some(is_old(set, scene.pods.get(&member.pod)?));
        if shard.members.iter().filter(waits).any(|member| matches!(age(member), Some(None | Some(false)))) {
            return None;
        }
        let health = scene.readiness.shards.iter().find(|h| h.shard == shard.name);
        let leads = health.is_some_and(|h| h.primary.is_some());
        let member = shard.members.iter().filter(waits).find(|member| {
            let last_primary = scene.last_primaries.get(&shard.name) == Some(&member.pod);
            scene.pods.get(&member.pod).is_some_and(|pod| {
                pod.metadata.deletion_timestamp.is_none()
                    && is_old(set, pod) == Some(true)
                    && (leads || !last_primary)
                    && idle_for(pod, now) >= STUCK_S
            })
        })?;
        let why = format!("pod {} has an old template and does not run", member.pod);
        Some(Step::Restart { pod: member.pod.clone(), why })
    })
}

/// Seconds since a pod was last ready, or was made.
pub(super) fn idle_for(pod: &Pod, now: Timestamp) -> i64 {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|c| c.type_ == "Ready").find_map(|c| c.last_transition_time.as_ref());
    let since = ready.or(pod.metadata.creation_timestamp.as_ref());
    since.map_or(0, |since| now.as_second() - since.0.as_second())
}

/// Whether all pods of a StatefulSet were made from its newest template.
pub(super) fn rolled_out(set: &StatefulSet, pods: &Live<Pod>) -> bool {
    let name = set.name_any();
    let mine = |pod: &&Pod| pod.owner_references().iter().any(|o| o.kind == "StatefulSet" && o.name == name);
    pods.values().filter(mine).all(|pod| is_old(set, pod) == Some(false))
}

/// Whether a pod was made from another template than the newest; `None` while the StatefulSet's controller has not said which that is.
pub(super) fn is_old(set: &StatefulSet, pod: &Pod) -> Option<bool> {
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

/// A primary whose pod is one more than is wanted hands over to one that stays.
fn leave(shard: &DesiredShard, health: &ShardHealth) -> Option<Step> {
    let from = health.primary.as_deref().filter(|pod| copies::is_surplus(shard, pod))?;
    let to = health.members.iter().find(|m| m.in_step && !copies::is_surplus(shard, &m.pod))?;
    let hand_over = HandOver { from: from.to_owned(), to: Some(to.pod.clone()) };
    let why = format!("{from} is one pod more than is wanted and hands over before it is taken away");
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
        for member in shard.members.iter().filter(|m| m.pod != from && !copies::is_surplus(shard, &m.pod)) {
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
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Span};
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
            let (Self { desired, readiness, sets, pods }, last_primaries) = (self, &BTreeMap::new());
            next(&Scene { desired, readiness, sets, pods, last_primaries, shaken })
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
    fn a_primary_that_is_one_too_many_hands_over_to_one_that_stays() {
        let mut stage = Stage::new(1);
        stage.desired.shards[0].replicas = 1;
        let last = stage.desired.shards[0].members[2].pod.clone();
        stage.readiness.shards[0].primary = Some(last.clone());
        stage.readiness.shards[0].members.iter_mut().for_each(|m| m.primary = m.pod == last);
        let Some(Step::HandOver { hand_over, .. }) = stage.next() else { panic!("a hand-over") };
        assert_eq!(hand_over.from, last);
        assert!(hand_over.to.is_some_and(|to| to != last));
    }

    #[test]
    fn a_pod_that_does_not_run_gets_the_corrected_template_whatever_else_is_the_matter() {
        let mut stage = Stage::new(2);
        let shard = stage.desired.shards[1].name.clone();
        let begin = Timestamp::from_second(1_790_000_000).expect("a time");
        let later = begin.checked_add(Span::new().seconds(STUCK_S)).expect("a time");
        let at = |stage: &Stage, now: Timestamp, last: &str| {
            let (Stage { desired, readiness, sets, pods }, last) = (stage, (shard.clone(), last.to_owned()));
            let last_primaries = &BTreeMap::from([last]);
            stuck(&Scene { desired, readiness, sets, pods, last_primaries, shaken: true }, now)
        };
        let scene = |stage: &Stage| at(stage, later, "");
        let pod = |name: &str, revision: &str| {
            let mut pod = pod(name, revision);
            pod.metadata.creation_timestamp = Some(Time(begin));
            pod
        };
        let broken = stage.desired.shards[1].members[2].pod.clone();
        for presence in [Presence::Starting, Presence::Gone] {
            stage.desired.shards[1].members[2].presence = presence;
            stage.readiness.shards.clear();
            stage.pods.insert(broken.clone(), pod(&broken, "new"));
            assert_eq!(scene(&stage), None, "the newest template is what it has");
            stage.pods.insert(broken.clone(), pod(&broken, "old"));
            assert!(matches!(scene(&stage), Some(Step::Restart { pod, .. }) if pod == broken));
            assert_eq!(at(&stage, begin, ""), None, "it may be about to run");
            assert_eq!(at(&stage, later, &broken), None, "the last primary, and no other answers");
            // Another one that does not run has the newest template: it would only break this one as well.
            let other = stage.desired.shards[1].members[1].pod.clone();
            stage.pods.insert(other.clone(), pod(&other, "new"));
            stage.desired.shards[1].members[1].presence = Presence::Gone;
            assert_eq!(scene(&stage), None);
            stage.desired.shards[1].members[1].presence = Presence::Running;
            // The same for one whose process runs is a matter for a rollout.
            stage.desired.shards[1].members[2].presence = Presence::Running;
            assert_eq!(scene(&stage), None);
        }
        stage.pods.remove(&broken);
        stage.desired.shards[1].members[2].presence = Presence::Gone;
        assert_eq!(scene(&stage), None, "there is nothing to replace");
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
