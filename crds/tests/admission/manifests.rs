//! New objects: what is accepted, and what is refused in which words.

use serde_json::json;

use crate::Failures;
use crate::api::{Api, manifest};

const GOOD: &[(&str, &str, &str)] = &[
    ("ChatCluster", "demo", "{}"),
    ("ChatCluster", "demo", "{version: 0.1.0-rc.1, clusterName: chat-eu}"),
    ("ChatCluster", "demo", "{eventLog: {}}"),
    ("ChatCluster", "demo", "{eventLog: {managed: {brokers: 1, heapSize: 256Mi, externalAccess: {nodePort: 30094}}}}"),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {managed: {externalAccess: {type: LoadBalancer, advertisedHost: 'kafka-{index}.example.com'}}}}",
    ),
    ("ChatCluster", "demo", "{eventLog: {external: {bootstrapServers: ['kafka.example.com:9092'], replicationFactor: 1}}}"),
    ("ChatCluster", "demo", "{storage: {shards: 128, replicas: 1, partitions: 128, weights: [0, 1000]}, eventLog: {partitions: 128}}"),
    (
        "ChatCluster",
        "demo",
        "{storage: {maxMemory: 1200Mi, pod: {resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}}}}",
    ),
    (
        "ChatCluster",
        "demo",
        "{pod: {nodeSelector: {disk: ssd}, tolerations: [{key: chat, operator: Exists, effect: NoSchedule}],
          affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms:
            [{matchExpressions: [{key: zone, operator: In, values: [a, b]}]}]}}},
          topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}],
          imagePullSecrets: [{name: registry}], annotations: {team: chat}, labels: {team: chat}, priorityClassName: high}}",
    ),
    ("ChatCluster", "demo", "{services: {business: {exposure: {type: NodePort, nodePort: 30443, extraHosts: [im.example.com]}}}}"),
    ("StorageShard", "demo-7", "{clusterRef: {name: demo}, index: 7, weight: 0, draining: true}"),
    ("Gateway", "edge", "{clusterRef: {name: demo}}"),
    ("Gateway", "edge", "{clusterRef: {name: demo}, limits: {sentBytesPerMinutePerUser: 1Gi}}"),
    ("Gateway", "edge", "{clusterRef: {name: demo}, exposure: {type: LoadBalancer}, tls: {secretRef: {name: web}}}"),
    ("Gateway", "edge", "{clusterRef: {name: demo}, api: {enabled: false}, websocket: {autoscaling: {maxReplicas: 9}}}"),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, exposure: {type: LoadBalancer, loadBalancerClass: example.com/lb,
          loadBalancerSourceRanges: [192.0.2.0/24, '2001:db8::/32'], httpRoute: {parentRefs: [{name: web, namespace: infra}]}}}",
    ),
    ("ShardRebalance", "spread", "{clusterRef: {name: demo}}"),
];

/// Kind, name, spec, words of the refusal.
const BAD: &[(&str, &str, &str, &[&str])] = &[
    // Names.
    ("ChatCluster", "a.dotted.name", "{}", &["letters, digits and hyphens"]),
    ("ChatCluster", "9lives", "{}", &["begins with a letter"]),
    ("ChatCluster", "a-name-of-more-than-forty-letters-is-too-long", "{}", &["at most 40"]),
    ("StorageShard", "a-shards-name-of-more-than-forty-five-characters", "{clusterRef: {name: demo}}", &["at most 45"]),
    (
        "Gateway",
        "a-gateway-with-a-long-name",
        "{clusterRef: {name: a-cluster-with-a-rather-long-name}}",
        &["at most 53"],
    ),
    ("Gateway", "dotted.name", "{clusterRef: {name: demo}}", &["letters, digits and hyphens"]),
    ("Gateway", "kafka", "{clusterRef: {name: demo}}", &["cannot be named like a part of Kith", "choose another name"]),
    // Wrong fields and types.
    ("ChatCluster", "demo", "{shards: 3}", &["unknown field", "spec.shards"]),
    ("ChatCluster", "demo", "{storage: {pod: {nodeSelectr: {a: b}}}}", &["unknown field", "nodeSelectr"]),
    ("ChatCluster", "demo", "{storage: {shards: three}}", &["spec.storage.shards", "integer"]),
    ("ChatCluster", "demo", "{storage: {shards: 1.5}}", &["spec.storage.shards", "integer"]),
    ("ChatCluster", "demo", "{storage: {shards: null, replicas: many}}", &["spec.storage.replicas", "integer"]),
    // The platform.
    ("ChatCluster", "demo", "{version: latest}", &["spec.version", "three numbers"]),
    ("ChatCluster", "demo", "{clusterName: Chat_EU}", &["spec.clusterName", "lower-case letters"]),
    ("ChatCluster", "demo", "{imagePullPolicy: Sometimes}", &["spec.imagePullPolicy", "Always", "IfNotPresent"]),
    ("ChatCluster", "demo", "{restoreFrom: {clusterUid: old-one}}", &["clusterUid must be a UID"]),
    ("ChatCluster", "demo", "{auth: {tokenTtl: 1 day}}", &["tokenTtl", "must be a duration"]),
    ("ChatCluster", "demo", "{auth: {tokenTtl: 30s}}", &["between 1m and 8760h"]),
    ("ChatCluster", "demo", "{auth: {keyRotationInterval: 5m}}", &["1h or longer"]),
    // Storage.
    ("ChatCluster", "demo", "{storage: {shards: 0}}", &["spec.storage.shards", "greater than or equal to 1"]),
    ("ChatCluster", "demo", "{storage: {shards: 129}}", &["spec.storage.shards", "less than or equal to 128"]),
    ("ChatCluster", "demo", "{storage: {shards: 64, partitions: 32}}", &["shards may not be above partitions"]),
    ("ChatCluster", "demo", "{storage: {partitions: 1000}}", &["power of two from 16 to 16384"]),
    ("ChatCluster", "demo", "{storage: {replicas: 0}}", &["spec.storage.replicas", "greater than or equal to 1"]),
    (
        "ChatCluster",
        "demo",
        "{storage: {replicas: 1, durability: {ackReplicas: 2}}}",
        &["spec.storage.durability.ackReplicas", "ackReplicas may not be above replicas"],
    ),
    ("ChatCluster", "demo", "{storage: {durability: {fsync: never}}}", &["fsync", "always", "everysec"]),
    ("ChatCluster", "demo", "{storage: {durability: {whenDegraded: ignore}}}", &["whenDegraded", "refuse", "accept"]),
    (
        "ChatCluster",
        "demo",
        "{storage: {weights: [100, 1001]}}",
        &["spec.storage.weights", "less than or equal to 1000"],
    ),
    (
        "ChatCluster",
        "demo",
        "{storage: {volume: {size: lots}}}",
        &["spec.storage.volume.size", "must be a number of bytes"],
    ),
    ("ChatCluster", "demo", "{storage: {volume: {size: 1Mi}}}", &["at least 128Mi"]),
    ("ChatCluster", "demo", "{storage: {volume: {reclaimPolicy: Keep}}}", &["reclaimPolicy", "Retain", "Delete"]),
    ("ChatCluster", "demo", "{storage: {maxMemory: 1Mi}}", &["at least 32Mi"]),
    (
        "ChatCluster",
        "demo",
        "{storage: {maxMemory: 1Gi, pod: {resources: {limits: {memory: 1Gi}}}}}",
        &["at most 60 per cent of pod.resources.limits.memory"],
    ),
    // Pods.
    (
        "ChatCluster",
        "demo",
        "{pod: {resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}}",
        &["spec.pod.resources", "a request may not be above its limit"],
    ),
    (
        "ChatCluster",
        "demo",
        "{pod: {resources: {requests: {memory: 12 apples}}}}",
        &["spec.pod.resources.requests[memory]", "must be a quantity such as"],
    ),
    ("ChatCluster", "demo", "{pod: {labels: {app.kubernetes.io/name: mine}}}", &["belong to the operator"]),
    ("ChatCluster", "demo", "{pod: {annotations: {kith.dev/config-hash: x}}}", &["belong to the operator"]),
    (
        "ChatCluster",
        "demo",
        "{services: {tasks: {replicas: 0}}}",
        &["spec.services.tasks.replicas", "greater than or equal to 1"],
    ),
    ("ChatCluster", "demo", "{services: {business: {exposure: {nodePort: 30443}}}}", &["nodePort needs type"]),
    (
        "ChatCluster",
        "demo",
        "{services: {business: {exposure: {type: Public}}}}",
        &["ClusterIP", "NodePort", "LoadBalancer"],
    ),
    // Event log.
    (
        "ChatCluster",
        "demo",
        "{eventLog: {managed: {}, external: {bootstrapServers: ['a:9092']}}}",
        &["exactly one of managed and external"],
    ),
    ("ChatCluster", "demo", "{eventLog: {managed: {brokers: 2}}}", &["two brokers survive no failure"]),
    ("ChatCluster", "demo", "{eventLog: {partitions: 2048}}", &["less than or equal to 1024"]),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {partitions: 64}, storage: {partitions: 32}}",
        &["may not be above storage.partitions"],
    ),
    ("ChatCluster", "demo", "{eventLog: {retention: 10m}}", &["retention must be 1h or longer"]),
    ("ChatCluster", "demo", "{eventLog: {managed: {heapSize: 64Mi}}}", &["heapSize must be at least 256Mi"]),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {managed: {heapSize: 900Mi, pod: {resources: {limits: {memory: 1Gi}}}}}}",
        &["heapSize may be at most 75 per cent"],
    ),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {managed: {externalAccess: {type: LoadBalancer, nodePort: 30094}}}}",
        &["nodePort needs type NodePort"],
    ),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {managed: {externalAccess: {type: LoadBalancer, advertisedHost: kafka.example.com}}}}",
        &["put {index} into it"],
    ),
    ("ChatCluster", "demo", "{eventLog: {external: {bootstrapServers: ['http://a:9092']}}}", &["must be host:port"]),
    ("ChatCluster", "demo", "{eventLog: {external: {bootstrapServers: []}}}", &["bootstrapServers", "at least 1 item"]),
    (
        "ChatCluster",
        "demo",
        "{eventLog: {external: {bootstrapServers: ['a:9092'], sasl: {mechanism: MD5, secretRef: {name: u}}}}}",
        &["SCRAM-SHA-512"],
    ),
    // Shards, gateways, rebalances.
    ("StorageShard", "extra", "{weight: 100}", &["spec.clusterRef", "Required"]),
    ("StorageShard", "extra", "{clusterRef: {name: demo}, weight: -1}", &["spec.weight", "greater than or equal to 0"]),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, api: {enabled: false}, websocket: {enabled: false}}",
        &["at least one of api and websocket"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, tls: {secretRef: {name: web}}, exposure: {ingress: {host: a.example.com}}}",
        &["tls cannot go with exposure.ingress or exposure.httpRoute"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, tls: {secretRef: {name: web}}, exposure: {httpRoute: {parentRefs: [{name: web}]}}}",
        &["tls cannot go with exposure.ingress or exposure.httpRoute"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, websocket: {heartbeat: 1s, drain: {deadline: 2h}}}",
        &["between 5s and 10m", "between 1s and 1h"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, limits: {sentBytesPerMinutePerUser: 127Ki}}",
        &["between 128Ki and 1Gi"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, limits: {sentBytesPerMinutePerUser: 1025Mi}}",
        &["between 128Ki and 1Gi"],
    ),
    (
        "Gateway",
        "edge",
        "{clusterRef: {name: demo}, exposure: {nodePorts: {api: 30080, websocket: 30080}, loadBalancerClass: x,
          loadBalancerSourceRanges: [everywhere], ingress: {host: a}, httpRoute: {parentRefs: [{name: web}]}},
          api: {autoscaling: {minReplicas: 5, maxReplicas: 3}}}",
        &[
            "nodePorts need type",
            "must differ",
            "loadBalancerClass needs type",
            "must be an address range",
            "at most one of ingress and httpRoute",
            "minReplicas may not be above maxReplicas",
        ],
    ),
    (
        "ShardRebalance",
        "spread",
        "{clusterRef: {name: demo}, maxBytesPerSecond: 1k, mode: yes-please, maxConcurrentMoves: 0, imbalancePercent: 51}",
        &["manual", "automatic", "maxConcurrentMoves", "imbalancePercent"],
    ),
];

/// Everything right is accepted, and `spec: {}` comes back whole.
pub(crate) async fn good_ones_are_accepted(api: &Api, failures: &mut Failures) {
    for (kind, name, spec) in GOOD {
        failures.expect_acceptance(&format!("good {kind} {spec}"), api.try_create(&manifest(kind, name, spec)).await);
    }
    let bare = json!({"apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": "bare"}});
    for object in [bare, manifest("ChatCluster", "empty", "{}")] {
        let made = failures.expect_acceptance("defaults", api.try_create(&object).await);
        let expected = serde_json::to_value(kith_crds::ChatClusterSpec::default()).expect("JSON");
        failures.expect("defaults of the API server are those of the types", made["spec"] == expected, &made["spec"]);
    }
    let gateway = api.try_create(&manifest("Gateway", "edge", "{clusterRef: {name: demo}}")).await;
    let gateway = failures.expect_acceptance("gateway", gateway);
    let typed: kith_crds::GatewaySpec =
        serde_json::from_value(json!({"clusterRef": {"name": "demo"}})).expect("a Gateway");
    let expected = serde_json::to_value(typed).expect("JSON");
    failures.expect("defaults of a Gateway", gateway["spec"] == expected, &gateway["spec"]);
}

/// Everything wrong is refused, in words.
pub(crate) async fn bad_ones_are_refused(api: &Api, failures: &mut Failures) {
    for (kind, name, spec, says) in BAD {
        let outcome = api.try_create(&manifest(kind, name, spec)).await;
        failures.expect_refusal(&format!("bad {kind}/{name} {spec}"), &outcome, says);
    }
    let slow = "{clusterRef: {name: demo}, maxBytesPerSecond: 1k}";
    let outcome = api.try_create(&manifest("ShardRebalance", "spread", slow)).await;
    failures.expect_refusal("a rebalance that never ends", &outcome, &["at least 64Ki"]);
}
