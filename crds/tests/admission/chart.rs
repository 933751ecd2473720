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

/// What is installed of the chart, as Helm renders it with these settings.
fn rendered(settings: &[&str]) -> String {
    template("kith-operator", settings, &["--no-hooks"])
}

/// What Helm renders for a release of this name: what is made at its end too, unless `flags` leave it out.
fn template(release: &str, settings: &[&str], flags: &[&str]) -> String {
    let helm = cache().join("bin/helm");
    assert!(helm.exists(), "{} is missing: run e2e/local/deps.sh helm", helm.display());
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kith-operator");
    let mut command = Command::new(helm);
    command.args(["template", release]).arg(chart).args(flags).args([
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
    let everything = documents(&template("kith-operator", &[], &[]));
    let job = everything.iter().find(|object| object["kind"] == "Job").expect("a Job for the end");
    // Hooks are made when their time comes; here so that the pod of one can be judged.
    let account = job["spec"]["template"]["spec"]["serviceAccountName"].as_str().expect("an account");
    server.kubectl(&["create", "serviceaccount", account, "--namespace", NAMESPACE]).expect("a service account");
    for (name, owner) in [("operator", &deployment), ("uninstall", job)] {
        let mut pod = owner["spec"]["template"].clone();
        let security = &pod["spec"]["securityContext"];
        failures.expect(name, security["runAsNonRoot"] == true && security["runAsUser"].is_null(), "names a user");
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        let file = server.file("pod.json", &pod.to_string());
        let outcome = server.kubectl(&["create", "--dry-run=server", "-f", &file]);
        let case = format!("the pod of {name} under the restricted level");
        failures.expect(&case, outcome.is_ok(), outcome.err().unwrap_or_default());
    }
    names_say_nothing_twice(failures);
    hooks_make_nothing_that_is_taken_for_the_operator(&everything, failures);

    let everything = rendered(&["metrics.serviceMonitor.enabled=true", "watchNamespaces={one,two}", "affinity.a=b"]);
    failures.expect("ServiceMonitor", everything.contains("kind: ServiceMonitor"), "is not rendered");
}

/// The Deployment's name by the release's; releases in several namespaces are in each other's way only where they look after all.
fn names_say_nothing_twice(failures: &mut Failures) {
    let of = |release: &str, settings: &[&str], kind: &str| {
        let objects = documents(&template(release, settings, &["--no-hooks"]));
        let object = objects.into_iter().find(|object| object["kind"] == kind).expect("the object");
        object["metadata"].clone()
    };
    let none: &[&str] = &[];
    for (release, settings, expected) in [
        ("kith", none, "kith-operator"),
        ("kith-operator", none, "kith-operator"),
        ("my-kith-operator", none, "my-kith-operator"),
        ("chat", none, "chat-kith-operator"),
        ("chat", &["fullnameOverride=ops"][..], "ops"),
    ] {
        let name = of(release, settings, "Deployment")["name"].clone();
        failures.expect(&format!("release {release}"), name == expected, name);
    }
    for (settings, name, watches) in
        [(none, "kith-operator", "*"), (&["watchNamespaces={one,two}"][..], "kith-operator-kith-system", "one,two")]
    {
        let role = of("kith", settings, "ClusterRole");
        failures.expect("ClusterRole", role["name"] == name, &role["name"]);
        let says = &role["annotations"];
        failures.expect("its Lease", says["kith.dev/lease"] == "kith-system/kith-operator", says);
        failures.expect("its namespaces", says["kith.dev/watches"] == watches, says);
    }
}

/// What runs at the end of a release is neither selected by the operator's Deployment nor taken for a release of it.
fn hooks_make_nothing_that_is_taken_for_the_operator(everything: &[Value], failures: &mut Failures) {
    let hooks: Vec<&Value> =
        everything.iter().filter(|o| o["metadata"]["annotations"]["helm.sh/hook"] == "post-delete").collect();
    let kinds: Vec<&str> = hooks.iter().filter_map(|o| o["kind"].as_str()).collect();
    let expected = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Job"];
    failures.expect("hooks", expected.iter().all(|kind| kinds.contains(kind)), format!("{kinds:?}"));
    for hook in hooks {
        let mut labels = vec![&hook["metadata"]["labels"]];
        labels.extend(hook.pointer("/spec/template/metadata/labels"));
        let taken = labels.iter().any(|labels| labels["app.kubernetes.io/name"] == "kith-operator");
        failures.expect("hooks", !taken, format!("{} is labelled as the operator", hook["kind"]));
        failures.expect("hooks", hook["metadata"]["annotations"]["kith.dev/lease"].is_null(), "names a Lease");
    }
    let without = template("kith-operator", &["releaseShardsOnUninstall=false"], &[]);
    failures.expect("no hooks", !without.contains("helm.sh/hook"), "are rendered");
}

/// Shards that own slots cannot be deleted by hand, approvals name their proposal, and nothing is promoted by force without need.
pub(crate) async fn policies_protect_shards_and_rebalances(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let bound = server.kubectl(&["create", "clusterrolebinding", "jane", "--clusterrole=cluster-admin", "--user=jane"]);
    bound.expect("a binding");
    shard_deletion(server, admin, failures).await;
    rebalance_commands(server, admin, failures).await;
    forced_promotions(server, admin, failures).await;
}

async fn forced_promotions(server: &ApiServer, admin: &Api, failures: &mut Failures) {
    let jane = Api::as_user(server, "jane");
    let shard = manifest("StorageShard", "demo-1", "{clusterRef: {name: demo}, index: 1}");
    let wish = |pod: Value| json!({"metadata": {"annotations": {"kith.dev/force-promote": pod}}});
    let blocked = |status: &str| {
        json!({"status": {"conditions": [{"type": "FailoverBlocked", "status": status, "reason": "TooFewReplicas",
            "message": "two are missing", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    failures.expect_acceptance("shard", admin.create(&shard).await);
    let end = Instant::now() + SETTLES_WITHIN;
    let early = loop {
        let outcome = jane.merge(&shard, None, &wish(json!("demo-1-valkey-1"))).await;
        if outcome.is_err() || Instant::now() > end {
            break outcome;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        failures.expect_acceptance("shard", admin.merge(&shard, None, &wish(Value::Null)).await);
    };
    let says = ["nothing has to be promoted by force in StorageShard demo-1", "enough copies are in sight"];
    failures.expect_refusal("a promotion by force of a shard without a word", &early, &says);
    failures.expect_acceptance("status", admin.merge(&shard, Some("status"), &blocked("False")).await);
    let outcome = jane.merge(&shard, None, &wish(json!("demo-1-valkey-1"))).await;
    failures.expect_refusal("a promotion by force while enough copies are in sight", &outcome, &says);
    failures.expect_acceptance("status", admin.merge(&shard, Some("status"), &blocked("True")).await);
    let outcome = jane.merge(&shard, None, &wish(json!("demo-1-valkey-1"))).await;
    failures.expect_acceptance("a promotion by force while failover is blocked", outcome);
    // Once it is over, the annotation is no obstacle to other changes, and the operator takes it away.
    failures.expect_acceptance("status", admin.merge(&shard, Some("status"), &blocked("False")).await);
    let outcome = jane.merge(&shard, None, &json!({"spec": {"weight": 50}})).await;
    failures.expect_acceptance("a change beside an old wish", outcome);
    failures.expect_acceptance("the wish taken away", jane.merge(&shard, None, &wish(Value::Null)).await);
    failures.expect_acceptance("shard", admin.delete(&shard).await);
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
        ("patch", "", "secrets", "chat"),
        ("delete", "", "pods", "chat"),
        ("patch", "", "pods/status", "chat"),
        ("delete", "", "persistentvolumeclaims", "chat"),
        ("patch", "gateway.networking.k8s.io", "httproutes", "chat"),
        ("create", "events.k8s.io", "events", "chat"),
        ("list", "", "nodes", ""),
        ("list", "rbac.authorization.k8s.io", "clusterroles", ""),
        ("get", "coordination.k8s.io", "leases", "chat"),
        ("list", "", "events", "chat"),
        ("update", "coordination.k8s.io", "leases", NAMESPACE),
    ];
    let may_not = [
        ("delete", "kith.dev", "chatclusters", "chat"),
        ("create", "kith.dev", "gateways", "chat"),
        ("create", "", "pods", "chat"),
        ("create", "", "pods/exec", "chat"),
        ("update", "", "pods/status", "chat"),
        ("create", "", "pods/eviction", "chat"),
        ("delete", "", "secrets", "chat"),
        ("update", "apps", "deployments", "chat"),
        ("get", "", "namespaces", ""),
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
    // Its name has the release's namespace in it, so that the one of all namespaces would stay beside it.
    for kind in ["clusterrole", "clusterrolebinding"] {
        let outcome = server.kubectl(&["delete", kind, "kith-operator"]);
        failures.expect("namespaced mode", outcome.is_ok(), outcome.err().unwrap_or_default());
    }
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
