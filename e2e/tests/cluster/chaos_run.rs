//! A minute and a half of everything at once: shards come and go while operators, primaries and replicas die under load.

use kith_e2e::chaos::{self, ChaosOptions};

use crate::{alone, behaviour::Proof};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_while_shards_change_break_no_promise() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let outcome = chaos::run(&cluster, &target, &ChaosOptions::short()).await?;
    println!("{outcome}");
    assert!(outcome.is_clean(), "promises were broken\n{outcome}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_handed_over_before_its_pod_ends() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    crate::under_load(&cluster, &target, "primary's pod deleted in order", async |_| {
        let primary = cluster.primary_of(&shard).await?;
        cluster.delete_pod(&primary, 60).await?;
        cluster.await_another_primary(&shard, &primary, crate::HEAL).await?;
        Ok(())
    })
    .await?;
    let last = cluster.api::<kith_crds::StorageShard>().get(&shard).await?.status.and_then(|s| s.last_failover);
    let reason = last.map(|f| f.reason);
    assert_eq!(reason, Some(kith_crds::storageshard::FailoverReason::Switchover), "it was handed over, not taken");
    Ok(())
}
