//! The whole path: users in pairs on sockets, everything from the gateway to the other socket as local processes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kith_platform::Service;
use kith_testing::Jit;
use tokio::sync::Semaphore;

use super::{
    BenchError, Phase, Stats,
    fleet::{Fleet, message_id},
    pace::pace,
    usage::{Cpu, rewrite_logs, settled_memory, storage_memory},
};
use crate::{
    client::Draft,
    load::Via,
    local::{Instances, Options, Platform},
};

/// After a phase, until all is answered and delivered.
const DRAIN: Duration = Duration::from_secs(10);
/// Requests of the HTTP variant that may be open at once.
const MAX_OPEN: usize = 4_096;
/// The contract of a held rate.
const HELD_P99: Duration = Duration::from_millis(100);
const HELD_SHARE: f64 = 0.98;
/// What is sent before anything is measured: a broker's compiler is done with its hot code after some hundred thousand requests, and costs
/// as much as the broker until then (with 1,000 messages/s: 340 CPU seconds per million after 20 s, 180 after 120 s).
const WARM_UP_RATE: f64 = 1_000.0;
/// Times the highest rate that is held: a little more than can be done.
const JUST_OVER: f64 = 1.1;
/// Seconds of each step of a sweep.
const STEP: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug, Clone)]
pub struct PathOptions {
    /// Messages per second.
    pub rate: f64,
    /// How long.
    pub seconds: u64,
    /// Users, in pairs.
    pub users: usize,
    /// Bytes of text.
    pub payload: usize,
    /// First messages of new conversations per second, instead of messages in known ones.
    pub new_conversations: f64,
    /// Looks for the highest rate that is held, and what happens past it.
    pub sweep: bool,
    /// mTLS between the services.
    pub tls: bool,
    /// How clients send.
    pub via: Via,
    /// Instances of `storage`.
    pub storages: usize,
    /// Partitions of the event log: each costs the broker its own requests.
    pub event_partitions: u32,
    /// How long the platform runs before anything is measured.
    pub warm_up: Duration,
}

impl PathOptions {
    fn check(&self) -> Result<(), BenchError> {
        if self.users < 4 || !self.users.is_multiple_of(2) {
            return Err(BenchError::Option("--users: an even number, at least 4".to_owned()));
        }
        if !(self.rate > 0.0 && self.rate <= 100_000.0 && self.new_conversations >= 0.0 && self.seconds > 0) {
            return Err(BenchError::Option("--rate, --seconds: above 0".to_owned()));
        }
        let pairs = self.users * (self.users - 1) / 2 - self.users / 2;
        if self.new_conversations * self.seconds as f64 > pairs as f64 {
            return Err(BenchError::Option(format!("{} users make only {pairs} new conversations", self.users)));
        }
        Ok(())
    }
}

/// Starts the platform, runs, prints.
pub async fn run(options: PathOptions) -> Result<(), BenchError> {
    options.check()?;
    println!("starting local processes …");
    let mut local = Options {
        instances: Instances::default().with(Service::Storage, options.storages),
        event_partitions: options.event_partitions,
        tls: options.tls,
        log: "warn".to_owned(),
        jit: Jit::Full,
        ..Options::default()
    };
    // The generator stands for many people behind few ids: what protects against one person is not what is measured.
    local.limits.sends_per_second = 0;
    local.gateway.frames_per_second = 1_000_000;
    local.gateway.requests_per_second = 0;
    let mut platform = Platform::start(local).await?;
    let target = platform.target().await?;
    let fleet = Fleet::connect(&target, options.users, options.payload).await?;
    let bench = Bench { options, fleet };
    println!(
        "whole path: {} users in {} pairs, {} B, {:?}, TLS {}, fsync always, WAIT 1",
        bench.options.users,
        bench.options.users / 2,
        bench.options.payload,
        bench.options.via,
        bench.options.tls,
    );
    bench.warm_up().await?;
    let lasts = Duration::from_secs(bench.options.seconds);
    if bench.options.new_conversations > 0.0 {
        println!("first messages of new conversations");
        let phase = bench.first_messages(bench.options.new_conversations, lasts);
        costed(&mut platform, phase).await?;
    } else if bench.options.sweep {
        bench.sweep(&platform).await?;
    } else {
        costed(&mut platform, bench.phase(bench.options.rate, lasts)).await?;
    }
    match bench.fleet.ended() {
        0 => Ok(()),
        ended => Err(BenchError::Option(format!("{ended} sockets ended during the run"))),
    }
}

struct Bench {
    options: PathOptions,
    fleet: Fleet,
}

impl Bench {
    /// Makes every pair's conversation, gets every connection going and lets the broker compile its code.
    async fn warm_up(&self) -> Result<(), BenchError> {
        self.phase(self.options.users as f64, Duration::from_secs(2)).await?;
        self.phase(WARM_UP_RATE, self.options.warm_up).await?;
        Ok(())
    }

    /// Messages in known conversations; both sides of a pair write in turn.
    async fn phase(&self, rate: f64, lasts: Duration) -> Result<Phase, BenchError> {
        let (phase, outgoing) = self.fleet.begin(lasts);
        let begin = phase.began();
        match self.options.via {
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
        let text = "x".repeat(self.options.payload.max(1));
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
    async fn first_messages(&self, rate: f64, lasts: Duration) -> Result<Phase, BenchError> {
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

    /// The highest rate that is held, goodput past it, and how fast it is back.
    async fn sweep(&self, platform: &Platform) -> Result<(), BenchError> {
        let mut tried = BTreeMap::new();
        let (mut held, mut failed, mut rate) = (0.0_f64, f64::INFINITY, self.options.rate);
        // Doubles until a rate is not held, then halves the interval down to a twentieth.
        while failed.is_infinite() || failed - held > held.max(100.0) / 20.0 {
            rewrite_logs(platform).await?;
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
        self.past_the_limit(platform, held.max(100.0), peak).await
    }

    /// What overload leaves of the goodput: beside the highest of all phases, and beside a phase just over the limit before and after it,
    /// since the machine itself is now faster and now slower.
    async fn past_the_limit(&self, platform: &Platform, held: f64, peak: f64) -> Result<(), BenchError> {
        let mut peak = peak;
        let mut before = self.overload(platform, held * JUST_OVER).await?.goodput();
        for factor in [1.5, 2.0, 3.0] {
            let stats = self.overload(platform, held * factor).await?;
            let after = self.overload(platform, held * JUST_OVER).await?.goodput();
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

    async fn overload(&self, platform: &Platform, rate: f64) -> Result<Stats, BenchError> {
        rewrite_logs(platform).await?;
        Ok(self.phase(rate, STEP * 2).await?.stats())
    }
}

/// A phase, with what it costs.
async fn costed(
    platform: &mut Platform,
    phase: impl Future<Output = Result<Phase, BenchError>>,
) -> Result<(), BenchError> {
    let (memory, cpu) = (settled_memory(platform).await?, Cpu::now(platform));
    let stats = phase.await?.stats();
    println!("{stats}");
    println!("{}", Cpu::now(platform).per_million(&cpu, stats.acked));
    let grown = settled_memory(platform).await?.saturating_sub(memory);
    println!("  engine memory per message: {:.0} B", grown as f64 / stats.acked.max(1) as f64);
    println!("  storage resident: {:.0?} MB", storage_memory(platform));
    Ok(())
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
