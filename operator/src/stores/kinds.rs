//! The kinds that are read from watches: which objects of each, of whom they are, and what of them is not kept.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        networking::v1::{Ingress, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry},
};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard, names};
use kube::{ResourceExt, api::ListParams, runtime::watcher};
use serde_json::json;

use crate::{apply::Object, render::meta};

/// A kind that is read from a watch. What is not said otherwise holds for objects that the operator makes.
pub trait Kind: Object {
    /// Whether operators keep in its status what the next one must know, such as which copies count.
    const HOLDS_MEMORY: bool = false;
    /// Whether a new leader could do harm by an object that the former one wrote, replaced or deleted a moment ago. Of all other kinds an old
    /// state leads to a change that the next pass takes back, or to a question.
    const IS_PROVEN: bool = false;

    /// The ChatCluster that it belongs to.
    fn cluster(&self) -> Option<&str> {
        self.labels().get(names::LABEL_INSTANCE).map(String::as_str)
    }

    /// The objects that are watched.
    fn selection() -> watcher::Config {
        watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::FIELD_MANAGER))
    }

    /// The same ones of one ChatCluster, for a list.
    fn of_cluster(cluster: &str) -> ListParams {
        ListParams::default().labels(&meta::owned_selector(cluster))
    }

    /// Drops what nobody reads: most of an object's memory is who wrote which field.
    fn trim(&mut self) {
        self.meta_mut().managed_fields = None;
    }
}

impl Kind for HorizontalPodAutoscaler {}
impl Kind for Ingress {}
impl Kind for NetworkPolicy {}
impl Kind for PersistentVolumeClaim {}
impl Kind for PodDisruptionBudget {}
impl Kind for Service {}
impl Kind for ServiceAccount {}

/// The spec that could be used last.
impl Kind for ConfigMap {
    const IS_PROVEN: bool = true;
}

/// Authorities, keys and logins, which are applied whole.
impl Kind for Secret {
    const IS_PROVEN: bool = true;
}

/// Which pods are of the newest template.
impl Kind for StatefulSet {
    const IS_PROVEN: bool = true;
}

impl Kind for Deployment {
    /// Of the managers those are kept that own the number of replicas, with that alone: it decides whether it is the user's.
    fn trim(&mut self) {
        let owns = |fields: &FieldsV1| fields.0.pointer("/f:spec/f:replicas").is_some();
        let owners = self.metadata.managed_fields.take().into_iter().flatten();
        let owners =
            owners.filter(|entry| entry.fields_v1.as_ref().is_some_and(owns)).map(|entry| ManagedFieldsEntry {
                manager: entry.manager,
                operation: entry.operation,
                subresource: entry.subresource,
                fields_v1: Some(FieldsV1(json!({"f:spec": {"f:replicas": {}}}))),
                ..ManagedFieldsEntry::default()
            });
        self.metadata.managed_fields = Some(owners.collect()).filter(|owners: &Vec<_>| !owners.is_empty());
    }
}

impl Kind for Pod {
    /// A pod with another address than the one that is known counts as silent.
    const IS_PROVEN: bool = true;

    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        let Some(spec) = self.spec.as_mut() else { return };
        spec.volumes = None;
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            (container.command, container.args, container.env, container.env_from) = (None, None, None, None);
            (container.volume_mounts, container.lifecycle, container.security_context) = (None, None, None);
            (container.liveness_probe, container.readiness_probe, container.startup_probe) = (None, None, None);
        }
    }
}

impl Kind for ChatCluster {
    const HOLDS_MEMORY: bool = true;

    fn cluster(&self) -> Option<&str> {
        self.metadata.name.as_deref()
    }

    fn selection() -> watcher::Config {
        watcher::Config::default()
    }

    fn of_cluster(cluster: &str) -> ListParams {
        ListParams::default().fields(&format!("metadata.name={cluster}"))
    }
}

/// All that name the ChatCluster, hand-made ones included.
fn referring(cluster: &str) -> ListParams {
    ListParams::default().fields(&format!("spec.clusterRef.name={cluster}"))
}

impl Kind for StorageShard {
    const HOLDS_MEMORY: bool = true;

    fn cluster(&self) -> Option<&str> {
        Some(&self.spec.cluster_ref.name)
    }

    fn selection() -> watcher::Config {
        watcher::Config::default()
    }

    fn of_cluster(cluster: &str) -> ListParams {
        referring(cluster)
    }
}

impl Kind for Gateway {
    const HOLDS_MEMORY: bool = true;

    fn cluster(&self) -> Option<&str> {
        Some(&self.spec.cluster_ref.name)
    }

    fn selection() -> watcher::Config {
        watcher::Config::default()
    }

    fn of_cluster(cluster: &str) -> ListParams {
        referring(cluster)
    }
}

/// Of a ChatCluster are those that the operator made for it.
impl Kind for ShardRebalance {
    const HOLDS_MEMORY: bool = true;

    fn selection() -> watcher::Config {
        watcher::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn of_a_deployments_managers_those_are_kept_that_own_the_number_of_replicas() {
        let entry = |manager: &str, operation: &str, subresource: Option<&str>, fields: Value| {
            let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1",
                "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": fields});
            if let Some(subresource) = subresource {
                entry["subresource"] = subresource.into();
            }
            entry
        };
        let template = json!({"f:template": {"f:spec": {"f:containers": {}}}});
        let both = json!({"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {}}}});
        let mut deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "api", "managedFields": [
            entry(names::FIELD_MANAGER, "Apply", None, json!({"f:metadata": {"f:labels": {}}, "f:spec": both})),
            entry("kube-controller-manager", "Update", Some("status"), json!({"f:status": {"f:replicas": {}}})),
            entry("autoscaler", "Update", Some("scale"), json!({"f:spec": {"f:replicas": {}}})),
            entry("somebody", "Update", None, json!({"f:spec": template})),
        ]}}))
        .unwrap();
        deployment.trim();
        let kept = serde_json::to_value(&deployment.metadata.managed_fields).unwrap();
        let fields = json!({"f:spec": {"f:replicas": {}}});
        assert_eq!(
            kept,
            json!([
                {"manager": names::FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields},
                {"manager": "autoscaler", "operation": "Update", "subresource": "scale", "fieldsV1": fields},
            ])
        );
        deployment.metadata.managed_fields = deployment.metadata.managed_fields.map(|all| all[..0].to_vec());
        deployment.trim();
        assert_eq!(deployment.metadata.managed_fields, None);
    }
}
