//! What all controllers share: the client, the lease, Events, and the tasks of each ChatCluster.

use std::{path::PathBuf, sync::Arc};

use kith_crds::{ChatCluster, StorageShard};
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::ObjectRef,
    },
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Failures, figures::Figures, lanes::Lanes, lease::LeaseGuard, refusal::Refusals, release::Release,
    runtime::Clusters, stores::Stores,
};

/// Wake-ups that wait; one that finds the queue full is dropped, since every object is looked at again soon anyway.
const WAKES: usize = 1_024;

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
    recorder: Recorder,
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

fn dropped<T>(sent: &Result<(), mpsc::error::TrySendError<T>>) {
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
        let reporter = Reporter { controller: "kith.dev/operator".to_owned(), instance: Some(instance.to_owned()) };
        let context = Self {
            recorder: Recorder::new(client.clone(), reporter),
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

    /// Publishes an Event about `object`. An Event that cannot be written is logged and nothing else: it is a courtesy.
    pub async fn event<K: Resource<DynamicType = ()>>(&self, object: &K, warning: bool, reason: &str, note: &str) {
        let mut note = note.to_owned();
        if note.len() > 1_000 {
            let end = (0..=1_000).rev().find(|i| note.is_char_boundary(*i)).unwrap_or(0);
            note.truncate(end);
        }
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(object = %object.name_any(), reason, %error, "an Event could not be written");
        }
    }
}

/// `namespace/name`, the key of an object in logs and back-offs.
pub fn key<K: ResourceExt<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}
