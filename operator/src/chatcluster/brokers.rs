//! The pods of managed brokers: which of them is restarted with a new template, which starts anew with an empty volume, and which has
//! caught up. Pure.
//!
//! A broker is restarted only while every partition is kept in full by everyone who should, so that one away at a time takes nobody below
//! what an event needs to be acknowledged. A broker whose volume is lost starts anew under its old number and copies everything from the
//! others.
//!
//! *An empty volume and the controllers.* Each broker is also one of a fixed set of voters on the controllers' log. A voter that forgot its log
//! could, with one that lags, make up a majority that lacks what was agreed on; one that forgot its vote could give it twice. So an empty one
//! is let in only when the rest no longer needs what it knew: all the others are listed, which they are at the end of that log alone, and
//! the lost one was taken off the list and has been away for a minute. Without it whatever is agreed on needs a majority of the others alone,
//! and whoever had lagged has caught up; of n = 2f + 1 at most f − 1 others can lack an entry, which with the empty one is no majority. Its
//! old vote was in an election that is long decided. (Volumes may also be told apart by an id, so that a voter with an empty volume is a new
//! voter, KIP-853; that needs brokers with a changeable set of voters, and tools of Kafka's to change it.)

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    },
    jiff::Timestamp,
};
use kith_crds::names;
use kube::ResourceExt;

use super::{
    desired, replace,
    tend::{self, STUCK_S},
};
use crate::{
    apply::Live,
    certificates::{self, Certificate, Renewed},
    dataplane::types::Presence,
    eventlog::Sight,
    render::kafka,
};

/// A look that is older says nothing about now, seconds.
const FRESH_S: i64 = 20;
/// A look says something of a pod that listens for so long, seconds: before, it may be about the pod's predecessor.
const SETTLE_S: i64 = 2;
/// A broker whose process runs and that is not listed for so long does not serve, seconds.
const SILENT_S: i64 = 300;
/// So long after a broker went away, the others have all that was agreed on with it, seconds.
const LOST_S: i64 = 60;

/// The one thing that is to be done about the brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Restart this one.
    Restart {
        /// The pod.
        pod: String,
        /// For the log and the Event.
        why: String,
    },
    /// Start this one anew with an empty volume.
    Replace {
        /// The pod.
        pod: String,
        /// For the log and the Event.
        why: String,
        /// Whether a person asked: the annotation is then taken away.
        asked: bool,
    },
}

/// What the decisions rest on.
pub(super) struct Scene<'a> {
    /// The name of the StatefulSet.
    pub(super) name: &'a str,
    /// The StatefulSet.
    pub(super) set: &'a StatefulSet,
    /// Brokers that there should be.
    pub(super) brokers: u32,
    /// Copies that must hold an event.
    pub(super) min_insync: u32,
    /// All pods.
    pub(super) pods: &'a Live<Pod>,
    /// All claims.
    pub(super) claims: &'a Live<PersistentVolumeClaim>,
    /// The volumes of brokers that are not listed, by claim.
    pub(super) volumes: &'a BTreeMap<String, PersistentVolume>,
    /// All nodes of the Kubernetes cluster; only looked at when a volume is bound to one.
    pub(super) nodes: &'a Live<Node>,
    /// The pod that a person declared gone.
    pub(super) asked: Option<&'a str>,
    /// What was last seen of the brokers.
    pub(super) sight: Option<&'a Sight>,
    /// Now.
    pub(super) now: Timestamp,
}

impl<'a> Scene<'a> {
    /// The pod of a broker.
    pub(super) fn pod_name(&self, broker: u32) -> String {
        format!("{}-{broker}", self.name)
    }

    fn pod(&self, broker: u32) -> Option<&'a Pod> {
        self.pods.get(&self.pod_name(broker)).filter(|pod| desired::belongs(pod, self.name))
    }

    /// What is seen now; nothing when it was too long ago.
    fn fresh(&self) -> Option<&'a Sight> {
        self.sight.filter(|sight| self.now.as_second() - sight.at.as_second() <= FRESH_S)
    }

    fn presence(&self, broker: u32) -> Presence {
        self.pod(broker).map_or(Presence::Gone, desired::presence)
    }

    fn is_old(&self, broker: u32) -> Option<bool> {
        tend::is_old(self.set, self.pod(broker)?)
    }

    /// Whether the pod listened already when this was seen.
    fn covers(&self, sight: &Sight, broker: u32) -> bool {
        let since = self.pod(broker).filter(|pod| pod.metadata.deletion_timestamp.is_none()).and_then(listens_since);
        since.is_some_and(|since| sight.at.as_second() >= since + SETTLE_S)
    }

    /// Brokers that a fresh look does not list; all when there is none.
    pub(super) fn silent(&self) -> Vec<u32> {
        let listed = |broker: &u32| self.fresh().is_some_and(|sight| sight.brokers.contains(broker));
        (0..self.brokers).filter(|broker| !listed(broker)).collect()
    }
}

/// Since when all containers of a pod are ready, Unix seconds.
fn listens_since(pod: &Pod) -> Option<i64> {
    let ready = condition(pod, "ContainersReady").filter(|(holds, _)| *holds)?;
    ready.1
}

/// When the certificate ends that a broker was started with, Unix seconds; an earlier operator did not write that down.
fn certificate_ends(pod: &Pod) -> Option<i64> {
    pod.annotations().get(kafka::ANNOTATION_CERTIFICATE_ENDS)?.parse().ok()
}

/// Whether the certificate that a broker was started with has ended.
fn certificate_ended(pod: &Pod, now: Timestamp) -> bool {
    certificate_ends(pod).is_some_and(|ends| ends <= now.as_second())
}

/// The certificates of the brokers that were started with others than stand in the Secrets (`standing`, by its hash), which they show until
/// they are restarted.
pub(super) fn former_certificates<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    standing: Option<&str>,
) -> Vec<Certificate> {
    let of = |pod: &Pod| {
        let started_with = pod.annotations().get(kafka::ANNOTATION_CERTIFICATE).map(String::as_str);
        if pod.metadata.deletion_timestamp.is_some() || (started_with.is_some() && started_with == standing) {
            return None;
        }
        // Where nothing says it, it ends no earlier than this.
        let least = || Some(pod.creation_timestamp()?.0.as_second() + certificates::LEFT_AT_START_S);
        let ends_s = certificate_ends(pod).or_else(least)?;
        Some(Certificate { place: format!("pod {}", pod.name_any()), ends_s, renewed: Renewed::ByRestart })
    };
    pods.into_iter().filter_map(of).collect()
}

fn is_unready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_none_or(|(holds, _)| !holds)
}

/// Whether a condition of a pod holds, and since when.
fn condition(pod: &Pod, kind: &str) -> Option<(bool, Option<i64>)> {
    let found = pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)?;
    Some((found.status == "True", found.last_transition_time.as_ref().map(|t| t.0.as_second())))
}

/// Decides; and what must not be done yet, in words.
pub(super) fn next(scene: &Scene<'_>) -> (Option<Step>, Vec<String>) {
    if let Some(step) = stuck(scene) {
        return (Some(step), Vec::new());
    }
    let (replaced, problems) = replace(scene);
    (replaced.or_else(|| if problems.is_empty() { roll(scene) } else { None }), problems)
}

/// A broker of an old template that does not serve: the corrected template reaches it no other way. Found whatever state the rest is in, since
/// the rest may wait for it. Not while one of the newest template does not run either: it would only break one more.
fn stuck(scene: &Scene<'_>) -> Option<Step> {
    let waits = |broker: u32| matches!(scene.presence(broker), Presence::Starting | Presence::Gone);
    let pods = || (0..scene.brokers).filter(|broker| scene.pod(*broker).is_some());
    if pods().any(|broker| waits(broker) && scene.is_old(broker) != Some(true)) {
        return None;
    }
    // The process of one that is not listed may still be what others copy from: it goes only while another is seen to serve.
    let silent = |broker: u32| {
        let seen = scene.fresh().filter(|sight| scene.covers(sight, broker));
        seen.is_some_and(|sight| !sight.brokers.is_empty() && !sight.brokers.contains(&broker))
    };
    let broker = pods().filter(|broker| scene.is_old(*broker) == Some(true)).find(|broker| {
        let Some(pod) = scene.pod(*broker).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return false;
        };
        // Nobody can log in at such a broker, the operator included: nothing that is seen of it could ever let it go.
        if certificate_ended(pod, scene.now) {
            return true;
        }
        let idle = tend::idle_for(pod, scene.now);
        is_unready(pod) && ((waits(*broker) && idle >= STUCK_S) || (silent(*broker) && idle >= SILENT_S))
    })?;
    let pod = scene.pod_name(broker);
    let why = format!("pod {pod} has an old template and does not serve");
    Some(Step::Restart { pod, why })
}

/// A new template reaches one broker at a time.
fn roll(scene: &Scene<'_>) -> Option<Step> {
    let all = || 0..scene.brokers;
    if all().any(|broker| scene.pod(broker).is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())) {
        return None;
    }
    let old = all().find(|broker| scene.is_old(*broker) == Some(true))?;
    if all().any(|broker| scene.is_old(broker).is_none()) {
        return None;
    }
    let pod = scene.pod_name(old);
    if scene.brokers == 1 {
        // It keeps everything alone: no time is better than another.
        let why = format!("pod {pod} has an old template, and is the only broker");
        return Some(Step::Restart { pod, why });
    }
    let sight = scene.fresh()?;
    let whole = all().all(|broker| scene.covers(sight, broker) && sight.is_in_sync(broker));
    (whole && sight.short().is_none()).then(|| {
        let why = format!("pod {pod} has an old template; the others hold everything");
        Step::Restart { pod, why }
    })
}

/// A broker whose volume is gone for good, as `replace` says it of the shards' members.
fn replace(scene: &Scene<'_>) -> (Option<Step>, Vec<String>) {
    let mut problems = Vec::new();
    for broker in 0..scene.brokers {
        let pod = scene.pod_name(broker);
        let asked = scene.asked == Some(pod.as_str());
        let listed = scene.fresh().is_some_and(|sight| sight.brokers.contains(&broker));
        let why = if asked { Some("a person declared it gone for good".to_owned()) } else { lost(scene, &pod) };
        // A claim that is going goes when its pod ends: better now, while the others are seen to hold everything, than some day.
        let claim = scene.claims.get(&replace::claim_of(&pod));
        let going = claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some());
        let Some(why) = why.filter(|_| asked || going || !listed) else { continue };
        match kept_by_others(scene, broker, listed) {
            Ok(true) => return (Some(Step::Replace { pod, why, asked }), problems),
            // It is not said before there was time to see.
            Ok(false) => {}
            Err(missing) => problems.push(format!(
                "broker {pod} is gone for good ({why}) and is not made anew yet: {missing}. Bring the others back and let them catch up."
            )),
        }
    }
    (None, problems)
}

fn lost(scene: &Scene<'_>, pod: &str) -> Option<String> {
    let claim = replace::claim_of(pod);
    let live = scene.claims.get(&claim)?;
    if live.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
        return Some("its volume does not exist any more".to_owned());
    }
    replace::fate(live, scene.volumes.get(&claim), scene.nodes)
}

/// Whether the others hold all that this broker did; words when one of them does not, `false` while that is not certain yet.
fn kept_by_others(scene: &Scene<'_>, broker: u32, listed: bool) -> Result<bool, String> {
    if scene.brokers == 1 {
        return Err("it is the only broker".to_owned());
    }
    let Some(sight) = scene.fresh() else { return Err("no other broker answers".to_owned()) };
    for other in (0..scene.brokers).filter(|other| *other != broker) {
        if !sight.brokers.contains(&other) || !scene.covers(sight, other) {
            return Err(format!("broker {} does not serve", scene.pod_name(other)));
        }
    }
    if let Some(partition) = sight.needs(broker, scene.min_insync) {
        return Err(format!("too few others hold all of topic {} partition {}", partition.topic, partition.number));
    }
    // One that still serves is stopped in order first, and is away for longer than the others take to agree on something without it.
    let away = scene.pod(broker).is_some_and(|pod| is_unready(pod) && tend::idle_for(pod, scene.now) >= LOST_S);
    Ok(listed || away)
}

/// What the pods' condition should say now, for those of which it is known and does not say it yet. What one said does not outlive its
/// process: until the next look nobody knows what the new one lacks.
pub(super) fn standing(scene: &Scene<'_>) -> Vec<(String, bool)> {
    let of = |broker: u32| {
        let pod = scene.pod(broker).filter(|pod| pod.metadata.deletion_timestamp.is_none())?;
        let said = condition(pod, names::CONDITION_IN_SYNC).map(|(holds, _)| holds);
        let known = match listens_since(pod) {
            None => said.map(|_| false),
            Some(_) => scene.fresh().filter(|sight| scene.covers(sight, broker)).map(|sight| sight.is_in_sync(broker)),
        }?;
        (said != Some(known)).then(|| (scene.pod_name(broker), known))
    };
    (0..scene.brokers).filter_map(of).collect()
}

/// Whether a new template has not reached all brokers yet.
pub(super) fn is_rolling(scene: &Scene<'_>) -> bool {
    (0..scene.brokers).any(|broker| scene.is_old(broker) == Some(true))
}

#[cfg(test)]
mod tests;
