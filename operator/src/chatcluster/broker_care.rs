//! What keeps the managed brokers' pods and volumes in order (I/O): pods are told whether they have caught up, restarted one at a time, and
//! started anew where a volume is lost. `brokers` decides.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kith_crds::{ChatCluster, names};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Observed,
    brokers::{self, Scene, Step},
    replace, upkeep,
};
use crate::{
    apply::{ApplyError, Live},
    context::Context,
    eventlog::Sight,
    plan::{KafkaPlan, Plan},
    render::meta::{self, Component},
};

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct BrokerCare {
    /// Whether a broker was restarted or started anew just now. What follows, pods and sight tell.
    pub busy: bool,
    /// Whether a new template has not reached all brokers yet.
    pub rolling: bool,
    /// What could not be done yet, in words.
    pub problems: Vec<String>,
}

/// One round; nothing for an external log and before there are brokers.
pub(super) async fn carry_out(
    context: &Context,
    cluster: &ChatCluster,
    plan: &Plan,
    observed: &Observed,
    sight: Option<&Sight>,
) -> Result<BrokerCare, ApplyError> {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return Ok(BrokerCare::default()) };
    let name = meta::component_name(&plan.name, Component::Kafka);
    let Some(set) = observed.stateful_sets.get(&name) else { return Ok(BrokerCare::default()) };
    let asked = asked(context, cluster, plan).await?;
    let asked = asked.as_deref().map(str::trim);
    let (no_volumes, no_nodes) = (BTreeMap::new(), Live::new());
    let scene = Scene {
        name: &name,
        set,
        brokers: managed.spec.brokers,
        min_insync: plan.event_log.min_insync,
        pods: &observed.pods,
        claims: &observed.claims,
        volumes: &no_volumes,
        nodes: &no_nodes,
        asked,
        sight,
        now: Timestamp::now(),
    };
    // What cannot be told keeps nobody from caring for the brokers.
    let mut told = Ok(());
    for (pod, in_sync) in brokers::standing(&scene) {
        told = told.and(tell(context, plan, &pod, in_sync, scene.now).await);
    }
    let (volumes, nodes) = match whereabouts(context, observed, &scene).await {
        Ok(found) => found,
        // Without them no volume is taken for lost.
        Err(error) => {
            told = told.and(Err(error));
            (BTreeMap::new(), Live::new())
        }
    };
    let scene = Scene { volumes: &volumes, nodes: &nodes, ..scene };
    let (step, problems) = brokers::next(&scene);
    let care = BrokerCare { busy: step.is_some(), rolling: brokers::is_rolling(&scene), problems };
    match step {
        None => {}
        Some(Step::Restart { pod, why }) => {
            context.event(cluster, false, "PodRestarted", &why).await;
            upkeep::delete_pod(context, &plan.namespace, observed, &pod, None).await?;
        }
        Some(Step::Replace { pod, why, asked }) => {
            tracing::warn!(%pod, %why, "a broker is made anew");
            // The claim first: it is held until its pod ends, so that nothing is lost when a step after this one fails.
            if !upkeep::delete_claim(context, &plan.namespace, observed, &replace::claim_of(&pod)).await? {
                return told.map(|()| care);
            }
            if asked {
                // Before the pod goes: a request that is still there would hold again.
                super::forget(context, cluster, names::ANNOTATION_REPLACE_BROKER).await?;
            }
            // Where nobody is left to stop the process there is nothing to wait for; one that a person gave up may still run.
            upkeep::delete_pod(context, &plan.namespace, observed, &pod, (!asked).then_some(0)).await?;
            let note = format!("{pod} is made anew with an empty volume: {why}");
            context.event(cluster, true, "MemberReplaced", &note).await;
        }
    }
    told.map(|()| care)
}

/// The pod that a person declared gone, from the API server itself: a watch may still tell of an order that was carried out or taken back.
async fn asked(context: &Context, cluster: &ChatCluster, plan: &Plan) -> Result<Option<String>, ApplyError> {
    let of = |cluster: &ChatCluster| cluster.annotations().get(names::ANNOTATION_REPLACE_BROKER).cloned();
    if of(cluster).is_none() {
        return Ok(None);
    }
    let now = context.stores.ask::<ChatCluster>(&plan.namespace, &plan.name).await?;
    Ok(now.filter(|now| now.uid() == cluster.uid()).as_ref().and_then(of))
}

/// The volumes of brokers that are not seen, and the nodes that they may be bound to.
async fn whereabouts(
    context: &Context,
    observed: &Observed,
    scene: &Scene<'_>,
) -> Result<(BTreeMap<String, PersistentVolume>, Live<Node>), ApplyError> {
    let silent: Vec<String> = scene.silent().into_iter().map(|broker| scene.pod_name(broker)).collect();
    let pods: Vec<&str> = silent.iter().map(String::as_str).collect();
    let volumes = upkeep::volumes(context, observed, &pods).await?;
    let bound = volumes.values().any(|volume| !replace::hosts(volume).is_empty());
    let nodes = if bound { upkeep::nodes(context).await? } else { Live::new() };
    Ok((volumes, nodes))
}

/// Writes into a pod's status whether it has caught up.
async fn tell(context: &Context, plan: &Plan, pod: &str, in_sync: bool, now: Timestamp) -> Result<(), ApplyError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &plan.namespace);
    tracing::info!(pod, in_sync, namespace = %plan.namespace, "a broker's standing changed");
    let (status, reason) = if in_sync { ("True", "CaughtUp") } else { ("False", "Behind") };
    let condition = json!({
        "type": names::CONDITION_IN_SYNC, "status": status, "reason": reason, "lastTransitionTime": Time(now),
    });
    // Conditions are merged by type: those of the kubelet stay.
    let patch = json!({"status": {"conditions": [condition]}});
    let told = api.patch_status(pod, &PatchParams::default(), &Patch::Strategic(&patch)).await;
    if let Ok(standing) = &told {
        context.stores.wrote(standing);
    }
    upkeep::deleted(told.map(drop)).map_err(|e| ApplyError::kube::<Pod>(pod, e))
}
