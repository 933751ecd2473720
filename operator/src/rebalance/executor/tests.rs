//! The next step of a batch, against a cluster in memory.

use super::step::{Batch, Facts, Step, next};
use crate::dataplane::{
    fake::{Fake, desired},
    migrations::Job,
    slots::SlotSet,
    types::{Desired, Reason},
};

/// One partition that the first shard owns, to the second.
fn batch(wish: &Desired, fake: &Fake) -> Batch {
    let owned = fake.nodes[0].slots.clone();
    let partition = (0..wish.partitions)
        .find(|p| owned.contains_all(&SlotSet::of_partitions([*p], wish.partitions)))
        .expect("it owns a whole partition");
    Batch { from: "demo-0".to_owned(), to: "demo-1".to_owned(), partitions: vec![partition], bytes: 0 }
}

/// Where the second shard's primary is.
fn taker(fake: &Fake) -> usize {
    fake.nodes.iter().position(|n| n.shard == "demo-1" && n.replicates.is_none()).expect("a primary")
}

fn job(slots: SlotSet, state: &str) -> Job {
    let (name, message) = ("j".to_owned(), String::new());
    Job { name, export: true, slots, target: None, state: state.to_owned(), message }
}

#[test]
fn a_batch_begins_between_whole_shards_that_are_in_touch_and_at_no_other_time() {
    let wish = desired(2);
    let mut fake = Fake::formed(&wish);
    let batch = batch(&wish, &fake);
    let seen = fake.observe(&wish);
    let facts = Facts { jobs: Some(&[]), ..Facts::of(&wish, &seen) };
    assert!(matches!(next(&batch, &facts), Step::Start { pod, .. } if pod == "demo-0-valkey-0"));
    // A replica elsewhere that does not know the taker would go on sending clients to the giver.
    let unknown = fake.nodes[taker(&fake)].id.clone();
    fake.nodes[1].known.retain(|(id, _)| *id != unknown);
    let seen = fake.observe(&wish);
    let facts = Facts { jobs: Some(&[]), ..Facts::of(&wish, &seen) };
    assert!(matches!(next(&batch, &facts), Step::Wait(why) if why.contains("demo-0-valkey-1")));
    let facts = Facts { impatient: true, ..facts };
    assert!(matches!(next(&batch, &facts), Step::Blocked(problem) if problem.reason == Reason::NotJoined));
}

#[test]
fn a_giver_that_has_not_heard_is_held_whatever_else_is_wanted() {
    let wish = desired(2);
    let mut fake = Fake::formed(&wish);
    let batch = batch(&wish, &fake);
    let slots = batch.slots(&wish);
    // The taker took them, and the giver does not know.
    let taker = taker(&fake);
    fake.nodes[taker].slots = fake.nodes[taker].slots.union(&slots);
    fake.nodes[taker].epoch += 10;
    let seen = fake.observe(&wish);
    for (stop, overdue) in [(false, false), (true, false), (false, true)] {
        let facts = Facts { stop, overdue, begun: true, ..Facts::of(&wish, &seen) };
        assert!(matches!(next(&batch, &facts), Step::Hold { pod, .. } if pod == "demo-0-valkey-0"));
    }
}

#[test]
fn a_job_is_cancelled_only_while_the_giver_holds_the_slots_for_certain() {
    let wish = desired(2);
    let mut fake = Fake::formed(&wish);
    let batch = batch(&wish, &fake);
    let step = |fake: &Fake, state: &str| {
        let seen = fake.observe(&wish);
        let jobs = [job(batch.slots(&wish), state)];
        next(&batch, &Facts { jobs: Some(&jobs), begun: true, stop: true, ..Facts::of(&wish, &seen) })
    };
    for early in ["connecting", "snapshotting", "replicating", "waiting-to-pause"] {
        assert!(matches!(step(&fake, early), Step::Cancel { pod, .. } if pod == "demo-0-valkey-0"), "{early}");
    }
    for last in ["failover-paused", "failover-granted"] {
        assert!(matches!(step(&fake, last), Step::Wait(_)), "{last}");
    }
    // Without the taker nothing can be waited for, and a promotion of its shard must not be kept waiting.
    let taker = taker(&fake);
    fake.nodes[taker].up = false;
    assert!(matches!(step(&fake, "failover-granted"), Step::Interrupted(_)));
}
