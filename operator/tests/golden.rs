//! Whole objects, as they are rendered from a manifest. A difference means that pods of running platforms would be replaced by a new
//! operator: that must be a decision, not an accident. `KITH_BLESS=1 cargo test` writes the files anew.

use std::{fs, path::PathBuf};

use kith_crds::{ChatCluster, Gateway, chatcluster::Images};
use kith_operator::{
    build::{
        kafka::{self, ExternalAddress},
        meta, network, services, settings, valkey,
    },
    gateway,
    plan::{KafkaPlan, Plan, Release},
};
use serde::Serialize;
use serde_json::Value;

const UID: &str = "0b5ff6c1-6ee2-4a6e-8c5f-5a0d3c9b7a11";

fn release() -> Release {
    let image = |name: &str| format!("registry.example/{name}:1");
    Release {
        version: "0.1.0".to_owned(),
        images: Images { kith: image("kith"), valkey: image("valkey"), kafka: image("kafka") },
    }
}

/// The objects of one kind among the documents of a manifest, as the API server would hand them out.
fn read<K: serde::de::DeserializeOwned>(manifest: &str, kind: &str) -> Option<K> {
    let documents = serde_yaml_ng::Deserializer::from_str(manifest);
    for document in documents {
        let mut value: Value = serde::Deserialize::deserialize(document).expect("YAML");
        if value["kind"] == kind {
            value["metadata"]["uid"] = UID.into();
            return Some(serde_json::from_value(value).expect("the object"));
        }
    }
    None
}

#[derive(Default)]
struct Rendered(String);

impl Rendered {
    fn add(&mut self, object: &impl Serialize) {
        let value = serde_json::to_value(object).expect("JSON");
        self.0.push_str("---\n");
        self.0.push_str(&serde_yaml_ng::to_string(&value).expect("YAML"));
    }
}

fn render(manifest: &str) -> String {
    let cluster: ChatCluster = read(manifest, "ChatCluster").expect("a ChatCluster");
    let plan = Plan::resolve(&cluster, &release()).expect("a valid spec");
    let mut all = Rendered::default();
    all.add(&valkey::config_map(&plan));
    let shard = valkey::shard(&plan, &format!("{}-0", plan.name), None);
    all.add(&shard.stateful_set);
    all.add(&shard.service);
    all.add(&shard.budget);
    if let KafkaPlan::Managed(managed) = &plan.event_log.kafka {
        let external = kafka::external_services(&plan, managed);
        let address = ExternalAddress { host: None, port: 30_094 };
        let addresses: Vec<_> = external.iter().map(|_| Some(address.clone())).collect();
        let map = kafka::config_map(&plan, managed, &addresses);
        all.add(&map);
        all.add(&kafka::stateful_set(&plan, managed, &map, "certificate", None));
        all.add(&kafka::headless(&plan));
        all.add(&kafka::budget(&plan));
        for service in &external {
            all.add(service);
        }
    }
    let config = settings::config(&plan);
    let (map, hash) =
        settings::config_map(meta::config_map(&plan.name), meta::cluster_labels(&plan.name), &config).expect("JSON");
    all.add(&map);
    for service in &plan.services {
        let objects = services::service(&plan, service, &hash);
        all.add(&objects.deployment);
        if let Some(service) = &objects.service {
            all.add(service);
        }
        all.add(&objects.budget);
    }
    for policy in &network::policies(&plan) {
        all.add(policy);
    }
    if let Some(object) = read::<Gateway>(manifest, "Gateway") {
        let objects = gateway::build::objects(&plan, &object).expect("JSON");
        all.add(&objects.config_map);
        for listener in &objects.listeners {
            all.add(&listener.deployment);
            all.add(&listener.service);
            all.add(&listener.budget);
            listener.autoscaler.iter().for_each(|scaler| all.add(scaler));
        }
        objects.ingress.iter().for_each(|ingress| all.add(ingress));
        objects.route.iter().for_each(|route| all.add(route));
    }
    all.0
}

fn compare(name: &str, manifest: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let rendered = render(manifest);
    if std::env::var_os("KITH_BLESS").is_some() {
        fs::write(&path, &rendered).expect("the golden file is written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let difference = golden.lines().zip(rendered.lines()).enumerate().find(|(_, (a, b))| a != b);
    assert!(golden == rendered, "{} differs, first at {difference:?}; KITH_BLESS=1 takes it over", path.display());
}

#[test]
fn the_objects_of_an_empty_spec_stay_as_they_are() {
    let manifest =
        "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    compare("empty.yaml", manifest);
}

#[test]
fn the_objects_of_the_sample_stay_as_they_are() {
    compare("demo.yaml", include_str!("../../examples/demo.yaml"));
}

#[test]
fn rendering_twice_gives_the_same_bytes_and_every_pod_is_restricted() {
    let manifest = include_str!("../../examples/demo.yaml");
    assert_eq!(render(manifest), render(manifest));
    for document in serde_yaml_ng::Deserializer::from_str(&render(manifest)) {
        let object: Value = serde::Deserialize::deserialize(document).expect("YAML");
        let pod = &object["spec"]["template"]["spec"];
        if pod.is_null() {
            continue;
        }
        let name = &object["metadata"]["name"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        for container in pod["containers"].as_array().expect("containers") {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name}");
        }
    }
}

#[test]
fn the_bytes_that_a_gateway_lets_a_user_send_are_what_its_pods_read() {
    let cluster = "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    let plan = Plan::resolve(&read(cluster, "ChatCluster").expect("a ChatCluster"), &release()).expect("a valid spec");
    let taken = [("128Ki", 128 << 10), ("1M", 1_000_000), ("4Mi", 4 << 20), ("1.5Mi", 3 << 19), ("1Gi", 1 << 30)];
    for (limits, bytes) in taken
        .map(|(text, bytes)| (format!("{{sentBytesPerMinutePerUser: {text}}}"), bytes))
        .into_iter()
        .chain([("{}".to_owned(), 4 << 20)])
    {
        let manifest = format!(
            "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {{name: edge, namespace: ns}}\n\
             spec: {{clusterRef: {{name: chat}}, limits: {limits}}}\n"
        );
        let gateway: Gateway = read(&manifest, "Gateway").expect("a Gateway");
        let objects = gateway::build::objects(&plan, &gateway).expect("JSON");
        let text = &objects.config_map.data.expect("data")["config.json"];
        let config: kith_kit::config::Config = serde_json::from_str(text).expect("what services read");
        config.check().expect("what services take");
        assert_eq!(config.gateway.expect("its settings").sent_bytes_per_minute, bytes, "{limits}");
    }
}

/// What the pods of a Gateway are told, for limits and listeners as in its spec.
fn gateway_settings(spec: &str) -> (kith_kit::config::Gateway, gateway::build::Objects) {
    let cluster = "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    let plan = Plan::resolve(&read(cluster, "ChatCluster").expect("a ChatCluster"), &release()).expect("a valid spec");
    let manifest = format!(
        "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {{name: edge, namespace: ns}}\nspec: {{clusterRef: {{name: chat}}, {spec}}}\n"
    );
    let gateway: Gateway = read(&manifest, "Gateway").expect("a Gateway");
    let objects = gateway::build::objects(&plan, &gateway).expect("JSON");
    let config: kith_kit::config::Config =
        serde_json::from_str(&objects.config_map.data.as_ref().expect("data")["config.json"]).expect("what pods read");
    (config.gateway.expect("its settings"), objects)
}

#[test]
fn an_amount_of_a_gateway_that_cannot_be_read_is_named_and_never_replaced_by_a_default() {
    let cluster = "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    let plan = Plan::resolve(&read(cluster, "ChatCluster").expect("a ChatCluster"), &release()).expect("a valid spec");
    for (spec, field) in [
        ("limits: {sentBytesPerMinutePerUser: 1Q}", "spec.limits.sentBytesPerMinutePerUser"),
        ("limits: {sentBytesPerMinutePerUser: 5Gi}", "spec.limits.sentBytesPerMinutePerUser"),
        ("websocket: {heartbeat: soon}", "spec.websocket.heartbeat"),
        ("websocket: {drain: {deadline: 99999h}}", "spec.websocket.drain.deadline"),
        ("api: {idleTimeout: ''}", "spec.api.idleTimeout"),
    ] {
        let manifest = format!(
            "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {{name: edge, namespace: ns}}\nspec: {{clusterRef: {{name: chat}}, {spec}}}\n"
        );
        let gateway: Gateway = read(&manifest, "Gateway").expect("a Gateway");
        let refused = gateway::build::objects(&plan, &gateway).err().expect(spec).to_string();
        assert!(refused.starts_with(field), "{refused}");
    }
}

#[test]
fn every_limit_of_a_gateway_reaches_its_pods() {
    let (default, _) = gateway_settings("api: {}");
    let limits = "api: {allowedOrigins: ['https://a'], idleTimeout: 80s, limits: {requestsPerSecondPerUser: 7, burstPerUser: 8, requestsInFlightPerPod: 9}}, \
         websocket: {allowedOrigins: ['https://b'], heartbeat: 11s, drain: {deadline: 21s, connectionsPerSecond: 22}, \
         limits: {connectionsPerPod: 12, connectionsPerUser: 13, framesPerSecond: 14, framesQueued: 17}}, \
         limits: {sentBytesPerMinutePerUser: 1Mi}";
    let (set, _) = gateway_settings(limits);
    let wanted = kith_kit::config::Gateway {
        heartbeat_ms: 11_000,
        max_connections: 12,
        max_sessions_per_user: 13,
        frames_per_second: 14,
        frames_queued: 17,
        drain_ms: 21_000,
        drain_per_second: 22,
        requests_per_second: 7,
        burst: 8,
        requests_in_flight: 9,
        sent_bytes_per_minute: 1 << 20,
        idle_ms: 80_000,
        api_origins: vec!["https://a".to_owned()],
        websocket_origins: vec!["https://b".to_owned()],
    };
    assert_eq!(set, wanted);
    assert_ne!(set, default);
}

#[test]
fn switching_autoscaling_on_leaves_as_many_pods_as_stand() {
    use k8s_openapi::api::apps::v1::Deployment;
    let (_, mut objects) = gateway_settings("api: {autoscaling: {minReplicas: 3, maxReplicas: 6}}");
    let listener = objects.listeners.iter_mut().find(|l| l.autoscaler.is_some()).expect("the API");
    for (standing, wanted) in [(None, 3), (Some(1), 3), (Some(4), 4), (Some(9), 6)] {
        let live = standing.map(|replicas| {
            let mut live = Deployment::default();
            live.spec.get_or_insert_default().replicas = Some(replicas);
            live
        });
        gateway::build::keep_scale(listener, live.as_ref());
        let replicas = listener.deployment.spec.as_ref().and_then(|spec| spec.replicas);
        assert_eq!(replicas, Some(wanted), "{standing:?}");
    }
}
