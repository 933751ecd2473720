//! The event log of a ChatCluster: managed or external Kafka.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{
    CaSecretRef, Duration, LocalRef, PodSettings, Quantity, Resources, Volume, default_is_empty_object,
};

/// Brokers of a managed event log that says no number.
pub const BROKERS_DEFAULT: u32 = 3;
/// The largest part of a broker's memory limit, in per cent, that its Java heap may take.
pub const HEAP_PERCENT: u64 = 75;

/// The event log. Say `managed` to have Kafka run for you, or `external` to use your own. Neither means managed with
/// three brokers. Which of the two it is, is fixed at creation.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!(has(self.managed) && has(self.external))",
    "eventLog takes exactly one of managed and external"
))]
#[x_kube(validation = (
    "has(self.external) == has(oldSelf.external)",
    "eventLog cannot change between managed and external: create a new ChatCluster"
))]
#[x_kube(validation = (
    "has(self.external) || (has(self.managed) ? self.managed.brokers : 3) == (has(oldSelf.managed) ? oldSelf.managed.brokers : 3)",
    "managed.brokers is fixed at creation (3 when nothing was said)"
))]
// The volume's own rules see nothing where `managed` is taken away first and said anew later.
#[x_kube(validation = (
    "(has(self.managed) && has(self.managed.volume.storageClassName) ? self.managed.volume.storageClassName : '') == (has(oldSelf.managed) && has(oldSelf.managed.volume.storageClassName) ? oldSelf.managed.volume.storageClassName : '')",
    "managed.volume.storageClassName is fixed at creation"
))]
#[x_kube(validation = (
    "!isQuantity(has(self.managed) ? self.managed.volume.size : '10Gi') || !isQuantity(has(oldSelf.managed) ? oldSelf.managed.volume.size : '10Gi') || !quantity(has(self.managed) ? self.managed.volume.size : '10Gi').isLessThan(quantity(has(oldSelf.managed) ? oldSelf.managed.volume.size : '10Gi'))",
    "managed.volume.size (10Gi when nothing was said): volumes only grow"
))]
pub struct EventLogSpec {
    /// Number of partitions of the topic of events, from 1 to 1024, at most storage.partitions. It bounds how many
    /// consumers share the work. Fixed at creation, since the order of events hangs on it.
    #[serde(default = "partitions")]
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = ("self == oldSelf", "eventLog.partitions is fixed at creation"))]
    pub partitions: u32,

    /// How long events stay in the topics before they are deleted, for example 168h. At least 1h. A consumer that stays
    /// away longer loses events. A change reaches the topics within a minute, and what others change there is put back.
    #[serde(default = "retention")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || duration(self) >= duration('1h')",
        "retention must be 1h or longer"
    ))]
    pub retention: Duration,

    /// Kafka that the operator runs for this ChatCluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedEventLog>,

    /// Kafka that somebody else runs, for example Strimzi or a cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalEventLog>,
}

/// Which Kafka the event log uses, with defaults resolved.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once per pass and taken apart at once")]
pub enum EventLogVariant {
    /// Run by the operator.
    Managed(ManagedEventLog),
    /// Run by somebody else.
    External(ExternalEventLog),
}

impl EventLogSpec {
    /// Which Kafka it is.
    pub fn variant(&self) -> EventLogVariant {
        match &self.external {
            Some(external) => EventLogVariant::External(external.clone()),
            None => EventLogVariant::Managed(self.managed.clone().unwrap_or_default()),
        }
    }

    /// Copies of each topic.
    pub fn replication_factor(&self) -> u32 {
        match self.variant() {
            EventLogVariant::Managed(managed) => managed.brokers.min(3),
            EventLogVariant::External(external) => external.replication_factor,
        }
    }

    /// Copies that must have an event before the broker acknowledges it.
    pub fn min_insync(&self) -> u32 {
        if self.replication_factor() >= 3 { 2 } else { 1 }
    }
}

/// Kafka that the operator runs, in KRaft mode.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.externalAccess) || self.externalAccess.type != 'LoadBalancer' || !has(self.externalAccess.advertisedHost) || self.brokers == 1 || self.externalAccess.advertisedHost.contains('{index}')"
)
.message("several brokers behind load balancers cannot share one advertisedHost: put {index} into it, for example kafka-{index}.example.com")
.field_path(".externalAccess"))]
#[x_kube(validation = Rule::new(
    "!has(self.heapSize) || !has(self.pod) || !has(self.pod.resources) || !has(self.pod.resources.limits) || !('memory' in self.pod.resources.limits) || !isQuantity(self.heapSize) || !isQuantity(string(self.pod.resources.limits['memory'])) || quantity(self.heapSize).asApproximateFloat() <= 0.75 * quantity(string(self.pod.resources.limits['memory'])).asApproximateFloat()"
)
.message("heapSize may be at most 75 per cent of pod.resources.limits.memory: the rest is needed outside of the heap")
.field_path(".heapSize"))]
pub struct ManagedEventLog {
    /// Number of brokers: 1, or 3 to 9. One broker is for trials: it survives no failure. With three or more every event
    /// has three copies, two of which must hold it before it counts, and brokers are restarted and evicted one at a time, each only
    /// while all copies are in sync. A broker whose volume is lost starts anew with an empty one and copies everything from the
    /// others, if they hold it all. Fixed at creation.
    #[serde(default = "brokers")]
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(validation = ("self != 2", "brokers must be 1 or at least 3: two brokers survive no failure"))]
    pub brokers: u32,

    /// The volume of each broker.
    #[serde(default)]
    pub volume: Volume,

    /// Java heap of each broker, for example 512Mi; at least 256Mi and at most 75 per cent of the memory limit. Omitted: half of the
    /// memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = (
        "!isQuantity(self) || !quantity(self).isLessThan(quantity('256Mi'))",
        "heapSize must be at least 256Mi"
    ))]
    pub heap_size: Option<Quantity>,

    /// A listener for consumers outside of the Kubernetes cluster. Omitted: none. A broker whose address outside is not known yet
    /// serves inside all the same. Each address that is given later restarts all brokers once, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_access: Option<ExternalAccess>,

    /// Settings of the broker pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

impl ManagedEventLog {
    /// CPU and memory of a broker that `pod` gives none.
    pub fn default_resources() -> Resources {
        Resources::of("250m", "1Gi", "1Gi")
    }

    /// The largest Java heap in bytes, given the broker's resources: 75 per cent of the memory limit; none without a limit.
    pub fn heap_ceiling(resources: &Resources) -> Option<u64> {
        Some(resources.memory_bytes()? / 100 * HEAP_PERCENT)
    }
}

/// A listener of each broker for consumers outside of the Kubernetes cluster, one Service per broker.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.nodePort) || self.type == 'NodePort'"
)
.message("nodePort needs type NodePort")
.field_path(".nodePort"))]
pub struct ExternalAccess {
    /// NodePort: a port of every node per broker. LoadBalancer: a load balancer per broker.
    #[serde(rename = "type", default)]
    pub kind: ExternalAccessType,
    /// Node port of the first broker; the next brokers get the ports after it. Omitted: Kubernetes chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65526))]
    pub node_port: Option<u16>,
    /// Host name or address under which consumers reach the nodes, or the load balancers; `{index}` in it becomes the number of the
    /// broker, from 0, for example kafka-{index}.example.com. Load balancers of several brokers need that, since all of them listen on
    /// the same port. Omitted: the address of the broker's node, or of its load balancer. It stands in the brokers' certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = (
        "self.matches('^([A-Za-z0-9]|[{]index[}])(([-A-Za-z0-9.:]|[{]index[}])*([A-Za-z0-9]|[{]index[}]))?$')",
        "advertisedHost must be a host name or an address, without a scheme or a port; {index} stands for the number of the broker"
    ))]
    pub advertised_host: Option<String>,
    /// MutualTLS: consumers show a certificate of this ChatCluster's CA and read what their business line may.
    /// Plaintext: everyone who reaches the port reads all events; for trials only.
    #[serde(default)]
    pub security: ListenerSecurity,
}

/// What stands for the number of a broker in `advertisedHost`.
const INDEX: &str = "{index}";

impl ExternalAccess {
    /// Host name or address under which consumers reach this broker, where the spec says one.
    pub fn host(&self, broker: u32) -> Option<String> {
        self.advertised_host.as_ref().map(|host| host.replace(INDEX, &broker.to_string()))
    }

    /// Whether so many brokers can be told apart from outside.
    pub fn tells_apart(&self, brokers: u32) -> bool {
        let shared = self.advertised_host.as_ref().is_some_and(|host| !host.contains(INDEX));
        brokers == 1 || self.kind == ExternalAccessType::NodePort || !shared
    }
}

/// How brokers are reached from outside.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ExternalAccessType {
    /// On a port of every node per broker.
    #[default]
    NodePort,
    /// Through a load balancer per broker.
    LoadBalancer,
}

/// Who may use the external listener.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ListenerSecurity {
    /// Holders of a certificate of this ChatCluster's CA.
    #[default]
    MutualTLS,
    /// Everyone, to read.
    Plaintext,
}

/// Kafka that somebody else runs.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalEventLog {
    /// Brokers to ask first, each as host:port.
    #[schemars(length(min = 1, max = 16), inner(length(max = 260)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = (
        "self.all(server, server.matches('^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?:[0-9]{1,5}$'))",
        "every entry of bootstrapServers must be host:port"
    ))]
    pub bootstrap_servers: Vec<String>,
    /// TLS to the brokers. Omitted: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalTls>,
    /// User name and password. Omitted: none. Where a cloud offers OAUTHBEARER or AWS MSK IAM alone it cannot be used: those are not supported;
    /// MSK takes SCRAM-SHA-512 or client certificates besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
    /// Copies of each topic that is created, from 1 to 9. With three or more, two must hold an event before it counts.
    /// Fixed at creation.
    #[serde(default = "replication_factor")]
    #[schemars(range(min = 1, max = 9))]
    #[x_kube(validation = (
        "self == oldSelf",
        "external.replicationFactor is fixed at creation: the copies of topics that exist are changed with the tools of your Kafka"
    ))]
    pub replication_factor: u32,
}

/// TLS to external brokers.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalTls {
    /// Certificates that the brokers' certificates must be signed by. Omitted: the public authorities of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaSecretRef>,
    /// Secret of type kubernetes.io/tls with the certificate that Kith shows to the brokers. Omitted: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<LocalRef>,
}

/// User name and password for external brokers.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// How the password is proved.
    #[serde(default)]
    pub mechanism: SaslMechanism,
    /// Secret with the keys `username` and `password`.
    pub secret_ref: LocalRef,
}

/// How a password is proved to a broker.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum SaslMechanism {
    /// The password itself is sent; use TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// By a challenge with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// By a challenge with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// As Kafka clients say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

default_is_empty_object!(EventLogSpec, ManagedEventLog, ExternalAccess);

fn partitions() -> u32 {
    32
}

fn retention() -> Duration {
    "168h".into()
}

fn brokers() -> u32 {
    BROKERS_DEFAULT
}

fn replication_factor() -> u32 {
    3
}
