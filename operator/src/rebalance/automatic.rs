//! The rebalances that the operator makes itself: when a shard has no part of the data that it should have, or some that it should not.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kith_crds::{ChatCluster, ShardRebalance, ShardRebalanceSpec, names, shardrebalance::RebalancePhase};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, PostParams},
};

use super::{planner, states::World};
use crate::{apply::ApplyError, context::Context, stores::Kind};

/// Off by more than this many per cent of the number of partitions: worth a move that nobody asked for.
const BOUND: f64 = 0.05;

/// What is to be done about automatic rebalances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// One with this name is to be made.
    Make(String),
    /// These are done and stand for a wish of the past.
    Remove(Vec<String>),
}

/// Name of the automatic rebalance for these shards and weights: the same wish has the same name, so that it is made once.
pub fn name(cluster: &str, world: &World) -> String {
    let text = world.weights.iter().map(|(n, w)| format!("{n}={w}")).collect::<Vec<_>>().join(";");
    format!("{cluster}-auto-{:08x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()) & 0xffff_ffff)
}

/// Whether slots should move without a person's asking. Only numbers of partitions count here; sizes are the proposal's matter.
pub fn is_due(world: &World) -> bool {
    let loads: Vec<planner::ShardLoad> = world
        .weights
        .iter()
        .map(|(name, weight)| planner::ShardLoad {
            name: name.clone(),
            weight: *weight,
            draining: *weight == 0,
            partitions: world
                .owned
                .get(name)
                .map(|list| {
                    list.iter().map(|partition| planner::PartitionLoad { partition: *partition, bytes: 0 }).collect()
                })
                .unwrap_or_default(),
        })
        .collect();
    !world.splits.is_empty() || planner::plan(&loads, BOUND).is_ok_and(|plan| !plan.moves.is_empty())
}

/// Whether a shard owns what it must give up, or nothing of what it should have: not a matter of taste.
fn is_pressing(world: &World) -> bool {
    !world.splits.is_empty()
        || world.weights.iter().any(|(name, weight)| {
            let owns = world.owned.get(name).is_some_and(|list| !list.is_empty());
            owns == (*weight == 0)
        })
}

/// Decides. `existing` are the automatic rebalances of this ChatCluster with their phases.
pub fn wish(cluster: &str, world: &World, existing: &[(String, RebalancePhase)]) -> Wish {
    if world.whole.is_err() {
        return Wish::Nothing;
    }
    // One that is under way takes up a changed wish by itself.
    if existing.iter().any(|(_, phase)| !phase.is_final()) {
        return Wish::Nothing;
    }
    let wanted = name(cluster, world);
    let past: Vec<String> = existing.iter().map(|(name, _)| name.clone()).filter(|name| *name != wanted).collect();
    if !past.is_empty() {
        return Wish::Remove(past);
    }
    match existing.first() {
        None if is_due(world) => Wish::Make(wanted),
        // It said it was done, and is not: it is made anew. One that a person stopped stays.
        Some((_, RebalancePhase::Ready)) if is_pressing(world) && is_due(world) => Wish::Remove(vec![wanted]),
        _ => Wish::Nothing,
    }
}

/// Carries out the wish, once per pass over the ChatCluster. Only writes when the wish changed, and decides that on what the API server
/// itself has.
pub async fn ensure(context: &Context, cluster: &ChatCluster, world: &World) -> Result<(), ApplyError> {
    let (namespace, cluster_name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let known = context.stores.of_cluster::<ShardRebalance>(&namespace, &cluster_name).await?;
    if wish(&cluster_name, world, &phases(known.values())) == Wish::Nothing {
        return Ok(());
    }
    let api: Api<ShardRebalance> = Api::namespaced(context.client.clone(), &namespace);
    let failed = |e| ApplyError::kube::<ShardRebalance>(&cluster_name, e);
    let existing = api.list(&ShardRebalance::of_cluster(&cluster_name)).await.map_err(failed)?;
    match wish(&cluster_name, world, &phases(existing.iter())) {
        Wish::Nothing => Ok(()),
        Wish::Make(name) => {
            let owner = cluster.controller_owner_ref(&());
            let object = object(&cluster_name, &name, owner);
            match api
                .create(
                    &PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() },
                    &object,
                )
                .await
            {
                Ok(made) => {
                    context.stores.wrote(&made);
                    context
                        .event(
                            cluster,
                            false,
                            "RebalanceCreated",
                            &format!("the shares of the shards changed: ShardRebalance {name} moves slots"),
                        )
                        .await;
                    Ok(())
                }
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(failed(error)),
            }
        }
        Wish::Remove(list) => {
            for name in list {
                match api.delete(&name, &DeleteParams::default()).await {
                    Ok(_) => existing.iter().filter(|r| r.name_any() == name).for_each(|r| context.stores.deleted(r)),
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            Ok(())
        }
    }
}

/// Names and phases.
fn phases<'a>(rebalances: impl Iterator<Item = &'a ShardRebalance>) -> Vec<(String, RebalancePhase)> {
    rebalances.map(|r| (r.name_any(), r.status.as_ref().map(|s| s.phase).unwrap_or_default())).collect()
}

fn object(cluster: &str, name: &str, owner: Option<OwnerReference>) -> ShardRebalance {
    let mut object = ShardRebalance::new(name, ShardRebalanceSpec::automatic(cluster));
    let labels = [
        (names::LABEL_NAME, "kith"),
        (names::LABEL_INSTANCE, cluster),
        (names::LABEL_COMPONENT, "rebalance"),
        (names::LABEL_MANAGED_BY, names::FIELD_MANAGER),
    ];
    object.metadata.labels = Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect());
    object.metadata.owner_references = owner.map(|o| vec![o]);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(shards: &[(&str, u32, std::ops::Range<u32>)]) -> World {
        World {
            partitions: 64,
            whole: Ok(()),
            weights: shards.iter().map(|(n, w, _)| ((*n).to_owned(), *w)).collect(),
            owned: shards.iter().map(|(n, _, p)| ((*n).to_owned(), p.clone().collect())).collect(),
            splits: Vec::new(),
            loads: None,
        }
    }

    #[test]
    fn a_new_shard_and_a_draining_one_make_a_rebalance_once() {
        let grown = world(&[("a", 100, 0..64), ("b", 100, 0..0)]);
        let Wish::Make(name) = wish("demo", &grown, &[]) else { panic!("a rebalance") };
        assert_eq!(wish("demo", &grown, &[(name.clone(), RebalancePhase::Rebalancing)]), Wish::Nothing);
        assert_eq!(wish("demo", &grown, &[(name.clone(), RebalancePhase::Stopped)]), Wish::Nothing);
        let shrunk = world(&[("a", 100, 0..32), ("b", 0, 32..64)]);
        assert_eq!(wish("demo", &shrunk, &[(name.clone(), RebalancePhase::Ready)]), Wish::Remove(vec![name.clone()]));
        assert!(matches!(wish("demo", &shrunk, &[]), Wish::Make(other) if other != name));
    }

    #[test]
    fn an_even_cluster_and_one_in_trouble_are_left_alone() {
        assert_eq!(wish("demo", &world(&[("a", 100, 0..32), ("b", 100, 32..64)]), &[]), Wish::Nothing);
        let mut sick = world(&[("a", 100, 0..64), ("b", 100, 0..0)]);
        sick.whole = Err("b is not whole".to_owned());
        assert_eq!(wish("demo", &sick, &[]), Wish::Nothing);
    }
}
