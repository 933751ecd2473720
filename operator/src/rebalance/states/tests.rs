//! The life of a ShardRebalance, against shards in memory that obey batches.

use super::*;
use crate::rebalance::planner::PartitionLoad;

fn world(shards: &[(&str, u32, std::ops::Range<u32>)]) -> World {
    let mut world = World {
        partitions: 64,
        whole: Ok(()),
        weights: shards.iter().map(|(n, w, _)| ((*n).to_owned(), *w)).collect(),
        owned: shards.iter().map(|(n, _, p)| ((*n).to_owned(), p.clone().collect())).collect(),
        splits: Vec::new(),
        loads: None,
    };
    measure(&mut world);
    world
}

fn measure(world: &mut World) {
    let load = |(name, weight): &(String, u32)| ShardLoad {
        name: name.clone(),
        weight: *weight,
        draining: *weight == 0,
        partitions: world.owned[name].iter().map(|p| PartitionLoad { partition: *p, bytes: 1000 }).collect(),
    };
    world.loads = Some(world.weights.iter().map(load).collect());
}

fn obey(world: &mut World, batches: &[Batch]) {
    for batch in batches {
        for p in &batch.partitions {
            let from = world.owned.get_mut(&batch.from).expect("a shard");
            from.retain(|q| q != p);
            let to = world.owned.get_mut(&batch.to).expect("a shard");
            if !to.contains(p) {
                to.push(*p);
                to.sort_unstable();
            }
            world.splits.retain(|s| s.partition != *p);
        }
    }
    measure(world);
}

struct Life {
    spec: ShardRebalanceSpec,
    status: ShardRebalanceStatus,
    annotation: Option<String>,
    other: Option<String>,
    world: World,
}

impl Life {
    fn new(mode: RebalanceMode, world: World) -> Self {
        let spec = ShardRebalanceSpec { mode, ..ShardRebalanceSpec::automatic("demo") };
        Self { spec, status: ShardRebalanceStatus::default(), annotation: None, other: None, world }
    }

    fn step(&mut self) -> Next {
        let decision = decide(&Input {
            spec: &self.spec,
            generation: Some(1),
            status: &self.status,
            annotation: self.annotation.as_deref(),
            other_active: self.other.as_deref(),
            world: Ok(&self.world),
            now: Timestamp::UNIX_EPOCH,
        });
        self.status = decision.status;
        decision.next
    }

    fn run(&mut self) {
        for _ in 0..100 {
            if let Next::Move(batches) = self.step() {
                obey(&mut self.world, &batches);
            }
            if self.status.phase.is_final() {
                return;
            }
        }
        panic!("no end: {:?}", self.status);
    }

    fn message(&self) -> &str {
        self.status.message.as_deref().unwrap_or_default()
    }
}

fn grown() -> World {
    world(&[("demo-0", 100, 0..64), ("demo-1", 100, 0..0), ("demo-2", 200, 0..0)])
}

#[test]
fn an_automatic_rebalance_runs_to_its_end() {
    let mut life = Life::new(RebalanceMode::Automatic, grown());
    life.run();
    assert_eq!(life.status.phase, Phase::Ready, "{}", life.message());
    assert_eq!(life.status.history[0].outcome, RunOutcome::Completed);
    let sizes: Vec<usize> = life.world.owned.values().map(Vec::len).collect();
    assert!((15..=17).contains(&sizes[0]) && (31..=33).contains(&sizes[2]), "{sizes:?}");
    let before = life.status.clone();
    life.step();
    assert_eq!(life.status, before, "a rebalance that is done writes nothing");
}

#[test]
fn a_manual_one_waits_for_the_approval_of_its_own_proposal() {
    let mut life = Life::new(RebalanceMode::Manual, grown());
    life.step();
    assert_eq!(life.status.phase, Phase::ProposalReady);
    let waiting = life.status.clone();
    life.step();
    assert_eq!(life.status, waiting, "waiting writes nothing");
    for (word, told) in
        [("approve", "must be approve="), ("approve=p-0000000000", "not the current one"), ("dance", "must be")]
    {
        life.annotation = Some(word.to_owned());
        life.step();
        assert_eq!(life.status.phase, Phase::ProposalReady);
        assert!(life.message().contains(told), "{word}: {}", life.message());
    }
    let id = life.status.proposal.as_ref().expect("a proposal").id.clone();
    life.annotation = Some(format!("approve={id}"));
    assert!(matches!(life.step(), Next::Move(_)));
    life.run();
    assert_eq!(life.status.phase, Phase::Ready);
}

#[test]
fn a_stale_approval_is_refused() {
    let mut life = Life::new(RebalanceMode::Manual, grown());
    life.step();
    let id = life.status.proposal.as_ref().expect("a proposal").id.clone();
    life.world.weights[1].1 = 300;
    measure(&mut life.world);
    life.annotation = Some(format!("approve={id}"));
    life.step();
    assert!(life.message().contains("not the current one"), "{}", life.message());
    assert_eq!(life.status.phase, Phase::PendingProposal);
    life.step();
    assert_ne!(life.status.proposal.as_ref().expect("another proposal").id, id);
}

#[test]
fn a_stop_half_way_keeps_what_was_moved_and_refresh_finishes_it() {
    let mut life = Life::new(RebalanceMode::Automatic, grown());
    let Next::Move(batches) = life.step() else { panic!("a batch") };
    obey(&mut life.world, &batches);
    life.annotation = Some("stop".to_owned());
    life.step();
    assert_eq!(life.status.phase, Phase::Stopped);
    assert_eq!(life.status.history[0].outcome, RunOutcome::Stopped);
    life.annotation = Some("refresh".to_owned());
    life.run();
    assert_eq!(life.status.phase, Phase::Ready);
}

#[test]
fn changed_weights_under_way_make_a_new_proposal() {
    let mut life = Life::new(RebalanceMode::Automatic, grown());
    let Next::Move(batches) = life.step() else { panic!("a batch") };
    obey(&mut life.world, &batches);
    // Shard 2 is to go again.
    life.world.weights[2].1 = 0;
    measure(&mut life.world);
    life.step();
    assert_eq!(life.status.history[0].outcome, RunOutcome::Superseded);
    life.run();
    assert!(life.world.owned["demo-2"].is_empty());
}

#[test]
fn two_at_once_are_refused_in_words() {
    let mut life = Life::new(RebalanceMode::Automatic, grown());
    life.other = Some("first".to_owned());
    life.step();
    assert_eq!(life.status.phase, Phase::ProposalReady);
    assert!(life.message().contains("first is moving slots"), "{}", life.message());
    life.other = None;
    life.run();
    assert_eq!(life.status.phase, Phase::Ready);
}

#[test]
fn a_sick_shard_delays_and_a_blocked_batch_goes_on_later() {
    let mut life = Life::new(RebalanceMode::Automatic, grown());
    life.world.whole = Err("demo-1: no primary answers".to_owned());
    life.step();
    assert_eq!(life.status.phase, Phase::PendingProposal);
    life.world.whole = Ok(());
    assert!(matches!(life.step(), Next::Move(_)));
    blocked(&mut life.status, Some(1), "demo-1 is not whole", Timestamp::UNIX_EPOCH);
    assert_eq!(life.status.phase, Phase::NotReady);
    let id = life.status.proposal.as_ref().expect("kept").id.clone();
    life.run();
    assert_eq!(life.status.history[0].proposal_id, id);
    assert_eq!(life.status.history.len(), 1);
}

#[test]
fn torn_partitions_are_brought_together_first() {
    let mut life = Life::new(RebalanceMode::Automatic, world(&[("demo-0", 100, 0..32), ("demo-1", 100, 32..64)]));
    life.world.splits = vec![Split { partition: 7, from: "demo-1".to_owned(), to: "demo-0".to_owned() }];
    life.run();
    assert!(life.world.splits.is_empty());
    assert_eq!(life.status.history[0].moved_partitions, 1);
}

#[test]
fn nowhere_to_go_is_said_and_healed_by_a_weight() {
    let mut life = Life::new(RebalanceMode::Automatic, world(&[("demo-0", 0, 0..64)]));
    life.step();
    assert_eq!(life.status.phase, Phase::NotReady);
    assert!(life.message().contains("raise a weight"), "{}", life.message());
    life.world.weights[0].1 = 1;
    measure(&mut life.world);
    life.run();
    assert_eq!(life.status.phase, Phase::Ready);
}

#[test]
fn ranges_are_read_back_and_nonsense_is_refused() {
    assert_eq!(proposal::ranges(&[0, 1, 2, 9, 11, 12]), "0-2,9,11-12");
    assert_eq!(partitions_of("0-2,9").expect("well-formed"), [0, 1, 2, 9]);
    for bad in ["x", "5-1", "0-99999999", "1-2-3"] {
        assert!(partitions_of(bad).is_none(), "{bad}");
    }
}

#[test]
fn the_settings_of_a_rebalance_say_what_moves_and_how_much_at_once() {
    let uneven = || world(&[("demo-0", 100, 0..36), ("demo-1", 100, 36..64)]);
    for (percent, phase) in [(5, Phase::ProposalReady), (20, Phase::Ready)] {
        let mut life = Life::new(RebalanceMode::Manual, uneven());
        life.spec.imbalance_percent = percent;
        life.step();
        assert_eq!(life.status.phase, phase, "{percent}: {}", life.message());
    }
    let batches = |pairs: u32, rate: &str| {
        let shards = [("demo-0", 100, 0..32), ("demo-1", 100, 32..64), ("demo-2", 100, 0..0), ("demo-3", 100, 0..0)];
        let mut life = Life::new(RebalanceMode::Automatic, world(&shards));
        life.spec.max_concurrent_moves = pairs;
        life.spec.max_bytes_per_second = rate.into();
        let Next::Move(batches) = life.step() else { panic!("a batch: {}", life.message()) };
        batches
    };
    assert_eq!(batches(1, "32Mi").len(), 1);
    assert_eq!(batches(2, "32Mi").len(), 2);
    assert_eq!(batches(1, "2000")[0].partitions.len(), 2, "two partitions of 1000 bytes a second");
    assert!(batches(1, "32Mi")[0].partitions.len() > 2);
}
