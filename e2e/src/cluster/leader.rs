//! The operator's pods, and which of them leads.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{Api, ResourceExt, api::ListParams};

use super::{Cluster, ClusterError, OPERATOR_NAMESPACE, is_ready};
use crate::wait::await_until;

impl Cluster {
    /// The operator's pods.
    pub async fn operator_pods(&self) -> Result<Vec<Pod>, ClusterError> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        Ok(pods.list(&ListParams::default().labels("app.kubernetes.io/name=kith-operator")).await?.items)
    }

    /// The pod that holds the lease.
    pub async fn operator_leader(&self) -> Result<String, ClusterError> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let holder = leases.get("kith-operator").await?.spec.and_then(|s| s.holder_identity).unwrap_or_default();
        let pods = self.operator_pods().await?;
        let leader = pods.iter().map(ResourceExt::name_any).find(|name| holder.contains(name.as_str()));
        leader.ok_or_else(|| ClusterError::Missing(format!("no operator pod holds the lease ({holder:?})")))
    }

    /// Waits until the operator's Deployment is wholly of its newest template and one of its pods leads.
    pub async fn await_operator_rollout(&self, deadline: Duration) -> Result<String, ClusterError> {
        let operators = Api::<Deployment>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let rolled = |deployment: &Deployment| {
            let status = deployment.status.clone().unwrap_or_default();
            let wanted = deployment.spec.as_ref().and_then(|s| s.replicas);
            status.observed_generation == deployment.metadata.generation
                && status.updated_replicas == wanted
                && status.ready_replicas == wanted
                && status.replicas == wanted
        };
        self.await_object(&operators, "kith-operator", "the operator's rollout", deadline, rolled).await?;
        self.await_operator(deadline).await
    }

    /// Waits until both replicas are ready and one of them leads.
    pub async fn await_operator(&self, deadline: Duration) -> Result<String, ClusterError> {
        let leader = await_until("the operator", deadline, || async {
            let pods = self.operator_pods().await.map_err(|e| e.to_string())?;
            let ready = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none() && is_ready(p)).count();
            if ready < 2 {
                return Err(format!("{ready} of 2 replicas are ready"));
            }
            let leader = self.operator_leader().await.map_err(|e| e.to_string())?;
            if pods.iter().any(|p| p.name_any() == leader && p.metadata.deletion_timestamp.is_none()) {
                Ok(leader)
            } else {
                Err(format!("{leader} holds the lease and is going"))
            }
        });
        Ok(leader.await?)
    }
}
