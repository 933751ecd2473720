//! A producer that is made anew when it has failed for good.
//!
//! librdkafka's idempotent producer ends with a fatal error when it can no longer promise order (it lost its place at the broker, or its
//! login was refused once). From then on it refuses every record. Whoever sends repeats what failed, in order; the next attempt finds a
//! new producer. A record that the old one had handed over may be on the log already and come a second time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::producer::{Delivery, ProduceError, Producer, Record};
use crate::{backoff::Backoff, config::Kafka};

/// Between two producers that failed one after the other.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A producer that worked this long is followed by the next one at once.
const HEALTHY: Duration = Duration::from_secs(60);

/// A producer with a successor. Cheap to clone.
#[derive(Clone)]
pub struct Supervised(Arc<Inner>);

struct Inner {
    kafka: Kafka,
    client_id: String,
    current: Mutex<Current>,
}

struct Current {
    producer: Producer,
    made: Instant,
    /// When the one before was given up, another is not made before this.
    not_before: Instant,
    backoff: Backoff,
}

impl Supervised {
    /// For the brokers of `kafka`. Does not connect yet: brokers that are down are waited for.
    pub fn new(kafka: &Kafka, client_id: &str) -> Result<Self, ProduceError> {
        let now = Instant::now();
        let current = Mutex::new(Current {
            producer: Producer::new(kafka, client_id)?,
            made: now,
            not_before: now,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
        });
        Ok(Self(Arc::new(Inner { kafka: kafka.clone(), client_id: client_id.to_owned(), current })))
    }

    /// Hands a record over, as [`Producer::send`] does. While a successor must wait for its turn, the answer is
    /// [`ProduceError::Replacing`].
    pub fn send(&self, record: &Record<'_>) -> Result<Delivery, ProduceError> {
        let producer = self.living()?;
        producer.send(record)
    }

    /// The producer that works, made anew if the last one does not.
    fn living(&self) -> Result<Producer, ProduceError> {
        let mut current = self.0.current.lock();
        let Some(error) = current.producer.fatal_error() else { return Ok(current.producer.clone()) };
        let now = Instant::now();
        if now < current.not_before {
            return Err(ProduceError::Replacing(error));
        }
        let successor = Producer::new(&self.0.kafka, &self.0.client_id)?;
        metrics::counter!("kith_producer_replacements_total", "client" => self.0.client_id.clone()).increment(1);
        tracing::error!(client = self.0.client_id, %error, "the Kafka producer failed for good: another takes its place");
        if now.duration_since(current.made) > HEALTHY {
            current.backoff.reset();
        }
        let pause = current.backoff.after_failure();
        (current.made, current.not_before) = (now, now + pause);
        let failed = std::mem::replace(&mut current.producer, successor.clone());
        drop(current);
        // Ending a client waits for its threads.
        std::thread::spawn(move || drop(failed));
        Ok(successor)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    use super::*;

    fn record(payload: &[u8]) -> Record<'_> {
        Record { topic: "log", partition: Some(0), key: "k", headers: &[], payload }
    }

    /// Hands a record over until it is on the broker.
    async fn deliver(producer: &Supervised, payload: &[u8]) -> u32 {
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100));
        let mut failures = 0;
        loop {
            let outcome = match producer.send(&record(payload)) {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            };
            if outcome.is_ok() {
                return failures;
            }
            failures += 1;
            backoff.pause().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_that_failed_for_good_is_followed_by_another() {
        let brokers = MockCluster::new(1).unwrap();
        brokers.create_topic("log", 1, 1).unwrap();
        let kafka = Kafka {
            bootstrap: brokers.bootstrap_servers(),
            tls: None,
            sasl: None,
            replication_factor: 1,
            min_insync: 1,
        };
        let producer = Supervised::new(&kafka, "test").unwrap();
        let all = async {
            assert_eq!(deliver(&producer, b"1").await, 0);
            for round in 0..3_u8 {
                let desynchronized = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
                brokers.request_errors(RDKafkaApiKey::Produce, &desynchronized);
                assert!(deliver(&producer, &[round]).await > 0, "the failure was seen");
                assert_eq!(deliver(&producer, &[round]).await, 0, "and is over");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    }
}
