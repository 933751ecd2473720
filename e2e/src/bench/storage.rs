//! Storage alone: appends through its bidirectional streams, beside the floor in the same run.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use kith_kit::{client::MAX_MESSAGE_BYTES, ids, shutdown::CancellationToken, storage::Storage, testing::Jit};
use kith_proto::{
    chat::v1::{Draft, MessageType},
    storage::v1::{
        AppendItem, AppendRequest, AppendStreamRequest, OpenDirectRequest, UserUpdate,
        append_result::Result as Outcome, messages_client::MessagesClient,
    },
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::{
    BenchError, Phase, Stats,
    floor::Floor,
    pace::pace,
    usage::{Cpu, engine_memory, storage_memory},
};
use crate::local::{Kind, Options, Platform};

/// Streams to each storage instance.
const STREAMS: usize = 2;
/// Appends in flight when going as fast as it goes.
const WINDOW: usize = 512;
/// Appends in one request.
const GATHERED: usize = 64;
/// Appends that may wait for the stream in the open loop.
const QUEUE: usize = 65_536;
const DRAIN: Duration = Duration::from_secs(10);
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
        storages: options.storages,
        sessions: 0,
        tasks: 0,
        gateways: 0,
        apis: 0,
        businesses: 0,
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
    let (memory, cpu) = (engine_memory(&platform).await?, Cpu::now(&mut platform));
    let reached = client.saturate(lasts).await?;
    println!(
        "  storage: {:.0}/s, {:.0} % of the floor (wanted ≥ 60 %)",
        reached.goodput(),
        100.0 * reached.goodput() / best
    );
    println!("{}", Cpu::now(&mut platform).per_million(&cpu, reached.acked));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = engine_memory(&platform).await?.saturating_sub(memory);
    println!("  engine memory per message: {:.0} B", grown as f64 / reached.acked.max(1) as f64);
    println!("  storage resident: {:.0?} MB", storage_memory(&platform));
    let rate = if options.rate > 0.0 { options.rate } else { reached.goodput() / 2.0 };
    let below = floor.at_rate(rate, lasts).await?;
    println!("floor at {rate:.0}/s\n{below}");
    let half = client.at_rate(rate, lasts).await?;
    println!("storage at {rate:.0}/s\n{half}");
    let times = half.ack_at(0.99).as_secs_f64() / below.ack_at(0.99).as_secs_f64();
    println!("  p99 {times:.1} × the floor's (wanted ≤ 2)");
    shutdown.cancel();
    Ok(())
}

type Open = Arc<Mutex<HashMap<u64, Instant>>>;

/// Streams to the instances, and the conversations to write to.
struct Client {
    storage: Storage,
    conversations: Vec<(String, String)>,
    payload: usize,
}

/// The streams of one run.
struct Streams {
    ways: HashMap<String, Vec<mpsc::Sender<AppendItem>>>,
    open: Open,
    phase: Phase,
}

impl Client {
    async fn connect(
        platform: &Platform,
        options: &StorageOptions,
        shutdown: CancellationToken,
    ) -> Result<Self, BenchError> {
        // Storage takes calls from parts of the platform; the benchmark stands in for the business endpoint.
        let config = platform.client_config(Kind::Business.name())?;
        let storage = Storage::new(&config, shutdown)?;
        storage.discovered().await;
        let pairs = (0..options.users / 2).map(|n| (format!("bench-{n}-a"), format!("bench-{n}-b")));
        let conversations = stream::iter(pairs)
            .map(|(a, b)| {
                let storage = storage.clone();
                async move {
                    let users = [&a, &b].map(|id| UserUpdate { user_id: id.clone(), ..UserUpdate::default() });
                    storage.upsert_users(users.to_vec()).await?;
                    storage.open_direct(OpenDirectRequest { user_a: a.clone(), user_b: b.clone() }).await?;
                    Ok::<_, kith_kit::error::Error>((ids::direct_conversation_id(&a, &b)?, a))
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        Ok(Self { storage, conversations, payload: options.payload })
    }

    /// Opens streams whose answers are counted in a new phase. A permit is given back with every answer.
    async fn streams(&self, lasts: Duration, permits: Option<Arc<Semaphore>>) -> Result<Streams, BenchError> {
        let phase = Phase::begin(lasts);
        let open = Open::default();
        let mut ways: HashMap<String, Vec<_>> = HashMap::new();
        for address in self.storage.router().discovery().current().iter() {
            for _ in 0..STREAMS {
                let (send, items) = mpsc::channel(QUEUE);
                let mut client = MessagesClient::new(self.storage.router().dialer().channel(address))
                    .max_decoding_message_size(MAX_MESSAGE_BYTES);
                let requests = tokio_stream::wrappers::ReceiverStream::new(items)
                    .ready_chunks(GATHERED)
                    .map(|items| AppendStreamRequest { items });
                let answers = client.append_stream(requests).await.map_err(kith_kit::error::Error::from)?.into_inner();
                tokio::spawn(count(answers, phase.clone(), open.clone(), permits.clone()));
                ways.entry(address.clone()).or_default().push(send);
            }
        }
        Ok(Streams { ways, open, phase })
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
        AppendRequest { conversation_id: conversation.clone(), draft: Some(draft), privileged: false }
    }

    /// Closed loop with a fixed number in flight.
    async fn saturate(&self, lasts: Duration) -> Result<Stats, BenchError> {
        let permits = Arc::new(Semaphore::new(WINDOW));
        let streams = self.streams(lasts, Some(permits.clone())).await?;
        let end = streams.phase.began() + lasts;
        let mut n = 0;
        while Instant::now() < end {
            let acquired = tokio::time::timeout(DRAIN, permits.acquire()).await;
            let Ok(Ok(permit)) = acquired else {
                return Err(BenchError::Option("storage answers nothing any more".to_owned()));
            };
            permit.forget();
            streams.send(self, n, Instant::now());
            n += 1;
        }
        Ok(streams.drained().await)
    }

    /// Open loop.
    async fn at_rate(&self, rate: f64, lasts: Duration) -> Result<Stats, BenchError> {
        let streams = Arc::new(self.streams(lasts, None).await?);
        let (client, sending) = (
            Self { storage: self.storage.clone(), conversations: self.conversations.clone(), payload: self.payload },
            streams.clone(),
        );
        pace(rate, lasts, streams.phase.began(), move |n, due| sending.send(&client, n, due))
            .await
            .map_err(|e| BenchError::Engine(e.to_string()))?;
        Ok(streams.drained().await)
    }
}

impl Streams {
    fn send(&self, client: &Client, n: u64, due: Instant) {
        self.phase.due();
        let append = client.request(n);
        let key = client.storage.key(&append.conversation_id);
        let way = client.storage.router().address(key).and_then(|address| self.ways.get(&address));
        let Some(way) = way.and_then(|ways| ways.get(key as usize % STREAMS)) else { return self.phase.stuck() };
        self.open.lock().insert(n, due);
        if way.try_send(AppendItem { id: n, append: Some(append), ..AppendItem::default() }).is_err() {
            self.open.lock().remove(&n);
            self.phase.stuck();
        }
    }

    async fn drained(&self) -> Stats {
        let end = Instant::now() + DRAIN;
        while self.phase.stats().open() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.phase.stats()
    }
}

async fn count(
    mut answers: tonic::Streaming<kith_proto::storage::v1::AppendStreamResponse>,
    phase: Phase,
    open: Open,
    permits: Option<Arc<Semaphore>>,
) {
    loop {
        match answers.message().await {
            Ok(None) => return,
            Err(status) => {
                tracing::warn!(%status, "an append stream has ended");
                return;
            }
            Ok(Some(answer)) => {
                for result in answer.results {
                    let due = open.lock().remove(&result.id);
                    match (result.result, due) {
                        (Some(Outcome::Receipt(_)), Some(due)) => phase.acked(due),
                        (Some(Outcome::Error(error)), _) => {
                            let code = kith_kit::error::code_name(tonic::Code::from_i32(error.code));
                            phase.refused(&format!("{code} {}", error.reason));
                        }
                        _ => {}
                    }
                    if let Some(permits) = &permits {
                        permits.add_permits(1);
                    }
                }
            }
        }
    }
}
