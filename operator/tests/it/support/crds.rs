//! The custom resource definitions on a test API server, as the chart installs them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};

/// Installs them.
pub(crate) async fn install(client: &Client) {
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
