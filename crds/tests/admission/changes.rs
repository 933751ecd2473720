//! Changes of existing objects: what may change, and what is fixed.

use crate::Failures;
use crate::api::{Api, manifest};

/// Kind, spec before, spec after, words of the refusal.
const BAD: [(&str, &str, &str, &[&str]); 24] = [
    ("ChatCluster", "{}", "{storage: {partitions: 512}}", &["partitions is fixed at creation"]),
    ("ChatCluster", "{}", "{eventLog: {partitions: 64}}", &["eventLog.partitions is fixed at creation"]),
    ("ChatCluster", "{}", "{clusterName: other}", &["spec.clusterName", "clusterName is fixed at creation"]),
    ("ChatCluster", "{clusterName: other}", "{}", &["spec.clusterName", "clusterName is fixed at creation"]),
    (
        "ChatCluster",
        "{}",
        "{eventLog: {external: {bootstrapServers: ['a:9092']}}}",
        &["cannot change between managed and external"],
    ),
    (
        "ChatCluster",
        "{eventLog: {external: {bootstrapServers: ['a:9092']}}}",
        "{eventLog: {managed: {}}}",
        &["cannot change between"],
    ),
    ("ChatCluster", "{eventLog: {external: {bootstrapServers: ['a:9092']}}}", "{}", &["cannot change between"]),
    ("ChatCluster", "{}", "{eventLog: {managed: {brokers: 1}}}", &["managed.brokers is fixed at creation"]),
    (
        "ChatCluster",
        "{eventLog: {external: {bootstrapServers: ['a:9092']}}}",
        "{eventLog: {external: {bootstrapServers: ['a:9092'], replicationFactor: 5}}}",
        &["external.replicationFactor is fixed at creation"],
    ),
    ("ChatCluster", "{eventLog: {managed: {brokers: 1}}}", "{}", &["managed.brokers is fixed at creation"]),
    ("ChatCluster", "{eventLog: {managed: {volume: {size: 50Gi}}}}", "{}", &["volumes only grow"]),
    ("ChatCluster", "{}", "{eventLog: {managed: {volume: {size: 5Gi}}}}", &["volumes only grow"]),
    ("ChatCluster", "{eventLog: {managed: {volume: {storageClassName: fast}}}}", "{}", &["is fixed at creation"]),
    ("ChatCluster", "{}", "{eventLog: {managed: {volume: {storageClassName: fast}}}}", &["is fixed at creation"]),
    ("ChatCluster", "{storage: {volume: {size: 10Gi}}}", "{storage: {volume: {size: 9Gi}}}", &["volumes only grow"]),
    ("ChatCluster", "{storage: {volume: {size: 10Gi}}}", "{storage: {volume: {size: 10G}}}", &["volumes only grow"]),
    ("ChatCluster", "{}", "{storage: {volume: {storageClassName: fast}}}", &["storageClassName is fixed"]),
    ("ChatCluster", "{storage: {volume: {storageClassName: fast}}}", "{}", &["storageClassName is fixed"]),
    (
        "ChatCluster",
        "{}",
        "{restoreFrom: {clusterUid: 0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11}}",
        &["restoreFrom is fixed at creation"],
    ),
    (
        "StorageShard",
        "{clusterRef: {name: demo}}",
        "{clusterRef: {name: other}}",
        &["never moves to another ChatCluster"],
    ),
    (
        "StorageShard",
        "{clusterRef: {name: demo}, index: 1}",
        "{clusterRef: {name: demo}, index: 2}",
        &["index is fixed"],
    ),
    ("StorageShard", "{clusterRef: {name: demo}}", "{clusterRef: {name: demo}, index: 2}", &["index is fixed"]),
    ("Gateway", "{clusterRef: {name: demo}}", "{clusterRef: {name: other}}", &["create another Gateway"]),
    ("ShardRebalance", "{clusterRef: {name: demo}}", "{clusterRef: {name: other}}", &["create another ShardRebalance"]),
];

/// Kind, spec before, spec after.
const GOOD: [(&str, &str, &str); 8] = [
    ("ChatCluster", "{}", "{storage: {shards: 5}}"),
    ("ChatCluster", "{storage: {shards: 5}}", "{storage: {shards: 2, replicas: 1}}"),
    ("ChatCluster", "{}", "{version: 0.2.0}"),
    ("ChatCluster", "{}", "{clusterName: subject}"),
    ("ChatCluster", "{}", "{eventLog: {managed: {brokers: 3, volume: {size: 50Gi}}}}"),
    ("ChatCluster", "{storage: {volume: {size: 10Gi}}}", "{storage: {volume: {size: 11Gi}}}"),
    ("StorageShard", "{clusterRef: {name: demo}}", "{clusterRef: {name: demo}, weight: 200, draining: true}"),
    ("Gateway", "{clusterRef: {name: demo}}", "{clusterRef: {name: demo}, api: {replicas: 4}}"),
];

/// What is fixed stays, and the refusal says so.
pub(crate) async fn bad_ones_are_refused(api: &Api, failures: &mut Failures) {
    for (kind, before, after, says) in BAD {
        let case = format!("change of {kind} from {before} to {after}");
        let outcome = change(api, kind, before, after, failures, &case).await;
        failures.expect_refusal(&case, &outcome, says);
    }
}

/// What may change, can.
pub(crate) async fn good_ones_are_accepted(api: &Api, failures: &mut Failures) {
    for (kind, before, after) in GOOD {
        let case = format!("change of {kind} from {before} to {after}");
        let outcome = change(api, kind, before, after, failures, &case).await;
        failures.expect_acceptance(&case, outcome);
    }
}

async fn change(
    api: &Api,
    kind: &str,
    before: &str,
    after: &str,
    failures: &mut Failures,
    case: &str,
) -> Result<serde_json::Value, String> {
    let old = manifest(kind, "subject", before);
    failures.expect_acceptance(case, api.create(&old).await);
    let outcome = api.replace(&manifest(kind, "subject", after), true).await;
    failures.expect_acceptance(case, api.delete(&old).await);
    outcome
}
