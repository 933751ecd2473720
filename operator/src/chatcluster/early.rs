//! Failover for every ChatCluster at once after a change of leader, before any pass: from what the watches told, without a request.
//!
//! A pass over one ChatCluster may take seconds, and hundreds wait for theirs. What the prober needs is known before: the login, the shards,
//! their pods, and the spec that is in force.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kith_crds::{ChatCluster, StorageShard};
use kube::ResourceExt;

use super::{desired, secrets};
use crate::{
    build::meta,
    context::Context,
    lastspec, library,
    plan::Plan,
    runtime::{Identity, RuntimeError},
};

/// The first looks at all engines are spread over so long: they connect and shake hands with each.
const SPREAD: Duration = Duration::from_secs(1);

/// How long the watches may take to tell what is needed; passes come without them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the probers of all ChatClusters that have run before. What cannot be started here is left to its pass.
pub async fn start(context: &Arc<Context>) {
    let begun = Instant::now();
    let stores = &context.stores;
    let known = async {
        tokio::join!(
            stores.synced_of::<ChatCluster>(),
            stores.synced_of::<StorageShard>(),
            stores.synced_of::<Pod>(),
            stores.synced_of::<Secret>(),
            stores.synced_of::<ConfigMap>(),
        )
    };
    let in_time = tokio::time::timeout(PATIENCE, known).await.is_ok();
    let Some(clusters) = stores.all::<ChatCluster>().filter(|_| in_time) else {
        tracing::error!("the ChatClusters and their pods are not known: failover begins with the passes");
        return;
    };
    let pause = SPREAD / u32::try_from(clusters.len().max(1)).unwrap_or(u32::MAX);
    let mut started = 0_u32;
    for cluster in &clusters {
        match one(context, cluster) {
            Ok(true) => {
                started = started.saturating_add(1);
                metrics::gauge!("kith_operator_probers_started").set(started);
                let due = begun + pause.saturating_mul(started);
                tokio::time::sleep_until(due.into()).await;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(cluster = %cluster.name_any(), %error, "failover begins with the first pass");
            }
        }
    }
    tracing::info!(started, of = clusters.len(), took_ms = begun.elapsed().as_millis(), "failover is on");
}

/// Answers whether the prober runs.
fn one(context: &Context, cluster: &ChatCluster) -> Result<bool, RuntimeError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let stores = &context.stores;
    let adopted = cluster.status.as_ref().is_some_and(|status| status.version.is_some());
    if cluster.metadata.deletion_timestamp.is_some() || !adopted {
        return Ok(false);
    }
    // What is not known is not taken for absent: a pod that is not known would count as dead.
    let (Some(maps), Some(all_secrets)) =
        (stores.known::<ConfigMap>(&namespace, &name), stores.known::<Secret>(&namespace, &name))
    else {
        return Ok(false);
    };
    let (Some(mut shards), Some(pods)) =
        (stores.known::<StorageShard>(&namespace, &name), stores.known::<Pod>(&namespace, &name))
    else {
        return Ok(false);
    };
    // An order that may cost data is a pass's matter, which asks whether it stands.
    for shard in shards.values_mut() {
        shard.annotations_mut().remove(kith_crds::names::ANNOTATION_FORCE_PROMOTE);
    }
    let kept = maps.get(&meta::last_spec_config_map(&name));
    let plan = Plan::resolve(cluster, &context.release).ok();
    let Some(plan) = plan.or_else(|| lastspec::restore(cluster, kept, &context.release)) else { return Ok(false) };
    let Some(login) = secrets::login(&name, &all_secrets) else { return Ok(false) };
    let formed = desired::is_formed(cluster);
    let library = library::of_version(&plan.version).ok();
    let wish = Arc::new(desired::desired(&plan, library, &shards, &pods, formed, None));
    let who =
        Identity { namespace: &plan.namespace, name: &plan.name, uid: &plan.uid, cluster_name: &plan.cluster_name };
    context.clusters.ensure(&who, &login, &wish)?;
    Ok(true)
}
