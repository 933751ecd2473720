//! The rights that the chart grants are those that the operator asks for: none is missing, and none is there for nothing.
//!
//! The table below says what the sources ask for; whoever adds a request adds it here, and to the chart. That nothing is missing from both is
//! checked where the controllers run against an API server (`reconcile`), by the requests that were counted there.

use std::collections::BTreeSet;

use crate::support::rules::{Right, granted, rights};

/// Reading one object before it is applied, and applying it, which takes `create` where it is not there yet.
const APPLY: &str = "get create patch";

/// Group, resources, verbs and where they are asked for.
const ASKED: &[(&str, &str, &str, &str)] = &[
    ("kith.dev", "chatclusters", "list watch", "controllers"),
    ("kith.dev", "chatclusters", "get", "gateway, storageshard, rebalance::controller: the ChatCluster of an object"),
    ("kith.dev", "chatclusters", "patch", "chatcluster, broker_care: annotations that were answered"),
    ("kith.dev", "gateways", "list watch", "stores, clash"),
    ("kith.dev", "storageshards", "get list watch", "stores; observe and shards ask before an order or a removal"),
    ("kith.dev", "storageshards", "create patch delete", "chatcluster::shards, storageshard::set_finalizers"),
    ("kith.dev", "shardrebalances", "list watch create delete", "controllers, rebalance::automatic"),
    ("kith.dev", "shardrebalances", "get", "rebalance::controller::ask"),
    (
        "kith.dev",
        "chatclusters/status storageshards/status gateways/status shardrebalances/status",
        "patch",
        "apply::status",
    ),
    ("kith.dev", "chatclusters/finalizers storageshards/finalizers gateways/finalizers", "update", "owner references"),
    ("apps", "statefulsets deployments", "list watch", "stores"),
    ("apps", "statefulsets deployments", APPLY, "storageshard, chatcluster::eventlog, chatcluster::layers, gateway"),
    ("apps", "deployments", "delete", "gateway: a listener that was switched off"),
    ("", "configmaps secrets services", "list watch", "stores"),
    ("", "configmaps secrets services serviceaccounts", APPLY, "chatcluster, gateway"),
    ("", "serviceaccounts", "list watch", "stores"),
    ("", "services", "delete", "gateway, chatcluster::eventlog: what is not exposed any more"),
    ("", "configmaps", "delete", "chatcluster::former"),
    ("policy", "poddisruptionbudgets", "list watch delete", "stores, gateway"),
    ("policy", "poddisruptionbudgets", APPLY, "storageshard, chatcluster, gateway"),
    ("networking.k8s.io", "networkpolicies ingresses", "list watch delete", "stores, chatcluster::base, gateway"),
    ("networking.k8s.io", "networkpolicies ingresses", APPLY, "chatcluster::base, gateway"),
    ("gateway.networking.k8s.io", "httproutes", "delete", "gateway"),
    ("gateway.networking.k8s.io", "httproutes", APPLY, "gateway"),
    ("autoscaling", "horizontalpodautoscalers", "list watch delete", "stores, gateway"),
    ("autoscaling", "horizontalpodautoscalers", APPLY, "gateway"),
    ("", "pods", "get list watch delete", "stores, chatcluster::upkeep"),
    ("", "pods/status", "patch", "chatcluster::broker_care"),
    ("", "persistentvolumeclaims", "get list watch patch delete", "stores, volumes::grow, chatcluster::upkeep"),
    ("events.k8s.io", "events", "create", "events"),
    ("", "events", "list", "refusal"),
];

/// The same, of what belongs to no namespace or to the operator's own.
const ASKED_OF_THE_CLUSTER: &[(&str, &str, &str, &str)] = &[
    ("", "nodes", "list", "chatcluster::upkeep"),
    ("", "persistentvolumes", "get", "chatcluster::upkeep"),
    ("rbac.authorization.k8s.io", "clusterroles", "list", "lease::look_around"),
    ("coordination.k8s.io", "leases", "get", "lease::look_around"),
    ("coordination.k8s.io", "leases", "create update patch", "lease"),
    ("events.k8s.io", "events", "create", "events, for lease::notice"),
];

fn asked(table: &[(&str, &str, &str, &str)]) -> BTreeSet<Right> {
    let split = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    table
        .iter()
        .flat_map(|(group, resources, verbs, _)| rights(&[(*group).to_owned()], &split(resources), &split(verbs)))
        .collect()
}

#[test]
fn the_chart_grants_what_the_operator_asks_for_and_nothing_else() {
    let granted = granted();
    for (place, table, granted) in [
        ("where ChatClusters live", ASKED, granted.namespaced),
        ("in the cluster and the operator's own namespace", ASKED_OF_THE_CLUSTER, granted.cluster),
    ] {
        let asked = asked(table);
        let missing: Vec<&Right> = asked.difference(&granted).collect();
        let idle: Vec<&Right> = granted.difference(&asked).collect();
        assert!(missing.is_empty(), "{place} the chart does not grant {missing:?}");
        assert!(idle.is_empty(), "{place} the chart grants what nobody asks for: {idle:?}");
    }
}
