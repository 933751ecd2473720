//! `examples/production.yaml` on three nodes, whose load balancers are played here: it becomes Ready, and its clients get through them.

use std::{collections::BTreeSet, time::Duration};

use futures::future::try_join_all;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Node, Pod, Service},
    storage::v1::StorageClass,
};
use kith_crds::{ChatCluster, Gateway, names};
use kith_e2e::{
    client::{DeviceOptions, Draft, Trust},
    cluster::{Cluster, is_ready},
    kafka::Reader,
    production,
    target::Target,
    wait::await_every,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::{
    PLATFORM,
    behaviour::{self, Failure, Proof},
    contained, own,
};

const NAMESPACE: &str = "chat";
const NAME: &str = "chat";
const SECRET: &str = "chat-example-com-tls";
/// The Services of type LoadBalancer, and the addresses that a cloud would give them: free ones of the nodes' network, which kube-proxy leads
/// to the pods.
const API: (&str, &str) = ("chat-public-api", "10.41.0.201");
const WEBSOCKET: (&str, &str) = ("chat-public-gateway", "10.41.0.202");
const BUSINESS: (&str, &str) = ("chat-business", "10.41.0.203");
const BROKERS: [(&str, &str); 3] = [
    ("chat-kafka-external-0", "10.41.0.210"),
    ("chat-kafka-external-1", "10.41.0.211"),
    ("chat-kafka-external-2", "10.41.0.212"),
];
/// Thirty-four pods start on two cores, the brokers twice.
const UP: Duration = Duration::from_secs(900);
const DOWN: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);

#[ignore = "every night: it takes a cluster of its own, a quarter of an hour and five gigabytes (e2e/local/production.sh)"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_for_production_becomes_ready_behind_load_balancers_that_take_their_time() -> Proof {
    let _guard = PLATFORM.write().await;
    let cluster = Cluster::local(NAMESPACE, NAME).await?;
    has_what_the_example_asks_for(&cluster).await?;
    own::take_down(&cluster, DOWN).await?;
    let before = memory_available()?;
    contained(prove(&cluster)).await?;
    println!("the platform takes {} MiB of the machine", before.saturating_sub(memory_available()?) >> 10);
    // What fails is left standing, to be looked at.
    own::take_down(&cluster, DOWN).await
}

/// Three zones, and the class of the volumes.
async fn has_what_the_example_asks_for(cluster: &Cluster) -> Proof {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await?;
    let zones: BTreeSet<_> = nodes.iter().filter_map(|n| n.labels().get("topology.kubernetes.io/zone")).collect();
    let class = Api::<StorageClass>::all(cluster.client.clone()).get_opt("fast-ssd").await?;
    if zones.len() < 3 || class.is_none() {
        return Err("this needs three nodes and volumes of the class fast-ssd: run e2e/local/production.sh".into());
    }
    Ok(())
}

/// What the machine could still give, KiB.
fn memory_available() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).ok_or("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The Secret with a certificate for the Gateway, and the authority that clients trust (PEM).
fn issued() -> Result<(Value, String), Failure> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "an authority of this test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let trusted = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    // Nobody here resolves the name, so clients dial, and check, the addresses.
    let names = ["chat.example.com", API.1, WEBSOCKET.1].map(str::to_owned);
    let cert = CertificateParams::new(names.to_vec())?.signed_by(&key, &issuer)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": cert.pem(), "tls.key": key.serialize_pem()}
    });
    Ok((secret, trusted))
}

async fn apply(cluster: &Cluster, manifest: &str) -> Proof {
    let output = cluster.apply(manifest, &[]).await?;
    if output.success { Ok(()) } else { Err(output.stderr.into()) }
}

/// Gives a Service its address, as the controller of a cloud's load balancers does.
async fn give_address(cluster: &Cluster, (name, address): (&str, &str)) -> Proof {
    let services = cluster.api::<Service>();
    let is_balanced = |s: &Service| s.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    cluster.await_object(&services, name, "a Service of type LoadBalancer", UP, is_balanced).await?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
    services.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

async fn prove(cluster: &Cluster) -> Proof {
    apply(cluster, &production::fitted(&production::example()?)?).await?;
    let (secret, trusted) = issued()?;
    apply(cluster, &secret.to_string()).await?;
    // The brokers' load balancers are the last to be there, and the brokers do not wait for them.
    let late = async {
        await_brokers(cluster).await?;
        try_join_all(BROKERS.map(|balancer| give_address(cluster, balancer))).await
    };
    let others = [API, WEBSOCKET, BUSINESS].map(|balancer| give_address(cluster, balancer));
    tokio::try_join!(try_join_all(others), late)?;
    cluster.await_healthy(UP).await?;
    // Each was restarted with a certificate that names its load balancer.
    await_brokers_of_the_newest_template(cluster).await?;
    cluster.await_healthy(UP).await?;
    is_spread(cluster).await?;
    clients_get_through(cluster, &trusted).await
}

async fn await_brokers(cluster: &Cluster) -> Proof {
    await_every(LOOK, "three brokers that have caught up", UP, || async {
        let pods = cluster.pods("kafka").await.map_err(|e| e.to_string())?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        if ready == BROKERS.len() { Ok(()) } else { Err(format!("{ready} of {} are ready", pods.len())) }
    })
    .await?;
    Ok(())
}

async fn await_brokers_of_the_newest_template(cluster: &Cluster) -> Proof {
    let sets = cluster.api::<StatefulSet>();
    let all_are_new = |set: &StatefulSet| {
        let status = set.status.clone().unwrap_or_default();
        let all = Some(BROKERS.len() as i32);
        status.observed_generation == set.metadata.generation
            && status.updated_replicas == all
            && status.ready_replicas == all
    };
    cluster.await_object(&sets, "chat-kafka", "all brokers to have the newest template", UP, all_are_new).await?;
    Ok(())
}

/// Copies of a shard, brokers, and pods of what has three and more of them lie on three nodes, each of which is a zone.
async fn is_spread(cluster: &Cluster) -> Proof {
    let nodes = |pods: &[Pod]| {
        let names = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        names.collect::<BTreeSet<_>>().len()
    };
    let shards = cluster.shards().await?;
    assert_eq!(shards.len(), 3);
    let engines = cluster.pods("valkey").await?;
    for shard in &shards {
        let name = shard.name_any();
        let copies: Vec<Pod> =
            engines.iter().filter(|pod| pod.labels().get(names::LABEL_SHARD) == Some(&name)).cloned().collect();
        assert_eq!((copies.len(), nodes(&copies)), (3, 3), "{name}");
    }
    let spec = cluster.api::<ChatCluster>().get(NAME).await?.spec.services;
    let services =
        kith_platform::Service::ALL.iter().filter_map(|service| Some((service.name(), spec.of(*service)?.0 as usize)));
    for (component, count) in services.chain([("kafka", 3), ("api", 3), ("gateway", 6)]) {
        let pods = cluster.pods(component).await?;
        assert_eq!((pods.len(), nodes(&pods)), (count, count.min(3)), "{component}");
    }
    Ok(())
}

/// Over TLS, through the addresses that the load balancers were given and status tells.
async fn clients_get_through(cluster: &Cluster, trusted: &str) -> Proof {
    let gateway = cluster.api::<Gateway>().get("public").await?;
    let addresses = gateway.status.and_then(|s| s.addresses).ok_or("no addresses")?;
    let (api, websocket) = (addresses.api.unwrap_or_default(), addresses.websocket.unwrap_or_default());
    assert_eq!(api, format!("https://{}:8080", API.1));
    assert_eq!(websocket, format!("wss://{}:8081/v1/connect", WEBSOCKET.1));
    let files = tempfile::tempdir()?;
    let certificate = own::certificate(cluster, files.path()).await?;
    let business = own::business(cluster, &format!("{}:7443", BUSINESS.1), &certificate).await?;
    let bootstrap = BROKERS.map(|(_, address)| format!("{address}:9094")).join(",");
    let kafka = Reader { bootstrap, certificate: Some(certificate) };
    let target = Target::new(&api, &websocket, business, kafka, NAME)?;
    let target = target.trusting(Trust::in_pem(trusted.as_bytes())?)?;
    let (alice, bob) = (target.new_user("alice").await?, target.new_user("bob").await?);
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let sent = alice.api.send_until_stored(&Draft::to(&bob.id, "through load balancers"), SOON).await?;
    device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).map(drop)).await?;
    device.stop().await;
    // The brokers are found by the names that they advertise outside.
    behaviour::log::the_event_log_replays_to_the_same_conversation(&target).await
}
