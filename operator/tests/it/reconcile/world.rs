//! The operator's context on a test API server.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Namespace, Secret, Service},
    },
};
use kith_crds::{ChatCluster, Gateway, GatewayStatus, StorageShard, chatcluster::Images, conditions};
use kith_operator::{
    api_client::{self, RequestCounts},
    chatcluster,
    context::{Context, Wakes},
    gateway,
    lease::LeaseGuard,
    release::Release,
    render::versions::PREVIOUS,
    storageshard,
    stores::{Kind, scopes},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::server::ApiServer;

/// One operator.
pub(crate) struct World {
    pub(crate) counts: RequestCounts,
    client: Client,
    context: Arc<Context>,
    _wakes: Wakes,
    _dir: tempfile::TempDir,
}

impl World {
    /// An operator of this version, whose images have this tag; the CRDs are installed.
    pub(crate) async fn new(server: &ApiServer, version: &str, tag: &str) -> Self {
        kith_kit::tls::install_provider();
        let mut config = Config::new(server.url().parse().expect("a URL"));
        config.accept_invalid_certs = true;
        config.auth_info.token = Some("admin".to_owned().into());
        let counts = RequestCounts::default();
        let client = api_client::client(config, counts.clone()).expect("a client");
        let images = |tag: &str| {
            let image = |name: &str| format!("{name}:{tag}");
            Images { kith: image("kith"), valkey: image("valkey"), kafka: image("kafka") }
        };
        let release = Release {
            version: version.to_owned(),
            images: images(tag),
            previous_version: PREVIOUS.to_owned(),
            previous_images: Some(images("previous")),
        };
        let dir = tempfile::tempdir().expect("a folder");
        let (context, wakes) = Context::new(
            client.clone(),
            release,
            LeaseGuard::unopposed(),
            "test",
            dir.path().join("run"),
            CancellationToken::new(),
        );
        crate::support::crds::install(&client).await;
        Self { counts, client, context, _wakes: wakes, _dir: dir }
    }

    /// The same with watches, from which its passes read.
    pub(crate) async fn watching(server: &ApiServer, version: &str, tag: &str) -> Self {
        let world = Self::new(server, version, tag).await;
        let all = scopes(Vec::new());
        let (_, leading) = tokio::sync::watch::channel(true);
        world.context.stores.watch(&all, &leading, &CancellationToken::new());
        assert!(
            world.context.stores.synced(&all[0], Duration::from_secs(30)).await,
            "a watch has not told all objects"
        );
        world
    }

    /// Waits until the watch of a kind has told what stands now.
    async fn told<K: Kind>(&self, namespace: &str, name: &str) {
        let versions = |objects: Vec<K>| -> BTreeMap<String, Option<String>> {
            objects.into_iter().map(|o| (o.name_any(), o.resource_version())).collect()
        };
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let stands = self.api::<K>(namespace).list(&K::of_cluster(name)).await.expect("a list").items;
            let known = self.context.stores.known::<K>(namespace, name).expect("it is watched");
            if versions(stands) == versions(known.into_values().collect()) {
                return;
            }
            assert!(Instant::now() < end, "the watch of {} is behind", K::kind(&()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the watches have told what stands now.
    pub(crate) async fn caught_up(&self, namespace: &str, name: &str) {
        self.told::<ChatCluster>(namespace, name).await;
        self.told::<StorageShard>(namespace, name).await;
        self.told::<ConfigMap>(namespace, name).await;
        self.told::<Secret>(namespace, name).await;
        self.told::<Service>(namespace, name).await;
        self.told::<StatefulSet>(namespace, name).await;
    }

    /// Passes over objects that were read before: what is counted is what the passes ask for themselves.
    pub(crate) async fn pass_over(&self, cluster: &ChatCluster, shards: &[StorageShard]) {
        let _ = chatcluster::reconcile(Arc::new(cluster.clone()), self.context.clone()).await;
        for shard in shards {
            let _ = storageshard::reconcile(Arc::new(shard.clone()), self.context.clone()).await;
        }
    }

    /// What the operator brings.
    pub(crate) fn release(&self) -> &Release {
        &self.context.release
    }

    /// A typed client.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Names of what the operator made, sorted.
    pub(crate) async fn names<K>(&self, namespace: &str) -> Vec<String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let made = ListParams::default().labels("app.kubernetes.io/managed-by=kith-operator");
        let list = self.api::<K>(namespace).list(&made).await.expect("a list");
        list.iter().map(ResourceExt::name_any).collect()
    }

    /// Makes a namespace unless it is there.
    pub(crate) async fn namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        api.patch(name, &PatchParams::apply("test"), &Patch::Apply(&object)).await.expect("a namespace");
    }

    /// Creates a ChatCluster and its namespace.
    pub(crate) async fn create_cluster(&self, namespace: &str, name: &str, spec: Value) {
        self.namespace(namespace).await;
        let object: ChatCluster = serde_json::from_value(json!({
            "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster", "metadata": {"name": name}, "spec": spec
        }))
        .expect("a ChatCluster");
        self.api::<ChatCluster>(namespace).create(&PostParams::default(), &object).await.expect("a ChatCluster");
    }

    /// The object as it stands.
    pub(crate) async fn cluster(&self, namespace: &str, name: &str) -> ChatCluster {
        self.api::<ChatCluster>(namespace).get(name).await.expect("the ChatCluster")
    }

    /// A pass over a Gateway; what it says afterwards.
    pub(crate) async fn pass_gateway(&self, namespace: &str, name: &str) -> GatewayStatus {
        let api: Api<Gateway> = self.api(namespace);
        let gateway = api.get(name).await.expect("the Gateway");
        let _ = gateway::reconcile(Arc::new(gateway), self.context.clone()).await;
        api.get(name).await.expect("the Gateway").status.expect("a status")
    }

    /// Status, reason and message of a condition.
    pub(crate) async fn condition(&self, namespace: &str, name: &str, kind: &str) -> (String, String, String) {
        let status = self.cluster(namespace, name).await.status.expect("a status");
        let condition = conditions::get(&status.conditions, kind).expect("the condition").clone();
        (condition.status, condition.reason, condition.message)
    }

    /// A pass over the ChatCluster, over each of its shards, and over the ChatCluster again, as the controllers' watches would cause. What
    /// a pass fails with is in conditions.
    pub(crate) async fn pass(&self, namespace: &str, name: &str) {
        let _ = chatcluster::reconcile(Arc::new(self.cluster(namespace, name).await), self.context.clone()).await;
        let shards = self.api::<StorageShard>(namespace).list(&ListParams::default()).await.expect("shards");
        for shard in shards {
            let _ = storageshard::reconcile(Arc::new(shard), self.context.clone()).await;
        }
        let _ = chatcluster::reconcile(Arc::new(self.cluster(namespace, name).await), self.context.clone()).await;
    }
}

impl World {
    /// The shards and copies that the prober of a ChatCluster looks after; none when nobody does.
    pub(crate) fn cared_for(&self, namespace: &str, name: &str) -> Option<(usize, usize)> {
        let wanted = self.context.clusters.get(namespace, name)?.wanted();
        Some((wanted.shards.len(), wanted.members().count()))
    }
}
