//! Records whose versions are neither the next nor older ones: they wait until storage has said how far their kith partition has come.
//!
//! One question at a time for each kith partition. An answer judges the records that were there when it was asked for; a version that came
//! in meanwhile may be newer than the answer, so it is asked about again. All others go on: what is next in order never waits here.

use std::collections::HashMap;

use super::{consumer::Event, origin::Stray, sequence::Place};

/// Records that wait for answers in one Kafka partition, and their bytes; more pauses the partition.
const MAX_DOUBTFUL: usize = 256;
const MAX_DOUBTFUL_BYTES: usize = 8 << 20;

/// A record that waits.
#[derive(Debug)]
pub(super) struct Doubtful<T> {
    pub(super) place: Place,
    pub(super) event: Event<T>,
    /// For the case that it is set aside.
    pub(super) stray: Stray,
}

#[derive(Debug)]
struct Doubt<T> {
    waiting: Vec<Doubtful<T>>,
    /// How many of them stood there when the open question was asked.
    asked: usize,
}

/// All that wait in one Kafka partition.
#[derive(Debug)]
pub(super) struct Doubts<T> {
    streams: HashMap<u32, Doubt<T>>,
    records: usize,
    bytes: usize,
}

/// What an answer decides.
#[derive(Debug)]
pub(super) struct Settled<T> {
    /// Storage has come so far: by version, each to be offered.
    pub(super) believed: Vec<Doubtful<T>>,
    /// Storage has not.
    pub(super) foreign: Vec<Doubtful<T>>,
    /// Whether storage must be asked again.
    pub(super) again: bool,
}

impl<T> Default for Doubts<T> {
    fn default() -> Self {
        Self { streams: HashMap::new(), records: 0, bytes: 0 }
    }
}

impl<T> Doubts<T> {
    /// Takes a record in; whether storage must be asked about its kith partition now.
    pub(super) fn add(&mut self, doubtful: Doubtful<T>) -> bool {
        self.records += 1;
        self.bytes += doubtful.stray.data_bytes;
        let mut begins = false;
        let doubt = self.streams.entry(doubtful.place.stream).or_insert_with(|| {
            begins = true;
            Doubt { waiting: Vec::new(), asked: 1 }
        });
        doubt.waiting.push(doubtful);
        begins
    }

    /// Storage has committed `newest` of a kith partition.
    pub(super) fn answered(&mut self, stream: u32, newest: u64) -> Settled<T> {
        let mut settled = Settled { believed: Vec::new(), foreign: Vec::new(), again: false };
        let Some(doubt) = self.streams.remove(&stream) else { return settled };
        let mut later = Vec::new();
        for (at, doubtful) in doubt.waiting.into_iter().enumerate() {
            if doubtful.place.ver > newest && at >= doubt.asked {
                later.push(doubtful);
                continue;
            }
            self.records -= 1;
            self.bytes -= doubtful.stray.data_bytes;
            if doubtful.place.ver <= newest {
                settled.believed.push(doubtful);
            } else {
                settled.foreign.push(doubtful);
            }
        }
        settled.believed.sort_by_key(|d| d.place.ver);
        if !later.is_empty() {
            settled.again = true;
            self.streams.insert(stream, Doubt { asked: later.len(), waiting: later });
        }
        settled
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.records
    }

    /// Whether no more should come in.
    pub(super) fn is_full(&self) -> bool {
        self.records >= MAX_DOUBTFUL || self.bytes >= MAX_DOUBTFUL_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::consumer::{Ticket, Work};

    fn doubtful(stream: u32, ver: u64) -> Doubtful<u64> {
        let stray = Stray {
            topic: "log".to_owned(),
            partition: 0,
            offset: 0,
            key: Bytes::new(),
            headers: Vec::new(),
            data: Bytes::new(),
            data_bytes: 10,
        };
        let ticket = Ticket::new(Arc::new(Work::default()), 0);
        let event = Event { item: ver, partition: 0, ver: Some((stream, ver)), ticket };
        Doubtful { place: Place { stream, ver, fingerprint: ver }, event, stray }
    }

    fn vers(records: &[Doubtful<u64>]) -> Vec<u64> {
        records.iter().map(|d| d.place.ver).collect()
    }

    #[test]
    fn an_answer_judges_what_was_there_when_it_was_asked_for() {
        let mut doubts = Doubts::default();
        assert!(doubts.add(doubtful(1, u64::MAX)), "the first one asks");
        assert!(!doubts.add(doubtful(1, 12)) && !doubts.add(doubtful(1, 9)) && !doubts.add(doubtful(1, 1 << 63)));
        assert!(doubts.add(doubtful(2, 5)), "another partition's question is its own");
        let settled = doubts.answered(1, 12);
        assert_eq!(
            (vers(&settled.believed), vers(&settled.foreign), settled.again),
            (vec![9, 12], vec![u64::MAX], true)
        );
        let settled = doubts.answered(1, 13);
        assert_eq!((vers(&settled.believed), vers(&settled.foreign), settled.again), (vec![], vec![1 << 63], false));
        assert_eq!(doubts.len(), 1);
        assert_eq!(vers(&doubts.answered(2, 5).believed), [5]);
        assert_eq!((doubts.len(), doubts.bytes), (0, 0));
        assert!(vers(&doubts.answered(2, 5).believed).is_empty(), "nothing is open");
    }

    #[test]
    fn what_waits_for_answers_is_bounded() {
        let mut doubts = Doubts::default();
        for ver in 0..MAX_DOUBTFUL as u64 {
            assert!(!doubts.is_full());
            doubts.add(doubtful(1, ver + 2));
        }
        assert!(doubts.is_full());
        doubts.answered(1, u64::MAX);
        assert!(!doubts.is_full());
    }
}
