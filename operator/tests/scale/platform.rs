//! What the rest of Kubernetes would do for many ChatClusters: pods with addresses for each shard's StatefulSet, and engines behind them.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Namespace, Pod, Secret},
};
use kith_crds::{ChatCluster, conditions, names};
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

use crate::engine::Engines;

/// ChatClusters in one namespace.
const PER_NAMESPACE: usize = 10;
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
    running: HashSet<usize>,
}

fn place(number: usize) -> (String, String) {
    (format!("bench-{:02}", number / PER_NAMESPACE), format!("c-{}", number % PER_NAMESPACE))
}

impl<'a> Platform<'a> {
    pub(crate) fn new(client: Client, clusters: usize, shards: usize, members: usize, dir: &'a Path) -> Self {
        Self { client, clusters, shards, members, dir, running: HashSet::new() }
    }

    /// Makes the ChatClusters. Their event log is out of reach: what the operator does about that goes into the figures.
    pub(crate) async fn create(&self) {
        for number in 0..self.clusters {
            let (namespace, name) = place(number);
            if number % PER_NAMESPACE == 0 {
                let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                let api: Api<Namespace> = Api::all(self.client.clone());
                api.patch(&namespace, &PatchParams::apply("bench"), &Patch::Apply(&object)).await.expect("a namespace");
            }
            let cluster: ChatCluster = serde_json::from_value(json!({
                "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": name},
                "spec": {
                    "storage": {"shards": self.shards, "replicas": self.members - 1},
                    "eventLog": {"external": {"bootstrapServers": ["127.0.0.1:1"]}}
                }
            }))
            .expect("a ChatCluster");
            let api: Api<ChatCluster> = Api::namespaced(self.client.clone(), &namespace);
            api.create(&PostParams::default(), &cluster).await.expect("a ChatCluster");
        }
    }

    /// Starts pods and engines of the ChatClusters whose StatefulSets and Secrets are there by now; how many run.
    pub(crate) async fn tend(&mut self) -> usize {
        for number in 0..self.clusters {
            if !self.running.contains(&number) && self.start(number).await {
                self.running.insert(number);
            }
        }
        self.running.len()
    }

    async fn start(&self, number: usize) -> bool {
        let (namespace, name) = place(number);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let Some(secret) = secrets.get_opt(&format!("{name}-valkey-tls")).await.expect("an answer") else {
            return false;
        };
        let selector = ListParams::default().labels(&format!(
            "{}={name},{}=valkey",
            names::LABEL_INSTANCE,
            names::LABEL_COMPONENT
        ));
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &namespace);
        let sets = api.list(&selector).await.expect("StatefulSets").items;
        if sets.len() < self.shards {
            return false;
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
                self.pod(&namespace, set, ordinal, addresses[shard * self.members + ordinal]).await;
            }
            let status = json!({"status": {
                "observedGeneration": set.metadata.generation, "replicas": self.members, "readyReplicas": self.members,
                "updateRevision": "r1", "currentRevision": "r1"
            }});
            api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
        }
        true
    }

    async fn pod(&self, namespace: &str, set: &StatefulSet, ordinal: usize, address: SocketAddr) {
        let template = &set.spec.as_ref().expect("a spec").template;
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert("controller-revision-hash".to_owned(), "r1".to_owned());
        let spec = template.spec.as_ref().expect("a pod's spec");
        let container = spec.containers.first().expect("a container");
        let name = format!("{}-{ordinal}", set.name_any());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": [set.controller_owner_ref(&())]},
            "spec": {
                "nodeName": format!("node-{ordinal}"), "serviceAccountName": spec.service_account_name,
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

    /// ChatClusters whose storage is ready.
    pub(crate) async fn ready(&self) -> usize {
        let api: Api<ChatCluster> = Api::all(self.client.clone());
        let all = api.list(&ListParams::default()).await.expect("ChatClusters");
        let ready = |cluster: &&ChatCluster| {
            let conditions = cluster.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            conditions::is_true(conditions, conditions::STORAGE_READY)
        };
        all.iter().filter(ready).count()
    }
}

/// An address of this machine alone for each engine.
fn address(n: usize) -> SocketAddr {
    let (third, fourth) = (u8::try_from(n / 250).expect("at most 64000 engines"), (n % 250) as u8 + 1);
    SocketAddr::from((Ipv4Addr::new(127, 1, third, fourth), PORT))
}
