//! What the rest of Kubernetes would do for many ChatClusters: pods with addresses for each shard's StatefulSet and engines behind them, and
//! Deployments that say they serve.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Namespace, Pod, Secret},
};
use kith_crds::{ChatCluster, StorageShard, conditions, names};
use kith_kit::{
    config::Tls,
    tls::{self, ClientCerts},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{brokers::Broker, engine::Engines};

/// ChatClusters in one namespace, and of one imitated broker.
const PER_NAMESPACE: usize = 10;
/// Between two looks at Deployments.
const DEPLOYMENTS: Duration = Duration::from_secs(2);
const PORT: u16 = 6379;

/// All ChatClusters.
pub(crate) struct Platform<'a> {
    pub(crate) client: Client,
    pub(crate) clusters: usize,
    pub(crate) shards: usize,
    /// Pods of each shard.
    pub(crate) members: usize,
    /// For certificates.
    pub(crate) dir: &'a Path,
    running: HashMap<usize, Arc<Engines>>,
    brokers: Vec<Broker>,
    looked: Instant,
}

fn place(number: usize) -> (String, String) {
    (format!("bench-{:02}", number / PER_NAMESPACE), format!("c-{number}"))
}

impl<'a> Platform<'a> {
    pub(crate) fn new(client: Client, clusters: usize, shards: usize, members: usize, dir: &'a Path) -> Self {
        Self {
            client,
            clusters,
            shards,
            members,
            dir,
            running: HashMap::new(),
            brokers: Vec::new(),
            looked: Instant::now(),
        }
    }

    /// Makes the ChatClusters and the topics of each.
    pub(crate) async fn create(&mut self) {
        for number in 0..self.clusters {
            let (namespace, name) = place(number);
            if number % PER_NAMESPACE == 0 {
                let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                let api: Api<Namespace> = Api::all(self.client.clone());
                api.patch(&namespace, &PatchParams::apply("bench"), &Patch::Apply(&object)).await.expect("a namespace");
                self.brokers.push(Broker::start());
            }
            let broker = self.brokers.last().expect("a broker of this namespace");
            let cluster: ChatCluster = serde_json::from_value(json!({
                "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": name},
                "spec": {
                    "storage": {"shards": self.shards, "replicas": self.members - 1},
                    "eventLog": {"external": {"bootstrapServers": [broker.address()]}}
                }
            }))
            .expect("a ChatCluster");
            let api: Api<ChatCluster> = Api::namespaced(self.client.clone(), &namespace);
            let made = api.create(&PostParams::default(), &cluster).await.expect("a ChatCluster");
            broker.make_topics(&name, &made.uid().expect("a uid"), made.spec.event_log.partitions);
        }
        self.brokers.iter().for_each(Broker::flush);
    }

    /// Starts pods and engines of the ChatClusters whose StatefulSets and Secrets are there by now; how many run.
    pub(crate) async fn tend(&mut self) -> usize {
        for number in 0..self.clusters {
            if !self.running.contains_key(&number)
                && let Some(engines) = self.start(number).await
            {
                self.running.insert(number, engines);
            }
        }
        if self.looked.elapsed() >= DEPLOYMENTS {
            self.serve_deployments().await;
            self.looked = Instant::now();
        }
        self.running.len()
    }

    /// Every Deployment serves as soon as it is seen.
    async fn serve_deployments(&self) {
        let all: Api<Deployment> = Api::all(self.client.clone());
        for deployment in all.list(&ListParams::default().match_any()).await.expect("Deployments") {
            let generation = deployment.metadata.generation;
            if deployment.status.as_ref().and_then(|s| s.observed_generation) == generation {
                continue;
            }
            let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
            let status = json!({"status": {
                "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas,
                "readyReplicas": replicas, "availableReplicas": replicas
            }});
            let own: Api<Deployment> =
                Api::namespaced(self.client.clone(), &deployment.namespace().expect("a namespace"));
            own.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&status))
                .await
                .expect("a status");
        }
    }

    async fn start(&self, number: usize) -> Option<Arc<Engines>> {
        let (namespace, name) = place(number);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let secret = secrets.get_opt(&format!("{name}-valkey-tls")).await.expect("an answer")?;
        let selector = ListParams::default().labels(&format!(
            "{}={name},{}=valkey",
            names::LABEL_INSTANCE,
            names::LABEL_COMPONENT
        ));
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &namespace);
        let sets = api.list(&selector).await.expect("StatefulSets").items;
        if sets.len() < self.shards {
            return None;
        }
        let clusters: Api<ChatCluster> = Api::namespaced(self.client.clone(), &namespace);
        let uid = clusters.get(&name).await.expect("the ChatCluster").uid().expect("a uid");
        let sets: BTreeMap<String, StatefulSet> = sets.into_iter().map(|set| (set.name_any(), set)).collect();
        let count = self.shards * self.members;
        let addresses: Vec<SocketAddr> = (0..count).map(|n| address(number * count + n)).collect();
        let engines = Arc::new(Engines::new(number, &uid, self.shards, &addresses));
        let tls = self.acceptor(number, &secret);
        for (n, address) in addresses.iter().enumerate() {
            let listener = TcpListener::bind(address).await.unwrap_or_else(|e| panic!("{address}: {e}"));
            tokio::spawn(engines.clone().serve(n, listener, tls.clone()));
        }
        for (shard, set) in sets.values().enumerate() {
            for ordinal in 0..self.members {
                // The first members lead: one primary a node, or they would be spread.
                let node = (shard + ordinal) % self.members;
                self.pod(&namespace, set, ordinal, node, addresses[shard * self.members + ordinal]).await;
            }
            let status = json!({"status": {
                "observedGeneration": set.metadata.generation, "replicas": self.members, "readyReplicas": self.members,
                "updateRevision": "r1", "currentRevision": "r1"
            }});
            api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
        }
        Some(engines)
    }

    async fn pod(&self, namespace: &str, set: &StatefulSet, ordinal: usize, node: usize, address: SocketAddr) {
        let template = &set.spec.as_ref().expect("a spec").template;
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert("controller-revision-hash".to_owned(), "r1".to_owned());
        let spec = template.spec.as_ref().expect("a pod's spec");
        let container = spec.containers.first().expect("a container");
        let name = format!("{}-{ordinal}", set.name_any());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": [set.controller_owner_ref(&())]},
            "spec": {
                "nodeName": format!("node-{node}"), "serviceAccountName": spec.service_account_name,
                "automountServiceAccountToken": false,
                "containers": [{"name": container.name, "image": container.image, "resources": container.resources}]
            }
        }))
        .expect("a pod");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &pod).await.expect("a pod");
        let status = json!({"status": {
            "phase": "Running", "podIP": address.ip().to_string(), "podIPs": [{"ip": address.ip().to_string()}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": container.name, "image": container.image, "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
            }]
        }});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
    }

    fn acceptor(&self, number: usize, secret: &Secret) -> TlsAcceptor {
        let dir = self.dir.join(format!("tls-{number}"));
        std::fs::create_dir_all(&dir).expect("a folder");
        for (file, bytes) in secret.data.iter().flatten() {
            std::fs::write(dir.join(file), &bytes.0).expect("a file");
        }
        let config = tls::server_config(&Tls::in_dir(&dir), ClientCerts::Required).expect("a certificate");
        TlsAcceptor::from(Arc::new(config))
    }

    /// From now on it is of interest which primaries are asked.
    pub(crate) fn forget_asked(&self) {
        self.running.values().for_each(|engines| engines.forget_asked());
    }

    /// ChatClusters all of whose primaries were asked since.
    pub(crate) fn asked(&self) -> usize {
        self.running.values().filter(|engines| engines.were_asked()).count()
    }

    /// ChatClusters whose storage is ready with all its shards.
    pub(crate) async fn ready(&self) -> usize {
        let clusters: Api<ChatCluster> = Api::all(self.client.clone());
        let shards: Api<StorageShard> = Api::all(self.client.clone());
        let mut whole: HashMap<(Option<String>, String), usize> = HashMap::new();
        for shard in shards.list(&ListParams::default()).await.expect("StorageShards") {
            let conditions = shard.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if conditions::is_true(conditions, conditions::READY) {
                *whole.entry((shard.namespace(), shard.spec.cluster_ref.name.clone())).or_default() += 1;
            }
        }
        let ready = |cluster: &&ChatCluster| {
            let conditions = cluster.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            conditions::is_true(conditions, conditions::STORAGE_READY)
                && whole.get(&(cluster.namespace(), cluster.name_any())) == Some(&self.shards)
        };
        clusters.list(&ListParams::default()).await.expect("ChatClusters").iter().filter(ready).count()
    }
}

/// An address of this machine alone for each engine.
fn address(n: usize) -> SocketAddr {
    let (third, fourth) = (u8::try_from(n / 250).expect("at most 64000 engines"), (n % 250) as u8 + 1);
    SocketAddr::from((Ipv4Addr::new(127, 1, third, fourth), PORT))
}
