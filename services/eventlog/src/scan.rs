//! Reading a stretch of one partition once, from an offset to another: what was written there, in the order of the log.
//!
//! No group, no commits: whoever reads is nobody's consumer. A thread of its own polls, and waits while the reader is behind: what is in
//! memory is bounded by the channel and the library's fetch queue. A log that gives nothing for a while ends the reading with an error.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use thiserror::Error;
use tokio::sync::mpsc;

use super::{
    KafkaConfigError, SCAN_GROUP, client_config,
    origin::{Origin, Verified},
};
use kith_kit::config::Kafka;

/// Records between the polling thread and the reader.
const AHEAD: usize = 256;
/// A question about offsets.
const ANSWER: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The log gives nothing and its end is not reached.
const SILENCE: Duration = Duration::from_secs(30);

/// Why a stretch was not read.
#[derive(Debug, Error)]
pub enum ScanError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] KafkaConfigError),
    /// The client library or the broker.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The polling thread could not be started, or it ended by itself.
    #[error("the thread that reads Kafka: {0}")]
    Thread(String),
    /// Nothing came.
    #[error("Kafka partition {partition} of {topic} gave nothing for {} s; {offset} of {end} was read last", SILENCE.as_secs())]
    Silent {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// The next offset.
        offset: i64,
        /// Where the stretch ends.
        end: i64,
    },
}

/// A record of the stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// `ce_type`
    pub kind: String,
    /// Its key.
    pub key: String,
    /// `data`
    pub data: Bytes,
    /// The kith partition and its `ver`, where the record has them.
    pub place: Option<(u32, u64)>,
    /// Of its key, type and data: equal for a record that was sent twice.
    pub fingerprint: u64,
}

/// What stands at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An event of this ChatCluster.
    Record(Record),
    /// Something else.
    Unreadable {
        /// Where.
        offset: i64,
        /// Why it cannot be read.
        why: String,
    },
}

/// One partition of a topic.
#[derive(Clone)]
pub struct Log {
    kafka: Kafka,
    topic: String,
    partition: i32,
    origin: Origin,
}

impl Log {
    /// Partition `partition` of `topic`, whose own records are of `origin`.
    pub fn new(kafka: &Kafka, topic: &str, partition: u32, origin: &Origin) -> Self {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        Self { kafka: kafka.clone(), topic: topic.to_owned(), partition, origin: origin.clone() }
    }

    /// The first offset that is kept, and the one that the next record will get.
    pub async fn bounds(&self) -> Result<Range<i64>, ScanError> {
        let log = self.clone();
        // The library's call blocks.
        let found = tokio::task::spawn_blocking(move || {
            Ok::<_, ScanError>(log.consumer()?.fetch_watermarks(&log.topic, log.partition, ANSWER)?)
        })
        .await
        .map_err(|e| ScanError::Thread(e.to_string()))?;
        found.map(|(low, high)| low..high)
    }

    /// Reads the offsets of `range`.
    pub fn read(&self, range: Range<i64>) -> Result<Reading, ScanError> {
        let (found, records) = mpsc::channel(AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let (log, asked) = (self.clone(), stop.clone());
        std::thread::Builder::new()
            .name("kafka-scan".to_owned())
            .spawn(move || {
                if let Err(error) = log.poll(range, &asked, &found) {
                    // The reader has gone if this fails.
                    drop(found.blocking_send(Err(error)));
                }
            })
            .map_err(|e| ScanError::Thread(e.to_string()))?;
        Ok(Reading { records, stop })
    }

    fn consumer(&self) -> Result<BaseConsumer, ScanError> {
        let mut config = client_config(&self.kafka)?;
        config
            // Required by the library; nothing is ever committed in it.
            .set("group.id", SCAN_GROUP)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.message.max.bytes", "1048576")
            .set("fetch.wait.max.ms", "100")
            .set("socket.timeout.ms", "10000");
        Ok(config.create()?)
    }

    fn poll(
        &self,
        range: Range<i64>,
        stop: &AtomicBool,
        found: &mpsc::Sender<Result<Found, ScanError>>,
    ) -> Result<(), ScanError> {
        if range.is_empty() {
            return Ok(());
        }
        let consumer = self.consumer()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.partition, Offset::Offset(range.start))?;
        consumer.assign(&list)?;
        let (mut next, mut heard) = (range.start, Instant::now());
        while next < range.end && !stop.load(Ordering::Relaxed) {
            match consumer.poll(POLL) {
                None => {}
                // The end of the log lies behind every record of the stretch, also when the last offsets hold none.
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(
                    error @ (KafkaError::MessageConsumptionFatal(_)
                    | KafkaError::MessageConsumption(rdkafka::types::RDKafkaErrorCode::AutoOffsetReset)),
                )) => return Err(error.into()),
                // Brokers come and go; the client reconnects by itself until it has been silent for too long.
                Some(Err(error)) => tracing::debug!(topic = self.topic, %error, "kafka scan"),
                Some(Ok(message)) => {
                    next = message.offset() + 1;
                    if message.offset() >= range.end {
                        return Ok(());
                    }
                    let offset = message.offset();
                    let record = match self.origin.verify(&message) {
                        Err(foreign) => Found::Unreadable { offset, why: foreign.to_string() },
                        Ok(Verified { kind, key, data, place, fingerprint }) => {
                            let place = place.map(|p| (p.stream, p.ver));
                            Found::Record(Record { offset, kind, key, data, place, fingerprint })
                        }
                    };
                    if found.blocking_send(Ok(record)).is_err() {
                        return Ok(());
                    }
                    heard = Instant::now();
                }
            }
            if heard.elapsed() > SILENCE {
                let (topic, partition) = (self.topic.clone(), self.partition);
                return Err(ScanError::Silent { topic, partition, offset: next, end: range.end });
            }
        }
        Ok(())
    }
}

/// A stretch that is being read; dropping it ends the reading.
pub struct Reading {
    records: mpsc::Receiver<Result<Found, ScanError>>,
    stop: Arc<AtomicBool>,
}

impl Reading {
    /// The next record; none at the end of the stretch.
    pub async fn next(&mut self) -> Result<Option<Found>, ScanError> {
        self.records.recv().await.transpose()
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
