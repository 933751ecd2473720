//! The whole path: users in pairs on sockets, everything from the gateway to the other socket as local processes.

use std::time::Duration;

use kith_platform::Service;
use kith_testing::Jit;

use super::{
    BenchError, Phase,
    fleet::Fleet,
    phases::{Phases, check},
    usage::{Cpu, rewrite_logs, settled_memory, storage_memory},
};
use crate::{
    load::Via,
    local::{Instances, Options, Platform},
};

/// What is sent before anything is measured: a broker's compiler is done with its hot code after some hundred thousand requests, and costs
/// as much as the broker until then (with 1,000 messages/s: 340 CPU seconds per million after 20 s, 180 after 120 s).
const WARM_UP_RATE: f64 = 1_000.0;

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
        check(self.users, self.rate, self.seconds)?;
        if self.new_conversations.is_nan() || self.new_conversations < 0.0 {
            return Err(BenchError::Option("--new-conversations-per-second: at least 0".to_owned()));
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
    let bench = Phases { fleet, via: options.via, payload: options.payload };
    println!(
        "whole path: {} users in {} pairs, {} B, {:?}, TLS {}, fsync always, WAIT 1",
        options.users,
        options.users / 2,
        options.payload,
        options.via,
        options.tls,
    );
    // Makes every pair's conversation, gets every connection going and lets the broker compile its code.
    bench.phase(options.users as f64, Duration::from_secs(2)).await?;
    bench.phase(WARM_UP_RATE, options.warm_up).await?;
    let lasts = Duration::from_secs(options.seconds);
    if options.new_conversations > 0.0 {
        println!("first messages of new conversations");
        let phase = bench.first_messages(options.new_conversations, lasts);
        costed(&mut platform, phase).await?;
    } else if options.sweep {
        bench.sweep(options.rate, async || rewrite_logs(&platform).await).await?;
    } else {
        costed(&mut platform, bench.phase(options.rate, lasts)).await?;
    }
    bench.all_stayed()
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
