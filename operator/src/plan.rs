//! The validate step: a ChatCluster's spec with every default resolved and everything checked that the API server cannot check. Pure.
//!
//! Later steps get a [`Plan`], never the raw spec.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kith_crds::{
    ChatCluster,
    chatcluster::{
        Durability, EventLogVariant, ExternalEventLog, HEAP_PERCENT, Images, MAX_MEMORY_PERCENT, ManagedEventLog,
        ServiceSpec, StorageSpec,
    },
    conditions::{self, Finding, reason},
    shared::{PodSettings, Quantity, Resources, Volume},
};
use kith_platform::{Layer, Service, in_order};
use kube::{Resource, ResourceExt};

use crate::{
    release::{Release, adopt},
    render::{meta::Component, versions},
};

/// A ChatCluster ready to be built.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own UID.
    pub uid: String,
    /// The UID that its data carries.
    pub data_uid: String,
    /// `spec.clusterName`, or the name.
    pub cluster_name: String,
    /// The version that runs.
    pub version: String,
    /// The images that run.
    pub images: Images,
    /// `imagePullPolicy` of all containers.
    pub pull_policy: &'static str,
    /// The owner reference for everything that is made.
    pub owner: OwnerReference,
    /// The storage engine.
    pub valkey: ValkeyPlan,
    /// The event log.
    pub event_log: EventLogPlan,
    /// The services that the ChatCluster itself runs, in the order of the platform's table.
    pub services: Vec<ServicePlan>,
    /// The rest of the spec, whose fields need no resolving.
    pub spec: kith_crds::ChatClusterSpec,
    /// Lifetime of a client token, seconds.
    pub token_ttl_s: u32,
    /// Between two new signing keys, seconds.
    pub key_rotation_s: i64,
}

/// The storage engine, resolved.
#[derive(Clone, Debug)]
pub struct ValkeyPlan {
    /// Shards that the operator keeps.
    pub shards: u32,
    /// Replicas besides the primary.
    pub replicas: u32,
    /// P.
    pub partitions: u32,
    /// When a write counts.
    pub durability: Durability,
    /// Data limit of each pod, bytes.
    pub max_memory: u64,
    /// The volume of each pod.
    pub volume: Volume,
    /// The pods; resources are set.
    pub pod: PodSettings,
}

/// The event log, resolved.
#[derive(Clone, Debug)]
pub struct EventLogPlan {
    /// K.
    pub partitions: u32,
    /// Copies of each topic.
    pub replication: u32,
    /// Copies that must hold an event.
    pub min_insync: u32,
    /// Retention, milliseconds.
    pub retention_ms: u64,
    /// Whose Kafka.
    pub kafka: KafkaPlan,
}

/// Whose Kafka, resolved.
#[derive(Clone, Debug)]
pub enum KafkaPlan {
    /// Brokers that the operator runs.
    Managed(Box<ManagedPlan>),
    /// Somebody else's.
    External(ExternalEventLog),
}

/// Brokers that the operator runs.
#[derive(Clone, Debug)]
pub struct ManagedPlan {
    /// The spec.
    pub spec: ManagedEventLog,
    /// Java heap, bytes.
    pub heap: u64,
    /// The pods; resources are set.
    pub pod: PodSettings,
}

/// One service.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    /// Which.
    pub service: Service,
    /// Pods.
    pub replicas: u32,
    /// The pods; resources are set.
    pub pod: PodSettings,
}

/// A ConfigMap or a Service port is refused above this; names are checked by CEL, this is the last line.
const HEAP_MIN: u64 = 256 << 20;
/// An engine below this cannot hold its own tables for a full set of slots.
const ENGINE_MIN: u64 = 32 << 20;

/// That the spec cannot be used, and why.
pub(crate) fn invalid(message: impl Into<String>) -> Finding {
    Finding::fails(conditions::READY, reason::INVALID_SPEC, message)
}

impl Plan {
    /// Resolves and checks; a finding says what is wrong with the spec and how to put it right.
    pub fn resolve(cluster: &ChatCluster, release: &Release) -> Result<Self, Finding> {
        let (version, images) = adopt(cluster, release)?;
        let missing = |what: &str| invalid(format!("the object has no {what}; it did not come from an API server"));
        let owner = cluster.controller_owner_ref(&()).ok_or_else(|| missing("uid"))?;
        let spec = cluster.spec.clone();
        let token_ttl = duration("auth.tokenTtl", &spec.auth.token_ttl)?;
        let rotation = duration("auth.keyRotationInterval", &spec.auth.key_rotation_interval)?;
        Ok(Self {
            name: cluster.name_any(),
            namespace: cluster.namespace().ok_or_else(|| missing("namespace"))?,
            uid: owner.uid.clone(),
            data_uid: cluster.data_uid().ok_or_else(|| missing("uid"))?,
            cluster_name: cluster.cluster_name(),
            services: services(&spec, &version),
            version,
            images,
            pull_policy: spec.image_pull_policy.as_str(),
            owner,
            valkey: valkey(&spec)?,
            event_log: event_log(&spec)?,
            token_ttl_s: u32::try_from(token_ttl.as_secs()).map_err(|_| invalid("spec.auth.tokenTtl is too long"))?,
            key_rotation_s: i64::try_from(rotation.as_secs())
                .map_err(|_| invalid("spec.auth.keyRotationInterval is too long"))?,
            spec,
        })
    }

    /// Addresses of the brokers for the services, comma-separated.
    pub fn bootstrap(&self) -> String {
        match &self.event_log.kafka {
            KafkaPlan::External(external) => external.bootstrap_servers.join(","),
            KafkaPlan::Managed(managed) => (0..managed.spec.brokers)
                .map(|i| format!("{}:{}", self.broker_host(i), crate::render::kafka::INTERNAL_PORT))
                .collect::<Vec<_>>()
                .join(","),
        }
    }

    /// The DNS name of one managed broker.
    pub fn broker_host(&self, index: u32) -> String {
        let name = crate::render::meta::component_name(&self.name, Component::Kafka);
        format!("{name}-{index}.{name}.{}.svc", self.namespace)
    }

    /// The services that the ChatCluster itself runs, in the order of a rollout.
    pub fn in_order(&self) -> Vec<&ServicePlan> {
        let order = in_order(self.services.iter().map(|of| of.service));
        order.into_iter().filter_map(|service| self.services.iter().find(|of| of.service == service)).collect()
    }

    /// Those of one layer.
    pub fn layer(&self, layer: Layer) -> Vec<&ServicePlan> {
        self.in_order().into_iter().filter(|of| of.service.layer() == layer).collect()
    }
}

fn duration(field: &str, text: &kith_crds::shared::Duration) -> Result<std::time::Duration, Finding> {
    text.to_std().map_err(|e| invalid(format!("spec.{field}: {e}")))
}

/// The component's settings over the platform's, with the component's own size where nobody gives one.
pub fn pod_settings(spec: &kith_crds::ChatClusterSpec, own: &PodSettings, size: fn() -> Resources) -> PodSettings {
    let mut merged = spec.pod_settings(own);
    merged.resources.get_or_insert_with(size);
    merged
}

fn valkey(spec: &kith_crds::ChatClusterSpec) -> Result<ValkeyPlan, Finding> {
    let storage = &spec.storage;
    if !storage.partitions.is_power_of_two() || !(16..=16_384).contains(&storage.partitions) {
        return Err(invalid("spec.storage.partitions must be a power of two from 16 to 16384"));
    }
    if storage.durability.ack_replicas > storage.replicas {
        return Err(invalid("spec.storage.durability.ackReplicas may not be above spec.storage.replicas"));
    }
    let pod = pod_settings(spec, &storage.pod, StorageSpec::default_resources);
    let resources = pod.resources.clone().unwrap_or_default();
    let ceiling = StorageSpec::max_memory_ceiling(&resources).ok_or_else(|| {
        invalid("spec.storage.pod.resources names no memory: the engine needs a memory limit, of which data takes 60 per cent")
    })?;
    let share = Share {
        field: "storage.maxMemory",
        percent: MAX_MEMORY_PERCENT,
        rest: "the rest is needed while files are rewritten and replicas are fed",
    };
    let max_memory = share.of(storage.max_memory.as_ref(), &resources, ceiling)?.unwrap_or(ceiling);
    if max_memory < ENGINE_MIN {
        return Err(invalid("the engine has less than 32Mi for data: raise spec.storage.pod.resources.limits.memory"));
    }
    Ok(ValkeyPlan {
        shards: storage.shards,
        replicas: storage.replicas,
        partitions: storage.partitions,
        durability: storage.durability.clone(),
        max_memory,
        volume: storage.volume.clone(),
        pod,
    })
}

fn event_log(spec: &kith_crds::ChatClusterSpec) -> Result<EventLogPlan, Finding> {
    let log = &spec.event_log;
    if log.partitions > spec.storage.partitions {
        return Err(invalid("spec.eventLog.partitions may not be above spec.storage.partitions"));
    }
    let retention = duration("eventLog.retention", &log.retention)?;
    let kafka = match log.variant() {
        EventLogVariant::External(external) => KafkaPlan::External(external),
        EventLogVariant::Managed(managed) => {
            let pod = pod_settings(spec, &managed.pod, ManagedEventLog::default_resources);
            let heap = heap(&managed, &pod.resources.clone().unwrap_or_default())?;
            if heap < HEAP_MIN {
                return Err(invalid(
                    "a broker needs a Java heap of 256Mi: raise spec.eventLog.managed.heapSize or the memory limit",
                ));
            }
            if managed.external_access.as_ref().is_some_and(|access| !access.tells_apart(managed.brokers)) {
                return Err(invalid(
                    "several brokers behind load balancers cannot share one host: put {index} into spec.eventLog.managed.externalAccess.advertisedHost",
                ));
            }
            KafkaPlan::Managed(Box::new(ManagedPlan { spec: managed, heap, pod }))
        }
    };
    Ok(EventLogPlan {
        partitions: log.partitions,
        replication: log.replication_factor(),
        min_insync: log.min_insync(),
        retention_ms: u64::try_from(retention.as_millis()).unwrap_or(u64::MAX),
        kafka,
    })
}

/// The Java heap of a broker in bytes; without a limit of its memory there is nothing to hold it against.
fn heap(managed: &ManagedEventLog, resources: &Resources) -> Result<u64, Finding> {
    let share = Share {
        field: "eventLog.managed.heapSize",
        percent: HEAP_PERCENT,
        rest: "the rest is needed outside of the heap: threads, buffers, the files' pages",
    };
    let ceiling = ManagedEventLog::heap_ceiling(resources);
    share
        .of(managed.heap_size.as_ref(), resources, ceiling.unwrap_or(u64::MAX))?
        .or_else(|| resources.memory_bytes().map(|bytes| bytes / 2))
        .ok_or_else(|| invalid("spec.eventLog.managed: give heapSize or pod.resources.limits.memory"))
}

/// A part of a pod's memory limit that a field of the spec asks for.
struct Share {
    field: &'static str,
    /// The largest part.
    percent: u64,
    /// What the rest is for.
    rest: &'static str,
}

impl Share {
    /// The bytes asked for, if any are; refused where they are more than `ceiling`. The API server sees this only where the component names
    /// its own limit, not where that comes from `spec.pod` or is the component's own.
    fn of(&self, asked: Option<&Quantity>, resources: &Resources, ceiling: u64) -> Result<Option<u64>, Finding> {
        let Self { field, percent, rest } = self;
        let Some(asked) = asked else { return Ok(None) };
        let bytes = asked.to_bytes().map_err(|e| invalid(format!("spec.{field}: {e}")))?;
        if bytes <= ceiling {
            return Ok(Some(bytes));
        }
        let mebibytes = |bytes: u64| format!("{}Mi", bytes >> 20);
        Err(invalid(format!(
            "spec.{field} is {asked}, and the pods' memory limit is {}: at most {percent} per cent of it, {}, may be asked for, {rest}; \
             lower it or raise the limit",
            mebibytes(resources.memory_bytes().unwrap_or_default()),
            mebibytes(ceiling),
        )))
    }
}

fn services(spec: &kith_crds::ChatClusterSpec, version: &str) -> Vec<ServicePlan> {
    let plan = |service| {
        let (replicas, own) = spec.services.of(service)?;
        Some(ServicePlan { service, replicas, pod: pod_settings(spec, own, ServiceSpec::default_resources) })
    };
    versions::services(version).into_iter().filter_map(plan).collect()
}

#[cfg(test)]
pub(crate) mod tests;
