//! The operator is uninstalled before the ChatClusters that it looked after: they can be deleted without it, and their volumes stay.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kith_crds::{ChatCluster, StorageShard, names};
use kith_e2e::{
    cluster::{Cluster, OPERATOR_NAMESPACE},
    env::workspace,
    target::unique,
    wait::await_until,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};

use crate::{HEAL, alone, behaviour::Proof, contained};

const GONE: Duration = Duration::from_secs(120);
const RELEASE: &str = "kith-operator";

fn manifest(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}\n---\n\
         apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {{name: orphan, namespace: {namespace}}}\nspec:\n\
         \x20 pod: {{resources: {{requests: {{cpu: 5m, memory: 16Mi}}, limits: {{memory: 256Mi}}}}}}\n\
         \x20 storage: {{replicas: 1, volume: {{size: 1Gi, reclaimPolicy: Retain}}}}\n\
         \x20 eventLog: {{external: {{bootstrapServers: [\"nobody.example.invalid:9092\"]}}}}\n"
    )
}

#[tokio::test]
async fn chat_clusters_can_be_deleted_after_the_operator_and_their_volumes_stay() -> Proof {
    let (_guard, cluster, _) = alone().await?;
    let namespace = unique("orphan");
    let output = cluster.apply(&manifest(&namespace), &["-n", &namespace]).await?;
    assert!(output.success, "{}", output.stderr);
    let shards = Api::<StorageShard>::namespaced(cluster.client.clone(), &namespace);
    let has_data = |shard: &StorageShard| shard.status.as_ref().is_some_and(|status| status.slots > 0);
    cluster.await_object(&shards, "orphan-0", "slots", GONE, has_data).await?;

    let values = cluster.helm(&["get", "values", RELEASE, "-n", OPERATOR_NAMESPACE, "-o", "json"]).await?;
    assert!(values.success, "{}", values.stderr);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.json");
    std::fs::write(&file, &values.stdout)?;

    let outcome = contained(without_an_operator(&cluster, &namespace)).await;
    // Whatever came of it, the other tests need an operator.
    let (chart, file) = (workspace().join("charts/kith-operator"), file.display().to_string());
    let chart = chart.display().to_string();
    let install = ["install", RELEASE, &chart, "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "120s", "-f", &file];
    let installed = cluster.helm(&install).await?;
    Api::<Namespace>::all(cluster.client.clone()).delete(&namespace, &DeleteParams::default()).await?;
    outcome?;
    assert!(installed.success, "{}", installed.stderr);
    cluster.await_operator(HEAL).await?;
    let held = await_until("the shards to be held again", HEAL, || async {
        let shards = cluster.shards().await.map_err(|e| e.to_string())?;
        let free = shards.iter().find(|shard| !shard.finalizers().iter().any(|f| f == names::FINALIZER));
        free.map_or(Ok(()), |shard| Err(shard.name_any()))
    });
    held.await?;
    cluster.await_namespace_gone(&namespace, GONE).await?;
    cluster.await_healthy(HEAL).await?;
    Ok(())
}

async fn without_an_operator(cluster: &Cluster, namespace: &str) -> Proof {
    let before = cluster.pod_uids().await?;
    let uninstall = ["uninstall", RELEASE, "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "240s"];
    let output = cluster.helm(&uninstall).await?;
    assert!(output.success, "{}", output.stderr);
    assert_eq!(before, cluster.pod_uids().await?, "the sample runs on");
    let shards = Api::<StorageShard>::namespaced(cluster.client.clone(), namespace);
    for shard in shards.list(&ListParams::default()).await? {
        assert!(shard.finalizers().is_empty(), "{} is held: {:?}", shard.name_any(), shard.finalizers());
    }
    let clusters = Api::<ChatCluster>::namespaced(cluster.client.clone(), namespace);
    clusters.delete("orphan", &DeleteParams::background()).await?;
    cluster.await_gone(&clusters, "orphan", GONE).await?;
    cluster.await_gone(&shards, "orphan-0", GONE).await?;
    let claims = Api::<PersistentVolumeClaim>::namespaced(cluster.client.clone(), namespace);
    let kept = claims.list(&ListParams::default().labels("kith.dev/shard=orphan-0")).await?;
    assert_eq!(kept.items.len(), 2, "reclaimPolicy Retain holds without the operator");
    Ok(())
}
