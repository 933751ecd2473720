//! Services, disruption budgets and service accounts.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::meta;

/// A port of a Service that leads to the container's port of the same name.
pub fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

/// A headless Service; `unready` also publishes pods that are not ready.
pub fn headless(
    name: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    ports: Vec<ServicePort>,
    unready: bool,
) -> Service {
    Service {
        metadata: meta::meta(name, labels),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            ports: Some(ports),
            publish_not_ready_addresses: unready.then_some(true),
            selector: Some(selector),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// How a Service is reached from outside.
#[derive(Clone, Debug, Default)]
pub struct Exposure {
    /// ClusterIP, NodePort or LoadBalancer.
    pub kind: &'static str,
    /// Class of the load balancer.
    pub class: Option<String>,
    /// Ranges that may use the load balancer.
    pub source_ranges: Vec<String>,
    /// Cluster or Local; only outside of ClusterIP.
    pub traffic_policy: &'static str,
    /// Annotations of the Service.
    pub annotations: BTreeMap<String, String>,
}

/// A Service with an address of its own.
pub fn exposed(
    name: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    port: ServicePort,
    exposure: &Exposure,
) -> Service {
    let mut metadata = meta::meta(name, labels);
    metadata.annotations = (!exposure.annotations.is_empty()).then(|| exposure.annotations.clone());
    let outside = exposure.kind != "ClusterIP";
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(exposure.kind.to_owned()),
            ports: Some(vec![port]),
            selector: Some(selector),
            external_traffic_policy: outside.then(|| exposure.traffic_policy.to_owned()),
            load_balancer_class: exposure.class.clone(),
            load_balancer_source_ranges: (!exposure.source_ranges.is_empty()).then(|| exposure.source_ranges.clone()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A budget that lets at most `max_unavailable` pods be evicted at a time. Where pods hold no data, one that does not serve anyway must
/// not stop a node from being drained (`unhealthy_may_go`).
pub fn disruption_budget(
    name: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    max_unavailable: u32,
    unhealthy_may_go: bool,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta::meta(name, labels),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(i32::try_from(max_unavailable).unwrap_or(i32::MAX))),
            selector: Some(meta::selector(selector)),
            unhealthy_pod_eviction_policy: unhealthy_may_go.then(|| "AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// A service account whose token nobody mounts.
pub fn account(name: String, labels: BTreeMap<String, String>) -> ServiceAccount {
    ServiceAccount {
        metadata: meta::meta(name, labels),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
