//! Each conversation is shown once and ascending, whatever is delivered, repeated or lost.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn item(id: &str, seq: u64) -> Item {
    Item { conversation_id: id.into(), seq, json: format!("{id}/{seq}").into() }
}

fn seqs(outcome: &Outcome) -> Vec<u64> {
    outcome.show.iter().map(|i| i.seq).collect()
}

fn released(cursors: &[(&str, u64)]) -> Order {
    let mut order = Order::new(cursors.iter().map(|(id, seq)| (Arc::from(*id), *seq)));
    order.release();
    for (id, seq) in cursors {
        order.verified(&Arc::from(*id), *seq);
    }
    order
}

#[test]
fn a_claim_above_the_end_hides_no_live_message() {
    let c = Arc::<str>::from("c");
    let mut order = Order::new([(c.clone(), 1_000_000)]);
    order.release();
    assert!(order.live(item("c", 6)).show.is_empty(), "not yet");
    assert_eq!(seqs(&order.verified(&c, 6)), [6]);
    assert_eq!(seqs(&order.live(item("c", 7))), [7]);
    // Claimed on a living connection.
    assert!(order.claim("new".into(), u64::MAX));
    order.verified(&"new".into(), 3);
    assert_eq!(seqs(&order.live(item("new", 4))), [4]);
    assert!(!order.claim("new".into(), u64::MAX), "what has been shown stays");
}

#[test]
fn a_claim_that_cannot_be_looked_at_is_none() {
    let mut order = Order::new([("c".into(), 9), ("secret".into(), 9)]);
    order.release();
    order.live(item("c", 7));
    assert_eq!(order.unverified(&"c".into()).needs, [Need::Base("c".into())]);
    assert_eq!(seqs(&order.base(&"c".into(), 6)), [7]);
    order.live(item("secret", 3));
    order.denied("secret");
    assert_eq!(
        (order.known().len(), order.waiting),
        (1, Waiting::default()),
        "nothing is kept of what the user may not see"
    );
}

#[test]
fn claims_are_bounded() {
    let mut order = Order::new([]);
    let taken = (0..MAX_TRACKS * 2).filter(|n| order.claim(format!("c{n}").into(), 1)).count();
    assert_eq!(taken, MAX_TRACKS);
}

#[test]
fn a_message_that_follows_is_shown_and_its_repetition_is_not() {
    let mut order = released(&[("c", 4)]);
    assert_eq!(seqs(&order.live(item("c", 5))), [5]);
    assert!(order.live(item("c", 5)).show.is_empty());
    assert!(order.live(item("c", 3)).show.is_empty());
}

#[test]
fn a_gap_is_read_once_before_what_follows_is_shown() {
    let mut order = released(&[("c", 4)]);
    let outcome = order.live(item("c", 7));
    assert_eq!(outcome.needs, [Need::Pull { conversation_id: "c".into(), after: 4 }]);
    assert!(order.live(item("c", 8)).needs.is_empty(), "one read at a time");
    let outcome = order.pulled(&"c".into(), vec![item("c", 5), item("c", 6), item("c", 7)], false);
    assert_eq!(seqs(&outcome), [5, 6, 7, 8]);
}

#[test]
fn an_unmet_conversation_asks_where_the_device_stands() {
    let mut order = released(&[]);
    assert_eq!(order.live(item("c", 9)).needs, [Need::Base("c".into())]);
    assert_eq!(seqs(&order.base(&"c".into(), 8)), [9]);
    assert_eq!(seqs(&order.live(item("new", 1))), [1], "the first message needs no question");
}

#[test]
fn live_messages_wait_for_the_catch_up() {
    let mut order = Order::new([]);
    assert!(order.live(item("c", 12)).show.is_empty());
    assert_eq!(seqs(&order.caught_up(item("c", 10))), [10]);
    assert_eq!(seqs(&order.caught_up(item("c", 11))), [11]);
    assert_eq!(seqs(&order.release()), [12]);
}

#[test]
fn a_client_cursor_older_than_the_catch_up_is_respected() {
    let mut order = Order::new([("c".into(), 5)]);
    assert!(order.caught_up(item("c", 11)).show.is_empty());
    let outcome = order.release();
    assert_eq!(outcome.needs, [Need::Pull { conversation_id: "c".into(), after: 5 }]);
    let outcome = order.pulled(&"c".into(), (6..=11).map(|s| item("c", s)).collect(), false);
    assert_eq!(seqs(&outcome), (6..=11).collect::<Vec<_>>());
}

#[test]
fn a_gap_that_is_too_large_is_told_and_the_new_message_shown() {
    let mut order = released(&[("c", 1)]);
    let outcome = order.live(item("c", 5_000));
    assert_eq!(outcome.more, [Arc::from("c")]);
    assert_eq!(seqs(&outcome), [5_000]);
    assert_eq!(seqs(&order.live(item("c", 5_001))), [5_001]);
}

#[test]
fn what_the_user_may_not_see_does_not_block_forever() {
    let mut order = released(&[("g", 0)]);
    order.live(item("g", 50));
    // Joined at 48: older ones are not listed.
    let outcome = order.pulled(&"g".into(), vec![item("g", 48), item("g", 49), item("g", 50)], false);
    assert_eq!(seqs(&outcome), [48, 49, 50]);
    // Storage lists nothing at all: after some tries what waits is shown.
    order.live(item("g", 60));
    for _ in 0..MAX_STALLS - 1 {
        assert_eq!(order.pulled(&"g".into(), vec![], false).later.len(), 1);
    }
    assert_eq!(seqs(&order.pulled(&"g".into(), vec![], false)), [60]);
}

#[test]
fn a_conversation_that_is_lost_leaves_nothing_behind() {
    let mut order = released(&[("c", 1)]);
    order.live(item("c", 5));
    order.lost(&Need::Pull { conversation_id: "c".into(), after: 1 });
    assert!(order.pulled(&"c".into(), vec![item("c", 2)], false).show.is_empty());
    assert_eq!(order.waiting, Waiting::default());
}

#[test]
fn what_waits_is_bounded_in_bytes_and_the_rest_is_read_again() {
    let large = |seq| Item { json: "x".repeat(1 << 20).into(), ..item("c", seq) };
    let mut order = released(&[("c", 1)]);
    for seq in 3..20 {
        order.live(large(seq));
    }
    assert_eq!(order.waiting.bytes, MAX_WAITING_BYTES);
    let kept = 3 + order.waiting.items as u64;
    let outcome = order.pulled(&"c".into(), vec![item("c", 2)], false);
    assert_eq!(seqs(&outcome), (2..kept).collect::<Vec<_>>());
    assert_eq!(outcome.needs, [Need::Pull { conversation_id: "c".into(), after: kept - 1 }]);
    assert_eq!(order.waiting, Waiting::default());
    // One that is larger than all that may wait waits alone.
    let huge = Item { json: "x".repeat(MAX_WAITING_BYTES + 1).into(), ..item("d", 5) };
    order.live(huge);
    order.live(item("d", 6));
    assert_eq!(order.waiting.items, 1);
}

#[derive(Debug, Clone)]
enum Step {
    /// Commits messages to conversation `c` and delivers those of them whose bit is set, in this or the reverse order.
    Append { c: usize, count: u64, delivered: u64, reverse: bool },
    /// Answers the oldest or the newest open need.
    Answer { newest: bool, page: usize },
    /// Repeats an old message.
    Repeat { c: usize, back: u64 },
    /// Something may have been lost: hold, and catch up from storage.
    Resync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 1..6_u64, any::<u64>(), any::<bool>()).prop_map(|(c, count, delivered, reverse)| Step::Append { c, count, delivered, reverse }),
        4 => (any::<bool>(), 1..5_usize).prop_map(|(newest, page)| Step::Answer { newest, page }),
        1 => (0..3_usize, 0..10_u64).prop_map(|(c, back)| Step::Repeat { c, back }),
        1 => Just(Step::Resync),
    ]
}

/// Storage and a client, as far as order is concerned.
struct World {
    order: Order,
    names: Vec<Arc<str>>,
    newest: Vec<u64>,
    delivered: Vec<u64>,
    heard: Vec<u64>,
    open: VecDeque<Need>,
    shown: BTreeMap<Arc<str>, Vec<u64>>,
}

impl World {
    fn new(base: Vec<u64>, given: &[bool]) -> Self {
        let names: Vec<Arc<str>> = (0..base.len()).map(|i| Arc::from(format!("c{i}"))).collect();
        let cursors: Vec<_> = (0..base.len()).filter(|i| given[*i]).map(|i| (names[i].clone(), base[i])).collect();
        Self {
            order: Order::new(cursors),
            names,
            newest: base.clone(),
            heard: base.clone(),
            delivered: base,
            open: VecDeque::new(),
            shown: BTreeMap::new(),
        }
    }

    fn take(&mut self, outcome: Outcome) {
        for item in outcome.show {
            self.shown.entry(item.conversation_id).or_default().push(item.seq);
        }
        self.open.extend(outcome.needs);
        self.open.extend(outcome.later);
    }

    fn deliver(&mut self, c: usize, seq: u64) {
        self.heard[c] = self.heard[c].max(seq);
        let outcome = self.order.live(item(&self.names[c], seq));
        self.take(outcome);
    }

    fn answer(&mut self, need: Need, page: usize) {
        let c = self.names.iter().position(|n| n == need.conversation_id()).unwrap();
        let outcome = match need {
            Need::Base(id) => self.order.base(&id, self.delivered[c]),
            Need::Pull { conversation_id, after } => {
                let last = self.newest[c].min(after + page as u64);
                let items = (after + 1..=last).map(|s| item(&conversation_id, s)).collect();
                self.order.pulled(&conversation_id, items, last < self.newest[c])
            }
        };
        self.take(outcome);
    }

    fn catch_up(&mut self) {
        for c in 0..self.names.len() {
            for seq in self.delivered[c] + 1..=self.newest[c] {
                let outcome = self.order.caught_up(item(&self.names[c], seq));
                self.take(outcome);
            }
            if self.newest[c] > self.delivered[c] {
                self.heard[c] = self.newest[c];
            }
        }
        let outcome = self.order.release();
        self.take(outcome);
        for c in 0..self.names.len() {
            let Some(claim) = self.order.claimed(&self.names[c]) else { continue };
            let outcome = self.order.verified(&self.names[c], self.newest[c]);
            self.take(outcome);
            for seq in claim + 1..=self.newest[c] {
                let outcome = self.order.caught_up(item(&self.names[c], seq));
                self.take(outcome);
            }
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Append { c, count, delivered, reverse } => {
                let first = self.newest[c] + 1;
                self.newest[c] += count;
                let mut seqs: Vec<u64> = (first..first + count).filter(|s| delivered >> (s - first) & 1 == 1).collect();
                if reverse {
                    seqs.reverse();
                }
                for seq in seqs {
                    self.deliver(c, seq);
                }
            }
            Step::Answer { newest, page } => {
                let need = if newest { self.open.pop_back() } else { self.open.pop_front() };
                if let Some(need) = need {
                    self.answer(need, page);
                }
            }
            Step::Repeat { c, back } => {
                let seq = self.heard[c].saturating_sub(back);
                if seq > self.delivered[c] {
                    self.deliver(c, seq);
                }
            }
            Step::Resync => {
                self.order.hold();
                self.catch_up();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn every_seq_is_shown_once_ascending_without_a_hole(
        base in proptest::collection::vec(0..20_u64, 3),
        given in proptest::collection::vec(any::<bool>(), 3),
        before in proptest::collection::vec(step(), 0..10),
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut world = World::new(base.clone(), &given);
        for step in before {
            world.run(&step);
        }
        world.catch_up();
        for step in steps {
            world.run(&step);
        }
        let mut answers = 0;
        while let Some(need) = world.open.pop_front() {
            world.answer(need, 3);
            answers += 1;
            prop_assert!(answers < 10_000, "the questions never end");
        }
        for (c, name) in world.names.iter().enumerate() {
            let shown = world.shown.get(name).cloned().unwrap_or_default();
            let expected: Vec<u64> = (base[c] + 1..).take(shown.len()).collect();
            prop_assert_eq!(&shown, &expected, "conversation {} from {}", name, base[c]);
            prop_assert!(shown.last().copied().unwrap_or(base[c]) >= world.heard[c], "nothing that was heard of is left out");
        }
        prop_assert_eq!(&world.order.waiting, &Waiting::default());
    }

    #[test]
    fn whatever_a_client_claims_every_live_message_is_shown_once_and_ascending(
        claim in prop_oneof![0..30_u64, Just(u64::MAX), any::<u64>()],
        end in 0..20_u64,
        early in 0..5_u64,
        late in 1..5_u64,
        looked_at in any::<bool>(),
    ) {
        let c = Arc::<str>::from("c");
        let mut order = Order::new([(c.clone(), claim)]);
        let mut shown = Vec::new();
        let mut needs = Vec::new();
        let mut take = |outcome: Outcome, needs: &mut Vec<Need>| {
            shown.extend(seqs(&outcome));
            needs.extend(outcome.needs);
        };
        let newest = end + early + late;
        for seq in end + 1..=end + early {
            take(order.live(item("c", seq)), &mut needs);
        }
        take(order.release(), &mut needs);
        take(if looked_at { order.verified(&c, end + early) } else { order.unverified(&c) }, &mut needs);
        for seq in end + early + 1..=newest {
            take(order.live(item("c", seq)), &mut needs);
        }
        while let Some(need) = needs.pop() {
            let outcome = match need {
                Need::Base(id) => order.base(&id, end),
                Need::Pull { conversation_id, after } => {
                    order.pulled(&conversation_id, (after + 1..=newest).map(|s| item("c", s)).collect(), false)
                }
            };
            take(outcome, &mut needs);
        }
        prop_assert!(shown.windows(2).all(|w| w[0] < w[1]), "{:?}", shown);
        for seq in end + 1..=newest {
            // What came before the claim could be looked at and lies below it is the client's own word.
            prop_assert!(shown.contains(&seq) || (seq <= claim && claim <= end + early), "{} of {:?}", seq, shown);
        }
    }
}
