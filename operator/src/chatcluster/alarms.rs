//! What whoever is on call must know before it hurts: volumes that fill, an event log that lags, certificates that end, containers that ran
//! out of memory; and when writes are refused. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kith_crds::conditions::{self, Finding, reason};
use kith_kit::config::Limits;
use kith_platform::Service;

use super::Facts;
use crate::{
    apply::Live,
    certificates::{self, Certificate},
    dataplane::disk,
    refusal::Refusal,
    survey::Found,
    workload,
};

/// Events behind from which consumers count as lagging, and below which they do not any more. `tasks` handles some thousands a second, so a
/// burst is gone within seconds; this much still being there at a look means that deliveries are late for people.
const LAG_BEGINS: u64 = 10_000;
const LAG_ENDS: u64 = 5_000;
/// Percent of what an instance of storage may keep unpublished, from which the event log counts as too slow, and below which it does not. While
/// the brokers answer, next to nothing waits.
const OUTBOX_BEGINS: u64 = 25;
const OUTBOX_ENDS: u64 = 10;
/// Percent from which its writes count as refused: a message that does not fit any more is refused before the last byte is used.
const OUTBOX_FULL: u64 = 95;
/// Conditions that are told by an Event when they begin.
const TOLD: [&str; 3] = [conditions::DISK_PRESSURE, conditions::EVENT_LOG_LAG, conditions::CERTIFICATE_EXPIRING];
/// Conditions under which the platform serves, and something asks for a person.
const DEGRADING: [&str; 4] = [
    conditions::MEMORY_PRESSURE,
    conditions::DISK_PRESSURE,
    conditions::EVENT_LOG_LAG,
    conditions::CERTIFICATE_EXPIRING,
];

/// What a pass found of it.
#[derive(Default)]
pub struct Alarms {
    /// Bytes of the volume of each of the engine's pods.
    pub capacity: BTreeMap<String, u64>,
    /// What services and consumers say of themselves.
    pub survey: Found,
    /// When certificates end; absent: not looked at.
    pub certificates: Option<Vec<Certificate>>,
    /// StatefulSets whose pods cannot be made.
    pub refused: Live<Refusal>,
}

/// The conditions that follow; one of which nothing was heard stays as it was.
pub(super) fn findings(before: &[Condition], facts: &Facts, now: Timestamp) -> Vec<Finding> {
    let alarms = &facts.alarms;
    let capacity = |pod: &str| alarms.capacity.get(pod).copied();
    let was = |kind| conditions::get(before, kind);
    let shards = facts.storage.as_ref().map(|s| &s.readiness.shards);
    let disk = shards.and_then(|shards| disk::finding(shards, capacity, was(conditions::DISK_PRESSURE)));
    let lag = event_log_lag(&alarms.survey, was(conditions::EVENT_LOG_LAG));
    let certificates = alarms.certificates.as_ref();
    let ends = certificates.and_then(|c| certificates::finding(c, was(conditions::CERTIFICATE_EXPIRING), now));
    [disk, lag, ends].into_iter().flatten().collect()
}

/// Ready as it is while the store refuses writes: reads are served, and nobody can send.
pub(super) fn refused(conditions: &[Condition]) -> Option<Finding> {
    let refusing = [
        (conditions::MEMORY_PRESSURE, reason::ENGINE_FULL),
        (conditions::DISK_PRESSURE, reason::DISK_WRITE_FAILED),
        (conditions::EVENT_LOG_LAG, reason::OUTBOX_FULL),
    ];
    refusing.into_iter().find_map(|(kind, word)| {
        let condition = conditions::get(conditions, kind).filter(|c| c.status == "True" && c.reason == word)?;
        Some(Finding::fails(conditions::READY, word, format!("{kind}: {}", condition.message)))
    })
}

/// What makes the platform degraded although every part serves.
pub(super) fn degraded(conditions: &[Condition], facts: &Facts, now: Timestamp) -> Option<(&'static str, String)> {
    let held = DEGRADING.iter().find_map(|kind| {
        let condition = conditions::get(conditions, kind).filter(|c| c.status == "True")?;
        Some((known_reason(&condition.reason), format!("{kind}: {}", condition.message)))
    });
    held.or_else(|| workload::killed(&facts.pods, now)).or_else(|| {
        let pod = facts.alarms.survey.replaced.first()?;
        let message = format!(
            "Kafka clients of pod {pod} fail and are replaced again and again: see its log with kubectl logs {pod}, and the brokers' logs"
        );
        Some((reason::KAFKA_CLIENTS_REPLACED, message))
    })
}

/// The conditions that hold now and did not before.
pub(super) fn begun<'a>(before: &[Condition], now: &'a [Condition]) -> Vec<&'a Condition> {
    let begins = |kind: &&str| !conditions::is_true(before, kind) && conditions::is_true(now, kind);
    TOLD.into_iter().filter(begins).filter_map(|kind| conditions::get(now, kind)).collect()
}

/// EventLogLag; none while nothing was heard of what it was, or would be, about.
fn event_log_lag(found: &Found, before: Option<&Condition>) -> Option<Finding> {
    let kind = conditions::EVENT_LOG_LAG;
    let held = before.filter(|b| b.status == "True").map(|b| b.reason.as_str());
    if let Some((word, message)) = lagging(found, held) {
        return Some(Finding::holds(kind, word, message));
    }
    let (consumers, outboxes) = (found.lags.is_some(), !found.outboxes.is_empty());
    let known = match held {
        Some(reason::CONSUMER_LAGGING | reason::CONSUMER_STUCK) => consumers,
        Some(_) => outboxes,
        None => consumers || outboxes,
    };
    known.then(|| Finding::fails(kind, reason::ALL_READY, "events are published and handled as they come"))
}

/// The service that reads in this group, whose name begins with the ChatCluster's.
fn reader(group: &str) -> Service {
    let own = group.rsplit_once('.').map_or(group, |(_, own)| own);
    let reads = |service: &&Service| service.log().consumes.iter().any(|consumer| consumer.group == own);
    Service::ALL.iter().find(reads).copied().unwrap_or(Service::Tasks)
}

/// The gravest first. Numbers are told in steps, so that the sentence stands still.
fn lagging(found: &Found, held: Option<&str>) -> Option<(&'static str, String)> {
    let bound = Limits::default().outbox_bytes.max(1);
    let fullest = found.outboxes.iter().max_by_key(|(_, bytes)| *bytes);
    let fullest = fullest.map(|(pod, bytes)| (pod, bytes.saturating_mul(100) / bound));
    if let Some((pod, _)) = fullest.filter(|(_, percent)| *percent >= OUTBOX_FULL) {
        let message = format!(
            "{pod} keeps as many unpublished events as it may ({} MiB) and refuses writes: see the condition EventLogReady and the brokers' logs; writes go on as soon as the brokers take events",
            bound >> 20
        );
        return Some((reason::OUTBOX_FULL, message));
    }
    let lags = found.lags.iter().flatten();
    if let Some((lag, stuck)) = lags.clone().find_map(|lag| Some((lag, lag.stuck?))) {
        let message = format!(
            "consumer group {} has stood still at offset {} of partition {} for five minutes or more although events wait: see the log of the {} pods",
            lag.group,
            stuck.offset,
            stuck.partition,
            reader(&lag.group).name()
        );
        return Some((reason::CONSUMER_STUCK, message));
    }
    let bound_events = if held == Some(reason::CONSUMER_LAGGING) { LAG_ENDS } else { LAG_BEGINS };
    if let Some(lag) = lags.max_by_key(|lag| lag.events).filter(|lag| lag.events >= bound_events) {
        let mut level = LAG_ENDS;
        while level.saturating_mul(2) <= lag.events {
            level = level.saturating_mul(2);
        }
        let message = format!(
            "consumer group {} is {level} events or more behind, so deliveries are late: raise spec.services.{}.replicas, and see the log of the {} pods if it does not fall",
            lag.group,
            reader(&lag.group).field(),
            reader(&lag.group).name()
        );
        return Some((reason::CONSUMER_LAGGING, message));
    }
    let begins = if held == Some(reason::OUTBOX_GROWING) || held == Some(reason::OUTBOX_FULL) {
        OUTBOX_ENDS
    } else {
        OUTBOX_BEGINS
    };
    let (pod, percent) = fullest.filter(|(_, percent)| *percent >= begins)?;
    let level = if percent < OUTBOX_BEGINS { OUTBOX_ENDS } else { percent / OUTBOX_BEGINS * OUTBOX_BEGINS };
    let message = format!(
        "unpublished events of {pod} take {level} % or more of the {} MiB that they may: writes are refused when it is full; see the condition EventLogReady and the brokers' logs and load",
        bound >> 20
    );
    Some((reason::OUTBOX_GROWING, message))
}

/// The reason of a condition as one of our own; an unknown one is another operator's.
pub(super) fn known_reason(text: &str) -> &'static str {
    [
        reason::STARTING,
        reason::WAITING_FOR_LAYER_BELOW,
        reason::PODS_NOT_READY,
        reason::UNSCHEDULABLE,
        reason::IMAGE_PULL_FAILED,
        reason::VOLUME_PENDING,
        reason::OUT_OF_MEMORY,
        reason::PODS_REFUSED,
        reason::SECRET_NOT_FOUND,
        reason::SECRET_INVALID,
        reason::EVENT_LOG_UNREACHABLE,
        reason::EVENT_LOG_UNAUTHORIZED,
        reason::ADDRESS_PENDING,
        reason::TOPIC_SETTINGS,
        reason::RIGHTS_NOT_ENFORCED,
        reason::RECONCILE_FAILED,
        reason::ACKNOWLEDGEMENT_LOWERED,
        reason::FOREIGN_TOPIC,
        reason::TOPIC_PARTITIONS_CHANGED,
        reason::FOREIGN_VOLUME,
        reason::SLOTS_UNCOVERED,
        reason::OWNERSHIP_DISPUTED,
        reason::PRIMARY_DOWN,
        reason::TOO_FEW_REPLICAS,
        reason::REPLICA_LAGGING,
        reason::LIBRARY_MISSING,
        reason::SHARD_NOT_WHOLE,
        reason::ENGINE_MEMORY_HIGH,
        reason::ENGINE_FULL,
        reason::VOLUME_FILLING,
        reason::DISK_WRITE_FAILED,
        reason::OUTBOX_GROWING,
        reason::OUTBOX_FULL,
        reason::CONSUMER_LAGGING,
        reason::CONSUMER_STUCK,
        reason::RENEWAL_FAILED,
        reason::CERTIFICATE_ENDING,
    ]
    .into_iter()
    .find(|known| *known == text)
    .unwrap_or(reason::PODS_NOT_READY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::{GroupLag, Stuck};

    const MIB: u64 = 1 << 20;

    fn found(events: Option<u64>, outbox: Option<u64>) -> Found {
        let lag = |events| vec![GroupLag { group: "demo.tasks".to_owned(), events, stuck: None }];
        let outboxes = outbox.map(|mib| ("demo-storage-1".to_owned(), mib * MIB)).into_iter().collect();
        Found { lags: events.map(lag), outboxes, replaced: Vec::new() }
    }

    /// The reasons that one look after the other gives; none: it stayed as it was.
    fn life(looks: &[Found]) -> Vec<Option<&'static str>> {
        let mut conditions = Vec::new();
        let look = |found: &Found| {
            let before = conditions::get(&conditions, conditions::EVENT_LOG_LAG).cloned();
            let finding = event_log_lag(found, before.as_ref())?;
            let word = finding.reason;
            conditions::set(&mut conditions, finding, Some(1), Timestamp::UNIX_EPOCH);
            Some(word)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn consumers_lag_from_ten_thousand_events_on_and_until_fewer_than_five_thousand_wait() {
        let looks = [9_999, 10_000, 6_000, 4_999, 6_000].map(|events| found(Some(events), Some(0)));
        let (fine, lags) = (Some(reason::ALL_READY), Some(reason::CONSUMER_LAGGING));
        assert_eq!(life(&looks), [fine, lags, lags, fine, fine]);
        let message = |events| event_log_lag(&found(Some(events), None), None).unwrap().message;
        assert!(message(45_000).contains("demo.tasks is 40000 events or more behind"), "{}", message(45_000));
        assert_eq!(message(45_000), message(79_000), "the sentence stands still");
    }

    #[test]
    fn an_outbox_that_grows_is_told_and_a_full_one_refuses_writes() {
        let looks = [10, 64, 30, 20, 250, 200, 30, 20].map(|mib| found(Some(0), Some(mib)));
        let (fine, grows, full) = (Some(reason::ALL_READY), Some(reason::OUTBOX_GROWING), Some(reason::OUTBOX_FULL));
        assert_eq!(life(&looks), [fine, grows, grows, fine, full, grows, grows, fine]);
    }

    #[test]
    fn a_consumer_that_stands_still_is_told_however_little_waits() {
        let mut looks = found(Some(3), Some(0));
        for lag in looks.lags.iter_mut().flatten() {
            lag.stuck = Some(Stuck { partition: 4, offset: 77 });
        }
        let finding = event_log_lag(&looks, None).unwrap();
        assert_eq!(finding.reason, reason::CONSUMER_STUCK);
        assert!(finding.message.contains("offset 77 of partition 4"), "{}", finding.message);
    }

    #[test]
    fn what_was_not_heard_of_leaves_the_condition_as_it_is() {
        assert_eq!(life(&[found(None, None)]), [None]);
        let lags = Some(reason::CONSUMER_LAGGING);
        assert_eq!(life(&[found(Some(20_000), Some(0)), found(None, Some(0)), found(None, None)]), [lags, None, None]);
        // Whoever may not ask the brokers still hears of the outbox.
        assert_eq!(
            life(&[found(None, Some(100)), found(None, Some(0))]),
            [Some(reason::OUTBOX_GROWING), Some(reason::ALL_READY)]
        );
    }

    fn held(kind: &'static str, word: &'static str) -> Vec<Condition> {
        let mut conditions = Vec::new();
        conditions::set(&mut conditions, Finding::holds(kind, word, "so it is"), Some(1), Timestamp::UNIX_EPOCH);
        conditions
    }

    #[test]
    fn ready_is_taken_back_only_when_writes_are_refused() {
        let full = refused(&held(conditions::MEMORY_PRESSURE, reason::ENGINE_FULL)).unwrap();
        assert_eq!((full.kind, full.holds, full.reason), (conditions::READY, Some(false), reason::ENGINE_FULL));
        assert_eq!(full.message, "MemoryPressure: so it is");
        assert!(refused(&held(conditions::EVENT_LOG_LAG, reason::OUTBOX_FULL)).is_some());
        assert!(refused(&held(conditions::DISK_PRESSURE, reason::DISK_WRITE_FAILED)).is_some());
        assert_eq!(refused(&held(conditions::MEMORY_PRESSURE, reason::ENGINE_MEMORY_HIGH)), None);
        assert_eq!(refused(&held(conditions::EVENT_LOG_LAG, reason::CONSUMER_LAGGING)), None);
        assert_eq!(refused(&held(conditions::CERTIFICATE_EXPIRING, reason::CERTIFICATE_ENDING)), None);
    }

    #[test]
    fn every_alarm_degrades_with_its_own_reason() {
        let now = Timestamp::UNIX_EPOCH;
        for (kind, word) in [
            (conditions::MEMORY_PRESSURE, reason::ENGINE_MEMORY_HIGH),
            (conditions::DISK_PRESSURE, reason::VOLUME_FILLING),
            (conditions::EVENT_LOG_LAG, reason::CONSUMER_STUCK),
            (conditions::CERTIFICATE_EXPIRING, reason::RENEWAL_FAILED),
        ] {
            let (reason, message) = degraded(&held(kind, word), &Facts::default(), now).unwrap();
            assert_eq!((reason, message), (word, format!("{kind}: so it is")));
            assert_eq!(begun(&[], &held(kind, word)).len(), usize::from(kind != conditions::MEMORY_PRESSURE));
            assert!(begun(&held(kind, word), &held(kind, word)).is_empty());
        }
        let mut facts = Facts::default();
        facts.alarms.survey.replaced = vec!["demo-tasks-1".to_owned()];
        let (word, message) = degraded(&[], &facts, now).unwrap();
        assert_eq!(word, reason::KAFKA_CLIENTS_REPLACED);
        assert!(message.contains("pod demo-tasks-1 fail and are replaced"), "{message}");
        assert_eq!(degraded(&[], &Facts::default(), now), None);
    }
}
