//! Passes of the controllers against a real API server (etcd and kube-apiserver, no nodes, no other controllers).
//!
//! What needs pods is tested on the local cluster (`e2e`); here it is what the operator writes, what it does not write, and what it says.

mod brokers;
mod former;
mod gateway;

mod world;

use crate::server::ApiServer;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Event, Secret, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kith_crds::{ChatCluster, Gateway, StorageShard, conditions, names};
use kith_operator::render::{
    meta::{self, Component},
    versions::{self, PREVIOUS},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use world::World;

/// This version.
const PRESENT: &str = env!("CARGO_PKG_VERSION");

/// One server for all, since it takes seconds to start.
#[test]
fn the_operator_writes_what_is_needed_and_says_what_is_wrong() {
    let server = ApiServer::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let world = World::new(&server, PREVIOUS, "first").await;
        an_empty_spec_becomes_a_platform(&world).await;
        an_unchanged_platform_is_left_alone(&world).await;
        what_others_change_is_put_right(&world).await;
        a_new_operator_restarts_nothing(&server, &world).await;
        a_version_is_made_gone_to_and_gone_back_from(&server).await;
        somebody_elses_object_is_left_alone(&world).await;
        a_missing_secret_is_named(&world).await;
        Box::pin(gateway::pods_wait_for_their_certificate_and_outlive_it(&world)).await;
        an_invalid_spec_is_said_and_touches_nothing(&world).await;
        what_the_api_server_refuses_is_told_in_words(&world).await;
        pods_that_cannot_be_made_are_told_as_such(&server).await;
        the_data_plane_is_cared_for_whatever_else_fails(&server).await;
        a_damaged_authority_is_not_replaced(&world).await;
        what_is_being_deleted_is_not_made_again(&world).await;
        Box::pin(brokers::start_before_their_load_balancers_have_addresses(&world)).await;
        Box::pin(brokers::are_told_whether_they_have_caught_up(&world)).await;
        names_that_are_taken_are_refused_before_anything_is_made(&world).await;
        former::the_configmap_that_all_services_read_goes_with_its_last_reader(&world).await;
        nothing_is_asked_for_without_a_right(&world);
        Box::pin(with_watches_a_pass_asks_for_nothing(&server)).await;
    });
}

async fn names_that_are_taken_are_refused_before_anything_is_made(world: &World) {
    let gateways: Api<Gateway> = world.api("names");
    for (cluster, gateway) in [("a", "b-c"), ("a-b", "c")] {
        world.create_cluster("names", cluster, json!({})).await;
        world.pass("names", cluster).await;
        let object: Gateway = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": {"name": gateway},
            "spec": {"clusterRef": {"name": cluster}}
        }))
        .expect("a Gateway");
        gateways.create(&PostParams::default(), &object).await.expect("a Gateway");
    }
    let status = world.pass_gateway("names", "c").await;
    let ready = conditions::get(&status.conditions, conditions::READY).expect("the condition");
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSpec"), "{}", ready.message);
    assert!(ready.message.contains("as Gateway b-c of ChatCluster a,"), "{}", ready.message);
    let services = world.names::<Service>("names").await;
    assert!(!services.iter().any(|name| name.starts_with("a-b-c-")), "made all the same: {services:?}");
}

/// Whatever was asked of the API server, the chart grants; by resource and verb, since requests are counted by these.
fn nothing_is_asked_for_without_a_right(world: &World) {
    let granted = crate::support::rules::granted();
    let all: Vec<(String, String)> =
        granted.namespaced.into_iter().chain(granted.cluster).map(|(_, resource, verb)| (resource, verb)).collect();
    // Definitions and namespaces are made by the test itself, and so are objects that a person would make.
    let of_the_test = ["customresourcedefinitions", "namespaces"];
    let by_hand = [
        ("create", "chatclusters"),
        ("delete", "chatclusters"),
        ("create", "gateways"),
        ("get", "gateways"),
        ("patch", "gateways"),
        ("delete", "gateways"),
        ("create", "pods"),
        ("delete", "secrets"),
        ("patch", "deployments/status"),
        ("patch", "services/status"),
    ];
    let denied: Vec<_> = world
        .counts
        .snapshot()
        .into_keys()
        .filter(|(verb, what)| {
            !of_the_test.contains(&what.as_str())
                && !by_hand.contains(&(*verb, what.as_str()))
                && !all.contains(&(what.clone(), (*verb).to_owned()))
        })
        .collect();
    assert!(denied.is_empty(), "the chart does not grant what was asked for: {denied:?}");
}

async fn an_empty_spec_becomes_a_platform(world: &World) {
    world.create_cluster("empty", "demo", json!({})).await;
    world.pass("empty", "demo").await;
    let secrets: Vec<String> = world.names::<Secret>("empty").await;
    let expected = ["demo-ca", "demo-business-client", "demo-token-keys", "demo-valkey-users"].map(str::to_owned);
    for name in Component::of(PREVIOUS).map(|component| meta::tls_secret("demo", component)).chain(expected) {
        assert!(secrets.contains(&name), "{name} is missing: {secrets:?}");
    }
    // Of the version that runs.
    let own = || versions::services(PREVIOUS).into_iter().filter(|service| !service.is_at_gateways());
    let mut expected: Vec<String> = own().map(|service| format!("demo-{}-config", service.name())).collect();
    expected.extend(["demo-kafka-config", "demo-last-spec", "demo-valkey-config"].map(str::to_owned));
    expected.sort();
    assert_eq!(world.names::<ConfigMap>("empty").await, expected);
    let mut expected: Vec<String> =
        own().filter(|service| service.listens()).map(|service| format!("demo-{}", service.name())).collect();
    expected.extend(["demo-0-valkey", "demo-kafka"].map(str::to_owned));
    expected.sort();
    assert_eq!(world.names::<Service>("empty").await, expected);
    assert_eq!(world.names::<StatefulSet>("empty").await, ["demo-0-valkey", "demo-kafka"]);
    assert_eq!(world.names::<StorageShard>("empty").await, ["demo-0"]);
    assert!(world.names::<NetworkPolicy>("empty").await.contains(&"demo-default-deny".to_owned()));
    assert!(world.names::<PodDisruptionBudget>("empty").await.contains(&"demo-0-valkey".to_owned()));
    // Nothing serves, so the layers above wait.
    assert!(world.names::<Deployment>("empty").await.is_empty());
    let status = world.cluster("empty", "demo").await.status.expect("a status");
    assert_eq!(status.version.as_deref(), Some(PREVIOUS));
    assert_eq!(status.images.expect("images").kith, "kith:first");
    assert!(!conditions::is_true(&status.conditions, conditions::READY));
    assert!(!conditions::is_true(&status.conditions, conditions::STORAGE_READY), "no engine answers");
}

async fn an_unchanged_platform_is_left_alone(world: &World) {
    // The first passes may still say what the ones before them changed.
    for _ in 0..3 {
        world.pass("empty", "demo").await;
    }
    let (before, writes) = (world.counts.snapshot(), world.counts.writes());
    for _ in 0..3 {
        world.pass("empty", "demo").await;
    }
    let more: Vec<_> = world.counts.snapshot().into_iter().filter(|(k, n)| before.get(k) != Some(n)).collect();
    assert_eq!(world.counts.writes(), writes, "written without a reason: {more:?}");
}

async fn what_others_change_is_put_right(world: &World) {
    let api: Api<StatefulSet> = world.api("empty");
    let patch = json!({"spec": {"replicas": 7}});
    api.patch("demo-0-valkey", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
    let maps: Api<ConfigMap> = world.api("empty");
    maps.delete("demo-storage-config", &DeleteParams::default()).await.expect("a deletion");
    world.pass("empty", "demo").await;
    let replicas = api.get("demo-0-valkey").await.expect("the set").spec.expect("a spec").replicas;
    assert_eq!(replicas, Some(3));
    assert!(maps.get_opt("demo-storage-config").await.expect("an answer").is_some());
}

async fn a_new_operator_restarts_nothing(server: &ApiServer, world: &World) {
    let sets: Api<StatefulSet> = world.api("empty");
    let before = sets.get("demo-0-valkey").await.expect("the set").metadata.generation;
    let newer = World::new(server, PRESENT, "second").await;
    newer.pass("empty", "demo").await;
    let after = sets.get("demo-0-valkey").await.expect("the set");
    assert_eq!(after.metadata.generation, before, "the pods' template has changed");
    let status = world.cluster("empty", "demo").await.status.expect("a status");
    assert_eq!(status.images.expect("images").kith, "kith:first");
}

async fn a_version_is_made_gone_to_and_gone_back_from(server: &ApiServer) {
    let world = World::new(server, PRESENT, "present").await;
    world.create_cluster("versions", "demo", json!({"version": PREVIOUS})).await;
    let (clusters, sets): (Api<ChatCluster>, Api<StatefulSet>) = (world.api("versions"), world.api("versions"));
    for (version, tag) in [(PREVIOUS, "previous"), (PRESENT, "present"), (PREVIOUS, "previous")] {
        let patch = json!({"spec": {"version": version}});
        clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
        world.pass("versions", "demo").await;
        let status = world.cluster("versions", "demo").await.status.expect("a status");
        assert_eq!(status.version.as_deref(), Some(version));
        assert_eq!(status.images.expect("images").kith, format!("kith:{tag}"));
        let set = sets.get("demo-0-valkey").await.expect("the set").spec.expect("a spec");
        let containers = set.template.spec.expect("a template").containers;
        assert_eq!(containers[0].image, Some(format!("valkey:{tag}")));
    }
}

async fn somebody_elses_object_is_left_alone(world: &World) {
    let maps: Api<ConfigMap> = world.api("taken");
    world.namespace("taken").await;
    let theirs: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "demo-storage-config"}, "data": {"a": "b"}}))
            .expect("a map");
    maps.create(&kube::api::PostParams::default(), &theirs).await.expect("a map");
    world.create_cluster("taken", "demo", json!({})).await;
    world.pass("taken", "demo").await;
    let (status, word, message) = world.condition("taken", "demo", conditions::READY).await;
    assert_eq!((status.as_str(), word.as_str()), ("False", "ApplyFailed"));
    assert!(message.contains("ConfigMap demo-storage-config exists and does not belong to"), "{message}");
    let kept = maps.get("demo-storage-config").await.expect("the map").data.expect("data");
    assert_eq!(kept["a"], "b");
}

async fn a_missing_secret_is_named(world: &World) {
    let external = json!({"eventLog": {"external": {"bootstrapServers": ["127.0.0.1:1"],
        "sasl": {"secretRef": {"name": "kafka-login"}}}}});
    world.create_cluster("outside", "demo", external).await;
    world.pass("outside", "demo").await;
    let (status, word, message) = world.condition("outside", "demo", conditions::EVENT_LOG_READY).await;
    assert_eq!((status.as_str(), word.as_str()), ("False", "SecretNotFound"));
    assert!(message.contains("kafka-login") && message.contains("username, password"), "{message}");
    // The rest goes on.
    assert_eq!(world.names::<StatefulSet>("outside").await, ["demo-0-valkey"]);
}

async fn an_invalid_spec_is_said_and_touches_nothing(world: &World) {
    let sets: Api<StatefulSet> = world.api("empty");
    let before = sets.get("demo-0-valkey").await.expect("the set").resource_version();
    let clusters: Api<ChatCluster> = world.api("empty");
    let patch = json!({"spec": {"storage": {"pod": {"resources": {"limits": {"memory": "40Mi"}, "requests": {"memory": "40Mi"}}}}}});
    clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
    world.pass("empty", "demo").await;
    let (status, word, message) = world.condition("empty", "demo", conditions::READY).await;
    assert_eq!((status.as_str(), word.as_str()), ("False", "InvalidSpec"));
    assert!(message.contains("raise spec.storage.pod.resources.limits.memory"), "{message}");
    assert_eq!(sets.get("demo-0-valkey").await.expect("the set").resource_version(), before);
    let back = json!({"spec": {"storage": {"pod": null}}});
    clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&back)).await.expect("a patch");
    world.pass("empty", "demo").await;
    assert_ne!(world.condition("empty", "demo", conditions::READY).await.1, "InvalidSpec");
}

async fn what_the_api_server_refuses_is_told_in_words(world: &World) {
    world.namespace("ports").await;
    let port = 30_999;
    let theirs: Service = serde_json::from_value(json!({"metadata": {"name": "theirs"}, "spec": {"type": "NodePort",
        "selector": {"a": "b"}, "ports": [{"port": 1, "nodePort": port}]}}))
    .expect("a Service");
    let services: Api<Service> = world.api("ports");
    services.create(&kube::api::PostParams::default(), &theirs).await.expect("a Service");
    let spec = json!({"services": {"business": {"exposure": {"type": "NodePort", "nodePort": port}}}});
    world.create_cluster("ports", "demo", spec).await;
    world.pass("ports", "demo").await;
    let (status, word, message) = world.condition("ports", "demo", conditions::READY).await;
    assert_eq!((status.as_str(), word.as_str()), ("False", "ApplyFailed"));
    assert!(message.starts_with("Service demo-business: the API server says: "), "{message}");
    assert!(message.contains("already allocated") && message.contains("choose another nodePort"), "{message}");
    assert!(!message.contains(['{', '}']), "{message}");
}

/// No controller makes pods here, so the Event is written as the controller of StatefulSets writes it.
async fn pods_that_cannot_be_made_are_told_as_such(server: &ApiServer) {
    let world = World::new(server, PREVIOUS, "first").await;
    world.create_cluster("refused", "demo", json!({})).await;
    world.pass("refused", "demo").await;
    let sets: Api<StatefulSet> = world.api("refused");
    let set = sets.get("demo-0-valkey").await.expect("the set");
    let now = k8s_openapi::jiff::Timestamp::now();
    let event: Event = serde_json::from_value(json!({
        "metadata": {"name": "demo-0-valkey.1", "namespace": "refused"},
        "involvedObject": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo-0-valkey",
            "namespace": "refused", "uid": set.metadata.uid},
        "reason": "FailedCreate", "type": "Warning", "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        "source": {"component": "statefulset-controller"},
        "message": "create Pod demo-0-valkey-0 in StatefulSet demo-0-valkey failed error: pods \"demo-0-valkey-0\" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"
    }))
    .expect("an Event");
    world.api::<Event>("refused").create(&kube::api::PostParams::default(), &event).await.expect("an Event");
    // One that has not looked a moment ago.
    let world = World::new(server, PREVIOUS, "first").await;
    world.pass("refused", "demo").await;
    for kind in [conditions::STORAGE_READY, conditions::READY] {
        let (status, word, message) = world.condition("refused", "demo", kind).await;
        assert_eq!((status.as_str(), word.as_str()), ("False", "PodsRefused"), "{kind}: {message}");
        assert!(message.contains("exceeded quota: none") && message.contains("ResourceQuota"), "{message}");
    }
}

/// Each time by an operator that has just started and remembers nothing.
async fn the_data_plane_is_cared_for_whatever_else_fails(server: &ApiServer) {
    let first = World::new(server, PREVIOUS, "first").await;
    first.create_cluster("care", "demo", json!({"storage": {"replicas": 1}})).await;
    first.pass("care", "demo").await;
    assert_eq!(first.cared_for("care", "demo"), Some((1, 2)));
    let clusters: Api<ChatCluster> = first.api("care");
    let wrong_specs = [
        (json!({"version": "9.9.9"}), "UnsupportedVersion"),
        (json!({"storage": {"pod": {"resources": {"limits": {"memory": "40Mi"}}}}}), "InvalidSpec"),
    ];
    for (spec, reason) in wrong_specs {
        // Whatever else such a spec asks for is not done either.
        let mut patch = json!({"spec": spec});
        patch["spec"]["storage"]["replicas"] = 2.into();
        clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
        let world = World::new(server, PREVIOUS, "first").await;
        world.pass("care", "demo").await;
        let (_, word, message) = world.condition("care", "demo", conditions::READY).await;
        assert_eq!(word, reason);
        assert!(message.contains("cared for by the last spec that could be used"), "{message}");
        assert_eq!(world.cared_for("care", "demo"), Some((1, 2)), "{reason}");
        let back = json!({"spec": {"version": null, "storage": {"pod": null, "replicas": 1}}});
        clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&back)).await.expect("a patch");
    }
    // An operator two versions later carries no library of this one, and cares for it all the same.
    let later = World::new(server, "0.3.0", "third").await;
    later.pass("care", "demo").await;
    assert_eq!(later.cared_for("care", "demo"), Some((1, 2)));
    // A damaged Secret, and an object that somebody else made under a name that is needed.
    let secrets: Api<Secret> = first.api("care");
    let kept = secrets.get("demo-token-keys").await.expect("the keys").data;
    let damaged = json!({"data": {"jwks.json": "bm9uZQ=="}});
    secrets.patch("demo-token-keys", &PatchParams::default(), &Patch::Merge(&damaged)).await.expect("a patch");
    let maps: Api<ConfigMap> = first.api("care");
    maps.delete("demo-storage-config", &DeleteParams::default()).await.expect("a deletion");
    let theirs: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "demo-storage-config"}})).expect("a map");
    maps.create(&kube::api::PostParams::default(), &theirs).await.expect("a map");
    let shards: Api<StorageShard> = first.api("care");
    let hand_made: StorageShard = serde_json::from_value(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "StorageShard", "metadata": {"name": "demo-1"},
        "spec": {"clusterRef": {"name": "demo"}}
    }))
    .expect("a shard");
    shards.create(&kube::api::PostParams::default(), &hand_made).await.expect("a shard");
    let more = json!({"spec": {"storage": {"shards": 2}}});
    clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&more)).await.expect("a patch");
    let world = World::new(server, PREVIOUS, "first").await;
    world.pass("care", "demo").await;
    assert_eq!(world.cared_for("care", "demo"), Some((2, 4)));
    assert!(!conditions::is_true(&world.cluster("care", "demo").await.status.expect("a status").conditions, "Ready"));
    maps.delete("demo-storage-config", &DeleteParams::default()).await.expect("a deletion");
    let restored = json!({"data": kept});
    secrets.patch("demo-token-keys", &PatchParams::default(), &Patch::Merge(&restored)).await.expect("a patch");
    world.pass("care", "demo").await;
    assert!(maps.get_opt("demo-storage-config").await.expect("an answer").is_some(), "the rest is made when it can be");
}

async fn a_damaged_authority_is_not_replaced(world: &World) {
    let secrets: Api<Secret> = world.api("empty");
    let original = secrets.get("demo-ca").await.expect("the authority").data;
    let damaged = json!({"data": {"ca.key": "bm9uZQ=="}});
    secrets.patch("demo-ca", &PatchParams::default(), &Patch::Merge(&damaged)).await.expect("a patch");
    world.pass("empty", "demo").await;
    let (_, word, message) = world.condition("empty", "demo", conditions::READY).await;
    assert_eq!(word, "SecretInvalid");
    assert!(message.contains("put back from its copy"), "{message}");
    let restored = json!({"data": original});
    secrets.patch("demo-ca", &PatchParams::default(), &Patch::Merge(&restored)).await.expect("a patch");
    world.pass("empty", "demo").await;
    assert_ne!(world.condition("empty", "demo", conditions::READY).await.1, "SecretInvalid");
}

async fn what_is_being_deleted_is_not_made_again(world: &World) {
    let clusters: Api<ChatCluster> = world.api("empty");
    let hold = json!({"metadata": {"finalizers": ["test.example/hold"]}});
    clusters.patch("demo", &PatchParams::default(), &Patch::Merge(&hold)).await.expect("a patch");
    clusters.delete("demo", &DeleteParams::default()).await.expect("a deletion");
    let maps: Api<ConfigMap> = world.api("empty");
    maps.delete("demo-storage-config", &DeleteParams::default()).await.expect("a deletion");
    let shards: Api<StorageShard> = world.api("empty");
    shards.delete("demo-0", &DeleteParams::default()).await.expect("a deletion");
    assert!(
        shards.get("demo-0").await.expect("held by its finalizer").finalizers().contains(&names::FINALIZER.to_owned())
    );
    world.pass("empty", "demo").await;
    assert!(maps.get_opt("demo-storage-config").await.expect("an answer").is_none(), "made again");
    assert!(shards.get_opt("demo-0").await.expect("an answer").is_none(), "the finalizer is kept");
}

/// The same operator with watches: reads are free, one's own writes are seen at once, and what others do is seen as soon as it is told.
async fn with_watches_a_pass_asks_for_nothing(server: &ApiServer) {
    let world = World::watching(server, PREVIOUS, "first").await;
    world.create_cluster("watched", "demo", json!({})).await;
    // Without waiting for any watch in between.
    for _ in 0..4 {
        world.pass("watched", "demo").await;
    }
    assert_eq!(world.names::<StatefulSet>("watched").await, ["demo-0-valkey", "demo-kafka"]);
    world.caught_up("watched", "demo").await;
    let cluster = world.cluster("watched", "demo").await;
    let shards = [world.api::<StorageShard>("watched").get("demo-0").await.expect("the shard")];
    let before = world.counts.snapshot();
    for _ in 0..3 {
        world.pass_over(&cluster, &shards).await;
    }
    let asked = |(verb, what): &&(&str, String)| *verb != "watch" && what != "leases";
    let after = world.counts.snapshot();
    let more: Vec<_> = after.iter().filter(|(k, n)| asked(k) && before.get(*k) != Some(*n)).collect();
    assert!(more.is_empty(), "asked without a reason: {more:?}");
    // The API server itself is asked before a key is made anew: this one is there, whatever a watch has told.
    let secrets: Api<Secret> = world.api("watched");
    let keys = secrets.get("demo-token-keys").await.expect("the keys").data;
    let sets: Api<StatefulSet> = world.api("watched");
    let patch = json!({"spec": {"replicas": 7}});
    sets.patch("demo-0-valkey", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
    world.caught_up("watched", "demo").await;
    world.pass("watched", "demo").await;
    assert_eq!(sets.get("demo-0-valkey").await.expect("the set").spec.expect("a spec").replicas, Some(3));
    assert_eq!(secrets.get("demo-token-keys").await.expect("the keys").data, keys);
}
