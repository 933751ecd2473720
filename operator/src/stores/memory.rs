//! What a watch has told of one kind, and what this process has written since: reads never show what was before one's own writes. Pure.
//!
//! A watch lags. What was written is therefore remembered, with the version that the API server gave it, until the watch has come to that
//! version or past it. Versions of one kind are numbers that grow with every write (the API's own contract since 1.35; etcd's revision
//! always); an object whose version is no number is not remembered.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::apply::{Live, Object};

/// A watch that has failed for so long tells nothing: it is begun anew, and until then what it told is not believed.
pub(super) const BROKEN_AFTER: Duration = Duration::from_secs(30);
/// Failures further apart than this are not one: the watch was well between them. Above the longest pause between two attempts and the
/// time that one takes.
const APART: Duration = Duration::from_secs(40);
/// A write is remembered for so long at most. A watch that is so late is broken long since.
const END: Duration = Duration::from_secs(600);
/// Writes that are remembered at most; beyond that the oldest is forgotten.
const BOUND: usize = 4_096;

/// Namespace and name.
type Place = (String, String);

/// What this process did to an object, and the watch has not told yet.
enum Written<K> {
    /// The object as the API server answered it.
    As { object: Arc<K>, version: u64, at: Instant },
    /// Deleted; a new one of its name is another.
    Deleted { uid: Option<String>, since: Time, at: Instant },
}

impl<K> Written<K> {
    fn at(&self) -> Instant {
        match self {
            Self::As { at, .. } | Self::Deleted { at, .. } => *at,
        }
    }
}

/// Since when a watch fails, and when it did last.
struct Failing {
    first: Instant,
    last: Instant,
}

/// All that is known of the objects of one kind.
pub(super) struct Memory<K> {
    cluster: fn(&K) -> Option<&str>,
    objects: HashMap<String, BTreeMap<String, Arc<K>>>,
    /// Names by namespace and ChatCluster.
    members: HashMap<String, HashMap<String, BTreeSet<String>>>,
    /// The list that is under way.
    list: Vec<Arc<K>>,
    /// The highest version that the watch has told.
    seen: u64,
    /// The highest version that lists instead of the watch have shown: what was read once is not unread.
    floor: u64,
    synced: bool,
    failing: Option<Failing>,
    written: HashMap<Place, Written<K>>,
    /// Versions that were found to be what is wanted, with the hash of that.
    current: HashMap<Place, (u64, u64)>,
}

/// The version of an object, if it is a number.
pub(super) fn version<K: Object>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

fn place<K: Object>(object: &K) -> Place {
    (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

impl<K: Object> Memory<K> {
    /// Nothing known yet.
    pub(super) fn new(cluster: fn(&K) -> Option<&str>) -> Self {
        Self {
            cluster,
            objects: HashMap::new(),
            members: HashMap::new(),
            list: Vec::new(),
            seen: 0,
            floor: 0,
            synced: false,
            failing: None,
            written: HashMap::new(),
            current: HashMap::new(),
        }
    }

    /// Whether it may be read: all objects were told, the watch is not broken, and it has come to what was read otherwise meanwhile.
    pub(super) fn is_usable(&self) -> bool {
        self.synced && self.seen >= self.floor
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.list = Vec::new();
    }

    /// One object of the list.
    pub(super) fn add(&mut self, object: Arc<K>) {
        self.list.push(object);
    }

    /// The list is whole: what it does not hold is gone.
    pub(super) fn done(&mut self, now: Instant) {
        (self.objects, self.members) = (HashMap::new(), HashMap::new());
        for object in std::mem::take(&mut self.list) {
            self.insert(object);
        }
        let objects = &self.objects;
        self.current.retain(|(namespace, name), _| objects.get(namespace).is_some_and(|all| all.contains_key(name)));
        (self.synced, self.failing) = (true, None);
        self.forget(now);
    }

    /// An object is new or changed.
    pub(super) fn changed(&mut self, object: Arc<K>, now: Instant) {
        self.insert(object);
        self.failing = None;
        self.forget(now);
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, object: &K, now: Instant) {
        let place = place(object);
        self.seen = self.seen.max(version(object).unwrap_or(0));
        self.remove(&place);
        self.current.remove(&place);
        let uid = &object.meta().uid;
        if matches!(self.written.get(&place), Some(Written::Deleted { uid: deleted, .. }) if deleted == uid) {
            self.written.remove(&place);
        }
        self.failing = None;
        self.forget(now);
    }

    /// The watch failed. Answers whether it is to be begun anew; then nothing is read from here until all objects were told again.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let failing = self.failing.get_or_insert(Failing { first: now, last: now });
        if now.saturating_duration_since(failing.last) > APART {
            failing.first = now;
        }
        failing.last = now;
        let broken = now.saturating_duration_since(failing.first) >= BROKEN_AFTER;
        if broken {
            self.distrust();
        }
        broken
    }

    /// Nothing is read from here until all objects were told again.
    pub(super) fn distrust(&mut self) {
        if std::mem::take(&mut self.synced) {
            self.floor = 0;
        }
    }

    /// A list was read instead, and its objects' highest version is this. Once all was told again only the last such list counts: what an
    /// earlier one showed may be gone by now, and would be waited for in vain.
    pub(super) fn listed(&mut self, highest: u64) {
        self.floor = if self.synced { highest } else { self.floor.max(highest) };
    }

    /// This process wrote an object, and the API server answered this.
    pub(super) fn wrote(&mut self, object: K, now: Instant) {
        let Some(version) = version(&object) else { return };
        let place = place(&object);
        let known = match self.written.get(&place) {
            Some(Written::As { version: before, .. }) => *before >= version,
            _ => false,
        };
        if known || !self.awaits(&place, version) {
            return;
        }
        self.bound();
        self.written.insert(place, Written::As { object: Arc::new(object), version, at: now });
    }

    /// This process had exactly this object deleted.
    pub(super) fn deleted(&mut self, object: &K, now: Instant) {
        self.bound();
        let (uid, since) = (object.meta().uid.clone(), Time(Timestamp::now()));
        self.written.insert(place(object), Written::Deleted { uid, since, at: now });
    }

    /// Whether this version was found to be what is wanted.
    pub(super) fn is_current(&self, object: &K, wanted: u64) -> bool {
        version(object).is_some_and(|version| self.current.get(&place(object)) == Some(&(version, wanted)))
    }

    /// This version is what is wanted.
    pub(super) fn found_current(&mut self, object: &K, wanted: u64) {
        let (place, version) = (place(object), version(object));
        // What the watch does not hold would never be forgotten.
        if let Some(version) = version.filter(|_| self.stored(&place).is_some()) {
            self.current.insert(place, (version, wanted));
        }
    }

    /// One object as it stands.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let place = (namespace.to_owned(), name.to_owned());
        self.standing(self.stored(&place), &place)
    }

    /// All objects that the watch has told.
    pub(super) fn all(&self) -> Vec<Arc<K>> {
        self.objects.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Those of one ChatCluster that `filter` takes.
    pub(super) fn of_cluster(&self, namespace: &str, cluster: &str, filter: impl Fn(&K) -> bool) -> Live<K> {
        let mut found = Live::new();
        let names = self.members.get(namespace).and_then(|clusters| clusters.get(cluster));
        for name in names.into_iter().flatten() {
            let place = (namespace.to_owned(), name.clone());
            if let Some(object) = self.standing(self.stored(&place), &place) {
                found.insert(place.1, object);
            }
        }
        for place in self.written.keys().filter(|(there, _)| there == namespace) {
            if !found.contains_key(&place.1)
                && let Some(object) = self.standing(self.stored(place), place)
            {
                found.insert(place.1.clone(), object);
            }
        }
        // What was written may have changed whose it is.
        let mine = |object: &K| (self.cluster)(object) == Some(cluster) && filter(object);
        found.into_iter().filter(|(_, o)| mine(o)).map(|(name, o)| (name, Arc::unwrap_or_clone(o))).collect()
    }

    fn stored(&self, (namespace, name): &Place) -> Option<&Arc<K>> {
        self.objects.get(namespace)?.get(name)
    }

    /// The newer one of what was told and what was written.
    fn standing(&self, stored: Option<&Arc<K>>, place: &Place) -> Option<Arc<K>> {
        match self.written.get(place) {
            Some(Written::As { object, version, .. }) if self.awaits(place, *version) => Some(object.clone()),
            Some(Written::Deleted { uid, since, .. }) => stored.map(|object| {
                if object.meta().uid != *uid || object.meta().deletion_timestamp.is_some() {
                    return object.clone();
                }
                let mut dying = K::clone(object);
                dying.meta_mut().deletion_timestamp = Some(since.clone());
                Arc::new(dying)
            }),
            _ => stored.cloned(),
        }
    }

    /// Whether the watch has not come to this version of an object yet. An object that it does not hold and that it has passed is gone.
    fn awaits(&self, place: &Place, written: u64) -> bool {
        let reached = match self.stored(place) {
            Some(object) => version(object.as_ref()).unwrap_or(u64::MAX),
            None => self.seen,
        };
        reached < written
    }

    /// Forgets the writes that the watch has come to, and those that are too old.
    fn forget(&mut self, now: Instant) {
        let mut written = std::mem::take(&mut self.written);
        written.retain(|place, write| {
            let young = now.saturating_duration_since(write.at()) < END;
            young
                && match write {
                    Written::As { version, .. } => self.awaits(place, *version),
                    Written::Deleted { uid, .. } => {
                        self.stored(place).is_none_or(|o| o.meta().uid == *uid && o.meta().deletion_timestamp.is_none())
                    }
                }
        });
        self.written = written;
    }

    fn bound(&mut self) {
        if self.written.len() >= BOUND
            && let Some(oldest) =
                self.written.iter().min_by_key(|(_, write)| write.at()).map(|(place, _)| place.clone())
        {
            metrics::counter!("kith_operator_writes_forgotten_total").increment(1);
            self.written.remove(&oldest);
        }
    }

    fn insert(&mut self, object: Arc<K>) {
        self.seen = self.seen.max(version(object.as_ref()).unwrap_or(0));
        let place = place(object.as_ref());
        self.remove(&place);
        let (namespace, name) = place;
        if let Some(cluster) = (self.cluster)(&object) {
            let clusters = self.members.entry(namespace.clone()).or_default();
            clusters.entry(cluster.to_owned()).or_default().insert(name.clone());
        }
        self.objects.entry(namespace).or_default().insert(name, object);
    }

    fn remove(&mut self, (namespace, name): &Place) {
        let Some(all) = self.objects.get_mut(namespace) else { return };
        let Some(object) = all.remove(name) else { return };
        if all.is_empty() {
            self.objects.remove(namespace);
        }
        let Some(clusters) = self.members.get_mut(namespace) else { return };
        if let Some(cluster) = (self.cluster)(&object)
            && let Some(names) = clusters.get_mut(cluster)
        {
            names.remove(name);
            if names.is_empty() {
                clusters.remove(cluster);
            }
        }
        if clusters.is_empty() {
            self.members.remove(namespace);
        }
    }
}

#[cfg(test)]
mod tests;
