//! A platform of its own with the default of three brokers: it comes up, loses nothing when a broker dies, and fills a lost volume anew.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kith_crds::{ChatCluster, names};
use kith_e2e::{
    cluster::{Cluster, one_pod_each},
    kafka::Reader,
    target::Target,
    wait::await_until,
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof},
    contained, own, under_load,
};

/// Three brokers start on a busy machine of two cores.
const UP: Duration = Duration::from_secs(300);
const NAMESPACE: &str = "kith-trio";
const NAME: &str = "trio";

/// Small, but for the brokers, whose number is not said. Ports lie above the sample's.
fn manifest() -> String {
    let services = one_pod_each();
    format!(
        r"apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: kith.dev/v1alpha1
kind: ChatCluster
metadata: {{name: {NAME}, namespace: {NAMESPACE}}}
spec:
  pod: {{resources: {{requests: {{cpu: 20m, memory: 32Mi}}, limits: {{memory: 256Mi}}}}}}
  storage: {{replicas: 1, volume: {{size: 1Gi, reclaimPolicy: Delete}}, pod: {{resources: {{requests: {{cpu: 20m, memory: 64Mi}}, limits: {{memory: 512Mi}}}}}}}}
  eventLog:
    partitions: 4
    managed:
      volume: {{size: 1Gi, reclaimPolicy: Delete}}
      heapSize: 256Mi
      externalAccess: {{type: NodePort, nodePort: 30194, advertisedHost: 127.0.0.1, security: Plaintext}}
      pod: {{resources: {{requests: {{cpu: 50m, memory: 384Mi}}, limits: {{memory: 768Mi}}}}}}
  services: {{{services}, business: {{replicas: 1, exposure: {{type: NodePort, nodePort: 30543, extraHosts: [localhost, 127.0.0.1]}}}}}}
---
apiVersion: kith.dev/v1alpha1
kind: Gateway
metadata: {{name: edge, namespace: {NAMESPACE}}}
spec:
  clusterRef: {{name: {NAME}}}
  api: {{replicas: 1, pod: {{resources: {{requests: {{cpu: 20m, memory: 32Mi}}, limits: {{memory: 256Mi}}}}}}}}
  websocket: {{replicas: 1, pod: {{resources: {{requests: {{cpu: 20m, memory: 32Mi}}, limits: {{memory: 256Mi}}}}}}}}
  exposure: {{type: NodePort, nodePorts: {{api: 30180, websocket: 30181}}}}
"
    )
}

/// The platform as its clients and its business line see it.
async fn target(cluster: &Cluster, files: &Path) -> Result<Target, Failure> {
    let certificate = own::certificate(cluster, files).await?;
    let business = own::business(cluster, "127.0.0.1:30543", &certificate).await?;
    let kafka = "127.0.0.1:30194,127.0.0.1:30195,127.0.0.1:30196";
    Ok(Target::new("http://127.0.0.1:30180", "ws://127.0.0.1:30181/v1/connect", business, Reader::plain(kafka), NAME)?)
}

/// One platform for all of it: three brokers take a while to start.
#[ignore = "every night: it takes five minutes and two gigabytes"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_start_by_default_lose_nothing_and_fill_a_lost_volume_anew() -> Proof {
    let (_guard, first, _) = alone().await?;
    let output = first.apply(&manifest(), &["-n", NAMESPACE]).await?;
    assert!(output.success, "{}", output.stderr);
    let mut cluster = first.clone();
    (cluster.namespace, cluster.name) = (NAMESPACE.to_owned(), NAME.to_owned());
    let proof = contained(prove(&cluster)).await;
    own::take_down(&cluster, HEAL).await?;
    proof
}

async fn prove(cluster: &Cluster) -> Proof {
    cluster.await_healthy(UP).await?;
    let brokers = cluster.pods("kafka").await?;
    assert_eq!(brokers.len(), 3);
    for pod in &brokers {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let in_sync = conditions.iter().find(|c| c.type_ == names::CONDITION_IN_SYNC);
        assert!(in_sync.is_some_and(|c| c.status == "True"), "{}: {conditions:?}", pod.name_any());
    }
    let files = tempfile::tempdir()?;
    let target = target(cluster, files.path()).await?;
    under_load(cluster, &target, "one broker of three killed", async |load| {
        let pod = format!("{NAME}-kafka-1");
        let uid = cluster.api::<Pod>().get(&pod).await?.uid();
        cluster.delete_pod(&pod, 0).await?;
        load.all_serve(HEAL).await?;
        await_caught_up(cluster, &pod, uid).await
    })
    .await?;
    rolled_one_by_one(cluster, &target).await?;
    given_up(cluster, &target).await
}

/// Another pod of that name that says it has caught up.
async fn await_caught_up(cluster: &Cluster, pod: &str, uid: Option<String>) -> Proof {
    let back = |p: &Pod| p.uid() != uid && kith_e2e::cluster::is_ready(p);
    cluster.await_object(&cluster.api::<Pod>(), pod, "another pod that has caught up", HEAL, back).await?;
    Ok(())
}

/// A new template reaches all brokers, and never two of them are away.
async fn rolled_one_by_one(cluster: &Cluster, target: &Target) -> Proof {
    let before = cluster.pod_uids().await?;
    under_load(cluster, target, "brokers rolled", async |_| {
        let patch =
            json!({"spec": {"eventLog": {"managed": {"pod": {"annotations": {"example.com/rolled": "once"}}}}}});
        let clusters = cluster.api::<ChatCluster>();
        clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        await_until("all brokers to be new", UP, || async {
            let pods = cluster.pods("kafka").await.map_err(|e| e.to_string())?;
            let old = pods.iter().filter(|p| before.get(&p.name_any()) == p.uid().as_ref()).count();
            let away = 3 - pods.iter().filter(|p| kith_e2e::cluster::is_ready(p)).count();
            assert!(away <= 1, "{away} brokers are away at once");
            if old == 0 && away == 0 { Ok(()) } else { Err(format!("{old} are old, {away} away")) }
        })
        .await?;
        Ok(())
    })
    .await?;
    Ok(())
}

/// A person gives a broker up with its volume: it starts anew and copies everything.
async fn given_up(cluster: &Cluster, target: &Target) -> Proof {
    under_load(cluster, target, "a broker's volume lost", async |load| {
        let pod = format!("{NAME}-kafka-2");
        let uid = cluster.api::<Pod>().get(&pod).await?.uid();
        let (claims, claim) = (cluster.api::<PersistentVolumeClaim>(), format!("data-{pod}"));
        let old = claims.get(&claim).await?.uid();
        let clusters = cluster.api::<ChatCluster>();
        let ask = json!({"metadata": {"annotations": {names::ANNOTATION_REPLACE_BROKER: pod.clone()}}});
        clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&ask)).await?;
        cluster.await_object(&claims, &claim, "a new claim", HEAL, |c| c.uid() != old).await?;
        await_caught_up(cluster, &pod, uid).await?;
        let forgotten = |c: &ChatCluster| !c.annotations().contains_key(names::ANNOTATION_REPLACE_BROKER);
        cluster.await_object(&clusters, NAME, "the request to be forgotten", HEAL, forgotten).await?;
        load.all_serve(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}
