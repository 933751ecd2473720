//! The last spec of a ChatCluster that could be resolved, kept beside it: what runs is cared for by it while the present one cannot be used.
//!
//! A field that nobody checked before, or a version that this operator does not know, must not end failover, not even after the operator's
//! next restart, when nothing is remembered.

use k8s_openapi::api::core::v1::ConfigMap;
use kith_crds::{ChatCluster, ChatClusterSpec, conditions::Finding, names};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use crate::{chatcluster::PassError, plan::Plan, release::Release, render::meta, stores::Stores};

/// The key of the ConfigMap.
const KEY: &str = "spec.json";

/// The ConfigMap that keeps the spec of `plan`.
pub fn keep(plan: &Plan) -> Result<ConfigMap, serde_json::Error> {
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(meta::last_spec_config_map(&plan.name)),
            labels: Some(meta::cluster_labels(&plan.name)),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), serde_json::to_string(&plan.spec)?)].into()),
        ..ConfigMap::default()
    })
}

/// The plan by which to care for what runs, although the present spec cannot be used: of the kept spec and the adopted version; of the
/// present spec, when it can be used but for its version. None where nothing was adopted yet, so nothing runs.
pub fn restore(cluster: &ChatCluster, kept: Option<&ConfigMap>, release: &Release) -> Option<Plan> {
    cluster.status.as_ref().and_then(|status| status.version.as_ref())?;
    let stored = kept
        // Labels and names anyone can write.
        .filter(|map| map.owner_references().iter().any(|o| Some(&o.uid) == cluster.meta().uid.as_ref()))
        .and_then(|map| serde_json::from_str::<ChatClusterSpec>(map.data.as_ref()?.get(KEY)?).ok());
    [stored, Some(cluster.spec.clone())].into_iter().flatten().find_map(|spec| {
        let mut former = cluster.clone();
        former.spec = ChatClusterSpec { version: None, ..spec };
        former.annotations_mut().remove(names::ANNOTATION_ADOPT_IMAGES);
        Plan::resolve(&former, release).ok()
    })
}

/// The plan for what belongs to a part of the ChatCluster: of its present spec, or of the kept one while that cannot be used.
pub async fn usable_plan(stores: &Stores, cluster: &ChatCluster, release: &Release) -> Result<Plan, PassError> {
    let finding = match Plan::resolve(cluster, release) {
        Ok(plan) => return Ok(plan),
        Err(finding) => finding,
    };
    let name = meta::last_spec_config_map(&cluster.name_any());
    let kept = stores.get::<ConfigMap>(&cluster.namespace().unwrap_or_default(), &name).await?;
    restore(cluster, kept.as_ref(), release).ok_or_else(|| finding.into())
}

/// What is said while the kept spec is in force.
pub fn say(mut finding: Finding) -> Finding {
    finding.message =
        format!("{}; until then what runs is cared for by the last spec that could be used", finding.message);
    finding
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::tests::release;

    fn cluster(spec: &Value) -> ChatCluster {
        serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1"},
            "spec": spec,
            "status": {"version": "0.1.0", "images": {"kith": "kith:1", "valkey": "valkey:1", "kafka": "kafka:1"}}
        }))
        .expect("a ChatCluster")
    }

    fn kept(spec: &Value, owner: &str) -> ConfigMap {
        let plan = Plan::resolve(&cluster(spec), &release("0.1.0")).expect("a plan");
        let mut map = keep(&plan).expect("a map");
        let mut owner_reference = plan.owner;
        owner.clone_into(&mut owner_reference.uid);
        map.metadata.owner_references = Some(vec![owner_reference]);
        map
    }

    #[test]
    fn what_cannot_be_used_is_replaced_by_what_could() {
        let good = json!({"storage": {"shards": 2, "replicas": 1}});
        let bad = [
            json!({"version": "9.9.9", "storage": {"shards": 5}}),
            json!({"auth": {"tokenTtl": "forever"}, "storage": {"shards": 5}}),
        ];
        for spec in bad {
            let present = cluster(&spec);
            assert!(Plan::resolve(&present, &release("0.1.0")).is_err(), "{spec}");
            let plan = restore(&present, Some(&kept(&good, "u-1")), &release("0.1.0")).expect("a plan");
            assert_eq!((plan.valkey.shards, plan.valkey.replicas, plan.version.as_str()), (2, 1, "0.1.0"));
        }
    }

    #[test]
    fn without_a_kept_spec_a_wrong_version_alone_ends_nothing() {
        let present = cluster(&json!({"version": "9.9.9", "storage": {"shards": 5}}));
        let somebody_elses = kept(&json!({"storage": {"shards": 2}}), "u-2");
        for map in [None, Some(&somebody_elses)] {
            let plan = restore(&present, map, &release("0.1.0")).expect("a plan");
            assert_eq!((plan.valkey.shards, plan.version.as_str()), (5, "0.1.0"));
        }
        // A later operator cares for what an earlier one adopted.
        assert!(restore(&present, None, &release("0.3.0")).is_some_and(|plan| plan.version == "0.1.0"));
    }

    #[test]
    fn where_nothing_was_adopted_nothing_is_cared_for() {
        let mut present = cluster(&json!({"version": "9.9.9"}));
        present.status = None;
        assert!(restore(&present, None, &release("0.1.0")).is_none());
    }
}
