//! The data-plane step: the engine is brought to what it should be, and what was seen is kept for status.
//!
//! It comes before whatever writes to the API server, and each part of it goes on when another fails: what cannot be written must not end
//! failover.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use kith_crds::ChatCluster;
use kube::ResourceExt;

use super::{
    Facts, Observed, PassError, StorageFacts, copies, desired, shards, told,
    upkeep::{self, Upkeep},
};
use crate::{
    apply::Applier,
    context::Context,
    dataplane::{
        self,
        types::{Desired, HandOver, Problem},
    },
    plan::Plan,
    rebalance,
    render::meta::{self, Component},
    runtime::{Identity, Login, Runtime, Snapshot},
    workload,
};

/// How long one pass may work on the engine.
const BUDGET: Duration = Duration::from_secs(5);
/// After a primary died, no other gives its place up for the sake of order.
const REST: Duration = Duration::from_secs(30);

/// StorageShards are made, emptied and removed. Answers whether some were made.
pub(super) async fn shards(
    cluster: &ChatCluster,
    context: &Context,
    plan: &Plan,
    observed: &Observed,
    applier: &Applier,
) -> Result<bool, PassError> {
    let before = context.clusters.get(&plan.namespace, &plan.name).and_then(|r| r.snapshot());
    let steps = shards::steps(plan, &observed.shards, before.as_deref());
    for shard in &steps.create {
        context.event(cluster, false, "ShardCreated", &format!("makes StorageShard {}", shard.name_any())).await;
    }
    let made = !steps.create.is_empty();
    shards::carry_out(applier, steps, &observed.shards).await?;
    Ok(made)
}

/// The step. An error is one of this process alone; everything else is noted in `facts`.
pub(super) async fn step(
    cluster: &ChatCluster,
    context: &Arc<Context>,
    plan: &Plan,
    observed: &Observed,
    login: &Login,
    facts: &mut Facts,
) -> Result<Arc<Runtime>, PassError> {
    let before = context.clusters.get(&plan.namespace, &plan.name).and_then(|r| r.snapshot());
    let formed = desired::is_formed(cluster);
    let storage = observed.deployments.get(&meta::component_name(&plan.name, Component::STORAGE));
    let library = facts.noted(desired::library(plan, &observed.pods, storage)).flatten();
    let library_name = library.as_ref().map(|library| library.name.clone());
    let desired =
        Arc::new(desired::desired(plan, library, &observed.shards, &observed.pods, formed, before.as_deref()));
    let who =
        Identity { namespace: &plan.namespace, name: &plan.name, uid: &plan.uid, cluster_name: &plan.cluster_name };
    let runtime = context.clusters.ensure(&who, login, &desired)?;
    runtime.desire(&desired);
    let outcome = dataplane::converge(&runtime.links, &context.guard, &runtime.gate, &desired, BUDGET).await;
    if formed {
        let world = rebalance::world::of(&desired, &outcome.seen);
        facts.noted(rebalance::automatic::ensure(context, cluster, &world).await);
    }
    let upkeep = if is_foreign(&outcome.problems) {
        Upkeep::default()
    } else {
        let settled = formed && !outcome.unfinished;
        let readiness = &outcome.readiness;
        let (moving, shaken) = (runtime.gate.is_moving(), runtime.prober().replaced_within(REST));
        let pass = upkeep::Pass { context, cluster, plan, observed, desired: &desired, readiness, moving, shaken };
        facts.noted(upkeep::carry_out(&pass, settled).await).unwrap_or_default()
    };
    if !upkeep.hand_overs.is_empty() {
        // The prober is told at once; the next pass finds the wish in the snapshot.
        runtime.desire(&Arc::new(with_hand_overs(&desired, &upkeep.hand_overs)));
    }
    let prober = runtime.prober();
    let mut problems = outcome.problems;
    problems.extend(upkeep.problems);
    problems.extend(lowered(&runtime, plan, &desired, &outcome.readiness));
    problems.extend(prober.problems);
    problems
        .extend(prober.failures.into_iter().map(|words| Problem::new(dataplane::types::Reason::CommandFailed, words)));
    problems.dedup();
    let empty =
        outcome.readiness.shards.iter().filter(|s| s.is_empty(&outcome.seen)).map(|s| s.shard.clone()).collect();
    let acknowledged_by = acknowledged_by(&runtime, plan, &desired, &outcome.readiness);
    let (copies, shrinkable) = copies(&runtime, plan, &desired, &outcome.readiness);
    let snapshot = Snapshot {
        acknowledged_by,
        copies,
        shrinkable,
        readiness: outcome.readiness.clone(),
        problems: problems.clone(),
        empty,
        hand_overs: upkeep.hand_overs,
    };
    let told = told::told(observed.shards.keys(), &snapshot, &prober.failovers, &observed.pods, &observed.claims);
    runtime.remember(snapshot);
    let news = runtime.tell(told);
    for shard in &news {
        context.wake.shard(&plan.namespace, shard);
    }
    let kept = observed.shards.values().filter(|s| !s.is_handmade());
    facts.storage = Some(StorageFacts {
        unfinished: outcome.unfinished || upkeep.busy,
        trouble: workload::trouble(&observed.pods, Component::Valkey.name(), None),
        shards: count(kept.clone()),
        extra: count(observed.shards.values().filter(|s| s.is_handmade())),
        draining: count(kept.filter(|s| s.spec.draining)),
        library: library_name,
        failovers: prober.failovers,
        news: !news.is_empty(),
        readiness: outcome.readiness,
        problems,
    });
    Ok(runtime)
}

fn is_foreign(problems: &[Problem]) -> bool {
    problems.iter().any(|p| p.reason == dataplane::types::Reason::ForeignData)
}

fn with_hand_overs(desired: &Desired, hand_overs: &BTreeMap<String, HandOver>) -> Desired {
    let mut desired = desired.clone();
    for shard in &mut desired.shards {
        shard.hand_over = hand_overs.get(&shard.name).cloned();
    }
    desired
}

/// Shards whose writes are acknowledged by fewer replicas than asked for, from now on or still.
fn lowered(
    runtime: &Runtime,
    plan: &Plan,
    desired: &Desired,
    readiness: &dataplane::readiness::Readiness,
) -> Vec<Problem> {
    let durability = &plan.valkey.durability;
    let mut shortage = runtime.shortage.lock().unwrap_or_else(PoisonError::into_inner);
    readiness
        .shards
        .iter()
        .filter_map(|health| {
            let lowered = desired.shard(&health.shard)?.lowered;
            shortage.judge(Instant::now(), durability.when_degraded, durability.ack_replicas, lowered, health)
        })
        .collect()
}

/// How many replicas certainly hold each acknowledged write of each shard from now on.
fn acknowledged_by(
    runtime: &Runtime,
    plan: &Plan,
    desired: &Desired,
    readiness: &dataplane::readiness::Readiness,
) -> BTreeMap<String, u32> {
    let asked = plan.valkey.durability.ack_replicas;
    let mut shortage = runtime.shortage.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |health: &dataplane::readiness::ShardHealth| {
        let sure = desired.shard(&health.shard)?.acknowledged_by;
        Some((health.shard.clone(), shortage.sure(asked, sure, health)))
    };
    readiness.shards.iter().filter_map(of).collect()
}

/// The pods of each shard that may hold acknowledged writes from now on, and the shards that may lose their surplus pods.
fn copies(
    runtime: &Runtime,
    plan: &Plan,
    desired: &Desired,
    readiness: &dataplane::readiness::Readiness,
) -> (BTreeMap<String, Vec<String>>, Vec<String>) {
    let asked = plan.valkey.durability.ack_replicas;
    let mut departures = runtime.departures.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut all, mut shrinkable) = (BTreeMap::new(), Vec::new());
    for health in &readiness.shards {
        let Some(shard) = desired.shard(&health.shard) else { continue };
        all.insert(shard.name.clone(), departures.copies(shard, asked, health));
        if copies::may_shrink(shard, health) {
            shrinkable.push(shard.name.clone());
        }
    }
    (all, shrinkable)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
