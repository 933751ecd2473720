//! Finds out that the client library has stopped taking records although there are more on the log.
//!
//! librdkafka's consumers sometimes stand still after a broker came back: a partition keeps its place and is never fetched again, or the
//! group never settles (issues 5153, 4492 and 3082 of its repository). Nothing but a new consumer helps. The broker is asked by a client of
//! its own, and only about partitions that have not moved for a while.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{admin::AdminClient, client::DefaultClientContext, statistics};
use tokio::runtime::Handle;

use super::admin;
use kith_kit::config::Kafka;

/// A partition that has not moved for so long is looked at.
const STILL: Duration = Duration::from_secs(10);
/// A group that has not settled for so long never will.
const UNSETTLED: Duration = Duration::from_secs(60);
/// One question to the broker.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stall {
    /// A partition is not fetched any more.
    Partition(i32),
    /// The group's members are never given their shares.
    Group,
}

/// Where the library says that it stands in a partition: everything before this offset it has taken or seen.
///
/// Records behind an open transaction are seen and not taken (the library reads committed records alone): waiting for its end is right,
/// and a new consumer would wait as well.
pub(super) fn position(told: &statistics::Partition) -> i64 {
    if told.ls_offset > told.next_offset { told.next_offset } else { told.next_offset.max(told.hi_offset) }
}

#[derive(Debug)]
struct Place {
    /// See [`position`].
    next: i64,
    since: Instant,
    /// Whether the broker has said that there is more.
    behind: bool,
}

/// Where the assigned partitions of a consumer stand.
#[derive(Debug, Default)]
struct Stalls {
    places: HashMap<i32, Place>,
    unsettled: Option<Instant>,
}

impl Stalls {
    /// Where the library says that its partitions stand, those alone that should move; and whether the group is settled. Answers with what
    /// stands still although there is more, if anything does.
    fn observe(&mut self, now: Instant, places: &[(i32, i64)], settled: bool) -> Option<Stall> {
        let before = std::mem::take(&mut self.places);
        let place = |(partition, next): &(i32, i64)| {
            let fresh = Place { next: *next, since: now, behind: false };
            let known = before.get(partition).filter(|p| p.next == *next);
            (*partition, known.map_or(fresh, |p| Place { next: p.next, since: p.since, behind: p.behind }))
        };
        self.places = places.iter().map(place).collect();
        let since = *self.unsettled.get_or_insert(now);
        if settled {
            self.unsettled = None;
        } else if now.saturating_duration_since(since) >= UNSETTLED {
            return Some(Stall::Group);
        }
        let stalled = self.places.iter().find(|(_, place)| place.behind);
        stalled.map(|(partition, _)| Stall::Partition(*partition))
    }

    /// The partitions about which the broker is to be asked, and where they stand.
    fn still(&self, now: Instant) -> Vec<(i32, i64)> {
        let still = self.places.iter().filter(|(_, p)| now.saturating_duration_since(p.since) >= STILL);
        still.map(|(partition, place)| (*partition, place.next)).collect()
    }

    /// The broker has said where a partition ends, when it stood at `next`. It has until the library speaks again to move.
    fn end_offset(&mut self, partition: i32, next: i64, end: i64) {
        if let Some(place) = self.places.get_mut(&partition)
            && place.next == next
        {
            place.behind = end > next.max(0);
        }
    }
}

/// Watches one consumer.
pub(super) struct Watch {
    stalls: Stalls,
    ends: Arc<EndOffsets>,
    runtime: Handle,
    found: Option<Stall>,
}

impl Watch {
    /// Of a consumer of `topic`; questions are asked on `runtime`.
    pub(super) fn new(kafka: &Kafka, topic: &str, runtime: Handle) -> Self {
        let ends = Arc::new(EndOffsets {
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            client: Mutex::default(),
            answers: Mutex::default(),
        });
        Self { stalls: Stalls::default(), ends, runtime, found: None }
    }

    /// The library has spoken: the positions of those partitions that should move, and whether the group is settled.
    pub(super) fn observe(&mut self, places: &[(i32, i64)], settled: bool) {
        let now = Instant::now();
        for (partition, next, end) in std::mem::take(&mut *self.ends.answers.lock()) {
            self.stalls.end_offset(partition, next, end);
        }
        self.found = self.stalls.observe(now, places, settled);
        let still = self.stalls.still(now);
        if !still.is_empty() {
            let ends = self.ends.clone();
            self.runtime.spawn_blocking(move || ends.ask(&still));
        }
    }

    /// What was found to stand still, once.
    pub(super) fn take(&mut self) -> Option<Stall> {
        self.found.take()
    }
}

/// Asks the brokers where partitions end.
struct EndOffsets {
    kafka: Kafka,
    topic: String,
    client: Mutex<Option<AdminClient<DefaultClientContext>>>,
    /// Partition, where it stood, and its end.
    answers: Mutex<Vec<(i32, i64, i64)>>,
}

impl EndOffsets {
    /// One round at a time. Blocks. Brokers that do not answer are asked again at the next round, by a new client.
    fn ask(&self, still: &[(i32, i64)]) {
        let Some(mut client) = self.client.try_lock() else { return };
        let made = match client.take().map_or_else(|| admin::client(&self.kafka), Ok) {
            Ok(made) => made,
            Err(error) => {
                return tracing::warn!(topic = self.topic, %error, "whether partitions stand still cannot be found out");
            }
        };
        for (partition, next) in still {
            match made.inner().fetch_watermarks(&self.topic, *partition, DEADLINE) {
                Ok((_, end)) => self.answers.lock().push((*partition, *next, end)),
                Err(error) => {
                    tracing::debug!(topic = self.topic, partition, %error, "the end of a partition is not known");
                    return;
                }
            }
        }
        *client = Some(made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_partition_that_stands_still_with_more_behind_it_is_found() {
        let (mut stalls, begin) = (Stalls::default(), Instant::now());
        assert_eq!(stalls.observe(begin, &[(0, 5), (1, 7)], true), None);
        assert!(stalls.still(begin + s(9)).is_empty());
        assert_eq!(stalls.observe(begin + s(5), &[(0, 6), (1, 7)], true), None);
        assert_eq!(stalls.still(begin + s(10)), [(1, 7)], "the other one moves");
        stalls.end_offset(1, 7, 7);
        assert_eq!(stalls.observe(begin + s(10), &[(0, 8), (1, 7)], true), None, "there is no more");
        stalls.end_offset(1, 7, 8);
        stalls.end_offset(0, 6, 9);
        assert_eq!(stalls.observe(begin + s(15), &[(0, 8), (1, 7)], true), Some(Stall::Partition(1)));
    }

    #[test]
    fn a_partition_that_moves_after_all_or_has_gone_is_left_alone() {
        let (mut stalls, begin) = (Stalls::default(), Instant::now());
        stalls.observe(begin, &[(0, 5), (1, -1_001)], true);
        assert_eq!(stalls.still(begin + s(10)).len(), 2);
        stalls.end_offset(0, 5, 9);
        stalls.end_offset(1, -1_001, 0);
        assert_eq!(stalls.observe(begin + s(15), &[(0, 9), (1, -1_001)], true), None, "an empty one never moves");
        stalls.end_offset(1, -1_001, 1);
        assert_eq!(stalls.observe(begin + s(20), &[], true), None, "it was given away, or is full");
        assert_eq!(stalls.observe(begin + s(25), &[(1, -1_001)], true), None, "and begins anew");
    }

    #[test]
    fn records_behind_an_open_transaction_are_no_standstill() {
        let told = |next_offset, ls_offset, hi_offset| {
            position(&statistics::Partition { next_offset, ls_offset, hi_offset, ..statistics::Partition::default() })
        };
        assert_eq!(told(7, 7, 9), 9, "seen, and not to be taken yet");
        assert_eq!(told(7, 9, 9), 7, "to be taken");
        assert_eq!(told(7, 7, 7), 7);
        assert_eq!(told(-1_001, -1_001, -1_001), -1_001, "nothing is known yet");
    }

    #[test]
    fn a_group_that_never_settles_is_found() {
        let (mut stalls, begin) = (Stalls::default(), Instant::now());
        assert_eq!(stalls.observe(begin, &[], false), None);
        assert_eq!(stalls.observe(begin + s(59), &[], false), None);
        assert_eq!(stalls.observe(begin + s(60), &[], true), None);
        assert_eq!(stalls.observe(begin + s(61), &[], false), None);
        assert_eq!(stalls.observe(begin + s(121), &[], false), Some(Stall::Group));
    }
}
