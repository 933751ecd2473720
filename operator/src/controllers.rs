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
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    chatcluster::{self, PassError},
    context::{Context, WAKES, Wakes, dropped, key},
    gateway, panics, rebalance, storageshard,
    stores::{Mirrors, Scope, Touched, scopes},
};

/// How long the start waits for watches to tell all objects; a kind that takes longer is read from lists until then.
const SYNC: Duration = Duration::from_secs(20);
/// Changes within this time lead to one pass: pods rarely change one thing at a time.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What a replica that waits for the lease has ready: the namespaces that it will look after, and the watches that have begun.
pub struct Standby {
    scopes: Vec<Scope>,
    mirrors: Vec<Mirrors>,
    leads: watch::Sender<bool>,
}

impl Standby {
    /// Begins to watch. Once.
    pub fn begin(context: &Context, namespaces: Vec<String>) -> Self {
        let scopes = scopes(namespaces);
        let (leads, leading) = watch::channel(false);
        let mirrors = context.stores.watch(&scopes, &leading, &context.shutdown);
        Self { scopes, mirrors, leads }
    }
}

/// Runs all controllers until the context's end. Answers whether that is why it ended: no controller ends before.
pub async fn run(context: Arc<Context>, wakes: Wakes, standby: Standby) -> bool {
    let Standby { scopes, mirrors, leads } = standby;
    leads.send_replace(true);
    let (clusters, shards) = (fan_out(wakes.clusters, &scopes), fan_out(wakes.shards, &scopes));
    let mut running = JoinSet::new();
    // A namespace that cannot be read holds up no other.
    for ((scope, mirrors), woken) in scopes.into_iter().zip(mirrors).zip(clusters.into_iter().zip(shards)) {
        running.spawn(run_scope(context.clone(), scope, mirrors, woken));
    }
    first_ended(&context, running).await
}

/// What wakes the controllers of one scope.
type Woken = (mpsc::Receiver<ObjectRef<ChatCluster>>, mpsc::Receiver<ObjectRef<StorageShard>>);

/// The controllers of one scope, once its watches have told all objects or had their time for it.
async fn run_scope(context: Arc<Context>, scope: Scope, mirrors: Mirrors, (clusters, shards): Woken) -> bool {
    let begun = Instant::now();
    // Failover waits for no pass, and for no kind that it does not need.
    if context.shutdown.run_until_cancelled(chatcluster::start_probers(&context, &scope)).await.is_none() {
        return true;
    }
    let namespace = scope.0.as_deref().unwrap_or("all");
    match context.shutdown.run_until_cancelled(context.stores.synced(&scope, SYNC)).await {
        None => return true,
        Some(true) => {
            let took_ms = begun.elapsed().as_millis();
            tracing::info!(namespace, took_ms, "all watches have told all objects");
        }
        Some(false) => {
            tracing::error!(namespace, "some watches have not told all objects: lists are read instead");
        }
    }
    let mut running = JoinSet::new();
    running.spawn(lasting(run_rebalances(context.clone(), mirrors.rebalances)));
    running.spawn(lasting(run_clusters(context.clone(), scope, mirrors.clusters, clusters)));
    running.spawn(lasting(run_shards(context.clone(), mirrors.shards, shards)));
    running.spawn(lasting(run_gateways(context.clone(), mirrors.gateways)));
    first_ended(&context, running).await
}

/// A controller is not to end before the context does.
async fn lasting(controller: impl Future<Output = ()>) -> bool {
    controller.await;
    true
}

/// Waits until all have ended at the context's end, or the first has before or did not do what it is there for: then the answer is no.
async fn first_ended(context: &Context, mut running: JoinSet<bool>) -> bool {
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

/// Gives each scope the wake-ups of its namespace. One that is not taken in time is dropped: its scope may not have begun, and keeps nobody
/// else's waiting.
fn fan_out<K>(mut source: mpsc::Receiver<ObjectRef<K>>, scopes: &[Scope]) -> Vec<mpsc::Receiver<ObjectRef<K>>>
where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    let (senders, receivers): (Vec<_>, Vec<_>) = scopes.iter().map(|_| mpsc::channel(WAKES)).unzip();
    let scopes = scopes.to_vec();
    tokio::spawn(async move {
        while let Some(object) = source.recv().await {
            for (scope, sender) in scopes.iter().zip(&senders) {
                if scope.holds(&object) {
                    dropped(&sender.try_send(object.clone()));
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
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use kith_crds::chatcluster::Images;
    use kube::{Client, client::Body};
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{lease::LeaseGuard, release::Release};

    /// An API server that lets nobody read the namespace `dark`, has one ChatCluster in `light` and tells of no change. Requests for single
    /// objects are told, and refused.
    fn half_dark(asked: mpsc::UnboundedSender<String>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let asked = asked.clone();
            async move {
                let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default());
                let (namespace, rest) =
                    path.split_once("/namespaces/").and_then(|(_, p)| p.split_once('/')).unwrap_or_default();
                let readable = namespace == "light" && request.method() == "GET" && !rest.contains('/');
                if readable && query.contains("watch=") {
                    std::future::pending::<()>().await;
                }
                let (code, answer) = if readable {
                    let metadata = json!({"name": "demo", "namespace": "light", "uid": "u", "resourceVersion": "1", "generation": 1});
                    let cluster = json!({"apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": metadata, "spec": {}});
                    let items = if rest == "chatclusters" { vec![cluster] } else { Vec::new() };
                    (
                        200,
                        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}),
                    )
                } else {
                    if namespace == "light" {
                        asked.send(format!("{} {path}", request.method())).unwrap_or_default();
                    }
                    (
                        403,
                        json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"}),
                    )
                };
                let response = Response::builder().status(code).header("content-type", "application/json");
                Ok::<_, Infallible>(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
            }
        });
        Client::new(service, "light")
    }

    #[tokio::test]
    async fn a_namespace_that_cannot_be_read_holds_up_the_controllers_of_no_other() {
        let (asked, mut requests) = mpsc::unbounded_channel();
        let image = String::new;
        let images = Images { kith: image(), valkey: image(), kafka: image() };
        let version = |text: &str| text.to_owned();
        let release =
            Release { version: version("0.2.0"), images, previous_version: version("0.1.0"), previous_images: None };
        let (dir, end) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let (context, wakes) = Context::new(
            half_dark(asked),
            release,
            LeaseGuard::unopposed(),
            "test",
            dir.path().join("run"),
            end.clone(),
        );
        let standby = Standby::begin(&context, vec!["dark".to_owned(), "light".to_owned()]);
        let running = tokio::spawn(run(context, wakes, standby));
        let first = tokio::time::timeout(SYNC / 2, requests.recv()).await.expect("a pass over what can be read");
        assert!(first.is_some());
        end.cancel();
        let ended = tokio::time::timeout(SYNC / 2, running).await.expect("an end").expect("no panic");
        assert!(ended, "at the context's end");
    }

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
