//! The data plane code against real Valkey processes: forming, failing over, coming back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::fleet::{COUNTER, Fleet, eventually, links};
use kith_operator::dataplane::{
    Gate, bus, parse,
    switchover::switchover,
    types::{Library, Presence, Reason},
};
use redis::Value;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn empty_nodes_become_a_ready_cluster_that_is_then_left_alone() {
    for (shards, limit) in [(1, LIMIT), (3, LIMIT)] {
        let mut fleet = Fleet::start(shards, 2);
        let took = fleet.ready(limit).await;
        println!("{shards} shards with 2 replicas each formed in {took:?}");
        fleet.desired.formed = true;
        let again = fleet.pass().await;
        assert_eq!(again.actions, 0, "an unchanged cluster is only read");
        assert!(again.problems.is_empty(), "{:?}", again.problems);
        let pod = fleet.primary("demo-0").await.expect("a primary");
        let answer = fleet.command(&pod, &["FCALL", "incr", "1", "{06S}n", "5"]).await;
        assert!(matches!(answer, Ok(Value::Int(5)) | Err(_)), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_replaced_within_five_seconds_and_rejoins() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (_publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let old = fleet.primary("demo-0").await.expect("a primary");
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    fleet.node(&old).kill();
    let begun = Instant::now();
    report.wait_for(|r| !r.failovers.is_empty()).await.expect("the prober runs");
    let new = report.borrow().failovers[0].pod.clone();
    println!(
        "promoted {new} {:?} after the kill (takeover itself {:?})",
        begun.elapsed(),
        report.borrow().failovers[0].took
    );
    eventually("a write to be accepted", Duration::from_secs(4), async || {
        fleet.command(&new, &["FCALL", "incr", "1", "{06S}n", "1"]).await.is_ok()
    })
    .await;
    let acks = fleet.desired.ack_replicas;
    fleet.node(&old).start(acks);
    println!("ready again {:?} after the old primary's start", fleet.ready(LIMIT).await);
    assert_eq!(fleet.primary("demo-0").await, Some(new));
    end.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_of_the_library_reaches_every_node_and_a_lost_one_is_put_back() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let pods: Vec<String> = fleet.nodes.iter().map(|n| n.pod.clone()).collect();
    let text = format!("{COUNTER}-- another text\n");
    let has = async |fleet: &Fleet, pod: &str| {
        let listed = fleet.command(pod, &["FUNCTION", "LIST", "LIBRARYNAME", "kith1", "WITHCODE"]).await;
        let libraries = parse::function_list(&listed.expect("an answer")).expect("well-formed");
        libraries.iter().any(|(_, code)| code.as_ref() == Some(&text))
    };
    fleet.desired.library = Some(Library { name: "kith1".to_owned(), code: text.clone().into() });
    assert!(fleet.pass().await.actions > 0);
    fleet.ready(LIMIT).await;
    for pod in &pods {
        assert!(has(&fleet, pod).await, "{pod}");
    }
    assert_eq!(fleet.pass().await.actions, 0);
    let primary = fleet.primary("demo-0").await.expect("a primary");
    fleet.command(&primary, &["FUNCTION", "DELETE", "kith1"]).await.expect("deleted");
    fleet.ready(LIMIT).await;
    assert!(has(&fleet, &primary).await);
    // A node that was started anew may hold anything.
    let acks = fleet.desired.ack_replicas;
    let replica = pods.iter().find(|p| **p != primary).expect("a replica");
    fleet.node(replica).kill();
    fleet.node(replica).start(acks);
    fleet.ready(LIMIT).await;
    assert!(has(&fleet, replica).await);
}

/// What a primary that answers nothing may take to be replaced: looks wait a second for it, and its replicas may have heard it a second later.
const FROZEN: Duration = Duration::from_millis(4_500);

/// Waits until probes are light: whatever happens next is found by one of them.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1_200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_answers_nothing_is_replaced_as_soon_as_it_is_dead() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (_publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let old = fleet.primary("demo-0").await.expect("a primary");
    settled().await;
    let begun = Instant::now();
    fleet.node(&old).process.as_ref().expect("it runs").pause().expect("paused");
    let replaced = report.wait_for(|r| !r.failovers.is_empty());
    tokio::time::timeout(LIMIT, replaced).await.expect("in time").expect("the prober runs");
    let took = begun.elapsed();
    println!("replaced {took:?} after it froze");
    // Its replicas hear it for as long as they have not missed it for two whole seconds.
    assert!((Duration::from_millis(1_400)..FROZEN).contains(&took), "{took:?}");
    end.cancel();
    fleet.node(&old).kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_somebody_else_made_is_the_one_that_is_watched() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (_publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let old = fleet.primary("demo-0").await.expect("a primary");
    let heir = fleet.nodes.iter().map(|n| n.pod.clone()).find(|p| *p != old).expect("a replica");
    settled().await;
    fleet.command(&heir, &["CLUSTER", "FAILOVER", "FORCE"]).await.expect("it takes over");
    eventually("the old one to step down", LIMIT, async || fleet.primary("demo-0").await.as_ref() == Some(&heir)).await;
    // What a probe finds is found within two of them.
    report.wait_for(|r| r.changes > 0).await.expect("the prober runs");
    settled().await;
    fleet.node(&heir).kill();
    let begun = Instant::now();
    let replaced = report.wait_for(|r| !r.failovers.is_empty());
    tokio::time::timeout(LIMIT, replaced).await.expect("in time").expect("the prober runs");
    println!("replaced {:?} after its end", begun.elapsed());
    assert!(begun.elapsed() < FROZEN, "an ended process is dead at once: {:?}", begun.elapsed());
    end.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_came_back_empty_between_two_probes_is_seen_by_the_next() {
    // With its name, and as another node at the same address.
    for lost in ["appendonlydir", ""] {
        let mut fleet = Fleet::start(1, 2);
        fleet.ready(LIMIT).await;
        fleet.desired.formed = true;
        let (_publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
        let old = fleet.primary("demo-0").await.expect("a primary");
        settled().await;
        assert_eq!(report.borrow().changes, 0);
        let acks = fleet.desired.ack_replicas;
        let node = fleet.node(&old);
        node.kill();
        std::fs::remove_dir_all(node.dir.join(lost)).expect("its data are lost");
        std::fs::create_dir_all(&node.dir).expect("a folder");
        let begun = Instant::now();
        node.start(acks);
        let seen = report.wait_for(|r| r.changes > 0);
        tokio::time::timeout(LIMIT, seen).await.expect("in time").expect("the prober runs");
        println!("seen {:?} after it came back", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
        end.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_promoted_when_too_few_replicas_are_in_sight() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let primary = fleet.primary("demo-0").await.expect("a primary");
    let other = fleet.nodes.iter().map(|n| n.pod.clone()).find(|p| *p != primary).expect("a replica");
    fleet.node(&other).kill();
    fleet.node(&primary).kill();
    let (publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let blocked = |r: &kith_operator::dataplane::Report| r.problems.iter().any(|p| p.reason == Reason::FailoverBlocked);
    tokio::time::timeout(LIMIT, report.wait_for(blocked)).await.expect("in time").expect("the prober runs");
    let problem = report.borrow().problems[0].clone();
    println!("{problem}");
    assert!(report.borrow().failovers.is_empty());
    // The other replica comes back: now one of the two certainly holds everything.
    let acks = fleet.desired.ack_replicas;
    fleet.node(&other).start(acks);
    tokio::time::timeout(LIMIT, report.wait_for(|r| !r.failovers.is_empty()))
        .await
        .expect("in time")
        .expect("the prober runs");
    drop(publish);
    end.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_pods_all_came_back_elsewhere_is_joined_again() {
    let mut fleet = Fleet::start(2, 1);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let pod = fleet.primary("demo-1").await.expect("a primary");
    fleet.command(&pod, &["FCALL", "incr", "1", "{zzz}n", "5"]).await.ok();
    let pods: Vec<String> = fleet.nodes.iter().map(|n| n.pod.clone()).collect();
    for pod in &pods {
        fleet.node(pod).kill();
    }
    for pod in &pods {
        fleet.restart_elsewhere(pod);
    }
    println!("all pods elsewhere: ready again after {:?}", fleet.ready(LIMIT).await);
    assert_eq!(fleet.pass().await.actions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_switchover_loses_no_write() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let from = fleet.primary("demo-0").await.expect("a primary");
    let to = fleet.nodes.iter().map(|n| n.pod.clone()).find(|p| *p != from).expect("a replica");
    let end = CancellationToken::new();
    let writer = tokio::spawn(count(fleet.desired.clone(), end.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = fleet.look().await;
    let paused = switchover(&fleet.links, &fleet.guard, &fleet.desired, &seen, &from, &to).await.expect("a switchover");
    tokio::time::sleep(Duration::from_millis(300)).await;
    end.cancel();
    let (acknowledged, longest) = writer.await.expect("the writer ends");
    println!("{acknowledged} writes acknowledged; writes held back for {paused:?}, longest wait {longest:?}");
    let value = fleet.command(&to, &["GET", "{06S}n"]).await.expect("readable");
    let stored: u64 = kith_operator::dataplane::parse::text(&value).and_then(|t| t.parse().ok()).expect("a number");
    assert!(stored >= acknowledged, "stored {stored}, acknowledged {acknowledged}");
    fleet.ready(LIMIT).await;
}

/// Counts up on whoever takes the write; the number of acknowledged writes and the longest time between two.
/// Writes as a storage instance does: on connections of its own, for a paused write holds up what follows it on its connection.
async fn count(desired: kith_operator::dataplane::types::Desired, end: CancellationToken) -> (u64, Duration) {
    let links = links();
    let (mut acknowledged, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
    let members: Vec<_> = desired.members().filter_map(|(_, m)| m.address).collect();
    let mut at = 0;
    while !end.is_cancelled() {
        let mut command = redis::cmd("FCALL");
        command.arg("incr").arg(1).arg("{06S}n").arg(1);
        match links.ask_one(members[at % members.len()], &command).await {
            Ok(_) => {
                acknowledged += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) => at += 1,
        }
    }
    (acknowledged, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_heir_that_follows_the_late_primary_of_a_shard_without_slots_is_believed_by_all() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    fleet.add_shard(2);
    fleet.ready(LIMIT).await;
    // Its pods come back elsewhere, one of them late, as when a shard is made anew on the volumes that an earlier one left.
    let (publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let late = fleet.primary("demo-1").await.expect("a primary");
    let id = fleet.look().await.state(&late).expect("up").id.clone();
    let pods: Vec<String> = fleet.nodes.iter().map(|n| n.pod.clone()).filter(|p| p.starts_with("demo-1")).collect();
    for pod in &pods {
        fleet.node(pod).kill();
    }
    for pod in pods.iter().filter(|pod| **pod != late) {
        fleet.restart_elsewhere(pod);
    }
    publish.send_replace(Arc::new(fleet.desired.clone()));
    let replaced = report.wait_for(|r| !r.failovers.is_empty());
    tokio::time::timeout(LIMIT, replaced).await.expect("in time").expect("the prober runs");
    fleet.restart_elsewhere(&late);
    publish.send_replace(Arc::new(fleet.desired.clone()));
    // It answers before it hears of its heir, and the heir was told to follow it, as an operator did that saw the two at that moment.
    let heir = report.borrow().failovers[0].pod.clone();
    let told = ["CLUSTER", "REPLICATE", id.as_str()];
    eventually("the late one to answer", LIMIT, async || fleet.look().await.by_id(&id).is_some()).await;
    fleet.command(&heir, &told).await.expect("the heir does as it is told");
    fleet.ready(LIMIT).await;
    // Whoever leads: no slots move to a shard of which two nodes think differently.
    eventually("everybody to know the shard as it is", LIMIT, async || {
        fleet.pass().await;
        let seen = fleet.look().await;
        let members = seen.up().filter(|(node, _)| node.shard == "demo-1").map(|(_, state)| state.id.clone());
        members.collect::<Vec<_>>().iter().all(|id| bus::out_of_touch(&seen, id, None).is_none())
    })
    .await;
    end.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_primary_hands_over_before_it_is_gone() {
    let mut fleet = Fleet::start(1, 2);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    let (publish, mut report, end) = fleet.probe(fleet.links.clone(), Gate::default());
    let primary = fleet.primary("demo-0").await.expect("a primary");
    fleet.member(&primary).presence = Presence::Terminating;
    publish.send_replace(Arc::new(fleet.desired.clone()));
    tokio::time::timeout(LIMIT, report.wait_for(|r| r.failovers.iter().any(|f| f.planned)))
        .await
        .expect("in time")
        .expect("the prober runs");
    println!("handed over in {:?}", report.borrow().failovers[0].took);
    end.cancel();
}
