//! What the operator must get right while people chat: specs that cannot be used, pods that cannot run, counts that change, keys that go and
//! authorities that take turns. Each takes minutes: they run every night.

use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod, Secret},
};
use kith_crds::{ChatCluster, Gateway, StorageShard, conditions, names};
use kith_e2e::{
    chaos::faults::{await_whole, freeze, renew_client_files},
    cluster::{Cluster, OPERATOR_NAMESPACE},
    wait::await_until,
};
use kith_platform::{Service, in_order};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    HEAL, alone,
    behaviour::{Failure, Proof},
    under_load,
};

/// How long a frozen process stays so.
const FROZEN_S: u32 = 20;
/// A pod that does not run is given up after a minute, its successor takes another.
const REPLACED: Duration = Duration::from_secs(240);
/// Until a primary acknowledges with fewer replicas than were asked for.
const LOWERED: Duration = Duration::from_secs(40);
/// Until another certificate authority signs: see `pki::rollover`.
const ROTATED: Duration = Duration::from_secs(420);

async fn patch<K>(cluster: &Cluster, name: &str, change: &Value) -> Proof
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    cluster.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

/// Changes the ChatCluster while `during` runs, and puts it back whatever comes of it.
async fn changed(
    cluster: &Cluster,
    change: &Value,
    back: &Value,
    during: impl AsyncFnOnce() -> Result<(), Failure>,
) -> Proof {
    patch::<ChatCluster>(cluster, &cluster.name, change).await?;
    let outcome = during().await;
    patch::<ChatCluster>(cluster, &cluster.name, back).await?;
    outcome
}

async fn kill_operators(cluster: &Cluster) -> Proof {
    for pod in cluster.operator_pods().await? {
        cluster.delete_pod_in(OPERATOR_NAMESPACE, &pod.name_any(), 0).await?;
    }
    Ok(())
}

async fn replicas_of(cluster: &Cluster, shard: &str) -> Result<Vec<String>, Failure> {
    let primary = cluster.primary_of(shard).await?;
    let pods = cluster.pods("valkey").await?;
    let of_shard = |p: &&Pod| p.labels().get(names::LABEL_SHARD).is_some_and(|s| s == shard);
    Ok(pods.iter().filter(of_shard).map(ResourceExt::name_any).filter(|name| *name != primary).collect())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_nobody_has_and_a_new_operator_leave_failover_as_it_was() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "version 9.9.9, operators killed, primary frozen", async |load| {
        let (change, back) = (json!({"spec": {"version": "9.9.9"}}), json!({"spec": {"version": null}}));
        changed(&cluster, &change, &back, async || {
            kill_operators(&cluster).await?;
            cluster.await_operator(HEAL).await?;
            fail_over(&cluster, &shard).await?;
            load.all_serve(HEAL).await?;
            Ok(())
        })
        .await
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_goes_on_under_an_operator_of_several_namespaces() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let second = kith_e2e::target::unique("watched");
    let namespace = serde_json::from_value(json!({"metadata": {"name": second}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let outcome = under_load(&cluster, &target, "an operator of two namespaces", async |_| {
        let outcome = async {
            watch(&cluster, Some(&format!("{},{second}", cluster.namespace))).await?;
            fail_over(&cluster, &shard).await
        };
        let outcome = outcome.await;
        watch(&cluster, None).await?;
        outcome
    })
    .await;
    namespaces.delete(&second, &DeleteParams::default()).await?;
    outcome?;
    Ok(())
}

/// Lets the operator look after these namespaces, or after all.
async fn watch(cluster: &Cluster, namespaces: Option<&str>) -> Proof {
    let operators = Api::<Deployment>::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    let env = match namespaces {
        Some(namespaces) => json!([{"name": "WATCH_NAMESPACE", "value": namespaces}]),
        None => json!([{"name": "WATCH_NAMESPACE", "$patch": "delete"}]),
    };
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "operator", "env": env}]}}}});
    operators.patch("kith-operator", &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    cluster.await_operator_rollout(HEAL).await?;
    Ok(())
}

/// Freezes a primary and waits until another takes over.
async fn fail_over(cluster: &Cluster, shard: &str) -> Proof {
    let primary = cluster.primary_of(shard).await?;
    let frozen = freeze(cluster, &primary, "valkey-server", FROZEN_S);
    let replaced = cluster.await_another_primary(shard, &primary, Duration::from_secs(FROZEN_S.into()));
    let (frozen, replaced) = tokio::join!(frozen, replaced);
    replaced?;
    frozen?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_by_force_is_refused_while_a_shard_is_well() -> Proof {
    let (_guard, cluster, _) = alone().await?;
    let shard = cluster.first_shard().await?;
    let replica = replicas_of(&cluster, &shard).await?.pop().ok_or("no replica")?;
    let word = format!("{}={replica}", names::ANNOTATION_FORCE_PROMOTE);
    let output = cluster.kubectl(&["annotate", "storageshard", &shard, &word]).await?;
    assert!(!output.success && output.stderr.contains("FailoverBlocked"), "{}{}", output.stdout, output.stderr);
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valkey_pod_that_cannot_run_gets_the_corrected_spec() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    under_load(&cluster, &target, "a Valkey pod that fits nowhere", async |load| {
        let before = cluster.chat_cluster().await?.spec.storage.pod.clone();
        let change = json!({"spec": {"storage": {"pod": {"resources": {"requests": {"cpu": "1000"}}}}}});
        let requests = before.resources.and_then(|r| r.requests.get("cpu").cloned());
        let back = json!({"spec": {"storage": {"pod": {"resources": {"requests": {"cpu": requests.map(|q| q.0)}}}}}});
        changed(&cluster, &change, &back, async || {
            await_until("a pod that fits nowhere", REPLACED, || async {
                let pods = cluster.pods("valkey").await.map_err(|e| e.to_string())?;
                let pending =
                    pods.iter().any(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending"));
                if pending { Ok(()) } else { Err("all run".to_owned()) }
            })
            .await?;
            load.progress(100, HEAL).await?;
            Ok(())
        })
        .await?;
        await_until("every pod to run again", REPLACED, || async {
            let pods = cluster.pods("valkey").await.map_err(|e| e.to_string())?;
            let waits = pods.iter().find(|p| !kith_e2e::cluster::is_ready(p));
            waits.map_or(Ok(()), |pod| Err(pod.name_any()))
        })
        .await?;
        await_whole(&cluster).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_replicas_where_that_is_accepted() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "both replicas frozen, whenDegraded accept", async |load| {
        let when = |word: &str| json!({"spec": {"storage": {"durability": {"whenDegraded": word}}}});
        changed(&cluster, &when("accept"), &when("refuse"), async || {
            let replicas = replicas_of(&cluster, &shard).await?;
            let frozen = replicas.iter().map(|pod| freeze(&cluster, pod, "valkey-server", 3 * FROZEN_S).boxed());
            let frozen = futures::future::try_join_all(frozen);
            let goes_on = async {
                // Not before the replicas have been missing for a while: until then writes wait.
                let lowered = |s: &StorageShard| {
                    let found = s.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                    let degraded = conditions::get(found, conditions::DEGRADED);
                    degraded.is_some_and(|c| c.reason == conditions::reason::ACKNOWLEDGEMENT_LOWERED)
                };
                cluster.await_object(&cluster.api(), &shard, "fewer to be waited for", LOWERED, lowered).await?;
                load.progress(100, Duration::from_secs(10)).await?;
                Ok::<_, Failure>(())
            };
            let (frozen, goes_on) = tokio::join!(frozen, goes_on);
            goes_on?;
            frozen?;
            await_whole(&cluster).await?;
            Ok(())
        })
        .await
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_taken_away_and_added_while_the_primary_dies() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let shard = cluster.first_shard().await?;
    under_load(&cluster, &target, "replicas 2 → 1 → 2, primary frozen in between", async |_| {
        let replicas = |n: u32| json!({"spec": {"storage": {"replicas": n}}});
        changed(&cluster, &replicas(1), &replicas(2), async || {
            await_until("one copy less", HEAL, || async {
                let pods = cluster.pods("valkey").await.map_err(|e| e.to_string())?.len();
                if pods == 2 { Ok(()) } else { Err(format!("{pods} pods")) }
            })
            .await?;
            await_whole(&cluster).await?;
            fail_over(&cluster, &shard).await
        })
        .await?;
        // The one that was deposed has to follow before the next may fall.
        await_until("a copy in step", HEAL, || async {
            let now = cluster.api::<StorageShard>().get(&shard).await.map_err(|e| e.to_string())?;
            let ready = now.status.map_or(0, |s| s.ready_members);
            if ready >= 2 { Ok(()) } else { Err(format!("{ready} in step")) }
        })
        .await?;
        fail_over(&cluster, &shard).await?;
        await_whole(&cluster).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_platform_is_known_by_is_put_back_when_it_is_deleted() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let identity = ["ca", "token-keys", "valkey-users"].map(|part| format!("{}-{part}", cluster.name));
    under_load(&cluster, &target, "authority, token keys and engine users deleted", async |load| {
        let secrets = cluster.api::<Secret>();
        let mut before = BTreeMap::new();
        for name in &identity {
            before.insert(name, secrets.get(name).await?);
        }
        for name in &identity {
            secrets.delete(name, &DeleteParams::default()).await?;
        }
        for (name, gone) in &before {
            let made = |secret: &Secret| secret.uid() != gone.uid();
            let again = cluster.await_object(&secrets, name, "it to be put back", HEAL, made).await?;
            assert!(again.data == gone.data, "{name} says what it said");
        }
        load.progress(100, HEAL).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_certificate_authority_takes_over_without_a_pause() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let ca = format!("{}-ca", cluster.name);
    let file = |secret: &Secret, name: &str| secret.data.as_ref().and_then(|d| d.get(name)).map(|b| b.0.clone());
    under_load(&cluster, &target, "certificate authority replaced", async |load| {
        let secrets = cluster.api::<Secret>();
        let before = file(&secrets.get(&ca).await?, "ca.crt");
        let word =
            |word: Option<&str>| json!({"metadata": {"annotations": {names::ANNOTATION_ROTATE_AUTHORITY: word}}});
        patch::<ChatCluster>(&cluster, &cluster.name, &word(Some("now"))).await?;
        let signs = |secret: &Secret| file(secret, "ca.crt") != before;
        cluster.await_object(&secrets, &ca, "another authority to sign", ROTATED, signs).await?;
        load.progress(100, HEAL).await?;
        patch::<ChatCluster>(&cluster, &cluster.name, &word(Some("forget-previous"))).await?;
        let forgotten = |secret: &Secret| file(secret, "previous.crt").is_none();
        cluster.await_object(&secrets, &ca, "the one before to be forgotten", ROTATED, forgotten).await?;
        let taken_up = |c: &ChatCluster| !c.annotations().contains_key(names::ANNOTATION_ROTATE_AUTHORITY);
        cluster.await_object(&cluster.api(), &cluster.name, "the word to be taken away", HEAL, taken_up).await?;
        // Whoever starts now has only ever known the new one; whoever stands has taken it up.
        for service in in_order(Service::ALL.iter().copied()).into_iter().filter(|service| service.is_below_access()) {
            let pod = cluster.pods(service.name()).await?.pop().ok_or(service.name())?;
            cluster.delete_pod(&pod.name_any(), 30).await?;
        }
        load.progress(100, HEAL).await?;
        // What is read back afterwards is read with what everybody trusts now.
        renew_client_files().await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[ignore = "every night"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autoscaling_switched_on_takes_no_pod_away() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let gateways = cluster.api::<Gateway>();
    let name =
        gateways.list(&ListParams::default()).await?.items.first().map(ResourceExt::name_any).ok_or("no Gateway")?;
    let deployment = format!("{}-{name}-api", cluster.name);
    let replicas = |wanted: i32| {
        move |d: &Deployment| {
            d.spec.as_ref().and_then(|s| s.replicas) == Some(wanted)
                && d.status.as_ref().and_then(|s| s.ready_replicas) == Some(wanted)
        }
    };
    let before = gateways.get(&name).await?.spec.api.replicas;
    let off = json!({"spec": {"api": {"autoscaling": null, "replicas": before}}});
    let uids = async || {
        let pods = cluster.pods("api").await?;
        Ok::<_, Failure>(pods.iter().filter_map(ResourceExt::uid).collect::<std::collections::BTreeSet<_>>())
    };
    let switched = async |load: &kith_e2e::load::Load| -> Proof {
        patch::<Gateway>(&cluster, &name, &json!({"spec": {"api": {"replicas": 3}}})).await?;
        cluster.await_object(&cluster.api(), &deployment, "three pods", HEAL, replicas(3)).await?;
        let stand = uids().await?;
        let scaling = json!({"spec": {"api": {"autoscaling": {"minReplicas": 3, "maxReplicas": 5}}}});
        patch::<Gateway>(&cluster, &name, &scaling).await?;
        let scaler = cluster.api::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>();
        cluster.await_object(&scaler, &deployment, "an autoscaler", HEAL, |_| true).await?;
        load.progress(400, HEAL).await?;
        if uids().await? == stand { Ok(()) } else { Err("pods came or went".into()) }
    };
    under_load(&cluster, &target, "autoscaling switched on", async |load| {
        let outcome = switched(load).await;
        patch::<Gateway>(&cluster, &name, &off).await?;
        let before = i32::try_from(before)?;
        cluster.await_object(&cluster.api(), &deployment, "the pods of before", HEAL, replicas(before)).await?;
        outcome
    })
    .await?;
    Ok(())
}
