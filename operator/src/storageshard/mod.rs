//! The StorageShard controller: the pods, Service and budget of one shard, and its status from what the ChatCluster's passes saw.
//!
//! It never talks to the engine: joining, slots and promotion are steps over the whole ChatCluster.

mod status;

pub use status::{Facts, status};

use std::{sync::Arc, time::Duration};

use json_patch::{PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kith_crds::{
    ChatCluster, StorageShard,
    conditions::{self, Finding, reason},
    names,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};

use crate::{
    apply::{self, Applier, ApplyError, Live},
    chatcluster::PassError,
    context::{Context, key},
    dataplane::pressure,
    lanes, lastspec,
    render::{meta, valkey},
    runtime::Snapshot,
    volumes,
};

const QUIET: Duration = Duration::from_secs(60);
/// While a person waits for a shard to be emptied.
const DRAINING: Duration = Duration::from_secs(5);

/// One pass. The status is written also when the pass fails.
pub async fn reconcile(shard: Arc<StorageShard>, context: Arc<Context>) -> Result<Action, PassError> {
    let shard = context.stores.newest(shard);
    let namespace = shard.namespace().unwrap_or_default();
    let cluster_name = &shard.spec.cluster_ref.name;
    let cluster = context.stores.get::<ChatCluster>(&namespace, cluster_name).await?;
    let runtime = context.clusters.get(&namespace, cluster_name);
    let snapshot = runtime.as_ref().and_then(|r| r.snapshot());
    let mut facts = Facts { snapshot, prober: runtime.map(|r| r.prober()), ..Facts::default() };
    if shard.metadata.deletion_timestamp.is_some() {
        return leave(&shard, cluster.as_ref(), &context, facts).await;
    }
    let result = match &cluster {
        None => {
            facts.failure = Some(Finding::fails(
                conditions::READY,
                reason::CLUSTER_NOT_FOUND,
                format!(
                    "ChatCluster {cluster_name} does not exist in namespace {namespace}: create it, or delete this StorageShard"
                ),
            ));
            Ok(Action::requeue(QUIET))
        }
        // What is going away is not made again; the garbage collector takes this shard along.
        Some(cluster) if cluster.metadata.deletion_timestamp.is_some() => return Ok(Action::await_change()),
        Some(cluster) => lanes::in_time(Box::pin(pass(&shard, cluster, &context, &mut facts))).await,
    };
    if let Err(error) = &result {
        if error.namespace_ends() {
            return Ok(Action::await_change());
        }
        facts.failure = Some(error.finding());
    }
    let wanted = status(&shard, &facts, Timestamp::now());
    let written = apply::status(&context.stores, shard.as_ref(), shard.status.as_ref(), &wanted).await;
    announce(&context, &shard, &wanted).await;
    let action = result?;
    written?;
    // Written down first: whoever comes later knows by it that the wish was used.
    if let Some(end) = status::end_of_wish(&shard, &wanted, &facts) {
        take_wish_away(&shard, &context, end.wish).await?;
        let note = format!("{}; the annotation {} is taken away", end.words, names::ANNOTATION_FORCE_PROMOTE);
        context.event(shard.as_ref(), end.forced, "ForcePromoteEnded", &note).await;
    }
    context.failures.succeeded(&key(shard.as_ref()));
    Ok(action)
}

/// What to do after a failed pass: wait, longer each time.
pub fn failed(shard: &Arc<StorageShard>, error: &PassError, context: &Arc<Context>) -> Action {
    let key = key(shard.as_ref());
    let pause = context.failures.failed(&key);
    tracing::warn!(object = %key, %error, pause_ms = pause.as_millis(), "a pass failed");
    Action::requeue(pause)
}

async fn pass(
    shard: &StorageShard,
    cluster: &ChatCluster,
    context: &Context,
    facts: &mut Facts,
) -> Result<Action, PassError> {
    if cluster.status.as_ref().is_none_or(|s| s.images.is_none()) {
        // The ChatCluster's first pass adopts the images; it wakes its shards.
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let plan = lastspec::usable_plan(&context.stores, cluster, &context.release).await?;
    let name = shard.name_any();
    hold(shard, context).await?;
    // observe
    let (stores, namespace, cluster_name) = (&context.stores, plan.namespace.as_str(), plan.name.as_str());
    let own = (names::LABEL_SHARD, name.as_str());
    let (sets, services, budgets, claims, pods) = tokio::try_join!(
        stores.part::<StatefulSet>(namespace, cluster_name, own),
        stores.part::<Service>(namespace, cluster_name, own),
        stores.part::<PodDisruptionBudget>(namespace, cluster_name, own),
        stores.part::<PersistentVolumeClaim>(namespace, cluster_name, own),
        stores.part::<Pod>(namespace, cluster_name, own),
    )?;
    facts.pods = Some(pods);
    facts.capacity = volumes::capacities(&claims);
    facts.replicas = plan.valkey.replicas;
    let set_name = meta::shard_name(&name);
    let live: Option<&StatefulSet> = sets.get(&set_name);
    volumes::refuse_foreign(&claims, &set_name, &plan.data_uid)?;
    // build
    let made_with = live.and_then(volumes::claim_size);
    let mut objects = valkey::shard(&plan, &name, made_with.as_ref());
    let may_shrink = facts.snapshot.as_ref().is_some_and(|s| s.shrinkable.contains(&name));
    keep_pods(&mut objects.stateful_set, shard, may_shrink);
    // apply
    let owner = shard.controller_owner_ref(&()).ok_or_else(|| {
        Finding::fails(
            conditions::READY,
            reason::INVALID_SPEC,
            "the object has no uid; it did not come from an API server",
        )
    })?;
    let applier =
        Applier { client: context.client.clone(), stores: stores.clone(), namespace: plan.namespace.clone(), owner };
    applier.apply(objects.service, services.get(&set_name)).await?;
    applier.apply(objects.budget, budgets.get(&set_name)).await?;
    applier.apply(objects.stateful_set, live).await?;
    volumes::grow(&applier, &claims, &set_name, &plan.valkey.volume).await?;
    facts.refused = context.refusals.look(&context.client, namespace, live).await.remove(&set_name);
    Ok(Action::requeue(if shard.spec.draining { DRAINING } else { QUIET }))
}

/// Leaves a StatefulSet the pods that may hold acknowledged writes until those that are more than wanted may go.
fn keep_pods(wanted: &mut StatefulSet, shard: &StorageShard, may_shrink: bool) {
    let copies = shard.status.iter().flat_map(|status| &status.copies);
    let pods = copies.filter_map(|pod| i32::try_from(meta::ordinal(pod)?.checked_add(1)?).ok()).max();
    if let Some(spec) = wanted.spec.as_mut().filter(|_| !may_shrink) {
        spec.replicas = spec.replicas.max(pods);
    }
}

/// Puts the finalizer on a shard that a person made: it is not to vanish while it owns slots.
async fn hold(shard: &StorageShard, context: &Context) -> Result<(), ApplyError> {
    if shard.finalizers().iter().any(|f| f == names::FINALIZER) {
        return Ok(());
    }
    let mut finalizers = shard.finalizers().to_vec();
    finalizers.push(names::FINALIZER.to_owned());
    set_finalizers(shard, context, &finalizers).await
}

async fn set_finalizers(shard: &StorageShard, context: &Context, finalizers: &[String]) -> Result<(), ApplyError> {
    let name = shard.name_any();
    let api: Api<StorageShard> = Api::namespaced(context.client.clone(), &shard.namespace().unwrap_or_default());
    // The resource version makes the API server refuse if somebody else changed the list meanwhile.
    let patch = serde_json::json!({
        "metadata": {"finalizers": finalizers, "resourceVersion": shard.metadata.resource_version, "uid": shard.uid()}
    });
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(standing) => {
            context.stores.wrote(&standing);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ApplyError::kube::<StorageShard>(&name, error)),
    }
}

/// Takes the wish to promote `pod` off the shard, unless it has become another one meanwhile.
async fn take_wish_away(shard: &StorageShard, context: &Context, pod: &str) -> Result<(), ApplyError> {
    let name = shard.name_any();
    let api: Api<StorageShard> = Api::namespaced(context.client.clone(), &shard.namespace().unwrap_or_default());
    let path = PointerBuf::from_tokens(["metadata", "annotations", names::ANNOTATION_FORCE_PROMOTE]);
    let patch = json_patch::Patch(vec![
        PatchOperation::Test(TestOperation { path: path.clone(), value: pod.into() }),
        PatchOperation::Remove(RemoveOperation { path }),
    ]);
    match api.patch(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await {
        Ok(standing) => {
            context.stores.wrote(&standing);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_invalid() => Ok(()),
        Err(error) => Err(ApplyError::kube::<StorageShard>(&name, error)),
    }
}

/// A shard that is being deleted: let go at once when its ChatCluster is gone or going, or when nothing is left on it; held otherwise.
async fn leave(
    shard: &StorageShard,
    cluster: Option<&ChatCluster>,
    context: &Context,
    mut facts: Facts,
) -> Result<Action, PassError> {
    if !shard.finalizers().iter().any(|f| f == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    let empty = facts.snapshot.as_ref().is_some_and(|s| s.empty.contains(&shard.name_any()));
    if may_go(shard, cluster, empty) {
        let rest: Vec<String> = shard.finalizers().iter().filter(|f| *f != names::FINALIZER).cloned().collect();
        set_finalizers(shard, context, &rest).await?;
        return Ok(Action::await_change());
    }
    facts.deleting = true;
    let wanted = status(shard, &facts, Timestamp::now());
    apply::status(&context.stores, shard, shard.status.as_ref(), &wanted).await?;
    Ok(Action::requeue(DRAINING))
}

/// Whether a shard that is being deleted may vanish; `empty`: it was seen without slots and keys.
pub(crate) fn may_go(shard: &StorageShard, cluster: Option<&ChatCluster>, empty: bool) -> bool {
    let going = cluster.is_none_or(|c| c.metadata.deletion_timestamp.is_some());
    let never_served = shard.status.as_ref().is_none_or(|s| s.slots == 0 && s.members.is_empty());
    going || empty || never_served
}

/// Events: a change of the primary, and a change of Ready's reason.
async fn announce(context: &Context, shard: &StorageShard, status: &kith_crds::StorageShardStatus) {
    let before = shard.status.clone().unwrap_or_default();
    if let Some(failover) = status.last_failover.as_ref().filter(|f| before.last_failover.as_ref() != Some(f)) {
        let from = failover.from.as_deref().unwrap_or("the primary before");
        let note = format!("{} is the primary now, instead of {from}", failover.to);
        context.event(shard, true, "PrimaryChanged", &note).await;
    }
    let ready =
        |conditions| conditions::get(conditions, conditions::READY).map(|c| (c.status.clone(), c.reason.clone()));
    let (was, is) = (ready(&before.conditions), ready(&status.conditions));
    if was != is
        && let Some(now) = conditions::get(&status.conditions, conditions::READY)
    {
        let warning = now.status != "True" && now.reason != reason::STARTING;
        context.event(shard, warning, &now.reason, &now.message).await;
    }
    if let Some(now) = pressure::begun(&before.conditions, &status.conditions) {
        context.event(shard, true, &now.reason, &now.message).await;
    }
}

/// What a pass over a StorageShard reads of the ChatCluster's pods.
pub type Pods = Live<Pod>;
/// What the ChatCluster's passes saw.
pub type Seen = Arc<Snapshot>;

#[cfg(test)]
mod tests {
    use kith_crds::StorageShardStatus;

    use super::*;

    #[test]
    fn a_deleted_shard_is_held_until_nothing_is_left_on_it() {
        let object =
            |name: &str| serde_json::json!({"metadata": {"name": name}, "spec": {"clusterRef": {"name": "demo"}}});
        let mut shard: StorageShard = serde_json::from_value(object("demo-0")).unwrap();
        let mut cluster = ChatCluster::new("demo", serde_json::from_value(serde_json::json!({})).unwrap());
        assert!(may_go(&shard, Some(&cluster), false), "it has never served");

        shard.status = Some(StorageShardStatus { slots: 5, ..StorageShardStatus::default() });
        assert!(!may_go(&shard, Some(&cluster), false), "it owns slots");
        assert!(may_go(&shard, Some(&cluster), true), "it was emptied");

        cluster.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
        assert!(may_go(&shard, Some(&cluster), false), "its ChatCluster goes");
        assert!(may_go(&shard, None, false), "its ChatCluster is gone");
    }
}
