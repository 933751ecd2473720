//! Which partitions move: deterministic, the fewest bytes that bring every shard within the bound. Pure.
//!
//! A shard's share is its weight's part of the whole; draining shards have none. A partition's load is the bytes it holds plus a mebibyte,
//! so that empty clusters balance by number and full ones by data. The plan of a plan's result is empty: the rule looks at the state
//! alone, and stops as soon as every shard is within the bound or no single move makes a pair of shards more even.

use std::collections::BTreeMap;

/// One partition as measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionLoad {
    /// Its number.
    pub partition: u32,
    /// Bytes it holds, as estimated.
    pub bytes: u64,
}

/// One shard as measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLoad {
    /// The StorageShard's name.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// Whether it is to be emptied.
    pub draining: bool,
    /// What it owns.
    pub partitions: Vec<PartitionLoad>,
}

/// One partition on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionMove {
    /// Index of the shard that gives.
    pub from: usize,
    /// Index of the shard that takes.
    pub to: usize,
    /// Which partition.
    pub partition: u32,
    /// Bytes it holds.
    pub bytes: u64,
}

/// What is to be moved, and what comes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MovePlan {
    /// Moves, grouped by giver and taker, partitions ascending.
    pub moves: Vec<PartitionMove>,
    /// How far the worst shard is off its share before, as a fraction of it.
    pub imbalance_before: f64,
    /// The same afterwards.
    pub imbalance_after: f64,
}

/// Why there can be no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody may own anything.
    #[error(
        "every shard is draining or has weight 0: there is nowhere for the data to go; raise a weight or add a shard"
    )]
    NoTaker,
}

/// What a partition counts for besides its bytes: room for what it will hold.
const BASE_BYTES: u64 = 1 << 20;

struct Book {
    /// Load of each shard.
    load: Vec<u64>,
    /// What each should have.
    share: Vec<f64>,
    /// Partitions of each shard, the cheapest to move for what they weigh last.
    owned: Vec<Vec<Entry>>,
    bound: f64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    partition: u32,
    bytes: u64,
}

impl Entry {
    fn load(self) -> u64 {
        self.bytes.saturating_add(BASE_BYTES)
    }

    /// Fewer bytes are cheaper for what they weigh. The order is total, so that the result is the same everywhere.
    fn price(self) -> (u64, u32) {
        (self.bytes, self.partition)
    }
}

/// Plans. `bound` is the imbalance to come within, as a fraction (0.05 = 5 %).
pub fn plan(shards: &[ShardLoad], bound: f64) -> Result<MovePlan, PlanError> {
    let mut book = Book::open(shards, bound)?;
    let imbalance_before = book.imbalance();
    let home: BTreeMap<u32, usize> =
        shards.iter().enumerate().flat_map(|(i, s)| s.partitions.iter().map(move |p| (p.partition, i))).collect();
    // Every move makes something more even, so this ends by itself; the bound is for the eyes.
    for _ in 0..home.len() * 4 {
        if !book.step() {
            break;
        }
    }
    let mut moves: Vec<PartitionMove> = Vec::new();
    for (to, owned) in book.owned.iter().enumerate() {
        for entry in owned {
            let from = home.get(&entry.partition).copied().unwrap_or(to);
            if from != to {
                moves.push(PartitionMove { from, to, partition: entry.partition, bytes: entry.bytes });
            }
        }
    }
    moves.sort_unstable();
    Ok(MovePlan { moves, imbalance_before, imbalance_after: book.imbalance() })
}

impl Book {
    fn open(shards: &[ShardLoad], bound: f64) -> Result<Self, PlanError> {
        let weight = |s: &ShardLoad| if s.draining { 0 } else { u64::from(s.weight) };
        let weights: u64 = shards.iter().map(weight).sum();
        if weights == 0 {
            return Err(PlanError::NoTaker);
        }
        let mut owned: Vec<Vec<Entry>> = Vec::with_capacity(shards.len());
        for shard in shards {
            let mut entries: Vec<Entry> =
                shard.partitions.iter().map(|p| Entry { partition: p.partition, bytes: p.bytes }).collect();
            entries.sort_unstable_by_key(|e| std::cmp::Reverse(e.price()));
            owned.push(entries);
        }
        let load: Vec<u64> =
            owned.iter().map(|o| o.iter().fold(0, |sum: u64, e| sum.saturating_add(e.load()))).collect();
        let total: f64 = load.iter().map(|l| *l as f64).sum();
        let share = shards.iter().map(|s| total * weight(s) as f64 / weights as f64).collect();
        Ok(Self { load, share, owned, bound })
    }

    /// How far a shard is off with this load, as a fraction of its share. One without a share is infinitely full until it is empty.
    fn off(&self, shard: usize, load: u64) -> f64 {
        let share = self.share[shard];
        if share > 0.0 {
            load as f64 / share - 1.0
        } else if self.owned[shard].is_empty() {
            0.0
        } else {
            f64::INFINITY
        }
    }

    fn now(&self, shard: usize) -> f64 {
        self.off(shard, self.load[shard])
    }

    fn imbalance(&self) -> f64 {
        (0..self.load.len()).map(|i| self.now(i).abs()).fold(0.0, f64::max)
    }

    /// Makes one move; false when there is none to make.
    fn step(&mut self) -> bool {
        if self.imbalance() <= self.bound {
            return false;
        }
        let by_off = |a: &usize, b: &usize| self.now(*a).total_cmp(&self.now(*b)).then(a.cmp(b));
        let mut takers: Vec<usize> = (0..self.load.len()).filter(|i| self.share[*i] > 0.0).collect();
        takers.sort_unstable_by(by_off);
        let mut givers: Vec<usize> = (0..self.load.len()).filter(|i| !self.owned[*i].is_empty()).collect();
        givers.sort_unstable_by(|a, b| by_off(b, a));
        // The fullest gives to the emptiest; only where no partition of it fits do others come in.
        let pairs = givers.iter().flat_map(|giver| takers.iter().map(move |taker| (*giver, *taker)));
        let needy = pairs.filter(|(g, t)| self.now(*g).abs() > self.bound || self.now(*t).abs() > self.bound);
        let found = needy.filter(|(g, t)| g != t).find_map(|(g, t)| self.choose(g, t).map(|at| (g, t, at)));
        let Some((giver, taker, at)) = found else { return false };
        let entry = self.owned[giver].remove(at);
        self.load[giver] = self.load[giver].saturating_sub(entry.load());
        self.load[taker] = self.load[taker].saturating_add(entry.load());
        let place = self.owned[taker].partition_point(|e| e.price() >= entry.price());
        self.owned[taker].insert(place, entry);
        true
    }

    /// The cheapest partition whose move makes the worse of the two better. From a shard that must be emptied anything goes, the
    /// largest first, so that small ones fill the gaps at the end.
    fn choose(&self, giver: usize, taker: usize) -> Option<usize> {
        let owned = &self.owned[giver];
        if self.share[giver] <= 0.0 {
            return (!owned.is_empty()).then_some(0);
        }
        let worst = self.now(giver).abs().max(self.now(taker).abs());
        (0..owned.len()).rev().find(|i| {
            let load = owned[*i].load();
            let gives = self.off(giver, self.load[giver].saturating_sub(load)).abs();
            let takes = self.off(taker, self.load[taker].saturating_add(load)).abs();
            gives.max(takes) < worst
        })
    }
}

#[cfg(test)]
mod tests;
