//! Where passes read Kubernetes objects: from one watch per kind and scope, or from lists where none runs or it is broken.
//!
//! Three rules make a watch that lags harmless. What is not known is not taken for absent: before a watch has told all objects, and while it
//! is broken, lists are read instead. What this process wrote is read at once (`memory`). And what destroys something or makes a key anew
//! asks the API server for that one object first (`ask`).

mod feed;
mod kinds;
mod memory;
mod scope;
mod touched;

pub use kinds::Kind;
pub use scope::{Mirrors, Scope, scopes};
pub use touched::Touched;

use std::{
    any::{Any, TypeId},
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use kube::{Api, Client, ResourceExt, api::ListParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, Live, Object};
use memory::{Label, Memory, Unreadable, version};

/// Reads of all passes, and what they wrote.
pub struct Stores {
    client: Client,
    watched: OnceLock<Vec<Watched>>,
}

/// The memories of one scope, by kind.
struct Watched {
    scope: Scope,
    kinds: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    ready: HashMap<TypeId, watch::Receiver<bool>>,
}

type Shelf<K> = Arc<RwLock<Memory<K>>>;

impl Stores {
    /// Reads lists until watches are started.
    pub fn new(client: Client) -> Self {
        Self { client, watched: OnceLock::new() }
    }

    /// The client, for what is not watched.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Starts one watch per kind for each scope; what the controllers of each need is answered. Once.
    ///
    /// Where it could do harm, nothing is read that may be older than the lease: such a watch, which began before, so that failover need not
    /// wait for it, counts once a list of versions agrees with it. Watches of custom resources begin with the lease: their status is what operators remember things by.
    pub fn watch(
        self: &Arc<Self>,
        scopes: &[Scope],
        leading: &watch::Receiver<bool>,
        end: &CancellationToken,
    ) -> Vec<Mirrors> {
        let (mut all, mut mirrors) = (Vec::new(), Vec::new());
        for scope in scopes {
            let (watched, mirror) = scope::start(self, scope, leading, end);
            all.push(watched);
            mirrors.push(mirror);
        }
        if self.watched.set(all).is_err() {
            tracing::error!("watches were started twice");
        }
        mirrors
    }

    /// Waits until every watch of a scope has told all objects, for at most `limit`: a kind that cannot be watched is read from lists, and
    /// holds up nobody who does not need it. Answers whether all have.
    pub async fn synced(&self, scope: &Scope, limit: Duration) -> bool {
        let all = async {
            for ready in self.of_scope(scope).flat_map(|watched| watched.ready.values()) {
                told(ready).await;
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// The same of one kind, without a limit.
    pub async fn synced_of<K: Kind>(&self, scope: &Scope) {
        for ready in self.of_scope(scope).filter_map(|watched| watched.ready.get(&TypeId::of::<K>())) {
            told(ready).await;
        }
    }

    fn of_scope(&self, scope: &Scope) -> impl Iterator<Item = &Watched> {
        self.watched.get().into_iter().flatten().filter(move |watched| watched.scope == *scope)
    }

    fn shelf<K: Object>(&self, namespace: &str) -> Option<&Shelf<K>> {
        let watched = self.watched.get()?.iter().find(|watched| watched.scope.covers(namespace))?;
        watched.kinds.get(&TypeId::of::<K>())?.downcast_ref::<Shelf<K>>()
    }

    fn with<K: Object, T>(&self, namespace: &str, read: impl FnOnce(&Memory<K>) -> T) -> Option<T> {
        let shelf = self.shelf::<K>(namespace)?;
        let memory = shelf.read().unwrap_or_else(PoisonError::into_inner);
        memory.is_usable().then(|| read(&memory))
    }

    /// The same; what was told and cannot be read back is asked for like what was not told.
    fn read<K: Object, T>(&self, namespace: &str, read: impl FnOnce(&Memory<K>) -> Result<T, Unreadable>) -> Option<T> {
        let found = self.with(namespace, read)?;
        found.inspect_err(|error| tracing::error!(%error, "it is read from the API server")).ok()
    }

    fn change<K: Object>(&self, namespace: &str, change: impl FnOnce(&mut Memory<K>)) {
        if let Some(shelf) = self.shelf::<K>(namespace) {
            change(&mut shelf.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The objects of a ChatCluster.
    pub async fn of_cluster<K: Kind>(&self, namespace: &str, cluster: &str) -> Result<Live<K>, ApplyError> {
        match self.known(namespace, cluster) {
            Some(known) => Ok(known),
            None => self.list(namespace, K::of_cluster(cluster)).await,
        }
    }

    /// The objects of a ChatCluster that have this label.
    pub async fn part<K: Kind>(
        &self,
        namespace: &str,
        cluster: &str,
        (label, value): (&str, &str),
    ) -> Result<Live<K>, ApplyError> {
        let label = Label::new(label, value);
        match self.read::<K, _>(namespace, |memory| memory.of_cluster(namespace, cluster, Some(&label))) {
            Some(known) => Ok(known),
            None => {
                let mut all = self.list::<K>(namespace, K::of_cluster(cluster)).await?;
                all.retain(|_, object| label.is_of(object));
                Ok(all)
            }
        }
    }

    /// The objects of a ChatCluster, if a watch has told them all.
    pub fn known<K: Kind>(&self, namespace: &str, cluster: &str) -> Option<Live<K>> {
        self.read::<K, _>(namespace, |memory| memory.of_cluster(namespace, cluster, None))
    }

    /// Those of these names that stand, if a watch has told all objects.
    pub fn known_of<K: Kind>(&self, namespace: &str, names: &[String]) -> Option<Live<K>> {
        self.read::<K, _>(namespace, |memory| {
            let found = names.iter().map(|name| Ok(memory.get(namespace, name)?.map(|object| (name.clone(), object))));
            found.filter_map(Result::transpose).collect()
        })
    }

    /// Whether a watch has told all objects of a namespace.
    pub fn knows<K: Kind>(&self, namespace: &str) -> bool {
        self.with::<K, _>(namespace, |_| ()).is_some()
    }

    /// Names of at least the objects of a ChatCluster, if a watch has told them all; else none.
    pub fn names<K: Kind>(&self, namespace: &str, cluster: &str) -> BTreeSet<String> {
        self.with::<K, _>(namespace, |memory| memory.names(namespace, cluster)).unwrap_or_default()
    }

    /// All objects of a kind in a scope that can be read, if its watch has told them all.
    pub fn all<K: Kind>(&self, scope: &Scope) -> Vec<K> {
        let mut found = Vec::new();
        for watched in self.of_scope(scope) {
            let shelf = watched.kinds.get(&TypeId::of::<K>()).and_then(|shelf| shelf.downcast_ref::<Shelf<K>>());
            let Some(shelf) = shelf else { continue };
            let memory = shelf.read().unwrap_or_else(PoisonError::into_inner);
            if memory.is_usable() {
                let readable = |read: Result<K, Unreadable>| read.inspect_err(|error| tracing::error!(%error)).ok();
                found.extend(memory.all().filter_map(readable));
            }
        }
        found
    }

    /// One object. What the watch does not hold is asked for: that nobody told of it is no proof that it is absent.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApplyError> {
        match self.read::<K, _>(namespace, |memory| memory.get(namespace, name)).flatten() {
            Some(object) => Ok(Some(object)),
            None => self.ask(namespace, name).await,
        }
    }

    /// One object, from the API server itself.
    pub async fn ask<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApplyError> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|e| ApplyError::kube::<K>(name, e))?;
        if let Some(object) = &found {
            self.wrote(object);
        }
        Ok(found)
    }

    /// The newest version of an object that this process knows of.
    pub fn newest<K: Kind>(&self, given: Arc<K>) -> Arc<K> {
        let namespace = given.namespace().unwrap_or_default();
        self.read::<K, _>(&namespace, |memory| memory.newer(&given)).flatten().map_or(given, Arc::new)
    }

    async fn list<K: Kind>(&self, namespace: &str, params: ListParams) -> Result<Live<K>, ApplyError> {
        let instead = self.shelf::<K>(namespace).is_some();
        // Beside a watch a list must not be older than what that has told; without one the API server's cache is enough to decide on.
        let params = if instead { params } else { params.match_any() };
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let list = api.list(&params).await.map_err(|e| ApplyError::kube::<K>("*", e))?;
        if instead {
            metrics::counter!("kith_operator_lists_total", "kind" => K::kind(&()).to_string()).increment(1);
            let highest = list.items.iter().filter_map(version).max().unwrap_or(0);
            self.change::<K>(namespace, |memory| memory.listed(highest));
        }
        Ok(list.items.into_iter().map(|object| (object.name_any(), object)).collect())
    }

    /// Remembers what the API server answered to a write.
    pub fn wrote<K: Object>(&self, object: &K) {
        let namespace = object.namespace().unwrap_or_default();
        self.change::<K>(&namespace, |memory| memory.wrote(object.clone(), Instant::now()));
    }

    /// Remembers that exactly this object was deleted.
    pub fn deleted<K: Object>(&self, object: &K) {
        let namespace = object.namespace().unwrap_or_default();
        self.change::<K>(&namespace, |memory| memory.deleted(object, Instant::now()));
    }

    /// Whether this version of an object was found to be what is wanted, by the hash of that.
    pub fn is_current<K: Object>(&self, live: &K, wanted: u64) -> bool {
        let namespace = live.namespace().unwrap_or_default();
        self.with::<K, _>(&namespace, |memory| memory.is_current(live, wanted)).unwrap_or(false)
    }

    /// Remembers it.
    pub fn found_current<K: Object>(&self, live: &K, wanted: u64) {
        let namespace = live.namespace().unwrap_or_default();
        self.change::<K>(&namespace, |memory| memory.found_current(live, wanted));
    }
}

/// Waits until a watch was whole once, or has ended: that is told by whoever ended it.
async fn told(ready: &watch::Receiver<bool>) {
    if ready.clone().wait_for(|ready| *ready).await.is_err() {
        tracing::debug!("a watch has ended");
    }
}
