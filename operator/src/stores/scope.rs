//! The watches of one namespace or of all, and which passes a change leads to.

use std::{
    any::TypeId,
    collections::HashMap,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, RwLock},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        networking::v1::{Ingress, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::reflector::{self, ObjectRef, Store, store::Writer},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Stores, Touched, Watched,
    feed::{self, Feed},
    kinds::Kind,
    memory::Memory,
};

/// One namespace, or all.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope(pub Option<String>);

/// One scope for each namespace, or one for all.
pub fn scopes(mut namespaces: Vec<String>) -> Vec<Scope> {
    namespaces.retain(|namespace| !namespace.trim().is_empty());
    namespaces.sort_unstable();
    // Two controllers of the same objects would work against each other.
    namespaces.dedup();
    if namespaces.is_empty() { vec![Scope(None)] } else { namespaces.into_iter().map(|n| Scope(Some(n))).collect() }
}

impl Scope {
    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }

    /// Whether this namespace is one of it.
    pub fn covers(&self, namespace: &str) -> bool {
        self.0.as_ref().is_none_or(|own| own == namespace)
    }

    /// Whether an object is in it.
    pub fn holds<K: Resource>(&self, object: &ObjectRef<K>) -> bool
    where
        K::DynamicType: Clone + Hash + Eq + Debug,
    {
        self.0.is_none() || self.0 == object.namespace
    }
}

/// What the controllers of one scope need: their objects, and which of them await a pass.
pub struct Mirrors {
    /// ChatClusters.
    pub clusters: (Store<ChatCluster>, Arc<Touched<ChatCluster>>),
    /// StorageShards.
    pub shards: (Store<StorageShard>, Arc<Touched<StorageShard>>),
    /// Gateways.
    pub gateways: (Store<Gateway>, Arc<Touched<Gateway>>),
    /// ShardRebalances.
    pub rebalances: (Store<ShardRebalance>, Arc<Touched<ShardRebalance>>),
}

struct Starter<'a> {
    stores: &'a Arc<Stores>,
    scope: &'a Scope,
    leading: &'a watch::Receiver<bool>,
    end: &'a CancellationToken,
    watched: Watched,
}

impl Starter<'_> {
    fn start<K: Kind>(&mut self, mirror: Option<Writer<K>>, touch: impl Fn(&K) + Send + Sync + 'static) {
        let memory = Arc::new(RwLock::new(Memory::<K>::new(K::cluster)));
        let (ready, is_ready) = watch::channel(false);
        self.watched.kinds.insert(TypeId::of::<K>(), Box::new(memory.clone()));
        self.watched.ready.insert(TypeId::of::<K>(), is_ready);
        let api = self.scope.api::<K>(self.stores.client());
        let (leading, end) = (self.leading.clone(), self.end.clone());
        let leads = leading.clone();
        // Whoever begins to lead looks at everything.
        let touch = Box::new(move |object: &K| {
            if *leads.borrow() {
                touch(object);
            }
        });
        tokio::spawn(async move {
            let mut leads = leading.clone();
            let begins = async { !K::HOLDS_MEMORY || feed::leads(&mut leads).await };
            if end.run_until_cancelled(begins).await == Some(true) {
                Feed { api, memory, mirror, touch, leading, ready }.run(end).await;
            }
        });
    }

    /// Owners of these follow their changes.
    fn start_owned<K: Kind>(&mut self, routes: &Routes) {
        let to = routes.clone();
        self.start::<K>(None, move |object| to.owned_changed(object));
    }
}

/// Starts the watches of one scope.
pub(super) fn start(
    stores: &Arc<Stores>,
    scope: &Scope,
    leading: &watch::Receiver<bool>,
    end: &CancellationToken,
) -> (Watched, Mirrors) {
    let ((clusters, clusters_in), (shards, shards_in)) = (reflector::store(), reflector::store());
    let ((gateways, gateways_in), (rebalances, rebalances_in)) = (reflector::store(), reflector::store());
    let mirrors = Mirrors {
        clusters: (clusters, Arc::default()),
        shards: (shards, Arc::default()),
        gateways: (gateways, Arc::default()),
        rebalances: (rebalances, Arc::default()),
    };
    let routes = Routes {
        clusters: mirrors.clusters.1.clone(),
        shards: mirrors.shards.1.clone(),
        gateways: mirrors.gateways.1.clone(),
    };
    let watched = Watched { scope: scope.clone(), kinds: HashMap::new(), ready: HashMap::new() };
    let mut starter = Starter { stores, scope, leading, end, watched };
    let (to, store) = (routes.clone(), stores.clone());
    starter.start::<ChatCluster>(Some(clusters_in), move |object| to.cluster_changed(&store, object));
    let to = routes.clone();
    starter.start::<StorageShard>(Some(shards_in), move |object| {
        to.shards.touch(&namespace(object), &object.name_any());
        to.clusters.touch(&namespace(object), &object.spec.cluster_ref.name);
    });
    let to = routes.clone();
    starter.start::<Gateway>(Some(gateways_in), move |object| {
        to.gateways.touch(&namespace(object), &object.name_any());
        to.clusters.touch(&namespace(object), &object.spec.cluster_ref.name);
    });
    let to = mirrors.rebalances.1.clone();
    starter.start::<ShardRebalance>(Some(rebalances_in), move |o| to.touch(&namespace(o), &o.name_any()));
    let to = routes.clone();
    starter.start::<Pod>(None, move |object| {
        if let Some(cluster) = object.cluster() {
            to.clusters.touch(&namespace(object), cluster);
        }
    });
    starter.start_owned::<Deployment>(&routes);
    starter.start_owned::<StatefulSet>(&routes);
    starter.start_owned::<Secret>(&routes);
    starter.start_owned::<ConfigMap>(&routes);
    starter.start_owned::<Service>(&routes);
    // Changes of these are found by the next pass.
    starter.start::<ServiceAccount>(None, |_| {});
    starter.start::<PodDisruptionBudget>(None, |_| {});
    starter.start::<NetworkPolicy>(None, |_| {});
    starter.start::<PersistentVolumeClaim>(None, |_| {});
    starter.start::<HorizontalPodAutoscaler>(None, |_| {});
    starter.start::<Ingress>(None, |_| {});
    (starter.watched, mirrors)
}

fn namespace<K: ResourceExt>(object: &K) -> String {
    object.namespace().unwrap_or_default()
}

/// Who is to be told.
#[derive(Clone)]
struct Routes {
    clusters: Arc<Touched<ChatCluster>>,
    shards: Arc<Touched<StorageShard>>,
    gateways: Arc<Touched<Gateway>>,
}

impl Routes {
    /// Its shards and Gateways follow it.
    fn cluster_changed(&self, stores: &Stores, cluster: &ChatCluster) {
        let (namespace, name) = (namespace(cluster), cluster.name_any());
        self.clusters.touch(&namespace, &name);
        for shard in stores.names::<StorageShard>(&namespace, &name) {
            self.shards.touch(&namespace, &shard);
        }
        for gateway in stores.names::<Gateway>(&namespace, &name) {
            self.gateways.touch(&namespace, &gateway);
        }
    }

    /// The owner of an object looks after it.
    fn owned_changed<K: ResourceExt>(&self, object: &K) {
        for owner in object.owner_references().iter().filter(|owner| owner.controller == Some(true)) {
            let namespace = namespace(object);
            match owner.kind.as_str() {
                "ChatCluster" => self.clusters.touch(&namespace, &owner.name),
                "StorageShard" => self.shards.touch(&namespace, &owner.name),
                "Gateway" => self.gateways.touch(&namespace, &owner.name),
                _ => {}
            }
        }
    }
}
