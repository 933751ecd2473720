//! Names, labels and metadata of everything that belongs to a ChatCluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kith_crds::names;
use kith_platform::Service;
use kube::api::ObjectMeta;

use super::versions;

/// The parts of a platform that run in pods, and the operator as a client of them. Whatever is rendered for each of them stands in their order:
/// that of the platform's table first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// A service.
    Service(Service),
    /// The storage engine.
    Valkey,
    /// The managed event log.
    Kafka,
    /// The operator, towards Valkey and Kafka.
    Operator,
}

impl Component {
    /// Reads and writes chat data.
    pub const STORAGE: Self = Self::Service(Service::Storage);
    /// Works off the event log.
    pub const TASKS: Self = Self::Service(Service::Tasks);
    /// Knows who is online.
    pub const SESSIONS: Self = Self::Service(Service::Sessions);
    /// ImBusiness.
    pub const BUSINESS: Self = Self::Service(Service::Business);
    /// Short connections.
    pub const API: Self = Self::Service(Service::Api);
    /// Long connections.
    pub const GATEWAY: Self = Self::Service(Service::Gateway);

    /// Everyone with a certificate, in whatever version.
    pub fn all() -> impl Iterator<Item = Self> {
        Service::ALL.iter().copied().map(Self::Service).chain([Self::Valkey, Self::Kafka, Self::Operator])
    }

    /// Those that a ChatCluster of this version has.
    pub fn of(version: &str) -> impl Iterator<Item = Self> {
        Self::all().filter(move |component| component.service().is_none_or(|service| versions::has(version, service)))
    }

    /// The service that it is, if it is one.
    pub const fn service(self) -> Option<Service> {
        match self {
            Self::Service(service) => Some(service),
            Self::Valkey | Self::Kafka | Self::Operator => None,
        }
    }

    /// As labels, certificates and Secrets name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service(service) => service.name(),
            Self::Valkey => "valkey",
            Self::Kafka => "kafka",
            Self::Operator => kith_platform::OPERATOR,
        }
    }
}

impl From<Service> for Component {
    fn from(service: Service) -> Self {
        Self::Service(service)
    }
}

/// Labels of an object of `component`.
pub fn labels(cluster: &str, component: Component) -> BTreeMap<String, String> {
    let mut labels = selector_labels(cluster, component);
    labels.insert(names::LABEL_MANAGED_BY.to_owned(), names::FIELD_MANAGER.to_owned());
    labels
}

/// Labels of an object of the ChatCluster as a whole.
pub fn cluster_labels(cluster: &str) -> BTreeMap<String, String> {
    [(names::LABEL_NAME, "kith"), (names::LABEL_INSTANCE, cluster), (names::LABEL_MANAGED_BY, names::FIELD_MANAGER)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

/// Labels that select the pods of `component`. They can never change.
pub fn selector_labels(cluster: &str, component: Component) -> BTreeMap<String, String> {
    [(names::LABEL_NAME, "kith"), (names::LABEL_INSTANCE, cluster), (names::LABEL_COMPONENT, component.name())]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

/// A selector of exactly these labels.
pub fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

/// The list selector of everything that the operator made for a ChatCluster.
pub fn owned_selector(cluster: &str) -> String {
    format!("{}={},{}={cluster}", names::LABEL_MANAGED_BY, names::FIELD_MANAGER, names::LABEL_INSTANCE)
}

/// Metadata with name and labels; `apply` adds the namespace and the owner.
pub fn meta(name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() }
}

/// `<cluster>-<component>`: Deployment, Service and ServiceAccount of a component.
pub fn component_name(cluster: &str, component: Component) -> String {
    format!("{cluster}-{}", component.name())
}

/// Secret of a component's certificate.
pub fn tls_secret(cluster: &str, component: Component) -> String {
    format!("{cluster}-{}-tls", component.name())
}

/// The name that a component's certificate carries and its clients verify (`kith_kit::tls::server_name`).
pub fn internal_name(cluster_name: &str, component: Component) -> String {
    format!("{}.{cluster_name}.kith.internal", component.name())
}

/// Secret of the certificate authority.
pub fn ca_secret(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// Secret of the keys that sign client tokens.
pub fn token_keys_secret(cluster: &str) -> String {
    format!("{cluster}-token-keys")
}

/// Secret of the engine's users.
pub fn engine_users_secret(cluster: &str) -> String {
    format!("{cluster}-valkey-users")
}

/// The business line that every ChatCluster has.
pub const DEFAULT_LINE: &str = "default";

/// Secret of the first business line's client certificate.
pub fn business_client_secret(cluster: &str) -> String {
    format!("{cluster}-business-client")
}

/// ConfigMap of the Deployment `name` of a service.
pub fn config_map(name: &str) -> String {
    format!("{name}-config")
}

/// ConfigMap of the storage engine.
pub fn valkey_config_map(cluster: &str) -> String {
    format!("{cluster}-valkey-config")
}

/// ConfigMap of the brokers.
pub fn kafka_config_map(cluster: &str) -> String {
    format!("{cluster}-kafka-config")
}

/// ConfigMap that keeps the last spec that could be used.
pub fn last_spec_config_map(cluster: &str) -> String {
    format!("{cluster}-last-spec")
}

/// The number of a pod in its StatefulSet.
pub fn ordinal(pod: &str) -> Option<u32> {
    pod.rsplit_once('-')?.1.parse().ok()
}

/// StatefulSet and headless Service of a StorageShard.
pub fn shard_name(shard: &str) -> String {
    format!("{shard}-valkey")
}
