//! Settings of a component's pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalRef;

/// Settings of a component's pods. What is set here wins over the ChatCluster's `spec.pod`, field by field.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSettings {
    /// CPU and memory of the main container. Omitted: a size that the component chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels that a node must have to run the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Rules about the nodes and the other pods next to which the pods may run. Unless they speak of other pods, pods of the
    /// same component prefer different nodes besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How the pods spread over zones or nodes. A constraint without a labelSelector counts the component's own pods. Unless one of
    /// them has the topologyKey kubernetes.io/hostname, pods of the same component prefer different nodes besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Secrets with the credentials of image registries, in the same namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// Annotations added to the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "x-kubernetes-validations" = [{
        "rule": "self.all(key, !key.startsWith('kith.dev/'))",
        "message": "annotations under kith.dev/ belong to the operator"
    }]))]
    pub annotations: BTreeMap<String, String>,
    /// Labels added to the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "x-kubernetes-validations" = [{
        "rule": "self.all(key, !key.startsWith('kith.dev/') && !key.startsWith('app.kubernetes.io/'))",
        "message": "labels under kith.dev/ and app.kubernetes.io/ belong to the operator"
    }]))]
    pub labels: BTreeMap<String, String>,
}

impl PodSettings {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These settings, and for what they leave out, `fallback`'s. Maps are joined key by key, lists are taken whole.
    #[must_use]
    pub fn or(&self, fallback: &Self) -> Self {
        fn list<T: Clone>(own: &[T], fallback: &[T]) -> Vec<T> {
            if own.is_empty() { fallback.to_vec() } else { own.to_vec() }
        }
        fn map(own: &BTreeMap<String, String>, fallback: &BTreeMap<String, String>) -> BTreeMap<String, String> {
            fallback.iter().chain(own).map(|(k, v)| (k.clone(), v.clone())).collect()
        }
        Self {
            resources: self.resources.clone().or_else(|| fallback.resources.clone()),
            node_selector: map(&self.node_selector, &fallback.node_selector),
            tolerations: list(&self.tolerations, &fallback.tolerations),
            affinity: self.affinity.clone().or_else(|| fallback.affinity.clone()),
            topology_spread_constraints: list(&self.topology_spread_constraints, &fallback.topology_spread_constraints),
            priority_class_name: self.priority_class_name.clone().or_else(|| fallback.priority_class_name.clone()),
            image_pull_secrets: list(&self.image_pull_secrets, &fallback.image_pull_secrets),
            annotations: map(&self.annotations, &fallback.annotations),
            labels: map(&self.labels, &fallback.labels),
        }
    }
}

/// CPU and memory of a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || !isQuantity(string(self.limits[name])) || !isQuantity(string(self.requests[name])) || !quantity(string(self.limits[name])).isLessThan(quantity(string(self.requests[name]))))",
    "a request may not be above its limit"
))]
pub struct Resources {
    /// What the scheduler reserves, for example cpu 500m and memory 1Gi.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: BTreeMap<String, K8sQuantity>,
    /// What the container may use at most. A container above its memory limit is killed, one above its CPU limit slowed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: BTreeMap<String, K8sQuantity>,
}

impl Resources {
    /// The amounts of a component that sets none: `(cpu, memory)` requested, and the memory limit.
    pub fn of(cpu: &str, memory: &str, memory_limit: &str) -> Self {
        let amount = |name: &str, text: &str| (name.to_owned(), K8sQuantity(text.to_owned()));
        Self {
            requests: BTreeMap::from([amount("cpu", cpu), amount("memory", memory)]),
            limits: BTreeMap::from([amount("memory", memory_limit)]),
        }
    }

    /// The memory limit, else the memory request, in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        let text = self.limits.get("memory").or_else(|| self.requests.get("memory"))?;
        super::Quantity(text.0.clone()).to_bytes().ok()
    }

    /// As the container spec has them.
    pub fn to_k8s(&self) -> ResourceRequirements {
        let some = |amounts: &BTreeMap<String, K8sQuantity>| (!amounts.is_empty()).then(|| amounts.clone());
        ResourceRequirements { requests: some(&self.requests), limits: some(&self.limits), claims: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_settings_win_field_by_field() {
        let fallback = PodSettings {
            priority_class_name: Some("low".to_owned()),
            annotations: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "1".to_owned())]),
            image_pull_secrets: vec![LocalRef { name: "registry".to_owned() }],
            ..PodSettings::default()
        };
        let own = PodSettings {
            priority_class_name: Some("high".to_owned()),
            annotations: BTreeMap::from([("b".to_owned(), "2".to_owned())]),
            ..PodSettings::default()
        };
        let merged = own.or(&fallback);
        assert_eq!(merged.priority_class_name.as_deref(), Some("high"));
        assert_eq!(merged.annotations["a"], "1");
        assert_eq!(merged.annotations["b"], "2");
        assert_eq!(merged.image_pull_secrets, fallback.image_pull_secrets);
        assert!(PodSettings::default().is_empty());
        assert!(!merged.is_empty());
    }

    #[test]
    fn memory_is_the_limit_before_the_request() {
        assert_eq!(Resources::of("100m", "1Gi", "2Gi").memory_bytes(), Some(2 << 30));
        assert_eq!(Resources::default().memory_bytes(), None);
    }
}
