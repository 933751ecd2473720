//! What a watch has told of one kind, and what this process has written since: reads never show what was before one's own writes. Pure.
//!
//! A watch lags. What was written is therefore remembered, with the version that the API server gave it, until the watch has come to that
//! version or past it. Versions of one kind are numbers that grow with every write (the API's own contract since 1.35; etcd's revision
//! always); an object whose version is no number is not remembered.
//!
//! What was told is kept packed, and each read makes an object of its own of it.

mod packed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::apply::{Live, Object};
use packed::Packed;
pub(super) use packed::{Label, Unreadable};

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
    As { object: Box<K>, version: u64, at: Instant },
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
    objects: HashMap<String, BTreeMap<String, Packed<K>>>,
    /// Names by namespace and ChatCluster.
    members: HashMap<String, HashMap<String, BTreeSet<String>>>,
    /// The list that is under way.
    list: Vec<(Place, Packed<K>)>,
    /// The highest version that the watch has told.
    seen: u64,
    /// The highest version that lists instead of the watch have shown: what was read once is not unread.
    floor: u64,
    synced: bool,
    /// Whether what the watch told is known to be no older than this replica's lease.
    proven: bool,
    failing: Option<Failing>,
    written: HashMap<Place, Written<K>>,
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
            proven: true,
            failing: None,
            written: HashMap::new(),
        }
    }

    /// Whether it may be read: all objects were told, not before this replica led, the watch is not broken, and it has come to what was read
    /// otherwise meanwhile.
    pub(super) fn is_usable(&self) -> bool {
        self.synced && self.proven && self.seen >= self.floor
    }

    /// Whether what was told and will be told next is known to be no older than this replica's lease.
    pub(super) fn prove(&mut self, proven: bool) {
        self.proven = proven;
    }

    /// Whether these, with their versions, are exactly the objects that were told.
    pub(super) fn is_exactly(&self, objects: &[(Place, Option<u64>)]) -> bool {
        let same = |((namespace, name), version): &(Place, Option<u64>)| {
            version.is_some() && self.stored(namespace, name).is_some_and(|stored| stored.version == *version)
        };
        self.synced
            && self.objects.values().map(BTreeMap::len).sum::<usize>() == objects.len()
            && objects.iter().all(same)
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.list = Vec::new();
    }

    /// One object of the list.
    pub(super) fn add(&mut self, object: &K) {
        self.list.push((place(object), self.pack(object)));
    }

    /// The list is whole: what it does not hold is gone.
    pub(super) fn done(&mut self, now: Instant) {
        let former = std::mem::take(&mut self.objects);
        self.members = HashMap::new();
        for (place, mut object) in std::mem::take(&mut self.list) {
            object.current = former.get(&place.0).and_then(|all| all.get(&place.1)).and_then(|former| former.current);
            self.insert(place, object);
        }
        (self.synced, self.failing) = (true, None);
        self.forget(now);
    }

    /// An object is new or changed.
    pub(super) fn changed(&mut self, object: &K, now: Instant) {
        self.insert(place(object), self.pack(object));
        self.failing = None;
        self.forget(now);
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, object: &K, now: Instant) {
        let place = place(object);
        self.seen = self.seen.max(version(object).unwrap_or(0));
        self.remove(&place);
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
        if known || !self.awaits(self.stored(&place.0, &place.1), version) {
            return;
        }
        self.bound();
        self.written.insert(place, Written::As { object: Box::new(object), version, at: now });
    }

    /// This process had exactly this object deleted.
    pub(super) fn deleted(&mut self, object: &K, now: Instant) {
        self.bound();
        let (uid, since) = (object.meta().uid.clone(), Time(Timestamp::now()));
        self.written.insert(place(object), Written::Deleted { uid, since, at: now });
    }

    /// Whether this version was found to be what is wanted.
    pub(super) fn is_current(&self, object: &K, wanted: u64) -> bool {
        let (namespace, name) = place(object);
        let current = self.stored(&namespace, &name).and_then(|stored| stored.current);
        let found = current.filter(|(of, _)| version(object) == Some(*of));
        found.is_some_and(|(_, wishes)| wishes.contains(&wanted))
    }

    /// This version is what is wanted. What the watch does not hold would never be forgotten, and is not remembered.
    pub(super) fn found_current(&mut self, object: &K, wanted: u64) {
        let ((namespace, name), version) = (place(object), version(object));
        let stored = self.objects.get_mut(&namespace).and_then(|all| all.get_mut(&name));
        if let (Some(stored), Some(version)) = (stored, version) {
            let before = stored.current.filter(|(of, _)| *of == version).map_or(wanted, |(_, [last, _])| last);
            stored.current = Some((version, [wanted, before]));
        }
    }

    /// One object as it stands.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Result<Option<K>, Unreadable> {
        self.standing(namespace, name, None)
    }

    /// The object as it stands, if another version of it than the given one is known that is no older.
    pub(super) fn newer(&self, given: &K) -> Result<Option<K>, Unreadable> {
        let (namespace, name) = place(given);
        let same = |stored: &Packed<K>| stored.version.is_some() && stored.version == version(given);
        // This is where most passes begin, and nothing need be read for it.
        if self.written(&namespace, &name).is_none() && self.stored(&namespace, &name).is_none_or(same) {
            return Ok(None);
        }
        let newer = |known: &K| {
            known.meta().uid == given.meta().uid && version(known).unwrap_or(0) >= version(given).unwrap_or(0)
        };
        Ok(self.standing(&namespace, &name, None)?.filter(newer))
    }

    /// Namespaces and names of all objects that the watch has told.
    pub(super) fn places(&self) -> Vec<Place> {
        self.objects
            .iter()
            .flat_map(|(namespace, all)| all.keys().map(move |name| (namespace.clone(), name.clone())))
            .collect()
    }

    /// All objects that the watch has told.
    pub(super) fn all(&self) -> impl Iterator<Item = Result<K, Unreadable>> {
        self.objects
            .iter()
            .flat_map(|(namespace, all)| all.iter().map(move |(name, object)| object.read(namespace, name)))
    }

    /// Names of those of one ChatCluster, and of some that were its own until this process changed that.
    pub(super) fn names(&self, namespace: &str, cluster: &str) -> BTreeSet<String> {
        let told = self.members.get(namespace).and_then(|clusters| clusters.get(cluster)).into_iter().flatten();
        let written = self.written.iter().filter_map(|((there, name), write)| match write {
            Written::As { object, .. } => (there == namespace && self.is_of(object, cluster)).then_some(name),
            Written::Deleted { .. } => None,
        });
        told.chain(written).cloned().collect()
    }

    /// Those of one ChatCluster, or of these those that have a label.
    pub(super) fn of_cluster(
        &self,
        namespace: &str,
        cluster: &str,
        label: Option<&Label<'_>>,
    ) -> Result<Live<K>, Unreadable> {
        let mut found = Live::new();
        // What was written may have changed whose it is.
        let mine = |object: &K| self.is_of(object, cluster) && label.is_none_or(|label| label.is_of(object));
        let told = self.members.get(namespace).and_then(|clusters| clusters.get(cluster)).into_iter().flatten();
        let written = self.written.keys().filter(|(there, _)| there == namespace).map(|(_, name)| name);
        for name in told.chain(written) {
            if !found.contains_key(name)
                && let Some(object) = self.standing(namespace, name, label)?.filter(&mine)
            {
                found.insert(name.clone(), object);
            }
        }
        Ok(found)
    }

    fn is_of(&self, object: &K, cluster: &str) -> bool {
        (self.cluster)(object) == Some(cluster)
    }

    fn pack(&self, object: &K) -> Packed<K> {
        Packed::new(object, (self.cluster)(object))
    }

    fn stored(&self, namespace: &str, name: &str) -> Option<&Packed<K>> {
        self.objects.get(namespace)?.get(name)
    }

    fn written(&self, namespace: &str, name: &str) -> Option<&Written<K>> {
        // Mostly nothing is, and nothing need be copied to find that out.
        if self.written.is_empty() { None } else { self.written.get(&(namespace.to_owned(), name.to_owned())) }
    }

    /// The newer one of what was told and what was written. Those that cannot have the label may be left out.
    fn standing(&self, namespace: &str, name: &str, label: Option<&Label<'_>>) -> Result<Option<K>, Unreadable> {
        let stored = self.stored(namespace, name);
        let written = self.written(namespace, name);
        if let Some(Written::As { object, version, .. }) = written
            && self.awaits(stored, *version)
        {
            return Ok(Some(K::clone(object)));
        }
        let Some(stored) = stored.filter(|stored| label.is_none_or(|label| stored.may_have(label))) else {
            return Ok(None);
        };
        let mut object = stored.read(namespace, name)?;
        if let Some(Written::Deleted { uid, since, .. }) = written
            && is_alive(stored, uid.as_deref())
        {
            object.meta_mut().deletion_timestamp = Some(since.clone());
        }
        Ok(Some(object))
    }

    /// Whether the watch has not come to this version of an object yet. An object that it does not hold and that it has passed is gone.
    fn awaits(&self, stored: Option<&Packed<K>>, written: u64) -> bool {
        let reached = match stored {
            Some(object) => object.version.unwrap_or(u64::MAX),
            None => self.seen,
        };
        reached < written
    }

    /// Forgets the writes that the watch has come to, and those that are too old.
    fn forget(&mut self, now: Instant) {
        let mut written = std::mem::take(&mut self.written);
        written.retain(|(namespace, name), write| {
            let stored = self.stored(namespace, name);
            let young = now.saturating_duration_since(write.at()) < END;
            young
                && match write {
                    Written::As { version, .. } => self.awaits(stored, *version),
                    Written::Deleted { uid, .. } => stored.is_none_or(|stored| is_alive(stored, uid.as_deref())),
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

    fn insert(&mut self, place: Place, mut object: Packed<K>) {
        self.seen = self.seen.max(object.version.unwrap_or(0));
        if let Some(former) = self.remove(&place) {
            object.current = former.current;
        }
        let (namespace, name) = place;
        if let Some(cluster) = &object.cluster {
            let clusters = self.members.entry(namespace.clone()).or_default();
            clusters.entry(cluster.to_string()).or_default().insert(name.clone());
        }
        self.objects.entry(namespace).or_default().insert(name, object);
    }

    fn remove(&mut self, (namespace, name): &Place) -> Option<Packed<K>> {
        let all = self.objects.get_mut(namespace)?;
        let object = all.remove(name)?;
        if all.is_empty() {
            self.objects.remove(namespace);
        }
        if let Some(clusters) = self.members.get_mut(namespace) {
            if let Some(cluster) = object.cluster.as_deref()
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
        Some(object)
    }
}

/// Whether this is the object of that uid, and nobody has told yet that it is being deleted.
fn is_alive<K>(stored: &Packed<K>, uid: Option<&str>) -> bool {
    stored.uid.as_deref() == uid && !stored.dying
}

#[cfg(test)]
mod tests;
