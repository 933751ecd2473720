//! Condition types, reasons, and the one way to set a condition.
//!
//! A condition changes only when its status, reason, message or generation does, and its transition time only with its
//! status: so an unchanged object makes an unchanged status, and nothing is written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use schemars::{Schema, SchemaGenerator, json_schema};

/// All is well: every layer is ready and nothing asks for a person.
pub const READY: &str = "Ready";
/// The operator is on its way from one wanted state to another.
pub const PROGRESSING: &str = "Progressing";
/// Something is served with less than what was asked for: a missing replica, a lowered acknowledgement count.
pub const DEGRADED: &str = "Degraded";
/// All slots are owned, served and replicated, as every reachable node says.
pub const STORAGE_READY: &str = "StorageReady";
/// `tasks`, `sessions` and the other services of the logic layer serve.
pub const LOGIC_READY: &str = "LogicReady";
/// `business` and every Gateway serve.
pub const ACCESS_READY: &str = "AccessReady";
/// The topics exist, belong to this ChatCluster and accept events.
pub const EVENT_LOG_READY: &str = "EventLogReady";
/// A primary is gone and no replica may be promoted without the risk of loss; the message holds the command for a person.
pub const FAILOVER_BLOCKED: &str = "FailoverBlocked";
/// A volume holds data of another ChatCluster; nothing is written to it.
pub const FOREIGN_DATA: &str = "ForeignData";
/// The shard is being emptied; it is deleted when it owns no slot and holds no key.
pub const DRAINING: &str = "Draining";
/// A primary uses so much of its memory that writes will be refused soon.
pub const MEMORY_PRESSURE: &str = "MemoryPressure";
/// What the engine keeps on a volume nearly fills it.
pub const DISK_PRESSURE: &str = "DiskPressure";
/// Events wait in storage's outbox, or on the event log for `tasks`, longer than they should.
pub const EVENT_LOG_LAG: &str = "EventLogLag";
/// A certificate ends soon and nobody has renewed it.
pub const CERTIFICATE_EXPIRING: &str = "CertificateExpiring";
/// A proposal waits for a person's approval.
pub const PROPOSAL_READY: &str = "ProposalReady";

/// Reasons: the CamelCase words by which automation tells causes apart. Their set may grow.
pub mod reason {
    /// Everything asked for is there and serves.
    pub const ALL_READY: &str = "AllReady";
    /// Nothing is under way.
    pub const IDLE: &str = "Idle";
    /// Objects were created and do not serve yet.
    pub const STARTING: &str = "Starting";
    /// A new version or configuration is being rolled out.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Shards are being added.
    pub const SCALING_OUT: &str = "ScalingOut";
    /// Shards are being emptied and removed.
    pub const SCALING_IN: &str = "ScalingIn";
    /// Slots move between shards.
    pub const REBALANCING: &str = "Rebalancing";
    /// The object is being deleted.
    pub const DELETING: &str = "Deleting";
    /// A layer below is not ready yet, so this one waits.
    pub const WAITING_FOR_LAYER_BELOW: &str = "WaitingForLayerBelow";
    /// Pods are missing or do not serve.
    pub const PODS_NOT_READY: &str = "PodsNotReady";
    /// A pod cannot be scheduled.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// An image cannot be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// A claim has no volume.
    pub const VOLUME_PENDING: &str = "VolumePending";
    /// The spec asks for something that cannot be done; the message says what and how to put it right.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The ChatCluster that `clusterRef` names does not exist in this namespace.
    pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
    /// A Secret that the spec names does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// A Secret that the spec names lacks a key or holds something else than what is needed.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// The API server refused an object, or a name is taken by somebody else's.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// A pass of the operator failed; it tries again with growing pauses.
    pub const RECONCILE_FAILED: &str = "ReconcileFailed";
    /// The version is neither this operator's nor the one before.
    pub const UNSUPPORTED_VERSION: &str = "UnsupportedVersion";
    /// No broker of the event log answers.
    pub const EVENT_LOG_UNREACHABLE: &str = "EventLogUnreachable";
    /// The brokers refused the credentials.
    pub const EVENT_LOG_UNAUTHORIZED: &str = "EventLogUnauthorized";
    /// A load balancer that brokers are to be reached through has no address yet; the rest serves.
    pub const ADDRESS_PENDING: &str = "AddressPending";
    /// The managed brokers do not ask for rights yet: everyone with a certificate may write.
    pub const RIGHTS_NOT_ENFORCED: &str = "RightsNotEnforced";
    /// A topic carries another ChatCluster's UID.
    pub const FOREIGN_TOPIC: &str = "ForeignTopic";
    /// A topic's number of partitions is not the one that was fixed at creation.
    pub const TOPIC_PARTITIONS_CHANGED: &str = "TopicPartitionsChanged";
    /// The settings of topics are not as the spec says and cannot be changed, or cannot be seen.
    pub const TOPIC_SETTINGS: &str = "TopicSettings";
    /// A volume carries another ChatCluster's UID.
    pub const FOREIGN_VOLUME: &str = "ForeignVolume";
    /// Some slots have no owner that serves them.
    pub const SLOTS_UNCOVERED: &str = "SlotsUncovered";
    /// Nodes disagree about who owns which slot.
    pub const OWNERSHIP_DISPUTED: &str = "OwnershipDisputed";
    /// A primary does not answer; its replacement is being chosen.
    pub const PRIMARY_DOWN: &str = "PrimaryDown";
    /// Too few replicas are in sight to promote one without the risk of loss.
    pub const TOO_FEW_REPLICAS: &str = "TooFewReplicas";
    /// A replica is missing or far behind.
    pub const REPLICA_LAGGING: &str = "ReplicaLagging";
    /// Writes are acknowledged by fewer replicas than asked for, as `whenDegraded: accept` permits.
    pub const ACKNOWLEDGEMENT_LOWERED: &str = "AcknowledgementLowered";
    /// The function library is missing on a node or of another version.
    pub const LIBRARY_MISSING: &str = "LibraryMissing";
    /// A shard is not whole, so no slot may move.
    pub const SHARD_NOT_WHOLE: &str = "ShardNotWhole";
    /// A primary uses 80 % of its memory or more.
    pub const ENGINE_MEMORY_HIGH: &str = "EngineMemoryHigh";
    /// A primary has used its memory up: writes are refused.
    pub const ENGINE_FULL: &str = "EngineFull";
    /// The engine's files take so much of a volume that the next rewrite of them may not fit.
    pub const VOLUME_FILLING: &str = "VolumeFilling";
    /// A primary could not write to its disk: writes are refused.
    pub const DISK_WRITE_FAILED: &str = "DiskWriteFailed";
    /// Events wait in storage because the event log does not take them as fast as they come.
    pub const OUTBOX_GROWING: &str = "OutboxGrowing";
    /// An instance of storage keeps as many unpublished events as it may: writes are refused.
    pub const OUTBOX_FULL: &str = "OutboxFull";
    /// Consumers are many events behind.
    pub const CONSUMER_LAGGING: &str = "ConsumerLagging";
    /// A consumer has not moved on a partition for minutes although events wait there.
    pub const CONSUMER_STUCK: &str = "ConsumerStuck";
    /// Kafka clients of services fail and are replaced again and again.
    pub const KAFKA_CLIENTS_REPLACED: &str = "KafkaClientsReplaced";
    /// A certificate that the operator renews has not been renewed.
    pub const RENEWAL_FAILED: &str = "RenewalFailed";
    /// A certificate that the operator does not renew ends soon, or has ended.
    pub const CERTIFICATE_ENDING: &str = "CertificateEnding";
    /// A container took more memory than its limit and was ended.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// Pods cannot be made: a quota or another rule of the cluster refuses them.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// The shards are balanced already.
    pub const BALANCED: &str = "Balanced";
    /// A person stopped it.
    pub const STOPPED: &str = "Stopped";
}

/// What a condition says, without the times that [`set`] adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The condition's type, one of the constants of this module.
    pub kind: &'static str,
    /// `Some(true)` is True, `Some(false)` False, `None` Unknown.
    pub holds: Option<bool>,
    /// A word of [`reason`].
    pub reason: &'static str,
    /// A sentence that tells a platform team what is the matter and what to do.
    pub message: String,
}

impl Finding {
    /// The condition holds.
    pub fn holds(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(true), reason, message: message.into() }
    }

    /// The condition does not hold.
    pub fn fails(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: Some(false), reason, message: message.into() }
    }

    /// The operator could not find out.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: None, reason, message: message.into() }
    }

    fn status(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// The longest message kept; Kubernetes allows 32,768 bytes, nobody reads that many.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Puts `finding` into `conditions`, which stay sorted by type; answers whether anything changed.
pub fn set(conditions: &mut Vec<Condition>, finding: Finding, generation: Option<i64>, now: Timestamp) -> bool {
    let status = finding.status();
    let message = shortened(finding.message);
    let position = conditions.binary_search_by(|c| c.type_.as_str().cmp(finding.kind));
    let since = match position {
        Ok(at) if conditions[at].status == status => conditions[at].last_transition_time.clone(),
        _ => Time(now),
    };
    let next = Condition {
        type_: finding.kind.to_owned(),
        status: status.to_owned(),
        reason: finding.reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match position {
        Ok(at) if conditions[at] == next => false,
        Ok(at) => {
            conditions[at] = next;
            true
        }
        Err(at) => {
            conditions.insert(at, next);
            true
        }
    }
}

/// Removes the condition of this type; answers whether it was there.
pub fn remove(conditions: &mut Vec<Condition>, kind: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.type_ != kind);
    conditions.len() != before
}

/// The condition of this type.
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the condition of this type says True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|c| c.status == "True")
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let mut end = MESSAGE_BYTES_MAX - '…'.len_utf8();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

/// The schema of a list of conditions, one per type, with the bounds that Kubernetes itself sets.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What holds of this object now, one entry per type. `kubectl wait --for=condition=Ready` reads them.",
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {
                    "description": "What the condition is about, for example Ready.",
                    "type": "string", "maxLength": 316
                },
                "status": {
                    "description": "Whether it holds.",
                    "type": "string", "enum": ["True", "False", "Unknown"]
                },
                "reason": {
                    "description": "Why, as one CamelCase word for automation.",
                    "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
                },
                "message": {
                    "description": "Why, as a sentence for people, with what to do.",
                    "type": "string", "maxLength": 32768
                },
                "observedGeneration": {
                    "description": "The generation of the object that the condition was found for.",
                    "type": "integer", "format": "int64", "minimum": 0
                },
                "lastTransitionTime": {
                    "description": "When the status last changed.",
                    "type": "string", "format": "date-time"
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a valid time")
    }

    #[test]
    fn an_unchanged_finding_changes_nothing() {
        let mut conditions = Vec::new();
        assert!(set(&mut conditions, Finding::holds(READY, reason::ALL_READY, "fine"), Some(1), at(10)));
        assert!(!set(&mut conditions, Finding::holds(READY, reason::ALL_READY, "fine"), Some(1), at(20)));
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
    }

    #[test]
    fn only_a_new_status_moves_the_transition_time() {
        let mut conditions = Vec::new();
        set(&mut conditions, Finding::fails(READY, reason::STARTING, "two pods to go"), Some(1), at(10));
        assert!(set(&mut conditions, Finding::fails(READY, reason::STARTING, "one pod to go"), Some(1), at(20)));
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
        assert!(set(&mut conditions, Finding::holds(READY, reason::ALL_READY, "fine"), Some(1), at(30)));
        assert_eq!(conditions[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn conditions_stay_sorted_and_unique() {
        let mut conditions = Vec::new();
        for kind in [READY, DEGRADED, STORAGE_READY, READY, ACCESS_READY] {
            set(&mut conditions, Finding::unknown(kind, reason::STARTING, ""), None, at(1));
        }
        let kinds: Vec<_> = conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(kinds, [ACCESS_READY, DEGRADED, READY, STORAGE_READY]);
        assert!(remove(&mut conditions, DEGRADED));
        assert!(!remove(&mut conditions, DEGRADED));
        assert!(!is_true(&conditions, READY));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut conditions = Vec::new();
        set(&mut conditions, Finding::fails(READY, reason::APPLY_FAILED, "é".repeat(4000)), None, at(1));
        assert!(conditions[0].message.len() <= MESSAGE_BYTES_MAX);
        assert!(conditions[0].message.ends_with('…'));
    }
}
