//! `ChatCluster`: the whole platform as one object.

mod event_log;
mod services;
mod settings;
mod status;
mod storage;

pub use event_log::{
    BROKERS_DEFAULT, EventLogSpec, EventLogVariant, ExternalAccess, ExternalAccessType, ExternalEventLog, ExternalTls,
    HEAP_PERCENT, KafkaSasl, ListenerSecurity, ManagedEventLog, SaslMechanism,
};
pub use services::{BusinessExposure, BusinessSpec, ServiceSpec};
pub use settings::ServicesSpec;
pub use status::{ChatClusterStatus, Endpoints, EventLogKind, EventLogStatus, Images, StorageStatus};
pub use storage::{Durability, Fsync, MAX_MEMORY_PERCENT, StorageSpec, WEIGHT_DEFAULT, WhenDegraded};

use kube::{CustomResource, KubeSchema, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::shared::{Duration, ImagePullPolicy, PodSettings, default_is_empty_object};

/// The whole chat platform: storage shards, event log and services. Everything has a default, so `spec: {}` makes a
/// platform with one shard of three copies and a managed event log of three brokers. A Gateway opens it to clients.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "kith.dev",
    version = "v1alpha1",
    kind = "ChatCluster",
    namespaced,
    status = "ChatClusterStatus",
    derive = "PartialEq",
    shortname = "kcc",
    category = "kith",
    scale(spec_replicas_path = ".spec.storage.shards", status_replicas_path = ".status.storage.shards"),
    doc = "A ChatCluster is a whole chat platform: storage shards on Valkey, an event log on Kafka, and the services between them. Create a Gateway to let clients in.",
    validation = (
        "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name of a ChatCluster has at most 40 lower-case letters, digits and hyphens and begins with a letter, since Services and topics are named after it"
    ),
    validation = Rule::new(
        "(has(self.spec.clusterName) ? self.spec.clusterName : self.metadata.name) == (has(oldSelf.spec.clusterName) ? oldSelf.spec.clusterName : oldSelf.metadata.name)"
    )
    .message("clusterName is fixed at creation, since topics are named after it")
    .field_path(".spec.clusterName"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether every layer serves."),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not, in a word."),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.storage.shards", description = "Storage shards that exist."),
    printcolumn(name = "Shards Ready", type_ = "integer", json_path = ".status.storage.readyShards", description = "Storage shards that are whole."),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.storage.replicas", description = "Copies of each shard besides its primary."),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "The version of Kith that runs."),
    printcolumn(name = "API", type_ = "string", json_path = ".status.endpoints.api", description = "Where clients call."),
    printcolumn(name = "WebSocket", type_ = "string", json_path = ".status.endpoints.websocket", description = "Where clients connect.", priority = "1"),
    printcolumn(name = "Business", type_ = "string", json_path = ".status.endpoints.business", description = "Where business lines call ImBusiness.", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "Why it is ready or not, in a sentence.", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation.")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.eventLog.partitions <= self.storage.partitions"
)
.message("eventLog.partitions may not be above storage.partitions: the rest would stay empty")
.field_path(".eventLog.partitions"))]
#[x_kube(validation = Rule::new(
    "has(self.restoreFrom) == has(oldSelf.restoreFrom) && (!has(self.restoreFrom) || self.restoreFrom == oldSelf.restoreFrom)"
)
.message("restoreFrom is fixed at creation: delete the ChatCluster (its volumes are kept by reclaimPolicy Retain) and create it anew")
.field_path(".restoreFrom"))]
pub struct ChatClusterSpec {
    /// Version of Kith to run, for example 0.1.0. Omitted: the operator's version at creation, kept in
    /// status.version from then on, so that a new operator restarts nothing. An operator runs its own version and the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = (
        "self.matches('^[0-9]+[.][0-9]+[.][0-9]+(-[0-9A-Za-z.-]+)?$')",
        "version must be three numbers, for example 0.1.0"
    ))]
    pub version: Option<String>,

    /// Name of the platform in topics and tokens. Omitted: the object's own name. At most 40 lower-case letters, digits
    /// and hyphens, beginning with a letter. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = (
        "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "clusterName has lower-case letters, digits and hyphens only and begins with a letter"
    ))]
    pub cluster_name: Option<String>,

    /// When images are pulled.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Settings of all pods of the platform. A component's own settings win over these, field by field.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,

    /// The storage layer: messages, conversations and users on Valkey shards.
    #[serde(default)]
    pub storage: StorageSpec,

    /// The event log: everything that storage changed, in order, on Kafka. Omitted: a managed one with three brokers.
    #[serde(default)]
    pub event_log: EventLogSpec,

    /// The services between the layers: how many pods of each, and their settings.
    #[serde(default)]
    pub services: ServicesSpec,

    /// Client tokens.
    #[serde(default)]
    pub auth: AuthSpec,

    /// Adopts the retained volumes and topics of a deleted ChatCluster. Without it, volumes that hold another
    /// ChatCluster's data are left untouched and reported as ForeignData. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_from: Option<RestoreFrom>,
}

default_is_empty_object!(ChatClusterSpec, AuthSpec);

impl ChatClusterSpec {
    /// The pod settings of a component: its own, and the platform's where it has none.
    pub fn pod_settings(&self, own: &PodSettings) -> PodSettings {
        own.or(&self.pod)
    }
}

impl ChatCluster {
    /// The name in topics and tokens.
    pub fn cluster_name(&self) -> String {
        self.spec.cluster_name.clone().unwrap_or_else(|| self.name_any())
    }

    /// The UID that the data carries: this object's own, or the one it restores.
    pub fn data_uid(&self) -> Option<String> {
        self.spec.restore_from.as_ref().map(|from| from.cluster_uid.clone()).or_else(|| self.uid())
    }

    /// The version to run: the spec's, else the one adopted before, else `operator_version`.
    pub fn wanted_version<'a>(&'a self, operator_version: &'a str) -> &'a str {
        let adopted = self.status.as_ref().and_then(|status| status.version.as_deref());
        self.spec.version.as_deref().or(adopted).unwrap_or(operator_version)
    }
}

/// Client tokens: JSON Web Tokens that ImBusiness issues and every Gateway checks.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// How long a client token is valid when the business line asks for nothing shorter; longer ones are refused. From 1m to 8760h.
    #[serde(default = "token_ttl")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || (duration(self) >= duration('1m') && duration(self) <= duration('8760h'))",
        "tokenTtl must lie between 1m and 8760h"
    ))]
    pub token_ttl: Duration,
    /// How often the key that signs tokens is replaced. Tokens of the key before stay valid until they expire. At least 1h.
    #[serde(default = "key_rotation_interval")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || duration(self) >= duration('1h')",
        "keyRotationInterval must be 1h or longer"
    ))]
    pub key_rotation_interval: Duration,
}

fn token_ttl() -> Duration {
    "24h".into()
}

fn key_rotation_interval() -> Duration {
    "720h".into()
}

/// The deleted ChatCluster whose data is adopted.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreFrom {
    /// UID of the deleted ChatCluster, as the annotation kith.dev/cluster-uid of its volume claims says.
    #[schemars(length(max = 36))]
    #[x_kube(validation = (
        "self.matches('^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')",
        "clusterUid must be a UID, for example 0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11"
    ))]
    pub cluster_uid: String,
}

#[cfg(test)]
mod tests;
