//! Labels, annotations, finalizers and the field manager: every key that Kith reads or writes on Kubernetes objects.

use kith_platform::{OPERATOR, Service};

/// The field manager of all that the operator applies.
pub const FIELD_MANAGER: &str = "kith-operator";

/// The finalizer by which the operator takes part in the deletion of its objects.
pub const FINALIZER: &str = "kith.dev/cleanup";

/// Label: always `kith`.
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label: the ChatCluster's name.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label: the component, for example `storage`, `valkey` or `gateway`.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label: always `kith-operator`.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: the version of Kith that the object belongs to.
pub const LABEL_VERSION: &str = "app.kubernetes.io/version";
/// Label: the StorageShard that the object belongs to.
pub const LABEL_SHARD: &str = "kith.dev/shard";
/// Label: the Gateway that the object belongs to.
pub const LABEL_GATEWAY: &str = "kith.dev/gateway";
/// Label that a person puts on pods of any namespace, with the ChatCluster's name: they may connect to the managed brokers.
pub const LABEL_EVENT_LOG_CLIENT: &str = "kith.dev/event-log-client";

/// Annotation on a ShardRebalance: `approve=<proposalId>`, `refresh` or `stop`.
pub const ANNOTATION_REBALANCE: &str = "kith.dev/rebalance";
/// Annotation on a StorageShard: the pod whose member a person declares gone for good, volume included.
pub const ANNOTATION_REPLACE_MEMBER: &str = "kith.dev/replace-member";
/// Annotation on a ChatCluster: the pod of the broker that a person declares gone for good, volume included.
pub const ANNOTATION_REPLACE_BROKER: &str = "kith.dev/replace-broker";
/// Condition of a broker's pod, which its readiness waits for: it has caught up with every partition that it keeps.
pub const CONDITION_IN_SYNC: &str = "kith.dev/in-sync";
/// Annotation on a StorageShard: the pod that a person lets the operator promote although acknowledged writes may be lost. It
/// holds for one failover, and only while too few copies are in sight; the operator takes it away.
pub const ANNOTATION_FORCE_PROMOTE: &str = "kith.dev/force-promote";
/// Annotation on volumes and claims: the UID of the ChatCluster whose data they hold.
pub const ANNOTATION_CLUSTER_UID: &str = "kith.dev/cluster-uid";
/// Annotation on pod templates: a hash of the configuration, so that a change of it rolls the pods.
pub const ANNOTATION_CONFIG_HASH: &str = "kith.dev/config-hash";

/// Annotation on a ChatCluster: `now` makes it adopt the operator's version and images once; the operator then removes it.
pub const ANNOTATION_ADOPT_IMAGES: &str = "kith.dev/adopt-images";
/// Annotation on a ChatCluster: `prepare` makes another certificate authority that everybody trusts, `now` lets it sign, `forget-previous`
/// ends the trust in the one before. The operator removes the word when it has been taken up.
pub const ANNOTATION_ROTATE_AUTHORITY: &str = "kith.dev/rotate-authority";

/// Annotation on the operator's ClusterRole: the Lease that it holds while it acts, as `namespace/name`.
pub const ANNOTATION_LEASE: &str = "kith.dev/lease";
/// Annotation on the operator's ClusterRole: the namespaces that it looks after, comma-separated, or `*` for all.
pub const ANNOTATION_WATCHES: &str = "kith.dev/watches";

/// Names that no Gateway may have, as the rule of its definition says too: those of Kith's own parts, whose objects are named
/// `<cluster>-<part>-…` as those of a Gateway are.
pub fn reserved_for_parts() -> impl Iterator<Item = &'static str> {
    Service::ALL.iter().map(|service| service.name()).chain(["valkey", "kafka", OPERATOR])
}
