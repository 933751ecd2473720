//! `ShardRebalance`: one proposal to move slots between shards: plan, approve, run, verify.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{Duration, LocalRef, Quantity};

/// A plan to move slots between the shards of a ChatCluster so that each owns its share. The operator proposes; you
/// approve with the annotation `kith.dev/rebalance: approve=PROPOSAL-ID`; it moves and verifies.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[kube(
    group = "kith.dev",
    version = "v1alpha1",
    kind = "ShardRebalance",
    namespaced,
    status = "ShardRebalanceStatus",
    derive = "PartialEq",
    shortname = "ksr",
    category = "kith",
    selectable = ".spec.clusterRef.name",
    doc = "A ShardRebalance is one plan to move slots between the shards of a ChatCluster: proposed by the operator, approved by you (annotation kith.dev/rebalance: approve=PROPOSAL-ID, or refresh, or stop), then carried out and verified.",
    validation = (
        "self.metadata.name.size() <= 63",
        "the name of a ShardRebalance has at most 63 characters"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the rebalance stands."),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The ChatCluster."),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", description = "Whether it waits for approval."),
    printcolumn(name = "Proposal", type_ = "string", json_path = ".status.proposal.id", description = "The proposal to approve."),
    printcolumn(name = "Moved", type_ = "integer", json_path = ".status.progress.movedPartitions", description = "Partitions moved so far."),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.proposal.partitions", description = "Partitions to move."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", description = "Where it stands, in a sentence."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation.")
)]
#[serde(rename_all = "camelCase")]
pub struct ShardRebalanceSpec {
    /// The ChatCluster whose shards are rebalanced, in the same namespace. Fixed at creation.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is fixed at creation: create another ShardRebalance"))]
    pub cluster_ref: LocalRef,

    /// manual: the proposal waits for your approval. automatic: it is carried out at once.
    #[serde(default)]
    pub mode: RebalanceMode,

    /// The most data to move per second, for example 32Mi. At least 64Ki. Moves compete with chat traffic for the network
    /// and the disk; lower it to be gentler.
    #[serde(default = "max_bytes_per_second")]
    #[x_kube(validation = (
        "!isQuantity(self) || !quantity(self).isLessThan(quantity('64Ki'))",
        "maxBytesPerSecond must be at least 64Ki"
    ))]
    pub max_bytes_per_second: Quantity,

    /// How many pairs of shards may move slots at the same time, from 1 to 16. A shard takes part in one move at a time.
    #[serde(default = "max_concurrent_moves")]
    #[schemars(range(min = 1, max = 16))]
    pub max_concurrent_moves: u32,

    /// How far, in per cent of its share, a shard may be off before slots move, from 1 to 50. A lower number moves more data.
    #[serde(default = "imbalance_percent")]
    #[schemars(range(min = 1, max = 50))]
    pub imbalance_percent: u32,
}

/// Whether a proposal waits for approval.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RebalanceMode {
    /// It waits.
    #[default]
    Manual,
    /// It is carried out at once.
    Automatic,
}

fn max_bytes_per_second() -> Quantity {
    "32Mi".into()
}

fn max_concurrent_moves() -> u32 {
    1
}

fn imbalance_percent() -> u32 {
    5
}

impl ShardRebalanceSpec {
    /// A rebalance that the operator makes itself.
    pub fn automatic(cluster: &str) -> Self {
        Self {
            cluster_ref: LocalRef { name: cluster.to_owned() },
            mode: RebalanceMode::Automatic,
            max_bytes_per_second: max_bytes_per_second(),
            max_concurrent_moves: max_concurrent_moves(),
            imbalance_percent: imbalance_percent(),
        }
    }
}

/// Where a rebalance stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum RebalancePhase {
    /// Not looked at yet.
    #[default]
    New,
    /// A proposal is being computed, or waits until every shard is whole.
    PendingProposal,
    /// The proposal waits for approval.
    ProposalReady,
    /// Slots move.
    Rebalancing,
    /// All moves are done; ownership and data are being checked.
    Verifying,
    /// Done.
    Ready,
    /// Stopped by a person. What was moved stays moved. `refresh` starts anew.
    Stopped,
    /// It cannot go on; the message says why and what to do.
    NotReady,
}

impl RebalancePhase {
    /// Whether slots may be on the move: one rebalance per ChatCluster may be here.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Rebalancing | Self::Verifying)
    }

    /// Whether nothing more happens without a person.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ready | Self::Stopped)
    }
}

/// What the operator found, as of observedGeneration.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ShardRebalanceStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the rebalance stands.
    pub phase: RebalancePhase,
    /// Where it stands, as a sentence with what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Ready, Progressing, ProposalReady.
    #[schemars(schema_with = "crate::conditions::schema")]
    pub conditions: Vec<Condition>,
    /// The last value of the annotation kith.dev/rebalance that was acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled_command: Option<String>,
    /// What is to be moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<Proposal>,
    /// What has been moved. Written once per batch; the finer numbers are metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The last ten runs, the newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub history: Vec<Run>,
}

/// What is to be moved.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// Id of the proposal, to be named in the approval. Another plan has another id.
    pub id: String,
    /// When it was computed.
    pub created_at: Time,
    /// Partitions that move.
    pub partitions: u32,
    /// Bytes that move, as estimated from the shards' memory.
    pub bytes: u64,
    /// How long it will take at maxBytesPerSecond.
    pub eta: Duration,
    /// How far the worst shard is off its share now, in per cent.
    pub imbalance_before_percent: u32,
    /// How far the worst shard will be off its share, in per cent.
    pub imbalance_after_percent: u32,
    /// What each shard owns before and after.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub shards: Vec<ShardShare>,
    /// The moves, in the order in which they are made.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub moves: Vec<Move>,
}

/// What a shard owns before and after.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ShardShare {
    /// The StorageShard.
    pub name: String,
    /// Its weight; 0 while it is being emptied.
    pub weight: u32,
    /// Partitions that it owns now.
    pub partitions_before: u32,
    /// Partitions that it will own.
    pub partitions_after: u32,
    /// Bytes of data that it holds now.
    pub bytes_before: u64,
    /// Bytes of data that it will hold.
    pub bytes_after: u64,
}

/// Partitions that go from one shard to another.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// The StorageShard that gives.
    pub from: String,
    /// The StorageShard that takes.
    pub to: String,
    /// The partitions as ranges, for example 0-15,32.
    pub partitions: String,
    /// Bytes that move, as estimated.
    pub bytes: u64,
}

/// What has been moved.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The proposal that is being carried out.
    pub proposal_id: String,
    /// When it was begun.
    pub started_at: Time,
    /// Partitions that their new shard owns.
    pub moved_partitions: u32,
    /// Bytes moved, as estimated.
    pub moved_bytes: u64,
    /// The partitions of the batch under way as ranges. Absent between batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
}

/// A run that ended.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The proposal that was carried out.
    pub proposal_id: String,
    /// When it was begun.
    pub started_at: Time,
    /// When it ended.
    pub finished_at: Time,
    /// How it ended.
    pub outcome: RunOutcome,
    /// Partitions that were moved.
    pub moved_partitions: u32,
    /// Bytes that were moved, as estimated.
    pub moved_bytes: u64,
    /// How it ended, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum RunOutcome {
    /// All moves were made and verified.
    Completed,
    /// A person stopped it.
    Stopped,
    /// The wanted state changed under way and a new proposal took its place.
    Superseded,
    /// It could not go on.
    Failed,
}

/// The longest history kept.
pub const HISTORY_MAX: usize = 10;

/// What the annotation `kith.dev/rebalance` orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Carry out the proposal with this id.
    Approve(String),
    /// Compute a new proposal.
    Refresh,
    /// Stop after the batch under way.
    Stop,
}

/// An order that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the annotation kith.dev/rebalance must be approve=PROPOSAL-ID, refresh or stop, not {0:?}")]
pub struct UnknownCommand(String);

impl std::str::FromStr for Command {
    type Err = UnknownCommand;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().split_once('=') {
            Some(("approve", id)) if !id.trim().is_empty() => Ok(Self::Approve(id.trim().to_owned())),
            None if text.trim() == "refresh" => Ok(Self::Refresh),
            None if text.trim() == "stop" => Ok(Self::Stop),
            _ => Err(UnknownCommand(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_approve_is_refused() {
        assert_eq!("approve=p-17".parse(), Ok(Command::Approve("p-17".to_owned())));
        assert_eq!("refresh".parse(), Ok(Command::Refresh));
        assert_eq!(" stop ".parse(), Ok(Command::Stop));
        for text in ["approve", "approve=", "approve= ", "Approve=p-17", "", "stop=1", "p-17"] {
            assert!(text.parse::<Command>().is_err(), "{text:?}");
        }
    }
}
