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
    ClientContext, Message as _,
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::{DeliveryResult, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
};
use thiserror::Error;
use tokio::sync::oneshot;

use super::{KafkaConfigError, client_config, denied};
use kith_kit::config::Kafka;

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
pub struct Producer(Arc<ThreadedProducer<Reports>>);

/// The library's reports of what became of records: passed on, and counted when they come, however late a caller looks.
#[derive(Default)]
struct Reports {
    /// By topic partition; none: those that go by key.
    places: Mutex<HashMap<Option<u32>, Progress>>,
}

/// Records of one partition that were handed over and are not on the brokers yet.
#[derive(Debug)]
struct Progress {
    open: usize,
    /// When the last of them was reported, or the first one handed over.
    moved: Instant,
}

/// Goes with a record.
struct Report {
    place: Option<u32>,
    answer: oneshot::Sender<Result<(), ClientError>>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let Report { place, answer } = *report;
        if let Some(progress) = self.places.lock().get_mut(&place) {
            progress.open -= 1;
            progress.moved = Instant::now();
        }
        let outcome = result.as_ref().map(drop).map_err(|(error, record)| {
            denied(record.topic(), error.rdkafka_error_code());
            error.clone()
        });
        // Who sent it may have gone.
        drop(answer.send(outcome));
    }
}

impl Reports {
    fn handed_over(&self, place: Option<u32>) {
        let now = Instant::now();
        let mut places = self.places.lock();
        let progress = places.entry(place).or_insert(Progress { open: 0, moved: now });
        if progress.open == 0 {
            progress.moved = now;
        }
        progress.open += 1;
    }

    fn refused(&self, place: Option<u32>) {
        if let Some(progress) = self.places.lock().get_mut(&place) {
            progress.open -= 1;
        }
    }
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
            .create_with_context(Reports::default())?;
        Ok(Self(Arc::new(producer)))
    }

    /// Hands a record over; records of one partition are delivered in the order of these calls. The answer says when it is on the
    /// brokers.
    pub fn send(&self, record: &Record<'_>) -> Result<Delivery, ProduceError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(rdkafka::message::Header { key, value: Some(*value) });
        }
        let (answer, delivery) = oneshot::channel();
        let report = Box::new(Report { place: record.partition, answer });
        let mut handed =
            BaseRecord::with_opaque_to(record.topic, report).key(record.key).payload(record.payload).headers(headers);
        if let Some(partition) = record.partition {
            handed = handed.partition(i32::try_from(partition).unwrap_or(i32::MAX));
        }
        // Before: the report may come at once.
        self.0.context().handed_over(record.partition);
        let Err((error, _)) = self.0.send(handed) else { return Ok(Delivery(delivery)) };
        self.0.context().refused(record.partition);
        denied(record.topic, error.rdkafka_error_code());
        match error {
            ClientError::MessageProduction(RDKafkaErrorCode::QueueFull) => Err(ProduceError::QueueFull),
            error => Err(error.into()),
        }
    }

    /// Why the client has failed for good (it lost its idempotence): a new one must be made. See [`super::supervised`].
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.0.client().fatal_error().map(|(code, why)| format!("{code}: {why}"))
    }

    /// For how long the records of some partition have waited without a report of any of them. One alone may stand still.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        let places = self.0.context().places.lock();
        let waiting = places.values().filter(|p| p.open > 0).map(|p| now.saturating_duration_since(p.moved));
        waiting.max().unwrap_or_default()
    }

    /// Gives up everything that was handed over and is not on the brokers.
    pub(super) fn give_up(&self) {
        self.0.purge(PurgeConfig::default().queue().inflight());
    }
}

/// Resolves when a record is on the brokers, or can never be.
pub struct Delivery(oneshot::Receiver<Result<(), ClientError>>);

impl Future for Delivery {
    type Output = Result<(), ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_unpin(cx).map(|outcome| match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ProduceError::Undelivered(error.to_string())),
            Err(_) => Err(ProduceError::Undelivered("the producer has ended".to_owned())),
        })
    }
}
