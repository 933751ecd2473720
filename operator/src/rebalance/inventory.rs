//! What each shard owns and how much it holds: ownership from the observation, bytes from `CLUSTER SLOT-STATS` and the primary's memory.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use redis::{Pipeline, Value};
use thiserror::Error;

use super::planner::{PartitionLoad, ShardLoad};
use crate::dataplane::{
    link::{LinkError, Links},
    ownership::Ownership,
    parse::{self, Info},
    slots::{SLOTS, partition_of, partition_slots},
    types::{Desired, NodeId, Observation},
};

/// Statistics of all slots of a node are a large answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why the shards could not be measured.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// A primary did not answer.
    #[error("{shard}: {source}")]
    Link {
        /// The shard.
        shard: String,
        /// Why.
        source: LinkError,
    },
    /// A shard has no primary that could be asked.
    #[error("{0} has no primary that answers")]
    NoPrimary(String),
}

/// A partition whose slots lie on more than one shard: its stray slots go back to the shard that holds its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The partition.
    pub partition: u32,
    /// The shard that owns stray slots.
    pub from: String,
    /// The shard that owns the first slot, where the keys are.
    pub to: String,
}

/// The partitions of each shard and the split ones. A partition is its first slot's owner's: that slot holds all its keys.
pub fn partitions(desired: &Desired, seen: &Observation) -> (BTreeMap<String, Vec<u32>>, Vec<Split>) {
    let ownership = Ownership::of(seen);
    let owner_shard: BTreeMap<NodeId, &str> =
        desired.shards.iter().filter_map(|s| Some((ownership.primary_of(s, seen)?, s.name.as_str()))).collect();
    let mut owned: BTreeMap<String, Vec<u32>> = desired.shards.iter().map(|s| (s.name.clone(), Vec::new())).collect();
    // Nearly all partitions lie wholly with one owner; only the others are looked at slot by slot.
    let mut whole = vec![false; usize::try_from(desired.partitions).unwrap_or_default()];
    for (id, slots) in &ownership.owners {
        let partitions = slots.whole_partitions(desired.partitions);
        for partition in &partitions {
            whole[*partition as usize] = true;
        }
        if let Some(shard) = owner_shard.get(id) {
            owned.entry((*shard).to_owned()).or_default().extend(partitions);
        }
    }
    let shard_of = |slot: u16| {
        let owner = ownership.owners.iter().find(|(_, slots)| slots.contains(slot));
        owner.and_then(|(id, _)| owner_shard.get(id).copied())
    };
    let mut splits = Vec::new();
    for partition in (0..desired.partitions).filter(|p| !whole[*p as usize]) {
        let slots = partition_slots(partition, desired.partitions);
        let Some(home) = shard_of(*slots.start()) else { continue };
        owned.entry(home.to_owned()).or_default().push(partition);
        let stray = slots.filter_map(shard_of).find(|s| *s != home);
        if let Some(from) = stray {
            splits.push(Split { partition, from: from.to_owned(), to: home.to_owned() });
        }
    }
    for list in owned.values_mut() {
        list.sort_unstable();
    }
    (owned, splits)
}

/// Measures every shard.
pub async fn measure(links: &Links, desired: &Desired, seen: &Observation) -> Result<Vec<ShardLoad>, InventoryError> {
    let ownership = Ownership::of(seen);
    let (owned, _) = partitions(desired, seen);
    let mut shards = Vec::with_capacity(desired.shards.len());
    for shard in &desired.shards {
        let list = owned.get(&shard.name).cloned().unwrap_or_default();
        let primary = ownership.primary_of(shard, seen).and_then(|id| seen.by_id(&id).map(|(n, _)| n.pod.clone()));
        let address = primary.and_then(|pod| desired.member(&pod)?.1.address);
        let bytes = match (address, list.is_empty()) {
            (_, true) => BTreeMap::new(),
            (None, false) => return Err(InventoryError::NoPrimary(shard.name.clone())),
            (Some(address), false) => sizes(links, address, desired.partitions)
                .await
                .map_err(|source| InventoryError::Link { shard: shard.name.clone(), source })?,
        };
        let partitions = list
            .into_iter()
            .map(|partition| PartitionLoad { partition, bytes: bytes.get(&partition).copied().unwrap_or(0) })
            .collect();
        shards.push(ShardLoad { name: shard.name.clone(), weight: shard.weight, draining: shard.draining, partitions });
    }
    Ok(shards)
}

/// Bytes of each partition on one primary: its data set's size, split by the number of keys.
async fn sizes(links: &Links, address: SocketAddr, partitions: u32) -> Result<BTreeMap<u32, u64>, LinkError> {
    let mut ask = Pipeline::new();
    ask.cmd("CLUSTER").arg("SLOT-STATS").arg("SLOTSRANGE").arg(0).arg(SLOTS - 1);
    ask.cmd("INFO").arg("memory");
    let answers = links.ask(address, &ask, DEADLINE).await?;
    let malformed = |command, part: &str| parse::ParseError { command, part: part.to_owned() };
    let [stats, memory] = answers.as_slice() else {
        return Err(malformed("CLUSTER SLOT-STATS", "the answer").into());
    };
    let mut keys: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in parse::array(stats).ok_or_else(|| malformed("CLUSTER SLOT-STATS", "the answer"))? {
        let Some([slot, stats]) = parse::array(entry) else { continue };
        let slot = parse::number(slot).and_then(|n| u16::try_from(n).ok()).filter(|s| *s < SLOTS);
        let count = key_count(stats);
        if let (Some(slot), Some(count)) = (slot, count) {
            *keys.entry(partition_of(slot, partitions)).or_default() += count;
        }
    }
    let memory = Info::parse(parse::text(memory).unwrap_or_default());
    let bytes = memory.number("used_memory_dataset")?;
    let total: u64 = keys.values().sum();
    let share = |count: u64| (u128::from(bytes) * u128::from(count) / u128::from(total.max(1))) as u64;
    Ok(keys.into_iter().map(|(partition, count)| (partition, share(count))).collect())
}

fn key_count(stats: &Value) -> Option<u64> {
    let fields = parse::pairs(stats);
    let (_, count) = fields.iter().find(|(name, _)| name == "key-count")?;
    parse::number(count).and_then(|n| u64::try_from(n).ok())
}
