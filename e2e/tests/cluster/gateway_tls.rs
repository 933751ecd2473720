//! A Gateway whose pods end TLS themselves: it comes up with its certificate, and shows the next one without a restart.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kith_crds::{Gateway, conditions, names};
use kith_e2e::{
    client::{ClientError, DeviceOptions, Draft, Trust},
    cluster::{Cluster, ClusterError},
    target::Target,
    wait::await_every,
};
use kube::{ResourceExt, api::ListParams};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::{HEAL, alone, behaviour::Proof, contained};

const NAME: &str = "tls";
const SECRET: &str = "tls-example-com";
const SOON: Duration = Duration::from_secs(15);
/// Nodes bring a changed Secret into pods within about a minute and a half, and pods look at their files every ten seconds.
const RENEWED: Duration = Duration::from_secs(240);

fn gateway(cluster: &str) -> Value {
    let pod = json!({"resources": {"requests": {"cpu": "5m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}}});
    json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "Gateway", "metadata": {"name": NAME},
        "spec": {
            "clusterRef": {"name": cluster}, "tls": {"secretRef": {"name": SECRET}}, "exposure": {"type": "NodePort"},
            "api": {"replicas": 1, "pod": pod},
            "websocket": {"replicas": 1, "drain": {"deadline": "2s"}, "pod": pod}
        }
    })
}

/// A certificate for this machine.
struct Shown {
    pem: String,
    der: Vec<u8>,
    secret: Value,
}

fn issue() -> Result<Shown, rcgen::Error> {
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": cert.pem(), "tls.key": key.serialize_pem()}
    });
    Ok(Shown { pem: cert.pem(), der: cert.der().to_vec(), secret })
}

/// Status and reason of Ready for the newest spec.
fn ready(gateway: &Gateway) -> Option<(&str, &str)> {
    let status = gateway.status.as_ref().filter(|s| s.observed_generation == gateway.metadata.generation)?;
    conditions::get(&status.conditions, conditions::READY).map(|c| (c.status.as_str(), c.reason.as_str()))
}

/// The Gateway's pods with how often their containers were started again.
async fn pods(cluster: &Cluster) -> Result<BTreeMap<String, i32>, ClusterError> {
    let selector = format!("{}={},{}={NAME}", names::LABEL_INSTANCE, cluster.name, names::LABEL_GATEWAY);
    let pods = cluster.api::<Pod>().list(&ListParams::default().labels(&selector)).await?;
    let restarts = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses.map(|c| c.restart_count).sum::<i32>()
    };
    Ok(pods
        .iter()
        .map(|pod| (format!("{} {}", pod.name_any(), pod.uid().unwrap_or_default()), restarts(pod)))
        .collect())
}

async fn apply(cluster: &Cluster, object: &Value) -> Proof {
    let output = cluster.apply(&object.to_string(), &[]).await?;
    if output.success { Ok(()) } else { Err(output.stderr.into()) }
}

#[ignore = "every night: a node takes a minute and a half to bring a renewed certificate"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_ends_tls_itself_and_shows_a_renewed_certificate_without_a_restart() -> Proof {
    let (_guard, cluster, plain) = alone().await?;
    let outcome = contained(ends_tls(&cluster, &plain)).await;
    let (gateway, secret) = (format!("gateways.kith.dev/{NAME}"), format!("secret/{SECRET}"));
    let output = cluster.kubectl(&["delete", &gateway, &secret, "--ignore-not-found"]).await?;
    assert!(output.success, "{}", output.stderr);
    await_every(Duration::from_millis(250), "its pods to be gone", HEAL, || async {
        let left = pods(&cluster).await.map_err(|e| e.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await?;
    outcome?;
    Ok(cluster.await_healthy(HEAL).await?)
}

async fn ends_tls(cluster: &Cluster, plain: &Target) -> Proof {
    let gateways = cluster.api::<Gateway>();
    apply(cluster, &gateway(&cluster.name)).await?;
    let missing = |gateway: &Gateway| ready(gateway) == Some(("False", "SecretNotFound"));
    cluster.await_object(&gateways, NAME, "the missing Secret to be named", HEAL, missing).await?;
    assert!(pods(cluster).await?.is_empty(), "no pod is made without a certificate");

    let (first, second) = (issue()?, issue()?);
    apply(cluster, &first.secret).await?;
    let is_up = |gateway: &Gateway| ready(gateway).is_some_and(|(status, _)| status == "True");
    let up = cluster.await_object(&gateways, NAME, "the Gateway to be ready", HEAL, is_up).await?;
    let addresses = up.status.and_then(|s| s.addresses).ok_or("no addresses")?;
    let port = |address: Option<String>, scheme: &str| {
        let rest = address.as_deref()?.strip_prefix(scheme)?.to_owned();
        Some(rest.trim_end_matches("/v1/connect").rsplit_once(':')?.1.to_owned())
    };
    let api = port(addresses.api.clone(), "https://").ok_or_else(|| format!("{addresses:?}"))?;
    let websocket = port(addresses.websocket.clone(), "wss://").ok_or_else(|| format!("{addresses:?}"))?;

    // Every port of a node is one of this machine, too.
    let (api, websocket) = (format!("127.0.0.1:{api}"), format!("127.0.0.1:{websocket}"));
    let trust = Trust::in_pem(format!("{}{}", first.pem, second.pem).as_bytes())?;
    let (https, wss) = (format!("https://{api}"), format!("wss://{websocket}/v1/connect"));
    let target = Target::new(&https, &wss, plain.business.clone(), plain.kafka.clone(), &cluster.name)?;
    let target = target.trusting(trust.clone())?;
    let (alice, bob) = (target.new_user("alice").await?, target.new_user("bob").await?);
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let sent = alice.api.send_until_stored(&Draft::to(&bob.id, "over TLS"), SOON).await?;
    device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).map(drop)).await?;
    for address in [&api, &websocket] {
        assert_eq!(trust.shown(address).await?, first.der, "{address}");
        let refused = Trust::in_pem(second.pem.as_bytes())?.shown(address).await;
        assert!(matches!(refused, Err(ClientError::Unanswered(_))), "another certificate is not taken for it");
    }

    let before = pods(cluster).await?;
    apply(cluster, &second.secret).await?;
    for address in [&api, &websocket] {
        await_every(Duration::from_secs(1), "the renewed certificate", RENEWED, || async {
            let shown = trust.shown(address).await.map_err(|e| e.to_string())?;
            if shown == second.der { Ok(()) } else { Err(format!("{address} shows the former one")) }
        })
        .await?;
    }
    assert_eq!(pods(cluster).await?, before, "no pod was replaced or started again");
    let sent = alice.api.send_until_stored(&Draft::to(&bob.id, "and after"), SOON).await?;
    device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).map(drop)).await?;
    assert_eq!(device.inbox(|inbox| inbox.closes.len()), 0, "the connection of before lives");

    let output = cluster.kubectl(&["delete", "secret", SECRET]).await?;
    assert!(output.success, "{}", output.stderr);
    let said = |gateway: &Gateway| {
        let conditions = gateway.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        conditions::get(conditions, conditions::PROGRESSING).is_some_and(|c| c.reason == "SecretNotFound")
    };
    let left = cluster.await_object(&gateways, NAME, "the missing Secret to be named", HEAL, said).await?;
    assert!(is_up(&left), "clients can connect all the same");
    assert_eq!(pods(cluster).await?, before);
    Ok(())
}
