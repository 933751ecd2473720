//! Which operators of other releases look after the same namespaces, and who of two gives way. Pure; time is passed in.
//!
//! Every release says in the annotations of its ClusterRole which Lease it holds and which namespaces it looks after: an object that only
//! administrators can make, so that nobody who may write in a namespace can keep an operator from leading. A candidate first takes its own
//! release's Lease, then looks at those of the others. If one that looks after the same namespaces is held, it does not lead: of two, the one
//! with the smaller name keeps its Lease and waits, the other gives its Lease back. Since each writes before it looks, of two that begin at
//! once one at least sees the other; and one that leads looks no more and so never gives way.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::{coordination::v1::Lease, rbac::v1::ClusterRole};
use kith_crds::names;
use kube::ResourceExt;

/// The annotation of an operator that looks after all namespaces.
const ALL: &str = "*";

/// The namespaces that an operator looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watches(Vec<String>);

impl Watches {
    /// These namespaces; none: all.
    pub fn of(namespaces: &[String]) -> Self {
        let named = namespaces.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty() && n != ALL);
        Self(named.collect())
    }

    /// As an annotation says it; what says nothing means all.
    fn said(annotation: Option<&String>) -> Self {
        let names: Vec<String> =
            annotation.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default();
        Self::of(&names)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.0.is_empty() || other.0.is_empty() || self.0.iter().any(|name| other.0.contains(name))
    }
}

/// A release of the operator: its Lease, and what it looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// The namespaces that it looks after.
    pub watches: Watches,
}

impl Own {
    /// By which one of two gives way; also how it is named.
    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.lease)
    }

    /// As the annotations of a ClusterRole say.
    fn declared(role: &ClusterRole) -> Option<Self> {
        let (namespace, lease) = role.annotations().get(names::ANNOTATION_LEASE)?.split_once('/')?;
        let watches = Watches::said(role.annotations().get(names::ANNOTATION_WATCHES));
        Some(Self { namespace: namespace.to_owned(), lease: lease.to_owned(), watches })
    }
}

/// Whether a candidate that holds its own Lease may lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody stands in the way.
    Clear,
    /// Another operator leads or is about to: keep the Lease and look again.
    Wait(String),
    /// The same, and the other one has the smaller name: give the Lease back until it is gone.
    GiveWay(String),
}

/// What a candidate remembers of the others.
pub struct Rivals {
    own: Own,
    /// The version of each Lease that was seen last, and since when.
    seen: HashMap<(String, String), (Option<String>, Instant)>,
}

impl Rivals {
    /// Nothing seen yet.
    pub fn new(own: &Own) -> Self {
        Self { own: own.clone(), seen: HashMap::new() }
    }

    /// The other releases that look after namespaces of this one, as their ClusterRoles say.
    pub fn overlapping(&self, roles: &[ClusterRole]) -> Vec<Own> {
        let others = roles.iter().filter_map(Own::declared);
        others.filter(|other| other.key() != self.own.key() && other.watches.overlaps(&self.own.watches)).collect()
    }

    /// Takes in one look at their Leases. A Lease is held when it names a holder and its record has changed within `lasts`, or within what
    /// itself says; one that is seen for the first time is held.
    pub fn look(
        &mut self,
        others: impl IntoIterator<Item = (Own, Option<Lease>)>,
        lasts: Duration,
        now: Instant,
    ) -> Verdict {
        let mut held: Vec<(Own, String)> = Vec::new();
        for (other, lease) in others {
            let Some(lease) = lease else { continue };
            let version = lease.metadata.resource_version.clone();
            let seen = self.seen.entry((other.namespace.clone(), other.lease.clone())).or_insert((None, now));
            if seen.0 != version {
                *seen = (version, now);
            }
            let spec = lease.spec.unwrap_or_default();
            let says = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
            let silent = now.saturating_duration_since(seen.1) >= says.unwrap_or(lasts).max(lasts);
            if let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty() && !silent) {
                held.push((other, holder));
            }
        }
        held.sort_by(|(a, _), (b, _)| a.key().cmp(&b.key()));
        let Some((first, holder)) = held.first() else { return Verdict::Clear };
        let who = format!(
            "{holder}, which holds Lease {} in namespace {}, looks after the same namespaces: this operator does nothing until that one is gone. Uninstall one of the two, or give them different watchNamespaces",
            first.lease, first.namespace
        );
        if first.key() < self.own.key() { Verdict::GiveWay(who) } else { Verdict::Wait(who) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LASTS: Duration = Duration::from_secs(6);

    fn own(namespace: &str, watches: &[&str]) -> Own {
        let watches = Watches::of(&watches.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        Own { namespace: namespace.to_owned(), lease: "kith-operator".to_owned(), watches }
    }

    fn role(lease: &str, watches: &str) -> ClusterRole {
        let annotations = json!({names::ANNOTATION_LEASE: lease, names::ANNOTATION_WATCHES: watches});
        serde_json::from_value(json!({"metadata": {"name": lease, "annotations": annotations}, "rules": []})).unwrap()
    }

    fn lease(holder: &str, version: &str) -> Lease {
        let object = json!({"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_releases_that_look_after_the_same_namespaces_are_in_each_others_way() {
        let roles = [role("b/kith-operator", "*"), role("c/kith-operator", "x,y"), role("a/kith-operator", "x")];
        let found = |own: &Own| {
            let found = Rivals::new(own).overlapping(&roles);
            found.into_iter().map(|other| other.namespace).collect::<Vec<_>>()
        };
        assert_eq!(found(&own("a", &["x"])), ["b", "c"], "its own role is no other");
        assert_eq!(found(&own("a", &["z"])), ["b"]);
        assert_eq!(found(&own("d", &[])), ["b", "c", "a"], "all namespaces are those of everyone");
        let bare: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "other"}, "rules": []})).unwrap();
        assert!(
            Rivals::new(&own("a", &[])).overlapping(&[bare]).is_empty(),
            "a role that names no Lease is no release"
        );
    }

    #[test]
    fn of_two_that_begin_at_once_one_leads_and_it_is_never_both() {
        let (small, large) = (own("a", &[]), own("b", &[]));
        let now = Instant::now();
        let sees =
            |who: &Own, other: &Own, other_lease| Rivals::new(who).look([(other.clone(), other_lease)], LASTS, now);
        // Both have written and see each other: one gives way, and the other leads when it has.
        assert!(matches!(sees(&large, &small, Some(lease("a-0", "1"))), Verdict::GiveWay(_)));
        assert!(matches!(sees(&small, &large, Some(lease("b-0", "1"))), Verdict::Wait(_)));
        assert_eq!(sees(&small, &large, Some(lease("", "2"))), Verdict::Clear);
        // The larger looked before the smaller wrote, and leads: the smaller waits, whatever its name.
        assert_eq!(sees(&large, &small, None), Verdict::Clear);
        let waits = sees(&small, &large, Some(lease("b-0", "1")));
        assert!(
            matches!(&waits, Verdict::Wait(who) if who.contains("b-0") && who.contains("namespace b")),
            "{waits:?}"
        );
    }

    #[test]
    fn a_lease_that_is_not_renewed_stands_in_nobodys_way_for_longer_than_it_lasts() {
        let (own, other) = (own("a", &[]), own("b", &[]));
        let (mut rivals, start) = (Rivals::new(&own), Instant::now());
        let mut look = |version: &str, after: Duration| {
            rivals.look([(other.clone(), Some(lease("b-0", version)))], LASTS, start + after) == Verdict::Clear
        };
        assert!(!look("1", Duration::ZERO));
        assert!(!look("1", LASTS / 2));
        assert!(!look("2", LASTS), "it was renewed");
        assert!(!look("2", LASTS + LASTS / 2));
        assert!(look("2", LASTS * 2));
        assert!(!look("3", LASTS * 3), "another replica of that release took it");
    }
}
