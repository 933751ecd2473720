//! The storage layer of a ChatCluster.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{PodSettings, Quantity, Resources, Volume, default_is_empty_object};

/// The weight of a shard that nobody gave one.
pub const WEIGHT_DEFAULT: u32 = 100;
/// The largest part of the memory limit, in per cent, that `maxMemory` may take.
pub const MAX_MEMORY_PERCENT: u64 = 60;

/// The storage layer: shards of one Valkey primary and its replicas each.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.durability.ackReplicas <= self.replicas"
)
.message("durability.ackReplicas may not be above replicas: no write could ever be acknowledged")
.field_path(".durability.ackReplicas"))]
#[x_kube(validation = Rule::new(
    "self.shards <= self.partitions"
)
.message("shards may not be above partitions: a partition is what a shard owns at least")
.field_path(".shards"))]
#[x_kube(validation = Rule::new(
    "!has(self.maxMemory) || !has(self.pod) || !has(self.pod.resources) || !has(self.pod.resources.limits) || !('memory' in self.pod.resources.limits) || !isQuantity(self.maxMemory) || !isQuantity(string(self.pod.resources.limits['memory'])) || quantity(self.maxMemory).asApproximateFloat() <= 0.6 * quantity(string(self.pod.resources.limits['memory'])).asApproximateFloat()"
)
.message("maxMemory may be at most 60 per cent of pod.resources.limits.memory: the rest is needed while files are rewritten")
.field_path(".maxMemory"))]
pub struct StorageSpec {
    /// Number of shards that the operator keeps, from 1 to 128. A higher number adds shards and moves a fair part of the
    /// data to them; a lower one empties the shards with the highest numbers first and then removes them. StorageShards
    /// made by hand do not count. `kubectl scale chatcluster/NAME --replicas=N` sets it.
    #[serde(default = "shards")]
    #[schemars(range(min = 1, max = 128))]
    pub shards: u32,

    /// Replicas of each shard besides its primary, from 1 to 5. Every replica holds all of the shard's data.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u32,

    /// Number of partitions into which all data is cut: a power of two from 16 to 16384. A partition is the smallest
    /// part that moves between shards. Fixed at creation.
    #[serde(default = "partitions")]
    #[x_kube(validation = (
        "self in [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]",
        "partitions must be a power of two from 16 to 16384"
    ))]
    #[x_kube(validation = ("self == oldSelf", "partitions is fixed at creation"))]
    pub partitions: u32,

    /// Weights with which shards are made: the first number is shard 0's, and so on; a shard without a number gets 100.
    /// After that the weight in the StorageShard counts and this list is not read again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(range(min = 0, max = 1000)), extend("x-kubernetes-list-type" = "atomic"))]
    pub weights: Vec<u32>,

    /// What must be true before a message counts as sent.
    #[serde(default)]
    pub durability: Durability,

    /// The volume of each Valkey pod. Plan for three times maxMemory.
    #[serde(default)]
    pub volume: Volume,

    /// Memory that data may take in each Valkey pod, for example 600Mi; above it new messages are refused. At most 60 per
    /// cent of the memory limit. Omitted: 60 per cent of the memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = (
        "!isQuantity(self) || !quantity(self).isLessThan(quantity('32Mi'))",
        "maxMemory must be at least 32Mi"
    ))]
    pub max_memory: Option<Quantity>,

    /// Settings of the Valkey pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// What must be true before a message counts as sent.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Durability {
    /// When a write reaches the primary's disk. `always`: before it is acknowledged. `everysec`: within a second, so that
    /// a loss of power of all copies at once can lose the last second.
    #[serde(default)]
    pub fsync: Fsync,
    /// Number of replicas that must hold a write before it is acknowledged, from 1 to 5, at most `replicas`.
    #[serde(default = "ack_replicas")]
    #[schemars(range(min = 1, max = 5))]
    pub ack_replicas: u32,
    /// What happens while fewer than ackReplicas replicas are in reach. `refuse`: sending fails and clients try again.
    /// `accept`: once no absent replica can be promoted any more, writes are acknowledged by the copies that are left,
    /// and the condition Degraded says so.
    #[serde(default)]
    pub when_degraded: WhenDegraded,
}

/// When a write reaches the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before it is acknowledged.
    #[default]
    Always,
    /// Within a second.
    Everysec,
}

impl Fsync {
    /// As Valkey's `appendfsync` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Everysec => "everysec",
        }
    }
}

/// What happens while too few replicas are in reach.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WhenDegraded {
    /// Sending fails.
    #[default]
    Refuse,
    /// Writes are acknowledged by the copies that are left.
    Accept,
}

default_is_empty_object!(StorageSpec, Durability);

fn shards() -> u32 {
    1
}

fn replicas() -> u32 {
    2
}

fn partitions() -> u32 {
    1024
}

fn ack_replicas() -> u32 {
    1
}

impl StorageSpec {
    /// The weight with which shard `index` is made.
    pub fn initial_weight(&self, index: u32) -> u32 {
        self.weights.get(index as usize).copied().unwrap_or(WEIGHT_DEFAULT)
    }

    /// Copies of each shard, the primary included.
    pub fn members(&self) -> u32 {
        self.replicas + 1
    }

    /// CPU and memory of a Valkey container that `pod` gives none.
    pub fn default_resources() -> Resources {
        Resources::of("250m", "1Gi", "1Gi")
    }

    /// The largest data limit of each Valkey pod in bytes, given its resources: 60 per cent of the memory limit; none without a limit.
    pub fn max_memory_ceiling(resources: &Resources) -> Option<u64> {
        Some(resources.memory_bytes()? / 100 * MAX_MEMORY_PERCENT)
    }
}
