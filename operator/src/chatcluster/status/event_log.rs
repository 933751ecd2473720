//! What status says of the event log: whose it is, where it is reached, whether it serves.

use kith_crds::{
    chatcluster::{EventLogKind, EventLogStatus},
    conditions::{self, Finding, reason},
};
use kith_platform::topic;

use super::{Facts, bracketed, rollouts};
use crate::{
    eventlog,
    plan::{KafkaPlan, Plan},
    render::{
        kafka,
        meta::{self, Component},
    },
};

pub(super) fn status(plan: &Plan) -> EventLogStatus {
    EventLogStatus {
        kind: Some(match plan.event_log.kafka {
            KafkaPlan::Managed(_) => EventLogKind::Managed,
            KafkaPlan::External(_) => EventLogKind::External,
        }),
        bootstrap: Some(plan.bootstrap()),
        partitions: Some(plan.event_log.partitions),
        topic: Some(format!("{}.{}", plan.cluster_name, topic::EVENTS)),
    }
}

/// Where consumers begin: outside as far as brokers are reached there, else inside.
pub(super) fn address(plan: &Plan, facts: &Facts) -> String {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return plan.bootstrap() };
    let addresses = kafka::external_addresses(plan, managed, &facts.services, None);
    let known = |(index, address): (u32, Option<kafka::ExternalAddress>)| {
        let address = address?;
        let pod = facts.pods.get(&format!("{}-{index}", meta::component_name(&plan.name, Component::Kafka)));
        let node = pod.and_then(|p| p.status.as_ref()?.host_ip.clone());
        Some(format!("{}:{}", bracketed(&address.host.or(node)?), address.port))
    };
    let found: Vec<String> = (0_u32..).zip(addresses).filter_map(known).collect();
    if found.is_empty() { plan.bootstrap() } else { found.join(",") }
}

pub(super) fn ready(outcome: &eventlog::Outcome, facts: &Facts) -> Finding {
    let kind = conditions::EVENT_LOG_READY;
    match outcome {
        None => {
            let message = format!("the event log has not been looked at yet{}", besides(facts));
            Finding::unknown(kind, reason::STARTING, message)
        }
        Some(Ok(())) => match too_few_brokers(facts).or_else(|| unreachable_outside(facts)) {
            Some((word, sentence)) => {
                let pods = broker_trouble(facts).filter(|_| word == reason::PODS_NOT_READY);
                let (word, sentence) = pods.unwrap_or((word, sentence));
                Finding::fails(kind, word, sentence)
            }
            None => rollouts::serving(
                kind,
                "the topics exist, belong to this ChatCluster and accept events".to_owned(),
                settings_differ(facts),
            ),
        },
        Some(Err(trouble)) => match broker_trouble(facts) {
            Some((word, sentence)) => Finding::fails(kind, word, sentence),
            None => Finding::fails(kind, trouble.reason, format!("{}{}", trouble.message, besides(facts))),
        },
    }
}

/// What keeps the brokers' pods from running, or from being made.
fn broker_trouble(facts: &Facts) -> Option<(&'static str, String)> {
    let refused =
        || facts.alarms.refused.get(&meta::component_name(&facts.plan.as_ref()?.name, Component::Kafka)).cloned();
    crate::workload::trouble(&facts.pods, Component::Kafka.name(), None).or_else(refused)
}

/// What is the matter with the topics' settings.
pub(super) fn settings_differ(facts: &Facts) -> Option<(&'static str, String)> {
    facts.topic_settings.as_ref().map(|trouble| (trouble.reason, trouble.message.clone()))
}

/// Whether so few managed brokers serve that no event can be acknowledged. The last look at the topics may be a minute old.
fn too_few_brokers(facts: &Facts) -> Option<(&'static str, String)> {
    let brokers = facts.brokers.as_ref()?;
    let needed = facts.plan.as_ref()?.event_log.min_insync;
    let sentence = || format!("{} of {} brokers serve, {needed} are needed", brokers.serving, brokers.wanted);
    (brokers.serving < needed).then(|| (reason::PODS_NOT_READY, sentence()))
}

/// Brokers that consumers outside cannot reach yet, by what they wait for.
fn unreachable_outside(facts: &Facts) -> Option<(&'static str, String)> {
    let missing = &facts.brokers.as_ref()?.missing;
    let sentence = || {
        format!(
            "events are taken and read inside; for consumers outside no address was given yet to {}: see what the load balancer's controller says with kubectl describe service, or set externalAccess.advertisedHost",
            missing.join(", ")
        )
    };
    (!missing.is_empty()).then(|| (reason::ADDRESS_PENDING, sentence()))
}

/// What is missing besides something graver.
fn besides(facts: &Facts) -> String {
    let missing = facts.brokers.as_ref().map(|brokers| brokers.missing.join(", ")).filter(|names| !names.is_empty());
    missing.map(|names| format!("; besides, no address was given yet to {names}")).unwrap_or_default()
}

/// What brokers serve with less than was asked for.
pub(super) fn degraded(facts: &Facts) -> Option<(&'static str, String)> {
    let brokers = facts.brokers.as_ref()?;
    if let Some(problem) = brokers.care.problems.first() {
        return Some((reason::PODS_NOT_READY, problem.clone()));
    }
    let sentence = || format!("{} of {} brokers serve and are in sync", brokers.ready, brokers.wanted);
    (brokers.ready < brokers.wanted).then(|| (reason::PODS_NOT_READY, sentence()))
}
