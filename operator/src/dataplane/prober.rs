//! One task per ChatCluster that probes its primaries twice a second and replaces dead ones, independently of any other pass.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    light::{self, Baseline, Cause, Round},
    link::{LinkError, Links},
    migrations,
    observe::{Depth, observe},
    outrank,
    switchover::{self, SwitchError},
    types::{Desired, Observation, Problem},
    watch::{Order, Watch},
};
use crate::{lease::LeaseGuard, panics};

/// Between two probes.
const PERIOD: Duration = Duration::from_millis(500);
/// Probes of a process begin at multiples of this: some of many ChatClusters together, so that the process wakes for many answers at once.
const BEAT: Duration = Duration::from_millis(50);
/// The same while a primary has just fallen silent.
const HURRY: Duration = Duration::from_millis(100);
/// Between a probe that panicked and the next.
const AFTER_PANIC: Duration = Duration::from_secs(2);
/// Epochs raised and givers released at one go, for each shard; what is left waits for the next probe.
const OUTRANK_STEPS: usize = 4;
/// A look older than this decides nothing.
const STALE: Duration = Duration::from_millis(300);

/// Where the beat began.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The last beat that is not after `at`, of those that began with `begun`.
fn in_beat(begun: Instant, at: Instant) -> Instant {
    let over = at.saturating_duration_since(begun).as_nanos() % BEAT.as_nanos();
    at.checked_sub(Duration::from_nanos(u64::try_from(over).unwrap_or_default())).unwrap_or(at)
}

/// A change of primary that the prober made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// The shard.
    pub shard: String,
    /// The pod that is the primary now.
    pub pod: String,
    /// Whether the old one handed over, alive.
    pub planned: bool,
    /// Whether a person took the risk of loss.
    pub forced: bool,
    /// How long it took, from the order to the new primary's own word.
    pub took: Duration,
    /// When it was done.
    pub at: Instant,
    /// Number of changes of this shard's primary since the prober began, so that no change goes unnoticed.
    pub count: u64,
    /// Of those, the ones that nobody had planned.
    pub unplanned: u64,
}

/// What the prober last found; watched by the reconcile loop for status and Events.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What stands in the way of a promotion, or that one is under way.
    pub problems: Vec<Problem>,
    /// The last change of primary of each shard.
    pub failovers: Vec<Failover>,
    /// Changes that failed, in words; they are tried again with the next probe.
    pub failures: Vec<String>,
    /// How often a primary was found to be otherwise than before, whether or not anything followed from it.
    pub changes: u64,
}

impl Report {
    /// Whether a primary was replaced so recently, not by plan.
    pub fn replaced_within(&self, time: Duration) -> bool {
        self.failovers.iter().any(|f| !f.planned && f.at.elapsed() < time)
    }
}

/// What the prober needs.
pub struct Prober {
    /// Connections, shared with the reconcile loop.
    pub links: Links,
    /// The lease.
    pub guard: LeaseGuard,
    /// The shards and their pods, kept current by whoever watches pods.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Held (locked) by whoever moves slots or restarts primaries for as long as no failover may come between; see [`Gate`].
    pub gate: Gate,
}

/// Keeps slot moves and changes of primary apart. A mover asks before each batch; the prober, when it must promote, announces that and
/// waits until the mover has ended or cancelled its batch.
#[derive(Clone, Default)]
pub struct Gate {
    lock: Arc<tokio::sync::RwLock<()>>,
    wanted: Arc<std::sync::atomic::AtomicUsize>,
}

impl Gate {
    /// Held while a batch of slots moves; several may, and none begins while a promotion waits.
    pub async fn moving(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.lock.clone().read_owned().await
    }

    /// Whether a promotion waits: the mover cancels its batch and lets go.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(std::sync::atomic::Ordering::Acquire) > 0
    }

    /// Whether slots move right now.
    pub fn is_moving(&self) -> bool {
        self.lock.try_write().is_err()
    }

    /// Whether anybody else holds this gate.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.lock) > 1
    }

    /// Held while a primary changes.
    pub async fn promoting(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.wanted.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        let waiting = Waiting(&self.wanted);
        let held = self.lock.clone().write_owned().await;
        drop(waiting);
        held
    }
}

/// Takes the announcement back, also when the one that waits is dropped.
struct Waiting<'a>(&'a std::sync::atomic::AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
    }
}

/// What is remembered from probe to probe.
struct Memory {
    watch: Watch,
    /// The highest epoch that was known when slots which a dead primary was about to take were looked for; none when there are none. Who
    /// led before may have promoted a replica and ended, so it begins with nought.
    stranded: Option<u64>,
    baseline: Result<Baseline, Cause>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { watch: Watch::default(), stranded: Some(0), baseline: Err(Cause::Unsettled) }
    }
}

impl Prober {
    /// Probes until `shutdown`; the report changes only when something is to be told.
    pub fn start(self, shutdown: CancellationToken) -> watch::Receiver<Report> {
        let (publish, report) = watch::channel(Report::default());
        tokio::spawn(async move {
            let mut memory = Memory::default();
            let mut next = Instant::now();
            while shutdown.run_until_cancelled(tokio::time::sleep_until(next.into())).await.is_some() {
                let begun = Instant::now();
                next = in_beat(*BEGUN, begun + PERIOD);
                if let Err(panicked) = panics::caught("prober", self.round(&mut memory, &publish)).await {
                    // What it remembered may be what it panicked over.
                    memory = Memory::default();
                    publish.send_modify(|report| report.failures = vec![panicked.to_string()]);
                    next = Instant::now() + AFTER_PANIC;
                } else if memory.watch.is_restless() {
                    next = Instant::now() + HURRY;
                }
            }
        });
        report
    }

    /// One probe: light if nothing has changed, else a full look and what follows from it.
    async fn round(&self, memory: &mut Memory, publish: &watch::Sender<Report>) {
        let desired = self.desired.borrow().clone();
        let Some(cause) = self.light(memory, &desired).await else {
            metrics::counter!("kith_operator_probes_total", "look" => "light", "cause" => "none").increment(1);
            return;
        };
        metrics::counter!("kith_operator_probes_total", "look" => "full", "cause" => cause.word()).increment(1);
        if cause.is_change() {
            tracing::debug!(cluster = %desired.cluster, cause = cause.word(), "a primary is not as it was");
        }
        // Until this look has found all well again.
        memory.baseline = Err(Cause::Unsettled);
        let replaced = self.probe(memory, &desired, cause, publish).await;
        if replaced {
            memory.stranded = Some(0);
        }
        if let Some(known) = memory.stranded {
            memory.stranded = self.outrank(known).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "what dead primaries were about to take could not be seen to; trying again");
                Some(known)
            });
        }
    }

    /// Why a full look is needed; none when all primaries are as they were.
    async fn light(&self, memory: &mut Memory, desired: &Arc<Desired>) -> Option<Cause> {
        let (moving, stranded) = (self.gate.is_moving(), memory.stranded.is_some());
        let round = Round { now: Instant::now(), desired, moving, stranded };
        let baseline = match light::may_be_light(&memory.baseline, &round) {
            Ok(baseline) => baseline,
            Err(cause) => return Some(cause),
        };
        let answers = light::ask(&self.links, baseline).await;
        let now = Instant::now();
        let mut cause = None;
        for (vital, answer) in baseline.vitals.iter().zip(answers) {
            match answer {
                Ok(()) => memory.watch.heard(&vital.shard, now),
                Err(found) => cause = cause.or(Some(found)),
            }
        }
        cause
    }

    /// Sees to slots that a dead primary was about to take. `known` is the highest epoch known at an earlier look, or nought; answers the
    /// one for the next, and none when there is nothing left to do.
    async fn outrank(&self, mut known: u64) -> Result<Option<u64>, LinkError> {
        let desired = self.desired.borrow().clone();
        let mut held = None;
        for _ in 0..=OUTRANK_STEPS * desired.shards.len() {
            let seen = observe(&self.links, &desired, Depth::Roles).await;
            if known == 0 {
                known = outrank::highest_known(&seen);
            }
            let jobs = migrations::ask(&self.links, &desired, &seen, |_| true).await?;
            let next = outrank::next(&desired, &seen, &jobs, known);
            match next {
                outrank::Next::Nothing => return Ok(None),
                outrank::Next::Wait(why) => {
                    tracing::debug!(cluster = %desired.cluster, %why, "a giver of slots waits");
                    break;
                }
                // No slots move while epochs change, and what was seen before may not hold any more.
                outrank::Next::Raise { .. } | outrank::Next::Release { .. } if held.is_none() => {
                    held = Some(self.gate.promoting().await);
                }
                outrank::Next::Raise { .. } | outrank::Next::Release { .. } => {
                    outrank::carry_out(&self.links, &self.guard, &desired, &seen, &next).await?;
                }
            }
        }
        Ok(Some(known))
    }

    /// A full look and what follows from it. Answers whether a dead primary was replaced.
    async fn probe(
        &self,
        memory: &mut Memory,
        desired: &Arc<Desired>,
        cause: Cause,
        publish: &watch::Sender<Report>,
    ) -> bool {
        let Memory { watch: remembered, baseline, .. } = memory;
        let mut seen = observe(&self.links, desired, Depth::Roles).await;
        let mut found = remembered.look(Instant::now(), desired, &seen);
        let mut done = Vec::new();
        let mut failures = Vec::new();
        let begun = Instant::now();
        let held = if found.orders.is_empty() { None } else { Some(self.gate.promoting().await) };
        if begun.elapsed() > STALE {
            // A batch of slots had to end first: what was seen before may not hold any more.
            seen = observe(&self.links, desired, Depth::Roles).await;
            found = remembered.look(Instant::now(), desired, &seen);
        }
        let rest = rand::random_range(light::LONGEST / 2..=light::LONGEST);
        *baseline = Baseline::of(Instant::now(), rest, desired, &seen, remembered, &found);
        for order in std::mem::take(&mut found.orders) {
            match self.carry_out(desired, &seen, &order).await {
                Ok(failover) => {
                    tracing::warn!(cluster = %desired.cluster, shard = %failover.shard, primary = %failover.pod, planned = failover.planned, forced = failover.forced, took_ms = failover.took.as_millis(), "the primary changed");
                    if failover.forced {
                        remembered.was_forced(&failover.shard, &failover.pod);
                    }
                    done.push(failover);
                }
                Err(error) => {
                    tracing::error!(cluster = %desired.cluster, ?order, %error, "the primary could not be changed");
                    failures.push(format!("{}: {error}", order.shard()));
                }
            }
        }
        drop(held);
        let replaced = done.iter().any(|failover| !failover.planned);
        publish.send_if_modified(|report| {
            let changed = cause.is_change()
                || !done.is_empty()
                || report.problems != found.problems
                || report.failures != failures;
            report.changes += u64::from(cause.is_change());
            report.problems = found.problems;
            report.failures = failures;
            for mut failover in done {
                let before = report.failovers.iter().position(|f| f.shard == failover.shard);
                let (count, unplanned) = before.map_or((0, 0), |i| {
                    let before = report.failovers.remove(i);
                    (before.count, before.unplanned)
                });
                failover.count = count + 1;
                failover.unplanned = unplanned + u64::from(!failover.planned);
                report.failovers.push(failover);
            }
            changed
        });
        replaced
    }

    async fn carry_out(&self, desired: &Desired, seen: &Observation, order: &Order) -> Result<Failover, SwitchError> {
        let (shard, pod, planned, forced, took) = match order {
            Order::Takeover { shard, pod, forced, .. } => {
                let took = switchover::takeover(&self.links, &self.guard, desired, seen, pod).await?;
                (shard, pod, false, *forced, took)
            }
            Order::Switchover { shard, from, to } => {
                let took = switchover::switchover(&self.links, &self.guard, desired, seen, from, to).await?;
                (shard, to, true, false, took)
            }
        };
        Ok(Failover {
            shard: shard.clone(),
            pod: pod.clone(),
            planned,
            forced,
            took,
            at: Instant::now(),
            count: 0,
            unplanned: 0,
        })
    }
}

impl Order {
    fn shard(&self) -> &str {
        match self {
            Self::Takeover { shard, .. } | Self::Switchover { shard, .. } => shard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_many_fall_on_the_same_beats_and_never_come_later_for_it() {
        let begun = Instant::now();
        for ms in [0, 1, 49, 50, 51, 499, 501, 86_400_000_001] {
            let at = begun + Duration::from_millis(ms);
            let beat = in_beat(begun, at);
            assert!(beat <= at && at - beat < BEAT, "{ms}");
            assert_eq!((beat - begun).as_nanos() % BEAT.as_nanos(), 0, "{ms}");
        }
    }
}
