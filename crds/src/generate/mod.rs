//! Makes the files that are derived: from the types the CRDs in `charts/kith-crds` and the reference `docs/crds.md`, from the charts'
//! values the tables in their READMEs.

mod reference;
mod schema;
mod values;
mod yaml;

use std::path::Path;
use std::{fs, io};

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
    finished_crds().into_iter().map(|value| serde_json::from_value(value).expect("a CRD stays one")).collect()
}

/// Every derived file of the repository at `top`.
pub fn files(top: &Path) -> io::Result<Vec<GeneratedFile>> {
    let mut files = from_types();
    for chart in ["kith-crds", "kith-operator"] {
        let folder = format!("charts/{chart}");
        let read = |name: &str| fs::read_to_string(top.join(&folder).join(name));
        let content = values::readme(&read("README.md")?, &read("values.yaml")?, &read("values.schema.json")?)
            .map_err(|error| io::Error::other(format!("{folder}: {error}")))?;
        files.push(GeneratedFile { path: format!("{folder}/README.md"), content });
    }
    Ok(files)
}

/// The files that are derived from the types.
pub fn from_types() -> Vec<GeneratedFile> {
    let crds = finished_crds();
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

fn finished_crds() -> Vec<Value> {
    [ChatCluster::crd(), StorageShard::crd(), Gateway::crd(), ShardRebalance::crd()]
        .into_iter()
        .map(|crd| schema::finished(serde_json::to_value(crd).expect("a CRD is JSON")))
        .collect()
}
