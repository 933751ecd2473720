//! The producer: idempotent, acknowledged by all in-sync replicas, and patient: a record is given up only when it can never be
//! delivered, never because time has passed.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::FutureExt;
use rdkafka::{
    error::{KafkaError as ClientError, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _},
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
pub struct Producer(FutureProducer);

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
        Ok(Self(producer))
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
        match self.0.send_result(future) {
            Ok(delivery) => Ok(Delivery(delivery)),
            Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(ProduceError::QueueFull),
            Err((error, _)) => Err(error.into()),
        }
    }

    /// Why the client has failed for good (it lost its idempotence): a new one must be made. See [`super::supervised`].
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.0.client().fatal_error().map(|(code, why)| format!("{code}: {why}"))
    }
}

/// Resolves when a record is on the brokers, or can never be.
pub struct Delivery(DeliveryFuture);

impl Future for Delivery {
    type Output = Result<(), ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_unpin(cx).map(|outcome| match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(ProduceError::Undelivered(error.to_string())),
            Err(_) => Err(ProduceError::Undelivered("the producer has ended".to_owned())),
        })
    }
}
