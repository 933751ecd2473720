//! Repair: brings a partition whose store lost acknowledged changes back to what the event log says.
//!
//! Every committed change is an event with the partition's next version. [`change`] knows what each event changed, [`survey`] reads the log,
//! [`restorer`] writes in batches; here they are put together. The holder closes the partition, claims it anew, so that nobody else writes,
//! and restores the events above the stored version in their order, up to a marker that it writes behind everything of its own. Versions of
//! which the log holds nothing are lost and told by number; the partition goes on above the highest that was ever acknowledged, so no
//! consumer sees a count that goes back. Each batch is one atomic write that only a higher version can follow: a repair that ends halfway
//! is simply made again.
//!
//! What no event says does not come back: devices and their push tokens, which are registered again at the next login, when a user was seen
//! last, and how far a list's order had followed later messages.

pub(crate) mod change;
mod data;
mod of_user;
pub(crate) mod ranges;
pub(crate) mod restorer;
mod survey;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc, time::Duration};

use kith_eventlog::{producer::ProduceError, scan::ScanError};
use kith_kit::backoff::Backoff;
use kith_proto::storage::v1::{RepairRequest, RepairResponse, SeqGap, UnreadableRecord, Unrestored, VersionRange};
use kith_rpc::error::{Error, reason};
use parking_lot::Mutex;
use thiserror::Error as ThisError;
use tokio::time::Instant;
use tonic::Code;

use crate::engine::{
    EngineError,
    valkey::{Held, Hub, Loss, Standing},
};
use restorer::{Flaw, Restorer};
use survey::{Highest, InOrder, LogError, Survey, TOLD, Tally};

/// A repair as a whole.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Until a partition's claim is decided, before the repair and after it.
const SETTLE: Duration = Duration::from_secs(20);
/// Until the marker is on the log.
const MARK: Duration = Duration::from_secs(30);
/// Attempts at restoring; each goes on where the one before ended. Few, so the pauses between them grow fast.
const ATTEMPTS: u32 = 6;
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
const GROWTH: f32 = 4.0;
/// Versions are numbers that the engine's scripts count exactly.
const MOST_VER: u64 = 1 << 53;

/// Why a repair ended without a report.
#[derive(Debug, ThisError)]
enum RepairError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the marker: {0}")]
    Mark(#[from] ProduceError),
    #[error("Kafka has not taken the marker within {} s", MARK.as_secs())]
    MarkLate,
    #[error("partition {0} is being repaired already")]
    Twice(u32),
    #[error("partition {partition} cannot be repaired from the event log: {what}")]
    NotByLog { partition: u32, what: String },
    #[error("not repaired within {} min: run it again, it goes on where it ended", DEADLINE.as_secs() / 60)]
    Late,
    #[error("partition {0}: there is no such partition")]
    NoPartition(u32),
    #[error("acknowledged_ver: {0} is no version")]
    NoVersion(u64),
}

impl From<ScanError> for RepairError {
    fn from(error: ScanError) -> Self {
        Self::Log(error.into())
    }
}

impl RepairError {
    /// Whether another attempt may do better.
    fn passes(&self) -> bool {
        match self {
            Self::Engine(error) => matches!(
                error,
                EngineError::Unavailable(_)
                    | EngineError::Deadline
                    | EngineError::Exhausted(..)
                    | EngineError::Conflict
            ),
            Self::Log(error) => matches!(error, LogError::Scan(_)),
            Self::Mark(_) | Self::MarkLate => true,
            _ => false,
        }
    }
}

impl From<RepairError> for Error {
    fn from(error: RepairError) -> Self {
        let words = error.to_string();
        match error {
            RepairError::Engine(error) => error.into(),
            RepairError::Log(LogError::Scan(_)) | RepairError::Mark(_) | RepairError::MarkLate => {
                Self::unavailable(words)
            }
            RepairError::Twice(_) | RepairError::Log(_) => Self::new(Code::FailedPrecondition, words),
            RepairError::NotByLog { .. } => Self::new(Code::DataLoss, words).with_reason(reason::DATA_LOSS),
            RepairError::Late => Self::new(Code::DeadlineExceeded, words),
            RepairError::NoPartition(_) | RepairError::NoVersion(_) => Self::invalid(words),
        }
    }
}

/// Repairs of this instance's partitions.
pub(crate) struct Repairs {
    hub: Arc<Hub>,
    turns: Turns,
    highest: Highest,
}

/// One repair of a partition at a time.
#[derive(Default)]
struct Turns(Mutex<HashSet<u32>>);

struct Turn<'a>(&'a Turns, u32);

impl Turns {
    fn take(&self, number: u32) -> Result<Turn<'_>, RepairError> {
        if self.0.lock().insert(number) { Ok(Turn(self, number)) } else { Err(RepairError::Twice(number)) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// What a repair has found and done.
#[derive(Default)]
struct Findings {
    stored: u64,
    acknowledged: u64,
    survey: Survey,
    unrestored: Tally<Unrestored>,
    gaps: Tally<SeqGap>,
    /// Flaws up to this version are told: an attempt whose answer was lost may tell them again.
    told: u64,
}

impl Repairs {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, turns: Turns::default(), highest: Highest::default() }
    }

    /// Repairs a partition, or says what a repair would do.
    pub(crate) async fn repair(&self, request: RepairRequest) -> Result<RepairResponse, Error> {
        let (partition, dry_run) = (request.partition, request.dry_run);
        let outcome = match tokio::time::timeout(DEADLINE, self.run(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RepairError::Late),
        };
        match &outcome {
            Ok(report) => tracing::info!(
                partition,
                dry_run,
                stored = report.stored_ver,
                acknowledged = report.acknowledged_ver,
                log = report.log_ver,
                restored = report.restored,
                missing = report.missing_count,
                unrestored = report.unrestored_count,
                state = report.state,
                "repair"
            ),
            Err(error) => tracing::warn!(partition, dry_run, %error, "no repair"),
        }
        let word = if outcome.is_ok() { "done" } else { "failed" };
        metrics::counter!("kith_storage_repairs_total", "outcome" => word).increment(1);
        Ok(outcome?)
    }

    async fn run(&self, request: RepairRequest) -> Result<RepairResponse, RepairError> {
        let number = request.partition;
        if number as usize >= self.hub.partitions.len() {
            return Err(RepairError::NoPartition(number));
        }
        if request.acknowledged_ver > MOST_VER {
            return Err(RepairError::NoVersion(request.acknowledged_ver));
        }
        let _turn = self.turns.take(number)?;
        let acknowledged = self.hub.acknowledged(number).max(request.acknowledged_ver);
        let loss = match self.hub.standing(number, Instant::now() + SETTLE).await? {
            Standing::Lost(loss) => loss,
            Standing::Open(_) => {
                let outbox = &self.hub.outbox;
                let highest = self.highest.of(&outbox.log(number), outbox.part(number), number).await?;
                // Asked behind the log: what stands there was committed before.
                let Standing::Open(committed) = self.hub.standing(number, Instant::now() + SETTLE).await? else {
                    return Err(EngineError::Unavailable("the partition changes hands: try again".into()).into());
                };
                let highest_known = highest.max(acknowledged);
                if highest_known <= committed {
                    let survey = Survey { highest, ..Survey::default() };
                    let found = Findings { stored: committed, acknowledged: committed, survey, ..Findings::default() };
                    return Ok(found.report(number, "open", committed, committed));
                }
                let what =
                    format!("partition {number}: version {committed} is stored, {highest_known} was acknowledged");
                Loss { what, stored: Some(committed) }
            }
        };
        let Some(stored) = loss.stored else {
            return Err(RepairError::NotByLog { partition: number, what: loss.what });
        };
        let mut found = Findings { stored, acknowledged, ..Findings::default() };
        if request.dry_run {
            let log = self.hub.outbox.log(number);
            found.survey = survey::survey(&log, number, stored).await?;
            let mut events = InOrder::new(&log, number, &found.survey)?;
            while let Some(event) = events.next().await? {
                if let Err(why) = change::read(&event.kind, &event.key, &event.data) {
                    found.take(vec![Flaw::Unrestored { ver: event.ver, why }]);
                }
            }
            let state = self.state(number);
            let goal = found.goal();
            return Ok(found.report(number, &state, stored, goal));
        }
        tracing::warn!(partition = number, stored, acknowledged, "a repair begins: {}", loss.what);
        let mut held = self.hub.hold(number, loss)?;
        let ver = self.restore(number, &mut held, &mut found).await?;
        held.give_back();
        let state = match self.hub.standing(number, Instant::now() + SETTLE).await {
            Ok(Standing::Open(_)) => "open".to_owned(),
            _ => self.state(number),
        };
        Ok(found.report(number, &state, ver, ver))
    }

    fn state(&self, number: u32) -> String {
        self.hub.report(&[number]).pop().map(|p| p.state).unwrap_or_default()
    }

    /// Restores in attempts; the version in the end.
    async fn restore(&self, number: u32, held: &mut Held, found: &mut Findings) -> Result<u64, RepairError> {
        let id = format!("repair-{}", ulid::Ulid::generate());
        let (mut attempt, mut marked, mut before) = (0, false, None);
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).by(GROWTH);
        loop {
            attempt += 1;
            let error = match self.attempt(number, held, found, &id, &mut marked, &mut before).await {
                Ok(ver) => return Ok(ver),
                Err(error) => error,
            };
            if !error.passes() || attempt == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(partition = number, attempt, %error, "the repair goes on after a pause");
            backoff.pause().await;
        }
    }

    async fn attempt(
        &self,
        number: u32,
        held: &mut Held,
        found: &mut Findings,
        id: &str,
        marked: &mut bool,
        before: &mut Option<u64>,
    ) -> Result<u64, RepairError> {
        let (stored, store) = held.take().await?;
        if !*marked {
            let mark = self.hub.outbox.mark(number, id);
            tokio::time::timeout(MARK, mark).await.map_err(|_| RepairError::MarkLate)??;
            *marked = true;
        }
        let log = self.hub.outbox.log(number);
        // The first attempt's survey is the report's; a later one is made anew, the log may have lost its beginning meanwhile.
        let survey = survey::survey(&log, number, stored).await?;
        if before.is_none() {
            *before = Some(stored);
            found.stored = stored;
            found.survey = survey.clone();
        }
        let goal = found.goal().max(survey.highest);
        let what = format!("partition {number}: a repair from version {} to {goal} has ended halfway", found.stored);
        held.say(Loss { what, stored: Some(stored) });
        let mut restorer = Restorer::new(store, stored);
        let outcome = pass(&mut restorer, InOrder::new(&log, number, &survey)?).await;
        found.take(restorer.flaws());
        outcome?;
        let (ver, flaws) = restorer.finish(goal).await?;
        found.take(flaws);
        Ok(ver)
    }
}

async fn pass<R: crate::engine::Restoring>(restorer: &mut Restorer<R>, mut events: InOrder) -> Result<(), RepairError> {
    while let Some(event) = events.next().await? {
        restorer.take(event).await?;
    }
    Ok(restorer.flush().await?)
}

impl Findings {
    /// The version to which the repair brings the partition.
    fn goal(&self) -> u64 {
        self.acknowledged.max(self.survey.highest).max(self.stored)
    }

    fn take(&mut self, flaws: Vec<Flaw>) {
        let told = self.told;
        for flaw in flaws {
            let (Flaw::Unrestored { ver, .. } | Flaw::Gap { ver, .. }) = flaw;
            if ver <= told {
                continue;
            }
            self.told = self.told.max(ver);
            match flaw {
                Flaw::Unrestored { ver, why } => self.unrestored.add(Unrestored { ver, why: why.to_string() }),
                Flaw::Gap { gap: change::SeqGap { conversation_id, first, last }, .. } => {
                    self.gaps.add(SeqGap { conversation_id, first, last });
                }
            }
        }
    }

    fn report(self, partition: u32, state: &str, ver: u64, goal: u64) -> RepairResponse {
        let missing = self.survey.present.missing(self.stored, goal);
        let missing_count = missing.iter().map(|(first, last)| last - first + 1).sum();
        let restored = self.survey.events.saturating_sub(self.unrestored.count);
        metrics::counter!("kith_storage_repaired_events_total").increment(if ver > self.stored { restored } else { 0 });
        RepairResponse {
            partition,
            stored_ver: self.stored,
            acknowledged_ver: self.acknowledged,
            log_ver: self.survey.highest,
            restored,
            missing: missing.into_iter().take(TOLD).map(|(first, last)| VersionRange { first, last }).collect(),
            missing_count,
            unrestored: self.unrestored.first,
            unrestored_count: self.unrestored.count,
            seq_gaps: self.gaps.first,
            seq_gap_count: self.gaps.count,
            conflicts: self.survey.conflicts.first,
            conflict_count: self.survey.conflicts.count,
            unreadable: self
                .survey
                .unreadable
                .first
                .into_iter()
                .map(|(offset, why)| UnreadableRecord { offset, why })
                .collect(),
            unreadable_count: self.survey.unreadable.count,
            state: state.to_owned(),
            ver,
        }
    }
}

#[cfg(test)]
mod turns {
    use super::*;

    #[test]
    fn a_second_repair_of_a_partition_is_refused_while_the_first_runs() {
        let turns = Turns::default();
        let first = turns.take(7).unwrap();
        assert!(turns.take(8).is_ok());
        let refused = Error::from(turns.take(7).err().unwrap());
        assert_eq!(refused.code, Code::FailedPrecondition);
        assert!(!refused.is_retryable(), "{refused}");
        drop(first);
        assert!(turns.take(7).is_ok());
    }
}
