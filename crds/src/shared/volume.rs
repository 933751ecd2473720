//! The persistent volume of a stateful pod.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Quantity, default_is_empty_object};

/// The persistent volume of each pod.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)"
)
.message("storageClassName is fixed at creation")
.field_path(".storageClassName"))]
pub struct Volume {
    /// Size of the volume of each pod, for example 10Gi. It can be raised where the storage class allows expansion,
    /// never lowered.
    #[serde(default = "size")]
    #[x_kube(validation = ("!isQuantity(self) || !quantity(self).isLessThan(quantity('128Mi'))", "a volume needs at least 128Mi"))]
    #[x_kube(validation = ("!isQuantity(self) || !isQuantity(oldSelf) || !quantity(self).isLessThan(quantity(oldSelf))", "volumes only grow: size can be raised, never lowered"))]
    pub size: Quantity,
    /// StorageClass of the volume. Omitted: the cluster's default class. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes when the object that owns them is deleted. Retain keeps the claims and all data;
    /// Delete removes both for good.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

default_is_empty_object!(Volume);

fn size() -> Quantity {
    "10Gi".into()
}

/// What becomes of the volumes when their owner is deleted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ReclaimPolicy {
    /// The claims and all data stay.
    #[default]
    Retain,
    /// The claims and all data go.
    Delete,
}
