//! The text of a committed offset's metadata, and checkpoints of high-waters that do not fit into it.
//!
//! Where a Kafka partition holds more kith partitions than [`ALWAYS_FIT`](super::highwater::ALWAYS_FIT), their marks may not fit. Then all
//! of them are written as one record to a compacted topic, and the metadata hold its fingerprint with the marks that moved since. Only the
//! record with that fingerprint is believed. Without it a kith partition's next record decides where it begins, once storage has said
//! that it has come so far.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    MARKS_GROUP, MARKS_SUFFIX,
    admin::{Topic, ensured},
    client_config,
    highwater::{HighWater, MAX_TEXT_BYTES},
    producer::Record,
    supervised::Supervised,
};
use kith_kit::{backoff::Backoff, config::Kafka};

const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Reading all checkpoints, of which compaction leaves few.
const READ_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
const SEGMENT_BYTES: u64 = 4 << 20;

/// All marks as they were when an offset could be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// None: read back; the group has committed it.
    pub(super) offset: Option<i64>,
    fingerprint: u64,
    high: HighWater,
}

/// What metadata say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    /// All marks.
    Whole(HighWater),
    /// The marks that moved since the checkpoint with this fingerprint.
    Since(u64, HighWater),
}

/// The text beside an offset: all marks, or what moved since `checkpoint`; none when neither fits.
pub(super) fn text(high: &HighWater, checkpoint: Option<&Checkpoint>) -> Option<String> {
    let fits = |text: String| (text.len() <= MAX_TEXT_BYTES).then_some(text);
    fits(format!("2;{}", high.encode())).or_else(|| {
        let checkpoint = checkpoint?;
        fits(format!("3;{:x};{}", checkpoint.fingerprint, high.moved_since(&checkpoint.high).encode()))
    })
}

impl Checkpoint {
    fn new(offset: i64, high: HighWater) -> (Self, String) {
        let text = high.encode();
        (Self { offset: Some(offset), fingerprint: xxh3_64(text.as_bytes()), high }, text)
    }

    /// The text beside its own offset, which always fits.
    pub(super) fn text(&self) -> String {
        format!("3;{:x};", self.fingerprint)
    }
}

fn read(text: &str) -> Option<Note> {
    if let Some(marks) = text.strip_prefix("2;") {
        return HighWater::decode(marks).map(Note::Whole);
    }
    if let Some((fingerprint, moved)) = text.strip_prefix("3;").and_then(|rest| rest.split_once(';')) {
        return Some(Note::Since(u64::from_str_radix(fingerprint, 16).ok()?, HighWater::decode(moved)?));
    }
    HighWater::decode_older(text).map(Note::Whole)
}

/// The checkpoints of one consumer group.
pub(super) struct Marks {
    kafka: Kafka,
    topic: String,
    producer: Mutex<Option<Supervised>>,
}

impl Marks {
    /// Its topic is made when it is first needed.
    pub(super) fn new(kafka: &Kafka, group: &str) -> Arc<Self> {
        Arc::new(Self { kafka: kafka.clone(), topic: format!("{group}{MARKS_SUFFIX}"), producer: Mutex::default() })
    }

    /// The marks that the metadata of a Kafka partition's committed offset stand for, and the checkpoint that they build on. Blocks.
    pub(super) fn restore(&self, partition: i32, metadata: &str) -> (HighWater, Option<Checkpoint>) {
        let (fingerprint, moved) = match read(metadata) {
            None => {
                if !metadata.is_empty() {
                    tracing::warn!(topic = self.topic, partition, "the metadata of a committed offset cannot be read");
                }
                return (HighWater::default(), None);
            }
            Some(Note::Whole(high)) => return (high, None),
            Some(Note::Since(fingerprint, moved)) => (fingerprint, moved),
        };
        match self.find(partition, fingerprint) {
            Ok(Some(checkpoint)) => {
                let mut high = checkpoint.high.clone();
                high.raise_to(&moved);
                (high, Some(checkpoint))
            }
            missing => {
                metrics::counter!("kith_consumer_checkpoints_missing_total", "topic" => self.topic.clone())
                    .increment(1);
                let why = missing.err().unwrap_or_else(|| "it is not there".to_owned());
                tracing::error!(
                    topic = self.topic,
                    partition,
                    why,
                    "a checkpoint of the high-water cannot be read: a gap at this restart would not be seen"
                );
                (moved, None)
            }
        }
    }

    /// Looks for the checkpoint with a fingerprint.
    fn find(&self, partition: i32, fingerprint: u64) -> Result<Option<Checkpoint>, String> {
        let end = Instant::now() + READ_DEADLINE;
        let mut config = client_config(&self.kafka).map_err(|e| e.to_string())?;
        // Required by the library; nothing is ever committed in it.
        config.set("group.id", MARKS_GROUP).set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().map_err(|e| e.to_string())?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Beginning).map_err(|e| e.to_string())?;
        consumer.assign(&list).map_err(|e| e.to_string())?;
        let (key, mut found) = (partition.to_string(), None);
        while Instant::now() < end {
            match consumer.poll(POLL) {
                None => {}
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return Ok(found),
                Some(Err(error)) => tracing::debug!(%error, "reading checkpoints"),
                Some(Ok(record)) if record.key() == Some(key.as_bytes()) => {
                    let marks = record.payload().filter(|text| xxh3_64(text) == fingerprint);
                    let marks = marks.and_then(|text| HighWater::decode(std::str::from_utf8(text).ok()?));
                    found = marks.map(|high| Checkpoint { offset: None, fingerprint, high }).or(found);
                }
                Some(Ok(_)) => {}
            }
        }
        Err("it did not come in time".to_owned())
    }

    /// Writes a checkpoint, as often as it takes until it is on the brokers or the partition has gone to another consumer.
    pub(super) async fn write(
        &self,
        partition: i32,
        offset: i64,
        high: HighWater,
        stop: &CancellationToken,
    ) -> Option<Checkpoint> {
        let (checkpoint, text) = Checkpoint::new(offset, high);
        let (key, mut backoff) = (partition.to_string(), Backoff::new(MIN_PAUSE, MAX_PAUSE));
        loop {
            let producer = self.producer(stop).await?;
            let record =
                Record { topic: &self.topic, partition: Some(0), key: &key, headers: &[], payload: text.as_bytes() };
            let outcome = match producer.send(&record) {
                Ok(delivery) => stop.run_until_cancelled(delivery).await?,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => return Some(checkpoint),
                Err(error) => {
                    tracing::warn!(topic = self.topic, partition, %error, "a checkpoint was not taken by Kafka");
                }
            }
            stop.run_until_cancelled(backoff.pause()).await?;
        }
    }

    async fn producer(&self, stop: &CancellationToken) -> Option<Supervised> {
        if let Some(producer) = self.producer.lock().clone() {
            return Some(producer);
        }
        let settings = vec![("cleanup.policy", "compact".to_owned()), ("segment.bytes", SEGMENT_BYTES.to_string())];
        let topic = Topic { name: self.topic.clone(), partitions: 1, retention: None, settings };
        if !ensured(&self.kafka, &topic, stop).await {
            return None;
        }
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        loop {
            match Supervised::new(&self.kafka, "kith-marks") {
                Ok(producer) => return Some(self.producer.lock().get_or_insert(producer).clone()),
                Err(error) => tracing::warn!(%error, "the client for checkpoints cannot be made yet"),
            }
            stop.run_until_cancelled(backoff.pause()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::highwater::ALWAYS_FIT, *};

    #[test]
    fn what_was_written_before_is_read_and_what_is_foreign_is_not() {
        assert_eq!(read("1;3.a,"), Some(Note::Whole([(3, 10)].into_iter().collect())));
        for foreign in ["", "2", "2;?", "3;", "3;zz;", "3;1", "4;", "hello"] {
            assert_eq!(read(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// For every P and K and any versions, nothing is left out: the text fits and says all, or all of it is in a checkpoint.
        #[test]
        fn no_mark_is_ever_left_out(
            partitions in (0_u32..15).prop_map(|power| 1 << power),
            event_partitions in 1_u32..64,
            spread in 1_u64..=1 << 63,
            moved in proptest::collection::vec(any::<u32>(), 0..200),
        ) {
            let event_partitions = event_partitions.min(partitions);
            let ver = |stream: u32| (u64::from(stream) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % spread;
            let mut high: HighWater =
                (0..partitions).filter(|p| p % event_partitions == 0).map(|p| (p, ver(p))).collect();
            let whole = text(&high, None);
            prop_assert!(whole.is_some() || high.len() > ALWAYS_FIT);
            let (checkpoint, written) = Checkpoint::new(7, high.clone());
            prop_assert_eq!(HighWater::decode(&written), Some(high.clone()));
            prop_assert_eq!(read(&checkpoint.text()), Some(Note::Since(checkpoint.fingerprint, HighWater::default())));
            for stream in moved {
                high.raise(stream % partitions / event_partitions * event_partitions, 1 << 63);
            }
            let mut again = match read(&text(&high, Some(&checkpoint)).expect("fits")) {
                Some(Note::Whole(high)) => high,
                Some(Note::Since(fingerprint, moved)) => {
                    prop_assert_eq!(fingerprint, checkpoint.fingerprint);
                    let mut again = checkpoint.high.clone();
                    again.raise_to(&moved);
                    again
                }
                None => HighWater::default(),
            };
            again.raise_to(&HighWater::default());
            prop_assert_eq!(again, high);
        }
    }
}
