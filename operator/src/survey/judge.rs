//! What one round of answers means after those before it: consumers that stand still, Kafka clients that are replaced again and again. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{lag::Group, scrape::Sample};

/// A consumer that commits nothing for so long although events wait is stuck: `tasks` commits twice a second while it gets on, but hands one
/// event over again and again until `sessions` takes it, and everything behind it on the partition waits as long.
const STANDSTILL: Duration = Duration::from_secs(300);
/// Replacements of Kafka clients are looked for in so many rounds, a minute apart: in this many of them they are told, for one or two follow a
/// restart of the brokers; and no longer once this many of the latest have passed without one.
const ROUNDS: usize = 5;
const OFTEN: usize = 3;
const CALM: usize = 2;

/// What a round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How far each group lags; none: the brokers did not say.
    pub lags: Option<Vec<GroupLag>>,
    /// Bytes that wait in each instance of storage that answered.
    pub outboxes: Vec<(String, u64)>,
    /// Pods whose Kafka clients are replaced again and again.
    pub replaced: Vec<String>,
}

/// How far a group lags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLag {
    /// Its name.
    pub group: String,
    /// Events that wait for it, over all partitions.
    pub events: u64,
    /// A partition on which it stands still.
    pub stuck: Option<Stuck>,
}

/// A partition on which a group stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The partition.
    pub partition: i32,
    /// The event that it does not get past.
    pub offset: i64,
}

/// What earlier rounds said.
#[derive(Default)]
pub(super) struct Memory {
    /// By group and partition: where it was, and since when. Only while events wait.
    positions: BTreeMap<(String, i32), (i64, Instant)>,
    /// By pod that answered in the last round.
    replaced: BTreeMap<String, Replaced>,
}

/// How often a pod's Kafka clients were replaced.
struct Replaced {
    /// As it counts itself.
    count: u64,
    /// Whether the count had risen, in the latest rounds.
    rose: VecDeque<bool>,
}

impl Replaced {
    fn is_often(&self) -> bool {
        let rises = self.rose.iter().filter(|rose| **rose).count();
        rises >= OFTEN && self.rose.iter().rev().take(CALM).any(|rose| *rose)
    }
}

impl Memory {
    /// Takes one round's answers in.
    pub(super) fn judge(&mut self, now: Instant, groups: Option<Vec<Group>>, samples: Vec<(String, Sample)>) -> Found {
        let mut outboxes: Vec<(String, u64)> =
            samples.iter().filter_map(|(pod, sample)| Some((pod.clone(), sample.outbox_bytes?))).collect();
        outboxes.sort();
        Found { lags: groups.map(|groups| self.lags(now, groups)), outboxes, replaced: self.replaced(samples) }
    }

    /// Whether at `now`, the time of the last answer of the brokers, no group was where an earlier round had found it, with events waiting.
    pub(super) fn is_calm(&self, now: Instant) -> bool {
        self.positions.values().all(|(_, since)| *since == now)
    }

    fn lags(&mut self, now: Instant, groups: Vec<Group>) -> Vec<GroupLag> {
        let mut waiting = BTreeMap::new();
        let mut lags = Vec::new();
        for group in groups {
            let mut lag = GroupLag { group: group.name.clone(), events: 0, stuck: None };
            for position in group.positions {
                lag.events = lag.events.saturating_add(position.lag());
                if position.lag() == 0 {
                    continue;
                }
                let key = (group.name.clone(), position.partition);
                let before = self.positions.get(&key).filter(|(next, _)| *next == position.next);
                let since = before.map_or(now, |(_, since)| *since);
                if lag.stuck.is_none() && now.duration_since(since) >= STANDSTILL {
                    lag.stuck = Some(Stuck { partition: position.partition, offset: position.next });
                }
                waiting.insert(key, (position.next, since));
            }
            lags.push(lag);
        }
        self.positions = waiting;
        lags
    }

    fn replaced(&mut self, samples: Vec<(String, Sample)>) -> Vec<String> {
        let mut known = BTreeMap::new();
        for (pod, sample) in samples {
            let next = match self.replaced.remove(&pod) {
                // What was counted before the first look may be old.
                None => Replaced { count: sample.replaced, rose: VecDeque::new() },
                Some(mut before) => {
                    // A process that began anew counts from nought.
                    let began = if sample.replaced < before.count { 0 } else { before.count };
                    before.rose.push_back(sample.replaced > began);
                    if before.rose.len() > ROUNDS {
                        before.rose.pop_front();
                    }
                    Replaced { count: sample.replaced, rose: before.rose }
                }
            };
            known.insert(pod, next);
        }
        self.replaced = known;
        self.replaced.iter().filter(|(_, replaced)| replaced.is_often()).map(|(pod, _)| pod.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::lag::Position;

    fn group(positions: &[(i64, i64)]) -> Vec<Group> {
        let positions = positions.iter().zip(0..);
        let positions = positions.map(|((next, end), partition)| Position { partition, next: *next, end: *end });
        vec![Group { name: "demo.tasks".to_owned(), positions: positions.collect() }]
    }

    fn lag(memory: &mut Memory, at: Instant, positions: &[(i64, i64)]) -> GroupLag {
        memory.judge(at, Some(group(positions)), Vec::new()).lags.unwrap().remove(0)
    }

    #[test]
    fn a_consumer_that_commits_nothing_while_events_wait_is_stuck_after_five_minutes() {
        let (mut memory, begin) = (Memory::default(), Instant::now());
        let minute = |n: u64| begin + Duration::from_secs(60 * n);
        assert_eq!(lag(&mut memory, minute(0), &[(5, 5), (7, 9)]).events, 2);
        assert!(memory.is_calm(minute(0)), "what waits has just come");
        for n in 1..5 {
            assert_eq!(lag(&mut memory, minute(n), &[(5, 5), (7, 20)]).stuck, None, "minute {n}");
            assert!(!memory.is_calm(minute(n)));
        }
        let found = lag(&mut memory, minute(5), &[(5, 5), (7, 20)]);
        assert_eq!((found.events, found.stuck), (13, Some(Stuck { partition: 1, offset: 7 })));
        assert_eq!(lag(&mut memory, minute(6), &[(5, 5), (8, 20)]).stuck, None, "it moves again");
        assert!(memory.is_calm(minute(6)));
        assert_eq!(lag(&mut memory, minute(60), &[(5, 5), (20, 20)]).stuck, None, "nothing waits");
        assert_eq!(lag(&mut memory, minute(61), &[(5, 6), (20, 20)]).stuck, None, "what waits has just come");
    }

    #[test]
    fn brokers_that_do_not_say_leave_the_lag_unknown() {
        assert_eq!(Memory::default().judge(Instant::now(), None, Vec::new()).lags, None);
    }

    #[test]
    fn kafka_clients_that_are_replaced_again_and_again_are_told_until_that_ends() {
        let mut memory = Memory::default();
        let mut told = |counts: &[u64]| -> Vec<bool> {
            let round = |replaced: &u64| {
                let sample = Sample { outbox_bytes: Some(9), replaced: *replaced };
                let found = memory.judge(Instant::now(), None, vec![("demo-storage-1".to_owned(), sample)]);
                found.replaced == ["demo-storage-1"]
            };
            counts.iter().map(round).collect()
        };
        // What was counted before the first look may be old, and a restart of the brokers is over soon.
        assert_eq!(told(&[50, 59, 60, 60, 60, 60]), [false; 6]);
        assert_eq!(told(&[61, 62, 62, 63, 63, 63]), [false, false, false, true, true, false]);
        // Another process of the same pod counts anew.
        assert_eq!(told(&[1, 2, 3]), [false, true, true]);
    }

    #[test]
    fn a_pod_that_is_gone_is_forgotten() {
        let mut memory = Memory::default();
        for replaced in 0..5 {
            memory.judge(Instant::now(), None, vec![("gone".to_owned(), Sample { outbox_bytes: None, replaced })]);
        }
        assert!(memory.judge(Instant::now(), None, Vec::new()).replaced.is_empty() && memory.replaced.is_empty());
    }
}
