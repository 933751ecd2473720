//! `StorageShard`: one Valkey primary with its replicas.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chatcluster::WEIGHT_DEFAULT;
use crate::shared::LocalRef;

/// One shard of a ChatCluster's storage. The operator makes as many as `spec.storage.shards` says; one made by hand adds
/// a shard that the operator never drains or deletes on its own.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[kube(
    group = "kith.dev",
    version = "v1alpha1",
    kind = "StorageShard",
    namespaced,
    status = "StorageShardStatus",
    derive = "PartialEq",
    shortname = "kss",
    category = "kith",
    selectable = ".spec.clusterRef.name",
    doc = "A StorageShard is one Valkey primary with its replicas, and the slots that it owns. The operator makes those of a ChatCluster; one made by hand adds a shard.",
    validation = (
        "self.metadata.name.size() <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name of a StorageShard has at most 45 lower-case letters, digits and hyphens and begins with a letter, since pods and Services are named after it"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the shard is whole and serves."),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not, in a word."),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The ChatCluster."),
    printcolumn(name = "Primary", type_ = "string", json_path = ".status.primary", description = "The pod that takes writes."),
    printcolumn(name = "Members", type_ = "integer", json_path = ".status.readyMembers", description = "Copies that are in step, the primary included."),
    printcolumn(name = "Slots", type_ = "integer", json_path = ".status.slots", description = "Slots that the shard owns."),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".spec.weight", description = "Its share of the data, against the other shards' weights."),
    printcolumn(name = "Draining", type_ = "boolean", json_path = ".spec.draining", description = "Whether it is being emptied.", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "Why it is ready or not, in a sentence.", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation.")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.index) == has(oldSelf.index) && (!has(self.index) || self.index == oldSelf.index)"
)
.message("index is fixed at creation")
.field_path(".index"))]
pub struct StorageShardSpec {
    /// The ChatCluster that the shard belongs to, in the same namespace. Fixed at creation.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is fixed at creation: a shard never moves to another ChatCluster"))]
    pub cluster_ref: LocalRef,

    /// Number of the shard among those that the operator makes. Absent from shards made by hand. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 127))]
    pub index: Option<u32>,

    /// Share of the data that the shard should own, against the weights of the other shards, from 0 to 1000. 0 means none.
    /// A change takes effect through a ShardRebalance.
    #[serde(default = "weight")]
    #[schemars(range(min = 0, max = 1000))]
    pub weight: u32,

    /// Empties the shard: its slots move to the other shards, and it takes none. The operator sets it on shards that it
    /// will remove; on a shard made by hand it is yours to set before you delete it.
    #[serde(default)]
    pub draining: bool,
}

fn weight() -> u32 {
    WEIGHT_DEFAULT
}

impl StorageShardSpec {
    /// The weight that counts: none while the shard is being emptied.
    pub fn effective_weight(&self) -> u32 {
        if self.draining { 0 } else { self.weight }
    }
}

impl StorageShard {
    /// Whether a person made it: the operator neither drains nor deletes it.
    pub fn is_handmade(&self) -> bool {
        self.spec.index.is_none()
    }

    /// The name that the operator gives shard `index` of a ChatCluster.
    pub fn name_of(cluster: &str, index: u32) -> String {
        format!("{cluster}-{index}")
    }
}

/// What the operator found, as of observedGeneration.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageShardStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Degraded, FailoverBlocked, ForeignData, Draining, MemoryPressure, DiskPressure.
    #[schemars(schema_with = "crate::conditions::schema")]
    pub conditions: Vec<Condition>,
    /// The pod that takes writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Slots that the shard owns, of 16384, as the data plane says.
    pub slots: u32,
    /// Copies that are in step, the primary included.
    pub ready_members: u32,
    /// Replicas that certainly hold each acknowledged write: ackReplicas, or fewer until all that was written before it was raised is
    /// held by as many. Promotion counts by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_replicas: Option<u32>,
    /// Pods that may hold acknowledged writes: promotion counts by them. A new one is named before it becomes a replica, one that is taken
    /// away until the others hold all that was acknowledged while it was there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub copies: Vec<String>,
    /// The copies of the shard, one entry per pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["pod"]))]
    pub members: Vec<Member>,
    /// The last change of the primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<Failover>,
}

/// One copy of a shard.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The pod.
    pub pod: String,
    /// UID of the pod, so that a pod of the same name is not taken for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The Kubernetes node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Id of the Valkey node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Primary or Replica.
    pub role: MemberRole,
    /// Whether the copy is in step.
    pub state: MemberState,
}

/// The role of a copy.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum MemberRole {
    /// Takes writes.
    Primary,
    /// Follows the primary.
    Replica,
}

/// Whether a copy is in step.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum MemberState {
    /// It takes writes, or follows the primary's stream.
    InSync,
    /// It is fetching a full copy, or follows the primary's stream and is behind.
    Syncing,
    /// It reads its own data from disk.
    Loading,
    /// It answers and has no link to its shard's primary.
    Disconnected,
    /// It does not answer.
    Unreachable,
}

/// A change of the primary.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// When the new primary took over.
    pub at: Time,
    /// The pod that was primary before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The pod that took over.
    pub to: String,
    /// PrimaryDown, Switchover (planned) or Forced (by a person who accepted the loss).
    pub reason: FailoverReason,
}

/// Why a primary changed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum FailoverReason {
    /// The primary was dead.
    PrimaryDown,
    /// Planned, without a pause of more than milliseconds.
    Switchover,
    /// Ordered by a person who accepted the loss.
    Forced,
}
