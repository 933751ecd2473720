//! The observe step: everything that belongs to a ChatCluster, as the API server has it.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{Gateway, StorageShard};
use kube::{Api, Client, api::ListParams};

use crate::{
    apply::{ApplyError, Live, list, list_matching},
    build::meta,
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
    pub pods: Live<Pod>,
    /// Volume claims.
    pub claims: Live<PersistentVolumeClaim>,
    /// All StorageShards that name the ChatCluster, hand-made ones included.
    pub shards: Live<StorageShard>,
    /// All Gateways that name the ChatCluster.
    pub gateways: Live<Gateway>,
    /// Why what the data plane does not need could not be read; then it is empty.
    pub rest: Option<ApplyError>,
}

/// Reads everything. Secrets whose loss would cost data or log everyone out are asked for once more when the cache does not have them.
pub async fn observe(client: &Client, namespace: &str, cluster: &str) -> Result<Observed, ApplyError> {
    let selector = meta::owned_selector(cluster);
    let named = ListParams::default().fields(&format!("spec.clusterRef.name={cluster}")).match_any();
    let s = selector.as_str();
    let (mut secrets, config_maps, stateful_sets, pods, claims, shards) = tokio::try_join!(
        list::<Secret>(client, namespace, s),
        list::<ConfigMap>(client, namespace, s),
        list::<StatefulSet>(client, namespace, s),
        list::<Pod>(client, namespace, s),
        list::<PersistentVolumeClaim>(client, namespace, s),
        list_matching::<StorageShard>(client, namespace, &named),
    )?;
    // One object among these that cannot be read keeps nobody from caring for the data.
    let rest = async {
        tokio::try_join!(
            list::<Service>(client, namespace, s),
            list::<ServiceAccount>(client, namespace, s),
            list::<Deployment>(client, namespace, s),
            list::<PodDisruptionBudget>(client, namespace, s),
            list::<NetworkPolicy>(client, namespace, s),
            list_matching::<Gateway>(client, namespace, &named),
        )
    };
    let (rest, trouble) = match rest.await {
        Ok(rest) => (rest, None),
        Err(error) => (Default::default(), Some(error)),
    };
    let (services, accounts, deployments, budgets, policies, gateways) = rest;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in [meta::ca_secret(cluster), meta::engine_users_secret(cluster), meta::token_keys_secret(cluster)] {
        if !secrets.contains_key(&name)
            && let Some(secret) = api.get_opt(&name).await.map_err(|e| ApplyError::kube::<Secret>(&name, e))?
        {
            secrets.insert(name, secret);
        }
    }
    Ok(Observed {
        secrets,
        config_maps,
        services,
        accounts,
        deployments,
        stateful_sets,
        budgets,
        policies,
        pods,
        claims,
        shards,
        gateways,
        rest: trouble,
    })
}
