//! Looks at the shards for a rebalance (I/O): whole or not, who owns what, how much it holds.

use super::{inventory, states::World};
use crate::dataplane::{
    link::Links,
    observe::{Depth, observe},
    readiness::readiness,
    types::{Desired, Observation},
};

/// One look. Sizes are measured only when asked for; when that fails the shards count as not whole.
pub async fn look(links: &Links, desired: &Desired, sizes: bool) -> World {
    let seen = observe(links, desired, Depth::Full).await;
    let mut world = of(desired, &seen);
    if sizes && world.whole.is_ok() {
        match inventory::measure(links, desired, &seen).await {
            Ok(loads) => world.loads = Some(loads),
            Err(error) => world.whole = Err(format!("the shards could not be measured: {error}")),
        }
    }
    world
}

/// What an observation says. Pure.
pub fn of(desired: &Desired, seen: &Observation) -> World {
    let ready = readiness(desired, seen);
    let (owned, splits) = inventory::partitions(desired, seen);
    World {
        partitions: desired.partitions,
        whole: ready.problems.first().map_or(Ok(()), |p| Err(p.to_string())),
        weights: desired.shards.iter().map(|s| (s.name.clone(), if s.draining { 0 } else { s.weight })).collect(),
        owned,
        splits,
        loads: None,
    }
}
