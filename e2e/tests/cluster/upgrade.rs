//! A platform of the previous release is upgraded while people chat, and taken back: the operator first, which restarts nothing, then the
//! ChatCluster, layer by layer. `make upgrade` brings the previous release up for it.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kith_crds::{ChatCluster, ChatClusterStatus, chatcluster::Images, names};
use kith_e2e::{
    chaos::READ_BACK,
    cluster::{Cluster, OPERATOR_NAMESPACE},
    env::workspace,
    load::{Load, LoadOptions},
    wait::await_until,
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof},
};

/// This version.
const PRESENT: &str = env!("CARGO_PKG_VERSION");
/// The version that the platform has at first, and the commit that it was built from.
const PREVIOUS: &str = include_str!("../../local/previous-release");
/// A rollout through all layers, drained Gateways included.
const ROLLED: Duration = Duration::from_secs(600);
/// Messages a second: with each failed try one in a thousand is soon reached.
const RATE: f64 = 60.0;
/// Longer than the pause between two passes over a platform with nothing to do: 12 s of messages.
const SOME_PASSES: u64 = 720;
/// Tries that may fail for each message that is acknowledged.
const FAILED_SHARE: f64 = 0.001;

#[ignore = "make upgrade"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_is_upgraded_and_taken_back_under_load() -> Proof {
    let values =
        std::env::var("KITH_UPGRADE_VALUES").map_err(|_| "KITH_UPGRADE_VALUES is not set: run make upgrade")?;
    let previous = PREVIOUS.split_whitespace().next().ok_or("the file names no version")?;
    let (_guard, cluster, target) = alone().await?;
    let at_first = status(&cluster).await?;
    assert_eq!(at_first.version.as_deref(), Some(previous), "this platform is not of the previous release");
    let load = Load::start(&target, LoadOptions { pairs: 20, rate: RATE, ..LoadOptions::default() }).await?;
    load.all_serve(HEAL).await?;

    load.ledger().injected("the operator is upgraded");
    let before = Standing::of(&cluster).await?;
    upgrade_operator(&cluster, &values).await?;
    // The version that runs anyway, as a change that only a pass of the new operator answers.
    ask_for(&cluster, previous).await?;
    load.progress(SOME_PASSES, HEAL).await?;
    cluster.await_healthy(HEAL).await?;
    assert_eq!(before, Standing::of(&cluster).await?, "the new operator has changed what runs");

    let mut images = at_first.images;
    for (version, what) in [(PRESENT, "upgraded"), (previous, "taken back")] {
        load.ledger().injected(&format!("{what} to {version}"));
        let (took, now) = roll(&cluster, version).await?;
        println!("  {what} to {version}: {:.0} s", took.as_secs_f64());
        assert_ne!(images, now, "{version} has images of its own");
        images = now;
        load.all_serve(HEAL).await?;
        load.progress(SOME_PASSES, HEAL).await?;
    }

    let report = load.finish(READ_BACK).await?;
    println!("{previous} → {PRESENT} → {previous}\n{report}");
    assert!(report.is_clean(), "promises were broken\n{report}");
    // A sender gives up what must not be repeated, and what is not taken within a minute.
    assert_eq!(report.given_up, 0, "sends failed for good\n{report}");
    assert!(report.failed_share() <= FAILED_SHARE, "{:.3} % of tries failed\n{report}", report.failed_share() * 100.0);
    Ok(())
}

async fn status(cluster: &Cluster) -> Result<ChatClusterStatus, Failure> {
    Ok(cluster.chat_cluster().await?.status.ok_or("the ChatCluster has no status")?)
}

/// What would tell of a pod that was restarted or replaced, and of a template that was changed.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    /// Each pod's UID, and how often its containers were started anew.
    pods: BTreeMap<String, (Option<String>, i32)>,
    /// The generation of each StatefulSet and Deployment.
    generations: BTreeMap<String, Option<i64>>,
}

impl Standing {
    async fn of(cluster: &Cluster) -> Result<Self, Failure> {
        let restarts = |pod: &Pod| {
            let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
            containers.map(|c| c.restart_count).sum::<i32>()
        };
        let pods = cluster.all_pods().await?.into_iter().map(|p| (p.name_any(), (p.uid(), restarts(&p)))).collect();
        let all = ListParams::default();
        let sets = cluster.api::<StatefulSet>().list(&all).await?.items.into_iter().map(|s| s.metadata);
        let deployments = cluster.api::<Deployment>().list(&all).await?.items.into_iter().map(|d| d.metadata);
        let generations = sets.chain(deployments).map(|m| (m.name.unwrap_or_default(), m.generation)).collect();
        Ok(Self { pods, generations })
    }
}

/// As the chart's README says.
async fn upgrade_operator(cluster: &Cluster, values: &str) -> Proof {
    for (release, settings) in [("kith-crds", &[][..]), ("kith-operator", &["--set", values][..])] {
        let chart = workspace().join("charts").join(release).display().to_string();
        let mut arguments = vec!["upgrade", release, &chart, "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "240s"];
        arguments.extend(settings);
        let output = cluster.helm(&arguments).await?;
        if !output.success {
            return Err(format!("helm upgrade {release}: {}{}", output.stdout, output.stderr).into());
        }
    }
    cluster.await_operator_rollout(HEAL).await?;
    Ok(())
}

/// Asks for a version and waits until the operator has taken it up.
async fn ask_for(cluster: &Cluster, version: &str) -> Proof {
    let patch = Patch::Merge(json!({"spec": {"version": version}}));
    let api = cluster.api::<ChatCluster>();
    let generation = api.patch(&cluster.name, &PatchParams::default(), &patch).await?.metadata.generation;
    let taken_up = |now: &ChatCluster| {
        let status = now.status.as_ref();
        status.is_some_and(|s| s.observed_generation >= generation && s.version.as_deref() == Some(version))
    };
    cluster.await_object(&api, &cluster.name, &format!("version {version} to be taken up"), HEAL, taken_up).await?;
    Ok(())
}

/// Takes the ChatCluster to a version; answers how long it took, and with which images.
async fn roll(cluster: &Cluster, version: &str) -> Result<(Duration, Option<Images>), Failure> {
    let begun = std::time::Instant::now();
    let before = status(cluster).await?.rolled_out;
    ask_for(cluster, version).await?;
    await_until(&format!("all pods to be of {version}"), ROLLED, || async {
        let status = status(cluster).await.map_err(|e| e.to_string())?;
        if status.rolled_out.is_none() || status.rolled_out == before {
            return Err("the layers below access are not rolled out".to_owned());
        }
        let images = status.images.ok_or("no images are adopted")?;
        let pods = cluster.all_pods().await.map_err(|e| e.to_string())?;
        pods.iter().find(|pod| !is_of(pod, version, &images)).map_or(Ok(()), |pod| Err(pod.name_any()))
    })
    .await?;
    cluster.await_healthy(ROLLED).await?;
    Ok((begun.elapsed(), status(cluster).await?.images))
}

/// Whether a pod runs the image of that version, and does not say that it is of another.
fn is_of(pod: &Pod, version: &str, images: &Images) -> bool {
    let image = match pod.labels().get(names::LABEL_COMPONENT).map(String::as_str) {
        Some("valkey") => &images.valkey,
        Some("kafka") => &images.kafka,
        _ => &images.kith,
    };
    let runs = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.as_ref());
    runs == Some(image) && pod.labels().get(names::LABEL_VERSION).is_none_or(|said| said == version)
}
