//! A proposal from a plan of moves, and the batches that carry it out. Pure.

use std::collections::BTreeSet;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kith_crds::{
    shardrebalance::{Move, Proposal, ShardRebalanceSpec, ShardShare},
    shared::Duration,
};

use super::World;
use crate::rebalance::{
    executor::step::Batch,
    planner::{self, PartitionMove, ShardLoad},
};

/// Partitions in one job at most. Its end holds back writes on the whole giver for some milliseconds, and it costs about 0.3 s however small
/// it is.
const BATCH_PARTITIONS: usize = 32;
/// Used when the spec's value cannot be read; the API server refuses such a spec.
pub(super) const RATE_DEFAULT: u64 = 32 << 20;
/// Time that a batch takes besides its bytes, the rest after it included.
const BATCH_OVERHEAD_MS: u64 = 550;

/// Ranges such as `0-15,32`.
pub(super) fn ranges(partitions: &[u32]) -> String {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for p in partitions {
        match out.last_mut() {
            Some(open) if *p == open.1 + 1 => open.1 = *p,
            _ => out.push((*p, *p)),
        }
    }
    let text = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    out.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Reads ranges back; none when they are malformed.
pub fn partitions_of(text: &str) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // A status is only as trustworthy as whoever may write it: no endless lists.
        if first > last || last >= 16_384 {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

/// The proposal for the shards as they are: none when nothing needs to move; words when there can be none.
pub fn propose(
    spec: &ShardRebalanceSpec,
    world: &World,
    loads: &[ShardLoad],
    now: Timestamp,
) -> Result<Option<Proposal>, String> {
    let bound = f64::from(spec.imbalance_percent) / 100.0;
    let plan = planner::plan(loads, bound).map_err(|e| format!("There is no plan: {e}."))?;
    let name = |i: usize| loads.get(i).map(|s| s.name.clone()).unwrap_or_default();
    let (moves, bytes, count) = if world.splits.is_empty() {
        let bytes = plan.moves.iter().map(|m| m.bytes).sum();
        (grouped(&plan.moves, name), bytes, plan.moves.len())
    } else {
        // Partitions that were torn apart come first; what else is off is the next proposal's.
        let list: Vec<Move> = world
            .splits
            .iter()
            .map(|s| Move { from: s.from.clone(), to: s.to.clone(), partitions: s.partition.to_string(), bytes: 0 })
            .collect();
        let count = list.len();
        (list, 0, count)
    };
    if moves.is_empty() {
        return Ok(None);
    }
    let shards: Vec<ShardShare> = loads.iter().enumerate().map(|(i, s)| share(i, s, world, &plan.moves)).collect();
    let rate = spec.max_bytes_per_second.to_bytes().unwrap_or(RATE_DEFAULT).max(1);
    let batches = (count as u64).div_ceil(BATCH_PARTITIONS as u64);
    let eta_ms = bytes.saturating_mul(1000) / rate + batches * BATCH_OVERHEAD_MS;
    let percent = |fraction: f64| if fraction.is_finite() { (fraction * 100.0).round() as u32 } else { 100 };
    Ok(Some(Proposal {
        id: id(&moves, &shards),
        created_at: Time(now),
        partitions: count as u32,
        bytes,
        eta: Duration(format!("{}s", eta_ms.div_ceil(1000).min(999_999_999))),
        imbalance_before_percent: percent(plan.imbalance_before),
        imbalance_after_percent: percent(plan.imbalance_after),
        shards,
        moves,
    }))
}

fn grouped(moves: &[PartitionMove], name: impl Fn(usize) -> String) -> Vec<Move> {
    let mut out = Vec::new();
    for group in moves.chunk_by(|a, b| (a.from, a.to) == (b.from, b.to)) {
        let partitions: Vec<u32> = group.iter().map(|m| m.partition).collect();
        out.push(Move {
            from: name(group[0].from),
            to: name(group[0].to),
            partitions: ranges(&partitions),
            bytes: group.iter().map(|m| m.bytes).sum(),
        });
    }
    out
}

fn share(index: usize, shard: &ShardLoad, world: &World, moves: &[PartitionMove]) -> ShardShare {
    let moves = if world.splits.is_empty() { moves } else { &[] };
    let sum = |pick: &dyn Fn(&PartitionMove) -> bool| {
        let picked = moves.iter().filter(|m| pick(m));
        picked.fold((0_u32, 0_u64), |(n, bytes), m| (n + 1, bytes + m.bytes))
    };
    let (leaves, comes) = (sum(&|m| m.from == index), sum(&|m| m.to == index));
    let before = shard.partitions.len() as u32;
    let bytes: u64 = shard.partitions.iter().map(|p| p.bytes).sum();
    ShardShare {
        name: shard.name.clone(),
        weight: world.weights.get(index).map_or(0, |(_, w)| *w),
        partitions_before: before,
        partitions_after: before + comes.0 - leaves.0,
        bytes_before: bytes,
        bytes_after: bytes + comes.1 - leaves.1,
    }
}

/// The same moves between the same shards have the same id.
fn id(moves: &[Move], shards: &[ShardShare]) -> String {
    let moves = moves.iter().map(|m| format!("{}>{}:{}", m.from, m.to, m.partitions));
    let shards = shards.iter().map(|s| format!("{}={}/{}", s.name, s.weight, s.partitions_before));
    let text = moves.chain(shards).collect::<Vec<_>>().join(";");
    format!("p-{:010x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()) & 0xff_ffff_ffff)
}

fn owns(world: &World, shard: &str, partition: u32) -> bool {
    world.owned.get(shard).is_some_and(|list| list.binary_search(&partition).is_ok())
}

fn is_torn(world: &World, partition: u32) -> bool {
    world.splits.iter().any(|s| s.partition == partition)
}

/// Partitions of a move that are not wholly at its taker; none when one of them is at neither end.
fn remaining(step: &Move, world: &World) -> Option<Vec<u32>> {
    let mut left = Vec::new();
    for partition in partitions_of(&step.partitions)? {
        if owns(world, &step.to, partition) && !is_torn(world, partition) {
            continue;
        }
        if !owns(world, &step.from, partition) && !owns(world, &step.to, partition) {
            return None;
        }
        left.push(partition);
    }
    Some(left)
}

/// Partitions and bytes that are where the proposal wants them.
pub(super) fn moved(proposal: &Proposal, world: &World) -> (u32, u64) {
    let mut sum = (0, 0);
    for step in &proposal.moves {
        let all = partitions_of(&step.partitions).unwrap_or_default().len() as u64;
        let left = remaining(step, world).map_or(all, |l| l.len() as u64);
        sum.0 += (all - left) as u32;
        sum.1 += step.bytes * (all - left) / all.max(1);
    }
    sum
}

/// The batches to run now: up to `concurrent`, no shard in two of them, none larger than a second's worth of bytes. None when the
/// proposal does not fit the shards any more.
pub fn batches(proposal: &Proposal, world: &World, concurrent: u32, bytes_per_second: u64) -> Option<Vec<Batch>> {
    let mut out: Vec<Batch> = Vec::new();
    let mut busy: BTreeSet<&str> = BTreeSet::new();
    for step in &proposal.moves {
        let left = remaining(step, world)?;
        let taken = busy.contains(step.from.as_str()) || busy.contains(step.to.as_str());
        if left.is_empty() || taken || out.len() >= concurrent as usize {
            continue;
        }
        let all = partitions_of(&step.partitions)?.len().max(1) as u64;
        let each = step.bytes / all;
        let fits = bytes_per_second.checked_div(each).unwrap_or(u64::MAX).clamp(1, BATCH_PARTITIONS as u64) as usize;
        let partitions: Vec<u32> = left.into_iter().take(fits).collect();
        let bytes = each * partitions.len() as u64;
        busy.extend([step.from.as_str(), step.to.as_str()]);
        out.push(Batch { from: step.from.clone(), to: step.to.clone(), partitions, bytes });
    }
    Some(out)
}
