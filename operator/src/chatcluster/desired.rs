//! What the data plane should be, from StorageShards and pods. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerState, Pod},
};
use kith_crds::{ChatCluster, StorageShard, conditions::Finding, names, storageshard::FailoverReason};
use kube::ResourceExt;

use crate::{
    apply::Live,
    dataplane::types::{Desired, DesiredShard, Library, Member, Presence},
    library,
    plan::Plan,
    render::{
        meta::{self, Component},
        valkey::{BUS_PORT, CLIENT_PORT},
        versions,
    },
    runtime::Snapshot,
};

use super::lowered;

/// Whether the ChatCluster's status says that its slots were given out.
pub(super) fn is_formed(cluster: &ChatCluster) -> bool {
    cluster.status.as_ref().and_then(|s| s.storage.as_ref()?.partitions).is_some()
}

/// The function library to have loaded, with `storage` as it runs and is about to. None: what the nodes hold stays.
pub(super) fn library(plan: &Plan, pods: &Live<Pod>, storage: Option<&Deployment>) -> Result<Option<Library>, Finding> {
    library::wanted(&plan.version, storage_versions(&plan.name, pods, storage))
}

/// The versions of `storage` that runs, and of the template by which more of it may be made at any moment.
fn storage_versions<'a>(
    cluster: &str,
    pods: &'a Live<Pod>,
    deployment: Option<&'a Deployment>,
) -> impl Iterator<Item = &'a str> {
    let name = meta::component_name(cluster, Component::STORAGE);
    let running = pods.values().filter(move |pod| is_made_by(pod, &name) && !has_ended(pod)).map(ResourceExt::labels);
    let next = deployment.and_then(|d| d.spec.as_ref()?.template.metadata.as_ref()?.labels.as_ref());
    running.chain(next).map(versions::of)
}

/// Whether a ReplicaSet of the Deployment made the pod: labels alone anyone can write.
fn is_made_by(pod: &Pod, deployment: &str) -> bool {
    let of = |set: &str| set.strip_prefix(deployment).is_some_and(|rest| rest.starts_with('-'));
    pod.owner_references().iter().any(|o| o.controller == Some(true) && o.kind == "ReplicaSet" && of(&o.name))
}

/// Whether no container of the pod will ever run again.
fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
}

/// The whole data plane.
pub(super) fn desired(
    plan: &Plan,
    library: Option<Library>,
    shards: &Live<StorageShard>,
    pods: &Live<Pod>,
    formed: bool,
    before: Option<&Snapshot>,
) -> Desired {
    let shards = shards
        .values()
        .filter(|shard| {
            shard.metadata.deletion_timestamp.is_none() || shard.finalizers().iter().any(|f| f == names::FINALIZER)
        })
        .map(|shard| desired_shard(plan, shard, pods, before))
        .collect();
    Desired {
        cluster: plan.name.clone(),
        cluster_uid: plan.data_uid.clone(),
        partitions: plan.valkey.partitions,
        ack_replicas: plan.valkey.durability.ack_replicas,
        fsync: plan.valkey.durability.fsync.as_str().to_owned(),
        formed,
        library,
        shards,
    }
}

fn desired_shard(plan: &Plan, shard: &StorageShard, pods: &Live<Pod>, before: Option<&Snapshot>) -> DesiredShard {
    let name = shard.name_any();
    let asked = plan.valkey.durability.ack_replicas;
    let lowered = lowered::is_lowered(shard);
    let last = before.and_then(|b| b.readiness.shards.iter().find(|h| h.shard == name));
    let stateful_set = meta::shard_name(&name);
    let copies = shard.status.as_ref().map(|s| s.copies.as_slice()).unwrap_or_default();
    let mut all: BTreeSet<u32> = (0..=plan.valkey.replicas).collect();
    all.extend(copies.iter().filter_map(|pod| meta::ordinal(pod)));
    let members = all
        .into_iter()
        .map(|index| {
            let pod_name = format!("{stateful_set}-{index}");
            let pod = pods.get(&pod_name).filter(|pod| belongs(pod, &stateful_set));
            // Where nothing is written down yet, all of them.
            let copy = copies.is_empty() || copies.contains(&pod_name);
            Member { copy, ..member(pod_name, pod) }
        })
        .collect();
    DesiredShard {
        weight: shard.spec.effective_weight(),
        replicas: plan.valkey.replicas,
        draining: shard.spec.draining || shard.metadata.deletion_timestamp.is_some(),
        min_replicas_to_write: lowered::wanted(asked, lowered, plan.valkey.durability.when_degraded, last),
        acknowledged_by: lowered::sure(asked, shard),
        lowered,
        hand_over: before.and_then(|b| b.hand_overs.get(&name).cloned()),
        force_promote: force_promote(shard),
        members,
        name,
    }
}

/// The pod that a person lets be promoted, once: not one whose promotion by force is written down already.
fn force_promote(shard: &StorageShard) -> Option<String> {
    let pod = shard.annotations().get(names::ANNOTATION_FORCE_PROMOTE)?.trim();
    let last = shard.status.as_ref().and_then(|status| status.last_failover.as_ref());
    let used = last.is_some_and(|last| last.reason == FailoverReason::Forced && last.to == pod);
    (!used).then(|| pod.to_owned())
}

/// Whether the pod is the StatefulSet's own: labels alone anyone can write.
pub(super) fn belongs(pod: &Pod, stateful_set: &str) -> bool {
    pod.owner_references()
        .iter()
        .any(|o| o.controller == Some(true) && o.kind == "StatefulSet" && o.name == stateful_set)
}

fn member(name: String, pod: Option<&Pod>) -> Member {
    let bus_port = BUS_PORT as u16;
    let Some(pod) = pod else {
        return Member {
            pod: name,
            uid: String::new(),
            node: None,
            address: None,
            bus_port,
            presence: Presence::Gone,
            copy: true,
        };
    };
    let presence = presence(pod);
    let ip: Option<IpAddr> = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()?.parse().ok());
    let reachable = matches!(presence, Presence::Running | Presence::Terminating);
    Member {
        pod: name,
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        address: ip.filter(|_| reachable).map(|ip| SocketAddr::new(ip, CLIENT_PORT as u16)),
        bus_port,
        presence,
        copy: true,
    }
}

/// What Kubernetes says of a pod with one container.
pub fn presence(pod: &Pod) -> Presence {
    if has_ended(pod) {
        return Presence::Gone;
    }
    let status = pod.status.as_ref();
    let container = status.and_then(|s| s.container_statuses.as_ref()?.first());
    let running = container.and_then(|c| c.state.as_ref()).is_some_and(|s| s.running.is_some());
    let ended = |state: Option<&ContainerState>| state.is_some_and(|s| s.terminated.is_some());
    let dead = container.is_some_and(|c| ended(c.state.as_ref()) || ended(c.last_state.as_ref()));
    match (running, dead, pod.metadata.deletion_timestamp.is_some()) {
        (true, _, true) => Presence::Terminating,
        (true, _, false) => Presence::Running,
        (false, true, _) => Presence::Gone,
        (false, false, true) => Presence::Terminating,
        (false, false, false) => Presence::Starting,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan;

    const PRESENT: &str = env!("CARGO_PKG_VERSION");

    /// A pod of `storage`, of a ReplicaSet of this name.
    fn storage_pod(set: &str, version: Option<&str>, phase: &str) -> (String, Pod) {
        let mut labels = json!({});
        if let Some(version) = version {
            labels[names::LABEL_VERSION] = version.into();
        }
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "u", "controller": true});
        let name = format!("{set}-{phase}-{version:?}");
        let pod = json!({"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}, "status": {"phase": phase}});
        (name, serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_newer_library_stays_until_the_last_newer_storage_pod_is_gone() {
        let older = plan(&json!({}));
        assert_eq!(older.version, versions::PREVIOUS);
        let template = |version: &str| -> Deployment {
            let labels: std::collections::BTreeMap<_, _> = versions::label(version).into_iter().collect();
            let template = json!({"metadata": {"labels": labels}});
            serde_json::from_value(json!({"spec": {"selector": {}, "template": template}})).unwrap()
        };
        let loaded = |pods: &[(String, Pod)], template: Option<&Deployment>| {
            let pods = pods.iter().cloned().collect();
            library(&older, &pods, template).unwrap().unwrap()
        };
        let of = |version: &str| library::wanted(version, []).unwrap().unwrap();
        let (old, new) = (storage_pod("demo-storage-1", None, "Running"), Some(PRESENT));
        let (before, after) = (template(PRESENT), template(versions::PREVIOUS));
        assert_eq!(loaded(&[], None), of(versions::PREVIOUS));
        assert_eq!(loaded(&[], Some(&before)), of(PRESENT), "more of it may be made");
        assert_eq!(loaded(std::slice::from_ref(&old), Some(&after)), of(versions::PREVIOUS));
        for phase in ["Pending", "Running"] {
            let newer = storage_pod("demo-storage-2", new, phase);
            assert_eq!(loaded(&[old.clone(), newer], Some(&after)), of(PRESENT), "{phase}");
        }
        for (set, phase) in [("demo-storage-2", "Failed"), ("somebodys-2", "Running")] {
            let other = storage_pod(set, new, phase);
            assert_eq!(loaded(&[old.clone(), other], Some(&after)), of(versions::PREVIOUS), "{set} {phase}");
        }
    }

    #[test]
    fn a_promotion_by_force_that_is_written_down_is_not_made_again_while_its_annotation_stays() {
        let shard = |last: serde_json::Value| -> StorageShard {
            serde_json::from_value(json!({
                "metadata": {"name": "demo-0", "annotations": {names::ANNOTATION_FORCE_PROMOTE: "demo-0-valkey-2 "}},
                "spec": {"clusterRef": {"name": "demo"}},
                "status": {"lastFailover": last}
            }))
            .unwrap()
        };
        let to = |pod: &str, reason: &str| json!({"at": "2026-01-01T00:00:00Z", "to": pod, "reason": reason});
        let wished = Some("demo-0-valkey-2".to_owned());
        assert_eq!(force_promote(&shard(json!(null))), wished);
        assert_eq!(force_promote(&shard(to("demo-0-valkey-2", "Forced"))), None);
        assert_eq!(force_promote(&shard(to("demo-0-valkey-2", "PrimaryDown"))), wished);
        assert_eq!(force_promote(&shard(to("demo-0-valkey-1", "Forced"))), wished, "another wish");
    }
}
