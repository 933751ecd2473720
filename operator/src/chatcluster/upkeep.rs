//! What keeps the shards' pods and volumes in order once the engine is formed (I/O): members that are gone for good are made anew, new
//! templates reach the pods, primaries are spread. `replace` and `tend` decide.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    jiff::Timestamp,
};
use kith_crds::{ChatCluster, StorageShard, names};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use super::{Observed, replace, tend};
use crate::{
    apply::ApplyError,
    context::Context,
    dataplane::{
        readiness::Readiness,
        types::{Desired, HandOver, Problem},
    },
    plan::Plan,
};

/// What came of it.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Planned changes of primary, by shard; the prober makes them.
    pub(super) hand_overs: BTreeMap<String, HandOver>,
    /// What could not be done yet, in words.
    pub(super) problems: Vec<Problem>,
    /// Whether something is under way.
    pub(super) busy: bool,
}

/// Everything that a pass knows.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    pub(super) cluster: &'a ChatCluster,
    pub(super) plan: &'a Plan,
    pub(super) observed: &'a Observed,
    pub(super) desired: &'a Desired,
    pub(super) readiness: &'a Readiness,
    /// Whether slots move: then no pod is restarted and no primary changed for the sake of order.
    pub(super) moving: bool,
    /// Whether a primary died a moment ago: then primaries stay where they are.
    pub(super) shaken: bool,
}

/// One round: pods that wait for a corrected template, then replacements, else one step of care. `settled`: the engine is formed and as it
/// should be; else the first alone.
pub(super) async fn carry_out(pass: &Pass<'_>, settled: bool) -> Result<Upkeep, ApplyError> {
    let mut upkeep = Upkeep::default();
    let last_primaries = pass
        .observed
        .shards
        .iter()
        .filter_map(|(name, shard)| Some((name.clone(), shard.status.as_ref()?.primary.clone()?)))
        .collect();
    let scene = tend::Scene {
        last_primaries: &last_primaries,
        desired: pass.desired,
        readiness: pass.readiness,
        sets: &pass.observed.stateful_sets,
        pods: &pass.observed.pods,
        shaken: pass.shaken,
    };
    if let Some(tend::Step::Restart { pod, why }) = tend::stuck(&scene, Timestamp::now()) {
        restart(pass, &mut upkeep, &pod, &why).await?;
        return Ok(upkeep);
    }
    if !settled {
        return Ok(upkeep);
    }
    replace_members(pass, &mut upkeep).await?;
    if upkeep.busy || pass.moving {
        return Ok(upkeep);
    }
    match tend::next(&scene) {
        None => {}
        Some(tend::Step::Restart { pod, why }) => restart(pass, &mut upkeep, &pod, &why).await?,
        Some(tend::Step::HandOver { shard, hand_over, why }) => {
            upkeep.busy = true;
            tracing::info!(%shard, from = %hand_over.from, to = ?hand_over.to, %why, "a planned hand-over");
            upkeep.hand_overs.insert(shard, hand_over);
        }
    }
    Ok(upkeep)
}

async fn restart(pass: &Pass<'_>, upkeep: &mut Upkeep, pod: &str, why: &str) -> Result<(), ApplyError> {
    upkeep.busy = true;
    pass.context.event(pass.cluster, false, "PodRestarted", why).await;
    delete_pod(pass.context, &pass.plan.namespace, pass.observed, pod, None).await
}

async fn replace_members(pass: &Pass<'_>, upkeep: &mut Upkeep) -> Result<(), ApplyError> {
    let asked: BTreeMap<String, String> = pass
        .observed
        .shards
        .iter()
        .filter_map(|(name, shard)| {
            Some((name.clone(), shard.annotations().get(names::ANNOTATION_REPLACE_MEMBER)?.trim().to_owned()))
        })
        .collect();
    let silent: Vec<&str> = pass
        .readiness
        .shards
        .iter()
        .flat_map(|s| s.members.iter().filter(|m| m.id.is_none()).map(|m| m.pod.as_str()))
        .collect();
    if silent.is_empty() && asked.is_empty() {
        return Ok(());
    }
    let (volumes, nodes) = (volumes(pass.context, pass.observed, &silent).await?, nodes(pass.context).await?);
    let (steps, problems) = replace::next(&replace::Scene {
        desired: pass.desired,
        readiness: pass.readiness,
        claims: &pass.observed.claims,
        volumes: &volumes,
        nodes: &nodes,
        asked: &asked,
    });
    upkeep.problems = problems;
    for step in steps {
        upkeep.busy = true;
        let note = format!("{} is made anew with an empty volume: {}", step.pod, step.why);
        tracing::warn!(shard = %step.shard, pod = %step.pod, why = %step.why, "a member is made anew");
        pass.context.event(pass.cluster, true, "MemberReplaced", &note).await;
        if !delete_claim(pass.context, &pass.plan.namespace, pass.observed, &step.claim).await? {
            continue;
        }
        // Where nobody is left to stop the process there is nothing to wait for; one that a person gave up may still run.
        let grace_s = (!step.asked).then_some(0);
        delete_pod(pass.context, &pass.plan.namespace, pass.observed, &step.pod, grace_s).await?;
        if step.asked {
            forget_request(pass, &step.shard).await?;
        }
    }
    Ok(())
}

/// The volumes of the claims of these pods.
pub(super) async fn volumes(
    context: &Context,
    observed: &Observed,
    pods: &[&str],
) -> Result<BTreeMap<String, PersistentVolume>, ApplyError> {
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut found = BTreeMap::new();
    for claim in pods.iter().map(|pod| replace::claim_of(pod)) {
        let live = observed.claims.get(&claim);
        let Some(volume) = live.and_then(|c| c.spec.as_ref()?.volume_name.clone()) else { continue };
        if let Some(volume) =
            api.get_opt(&volume).await.map_err(|e| ApplyError::kube::<PersistentVolume>(&volume, e))?
        {
            found.insert(claim, volume);
        }
    }
    Ok(found)
}

/// All nodes of the Kubernetes cluster.
pub(super) async fn nodes(context: &Context) -> Result<BTreeMap<String, Node>, ApplyError> {
    let api: Api<Node> = Api::all(context.client.clone());
    // Asked for freshly: a node that only a cache does not know yet is no node that is gone.
    let list = api.list(&ListParams::default()).await.map_err(|e| ApplyError::kube::<Node>("*", e))?;
    Ok(list.items.into_iter().map(|n| (n.name_any(), n)).collect())
}

/// Deletes the claim that was observed. False: it is another one by now, so that whatever was decided about it has to be decided anew.
pub(super) async fn delete_claim(
    context: &Context,
    namespace: &str,
    observed: &Observed,
    name: &str,
) -> Result<bool, ApplyError> {
    let Some(claim) = observed.claims.get(name) else { return Ok(true) };
    // The decision rests on where its volume lies.
    let now = context.stores.ask::<PersistentVolumeClaim>(namespace, name).await?;
    let volume = |claim: &PersistentVolumeClaim| claim.spec.as_ref().and_then(|s| s.volume_name.clone());
    match now {
        None => return Ok(true),
        Some(now) if now.uid() != claim.uid() || volume(&now) != volume(claim) => return Ok(false),
        Some(_) => {}
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    deleted(api.delete(name, &exactly(claim, None)).await.map(drop))
        .map_err(|e| ApplyError::kube::<PersistentVolumeClaim>(name, e))?;
    context.stores.deleted(claim);
    Ok(true)
}

/// Deletes the pod that was observed.
pub(super) async fn delete_pod(
    context: &Context,
    namespace: &str,
    observed: &Observed,
    name: &str,
    grace_s: Option<u32>,
) -> Result<(), ApplyError> {
    let Some(pod) = observed.pods.get(name) else { return Ok(()) };
    let now = context.stores.ask::<Pod>(namespace, name).await?;
    if now.is_none_or(|now| now.uid() != pod.uid()) {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    tracing::info!(pod = name, namespace, "deleting a pod");
    deleted(api.delete(name, &exactly(pod, grace_s)).await.map(drop)).map_err(|e| ApplyError::kube::<Pod>(name, e))?;
    context.stores.deleted(pod);
    Ok(())
}

/// This object and no later one of its name.
fn exactly<K: Resource>(object: &K, grace_s: Option<u32>) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: grace_s,
        preconditions: Some(Preconditions { uid: object.meta().uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    }
}

/// Gone already, or another one by now: both are what was wanted.
pub(super) fn deleted(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        other => other,
    }
}

/// A request to replace a member holds once.
async fn forget_request(pass: &Pass<'_>, shard: &str) -> Result<(), ApplyError> {
    let api: Api<StorageShard> = Api::namespaced(pass.context.client.clone(), &pass.plan.namespace);
    let patch = json!({"metadata": {"annotations": {names::ANNOTATION_REPLACE_MEMBER: null}}});
    let patched = api.patch(shard, &PatchParams::default(), &Patch::Merge(&patch)).await;
    deleted(patched.map(|standing| pass.context.stores.wrote(&standing)))
        .map_err(|e| ApplyError::kube::<StorageShard>(shard, e))
}
