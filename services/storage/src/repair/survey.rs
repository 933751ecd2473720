//! What the event log holds of one partition, and reading it in version order.
//!
//! A log tells the versions of a partition in order, but for stretches that were told again by a later holder: whatever comes behind a
//! record is at most one above what came before it. So the newest records say how far back the reading must begin.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kith_contract::events;
use kith_eventlog::scan::{Found, Log, Record, ScanError};
use parking_lot::Mutex;
use thiserror::Error;

use super::{ranges::Ranges, restorer::Logged};

/// The newest offsets that are looked at first, and the factor of each further look.
const FIRST_SPAN: i64 = 20_000;
const WIDEN: i64 = 8;
/// Unbroken runs of versions: more is no log of ours.
const MOST_RUNS: usize = 100_000;
/// Fingerprints remembered, to tell a record that was sent twice from a count that went back.
const REMEMBERED: usize = 65_536;
/// Events held in memory because one before them stands further on in the log.
const MOST_HELD: usize = 10_000;
const MOST_HELD_BYTES: usize = 64 << 20;
/// Versions rise by one; one that lies further above all before it than events can be missing was not written by storage.
const LEAP: u64 = 1 << 20;
/// How long a look at the highest versions serves others.
const FRESH: Duration = Duration::from_secs(60);
/// Items of each kind that are told one by one; the rest is counted.
pub(super) const TOLD: usize = 100;

/// Why the log was not read.
#[derive(Debug, Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(
        "the event log tells the versions of partition {partition} in more than {MOST_RUNS} pieces: it cannot be trusted"
    )]
    Runs { partition: u32 },
    #[error(
        "more than {MOST_HELD} events or {} MiB of partition {partition} stand behind later ones on the event log: more than a repair holds",
        MOST_HELD_BYTES >> 20
    )]
    Held { partition: u32 },
}

/// Items of which the first are told.
#[derive(Debug, Clone)]
pub(super) struct Tally<T> {
    pub(super) first: Vec<T>,
    pub(super) count: u64,
}

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Self { first: Vec::new(), count: 0 }
    }
}

impl<T> Tally<T> {
    pub(super) fn add(&mut self, item: T) {
        self.count += 1;
        if self.first.len() < TOLD {
            self.first.push(item);
        }
    }
}

/// What the log holds of a partition above a version.
#[derive(Debug, Clone, Default)]
pub(super) struct Survey {
    /// The offsets to read.
    pub(super) range: Range<i64>,
    /// Versions above the stored one.
    pub(super) present: Ranges,
    pub(super) events: u64,
    pub(super) highest: u64,
    /// Versions that are told in two ways.
    pub(super) conflicts: Tally<u64>,
    pub(super) unreadable: Tally<(i64, String)>,
}

/// Fingerprints of the newest versions seen.
#[derive(Default)]
struct Fingerprints {
    by_ver: BTreeMap<u64, u64>,
    order: VecDeque<u64>,
}

impl Fingerprints {
    /// Whether the version was told with other contents before.
    fn conflicts(&mut self, ver: u64, fingerprint: u64) -> bool {
        if let Some(known) = self.by_ver.get(&ver) {
            return *known != fingerprint;
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_ver.remove(&oldest);
        }
        self.by_ver.insert(ver, fingerprint);
        self.order.push_back(ver);
        false
    }
}

/// Raises `highest` to the version of the next record on the log, unless that leaps; one that falls back as far shows that what stood
/// above it was foreign. Whether the record is believed.
fn follow(highest: &mut u64, ver: u64) -> bool {
    let believed = *highest == 0 || ver <= highest.saturating_add(LEAP);
    if believed {
        *highest = if highest.saturating_sub(ver) > LEAP { ver } else { ver.max(*highest) };
    }
    believed
}

fn ver_of(record: &Record, partition: u32) -> Option<u64> {
    record.place.filter(|(stream, _)| *stream == partition).map(|(_, ver)| ver)
}

/// The first version of the partition that stands from `start` on.
async fn first_from(log: &Log, partition: u32, range: Range<i64>) -> Result<Option<u64>, ScanError> {
    let mut reading = log.read(range)?;
    while let Some(found) = reading.next().await? {
        if let Found::Record(record) = found
            && let Some(ver) = ver_of(&record, partition)
        {
            return Ok(Some(ver));
        }
    }
    Ok(None)
}

/// The newest part of the log that begins with a version up to `ver`, or all of it.
async fn stretch(log: &Log, partition: u32, ver: u64) -> Result<Range<i64>, ScanError> {
    let Range { start: low, end: high } = log.bounds().await?;
    let mut span = FIRST_SPAN;
    loop {
        let start = high.saturating_sub(span).max(low);
        if start == low || first_from(log, partition, start..high).await?.is_some_and(|first| first <= ver) {
            return Ok(start..high);
        }
        span = span.saturating_mul(WIDEN);
    }
}

/// The highest version of each partition on one part of the log.
#[derive(Default)]
struct Tails {
    read: Option<Instant>,
    /// What lies before was not read yet; none: all was.
    rest: Option<Range<i64>>,
    highest: HashMap<u32, u64>,
}

/// The highest versions on the log. Partitions share its parts, so what one look has read serves the others for a while: when all are
/// compared, each part is read once. A version that came meanwhile is missed, never invented.
#[derive(Default)]
pub(super) struct Highest(Mutex<HashMap<u32, Arc<tokio::sync::Mutex<Tails>>>>);

impl Highest {
    /// Of `partition` on `log`, which is the part with number `part`; 0: none.
    pub(super) async fn of(&self, log: &Log, part: u32, partition: u32) -> Result<u64, ScanError> {
        let tails = self.0.lock().entry(part).or_default().clone();
        let mut tails = tails.lock().await;
        if tails.read.is_none_or(|read| read.elapsed() > FRESH) {
            let Range { start: low, end: high } = log.bounds().await?;
            let start = high.saturating_sub(FIRST_SPAN).max(low);
            let rest = (start > low).then_some(low..start);
            let highest = highest(log, start..high, HashMap::new()).await?;
            *tails = Tails { read: Some(Instant::now()), rest, highest };
        }
        if !tails.highest.contains_key(&partition)
            && let Some(rest) = tails.rest.clone()
        {
            tails.highest = highest(log, rest, tails.highest.clone()).await?;
            tails.rest = None;
        }
        Ok(tails.highest.get(&partition).copied().unwrap_or(0))
    }
}

async fn highest(log: &Log, range: Range<i64>, mut known: HashMap<u32, u64>) -> Result<HashMap<u32, u64>, ScanError> {
    let mut reading = log.read(range)?;
    while let Some(found) = reading.next().await? {
        if let Found::Record(Record { place: Some((partition, ver)), .. }) = found {
            follow(known.entry(partition).or_insert(0), ver);
        }
    }
    Ok(known)
}

/// Looks at the log up to its end as it is now.
pub(super) async fn survey(log: &Log, partition: u32, stored: u64) -> Result<Survey, LogError> {
    let range = stretch(log, partition, stored.saturating_add(1)).await?;
    let mut survey = Survey { range: range.clone(), ..Survey::default() };
    // Where nothing is stored the log decides where it begins.
    let mut last = stored;
    let (mut reading, mut fingerprints) = (log.read(range)?, Fingerprints::default());
    while let Some(found) = reading.next().await? {
        let record = match found {
            Found::Unreadable { offset, why } => {
                survey.unreadable.add((offset, why));
                continue;
            }
            Found::Record(record) => record,
        };
        let Some(ver) = ver_of(&record, partition) else { continue };
        if !follow(&mut last, ver) {
            survey.unreadable.add((record.offset, format!("version {ver} lies far above all before it")));
            continue;
        }
        survey.highest = survey.highest.max(ver);
        if fingerprints.conflicts(ver, record.fingerprint) {
            survey.conflicts.add(ver);
        }
        if ver > stored && survey.present.insert(ver) {
            survey.events += 1;
            if survey.present.runs() > MOST_RUNS {
                return Err(LogError::Runs { partition });
            }
        }
    }
    Ok(survey)
}

/// The events of a survey in version order, each version once: as it was told first.
pub(super) struct InOrder {
    reading: kith_eventlog::scan::Reading,
    partition: u32,
    present: Ranges,
    next: Option<u64>,
    held: BTreeMap<u64, Logged>,
    held_bytes: usize,
}

impl InOrder {
    pub(super) fn new(log: &Log, partition: u32, survey: &Survey) -> Result<Self, LogError> {
        let reading = log.read(survey.range.clone())?;
        let present = survey.present.clone();
        Ok(Self { reading, partition, next: present.from(0), present, held: BTreeMap::new(), held_bytes: 0 })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Logged>, LogError> {
        while let Some(next) = self.next {
            if let Some(event) = self.held.remove(&next) {
                self.held_bytes -= event.data.len();
                return Ok(Some(self.give(event)));
            }
            let Some(found) = self.reading.next().await? else { return Ok(None) };
            let Found::Record(record) = found else { continue };
            let Some(ver) = ver_of(&record, self.partition) else { continue };
            // What the survey did not believe is not waited for.
            if ver < next || self.present.from(ver) != Some(ver) || self.held.contains_key(&ver) {
                continue;
            }
            let kind = events::name_of(&record.kind).unwrap_or(&record.kind).to_owned();
            let event = Logged { ver, kind, key: record.key, data: record.data };
            if ver == next {
                return Ok(Some(self.give(event)));
            }
            self.held_bytes += event.data.len();
            self.held.insert(ver, event);
            if self.held.len() > MOST_HELD || self.held_bytes > MOST_HELD_BYTES {
                return Err(LogError::Held { partition: self.partition });
            }
        }
        Ok(None)
    }

    fn give(&mut self, event: Logged) -> Logged {
        self.next = event.ver.checked_add(1).and_then(|ver| self.present.from(ver));
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_told_twice_is_one_and_in_two_ways_a_count_that_went_back() {
        let mut fingerprints = Fingerprints::default();
        assert!(!fingerprints.conflicts(1, 7) && !fingerprints.conflicts(2, 8));
        assert!(!fingerprints.conflicts(1, 7));
        assert!(fingerprints.conflicts(2, 9));
    }

    #[test]
    fn a_version_that_leaps_is_not_followed_and_does_not_hide_the_true_ones() {
        let mut highest = 0;
        let believed: Vec<u64> =
            [5, 6, u64::MAX, 7, 1 << 63, 8, 8 + LEAP].into_iter().filter(|ver| follow(&mut highest, *ver)).collect();
        assert_eq!((believed, highest), (vec![5, 6, 7, 8, 8 + LEAP], 8 + LEAP));
        // A foreign record stands first.
        let mut highest = 0;
        for ver in [1 << 63, 100, 101] {
            follow(&mut highest, ver);
        }
        assert_eq!(highest, 101);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut fingerprints = Fingerprints::default();
        for ver in 0..REMEMBERED as u64 + 10 {
            assert!(!fingerprints.conflicts(ver, ver));
        }
        assert_eq!(fingerprints.by_ver.len(), REMEMBERED);
        let mut tally = Tally::default();
        (0..TOLD + 5).for_each(|n| tally.add(n));
        assert_eq!((tally.first.len(), tally.count), (TOLD, TOLD as u64 + 5));
    }
}
