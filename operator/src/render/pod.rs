//! Pod templates: what all pods share (restricted security, spreading, probes) and what differs.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
        HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec,
        PodTemplateSpec, Probe, SeccompProfile, SecretVolumeSource, SecurityContext, TCPSocketAction,
        TopologySpreadConstraint, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kith_crds::shared::PodSettings;
use kube::api::ObjectMeta;

use super::meta;

/// The user and group of every container.
pub const USER: i64 = 65_532;
/// The admin port of every service.
pub const ADMIN_PORT: i32 = kith_platform::ADMIN_PORT as i32;
/// The label by which nodes are told apart.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Everything about a pod template that is not the same for all.
pub struct Parts<'a> {
    /// All labels of the pod; `selector` must be among them.
    pub labels: BTreeMap<String, String>,
    /// The labels that select this component's pods.
    pub selector: BTreeMap<String, String>,
    /// Annotations of the operator.
    pub annotations: BTreeMap<String, String>,
    /// The user's settings, merged; resources must be set.
    pub settings: &'a PodSettings,
    /// Name of the ServiceAccount.
    pub service_account: String,
    /// The main container; its name, image, ports, env, probes and mounts.
    pub container: Container,
    /// Volumes that the mounts name.
    pub volumes: Vec<Volume>,
    /// How long a stopping pod may take, seconds.
    pub grace_s: i64,
}

/// The whole template.
pub fn template(parts: Parts<'_>) -> PodTemplateSpec {
    let settings = parts.settings;
    let mut labels = settings.labels.clone();
    labels.extend(parts.labels);
    let mut annotations = settings.annotations.clone();
    annotations.extend(parts.annotations);
    let mut container = parts.container;
    container.security_context = Some(container_security());
    container.resources = settings.resources.as_ref().map(kith_crds::shared::Resources::to_k8s);
    let spec = PodSpec {
        affinity: settings.affinity.clone(),
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        image_pull_secrets: some_list(
            settings.image_pull_secrets.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect(),
        ),
        node_selector: (!settings.node_selector.is_empty()).then(|| settings.node_selector.clone()),
        priority_class_name: settings.priority_class_name.clone(),
        security_context: Some(pod_security()),
        service_account_name: Some(parts.service_account),
        termination_grace_period_seconds: Some(parts.grace_s),
        tolerations: some_list(settings.tolerations.clone()),
        topology_spread_constraints: some_list(spread(settings, &parts.selector)),
        volumes: some_list(parts.volumes),
        ..PodSpec::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The user's constraints, which count the component's own pods unless they say otherwise. Besides, pods prefer different nodes: a rule
/// about zones says nothing of the nodes in them. Only a rule about nodes or about other pods takes the place of that.
fn spread(settings: &PodSettings, selector: &BTreeMap<String, String>) -> Vec<TopologySpreadConstraint> {
    let own = || Some(meta::selector(selector.clone()));
    let mut list = settings.topology_spread_constraints.clone();
    for constraint in &mut list {
        constraint.label_selector = constraint.label_selector.take().or_else(own);
    }
    let of_pods = settings.affinity.as_ref().is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some());
    if !of_pods && list.iter().all(|constraint| constraint.topology_key != HOSTNAME) {
        list.push(TopologySpreadConstraint {
            label_selector: own(),
            max_skew: 1,
            topology_key: HOSTNAME.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..TopologySpreadConstraint::default()
        });
    }
    list
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        fs_group: Some(USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        run_as_group: Some(USER),
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// A variable with a fixed value.
pub fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// A variable with a field of the pod.
pub fn env_field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    }
}

/// A named TCP port.
pub fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A read-only mount.
pub fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), read_only: Some(true), ..VolumeMount::default() }
}

/// A mount that the container writes to.
pub fn writable(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// Files of a Secret; all of them when `keys` is empty.
pub fn secret_volume(name: &str, secret: String, keys: &[&str]) -> Volume {
    let items: Vec<KeyToPath> =
        keys.iter().map(|key| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None }).collect();
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            items: some_list(items),
            default_mode: Some(0o440),
            optional: None,
        }),
        ..Volume::default()
    }
}

/// One key of a Secret under another file name.
pub fn secret_file(name: &str, secret: String, key: &str, path: &str) -> Volume {
    let mut volume = secret_volume(name, secret, &[key]);
    if let Some(item) = volume.secret.as_mut().and_then(|s| s.items.as_mut()).and_then(|i| i.first_mut()) {
        path.clone_into(&mut item.path);
    }
    volume
}

/// Files of a ConfigMap.
pub fn config_volume(name: &str, config_map: String) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map,
            default_mode: Some(0o444),
            items: None,
            optional: None,
        }),
        ..Volume::default()
    }
}

/// Scratch space that ends with the pod.
pub fn scratch_volume(name: &str, limit: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: None, size_limit: Some(Quantity(limit.to_owned())) }),
        ..Volume::default()
    }
}

/// A probe of the admin port.
pub fn http_probe(path: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_s),
        failure_threshold: Some(failures),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

/// A probe that only connects.
pub fn tcp_probe(port: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        tcp_socket: Some(TCPSocketAction { port: IntOrString::String(port.to_owned()), host: None }),
        period_seconds: Some(period_s),
        failure_threshold: Some(failures),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Topology keys with the label that their selector asks for.
    fn keys(settings: &serde_json::Value) -> Vec<(String, String)> {
        let settings = serde_json::from_value(settings.clone()).unwrap();
        let selector = BTreeMap::from([("component".to_owned(), "own".to_owned())]);
        let asked = |c: &TopologySpreadConstraint| c.label_selector.clone().unwrap().match_labels.unwrap();
        spread(&settings, &selector)
            .iter()
            .map(|c| (c.topology_key.clone(), asked(c).into_values().collect::<String>()))
            .collect()
    }

    fn zone(more: &serde_json::Value) -> serde_json::Value {
        let mut zone = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"});
        if !more.is_null() {
            zone["labelSelector"] = more.clone();
        }
        zone
    }

    #[test]
    fn rules_about_zones_count_the_components_own_pods_and_leave_those_about_nodes() {
        let own = |key: &str| (key.to_owned(), "own".to_owned());
        assert_eq!(keys(&json!({})), [own(HOSTNAME)]);
        let zones = json!({"topologySpreadConstraints": [zone(&json!(null))]});
        assert_eq!(keys(&zones), [own("zone"), own(HOSTNAME)]);
        let theirs = json!({"topologySpreadConstraints": [zone(&json!({"matchLabels": {"a": "theirs"}}))]});
        assert_eq!(keys(&theirs)[0].1, "theirs");
        let nodes = json!({"affinity": {"nodeAffinity": {}}});
        assert_eq!(keys(&nodes), [own(HOSTNAME)]);
    }

    #[test]
    fn a_rule_about_nodes_or_other_pods_takes_the_place_of_the_default() {
        let mut by_node = zone(&json!(null));
        by_node["topologyKey"] = HOSTNAME.into();
        by_node["whenUnsatisfiable"] = "DoNotSchedule".into();
        assert_eq!(keys(&json!({"topologySpreadConstraints": [by_node]})).len(), 1);
        assert!(keys(&json!({"affinity": {"podAntiAffinity": {}}})).is_empty());
    }
}
