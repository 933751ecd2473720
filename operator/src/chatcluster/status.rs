//! The status step: what a pass found, as conditions and fields. Pure; an unchanged platform gives an unchanged status.

mod event_log;

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    jiff::Timestamp,
};
use kith_crds::{
    ChatCluster, Gateway,
    chatcluster::{ChatClusterStatus, Endpoints, Images, StorageStatus},
    conditions::{self, Finding, reason},
};
use kith_platform::{self as platform, Layer, listed};
use kube::ResourceExt;

use super::{
    PassError,
    alarms::{self, Alarms},
    broker_care::BrokerCare,
    rollouts,
};
use crate::{
    apply::Live,
    dataplane::{Failover, pressure, readiness::Readiness, types::Problem},
    eventlog,
    plan::Plan,
    render::meta::{self, Component},
    workload::Rollout,
};

/// How one service is.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Which.
    pub component: Component,
    /// How far its Deployment is; absent: there is none yet.
    pub rollout: Option<Rollout>,
    /// Whether a change waits for the layer below.
    pub waiting: bool,
    /// What keeps its pods from running.
    pub trouble: Option<(&'static str, String)>,
}

/// What a pass found, as far as it came.
#[derive(Default)]
pub struct Facts {
    /// The version and images that run.
    pub adopted: Option<(String, Images)>,
    /// The resolved spec.
    pub plan: Option<Plan>,
    /// The storage engine as this pass saw it.
    pub storage: Option<StorageFacts>,
    /// What the last look at the event log found.
    pub event_log: Option<eventlog::Outcome>,
    /// Why its topics may not be set as they should.
    pub topic_settings: Option<eventlog::Trouble>,
    /// Managed brokers; absent: there are none.
    pub brokers: Option<BrokerFacts>,
    /// Services in the order of the layers.
    pub workloads: Vec<Workload>,
    /// The hash of the templates that the layers below access are to have.
    pub wanted_below: Option<String>,
    /// Services of Kubernetes, for addresses.
    pub services: Live<Service>,
    /// Pods, for addresses.
    pub pods: Arc<Live<Pod>>,
    /// Gateways of the ChatCluster; absent: not looked at.
    pub gateways: Option<Live<Gateway>>,
    /// What whoever is on call must know.
    pub alarms: Alarms,
    /// What went wrong first, although the rest of the pass went on.
    pub trouble: Option<PassError>,
    /// What of it, or of the pass as a whole, the condition Ready shows.
    pub failure: Option<Finding>,
}

impl Facts {
    /// Notes an error that does not end the pass; what a step brought otherwise.
    pub fn noted<T>(&mut self, result: Result<T, impl Into<PassError>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.into();
                // The first is told when the pass ends.
                if self.trouble.is_some() {
                    tracing::warn!(%error, "another step of the pass failed");
                }
                self.trouble.get_or_insert(error);
                None
            }
        }
    }
}

/// Managed brokers as seen.
#[derive(Clone, Debug, Default)]
pub struct BrokerFacts {
    /// Those whose containers serve, caught up or not.
    pub serving: u32,
    /// Those that serve and have caught up.
    pub ready: u32,
    /// Those wanted.
    pub wanted: u32,
    /// Services for consumers outside that have no address yet.
    pub missing: Vec<String>,
    /// What was done about their pods.
    pub care: BrokerCare,
}

/// The storage engine as seen.
pub struct StorageFacts {
    /// From `CLUSTER SHARDS` of every reachable node.
    pub readiness: Readiness,
    /// What stands in the way, the prober's findings included.
    pub problems: Vec<Problem>,
    /// Whether something is under way.
    pub unfinished: bool,
    /// What keeps its pods from running.
    pub trouble: Option<(&'static str, String)>,
    /// StorageShards that the operator keeps.
    pub shards: u32,
    /// Hand-made ones.
    pub extra: u32,
    /// Of those that the operator keeps, the ones being emptied.
    pub draining: u32,
    /// The function library that every node holds; unknown when this operator does not carry it.
    pub library: Option<String>,
    /// The last change of primary of each shard.
    pub failovers: Vec<Failover>,
    /// Whether a shard is otherwise than the last pass found it.
    pub news: bool,
}

#[cfg(test)]
impl StorageFacts {
    /// One shard that the operator keeps, and nothing besides.
    pub(super) fn of(readiness: Readiness) -> Self {
        Self {
            readiness,
            problems: Vec::new(),
            unfinished: false,
            trouble: None,
            shards: 1,
            extra: 0,
            draining: 0,
            library: Some("kith1".to_owned()),
            failovers: Vec::new(),
            news: false,
        }
    }
}

/// The status that follows from `facts`; what was not looked at stays as it was.
pub fn status(cluster: &ChatCluster, facts: &Facts, now: Timestamp) -> ChatClusterStatus {
    let mut status = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    status.observed_generation = generation;
    if let Some((version, images)) = &facts.adopted {
        status.version = Some(version.clone());
        status.images = Some(images.clone());
    }
    if let Some(plan) = &facts.plan {
        status.cluster_name = Some(plan.cluster_name.clone());
        status.cluster_uid = Some(plan.data_uid.clone());
        status.event_log = Some(event_log::status(plan));
        status.endpoints = Some(endpoints(plan, facts));
    }
    if let Some(storage) = &facts.storage {
        status.storage = Some(storage_status(facts, storage, status.storage.as_ref()));
    }
    if let (Some(wanted), Some(plan)) = (&facts.wanted_below, &facts.plan) {
        let below = plan.services.iter().filter(|of| of.service.is_below_access()).map(|of| of.service.into());
        let below: Vec<Component> = below.collect();
        status.rolled_out = rollouts::rolled_out(wanted, status.rolled_out.as_deref(), &facts.workloads, &below);
    }
    let mut findings = Vec::new();
    findings.extend(facts.storage.as_ref().map(|s| storage_ready(s, facts)));
    let pressure = conditions::get(&status.conditions, conditions::MEMORY_PRESSURE);
    findings.extend(facts.storage.as_ref().and_then(|s| pressure::finding(&s.readiness.shards, pressure)));
    findings.extend(facts.event_log.as_ref().map(|outcome| event_log::ready(outcome, facts)));
    findings.extend(logic_ready(facts));
    findings.extend(access_ready(facts));
    findings.extend(alarms::findings(&status.conditions, facts, now));
    for finding in findings {
        conditions::set(&mut status.conditions, finding, generation, now);
    }
    for finding in overall(&status, facts, now) {
        conditions::set(&mut status.conditions, finding, generation, now);
    }
    status
}

fn storage_status(facts: &Facts, storage: &StorageFacts, before: Option<&StorageStatus>) -> StorageStatus {
    let ready = storage.readiness.shards.iter().filter(|s| s.whole).count();
    let partitions = before.and_then(|b| b.partitions);
    let formed = storage.readiness.slots_served == u32::from(crate::dataplane::slots::SLOTS);
    StorageStatus {
        shards: storage.shards,
        ready_shards: u32::try_from(ready).unwrap_or(u32::MAX),
        extra_shards: storage.extra,
        slots: storage.readiness.slots_served,
        library: storage.library.clone().or_else(|| before.and_then(|b| b.library.clone())),
        // Set when all slots were owned for the first time; from then on no slot is ever given away without its data.
        partitions: partitions.or_else(|| facts.plan.as_ref().filter(|_| formed).map(|p| p.valkey.partitions)),
    }
}

fn endpoints(plan: &Plan, facts: &Facts) -> Endpoints {
    let ready = facts.gateways.iter().flat_map(|g| g.values()).filter_map(|gateway| {
        let status = gateway.status.as_ref()?;
        conditions::is_true(&status.conditions, conditions::READY).then_some(status.addresses.as_ref()?)
    });
    let (mut api, mut websocket) = (None, None);
    for addresses in ready {
        api = api.or_else(|| addresses.api.clone());
        websocket = websocket.or_else(|| addresses.websocket.clone());
    }
    Endpoints { api, websocket, business: business(plan, facts), kafka: Some(event_log::address(plan, facts)) }
}

/// `host:port` of a Service from outside where there is one, else from inside.
pub fn address(service: &Service, node: Option<&str>, inside: String) -> String {
    let spec = service.spec.as_ref();
    let port = spec.and_then(|s| s.ports.as_ref()?.first());
    match spec.and_then(|s| s.type_.as_deref()) {
        Some("NodePort") => match (node, port.and_then(|p| p.node_port)) {
            (Some(node), Some(number)) => format!("{}:{number}", bracketed(node)),
            _ => inside,
        },
        Some("LoadBalancer") => {
            let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref()?.first());
            let host = balancer.and_then(|b| b.hostname.as_deref().or(b.ip.as_deref()));
            match (host, port) {
                (Some(host), Some(port)) => format!("{}:{}", bracketed(host), port.port),
                _ => inside,
            }
        }
        _ => inside,
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The address of a node that runs one of the component's pods; the lowest, so that it does not change with every look.
pub fn node_of(pods: &Live<Pod>, component: Component) -> Option<&str> {
    pods.values()
        .filter(|p| p.labels().get(kith_crds::names::LABEL_COMPONENT).is_some_and(|c| c == component.name()))
        .filter_map(|p| p.status.as_ref()?.host_ip.as_deref())
        .min()
}

fn business(plan: &Plan, facts: &Facts) -> Option<String> {
    let name = meta::component_name(&plan.name, Component::BUSINESS);
    let service = facts.services.get(&name)?;
    let hosts = &plan.spec.services.business.exposure.extra_hosts;
    let node = hosts.first().map(String::as_str).or_else(|| node_of(&facts.pods, Component::BUSINESS));
    Some(address(service, node, format!("{name}.{}.svc:{}", plan.namespace, platform::Service::Business.port())))
}

/// The word of a data plane problem among the conditions' reasons.
pub fn storage_reason(problem: &Problem) -> &'static str {
    use crate::dataplane::types::Reason as R;
    match problem.reason {
        R::ForeignData => reason::FOREIGN_VOLUME,
        R::FailoverBlocked => reason::TOO_FEW_REPLICAS,
        R::OwnerMissing => reason::SLOTS_UNCOVERED,
        R::MemberUnreachable | R::MemberLoading | R::NotJoined => reason::PODS_NOT_READY,
        R::SettingsWrong | R::StrayNode | R::PartitionSplit | R::CommandFailed => reason::SHARD_NOT_WHOLE,
        R::SlotsUncovered => reason::SLOTS_UNCOVERED,
        R::OwnershipDisputed => reason::OWNERSHIP_DISPUTED,
        R::PrimaryDown => reason::PRIMARY_DOWN,
        R::ReplicaLagging => reason::REPLICA_LAGGING,
        R::LibraryMissing => reason::LIBRARY_MISSING,
        R::AcknowledgementLowered => reason::ACKNOWLEDGEMENT_LOWERED,
    }
}

/// The problem that says most: what a person must act on before what heals by itself.
pub fn gravest<'a>(problems: impl Iterator<Item = &'a Problem>) -> Option<&'a Problem> {
    use crate::dataplane::types::Reason as R;
    problems.min_by_key(|p| match p.reason {
        R::ForeignData => 0,
        R::FailoverBlocked => 1,
        R::OwnerMissing | R::PartitionSplit => 2,
        R::PrimaryDown => 3,
        R::OwnershipDisputed | R::StrayNode => 4,
        R::SlotsUncovered => 5,
        R::LibraryMissing | R::SettingsWrong | R::CommandFailed | R::AcknowledgementLowered => 6,
        R::ReplicaLagging => 7,
        R::MemberLoading | R::MemberUnreachable | R::NotJoined => 8,
    })
}

fn storage_ready(storage: &StorageFacts, facts: &Facts) -> Finding {
    let kind = conditions::STORAGE_READY;
    let problems = storage.readiness.problems.iter().chain(&storage.problems);
    if !storage.readiness.is_ready() || storage.problems.iter().any(|p| p.command.is_some()) {
        if let Some((word, sentence)) = &storage.trouble {
            return Finding::fails(kind, word, sentence.clone());
        }
        if storage.unfinished && facts.plan.is_some() && storage.readiness.slots_served == 0 {
            return Finding::fails(kind, reason::STARTING, "the storage engine is being joined into one cluster");
        }
        return match gravest(problems) {
            Some(problem) => Finding::fails(kind, storage_reason(problem), problem.to_string()),
            None => Finding::fails(kind, reason::STARTING, "the storage engine starts"),
        };
    }
    match facts.workloads.iter().find(|w| w.component == Component::STORAGE).and_then(unready) {
        Some((word, sentence)) => Finding::fails(kind, word, sentence),
        None => rollouts::serving(
            kind,
            format!("{} shards own and serve all slots, every replica is in step", storage.readiness.shards.len()),
            rollouts::under_way(&facts.workloads, &[Component::STORAGE]),
        ),
    }
}

/// Why a service does not serve as it should.
fn unready(workload: &Workload) -> Option<(&'static str, String)> {
    let name = workload.component.name();
    match workload.rollout {
        Some(rollout) if rollout.ready >= rollout.wanted => None,
        _ if workload.trouble.is_some() => workload.trouble.clone(),
        Some(rollout) => {
            Some((reason::PODS_NOT_READY, format!("{name}: {} of {} pods serve", rollout.ready, rollout.wanted)))
        }
        None if workload.waiting => {
            Some((reason::WAITING_FOR_LAYER_BELOW, format!("{name} is started when the layer below is ready")))
        }
        None => Some((reason::STARTING, format!("{name} is being made"))),
    }
}

/// How a layer is, of whose services and of `more` it is said that they serve.
fn layer(kind: &'static str, facts: &Facts, layer: Layer, more: Option<&str>) -> Option<Finding> {
    if facts.workloads.is_empty() {
        return None;
    }
    let services: Vec<platform::Service> = facts.plan.as_ref()?.layer(layer).iter().map(|of| of.service).collect();
    let components: Vec<Component> = services.iter().copied().map(Component::from).collect();
    let names: Vec<&str> = services.iter().map(|service| service.name()).chain(more).collect();
    let words = match names[..] {
        [one] => format!("{one} serves"),
        _ => format!("{} serve", listed(names)),
    };
    let bad = facts.workloads.iter().filter(|w| components.contains(&w.component)).find_map(unready);
    Some(match bad {
        Some((word, sentence)) => Finding::fails(kind, word, sentence),
        None => rollouts::serving(kind, words, rollouts::under_way(&facts.workloads, &components)),
    })
}

fn logic_ready(facts: &Facts) -> Option<Finding> {
    layer(conditions::LOGIC_READY, facts, Layer::Logic, None)
}

fn access_ready(facts: &Facts) -> Option<Finding> {
    let kind = conditions::ACCESS_READY;
    let business = layer(kind, facts, Layer::Access, Some("every Gateway"))?;
    if business.holds != Some(true) {
        return Some(business);
    }
    for (name, gateway) in facts.gateways.iter().flatten() {
        let ready = gateway.status.as_ref().and_then(|s| conditions::get(&s.conditions, conditions::READY));
        match ready {
            Some(condition) if condition.status == "True" => {}
            Some(condition) => {
                return Some(Finding::fails(
                    kind,
                    reason::PODS_NOT_READY,
                    format!("Gateway {name}: {}", condition.message),
                ));
            }
            None => return Some(Finding::fails(kind, reason::STARTING, format!("Gateway {name} is being made"))),
        }
    }
    let moves = |(name, gateway)| Some((name, rollouts::gateway_moves(gateway)?));
    match facts.gateways.iter().flatten().find_map(moves).filter(|_| business.reason == reason::ALL_READY) {
        Some((name, why)) => {
            let under_way = (reason::ROLLING_OUT, format!("Gateway {name}: {why}"));
            Some(rollouts::serving(kind, business.message, Some(under_way)))
        }
        None => Some(business),
    }
}

/// Ready, Progressing and Degraded, from the layers.
fn overall(status: &ChatClusterStatus, facts: &Facts, now: Timestamp) -> [Finding; 3] {
    [ready(status, facts), progressing(facts), degraded(status, facts, now)]
}

fn ready(status: &ChatClusterStatus, facts: &Facts) -> Finding {
    let kind = conditions::READY;
    if let Some(failure) = &facts.failure {
        return Finding { kind, ..failure.clone() };
    }
    for layer in
        [conditions::STORAGE_READY, conditions::EVENT_LOG_READY, conditions::LOGIC_READY, conditions::ACCESS_READY]
    {
        match conditions::get(&status.conditions, layer) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) => {
                let word = alarms::known_reason(&condition.reason);
                return Finding::fails(kind, word, format!("{layer}: {}", condition.message));
            }
            None => return Finding::fails(kind, reason::STARTING, format!("{layer} is not known yet")),
        }
    }
    alarms::refused(&status.conditions).unwrap_or_else(|| Finding::holds(kind, reason::ALL_READY, "every layer serves"))
}

fn progressing(facts: &Facts) -> Finding {
    let kind = conditions::PROGRESSING;
    if let Some(failure) = &facts.failure {
        return Finding::fails(kind, failure.reason, failure.message.clone());
    }
    if let Some(storage) = &facts.storage {
        let wanted = facts.plan.as_ref().map_or(storage.shards, |p| p.valkey.shards);
        if storage.draining > 0 {
            let message =
                format!("{} shards are being emptied; each is removed when nothing is left on it", storage.draining);
            return Finding::holds(kind, reason::SCALING_IN, message);
        }
        if storage.shards < wanted {
            let message = format!("{} of {wanted} shards are made", storage.shards);
            return Finding::holds(kind, reason::SCALING_OUT, message);
        }
        if storage.unfinished {
            return Finding::holds(kind, reason::STARTING, "the storage engine is being brought to what it should be");
        }
    }
    if let Some(moves) = rollouts::progress(facts) {
        return moves;
    }
    if facts.brokers.as_ref().is_some_and(|brokers| brokers.care.rolling) {
        return Finding::holds(
            kind,
            reason::ROLLING_OUT,
            "the brokers are restarted one by one, each when all are in sync",
        );
    }
    Finding::fails(kind, reason::IDLE, "nothing is under way")
}

fn degraded(status: &ChatClusterStatus, facts: &Facts, now: Timestamp) -> Finding {
    let kind = conditions::DEGRADED;
    let storage = facts.storage.as_ref().and_then(|storage| {
        let problems = storage.problems.iter().chain(&storage.readiness.problems);
        gravest(problems).map(|problem| (storage_reason(problem), problem.to_string()))
    });
    let formed = facts.storage.as_ref().is_some_and(|s| s.readiness.slots_served > 0);
    let service = || {
        let mut serving = facts.workloads.iter().filter(|w| w.rollout.is_some_and(|r| r.ready > 0 || r.done));
        serving.find_map(unready).or_else(|| rollouts::stuck(&facts.workloads))
    };
    let brokers = || event_log::degraded(facts).filter(|_| formed);
    let log = || brokers().or_else(|| event_log::settings_differ(facts));
    let alarm = || alarms::degraded(&status.conditions, facts, now);
    match storage.filter(|_| formed).or_else(service).or_else(log).or_else(alarm) {
        Some((word, sentence)) => Finding::holds(kind, word, sentence),
        None => Finding::fails(kind, reason::ALL_READY, "nothing serves with less than what was asked for"),
    }
}

#[cfg(test)]
mod tests;
