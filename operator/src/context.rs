//! What all controllers share: the client, the lease, Events, and the tasks of each ChatCluster.

use std::{path::PathBuf, sync::Arc};

use kith_crds::{ChatCluster, StorageShard};
use kube::{Client, Resource, ResourceExt, runtime::reflector::ObjectRef};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Failures,
    events::{Events, Saying},
    figures::Figures,
    lanes::Lanes,
    lease::LeaseGuard,
    refusal::Refusals,
    release::Release,
    runtime::Clusters,
    stores::Stores,
};

/// Wake-ups that wait; one that finds the queue full is dropped, since every object is looked at again soon anyway.
pub const WAKES: usize = 1_024;

/// Shared by all passes.
pub struct Context {
    /// The client.
    pub client: Client,
    /// Reads of Kubernetes objects.
    pub stores: Arc<Stores>,
    /// Turns of passes.
    pub lanes: Lanes,
    /// The operator's version and images.
    pub release: Release,
    /// How long this process may act.
    pub guard: LeaseGuard,
    /// Failures in a row per object.
    pub failures: Failures,
    /// The running tasks of each ChatCluster.
    pub clusters: Clusters,
    /// Wakes controllers.
    pub wake: Wake,
    /// Numbers of objects, for `/metrics`.
    pub figures: Figures,
    /// Why pods are not made.
    pub refusals: Refusals,
    /// Ends everything.
    pub shutdown: CancellationToken,
    events: Events,
}

/// Wakes controllers for an object.
#[derive(Clone)]
pub struct Wake {
    clusters: mpsc::Sender<ObjectRef<ChatCluster>>,
    shards: mpsc::Sender<ObjectRef<StorageShard>>,
}

/// The other ends, for the controllers.
pub struct Wakes {
    /// Of the ChatCluster controller.
    pub clusters: mpsc::Receiver<ObjectRef<ChatCluster>>,
    /// Of the StorageShard controller.
    pub shards: mpsc::Receiver<ObjectRef<StorageShard>>,
}

impl Wake {
    fn channels() -> (Self, Wakes) {
        let (clusters, clusters_rx) = mpsc::channel(WAKES);
        let (shards, shards_rx) = mpsc::channel(WAKES);
        let wakes = Wakes { clusters: clusters_rx, shards: shards_rx };
        (Self { clusters, shards }, wakes)
    }

    /// A pass over this ChatCluster soon.
    pub fn cluster(&self, namespace: &str, name: &str) {
        dropped(&self.clusters.try_send(ObjectRef::new(name).within(namespace)));
    }

    /// A pass over this StorageShard soon.
    pub fn shard(&self, namespace: &str, name: &str) {
        dropped(&self.shards.try_send(ObjectRef::new(name).within(namespace)));
    }
}

/// Counts a wake-up that found its queue full.
pub fn dropped<T>(sent: &Result<(), mpsc::error::TrySendError<T>>) {
    if sent.is_err() {
        metrics::counter!("kith_operator_wakes_dropped_total").increment(1);
    }
}

impl Context {
    /// Everything ready to run. `dir` is a private folder for the logins at the engine.
    pub fn new(
        client: Client,
        release: Release,
        guard: LeaseGuard,
        instance: &str,
        dir: PathBuf,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, Wakes) {
        let (wake, wakes) = Wake::channels();
        let context = Self {
            events: Events::new(client.clone(), instance),
            stores: Arc::new(Stores::new(client.clone())),
            lanes: Lanes::default(),
            clusters: Clusters::new(dir, guard.clone(), wake.clone(), shutdown.clone()),
            client,
            release,
            guard,
            failures: Failures::default(),
            wake,
            figures: Figures::default(),
            refusals: Refusals::default(),
            shutdown,
        };
        (Arc::new(context), wakes)
    }

    /// Says something about `object` in an Event.
    pub async fn event<K: Resource<DynamicType = ()>>(&self, object: &K, warning: bool, reason: &str, note: &str) {
        let saying = Saying { warning, reason, action: "Reconcile", note };
        self.events.say(&object.object_ref(&()), saying).await;
    }
}

/// `namespace/name`, the key of an object in logs and back-offs.
pub fn key<K: ResourceExt<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}
