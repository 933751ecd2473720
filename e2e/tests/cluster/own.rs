//! A ChatCluster of a test's own, in a namespace of its own: its business line, and its end.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kith_crds::ChatCluster;
use kith_e2e::{
    business::{Business, Files},
    cluster::Cluster,
};
use kith_kit::config::Tls;
use kube::{Api, api::DeleteParams};

use crate::behaviour::{Failure, Proof};

/// The certificate of its business line, as files in a folder.
pub async fn certificate(cluster: &Cluster, folder: &Path) -> Result<Tls, Failure> {
    let secret = cluster.api::<Secret>().get(&format!("{}-business-client", cluster.name)).await?;
    let data = secret.data.ok_or("the business line has no certificate")?;
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        let bytes = data.get(file).ok_or_else(|| format!("no {file}"))?;
        std::fs::write(folder.join(file), &bytes.0)?;
    }
    Ok(Tls { ca: folder.join("ca.crt"), cert: folder.join("tls.crt"), key: folder.join("tls.key") })
}

/// Its business line at ImBusiness.
pub async fn business(cluster: &Cluster, address: &str, certificate: &Tls) -> Result<Business, Failure> {
    let Tls { ca, cert, key } = certificate;
    Ok(Business::connect_to(address, &cluster.name, Some(Files { ca, identity: Some((cert, key)) })).await?)
}

/// Ends it with its namespace; nothing to do where there is none.
pub async fn take_down(cluster: &Cluster, deadline: Duration) -> Proof {
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    if namespaces.get_opt(&cluster.namespace).await?.is_none() {
        return Ok(());
    }
    let clusters = cluster.api::<ChatCluster>();
    if clusters.get_opt(&cluster.name).await?.is_some() {
        clusters.delete(&cluster.name, &DeleteParams::foreground()).await?;
        cluster.await_gone(&clusters, &cluster.name, deadline).await?;
    }
    namespaces.delete(&cluster.namespace, &DeleteParams::default()).await?;
    Ok(cluster.await_namespace_gone(&cluster.namespace, deadline).await?)
}
