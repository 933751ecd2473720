//! Promotion, step by step in passed-in time, against the cluster in memory.

use super::*;
use crate::dataplane::fake::{Fake, desired};

struct Stage {
    wish: Desired,
    fake: Fake,
    watch: Watch,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let wish = Desired { formed: true, ..desired(1) };
        let fake = Fake::formed(&desired(1));
        let mut stage = Self { wish, fake, watch: Watch::default(), now: Instant::now() };
        assert_eq!(stage.after(0), Findings::default());
        stage
    }

    fn after(&mut self, ms: u64) -> Findings {
        self.now += Duration::from_millis(ms);
        self.watch.look(self.now, &self.wish, &self.fake.observe(&self.wish))
    }

    fn kill(&mut self, i: usize) {
        self.fake.nodes[i].up = false;
    }

    fn takeover_of(&mut self, ms: u64) -> Option<String> {
        self.after(ms).orders.into_iter().find_map(|o| match o {
            Order::Takeover { pod, .. } => Some(pod),
            Order::Switchover { .. } => None,
        })
    }
}

#[test]
fn a_primary_is_dead_after_two_seconds_and_not_before() {
    let mut stage = Stage::new();
    stage.kill(0);
    assert_eq!(stage.after(1_000), Findings::default());
    assert_eq!(stage.after(900), Findings::default());
    assert!(stage.takeover_of(200).is_some());
}

#[test]
fn a_primary_whose_process_ended_is_replaced_at_once_unless_a_replica_hears_it() {
    for seen in [Seen::Ended, Seen::Loading] {
        let mut stage = Stage::new();
        stage.kill(0);
        stage.fake.nodes[0].down = seen.clone();
        assert!(stage.takeover_of(100).is_some(), "{seen:?}");
        assert!(stage.watch.is_restless());
    }
    // What the operator meets at the address is not what the replicas hear.
    let mut stage = Stage::new();
    stage.fake.nodes[0].down = Seen::Ended;
    stage.wish.shards[0].members[0].address = None;
    assert_eq!(stage.takeover_of(100), None);
    // An operator that never saw it cannot know that it was there.
    let mut stage = Stage::new();
    stage.kill(0);
    stage.fake.nodes[0].down = Seen::Ended;
    stage.watch = Watch::default();
    assert_eq!(stage.takeover_of(100), None);
    assert!(stage.takeover_of(2_000).is_some());
}

#[test]
fn a_primary_that_answers_in_between_lives() {
    let mut stage = Stage::new();
    stage.kill(0);
    stage.after(1_900);
    stage.fake.nodes[0].up = true;
    stage.after(100);
    stage.kill(0);
    assert_eq!(stage.after(1_900), Findings::default());
}

#[test]
fn a_primary_is_dead_two_seconds_after_its_last_answer_to_any_probe() {
    let mut stage = Stage::new();
    stage.now += Duration::from_secs(20);
    stage.watch.heard("demo-0", stage.now);
    stage.kill(0);
    assert_eq!(stage.after(1_900), Findings::default(), "it answered a light probe");
    assert!(stage.takeover_of(100).is_some());
}

#[test]
fn the_furthest_replica_takes_over() {
    let mut stage = Stage::new();
    stage.fake.nodes[2].offset = 1_001;
    stage.kill(0);
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"));
    stage.fake.takeover("demo-0-valkey-2");
    assert_eq!(stage.after(1_000), Findings::default());
}

#[test]
fn a_pod_that_is_gone_is_not_waited_for() {
    let mut stage = Stage::new();
    stage.kill(0);
    stage.wish.shards[0].members[0].presence = Presence::Gone;
    assert!(stage.takeover_of(100).is_some());

    let mut stage = Stage::new();
    stage.kill(0);
    stage.wish.shards[0].members[0].uid = "another pod of this name".to_owned();
    assert!(stage.takeover_of(100).is_some());
}

#[test]
fn too_few_replicas_in_sight_block_the_failover_in_words() {
    let mut stage = Stage::new();
    stage.kill(0);
    stage.kill(1);
    let findings = stage.after(3_000);
    assert!(findings.orders.is_empty());
    let problem = &findings.problems[0];
    assert_eq!(problem.reason, Reason::FailoverBlocked);
    assert!(
        problem.command.as_ref().is_some_and(|c| c.contains("kith.dev/force-promote=demo-0-valkey-2")),
        "{problem}"
    );
    // The other one returns.
    stage.fake.nodes[1].up = true;
    assert!(stage.takeover_of(1_000).is_some());
}

#[test]
fn a_person_may_take_the_risk() {
    let mut stage = Stage::new();
    stage.kill(0);
    stage.kill(1);
    stage.wish.shards[0].force_promote = Some("demo-0-valkey-2".to_owned());
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"));
}

#[test]
fn a_risk_that_was_taken_once_is_not_taken_again_at_a_later_failover() {
    let mut stage = Stage::new();
    stage.wish.shards[0].force_promote = Some("demo-0-valkey-2".to_owned());
    stage.kill(0);
    stage.kill(1);
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"));
    stage.watch.was_forced("demo-0", "demo-0-valkey-2");
    let findings = stage.after(1_000);
    assert!(findings.orders.is_empty(), "the annotation is still there: {findings:?}");
    assert_eq!(findings.problems[0].reason, Reason::FailoverBlocked);
    // Taken away and said again, it is another wish.
    stage.wish.shards[0].force_promote = None;
    assert!(stage.after(1_000).orders.is_empty());
    stage.wish.shards[0].force_promote = Some("demo-0-valkey-2".to_owned());
    assert_eq!(stage.takeover_of(1_000).as_deref(), Some("demo-0-valkey-2"));
}

#[test]
fn a_persons_word_does_not_outrank_copies_that_are_enough() {
    let mut stage = Stage::new();
    stage.fake.nodes[2].offset = 1_001;
    stage.wish.shards[0].force_promote = Some("demo-0-valkey-1".to_owned());
    stage.kill(0);
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"), "it holds what the other lacks");
}

#[test]
fn a_person_cannot_force_a_pod_that_is_no_replica_of_the_dead_primary() {
    for pod in ["demo-1-valkey-0", "demo-0-valkey-0", "demo-0-valkey-1", "nobody"] {
        let mut stage = Stage::new();
        stage.kill(0);
        stage.kill(1);
        stage.wish.shards[0].force_promote = Some(pod.to_owned());
        let findings = stage.after(3_000);
        assert!(findings.orders.is_empty(), "{pod}");
        assert_eq!(findings.problems[0].reason, Reason::FailoverBlocked);
        assert!(findings.problems[0].command.is_some(), "the command stays");
    }
}

#[test]
fn more_acknowledging_replicas_need_fewer_in_sight() {
    let mut stage = Stage::new();
    stage.wish.ack_replicas = 2;
    stage.wish.shards[0].min_replicas_to_write = 2;
    stage.wish.shards[0].acknowledged_by = 2;
    stage.kill(0);
    stage.kill(1);
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"));
}

#[test]
fn lowered_acknowledgement_never_promotes_by_itself() {
    let mut stage = Stage::new();
    stage.wish.shards[0].min_replicas_to_write = 0;
    stage.kill(0);
    let findings = stage.after(3_000);
    assert!(findings.orders.is_empty());
    assert_eq!(findings.problems[0].reason, Reason::FailoverBlocked);
}

#[test]
fn replicas_that_hear_their_primary_contradict_the_operator() {
    let mut stage = Stage::new();
    stage.wish.shards[0].members[0].address = None;
    let findings = stage.after(3_000);
    assert!(findings.orders.is_empty());
    assert_eq!(findings.problems[0].reason, Reason::PrimaryDown);
    // It is cut off from them as well.
    for node in &mut stage.fake.nodes {
        node.last_io_s = 2;
    }
    assert!(stage.takeover_of(1_000).is_some());
}

#[test]
fn a_pod_deleted_without_grace_is_not_replaced_while_its_process_still_writes() {
    let mut stage = Stage::new();
    stage.wish.shards[0].members[0].address = None;
    stage.wish.shards[0].members[0].presence = Presence::Gone;
    let findings = stage.after(3_000);
    assert!(findings.orders.is_empty());
    assert_eq!(findings.problems[0].reason, Reason::PrimaryDown);
    // Only what the last of the replicas heard before the process ended is final.
    stage.fake.nodes[2].offset = 2_000;
    for node in &mut stage.fake.nodes {
        node.link_up = false;
    }
    assert_eq!(stage.takeover_of(100).as_deref(), Some("demo-0-valkey-2"));
}

#[test]
fn offsets_of_an_older_history_do_not_count() {
    let mut stage = Stage::new();
    // The primary was restarted: it and replica 2 are in a new history, replica 1 still in the old one, with a large offset.
    stage.fake.nodes[0].history = "new".to_owned();
    stage.fake.nodes[2].history = "new".to_owned();
    (stage.fake.nodes[1].offset, stage.fake.nodes[2].offset) = (9_000, 20);
    stage.after(1_000);
    stage.kill(0);
    assert_eq!(stage.takeover_of(3_000).as_deref(), Some("demo-0-valkey-2"));
}

#[test]
fn an_operator_that_comes_late_waits_its_own_three_seconds() {
    let mut stage = Stage::new();
    stage.kill(0);
    stage.watch = Watch::default();
    assert_eq!(stage.after(60_000), Findings::default());
    assert!(stage.takeover_of(3_000).is_some());
}

#[test]
fn a_leaving_primary_hands_over_while_it_serves() {
    let mut stage = Stage::new();
    stage.wish.shards[0].members[0].presence = Presence::Terminating;
    let findings = stage.after(500);
    assert!(
        matches!(&findings.orders[..], [Order::Switchover { from, .. }] if from == "demo-0-valkey-0"),
        "{findings:?}"
    );
}

#[test]
fn a_slotless_shard_is_healed_too() {
    let mut fake = Fake::formed(&desired(1));
    let wish = Desired { formed: true, ..desired(2) };
    fake.nodes.extend(Fake::empty(&wish).nodes.into_iter().filter(|n| n.shard == "demo-1"));
    fake.settle(&wish, 20);
    let mut stage = Stage { wish, fake, watch: Watch::default(), now: Instant::now() };
    stage.after(0);
    let primary =
        stage.fake.nodes.iter().position(|n| n.shard == "demo-1" && n.replicates.is_none()).expect("a primary");
    stage.kill(primary);
    assert!(stage.takeover_of(3_000).is_some());
}
