//! A second ChatCluster in a namespace of its own: it comes up, its name lies beside the first one's, and its end leaves nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use kith_crds::{ChatCluster, StorageShard};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};

use crate::{alone, behaviour::Proof};

const GONE: Duration = Duration::from_secs(120);

fn manifest(namespace: &str) -> String {
    let services = kith_e2e::cluster::one_pod_each();
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}\n---\n\
         apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {{name: second, namespace: {namespace}}}\nspec:\n\
         \x20 pod: {{resources: {{requests: {{cpu: 5m, memory: 16Mi}}, limits: {{memory: 256Mi}}}}}}\n\
         \x20 storage: {{replicas: 1, volume: {{size: 1Gi, reclaimPolicy: Delete}}}}\n\
         \x20 eventLog: {{external: {{bootstrapServers: [\"nobody.example.invalid:9092\"]}}}}\n\
         \x20 services: {{{services}, business: {{replicas: 1}}}}\n"
    )
}

#[tokio::test]
async fn an_unreachable_event_log_is_said_in_words_and_the_end_leaves_nothing() -> Proof {
    let (_guard, cluster, _) = alone().await?;
    let namespace = kith_e2e::target::unique("second");
    let untouched = cluster.pod_uids().await?;
    let output = cluster.apply(&manifest(&namespace), &["-n", &namespace]).await?;
    assert!(output.success, "{}", output.stderr);
    let clusters = Api::<ChatCluster>::namespaced(cluster.client.clone(), &namespace);
    let says = |object: &ChatCluster| {
        let conditions = object.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        conditions.iter().any(|c| {
            c.type_ == kith_crds::conditions::EVENT_LOG_READY
                && c.status == "False"
                && c.message.contains("nobody.example")
        })
    };
    cluster.await_object(&clusters, "second", "a condition that names the broker", GONE, says).await?;
    clusters.delete("second", &DeleteParams::foreground()).await?;
    cluster.await_gone(&clusters, "second", GONE).await?;
    let list = ListParams::default().labels("app.kubernetes.io/instance=second");
    let left = kith_e2e::wait::await_until("everything of it to be gone", GONE, || async {
        let client = || cluster.client.clone();
        let mut left = names(Api::<Pod>::namespaced(client(), &namespace).list(&list).await);
        left.extend(names(Api::<Service>::namespaced(client(), &namespace).list(&list).await));
        left.extend(names(Api::<Secret>::namespaced(client(), &namespace).list(&list).await));
        left.extend(names(Api::<StorageShard>::namespaced(client(), &namespace).list(&ListParams::default()).await));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    Api::<Namespace>::all(cluster.client.clone()).delete(&namespace, &DeleteParams::default()).await?;
    left?;
    cluster.await_namespace_gone(&namespace, GONE).await?;
    assert_eq!(untouched, cluster.pod_uids().await?, "the first ChatCluster is untouched");
    cluster.await_healthy(GONE).await?;
    Ok(())
}

fn names<K: ResourceExt + Clone>(found: kube::Result<kube::core::ObjectList<K>>) -> Vec<String> {
    match found {
        Ok(list) => list.items.iter().map(ResourceExt::name_any).collect(),
        Err(error) => vec![error.to_string()],
    }
}
