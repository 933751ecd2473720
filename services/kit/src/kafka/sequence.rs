//! What a strict consumer decides about each record, apart from any I/O: `ver + 1` only, later ones held, older ones dropped, and which
//! offset may be committed with which high-water.
//!
//! The event log gives every kith partition its own unbroken count `ver`. [`Sequencer`] puts one Kafka partition's records into that order
//! and finds gaps; [`Inflight`] knows which of them are still being worked on. A commit covers finished work alone, and so does the
//! high-water written beside it: what was in flight when a process died comes again and is not taken for a duplicate.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    fmt::Write,
    time::{Duration, Instant},
};

/// A gap that lasts longer is given up with an alarm: delivery goes on, a person looks.
pub const GAP_DEADLINE: Duration = Duration::from_secs(30);
/// Records held behind gaps in one Kafka partition; more than this ends the oldest gap at once.
pub const MAX_HELD: usize = 10_000;
/// Fingerprints kept of each stream, to tell a record sent twice from a count that went back.
const REMEMBERED: usize = 64;
/// Kafka's own bound is 4,096 bytes by default (`offset.metadata.max.bytes`).
const MAX_METADATA_BYTES: usize = 4_000;

/// The newest `ver` of each kith partition that needs no more work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HighWater(BTreeMap<u32, u64>);

impl HighWater {
    /// The newest finished `ver` of a kith partition.
    pub fn get(&self, stream: u32) -> Option<u64> {
        self.0.get(&stream).copied()
    }

    /// Raises a kith partition's mark; never lowers it.
    pub fn raise(&mut self, stream: u32, ver: u64) {
        let mark = self.0.entry(stream).or_default();
        *mark = (*mark).max(ver);
    }

    /// As text for the offset's metadata: `1;` and, in ascending order, `<distance to the previous>.<ver>` in hexadecimal, the distance
    /// left out when it repeats. What does not fit is left out: such a stream is taken from its next record on.
    pub fn encode(&self) -> String {
        let mut text = String::from("1;");
        let (mut previous, mut distance) = (0, u32::MAX);
        for (stream, ver) in &self.0 {
            let before = text.len();
            let step = stream - previous;
            // Writing to a String cannot fail.
            let written = if step == distance { write!(text, ".{ver:x},") } else { write!(text, "{step:x}.{ver:x},") };
            debug_assert!(written.is_ok());
            if text.len() > MAX_METADATA_BYTES {
                text.truncate(before);
                break;
            }
            (previous, distance) = (*stream, step);
        }
        text
    }

    /// Reads what [`HighWater::encode`] wrote; none for anything else, the empty text of a first commit included.
    pub fn decode(text: &str) -> Option<Self> {
        let mut marks = BTreeMap::new();
        let (mut stream, mut distance) = (0_u32, None);
        for entry in text.strip_prefix("1;")?.split_terminator(',') {
            let (step, ver) = entry.split_once('.')?;
            if !step.is_empty() {
                distance = Some(u32::from_str_radix(step, 16).ok()?);
            }
            stream = stream.checked_add(distance?)?;
            marks.insert(stream, u64::from_str_radix(ver, 16).ok()?);
        }
        Some(Self(marks))
    }
}

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
        Self { streams: high_water.0.iter().map(|(stream, ver)| (*stream, Stream::at(*ver))).collect(), held: 0 }
    }

    /// Decides about a record; what may be worked on now is added to `out`, in order.
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

    /// Gives up gaps older than [`GAP_DEADLINE`], and the oldest ones while more than [`MAX_HELD`] records are held.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<T>) -> Vec<Gap> {
        let mut gaps = Vec::new();
        if self.held == 0 {
            return gaps;
        }
        let mut waiting: Vec<_> = self.streams.iter().filter_map(|(id, s)| Some((s.waiting_since?, *id))).collect();
        waiting.sort_unstable();
        for (since, id) in waiting {
            if now.saturating_duration_since(since) < GAP_DEADLINE && self.held <= MAX_HELD {
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
}

#[derive(Debug)]
struct Work {
    offset: i64,
    mark: Option<(u32, u64)>,
    done: bool,
}

impl Inflight {
    /// Nothing in flight; `high_water` as it was committed.
    pub fn new(high_water: HighWater) -> Self {
        Self { high_water, ..Self::default() }
    }

    /// A record came in. Offsets rise; one that does not is ignored (a fetch repeated after a pause).
    pub fn begin(&mut self, offset: i64, mark: Option<(u32, u64)>) -> bool {
        let newest = self.entries.back().map(|w| w.offset).or_else(|| self.next.map(|n| n - 1));
        if newest.is_some_and(|n| offset <= n) {
            return false;
        }
        self.entries.push_back(Work { offset, mark, done: false });
        true
    }

    /// The work on a record is finished.
    pub fn done(&mut self, offset: i64) {
        if let Ok(at) = self.entries.binary_search_by_key(&offset, |w| w.offset) {
            self.entries[at].done = true;
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
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether all work is finished.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The offset to commit and its high-water; none when nothing has changed since the last [`Inflight::committed`].
    pub fn commit_point(&self) -> Option<(i64, &HighWater)> {
        match self.next {
            Some(next) if self.committed != Some(next) => Some((next, &self.high_water)),
            _ => None,
        }
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
