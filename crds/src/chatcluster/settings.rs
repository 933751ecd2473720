//! What a ChatCluster's spec says of its services. Written by `cargo servicegen` from `services/platform`: change it there.

use kith_platform::Service;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::services::{BusinessSpec, ServiceSpec};
use crate::shared::{PodSettings, default_is_empty_object};

/// The services between the layers.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServicesSpec {
    /// `storage`: the only service that reads and writes chat data. Its pods share the partitions among them.
    #[serde(default)]
    pub storage: ServiceSpec,
    /// `tasks`: delivers what the event log tells to those who are online, and what a device missed when it logs in.
    #[serde(default)]
    pub tasks: ServiceSpec,
    /// `sessions`: knows who is online where.
    #[serde(default)]
    pub sessions: ServiceSpec,
    /// `business`: ImBusiness, the endpoint of business lines.
    #[serde(default)]
    pub business: BusinessSpec,
}

default_is_empty_object!(ServicesSpec);

impl ServicesSpec {
    /// The number of a service's pods, and their settings; none for what Gateways run.
    pub fn of(&self, service: Service) -> Option<(u32, &PodSettings)> {
        match service {
            Service::Storage => Some((self.storage.replicas, &self.storage.pod)),
            Service::Tasks => Some((self.tasks.replicas, &self.tasks.pod)),
            Service::Sessions => Some((self.sessions.replicas, &self.sessions.pod)),
            Service::Business => Some((self.business.replicas, &self.business.pod)),
            Service::Api | Service::Gateway => None,
        }
    }
}
