//! The StorageShards that the operator keeps for a ChatCluster: made up to `spec.storage.shards`, the highest ones emptied first, removed
//! only when the data plane says that nothing is left on them.

use std::collections::BTreeSet;

use kith_crds::{StorageShard, StorageShardSpec, names, shared::LocalRef};
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    apply::{Applier, ApplyError, Live},
    plan::Plan,
    render::meta::{self, Component},
    runtime::Snapshot,
};

/// What is to be done with the StorageShards.
#[derive(Debug, Default, PartialEq)]
pub struct Steps {
    /// To be made.
    pub create: Vec<StorageShard>,
    /// To be emptied or, scaled out again, not any more: name and value of `draining`.
    pub draining: Vec<(String, bool)>,
    /// To be deleted: empty, as are all others that are not wanted. One at a time, and not while slots still move: the end of many pods costs
    /// those who chat.
    pub delete: Option<String>,
}

/// Decides. Pure.
pub fn steps(plan: &Plan, live: &Live<StorageShard>, snapshot: Option<&Snapshot>) -> Steps {
    let mut steps = Steps::default();
    let mut present = BTreeSet::new();
    let mut unfinished = false;
    for (name, shard) in live {
        let Some(index) = shard.spec.index else { continue };
        present.insert(index);
        if shard.metadata.deletion_timestamp.is_some() {
            unfinished = true;
            continue;
        }
        let wanted = index < plan.valkey.shards;
        if shard.spec.draining == wanted {
            steps.draining.push((name.clone(), !wanted));
        }
        let empty = snapshot.is_some_and(|s| s.readiness.is_ready() && s.empty.contains(name));
        if !wanted && shard.spec.draining && empty {
            steps.delete = Some(name.clone());
        } else if !wanted {
            unfinished = true;
        }
    }
    steps.delete = steps.delete.filter(|_| !unfinished);
    for index in (0..plan.valkey.shards).filter(|i| !present.contains(i)) {
        steps.create.push(shard(plan, index));
    }
    steps
}

fn shard(plan: &Plan, index: u32) -> StorageShard {
    let name = StorageShard::name_of(&plan.name, index);
    let mut labels = meta::labels(&plan.name, Component::Valkey);
    labels.insert(names::LABEL_SHARD.to_owned(), name.clone());
    StorageShard {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(plan.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![plan.owner.clone()]),
            finalizers: Some(vec![names::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: StorageShardSpec {
            cluster_ref: LocalRef { name: plan.name.clone() },
            index: Some(index),
            weight: plan.spec.storage.initial_weight(index),
            draining: false,
        },
        status: None,
    }
}

/// Carries the steps out. A shard is created, not applied: its weight is the user's from then on.
pub(super) async fn carry_out(applier: &Applier, steps: Steps, live: &Live<StorageShard>) -> Result<(), ApplyError> {
    let api: Api<StorageShard> = Api::namespaced(applier.client.clone(), &applier.namespace);
    for shard in steps.create {
        let name = shard.name_any();
        tracing::info!(shard = %name, namespace = %applier.namespace, "making a shard");
        let params = PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, &shard).await {
            Ok(made) => applier.stores.wrote(&made),
            // The cache was behind, or an earlier ChatCluster's shard is still going away: the next pass sees which.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                return Err(ApplyError::Terminating { kind: "StorageShard".to_owned(), name });
            }
            Err(error) => return Err(ApplyError::kube::<StorageShard>(&name, error)),
        }
    }
    for (name, draining) in steps.draining {
        let patch = Patch::Merge(json!({"spec": {"draining": draining}}));
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let standing =
            api.patch(&name, &params, &patch).await.map_err(|e| ApplyError::kube::<StorageShard>(&name, e))?;
        applier.stores.wrote(&standing);
    }
    if let Some(shard) = steps.delete.and_then(|name| live.get(&name)) {
        // It may be wanted again by now.
        let now = applier.stores.ask::<StorageShard>(&applier.namespace, &shard.name_any()).await?;
        if now.is_some_and(|now| now.uid() == shard.uid() && now.spec.draining) {
            applier.delete(shard).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kith_crds::ChatCluster;

    use super::*;
    use crate::{dataplane::readiness::Readiness, plan::tests::release};

    fn plan(shards: u32) -> Plan {
        let cluster: ChatCluster = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1"},
            "spec": {"storage": {"shards": shards, "weights": [50]}}
        }))
        .unwrap();
        Plan::resolve(&cluster, &release("0.1.0")).unwrap()
    }

    fn live(shards: &[(u32, bool)]) -> Live<StorageShard> {
        shards
            .iter()
            .map(|(index, draining)| {
                let mut shard = shard(&plan(9), *index);
                shard.spec.draining = *draining;
                (shard.name_any(), shard)
            })
            .collect()
    }

    fn snapshot(empty: &[&str]) -> Snapshot {
        let readiness = Readiness { shards: Vec::new(), slots_served: 16_384, agreed: true, problems: Vec::new() };
        Snapshot {
            acknowledged_by: std::collections::BTreeMap::new(),
            copies: std::collections::BTreeMap::new(),
            shrinkable: Vec::new(),
            readiness,
            problems: Vec::new(),
            empty: empty.iter().map(|s| (*s).to_owned()).collect(),
            hand_overs: BTreeMap::new(),
        }
    }

    #[test]
    fn missing_shards_are_made_with_their_weight() {
        let steps = steps(&plan(2), &live(&[]), None);
        let made: Vec<_> = steps.create.iter().map(|s| (s.name_any(), s.spec.weight)).collect();
        assert_eq!(made, [("demo-0".to_owned(), 50), ("demo-1".to_owned(), 100)]);
        assert_eq!(steps.create[0].finalizers(), [names::FINALIZER]);
    }

    #[test]
    fn fewer_shards_empty_the_highest_and_delete_only_what_is_empty() {
        let now = live(&[(0, false), (1, false), (2, true)]);
        let first = steps(&plan(1), &now, Some(&snapshot(&[])));
        assert_eq!((first.draining, first.delete), (vec![("demo-1".to_owned(), true)], None));
        let later = steps(&plan(1), &now, Some(&snapshot(&["demo-1", "demo-2"])));
        assert_eq!(later.delete, None, "demo-1 is not marked yet");
        let emptied = steps(&plan(1), &live(&[(0, false), (1, true), (2, true)]), Some(&snapshot(&["demo-2"])));
        assert_eq!(emptied.delete, None, "slots of demo-1 still move");
        let unseen = steps(&plan(1), &now, None);
        assert!(unseen.delete.is_none());
    }

    #[test]
    fn empty_shards_are_deleted_one_at_a_time() {
        let mut now = live(&[(0, false), (1, true), (2, true)]);
        let seen = snapshot(&["demo-1", "demo-2"]);
        assert_eq!(steps(&plan(1), &now, Some(&seen)).delete.as_deref(), Some("demo-2"));
        let leaving = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now()));
        now.get_mut("demo-2").unwrap().metadata.deletion_timestamp = leaving;
        assert_eq!(steps(&plan(1), &now, Some(&seen)).delete, None);
        now.remove("demo-2");
        assert_eq!(steps(&plan(1), &now, Some(&seen)).delete.as_deref(), Some("demo-1"));
    }

    #[test]
    fn a_shard_that_is_wanted_again_is_not_emptied_any_more() {
        let again = steps(&plan(2), &live(&[(0, false), (1, true)]), None);
        assert_eq!(again.draining, [("demo-1".to_owned(), false)]);
        assert!(again.create.is_empty() && again.delete.is_none());
    }
}
