//! What is read back of what was told, in full and by a label.

use std::{collections::BTreeMap, fs, path::Path};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{ChatCluster, Gateway, ShardRebalance, StorageShard};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::*;

/// What the API server adds to every object.
fn stamped(mut object: Value, name: &str) -> Value {
    let meta = json!({
        "name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": "41", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T03:05:05Z",
        "deletionGracePeriodSeconds": 30, "finalizers": ["kith.dev/cleanup"],
        "ownerReferences": [{"apiVersion": "kith.dev/v1alpha1", "kind": "ChatCluster", "name": "demo", "uid": "u-1",
            "controller": true, "blockOwnerDeletion": true}],
        "annotations": {"text": "two\nlines, \"quoted\" \\ and ünïcode \u{1f600}\u{7f}"}
    });
    for (key, value) in meta.as_object().expect("an object") {
        object["metadata"][key] = value.clone();
    }
    object
}

/// What is told of each kind: all that is rendered in golden files and written in examples, and what follows here.
fn samples() -> BTreeMap<String, Vec<Value>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in [root.join("tests/golden"), root.join("../examples")] {
        files.extend(fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()));
    }
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        let text = fs::read_to_string(file).expect("a file");
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).expect("YAML");
            found.entry(object["kind"].as_str().unwrap_or_default().to_owned()).or_default().push(object);
        }
    }
    for object in written_here() {
        found.entry(object["kind"].as_str().expect("a kind").to_owned()).or_default().push(object);
    }
    found
}

fn written_here() -> Vec<Value> {
    let condition = json!({"type": "Ready", "status": "True", "reason": "AllReady", "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 3});
    vec![
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"labels": {"app.kubernetes.io/instance": "demo", "kith.dev/shard": "demo-0"}},
            "spec": {"nodeName": "n-1", "containers": [{"name": "valkey", "image": "v@sha256:0", "ports":
                [{"containerPort": 6379}], "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}}}],
                "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "qosClass": "Burstable",
                "startTime": "2026-01-02T03:04:05Z", "conditions": [{"type": "Ready", "status": "False",
                    "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:05Z"}],
                "containerStatuses": [{"name": "valkey", "ready": false, "restartCount": 2, "image": "v", "imageID": "",
                    "started": false, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled",
                        "finishedAt": "2026-01-02T03:04:06Z"}}}]}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "type": "Opaque", "immutable": true,
            "data": {"empty": "", "binary": "AP/+gA==", "text": "aGVsbG8="}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"a": "", "b": "x\ty\r\n"},
            "binaryData": {"b": "AAE="}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {}, "automountServiceAccountToken": false,
            "imagePullSecrets": [{"name": "pull"}], "secrets": []}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "pv", "storageClassName": "",
                "resources": {"requests": {"storage": "10Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {},
            "spec": {"maxReplicas": 5, "minReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind":
                "Deployment", "name": "api"}, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 70}}}]},
            "status": {"currentReplicas": 2, "desiredReplicas": 3, "lastScaleTime": "2026-01-02T03:04:05Z"}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {},
            "spec": {"ingressClassName": "nginx", "tls": [{"hosts": ["chat.example"], "secretName": "tls"}],
                "rules": [{"host": "chat.example", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                    "backend": {"service": {"name": "api", "port": {"number": 8080}}}}]}}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.9", "hostname": "lb"}]}}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"managedFields": [{"manager": "autoscaler", "operation": "Update", "subresource": "scale",
                "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
            "spec": {"replicas": 0, "selector": {}, "strategy": {"rollingUpdate": {"maxSurge": "25%",
                "maxUnavailable": 0}}, "template": {"metadata": {"creationTimestamp": null}}},
            "status": {"replicas": 1, "observedGeneration": 3, "collisionCount": 1, "conditions": [
                {"type": "Progressing", "status": "True", "lastUpdateTime": "2026-01-02T03:04:05Z"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {},
            "spec": {"serviceName": "s", "selector": {}, "template": {}, "updateStrategy": {"rollingUpdate":
                {"partition": 0}}},
            "status": {"replicas": 3, "currentRevision": "a", "updateRevision": "b", "readyReplicas": 3}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {},
            "spec": {"maxUnavailable": "50%", "selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}},
            "status": {"currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1,
                "disruptedPods": {"p": "2026-01-02T03:04:05Z"}, "conditions": [condition]}}),
        json!({"apiVersion": "kith.dev/v1alpha1", "kind": "ChatCluster", "metadata": {}, "spec": {},
            "status": {"version": "0.1.0", "images": {"kith": "k:1", "valkey": "v:1", "kafka": "b:1"},
                "conditions": [condition]}}),
        json!({"apiVersion": "kith.dev/v1alpha1", "kind": "StorageShard", "metadata": {},
            "spec": {"clusterRef": {"name": "demo"}, "draining": true},
            "status": {"slots": 5461, "conditions": [condition]}}),
        json!({"apiVersion": "kith.dev/v1alpha1", "kind": "Gateway", "metadata": {},
            "spec": {"clusterRef": {"name": "demo"}}, "status": {"conditions": [condition]}}),
    ]
}

fn told_is_read<K: Kind + PartialEq>(samples: &BTreeMap<String, Vec<Value>>) {
    let kind = K::kind(&());
    let samples = samples.get(kind.as_ref()).unwrap_or_else(|| panic!("no sample of {kind}"));
    let mut memory = Memory::<K>::new(K::cluster);
    for (at, sample) in samples.iter().enumerate() {
        let name = format!("o-{at}");
        let mut told: K = serde_json::from_value(stamped(sample.clone(), &name)).expect("an object");
        K::trim(&mut told);
        memory.changed(&told, Instant::now());
        let read = memory.get("ns", &name).expect("readable").expect("it was told");
        assert_eq!(read, told);
        assert_eq!(serde_json::to_value(&read).expect("JSON"), serde_json::to_value(&told).expect("JSON"));
    }
    assert_eq!(memory.all().flatten().count(), samples.len());
    assert_eq!(memory.places().len(), samples.len());
}

#[test]
fn what_is_read_is_what_was_told() {
    let samples = samples();
    told_is_read::<ConfigMap>(&samples);
    told_is_read::<Deployment>(&samples);
    told_is_read::<HorizontalPodAutoscaler>(&samples);
    told_is_read::<Ingress>(&samples);
    told_is_read::<NetworkPolicy>(&samples);
    told_is_read::<PersistentVolumeClaim>(&samples);
    told_is_read::<Pod>(&samples);
    told_is_read::<PodDisruptionBudget>(&samples);
    told_is_read::<Secret>(&samples);
    told_is_read::<Service>(&samples);
    told_is_read::<ServiceAccount>(&samples);
    told_is_read::<StatefulSet>(&samples);
    told_is_read::<ChatCluster>(&samples);
    told_is_read::<Gateway>(&samples);
    told_is_read::<ShardRebalance>(&samples);
    told_is_read::<StorageShard>(&samples);
}

fn labelled(name: &str, version: u64, labels: &[(&str, &str)], text: &str) -> ConfigMap {
    let mut object = map(name, version, text);
    let more = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
    object.metadata.labels.get_or_insert_default().extend(more);
    object
}

fn chosen(memory: &Memory<ConfigMap>, label: &str, value: &str) -> Vec<String> {
    let found = memory.of_cluster("ns", "demo", Some(&Label::new(label, value))).expect("readable");
    found.into_keys().collect()
}

#[test]
fn by_a_label_those_are_read_that_have_it_and_no_others() {
    let now = Instant::now();
    let mut memory = synced(&[
        labelled("a", 1, &[("kith.dev/shard", "demo-0")], "x"),
        labelled("b", 2, &[("kith.dev/shard", "demo-01")], "x"),
        labelled("c", 3, &[("xkith.dev/shard", "demo-0")], "x"),
        map("d", 4, r#"{"kith.dev/shard":"demo-0"}"#),
        map("e", 5, "x"),
    ]);
    // The same pair where no label is.
    let mut annotated = map("f", 6, "x");
    annotated.metadata.annotations = Some([("kith.dev/shard".to_owned(), "demo-0".to_owned())].into());
    memory.changed(&annotated, now);
    assert_eq!(chosen(&memory, "kith.dev/shard", "demo-0"), ["a"]);
    // What was written counts, whatever was told.
    memory.wrote(labelled("e", 9, &[("kith.dev/shard", "demo-0")], "x"), now);
    memory.wrote(map("a", 9, "x"), now);
    assert_eq!(chosen(&memory, "kith.dev/shard", "demo-0"), ["e"]);
}

#[test]
fn what_cannot_be_read_back_is_an_error_and_never_absent() {
    let damaged = |text: &str| {
        let mut memory = synced(&[labelled("a", 1, &[("label", "value")], "secret"), map("b", 2, "x")]);
        let object = memory.objects.get_mut("ns").and_then(|all| all.get_mut("a")).expect("it was told");
        object.damage(text);
        memory
    };
    for text in ["", "{", r#"{"metadata":{"labels":{"label":"value"}},"data":"secret"}"#] {
        let memory = damaged(text);
        let error = memory.get("ns", "a").expect_err("an error").to_string();
        assert!(error.contains("ConfigMap ns/a") && !error.contains("secret"), "{error}");
        assert!(memory.of_cluster("ns", "demo", None).is_err());
        assert!(memory.newer(&map("a", 0, "x")).is_err());
        assert_eq!(memory.all().filter(Result::is_err).count(), 1);
        assert_eq!(get(&memory, "b"), Some(map("b", 2, "x")));
    }
    assert!(damaged("").of_cluster("ns", "demo", Some(&Label::new("label", "value"))).is_err());
}

#[test]
fn a_newer_version_is_one_that_is_known_and_not_the_given_one() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "told")]);
    let newer = |memory: &Memory<ConfigMap>, given: &ConfigMap| {
        let found = memory.newer(given).expect("readable");
        found.map(|found| (found.metadata.resource_version.expect("a version"), found.metadata.deletion_timestamp))
    };
    assert_eq!(newer(&memory, &map("a", 4, "older")), Some(("5".to_owned(), None)));
    assert_eq!(newer(&memory, &map("a", 5, "told")), None);
    assert_eq!(newer(&memory, &map("a", 6, "newer")), None);
    assert_eq!(newer(&memory, &map("b", 1, "unknown")), None);
    let mut another = map("a", 4, "another");
    another.metadata.uid = Some("another".to_owned());
    assert_eq!(newer(&memory, &another), None);
    memory.wrote(map("a", 7, "written"), now);
    assert_eq!(newer(&memory, &map("a", 5, "told")), Some(("7".to_owned(), None)));
    memory.changed(&map("a", 8, "told"), now);
    memory.deleted(&map("a", 8, "told"), now);
    let dying = newer(&memory, &map("a", 8, "told")).expect("it is being deleted");
    assert!(dying.1.is_some());
}

proptest! {
    #[test]
    fn a_label_of_any_text_is_found(name in "\\PC{1,8}|[\"\\\\\n]{1,4}", value in ".{0,8}", other in ".{0,8}") {
        let memory = synced(&[labelled("a", 1, &[(&name, &value)], "x"), labelled("b", 2, &[(&name, &other)], "x")]);
        let wanted: &[&str] = if value == other { &["a", "b"] } else { &["a"] };
        prop_assert_eq!(chosen(&memory, &name, &value), wanted);
    }
}
