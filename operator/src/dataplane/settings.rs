//! Engine settings on which Kith's promises rest: rendered into every node's configuration file and checked on every node in every pass.

use super::types::{Desired, DesiredShard};

/// Settings that are the same on every node, with the reason for each.
pub const FIXED: &[(&str, &str)] = &[
    // The promise of DESIGN: an acknowledged write is on disk, and nothing is ever evicted.
    ("appendonly", "yes"),
    ("maxmemory-policy", "noeviction"),
    // Promotion is the operator's alone: the engine's own election knows no acknowledgements.
    ("cluster-replica-no-failover", "yes"),
    // An emptied primary, or a replica of a shard with many, stays in its shard.
    ("cluster-allow-replica-migration", "no"),
    // One shard's trouble is not the others'.
    ("cluster-require-full-coverage", "no"),
    ("cluster-node-timeout", "2000"),
    // A forgotten node is not listened to for so long, and cannot join again: a shard that comes back soon must not wait for a minute.
    // All members forget it within one pass.
    ("cluster-blacklist-ttl", "10"),
    // Every look at a move asks for all that are remembered.
    ("cluster-slot-migration-log-max-len", "16"),
    // A giver of slots that was not told that they were taken goes on with writes after twice this time, and loses them when it is
    // told: the mover needs time to keep it from that.
    ("cluster-manual-failover-timeout", "15000"),
    // A replica that returns is served at once, and keeps its old data until the new ones are there.
    ("repl-diskless-sync-delay", "0"),
    ("repl-diskless-load", "disabled"),
    // A replica that has heard nothing for two seconds knows that its primary is silent; promotion relies on it.
    ("repl-ping-replica-period", "1"),
];

/// Every setting that a node of `shard` must have: name and value.
pub fn required(desired: &Desired, shard: &DesiredShard) -> Vec<(String, String)> {
    let mut all: Vec<_> = FIXED.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    all.push(("appendfsync".to_owned(), desired.fsync.clone()));
    all.push(("min-replicas-to-write".to_owned(), shard.min_replicas_to_write.to_string()));
    all
}
