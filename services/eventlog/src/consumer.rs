//! The consumer's side of the event log: each Kafka partition's records in strict order to a handler, offsets committed only behind
//! finished work, with the high-water of each kith partition in the offset's metadata.
//!
//! A thread of its own polls Kafka, since librdkafka's calls and its rebalance callback block. Each assigned partition has a worker task
//! with a bounded inbox; a full inbox pauses that partition alone. A revoked partition gets a moment to finish what it has in hand, then
//! its tickets are stopped: whatever was not finished comes again at the next owner.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::Metadata,
    types::RDKafkaErrorCode,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    assignment::Assignments,
    callbacks::GroupContext,
    denied,
    marks::{Checkpoint, Marks},
    origin::{Foreign, Origin, Stray, Verified},
    secrets::LoginFiles,
    sequence::Inflight,
    stalls::Watch,
};
use kith_kit::{backoff::Backoff, config::Kafka, readiness::Readiness};

/// Events a handler gets at once, at most.
pub const BATCH: usize = 256;
/// A poll returns after this when there is nothing, for housekeeping.
const POLL: Duration = Duration::from_millis(20);
/// Messages taken between two rounds of housekeeping, at most.
const MESSAGES_PER_ROUND: usize = 500;
/// A look for the topic, and the pause before the next one.
const METADATA_DEADLINE: Duration = Duration::from_secs(5);
const METADATA_PAUSE: Duration = Duration::from_millis(500);
/// Pauses before a consumer that failed for good is made anew.
const MIN_RESTART_PAUSE: Duration = Duration::from_millis(200);
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(5);
/// A consumer that lived this long starts again with the shortest pause.
const HEALTHY: Duration = Duration::from_secs(60);

/// What to consume, and as whom.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The topic.
    pub topic: String,
    /// Whose records are taken; all others are set aside.
    pub origin: Origin,
    /// The consumer group; its members share the partitions.
    pub group: String,
    /// The name of this part in `/readyz`.
    pub part: &'static str,
}

/// One record, in order.
#[derive(Debug)]
pub struct Event<T> {
    /// What the handler read in it.
    pub item: T,
    /// The Kafka partition.
    pub partition: i32,
    /// The kith partition and its `ver`; absent on topics that are not storage's.
    pub ver: Option<(u32, u64)>,
    /// To be told when the work is done.
    pub ticket: Ticket,
}

/// The place of one record's work; finish it with [`Ticket::done`].
#[derive(Debug, Clone)]
pub struct Ticket {
    work: Arc<Work>,
    offset: i64,
}

/// What the workers of one assigned partition share with the polling thread.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) inflight: Mutex<Inflight>,
    pub(super) stop: CancellationToken,
    /// The newest checkpoint of the high-water that is on the brokers, and whether another is being written.
    pub(super) checkpoint: Mutex<Option<Checkpoint>>,
    pub(super) checkpointing: AtomicBool,
    /// Kith partitions and the newest versions that storage has committed of them.
    pub(super) answers: Mutex<Vec<(u32, u64)>>,
}

impl Ticket {
    pub(super) fn new(work: Arc<Work>, offset: i64) -> Self {
        Self { work, offset }
    }

    /// The work on the record is finished; its offset may be committed. Without it the record comes again.
    pub fn done(&self) {
        self.work.inflight.lock().done(self.offset);
    }

    /// Whether the partition has gone to another consumer, which will do the work again.
    pub fn is_stopped(&self) -> bool {
        self.work.stop.is_cancelled()
    }

    /// The record's offset.
    pub fn offset(&self) -> i64 {
        self.offset
    }
}

/// What is done with the events of each partition.
pub trait Handler: Send + Sync + 'static {
    /// What a record says.
    type Item: Send + 'static;

    /// Reads a record before it takes its place in the order; the refusal says what is wrong with its data. Must not block.
    fn read(&self, record: &Verified) -> Result<Self::Item, String>;

    /// Works on events of one partition, in order, all that are there up to [`BATCH`]. Returns when they are finished or handed over with
    /// their tickets; the next batch of the partition comes only then. Dropped at a revocation.
    fn handle(&self, events: Vec<Event<Self::Item>>) -> impl Future<Output = ()> + Send;

    /// The newest version that storage has committed of a kith partition, as soon as storage says it. Asked for a record that is ahead of
    /// its turn, where versions count at all; without an answer it is never believed.
    fn newest(&self, stream: u32) -> BoxFuture<'static, u64> {
        let _ = stream;
        Box::pin(std::future::pending())
    }

    /// A record was passed over. Must not block.
    fn set_aside(&self, record: Stray, why: &Foreign);

    /// A partition came to this process; what is remembered of its entities may be out of date. Must not block.
    fn assigned(&self, partition: i32) {
        let _ = partition;
    }
}

/// Why a consumer could not be set up.
#[derive(Debug, Error)]
pub enum ConsumerError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] super::KafkaConfigError),
    /// librdkafka refused its settings, or the group refused the member for good.
    #[error("kafka consumer: {0}")]
    Kafka(#[from] KafkaError),
    /// The polling thread could not be started.
    #[error("kafka consumer thread: {0}")]
    Thread(std::io::Error),
    /// A handler panicked or the polling thread did.
    #[error("kafka consumer: the worker of partition {0} ended by itself")]
    Worker(i32),
    /// The library no longer fetches a partition.
    #[error("kafka consumer: partition {0} has more records and is not fetched any more")]
    Stalled(i32),
    /// The group never came to an end with giving out its partitions.
    #[error("kafka consumer: the group does not settle")]
    Unsettled,
    /// The files that the consumer logged in with have changed: another is made, with the new ones.
    #[error("kafka consumer: the files with its login have changed")]
    LoginChanged,
    /// The polling thread panicked.
    #[error("kafka consumer: the polling thread ended by itself")]
    Ended,
}

/// Consumes until `shutdown`. A consumer that fails is made anew with back-off; only a configuration that cannot work is an error.
pub async fn run<H: Handler>(
    kafka: &Kafka,
    subscription: Subscription,
    handler: Arc<H>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    readiness.expect(subscription.part);
    let mut backoff = Backoff::new(MIN_RESTART_PAUSE, MAX_RESTART_PAUSE);
    let mut worked = false;
    while !shutdown.is_cancelled() {
        let started = Instant::now();
        let files = LoginFiles::of(kafka, started);
        let consumer = match group_consumer(kafka, &subscription, handler.clone()) {
            Ok(consumer) => consumer,
            // Files that do not fit together are put right by whoever wrote them.
            Err(error) if worked => {
                readiness.not_ready(subscription.part, error.to_string());
                tracing::error!(topic = subscription.topic, group = subscription.group, %error, "no consumer can be made: trying again");
                let _ = shutdown.run_until_cancelled(backoff.pause()).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        worked = true;
        match poll_in_thread(consumer, files, &subscription, readiness.clone(), shutdown.clone()).await {
            Ok(()) => break,
            Err(ConsumerError::LoginChanged) => {
                metrics::counter!("kith_kafka_logins_renewed_total", "client" => subscription.group.clone())
                    .increment(1);
                tracing::info!(
                    topic = subscription.topic,
                    group = subscription.group,
                    "the consumer's login has changed: starting anew"
                );
                continue;
            }
            Err(error) => {
                readiness.not_ready(subscription.part, error.to_string());
                metrics::counter!("kith_consumer_restarts_total", "group" => subscription.group.clone()).increment(1);
                tracing::error!(topic = subscription.topic, group = subscription.group, %error, "consumer failed: starting anew");
            }
        }
        if started.elapsed() > HEALTHY {
            backoff.reset();
        }
        // None means that the end was asked for, which the loop sees.
        let _ = shutdown.run_until_cancelled(backoff.pause()).await;
    }
    Ok(())
}

type GroupConsumer<H> = BaseConsumer<GroupContext<H>>;

fn group_consumer<H: Handler>(
    kafka: &Kafka,
    subscription: &Subscription,
    handler: Arc<H>,
) -> Result<GroupConsumer<H>, ConsumerError> {
    let mut config = super::client_config(kafka)?;
    config
        .set("group.id", &subscription.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A group that has never been here must not miss what was written before it came.
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // 6 s is the least that brokers allow by default: a killed member is replaced after that.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("max.poll.interval.ms", "60000")
        // Latency before batching: brokers answer a fetch as soon as there is a byte, and a fetch that waits blocks a new partition.
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", "1048576")
        .set("socket.timeout.ms", "10000")
        .set("statistics.interval.ms", "5000");
    let runtime = tokio::runtime::Handle::current();
    let marks = Marks::new(kafka, &subscription.group);
    let watch = Watch::new(kafka, &subscription.topic, runtime.clone());
    let assignments = Assignments::new(subscription.clone(), handler, marks, watch, runtime);
    Ok(config.create_with_context(GroupContext::new(assignments))?)
}

/// Moves the consumer to its thread and waits for its end.
async fn poll_in_thread<H: Handler>(
    consumer: GroupConsumer<H>,
    files: LoginFiles,
    subscription: &Subscription,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    let (ended, end) = oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, subscription) = (stop.clone(), subscription.clone());
    let name = format!("kafka-{}", subscription.part);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let result = poll(&consumer, files, &subscription, &readiness, &asked);
            // Leaves the group: the callback gives what is in hand its moment, commits and stops the workers.
            drop(consumer);
            // The receiver is gone only when the process ends without waiting.
            drop(ended.send(result));
        })
        .map_err(ConsumerError::Thread)?;
    let mut end = std::pin::pin!(end);
    let result = tokio::select! {
        result = &mut end => result,
        () = shutdown.cancelled() => {
            stop.store(true, Ordering::Relaxed);
            end.await
        }
    };
    result.unwrap_or(Err(ConsumerError::Ended))
}

fn poll<H: Handler>(
    consumer: &GroupConsumer<H>,
    mut files: LoginFiles,
    subscription: &Subscription,
    readiness: &Readiness,
    stop: &AtomicBool,
) -> Result<(), ConsumerError> {
    if !topic_exists(consumer, &mut files, subscription, readiness, stop)? {
        return Ok(());
    }
    consumer.subscribe(&[&subscription.topic])?;
    readiness.ready(subscription.part);
    let assignments = consumer.context().assignments();
    while !stop.load(Ordering::Relaxed) {
        let mut wait = POLL;
        for _ in 0..MESSAGES_PER_ROUND {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => assignments.lock().receive(consumer, &message)?,
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error.into()),
                // Refused for want of rights, too: the library asks again by itself, with pauses.
                Some(Err(error)) => {
                    denied(&subscription.topic, error.rdkafka_error_code());
                    tracing::warn!(topic = subscription.topic, group = subscription.group, %error, "kafka consumer");
                    break;
                }
            }
            wait = Duration::ZERO;
        }
        assignments.lock().keep(consumer)?;
        if files.changed(Instant::now()) {
            return Err(ConsumerError::LoginChanged);
        }
    }
    Ok(())
}

/// Waits until the topic is there; false when the end was asked for. A subscription to a topic that is missing would sleep for long.
fn topic_exists<H: Handler>(
    consumer: &GroupConsumer<H>,
    files: &mut LoginFiles,
    subscription: &Subscription,
    readiness: &Readiness,
    stop: &AtomicBool,
) -> Result<bool, ConsumerError> {
    while !stop.load(Ordering::Relaxed) {
        match consumer.fetch_metadata(Some(&subscription.topic), METADATA_DEADLINE) {
            Ok(found) if found.topics().iter().any(|t| t.error().is_none() && !t.partitions().is_empty()) => {
                return Ok(true);
            }
            Ok(found) if is_hidden(&found, &subscription.topic) => {
                let why = format!("the brokers do not let this service read topic {}", subscription.topic);
                tracing::warn!(topic = subscription.topic, group = subscription.group, "{why}");
                readiness.not_ready(subscription.part, why);
            }
            Ok(_) => readiness.not_ready(subscription.part, format!("topic {} does not exist yet", subscription.topic)),
            Err(error) => readiness.not_ready(subscription.part, format!("kafka does not answer: {error}")),
        }
        // Perhaps it logs in with what holds no longer.
        if files.changed(Instant::now()) {
            return Err(ConsumerError::LoginChanged);
        }
        std::thread::sleep(METADATA_PAUSE);
    }
    Ok(false)
}

/// Whether the brokers say nothing about the topic because no right allows it.
fn is_hidden(found: &Metadata, topic: &str) -> bool {
    let mut codes = found.topics().iter().filter_map(|t| t.error().map(RDKafkaErrorCode::from));
    codes.any(|code| denied(topic, Some(code)))
}

/// Takes what a partition's inbox holds, batch by batch, until it is stopped.
pub(super) async fn work<H: Handler>(
    handler: Arc<H>,
    mut inbox: mpsc::Receiver<Event<H::Item>>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        match stop.run_until_cancelled(inbox.recv_many(&mut batch, BATCH)).await {
            None | Some(0) => return,
            Some(_) => {}
        }
        if stop.run_until_cancelled(handler.handle(std::mem::take(&mut batch))).await.is_none() {
            return;
        }
    }
}
