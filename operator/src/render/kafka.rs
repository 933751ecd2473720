//! The managed event log: Kafka brokers in KRaft mode, each also a controller.

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy},
    core::v1::{ConfigMap, Container, LoadBalancerIngress, PodReadinessGate, Service},
    policy::v1::PodDisruptionBudget,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kith_crds::{
    chatcluster::{ExternalAccess, ExternalAccessType, ListenerSecurity},
    names,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    endpoints,
    kafka_access::{self, Enforcement},
    meta::{self, Component},
    pod,
    valkey::{DATA, claim, retention},
};
use crate::{
    certificates::{Certificate, Renewed},
    plan::{ManagedPlan, Plan},
};

/// Services of the platform, by certificate.
pub const INTERNAL_PORT: i32 = 9_093;
/// Consumers outside of the Kubernetes cluster.
pub const EXTERNAL_PORT: i32 = 9_094;
/// Controllers among themselves.
pub const CONTROLLER_PORT: i32 = 9_095;
/// A broker hands its leaderships over before it ends.
const GRACE_S: i64 = 60;
/// Seconds until a broker that starts must listen. One that was killed first reads through the end of every log; on a large volume that
/// takes minutes, and would begin again if it were cut short.
const START_S: i32 = 1_800;
/// Host of an address outside that is the node's own, which the start script puts in.
const NODE: &str = "HOST";

const START: &str = include_str!("scripts/kafka-start.sh");

/// Annotation of the brokers' template: a hash of the certificate and the authorities that they are started with.
pub const ANNOTATION_CERTIFICATE: &str = "kith.dev/certificate-hash";
/// Annotation of the brokers' template: when that certificate ends, Unix seconds.
pub const ANNOTATION_CERTIFICATE_ENDS: &str = "kith.dev/certificate-ends";

/// What [`ANNOTATION_CERTIFICATE`] says of a certificate.
pub fn certificate_hash(certificate: &str) -> String {
    format!("{:016x}", xxh3_64(certificate.as_bytes()))
}

/// Where consumers outside reach one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAddress {
    /// Host name or address; absent: the address of the broker's node, which the pod knows.
    pub host: Option<String>,
    /// Port.
    pub port: i32,
}

/// The name of the Service of one broker for consumers outside.
pub fn external_name(plan: &Plan, index: u32) -> String {
    format!("{}-external-{index}", meta::component_name(&plan.name, Component::Kafka))
}

/// The Services for consumers outside, one per broker; none without external access.
pub fn external_services(plan: &Plan, managed: &ManagedPlan) -> Vec<Service> {
    let Some(access) = &managed.spec.external_access else { return Vec::new() };
    let name = meta::component_name(&plan.name, Component::Kafka);
    (0..managed.spec.brokers)
        .map(|index| {
            let mut selector = meta::selector_labels(&plan.name, Component::Kafka);
            selector.insert("statefulset.kubernetes.io/pod-name".to_owned(), format!("{name}-{index}"));
            let mut port = endpoints::port("external", EXTERNAL_PORT);
            port.node_port = access.node_port.and_then(|first| i32::try_from(u32::from(first) + index).ok());
            let exposure = endpoints::Exposure {
                kind: match access.kind {
                    ExternalAccessType::NodePort => "NodePort",
                    ExternalAccessType::LoadBalancer => "LoadBalancer",
                },
                traffic_policy: "Cluster",
                ..endpoints::Exposure::default()
            };
            let labels = meta::labels(&plan.name, Component::Kafka);
            let mut service = endpoints::exposed(external_name(plan, index), labels, selector, port, &exposure);
            // A broker that catches up leads partitions again before it is in sync with all, and nobody else answers for them.
            service.spec.get_or_insert_default().publish_not_ready_addresses = Some(true);
            service
        })
        .collect()
}

/// Where consumers outside reach each broker, as far as it is known. A load balancer that says nothing for a moment keeps the address
/// that stands in the brokers' configuration, `kept`: else each such moment would restart them.
pub fn external_addresses(
    plan: &Plan,
    managed: &ManagedPlan,
    services: &BTreeMap<String, Service>,
    kept: Option<&ConfigMap>,
) -> Vec<Option<ExternalAddress>> {
    let Some(access) = &managed.spec.external_access else { return Vec::new() };
    let kept = |index: u32| kept?.data.as_ref()?.get(&external_key(index));
    (0..managed.spec.brokers)
        .map(|index| {
            external_address(access, index, services.get(&external_name(plan, index)), kept(index).map(String::as_str))
        })
        .collect()
}

fn external_key(index: u32) -> String {
    format!("external-{index}")
}

fn external_address(
    access: &ExternalAccess,
    index: u32,
    service: Option<&Service>,
    kept: Option<&str>,
) -> Option<ExternalAddress> {
    match access.kind {
        ExternalAccessType::NodePort => {
            let port = service?.spec.as_ref()?.ports.as_ref()?.first()?.node_port?;
            Some(ExternalAddress { host: access.host(index), port })
        }
        ExternalAccessType::LoadBalancer => {
            let said = || balancer_names(ingresses(service?).first()?).into_iter().next();
            let host = access.host(index).or_else(said).or_else(|| kept.and_then(kept_balancer))?;
            Some(ExternalAddress { host: Some(host), port: EXTERNAL_PORT })
        }
    }
}

/// The host in an entry of the configuration that was made for a load balancer.
fn kept_balancer(entry: &str) -> Option<String> {
    let (host, port) = entry.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host != NODE && port.parse() == Ok(EXTERNAL_PORT)).then(|| host.to_owned())
}

fn ingresses(service: &Service) -> &[LoadBalancerIngress] {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default()
}

/// The names of one entry, the one to advertise first.
fn balancer_names(ingress: &LoadBalancerIngress) -> Vec<String> {
    [&ingress.hostname, &ingress.ip].into_iter().flatten().filter(|name| !name.is_empty()).cloned().collect()
}

/// Every host by which consumers outside may dial a broker, for the brokers' certificate: those that are advertised, and all names of the
/// load balancers. Sorted; nodes' own addresses are not among them, since pods move.
pub fn external_hosts(
    plan: &Plan,
    managed: &ManagedPlan,
    services: &BTreeMap<String, Service>,
    kept: Option<&ConfigMap>,
) -> Vec<String> {
    let addresses = external_addresses(plan, managed, services, kept);
    let mut hosts: Vec<String> = addresses.into_iter().flatten().filter_map(|address| address.host).collect();
    let access = managed.spec.external_access.as_ref();
    hosts.extend((0..managed.spec.brokers).filter_map(|index| access?.host(index)));
    if access.is_some_and(|a| a.kind == ExternalAccessType::LoadBalancer) {
        let services = (0..managed.spec.brokers).filter_map(|index| services.get(&external_name(plan, index)));
        hosts.extend(services.flat_map(ingresses).flat_map(balancer_names));
    }
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// The hosts in the brokers' certificate by which they are dialled inside; the last is the one that every component has.
pub fn inside_hosts(plan: &Plan) -> [String; 3] {
    let name = meta::component_name(&plan.name, Component::Kafka);
    let namespace = &plan.namespace;
    [
        format!("*.{name}.{namespace}.svc"),
        format!("*.{name}.{namespace}.svc.cluster.local"),
        meta::internal_name(&plan.cluster_name, Component::Kafka),
    ]
}

/// The brokers' names in DNS.
pub fn headless(plan: &Plan) -> Service {
    let name = meta::component_name(&plan.name, Component::Kafka);
    let ports = vec![endpoints::port("internal", INTERNAL_PORT), endpoints::port("controller", CONTROLLER_PORT)];
    let labels = meta::labels(&plan.name, Component::Kafka);
    // Controllers must find each other before any of them is ready.
    endpoints::headless(name, labels, meta::selector_labels(&plan.name, Component::Kafka), ports, true)
}

/// The id of the Kafka cluster: one per ChatCluster's data, so that a broker refuses the volume of another.
fn cluster_id(plan: &Plan) -> String {
    // The first bit is cleared: an id that begins with a hyphen would be taken for an option.
    let id = xxh3_128(plan.data_uid.as_bytes()) & (u128::MAX >> 1);
    BASE64_URL_SAFE_NO_PAD.encode(id.to_be_bytes())
}

fn settings(plan: &Plan, managed: &ManagedPlan) -> String {
    let log = &plan.event_log;
    let brokers = managed.spec.brokers;
    let voters: Vec<String> = (0..brokers).map(|i| format!("{i}@{}:{CONTROLLER_PORT}", plan.broker_host(i))).collect();
    let external = managed.spec.external_access.as_ref();
    let (listener, protocol) = match external.map(|e| e.security) {
        None => (String::new(), ""),
        Some(ListenerSecurity::Plaintext) => (format!(",EXTERNAL://:{EXTERNAL_PORT}"), ",EXTERNAL:PLAINTEXT"),
        Some(ListenerSecurity::MutualTLS) => (format!(",EXTERNAL://:{EXTERNAL_PORT}"), ",EXTERNAL:SSL"),
    };
    format!(
        "# Made by kith-operator; changes are overwritten. The start script adds what differs per broker.
process.roles=broker,controller
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listeners=INTERNAL://:{INTERNAL_PORT},CONTROLLER://:{CONTROLLER_PORT}{listener}
listener.security.protocol.map=INTERNAL:SSL,CONTROLLER:SSL{protocol}
ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location=/etc/kith/tls/keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=/etc/kith/tls/ca.crt
log.dirs=/data/log
auto.create.topics.enable=false
default.replication.factor={replication}
min.insync.replicas={min_insync}
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=16
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={min_insync}
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr={min_insync}
unclean.leader.election.enable=false
group.initial.rebalance.delay.ms=500
log.retention.check.interval.ms=60000
controlled.shutdown.enable=true
",
        voters = voters.join(","),
        replication = log.replication,
        min_insync = log.min_insync,
    )
}

/// The brokers' configuration. `addresses` holds one entry per broker when there is external access; a broker whose address is not known
/// yet listens outside and advertises nothing there, so that a load balancer finds it well.
pub fn config_map(
    plan: &Plan,
    managed: &ManagedPlan,
    addresses: &[Option<ExternalAddress>],
    enforcement: Enforcement,
) -> ConfigMap {
    let settings = settings(plan, managed) + &kafka_access::settings(plan, enforcement);
    let mut data: BTreeMap<String, String> =
        [(kafka_access::FILE.to_owned(), settings), ("start.sh".to_owned(), START.to_owned())].into();
    for (index, address) in (0_u32..).zip(addresses) {
        let Some(address) = address else { continue };
        let host = address.host.as_deref().unwrap_or(NODE);
        data.insert(external_key(index), format!("{}:{}", bracketed(host), address.port));
    }
    ConfigMap {
        metadata: meta::meta(meta::kafka_config_map(&plan.name), meta::labels(&plan.name, Component::Kafka)),
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn bracketed(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => host.to_owned(),
    }
}

/// The brokers. `certificate` is the certificate they run with: Kafka does not take up a renewed one by itself, so a new one rolls them.
pub fn stateful_set(
    plan: &Plan,
    managed: &ManagedPlan,
    config: &ConfigMap,
    certificate: &str,
    claim_size: Option<&Quantity>,
) -> StatefulSet {
    let name = meta::component_name(&plan.name, Component::Kafka);
    let labels = meta::labels(&plan.name, Component::Kafka);
    let selector = meta::selector_labels(&plan.name, Component::Kafka);
    let mut hashed = String::new();
    for (key, value) in config.data.iter().flatten() {
        hashed.push_str(&format!("{key}\n{value}\n"));
    }
    let annotations = [
        (names::ANNOTATION_CONFIG_HASH.to_owned(), format!("{:016x}", xxh3_64(hashed.as_bytes()))),
        (ANNOTATION_CERTIFICATE.to_owned(), certificate_hash(certificate)),
    ];
    let ends = Certificate::first("", certificate.as_bytes(), Renewed::ByOperator);
    let ends = ends.map(|found| (ANNOTATION_CERTIFICATE_ENDS.to_owned(), found.ends_s.to_string()));
    let mut template = pod::template(pod::Parts {
        labels: labels.clone(),
        selector: selector.clone(),
        annotations: annotations.into_iter().chain(ends).collect(),
        settings: &managed.pod,
        service_account: name.clone(),
        container: container(plan, managed),
        volumes: vec![
            pod::config_volume("config", meta::kafka_config_map(&plan.name)),
            pod::secret_volume("tls", meta::tls_secret(&plan.name, Component::Kafka), &["ca.crt", "keystore.pem"]),
            pod::scratch_volume("tmp", "64Mi"),
        ],
        grace_s: GRACE_S,
    });
    // An open port says little of a broker: it counts as ready, for drains too, when it has caught up. The operator sees that and says it.
    template.spec.get_or_insert_default().readiness_gates =
        Some(vec![PodReadinessGate { condition_type: names::CONDITION_IN_SYNC.to_owned() }]);
    StatefulSet {
        metadata: meta::meta(name.clone(), labels.clone()),
        spec: Some(StatefulSetSpec {
            persistent_volume_claim_retention_policy: Some(retention(&managed.spec.volume)),
            pod_management_policy: Some("Parallel".to_owned()),
            replicas: i32::try_from(managed.spec.brokers).ok(),
            revision_history_limit: Some(3),
            selector: meta::selector(selector),
            service_name: Some(name),
            template,
            // A broker is restarted only while all copies are in sync, so no pod is replaced by the StatefulSet on its own.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            volume_claim_templates: Some(vec![claim(plan, &managed.spec.volume, claim_size, labels)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// How many brokers may be evicted: one at a time, and only while all others are ready, which means in sync.
pub fn budget(plan: &Plan) -> PodDisruptionBudget {
    let name = meta::component_name(&plan.name, Component::Kafka);
    let labels = meta::labels(&plan.name, Component::Kafka);
    endpoints::disruption_budget(name, labels, meta::selector_labels(&plan.name, Component::Kafka), 1, false)
}

fn container(plan: &Plan, managed: &ManagedPlan) -> Container {
    let heap = managed.heap >> 20;
    let mut ports = vec![pod::port("internal", INTERNAL_PORT), pod::port("controller", CONTROLLER_PORT)];
    if managed.spec.external_access.is_some() {
        ports.push(pod::port("external", EXTERNAL_PORT));
    }
    Container {
        name: "kafka".to_owned(),
        image: Some(plan.images.kafka.clone()),
        image_pull_policy: Some(plan.pull_policy.to_owned()),
        command: Some(vec!["sh".to_owned(), "/etc/kafka/start.sh".to_owned()]),
        env: Some(vec![
            pod::env_field("POD_NAME", "metadata.name"),
            pod::env_field("HOST_IP", "status.hostIP"),
            pod::env(
                "BROKER_DOMAIN",
                format!("{}.{}.svc", meta::component_name(&plan.name, Component::Kafka), plan.namespace),
            ),
            pod::env("CLUSTER_ID", cluster_id(plan)),
            pod::env("KAFKA_HEAP_OPTS", format!("-Xms{}m -Xmx{heap}m", heap.min(256))),
            pod::env("LOG_DIR", "/tmp/logs"),
        ]),
        ports: Some(ports),
        liveness_probe: Some(pod::tcp_probe("internal", 10, 6)),
        readiness_probe: Some(pod::tcp_probe("internal", 5, 2)),
        startup_probe: Some(pod::tcp_probe("internal", 1, START_S)),
        volume_mounts: Some(vec![
            pod::mount("config", "/etc/kafka"),
            pod::writable(DATA, "/data"),
            pod::mount("tls", "/etc/kith/tls"),
            pod::writable("tmp", "/tmp"),
        ]),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::{KafkaPlan, tests::plan};

    fn managed(plan: &Plan) -> &ManagedPlan {
        let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { panic!("a managed event log") };
        managed
    }

    fn balancer(name: &str, ingress: &serde_json::Value) -> (String, Service) {
        let service = json!({"metadata": {"name": name}, "status": {"loadBalancer": {"ingress": ingress}}});
        (name.to_owned(), serde_json::from_value(service).unwrap())
    }

    fn behind_balancers(more: &str) -> Plan {
        let mut access = json!({"type": "LoadBalancer"});
        if !more.is_empty() {
            access["advertisedHost"] = more.into();
        }
        plan(&json!({"eventLog": {"managed": {"externalAccess": access}}}))
    }

    #[test]
    fn brokers_are_configured_with_the_addresses_that_are_known_and_keep_them() {
        let plan = behind_balancers("");
        let managed = managed(&plan);
        let mut services: BTreeMap<_, _> = [
            balancer("demo-kafka-external-0", &json!([{"ip": "192.0.2.7", "hostname": "lb.example"}])),
            balancer("demo-kafka-external-2", &json!([{"ip": "2001:db8::1"}])),
        ]
        .into();
        let addresses = external_addresses(&plan, managed, &services, None);
        assert_eq!(addresses.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        let map = config_map(&plan, managed, &addresses, Enforcement::Enforced);
        let data = map.data.clone().unwrap();
        assert_eq!(data["external-0"], "lb.example:9094");
        assert_eq!(data["external-2"], "[2001:db8::1]:9094");
        assert!(!data.contains_key("external-1"));
        assert_eq!(external_hosts(&plan, managed, &services, None), ["192.0.2.7", "2001:db8::1", "lb.example"]);
        services.clear();
        assert_eq!(external_addresses(&plan, managed, &services, Some(&map)), addresses, "said once, kept");
        assert_eq!(external_hosts(&plan, managed, &services, Some(&map)), ["2001:db8::1", "lb.example"]);
    }

    #[test]
    fn an_advertised_host_is_known_at_once_and_differs_by_broker() {
        let plan = behind_balancers("kafka-{index}.example.com");
        let hosts = external_hosts(&plan, managed(&plan), &BTreeMap::new(), None);
        assert_eq!(hosts, ["kafka-0.example.com", "kafka-1.example.com", "kafka-2.example.com"]);
    }

    #[test]
    fn an_address_of_a_node_is_not_taken_for_a_load_balancers() {
        assert_eq!(kept_balancer("HOST:30094"), None);
        assert_eq!(kept_balancer("nodes.example:30094"), None);
        assert_eq!(kept_balancer("lb.example:9094").as_deref(), Some("lb.example"));
    }
}
