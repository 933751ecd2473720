//! What an earlier operator made and nobody reads any more: taken away once that is certain.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::Api;

use super::Observed;
use crate::{
    apply::{Applier, ApplyError},
    render::meta,
    stores::Kind,
};

/// The one ConfigMap that all services of a ChatCluster read before each had its own.
fn config_map(cluster: &str) -> String {
    meta::config_map(cluster)
}

/// Whether pods of this spec have files of a ConfigMap.
fn mounts(pod: Option<&PodSpec>, map: &str) -> bool {
    let volumes = pod.into_iter().flat_map(|pod| pod.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.config_map.as_ref()).any(|source| source.name == map)
}

/// Deletes the former ConfigMap when it is this ChatCluster's own, no Deployment would make pods that read it, and no pod is there that does:
/// one whose container starts again needs it. Asks for nothing where there is none.
pub(super) async fn prune(applier: &Applier, cluster: &str, observed: &Observed) -> Result<(), ApplyError> {
    let name = config_map(cluster);
    let Some(map) = observed.config_maps.get(&name).filter(|map| applier.owns(*map)) else { return Ok(()) };
    let mut templates = observed.deployments.values().filter_map(|deployment| deployment.spec.as_ref());
    if templates.any(|spec| mounts(spec.template.spec.as_ref(), &name)) {
        return Ok(());
    }
    // Of pods that are watched no volumes are kept.
    let api: Api<Pod> = Api::namespaced(applier.client.clone(), &applier.namespace);
    let pods = api.list(&Pod::of_cluster(cluster)).await.map_err(|e| ApplyError::kube::<Pod>("*", e))?;
    if pods.iter().any(|pod| mounts(pod.spec.as_ref(), &name)) {
        return Ok(());
    }
    applier.delete(map).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_reads_the_configmap_that_a_volume_of_it_names() {
        let pod = |volumes: serde_json::Value| {
            serde_json::from_value::<PodSpec>(json!({"containers": [], "volumes": volumes})).unwrap()
        };
        let own = pod(
            json!([{"name": "config", "configMap": {"name": "demo-storage-config"}}, {"name": "tmp", "emptyDir": {}}]),
        );
        let former = pod(json!([{"name": "config", "configMap": {"name": "demo-config"}}]));
        assert!(!mounts(Some(&own), &config_map("demo")) && mounts(Some(&former), &config_map("demo")));
        assert!(!mounts(None, &config_map("demo")));
    }
}
