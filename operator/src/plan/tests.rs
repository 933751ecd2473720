//! What a ChatCluster resolves to, and what is refused in words.

use serde_json::json;

use super::*;
use crate::render::versions::PREVIOUS;

/// An operator of this version, to which the one before is at hand.
pub(crate) fn release(version: &str) -> Release {
    let images = |tag: &str| {
        let image = |name: &str| format!("localhost/{name}:{tag}");
        Images { kith: image("kith"), valkey: image("valkey"), kafka: image("kafka") }
    };
    Release {
        version: version.to_owned(),
        images: images(version),
        previous_version: PREVIOUS.to_owned(),
        previous_images: Some(images(PREVIOUS)),
    }
}

/// The ChatCluster of this spec, which nobody has looked at yet.
pub(crate) fn cluster(spec: &serde_json::Value) -> ChatCluster {
    serde_json::from_value(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
        "metadata": {"name": "demo", "namespace": "ns", "uid": "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11"},
        "spec": spec
    }))
    .unwrap()
}

/// What this spec resolves to.
pub(crate) fn plan(spec: &serde_json::Value) -> Plan {
    Plan::resolve(&cluster(spec), &release(PREVIOUS)).unwrap()
}

#[test]
fn an_empty_spec_resolves() {
    let plan = Plan::resolve(&cluster(&json!({})), &release("0.1.0")).unwrap();
    assert_eq!((plan.valkey.replicas, plan.valkey.partitions, plan.event_log.partitions), (2, 1024, 32));
    assert_eq!(plan.token_ttl_s, 86_400);
    assert!(plan.bootstrap().starts_with("demo-kafka-0.demo-kafka.ns.svc:9093,demo-kafka-1."));
}

#[test]
fn what_cannot_work_is_refused_in_words() {
    let cases = [
        (json!({"storage": {"pod": {"resources": {"limits": {"cpu": "1"}}}}}), "names no memory"),
        (json!({"storage": {"pod": {"resources": {"limits": {"memory": "40Mi"}}}}}), "less than 32Mi"),
        // The limit may come from the platform's settings or be the component's own, which the API server does not see.
        (
            json!({"pod": {"resources": {"limits": {"memory": "2Gi"}}}, "storage": {"maxMemory": "1300Mi"}}),
            "spec.storage.maxMemory is 1300Mi, and the pods' memory limit is 2048Mi: at most 60 per cent of it, 1228Mi",
        ),
        (
            json!({"storage": {"maxMemory": "700Mi"}}),
            "the pods' memory limit is 1024Mi: at most 60 per cent of it, 614Mi",
        ),
        (json!({"storage": {"maxMemory": "much"}}), "spec.storage.maxMemory: \"much\""),
        (
            json!({"eventLog": {"managed": {"heapSize": "800Mi"}}}),
            "spec.eventLog.managed.heapSize is 800Mi, and the pods' memory limit is 1024Mi: at most 75 per cent of it, 767Mi",
        ),
        (json!({"storage": {"partitions": 1000}}), "power of two"),
        (json!({"storage": {"replicas": 1, "durability": {"ackReplicas": 2}}}), "ackReplicas"),
        (
            json!({"eventLog": {"managed": {"pod": {"resources": {"limits": {"memory": "256Mi"}}}}}}),
            "Java heap of 256Mi",
        ),
        (json!({"eventLog": {"retention": "soon"}}), "spec.eventLog.retention"),
        (
            json!({"eventLog": {"managed": {"externalAccess": {"type": "LoadBalancer", "advertisedHost": "kafka.example"}}}}),
            "put {index}",
        ),
        (json!({"auth": {"tokenTtl": "1d"}}), "spec.auth.tokenTtl"),
    ];
    for (spec, words) in cases {
        let refused = Plan::resolve(&cluster(&spec), &release("0.1.0")).unwrap_err();
        assert_eq!(refused.reason, reason::INVALID_SPEC, "{spec}");
        assert!(refused.message.contains(words), "{spec}: {}", refused.message);
    }
}

#[test]
fn memory_that_is_asked_for_within_the_limit_is_what_is_taken() {
    let spec = json!({
        "pod": {"resources": {"limits": {"memory": "2Gi"}}},
        "storage": {"maxMemory": "1200Mi"}, "eventLog": {"managed": {"heapSize": "1500Mi"}}
    });
    let plan = Plan::resolve(&cluster(&spec), &release("0.1.0")).unwrap();
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { panic!("managed brokers") };
    assert_eq!((plan.valkey.max_memory, managed.heap), (1200 << 20, 1500 << 20));
}
