//! The build step of a Gateway: its two listeners and the ways to reach them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::{
        CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
        ResourceMetricSource,
    },
    core::v1::{ConfigMap, Service},
    networking::v1::{
        HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend,
        IngressSpec, IngressTLS, ServiceBackendPort,
    },
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{
    Gateway,
    gateway::{ApiListener, HttpRoute, Ingress as IngressSettings, WebsocketListener},
    names,
    shared::{Autoscaling, PodSettings},
};
use kith_platform as platform;
use kube::{CustomResource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    chatcluster::PassError,
    plan::{Plan, pod_settings},
    render::{
        endpoints,
        meta::{self, Component},
        pod, settings,
        workloads::{self, Spec},
    },
};

/// Short connections.
pub const API_PORT: i32 = platform::Service::Api.port() as i32;
/// Long connections.
pub const WEBSOCKET_PORT: i32 = platform::Service::Gateway.port() as i32;
/// The ports' names without TLS and with it, by which clients and people tell what is spoken there.
const API_NAMES: [&str; 2] = ["http", "https"];
const WEBSOCKET_NAMES: [&str; 2] = ["ws", "wss"];
/// The volume with the certificate for clients.
const TLS_VOLUME: &str = "client-tls";
/// The path of the WebSocket.
const CONNECT_PATH: &str = "/v1/connect";
/// A stopping API pod finishes its requests.
const API_GRACE_S: i64 = 30;
/// A stopping WebSocket pod lives this much longer than its drain.
const DRAIN_MARGIN_S: i64 = 15;

/// An `HTTPRoute` of the Gateway API, as far as it is used.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(group = "gateway.networking.k8s.io", version = "v1", kind = "HTTPRoute", namespaced, schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct HTTPRouteSpec {
    /// Which Gateways of the Gateway API carry it.
    pub parent_refs: Vec<Value>,
    /// Host names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Path rules.
    pub rules: Vec<Value>,
}

/// One listener's objects.
pub struct Listener {
    /// `api` or `gateway`.
    pub component: Component,
    /// What the pods read.
    pub config_map: ConfigMap,
    /// The pods.
    pub deployment: Deployment,
    /// How they are reached.
    pub service: Service,
    /// How many may be evicted.
    pub budget: PodDisruptionBudget,
    /// Who says how many there are, where `replicas` does not.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
}

/// Everything of one Gateway.
pub struct Objects {
    /// The listeners that are enabled.
    pub listeners: Vec<Listener>,
    /// The Ingress, if one is asked for.
    pub ingress: Option<Ingress>,
    /// The HTTPRoute, if one is asked for.
    pub route: Option<HTTPRoute>,
}

/// What the two listeners have in common.
struct Common {
    service: platform::Service,
    port: (&'static str, i32),
    replicas: u32,
    autoscaling: Option<Autoscaling>,
    settings: PodSettings,
    node_port: Option<u16>,
    grace_s: i64,
}

/// Renders a Gateway.
pub fn objects(plan: &Plan, gateway: &Gateway) -> Result<Objects, PassError> {
    let mut labels = meta::cluster_labels(&plan.name);
    labels.insert(names::LABEL_GATEWAY.to_owned(), gateway.name_any());
    let listeners = enabled(plan, gateway).into_iter().map(|c| listener(plan, gateway, c)).collect::<Result<_, _>>()?;
    let exposure = &gateway.spec.exposure;
    Ok(Objects {
        listeners,
        ingress: exposure.ingress.as_ref().map(|settings| ingress(plan, gateway, settings, labels.clone())),
        route: exposure.http_route.as_ref().map(|settings| route(plan, gateway, settings, labels)),
    })
}

fn enabled(plan: &Plan, gateway: &Gateway) -> Vec<Common> {
    let (api, websocket) = (&gateway.spec.api, &gateway.spec.websocket);
    let ports = gateway.spec.exposure.node_ports.clone().unwrap_or_default();
    let name = |[plain, secure]: [&'static str; 2]| if gateway.spec.tls.is_some() { secure } else { plain };
    let mut list = Vec::new();
    if api.enabled {
        list.push(Common {
            service: platform::Service::Api,
            port: (name(API_NAMES), API_PORT),
            replicas: api.replicas,
            autoscaling: api.autoscaling.clone(),
            settings: pod_settings(&plan.spec, &api.pod, ApiListener::default_resources),
            node_port: ports.api,
            grace_s: API_GRACE_S,
        });
    }
    if websocket.enabled {
        let drain = websocket.drain.deadline.to_std().map_or(120, |d| i64::try_from(d.as_secs()).unwrap_or(3_600));
        list.push(Common {
            service: platform::Service::Gateway,
            port: (name(WEBSOCKET_NAMES), WEBSOCKET_PORT),
            replicas: websocket.replicas,
            autoscaling: websocket.autoscaling.clone(),
            settings: pod_settings(&plan.spec, &websocket.pod, WebsocketListener::default_resources),
            node_port: ports.websocket,
            grace_s: drain + DRAIN_MARGIN_S,
        });
    }
    list
}

fn listener(plan: &Plan, gateway: &Gateway, common: Common) -> Result<Listener, PassError> {
    let component = Component::from(common.service);
    let name = gateway.component_name(component.name());
    let extra: BTreeMap<String, String> = [(names::LABEL_GATEWAY.to_owned(), gateway.name_any())].into();
    let mut labels = meta::labels(&plan.name, component);
    labels.extend(extra.clone());
    let mut selector = meta::selector_labels(&plan.name, component);
    selector.extend(extra.clone());
    let config = settings::gateway_config(plan, gateway, common.service)?;
    let (config_map, hash) = settings::config_map(meta::config_map(&name), labels.clone(), &config)?;
    let mut mounts: Vec<_> = workloads::keys(plan, common.service).into_iter().collect();
    if let Some(tls) = &gateway.spec.tls {
        // Kubernetes renews the files of the pods that run when the Secret changes.
        let volume = pod::secret_volume(TLS_VOLUME, tls.secret_ref.name.clone(), &settings::TLS_FILES);
        mounts.push((volume, pod::mount(TLS_VOLUME, settings::CLIENT_TLS_DIR)));
    }
    let deployment = workloads::deployment(
        plan,
        Spec {
            service: common.service,
            name: name.clone(),
            extra_labels: extra,
            replicas: common.autoscaling.is_none().then_some(common.replicas),
            settings: &common.settings,
            port: common.port,
            config_hash: &hash,
            mounts,
            grace_s: common.grace_s,
        },
    );
    let mut port = endpoints::port(common.port.0, common.port.1);
    port.node_port = common.node_port.map(i32::from);
    let exposure = &gateway.spec.exposure;
    let exposed = endpoints::Exposure {
        kind: exposure.kind.as_str(),
        class: exposure.load_balancer_class.clone(),
        source_ranges: exposure.load_balancer_source_ranges.clone(),
        traffic_policy: exposure.external_traffic_policy.as_str(),
        annotations: exposure.annotations.clone(),
    };
    Ok(Listener {
        component,
        config_map,
        deployment,
        service: endpoints::exposed(name.clone(), labels.clone(), selector.clone(), port, &exposed),
        budget: endpoints::disruption_budget(name.clone(), labels.clone(), selector, 1, true),
        autoscaler: common.autoscaling.map(|scaling| autoscaler(name, labels, &scaling)),
    })
}

/// Whether the pods of a Deployment end TLS themselves.
pub fn ends_tls(deployment: &Deployment) -> bool {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.is_some_and(|pod| pod.volumes.iter().flatten().any(|volume| volume.name == TLS_VOLUME))
}

/// Whether a pod of the newest template serves: one has been made, and none is missing.
pub fn new_pods_serve(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas.is_some_and(|pods| pods > 0)
        && status.unavailable_replicas.unwrap_or(0) == 0
}

/// Whether what stands behind a Service ends TLS itself, as its port's name says.
pub fn is_secure(service: &Service) -> bool {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut names = ports.filter_map(|port| port.name.as_deref());
    names.any(|name| [API_NAMES[1], WEBSOCKET_NAMES[1]].contains(&name))
}

/// Why the spec cannot be carried out, whatever else stands in the Kubernetes cluster. The API server refuses it, too, unless its definition
/// of a Gateway is an older one.
pub fn refusal(gateway: &Gateway) -> Option<&'static str> {
    let exposure = &gateway.spec.exposure;
    let proxied = exposure.ingress.is_some() || exposure.http_route.is_some();
    (gateway.spec.tls.is_some() && proxied).then_some(
        "spec.tls cannot go with exposure.ingress or exposure.httpRoute, which pass plain HTTP on to the pods: remove spec.tls and let them end TLS, or use exposure.type LoadBalancer or NodePort without them",
    )
}

/// Where an autoscaler says how many pods there are and has not said so yet, the Deployment keeps as many as stand, within its bounds: applied
/// without a number that nobody else has set, it falls back to one pod.
pub fn keep_scale(listener: &mut Listener, live: Option<&Deployment>) {
    let Some(scaling) = listener.autoscaler.as_ref().and_then(|a| a.spec.as_ref()) else { return };
    let (least, most) = (scaling.min_replicas.unwrap_or(1), scaling.max_replicas);
    if live.is_some_and(is_scaled_by_another) {
        return;
    }
    let standing = live.and_then(|live| live.spec.as_ref()?.replicas).unwrap_or(least);
    if let Some(spec) = &mut listener.deployment.spec {
        spec.replicas = Some(standing.min(most).max(least));
    }
}

/// Whether somebody else has set the number of pods: then it stays without the operator.
fn is_scaled_by_another(live: &Deployment) -> bool {
    let managers = live.metadata.managed_fields.iter().flatten();
    managers
        .filter(|m| m.manager.as_deref() != Some(names::FIELD_MANAGER))
        .any(|m| m.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some()))
}

fn autoscaler(name: String, labels: BTreeMap<String, String>, scaling: &Autoscaling) -> HorizontalPodAutoscaler {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    HorizontalPodAutoscaler {
        metadata: meta::meta(name.clone(), labels),
        spec: Some(HorizontalPodAutoscalerSpec {
            max_replicas: number(scaling.max_replicas),
            min_replicas: Some(number(scaling.min_replicas)),
            metrics: Some(vec![MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".to_owned(),
                    target: MetricTarget {
                        type_: "Utilization".to_owned(),
                        average_utilization: Some(number(scaling.target_cpu_percent)),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]),
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name,
            },
            behavior: None,
        }),
        status: None,
    }
}

/// The paths and the Services behind them, the longer one first.
fn paths(gateway: &Gateway) -> Vec<(&'static str, String, i32)> {
    let mut list = Vec::new();
    if gateway.spec.websocket.enabled {
        list.push((CONNECT_PATH, gateway.component_name(Component::GATEWAY.name()), WEBSOCKET_PORT));
    }
    if gateway.spec.api.enabled {
        list.push(("/", gateway.component_name(Component::API.name()), API_PORT));
    }
    list
}

fn entry_name(plan: &Plan, gateway: &Gateway) -> String {
    format!("{}-{}", plan.name, gateway.name_any())
}

fn ingress(plan: &Plan, gateway: &Gateway, settings: &IngressSettings, labels: BTreeMap<String, String>) -> Ingress {
    let mut metadata = meta::meta(entry_name(plan, gateway), labels);
    metadata.annotations = (!settings.annotations.is_empty()).then(|| settings.annotations.clone());
    let paths = paths(gateway)
        .into_iter()
        .map(|(path, name, port)| HTTPIngressPath {
            path: Some(path.to_owned()),
            path_type: "Prefix".to_owned(),
            backend: IngressBackend {
                resource: None,
                service: Some(IngressServiceBackend {
                    name,
                    port: Some(ServiceBackendPort { name: None, number: Some(port) }),
                }),
            },
        })
        .collect();
    Ingress {
        metadata,
        spec: Some(IngressSpec {
            default_backend: None,
            ingress_class_name: settings.class_name.clone(),
            rules: Some(vec![IngressRule {
                host: Some(settings.host.clone()),
                http: Some(HTTPIngressRuleValue { paths }),
            }]),
            tls: settings.tls_secret_ref.as_ref().map(|secret| {
                vec![IngressTLS { hosts: Some(vec![settings.host.clone()]), secret_name: Some(secret.name.clone()) }]
            }),
        }),
        status: None,
    }
}

fn route(plan: &Plan, gateway: &Gateway, settings: &HttpRoute, labels: BTreeMap<String, String>) -> HTTPRoute {
    let parents = settings
        .parent_refs
        .iter()
        .map(|parent| {
            let mut value = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": parent.name});
            if let Some(namespace) = &parent.namespace {
                value["namespace"] = namespace.as_str().into();
            }
            if let Some(section) = &parent.section_name {
                value["sectionName"] = section.as_str().into();
            }
            value
        })
        .collect();
    let rules = paths(gateway)
        .into_iter()
        .map(|(path, name, port)| {
            json!({
                "matches": [{"path": {"type": "PathPrefix", "value": path}}],
                "backendRefs": [{"group": "", "kind": "Service", "name": name, "port": port, "weight": 1}]
            })
        })
        .collect();
    HTTPRoute {
        metadata: meta::meta(entry_name(plan, gateway), labels),
        spec: HTTPRouteSpec { parent_refs: parents, hostnames: settings.hostnames.clone(), rules },
    }
}
