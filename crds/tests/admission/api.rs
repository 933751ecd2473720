//! Calls to the API server as one of its users.

use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api as KubeApi, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::request::Request;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::server::ApiServer;

/// How long the API server may take to serve a new definition or policy.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// The API server as one user sees it.
pub(crate) struct Api {
    client: Client,
}

impl Api {
    /// As the user with this token.
    pub(crate) fn as_user(server: &ApiServer, token: &str) -> Self {
        let mut config = Config::new(server.url().parse().expect("a URL"));
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(token.to_owned().into());
        Self { client: Client::try_from(config).expect("a client") }
    }

    /// Installs the CRDs as the generator makes them and waits until they are served.
    pub(crate) async fn install_crds(&self) {
        let api: KubeApi<CustomResourceDefinition> = KubeApi::all(self.client.clone());
        for crd in kith_crds::generate::crds() {
            let name = crd.metadata.name.clone().expect("a name");
            let parameters = PatchParams::apply("test").validation_strict();
            api.patch(&name, &parameters, &Patch::Apply(&crd)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let end = Instant::now() + SETTLES_WITHIN;
        for plural in ["chatclusters", "storageshards", "gateways", "shardrebalances"] {
            while self.list(plural).await.is_err() {
                assert!(Instant::now() < end, "{plural} are not served");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// The definitions as the API server keeps them.
    pub(crate) async fn definition(&self, plural: &str) -> CustomResourceDefinition {
        let api: KubeApi<CustomResourceDefinition> = KubeApi::all(self.client.clone());
        api.get(&format!("{plural}.kith.dev")).await.expect("the definition")
    }

    /// Creates without keeping.
    pub(crate) async fn try_create(&self, object: &Value) -> Result<Value, String> {
        self.post(object, true).await
    }

    /// Creates.
    pub(crate) async fn create(&self, object: &Value) -> Result<Value, String> {
        self.post(object, false).await
    }

    async fn post(&self, object: &Value, dry_run: bool) -> Result<Value, String> {
        let parameters = PostParams { dry_run, field_manager: Some("test".to_owned()) };
        let body = serde_json::to_vec(object).expect("JSON");
        let mut request = Request::new(collection(object)).create(&parameters, body).expect("a request");
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().expect("a URL");
        self.client.request(request).await.map_err(words)
    }

    /// Replaces the object of the same name, without keeping when `dry_run`.
    pub(crate) async fn replace(&self, object: &Value, dry_run: bool) -> Result<Value, String> {
        let name = name(object);
        let request = Request::new(collection(object)).get(name, &kube::api::GetParams::default()).expect("a request");
        let current: Value = self.client.request(request).await.map_err(words)?;
        let mut next = object.clone();
        next["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
        let parameters = PostParams { dry_run, field_manager: Some("test".to_owned()) };
        let body = serde_json::to_vec(&next).expect("JSON");
        let mut request = Request::new(collection(object)).replace(name, &parameters, body).expect("a request");
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().expect("a URL");
        self.client.request(request).await.map_err(words)
    }

    /// Merges into the object, or into its status when `subresource` says so.
    pub(crate) async fn merge(
        &self,
        object: &Value,
        subresource: Option<&str>,
        change: &Value,
    ) -> Result<Value, String> {
        let request = Request::new(collection(object));
        let parameters = PatchParams::default();
        let request = match subresource {
            Some(part) => request.patch_subresource(part, name(object), &parameters, &Patch::Merge(change)),
            None => request.patch(name(object), &parameters, &Patch::Merge(change)),
        };
        self.client.request(request.expect("a request")).await.map_err(words)
    }

    /// Deletes.
    pub(crate) async fn delete(&self, object: &Value) -> Result<Value, String> {
        let request = Request::new(collection(object)).delete(name(object), &DeleteParams::default());
        self.client.request(request.expect("a request")).await.map_err(words)
    }

    /// Deletes all of a kind at once.
    pub(crate) async fn delete_all(&self, plural: &str) -> Result<Value, String> {
        let request = Request::new(format!("/apis/{}/namespaces/default/{plural}", kith_crds::API_VERSION));
        let request = request.delete_collection(&DeleteParams::default(), &kube::api::ListParams::default());
        self.client.request(request.expect("a request")).await.map_err(words)
    }

    async fn list(&self, plural: &str) -> Result<Value, String> {
        let request = Request::new(format!("/apis/{}/{plural}", kith_crds::API_VERSION));
        let request = request.list(&kube::api::ListParams::default()).expect("a request");
        self.client.request(request).await.map_err(words)
    }

    /// Whether the operator may do this; namespaces are named, the empty name means cluster-wide.
    pub(crate) async fn operator_may(&self, verb: &str, group: &str, resource: &str, namespace: &str) -> bool {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review: SubjectAccessReview = serde_json::from_value(json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:kith-system:kith-operator",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
                    "name": if resource == "leases" && verb != "create" { "kith-operator" } else { "" }
                }
            }
        }))
        .expect("a review");
        let api: KubeApi<SubjectAccessReview> = KubeApi::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.expect("an answer");
        answer.status.is_some_and(|status| status.allowed)
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

fn collection(object: &Value) -> String {
    let plural = match object["kind"].as_str() {
        Some("ChatCluster") => "chatclusters",
        Some("StorageShard") => "storageshards",
        Some("Gateway") => "gateways",
        Some("ShardRebalance") => "shardrebalances",
        other => panic!("no kind of Kith's: {other:?}"),
    };
    format!("/apis/{}/namespaces/default/{plural}", kith_crds::API_VERSION)
}

fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The manifest of a kind with this spec, in YAML.
pub(crate) fn manifest(kind: &str, name: &str, spec: &str) -> Value {
    let spec: Value = serde_yaml_ng::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    json!({"apiVersion": kith_crds::API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})
}
