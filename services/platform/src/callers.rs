//! Who may call what inside a ChatCluster.
//!
//! The table lists what is allowed: a method that is not in it may be called by nobody. ImBusiness is not a matter of this list, since
//! business lines call it and its handlers tell them apart.

use crate::{Rpc, Service};

/// How the operator calls itself: it asks services for their health.
pub const OPERATOR: &str = "operator";

/// What everyone with a certificate of the platform may ask of every service: whether it lives, and what it is.
pub const METHODS_OF_ALL: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];

/// Whether the component may call the method at `path` (`/<package>.<Service>/<Method>`).
pub fn may_call(component: &str, path: &str) -> bool {
    let caller = Service::called(component);
    if METHODS_OF_ALL.iter().any(|service| path.starts_with(service)) {
        return caller.is_some() || component == OPERATOR;
    }
    let Some((rpc, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else { return false };
    let of_all = Service::ALL.iter().filter_map(|service| service.rpcs()).flatten();
    let named = of_all.filter(|of| of.name == rpc).flat_map(|of| of.methods).find(|(name, _)| *name == method);
    named.zip(caller).is_some_and(|((_, callers), caller)| callers.contains(&caller))
}

impl Rpc {
    /// The package, for example `kith.sessions.v1`.
    pub fn package(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(package, _)| package)
    }
}

impl Service {
    /// Whether it calls a method of `other`, which may be itself: instances look after each other.
    pub fn calls(self, other: Self) -> bool {
        let methods = other.rpcs().into_iter().flatten().flat_map(|rpc| rpc.methods);
        methods.into_iter().any(|(_, callers)| callers.contains(&self))
    }

    /// Who connects to it inside the ChatCluster, in the order of the table: its callers, and its own other instances. Nobody, where it is
    /// no service for others.
    pub fn peers(self) -> impl Iterator<Item = Self> {
        let serves = self.rpcs().is_some();
        Self::ALL.iter().copied().filter(move |peer| serves && (*peer == self || peer.calls(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_go_down_the_layers_or_stay_in_one() {
        for server in Service::ALL {
            for caller in server.peers() {
                let (from, to) = (caller.layer(), server.layer());
                assert!(from >= to, "{} calls {}, which is above it", caller.name(), server.name());
            }
        }
    }

    #[test]
    fn every_method_has_callers_and_stands_once() {
        let mut seen = std::collections::BTreeSet::new();
        for rpc in Service::ALL.iter().filter_map(|service| service.rpcs()).flatten() {
            for (method, callers) in rpc.methods {
                assert!(!callers.is_empty(), "{}/{method}", rpc.name);
                assert!(seen.insert((rpc.name, method)), "{}/{method} is there twice", rpc.name);
            }
        }
    }

    #[test]
    fn what_is_not_listed_may_be_called_by_nobody() {
        assert!(may_call("gateway", "/kith.sessions.v1.Sessions/Attach"));
        for (component, path) in [
            ("api", "/kith.sessions.v1.Sessions/Attach"),
            ("business", "/kith.storage.v1.Peer/Repair"),
            ("gateway", "/kith.storage.v1.Peer/Apply"),
            ("storage", "/kith.storage.v1.Peer/Other"),
            ("storage", "/kith.storage.v1.Peer"),
            ("storage", "/kith.storage.v1.Peer/"),
            ("operator", "/kith.storage.v1.Peer/Apply"),
            ("valkey", "/grpc.health.v1.Health/Check"),
            ("", "/grpc.health.v1.Health/Check"),
            ("storage", ""),
            ("storage", "/"),
        ] {
            assert!(!may_call(component, path), "{component} {path}");
        }
        for component in Service::ALL.iter().map(|service| service.name()).chain([OPERATOR]) {
            assert!(may_call(component, "/grpc.health.v1.Health/Check"), "{component}");
        }
    }

    #[test]
    fn instances_of_a_service_may_connect_to_each_other() {
        let peers = |service: Service| {
            service.peers().filter(|peer| peer.since().is_none()).map(Service::name).collect::<Vec<_>>()
        };
        assert_eq!(peers(Service::Storage), ["storage", "tasks", "sessions", "business", "api", "gateway"]);
        assert_eq!(peers(Service::Sessions), ["tasks", "sessions", "business", "api", "gateway"]);
        assert!(peers(Service::Tasks).is_empty() && peers(Service::Business).is_empty());
    }
}
