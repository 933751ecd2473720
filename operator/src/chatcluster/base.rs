//! What every ChatCluster has below its pods: accounts, network policies and the engine's configuration.

use kube::ResourceExt;

use super::{Observed, PassError, left};
use crate::{
    apply::Applier,
    plan::{KafkaPlan, Plan},
    render::{
        endpoints,
        meta::{self, Component},
        network, valkey,
    },
};

/// Applies it.
pub(super) async fn apply(applier: &Applier, plan: &Plan, observed: &Observed) -> Result<(), PassError> {
    let external = matches!(plan.event_log.kafka, KafkaPlan::External(_));
    let accounts = Component::of(&plan.version)
        .filter(|c| *c != Component::Operator && !(external && *c == Component::Kafka))
        .map(|c| endpoints::account(meta::component_name(&plan.name, c), meta::labels(&plan.name, c)))
        .collect();
    applier.apply_all(accounts, &observed.accounts).await?;

    let policies = network::policies_of(plan, &left::with_left(applier, plan, observed));
    let keep: Vec<String> = policies.iter().map(ResourceExt::name_any).collect();
    applier.apply_all(policies, &observed.policies).await?;
    applier.prune(&keep, &observed.policies).await?;

    applier.apply_all(vec![valkey::config_map(plan)], &observed.config_maps).await?;
    Ok(())
}
