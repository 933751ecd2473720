//! The event log of a ChatCluster: the managed brokers' objects, or the login at somebody else's.

use k8s_openapi::api::core::v1::{Pod, Secret};
use kith_crds::{
    chatcluster::{ExternalEventLog, ExternalTls},
    conditions::reason,
};
use kube::{Api, Client, ResourceExt};

use super::{BrokerFacts, Observed, PassError, brokers, secrets};
use crate::{
    apply::{Applier, ApplyError},
    certificates::{self, Certificate, Renewed},
    eventlog::{Security, Target, Trouble, rights},
    plan::{KafkaPlan, ManagedPlan, Plan},
    render::{
        kafka, kafka_access,
        meta::{self, Component},
    },
    runtime::Login,
};

/// Applies the managed brokers; nothing for an external log. `rights_stand`: the last look found every right in its place. Answers the
/// Services whose brokers have no address outside yet.
pub(super) async fn apply(
    applier: &Applier,
    plan: &Plan,
    observed: &Observed,
    certificate: &str,
    rights_stand: bool,
) -> Result<Vec<String>, PassError> {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return Ok(Vec::new()) };
    let external = kafka::external_services(plan, managed);
    let mut keep: Vec<String> = external.iter().map(ResourceExt::name_any).collect();
    keep.push(meta::component_name(&plan.name, Component::Kafka));
    let mut services = external;
    services.push(kafka::headless(plan));
    let standing = applier.apply_all(services, &observed.services).await?;
    let standing = standing.into_iter().map(|service| (service.name_any(), service.into_owned())).collect();
    let kafka_services = observed
        .services
        .iter()
        .filter(|(_, s)| {
            s.labels().get(kith_crds::names::LABEL_COMPONENT).is_some_and(|c| c == Component::Kafka.name())
        })
        .map(|(name, service)| (name.clone(), service.clone()))
        .collect();
    applier.prune(&keep, &kafka_services).await?;
    applier
        .apply(kafka::budget(plan), observed.budgets.get(&meta::component_name(&plan.name, Component::Kafka)))
        .await?;
    let kept = observed.config_maps.get(&meta::kafka_config_map(&plan.name));
    let addresses = kafka::external_addresses(plan, managed, &standing, kept);
    let map = kafka::config_map(plan, managed, &addresses, kafka_access::enforcement(kept, rights_stand));
    applier.apply(map.clone(), kept).await?;
    let live = observed.stateful_sets.get(&meta::component_name(&plan.name, Component::Kafka));
    crate::volumes::refuse_foreign(
        &observed.claims,
        &meta::component_name(&plan.name, Component::Kafka),
        &plan.data_uid,
    )?;
    let made_with = live.and_then(crate::volumes::claim_size);
    let set = kafka::stateful_set(plan, managed, &map, certificate, made_with.as_ref());
    applier.apply(set, live).await?;
    crate::volumes::grow(
        applier,
        &observed.claims,
        &meta::component_name(&plan.name, Component::Kafka),
        &managed.spec.volume,
    )
    .await?;
    let missing = (0_u32..).zip(&addresses).filter(|(_, address)| address.is_none());
    Ok(missing.map(|(index, _)| kafka::external_name(plan, index)).collect())
}

/// Whether every broker runs with the certificate and the authorities that stand in the Secrets. What a pass does not know is not so.
pub(super) fn settled(plan: &Plan, observed: &Observed) -> bool {
    if matches!(plan.event_log.kafka, KafkaPlan::External(_)) {
        return true;
    }
    let Some(set) = observed.stateful_sets.get(&meta::component_name(&plan.name, Component::Kafka)) else {
        return false;
    };
    let standing = secrets::standing_of_brokers(&plan.name, &observed.secrets);
    let template = set.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.annotations.as_ref());
    let started_with = template.and_then(|a| a.get(kafka::ANNOTATION_CERTIFICATE));
    if observed.rest.is_some() || standing.map(|s| kafka::certificate_hash(&s)).as_ref() != started_with {
        return false;
    }
    let (wanted, status) = (set.spec.as_ref().and_then(|s| s.replicas), set.status.clone().unwrap_or_default());
    status.observed_generation == set.metadata.generation
        && wanted.is_some()
        && status.ready_replicas == wanted
        && status.updated_replicas == wanted
}

/// Managed brokers: those that serve, and those wanted; none where there is no StatefulSet.
pub(super) fn serving(plan: &Plan, observed: &Observed) -> Option<BrokerFacts> {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return None };
    let set = observed.stateful_sets.get(&meta::component_name(&plan.name, Component::Kafka))?;
    let ready = set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let ready = u32::try_from(ready).unwrap_or(0);
    let listens = |pod: &&Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "ContainersReady" && c.status == "True")
    };
    let serving = u32::try_from(broker_pods(plan, managed, observed).filter(listens).count()).unwrap_or(0);
    Some(BrokerFacts { serving, ready, wanted: managed.spec.brokers, ..BrokerFacts::default() })
}

/// Every host by which brokers are dialled from outside. While not all is known, those that the brokers' certificate has stay: each name that
/// came or went would restart all brokers.
pub(super) fn hosts(plan: &Plan, observed: &Observed) -> Vec<String> {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return Vec::new() };
    if managed.spec.external_access.is_none() {
        return Vec::new();
    }
    let kept = observed.config_maps.get(&meta::kafka_config_map(&plan.name));
    let mut hosts = kafka::external_hosts(plan, managed, &observed.services, kept);
    let told = kafka::external_addresses(plan, managed, &observed.services, None);
    if observed.rest.is_some() || told.iter().any(Option::is_none) {
        let inside = kafka::inside_hosts(plan);
        let stands = secrets::names_of_brokers(&plan.name, &observed.secrets);
        hosts.extend(stands.into_iter().filter(|host| !inside.contains(host)));
        hosts.sort_unstable();
        hosts.dedup();
    }
    hosts
}

/// What must be at the brokers and how to log in there; a missing or unusable Secret is said in words.
pub(super) async fn target(client: &Client, plan: &Plan, login: &Login) -> Result<Result<Target, Trouble>, PassError> {
    let security = match &plan.event_log.kafka {
        KafkaPlan::Managed(_) => Ok(Security {
            tls: true,
            ca_pem: Some(login.ca_pem.clone()),
            client: Some((login.leaf.cert_pem.clone(), login.leaf.key_pem.clone())),
            sasl: None,
        }),
        KafkaPlan::External(external) => security(client, plan, external).await?,
    };
    Ok(security.map(|security| Target {
        bootstrap: plan.bootstrap(),
        security,
        cluster_name: plan.cluster_name.clone(),
        uid: plan.data_uid.clone(),
        partitions: plan.event_log.partitions,
        replication: plan.event_log.replication,
        min_insync: plan.event_log.min_insync,
        retention_ms: plan.event_log.retention_ms,
        brokers: match &plan.event_log.kafka {
            KafkaPlan::Managed(managed) => managed.spec.brokers,
            KafkaPlan::External(_) => 0,
        },
        rights: rights::of(plan),
    }))
}

/// The certificates of the ChatCluster: the operator's own, those that brokers still show, and those that a person gave for the brokers.
pub(super) fn certificates(plan: &Plan, observed: &Observed, target: &Target) -> Vec<Certificate> {
    let mut all = certificates::of_secrets(&observed.secrets, &meta::ca_secret(&plan.name));
    match &plan.event_log.kafka {
        KafkaPlan::Managed(managed) => {
            let standing = secrets::standing_of_brokers(&plan.name, &observed.secrets);
            let standing = standing.map(|standing| kafka::certificate_hash(&standing));
            all.extend(brokers::former_certificates(broker_pods(plan, managed, observed), standing.as_deref()));
        }
        KafkaPlan::External(ExternalEventLog { tls: Some(tls), .. }) => all.extend(given(tls, target)),
        KafkaPlan::External(_) => {}
    }
    all
}

/// The pods of the managed brokers that are there.
fn broker_pods<'a>(plan: &Plan, managed: &ManagedPlan, observed: &'a Observed) -> impl Iterator<Item = &'a Pod> {
    let name = meta::component_name(&plan.name, Component::Kafka);
    (0..managed.spec.brokers).filter_map(move |index| observed.pods.get(&format!("{name}-{index}")))
}

fn given(tls: &ExternalTls, target: &Target) -> impl Iterator<Item = Certificate> {
    let place = |name: &str| format!("Secret {name}, which spec.eventLog.external names");
    let authority = tls.ca_secret_ref.as_ref().zip(target.security.ca_pem.as_ref());
    let authority =
        authority.and_then(|(ca, pem)| Certificate::last(place(&ca.name), pem.as_bytes(), Renewed::ByGiver));
    let own = tls.client_certificate_secret_ref.as_ref().zip(target.security.client.as_ref());
    let own = own.and_then(|(own, (pem, _))| Certificate::first(place(&own.name), pem.as_bytes(), Renewed::ByGiver));
    authority.into_iter().chain(own)
}

async fn security(
    client: &Client,
    plan: &Plan,
    external: &ExternalEventLog,
) -> Result<Result<Security, Trouble>, PassError> {
    let mut security = Security::default();
    if let Some(tls) = &external.tls {
        security.tls = true;
        if let Some(ca) = &tls.ca_secret_ref {
            match read(client, plan, &ca.name, &[&ca.key]).await? {
                Ok(mut texts) => security.ca_pem = texts.pop(),
                Err(trouble) => return Ok(Err(trouble)),
            }
        }
        if let Some(reference) = &tls.client_certificate_secret_ref {
            match read(client, plan, &reference.name, &["tls.crt", "tls.key"]).await? {
                Ok(texts) => security.client = pair(texts),
                Err(trouble) => return Ok(Err(trouble)),
            }
        }
    }
    if let Some(sasl) = &external.sasl {
        match read(client, plan, &sasl.secret_ref.name, &["username", "password"]).await? {
            Ok(texts) => {
                security.sasl = pair(texts).map(|(user, password)| {
                    let trim = |text: String| text.trim_end_matches(['\r', '\n']).to_owned();
                    (sasl.mechanism.as_str().to_owned(), trim(user), trim(password))
                });
            }
            Err(trouble) => return Ok(Err(trouble)),
        }
    }
    Ok(Ok(security))
}

fn pair(texts: Vec<String>) -> Option<(String, String)> {
    let [first, second]: [String; 2] = texts.try_into().ok()?;
    Some((first, second))
}

/// The texts of some keys of a Secret that the spec names.
async fn read(
    client: &Client,
    plan: &Plan,
    name: &str,
    keys: &[&str],
) -> Result<Result<Vec<String>, Trouble>, PassError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &plan.namespace);
    let Some(secret) = api.get_opt(name).await.map_err(|e| ApplyError::kube::<Secret>(name, e))? else {
        let message = format!(
            "Secret {name}, which spec.eventLog.external names, does not exist in namespace {}: create it with the keys {}",
            plan.namespace,
            keys.join(", ")
        );
        return Ok(Err(Trouble { reason: reason::SECRET_NOT_FOUND, message }));
    };
    let mut texts = Vec::new();
    for key in keys {
        let text = secret.data.as_ref().and_then(|d| d.get(*key)).and_then(|v| String::from_utf8(v.0.clone()).ok());
        match text.filter(|t| !t.trim().is_empty()) {
            Some(text) => texts.push(text),
            None => {
                let message = format!(
                    "Secret {name}, which spec.eventLog.external names, has no text under the key {key}: add it"
                );
                return Ok(Err(Trouble { reason: reason::SECRET_INVALID, message }));
            }
        }
    }
    Ok(Ok(texts))
}
