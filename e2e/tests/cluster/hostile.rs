//! Wrong and hostile changes against the live, loaded platform: each is refused or carried out safely, and said in words.
//! `docs/hostile.md` lists them all.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use kith_crds::{ShardRebalance, StorageShard, conditions, shardrebalance::RebalancePhase};
use kith_e2e::{
    chaos::faults::await_whole,
    cluster::Cluster,
    load::{Load, LoadOptions},
    wait::await_until,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof},
    under_load,
};

const SCALED: Duration = Duration::from_secs(240);

/// What `kubectl patch` must be refused with.
const REFUSED: [(&str, &str, &str); 15] = [
    ("chatcluster/NAME", r#"{"spec":{"storage":{"partitions":2048}}}"#, "partitions is fixed at creation"),
    ("chatcluster/NAME", r#"{"spec":{"clusterName":"other"}}"#, "fixed at creation"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"shards":0}}}"#, "spec.storage.shards"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"shards":4000}}}"#, "spec.storage.shards"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"durability":{"ackReplicas":5}}}}"#, "ackReplicas"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"volume":{"size":"200Mi"}}}}"#, "volumes only grow"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"volume":{"storageClassName":"other"}}}}"#, "fixed at creation"),
    ("chatcluster/NAME", r#"{"spec":{"storage":{"maxMemory":"64Gi"}}}"#, "maxMemory"),
    ("chatcluster/NAME", r#"{"spec":{"eventLog":{"partitions":3}}}"#, "fixed at creation"),
    (
        "chatcluster/NAME",
        r#"{"spec":{"restoreFrom":{"clusterUid":"6f1d2c9e-0000-4000-8000-000000000000"}}}"#,
        "fixed at creation",
    ),
    ("storageshard/NAME-0", r#"{"spec":{"clusterRef":{"name":"other"}}}"#, "fixed at creation"),
    ("storageshard/NAME-0", r#"{"spec":{"index":7}}"#, "index is fixed at creation"),
    ("storageshard/NAME-0", r#"{"spec":{"index":null}}"#, "index is fixed at creation"),
    ("storageshard/NAME-0", r#"{"spec":{"weight":-1}}"#, "spec.weight"),
    ("storageshard/NAME-0", r#"{"spec":{"weight":1001}}"#, "spec.weight"),
];

#[tokio::test]
async fn changes_that_would_lose_data_are_refused_at_the_door() -> Proof {
    let (_guard, cluster, _) = alone().await?;
    let mut wrong = Vec::new();
    for (object, patch, words) in REFUSED {
        let object = object.replace("NAME", &cluster.name);
        let output = cluster.kubectl(&["patch", &object, "--type=merge", "--dry-run=server", "-p", patch]).await?;
        if output.success || !output.stderr.contains(words) {
            wrong.push(format!("{object} {patch}: {}{}", output.stdout, output.stderr));
        }
    }
    let shard = format!("storageshard/{}-0", cluster.name);
    let output = cluster.kubectl(&["delete", &shard, "--wait=false"]).await?;
    if output.success || !output.stderr.contains("owns 16384 slots") {
        wrong.push(format!("delete {shard}: {}{}", output.stdout, output.stderr));
    }
    let scale = format!("chatclusters.kith.dev/{}", cluster.name);
    let output = cluster.kubectl(&["scale", &scale, "--replicas=0"]).await?;
    if output.success {
        wrong.push(format!("scale to 0: {}", output.stdout));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_deleted_by_hand_are_made_again() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let name = cluster.name.clone();
    under_load(&cluster, &target, "objects deleted by hand", async |load| {
        delete::<Service>(&cluster, &format!("{name}-0-valkey")).await?;
        delete::<ConfigMap>(&cluster, &format!("{name}-storage-config")).await?;
        delete::<Secret>(&cluster, &format!("{name}-storage-tls")).await?;
        delete::<k8s_openapi::api::policy::v1::PodDisruptionBudget>(&cluster, &format!("{name}-0-valkey")).await?;
        load.all_serve(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

/// Deletes an object and waits until another of its name is there.
async fn delete<K>(cluster: &Cluster, name: &str) -> Result<(), Failure>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api = cluster.api::<K>();
    let uid = api.get(name).await?.uid();
    api.delete(name, &DeleteParams::default()).await?;
    cluster.await_object(&api, name, "it to be made again", HEAL, |object| object.uid() != uid).await?;
    Ok(())
}

/// Runs `valkey-cli` in a pod as the operator's user.
async fn valkey(cluster: &Cluster, pod: &str, command: &str) -> Result<String, Failure> {
    let secret = cluster.api::<Secret>().get(&format!("{}-valkey-users", cluster.name)).await?;
    let password = secret.data.and_then(|d| d.get("operator").map(|b| String::from_utf8_lossy(&b.0).into_owned()));
    let script = format!(
        "REDISCLI_AUTH={} valkey-cli --tls --cacert /etc/kith/tls/ca.crt --cert /etc/kith/tls/tls.crt --key /etc/kith/tls/tls.key --user operator --no-auth-warning {command}",
        password.ok_or("no password of the operator")?
    );
    let output = cluster.kubectl(&["exec", pod, "--", "sh", "-c", &script]).await?;
    if output.success { Ok(output.stdout) } else { Err(output.stderr.into()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_changed_by_hand_is_put_right() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = format!("{}-0", cluster.name);
    under_load(&cluster, &target, "engine changed by hand", async |load| {
        let primary = cluster.primary_of(&shard).await?;
        for (setting, wrong, right) in [
            ("appendfsync", "no", "always"),
            ("min-replicas-to-write", "0", "1"),
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ] {
            valkey(&cluster, &primary, &format!("CONFIG SET {setting} {wrong}")).await?;
            let set = format!("CONFIG GET {setting}");
            await_until("the setting to be put back", HEAL, || async {
                let now = valkey(&cluster, &primary, &set).await.map_err(|e| e.to_string())?;
                if now.split_whitespace().last() == Some(right) { Ok(()) } else { Err(now) }
            })
            .await?;
        }
        valkey(&cluster, &primary, "FUNCTION FLUSH").await?;
        load.all_serve(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_its_claim_is_filled_anew() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = format!("{}-0", cluster.name);
    under_load(&cluster, &target, "a replica's claim deleted", async |load| {
        let primary = cluster.primary_of(&shard).await?;
        let replica = members(&cluster, &shard).await?.into_iter().find(|p| *p != primary).ok_or("no replica")?;
        let (claim, claims) = (format!("data-{replica}"), cluster.api::<PersistentVolumeClaim>());
        let uid = claims.get(&claim).await?.uid();
        claims.delete(&claim, &DeleteParams::default()).await?;
        cluster.delete_pod(&replica, 0).await?;
        cluster.await_object(&claims, &claim, "a new claim", HEAL, |c| c.uid() != uid).await?;
        await_whole(&cluster).await?;
        load.all_serve(HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

async fn members(cluster: &Cluster, shard: &str) -> Result<Vec<String>, Failure> {
    let shard = cluster.api::<StorageShard>().get(shard).await?;
    Ok(shard.status.map(|s| s.members.into_iter().map(|m| m.pod).collect()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_a_person_gives_up_is_made_anew_and_a_primary_is_not() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = format!("{}-0", cluster.name);
    let shards = cluster.api::<StorageShard>();
    under_load(&cluster, &target, "a member given up", async |_| {
        let primary = cluster.primary_of(&shard).await?;
        let replica = members(&cluster, &shard).await?.into_iter().find(|p| *p != primary).ok_or("no replica")?;
        let uid = cluster.api::<Pod>().get(&replica).await?.uid();
        ask(&shards, &shard, Some(&replica)).await?;
        cluster.await_object(&cluster.api::<Pod>(), &replica, "another pod", HEAL, |p| p.uid() != uid).await?;
        let forgotten = |s: &StorageShard| !s.annotations().contains_key(kith_crds::names::ANNOTATION_REPLACE_MEMBER);
        cluster.await_object(&shards, &shard, "the request to be forgotten", HEAL, forgotten).await?;
        await_whole(&cluster).await?;
        let primary = cluster.primary_of(&shard).await?;
        let uid = cluster.api::<Pod>().get(&primary).await?.uid();
        ask(&shards, &shard, Some(&primary)).await?;
        let refused = |s: &StorageShard| {
            let found = s.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            conditions::get(found, conditions::DEGRADED).is_some_and(|c| c.message.contains("not made anew yet"))
        };
        cluster.await_object(&shards, &shard, "a refusal in words", HEAL, refused).await?;
        assert_eq!(uid, cluster.api::<Pod>().get(&primary).await?.uid(), "the primary is untouched");
        ask(&shards, &shard, None).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

async fn ask(shards: &kube::Api<StorageShard>, shard: &str, pod: Option<&str>) -> Result<(), Failure> {
    let patch = json!({"metadata": {"annotations": {kith_crds::names::ANNOTATION_REPLACE_MEMBER: pod}}});
    shards.patch(shard, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_raised_and_lowered_mid_move_end_as_last_asked() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let load = Load::start(&target, LoadOptions { pairs: 10, rate: 40.0, ..LoadOptions::default() }).await?;
    load.all_serve(HEAL).await?;
    let result = mid_move(&cluster).await;
    cluster.scale(1).await?;
    cluster.await_balanced(1, SCALED).await?;
    let report = load.finish(HEAL).await?;
    println!("shards changed mid-move\n{report}");
    result?;
    assert!(report.is_clean() && report.given_up == 0, "promises were broken\n{report}");
    Ok(())
}

async fn mid_move(cluster: &Cluster) -> Proof {
    cluster.scale(2).await?;
    cluster.await_moving(SCALED).await?;
    cluster.scale(1).await?;
    cluster.await_moving(SCALED).await?;
    cluster.scale(2).await?;
    cluster.await_balanced(2, SCALED).await?;
    // Nothing may own anything: nothing moves, and it is said.
    for n in 0..2 {
        cluster.weigh(&format!("{}-{n}", cluster.name), 0).await?;
    }
    let name = kith_e2e::target::unique("nowhere");
    let manifest = format!(
        "apiVersion: kith.dev/v1alpha1\nkind: ShardRebalance\nmetadata: {{name: {name}}}\nspec: {{clusterRef: {{name: {}}}}}\n",
        cluster.name
    );
    let output = cluster.apply(&manifest, &[]).await?;
    assert!(output.success, "{}", output.stderr);
    let api = cluster.api::<ShardRebalance>();
    let said = |r: &ShardRebalance| {
        r.status.as_ref().is_some_and(|s| s.phase == RebalancePhase::NotReady && s.message.is_some())
    };
    let refused = cluster.await_object(&api, &name, "a rebalance that says why it cannot be", HEAL, said).await;
    api.delete(&name, &DeleteParams::default()).await?;
    for n in 0..2 {
        cluster.weigh(&format!("{}-{n}", cluster.name), 100).await?;
    }
    refused?;
    Ok(())
}
