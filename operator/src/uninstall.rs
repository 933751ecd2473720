//! The end of an operator that is removed for good: StorageShards are let go of, so that they can be deleted without it.
//!
//! While an operator is there, a deleted StorageShard stays until its data has moved elsewhere; a finalizer holds it. With nobody left to take
//! that away, ChatClusters and their namespaces could never be deleted. So when a release is uninstalled, this takes the finalizers away: it
//! waits for the release's lease first, after which no pod of it can put them back. Volumes are not touched, and an operator that is
//! installed later holds the shards again.

use std::{process::ExitCode, time::Duration};

use kith_crds::{ChatCluster, StorageShard, names};
use kith_kit::{telemetry, tls};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    api_client::{self, RequestCounts},
    lease::{Election, LeaseError},
    run::Place,
    storageshard,
};

/// What the pods of the release may take to end, and their lease after them; also how long another release is waited for.
const WAIT: Duration = Duration::from_secs(60);
/// The whole of it.
const DEADLINE: Duration = Duration::from_secs(150);
/// Shards read at a time.
const PAGE: u32 = 200;
/// Attempts at one shard that somebody else changes meanwhile.
const ATTEMPTS: u32 = 5;

/// Why the shards are not let go of.
#[derive(Debug, Error)]
enum UninstallError {
    /// Where the API server is.
    #[error("the API server's address is not known: {0}")]
    Config(String),
    /// The API server refused or did not answer.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// The lease was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The operator's pods go on.
    #[error("another pod of this release still holds the lease {0}: delete the operator's Deployment first")]
    Held(String),
    /// Data would be lost.
    #[error(
        "{}: being deleted while data is on it, and only the finalizer keeps it: install the operator again until it is empty, or take the finalizer away if the data may be lost",
        .0.join(", ")
    )]
    Kept(Vec<String>),
    /// It took too long.
    #[error("not done within {} s", DEADLINE.as_secs())]
    Deadline,
}

/// Runs once; fails when shards may still be held.
pub async fn uninstall(place: &Place) -> ExitCode {
    telemetry::init_tracing();
    tls::install_provider();
    let result = tokio::time::timeout(DEADLINE, start(place)).await.unwrap_or(Err(UninstallError::Deadline));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "StorageShards may still be held by the finalizer {}", names::FINALIZER);
            ExitCode::FAILURE
        }
    }
}

async fn start(place: &Place) -> Result<(), UninstallError> {
    let config = kube::Config::infer().await.map_err(|e| UninstallError::Config(e.to_string()))?;
    let client = api_client::client(config, RequestCounts::default())?;
    let election = place.election(client.clone());
    let patience = CancellationToken::new();
    let acquired = tokio::select! {
        acquired = election.acquire(&patience) => acquired,
        () = tokio::time::sleep(WAIT) => false,
    };
    if !acquired {
        let rival = election.rival().borrow().clone();
        let Some(rival) = rival else { return Err(UninstallError::Held(place.lease.clone())) };
        tracing::info!(%rival, "StorageShards are not let go of: another operator looks after them");
        return Ok(election.release().await?);
    }
    let end = CancellationToken::new();
    tokio::select! {
        lost = election.hold(&end) => lost?,
        released = release(&client, place) => released?,
    }
    remove(&election).await
}

/// The Lease has no owner that would take it along.
async fn remove(election: &Election) -> Result<(), UninstallError> {
    match election.remove().await {
        Err(LeaseError::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        done => Ok(done?),
    }
}

/// Takes the finalizers of all StorageShards that the release looked after; not of one that is being deleted and still holds data of a living
/// ChatCluster.
async fn release(client: &Client, place: &Place) -> Result<(), UninstallError> {
    let mut scopes: Vec<Api<StorageShard>> = place
        .watch_namespace
        .iter()
        .filter(|namespace| !namespace.trim().is_empty())
        .map(|namespace| Api::namespaced(client.clone(), namespace))
        .collect();
    if scopes.is_empty() {
        scopes.push(Api::all(client.clone()));
    }
    let mut kept = Vec::new();
    for scope in scopes {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match scope.list(&params).await {
                // Without the definition there are no shards.
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                page => page?,
            };
            for shard in &page.items {
                if is_needed(client, shard).await? {
                    kept.push(format!("StorageShard {}/{}", shard.namespace().unwrap_or_default(), shard.name_any()));
                } else {
                    release_one(client, shard).await?;
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
    }
    if kept.is_empty() { Ok(()) } else { Err(UninstallError::Kept(kept)) }
}

/// Whether only the finalizer keeps the shard's data.
async fn is_needed(client: &Client, shard: &StorageShard) -> Result<bool, UninstallError> {
    if shard.metadata.deletion_timestamp.is_none() || without_ours(shard).is_none() {
        return Ok(false);
    }
    let api: Api<ChatCluster> = Api::namespaced(client.clone(), &shard.namespace().unwrap_or_default());
    let cluster = api.get_opt(&shard.spec.cluster_ref.name).await?;
    Ok(!storageshard::may_go(shard, cluster.as_ref(), false))
}

async fn release_one(client: &Client, shard: &StorageShard) -> Result<(), UninstallError> {
    let (namespace, name) = (shard.namespace().unwrap_or_default(), shard.name_any());
    let api: Api<StorageShard> = Api::namespaced(client.clone(), &namespace);
    let mut current = shard.clone();
    for left in (0..ATTEMPTS).rev() {
        let Some(rest) = without_ours(&current) else { return Ok(()) };
        // The version makes the API server refuse if somebody else changed the list meanwhile.
        let patch = json!({"metadata": {"finalizers": rest, "resourceVersion": current.metadata.resource_version, "uid": current.uid()}});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                tracing::info!(%namespace, %name, "let go of");
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() && left > 0 => match api.get_opt(&name).await? {
                Some(now) => current = now,
                None => return Ok(()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The finalizers that stay; none when the shard is not held by this platform.
fn without_ours(shard: &StorageShard) -> Option<Vec<String>> {
    let ours = |finalizer: &&String| finalizer.as_str() == names::FINALIZER;
    shard.finalizers().iter().find(ours)?;
    Some(shard.finalizers().iter().filter(|f| !ours(f)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_operators_own_finalizer_is_taken_away() {
        let shard = |finalizers: &[&str]| -> StorageShard {
            let object = json!({"metadata": {"name": "demo-0", "finalizers": finalizers}, "spec": {"clusterRef": {"name": "demo"}}});
            serde_json::from_value(object).unwrap()
        };
        assert_eq!(without_ours(&shard(&["a.example/b", names::FINALIZER])), Some(vec!["a.example/b".to_owned()]));
        assert_eq!(without_ours(&shard(&[names::FINALIZER])), Some(Vec::new()));
        assert_eq!(without_ours(&shard(&["a.example/b"])), None, "nothing is written");
        assert_eq!(without_ours(&shard(&[])), None);
    }
}
