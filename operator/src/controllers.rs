//! The controllers: what each watches and how a watched change leads to a pass.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard};
use kube::{
    Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    chatcluster::{self, PassError},
    context::{Context, Wakes, key},
    gateway, panics, rebalance, storageshard,
    stores::{Scope, Touched, scopes},
};

/// How long the start waits for watches to tell all objects; a kind that takes longer is read from lists until then.
const SYNC: Duration = Duration::from_secs(20);
/// Changes within this time lead to one pass: pods rarely change one thing at a time.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs all controllers until the context's end. Answers whether that is why it ended: no controller ends before.
pub async fn run(context: Arc<Context>, wakes: Wakes, namespaces: Vec<String>) -> bool {
    let scopes = scopes(namespaces);
    let begun = Instant::now();
    let mirrors = context.stores.watch(&scopes, &context.shutdown);
    // Failover waits for no pass, and for no kind that it does not need.
    if context.shutdown.run_until_cancelled(chatcluster::start_probers(&context)).await.is_none() {
        return true;
    }
    match context.shutdown.run_until_cancelled(context.stores.synced(SYNC)).await {
        None => return true,
        Some(true) => tracing::info!(took_ms = begun.elapsed().as_millis(), "all watches have told all objects"),
        Some(false) => tracing::error!("some watches have not told all objects: lists are read instead"),
    }
    let (clusters, shards) = (fan_out(wakes.clusters, &scopes), fan_out(wakes.shards, &scopes));
    let mut running = JoinSet::new();
    let wakes = clusters.into_iter().zip(shards);
    for ((scope, mirrors), (clusters, shards)) in scopes.iter().zip(mirrors).zip(wakes) {
        running.spawn(run_rebalances(context.clone(), mirrors.rebalances));
        running.spawn(run_clusters(context.clone(), scope.clone(), mirrors.clusters, clusters));
        running.spawn(run_shards(context.clone(), mirrors.shards, shards));
        running.spawn(run_gateways(context.clone(), mirrors.gateways));
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = &ended {
            tracing::error!(%error, "a controller ended");
        }
        if !context.shutdown.is_cancelled() {
            return false;
        }
    }
    true
}

/// Gives each scope the wake-ups of its namespace.
fn fan_out<K>(mut source: mpsc::Receiver<ObjectRef<K>>, scopes: &[Scope]) -> Vec<mpsc::Receiver<ObjectRef<K>>>
where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    let (senders, receivers): (Vec<_>, Vec<_>) = scopes.iter().map(|_| mpsc::channel(64)).unzip();
    let scopes = scopes.to_vec();
    tokio::spawn(async move {
        while let Some(object) = source.recv().await {
            for (scope, sender) in scopes.iter().zip(&senders) {
                if scope.holds(&object) && sender.send(object.clone()).await.is_err() {
                    return;
                }
            }
        }
    });
    receivers
}

fn wakes<K>(source: mpsc::Receiver<ObjectRef<K>>) -> impl Stream<Item = ObjectRef<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    futures::stream::unfold(source, |mut source| async move { source.recv().await.map(|object| (object, source)) })
}

/// The objects of a controller, and those that await a pass.
type Mirror<K> = (Store<K>, Arc<Touched<K>>);

/// A controller of these objects, which has no watch of its own. How many passes run at once is the lanes' matter.
fn controller<K>(context: &Context, (store, touched): Mirror<K>) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    Controller::for_shared_stream(futures::stream::pending(), store)
        .with_config(controller::Config::default().debounce(DEBOUNCE))
        .reconcile_on(touched.stream())
        .graceful_shutdown_on(context.shutdown.clone().cancelled_owned())
}

async fn run_clusters(
    context: Arc<Context>,
    scope: Scope,
    mirror: Mirror<ChatCluster>,
    woken: mpsc::Receiver<ObjectRef<ChatCluster>>,
) {
    context.figures.follow(mirror.0.clone(), |cluster| cluster.status.as_ref().map(|s| &s.conditions));
    let gone = gone(context.clone(), scope, mirror.0.clone());
    let passes = controller(&context, mirror).reconcile_on(wakes(woken)).run(
        |cluster, context| turn("ChatCluster", cluster, context, chatcluster::reconcile),
        |cluster, error, context| chatcluster::failed(&cluster, error, &context),
        context.clone(),
    );
    tokio::join!(drive("ChatCluster", passes), gone);
}

/// Ends the tasks of ChatClusters that vanished without a pass: a deleted object without finalizers is simply not there any more.
async fn gone(context: Arc<Context>, scope: Scope, store: Store<ChatCluster>) {
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if store.wait_until_ready().await.is_err() {
        return;
    }
    while context.shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        context.clusters.keep(|namespace, name| {
            let object = ObjectRef::<ChatCluster>::new(name).within(namespace);
            // What another scope looks after is not known here.
            !scope.holds(&object) || store.get(&object).is_some()
        });
        context.figures.sweep();
    }
}

async fn run_shards(
    context: Arc<Context>,
    mirror: Mirror<StorageShard>,
    woken: mpsc::Receiver<ObjectRef<StorageShard>>,
) {
    context.figures.follow(mirror.0.clone(), |shard| shard.status.as_ref().map(|s| &s.conditions));
    let passes = controller(&context, mirror).reconcile_on(wakes(woken)).run(
        |shard, context| turn("StorageShard", shard, context, storageshard::reconcile),
        |shard, error, context| storageshard::failed(&shard, error, &context),
        context.clone(),
    );
    drive("StorageShard", passes).await;
}

async fn run_rebalances(context: Arc<Context>, mirror: Mirror<ShardRebalance>) {
    context.figures.follow(mirror.0.clone(), |rebalance| rebalance.status.as_ref().map(|s| &s.conditions));
    let passes = controller(&context, mirror).run(
        // A round of batches lasts as long as it must, and there are few: no turns.
        |object, context| timed("ShardRebalance", rebalance::controller::reconcile(object, context)),
        |object, error, context| rebalance::controller::failed(&object, error, &context),
        context.clone(),
    );
    drive("ShardRebalance", passes).await;
}

async fn run_gateways(context: Arc<Context>, mirror: Mirror<Gateway>) {
    context.figures.follow(mirror.0.clone(), |gateway| gateway.status.as_ref().map(|s| &s.conditions));
    let passes = controller(&context, mirror).run(
        |gateway, context| turn("Gateway", gateway, context, gateway::reconcile),
        |gateway, error, context| gateway::failed(&gateway, error, &context),
        context.clone(),
    );
    drive("Gateway", passes).await;
}

/// A pass when it is its turn.
async fn turn<K, F>(
    kind: &'static str,
    object: Arc<K>,
    context: Arc<Context>,
    pass: impl FnOnce(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, PassError>
where
    K: ResourceExt<DynamicType = ()>,
    F: Future<Output = Result<Action, PassError>>,
{
    let (key, shared) = (key(object.as_ref()), context.clone());
    let pass = timed(kind, pass(object, context));
    shared.lanes.run(&key, &shared.shutdown, pass).await.unwrap_or_else(|| Ok(Action::await_change()))
}

/// Measures a pass.
async fn timed(kind: &'static str, pass: impl Future<Output = Result<Action, PassError>>) -> Result<Action, PassError> {
    let begun = Instant::now();
    let result = panics::caught(kind, pass).await.unwrap_or_else(|panicked| Err(panicked.into()));
    metrics::histogram!("kith_operator_reconcile_seconds", "kind" => kind).record(begun.elapsed().as_secs_f64());
    let outcome = if result.is_ok() { "ok" } else { "error" };
    metrics::counter!("kith_operator_reconciles_total", "kind" => kind, "result" => outcome).increment(1);
    result
}

/// Runs a controller; what its passes say is logged where it happens, what its watches say here.
async fn drive<K>(
    kind: &'static str,
    passes: impl Stream<Item = Result<(ObjectRef<K>, Action), controller::Error<PassError, watcher::Error>>>,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    passes
        .for_each(|result| async move {
            match result {
                Ok(_) | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => {
                    metrics::counter!("kith_operator_watch_errors_total", "kind" => kind).increment(1);
                    tracing::warn!(kind, %error, "a watch broke; it is taken up again");
                }
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_one_scope_and_none_means_all() {
        let given = |names: &[&str]| scopes(names.iter().map(|n| (*n).to_owned()).collect());
        let two = given(&["b", "a", "b", ""]);
        assert_eq!(two.iter().map(|s| s.0.as_deref()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
        let all = given(&[""]);
        assert!(all.len() == 1 && all[0].0.is_none());
    }

    #[tokio::test]
    async fn a_pass_that_panics_is_an_error_like_any_other() {
        let pass = async { if true { panic!("poisoned") } else { Ok(Action::await_change()) } };
        let error = timed("ChatCluster", pass).await.unwrap_err();
        assert!(matches!(error, PassError::Panicked(_)) && error.to_string().contains("poisoned"), "{error}");
    }
}
