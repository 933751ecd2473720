//! The producer: idempotent, acknowledged by all in-sync replicas, and patient: a record is given up only when it can never be
//! delivered, never because time has passed.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt;
use parking_lot::Mutex;
use rdkafka::{
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _, PurgeConfig},
};

use thiserror::Error;

use super::{KafkaConfigError, client_config};
use crate::config::Kafka;

/// Records and bytes waiting in the library before [`ProduceError::QueueFull`].
const QUEUE_RECORDS: &str = "100000";
const QUEUE_KIB: &str = "32768";
/// How long the library gathers records for a batch: latency against requests.
const LINGER_MS: &str = "3";

/// Why a record was not taken or not delivered.
#[derive(Debug, Error)]
pub enum ProduceError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] KafkaConfigError),
    /// The client library refused.
    #[error("Kafka: {0}")]
    Client(#[from] ClientError),
    /// The library's own queue is full: the brokers do not keep up.
    #[error("Kafka: the producer's queue is full")]
    QueueFull,
    /// The client has failed for good, and the next one is not made yet.
    #[error("Kafka: the producer has failed and is being replaced: {0}")]
    Replacing(String),
    /// A record was given up; the reason is the broker's or the library's.
    #[error("Kafka: a record was not delivered: {0}")]
    Undelivered(String),
}

/// One header of a record.
pub type Header<'a> = (&'a str, &'a str);

/// What is sent.
#[derive(Debug)]
pub struct Record<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition; none: by key.
    pub partition: Option<u32>,
    /// Key.
    pub key: &'a str,
    /// Headers, in order.
    pub headers: &'a [Header<'a>],
    /// Value.
    pub payload: &'a [u8],
}

/// A producer. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer,
    places: Arc<Mutex<Places>>,
}

/// By topic partition; none: those that go by key.
type Places = HashMap<Option<u32>, Progress>;

/// Records of one place that were handed over and are not on the brokers yet.
#[derive(Debug)]
struct Progress {
    open: usize,
    /// When the last of them was settled, or the first one handed over.
    moved: Instant,
}

impl Producer {
    /// For the brokers of `kafka`. Does not connect yet: brokers that are down are waited for.
    pub fn new(kafka: &Kafka, client_id: &str) -> Result<Self, ProduceError> {
        let producer = client_config(kafka)?
            .set("client.id", client_id)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", "2000000")
            .set("queue.buffering.max.ms", LINGER_MS)
            .set("queue.buffering.max.messages", QUEUE_RECORDS)
            .set("queue.buffering.max.kbytes", QUEUE_KIB)
            .set("compression.type", "lz4")
            .create()?;
        Ok(Self { client: producer, places: Arc::default() })
    }

    /// Hands a record over; records of one partition are delivered in the order of these calls. The answer says when it is on the
    /// brokers.
    pub fn send(&self, record: &Record<'_>) -> Result<Delivery, ProduceError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(rdkafka::message::Header { key, value: Some(*value) });
        }
        let mut future = FutureRecord::to(record.topic).key(record.key).payload(record.payload).headers(headers);
        if let Some(partition) = record.partition {
            future = future.partition(i32::try_from(partition).unwrap_or(i32::MAX));
        }
        match self.client.send_result(future) {
            Ok(delivery) => Ok(Delivery { delivery, open: Open::new(&self.places, record.partition) }),
            Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(ProduceError::QueueFull),
            Err((error, _)) => Err(error.into()),
        }
    }

    /// Why the client has failed for good (it lost its idempotence): a new one must be made. See [`super::supervised`].
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.client.client().fatal_error().map(|(code, why)| format!("{code}: {why}"))
    }

    /// For how long the records of some partition have waited without any of them being settled. One alone may stand still.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        let places = self.places.lock();
        let waiting = places.values().filter(|p| p.open > 0).map(|p| now.saturating_duration_since(p.moved));
        waiting.max().unwrap_or_default()
    }

    /// Gives up everything that was handed over and is not on the brokers.
    pub(super) fn give_up(&self) {
        self.client.purge(PurgeConfig::default().queue().inflight());
    }
}

/// Resolves when a record is on the brokers, or can never be.
pub struct Delivery {
    delivery: DeliveryFuture,
    open: Open,
}

impl Future for Delivery {
    type Output = Result<(), ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let settled = self.delivery.poll_unpin(cx).map(|outcome| match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(ProduceError::Undelivered(error.to_string())),
            Err(_) => Err(ProduceError::Undelivered("the producer has ended".to_owned())),
        });
        if settled.is_ready() {
            self.open.settled = true;
        }
        settled
    }
}

/// One record under way, counted until it is settled or nobody asks any more.
struct Open {
    places: Arc<Mutex<Places>>,
    place: Option<u32>,
    settled: bool,
}

impl Open {
    fn new(places: &Arc<Mutex<Places>>, place: Option<u32>) -> Self {
        let now = Instant::now();
        let mut all = places.lock();
        let progress = all.entry(place).or_insert(Progress { open: 0, moved: now });
        if progress.open == 0 {
            progress.moved = now;
        }
        progress.open += 1;
        Self { places: places.clone(), place, settled: false }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(progress) = self.places.lock().get_mut(&self.place) {
            progress.open -= 1;
            if self.settled {
                progress.moved = Instant::now();
            }
        }
    }
}
