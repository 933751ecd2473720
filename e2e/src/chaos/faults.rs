//! Faults on the local cluster, one at a time: what is killed, stopped, filled or cut off, when it may be, and when the next one may follow.

use std::{fmt, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use rand::{
    RngExt,
    seq::{IndexedRandom, IteratorRandom},
};
use tokio::process::Command;

use crate::{
    cluster::{Cluster, ClusterError, OPERATOR_NAMESPACE},
    env::workspace,
    wait::await_every,
};

/// A shard must be whole again after this time, a node's return included.
const WHOLE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(250);
/// Starting or killing a node, or a fault that ends by itself.
const SCRIPT: Duration = Duration::from_secs(180);
/// A script that is asked to end takes a while to put things right.
const SLACK: Duration = Duration::from_secs(30);
/// How long what hangs hangs, in seconds: longer than any deadline within the platform.
const HANGS_S: u32 = 20;

/// What dies, hangs, fills up or is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// The leading operator, or now and then both.
    Operator,
    /// A Valkey primary.
    Primary,
    /// One of its replicas.
    Replica,
    /// A primary together with the leading operator.
    PrimaryWithOperator,
    /// A whole node: kubelet, containerd, shims and every pod on it.
    Node,
    /// One broker of several.
    Broker,
    /// A primary is stopped (SIGSTOP) and wakes up deposed.
    FrozenPrimary,
    /// Every call to the API server takes up to two seconds.
    SlowApi,
    /// The disk of a primary is full, then has room again.
    FullDisk,
    /// Nothing that a node's pods send leaves the node, while everything reaches them.
    OneWay,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator killed",
            Self::Primary => "primary killed",
            Self::Replica => "replica killed",
            Self::PrimaryWithOperator => "primary and operator killed",
            Self::Node => "node killed",
            Self::Broker => "broker killed",
            Self::FrozenPrimary => "primary frozen",
            Self::SlowApi => "API server slow",
            Self::FullDisk => "disk of a primary full",
            Self::OneWay => "node cut off one way",
        })
    }
}

impl Fault {
    /// Whether it takes a copy of the data, so that every shard must be whole before it.
    pub fn touches_data(self) -> bool {
        !matches!(self, Self::Operator | Self::SlowApi)
    }
}

/// Waits until every shard has all its copies in step: killing one more before that would be more than the platform promises to survive.
pub async fn await_whole(cluster: &Cluster) -> Result<(), ClusterError> {
    await_every(POLL, "every shard to be whole", WHOLE, || async {
        let members = cluster.chat_cluster().await.map_err(|e| e.to_string())?.spec.storage.replicas + 1;
        for shard in cluster.shards().await.map_err(|e| e.to_string())? {
            let status = shard.status.clone().unwrap_or_default();
            if status.ready_members != members || status.primary.is_none() {
                return Err(format!("{}: {} of {members} in step", shard.name_any(), status.ready_members));
            }
        }
        // Status is written a moment after the fact: pods tell at once.
        let mut pods = cluster.pods("valkey").await.map_err(|e| e.to_string())?;
        pods.extend(cluster.pods("kafka").await.map_err(|e| e.to_string())?);
        match pods.iter().find(|p| p.metadata.deletion_timestamp.is_some() || !crate::cluster::is_ready(p)) {
            Some(pod) => Err(format!("pod {} is not ready", pod.name_any())),
            None => Ok(()),
        }
    })
    .await?;
    Ok(())
}

/// Injects one fault.
pub async fn inject(cluster: &Cluster, fault: Fault) -> Result<(), ClusterError> {
    match fault {
        Fault::Operator => {
            let both = rand::rng().random_range(0..4) == 0;
            kill_operator(cluster, both).await
        }
        Fault::Primary => kill_member(cluster, true).await,
        Fault::Replica => kill_member(cluster, false).await,
        Fault::PrimaryWithOperator => {
            kill_operator(cluster, false).await?;
            kill_member(cluster, true).await
        }
        Fault::Node => node("kill", spare_node(cluster).await?).await,
        Fault::Broker => {
            let brokers = cluster.pods("kafka").await?;
            let broker = brokers.choose(&mut rand::rng()).ok_or_else(|| missing("no broker"))?;
            cluster.delete_pod(&broker.name_any(), 0).await
        }
        Fault::FrozenPrimary => freeze(cluster, &member(cluster, true).await?, "valkey-server", HANGS_S).await,
        Fault::SlowApi => script("fault.sh", &["slow-api", &HANGS_S.to_string()]).await,
        Fault::FullDisk => {
            let volume = volume(cluster, &member(cluster, true).await?).await?;
            script("fault.sh", &["fill", &volume, &HANGS_S.to_string()]).await
        }
        Fault::OneWay => {
            script("fault.sh", &["cut", &spare_node(cluster).await?.to_string(), &HANGS_S.to_string()]).await
        }
    }
}

/// Stops (SIGSTOP) every process of that name in a pod for so many seconds; returns when they go on.
pub async fn freeze(cluster: &Cluster, name: &str, process: &str, seconds: u32) -> Result<(), ClusterError> {
    let uid = pod(cluster, name).await?.uid().unwrap_or_default();
    script("fault.sh", &["freeze", &uid, process, &seconds.to_string()]).await
}

fn missing(what: &str) -> ClusterError {
    ClusterError::Missing(what.to_owned())
}

async fn pod(cluster: &Cluster, name: &str) -> Result<Pod, ClusterError> {
    Ok(cluster.api::<Pod>().get(name).await?)
}

/// The volume that holds a Valkey pod's data.
async fn volume(cluster: &Cluster, name: &str) -> Result<String, ClusterError> {
    let spec = pod(cluster, name).await?.spec.unwrap_or_default();
    let claim = spec.volumes.into_iter().flatten().find_map(|v| v.persistent_volume_claim).map(|c| c.claim_name);
    let claim = claim.ok_or_else(|| missing(&format!("{name} has no claim")))?;
    let claim = cluster.api::<PersistentVolumeClaim>().get(&claim).await?;
    claim.spec.and_then(|s| s.volume_name).ok_or_else(|| missing(&format!("the claim of {name} has no volume")))
}

async fn kill_operator(cluster: &Cluster, both: bool) -> Result<(), ClusterError> {
    let leader = cluster.operator_leader().await.ok();
    for pod in cluster.operator_pods().await? {
        let name = pod.name_any();
        // Without a leader whoever is there is killed.
        if both || leader.as_ref().is_none_or(|l| *l == name) {
            cluster.delete_pod_in(OPERATOR_NAMESPACE, &name, 0).await?;
        }
    }
    Ok(())
}

async fn kill_member(cluster: &Cluster, primary: bool) -> Result<(), ClusterError> {
    cluster.delete_pod(&member(cluster, primary).await?, 0).await
}

/// The pod of a primary, or of a replica, of any shard.
async fn member(cluster: &Cluster, primary: bool) -> Result<String, ClusterError> {
    let shards = cluster.shards().await?;
    let shard = shards.choose(&mut rand::rng()).ok_or_else(|| ClusterError::Missing("no shard".to_owned()))?;
    let status = shard.status.clone().unwrap_or_default();
    let leads = status.primary.unwrap_or_default();
    let candidates: Vec<String> =
        status.members.iter().map(|m| m.pod.clone()).filter(|p| (*p == leads) == primary).collect();
    let victim = candidates.choose(&mut rand::rng());
    victim.cloned().ok_or_else(|| missing(&format!("{} has no such member", shard.name_any())))
}

/// A node whose loss leaves a majority of the brokers: with one copy of the event log it would prove nothing about shards.
async fn spare_node(cluster: &Cluster) -> Result<u32, ClusterError> {
    let at = |pods: &[Pod]| -> Vec<String> { pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect() };
    let (brokers, copies) = (at(&cluster.pods("kafka").await?), at(&cluster.pods("valkey").await?));
    let bearable = |node: &&String| 2 * brokers.iter().filter(|b| b == node).count() < brokers.len();
    let name = copies.iter().filter(bearable).choose(&mut rand::rng());
    let name = name.ok_or_else(|| missing("every node holds most of the brokers (NODES=3 BROKERS=3 make up)"))?;
    let number = name.rsplit('-').next().and_then(|n| n.parse().ok());
    number.ok_or_else(|| missing(&format!("{name} is no node of the local cluster")))
}

/// `e2e/local/node.sh kill|start N`.
pub async fn node(what: &str, number: u32) -> Result<(), ClusterError> {
    script("node.sh", &[what, &number.to_string()]).await
}

/// Writes the business line's certificate files anew: `Target::of_env` reads them, and an authority may have taken turns.
pub async fn renew_client_files() -> Result<(), ClusterError> {
    script("env.sh", &["print"]).await
}

/// A script of the local cluster; `fault.sh` ends when its fault is over.
/// Whatever becomes of the caller, the script ends its fault itself: it is asked to before it is killed.
async fn script(name: &str, arguments: &[&str]) -> Result<(), ClusterError> {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=20").arg(SCRIPT.as_secs().to_string());
    command.arg(workspace().join("e2e/local").join(name)).args(arguments).stdin(Stdio::null());
    let output = tokio::time::timeout(SCRIPT + SLACK, command.output())
        .await
        .map_err(|_| missing(&format!("{name} {arguments:?} did not end")))??;
    if output.status.success() {
        Ok(())
    } else {
        Err(missing(&format!("{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

/// Brings every node that is down back.
pub async fn revive(nodes: u32) -> Result<(), ClusterError> {
    for number in 1..=nodes {
        node("start", number).await?;
    }
    Ok(())
}
