//! A Gateway whose pods end TLS: nothing is made without the certificate, and nothing is taken away with it.

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Secret, Service},
    },
};
use kith_crds::{ChatCluster, Gateway, GatewayStatus, conditions};
use kith_operator::{plan::Plan, render::workloads};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::world::World;

/// A Secret with a new certificate and its key.
fn secret(name: &str) -> Secret {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["chat.example.com".to_owned()]).expect("names");
    let cert = params.self_signed(&key).expect("a certificate");
    let mut secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": name}, "type": "kubernetes.io/tls"})).expect("a Secret");
    let files = [("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())];
    secret.data = Some(files.map(|(file, text)| (file.to_owned(), ByteString(text.into_bytes()))).into());
    secret
}

fn said<'a>(status: &'a GatewayStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = conditions::get(&status.conditions, kind).expect("the condition");
    (&condition.status, &condition.reason, &condition.message)
}

/// Says that the layers below are rolled out, since nothing runs here.
async fn serve_logic(world: &World, namespace: &str) {
    let clusters: Api<ChatCluster> = world.api(namespace);
    let cluster = clusters.get("demo").await.expect("the ChatCluster");
    let plan = Plan::resolve(&cluster, world.release()).expect("a valid spec");
    let below = workloads::below_access(&plan).expect("JSON");
    let patch = json!({"status": {"rolledOut": below}});
    clusters.patch_status("demo", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
}

pub(crate) async fn pods_wait_for_their_certificate_and_outlive_it(world: &World) {
    let namespace = "edge";
    world.create_cluster(namespace, "demo", json!({})).await;
    world.pass(namespace, "demo").await;
    serve_logic(world, namespace).await;
    let secrets: Api<Secret> = world.api(namespace);
    let before = secrets.list(&kube::api::ListParams::default()).await.expect("Secrets").items.len();
    let gateways: Api<Gateway> = world.api(namespace);
    let gateway: Gateway = serde_json::from_value(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": {"name": "tls"},
        "spec": {"clusterRef": {"name": "demo"}, "tls": {"secretRef": {"name": "web"}}}
    }))
    .expect("a Gateway");
    gateways.create(&PostParams::default(), &gateway).await.expect("a Gateway");

    let status = world.pass_gateway(namespace, "tls").await;
    let (holds, word, message) = said(&status, conditions::READY);
    assert_eq!((holds, word), ("False", "SecretNotFound"), "{message}");
    assert!(message.contains("web") && message.contains("tls.crt and tls.key"), "{message}");
    assert!(world.names::<Deployment>(namespace).await.is_empty());

    let mut wrong = secret("web");
    wrong.data.get_or_insert_default().insert("tls.key".to_owned(), ByteString(b"none".to_vec()));
    secrets.create(&PostParams::default(), &wrong).await.expect("a Secret");
    let status = world.pass_gateway(namespace, "tls").await;
    let (holds, word, message) = said(&status, conditions::READY);
    assert_eq!((holds, word), ("False", "SecretInvalid"), "{message}");
    assert!(message.contains("tls.key"), "{message}");
    assert!(world.names::<Deployment>(namespace).await.is_empty());

    let right = json!({"data": secret("web").data});
    secrets.patch("web", &PatchParams::default(), &Patch::Merge(&right)).await.expect("a patch");
    let status = world.pass_gateway(namespace, "tls").await;
    assert_ne!(said(&status, conditions::READY).1, "SecretInvalid");
    let addresses = status.addresses.expect("addresses");
    assert!(addresses.api.is_some_and(|a| a.starts_with("https://")));
    assert!(addresses.websocket.is_some_and(|a| a.starts_with("wss://")));
    let deployments: Api<Deployment> = world.api(namespace);
    let made = deployments.get("demo-tls-api").await.expect("the Deployment");
    assert!(kith_operator::gateway::render::ends_tls(&made));
    let now = secrets.list(&kube::api::ListParams::default()).await.expect("Secrets").items.len();
    assert_eq!(now, before + 1, "the Secret is copied nowhere");
    let reads = || world.counts.snapshot().get(&("get", "secrets".to_owned())).copied().unwrap_or_default();
    let before = reads();
    world.pass_gateway(namespace, "tls").await;
    assert_eq!(reads() - before, 1, "the Secret is read once a pass");

    secrets.delete("web", &DeleteParams::default()).await.expect("a deletion");
    let status = world.pass_gateway(namespace, "tls").await;
    assert_eq!(said(&status, conditions::PROGRESSING).1, "SecretNotFound");
    let stands = deployments.get("demo-tls-api").await.expect("the Deployment");
    assert_eq!(stands.resource_version(), made.resource_version(), "nothing changes for what runs");

    a_switch_to_tls_waits_as_a_whole(world, namespace).await;
    for name in ["tls", "plain"] {
        gateways.delete(name, &DeleteParams::default()).await.expect("a deletion");
    }
}

/// Pods that speak plain HTTP keep a configuration and a Service that say so until they are replaced.
async fn a_switch_to_tls_waits_as_a_whole(world: &World, namespace: &str) {
    let gateways: Api<Gateway> = world.api(namespace);
    let gateway: Gateway = serde_json::from_value(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": {"name": "plain"},
        "spec": {"clusterRef": {"name": "demo"}}
    }))
    .expect("a Gateway");
    gateways.create(&PostParams::default(), &gateway).await.expect("a Gateway");
    world.pass_gateway(namespace, "plain").await;
    let versions = async || {
        let deployment = world.api::<Deployment>(namespace).get("demo-plain-api").await.expect("a Deployment");
        let service = world.api::<Service>(namespace).get("demo-plain-api").await.expect("a Service");
        let map = world.api::<ConfigMap>(namespace).get("demo-plain-api-config").await.expect("a ConfigMap");
        [deployment.resource_version(), service.resource_version(), map.resource_version()]
    };
    let before = versions().await;
    let tls = json!({"spec": {"tls": {"secretRef": {"name": "later"}}}});
    gateways.patch("plain", &PatchParams::default(), &Patch::Merge(&tls)).await.expect("a patch");
    let status = world.pass_gateway(namespace, "plain").await;
    assert_eq!(said(&status, conditions::READY).1, "SecretNotFound");
    assert!(status.addresses.and_then(|a| a.api).is_some_and(|a| a.starts_with("http://")), "what is spoken");
    assert_eq!(versions().await, before);
    world.api::<Secret>(namespace).create(&PostParams::default(), &secret("later")).await.expect("a Secret");
    let status = world.pass_gateway(namespace, "plain").await;
    assert!(status.addresses.and_then(|a| a.api).is_some_and(|a| a.starts_with("http://")), "who is there still");
    let [pods, service, map] = versions().await;
    assert!(pods != before[0] && service == before[1] && map != before[2], "clients follow when a new pod serves");
    let deployments: Api<Deployment> = world.api(namespace);
    let generation = deployments.get("demo-plain-api").await.expect("a Deployment").metadata.generation;
    let served = json!({"status": {"observedGeneration": generation, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 3, "availableReplicas": 3}});
    deployments.patch_status("demo-plain-api", &PatchParams::default(), &Patch::Merge(&served)).await.expect("a patch");
    let status = world.pass_gateway(namespace, "plain").await;
    assert!(status.addresses.and_then(|a| a.api).is_some_and(|a| a.starts_with("https://")));
    assert_ne!(versions().await[1], before[1], "the Service changes last");
}
