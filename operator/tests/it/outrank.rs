//! A taker of slots dies amid a move: with its claim on its disk alone, or with keys that it does not own yet.

use std::{path::Path, time::Duration};

use crate::support::fleet::{self, Fleet, eventually, log_of};
use kith_operator::dataplane::Gate;
use redis::Value;

const LIMIT: Duration = Duration::from_secs(40);

/// What a node writes when it takes slots, before it tells anybody: the first range of `giver` is its own, with an epoch above all.
/// Answers that range.
fn claim(config: &Path, giver: &str) -> (u16, u16) {
    let text = std::fs::read_to_string(config).expect("nodes.conf");
    let epoch = epoch_in(config);
    let mut taken = None;
    let mut lines: Vec<Vec<String>> = text.lines().map(|l| l.split(' ').map(str::to_owned).collect()).collect();
    for line in lines.iter_mut().filter(|l| l[0] == giver) {
        taken = Some(line.remove(8));
    }
    let taken = taken.expect("the giver's slots");
    for line in &mut lines {
        if line[0] == "vars" {
            line[2] = (epoch + 1).to_string();
        } else if line[2].contains("myself") {
            line[6] = (epoch + 1).to_string();
            line.push(taken.clone());
        }
    }
    let text: String = lines.into_iter().map(|l| l.join(" ") + "\n").collect();
    std::fs::write(config, text).expect("written");
    let (first, last) = taken.split_once('-').expect("a range");
    (first.parse().expect("a slot"), last.parse().expect("a slot"))
}

fn epoch_in(config: &Path) -> u64 {
    let text = std::fs::read_to_string(config).expect("nodes.conf");
    let vars = text.lines().find(|l| l.starts_with("vars ")).expect("the epoch");
    vars.split(' ').nth(2).and_then(|n| n.parse().ok()).expect("a number")
}

/// A key of one of these slots.
async fn key_in(fleet: &Fleet, pod: &str, slots: (u16, u16)) -> String {
    for n in 0..100_000 {
        let key = format!("key:{n}");
        let slot = fleet.command(pod, &["CLUSTER", "KEYSLOT", &key]).await.expect("a slot");
        if matches!(slot, Value::Int(slot) if (i64::from(slots.0)..=i64::from(slots.1)).contains(&slot)) {
            return key;
        }
    }
    panic!("no key for slots {slots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taker_that_died_with_its_claim_takes_nothing_when_it_is_back() {
    let mut fleet = Fleet::start(2, 1);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (giver, taker) =
        (fleet.primary("demo-0").await.expect("a giver"), fleet.primary("demo-1").await.expect("a taker"));
    let seen = fleet.look().await;
    let id = |pod: &str| seen.state(pod).expect("it answers").id.to_string();
    let (giver_id, taker_id) = (id(&giver), id(&taker));
    let config = fleet.node(&taker).dir.join("nodes.conf");

    // It is to take slots, and dies of it.
    fleet.node(&taker).process.as_mut().expect("it runs").pause().expect("paused");
    let owned = seen.state(&giver).expect("it answers").own_slots().arguments();
    fleet
        .command(&giver, &["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &owned[0], &owned[0], "NODE", &taker_id])
        .await
        .expect("a job");
    fleet.node(&taker).kill();
    let slots = claim(&config, &giver_id);

    let (_publish, mut report, over) = fleet.probe(fleet::links(), Gate::default());
    report.wait_for(|r| r.failovers.iter().any(|f| f.shard == "demo-1")).await.expect("the prober runs");
    let heir = fleet.primary("demo-1").await.expect("an heir");
    assert_ne!(heir, taker);
    let claimed = epoch_in(&config);
    eventually("the giver to be above the claim and nobody to have its epoch", LIMIT, async || {
        let seen = fleet.look().await;
        let epochs = seen.up().filter(|(_, s)| s.is_primary()).filter_map(|(_, s)| s.myself()).map(|me| me.epoch);
        let above = seen.state(&giver).and_then(|s| s.myself()).is_some_and(|me| me.epoch > claimed);
        above && epochs.into_iter().all(|epoch| epoch != claimed)
    })
    .await;

    // What is acknowledged now the claim would throw away.
    let key = key_in(&fleet, &giver, slots).await;
    fleet.command(&giver, &["SET", &key, "acknowledged"]).await.expect("written");
    fleet.node(&taker).start(1);
    fleet.ready(LIMIT).await;
    let kept = fleet.command(&giver, &["GET", &key]).await;
    assert_eq!(kept, Ok(Value::BulkString(b"acknowledged".to_vec())));
    over.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_promoted_amid_an_import_is_followed_by_the_others_and_does_not_tell_them_to_take_over() {
    let mut fleet = Fleet::start(2, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (giver, taker) =
        (fleet.primary("demo-0").await.expect("a giver"), fleet.primary("demo-1").await.expect("a taker"));
    let seen = fleet.look().await;
    let taker_id = seen.state(&taker).expect("it answers").id.to_string();
    let owned = seen.state(&giver).expect("it answers").own_slots().arguments();
    let slot = |n: usize| owned[n].parse::<u16>().expect("a slot");
    let key = key_in(&fleet, &giver, (slot(0), slot(1))).await;
    let Ok(Value::Int(slot)) = fleet.command(&giver, &["CLUSTER", "KEYSLOT", &key]).await else { panic!("no slot") };
    // A cluster that was just formed may still think so for a moment.
    eventually("a write", LIMIT, async || fleet.command(&giver, &["SET", &key, "moving"]).await.is_ok()).await;

    // The import has its keys, also on the replicas, and does not end.
    fleet.command(&taker, &["DEBUG", "SLOTMIGRATION", "PREVENT-FAILOVER", "1"]).await.expect("held");
    let slot = slot.to_string();
    fleet
        .command(&giver, &["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &slot, &slot, "NODE", &taker_id])
        .await
        .expect("a job");
    let replicas: Vec<String> =
        fleet.desired.shards[1].members.iter().map(|m| m.pod.clone()).filter(|pod| *pod != taker).collect();
    eventually("the replicas to have the key", LIMIT, async || {
        let mut have = 0;
        for pod in &replicas {
            let count = fleet.command(pod, &["CLUSTER", "COUNTKEYSINSLOT", &slot]).await;
            have += usize::from(count == Ok(Value::Int(1)));
        }
        have == replicas.len()
    })
    .await;

    let (_publish, mut report, over) = fleet.probe(fleet::links(), Gate::default());
    fleet.node(&taker).kill();
    report.wait_for(|r| r.failovers.iter().any(|f| f.shard == "demo-1")).await.expect("the prober runs");
    let heir = fleet.primary("demo-1").await.expect("an heir");
    assert_ne!(heir, taker);
    let other = replicas.iter().find(|pod| **pod != heir).expect("another replica").clone();
    eventually("the other replica to follow", LIMIT, async || {
        let answer = fleet.command(&heir, &["WAIT", "1", "1000"]).await;
        answer == Ok(Value::Int(1))
    })
    .await;
    let left = async |pod: &str| fleet.command(pod, &["CLUSTER", "COUNTKEYSINSLOT", &slot]).await;
    assert_eq!(left(&heir).await, Ok(Value::Int(0)), "the heir keeps what is not its own");
    assert_eq!(left(&other).await, Ok(Value::Int(0)), "the deletion is passed on");
    fleet.node(&taker).start(1);
    fleet.ready(LIMIT).await;
    assert_eq!(fleet.primary("demo-1").await.as_ref(), Some(&heir));
    let took = |pod: &str| log_of(&fleet.root.path().join(pod)).contains("Taking over the primary");
    assert!(took(&heir), "it was to take over");
    assert!(!took(&other), "{other} was told to take over by its new primary");
    over.cancel();
}
