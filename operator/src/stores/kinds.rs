//! The kinds that are read from watches: which objects of each, of whom they are, and what of them is not kept.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard, names};
use kube::{ResourceExt, api::ListParams, runtime::watcher};

use crate::{apply::Object, render::meta};

/// A kind that is read from a watch. What is not said otherwise holds for objects that the operator makes.
pub trait Kind: Object {
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

impl Kind for ConfigMap {}
impl Kind for HorizontalPodAutoscaler {}
impl Kind for Ingress {}
impl Kind for NetworkPolicy {}
impl Kind for PersistentVolumeClaim {}
impl Kind for PodDisruptionBudget {}
impl Kind for Secret {}
impl Kind for Service {}
impl Kind for ServiceAccount {}
impl Kind for StatefulSet {}

impl Kind for Deployment {
    /// Who wrote the number of replicas decides whether it is the user's: managers are kept.
    fn trim(&mut self) {}
}

impl Kind for Pod {
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
    fn selection() -> watcher::Config {
        watcher::Config::default()
    }
}
