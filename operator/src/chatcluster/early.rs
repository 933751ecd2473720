//! Failover for every ChatCluster of a scope at once after a change of leader, before any pass: from what the watches told, without a request.
//!
//! A pass over one ChatCluster may take seconds, and hundreds wait for theirs. What the prober needs is known before: the login, the shards,
//! their pods, and the spec that is in force.

use std::{
    collections::HashSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kith_crds::{ChatCluster, StorageShard};
use kube::ResourceExt;

use super::{desired, secrets};
use crate::{
    context::Context,
    lastspec, panics,
    plan::Plan,
    render::meta,
    runtime::{Identity, RuntimeError},
    stores::Scope,
};

/// Between the first looks at two ChatClusters: each connects to all engine nodes and shakes hands with them.
const SPACE: Duration = Duration::from_millis(2);

/// Between two looks at what has been told so far.
const LOOK: Duration = Duration::from_millis(250);
/// How long the watches may take to tell what is needed; passes come without them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the probers of all ChatClusters of a scope that have run before, as soon as what they need is known. What cannot be started here,
/// because its namespace cannot be read or its spec not used, is left to its pass and holds up nobody else.
pub async fn start(context: &Arc<Context>, scope: &Scope) {
    let begun = Instant::now();
    let stores = &context.stores;
    let known = async {
        tokio::join!(
            stores.synced_of::<ChatCluster>(scope),
            stores.synced_of::<StorageShard>(scope),
            stores.synced_of::<Pod>(scope),
            stores.synced_of::<Secret>(scope),
            stores.synced_of::<ConfigMap>(scope),
        )
    };
    let mut known = pin!(known);
    let mut tried = HashSet::new();
    let mut started = 0_u32;
    loop {
        let all = tokio::time::timeout(LOOK, &mut known).await.is_ok();
        let more = some(context, scope, &mut tried).await;
        started = started.saturating_add(more);
        metrics::gauge!("kith_operator_probers_started").increment(more);
        if all || begun.elapsed() >= PATIENCE {
            let namespace = scope.0.as_deref().unwrap_or("all");
            tracing::info!(
                namespace,
                started,
                of = tried.len(),
                all,
                took_ms = begun.elapsed().as_millis(),
                "failover is on"
            );
            return;
        }
    }
}

/// Starts those that are known by now and were not tried before; answers how many run.
async fn some(context: &Arc<Context>, scope: &Scope, tried: &mut HashSet<String>) -> u32 {
    let clusters = context.stores.all::<ChatCluster>(scope);
    let (begun, mut started) = (Instant::now(), 0_u32);
    for cluster in &clusters {
        let uid = cluster.uid().unwrap_or_default();
        if tried.contains(&uid) || !is_known(context, cluster) {
            continue;
        }
        tried.insert(uid);
        // Caught here: it concerns one ChatCluster alone.
        match panics::caught_here("ChatCluster", || one(context, cluster)) {
            Ok(Ok(true)) => {
                started = started.saturating_add(1);
                tokio::time::sleep_until((begun + SPACE.saturating_mul(started)).into()).await;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(cluster = %cluster.name_any(), %error, "failover begins with the first pass");
            }
            Err(panicked) => {
                tracing::error!(cluster = %cluster.name_any(), %panicked, "failover begins with the first pass");
            }
        }
    }
    started
}

/// What is not known is not taken for absent: a pod that is not known would count as dead.
fn is_known(context: &Context, cluster: &ChatCluster) -> bool {
    let (namespace, stores) = (cluster.namespace().unwrap_or_default(), &context.stores);
    stores.knows::<ConfigMap>(&namespace)
        && stores.knows::<Secret>(&namespace)
        && stores.knows::<StorageShard>(&namespace)
        && stores.knows::<Pod>(&namespace)
}

/// Answers whether the prober runs.
fn one(context: &Context, cluster: &ChatCluster) -> Result<bool, RuntimeError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let stores = &context.stores;
    let adopted = cluster.status.as_ref().is_some_and(|status| status.version.is_some());
    if cluster.metadata.deletion_timestamp.is_some() || !adopted {
        return Ok(false);
    }
    let (Some(maps), Some(needed)) = (
        stores.known_of::<ConfigMap>(&namespace, &[meta::last_spec_config_map(&name)]),
        stores.known_of::<Secret>(&namespace, &secrets::of_login(&name)),
    ) else {
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
    let Some(login) = secrets::login(&name, &needed) else { return Ok(false) };
    let formed = desired::is_formed(cluster);
    // Loaded by passes alone.
    let library = desired::library(&plan, &pods, None).ok().flatten();
    let wish = Arc::new(desired::desired(&plan, library, &shards, &pods, formed, None));
    let who =
        Identity { namespace: &plan.namespace, name: &plan.name, uid: &plan.uid, cluster_name: &plan.cluster_name };
    context.clusters.ensure(&who, &login, &wish)?;
    Ok(true)
}
