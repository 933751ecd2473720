//! The data-plane step: StorageShards are made, the engine is brought to what it should be, and what was seen is kept for status.

use std::{sync::Arc, time::Duration};

use kith_crds::ChatCluster;
use kube::ResourceExt;

use super::{Facts, Observed, PassError, StorageFacts, desired, shards};
use crate::{
    apply::Applier,
    build::meta::Component,
    context::Context,
    dataplane::{self, types::Problem},
    library,
    plan::Plan,
    rebalance,
    runtime::{Identity, Login, Runtime, Snapshot},
    workload,
};

/// How long one pass may work on the engine.
const BUDGET: Duration = Duration::from_secs(5);

/// The step.
pub(super) async fn step(
    cluster: &ChatCluster,
    context: &Arc<Context>,
    plan: &Plan,
    observed: &Observed,
    login: &Login,
    applier: &Applier,
    facts: &mut Facts,
) -> Result<Arc<Runtime>, PassError> {
    let before = context.clusters.get(&plan.namespace, &plan.name).and_then(|r| r.snapshot());
    let steps = shards::steps(plan, &observed.shards, before.as_deref());
    for shard in &steps.create {
        context.event(cluster, false, "ShardCreated", &format!("makes StorageShard {}", shard.name_any())).await;
    }
    let new_shards = !steps.create.is_empty();
    shards::carry_out(applier, steps, &observed.shards).await?;

    let formed = cluster.status.as_ref().and_then(|s| s.storage.as_ref()?.partitions).is_some();
    let library = library::of_version(&plan.version)?;
    let library_name = library.name.clone();
    let desired = Arc::new(desired::desired(plan, library, &observed.shards, &observed.pods, formed));
    let who =
        Identity { namespace: &plan.namespace, name: &plan.name, uid: &plan.uid, cluster_name: &plan.cluster_name };
    let runtime = context.clusters.ensure(&who, login, &desired)?;
    runtime.desire(&desired);
    let outcome = dataplane::converge(&runtime.links, &context.guard, &desired, BUDGET).await;
    if formed {
        let world = rebalance::world::of(&desired, &outcome.seen);
        rebalance::automatic::ensure(context, cluster, &world).await?;
    }
    let prober = runtime.prober();
    let mut problems = outcome.problems;
    problems.extend(prober.problems);
    problems
        .extend(prober.failures.into_iter().map(|words| Problem::new(dataplane::types::Reason::CommandFailed, words)));
    problems.dedup();
    let empty =
        outcome.readiness.shards.iter().filter(|s| s.is_empty(&outcome.seen)).map(|s| s.shard.clone()).collect();
    runtime.remember(Snapshot { readiness: outcome.readiness.clone(), problems: problems.clone(), empty });
    for shard in observed.shards.keys() {
        context.wake.shard(&plan.namespace, shard);
    }
    metrics(plan, &outcome.readiness);
    let kept = observed.shards.values().filter(|s| !s.is_handmade());
    facts.storage = Some(StorageFacts {
        unfinished: outcome.unfinished || new_shards,
        trouble: workload::trouble(&observed.pods, Component::Valkey.name(), None),
        shards: count(kept.clone()),
        extra: count(observed.shards.values().filter(|s| s.is_handmade())),
        draining: count(kept.filter(|s| s.spec.draining)),
        library: library_name,
        readiness: outcome.readiness,
        problems,
    });
    Ok(runtime)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// Live numbers are metrics, never status.
fn metrics(plan: &Plan, readiness: &dataplane::readiness::Readiness) {
    let cluster = format!("{}/{}", plan.namespace, plan.name);
    metrics::gauge!("kith_storage_slots_served", "cluster" => cluster.clone()).set(f64::from(readiness.slots_served));
    metrics::gauge!("kith_storage_ready", "cluster" => cluster.clone()).set(f64::from(u8::from(readiness.is_ready())));
    for shard in &readiness.shards {
        let labels = [("cluster", cluster.clone()), ("shard", shard.shard.clone())];
        metrics::gauge!("kith_storage_shard_keys", &labels).set(shard.keys as f64);
        metrics::gauge!("kith_storage_shard_memory_bytes", &labels).set(shard.memory as f64);
        metrics::gauge!("kith_storage_shard_slots", &labels).set(f64::from(shard.slots.len()));
        let lag = shard.members.iter().map(|m| m.lag_bytes).max().unwrap_or(0);
        metrics::gauge!("kith_storage_shard_lag_bytes", &labels).set(lag as f64);
    }
}
