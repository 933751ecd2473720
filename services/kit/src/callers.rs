//! Who may call what inside a ChatCluster: the one table of the methods of internal services and of the components that call them.
//!
//! It is a list of what is allowed: a method that is not in it may be called by nobody. ImBusiness is not in it, since business lines call
//! it and its handlers tell them apart.

/// The components of a ChatCluster that have a certificate, and the operator.
pub const COMPONENTS: [&str; 7] = ["storage", "sessions", "tasks", "api", "gateway", "business", "operator"];

/// Those through which messages come in.
const DOORWAYS: &[&str] = &["api", "gateway", "business"];
/// Those that serve users or lines on request.
const REQUESTS: &[&str] = &["api", "business"];
const STORAGE: &[&str] = &["storage"];

/// What every component may ask of every other: whether it lives, and what it is.
const COMMON: &[&str] = &["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/"];

/// Methods of a service, and who calls each.
type Rows = &'static [(&'static str, &'static [&'static str])];

/// Services, their methods, and who calls them.
const TABLE: &[(&str, Rows)] = &[
    (
        "/kith.storage.v1.Messages/",
        &[
            ("Append", DOORWAYS),
            ("AppendStream", DOORWAYS),
            ("ListMessages", REQUESTS),
            ("ListAfter", &["api", "gateway", "business", "tasks"]),
            ("Recall", REQUESTS),
            ("Edit", &["api"]),
            ("React", &["api"]),
        ],
    ),
    (
        "/kith.storage.v1.Conversations/",
        &[
            ("OpenDirect", DOORWAYS),
            ("CreateConversation", REQUESTS),
            ("UpdateConversation", REQUESTS),
            ("Dissolve", REQUESTS),
            ("GetConversations", &["api", "gateway", "business", "tasks"]),
            ("ListConversations", REQUESTS),
            ("SetListEntry", &["api"]),
            ("Clear", &["api"]),
            ("MarkRead", &["api"]),
            ("Ack", &["api", "gateway", "sessions"]),
            ("ListBehind", &["api", "gateway", "tasks"]),
            ("GetReceipts", &["api"]),
            // Whether a record of the event log can be one of storage's.
            ("GetVersion", &["tasks"]),
            ("AddMembers", REQUESTS),
            ("RemoveMembers", REQUESTS),
            ("UpdateMember", REQUESTS),
            ("ListMembers", &["api", "gateway", "business", "tasks"]),
        ],
    ),
    (
        "/kith.storage.v1.Users/",
        &[
            ("UpsertUsers", REQUESTS),
            ("GetUsers", &["api", "gateway", "business", "tasks"]),
            ("ListFriends", &["api", "tasks"]),
            ("PutFriend", &["api"]),
            ("DeleteFriend", &["api"]),
            ("RequestFriend", &["api"]),
            ("ListFriendRequests", &["api"]),
            ("AnswerFriendRequest", &["api"]),
            ("SetBlock", &["api"]),
            ("ListBlocks", &["api"]),
            ("PutDevice", &["api", "business", "sessions"]),
            ("ListDevices", REQUESTS),
            ("DeleteDevice", &["api"]),
            ("RevokeTokens", REQUESTS),
            ("GetRevocation", DOORWAYS),
        ],
    ),
    // `kith repair` runs in a storage pod and shows that pod's certificate.
    (
        "/kith.storage.v1.Peer/",
        &[("Leaving", STORAGE), ("Partitions", STORAGE), ("Apply", STORAGE), ("Repair", STORAGE)],
    ),
    (
        "/kith.sessions.v1.Sessions/",
        &[
            ("Attach", &["gateway"]),
            // Typing goes from gateway to gateway without being stored.
            ("Deliver", &["tasks", "gateway"]),
            ("QueryPresence", REQUESTS),
            ("Kick", REQUESTS),
            ("Ack", &["api", "gateway"]),
        ],
    ),
];

/// Whether the component may call the method at `path` (`/<package>.<Service>/<Method>`).
pub fn may_call(component: &str, path: &str) -> bool {
    if COMMON.iter().any(|service| path.starts_with(service)) {
        return COMPONENTS.contains(&component);
    }
    let of_service = TABLE.iter().find_map(|(service, methods)| Some((path.strip_prefix(service)?, methods)));
    of_service.is_some_and(|(method, methods)| {
        methods.iter().any(|(name, callers)| *name == method && callers.contains(&component))
    })
}

/// The components that call a method of this package (`kith.storage.v1`), in the order of [`COMPONENTS`]; network policies are made of it.
pub fn of_package(package: &str) -> Vec<&'static str> {
    let of_it =
        |service: &str| service.strip_prefix('/').and_then(|s| s.rsplit_once('.')).is_some_and(|(p, _)| p == package);
    let rows = || TABLE.iter().filter(|(service, _)| of_it(service)).flat_map(|(_, methods)| methods.iter());
    COMPONENTS.into_iter().filter(|component| rows().any(|(_, callers)| callers.contains(component))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    #[test]
    fn every_internal_method_has_callers_and_the_table_names_no_other() {
        let set = prost_types::FileDescriptorSet::decode(kith_proto::DESCRIPTORS).unwrap();
        let mut declared = BTreeSet::new();
        for file in &set.file {
            for service in file.service.iter().filter(|s| s.name() != "ImBusiness") {
                let prefix = format!("/{}.{}/", file.package(), service.name());
                declared.extend(service.method.iter().map(|m| format!("{prefix}{}", m.name())));
            }
        }
        let listed: BTreeSet<_> = TABLE
            .iter()
            .flat_map(|(service, methods)| methods.iter().map(move |(m, _)| format!("{service}{m}")))
            .collect();
        assert_eq!(listed, declared);
        for (method, callers) in TABLE.iter().flat_map(|(_, methods)| methods.iter()) {
            assert!(!callers.is_empty() && callers.iter().all(|c| COMPONENTS.contains(c)), "{method}");
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
            ("valkey", "/grpc.health.v1.Health/Check"),
            ("", "/grpc.health.v1.Health/Check"),
            ("storage", ""),
        ] {
            assert!(!may_call(component, path), "{component} {path}");
        }
        for component in COMPONENTS {
            assert!(may_call(component, "/grpc.health.v1.Health/Check"), "{component}");
        }
    }
}
