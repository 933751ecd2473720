//! Partitions move between real shards under a writer, and the mover dies at every step.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    fleet::{self, Fleet},
    writer::{self, Promised},
};
use k8s_openapi::jiff::Timestamp;
use kith_crds::{
    ShardRebalanceSpec,
    shardrebalance::{RebalancePhase, ShardRebalanceStatus},
};
use kith_operator::{
    dataplane::{Gate, Links, types::Desired},
    lease::LeaseGuard,
    rebalance::{
        executor::{BatchEnd, Executor, step::Batch},
        failpoint,
        states::{self, Input, Next},
        world,
    },
};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(40);
const KEYS: usize = 200;

fn keys() -> Vec<String> {
    (0..KEYS).map(|i| format!("counter:{i}")).collect()
}

fn seeds(desired: &Desired) -> Vec<SocketAddr> {
    desired.members().filter_map(|(_, m)| m.address).collect()
}

/// Carries a rebalance through as the controller does, without Kubernetes; whether it came to its end.
async fn drive(
    links: &Links,
    guard: &LeaseGuard,
    desired: &Desired,
    gate: &Gate,
    stop_after: Option<Duration>,
    limit: Duration,
) -> ShardRebalanceStatus {
    let spec = ShardRebalanceSpec::automatic(&desired.cluster);
    let executor = Executor { links: links.clone(), guard: guard.clone(), gate: gate.clone() };
    let mut status = ShardRebalanceStatus::default();
    let begun = Instant::now();
    while begun.elapsed() < limit {
        let seen = world::look(links, desired, true).await;
        let decision = states::decide(&Input {
            spec: &spec,
            generation: Some(1),
            status: &status,
            annotation: None,
            other_active: None,
            world: Ok(&seen),
            now: Timestamp::now(),
        });
        status = decision.status;
        match decision.next {
            Next::Again(_) if status.phase == RebalancePhase::Ready => return status,
            Next::Again(pause) => tokio::time::sleep(pause.min(Duration::from_millis(300))).await,
            Next::Move(batches) => {
                for batch in batches {
                    let at = Instant::now();
                    let stop = move || stop_after.is_some_and(|limit| at.elapsed() > limit);
                    match executor.run(desired, &batch, &stop).await {
                        Ok(BatchEnd::Blocked(problem)) => println!("blocked: {problem}"),
                        Ok(BatchEnd::Interrupted(why)) => println!("interrupted: {why}"),
                        Ok(BatchEnd::Moved) => {}
                        Err(error) => println!("failed: {error}"),
                    }
                }
            }
        }
    }
    status
}

async fn check(fleet: &Fleet, promised: &Promised) {
    let seeds = seeds(&fleet.desired);
    let (mut lost, mut doubled) = (Vec::new(), Vec::new());
    for (key, acknowledged) in &promised.acknowledged {
        let stored = writer::read(&fleet.links, &seeds, key).await.unwrap_or(0);
        let unknown = promised.unknown.get(key).copied().unwrap_or(0);
        if stored < *acknowledged {
            lost.push((key.clone(), stored, *acknowledged));
        }
        if stored > acknowledged + unknown {
            doubled.push((key.clone(), stored, *acknowledged));
        }
    }
    assert!(lost.is_empty() && doubled.is_empty(), "lost {lost:?}, doubled {doubled:?}");
}

async fn grown(shards: usize) -> Fleet {
    let mut fleet = Fleet::start(1, 1);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    for _ in 1..shards {
        fleet.add_shard(1);
    }
    fleet.ready(LIMIT).await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_added_and_drained_under_a_writer_without_a_lost_write() {
    let mut fleet = grown(3).await;
    let end = CancellationToken::new();
    let counting = tokio::spawn(writer::count(fleet::links(), seeds(&fleet.desired), keys(), 0, end.clone()));
    let begun = Instant::now();
    let status =
        drive(&fleet.links, &fleet.guard, &fleet.desired, &Gate::default(), None, Duration::from_secs(120)).await;
    assert_eq!(status.phase, RebalancePhase::Ready, "{:?}", status.message);
    let moved = status.history[0].moved_partitions;
    println!("1 -> 3 shards: {moved} partitions in {:?}", begun.elapsed());
    let sizes: Vec<u32> = fleet.pass().await.readiness.shards.iter().map(|s| s.slots.len()).collect();
    assert!(sizes.iter().all(|s| (5_100..5_800).contains(s)), "{sizes:?}");
    // And back: the last shard is drained.
    fleet.desired.shards[2].draining = true;
    let begun = Instant::now();
    let status =
        drive(&fleet.links, &fleet.guard, &fleet.desired, &Gate::default(), None, Duration::from_secs(120)).await;
    assert_eq!(status.phase, RebalancePhase::Ready, "{:?}", status.message);
    println!("3 -> 2 shards: {} partitions in {:?}", status.history[0].moved_partitions, begun.elapsed());
    end.cancel();
    let mut promised = counting.await.expect("the writer ends");
    let outcome = fleet.pass().await;
    assert!(outcome.readiness.shards[2].is_empty(&outcome.seen), "{:?}", outcome.readiness.shards[2]);
    check(&fleet, &promised).await;
    println!(
        "{} acknowledged, p50 {:?}, p99 {:?}, longest {:?}",
        promised.total(),
        promised.quantile(0.5),
        promised.quantile(0.99),
        promised.quantile(1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_that_dies_at_any_step_is_followed_by_one_that_finishes() {
    let mut fleet = grown(2).await;
    fill(&fleet).await;
    let file = fleet.root.path().join("wish");
    let end = CancellationToken::new();
    let counting = tokio::spawn(writer::count(fleet::links(), seeds(&fleet.desired), keys(), 0, end.clone()));
    for place in failpoint::ALL {
        for nth in [1, 2] {
            let mut died = false;
            for _ in 0..4 {
                std::fs::write(&file, fleet::to_text(&fleet.desired)).expect("written");
                let begun = Instant::now();
                died = child(&file, Some(&format!("{place}@{nth}")), Duration::from_secs(60));
                if died {
                    println!("{place}@{nth}: the mover died after {:?}", begun.elapsed());
                    break;
                }
                // All was moved before the place was met: now everything has to go the other way.
                fleet.desired.shards[1].draining ^= true;
            }
            assert!(died, "{place} was not met");
        }
    }
    fleet.desired.shards[1].draining = false;
    // The last one finishes what all of them began, in this process.
    let status =
        drive(&fleet.links, &fleet.guard, &fleet.desired, &Gate::default(), None, Duration::from_secs(120)).await;
    assert_eq!(status.phase, RebalancePhase::Ready, "{:?}", status.message);
    end.cancel();
    let promised = counting.await.expect("the writer ends");
    check(&fleet, &promised).await;
    let outcome = fleet.pass().await;
    assert!(outcome.readiness.is_ready() && outcome.problems.is_empty(), "{:?}", outcome.problems);
    let sizes: Vec<u32> = outcome.readiness.shards.iter().map(|s| s.slots.len()).collect();
    println!("{} acknowledged; slots {sizes:?}", promised.total());
    assert!(sizes.iter().all(|s| (7_700..8_700).contains(s)), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_dies_in_a_move_is_replaced_and_the_move_goes_on() {
    for (round, victim) in ["demo-0", "demo-1"].into_iter().enumerate() {
        let mut fleet = Fleet::start(1, 2);
        fleet.ready(LIMIT).await;
        fleet.desired.formed = true;
        fleet.add_shard(2);
        fleet.ready(LIMIT).await;
        fill(&fleet).await;
        let gate = Gate::default();
        let (_publish, report, over) = fleet.probe(fleet::links(), gate.clone());
        let end = CancellationToken::new();
        let counting = tokio::spawn(writer::count(fleet::links(), seeds(&fleet.desired), keys(), 1, end.clone()));
        let moving = {
            let (links, guard, desired) = (fleet.links.clone(), fleet.guard.clone(), fleet.desired.clone());
            tokio::spawn(async move { drive(&links, &guard, &desired, &gate, None, Duration::from_secs(120)).await })
        };
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let dead = fleet.primary(victim).await.expect("a primary");
        fleet.node(&dead).kill();
        let begun = Instant::now();
        let mut promoted = report.clone();
        promoted.wait_for(|r| r.failovers.iter().any(|f| f.shard == victim)).await.expect("the prober runs");
        println!("round {round}: {victim} has a new primary {:?} after the kill", begun.elapsed());
        fleet.node(&dead).start(1);
        // The reconcile loop's part: the old primary rejoins.
        fleet.ready(LIMIT).await;
        let status = moving.await.expect("the mover ends");
        assert_eq!(status.phase, RebalancePhase::Ready, "{:?}", status.message);
        end.cancel();
        let mut promised = counting.await.expect("the writer ends");
        check(&fleet, &promised).await;
        println!("round {round}: {} acknowledged, longest wait {:?}", promised.total(), promised.quantile(1.0));
        over.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_comes_back_soon_after_it_was_forgotten_takes_slots_without_a_lost_write() {
    let mut fleet = grown(3).await;
    // Removed, as after a scale-in: every other node forgets it, and the engine does not listen to gossip about it for a while.
    let gone = fleet.desired.shards.pop().expect("three shards");
    for member in &gone.members {
        fleet.node(&member.pod).kill();
    }
    println!("whole without it after {:?}", fleet.ready(LIMIT).await);
    let forgotten = async || fleet.look().await.up().all(|(_, s)| s.view.len() == 4);
    let took = fleet::eventually("the shard to be forgotten", LIMIT, forgotten).await;
    println!("forgotten after {took:?}");
    let back = Instant::now();
    // And back on its old volumes, with new addresses, while writes go on and slots are to move at once.
    fleet.desired.shards.push(gone.clone());
    for member in &gone.members {
        fleet.restart_elsewhere(&member.pod);
    }
    let end = CancellationToken::new();
    let counting = tokio::spawn(writer::count(fleet::links(), seeds(&fleet.desired), keys(), 1, end.clone()));
    let gate = Gate::default();
    let moving = drive(&fleet.links, &fleet.guard, &fleet.desired, &gate, None, Duration::from_secs(120));
    // The reconcile loop's part goes on meanwhile.
    let joining = async {
        loop {
            fleet.pass().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let status = tokio::select! {
        status = moving => status,
        () = joining => unreachable!("it goes on for ever"),
    };
    assert_eq!(status.phase, RebalancePhase::Ready, "{:?}", status.message);
    println!("balanced again after {:?}", back.elapsed());
    end.cancel();
    let mut promised = counting.await.expect("the writer ends");
    check(&fleet, &promised).await;
    println!("{} acknowledged, longest {:?}", promised.total(), promised.quantile(1.0));
    assert!(fleet.logs().iter().all(|log| !log.contains("Write loss risk")), "the engine saw a risk of loss");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giver_that_does_not_hear_that_its_slots_were_taken_acknowledges_nothing_that_is_lost() {
    let fleet = grown(2).await;
    fill(&fleet).await;
    let giver = fleet.primary("demo-0").await.expect("a primary");
    let taker = fleet.primary("demo-1").await.expect("a primary");
    let taker = fleet.look().await.state(&taker).expect("it answers").id.clone();
    // Its own patience ends after twice this time; after that only the mover keeps it from going on with writes.
    fleet.command(&giver, &["CONFIG", "SET", "cluster-manual-failover-timeout", "1000"]).await.expect("set");
    // For so long it does not listen to a node that it was told to forget: longer than a slow machine copies, and its patience with it.
    fleet.command(&giver, &["CONFIG", "SET", "cluster-blacklist-ttl", "15"]).await.expect("set");
    let end = CancellationToken::new();
    let counting = tokio::spawn(writer::count(fleet::links(), seeds(&fleet.desired), keys(), 1, end.clone()));
    let executor = Executor { links: fleet.links.clone(), guard: fleet.guard.clone(), gate: Gate::default() };
    let batch = Batch { from: "demo-0".to_owned(), to: "demo-1".to_owned(), partitions: (0..800).collect(), bytes: 0 };
    let begun = Instant::now();
    let forgetting = async {
        // Not before it has looked up where the slots go.
        let copying = async || {
            let jobs = fleet.command(&giver, &["CLUSTER", "GETSLOTMIGRATIONS"]).await;
            jobs.is_ok_and(|jobs| format!("{jobs:?}").contains("snapshotting"))
        };
        while !copying().await {
            assert!(begun.elapsed() < LIMIT, "no job was seen");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fleet.command(&giver, &["CLUSTER", "FORGET", taker.as_str()]).await.expect("forgotten");
    };
    let (moved, ()) = tokio::join!(executor.run(&fleet.desired, &batch, &|| false), forgetting);
    assert_eq!(moved.expect("a mover"), BatchEnd::Moved);
    println!("moved after {:?}", begun.elapsed());
    end.cancel();
    let mut promised = counting.await.expect("the writer ends");
    check(&fleet, &promised).await;
    println!("{} acknowledged, longest {:?}", promised.total(), promised.quantile(1.0));
    let risked = fleet.logs().iter().any(|log| log.contains("Write loss risk"));
    assert!(risked, "the engine waited for longer than the fault lasted: the test shows nothing");
}

/// Some bytes in every partition, so that jobs last long enough to be met.
async fn fill(fleet: &Fleet) {
    let seeds = seeds(&fleet.desired);
    let text = "x".repeat(2_000);
    let primary = fleet.primary("demo-0").await.expect("a primary");
    let address = fleet.desired.member(&primary).and_then(|(_, m)| m.address).unwrap_or(seeds[0]);
    for chunk in 0..40 {
        let mut ask = redis::Pipeline::new();
        for i in 0..500 {
            ask.cmd("SET").arg(format!("fill:{chunk}:{i}")).arg(&text);
        }
        fleet.links.ask(address, &ask, Duration::from_secs(30)).await.expect("filled");
    }
}

/// Runs a mover as a process of its own; whether it died of its failure point.
fn child(file: &Path, place: Option<&str>, limit: Duration) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", "rebalance::mover", "--nocapture", "--ignored"])
        .env("KITH_TEST_WISH", file)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(place) = place {
        command.env("KITH_FAILPOINT", place);
        if place.contains("cancel") {
            command.env("KITH_TEST_STOP_MS", "30");
        }
    }
    let mut child = command.spawn().expect("a child");
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waited") {
            return !status.success();
        }
        assert!(begun.elapsed() < limit, "the mover neither died nor ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The mover of the test above, in its own process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test that kills it"]
async fn mover() {
    let Some(file) = std::env::var_os("KITH_TEST_WISH").map(PathBuf::from) else { return };
    let desired = fleet::from_text(&std::fs::read_to_string(file).expect("the wish"));
    let stop = std::env::var("KITH_TEST_STOP_MS").ok().and_then(|v| v.parse().ok()).map(Duration::from_millis);
    let links = fleet::links();
    // Where nothing is left to move for this failure point, it ends by itself.
    drive(&links, &LeaseGuard::unopposed(), &desired, &Gate::default(), stop, Duration::from_secs(20)).await;
}

#[test]
fn redirects_and_wishes_are_read_back() {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for place in failpoint::ALL {
        *by_name.entry(place).or_default() += 1;
    }
    assert!(by_name.values().all(|n| *n == 1), "every failure point has a name of its own");
}
