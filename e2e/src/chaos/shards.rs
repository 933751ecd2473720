//! Shards as a platform team changes them: scaled, weighted, their rebalances watched, stopped and taken up again.

use std::{collections::BTreeMap, time::Duration};

use kith_crds::{ChatCluster, ShardRebalance, StorageShard, names, shardrebalance::RebalancePhase};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    cluster::{Cluster, ClusterError},
    wait::await_every,
};

/// Between two looks at the API server.
const POLL: Duration = Duration::from_millis(300);
/// How far a shard may be off its share: the bound that rebalances work to, per cent.
const BOUND_PERCENT: f64 = 5.0;
const SLOTS: f64 = 16_384.0;

impl Cluster {
    /// Sets `spec.storage.shards`, as `kubectl scale` does.
    pub async fn scale(&self, shards: u32) -> Result<(), ClusterError> {
        let target = format!("chatclusters.kith.dev/{}", self.name);
        let output = self.kubectl(&["scale", &target, &format!("--replicas={shards}")]).await?;
        if output.success { Ok(()) } else { Err(ClusterError::Missing(output.stderr)) }
    }

    /// Sets a shard's weight.
    pub async fn weigh(&self, shard: &str, weight: u32) -> Result<(), ClusterError> {
        let patch = Patch::Merge(json!({"spec": {"weight": weight}}));
        self.api::<StorageShard>().patch(shard, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The ShardRebalances of the sample.
    pub async fn rebalances(&self) -> Result<Vec<ShardRebalance>, ClusterError> {
        let all = self.api::<ShardRebalance>().list(&ListParams::default()).await?;
        Ok(all.items.into_iter().filter(|r| r.spec.cluster_ref.name == self.name).collect())
    }

    /// Says something to a rebalance: `approve=ID`, `refresh` or `stop`.
    pub async fn tell(&self, rebalance: &str, command: &str) -> Result<(), ClusterError> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {names::ANNOTATION_REBALANCE: command}}}));
        self.api::<ShardRebalance>().patch(rebalance, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until a rebalance moves slots; its name. One that was through before anybody looked is no failure: `None`.
    pub async fn await_moving(&self, deadline: Duration) -> Result<Option<String>, ClusterError> {
        let found = await_every(POLL, "slots to move", deadline, || async {
            let all = self.rebalances().await.map_err(|e| e.to_string())?;
            let phase = |r: &ShardRebalance| r.status.as_ref().map(|s| s.phase).unwrap_or_default();
            if let Some(moving) = all.iter().find(|r| phase(r) == RebalancePhase::Rebalancing) {
                return Ok(Some(moving.name_any()));
            }
            match self.unbalanced().await.map_err(|e| e.to_string())? {
                None => Ok(None),
                Some(why) => Err(why),
            }
        });
        Ok(found.await?)
    }

    /// Waits until there are exactly `shards` shards, each with its share, nothing moves, and everything is healthy.
    pub async fn await_balanced(&self, shards: usize, deadline: Duration) -> Result<(), ClusterError> {
        await_every(POLL, &format!("{shards} balanced shards"), deadline, || async {
            let now = self.shards().await.map_err(|e| e.to_string())?;
            if now.len() != shards {
                return Err(format!("{} shards: {}", now.len(), self.told().await));
            }
            if let Some(why) = self.unbalanced().await.map_err(|e| e.to_string())? {
                return Err(format!("{why}: {}", self.told().await));
            }
            let ailments = self.ailments().await.map_err(|e| e.to_string())?;
            if ailments.is_empty() { Ok(()) } else { Err(ailments.join("; ")) }
        })
        .await?;
        Ok(())
    }

    /// What the rebalances say, for failures.
    async fn told(&self) -> String {
        let all = self.rebalances().await.unwrap_or_default();
        let said = all.iter().map(|r| {
            let status = r.status.clone().unwrap_or_default();
            format!("{} {:?} {}", r.name_any(), status.phase, status.message.unwrap_or_default())
        });
        said.collect::<Vec<_>>().join("; ")
    }

    /// Why the slots are not spread by weight, or move; `None` when they are and do not.
    pub async fn unbalanced(&self) -> Result<Option<String>, ClusterError> {
        let shards = self.shards().await?;
        let weights: BTreeMap<String, f64> =
            shards.iter().map(|s| (s.name_any(), f64::from(s.spec.effective_weight()))).collect();
        let total: f64 = weights.values().sum();
        let each = SLOTS / f64::from(self.chat_cluster().await?.spec.storage.partitions);
        for shard in &shards {
            let slots = f64::from(shard.status.as_ref().map_or(0, |s| s.slots));
            let share = SLOTS * weights[&shard.name_any()] / total.max(1.0);
            let allowed = (share * BOUND_PERCENT / 100.0).max(each) + 0.5;
            if (slots - share).abs() > allowed {
                return Ok(Some(format!("{} owns {slots} slots, its share is {share:.0}", shard.name_any())));
            }
        }
        let busy =
            self.rebalances().await?.into_iter().find(|r| r.status.as_ref().is_some_and(|s| s.phase.is_active()));
        Ok(busy.map(|r| format!("{} moves slots", r.name_any())))
    }

    /// The sample's `spec.storage.shards`.
    pub async fn wanted_shards(&self) -> Result<u32, ClusterError> {
        Ok(self.api::<ChatCluster>().get(&self.name).await?.spec.storage.shards)
    }
}
