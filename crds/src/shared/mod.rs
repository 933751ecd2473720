//! What several kinds share: references, amounts, pod settings, volumes and ways to reach a Service.

mod amount;
mod exposure;
mod pod;
mod volume;

pub use amount::{Duration, InvalidAmount, Quantity};
pub use exposure::{Autoscaling, ExternalTrafficPolicy, ServiceType};
pub use pod::{PodSettings, Resources};
pub use volume::{ReclaimPolicy, Volume};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Implements `Default` as what the API server makes of `{}`, so that a default is written once: at its field.
macro_rules! default_is_empty_object {
    ($($kind:ty),+ $(,)?) => {$(
        impl Default for $kind {
            fn default() -> Self {
                serde_json::from_value(serde_json::json!({})).expect("every field has a default")
            }
        }
    )+};
}
pub(crate) use default_is_empty_object;

/// A reference to another object of the same namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// The name of the object, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A reference to one key of a Secret of the same namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CaSecretRef {
    /// The name of the Secret, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key of the Secret that holds the certificates, in PEM.
    #[serde(default = "ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn ca_key() -> String {
    "ca.crt".to_owned()
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// At every start of a container.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// As the pod spec says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
