//! Every field of every custom resource does something, and nothing that it does not have to: each leaf of the schemas is set, and what is
//! rendered differs; or a test is named that shows what it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::support::rendered;
use kith_crds::{ChatCluster, Gateway};
use kith_operator::{
    apply::Live,
    chatcluster::{certificate_request, shard_steps},
    plan::KafkaPlan,
    render::{kafka, meta::Component, workloads},
};
use kith_platform::Service;
use serde_json::{Value, json};

/// What shows that a field is honoured.
#[derive(Clone, Copy)]
enum Effect {
    /// With this value, other objects are rendered.
    Shown(&'static str),
    /// This test.
    Proved(&'static str),
}
use Effect::{Proved, Shown};

/// Fields that hold what Pods define: they are handed on whole.
const HANDED_ON: [&str; 3] = ["affinity", "tolerations", "topologySpreadConstraints"];

/// Settings of pods, wherever they stand.
const POD: &[(&str, &str)] = &[
    ("resources.requests", "{cpu: 2, memory: 900Mi}"),
    ("resources.limits", "{memory: 3Gi}"),
    ("nodeSelector", "{disk: ssd}"),
    ("tolerations", "[{key: chat, operator: Exists}]"),
    ("affinity", "{podAntiAffinity: {}}"),
    ("topologySpreadConstraints", "[{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]"),
    ("priorityClassName", "high"),
    ("imagePullSecrets[].name", "registry"),
    ("annotations", "{team: chat}"),
    ("labels", "{team: chat}"),
];

const CHAT_CLUSTER: &[(&str, Effect)] = &[
    ("version", Proved("a_new_operator_keeps_the_adopted_version_and_images")),
    ("clusterName", Shown("other")),
    ("imagePullPolicy", Shown("Always")),
    ("storage.shards", Shown("2")),
    ("storage.replicas", Shown("3")),
    ("storage.partitions", Shown("512")),
    ("storage.weights", Shown("[7]")),
    ("storage.durability.fsync", Shown("everysec")),
    ("storage.durability.ackReplicas", Shown("2")),
    ("storage.durability.whenDegraded", Proved("acknowledgement_is_lowered_after_patience_and_only_when_permitted")),
    ("storage.volume.size", Shown("20Gi")),
    ("storage.volume.storageClassName", Shown("fast")),
    ("storage.volume.reclaimPolicy", Shown("Delete")),
    ("storage.maxMemory", Shown("100Mi")),
    ("eventLog.partitions", Shown("64")),
    ("eventLog.retention", Proved("a_changed_retention_reaches_the_topic_and_leaves_what_others_set")),
    ("eventLog.managed.brokers", Shown("5")),
    ("eventLog.managed.volume.size", Shown("20Gi")),
    ("eventLog.managed.volume.storageClassName", Shown("fast")),
    ("eventLog.managed.volume.reclaimPolicy", Shown("Delete")),
    ("eventLog.managed.heapSize", Shown("300Mi")),
    ("eventLog.managed.externalAccess.type", Shown("LoadBalancer")),
    ("eventLog.managed.externalAccess.nodePort", Shown("30094")),
    ("eventLog.managed.externalAccess.advertisedHost", Shown("kafka.example.com")),
    ("eventLog.managed.externalAccess.security", Shown("Plaintext")),
    ("eventLog.external.bootstrapServers", Shown("['b:9092']")),
    ("eventLog.external.tls.caSecretRef.name", Shown("other")),
    ("eventLog.external.tls.caSecretRef.key", Shown("other.crt")),
    ("eventLog.external.tls.clientCertificateSecretRef.name", Shown("other")),
    ("eventLog.external.sasl.mechanism", Shown("PLAIN")),
    ("eventLog.external.sasl.secretRef.name", Shown("other")),
    ("eventLog.external.replicationFactor", Shown("5")),
    ("services.business.exposure.type", Shown("NodePort")),
    ("services.business.exposure.nodePort", Shown("30443")),
    ("services.business.exposure.loadBalancerClass", Shown("x")),
    ("services.business.exposure.externalTrafficPolicy", Shown("Local")),
    ("services.business.exposure.annotations", Shown("{a: b}")),
    ("services.business.exposure.extraHosts", Shown("[im.example.com]")),
    ("auth.tokenTtl", Shown("1h")),
    ("auth.keyRotationInterval", Proved("token_keys_rotate_and_old_ones_stay_while_their_tokens_live")),
    ("restoreFrom.clusterUid", Shown("11111111-2222-3333-4444-555555555555")),
];

const GATEWAY: &[(&str, Effect)] = &[
    ("clusterRef.name", Shown("other")),
    ("api.enabled", Shown("false")),
    ("api.replicas", Shown("3")),
    ("api.autoscaling.minReplicas", Shown("3")),
    ("api.autoscaling.maxReplicas", Shown("9")),
    ("api.autoscaling.targetCpuPercent", Shown("50")),
    ("api.limits.requestsPerSecondPerUser", Shown("7")),
    ("api.limits.burstPerUser", Shown("7")),
    ("api.limits.requestsInFlightPerPod", Shown("7")),
    ("api.idleTimeout", Shown("80s")),
    ("api.allowedOrigins", Shown("['https://a']")),
    ("websocket.enabled", Shown("false")),
    ("websocket.replicas", Shown("3")),
    ("websocket.autoscaling.minReplicas", Shown("3")),
    ("websocket.autoscaling.maxReplicas", Shown("9")),
    ("websocket.autoscaling.targetCpuPercent", Shown("50")),
    ("websocket.heartbeat", Shown("11s")),
    ("websocket.limits.connectionsPerPod", Shown("7")),
    ("websocket.limits.connectionsPerUser", Shown("7")),
    ("websocket.limits.framesPerSecond", Shown("7")),
    ("websocket.limits.framesQueued", Shown("17")),
    ("websocket.drain.deadline", Shown("3m")),
    ("websocket.drain.connectionsPerSecond", Shown("7")),
    ("websocket.allowedOrigins", Shown("['https://a']")),
    ("limits.sentBytesPerMinutePerUser", Shown("1Mi")),
    ("exposure.type", Shown("NodePort")),
    ("exposure.nodePorts.api", Shown("30080")),
    ("exposure.nodePorts.websocket", Shown("30081")),
    ("exposure.loadBalancerClass", Shown("x")),
    ("exposure.loadBalancerSourceRanges", Shown("[192.0.2.0/24]")),
    ("exposure.externalTrafficPolicy", Shown("Local")),
    ("exposure.annotations", Shown("{a: b}")),
    ("exposure.ingress.className", Shown("x")),
    ("exposure.ingress.host", Shown("b")),
    ("exposure.ingress.tlsSecretRef.name", Shown("x")),
    ("exposure.ingress.annotations", Shown("{a: b}")),
    ("exposure.httpRoute.parentRefs[].name", Shown("b")),
    ("exposure.httpRoute.parentRefs[].namespace", Shown("b")),
    ("exposure.httpRoute.parentRefs[].sectionName", Shown("b")),
    ("exposure.httpRoute.hostnames", Shown("[b]")),
    ("tls.secretRef.name", Shown("other")),
];

const STORAGE_SHARD: &[(&str, Effect)] = &[
    ("clusterRef.name", Proved("the_data_plane_is_cared_for_whatever_else_fails")),
    ("index", Proved("fewer_shards_empty_the_highest_and_delete_only_what_is_empty")),
    ("weight", Proved("weights_decide_about_the_first_partitions")),
    ("draining", Proved("a_draining_shard_is_emptied")),
];

const SHARD_REBALANCE: &[(&str, Effect)] = &[
    ("clusterRef.name", Proved("a_rebalance_by_hand_is_planned_approved_stopped_and_taken_up_again")),
    ("mode", Proved("a_manual_one_waits_for_the_approval_of_its_own_proposal")),
    ("maxBytesPerSecond", Proved("the_settings_of_a_rebalance_say_what_moves_and_how_much_at_once")),
    ("maxConcurrentMoves", Proved("the_settings_of_a_rebalance_say_what_moves_and_how_much_at_once")),
    ("imbalancePercent", Proved("the_settings_of_a_rebalance_say_what_moves_and_how_much_at_once")),
];

/// What must stand beside a field for it to mean anything: by the beginning of its path, the longest one that fits.
const BESIDE: &[(&str, &str)] = &[
    ("eventLog.managed.externalAccess", "{eventLog: {managed: {externalAccess: {}}}}"),
    ("eventLog.external", "{eventLog: {external: {bootstrapServers: ['a:9092']}}}"),
    (
        "eventLog.external.tls",
        "{eventLog: {external: {bootstrapServers: ['a:9092'], \
          tls: {caSecretRef: {name: a}, clientCertificateSecretRef: {name: a}}}}}",
    ),
    ("eventLog.external.sasl", "{eventLog: {external: {bootstrapServers: ['a:9092'], sasl: {secretRef: {name: a}}}}}"),
    ("services.business.exposure.nodePort", "{services: {business: {exposure: {type: NodePort}}}}"),
    ("services.business.exposure.externalTrafficPolicy", "{services: {business: {exposure: {type: NodePort}}}}"),
    ("services.business.exposure.loadBalancerClass", "{services: {business: {exposure: {type: LoadBalancer}}}}"),
    ("api.autoscaling", "{api: {autoscaling: {maxReplicas: 5}}}"),
    ("websocket.autoscaling", "{websocket: {autoscaling: {maxReplicas: 5}}}"),
    ("exposure.nodePorts", "{exposure: {type: NodePort}}"),
    ("exposure.externalTrafficPolicy", "{exposure: {type: NodePort}}"),
    ("exposure.loadBalancer", "{exposure: {type: LoadBalancer}}"),
    ("exposure.ingress", "{exposure: {ingress: {host: a}}}"),
    ("exposure.httpRoute", "{exposure: {httpRoute: {parentRefs: [{name: a}]}}}"),
    ("tls", "{tls: {secretRef: {name: a}}}"),
];

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).expect("YAML")
}

/// The leaves below a schema, as `a.b` and, through lists, `a[].b`.
fn leaves(schema: &Value, path: &str, out: &mut Vec<String>) {
    let name = path.rsplit(['.', ']']).next().unwrap_or_default();
    let inner = |schema: &Value| schema["properties"].as_object().filter(|_| !HANDED_ON.contains(&name)).cloned();
    let (fields, path) = match (inner(schema), inner(&schema["items"])) {
        (Some(fields), _) => (fields, path.to_owned()),
        (None, Some(fields)) => (fields, format!("{path}[]")),
        (None, None) => return out.push(path.to_owned()),
    };
    for (name, field) in &fields {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(field, &below, out);
    }
}

/// The leaves of each kind's spec.
fn kinds() -> BTreeMap<String, Vec<String>> {
    kith_crds::generate::crds()
        .into_iter()
        .map(|crd| {
            let crd = serde_json::to_value(crd).expect("JSON");
            let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").expect("a spec");
            let mut out = Vec::new();
            leaves(schema, "", &mut out);
            (crd["spec"]["names"]["kind"].as_str().expect("a kind").to_owned(), out)
        })
        .collect()
}

fn put(spec: &mut Value, path: &str, value: Value) {
    let mut place = spec;
    for step in path.split('.') {
        place = match step.strip_suffix("[]") {
            None => &mut place[step],
            Some(list) => {
                let list = &mut place[list];
                if list.is_null() {
                    *list = json!([{}]);
                }
                &mut list[0]
            }
        };
    }
    *place = value;
}

/// All that follows from the specs of a ChatCluster and its Gateway.
fn effect(cluster: &Value, edge: Option<&Value>) -> Vec<Value> {
    let mut spec = cluster.clone();
    if spec.is_null() {
        spec = json!({});
    }
    let cluster: ChatCluster = rendered::object(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": "chat", "namespace": "ns"}, "spec": spec
    }));
    let edge: Option<Gateway> = edge.map(|spec| {
        let mut spec = spec.clone();
        if spec["clusterRef"].is_null() {
            spec["clusterRef"] = json!({"name": "chat"});
        }
        rendered::object(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": {"name": "edge", "namespace": "ns"}, "spec": spec
        }))
    });
    let plan = rendered::plan(&cluster);
    let mut all = rendered::rendered(&cluster, edge.as_ref());
    let hosts = match &plan.event_log.kafka {
        KafkaPlan::Managed(managed) => kafka::external_hosts(&plan, managed, &BTreeMap::new(), None),
        KafkaPlan::External(_) => Vec::new(),
    };
    all.extend(Component::of(&plan.version).map(|c| json!(format!("{:?}", certificate_request(&plan, c, &hosts)))));
    all.push(json!(shard_steps(&plan, &Live::new(), None).create));
    all
}

/// The names of all functions in the sources that hold tests.
fn functions() -> BTreeSet<String> {
    fn collect(folder: &Path, out: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let names = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
                out.extend(names.map(str::to_owned));
            }
        }
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = BTreeSet::new();
    for folder in ["src", "tests", "../crds/src", "../e2e/tests"] {
        collect(&own.join(folder), &mut out);
    }
    out
}

fn of(table: &[(&'static str, Effect)], path: &str) -> Option<Effect> {
    let listed = table.iter().find(|(listed, _)| *listed == path).map(|(_, effect)| *effect);
    // Of every service.
    let listed = listed.or_else(|| {
        let service = path.strip_prefix("services.")?.strip_suffix(".replicas")?;
        Service::ALL.iter().any(|known| known.field() == service).then_some(Shown("3"))
    });
    listed.or_else(|| {
        let setting = path.strip_prefix("pod.").or_else(|| path.split_once(".pod.").map(|(_, setting)| setting))?;
        POD.iter().find(|(listed, _)| *listed == setting).map(|(_, value)| Shown(value))
    })
}

#[test]
fn every_field_is_honoured() {
    let functions = functions();
    let tables = [
        ("ChatCluster", CHAT_CLUSTER),
        ("Gateway", GATEWAY),
        ("StorageShard", STORAGE_SHARD),
        ("ShardRebalance", SHARD_REBALANCE),
    ];
    let kinds = kinds();
    assert_eq!(kinds.len(), tables.len(), "a kind without a table");
    let mut wrong = Vec::new();
    for (kind, table) in tables {
        let leaves = &kinds[kind];
        wrong.extend(
            table
                .iter()
                .filter(|(path, _)| !leaves.contains(&(*path).to_owned()))
                .map(|(p, _)| format!("{kind} {p}: no such field")),
        );
        for path in leaves {
            let differs = |value: &str| {
                let fits = BESIDE.iter().filter(|(start, _)| path.starts_with(start));
                let without = fits.max_by_key(|(start, _)| start.len()).map_or(json!({}), |(_, text)| yaml(text));
                let mut with = without.clone();
                put(&mut with, path, yaml(value));
                match kind {
                    "ChatCluster" => effect(&with, None) != effect(&without, None),
                    _ => effect(&json!({}), Some(&with)) != effect(&json!({}), Some(&without)),
                }
            };
            let fault = match of(table, path) {
                None => Some("nothing shows what it does".to_owned()),
                Some(Shown(value)) => (!differs(value)).then(|| format!("{value} changes nothing")),
                Some(Proved(test)) => (!functions.contains(test)).then(|| format!("there is no test {test}")),
            };
            wrong.extend(fault.map(|fault| format!("{kind} {path}: {fault}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The pod templates by name of their Deployment or StatefulSet.
fn templates(cluster: &Value, edge: &Value) -> BTreeMap<String, Value> {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let all = effect(cluster, Some(edge)).into_iter();
    all.filter(|o| o["spec"]["template"].is_object()).map(|o| (name(&o), o["spec"]["template"].clone())).collect()
}

#[test]
fn a_change_restarts_the_pods_that_read_it_and_no_others() {
    const BOTH: &[&str] = &["chat-edge-api", "chat-edge-gateway"];
    let mut at_the_log: Vec<String> =
        Service::ALL.iter().filter(|s| s.log().is_used()).map(|s| format!("chat-{}", s.name())).collect();
    at_the_log.sort();
    let at_the_log: Vec<&str> = at_the_log.iter().map(String::as_str).collect();
    let external = "{eventLog: {external: {bootstrapServers: ['a:9092']}}}";
    for (before, after, restarted) in [
        ("{}", "{auth: {tokenTtl: 1h}}", &["chat-business"][..]),
        ("{}", "{auth: {keyRotationInterval: 1h}}", &[]),
        ("{}", "{storage: {durability: {ackReplicas: 2}}}", &["chat-0-valkey", "chat-storage"]),
        ("{}", "{storage: {durability: {whenDegraded: accept}}}", &[]),
        ("{}", "{storage: {maxMemory: 100Mi}}", &["chat-0-valkey"]),
        ("{}", "{storage: {shards: 4, replicas: 3}}", &[]),
        ("{}", "{eventLog: {retention: 2h}}", &[]),
        ("{}", "{eventLog: {managed: {heapSize: 300Mi}}}", &["chat-kafka"]),
        ("{}", "{services: {tasks: {replicas: 5}}}", &[]),
        ("{}", "{services: {tasks: {pod: {labels: {team: chat}}}}}", &["chat-tasks"]),
        ("{}", "{services: {business: {exposure: {type: NodePort}}}}", &[]),
        (external, "{eventLog: {external: {bootstrapServers: ['b:9092']}}}", &at_the_log),
        (external, "{eventLog: {external: {bootstrapServers: ['a:9092'], tls: {}}}}", &at_the_log),
    ] {
        let edge = json!({});
        assert_eq!(changed(&templates(&yaml(before), &edge), &templates(&yaml(after), &edge)), restarted, "{after}");
    }
    for (after, restarted) in [
        ("{api: {limits: {burstPerUser: 7}}}", &BOTH[..1]),
        ("{api: {idleTimeout: 80s, allowedOrigins: ['https://a']}}", &BOTH[..1]),
        ("{websocket: {heartbeat: 11s}}", &BOTH[1..]),
        ("{websocket: {drain: {deadline: 3m}}}", &BOTH[1..]),
        ("{limits: {sentBytesPerMinutePerUser: 1Mi}}", BOTH),
        ("{api: {replicas: 5}, exposure: {type: NodePort}}", &[]),
    ] {
        let (spec, edge) = (json!({}), yaml(after));
        assert_eq!(changed(&templates(&spec, &json!({})), &templates(&spec, &edge)), restarted, "{after}");
    }
}

fn changed(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<String> {
    assert!(before.keys().eq(after.keys()));
    before.iter().filter(|(name, template)| after[*name] != **template).map(|(name, _)| name.clone()).collect()
}

#[test]
fn gateways_wait_for_what_changes_below_them_and_for_nothing_else() {
    let below = |spec: &str| {
        let cluster: ChatCluster = rendered::object(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
            "metadata": {"name": "chat", "namespace": "ns"}, "spec": yaml(spec)
        }));
        workloads::below_access(&rendered::plan(&cluster)).expect("JSON")
    };
    let plain = below("{}");
    for (spec, waits) in [
        ("{services: {sessions: {pod: {labels: {team: chat}}}}}", true),
        ("{storage: {durability: {ackReplicas: 2}}}", true),
        ("{imagePullPolicy: Always}", true),
        ("{services: {sessions: {replicas: 5}}}", false),
        ("{services: {business: {pod: {labels: {team: chat}}}}}", false),
        ("{auth: {tokenTtl: 1h}}", false),
    ] {
        assert_eq!(below(spec) != plain, waits, "{spec}");
    }
}
