//! What the operator reports about a ChatCluster. Only what changes rarely: live numbers are metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kith_platform::{Service, in_order, listed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator found, as of observedGeneration.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ChatClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Degraded; per layer StorageReady, EventLogReady, LogicReady, AccessReady; and for whoever is on call
    /// MemoryPressure, DiskPressure, EventLogLag, CertificateExpiring.
    #[schemars(schema_with = "crate::conditions::schema")]
    pub conditions: Vec<Condition>,
    /// The version of Kith that runs. Adopted at creation when the spec names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The images that run. Adopted together with the version, so that an operator with other images restarts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// The name in topics and tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// The UID that volumes and topics carry: this object's own, or the restored one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// The storage layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
    /// The event log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_log: Option<EventLogStatus>,
    /// A hash of the pod templates of the services below access, from when all their pods are of these templates and serve until they are
    /// to have others. A Gateway changes its pods only while this is the hash that its own settings follow from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(description = rolled_out())]
    pub rolled_out: Option<String>,
    /// Where to connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
}

/// What is said of the field of that name: it names the services.
fn rolled_out() -> String {
    let below = in_order(Service::ALL.iter().copied().filter(|service| service.is_below_access()));
    format!(
        "A hash of the pod templates of {}, from when all their pods are of these templates and serve until they are to have others. A \
         Gateway changes its pods only while this is the hash that its own settings follow from.",
        listed(below.into_iter().map(Service::name))
    )
}

/// The images of a ChatCluster's pods.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Images {
    /// The services.
    pub kith: String,
    /// The storage engine.
    pub valkey: String,
    /// The managed event log.
    pub kafka: String,
}

/// The storage layer.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageStatus {
    /// StorageShards that the operator keeps for this ChatCluster, those being emptied included.
    pub shards: u32,
    /// StorageShards that are whole: a primary, all replicas in step, all functions loaded. Hand-made ones included.
    pub ready_shards: u32,
    /// Hand-made StorageShards that belong to this ChatCluster besides those that the operator keeps.
    pub extra_shards: u32,
    /// Slots that a shard owns and serves, of 16384.
    pub slots: u32,
    /// The function library that is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Partitions into which the data is cut, as written into the engine at creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
}

/// Whose Kafka the event log uses.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum EventLogKind {
    /// Run by the operator.
    Managed,
    /// Run by somebody else.
    External,
}

/// The event log.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct EventLogStatus {
    /// Whose Kafka it is.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<EventLogKind>,
    /// Bootstrap addresses that the services use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<String>,
    /// Partitions of the topic of events, as fixed at creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// The topic of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// Where to connect.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// Short-connection API of the first ready Gateway, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// WebSocket of the first ready Gateway, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<String>,
    /// ImBusiness, as host:port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub business: Option<String>,
    /// Kafka bootstrap addresses for consumers outside, else for those inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<String>,
}
