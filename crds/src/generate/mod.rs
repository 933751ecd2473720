//! Makes the files that are derived from the types: the CRDs in `charts/kith-crds` and the reference `docs/crds.md`.

mod reference;
mod schema;
mod yaml;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ChatCluster, Gateway, ShardRebalance, StorageShard};

/// A file that is derived from the types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Where it lies, from the top of the repository.
    pub path: String,
    /// What it holds.
    pub content: String,
}

/// The CRDs as the API server gets them, in the order in which they depend on each other.
pub fn crds() -> Vec<CustomResourceDefinition> {
    values().into_iter().map(|value| serde_json::from_value(value).expect("a CRD stays one")).collect()
}

/// Every derived file.
pub fn files() -> Vec<GeneratedFile> {
    let crds = values();
    let mut files: Vec<_> = crds
        .iter()
        .map(|crd| GeneratedFile {
            path: format!("charts/kith-crds/templates/{}.yaml", schema::text(crd, "/spec/names/plural")),
            content: yaml::chart_template(crd),
        })
        .collect();
    files.push(GeneratedFile { path: "docs/crds.md".to_owned(), content: reference::markdown(&crds) });
    files
}

fn values() -> Vec<Value> {
    [ChatCluster::crd(), StorageShard::crd(), Gateway::crd(), ShardRebalance::crd()]
        .into_iter()
        .map(|crd| schema::finished(serde_json::to_value(crd).expect("a CRD is JSON")))
        .collect()
}
