//! What the data plane is asked to be, what was seen of it, and what stands in the way. No I/O, no Kubernetes types.

use std::{borrow::Cow, fmt, net::SocketAddr};

use super::slots::SlotSet;

/// A node's id: 40 hexadecimal digits that the engine chose and keeps in `nodes.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(String);

impl NodeId {
    /// Takes what the engine reported; nothing else is a node id.
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        good.then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits, for messages.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What Kubernetes says of a Valkey pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Scheduled or starting; it may not have an address yet.
    Starting,
    /// Its container runs.
    Running,
    /// Being deleted; its process may still serve.
    Terminating,
    /// No process of it can be alive: no such pod, its container terminated, or its node is out of service for good.
    Gone,
}

/// One copy of a shard: a pod of its StatefulSet. Pods that should exist and do not are listed too, as [`Presence::Gone`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID; empty when there is no pod.
    pub uid: String,
    /// The Kubernetes node it runs on.
    pub node: Option<String>,
    /// Where its engine listens; only of a pod whose UID was verified.
    pub address: Option<SocketAddr>,
    /// Port of the cluster bus.
    pub bus_port: u16,
    /// What Kubernetes says of it.
    pub presence: Presence,
    /// Whether it may hold acknowledged writes. One that may not yet does not follow the primary either.
    pub copy: bool,
}

/// A planned change of primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// The pod that is to be the primary no longer; nothing happens when it is not.
    pub from: String,
    /// The pod that should follow it; absent, or not in step: the one that is furthest.
    pub to: Option<String>,
}

/// A shard as the StorageShard describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredShard {
    /// The StorageShard's name.
    pub name: String,
    /// Its share of the data, relative to the others'.
    pub weight: u32,
    /// R: replicas besides the primary.
    pub replicas: u32,
    /// Whether it is to be emptied; it gets no partitions.
    pub draining: bool,
    /// Replicas that certainly hold each acknowledged write, unless it is lowered: at most ackReplicas, less while that has just been raised.
    pub acknowledged_by: u32,
    /// What `min-replicas-to-write` must be: ackReplicas, less while `whenDegraded: accept` has lowered it.
    pub min_replicas_to_write: u32,
    /// Whether `whenDegraded: accept` has let writes be acknowledged by fewer replicas: then no absent copy may be promoted.
    pub lowered: bool,
    /// The pod that a person lets be promoted although acknowledged writes may be lost (`kith.dev/force-promote`).
    pub force_promote: Option<String>,
    /// A planned hand-over: this pod is to give up being the primary, alive.
    pub hand_over: Option<HandOver>,
    /// Its R + 1 pods.
    pub members: Vec<Member>,
}

/// The function library that every node must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its name, for example `kith1`.
    pub name: String,
    /// Its whole text, shebang line included.
    pub code: Cow<'static, str>,
}

/// What the data plane of one ChatCluster is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The ChatCluster's name.
    pub cluster: String,
    /// `status.clusterUid`: whose data the volumes hold.
    pub cluster_uid: String,
    /// P: partitions that the slots are cut into.
    pub partitions: u32,
    /// k: replicas that hold a write before it is acknowledged.
    pub ack_replicas: u32,
    /// `always` or `everysec`.
    pub fsync: String,
    /// Whether status says that this cluster once owned all slots. From then on no slot is ever assigned without its data.
    pub formed: bool,
    /// The function library to have loaded; none when this operator does not carry it: then what the nodes hold stays.
    pub library: Option<Library>,
    /// All shards, hand-made and draining ones included.
    pub shards: Vec<DesiredShard>,
}

impl Desired {
    /// The shard of this name.
    pub fn shard(&self, name: &str) -> Option<&DesiredShard> {
        self.shards.iter().find(|s| s.name == name)
    }

    /// Every member with its shard.
    pub fn members(&self) -> impl Iterator<Item = (&DesiredShard, &Member)> {
        self.shards.iter().flat_map(|s| s.members.iter().map(move |m| (s, m)))
    }

    /// The member of this pod name.
    pub fn member(&self, pod: &str) -> Option<(&DesiredShard, &Member)> {
        self.members().find(|(_, m)| m.pod == pod)
    }
}

/// What one node says of another (a line of `CLUSTER NODES`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNode {
    /// Its id.
    pub id: NodeId,
    /// Where it is believed to listen; absent with the flag `noaddr`.
    pub address: Option<SocketAddr>,
    /// Whether this is the node that speaks.
    pub myself: bool,
    /// Whether it is a primary (it need not own slots).
    pub primary: bool,
    /// Whom it replicates.
    pub replicates: Option<NodeId>,
    /// The cluster agreed that it fails.
    pub failed: bool,
    /// This speaker alone believes that it fails.
    pub suspected: bool,
    /// Still in its handshake: not a member yet.
    pub handshake: bool,
    /// Configuration epoch: the higher one wins slots.
    pub epoch: u64,
    /// Whether the bus link to it stands.
    pub connected: bool,
    /// Whether it has ever answered on the bus.
    pub heard: bool,
    /// The slots it is believed to own.
    pub slots: SlotSet,
}

/// What a primary says of one of its replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedReplica {
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// Whether it is in step (`online`), not in its first transfer.
    pub online: bool,
    /// What it has acknowledged.
    pub offset: u64,
}

/// Replication as a node reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary {
        /// Its replicas.
        replicas: Vec<AttachedReplica>,
    },
    /// It follows another.
    Replica {
        /// Whether the link to its primary stands and the first transfer is over.
        link_up: bool,
        /// Seconds since it last heard from its primary; absent while the link is down.
        last_io_s: Option<u64>,
        /// Seconds for which the link has been down; absent while it stands or when it never stood.
        down_s: Option<u64>,
        /// Whether a first transfer runs.
        syncing: bool,
    },
}

/// The replication history that a node's offset counts in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Its replication id.
    pub id: String,
    /// The one before, which it continues after a promotion.
    pub previous: String,
}

/// What a reachable node reported in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Its id.
    pub id: NodeId,
    /// Its role in replication.
    pub role: Role,
    /// Bytes of the replication stream it has produced (primary) or applied (replica).
    pub offset: u64,
    /// Which stream that is.
    pub history: History,
    /// Whether it still reads its files; it answers little until then.
    pub loading: bool,
    /// Whether a child process (save, rewrite, migration snapshot) runs.
    pub child: bool,
    /// Highest epoch it knows of.
    pub current_epoch: u64,
    /// Number of keys.
    pub keys: u64,
    /// Bytes of memory in use, as far as they count against its bound.
    pub memory: u64,
    /// Bytes at which it refuses writes; 0: no bound.
    pub max_memory: u64,
    /// What it says of its files.
    pub disk: Disk,
    /// All nodes as it sees them, itself included (`CLUSTER NODES`).
    pub view: Vec<KnownNode>,
    /// Who owns what, as it tells clients (`CLUSTER SHARDS`): primary and its slots.
    pub shards: Vec<(NodeId, SlotSet)>,
    /// Whether it holds the wanted library, with the wanted text.
    pub library: LibraryState,
    /// Replicas that it says must hold a write; none when it was never told.
    pub wanted: Option<u32>,
    /// UIDs of the ChatClusters whose mark it carries.
    pub owners: Vec<String>,
    /// Settings that are not as they must be: name, found value.
    pub settings: Vec<(String, String)>,
}

/// What a node says of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes of the append-only file with all its parts; 0: it does not say.
    pub used: u64,
    /// Bytes that a rewrite of it takes besides, at the least, before the old parts are deleted.
    pub rewrite: u64,
    /// Whether its last write to the disk failed: it refuses writes until one succeeds.
    pub failed: bool,
}

/// Of the wanted library on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibraryState {
    /// There, with the wanted text.
    Present,
    /// There, with another text.
    Differs,
    /// Not there.
    Missing,
}

impl NodeState {
    /// Its own line.
    pub fn myself(&self) -> Option<&KnownNode> {
        self.view.iter().find(|n| n.myself)
    }

    /// The slots it says it owns itself.
    pub fn own_slots(&self) -> SlotSet {
        self.myself().map(|n| n.slots.clone()).unwrap_or_default()
    }

    /// Whether it takes writes.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary { .. })
    }

    /// What it says of `id`.
    pub fn knows(&self, id: &NodeId) -> Option<&KnownNode> {
        self.view.iter().find(|n| n.id == *id && !n.handshake)
    }
}

/// What became of asking one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It answered in time.
    Up(Box<NodeState>),
    /// It answered that it still loads its data.
    Loading,
    /// Nobody listens at its address: the process has ended, or has not begun yet.
    Ended,
    /// It did not answer: why, without secrets.
    Down(String),
}

/// What became of asking one member, with whom that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The shard's name.
    pub shard: String,
    /// The pod's name.
    pub pod: String,
    /// What became of it.
    pub seen: Seen,
}

/// One look at every member of every shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// In the order of [`Desired`].
    pub nodes: Vec<NodeView>,
}

impl Observation {
    /// The members that answered.
    pub fn up(&self) -> impl Iterator<Item = (&NodeView, &NodeState)> {
        self.nodes.iter().filter_map(|n| match &n.seen {
            Seen::Up(state) => Some((n, state.as_ref())),
            _ => None,
        })
    }

    /// The state of a pod that answered.
    pub fn state(&self, pod: &str) -> Option<&NodeState> {
        self.up().find(|(n, _)| n.pod == pod).map(|(_, s)| s)
    }

    /// What became of asking a pod.
    pub fn seen(&self, pod: &str) -> Option<&Seen> {
        self.nodes.iter().find(|n| n.pod == pod).map(|n| &n.seen)
    }

    /// The member that has this node id.
    pub fn by_id(&self, id: &NodeId) -> Option<(&NodeView, &NodeState)> {
        self.up().find(|(_, s)| s.id == *id)
    }

    /// Whether every member answered.
    pub fn is_complete(&self) -> bool {
        self.nodes.iter().all(|n| matches!(n.seen, Seen::Up(_)))
    }
}

/// What stands in the way, as a word for automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A node holds data of another ChatCluster, or data where none was expected.
    ForeignData,
    /// A member does not answer.
    MemberUnreachable,
    /// A member still loads its data.
    MemberLoading,
    /// Some slots have no owner.
    SlotsUncovered,
    /// Nodes disagree about who owns which slot.
    OwnershipDisputed,
    /// A slot's owner is not a pod that exists.
    OwnerMissing,
    /// A shard has no primary.
    PrimaryDown,
    /// Too few replicas are in sight to promote one without the risk of loss.
    FailoverBlocked,
    /// A replica is missing, not attached or not in step.
    ReplicaLagging,
    /// The function library is missing somewhere.
    LibraryMissing,
    /// A setting is not as it must be.
    SettingsWrong,
    /// The cluster knows a node that belongs to no shard.
    StrayNode,
    /// A partition is cut across shards.
    PartitionSplit,
    /// A command was refused.
    CommandFailed,
    /// Nodes of the cluster do not know each other yet.
    NotJoined,
    /// Fewer replicas acknowledge than were asked for, as the spec permits.
    AcknowledgementLowered,
}

impl Reason {
    /// As conditions and Events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ForeignData => "ForeignData",
            Self::MemberUnreachable => "MemberUnreachable",
            Self::MemberLoading => "MemberLoading",
            Self::SlotsUncovered => "SlotsUncovered",
            Self::OwnershipDisputed => "OwnershipDisputed",
            Self::OwnerMissing => "OwnerMissing",
            Self::PrimaryDown => "PrimaryDown",
            Self::FailoverBlocked => "FailoverBlocked",
            Self::ReplicaLagging => "ReplicaLagging",
            Self::LibraryMissing => "LibraryMissing",
            Self::SettingsWrong => "SettingsWrong",
            Self::StrayNode => "StrayNode",
            Self::PartitionSplit => "PartitionSplit",
            Self::CommandFailed => "CommandFailed",
            Self::NotJoined => "NotJoined",
            Self::AcknowledgementLowered => "AcknowledgementLowered",
        }
    }
}

/// Something that keeps the data plane from being what it should be, in words that a platform team can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The word.
    pub reason: Reason,
    /// The shard it concerns; absent: the whole cluster.
    pub shard: Option<String>,
    /// The sentence.
    pub message: String,
    /// What a person may run who accepts what the message says.
    pub command: Option<String>,
}

impl Problem {
    /// A problem of the whole cluster.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, shard: None, message: message.into(), command: None }
    }

    /// Of one shard.
    #[must_use]
    pub fn of(mut self, shard: &str) -> Self {
        self.shard = Some(shard.to_owned());
        self
    }

    /// With the command.
    #[must_use]
    pub fn with_command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shard) = &self.shard {
            write!(f, "{shard}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.command {
            Some(command) => write!(f, " To do it: {command}"),
            None => Ok(()),
        }
    }
}
