//! How many processes of each service run on this machine.

use std::collections::BTreeMap;

use kith_platform::Service;

/// How many processes run of each service.
#[derive(Debug, Clone)]
pub struct Instances(BTreeMap<Service, usize>);

impl Default for Instances {
    /// One of each, and two that share the partitions.
    fn default() -> Self {
        Self(Service::ALL.iter().map(|service| (*service, 1)).collect()).with(Service::Storage, 2)
    }
}

impl Instances {
    /// Nothing runs.
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// The same with so many processes of this service.
    #[must_use]
    pub fn with(mut self, service: Service, count: usize) -> Self {
        self.0.insert(service, count);
        self
    }

    /// The same without a process of the access layer: nobody comes in.
    #[must_use]
    pub fn closed(mut self) -> Self {
        self.0.retain(|service, _| service.is_below_access());
        self
    }

    /// Processes of this service.
    pub fn of(&self, service: Service) -> usize {
        self.0.get(&service).copied().unwrap_or(0)
    }
}
