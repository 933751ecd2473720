//! Services that a ChatCluster does not have any more: after the way back to a version before theirs. They serve on until nobody of a later
//! version is left who may call them, and are then taken away.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
    policy::v1::PodDisruptionBudget,
};
use kith_crds::names::LABEL_COMPONENT;
use kith_platform as platform;
use kube::ResourceExt;

use super::Observed;
use crate::{
    apply::{Applier, ApplyError, Live, Object},
    plan::Plan,
    render::{meta, versions},
};

/// What is left of a service that the ChatCluster's version does not have, of what its pods are and are found by.
struct Left<'a> {
    deployment: Option<&'a Deployment>,
    service: Option<&'a Service>,
    budget: Option<&'a PodDisruptionBudget>,
    config_map: Option<&'a ConfigMap>,
}

impl<'a> Left<'a> {
    /// None: the version has the service, or nothing of it is there.
    fn of(applier: &Applier, plan: &Plan, observed: &'a Observed, service: platform::Service) -> Option<Self> {
        fn own<'a, K: Object>(applier: &Applier, live: &'a Live<K>, name: &str) -> Option<&'a K> {
            live.get(name).filter(|object| applier.owns(*object))
        }
        if versions::has(&plan.version, service) {
            return None;
        }
        let name = meta::component_name(&plan.name, service.into());
        let left = Self {
            deployment: own(applier, &observed.deployments, &name),
            service: own(applier, &observed.services, &name),
            budget: own(applier, &observed.budgets, &name),
            config_map: own(applier, &observed.config_maps, &meta::config_map(&name)),
        };
        let Self { deployment, service, budget, config_map } = &left;
        let any = deployment.is_some() || service.is_some() || budget.is_some() || config_map.is_some();
        any.then_some(left)
    }
}

/// The services of the ChatCluster's version and those that are left, in the order of the table.
pub(super) fn with_left(applier: &Applier, plan: &Plan, observed: &Observed) -> Vec<platform::Service> {
    let there = |service: &platform::Service| {
        versions::has(&plan.version, *service) || Left::of(applier, plan, observed, *service).is_some()
    };
    platform::Service::ALL.iter().copied().filter(there).collect()
}

/// Whether the pod of this component and version may call what the ChatCluster's version does not have.
fn is_of_another(plan: &Plan, component: &str, version: &str) -> bool {
    platform::Service::called(component).is_some_and(|service| versions::has(&plan.version, service))
        && version != plan.version
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
    for service in platform::Service::ALL {
        let Some(left) = Left::of(applier, plan, observed, *service) else { continue };
        if let Some(deployment) = left.deployment {
            applier.delete(deployment).await?;
        }
        if let Some(service) = left.service {
            applier.delete(service).await?;
        }
        if let Some(budget) = left.budget {
            applier.delete(budget).await?;
        }
        if let Some(map) = left.config_map {
            applier.delete(map).await?;
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
