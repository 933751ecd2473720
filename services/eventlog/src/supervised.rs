//! A producer that is made anew when it has failed for good, or has come to a standstill.
//!
//! librdkafka's idempotent producer ends with a fatal error when it can no longer promise order (it lost its place at the broker, or its
//! login was refused once). From then on it refuses every record. Or it loses sight of the brokers: one that told of partitions without a
//! leader before it died is forgotten, and records wait for ever though it came back (seen with 2.12.1 and a single broker: 40 minutes).
//! Whoever sends repeats what failed, in order; the next attempt finds a new producer. A record that the old one had handed over may be
//! on the log already and come a second time.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::metadata::MetadataPartition;

use super::{
    admin,
    producer::{Delivery, ProduceError, Producer, Record},
    secrets::LoginFiles,
};
use kith_kit::{backoff::Backoff, config::Kafka};

/// Between two producers that failed one after the other.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A producer that worked this long is followed by the next one at once.
const HEALTHY: Duration = Duration::from_secs(60);
/// Records of a partition that wait for so long without any of them being settled, while the brokers take records, wait for ever.
const STANDSTILL: Duration = Duration::from_secs(10);
/// Between two looks at what waits.
const WATCH: Duration = Duration::from_secs(2);
/// Asking the brokers how they are.
const DEADLINE: Duration = Duration::from_secs(3);

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
    /// Where the last record went.
    topic: String,
    /// What the producer logged in with.
    files: LoginFiles,
}

impl Supervised {
    /// For the brokers of `kafka`. Does not connect yet: brokers that are down are waited for. Needs a runtime, on which it is watched.
    pub fn new(kafka: &Kafka, client_id: &str) -> Result<Self, ProduceError> {
        Self::watched(kafka, client_id, WATCH, STANDSTILL)
    }

    fn watched(kafka: &Kafka, client_id: &str, every: Duration, standstill: Duration) -> Result<Self, ProduceError> {
        let now = Instant::now();
        let current = Mutex::new(Current {
            producer: Producer::new(kafka, client_id)?,
            made: now,
            not_before: now,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            topic: String::new(),
            files: LoginFiles::of(kafka, now),
        });
        let inner = Arc::new(Inner { kafka: kafka.clone(), client_id: client_id.to_owned(), current });
        tokio::spawn(watch(Arc::downgrade(&inner), every, standstill));
        Ok(Self(inner))
    }

    /// Hands a record over, as [`Producer::send`] does. While a successor must wait for its turn, the answer is
    /// [`ProduceError::Replacing`].
    pub fn send(&self, record: &Record<'_>) -> Result<Delivery, ProduceError> {
        let producer = self.0.living(record.topic)?;
        producer.send(record)
    }
}

impl Inner {
    /// The producer that works, made anew if the last one does not.
    fn living(&self, topic: &str) -> Result<Producer, ProduceError> {
        let mut current = self.current.lock();
        if current.topic != topic {
            topic.clone_into(&mut current.topic);
        }
        let Some(error) = current.producer.fatal_error() else { return Ok(current.producer.clone()) };
        if Instant::now() < current.not_before {
            return Err(ProduceError::Replacing(error));
        }
        metrics::counter!("kith_producer_replacements_total", "client" => self.client_id.clone()).increment(1);
        tracing::error!(client = self.client_id, error, "the Kafka producer failed for good: another takes its place");
        self.replace(&mut current)
    }

    fn replace(&self, current: &mut Current) -> Result<Producer, ProduceError> {
        let now = Instant::now();
        let files = LoginFiles::of(&self.kafka, now);
        let successor = Producer::new(&self.kafka, &self.client_id)?;
        current.files = files;
        if now.duration_since(current.made) > HEALTHY {
            current.backoff.reset();
        }
        let pause = current.backoff.after_failure();
        (current.made, current.not_before) = (now, now + pause);
        let failed = std::mem::replace(&mut current.producer, successor.clone());
        // Ending a client waits for its threads.
        std::thread::spawn(move || {
            failed.give_up();
            drop(failed);
        });
        Ok(successor)
    }

    /// Replaces a producer whose records have waited for so long although the brokers would take them.
    async fn look(self: Arc<Self>, standstill: Duration) {
        let waits = |current: &Current| current.producer.silent_for(Instant::now()) >= standstill;
        let topic = {
            let mut current = self.current.lock();
            if current.files.changed(Instant::now()) {
                // What is under way is given up with the old one, and repeated in order.
                match self.replace(&mut current) {
                    Ok(_) => {
                        metrics::counter!("kith_kafka_logins_renewed_total", "client" => self.client_id.clone())
                            .increment(1);
                        tracing::info!(
                            client = self.client_id,
                            "the producer's login has changed: another takes its place"
                        );
                    }
                    Err(error) => {
                        tracing::error!(client = self.client_id, %error, "no Kafka producer with the new login");
                    }
                }
                return;
            }
            if !waits(&current) {
                return;
            }
            current.topic.clone()
        };
        let kafka = self.kafka.clone();
        let asked = tokio::task::spawn_blocking(move || take_records(&kafka, &topic)).await;
        match asked {
            Ok(Ok(())) => {
                let mut current = self.current.lock();
                // Unless they have gone meanwhile.
                if !waits(&current) {
                    return;
                }
                metrics::counter!("kith_producer_replacements_total", "client" => self.client_id.clone()).increment(1);
                tracing::error!(
                    client = self.client_id,
                    "records wait though the brokers would take them: another producer takes their place"
                );
                if let Err(error) = self.replace(&mut current) {
                    tracing::error!(client = self.client_id, %error, "another Kafka producer could not be made");
                }
            }
            Ok(Err(why)) => tracing::warn!(client = self.client_id, why, "records wait for the brokers"),
            Err(error) => tracing::error!(client = self.client_id, %error, "the brokers could not be asked"),
        }
    }
}

async fn watch(inner: Weak<Inner>, every: Duration, standstill: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.look(standstill).await;
    }
}

/// Whether every partition of a topic has a leader and enough copies; what is the matter otherwise. Blocks.
fn take_records(kafka: &Kafka, topic: &str) -> Result<(), String> {
    let client = admin::client(kafka).map_err(|e| e.to_string())?;
    let found = client.inner().fetch_metadata(Some(topic), DEADLINE).map_err(|e| e.to_string())?;
    let partitions = found.topics().iter().find(|t| t.name() == topic).map_or(&[][..], |t| t.partitions());
    if partitions.is_empty() {
        return Err(format!("topic {topic} is not there"));
    }
    let short =
        |p: &&MetadataPartition| p.error().is_some() || p.leader() < 0 || p.isr().len() < kafka.min_insync as usize;
    match partitions.iter().find(short) {
        None => Ok(()),
        Some(partition) => Err(format!("partition {} of topic {topic} takes no records", partition.id())),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    use super::*;
    use crate::admin::Topic;

    fn brokers() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Kafka) {
        let brokers = MockCluster::new(1).unwrap();
        brokers.create_topic("log", 1, 1).unwrap();
        let bootstrap = brokers.bootstrap_servers();
        (brokers, Kafka { bootstrap, tls: None, sasl: None, replication_factor: 1, min_insync: 1 })
    }

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
        let (brokers, kafka) = brokers();
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_has_no_right_yet_goes_on_when_it_gets_one() {
        let (brokers, kafka) = brokers();
        let (every, standstill) = (Duration::from_millis(50), Duration::from_millis(500));
        let topic = Topic { name: "log".to_owned(), partitions: 1, retention: None, settings: Vec::new() };
        let all = async {
            brokers.topic_error("log", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
            let hidden = admin::ensure_topic(&kafka, &topic).await.unwrap_err();
            assert!(matches!(hidden, admin::TopicError::Client(_)), "{hidden}");
            brokers.topic_error("log", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
            admin::ensure_topic(&kafka, &topic).await.unwrap();
            // Refused before it has an id the client ends for good; a refused record is reported.
            let cluster = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 2];
            brokers.request_errors(RDKafkaApiKey::InitProducerId, &cluster);
            let producer = Supervised::watched(&kafka, "test", every, standstill).unwrap();
            assert!(deliver(&producer, b"1").await > 0, "the refusal was seen");
            let record = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 2];
            brokers.request_errors(RDKafkaApiKey::Produce, &record);
            assert!(deliver(&producer, b"2").await > 0, "the refusal was seen");
            assert_eq!(deliver(&producer, b"3").await, 0, "and is over");
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_that_wait_though_the_brokers_are_well_are_given_up_and_the_next_producer_takes_them() {
        let (brokers, kafka) = brokers();
        let (every, standstill) = (Duration::from_millis(50), Duration::from_millis(500));
        let producer = Supervised::watched(&kafka, "test", every, standstill).unwrap();
        let all = async {
            assert_eq!(deliver(&producer, b"1").await, 0);
            // The client would try again for minutes.
            let never = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 1_000];
            brokers.request_errors(RDKafkaApiKey::Produce, &never);
            let waiting = producer.send(&record(b"2")).unwrap();
            assert!(matches!(waiting.await, Err(ProduceError::Undelivered(_))));
            brokers.clear_request_errors(RDKafkaApiKey::Produce);
            deliver(&producer, b"2").await;
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_reported_does_not_wait_however_late_its_sender_looks() {
        let (_brokers, kafka) = brokers();
        let producer = Supervised::new(&kafka, "test").unwrap();
        let deliveries: Vec<_> = (0..10).map(|n| producer.send(&record(&[n])).unwrap()).collect();
        let waits = || producer.0.current.lock().producer.silent_for(Instant::now());
        let reported = async || waits() == Duration::ZERO;
        kith_testing::eventually("every record to be reported", Duration::from_secs(60), reported).await.unwrap();
        for delivery in deliveries {
            delivery.await.unwrap();
        }
    }
}
