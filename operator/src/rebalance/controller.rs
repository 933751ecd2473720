//! The ShardRebalance controller: reads the object, looks at the shards, lets `states` decide, moves a batch, writes the status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use kith_crds::{
    ShardRebalance, names,
    shardrebalance::{Command, RebalancePhase, ShardRebalanceStatus},
};
use kube::{Api, ResourceExt, api::ListParams, runtime::controller::Action};

use super::{
    executor::{BatchEnd, Executor, step::Batch},
    states::{self, Decision, Input, Next},
    world,
};
use crate::{
    apply::{self, ApplyError},
    chatcluster::PassError,
    context::{Context, key},
    figures::{Figure, Object},
    runtime::Runtime,
};

/// Between two looks at the annotation while a batch runs.
const ASK_PERIOD: Duration = Duration::from_secs(1);
/// After a batch that did not come to its end.
const AFTER_INTERRUPTION: Duration = Duration::from_secs(2);
/// After one that did: the end of a batch holds writes back, and messages are to wait for one such end at most.
const REST: Duration = Duration::from_millis(150);

/// One pass: at most one round of batches.
pub async fn reconcile(rebalance: Arc<ShardRebalance>, context: Arc<Context>) -> Result<Action, PassError> {
    let rebalance = context.stores.newest(rebalance);
    if rebalance.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let namespace = rebalance.namespace().unwrap_or_default();
    let cluster = rebalance.spec.cluster_ref.name.clone();
    let before = rebalance.status.clone().unwrap_or_default();
    let other = other_active(&rebalance, &context, &namespace).await?;
    let runtime = context.clusters.get(&namespace, &cluster);
    let mut seen = match &runtime {
        None => Err(format!("ChatCluster {cluster} does not run in namespace {namespace}.")),
        Some(runtime) => Ok(world::look(&runtime.links, &runtime.wanted(), false).await),
    };
    let now = Timestamp::now();
    let measured = match (&runtime, needs_loads(&rebalance, &before, other.as_deref(), &seen, now)) {
        (Some(runtime), true) => Some(world::look(&runtime.links, &runtime.wanted(), true).await),
        _ => None,
    };
    if let Some(measured) = measured {
        seen = Ok(measured);
    }
    let Decision { mut status, next } = states::decide(&input(&rebalance, &before, other.as_deref(), &seen, now));
    write(&context, &rebalance, &before, &status).await?;
    let action = match (next, runtime) {
        (Next::Again(pause), _) => Action::requeue(pause.max(Duration::from_millis(50))),
        (Next::Move(_), None) => Action::requeue(AFTER_INTERRUPTION),
        (Next::Move(batches), Some(runtime)) => {
            let written = status.clone();
            let pause = run(&rebalance, &context, &runtime, &batches, &mut status).await;
            write(&context, &rebalance, &written, &status).await?;
            Action::requeue(pause)
        }
    };
    context.failures.succeeded(&key(rebalance.as_ref()));
    Ok(action)
}

/// What to do after a failed pass: wait, longer each time.
pub fn failed(rebalance: &Arc<ShardRebalance>, error: &PassError, context: &Arc<Context>) -> Action {
    let key = key(rebalance.as_ref());
    let pause = context.failures.failed(&key);
    tracing::warn!(object = %key, %error, pause_ms = pause.as_millis(), "a pass failed");
    Action::requeue(pause)
}

fn input<'a>(
    rebalance: &'a ShardRebalance,
    status: &'a ShardRebalanceStatus,
    other_active: Option<&'a str>,
    seen: &'a Result<states::World, String>,
    now: Timestamp,
) -> Input<'a> {
    Input {
        spec: &rebalance.spec,
        generation: rebalance.metadata.generation,
        status,
        annotation: rebalance.annotations().get(names::ANNOTATION_REBALANCE).map(String::as_str),
        other_active,
        world: seen.as_ref().map_err(Clone::clone),
        now,
    }
}

fn needs_loads(
    rebalance: &ShardRebalance,
    status: &ShardRebalanceStatus,
    other: Option<&str>,
    seen: &Result<states::World, String>,
    now: Timestamp,
) -> bool {
    seen.is_ok() && states::needs_loads(&input(rebalance, status, other, seen, now))
}

/// Another ShardRebalance of this ChatCluster that moves slots.
async fn other_active(
    rebalance: &ShardRebalance,
    context: &Context,
    namespace: &str,
) -> Result<Option<String>, ApplyError> {
    let api: Api<ShardRebalance> = Api::namespaced(context.client.clone(), namespace);
    let all = api
        .list(&ListParams::default())
        .await
        .map_err(|e| ApplyError::kube::<ShardRebalance>(&rebalance.name_any(), e))?;
    let cluster = &rebalance.spec.cluster_ref.name;
    let active = |other: &&ShardRebalance| {
        other.uid() != rebalance.uid()
            && other.spec.cluster_ref.name == *cluster
            && other.status.as_ref().is_some_and(|s| s.phase.is_active())
    };
    Ok(all.items.iter().find(active).map(ResourceExt::name_any))
}

async fn write(
    context: &Context,
    rebalance: &ShardRebalance,
    before: &ShardRebalanceStatus,
    after: &ShardRebalanceStatus,
) -> Result<(), ApplyError> {
    apply::status(&context.stores, rebalance, Some(before), after).await?;
    if before.phase != after.phase {
        let warning = after.phase == RebalancePhase::NotReady;
        let note = after.message.as_deref().unwrap_or_default();
        context.event(rebalance, warning, &format!("{:?}", after.phase), note).await;
    }
    if let (Some(progress), Some(proposal)) = (&after.progress, &after.proposal) {
        let number = |name, value| Figure::new(name, f64::from(value));
        let figures = vec![
            number("kith_rebalance_moved_partitions", progress.moved_partitions),
            number("kith_rebalance_partitions", proposal.partitions),
        ];
        context.figures.set(&Object::of(rebalance), "rebalance", figures);
    }
    Ok(())
}

/// Runs batches side by side and rests, so that the bytes per second stay within the spec; answers how long to wait besides.
async fn run(
    rebalance: &ShardRebalance,
    context: &Context,
    runtime: &Runtime,
    batches: &[Batch],
    status: &mut ShardRebalanceStatus,
) -> Duration {
    let begun = Instant::now();
    let desired = runtime.wanted();
    let stop = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(ask(context.client.clone(), rebalance.clone(), stop.clone()));
    let executor = Executor { links: runtime.links.clone(), guard: context.guard.clone(), gate: runtime.gate.clone() };
    let wants_stop = || stop.load(Ordering::Acquire);
    let ends = join_all(batches.iter().map(|batch| executor.run(&desired, batch, &wants_stop))).await;
    let mut pause = Duration::from_millis(20);
    for (batch, end) in batches.iter().zip(ends) {
        let (from, to) = (batch.from.as_str(), batch.to.as_str());
        match end {
            Ok(BatchEnd::Moved) => {
                tracing::info!(cluster = %desired.cluster, from, to, partitions = batch.partitions.len(), took_ms = begun.elapsed().as_millis(), "partitions moved");
                metrics::counter!("kith_rebalance_partitions_moved_total").increment(batch.partitions.len() as u64);
                metrics::histogram!("kith_rebalance_batch_seconds").record(begun.elapsed().as_secs_f64());
            }
            Ok(BatchEnd::Interrupted(why)) => {
                tracing::info!(cluster = %desired.cluster, from, to, %why, "a batch was interrupted");
                pause = AFTER_INTERRUPTION;
            }
            Ok(BatchEnd::Blocked(problem)) => {
                states::blocked(status, rebalance.metadata.generation, &problem.to_string(), Timestamp::now());
                pause = AFTER_INTERRUPTION;
            }
            Err(error) => {
                tracing::warn!(cluster = %desired.cluster, from, to, %error, "a batch failed; the data plane decides what came of it");
                pause = AFTER_INTERRUPTION;
            }
        }
    }
    let rate = rebalance.spec.max_bytes_per_second.to_bytes().unwrap_or(u64::MAX).max(1);
    let bytes: u64 = batches.iter().map(|b| b.bytes).sum();
    let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
    // Waited for here: the status that is written next brings the next pass at once.
    let rested = begun.elapsed() + due.saturating_sub(begun.elapsed()).max(REST);
    while begun.elapsed() < rested && !wants_stop() {
        tokio::time::sleep(REST.min(rested.saturating_sub(begun.elapsed()))).await;
    }
    asking.abort();
    pause
}

/// Looks for a stop, or the end of the object, while batches run.
async fn ask(client: kube::Client, rebalance: ShardRebalance, stop: Arc<AtomicBool>) {
    let api: Api<ShardRebalance> = Api::namespaced(client, &rebalance.namespace().unwrap_or_default());
    let handled = rebalance.status.as_ref().and_then(|s| s.handled_command.clone());
    loop {
        tokio::time::sleep(ASK_PERIOD).await;
        let ordered = match api.get_opt(&rebalance.name_any()).await {
            Ok(None) => true,
            Ok(Some(now)) => {
                let word = now.annotations().get(names::ANNOTATION_REBALANCE).map(|w| w.trim().to_owned());
                let fresh = word != handled;
                let stop = word.as_deref().is_some_and(|w| w.parse() == Ok(Command::Stop));
                now.metadata.deletion_timestamp.is_some() || now.uid() != rebalance.uid() || fresh && stop
            }
            // The API server's silence is no order.
            Err(_) => false,
        };
        if ordered {
            stop.store(true, Ordering::Release);
            return;
        }
    }
}
