//! Pods of every service, the Valkey primary and a replica die under load: no acknowledged message is lost and the platform heals.

use kith_e2e::{client::DeviceOptions, cluster::Cluster, wait::await_until};
use kith_platform::Service;
use kube::ResourceExt;

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof, SOON, say, two},
    under_load,
};

/// Deletes one pod of a component without grace and waits until the component has another.
async fn kill_one(cluster: &Cluster, component: &str) -> Result<(), Failure> {
    let pods = cluster.pods(component).await?;
    let victim = pods.first().ok_or_else(|| format!("no pod of {component}"))?;
    cluster.delete_pod(&victim.name_any(), 0).await?;
    let (uid, count) = (victim.uid(), pods.len());
    await_until(&format!("another pod of {component}"), HEAL, || async {
        let now = cluster.pods(component).await.map_err(|e| e.to_string())?;
        let ready = now.iter().filter(|p| p.uid() != uid && kith_e2e::cluster::is_ready(p)).count();
        if ready >= count { Ok(()) } else { Err(format!("{ready} of {count}")) }
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pod_of_whichever_service_or_of_the_brokers_loses_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    for component in Service::ALL.iter().map(|service| service.name()).chain(["kafka"]) {
        let fault = format!("{component} pod killed");
        under_load(&cluster, &target, &fault, async |_| kill_one(&cluster, component).await).await?;
    }
    Ok(())
}

/// Whether it comes back before the operator gives it up or another takes over: both are right, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_loses_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "Valkey primary killed", async |load| {
        let primary = cluster.primary_of(&shard).await?;
        cluster.delete_pod(&primary, 0).await?;
        load.all_serve(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_cannot_come_back_is_replaced_and_loses_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "Valkey primary killed, its node closed", async |_| {
        let primary = cluster.primary_of(&shard).await?;
        let pods = cluster.pods("valkey").await?;
        let pod = pods.iter().find(|p| p.name_any() == primary).ok_or("the primary has no pod")?;
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).ok_or("the primary's pod has no node")?;
        cordon(&cluster, "cordon", &node).await?;
        let replaced = async {
            cluster.delete_pod(&primary, 0).await?;
            cluster.await_another_primary(&shard, &primary, HEAL).await?;
            Ok::<_, Failure>(())
        }
        .await;
        cordon(&cluster, "uncordon", &node).await?;
        replaced
    })
    .await?;
    Ok(())
}

/// `kubectl cordon` and `uncordon`.
async fn cordon(cluster: &Cluster, what: &str, node: &str) -> Proof {
    let output = cluster.kubectl(&[what, node]).await?;
    if output.success { Ok(()) } else { Err(output.stderr.into()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_loses_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "Valkey replica killed", async |_| {
        let primary = cluster.primary_of(&shard).await?;
        let pods = cluster.pods("valkey").await?;
        let replica = pods.iter().map(ResourceExt::name_any).find(|name| *name != primary).ok_or("no replica")?;
        cluster.delete_pod(&replica, 0).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_asked_to_end_sends_its_clients_to_another() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let (alice, bob) = two(&target).await?;
    let device = target.device(&bob, DeviceOptions { pull: false, ..DeviceOptions::default() }).await?;
    let id = say(&alice, &bob, &["before"]).await?[0].conversation_id.clone();
    for pod in cluster.pods("gateway").await? {
        cluster.delete_pod(&pod.name_any(), 60).await?;
    }
    device.until("a second hello", HEAL, |inbox| (inbox.hellos.len() > 1).then_some(())).await?;
    say(&alice, &bob, &["after"]).await?;
    device.until("both messages", SOON, |inbox| (inbox.contiguous(&id) == 2).then_some(())).await?;
    device.inbox(|inbox| {
        let drained = inbox.closes.iter().any(|c| c.code == Some(kith_e2e::client::frame::close::DRAINED));
        assert!(drained, "closed as drained: {:?}", inbox.closes);
        assert!(!inbox.reconnect_hints.is_empty(), "told when to come back before the close");
    });
    cluster.await_healthy(HEAL).await?;
    Ok(())
}
