//! Services that a ChatCluster does not have any more: after the way back to a version before theirs. They serve on until nobody of a later
//! version is left who may call them, and are then taken away.

use kith_crds::names::LABEL_COMPONENT;
use kith_platform::Service;
use kube::ResourceExt;

use super::Observed;
use crate::{
    apply::{Applier, ApplyError},
    plan::Plan,
    render::{meta, versions},
};

/// Whether the ChatCluster's version does not have the service, and its pods are there still.
fn is_left(plan: &Plan, observed: &Observed, service: Service) -> bool {
    !versions::has(&plan.version, service)
        && observed.deployments.contains_key(&meta::component_name(&plan.name, service.into()))
}

/// The services of the ChatCluster's version and those that are left, in the order of the table.
pub(super) fn with_those_of(plan: &Plan, observed: &Observed) -> Vec<Service> {
    let there = |service: &Service| versions::has(&plan.version, *service) || is_left(plan, observed, *service);
    Service::ALL.iter().copied().filter(there).collect()
}

/// Whether the pod of this component and version may call what the ChatCluster's version does not have.
fn is_of_another(plan: &Plan, component: &str, version: &str) -> bool {
    Service::called(component).is_some_and(|service| versions::has(&plan.version, service)) && version != plan.version
}

/// Deletes what is left, pods and all, once every pod that could call it is of the ChatCluster's version. Accounts and certificates stay; they
/// go with the ChatCluster.
pub(super) async fn prune(applier: &Applier, plan: &Plan, observed: &Observed) -> Result<(), ApplyError> {
    let calling = observed.pods.values().any(|pod| {
        let component = pod.labels().get(LABEL_COMPONENT);
        component.is_some_and(|component| is_of_another(plan, component, versions::of(pod.labels())))
    });
    if calling {
        return Ok(());
    }
    for service in Service::ALL.iter().copied().filter(|service| is_left(plan, observed, *service)) {
        let name = meta::component_name(&plan.name, service.into());
        if let Some(found) = observed.services.get(&name).filter(|found| applier.owns(*found)) {
            applier.delete(found).await?;
        }
        if let Some(budget) = observed.budgets.get(&name).filter(|budget| applier.owns(*budget)) {
            applier.delete(budget).await?;
        }
        if let Some(map) = observed.config_maps.get(&meta::config_map(&name)).filter(|map| applier.owns(*map)) {
            applier.delete(map).await?;
        }
        // Last: by it the rest is known to be left.
        if let Some(deployment) = observed.deployments.get(&name).filter(|deployment| applier.owns(*deployment)) {
            applier.delete(deployment).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn what_is_left_waits_for_the_last_pod_of_a_later_version_that_could_call_it() {
        let plan = plan(&json!({}));
        assert_eq!(plan.version, versions::PREVIOUS);
        for (component, version, waits) in [
            ("gateway", "0.2.0", true),
            ("tasks", "0.2.0", true),
            ("gateway", versions::PREVIOUS, false),
            // It is what is left, or none of those that call services.
            ("later", "0.2.0", false),
            ("valkey", "0.2.0", false),
        ] {
            assert_eq!(is_of_another(&plan, component, version), waits, "{component} {version}");
        }
    }
}
