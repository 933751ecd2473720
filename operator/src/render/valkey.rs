//! The storage engine: its configuration, and the StatefulSet, Service and budget of one StorageShard.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{
            ConfigMap, Container, ExecAction, Lifecycle, LifecycleHandler, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodTemplateSpec, Probe, Service, VolumeResourceRequirements,
        },
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kith_crds::{
    names,
    shared::{ReclaimPolicy, Volume},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    endpoints,
    meta::{self, Component},
    pod,
};
use crate::plan::Plan;

/// Clients.
pub const CLIENT_PORT: i32 = 6_379;
/// Nodes among themselves.
pub const BUS_PORT: i32 = 16_379;
/// Name of the volume of each pod; the claim of pod `p` is `data-p`.
pub const DATA: &str = "data";
/// A stopping engine flushes and hands over; then it is killed.
const GRACE_S: i64 = 60;

const START: &str = include_str!("scripts/valkey-start.sh");
const PROBE: &str = include_str!("scripts/valkey-probe.sh");
const STOP: &str = include_str!("scripts/valkey-stop.sh");

/// The engine's configuration file; what differs per pod comes from the start script.
pub fn settings(plan: &Plan) -> String {
    let durability = &plan.valkey.durability;
    format!(
        "# Made by kith-operator; changes are overwritten.
bind * -::*
protected-mode no
port 0
tls-port {CLIENT_PORT}
tls-cluster yes
tls-replication yes
tls-auth-clients yes
tls-ca-cert-file /etc/kith/tls/ca.crt
tls-cert-file /etc/kith/tls/tls.crt
tls-key-file /etc/kith/tls/tls.key
tls-auto-reload-interval 60
aclfile /etc/kith/users/users.acl
include /etc/kith/users/replication.conf
dir /data
tcp-keepalive 60
timeout 0
loglevel notice
maxmemory {max_memory}
maxmemory-policy noeviction
save \"\"
appendonly yes
appendfsync {fsync}
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 256mb
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 2000
cluster-blacklist-ttl 10
cluster-slot-migration-log-max-len 16
cluster-manual-failover-timeout 15000
cluster-replica-no-failover yes
cluster-allow-replica-migration no
cluster-require-full-coverage no
cluster-slot-stats-enabled yes
cluster-preferred-endpoint-type ip
min-replicas-to-write {ack_replicas}
min-replicas-max-lag 10
repl-diskless-sync yes
repl-diskless-sync-delay 0
repl-diskless-load disabled
repl-ping-replica-period 1
repl-backlog-size 32mb
shutdown-timeout 10
",
        max_memory = plan.valkey.max_memory,
        fsync = durability.fsync.as_str(),
        ack_replicas = durability.ack_replicas,
    )
}

/// The ConfigMap that all shards share.
pub fn config_map(plan: &Plan) -> ConfigMap {
    let scripts = [("start.sh", START), ("probe.sh", PROBE), ("stop.sh", STOP)];
    let mut data: BTreeMap<String, String> = scripts.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    data.insert("valkey.conf".to_owned(), settings(plan));
    ConfigMap {
        metadata: meta::meta(meta::valkey_config_map(&plan.name), meta::labels(&plan.name, Component::Valkey)),
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// Everything of one StorageShard.
pub struct ShardObjects {
    /// The pods.
    pub stateful_set: StatefulSet,
    /// Their names in DNS.
    pub service: Service,
    /// How many may be evicted.
    pub budget: PodDisruptionBudget,
}

fn shard_labels(plan: &Plan, shard: &str) -> BTreeMap<String, String> {
    let mut labels = meta::labels(&plan.name, Component::Valkey);
    labels.insert(names::LABEL_SHARD.to_owned(), shard.to_owned());
    labels
}

fn shard_selector(plan: &Plan, shard: &str) -> BTreeMap<String, String> {
    let mut labels = meta::selector_labels(&plan.name, Component::Valkey);
    labels.insert(names::LABEL_SHARD.to_owned(), shard.to_owned());
    labels
}

/// Renders the shard `shard`. `claim_size` is the size that the existing StatefulSet's claims were made with: templates of claims cannot
/// change, so growth goes to the claims themselves.
pub fn shard(plan: &Plan, shard: &str, claim_size: Option<&Quantity>) -> ShardObjects {
    let name = meta::shard_name(shard);
    let (labels, selector) = (shard_labels(plan, shard), shard_selector(plan, shard));
    let template = template(plan, shard);
    let ports = vec![endpoints::port("valkey", CLIENT_PORT), endpoints::port("bus", BUS_PORT)];
    // Where every replica must acknowledge, writes wait while one is away; without any leave no node could ever be drained.
    let may_go = plan.valkey.replicas.saturating_sub(plan.valkey.durability.ack_replicas).max(1);
    let stateful_set = StatefulSet {
        metadata: meta::meta(name.clone(), labels.clone()),
        spec: Some(StatefulSetSpec {
            persistent_volume_claim_retention_policy: Some(retention(&plan.valkey.volume)),
            pod_management_policy: Some("Parallel".to_owned()),
            replicas: i32::try_from(plan.valkey.replicas + 1).ok(),
            revision_history_limit: Some(3),
            selector: meta::selector(selector.clone()),
            service_name: Some(name.clone()),
            template,
            // A primary is restarted only after a switchover, so no pod is replaced by the StatefulSet on its own.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            volume_claim_templates: Some(vec![claim(plan, &plan.valkey.volume, claim_size, labels.clone())]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    };
    ShardObjects {
        stateful_set,
        service: endpoints::headless(name.clone(), labels.clone(), selector.clone(), ports, true),
        budget: endpoints::disruption_budget(name, labels, selector, may_go, false),
    }
}

/// The template of the pods of the shard `shard`. Those of one plan differ in the shard's name alone.
pub fn template(plan: &Plan, shard: &str) -> PodTemplateSpec {
    let hash = xxh3_64([settings(plan).as_str(), START, PROBE, STOP].concat().as_bytes());
    pod::template(pod::Parts {
        labels: shard_labels(plan, shard),
        selector: shard_selector(plan, shard),
        annotations: [(names::ANNOTATION_CONFIG_HASH.to_owned(), format!("{hash:016x}"))].into(),
        settings: &plan.valkey.pod,
        service_account: meta::component_name(&plan.name, Component::Valkey),
        container: container(plan),
        volumes: vec![
            pod::config_volume("config", meta::valkey_config_map(&plan.name)),
            pod::secret_volume(
                "tls",
                meta::tls_secret(&plan.name, Component::Valkey),
                &["ca.crt", "tls.crt", "tls.key"],
            ),
            pod::secret_volume(
                "users",
                meta::engine_users_secret(&plan.name),
                &["users.acl", "replication.conf", "probe"],
            ),
        ],
        grace_s: GRACE_S,
    })
}

fn container(plan: &Plan) -> Container {
    let readiness = Probe {
        exec: Some(ExecAction { command: Some(vec!["sh".to_owned(), "/etc/valkey/probe.sh".to_owned()]) }),
        period_seconds: Some(10),
        timeout_seconds: Some(5),
        failure_threshold: Some(2),
        ..Probe::default()
    };
    Container {
        name: "valkey".to_owned(),
        image: Some(plan.images.valkey.clone()),
        image_pull_policy: Some(plan.pull_policy.to_owned()),
        command: Some(vec!["sh".to_owned(), "/etc/valkey/start.sh".to_owned()]),
        env: Some(vec![pod::env_field("POD_IP", "status.podIP"), pod::env_field("POD_NAME", "metadata.name")]),
        ports: Some(vec![pod::port("valkey", CLIENT_PORT), pod::port("bus", BUS_PORT)]),
        // Between the order to end and SIGTERM: time for the operator to hand the primary's place over.
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(vec!["sh".to_owned(), "/etc/valkey/stop.sh".to_owned()]) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // Connecting works while data is loaded, which may take long and must not be cut short.
        liveness_probe: Some(pod::tcp_probe("valkey", 10, 6)),
        readiness_probe: Some(readiness),
        startup_probe: Some(pod::tcp_probe("valkey", 1, 120)),
        volume_mounts: Some(vec![
            pod::mount("config", "/etc/valkey"),
            pod::writable(DATA, "/data"),
            pod::mount("tls", "/etc/kith/tls"),
            pod::mount("users", "/etc/kith/users"),
        ]),
        ..Container::default()
    }
}

/// What becomes of the claims, by the volume's policy. A lowered number of replicas keeps its claims: it may be raised again.
pub fn retention(volume: &Volume) -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    let deleted = match volume.reclaim_policy {
        ReclaimPolicy::Retain => "Retain",
        ReclaimPolicy::Delete => "Delete",
    };
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some(deleted.to_owned()),
        when_scaled: Some("Retain".to_owned()),
    }
}

/// The template of the claims; it carries the UID of the ChatCluster whose data will be on the volume.
pub fn claim(
    plan: &Plan,
    volume: &Volume,
    made_with: Option<&Quantity>,
    labels: BTreeMap<String, String>,
) -> PersistentVolumeClaim {
    let mut metadata = meta::meta(DATA.to_owned(), labels);
    metadata.annotations = Some([(names::ANNOTATION_CLUSTER_UID.to_owned(), plan.data_uid.clone())].into());
    let size = made_with.cloned().unwrap_or_else(|| volume.size.to_k8s());
    PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                limits: None,
            }),
            storage_class_name: volume.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
