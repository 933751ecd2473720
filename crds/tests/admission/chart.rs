//! The operator's chart in the API server: Pod Security, admission policies, rights.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::Failures;
use crate::api::{Api, SETTLES_WITHIN, manifest};
use crate::server::{ApiServer, cache};

const NAMESPACE: &str = "kith-system";

/// The chart's manifests, as Helm renders them with these settings.
fn rendered(settings: &[&str]) -> String {
    let helm = cache().join("bin/helm");
    assert!(helm.exists(), "{} is missing: run e2e/local/deps.sh helm", helm.display());
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kith-operator");
    let mut command = Command::new(helm);
    command.args(["template", "kith-operator"]).arg(chart).args([
        "--namespace",
        NAMESPACE,
        "--api-versions",
        "kith.dev/v1alpha1",
    ]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().expect("helm runs");
    assert!(output.status.success(), "helm template {settings:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .filter(|document| !document.is_null())
        .collect()
}

/// The chart is accepted in a namespace that enforces the restricted level, and so is the pod that its Deployment makes.
pub(crate) fn installs_and_passes_pod_security(server: &ApiServer, failures: &mut Failures) {
    server.kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    server
        .kubectl(&["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"])
        .expect("a label");
    let yaml = rendered(&[]);
    let file = server.file("operator.yaml", &yaml);
    let outcome = server.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &file]);
    failures.expect("kith-operator", outcome.is_ok(), outcome.err().unwrap_or_default());

    let deployment = documents(&yaml).into_iter().find(|object| object["kind"] == "Deployment").expect("a Deployment");
    failures.expect("two replicas", deployment["spec"]["replicas"] == 2, &deployment["spec"]["replicas"]);
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("operator");
    pod["metadata"]["namespace"] = json!(NAMESPACE);
    let file = server.file("pod.json", &pod.to_string());
    let outcome = server.kubectl(&["create", "--dry-run=server", "-f", &file]);
    failures.expect(
        "the operator's pod under the restricted level",
        outcome.is_ok(),
        outcome.err().unwrap_or_default(),
    );

    let everything = rendered(&["metrics.serviceMonitor.enabled=true", "watchNamespaces={one,two}", "affinity.a=b"]);
    failures.expect("ServiceMonitor", everything.contains("kind: ServiceMonitor"), "is not rendered");
}

/// Shards that own slots cannot be deleted by hand, and approvals name their proposal.
pub(crate) async fn policies_protect_shards_and_rebalances(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let bound = server.kubectl(&["create", "clusterrolebinding", "jane", "--clusterrole=cluster-admin", "--user=jane"]);
    bound.expect("a binding");
    shard_deletion(server, admin, failures).await;
    rebalance_commands(server, admin, failures).await;
}

async fn shard_deletion(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let jane = Api::as_user(server, "jane");
    let shard = manifest("StorageShard", "demo-0", "{clusterRef: {name: demo}, index: 0}");
    let full = json!({"status": {"slots": 5461}});
    failures.expect_acceptance("shard", admin.create(&shard).await);
    failures.expect_acceptance("shard", admin.merge(&shard, Some("status"), &full).await);

    // Roles and policies take a moment to be in force: until then deletions are refused by the wrong one, or pass.
    let end = Instant::now() + SETTLES_WITHIN;
    let refused = loop {
        let outcome = jane.delete(&shard).await;
        let by_policy = outcome.as_ref().is_err_and(|text| text.contains("ValidatingAdmissionPolicy"));
        if by_policy || Instant::now() > end {
            break outcome;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        if outcome.is_ok() {
            failures.expect_acceptance("shard", admin.create(&shard).await);
            failures.expect_acceptance("shard", admin.merge(&shard, Some("status"), &full).await);
        }
    };
    let says = ["StorageShard demo-0 owns 5461 slots", "Lower spec.storage.shards"];
    failures.expect_refusal("a shard with slots deleted by hand", &refused, &says);
    failures.expect_refusal(
        "all shards deleted by hand",
        &jane.delete_all("storageshards").await,
        &["owns 5461 slots"],
    );
    failures.expect_refusal(
        "a shard with slots deleted by an administrator",
        &admin.delete(&shard).await,
        &["owns 5461 slots"],
    );

    for user in ["operator", "collector", "terminator"] {
        let exempt = Api::as_user(server, user);
        failures.expect_acceptance(&format!("a shard with slots deleted as {user}"), exempt.delete(&shard).await);
        failures.expect_acceptance("shard", admin.create(&shard).await);
        failures.expect_acceptance("shard", admin.merge(&shard, Some("status"), &full).await);
    }
    failures.expect_acceptance("empty", admin.merge(&shard, Some("status"), &json!({"status": {"slots": 0}})).await);
    failures.expect_acceptance("an empty shard deleted by hand", jane.delete(&shard).await);
    failures.expect_acceptance("shard", admin.create(&shard).await);
    failures.expect_acceptance("a shard without status deleted by hand", jane.delete(&shard).await);
}

async fn rebalance_commands(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let jane = Api::as_user(server, "jane");
    let rebalance = manifest("ShardRebalance", "spread", "{clusterRef: {name: demo}}");
    let order = |text: &str| json!({"metadata": {"annotations": {"kith.dev/rebalance": text}}});
    failures.expect_acceptance("rebalance", admin.create(&rebalance).await);
    let end = Instant::now() + SETTLES_WITHIN;
    let early = loop {
        let outcome = jane.merge(&rebalance, None, &order("approve=p-1")).await;
        if outcome.is_err() || Instant::now() > end {
            break outcome;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let nothing = json!({"metadata": {"annotations": null}});
        failures.expect_acceptance("rebalance", admin.merge(&rebalance, None, &nothing).await);
    };
    failures.expect_refusal("an approval before there is a proposal", &early, &["there is no proposal to approve yet"]);

    let proposal = json!({"status": {"phase": "ProposalReady", "proposal": {"id": "p-2", "createdAt": "2026-01-01T00:00:00Z",
        "partitions": 1, "bytes": 1, "eta": "1s", "imbalanceBeforePercent": 50, "imbalanceAfterPercent": 1, "shards": [], "moves": []}}});
    failures.expect_acceptance("proposal", admin.merge(&rebalance, Some("status"), &proposal).await);
    for (text, says) in [
        ("approve", "must be approve=PROPOSAL-ID, refresh or stop, not 'approve'; the proposal is p-2"),
        ("approve=", "the proposal to approve is p-2"),
        ("approve=p-1", "the proposal to approve is p-2"),
        ("go", "must be approve=PROPOSAL-ID, refresh or stop, not 'go'"),
    ] {
        let outcome = jane.merge(&rebalance, None, &order(text)).await;
        failures.expect_refusal(&format!("the order {text:?}"), &outcome, &[says]);
    }
    for text in ["approve=p-2", "stop", "refresh", "approve=p-2"] {
        failures.expect_acceptance(&format!("the order {text:?}"), jane.merge(&rebalance, None, &order(text)).await);
    }
    // A newer proposal does not make the old order an obstacle to other changes.
    let newer = json!({"status": {"proposal": {"id": "p-3"}}});
    failures.expect_acceptance("proposal", admin.merge(&rebalance, Some("status"), &newer).await);
    let outcome = jane.merge(&rebalance, None, &json!({"spec": {"imbalancePercent": 10}})).await;
    failures.expect_acceptance("a change beside an old order", outcome);
    failures.expect_acceptance("rebalance", admin.delete(&rebalance).await);
}

/// The operator may do what it does and nothing else.
pub(crate) async fn rights_are_the_least(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let may = [
        ("patch", "kith.dev", "chatclusters/status", "chat"),
        ("update", "kith.dev", "chatclusters/finalizers", "chat"),
        ("create", "kith.dev", "storageshards", "chat"),
        ("delete", "kith.dev", "shardrebalances", "chat"),
        ("create", "apps", "statefulsets", "chat"),
        ("delete", "", "secrets", "chat"),
        ("create", "", "pods/eviction", "chat"),
        ("patch", "", "pods/status", "chat"),
        ("delete", "", "persistentvolumeclaims", "chat"),
        ("patch", "gateway.networking.k8s.io", "httproutes", "chat"),
        ("create", "events.k8s.io", "events", "chat"),
        ("watch", "", "nodes", ""),
        ("update", "coordination.k8s.io", "leases", NAMESPACE),
    ];
    let may_not = [
        ("delete", "kith.dev", "chatclusters", "chat"),
        ("create", "kith.dev", "gateways", "chat"),
        ("create", "", "pods", "chat"),
        ("create", "", "pods/exec", "chat"),
        ("update", "", "pods/status", "chat"),
        ("create", "", "persistentvolumeclaims", "chat"),
        ("patch", "", "nodes", ""),
        ("delete", "", "namespaces", ""),
        ("delete", "", "persistentvolumes", ""),
        ("create", "rbac.authorization.k8s.io", "roles", "chat"),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
        ("patch", "apiextensions.k8s.io", "customresourcedefinitions", ""),
        ("update", "coordination.k8s.io", "leases", "chat"),
        ("impersonate", "", "users", ""),
    ];
    for (verb, group, resource, namespace) in may {
        let answer = admin.operator_may(verb, group, resource, namespace).await;
        failures.expect("rights", answer, format!("the operator may not {verb} {resource} in {namespace:?}"));
    }
    for (verb, group, resource, namespace) in may_not {
        let answer = admin.operator_may(verb, group, resource, namespace).await;
        failures.expect("rights", !answer, format!("the operator may {verb} {resource} in {namespace:?}"));
    }
    namespaced_mode(server, admin, failures).await;
}

/// With `watchNamespaces` the operator reads nodes and namespaces everywhere and does the rest in those namespaces alone.
async fn namespaced_mode(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let file = server.file("namespaced.yaml", &rendered(&["watchNamespaces={chat}"]));
    let outcome = server.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]);
    failures.expect("namespaced mode", outcome.is_ok(), outcome.err().unwrap_or_default());
    for (verb, group, resource, namespace, expected) in [
        ("create", "", "secrets", "chat", true),
        ("create", "", "secrets", "kith-demo", false),
        ("list", "", "secrets", "", false),
        ("list", "", "nodes", "", true),
        ("update", "coordination.k8s.io", "leases", NAMESPACE, true),
    ] {
        // Changed roles take a moment to be in force.
        let end = Instant::now() + SETTLES_WITHIN;
        while admin.operator_may(verb, group, resource, namespace).await != expected && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let answer = admin.operator_may(verb, group, resource, namespace).await;
        failures.expect("namespaced mode", answer == expected, format!("{verb} {resource} in {namespace:?}: {answer}"));
    }
}
