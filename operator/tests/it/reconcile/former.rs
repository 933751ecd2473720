//! What an earlier operator made: it goes when nobody reads it any more, and no sooner.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::world::World;

const NAMESPACE: &str = "former";

pub(crate) async fn the_configmap_that_all_services_read_goes_with_its_last_reader(world: &World) {
    world.create_cluster(NAMESPACE, "demo", json!({})).await;
    world.pass(NAMESPACE, "demo").await;
    let maps: Api<ConfigMap> = world.api(NAMESPACE);
    // Labels and owner are those of everything that is made for it.
    let mut former = maps.get("demo-storage-config").await.expect("a map");
    former.metadata.name = Some("demo-config".to_owned());
    former.metadata.resource_version = None;
    former.metadata.managed_fields = None;
    maps.create(&PostParams::default(), &former).await.expect("a map");
    let pods: Api<Pod> = world.api(NAMESPACE);
    let reader = |volumes: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "demo-storage-1", "labels": former.metadata.labels},
            "spec": {"containers": [{"name": "storage", "image": "kith:first"}], "volumes": volumes,
                "serviceAccountName": "demo-storage", "automountServiceAccountToken": false},
        }))
        .expect("a pod")
    };
    let now = DeleteParams::default().grace_period(0);
    let stands = async || maps.get_opt("demo-config").await.expect("an answer").is_some();
    let of_former = json!([{"name": "config", "configMap": {"name": "demo-config"}}]);
    pods.create(&PostParams::default(), &reader(of_former)).await.expect("a pod");
    world.pass(NAMESPACE, "demo").await;
    assert!(stands().await, "a container of the pod may start again");
    pods.delete("demo-storage-1", &now).await.expect("a deletion");
    let of_its_own = json!([{"name": "config", "configMap": {"name": "demo-storage-config"}}]);
    pods.create(&PostParams::default(), &reader(of_its_own)).await.expect("a pod");
    world.pass(NAMESPACE, "demo").await;
    assert!(!stands().await);
    pods.delete("demo-storage-1", &now).await.expect("a deletion");

    former.metadata.owner_references = None;
    maps.create(&PostParams::default(), &former).await.expect("a map");
    world.pass(NAMESPACE, "demo").await;
    assert!(stands().await, "it is somebody else's");
}
