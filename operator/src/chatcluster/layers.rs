//! The services, layer by layer: a change of a layer waits until the one below is wholly of its newest template and serves.

use std::borrow::Cow;

use kith_platform::Layer;
use kube::ResourceExt;
use xxhash_rust::xxh3::xxh3_64;

use super::{Facts, Observed, PassError, Workload, tend};
use crate::{
    apply::Applier,
    diff,
    plan::{Plan, ServicePlan},
    refusal,
    render::{
        meta::{self, Component},
        valkey, workloads,
    },
    stores::Stores,
    workload::{rollout, trouble},
};

/// Applies Services and budgets at once, Deployments with what they read in the order of the layers. What waits keeps running as it is: one
/// layer that cannot be rolled out stops those above it, not what they do.
pub(super) async fn apply(
    applier: &Applier,
    plan: &Plan,
    observed: &Observed,
    facts: &mut Facts,
) -> Result<(), PassError> {
    facts.wanted_below = Some(workloads::below_access(plan)?);
    let engine = facts.storage.as_ref().is_some_and(|s| s.readiness.is_ready())
        && engine_rolled_out(&applier.stores, plan, observed)?;
    let log = matches!(facts.event_log, Some(Some(Ok(()))));
    // Storage publishes as soon as it starts: it is not made before it is known that the topics are this ChatCluster's. Once it runs, an
    // event log in trouble does not hold up its changes.
    let made = observed.deployments.contains_key(&meta::component_name(&plan.name, Component::STORAGE));
    let mut open = engine && (log || made);
    for layer in Layer::ALL {
        let mut above = open;
        for service in plan.layer(layer) {
            let workload = one(applier, plan, service, observed, open, facts).await?;
            above &= !workload.waiting && workload.rollout.is_some_and(|r| r.done);
            facts.workloads.push(workload);
        }
        // Logic works off the event log.
        open = above && (log || layer != Layer::Storage);
    }
    Ok(())
}

async fn one(
    applier: &Applier,
    plan: &Plan,
    service: &ServicePlan,
    observed: &Observed,
    open: bool,
    facts: &mut Facts,
) -> Result<Workload, PassError> {
    let component = Component::from(service.service);
    let name = meta::component_name(&plan.name, component);
    let objects = workloads::service(plan, service)?;
    if let Some(wanted) = objects.service {
        let standing = applier.apply(wanted, observed.services.get(&name)).await?;
        facts.services.insert(name.clone(), standing.into_owned());
    }
    applier.apply(objects.budget, observed.budgets.get(&name)).await?;
    let live = observed.deployments.get(&name);
    let goes = open || live.is_some_and(|l| applier.is_current(&objects.deployment, l));
    let map = observed.config_maps.get(&objects.config_map.name_any());
    // A container that starts again while its layer waits reads what it read before.
    if goes || map.is_none() {
        applier.apply(objects.config_map, map).await?;
    }
    let (standing, waiting) = if goes {
        (Some(applier.apply(objects.deployment, live).await?), false)
    } else {
        (live.map(Cow::Borrowed), true)
    };
    Ok(Workload {
        component,
        rollout: standing.as_deref().map(rollout),
        waiting,
        trouble: trouble(&observed.pods, component.name(), None)
            .or_else(|| standing.as_deref().and_then(refusal::of_deployment)),
    })
}

/// Whether the engine's pods are all of the template that the plan asks for: they are the storage layer, too.
fn engine_rolled_out(stores: &Stores, plan: &Plan, observed: &Observed) -> Result<bool, PassError> {
    // The templates of one plan differ in the shard's name alone. While none of them has changed, a StatefulSet that was found to be of its
    // own is not compared with it again.
    let newest = xxh3_64(&serde_json::to_vec(&valkey::template(plan, ""))?);
    // A shard that is being deleted gets no new template any more.
    for (name, _) in observed.shards.iter().filter(|(_, shard)| shard.metadata.deletion_timestamp.is_none()) {
        let Some(set) = observed.stateful_sets.get(&meta::shard_name(name)) else { return Ok(false) };
        if !tend::rolled_out(set, &observed.pods) {
            return Ok(false);
        }
        if stores.is_current(set, newest) {
            continue;
        }
        let live = set.spec.as_ref().map(|spec| &spec.template);
        if !diff::contains(&serde_json::to_value(live)?, &serde_json::to_value(valkey::template(plan, name))?) {
            return Ok(false);
        }
        stores.found_current(set, newest);
    }
    Ok(true)
}
