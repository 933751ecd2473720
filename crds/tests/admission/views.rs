//! What people see: definitions, examples, `kubectl get`, `explain` and `scale`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Failures;
use crate::api::{Api, SETTLES_WITHIN, manifest};
use crate::server::ApiServer;

/// kubectl keeps a copy of what it applies in an annotation of at most 262,144 bytes.
const CLIENT_SIDE_APPLY_BYTES_MAX: usize = 262_144;

/// The API server finds nothing to complain about, and the definitions fit into a client-side apply.
pub(crate) async fn definitions_are_clean(api: &Api, failures: &mut Failures) {
    let end = Instant::now() + SETTLES_WITHIN;
    for plural in ["chatclusters", "storageshards", "gateways", "shardrebalances"] {
        // `Established` comes a moment after the names are accepted.
        let bad = loop {
            let definition = api.definition(plural).await;
            let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
            let bad = conditions.into_iter().find(|c| (c.type_ == "NonStructuralSchema") == (c.status == "True"));
            if bad.is_none() || Instant::now() > end {
                break bad;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        failures.expect(plural, bad.is_none(), format!("{bad:?}"));
    }
    for crd in kith_crds::generate::crds() {
        let bytes = serde_json::to_vec(&crd).expect("JSON").len();
        let name = crd.metadata.name.unwrap_or_default();
        failures.expect(
            &name,
            bytes < CLIENT_SIDE_APPLY_BYTES_MAX,
            format!("{bytes} bytes are too many for kubectl apply"),
        );
    }
}

/// Everything in `examples/` is accepted as it stands.
pub(crate) fn examples_are_accepted(server: &ApiServer, failures: &mut Failures) {
    for namespace in ["kith-demo", "chat"] {
        server.kubectl(&["create", "namespace", namespace]).expect("a namespace");
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("examples") {
        let path = entry.expect("a file").path().display().to_string();
        let outcome = server.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", &path]);
        failures.expect(&path, outcome.is_ok(), outcome.err().unwrap_or_default());
        seen += 1;
    }
    failures.expect("examples", seen >= 4, format!("{seen} files"));
}

/// `kubectl get kith` tells whether it is fine, how big it is and where to connect; `explain` explains; `scale` scales.
pub(crate) async fn people_see_the_state_at_a_glance(server: &ApiServer, api: &Api, failures: &mut Failures) {
    let cluster = manifest("ChatCluster", "glance", "{storage: {shards: 3}}");
    let shard = manifest("StorageShard", "glance-0", "{clusterRef: {name: glance}, index: 0}");
    let gateway = manifest("Gateway", "edge", "{clusterRef: {name: glance}}");
    let rebalance = manifest("ShardRebalance", "spread", "{clusterRef: {name: glance}}");
    for object in [&cluster, &shard, &gateway, &rebalance] {
        failures.expect_acceptance("glance", api.create(object).await);
    }
    let ready = json!([{"type": "Ready", "status": "True", "reason": "AllReady", "message": "All is well.",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]);
    let statuses = [
        (
            &cluster,
            json!({"conditions": ready, "version": "0.1.0", "storage": {"shards": 3, "readyShards": 2},
            "endpoints": {"api": "http://192.0.2.1:30080"}}),
        ),
        (&shard, json!({"conditions": ready, "primary": "glance-0-valkey-1", "slots": 5461, "readyMembers": 3})),
        (&gateway, json!({"conditions": ready, "addresses": {"websocket": "ws://192.0.2.1:30081/v1/connect"}})),
        (
            &rebalance,
            json!({"phase": "Rebalancing", "progress": {"proposalId": "p-1", "startedAt": "2026-01-01T00:00:00Z",
            "movedPartitions": 17, "movedBytes": 1}}),
        ),
    ];
    for (object, status) in statuses {
        failures.expect_acceptance("status", api.merge(object, Some("status"), &json!({"status": status})).await);
    }
    let table = server.kubectl(&["get", "kith"]).unwrap_or_else(|error| error);
    let words = [
        "READY",
        "AllReady",
        "SHARDS",
        "0.1.0",
        "http://192.0.2.1:30080",
        "glance-0-valkey-1",
        "5461",
        "ws://192.0.2.1:30081",
        "Rebalancing",
        "17",
    ];
    for word in words {
        failures.expect("kubectl get kith", table.contains(word), format!("does not show {word}:\n{table}"));
    }
    for short in ["kcc/glance", "kss/glance-0", "kgw/edge", "ksr/spread"] {
        failures.expect(short, server.kubectl(&["get", short]).is_ok(), "the short name is not known");
    }
    let waited = server.kubectl(&["wait", "--for=condition=Ready", "--timeout=1s", "kcc/glance"]);
    failures.expect("kubectl wait", waited.is_ok(), format!("{waited:?}"));

    let scaled = server.kubectl(&["scale", "chatcluster/glance", "--replicas=5"]);
    failures.expect("kubectl scale", scaled.is_ok(), format!("{scaled:?}"));
    let shards = server.kubectl(&["get", "kcc", "glance", "-o", "jsonpath={.spec.storage.shards}"]).unwrap_or_default();
    failures.expect("kubectl scale", shards == "5", &shards);
    let too_far = server.kubectl(&["scale", "chatcluster/glance", "--replicas=1000"]).map(|_| json!(null));
    failures.expect_refusal("kubectl scale too far", &too_far, &["less than or equal to 128"]);

    explains(server, failures);
    for object in [&cluster, &shard, &gateway, &rebalance] {
        failures.expect_acceptance("glance", api.delete(object).await);
    }
}

fn explains(server: &ApiServer, failures: &mut Failures) {
    let text = server.kubectl(&["explain", "chatcluster.spec", "--recursive=false"]).unwrap_or_else(|error| error);
    for field in ["storage", "eventLog", "services", "auth", "version"] {
        failures.expect("kubectl explain", text.contains(field), format!("does not show {field}:\n{text}"));
    }
    let text = server.kubectl(&["explain", "chatcluster.spec.storage.durability"]).unwrap_or_else(|error| error);
    for words in ["reaches the primary's disk", "Number of replicas that must hold a write", "refuse", "accept"] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        failures.expect("kubectl explain", flat.contains(words), format!("does not say {words}:\n{text}"));
    }
}
