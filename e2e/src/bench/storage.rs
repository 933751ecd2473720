//! Storage alone: appends as the services make them, beside the floor in the same run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kith_clients::storage::Storage;
use kith_contract::ids;
use kith_kit::shutdown::CancellationToken;
use kith_platform::Service;
use kith_proto::{
    chat::v1::{Draft, MessageType},
    storage::v1::{AppendRequest, OpenDirectRequest, UserUpdate},
};
use kith_testing::Jit;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    BenchError, Phase, Stats,
    floor::Floor,
    pace::pace,
    usage::{Cpu, rewrite_logs, settled_memory, storage_memory},
};
use crate::local::{Instances, Options, Platform};

/// Appends in flight when going as fast as it goes.
const WINDOW: usize = 512;
/// Appends that may be open in the open loop.
const QUEUE: usize = 65_536;
/// Calls at once while conversations are made.
const PARALLEL: usize = 32;

/// What to run.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// Appends per second of the cost run; 0: half of what storage reaches.
    pub rate: f64,
    /// How long each run lasts.
    pub seconds: u64,
    /// Conversations' users; half as many conversations.
    pub users: usize,
    /// Bytes of content.
    pub payload: usize,
    /// mTLS.
    pub tls: bool,
    /// Instances.
    pub storages: usize,
}

/// Starts storage, runs, prints.
pub async fn run(options: StorageOptions) -> Result<(), BenchError> {
    println!("starting local processes …");
    let local = Options {
        instances: Instances::none().with(Service::Storage, options.storages),
        tls: options.tls,
        log: "warn".to_owned(),
        jit: Jit::Full,
        ..Options::default()
    };
    let mut platform = Platform::start(local).await?;
    let shutdown = CancellationToken::new();
    let client = Client::connect(&platform, &options, shutdown.clone()).await?;
    let lasts = Duration::from_secs(options.seconds);
    println!("storage: {} conversations, {} B, fsync always, WAIT 1", options.users / 2, options.payload);
    let floor = Floor::prepare(&platform, 2, options.payload).await?;
    let mut best = 0.0_f64;
    for (connections, batch) in [(1, 64), (1, 256), (2, 128)] {
        let rate = floor.saturate(connections, batch, lasts).await?;
        println!("  floor, {connections} × batches of {batch}: {rate:.0}/s");
        best = best.max(rate);
    }
    client.saturate(lasts.min(Duration::from_secs(3))).await?;
    let (memory, cpu) = (settled_memory(&platform).await?, Cpu::now(&mut platform));
    let reached = client.saturate(lasts).await?;
    println!(
        "  storage: {:.0}/s, {:.0} % of the floor (wanted ≥ 60 %)",
        reached.goodput(),
        100.0 * reached.goodput() / best
    );
    println!("{}", Cpu::now(&mut platform).per_million(&cpu, reached.acked));
    let grown = settled_memory(&platform).await?.saturating_sub(memory);
    println!("  engine memory per message: {:.0} B", grown as f64 / reached.acked.max(1) as f64);
    println!("  storage resident: {:.0?} MB", storage_memory(&platform));
    let rate = if options.rate > 0.0 { options.rate } else { reached.goodput() / 2.0 };
    rewrite_logs(&platform).await?;
    let below = floor.at_rate(rate, lasts).await?;
    println!("floor at {rate:.0}/s\n{below}");
    rewrite_logs(&platform).await?;
    let half = client.at_rate(rate, lasts).await?;
    println!("storage at {rate:.0}/s\n{half}");
    let times = half.ack_at(0.99).as_secs_f64() / below.ack_at(0.99).as_secs_f64();
    println!("  p99 {times:.1} × the floor's (wanted ≤ 2)");
    shutdown.cancel();
    Ok(())
}

/// The client that the services use, and the conversations to write to.
#[derive(Clone)]
struct Client {
    storage: Storage,
    conversations: Arc<[(String, String)]>,
    payload: usize,
}

impl Client {
    async fn connect(
        platform: &Platform,
        options: &StorageOptions,
        shutdown: CancellationToken,
    ) -> Result<Self, BenchError> {
        // Storage takes calls from parts of the platform; the benchmark stands in for the business endpoint.
        let config = platform.client_config(Service::Business.name())?;
        let storage = Storage::new(&config, shutdown)?;
        storage.discovered().await;
        let pairs = (0..options.users / 2).map(|n| (format!("bench-{n}-a"), format!("bench-{n}-b")));
        let conversations: Vec<_> = stream::iter(pairs)
            .map(|(a, b)| {
                let storage = storage.clone();
                async move {
                    let users = [&a, &b].map(|id| UserUpdate { user_id: id.clone(), ..UserUpdate::default() });
                    storage.upsert_users(users.to_vec()).await?;
                    storage.open_direct(OpenDirectRequest { user_a: a.clone(), user_b: b.clone() }).await?;
                    Ok::<_, kith_rpc::error::Error>((ids::direct_conversation_id(&a, &b)?, a))
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        Ok(Self { storage, conversations: conversations.into(), payload: options.payload })
    }

    fn request(&self, n: u64) -> AppendRequest {
        let (conversation, sender) = &self.conversations[n as usize % self.conversations.len()];
        let content = format!(r#"{{"text":"{}"}}"#, "x".repeat(self.payload.saturating_sub(11).max(1)));
        let draft = Draft {
            client_msg_id: crate::target::unique("m"),
            sender_id: sender.clone(),
            r#type: MessageType::Text as i32,
            content: content.into(),
            ..Draft::default()
        };
        AppendRequest { conversation_id: conversation.clone(), draft: Some(draft), ..AppendRequest::default() }
    }

    async fn append(&self, phase: &Phase, n: u64, due: Instant) {
        match self.storage.append(self.request(n)).await {
            Ok(_) => phase.acked(due),
            Err(error) => {
                phase.refused(&format!("{} {}", error.code_name(), error.reason.as_deref().unwrap_or_default()));
            }
        }
    }

    /// Closed loop with a fixed number in flight.
    async fn saturate(&self, lasts: Duration) -> Result<Stats, BenchError> {
        let (phase, next) = (Phase::begin(lasts), Arc::new(AtomicU64::new(0)));
        let end = phase.began() + lasts;
        let mut running = JoinSet::new();
        for _ in 0..WINDOW {
            let (client, phase, next) = (self.clone(), phase.clone(), next.clone());
            running.spawn(async move {
                while Instant::now() < end {
                    phase.due();
                    client.append(&phase, next.fetch_add(1, Ordering::Relaxed), Instant::now()).await;
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(|e| BenchError::Engine(e.to_string()))?;
        }
        Ok(phase.stats())
    }

    /// Open loop.
    async fn at_rate(&self, rate: f64, lasts: Duration) -> Result<Stats, BenchError> {
        let (phase, open) = (Phase::begin(lasts), Arc::new(Semaphore::new(QUEUE)));
        let (client, counted, runtime) = (self.clone(), phase.clone(), tokio::runtime::Handle::current());
        let places = open.clone();
        let send = move |n, due| {
            counted.due();
            let Ok(place) = places.clone().try_acquire_owned() else { return counted.stuck() };
            let (client, phase) = (client.clone(), counted.clone());
            runtime.spawn(async move {
                client.append(&phase, n, due).await;
                drop(place);
            });
        };
        pace(rate, lasts, phase.began(), send).await.map_err(|e| BenchError::Engine(e.to_string()))?;
        // Every append ends within its own deadline.
        drop(open.acquire_many(QUEUE as u32).await.map_err(|e| BenchError::Engine(e.to_string()))?);
        Ok(phase.stats())
    }
}
