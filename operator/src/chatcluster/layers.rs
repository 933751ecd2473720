//! The services, layer by layer: a change of a layer waits until the one below serves.

use super::{Facts, Observed, PassError, Workload};
use crate::{
    apply::Applier,
    build::{
        meta::{self, Component},
        services,
    },
    plan::{Plan, ServicePlan},
    workload::{rollout, trouble},
};

/// Applies Services and budgets at once, Deployments in the order of the layers.
pub(super) async fn apply(
    applier: &Applier,
    plan: &Plan,
    observed: &Observed,
    hash: &str,
    facts: &mut Facts,
) -> Result<(), PassError> {
    let engine = facts.storage.as_ref().is_some_and(|s| s.readiness.is_ready());
    let log = matches!(facts.event_log, Some(Some(Ok(()))));
    // Storage publishes as soon as it starts: it is not made before it is known that the topics are this ChatCluster's. Once it runs, an
    // event log in trouble does not hold up its changes.
    let made = observed.deployments.contains_key(&meta::component_name(&plan.name, Component::Storage));
    let mut open = engine && (log || made);
    for layer in [&[Component::Storage][..], &[Component::Sessions, Component::Tasks], &[Component::Business]] {
        let mut above = open;
        for component in layer {
            let Some(service) = plan.service(*component) else { continue };
            let workload = one(applier, plan, service, observed, hash, open, facts).await?;
            above &= !workload.waiting && workload.rollout.is_some_and(|r| r.done);
            facts.workloads.push(workload);
        }
        // Logic works off the event log.
        open = above && (log || !layer.contains(&Component::Storage));
    }
    Ok(())
}

async fn one(
    applier: &Applier,
    plan: &Plan,
    service: &ServicePlan,
    observed: &Observed,
    hash: &str,
    open: bool,
    facts: &mut Facts,
) -> Result<Workload, PassError> {
    let component = service.component;
    let name = meta::component_name(&plan.name, component);
    let objects = services::service(plan, service, hash);
    if let Some(wanted) = objects.service {
        let standing = applier.apply(wanted, observed.services.get(&name)).await?;
        facts.services.insert(name.clone(), standing);
    }
    applier.apply(objects.budget, observed.budgets.get(&name)).await?;
    let live = observed.deployments.get(&name);
    let (standing, waiting) = if open || live.is_some_and(|l| applier.is_current(&objects.deployment, l)) {
        (Some(applier.apply(objects.deployment, live).await?), false)
    } else {
        (live.cloned(), true)
    };
    Ok(Workload {
        component,
        rollout: standing.as_ref().map(rollout),
        waiting,
        trouble: trouble(&observed.pods, component.name(), None),
    })
}
