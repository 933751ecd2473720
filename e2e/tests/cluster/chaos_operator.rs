//! The operator dies: the platform serves on, and what fails meanwhile heals when it is back.

use kube::ResourceExt;

use crate::{HEAL, alone, behaviour::Proof, under_load};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platform_serves_while_both_operators_are_killed() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let before = cluster.pod_uids().await?;
    under_load(&cluster, &target, "both operators killed", async |load| {
        for pod in cluster.operator_pods().await? {
            cluster.delete_pod_in(kith_e2e::cluster::OPERATOR_NAMESPACE, &pod.name_any(), 0).await?;
        }
        load.progress(100, HEAL).await?;
        cluster.await_operator(HEAL).await?;
        Ok(())
    })
    .await?;
    assert_eq!(before, cluster.pod_uids().await?, "no pod of the platform was touched");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_with_the_leading_operator_is_replaced() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "leading operator and primary killed", async |_| {
        let (leader, primary) = (cluster.operator_leader().await?, cluster.primary_of(&shard).await?);
        cluster.delete_pod_in(kith_e2e::cluster::OPERATOR_NAMESPACE, &leader, 0).await?;
        cluster.delete_pod(&primary, 0).await?;
        cluster.await_operator(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}
