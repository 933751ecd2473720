//! A taker of slots dies with its claim on its disk alone, and comes back.

mod support {
    pub(crate) mod fleet;
}

use std::{path::Path, sync::Arc, time::Duration};

use kith_operator::dataplane::{Gate, Prober};
use redis::Value;
use support::fleet::{self, Fleet, eventually};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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

    let (_publish, desired) = watch::channel(Arc::new(fleet.desired.clone()));
    let over = CancellationToken::new();
    let prober = Prober { links: fleet::links(), guard: fleet.guard.clone(), desired, gate: Gate::default() };
    let mut report = prober.start(over.clone());
    report.wait_for(|r| r.failovers.iter().any(|f| f.shard == "demo-1")).await.expect("the prober runs");
    let heir = fleet.primary("demo-1").await.expect("an heir");
    assert_ne!(heir, taker);
    let claimed = epoch_in(&config);
    eventually("the giver to be above the claim", LIMIT, async || {
        let seen = fleet.look().await;
        seen.state(&giver).and_then(|s| s.myself()).is_some_and(|me| me.epoch > claimed)
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
