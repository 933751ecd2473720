//! What can be wrong with an engine, on real Valkey: each is found, said in words, and put right, or left alone with the exact command.

use std::time::Duration;

use crate::support::fleet::{Fleet, eventually};
use kith_operator::dataplane::{
    Outcome,
    ownership::Ownership,
    types::{Problem, Reason},
};

const LIMIT: Duration = Duration::from_secs(30);

async fn formed(shards: usize, replicas: u32) -> Fleet {
    let mut fleet = Fleet::start(shards, replicas);
    fleet.ready(LIMIT).await;
    fleet.desired.formed = true;
    fleet
}

fn found(outcome: &Outcome, reason: Reason) -> Option<Problem> {
    outcome.problems.iter().chain(&outcome.readiness.problems).find(|p| p.reason == reason).cloned()
}

/// Passes until a problem is reported.
async fn reported(fleet: &Fleet, reason: Reason) -> Problem {
    let mut last = None;
    eventually(reason.as_str(), LIMIT, async || {
        last = found(&fleet.pass().await, reason);
        last.is_some()
    })
    .await;
    last.expect("just found")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_that_somebody_flushed_is_loaded_again_everywhere() {
    let fleet = formed(2, 1).await;
    for shard in ["demo-0", "demo-1"] {
        let primary = fleet.primary(shard).await.expect("a primary");
        fleet.command(&primary, &["FUNCTION", "FLUSH"]).await.expect("flushed");
    }
    let took = fleet.ready(LIMIT).await;
    println!("libraries and marks back after {took:?}");
    for node in &fleet.nodes {
        let answer = format!("{:?}", fleet.command(&node.pod, &["FUNCTION", "LIST"]).await.expect("a list"));
        assert!(answer.contains("kith1") && answer.contains("kith_owner_"), "{}: {answer}", node.pod);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_without_an_owner_stay_so_until_a_person_runs_the_command() {
    let fleet = formed(2, 1).await;
    let primary = fleet.primary("demo-1").await.expect("a primary");
    // Only the owner gives them up: the others go on naming it, and it alone knows.
    fleet.command(&primary, &["CLUSTER", "DELSLOTSRANGE", "9000", "9007"]).await.expect("given up");
    let problem = reported(&fleet, Reason::SlotsUncovered).await;
    println!("{problem}");
    for _ in 0..3 {
        assert_eq!(fleet.pass().await.actions, 0, "slots that once had data are never given to a node that lacks it");
    }
    let command = {
        let mut last = None;
        eventually("the command for a person", LIMIT, async || {
            last = found(&fleet.pass().await, Reason::SlotsUncovered).and_then(|p| p.command);
            last.is_some()
        })
        .await;
        last.expect("just found")
    };
    let (_, arguments) = command.split_once("ADDSLOTSRANGE ").expect("the exact command");
    let mut words = vec!["CLUSTER", "ADDSLOTSRANGE"];
    words.extend(arguments.split(' '));
    assert_eq!(words[2..], ["9000", "9007"], "{command}");
    fleet.command(&primary, &words).await.expect("the person's command is accepted");
    fleet.ready(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_claimed_twice_are_seen_and_end_with_one_owner() {
    let fleet = formed(2, 1).await;
    let (first, second) = (fleet.primary("demo-0").await.expect("one"), fleet.primary("demo-1").await.expect("one"));
    // The second primary forgets who owns a slot of the first and takes it for its own.
    fleet.command(&second, &["CLUSTER", "DELSLOTS", "100"]).await.expect("forgotten");
    fleet.command(&second, &["CLUSTER", "ADDSLOTS", "100"]).await.expect("taken");
    let seen = fleet.look().await;
    println!("disputed right after: {}", Ownership::of(&seen).disputed);
    let mut owners = 0;
    eventually("one owner in every view", LIMIT, async || {
        fleet.pass().await;
        let seen = fleet.look().await;
        let ownership = Ownership::of(&seen);
        owners = ownership.owners.values().filter(|s| s.iter().any(|slot| slot == 100)).count();
        ownership.disputed.is_empty() && ownership.agreed && ownership.unowned.is_empty()
    })
    .await;
    assert_eq!(owners, 1);
    let keeps = fleet.look().await.state(&first).expect("up").own_slots().iter().any(|s| s == 100);
    println!("the first owner keeps it: {keeps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_no_shard_is_named_with_the_commands_that_remove_it() {
    let mut fleet = formed(1, 1).await;
    fleet.add_shard(0);
    let stray = fleet.nodes.last().expect("a node").pod.clone();
    let gone = fleet.desired.shards.pop().expect("the shard");
    let (anchor, address) = (fleet.nodes[0].pod.clone(), gone.members[0].address.expect("an address"));
    let bus = gone.members[0].bus_port.to_string();
    fleet
        .command(&anchor, &["CLUSTER", "MEET", &address.ip().to_string(), &address.port().to_string(), &bus])
        .await
        .expect("met");
    let problem = reported(&fleet, Reason::StrayNode).await;
    println!("{problem}");
    assert!(problem.command.as_ref().is_some_and(|c| c.contains("CLUSTER RESET HARD")), "{problem}");
    assert_eq!(fleet.pass().await.actions, 0, "one that lives is left to a person");
    // It is ended: now nobody can be meant, and it is forgotten.
    fleet.node(&stray).kill();
    eventually("the stray to be forgotten", LIMIT, async || {
        let outcome = fleet.pass().await;
        outcome.seen.up().all(|(_, s)| s.view.iter().all(|n| n.address != Some(address)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_holds_keys_and_is_unknown_is_not_let_in() {
    let mut fleet = formed(1, 1).await;
    // A node with data of its own comes in the place of a replica.
    let primary = fleet.primary("demo-0").await.expect("a primary");
    let replica = fleet.nodes.iter().map(|n| n.pod.clone()).find(|p| *p != primary).expect("a replica");
    fleet.node(&replica).kill();
    let dir = fleet.node(&replica).dir.clone();
    std::fs::remove_dir_all(&dir).expect("wiped");
    std::fs::create_dir_all(&dir).expect("made");
    fleet.restart_elsewhere(&replica);
    eventually("the foreign node to take a key", LIMIT, async || {
        fleet.command(&replica, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await.ok();
        fleet.command(&replica, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await.ok();
        fleet.command(&replica, &["SET", "somebody", "else"]).await.is_ok()
    })
    .await;
    let problem = reported(&fleet, Reason::ForeignData).await;
    println!("{problem}");
    assert!(problem.command.as_ref().is_some_and(|c| c.contains("CLUSTER RESET HARD")), "{problem}");
    let seen = fleet.look().await;
    let id = seen.state(&replica).expect("up").id.clone();
    assert!(seen.state(&primary).expect("up").knows(&id).is_none(), "it was never introduced");
    // The person runs the command; then it is a copy like any other.
    fleet.command(&replica, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await.expect("set");
    fleet.command(&replica, &["FLUSHALL"]).await.expect("emptied");
    fleet.command(&replica, &["CLUSTER", "RESET", "HARD"]).await.expect("reset");
    fleet.ready(LIMIT).await;
}
