//! Shards as a platform team changes them: scaled, weighted, their rebalances watched, stopped and taken up again.

use std::time::Duration;

use kith_crds::{
    ChatCluster, ShardRebalance, StorageShard, names,
    shardrebalance::{Proposal, RebalancePhase},
};
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
const POLL: Duration = Duration::from_secs(1);
/// How far a shard may be off its share: the bound that rebalances work to, per cent.
const BOUND_PERCENT: u32 = 5;
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
            if let Some(moving) = all.iter().find(|r| phase(r) == RebalancePhase::Rebalancing) {
                return Ok(Some(moving.name_any()));
            }
            // All that is wanted may be in place already.
            let wanted = self.wanted_shards().await.map_err(|e| e.to_string())?;
            self.spread_over(wanted as usize).await.map(|()| None)
        });
        Ok(found.await?)
    }

    /// Waits until there are exactly `shards` shards, each with its share, nothing moves, and everything is healthy.
    pub async fn await_balanced(&self, shards: usize, deadline: Duration) -> Result<(), ClusterError> {
        await_every(POLL, &format!("{shards} balanced shards"), deadline, || async {
            self.spread_over(shards).await?;
            let ailments = self.ailments().await.map_err(|e| e.to_string())?;
            if ailments.is_empty() { Ok(()) } else { Err(ailments.join("; ")) }
        })
        .await?;
        Ok(())
    }

    /// The same, whatever ails the copies: while things die something always does.
    pub async fn await_spread(&self, shards: usize, deadline: Duration) -> Result<(), ClusterError> {
        await_every(POLL, &format!("slots spread over {shards} shards"), deadline, || self.spread_over(shards)).await?;
        Ok(())
    }

    async fn spread_over(&self, shards: usize) -> Result<(), String> {
        let now = self.shards().await.map_err(|e| e.to_string())?;
        if now.len() != shards {
            return Err(format!("{} shards: {}", now.len(), self.told().await));
        }
        match self.unbalanced().await.map_err(|e| e.to_string())? {
            Some(why) => Err(format!("{why}: {}", self.told().await)),
            None => Ok(()),
        }
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
        let (shards, rebalances) = (self.shards().await?, self.rebalances().await?);
        if let Some(moving) = rebalances.iter().find(|r| phase(r).is_active()) {
            return Ok(Some(format!("{} moves slots", moving.name_any())));
        }
        let each = SLOTS / f64::from(self.chat_cluster().await?.spec.storage.partitions);
        let mut done =
            rebalances.iter().filter(|r| phase(r) == RebalancePhase::Ready).filter_map(|r| r.status.as_ref());
        let by_load = done.any(|status| match &status.proposal {
            Some(proposal) => carried_out(proposal, &shards, each),
            // Nothing had to move. By number alone that is twice the bound at most: the rest is bytes.
            None => off_by_slots(&shards, each, 2 * BOUND_PERCENT).is_none(),
        });
        Ok(if by_load { None } else { off_by_slots(&shards, each, BOUND_PERCENT) })
    }

    /// The sample's `spec.storage.shards`.
    pub async fn wanted_shards(&self) -> Result<u32, ClusterError> {
        Ok(self.api::<ChatCluster>().get(&self.name).await?.spec.storage.shards)
    }
}

/// Where a rebalance stands; one that the operator has not met yet is new.
pub(super) fn phase(rebalance: &ShardRebalance) -> RebalancePhase {
    rebalance.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

fn slots(shard: &StorageShard) -> f64 {
    f64::from(shard.status.as_ref().map_or(0, |s| s.slots))
}

/// Whether the shards are just as a proposal left them that came within the bound. It counts the bytes of each partition.
fn carried_out(proposal: &Proposal, shards: &[StorageShard], each: f64) -> bool {
    let after = |shard: &StorageShard| proposal.shards.iter().find(|s| s.name == shard.name_any());
    proposal.imbalance_after_percent <= BOUND_PERCENT
        && shards.iter().all(|shard| {
            after(shard).is_some_and(|s| {
                s.weight == shard.spec.effective_weight()
                    && (f64::from(s.partitions_after) * each - slots(shard)).abs() < 0.5
            })
        })
}

/// The first shard that is further off its share than the bound in per cent, by the number of its slots.
fn off_by_slots(shards: &[StorageShard], each: f64, bound: u32) -> Option<String> {
    let weight = |shard: &StorageShard| f64::from(shard.spec.effective_weight());
    let total: f64 = shards.iter().map(weight).sum();
    shards.iter().find_map(|shard| {
        let (owned, share) = (slots(shard), SLOTS * weight(shard) / total.max(1.0));
        let allowed = (share * f64::from(bound) / 100.0).max(each) + 0.5;
        let off = (owned - share).abs() > allowed;
        off.then(|| format!("{} owns {owned} slots, its share is {share:.0}", shard.name_any()))
    })
}
