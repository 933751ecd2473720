//! The observe step: everything that belongs to a ChatCluster, as it is known.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{Gateway, StorageShard, names};
use kube::ResourceExt;

use crate::{
    apply::{ApplyError, Live},
    render::meta,
    stores::Stores,
};

/// What was observed.
pub struct Observed {
    /// Secrets that the operator made.
    pub secrets: Live<Secret>,
    /// ConfigMaps.
    pub config_maps: Live<ConfigMap>,
    /// Services.
    pub services: Live<Service>,
    /// ServiceAccounts.
    pub accounts: Live<ServiceAccount>,
    /// Deployments.
    pub deployments: Live<Deployment>,
    /// StatefulSets.
    pub stateful_sets: Live<StatefulSet>,
    /// Budgets.
    pub budgets: Live<PodDisruptionBudget>,
    /// Network policies.
    pub policies: Live<NetworkPolicy>,
    /// Pods.
    pub pods: Arc<Live<Pod>>,
    /// Volume claims.
    pub claims: Live<PersistentVolumeClaim>,
    /// All StorageShards that name the ChatCluster, hand-made ones included.
    pub shards: Live<StorageShard>,
    /// All Gateways that name the ChatCluster.
    pub gateways: Live<Gateway>,
    /// Why what the data plane does not need could not be read; then it is empty.
    pub rest: Option<ApplyError>,
}

/// Reads everything. Secrets whose loss would cost data or log everyone out are asked for once more when nobody has told of them, and what a
/// person orders on a shard, which may cost data, is read from the API server itself.
pub async fn observe(stores: &Stores, namespace: &str, cluster: &str) -> Result<Observed, ApplyError> {
    let (mut secrets, config_maps, stateful_sets, pods, claims, mut shards) = tokio::try_join!(
        stores.of_cluster::<Secret>(namespace, cluster),
        stores.of_cluster::<ConfigMap>(namespace, cluster),
        stores.of_cluster::<StatefulSet>(namespace, cluster),
        stores.of_cluster::<Pod>(namespace, cluster),
        stores.of_cluster::<PersistentVolumeClaim>(namespace, cluster),
        stores.of_cluster::<StorageShard>(namespace, cluster),
    )?;
    // One object among these that cannot be read keeps nobody from caring for the data.
    let rest = async {
        tokio::try_join!(
            stores.of_cluster::<Service>(namespace, cluster),
            stores.of_cluster::<ServiceAccount>(namespace, cluster),
            stores.of_cluster::<Deployment>(namespace, cluster),
            stores.of_cluster::<PodDisruptionBudget>(namespace, cluster),
            stores.of_cluster::<NetworkPolicy>(namespace, cluster),
            stores.of_cluster::<Gateway>(namespace, cluster),
        )
    };
    let (rest, trouble) = match rest.await {
        Ok(rest) => (rest, None),
        Err(error) => (Default::default(), Some(error)),
    };
    let (services, accounts, deployments, budgets, policies, gateways) = rest;
    for name in [meta::ca_secret(cluster), meta::engine_users_secret(cluster), meta::token_keys_secret(cluster)] {
        if !secrets.contains_key(&name)
            && let Some(secret) = stores.ask(namespace, &name).await?
        {
            secrets.insert(name, secret);
        }
    }
    confirm_orders(stores, namespace, &mut shards).await?;
    Ok(Observed {
        secrets,
        config_maps,
        services,
        accounts,
        deployments,
        stateful_sets,
        budgets,
        policies,
        pods: Arc::new(pods),
        claims,
        shards,
        gateways,
        rest: trouble,
    })
}

/// Orders of a person that may cost data: obeyed only as the API server itself has them.
async fn confirm_orders(stores: &Stores, namespace: &str, shards: &mut Live<StorageShard>) -> Result<(), ApplyError> {
    let orders = [names::ANNOTATION_FORCE_PROMOTE, names::ANNOTATION_REPLACE_MEMBER];
    let ordered = |shard: &&StorageShard| orders.iter().any(|order| shard.annotations().contains_key(*order));
    let asked: Vec<String> = shards.values().filter(ordered).map(ResourceExt::name_any).collect();
    for name in asked {
        match stores.ask(namespace, &name).await? {
            Some(shard) => shards.insert(name, shard),
            None => shards.remove(&name),
        };
    }
    Ok(())
}
