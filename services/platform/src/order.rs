//! In which order services are rolled out: layer by layer, and within a layer whoever is called before its callers.

use crate::{Layer, Service};

/// These services in the order of a rollout; those that do not call each other stay as they are given.
pub fn in_order(services: impl IntoIterator<Item = Service>) -> Vec<Service> {
    let mut left: Vec<Service> = services.into_iter().collect();
    left.sort_by_key(|service| service.layer());
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let layer = left[0].layer();
        let waits =
            |one: Service| left.iter().any(|other| *other != one && other.layer() == layer && one.calls(*other));
        let of_layer = left.iter().take_while(|one| one.layer() == layer);
        // Of those that call each other in a circle, the first.
        let next = of_layer.into_iter().position(|one| !waits(*one)).unwrap_or(0);
        order.push(left.remove(next));
    }
    order
}

impl Service {
    /// Whether it stands below the access layer: Gateways follow it in a rollout.
    pub fn is_below_access(self) -> bool {
        self.layer() < Layer::Access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_called_comes_before_its_callers() {
        let order = in_order(Service::ALL.iter().copied());
        assert_eq!(order.len(), Service::ALL.len());
        for (at, caller) in order.iter().enumerate() {
            for later in &order[at + 1..] {
                assert!(caller.layer() <= later.layer());
                assert!(!caller.calls(*later), "{} calls {} and comes first", caller.name(), later.name());
            }
        }
    }

    #[test]
    fn the_order_of_the_first_version_stays() {
        // Gateways compare a hash that is made in this order, across versions of the operator.
        let first = Service::ALL.iter().copied().filter(|s| s.since().is_none() && !s.is_at_gateways());
        let order: Vec<_> = in_order(first).into_iter().map(Service::name).collect();
        assert_eq!(order, ["storage", "sessions", "tasks", "business"]);
    }
}
