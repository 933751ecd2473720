//! `examples/production.yaml` on an API server whose load balancers and pods are played here.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Pod, PodTemplateSpec, Secret, Service},
};
use kith_crds::{Gateway, conditions, names};
use kube::api::{Patch, PatchParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use super::world::World;

const NAMESPACE: &str = "chat";
const CLUSTER: &str = "chat";

/// The objects of the example, by kind.
fn example() -> BTreeMap<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/production.yaml");
    let text = std::fs::read_to_string(path).expect("the example");
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).expect("YAML"));
    documents.map(|object| (object["kind"].as_str().expect("a kind").to_owned(), object)).collect()
}

/// As a load balancer's controller does.
async fn give_address(world: &World, broker: u32, ingress: &Value) {
    let status = json!({"status": {"loadBalancer": {"ingress": [ingress]}}});
    let name = format!("chat-kafka-external-{broker}");
    let services = world.api::<Service>(NAMESPACE);
    services.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
}

async fn brokers(world: &World) -> StatefulSet {
    world.api::<StatefulSet>(NAMESPACE).get("chat-kafka").await.expect("the brokers")
}

async fn configuration(world: &World) -> BTreeMap<String, String> {
    world.api::<ConfigMap>(NAMESPACE).get("chat-kafka-config").await.expect("a map").data.expect("data")
}

fn template(set: &StatefulSet) -> &PodTemplateSpec {
    &set.spec.as_ref().expect("a spec").template
}

fn annotation(set: &StatefulSet, name: &str) -> String {
    let annotations = template(set).metadata.as_ref().and_then(|m| m.annotations.as_ref()).expect("annotations");
    annotations[name].clone()
}

/// DNS names and addresses of the brokers' certificate.
async fn certified(world: &World) -> Vec<String> {
    let secret = world.api::<Secret>(NAMESPACE).get("chat-kafka-tls").await.expect("a Secret");
    let (_, pem) = parse_x509_pem(&secret.data.expect("data")["tls.crt"].0).expect("PEM");
    let certificate = pem.parse_x509().expect("a certificate");
    let names = certificate.subject_alternative_name().expect("readable names").expect("names");
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => {
            <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string())
        }
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

pub(crate) async fn start_before_their_load_balancers_have_addresses(world: &World) {
    let example = example();
    world.create_cluster(NAMESPACE, CLUSTER, example["ChatCluster"]["spec"].clone()).await;
    let gateway: Gateway = serde_json::from_value(example["Gateway"].clone()).expect("a Gateway");
    world.api::<Gateway>(NAMESPACE).create(&PostParams::default(), &gateway).await.expect("a Gateway");
    world.pass(NAMESPACE, CLUSTER).await;
    let first = brokers(world).await;
    let spec = first.spec.as_ref().expect("a spec");
    assert_eq!(spec.replicas, Some(3));
    assert_eq!(spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()), Some("OnDelete"));
    assert!(!configuration(world).await.keys().any(|key| key.starts_with("external-")));
    let (_, _, message) = world.condition(NAMESPACE, CLUSTER, conditions::EVENT_LOG_READY).await;
    assert!((0..3).all(|broker| message.contains(&format!("chat-kafka-external-{broker}"))), "{message}");
    every_pod_is_spread_over_zones_and_nodes(world).await;

    give_address(world, 1, &json!({"hostname": "lb-1.example", "ip": "192.0.2.11"})).await;
    world.pass(NAMESPACE, CLUSTER).await;
    let map = configuration(world).await;
    assert_eq!(map.get("external-1").map(String::as_str), Some("lb-1.example:9094"));
    assert!(!map.contains_key("external-0"));
    let names = certified(world).await;
    assert!(["lb-1.example", "192.0.2.11"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    let (_, _, message) = world.condition(NAMESPACE, CLUSTER, conditions::EVENT_LOG_READY).await;
    assert!(message.contains("chat-kafka-external-0") && !message.contains("chat-kafka-external-1"), "{message}");
    let second = brokers(world).await;
    for hash in [names::ANNOTATION_CONFIG_HASH, "kith.dev/certificate-hash"] {
        assert_ne!(annotation(&first, hash), annotation(&second, hash), "{hash}: the brokers would not learn of it");
    }

    for broker in [0, 2] {
        give_address(world, broker, &json!({"ip": format!("192.0.2.2{broker}")})).await;
    }
    world.pass(NAMESPACE, CLUSTER).await;
    assert_eq!(configuration(world).await.get("external-2").map(String::as_str), Some("192.0.2.22:9094"));
    let (_, _, message) = world.condition(NAMESPACE, CLUSTER, conditions::EVENT_LOG_READY).await;
    assert!(!message.contains("chat-kafka-external"), "{message}");
    // An address that a load balancer takes back for a moment restarts nobody.
    let all = brokers(world).await;
    let nothing = json!({"status": {"loadBalancer": null}});
    let services = world.api::<Service>(NAMESPACE);
    let params = PatchParams::default();
    services.patch_status("chat-kafka-external-2", &params, &Patch::Merge(&nothing)).await.expect("a status");
    world.pass(NAMESPACE, CLUSTER).await;
    let after = brokers(world).await;
    assert_eq!(all.metadata.generation, after.metadata.generation);
}

async fn every_pod_is_spread_over_zones_and_nodes(world: &World) {
    for name in world.names::<StatefulSet>(NAMESPACE).await {
        let set = world.api::<StatefulSet>(NAMESPACE).get(&name).await.expect("the set");
        let constraints = template(&set).spec.as_ref().and_then(|s| s.topology_spread_constraints.clone());
        let constraints = constraints.unwrap_or_default();
        let keys: Vec<&str> = constraints.iter().map(|c| c.topology_key.as_str()).collect();
        assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"], "{name}");
        let own = &set.spec.as_ref().expect("a spec").selector.match_labels;
        for constraint in &constraints {
            let counted = constraint.label_selector.as_ref().and_then(|s| s.match_labels.as_ref());
            assert_eq!(counted, own.as_ref(), "{name}: {}", constraint.topology_key);
        }
    }
}

/// Nobody answers here, so nothing is seen: what a pod said stays for as long as its process listens.
pub(crate) async fn are_told_whether_they_have_caught_up(world: &World) {
    let set = brokers(world).await;
    let pods = world.api::<Pod>(NAMESPACE);
    let spec = template(&set).spec.clone().expect("a spec");
    let gates = spec.readiness_gates.clone().unwrap_or_default();
    assert_eq!(gates.iter().map(|g| g.condition_type.as_str()).collect::<Vec<_>>(), [names::CONDITION_IN_SYNC]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "chat-kafka-0", "labels": template(&set).metadata.as_ref().and_then(|m| m.labels.clone()),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat-kafka", "controller": true,
                "uid": set.metadata.uid}],
        },
        "spec": {"containers": spec.containers.iter().map(|c| json!({"name": c.name, "image": c.image})).collect::<Vec<_>>(),
            "readinessGates": gates, "serviceAccountName": spec.service_account_name, "automountServiceAccountToken": false},
    }))
    .expect("a pod");
    pods.create(&PostParams::default(), &pod).await.expect("a pod");
    for (listens, stays) in [("True", "True"), ("False", "False")] {
        let said = json!({"status": {"conditions": [
            {"type": names::CONDITION_IN_SYNC, "status": "True"},
            {"type": "ContainersReady", "status": listens, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}});
        pods.patch_status("chat-kafka-0", &PatchParams::default(), &Patch::Strategic(&said)).await.expect("a status");
        world.pass(NAMESPACE, CLUSTER).await;
        let pod = pods.get("chat-kafka-0").await.expect("the pod");
        let now = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        let found = now.iter().find(|c| c.type_ == names::CONDITION_IN_SYNC).map(|c| c.status.as_str());
        assert_eq!(found, Some(stays), "what was said goes with the process that it was said of: {now:?}");
    }
}
