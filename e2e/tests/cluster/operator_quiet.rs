//! A cluster that nobody changes is left alone, chat traffic or not; a new operator restarts nothing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kith_e2e::{
    cluster::OPERATOR_NAMESPACE,
    load::{Load, LoadOptions},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{HEAL, alone, behaviour::Proof};

/// Long enough for several passes of every periodic check.
const WATCHED: Duration = Duration::from_secs(45);
/// What another test has left to be done is done when so long nothing was written: longer than a ChatCluster that is well waits for a pass.
const SETTLED: Duration = Duration::from_secs(35);

#[tokio::test]
async fn an_unchanged_cluster_under_chat_writes_nothing_but_leases() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let load = Load::start(&target, LoadOptions::default()).await?;
    load.all_serve(HEAL).await?;
    cluster.await_quiet(SETTLED, HEAL).await?;
    let before = cluster.writes().await?;
    // What is proven is that nothing happens for a while, so a while must pass.
    tokio::time::sleep(WATCHED).await;
    let written = cluster.writes().await?.since(&before);
    let report = load.finish(HEAL).await?;
    assert!(report.is_clean() && report.acknowledged > 500, "{report}");
    assert!(written.is_empty(), "written in {WATCHED:?}: {written}");
    Ok(())
}

#[tokio::test]
async fn a_new_operator_leaves_every_pod_untouched() -> Proof {
    let (_guard, cluster, _) = alone().await?;
    let before = cluster.pod_uids().await?;
    let operators = Api::<Deployment>::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    // A changed template rolls the operator as a new image would.
    let stamp = kith_e2e::target::unique("roll");
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kith.dev/test": stamp}}}}});
    operators.patch("kith-operator", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    cluster.await_operator_rollout(HEAL).await?;
    cluster.await_healthy(HEAL).await?;
    assert_eq!(before, cluster.pod_uids().await?, "a new operator restarts nothing");
    Ok(())
}
