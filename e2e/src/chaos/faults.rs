//! Faults on the local cluster, one at a time: what is killed, when it may be, and when the next one may follow.

use std::{fmt, process::Stdio, time::Duration};

use kube::ResourceExt;
use rand::{RngExt, seq::IndexedRandom};
use tokio::process::Command;

use crate::{
    cluster::{Cluster, ClusterError, OPERATOR_NAMESPACE},
    env::workspace,
    wait::await_every,
};

/// A shard must be whole again after this time, a node's return included.
const WHOLE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(250);
/// Starting or killing a node.
const NODE_SCRIPT: Duration = Duration::from_secs(90);

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator killed",
            Self::Primary => "primary killed",
            Self::Replica => "replica killed",
            Self::PrimaryWithOperator => "primary and operator killed",
            Self::Node => "node killed",
        })
    }
}

impl Fault {
    /// Whether it takes a copy of the data, so that every shard must be whole before it.
    pub fn touches_data(self) -> bool {
        self != Self::Operator
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
        let pods = cluster.pods("valkey").await.map_err(|e| e.to_string())?;
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
    }
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
    let shards = cluster.shards().await?;
    let shard = shards.choose(&mut rand::rng()).ok_or_else(|| ClusterError::Missing("no shard".to_owned()))?;
    let status = shard.status.clone().unwrap_or_default();
    let leads = status.primary.unwrap_or_default();
    let candidates: Vec<String> =
        status.members.iter().map(|m| m.pod.clone()).filter(|p| (*p == leads) == primary).collect();
    let victim = candidates
        .choose(&mut rand::rng())
        .ok_or_else(|| ClusterError::Missing(format!("{} has no such member", shard.name_any())))?;
    cluster.delete_pod(victim, 0).await
}

/// A node that holds no broker: with one copy of the event log its death would prove nothing about shards.
async fn spare_node(cluster: &Cluster) -> Result<u32, ClusterError> {
    let at = |pods: &[k8s_openapi::api::core::v1::Pod]| -> Vec<String> {
        pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect()
    };
    let (brokers, copies) = (at(&cluster.pods("kafka").await?), at(&cluster.pods("valkey").await?));
    let free = copies.iter().find(|n| !brokers.contains(n));
    let name = free.ok_or_else(|| ClusterError::Missing("every node holds a broker (NODES=3 make up)".to_owned()))?;
    let number = name.rsplit('-').next().and_then(|n| n.parse().ok());
    number.ok_or_else(|| ClusterError::Missing(format!("{name} is no node of the local cluster")))
}

/// `e2e/local/node.sh kill|start N`.
pub async fn node(what: &str, number: u32) -> Result<(), ClusterError> {
    let mut command = Command::new(workspace().join("e2e/local/node.sh"));
    command.args([what, &number.to_string()]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(NODE_SCRIPT, command.output())
        .await
        .map_err(|_| ClusterError::Missing(format!("node.sh {what} did not end")))??;
    if output.status.success() {
        Ok(())
    } else {
        Err(ClusterError::Missing(format!("node.sh {what}: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

/// Brings every node that is down back.
pub async fn revive(nodes: u32) -> Result<(), ClusterError> {
    for number in 1..=nodes {
        node("start", number).await?;
    }
    Ok(())
}
