//! The local Kubernetes cluster from a tester's seat: pods by component, conditions awaited, things killed, writes counted.

mod kubectl;
mod leader;
mod requests;

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, time::Duration};

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kith_crds::{ChatCluster, Gateway, StorageShard, conditions, names};
use kith_platform::{Serves, Service};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;

pub use kubectl::Output;
pub use requests::Writes;

use crate::{
    env::{Env, cache},
    wait::{TimedOut, await_every, await_until},
};

/// Where the operator runs.
pub const OPERATOR_NAMESPACE: &str = "kith-system";
/// Between two looks at the API server.
const POLL: Duration = Duration::from_millis(250);

/// Why the cluster could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig is not the one that `make up` wrote.
    #[error("{0} is not the kubeconfig of the local cluster: tests that break things touch only what make up started")]
    Foreign(PathBuf),
    /// The kubeconfig cannot be read.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server.
    #[error("API server: {0}")]
    Kube(#[from] kube::Error),
    /// A condition.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// A command.
    #[error("kubectl: {0}")]
    Kubectl(#[from] std::io::Error),
    /// What was looked for is not there.
    #[error("{0}")]
    Missing(String),
}

/// One pod of each service, as entries of `spec.services`: a ChatCluster beside the sample shares its machine. What serves business lines is
/// left out, since each test exposes it in its own way.
pub fn one_pod_each() -> String {
    let plain = |service: &&Service| !service.is_at_gateways() && !matches!(service.serves(), Serves::Lines(_));
    let entries = Service::ALL.iter().filter(plain).map(|service| format!("{}: {{replicas: 1}}", service.field()));
    entries.collect::<Vec<_>>().join(", ")
}

/// The local cluster and the sample ChatCluster in it.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The sample's namespace.
    pub namespace: String,
    /// The ChatCluster's name.
    pub name: String,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Connects as `env` says; refuses any cluster that `make up` did not make or was not told to use.
    pub async fn connect(env: &Env) -> Result<Self, ClusterError> {
        let told = std::env::var_os("KITH_KUBECONFIG").map(PathBuf::from);
        let ours = [Some(cache().join("cluster/kubeconfig")), told];
        if !ours.iter().flatten().any(|path| same_file(path, &env.kubeconfig)) {
            return Err(ClusterError::Foreign(env.kubeconfig.clone()));
        }
        let namespace = std::env::var("KITH_NAMESPACE").unwrap_or_else(|_| "kith-demo".to_owned());
        Self::of(env.kubeconfig.clone(), &namespace, &env.cluster).await
    }

    /// The cluster that the local scripts made, with or without the sample, for a ChatCluster of the caller's own.
    pub async fn local(namespace: &str, name: &str) -> Result<Self, ClusterError> {
        Self::of(cache().join("cluster/kubeconfig"), namespace, name).await
    }

    async fn of(kubeconfig: PathBuf, namespace: &str, name: &str) -> Result<Self, ClusterError> {
        kith_kit::tls::install_provider();
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        Ok(Self { client, namespace: namespace.to_owned(), name: name.to_owned(), kubeconfig })
    }

    /// Objects of a kind in the sample's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The sample ChatCluster.
    pub async fn chat_cluster(&self) -> Result<ChatCluster, ClusterError> {
        Ok(self.api::<ChatCluster>().get(&self.name).await?)
    }

    /// The StorageShards of the sample.
    pub async fn shards(&self) -> Result<Vec<StorageShard>, ClusterError> {
        let all = self.api::<StorageShard>().list(&ListParams::default()).await?;
        Ok(all.items.into_iter().filter(|s| s.spec.cluster_ref.name == self.name).collect())
    }

    /// Pods of a component of the sample.
    pub async fn pods(&self, component: &str) -> Result<Vec<Pod>, ClusterError> {
        let (name, instance) = (names::LABEL_INSTANCE, &self.name);
        let selector = format!("{name}={instance},{}={component}", names::LABEL_COMPONENT);
        Ok(self.api::<Pod>().list(&ListParams::default().labels(&selector)).await?.items)
    }

    /// Every pod of the sample.
    pub async fn all_pods(&self) -> Result<Vec<Pod>, ClusterError> {
        let selector = format!("{}={}", names::LABEL_INSTANCE, self.name);
        Ok(self.api::<Pod>().list(&ListParams::default().labels(&selector)).await?.items)
    }

    /// Pods by name with their UIDs.
    pub async fn pod_uids(&self) -> Result<BTreeMap<String, String>, ClusterError> {
        Ok(self.all_pods().await?.into_iter().map(|p| (p.name_any(), p.uid().unwrap_or_default())).collect())
    }

    /// Deletes a pod; `grace` 0 is a kill.
    pub async fn delete_pod(&self, name: &str, grace: u32) -> Result<(), ClusterError> {
        delete(&self.api::<Pod>(), name, grace).await
    }

    /// Deletes a pod in another namespace.
    pub async fn delete_pod_in(&self, namespace: &str, name: &str, grace: u32) -> Result<(), ClusterError> {
        delete(&Api::<Pod>::namespaced(self.client.clone(), namespace), name, grace).await
    }

    /// The pod that takes a shard's writes, as the shard's status says.
    pub async fn primary_of(&self, shard: &str) -> Result<String, ClusterError> {
        let shard = self.api::<StorageShard>().get(shard).await?;
        let primary = shard.status.as_ref().and_then(|s| s.primary.clone());
        primary.ok_or_else(|| ClusterError::Missing(format!("{} has no primary", shard.name_any())))
    }

    /// The name of the sample's first shard, which it always has.
    pub async fn first_shard(&self) -> Result<String, ClusterError> {
        let shards = self.shards().await?;
        shards
            .first()
            .map(ResourceExt::name_any)
            .ok_or_else(|| ClusterError::Missing(format!("{}: no shard", self.name)))
    }

    /// Waits until a shard's primary is another pod than `before`.
    pub async fn await_another_primary(
        &self,
        shard: &str,
        before: &str,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        await_every(POLL, "another primary", deadline, || async {
            let now = self.primary_of(shard).await.map_err(|e| e.to_string())?;
            if now == before { Err(format!("still {now}")) } else { Ok(()) }
        })
        .await?;
        Ok(())
    }

    /// Waits until the sample is as healthy as its own conditions can say, its shards are whole and every pod is ready.
    pub async fn await_healthy(&self, deadline: Duration) -> Result<(), ClusterError> {
        await_every(POLL, "the platform to heal", deadline, || async {
            match self.ailments().await {
                Ok(found) if found.is_empty() => Ok(()),
                Ok(found) => Err(found.join("; ")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        Ok(())
    }

    /// What is not as it should be; empty when the platform is healthy.
    pub async fn ailments(&self) -> Result<Vec<String>, ClusterError> {
        let mut found = Vec::new();
        let cluster = self.chat_cluster().await?;
        let status = cluster.status.clone().unwrap_or_default();
        found.extend(unhealthy("ChatCluster", cluster.metadata.generation, &status.conditions));
        let members = cluster.spec.storage.replicas + 1;
        for shard in self.shards().await? {
            let status = shard.status.clone().unwrap_or_default();
            found.extend(unhealthy(&shard.name_any(), shard.metadata.generation, &status.conditions));
            if status.ready_members != members {
                found.push(format!("{}: {} of {members} members in step", shard.name_any(), status.ready_members));
            }
        }
        for gateway in self.api::<Gateway>().list(&ListParams::default()).await?.items {
            let status = gateway.status.clone().unwrap_or_default();
            found.extend(unhealthy(&gateway.name_any(), gateway.metadata.generation, &status.conditions));
        }
        for pod in self.all_pods().await? {
            if pod.metadata.deletion_timestamp.is_some() || !is_ready(&pod) {
                found.push(format!("pod {} is not ready", pod.name_any()));
            }
        }
        Ok(found)
    }

    /// Waits until an object satisfies `holds`.
    pub async fn await_object<K>(
        &self,
        api: &Api<K>,
        name: &str,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&K) -> bool,
    ) -> Result<K, ClusterError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let found = await_every(POLL, what, deadline, || async {
            match api.get_opt(name).await {
                Ok(Some(object)) if holds(&object) => Ok(object),
                Ok(Some(object)) => Err(format!("{object:?}").chars().take(2_000).collect()),
                Ok(None) => Err(format!("{name} is not there")),
                Err(error) => Err(error.to_string()),
            }
        });
        Ok(found.await?)
    }

    /// Waits until nothing of that name is left.
    pub async fn await_gone<K>(&self, api: &Api<K>, name: &str, deadline: Duration) -> Result<(), ClusterError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        await_until(&format!("{name} to be gone"), deadline, || async {
            match api.get_opt(name).await {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err("it is still there".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        Ok(())
    }

    /// Waits until a namespace is gone with all that was in it.
    pub async fn await_namespace_gone(&self, name: &str, deadline: Duration) -> Result<(), ClusterError> {
        self.await_gone(&Api::<Namespace>::all(self.client.clone()), name, deadline).await
    }
}

async fn delete(pods: &Api<Pod>, name: &str, grace: u32) -> Result<(), ClusterError> {
    let params = DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() };
    match pods.delete(name, &params).await {
        // Gone already is what was wanted.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Whether the kubelet says that all containers are ready.
pub fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    status.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn unhealthy(what: &str, generation: Option<i64>, found: &[Condition]) -> Vec<String> {
    let bad_when_true = [
        conditions::DEGRADED,
        conditions::PROGRESSING,
        conditions::FAILOVER_BLOCKED,
        conditions::FOREIGN_DATA,
        conditions::MEMORY_PRESSURE,
        conditions::DISK_PRESSURE,
        conditions::EVENT_LOG_LAG,
        conditions::CERTIFICATE_EXPIRING,
    ];
    let mut ailments = Vec::new();
    if !found.iter().any(|c| c.type_ == conditions::READY) {
        ailments.push(format!("{what}: no condition Ready yet"));
    }
    for condition in found {
        let wanted = if bad_when_true.contains(&condition.type_.as_str()) { "False" } else { "True" };
        let current = generation.is_none()
            || condition.observed_generation.is_none()
            || condition.observed_generation == generation;
        if condition.type_ != conditions::DRAINING && (condition.status != wanted || !current) {
            ailments.push(format!("{what}: {}={} {}", condition.type_, condition.status, condition.message));
        }
    }
    ailments
}
