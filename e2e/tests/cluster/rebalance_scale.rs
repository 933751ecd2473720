//! Shards come and go while people chat: by `kubectl scale`, and by a rebalance that a person approves, stops and takes up again.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kith_crds::{
    ShardRebalance, ShardRebalanceSpec, StorageShard,
    shardrebalance::{RebalanceMode, RebalancePhase, RunOutcome},
};
use kith_e2e::{
    cluster::Cluster,
    ledger::Report,
    load::{Load, LoadOptions},
    target::{Target, unique},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof},
    kept,
};

/// New pods, a rebalance and, on the way back, empty shards removed.
const SCALED: Duration = Duration::from_secs(240);

/// Load while the shards change; nothing is lost, doubled or reordered, and no message is given up. How long anybody was refused is printed.
async fn moved(
    cluster: &Cluster,
    target: &Target,
    name: &str,
    change: impl AsyncFnOnce(&Load) -> Result<(), Failure>,
) -> Result<Report, Failure> {
    let load = Load::start(target, LoadOptions { pairs: 20, rate: 60.0, ..LoadOptions::default() }).await?;
    load.all_serve(HEAL).await?;
    load.ledger().injected(name);
    let changed = change(&load).await;
    if let Err(failure) = changed {
        cluster.scale(1).await?;
        return Err(failure);
    }
    load.all_serve(HEAL).await?;
    kept(name, load).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_out_and_in_under_load_loses_doubles_and_reorders_nothing() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let services: Vec<_> = uids(&cluster).await?;
    moved(&cluster, &target, "1 → 3 → 2 → 1 shards", async |load| {
        for shards in [3, 2, 1] {
            load.ledger().note(&format!("{shards} shards wanted"));
            cluster.scale(shards).await?;
            cluster.await_moving(SCALED).await?;
            load.ledger().note("slots move");
            cluster.await_balanced(shards as usize, SCALED).await?;
            load.ledger().note("balanced");
        }
        Ok(())
    })
    .await?;
    assert_eq!(services, uids(&cluster).await?, "no service was restarted for it");
    let claims = cluster.api::<PersistentVolumeClaim>().list(&ListParams::default()).await?;
    let kept = claims.iter().any(|c| c.name_any().contains("-1-valkey-"));
    assert!(kept, "reclaimPolicy Retain keeps the volumes of removed shards");
    Ok(())
}

async fn uids(cluster: &Cluster) -> Result<Vec<(String, String)>, Failure> {
    let all = cluster.pod_uids().await?;
    Ok(all.into_iter().filter(|(name, _)| !name.contains("-valkey-")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_by_hand_is_planned_approved_stopped_and_taken_up_again() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    cluster.scale(2).await?;
    cluster.await_balanced(2, SCALED).await?;
    let result = by_hand(&cluster, &target).await;
    cluster.weigh(&format!("{}-1", cluster.name), 100).await?;
    cluster.scale(1).await?;
    cluster.await_balanced(1, SCALED).await?;
    result
}

/// Another weight makes an automatic rebalance; a person's own is planned beside it, and the two never run at once.
async fn by_hand(cluster: &Cluster, target: &Target) -> Proof {
    let api = cluster.api::<ShardRebalance>();
    let name = unique("by-hand");
    moved(cluster, target, "a rebalance by hand", async |_| {
        let spec = ShardRebalanceSpec {
            mode: RebalanceMode::Manual,
            max_bytes_per_second: "64Ki".into(),
            imbalance_percent: 1,
            ..ShardRebalanceSpec::automatic(&cluster.name)
        };
        // The weight is the user's; the operator's own rebalance for it is stopped, so that this one decides.
        let second: StorageShard = cluster.api().get(&format!("{}-1", cluster.name)).await?;
        cluster.weigh(&second.name_any(), second.spec.weight * 3).await?;
        if let Some(automatic) = cluster.await_moving(SCALED).await? {
            cluster.tell(&automatic, "stop").await?;
            let ended = |r: &ShardRebalance| phase(r).is_final();
            cluster.await_object(&api, &automatic, "the operator's rebalance to stop", SCALED, ended).await?;
        }
        api.create(&PostParams::default(), &ShardRebalance::new(&name, spec)).await?;
        let planned = |r: &ShardRebalance| phase(r) == RebalancePhase::ProposalReady;
        let object = cluster.await_object(&api, &name, "a proposal", SCALED, planned).await?;
        let proposal = object.status.and_then(|s| s.proposal).ok_or("a proposal")?;
        assert!(proposal.imbalance_after_percent < proposal.imbalance_before_percent, "{proposal:?}");
        let stale = cluster.tell(&name, "approve=something-else").await;
        assert!(stale.is_err(), "an approval that names another proposal is refused at the door");
        cluster.tell(&name, &format!("approve={}", proposal.id)).await?;
        let moving = |r: &ShardRebalance| {
            r.status.as_ref().is_some_and(|s| s.progress.as_ref().is_some_and(|p| p.moved_partitions > 0))
                || phase(r) == RebalancePhase::Ready
        };
        cluster.await_object(&api, &name, "partitions to move", SCALED, moving).await?;
        cluster.tell(&name, "stop").await?;
        let stopped = cluster.await_object(&api, &name, "it to stop", SCALED, |r| phase(r).is_final()).await?;
        if phase(&stopped) == RebalancePhase::Stopped {
            let run = stopped.status.and_then(|s| s.history.first().cloned()).ok_or("a history")?;
            assert_eq!(run.outcome, RunOutcome::Stopped, "{run:?}");
            cluster.tell(&name, "refresh").await?;
            let again = cluster.await_object(&api, &name, "a new proposal", SCALED, planned).await?;
            let proposal = again.status.and_then(|s| s.proposal).ok_or("a proposal")?;
            cluster.tell(&name, &format!("approve={}", proposal.id)).await?;
        }
        cluster.await_object(&api, &name, "it to be done", SCALED, |r| phase(r) == RebalancePhase::Ready).await?;
        cluster.await_balanced(2, SCALED).await?;
        Ok(())
    })
    .await?;
    api.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

fn phase(rebalance: &ShardRebalance) -> RebalancePhase {
    rebalance.status.as_ref().map(|s| s.phase).unwrap_or_default()
}
