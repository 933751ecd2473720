//! Whole objects, as they are rendered from a manifest. A difference means that pods of running platforms would be replaced by a new
//! operator: that must be a decision, not an accident. `KITH_BLESS=1 cargo test` writes the files anew, but never those of a version that is
//! out, which have a folder of their own with the manifests that they are rendered from.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::support::rendered;
use kith_crds::{ChatCluster, Gateway};
use kith_operator::{
    gateway,
    render::{
        meta::{self, Component},
        versions::PREVIOUS,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The object of one kind among the documents of a manifest.
fn read<K: DeserializeOwned>(manifest: &str, kind: &str) -> Option<K> {
    for document in serde_yaml_ng::Deserializer::from_str(manifest) {
        let value: Value = serde::Deserialize::deserialize(document).expect("YAML");
        if value["kind"] == kind {
            return Some(rendered::object(value));
        }
    }
    None
}

fn render(manifest: &str) -> String {
    render_as(None, manifest)
}

/// What is rendered of a manifest whose ChatCluster names this version.
fn render_as(version: Option<&str>, manifest: &str) -> String {
    let mut cluster: ChatCluster = read(manifest, "ChatCluster").expect("a ChatCluster");
    cluster.spec.version = version.map(str::to_owned);
    let edge: Option<Gateway> = read(manifest, "Gateway");
    let yaml = |value: &Value| format!("---\n{}", serde_yaml_ng::to_string(value).expect("YAML"));
    rendered::rendered(&cluster, edge.as_ref()).iter().map(yaml).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn compare(name: &str, manifest: &str) {
    let path = folder().join(name);
    let rendered = render(manifest);
    if std::env::var_os("KITH_BLESS").is_some() {
        fs::write(&path, &rendered).expect("the golden file is written");
    }
    same(&path, &rendered, "KITH_BLESS=1 takes it over");
}

fn same(path: &Path, rendered: &str, what_to_do: &str) {
    let golden = fs::read_to_string(path).unwrap_or_default();
    let difference = golden.lines().zip(rendered.lines()).enumerate().find(|(_, (a, b))| a != b);
    assert!(golden == rendered, "{} differs, first at {difference:?}; {what_to_do}", path.display());
}

#[test]
fn the_objects_of_the_version_before_are_what_its_own_operator_made() {
    for name in ["empty", "demo", "production"] {
        let of = |ending: &str| folder().join(PREVIOUS).join(format!("{name}{ending}"));
        let manifest = fs::read_to_string(of(".manifest.yaml")).expect("a manifest");
        let rendered = render_as(Some(PREVIOUS), &manifest);
        same(&of(".yaml"), &rendered, "a new operator would restart running platforms: see render/versions.rs");
    }
}

#[test]
fn the_objects_of_an_empty_spec_stay_as_they_are() {
    let manifest =
        "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    compare("empty.yaml", manifest);
}

#[test]
fn the_objects_of_the_sample_stay_as_they_are() {
    compare("demo.yaml", include_str!("../../../examples/demo.yaml"));
}

/// Kind and name of everything that is made for a ChatCluster `c` with a Gateway `g`.
fn all_names() -> BTreeSet<(String, String)> {
    let manifest = "kind: ChatCluster
metadata: {name: c, namespace: ns}
spec: {eventLog: {managed: {externalAccess: {type: LoadBalancer}}}}
---
kind: Gateway
metadata: {name: g, namespace: ns}
spec:
  clusterRef: {name: c}
  api: {autoscaling: {minReplicas: 1, maxReplicas: 2}}
  websocket: {autoscaling: {minReplicas: 1, maxReplicas: 2}}
  exposure: {ingress: {host: chat.example.com}}
";
    let cluster = read(manifest, "ChatCluster").expect("a ChatCluster");
    let edge: Gateway = read(manifest, "Gateway").expect("a Gateway");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let named = |object: &Value| (text(&object["kind"]), text(&object["metadata"]["name"]));
    let mut all: BTreeSet<_> = rendered::rendered(&cluster, Some(&edge)).iter().map(named).collect();
    let secrets = [meta::ca_secret, meta::token_keys_secret, meta::engine_users_secret, meta::business_client_secret];
    all.extend(secrets.map(|secret| ("Secret".to_owned(), secret("c"))));
    all.insert(("ConfigMap".to_owned(), meta::last_spec_config_map("c")));
    for component in Component::all() {
        all.insert(("Secret".to_owned(), meta::tls_secret("c", component)));
        all.insert(("ServiceAccount".to_owned(), meta::component_name("c", component)));
    }
    all
}

/// Two objects `<owner>-<end>` of different owners have one name only where one end is the other's end, too.
#[test]
fn whatever_chatclusters_are_called_none_of_their_objects_has_the_name_of_anothers() {
    let (mut of_clusters, mut of_gateways) = (Vec::new(), Vec::new());
    for (kind, name) in all_names() {
        let (list, end) = match name.strip_prefix("c-g").filter(|end| end.is_empty() || end.starts_with('-')) {
            Some(end) => (&mut of_gateways, end.to_owned()),
            None => (&mut of_clusters, format!("-{}", name.strip_prefix("c-").expect("named after its ChatCluster"))),
        };
        list.push((kind, end));
    }
    assert!(of_clusters.len() > 40 && of_gateways.len() > 10, "{of_clusters:?} {of_gateways:?}");
    let ends = |a: &(String, String), b: &(String, String)| a.0 == b.0 && a.1.ends_with(&b.1);
    for own in &of_clusters {
        let shared = of_clusters.iter().find(|other| *other != own && ends(own, other));
        let shared = shared.or_else(|| of_gateways.iter().find(|other| ends(own, other) || ends(other, own)));
        assert_eq!(shared, None, "{own:?}");
    }
    // So those of Gateways are the same only where all that stands before the end is.
    for own in &of_gateways {
        assert_eq!(of_gateways.iter().find(|other| *other != own && ends(own, other)), None, "{own:?}");
    }
}

#[test]
fn rendering_twice_gives_the_same_bytes_and_every_pod_is_restricted() {
    let manifest = include_str!("../../../examples/demo.yaml");
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
    let plan = rendered::plan(&read(cluster, "ChatCluster").expect("a ChatCluster"));
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
        let objects = gateway::render::objects(&plan, &gateway).expect("JSON");
        for listener in objects.listeners {
            let text = &listener.config_map.data.expect("data")["config.json"];
            let config: kith_kit::config::Config = serde_json::from_str(text).expect("what services read");
            config.check().expect("what services take");
            assert_eq!(config.gateway.expect("its settings").sent_bytes_per_minute, bytes, "{limits}");
        }
    }
}

/// What the pods of a Gateway's API and of its WebSocket are told, for limits and listeners as in its spec.
fn gateway_settings(spec: &str) -> (Vec<kith_kit::config::Gateway>, gateway::render::Objects) {
    let cluster = "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    let plan = rendered::plan(&read(cluster, "ChatCluster").expect("a ChatCluster"));
    let manifest = format!(
        "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {{name: edge, namespace: ns}}\nspec: {{clusterRef: {{name: chat}}, {spec}}}\n"
    );
    let gateway: Gateway = read(&manifest, "Gateway").expect("a Gateway");
    let objects = gateway::render::objects(&plan, &gateway).expect("JSON");
    let settings = objects.listeners.iter().map(|listener| {
        let text = &listener.config_map.data.as_ref().expect("data")["config.json"];
        let config: kith_kit::config::Config = serde_json::from_str(text).expect("what pods read");
        config.gateway.expect("its settings")
    });
    (settings.collect(), objects)
}

#[test]
fn an_amount_of_a_gateway_that_cannot_be_read_is_named_and_never_replaced_by_a_default() {
    let cluster = "apiVersion: kith.dev/v1alpha1\nkind: ChatCluster\nmetadata: {name: chat, namespace: ns}\nspec: {}\n";
    let plan = rendered::plan(&read(cluster, "ChatCluster").expect("a ChatCluster"));
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
        let refused = gateway::render::objects(&plan, &gateway).err().expect(spec).to_string();
        assert!(refused.starts_with(field), "{refused}");
    }
}

#[test]
fn every_limit_of_a_gateway_reaches_its_pods() {
    let limits = "api: {allowedOrigins: ['https://a'], idleTimeout: 80s, limits: {requestsPerSecondPerUser: 7, burstPerUser: 8, requestsInFlightPerPod: 9}}, \
         websocket: {allowedOrigins: ['https://b'], heartbeat: 11s, drain: {deadline: 21s, connectionsPerSecond: 22}, \
         limits: {connectionsPerPod: 12, connectionsPerUser: 13, framesPerSecond: 14, framesQueued: 17}}, \
         limits: {sentBytesPerMinutePerUser: 1Mi}, tls: {secretRef: {name: web}}";
    let (set, _) = gateway_settings(limits);
    // Each listener's pods read their own settings, and are not replaced for the other's.
    let tls = kith_kit::config::CertFiles {
        cert: "/etc/kith/client-tls/tls.crt".into(),
        key: "/etc/kith/client-tls/tls.key".into(),
    };
    let common = kith_kit::config::Gateway { sent_bytes_per_minute: 1 << 20, tls: Some(tls), ..Default::default() };
    let api = kith_kit::config::Gateway {
        requests_per_second: 7,
        burst: 8,
        requests_in_flight: 9,
        idle_ms: 80_000,
        api_origins: vec!["https://a".to_owned()],
        ..common.clone()
    };
    let websocket = kith_kit::config::Gateway {
        heartbeat_ms: 11_000,
        max_connections: 12,
        max_sessions_per_user: 13,
        frames_per_second: 14,
        frames_queued: 17,
        drain_ms: 21_000,
        drain_per_second: 22,
        websocket_origins: vec!["https://b".to_owned()],
        ..common
    };
    assert_eq!(set, [api, websocket]);
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
        gateway::render::keep_scale(listener, live.as_ref());
        let replicas = listener.deployment.spec.as_ref().and_then(|spec| spec.replicas);
        assert_eq!(replicas, Some(wanted), "{standing:?}");
    }
}

#[test]
fn pods_of_a_gateway_with_tls_find_its_certificate_and_its_services_say_so() {
    let manifest = include_str!("../../../examples/production.yaml");
    let plan = rendered::plan(&read(manifest, "ChatCluster").expect("a ChatCluster"));
    let gateway: Gateway = read(manifest, "Gateway").expect("a Gateway");
    assert_eq!(gateway::render::refusal(&gateway), None);
    let objects = gateway::render::objects(&plan, &gateway).expect("JSON");
    let names = ["https", "wss"];
    assert_eq!(objects.listeners.len(), names.len());
    for (listener, name) in objects.listeners.iter().zip(names) {
        assert!(gateway::render::ends_tls(&listener.deployment) && gateway::render::is_secure(&listener.service));
        let pod = serde_json::to_value(&listener.deployment).expect("JSON")["spec"]["template"]["spec"].clone();
        let volume = pod["volumes"].as_array().expect("volumes").iter().find(|v| v["name"] == "client-tls");
        let wanted = serde_json::json!({"name": "client-tls", "secret": {"secretName": "chat-example-com-tls", "defaultMode": 0o440,
            "items": [{"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"}]}});
        assert_eq!(volume, Some(&wanted));
        let container = &pod["containers"][0];
        let mount = container["volumeMounts"].as_array().expect("mounts").iter().find(|m| m["name"] == "client-tls");
        assert_eq!(
            mount,
            Some(&serde_json::json!({"name": "client-tls", "mountPath": "/etc/kith/client-tls", "readOnly": true}))
        );
        assert_eq!(container["ports"][0]["name"], name);
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            assert_eq!(
                container[probe]["httpGet"]["port"], "admin",
                "probes stay in plain HTTP at a port of their own"
            );
        }
        let service = serde_json::to_value(&listener.service).expect("JSON");
        assert_eq!(
            (&service["spec"]["ports"][0]["name"], &service["spec"]["ports"][0]["targetPort"]),
            (&name.into(), &name.into())
        );
    }
    let (plain, objects) = gateway_settings("api: {}");
    assert!(plain.iter().all(|settings| settings.tls.is_none()));
    let texts = objects.listeners.iter().filter_map(|listener| listener.config_map.data.as_ref());
    for data in texts {
        assert!(!data["config.json"].contains("client-tls"), "an older service knows no such field");
    }
    assert!(
        objects
            .listeners
            .iter()
            .all(|l| !gateway::render::ends_tls(&l.deployment) && !gateway::render::is_secure(&l.service))
    );
}

#[test]
fn tls_in_the_pods_does_not_go_with_a_proxy_that_speaks_plain_http_to_them() {
    for (spec, refused) in [
        ("tls: {secretRef: {name: web}}, exposure: {ingress: {host: a.example.com}}", true),
        ("tls: {secretRef: {name: web}}, exposure: {httpRoute: {parentRefs: [{name: web}]}}", true),
        ("tls: {secretRef: {name: web}}, exposure: {type: NodePort}", false),
        ("exposure: {ingress: {host: a.example.com}}", false),
    ] {
        let manifest = format!(
            "apiVersion: kith.dev/v1alpha1\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{clusterRef: {{name: chat}}, {spec}}}\n"
        );
        let gateway: Gateway = read(&manifest, "Gateway").expect("a Gateway");
        assert_eq!(gateway::render::refusal(&gateway).is_some(), refused, "{spec}");
    }
}
