//! A hostile client against the live platform: one user tries everything at full rate while others chat, and no pod restarts.
//! `KITH_HOSTILE_SECONDS` sets for how long (`make nightly`: an hour), `KITH_HOSTILE_ATTACKS` what is tried, by the names in the tally.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use kith_e2e::{
    cluster::{Cluster, ClusterError},
    hostile::{self, Attack, HostileOptions},
};
use kube::ResourceExt;

use crate::{alone, behaviour::Proof};

/// Behind the node's proxy all clients have one address, so the silent connections are fewer than what one address may hold.
const SILENT: usize = 200;

/// Restarts of each pod's containers by pod and UID: a pod above its memory limit is one that was restarted.
async fn restarts(cluster: &Cluster) -> Result<BTreeMap<String, i32>, ClusterError> {
    let pods = cluster.all_pods().await?;
    let count = |pod: &k8s_openapi::api::core::v1::Pod| {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses.map(|c| c.restart_count).sum::<i32>()
    };
    Ok(pods.iter().map(|p| (format!("{} {}", p.name_any(), p.uid().unwrap_or_default()), count(p))).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hostile_client_hurts_nobody_else() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let seconds = std::env::var("KITH_HOSTILE_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let chosen = std::env::var("KITH_HOSTILE_ATTACKS").ok();
    let known = |name: &str| Attack::ALL.iter().any(|attack| attack.name() == name);
    if let Some(unknown) = chosen.iter().flat_map(|names| names.split(',')).find(|name| !known(name)) {
        return Err(format!("KITH_HOSTILE_ATTACKS: there is no attack {unknown}").into());
    }
    let is_chosen = |attack: &Attack| chosen.as_ref().is_none_or(|names| names.split(',').any(|n| n == attack.name()));
    let before = restarts(&cluster).await?;
    let look = async || match restarts(&cluster).await {
        Ok(now) if now == before => Vec::new(),
        Ok(now) => vec![format!("pods were restarted or replaced: {before:?}, then {now:?}")],
        Err(error) => vec![format!("the pods could not be looked at: {error}")],
    };
    let options = HostileOptions {
        attacks: Attack::ALL.into_iter().filter(is_chosen).collect(),
        lasts: Duration::from_secs(seconds),
        from: Ipv4Addr::LOCALHOST.into(),
        silent: SILENT,
        ..HostileOptions::default()
    };
    let outcome = hostile::run(&target, &options, look).await?;
    println!("{outcome}");
    assert!(outcome.is_clean(), "others were hurt\n{outcome}");
    for pod in cluster.all_pods().await? {
        let output = cluster.kubectl(&["logs", &pod.name_any(), "--all-containers"]).await?;
        assert!(!output.stdout.contains("panicked at"), "{} panicked:\n{}", pod.name_any(), output.stdout);
    }
    Ok(())
}
