//! What a ChatCluster's spec says of one service: the number of its pods and their settings. Which services there are stands in `settings`.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{ExternalTrafficPolicy, PodSettings, Resources, ServiceType, default_is_empty_object};

/// One service.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Number of pods, from 1 to 100. With one pod, its restart is felt by clients.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: u32,
    /// Settings of the pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// ImBusiness, the endpoint of business lines.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BusinessSpec {
    /// Number of pods, from 1 to 100. With one pod, its restart is felt by business lines.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: u32,
    /// How business lines reach the endpoint.
    #[serde(default)]
    pub exposure: BusinessExposure,
    /// Settings of the pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// How business lines reach ImBusiness. It always asks for a certificate or a key, wherever it is reached from.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.nodePort) || self.type != 'ClusterIP'"
)
.message("nodePort needs type NodePort or LoadBalancer")
.field_path(".nodePort"))]
#[x_kube(validation = Rule::new(
    "!has(self.loadBalancerClass) || self.type == 'LoadBalancer'"
)
.message("loadBalancerClass needs type LoadBalancer")
.field_path(".loadBalancerClass"))]
pub struct BusinessExposure {
    /// ClusterIP: from inside the Kubernetes cluster. NodePort: on a port of every node. LoadBalancer: through a load balancer.
    #[serde(rename = "type", default)]
    pub kind: ServiceType,
    /// Port of the nodes. Omitted: Kubernetes chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<u16>,
    /// Class of the load balancer. Omitted: the infrastructure's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
    /// Whether nodes pass traffic on to pods of other nodes (Cluster) or keep the caller's address (Local).
    #[serde(default)]
    pub external_traffic_policy: ExternalTrafficPolicy,
    /// Annotations of the Service, as load balancers read them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// Further host names or addresses that business lines dial, added to the certificate of the endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub extra_hosts: Vec<String>,
}

default_is_empty_object!(ServiceSpec, BusinessSpec, BusinessExposure);

fn replicas() -> u32 {
    2
}

impl ServiceSpec {
    /// CPU and memory of a service's container that `pod` gives none.
    pub fn default_resources() -> Resources {
        Resources::of("100m", "128Mi", "512Mi")
    }
}
