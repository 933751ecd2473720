//! What a benchmark of the whole path does with its users: a rate for a while, first messages, and the search for the highest rate.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    BenchError, Phase, Stats,
    fleet::{Fleet, message_id},
    pace::pace,
};
use crate::{client::Draft, load::Via};

/// After a phase, until all is answered and delivered.
const DRAIN: Duration = Duration::from_secs(10);
/// Requests of the HTTP variant that may be open at once.
const MAX_OPEN: usize = 4_096;
/// The contract of a held rate.
const HELD_P99: Duration = Duration::from_millis(100);
const HELD_SHARE: f64 = 0.98;
/// Times the highest rate that is held: a little more than can be done.
const JUST_OVER: f64 = 1.1;
/// Seconds of each step of a sweep.
const STEP: Duration = Duration::from_secs(5);

/// Whether these options make a run.
pub(super) fn check(users: usize, rate: f64, seconds: u64) -> Result<(), BenchError> {
    if users < 4 || !users.is_multiple_of(2) {
        return Err(BenchError::Option("--users: an even number, at least 4".to_owned()));
    }
    if !(rate > 0.0 && rate <= 100_000.0 && seconds > 0) {
        return Err(BenchError::Option("--rate: above 0, at most 100,000; --seconds: above 0".to_owned()));
    }
    Ok(())
}

/// Users on sockets, and what they do.
pub(super) struct Phases {
    /// The users.
    pub(super) fleet: Fleet,
    /// How they send.
    pub(super) via: Via,
    /// Bytes of text.
    pub(super) payload: usize,
}

impl Phases {
    /// Whether every socket is still open.
    pub(super) fn all_stayed(&self) -> Result<(), BenchError> {
        match self.fleet.ended() {
            0 => Ok(()),
            ended => Err(BenchError::Option(format!("{ended} sockets ended during the run"))),
        }
    }

    /// Messages in known conversations; both sides of a pair write in turn.
    pub(super) async fn phase(&self, rate: f64, lasts: Duration) -> Result<Phase, BenchError> {
        let (phase, outgoing) = self.fleet.begin(lasts);
        let begin = phase.began();
        match self.via {
            Via::Socket => {
                let users = self.fleet.len();
                let send = move |n: u64, due| {
                    let from = n as usize % users;
                    outgoing.send(from, from ^ 1, n, due);
                };
                paced(rate, lasts, begin, send).await?;
            }
            Via::Http => self.phase_over_http(&phase, outgoing.number(), rate, lasts).await?,
        }
        self.fleet.drain(&phase, DRAIN).await;
        Ok(phase)
    }

    async fn phase_over_http(
        &self,
        phase: &Phase,
        number: usize,
        rate: f64,
        lasts: Duration,
    ) -> Result<(), BenchError> {
        let open = Arc::new(Semaphore::new(MAX_OPEN));
        let users: Vec<_> = (0..self.fleet.len()).map(|at| self.fleet.user(at).clone()).collect();
        let (runtime, phase, origin) = (tokio::runtime::Handle::current(), phase.clone(), self.fleet.origin());
        let text = "x".repeat(self.payload.max(1));
        let begin = phase.began();
        let send = move |n: u64, due: Instant| {
            phase.due();
            let Ok(permit) = open.clone().try_acquire_owned() else { return phase.stuck() };
            let from = n as usize % users.len();
            let (user, to, phase) = (users[from].clone(), users[from ^ 1].id.clone(), phase.clone());
            let draft = Draft::to(to, &text).with_id(message_id(number, origin, due, n));
            runtime.spawn(async move {
                match user.api.send(&draft).await {
                    Ok(_) => phase.acked(due),
                    Err(error) => phase.refused(error.code().unwrap_or("no answer")),
                }
                drop(permit);
            });
        };
        paced(rate, lasts, begin, send).await
    }

    /// Every send opens a conversation that did not exist.
    pub(super) async fn first_messages(&self, rate: f64, lasts: Duration) -> Result<Phase, BenchError> {
        let (phase, outgoing) = self.fleet.begin(lasts);
        let users = self.fleet.len();
        // All pairs but those of the warm-up, each once, the distance growing so that every user takes part in turn.
        let pairs: Vec<(usize, usize)> = (1..users)
            .flat_map(|distance| (0..users - distance).map(move |from| (from, from + distance)))
            .filter(|(from, to)| from ^ 1 != *to)
            .collect();
        let send = move |n: u64, due| {
            if let Some((from, to)) = pairs.get(n as usize) {
                outgoing.send(*from, *to, n, due);
            }
        };
        paced(rate, lasts, phase.began(), send).await?;
        self.fleet.drain(&phase, DRAIN).await;
        Ok(phase)
    }

    /// The highest rate that is held from `first` on, goodput past it, and how fast it is back. `between` runs before each phase.
    pub(super) async fn sweep(
        &self,
        first: f64,
        between: impl AsyncFn() -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let mut tried = BTreeMap::new();
        let (mut held, mut failed, mut rate) = (0.0_f64, f64::INFINITY, first);
        // Doubles until a rate is not held, then halves the interval down to a twentieth.
        while failed.is_infinite() || failed - held > held.max(100.0) / 20.0 {
            between().await?;
            let stats = self.phase(rate, STEP).await?.stats();
            let good = is_held(&stats, rate);
            println!(
                "  {rate:6.0}/s  goodput {:6.0}/s  ack p50 {:7.2} p99 {:8.2} ms  delivery p99 {:8.2} ms  {}",
                stats.goodput(),
                ms(stats.ack_at(0.5)),
                ms(stats.ack_at(0.99)),
                ms(stats.delivery_at(0.99)),
                if good { "held" } else { "not held" },
            );
            tried.insert(rate as u64, stats);
            if good {
                held = held.max(rate);
            } else {
                failed = failed.min(rate);
            }
            rate = if failed.is_infinite() { rate * 2.0 } else { f64::midpoint(held, failed) };
            if failed < 100.0 || rate > 200_000.0 {
                break;
            }
        }
        println!("held: {held:.0}/s (p99 < {} ms)", HELD_P99.as_millis());
        let peak = tried.values().map(Stats::goodput).fold(0.0, f64::max);
        self.past_the_limit(&between, held.max(100.0), peak).await
    }

    /// What overload leaves of the goodput: beside the highest of all phases, and beside a phase just over the limit before and after it,
    /// since the machine itself is now faster and now slower.
    async fn past_the_limit(
        &self,
        between: &impl AsyncFn() -> Result<(), BenchError>,
        held: f64,
        peak: f64,
    ) -> Result<(), BenchError> {
        let mut peak = peak;
        let mut before = self.overload(between, held * JUST_OVER).await?.goodput();
        for factor in [1.5, 2.0, 3.0] {
            let stats = self.overload(between, held * factor).await?;
            let after = self.overload(between, held * JUST_OVER).await?.goodput();
            peak = peak.max(before).max(stats.goodput()).max(after);
            println!(
                "  {factor} × the held rate: goodput {:.0}/s, {:.0} % of the peak, {:.0} % of the {JUST_OVER} × around it ({before:.0}, {after:.0}); refused {:?}, without an answer {}",
                stats.goodput(),
                100.0 * stats.goodput() / peak,
                100.0 * stats.goodput() / f64::midpoint(before, after),
                stats.refused,
                stats.open() + stats.stuck,
            );
            before = after;
        }
        let after = self.phase(held / 2.0, Duration::from_secs(3)).await?.stats();
        println!(
            "  back at half of it, the next 3 s: ack p50 {:.2} p99 {:.2} ms",
            ms(after.ack_at(0.5)),
            ms(after.ack_at(0.99))
        );
        Ok(())
    }

    async fn overload(
        &self,
        between: &impl AsyncFn() -> Result<(), BenchError>,
        rate: f64,
    ) -> Result<Stats, BenchError> {
        between().await?;
        Ok(self.phase(rate, STEP * 2).await?.stats())
    }
}

async fn paced(
    rate: f64,
    lasts: Duration,
    begin: Instant,
    send: impl FnMut(u64, Instant) + Send + 'static,
) -> Result<(), BenchError> {
    pace(rate, lasts, begin, send).await.map_err(|e| BenchError::Option(format!("the generator ended: {e}")))
}

fn is_held(stats: &Stats, rate: f64) -> bool {
    let all = stats.acked as f64 / stats.due.max(1) as f64;
    stats.ack_at(0.99) < HELD_P99 && all >= HELD_SHARE && stats.goodput() >= rate * (HELD_SHARE - 0.03)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
