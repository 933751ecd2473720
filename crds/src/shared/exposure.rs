//! Ways to reach a Service from outside, and how many pods stand behind it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a Service is reached.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ServiceType {
    /// From inside the Kubernetes cluster only.
    #[default]
    ClusterIP,
    /// On a port of every node.
    NodePort,
    /// Through a load balancer of the infrastructure.
    LoadBalancer,
}

impl ServiceType {
    /// As the Service spec says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Whether traffic from outside may be passed on to another node.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ExternalTrafficPolicy {
    /// Every node passes traffic on to any pod; the client's address is hidden.
    #[default]
    Cluster,
    /// Only nodes that run a pod take traffic; the client's address is kept.
    Local,
}

impl ExternalTrafficPolicy {
    /// As the Service spec says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// Lets a HorizontalPodAutoscaler choose the number of pods by their CPU use. It needs a metrics server.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.minReplicas <= self.maxReplicas", "minReplicas may not be above maxReplicas"))]
pub struct Autoscaling {
    /// The least number of pods.
    #[serde(default = "min_replicas")]
    #[schemars(range(min = 1, max = 500))]
    pub min_replicas: u32,
    /// The largest number of pods.
    #[schemars(range(min = 1, max = 500))]
    pub max_replicas: u32,
    /// The average CPU use of the pods, in per cent of their request, that the autoscaler aims at.
    #[serde(default = "target_cpu_percent")]
    #[schemars(range(min = 10, max = 100))]
    pub target_cpu_percent: u32,
}

fn min_replicas() -> u32 {
    2
}

fn target_cpu_percent() -> u32 {
    70
}
