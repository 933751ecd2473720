//! What a strict consumer decides about each record, apart from any I/O: `ver + 1` only, later ones held, older ones dropped, and which
//! offset may be committed with which high-water.
//!
//! The event log gives every kith partition its own unbroken count `ver`. [`Sequencer`] puts one Kafka partition's records into that order
//! and finds gaps; [`Inflight`] knows which of them are still being worked on. A commit covers finished work alone, and so does the
//! high-water written beside it: what was in flight when a process died comes again and is not taken for a duplicate.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    time::{Duration, Instant},
};

pub use super::highwater::HighWater;

/// A gap that lasts longer is given up with an alarm: delivery goes on, a person looks.
pub const GAP_DEADLINE: Duration = Duration::from_secs(30);
/// Records held behind gaps in one Kafka partition; more than this ends the oldest gap at once.
pub const MAX_HELD: usize = 10_000;
/// Fingerprints kept of each stream, to tell a record sent twice from a count that went back.
const REMEMBERED: usize = 64;
/// Where a record stands in its kith partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The kith partition.
    pub stream: u32,
    /// Its count.
    pub ver: u64,
    /// Of the record's key, type and data: equal for a record that was sent twice.
    pub fingerprint: u64,
}

/// What became of an offered record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was the next one: released, with what had waited for it.
    Taken,
    /// An earlier `ver` is missing: held.
    Held,
    /// Known already: dropped.
    Duplicate,
    /// Its `ver` is known with other contents: the count went back. Dropped, and worth an alarm.
    WentBack,
}

/// A gap that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The kith partition.
    pub stream: u32,
    /// The first `ver` that is missing.
    pub missing: u64,
    /// The `ver` that is taken next instead.
    pub resumed: u64,
}

/// Puts the records of one Kafka partition into the order of their kith partitions.
#[derive(Debug)]
pub struct Sequencer<T> {
    streams: HashMap<u32, Stream<T>>,
    held: usize,
    /// How far each kith partition had come when storage was last asked.
    reached: HashMap<u32, u64>,
}

#[derive(Debug)]
struct Stream<T> {
    /// The newest `ver` released.
    high: u64,
    /// Fingerprints of the newest releases, `high` last.
    recent: VecDeque<u64>,
    held: BTreeMap<u64, (u64, T)>,
    waiting_since: Option<Instant>,
}

impl<T> Stream<T> {
    fn at(high: u64) -> Self {
        Self { high, recent: VecDeque::new(), held: BTreeMap::new(), waiting_since: None }
    }

    fn known(&self, ver: u64) -> Option<u64> {
        let back = usize::try_from(self.high.checked_sub(ver)?).ok()?;
        self.recent.get(self.recent.len().checked_sub(back + 1)?).copied()
    }

    fn release(&mut self, ver: u64, fingerprint: u64) {
        if ver != self.high.saturating_add(1) {
            self.recent.clear();
        }
        self.high = ver;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(fingerprint);
    }

    /// Releases what follows without a hole; returns how many.
    fn drain(&mut self, now: Instant, out: &mut Vec<T>) -> usize {
        let mut released = 0;
        while let Some(first) = self.held.first_entry()
            && *first.key() == self.high.saturating_add(1)
        {
            let (ver, (fingerprint, item)) = first.remove_entry();
            self.release(ver, fingerprint);
            out.push(item);
            released += 1;
        }
        self.waiting_since = match (self.held.is_empty(), released) {
            (true, _) => None,
            // Another gap begins where this one ended.
            (false, 1..) => Some(now),
            (false, 0) => self.waiting_since,
        };
        released
    }
}

impl<T> Sequencer<T> {
    /// Starts after `high_water`. A kith partition that it does not name is taken from its first record on.
    pub fn new(high_water: &HighWater) -> Self {
        let streams = high_water.marks().map(|(stream, ver)| (stream, Stream::at(ver))).collect();
        Self { streams, held: 0, reached: HashMap::new() }
    }

    /// Whether a version may be offered: it is the next one or an older one, or storage has come so far. Any other would open a gap, or
    /// decide where a kith partition begins, on nothing but the word of whoever wrote the record.
    pub fn is_plausible(&self, stream: u32, ver: u64) -> bool {
        let next = self.streams.get(&stream).map_or(1, |s| s.high.saturating_add(1));
        ver <= next || self.reached.get(&stream).is_some_and(|reached| ver <= *reached)
    }

    /// Storage has committed `ver` of a kith partition.
    pub fn reached(&mut self, stream: u32, ver: u64) {
        let reached = self.reached.entry(stream).or_default();
        *reached = (*reached).max(ver);
    }

    /// Decides about a record that [`Sequencer::is_plausible`]; what may be worked on now is added to `out`, in order.
    pub fn offer(&mut self, now: Instant, place: Place, item: T, out: &mut Vec<T>) -> Verdict {
        let stream = self.streams.entry(place.stream).or_insert_with(|| Stream::at(place.ver.saturating_sub(1)));
        if place.ver <= stream.high {
            return match stream.known(place.ver) {
                Some(fingerprint) if fingerprint != place.fingerprint => Verdict::WentBack,
                _ => Verdict::Duplicate,
            };
        }
        if place.ver == stream.high.saturating_add(1) {
            stream.release(place.ver, place.fingerprint);
            out.push(item);
            self.held -= stream.drain(now, out);
            return Verdict::Taken;
        }
        match stream.held.entry(place.ver) {
            Entry::Occupied(known) if known.get().0 != place.fingerprint => Verdict::WentBack,
            Entry::Occupied(_) => Verdict::Duplicate,
            Entry::Vacant(free) => {
                free.insert((place.fingerprint, item));
                stream.waiting_since.get_or_insert(now);
                self.held += 1;
                Verdict::Held
            }
        }
    }

    /// Gives up gaps older than [`GAP_DEADLINE`], and the oldest ones while more than [`MAX_HELD`] records are held. Where what is held takes
    /// too much memory (`pressed`), all of them are given up.
    pub fn expire(&mut self, now: Instant, pressed: bool, out: &mut Vec<T>) -> Vec<Gap> {
        let mut gaps = Vec::new();
        if self.held == 0 {
            return gaps;
        }
        let mut waiting: Vec<_> = self.streams.iter().filter_map(|(id, s)| Some((s.waiting_since?, *id))).collect();
        waiting.sort_unstable();
        for (since, id) in waiting {
            if now.saturating_duration_since(since) < GAP_DEADLINE && self.held <= MAX_HELD && !pressed {
                break;
            }
            if let Some(stream) = self.streams.get_mut(&id)
                && let Some(resumed) = stream.held.keys().next().copied()
            {
                gaps.push(Gap { stream: id, missing: stream.high.saturating_add(1), resumed });
                stream.high = resumed - 1;
                stream.recent.clear();
                self.held -= stream.drain(now, out);
            }
        }
        gaps
    }

    /// Records held behind gaps.
    pub fn held(&self) -> usize {
        self.held
    }
}

/// The records of one Kafka partition that are being worked on, and how far a commit may go.
#[derive(Debug, Default)]
pub struct Inflight {
    entries: VecDeque<Work>,
    /// One past the newest finished record before which nothing is open.
    next: Option<i64>,
    committed: Option<i64>,
    high_water: HighWater,
    /// Records that are not finished, and their bytes.
    open: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Work {
    offset: i64,
    bytes: usize,
    /// What the high-water becomes when the work is finished.
    mark: Option<(u32, u64)>,
    done: bool,
}

impl Inflight {
    /// Nothing in flight; `high_water` as it was committed.
    pub fn new(high_water: HighWater) -> Self {
        Self { high_water, ..Self::default() }
    }

    /// A record came in. Offsets rise; one that does not is ignored (a fetch repeated after a pause).
    pub fn begin(&mut self, offset: i64, bytes: usize) -> bool {
        let newest = self.entries.back().map(|w| w.offset).or_else(|| self.next.map(|n| n - 1));
        if newest.is_some_and(|n| offset <= n) {
            return false;
        }
        self.entries.push_back(Work { offset, bytes, mark: None, done: false });
        self.open += 1;
        self.bytes += bytes;
        true
    }

    /// The record has this place in the order: once it is finished, the high-water stands there. One that was set aside has none.
    pub fn mark(&mut self, offset: i64, stream: u32, ver: u64) {
        if let Ok(at) = self.entries.binary_search_by_key(&offset, |w| w.offset) {
            self.entries[at].mark = Some((stream, ver));
        }
    }

    /// The work on a record is finished.
    pub fn done(&mut self, offset: i64) {
        if let Ok(at) = self.entries.binary_search_by_key(&offset, |w| w.offset) {
            let work = &mut self.entries[at];
            if !std::mem::replace(&mut work.done, true) {
                self.open -= 1;
                self.bytes -= work.bytes;
            }
        }
        while self.entries.front().is_some_and(|w| w.done) {
            if let Some(work) = self.entries.pop_front() {
                self.next = Some(work.offset + 1);
                if let Some((stream, ver)) = work.mark {
                    self.high_water.raise(stream, ver);
                }
            }
        }
    }

    /// How many records are not finished, held ones included.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The bytes of records that are not finished, held ones included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The offset to commit and its high-water; none when nothing has changed since the last [`Inflight::committed`].
    pub fn commit_point(&self) -> Option<(i64, &HighWater)> {
        match self.next {
            Some(next) if self.committed != Some(next) => Some((next, &self.high_water)),
            _ => None,
        }
    }

    /// Whether `offset` is further than what was committed.
    pub fn is_behind(&self, offset: i64) -> bool {
        self.committed.is_none_or(|committed| committed < offset) && self.next.is_some_and(|next| offset <= next)
    }

    /// A commit of `offset` was handed over.
    pub fn committed(&mut self, offset: i64) {
        self.committed = Some(offset);
    }

    /// The last commit failed: the next one says it again.
    pub fn uncommitted(&mut self) {
        self.committed = None;
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
