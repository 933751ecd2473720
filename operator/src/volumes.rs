//! Volume claims: whose data they hold, and how they grow.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kith_crds::{
    conditions::{self, Finding, reason},
    names,
    shared::Volume,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};

use crate::{
    apply::{Applier, ApplyError, Live},
    render::valkey::DATA,
};

/// The claims of a StatefulSet: `data-<set>-<ordinal>`.
fn of_set<'a>(
    claims: &'a Live<PersistentVolumeClaim>,
    set: &str,
) -> impl Iterator<Item = (&'a String, &'a PersistentVolumeClaim)> {
    let prefix = format!("{DATA}-{set}-");
    claims.iter().filter(move |(name, _)| {
        name.strip_prefix(&prefix)
            .is_some_and(|ordinal| !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Fails when a claim of this StatefulSet holds data of another ChatCluster: nothing may be started on it.
pub fn refuse_foreign(claims: &Live<PersistentVolumeClaim>, set: &str, uid: &str) -> Result<(), Finding> {
    for (name, claim) in of_set(claims, set) {
        match claim.annotations().get(names::ANNOTATION_CLUSTER_UID) {
            Some(other) if other != uid => {
                return Err(Finding::fails(
                    conditions::FOREIGN_DATA,
                    reason::FOREIGN_VOLUME,
                    format!(
                        "PersistentVolumeClaim {name} holds data of the ChatCluster with UID {other}: set spec.restoreFrom.clusterUid to it in a new ChatCluster to adopt the data, or delete the claim if it may be lost"
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The size in a StatefulSet's claim template, which can never change.
pub fn claim_size(set: &StatefulSet) -> Option<Quantity> {
    let template = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?;
    template.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage").cloned()
}

fn bytes(quantity: &Quantity) -> Option<u64> {
    kith_crds::shared::Quantity(quantity.0.clone()).to_bytes().ok()
}

/// Bytes of the volume of each pod, as far as Kubernetes says: what it gave, else what was asked for. Pure.
pub fn capacities(claims: &Live<PersistentVolumeClaim>) -> BTreeMap<String, u64> {
    let of = |claim: &PersistentVolumeClaim| {
        let given = claim.status.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
        let asked = || claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage");
        bytes(given.or_else(asked)?)
    };
    let prefix = format!("{DATA}-");
    claims.iter().filter_map(|(name, claim)| Some((name.strip_prefix(&prefix)?.to_owned(), of(claim)?))).collect()
}

/// The claims that are smaller than wanted. Pure.
pub fn too_small<'a>(claims: &'a Live<PersistentVolumeClaim>, set: &str, volume: &Volume) -> Vec<&'a str> {
    let Ok(wanted) = volume.size.to_bytes() else { return Vec::new() };
    of_set(claims, set)
        .filter(|(_, claim)| {
            let asked = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
            asked.and_then(bytes).is_some_and(|asked| asked < wanted)
        })
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Raises the claims that are smaller than wanted.
pub async fn grow(
    applier: &Applier,
    claims: &Live<PersistentVolumeClaim>,
    set: &str,
    volume: &Volume,
) -> Result<(), ApplyError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(applier.client.clone(), &applier.namespace);
    for name in too_small(claims, set, volume) {
        tracing::info!(claim = name, size = %volume.size, "raising a volume");
        let patch = serde_json::json!({"spec": {"resources": {"requests": {"storage": volume.size.0}}}});
        let standing = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(|e| ApplyError::kube::<PersistentVolumeClaim>(name, e))?;
        applier.stores.wrote(&standing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(uid: &str) -> Live<PersistentVolumeClaim> {
        let claim = serde_json::from_value(json!({
            "metadata": {"name": "data-demo-0-valkey-0", "annotations": {names::ANNOTATION_CLUSTER_UID: uid}},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}
        }))
        .unwrap();
        [("data-demo-0-valkey-0".to_owned(), claim)].into()
    }

    #[test]
    fn data_of_another_cluster_is_refused_in_words() {
        assert!(refuse_foreign(&claims("mine"), "demo-0-valkey", "mine").is_ok());
        let refused = refuse_foreign(&claims("other"), "demo-0-valkey", "mine").unwrap_err();
        assert_eq!((refused.kind, refused.reason), (conditions::FOREIGN_DATA, reason::FOREIGN_VOLUME));
        assert!(refused.message.contains("data-demo-0-valkey-0") && refused.message.contains("other"));
        assert!(refuse_foreign(&claims("other"), "demo-0", "mine").is_ok(), "another set's claims");
    }

    #[test]
    fn a_volume_is_as_large_as_kubernetes_gave_it_or_else_as_was_asked_for() {
        let mut claims = claims("a");
        assert_eq!(capacities(&claims), [("demo-0-valkey-0".to_owned(), 1 << 30)].into());
        let given = json!({"capacity": {"storage": "2Gi"}});
        for claim in claims.values_mut() {
            claim.status = serde_json::from_value(given.clone()).unwrap();
        }
        assert_eq!(capacities(&claims), [("demo-0-valkey-0".to_owned(), 2 << 30)].into());
    }

    #[test]
    fn volumes_only_grow() {
        let volume = |size: &str| Volume { size: size.into(), ..Volume::default() };
        assert_eq!(too_small(&claims("a"), "demo-0-valkey", &volume("2Gi")), ["data-demo-0-valkey-0"]);
        assert!(too_small(&claims("a"), "demo-0-valkey", &volume("1024Mi")).is_empty());
        assert!(too_small(&claims("a"), "demo-0-valkey", &volume("512Mi")).is_empty());
    }
}
