//! `Gateway`: an access point for clients: HTTP API, WebSocket, or both.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    names,
    shared::{
        Autoscaling, Duration, ExternalTrafficPolicy, LocalRef, PodSettings, Quantity, Resources, ServiceType,
        default_is_empty_object,
    },
};

/// No Gateway that is made is named like a part of Kith.
fn named_unlike_a_part() -> Rule {
    let names: Vec<_> = names::reserved_for_parts().collect();
    let quoted: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    let message = format!(
        "a Gateway cannot be named like a part of Kith ({}), whose objects would have the same names: choose another name",
        names.join(", ")
    );
    Rule::new(format!("oldSelf.hasValue() || !(self.metadata.name in [{}])", quoted.join(", ")))
        .optional_old_self(true)
        .message(message.as_str())
}

/// An access point for the clients of a ChatCluster: the short-connection API, the WebSocket, or both. A ChatCluster may
/// have several, for example one per region of the internet or one for tests.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "kith.dev",
    version = "v1alpha1",
    kind = "Gateway",
    namespaced,
    status = "GatewayStatus",
    derive = "PartialEq",
    shortname = "kgw",
    category = "kith",
    selectable = ".spec.clusterRef.name",
    doc = "A Gateway is an access point for the clients of a ChatCluster: the short-connection HTTP API, the WebSocket, or both. It is not the Gateway of the Gateway API: say gateways.kith.dev or kgw.",
    validation = (
        "self.metadata.name.size() + self.spec.clusterRef.name.size() <= 53 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "the names of a Gateway and its ChatCluster have together at most 53 characters, and a Gateway's name has lower-case letters, digits and hyphens only, since Services are named after both"
    ),
    validation = crate::gateway::named_unlike_a_part(),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether clients can connect."),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not, in a word."),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The ChatCluster."),
    printcolumn(name = "API", type_ = "string", json_path = ".status.addresses.api", description = "Where clients call."),
    printcolumn(name = "WebSocket", type_ = "string", json_path = ".status.addresses.websocket", description = "Where clients connect."),
    printcolumn(name = "API Pods", type_ = "integer", json_path = ".status.api.readyReplicas", description = "Pods of the API that serve.", priority = "1"),
    printcolumn(name = "WebSocket Pods", type_ = "integer", json_path = ".status.websocket.readyReplicas", description = "Pods of the WebSocket that serve.", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "Why it is ready or not, in a sentence.", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since creation.")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.api.enabled || self.websocket.enabled",
    "at least one of api and websocket must be enabled"
))]
#[x_kube(validation = (
    "!has(self.tls) || !(has(self.exposure.ingress) || has(self.exposure.httpRoute))",
    "tls cannot go with exposure.ingress or exposure.httpRoute, which pass plain HTTP on to the pods: let them end TLS, or use type LoadBalancer or NodePort without them"
))]
pub struct GatewaySpec {
    /// The ChatCluster whose clients connect here, in the same namespace. Fixed at creation.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is fixed at creation: create another Gateway"))]
    pub cluster_ref: LocalRef,

    /// The short-connection HTTP API.
    #[serde(default)]
    pub api: ApiListener,

    /// Long connections over WebSocket.
    #[serde(default)]
    pub websocket: WebsocketListener,

    /// What one user may take at both listeners.
    #[serde(default)]
    pub limits: GatewayLimits,

    /// How clients reach the listeners.
    #[serde(default)]
    pub exposure: GatewayExposure,

    /// Serves HTTPS and WSS by the pods themselves, on the same ports. Omitted: plain HTTP and WebSocket, for use behind an
    /// Ingress, an HTTPRoute or a load balancer that ends TLS. Not together with an Ingress or an HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
}

impl Gateway {
    /// The name of the Deployment and Service of a component (`api` or `gateway`).
    pub fn component_name(&self, component: &str) -> String {
        format!("{}-{}-{component}", self.spec.cluster_ref.name, self.name_any())
    }
}

/// The short-connection HTTP API.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApiListener {
    /// Whether this Gateway has an API.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Number of pods, from 1 to 500. Not used with autoscaling.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 500))]
    pub replicas: u32,
    /// Lets the number of pods follow their CPU use. Omitted: `replicas` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// What a client and a pod may take.
    #[serde(default)]
    pub limits: ApiLimits,
    /// How long a connection may wait for its next request, from 75s to 1h; then it is ended in good order. Proxies in front that use
    /// connections again should do so for less. Connections without a valid token wait for ten seconds.
    #[serde(default = "idle_timeout")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || (duration(self) >= duration('75s') && duration(self) <= duration('1h'))",
        "idleTimeout must lie between 75s and 1h"
    ))]
    pub idle_timeout: Duration,
    /// Web pages that may call the API: origins such as https://chat.example.com, or `*` for all. Omitted: pages
    /// of the same host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_origins: Vec<String>,
    /// Settings of the pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// What one user may take at both listeners. Beyond it sends are told to come back later (RESOURCE_EXHAUSTED with a time).
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayLimits {
    /// Bytes of messages that one user may send in a minute, from 128Ki to 1Gi: content, mentions, ext, and 128 for each message. So
    /// many may come at once. Each pod counts for itself. What is sent through ImBusiness does not count.
    #[serde(default = "sent_bytes")]
    #[x_kube(validation = (
        "!isQuantity(self) || (!quantity(self).isLessThan(quantity('128Ki')) && !quantity(self).isGreaterThan(quantity('1Gi')))",
        "sentBytesPerMinutePerUser must lie between 128Ki and 1Gi"
    ))]
    pub sent_bytes_per_minute_per_user: Quantity,
}

/// What a client of the API and a pod may take. Beyond it a client is told to come back later (429 with Retry-After).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ApiLimits {
    /// Requests per second of one user, on average, from 1 to 10000.
    #[serde(default = "requests_per_second")]
    #[schemars(range(min = 1, max = 10000))]
    pub requests_per_second_per_user: u32,
    /// Requests that a user may make at once before the average counts, from 1 to 100000.
    #[serde(default = "burst")]
    #[schemars(range(min = 1, max = 100_000))]
    pub burst_per_user: u32,
    /// Requests that a pod works on at the same time, from 1 to 100000.
    #[serde(default = "requests_in_flight")]
    #[schemars(range(min = 1, max = 100_000))]
    pub requests_in_flight_per_pod: u32,
}

/// Long connections over WebSocket.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebsocketListener {
    /// Whether this Gateway has a WebSocket.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Number of pods, from 1 to 500. Not used with autoscaling.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 500))]
    pub replicas: u32,
    /// Lets the number of pods follow their CPU use. Omitted: `replicas` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How often a client must be heard, from 5s to 10m. A connection that is silent for two of them is closed.
    #[serde(default = "heartbeat")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || (duration(self) >= duration('5s') && duration(self) <= duration('10m'))",
        "heartbeat must lie between 5s and 10m"
    ))]
    pub heartbeat: Duration,
    /// What a connection and a pod may take.
    #[serde(default)]
    pub limits: WebsocketLimits,
    /// How connections leave a pod that stops.
    #[serde(default)]
    pub drain: Drain,
    /// Web pages that may connect: origins such as https://chat.example.com, or `*` for all. Clients that send no origin,
    /// such as apps, always may. Omitted: pages of the same host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_origins: Vec<String>,
    /// Settings of the pods.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// What a connection and a pod may take. Beyond it a connection is closed with code 4029 or 4004.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WebsocketLimits {
    /// Connections of one pod, from 1 to 1000000.
    #[serde(default = "connections_per_pod")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_per_pod: u32,
    /// Connections of one user at one pod, from 1 to 1000.
    #[serde(default = "connections_per_user")]
    #[schemars(range(min = 1, max = 1000))]
    pub connections_per_user: u32,
    /// Frames per second that a client may send, on average, from 1 to 1000.
    #[serde(default = "frames_per_second")]
    #[schemars(range(min = 1, max = 1000))]
    pub frames_per_second: u32,
    /// Frames that may wait for a slow reader, from 16 to 65536.
    #[serde(default = "frames_queued")]
    #[schemars(range(min = 16, max = 65_536))]
    pub frames_queued: u32,
}

/// How connections leave a pod that stops: clients are told to connect again, at a paced rate, and what is left at the
/// deadline is closed.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// When the last connections are closed, from 1s to 1h. A stopping pod lives at most this long.
    #[serde(default = "deadline")]
    #[x_kube(validation = (
        "!self.matches('^([0-9]{1,9}(ms|s|m|h))+$') || (duration(self) >= duration('1s') && duration(self) <= duration('1h'))",
        "drain.deadline must lie between 1s and 1h"
    ))]
    pub deadline: Duration,
    /// Connections per second that each pod asks to leave, from 1 to 100000.
    #[serde(default = "connections_per_second")]
    #[schemars(range(min = 1, max = 100_000))]
    pub connections_per_second: u32,
}

/// How clients reach the listeners.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.nodePorts) || self.type != 'ClusterIP'", "nodePorts need type NodePort or LoadBalancer"))]
#[x_kube(validation = ("!has(self.loadBalancerClass) || self.type == 'LoadBalancer'", "loadBalancerClass needs type LoadBalancer"))]
#[x_kube(validation = (
    "!has(self.loadBalancerSourceRanges) || self.type == 'LoadBalancer'",
    "loadBalancerSourceRanges need type LoadBalancer"
))]
#[x_kube(validation = ("!(has(self.ingress) && has(self.httpRoute))", "exposure takes at most one of ingress and httpRoute"))]
pub struct GatewayExposure {
    /// ClusterIP: from inside the Kubernetes cluster, or through the Ingress or HTTPRoute below. NodePort: on a port of
    /// every node. LoadBalancer: through a load balancer.
    #[serde(rename = "type", default)]
    pub kind: ServiceType,
    /// Ports of the nodes. Omitted: Kubernetes chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePorts>,
    /// Class of the load balancer. Omitted: the infrastructure's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,
    /// Address ranges that may use the load balancer, for example 192.0.2.0/24. Omitted: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 43)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = ("self.all(range, isCIDR(range))", "every entry of loadBalancerSourceRanges must be an address range such as 192.0.2.0/24"))]
    pub load_balancer_source_ranges: Vec<String>,
    /// Whether nodes pass traffic on to pods of other nodes (Cluster) or keep the client's address (Local).
    #[serde(default)]
    pub external_traffic_policy: ExternalTrafficPolicy,
    /// Annotations of the Services, as load balancers read them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// Makes an Ingress for the host: `/v1/connect` goes to the WebSocket, all else to the API. Omitted: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// Makes an HTTPRoute of the Gateway API: `/v1/connect` goes to the WebSocket, all else to the API. Omitted: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HttpRoute>,
}

/// Ports of the nodes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.api) || !has(self.websocket) || self.api != self.websocket",
    "nodePorts.api and nodePorts.websocket must differ"
))]
pub struct NodePorts {
    /// Port of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub api: Option<u16>,
    /// Port of the WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub websocket: Option<u16>,
}

/// An Ingress for the listeners.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// IngressClass. Omitted: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// Host name of the listeners, for example chat.example.com.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Secret of type kubernetes.io/tls for the host. Omitted: no TLS, or the Ingress controller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<LocalRef>,
    /// Annotations of the Ingress, for example timeouts for long connections.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// An HTTPRoute for the listeners.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Gateways of the Gateway API that carry the route.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub parent_refs: Vec<RouteParent>,
    /// Host names of the listeners. Omitted: all that the parents serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub hostnames: Vec<String>,
}

/// A Gateway of the Gateway API (gateway.networking.k8s.io).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RouteParent {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace, which must allow routes from this one. Omitted: the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its listener. Omitted: all that match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// TLS by the pods themselves: TLS 1.2 and 1.3, without client certificates.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayTls {
    /// Secret of type kubernetes.io/tls, in the same namespace: `tls.crt` with the chain, `tls.key`. A renewed certificate is
    /// shown to new connections within about two minutes, without a restart and without ending the others. Without the
    /// Secret no pod is made or changed; those that run go on with the certificate that they have.
    pub secret_ref: LocalRef,
}

default_is_empty_object!(
    ApiListener,
    ApiLimits,
    WebsocketListener,
    WebsocketLimits,
    Drain,
    GatewayExposure,
    GatewayLimits
);

fn yes() -> bool {
    true
}

fn replicas() -> u32 {
    2
}

fn requests_per_second() -> u32 {
    50
}

fn burst() -> u32 {
    100
}

fn requests_in_flight() -> u32 {
    1024
}

fn sent_bytes() -> Quantity {
    "4Mi".into()
}

fn heartbeat() -> Duration {
    "30s".into()
}

fn idle_timeout() -> Duration {
    "90s".into()
}

fn connections_per_pod() -> u32 {
    20_000
}

fn connections_per_user() -> u32 {
    10
}

fn frames_per_second() -> u32 {
    20
}

fn frames_queued() -> u32 {
    256
}

fn deadline() -> Duration {
    "2m".into()
}

fn connections_per_second() -> u32 {
    200
}

impl ApiListener {
    /// CPU and memory of a container that `pod` gives none.
    pub fn default_resources() -> Resources {
        Resources::of("100m", "128Mi", "512Mi")
    }
}

impl WebsocketListener {
    /// CPU and memory of a container that `pod` gives none.
    pub fn default_resources() -> Resources {
        Resources::of("100m", "128Mi", "1Gi")
    }
}

/// What the operator found, as of observedGeneration.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, CertificateExpiring.
    #[schemars(schema_with = "crate::conditions::schema")]
    pub conditions: Vec<Condition>,
    /// Where clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// Pods of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ListenerStatus>,
    /// Pods of the WebSocket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<ListenerStatus>,
}

/// Where clients connect.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Addresses {
    /// The API, for example http://192.0.2.10:30080.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The WebSocket, for example ws://192.0.2.10:30081/v1/connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<String>,
}

/// Pods of a listener.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerStatus {
    /// Pods wanted.
    pub replicas: u32,
    /// Pods that serve.
    pub ready_replicas: u32,
}
