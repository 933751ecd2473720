//! The operator's context on a test API server.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Namespace};
use kith_crds::{ChatCluster, StorageShard, chatcluster::Images, conditions};
use kith_operator::{
    api_client::{self, RequestCounts},
    chatcluster,
    context::{Context, Wakes},
    lease::LeaseGuard,
    plan::Release,
    storageshard,
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
        let image = |name: &str| format!("{name}:{tag}");
        let images = Images { kith: image("kith"), valkey: image("valkey"), kafka: image("kafka") };
        let release = Release { version: version.to_owned(), images };
        let dir = tempfile::tempdir().expect("a folder");
        let (context, wakes) = Context::new(
            client.clone(),
            release,
            LeaseGuard::unopposed(),
            "test",
            dir.path().join("run"),
            CancellationToken::new(),
        );
        install_crds(&client).await;
        Self { counts, client, context, _wakes: wakes, _dir: dir }
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

async fn install_crds(client: &Client) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in kith_crds::generate::crds() {
        api.patch(&crd.name_any(), &PatchParams::apply("test").force(), &Patch::Apply(&crd))
            .await
            .expect("a definition");
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    for crd in kith_crds::generate::crds() {
        let established = |crd: &CustomResourceDefinition| {
            let conditions = crd.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
        };
        while !established(&api.get(&crd.name_any()).await.expect("the definition")) {
            assert!(std::time::Instant::now() < end, "{} is not served", crd.name_any());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
