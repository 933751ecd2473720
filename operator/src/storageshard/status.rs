//! The status step of a StorageShard: from the data plane's own words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kith_crds::{
    StorageShard, StorageShardStatus,
    conditions::{self, Finding, reason},
    names,
    storageshard::{Failover, FailoverReason, Member, MemberRole, MemberState},
};
use kube::ResourceExt;

use super::{Pods, Seen};
use crate::{
    chatcluster::{gravest, storage_reason},
    dataplane::{
        self, disk, pressure,
        readiness::{Copying, MemberHealth, ShardHealth},
        types::{Problem, Reason},
    },
    refusal::Refusal,
    render::meta::Component,
    workload,
};

/// What a pass found.
#[derive(Default)]
pub struct Facts {
    /// What the ChatCluster's last pass saw of the engine.
    pub snapshot: Option<Seen>,
    /// What the prober last found.
    pub prober: Option<dataplane::Report>,
    /// The shard's pods; absent: not looked at.
    pub pods: Option<Pods>,
    /// Bytes of the volume of each pod.
    pub capacity: BTreeMap<String, u64>,
    /// Why its pods cannot be made.
    pub refused: Option<Refusal>,
    /// Replicas wanted.
    pub replicas: u32,
    /// What ended the pass early.
    pub failure: Option<Finding>,
    /// Whether the object is being deleted and still holds data.
    pub deleting: bool,
}

/// The status that follows; what was not looked at stays as it was.
pub fn status(shard: &StorageShard, facts: &Facts, now: Timestamp) -> StorageShardStatus {
    let mut status = shard.status.clone().unwrap_or_default();
    let name = shard.name_any();
    let generation = shard.metadata.generation;
    status.observed_generation = generation;
    let health = facts.snapshot.as_ref().and_then(|s| s.readiness.shards.iter().find(|h| h.shard == name));
    if let Some(health) = health {
        take_health(&mut status, health, facts);
        let sure = facts.snapshot.as_ref().and_then(|s| s.acknowledged_by.get(&name));
        if let Some(copies) = facts.snapshot.as_ref().and_then(|s| s.copies.get(&name)) {
            status.copies.clone_from(copies);
        }
        status.ack_replicas = sure.copied().or(status.ack_replicas);
        take_failover(&mut status, shard, facts, now);
    }
    for finding in findings(shard, health, facts) {
        conditions::set(&mut status.conditions, finding, generation, now);
    }
    status
}

fn take_health(status: &mut StorageShardStatus, health: &ShardHealth, facts: &Facts) {
    // A primary that does not answer for a moment is still the one that owns the slots.
    if health.primary.is_some() {
        status.primary.clone_from(&health.primary);
    }
    status.slots = health.slots.len();
    status.ready_members = u32::try_from(health.members.iter().filter(|m| m.in_step).count()).unwrap_or(u32::MAX);
    status.members = health.members.iter().map(|m| member(m, facts)).collect();
}

fn member(health: &MemberHealth, facts: &Facts) -> Member {
    let pod = facts.pods.as_ref().and_then(|pods| pods.get(&health.pod));
    let state = match health.copying {
        Copying::InStep => MemberState::InSync,
        Copying::Behind => MemberState::Syncing,
        Copying::Loading => MemberState::Loading,
        Copying::Unlinked => MemberState::Disconnected,
        Copying::Silent => MemberState::Unreachable,
    };
    Member {
        pod: health.pod.clone(),
        pod_uid: pod.and_then(ResourceExt::uid),
        node: pod.and_then(|p| p.spec.as_ref()?.node_name.clone()),
        node_id: health.id.as_ref().map(|id| id.as_str().to_owned()),
        role: if health.primary { MemberRole::Primary } else { MemberRole::Replica },
        state,
    }
}

fn take_failover(status: &mut StorageShardStatus, shard: &StorageShard, facts: &Facts, now: Timestamp) {
    let before = shard.status.as_ref().and_then(|s| s.primary.clone());
    let Some(to) = &status.primary else { return };
    if before.is_none() {
        return;
    }
    let made =
        facts.prober.as_ref().and_then(|p| p.failovers.iter().find(|f| f.shard == shard.name_any() && f.pod == *to));
    // Of a change that an operator made which is gone, only the wish tells that it may have been forced.
    let wished = shard.annotations().get(names::ANNOTATION_FORCE_PROMOTE).is_some_and(|pod| pod.trim() == to.as_str());
    let reason = match made {
        Some(failover) if failover.forced => FailoverReason::Forced,
        Some(failover) if failover.planned => FailoverReason::Switchover,
        None if wished => FailoverReason::Forced,
        _ => FailoverReason::PrimaryDown,
    };
    if before.as_ref() != Some(to) {
        status.last_failover = Some(Failover { at: Time(now), from: before, to: to.clone(), reason });
    } else if let Some(last) = status.last_failover.as_mut().filter(|l| l.to == *to && made.is_some()) {
        // A pass may see the new primary before the prober has said why it changed.
        last.reason = reason;
    }
}

/// What became of a wish to promote a pod by force.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WishEnd<'a> {
    /// The annotation's text.
    pub(super) wish: &'a str,
    /// Whether the pod was promoted for its sake.
    pub(super) forced: bool,
    /// A sentence for people.
    pub(super) words: String,
}

/// The end of a wish that has nothing more to do: a primary answers, and nothing stands in the way of the next failover. Such a wish is taken
/// away, for it was meant for one failover and not for a later one. `wanted` is the status that was just written.
pub(super) fn end_of_wish<'a>(
    shard: &'a StorageShard,
    wanted: &StorageShardStatus,
    facts: &Facts,
) -> Option<WishEnd<'a>> {
    let wish = shard.annotations().get(names::ANNOTATION_FORCE_PROMOTE)?;
    let name = shard.name_any();
    let snapshot = facts.snapshot.as_ref()?;
    let troubled = facts.prober.iter().flat_map(|p| &p.problems).any(|p| p.shard.as_deref() == Some(&name));
    let answers = snapshot.readiness.shards.iter().any(|s| s.shard == name && s.primary.is_some());
    if !answers || troubled {
        return None;
    }
    let pod = wish.trim();
    let last = wanted.last_failover.as_ref();
    let changed = last.filter(|_| shard.status.as_ref().is_none_or(|s| s.last_failover.as_ref() != last));
    let forced = last.is_some_and(|f| f.to == pod && f.reason == FailoverReason::Forced);
    let words = match changed {
        _ if forced => format!("{pod} was promoted by force; messages that it did not hold are lost"),
        Some(failover) => format!(
            "{pod} was not promoted by force: enough copies were in sight to tell that {} holds every acknowledged write",
            failover.to
        ),
        None => format!("{pod} was not promoted by force: a primary answers"),
    };
    Some(WishEnd { wish, forced, words })
}

fn findings(shard: &StorageShard, health: Option<&ShardHealth>, facts: &Facts) -> Vec<Finding> {
    let name = shard.name_any();
    let mine = |p: &&Problem| p.shard.as_deref() == Some(&name);
    let problems: Vec<&Problem> = facts
        .snapshot
        .iter()
        .flat_map(|s| s.problems.iter().chain(&s.readiness.problems))
        .chain(facts.prober.iter().flat_map(|p| &p.problems))
        .filter(mine)
        .collect();
    let mut findings = vec![
        ready(health, facts, &problems),
        flagged(
            conditions::FAILOVER_BLOCKED,
            Reason::FailoverBlocked,
            &problems,
            "a primary that dies can be replaced",
        ),
        foreign(facts, &problems),
        draining(shard, health, facts),
    ];
    if health.is_some() {
        findings.push(degraded(&problems));
    }
    let before = shard.status.as_ref().and_then(|s| conditions::get(&s.conditions, conditions::MEMORY_PRESSURE));
    findings.extend(pressure::finding(health, before));
    let before = shard.status.as_ref().and_then(|s| conditions::get(&s.conditions, conditions::DISK_PRESSURE));
    findings.extend(disk::finding(health, |pod| facts.capacity.get(pod).copied(), before));
    findings
}

fn ready(health: Option<&ShardHealth>, facts: &Facts, problems: &[&Problem]) -> Finding {
    let kind = conditions::READY;
    if let Some(failure) = &facts.failure {
        return Finding { kind, ..failure.clone() };
    }
    if let Some(health) = health.filter(|h| h.whole) {
        let message = format!(
            "the primary serves {} slots, {} replicas are in step",
            health.slots.len(),
            health.members.len() - 1
        );
        return Finding::holds(kind, reason::ALL_READY, message);
    }
    let pods = facts.pods.as_ref().and_then(|pods| workload::trouble(pods, Component::Valkey.name(), None));
    if let Some((word, sentence)) = pods.or_else(|| facts.refused.clone()) {
        return Finding::fails(kind, word, sentence);
    }
    match gravest(problems.iter().copied()) {
        Some(problem) => Finding::fails(kind, storage_reason(problem), sentence(problem)),
        None => Finding::fails(kind, reason::STARTING, "the shard's pods start and are joined"),
    }
}

/// A problem's sentence without the shard's own name before it.
fn sentence(problem: &Problem) -> String {
    Problem { shard: None, ..problem.clone() }.to_string()
}

fn flagged(kind: &'static str, which: Reason, problems: &[&Problem], otherwise: &str) -> Finding {
    match problems.iter().find(|p| p.reason == which) {
        Some(problem) => Finding::holds(kind, storage_reason(problem), sentence(problem)),
        None => Finding::fails(kind, reason::ALL_READY, otherwise),
    }
}

fn foreign(facts: &Facts, problems: &[&Problem]) -> Finding {
    let kind = conditions::FOREIGN_DATA;
    match &facts.failure {
        Some(failure) if failure.kind == kind => Finding::holds(kind, failure.reason, failure.message.clone()),
        _ => flagged(kind, Reason::ForeignData, problems, "the volumes hold this ChatCluster's data"),
    }
}

fn draining(shard: &StorageShard, health: Option<&ShardHealth>, facts: &Facts) -> Finding {
    let kind = conditions::DRAINING;
    let slots = health.map_or(0, |h| h.slots.len());
    if facts.deleting {
        let message = format!(
            "it was deleted and still owns {slots} slots: it goes when they have moved to other shards; set spec.draining, add a shard if there is no other, or delete the whole ChatCluster"
        );
        return Finding::holds(kind, reason::DELETING, message);
    }
    if shard.spec.draining {
        return Finding::holds(kind, reason::SCALING_IN, format!("{slots} slots are left"));
    }
    Finding::fails(kind, reason::IDLE, "the shard is not being emptied")
}

fn degraded(problems: &[&Problem]) -> Finding {
    let kind = conditions::DEGRADED;
    // Operators to come read in this condition whether it was lowered, so nothing may stand before it.
    let lowered = problems.iter().copied().find(|p| p.reason == Reason::AcknowledgementLowered);
    match lowered.or_else(|| gravest(problems.iter().copied())) {
        Some(problem) => Finding::holds(kind, storage_reason(problem), sentence(problem)),
        None => Finding::fails(kind, reason::ALL_READY, "the shard has all its copies"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        dataplane::{
            Report,
            fake::{Fake, desired},
            readiness::readiness,
        },
        runtime::Snapshot,
    };

    fn shard() -> StorageShard {
        let object = serde_json::json!({"metadata": {"name": "demo-0"}, "spec": {"clusterRef": {"name": "demo"}}});
        serde_json::from_value(object).expect("a shard")
    }

    fn wishes(shard: &mut StorageShard, pod: &str) {
        shard.metadata.annotations = Some([(names::ANNOTATION_FORCE_PROMOTE.to_owned(), pod.to_owned())].into());
    }

    fn seen_with(fake: &Fake, report: Report) -> Facts {
        let wish = desired(1);
        Facts {
            snapshot: Some(Arc::new(Snapshot {
                acknowledged_by: std::collections::BTreeMap::new(),
                copies: std::collections::BTreeMap::new(),
                shrinkable: Vec::new(),
                readiness: readiness(&wish, &fake.observe(&wish)),
                problems: Vec::new(),
                empty: Vec::new(),
                hand_overs: std::collections::BTreeMap::new(),
            })),
            prober: Some(report),
            ..Facts::default()
        }
    }

    #[test]
    fn a_wish_to_force_a_promotion_is_spent_as_soon_as_a_primary_answers_and_nothing_is_wrong() {
        let mut fake = Fake::formed(&desired(1));
        let mut shard = shard();
        let ends = |shard: &StorageShard, facts: &Facts| {
            end_of_wish(shard, &StorageShardStatus::default(), facts).map(|end| end.wish.to_owned())
        };
        let healthy = seen_with(&fake, Report::default());
        assert_eq!(ends(&shard, &healthy), None, "nobody wishes for anything");
        wishes(&mut shard, "demo-0-valkey-2");
        assert_eq!(ends(&shard, &healthy).as_deref(), Some("demo-0-valkey-2"));
        assert_eq!(ends(&shard, &Facts::default()), None, "nothing was looked at");
        // The last pass saw the primary alive, and the prober knows better by now.
        let blocked = Problem::new(Reason::FailoverBlocked, "too few copies".to_owned()).of("demo-0");
        assert_eq!(ends(&shard, &seen_with(&fake, Report { problems: vec![blocked], ..Report::default() })), None);
        let primary = fake.nodes.iter_mut().find(|n| n.replicates.is_none()).expect("a primary");
        primary.up = false;
        assert_eq!(ends(&shard, &seen_with(&fake, Report::default())), None, "the primary is dead");
    }

    #[test]
    fn a_forced_promotion_is_recorded_and_a_refused_one_is_said_in_words() {
        let fake = Fake::formed(&desired(1));
        let leads = fake.nodes.iter().find(|n| n.replicates.is_none()).expect("a primary").pod.clone();
        let mut shard = shard();
        let before =
            StorageShardStatus { primary: Some("demo-0-valkey-9".to_owned()), ..StorageShardStatus::default() };
        shard.status = Some(before);
        let report = |forced| {
            let made = dataplane::Failover {
                shard: "demo-0".to_owned(),
                pod: leads.clone(),
                planned: false,
                forced,
                took: std::time::Duration::ZERO,
                at: std::time::Instant::now(),
                count: 1,
                unplanned: 1,
            };
            Report { failovers: vec![made], ..Report::default() }
        };
        let outcome = |wish: &str, report: Report| {
            let mut shard = shard.clone();
            wishes(&mut shard, wish);
            let facts = seen_with(&fake, report);
            let wanted = status(&shard, &facts, Timestamp::now());
            let end = end_of_wish(&shard, &wanted, &facts).expect("an end");
            (wanted.last_failover.expect("a change of primary").reason, end.forced, end.words)
        };
        let (reason, forced, words) = outcome(&leads, report(true));
        assert!(reason == FailoverReason::Forced && forced && words.contains("by force"), "{words}");
        let (reason, forced, words) = outcome("demo-0-valkey-8", report(false));
        assert!(reason == FailoverReason::PrimaryDown && !forced, "{reason:?}");
        assert!(words.contains("demo-0-valkey-8 was not promoted") && words.contains(&leads), "{words}");
        // The operator that promoted it ended before it could write that down.
        let (reason, forced, _) = outcome(&leads, Report::default());
        assert!(reason == FailoverReason::Forced && forced);
    }
}
