//! Which StorageShards a pass has something new for: those whose status may follow from it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kith_crds::names;
use kube::ResourceExt;

use crate::{
    apply::{Live, Object},
    dataplane::{Failover, readiness::ShardHealth, types::Problem},
    runtime::Snapshot,
};

/// Files are told in steps of so many bytes, a power of two: status shows no finer ones.
const FILE_STEP: u32 = 24;

/// What the passes over one StorageShard were last told. Live numbers are left out, or coarse: a busy platform has others at every look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    health: Option<ShardHealth>,
    acknowledged_by: Option<u32>,
    copies: Option<Vec<String>>,
    empty: bool,
    shrinkable: bool,
    problems: Vec<Problem>,
    /// Changes of its primary.
    failovers: u64,
    /// Its pods and claims with their versions: no watch tells a StorageShard of them.
    objects: Vec<(String, Option<String>)>,
}

/// For each of these shards.
pub(super) fn told<'a>(
    shards: impl Iterator<Item = &'a String>,
    snapshot: &Snapshot,
    failovers: &[Failover],
    pods: &Live<Pod>,
    claims: &Live<PersistentVolumeClaim>,
) -> BTreeMap<String, Told> {
    let one = |name: &'a String| {
        let concerns = |p: &&Problem| p.shard.as_ref().is_none_or(|shard| shard == name);
        let told = Told {
            health: snapshot.readiness.shards.iter().find(|health| health.shard == *name).map(coarse),
            acknowledged_by: snapshot.acknowledged_by.get(name).copied(),
            copies: snapshot.copies.get(name).cloned(),
            empty: snapshot.empty.contains(name),
            shrinkable: snapshot.shrinkable.contains(name),
            problems: snapshot.problems.iter().chain(&snapshot.readiness.problems).filter(concerns).cloned().collect(),
            failovers: failovers.iter().filter(|f| f.shard == *name).map(|f| f.count).sum(),
            objects: of_shard(pods, name).chain(of_shard(claims, name)).collect(),
        };
        (name.clone(), told)
    };
    shards.map(one).collect()
}

fn of_shard<K: Object>(objects: &Live<K>, shard: &str) -> impl Iterator<Item = (String, Option<String>)> {
    let mine = move |(_, object): &(&String, &K)| object.labels().get(names::LABEL_SHARD).is_some_and(|s| s == shard);
    objects.iter().filter(mine).map(|(name, object)| (name.clone(), object.resource_version()))
}

/// Without what changes with every write to the shard.
fn coarse(health: &ShardHealth) -> ShardHealth {
    let mut coarse = health.clone();
    (coarse.offset, coarse.keys) = (0, 0);
    // In per cent.
    coarse.memory = health.memory.saturating_mul(100).checked_div(health.max_memory).unwrap_or(0);
    for member in &mut coarse.members {
        (member.offset, member.lag_bytes) = (0, 0);
        member.disk.used >>= FILE_STEP;
        member.disk.rewrite >>= FILE_STEP;
    }
    coarse
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        readiness::readiness,
        types::Reason,
    };

    struct Stage {
        snapshot: Snapshot,
        failovers: Vec<Failover>,
        pods: Live<Pod>,
        claims: Live<PersistentVolumeClaim>,
    }

    impl Stage {
        fn new() -> Self {
            let wish = desired(2);
            let snapshot = Snapshot {
                readiness: readiness(&wish, &Fake::formed(&wish).observe(&wish)),
                problems: Vec::new(),
                empty: Vec::new(),
                acknowledged_by: BTreeMap::new(),
                copies: BTreeMap::new(),
                shrinkable: Vec::new(),
                hand_overs: BTreeMap::new(),
            };
            let metadata = |shard| json!({"metadata": {"resourceVersion": "1", "labels": {names::LABEL_SHARD: shard}}});
            let object = |n: usize| (format!("object-{n}"), metadata(format!("demo-{n}")));
            let pods = (0..2).map(object).map(|(n, o)| (n, serde_json::from_value(o).expect("a pod"))).collect();
            let claims = (0..2).map(object).map(|(n, o)| (n, serde_json::from_value(o).expect("a claim"))).collect();
            Self { snapshot, failovers: Vec::new(), pods, claims }
        }

        fn told(&self) -> BTreeMap<String, Told> {
            let names = ["demo-0", "demo-1"].map(str::to_owned);
            told(names.iter(), &self.snapshot, &self.failovers, &self.pods, &self.claims)
        }
    }

    #[test]
    fn a_shard_is_told_what_its_status_follows_from_and_no_live_number() {
        type Change = fn(&mut Stage);
        let first = |stage: &mut Stage| stage.snapshot.readiness.shards[0].clone();
        let cases: [(&str, Change, &[&str]); 14] = [
            ("nothing", |_| {}, &[]),
            (
                "writes",
                |s| {
                    let health = &mut s.snapshot.readiness.shards[0];
                    (health.keys, health.offset, health.members[1].lag_bytes) = (900, 1 << 30, 77);
                    (health.members[1].offset, health.members[1].disk.used) = (1 << 30, 4_096);
                },
                &[],
            ),
            ("memory", |s| s.snapshot.readiness.shards[0].memory = 800_000_000, &["demo-0"]),
            ("files", |s| s.snapshot.readiness.shards[0].members[2].disk.used = 1 << 30, &["demo-0"]),
            ("a failed write", |s| s.snapshot.readiness.shards[0].members[2].disk.failed = true, &["demo-0"]),
            ("a copy out of step", |s| s.snapshot.readiness.shards[1].members[2].in_step = false, &["demo-1"]),
            ("its problem", |s| s.snapshot.problems.push(problem().of("demo-1")), &["demo-1"]),
            ("everybody's problem", |s| s.snapshot.problems.push(problem()), &["demo-0", "demo-1"]),
            ("it is empty", |s| s.snapshot.empty.push("demo-1".to_owned()), &["demo-1"]),
            ("it may shrink", |s| s.snapshot.shrinkable.push("demo-1".to_owned()), &["demo-1"]),
            ("copies", |s| drop(s.snapshot.copies.insert("demo-0".to_owned(), Vec::new())), &["demo-0"]),
            (
                "quorum",
                |s| {
                    s.snapshot.acknowledged_by.insert("demo-0".to_owned(), 1);
                },
                &["demo-0"],
            ),
            ("another primary", |s| s.failovers.push(failover()), &["demo-1"]),
            (
                "its pod",
                |s| s.pods.values_mut().for_each(|p| p.metadata.resource_version = Some("2".to_owned())),
                &["demo-0", "demo-1"],
            ),
        ];
        for (what, change, expected) in cases {
            let mut stage = Stage::new();
            assert!(first(&mut stage).primary.is_some());
            for health in &mut stage.snapshot.readiness.shards {
                health.max_memory = 1_000_000_000;
            }
            let before = stage.told();
            change(&mut stage);
            let after = stage.told();
            let new: Vec<&str> =
                after.iter().filter(|(n, t)| before.get(*n) != Some(t)).map(|(n, _)| n.as_str()).collect();
            assert_eq!(new, expected, "{what}");
        }
    }

    fn problem() -> Problem {
        Problem::new(Reason::ReplicaLagging, "words")
    }

    fn failover() -> Failover {
        Failover {
            shard: "demo-1".to_owned(),
            pod: "demo-1-valkey-1".to_owned(),
            planned: true,
            forced: false,
            took: Duration::ZERO,
            at: Instant::now(),
            count: 1,
            unplanned: 0,
        }
    }
}
