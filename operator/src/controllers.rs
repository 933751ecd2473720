//! The controllers: what each watches and how a watched change leads to a pass.

use std::{
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, Secret, Service},
};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard, names};
use kube::{
    Api, Client, Resource, ResourceExt,
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
    context::{Context, Wakes},
    gateway, panics, rebalance, storageshard,
};

/// Passes of one controller that run at once.
const CONCURRENCY: u16 = 4;
/// Changes within this time lead to one pass: pods rarely change one thing at a time.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs all controllers until the context's end. Answers whether that is why it ended: no controller ends before.
pub async fn run(context: Arc<Context>, wakes: Wakes, namespaces: Vec<String>) -> bool {
    let scopes = scopes(namespaces);
    let (clusters, shards, gateways) =
        (fan_out(wakes.clusters, &scopes), fan_out(wakes.shards, &scopes), fan_out(wakes.gateways, &scopes));
    let mut running = JoinSet::new();
    for (((scope, clusters), shards), gateways) in scopes.iter().zip(clusters).zip(shards).zip(gateways) {
        running.spawn(run_rebalances(context.clone(), scope.clone()));
        running.spawn(run_clusters(context.clone(), scope.clone(), clusters));
        running.spawn(run_shards(context.clone(), scope.clone(), shards));
        running.spawn(run_gateways(context.clone(), scope.clone(), gateways));
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

/// One scope for each namespace, or one for all.
fn scopes(mut namespaces: Vec<String>) -> Vec<Scope> {
    namespaces.retain(|namespace| !namespace.trim().is_empty());
    namespaces.sort_unstable();
    // Two controllers of the same objects would work against each other.
    namespaces.dedup();
    if namespaces.is_empty() { vec![Scope(None)] } else { namespaces.into_iter().map(|n| Scope(Some(n))).collect() }
}

/// One namespace, or all.
#[derive(Clone)]
struct Scope(Option<String>);

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }

    fn holds<K: Resource>(&self, object: &ObjectRef<K>) -> bool
    where
        K::DynamicType: Clone + Hash + Eq + Debug,
    {
        self.0.is_none() || self.0 == object.namespace
    }
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

fn config() -> controller::Config {
    controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE)
}

/// Only what the operator made.
fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::FIELD_MANAGER))
}

/// The ChatCluster that an object's label names.
fn of_label<K: ResourceExt>(object: &K) -> Option<ObjectRef<ChatCluster>> {
    let name = object.labels().get(names::LABEL_INSTANCE)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

async fn run_clusters(context: Arc<Context>, scope: Scope, woken: mpsc::Receiver<ObjectRef<ChatCluster>>) {
    let client = context.client.clone();
    let controller = Controller::new(scope.api::<ChatCluster>(&client), watcher::Config::default())
        .with_config(config())
        .owns(scope.api::<Deployment>(&client), ours())
        .owns(scope.api::<StatefulSet>(&client), ours())
        .owns(scope.api::<Secret>(&client), ours())
        .owns(scope.api::<ConfigMap>(&client), ours())
        .owns(scope.api::<Service>(&client), ours())
        .watches(scope.api::<Pod>(&client), ours(), |pod| of_label(&pod))
        .watches(scope.api::<StorageShard>(&client), watcher::Config::default(), |shard| {
            Some(ObjectRef::new(&shard.spec.cluster_ref.name).within(&shard.namespace()?))
        })
        .watches(scope.api::<Gateway>(&client), watcher::Config::default(), |gateway| {
            Some(ObjectRef::new(&gateway.spec.cluster_ref.name).within(&gateway.namespace()?))
        })
        .reconcile_on(wakes(woken))
        .graceful_shutdown_on(context.shutdown.clone().cancelled_owned());
    context.figures.follow(controller.store(), |cluster| cluster.status.as_ref().map(|s| &s.conditions));
    let gone = gone(context.clone(), scope, controller.store());
    let passes = controller.run(
        |cluster, context| timed("ChatCluster", chatcluster::reconcile(cluster, context)),
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

async fn run_shards(context: Arc<Context>, scope: Scope, woken: mpsc::Receiver<ObjectRef<StorageShard>>) {
    let client = context.client.clone();
    let controller = Controller::new(scope.api::<StorageShard>(&client), watcher::Config::default());
    let store = controller.store();
    context.figures.follow(controller.store(), |shard| shard.status.as_ref().map(|s| &s.conditions));
    let passes = controller
        .with_config(config())
        .owns(scope.api::<StatefulSet>(&client), ours())
        .owns(scope.api::<Service>(&client), ours())
        .watches(scope.api::<ChatCluster>(&client), watcher::Config::default(), move |cluster| {
            referring(&store, &cluster, |shard| &shard.spec.cluster_ref.name)
        })
        .reconcile_on(wakes(woken))
        .graceful_shutdown_on(context.shutdown.clone().cancelled_owned())
        .run(
            |shard, context| timed("StorageShard", storageshard::reconcile(shard, context)),
            |shard, error, context| storageshard::failed(&shard, error, &context),
            context.clone(),
        );
    drive("StorageShard", passes).await;
}

async fn run_rebalances(context: Arc<Context>, scope: Scope) {
    let client = context.client.clone();
    let controller = Controller::new(scope.api::<ShardRebalance>(&client), watcher::Config::default());
    context.figures.follow(controller.store(), |rebalance| rebalance.status.as_ref().map(|s| &s.conditions));
    let passes = controller.with_config(config()).graceful_shutdown_on(context.shutdown.clone().cancelled_owned()).run(
        |object, context| timed("ShardRebalance", rebalance::controller::reconcile(object, context)),
        |object, error, context| rebalance::controller::failed(&object, error, &context),
        context.clone(),
    );
    drive("ShardRebalance", passes).await;
}

async fn run_gateways(context: Arc<Context>, scope: Scope, woken: mpsc::Receiver<ObjectRef<Gateway>>) {
    let client = context.client.clone();
    let controller = Controller::new(scope.api::<Gateway>(&client), watcher::Config::default());
    let store = controller.store();
    context.figures.follow(controller.store(), |gateway| gateway.status.as_ref().map(|s| &s.conditions));
    let passes = controller
        .with_config(config())
        .owns(scope.api::<Deployment>(&client), ours())
        .owns(scope.api::<ConfigMap>(&client), ours())
        .owns(scope.api::<Service>(&client), ours())
        .watches(scope.api::<ChatCluster>(&client), watcher::Config::default(), move |cluster| {
            referring(&store, &cluster, |gateway| &gateway.spec.cluster_ref.name)
        })
        .reconcile_on(wakes(woken))
        .graceful_shutdown_on(context.shutdown.clone().cancelled_owned())
        .run(
            |gateway, context| timed("Gateway", gateway::reconcile(gateway, context)),
            |gateway, error, context| gateway::failed(&gateway, error, &context),
            context.clone(),
        );
    drive("Gateway", passes).await;
}

/// The known objects that name this ChatCluster.
fn referring<K>(store: &Store<K>, cluster: &ChatCluster, of: impl Fn(&K) -> &String) -> Vec<ObjectRef<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (namespace, name) = (cluster.namespace(), cluster.name_any());
    store
        .state()
        .iter()
        .filter(|object| object.namespace() == namespace && *of(object) == name)
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect()
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
