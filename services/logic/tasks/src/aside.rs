//! Records that are not this ChatCluster's or can never be read: counted, told now and then, and copied to a topic where a person can look
//! at them. They never hold up the records beside them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kith_contract::events::envelope::header;
use kith_eventlog::{
    admin::{Topic, ensured},
    origin::{Foreign, Stray},
    producer::{ProduceError, Record},
    supervised::Supervised,
};
use kith_kit::config::Kafka;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::pauses;

/// Copies that wait; what comes on top of them is counted alone.
const WAITING: usize = 256;
/// Attempts at one copy.
const ATTEMPTS: u32 = 5;
/// Between two log lines about foreign records; those between are counted in the next one.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// What the topic keeps.
const RETENTION: Duration = Duration::from_secs(7 * 86_400);
const RETENTION_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES: u64 = 16 << 20;

/// Where foreign records go. Cheap to clone.
#[derive(Clone)]
pub struct Aside(Arc<Inner>);

struct Inner {
    copies: mpsc::Sender<(Stray, Foreign)>,
    told: Mutex<Told>,
}

/// What the log has heard.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    silent: u64,
}

impl Told {
    /// How many were passed over in silence before this one; none while it must be silent as well.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < TELL_EVERY) {
            self.silent = self.silent.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

impl Aside {
    /// Copies to `topic`, which is made for the first of them, until `shutdown`.
    pub fn start(kafka: &Kafka, topic: String, tracker: &TaskTracker, shutdown: &CancellationToken) -> Self {
        let (copies, waiting) = mpsc::channel(WAITING);
        tracker.spawn(shutdown.clone().run_until_cancelled_owned(copy(
            kafka.clone(),
            topic,
            waiting,
            shutdown.clone(),
        )));
        Self(Arc::new(Inner { copies, told: Mutex::default() }))
    }

    /// Passes a record over. Never waits.
    pub fn put(&self, record: Stray, why: &Foreign) {
        metrics::counter!("kith_tasks_foreign_records_total", "reason" => why.reason()).increment(1);
        if let Some(silent) = self.0.told.lock().tell(Instant::now()) {
            tracing::error!(
                topic = record.topic, partition = record.partition, offset = record.offset, reason = why.reason(), %why, silent,
                "a record was set aside: see its copy on the dead-letter topic, and who may write to the event log"
            );
        }
        if self.0.copies.try_send((record, why.clone())).is_err() {
            lost("queue");
        }
    }
}

fn lost(why: &'static str) {
    metrics::counter!("kith_tasks_dead_letters_lost_total", "why" => why).increment(1);
}

async fn copy(kafka: Kafka, topic: String, mut waiting: mpsc::Receiver<(Stray, Foreign)>, shutdown: CancellationToken) {
    let Some(mut next) = waiting.recv().await else { return };
    let wanted = Topic {
        name: topic.clone(),
        partitions: 1,
        retention: Some(RETENTION),
        settings: vec![("retention.bytes", RETENTION_BYTES.to_string()), ("segment.bytes", SEGMENT_BYTES.to_string())],
    };
    if !ensured(&kafka, &wanted, &shutdown).await {
        return;
    }
    let mut backoff = pauses();
    let producer = loop {
        match Supervised::new(&kafka, "kith-tasks") {
            Ok(producer) => break producer,
            Err(error) => tracing::warn!(%error, "the client for dead letters cannot be made yet"),
        }
        backoff.pause().await;
    };
    loop {
        send(&producer, &topic, &next.0, &next.1).await;
        let Some(later) = waiting.recv().await else { return };
        next = later;
    }
}

/// Copies one record; one that cannot be copied is given up, so that the others are.
async fn send(producer: &Supervised, topic: &str, record: &Stray, why: &Foreign) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let key = text(&record.key);
    // Nobody else's word stands under the names of ours.
    let theirs = record.headers.iter().filter(|(name, _)| name != header::ERROR && !name.starts_with("kith_"));
    let mut headers: Vec<(String, String)> = theirs.map(|(name, value)| (name.clone(), text(value))).collect();
    headers.extend([
        (header::ERROR.to_owned(), format!("{}: {why}", why.reason())),
        ("kith_topic".to_owned(), record.topic.clone()),
        ("kith_partition".to_owned(), record.partition.to_string()),
        ("kith_offset".to_owned(), record.offset.to_string()),
        ("kith_data_bytes".to_owned(), record.data_bytes.to_string()),
    ]);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let copy = Record { topic, partition: Some(0), key: &key, headers: &headers, payload: &record.data };
    let mut backoff = pauses();
    for _ in 0..ATTEMPTS {
        let outcome: Result<(), ProduceError> = match producer.send(&copy) {
            Ok(delivery) => delivery.await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "a dead letter was not taken by Kafka"),
        }
        backoff.pause().await;
    }
    lost("kafka");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_foreign_records_is_told_now_and_then() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.tell(start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(told.tell(start + TELL_EVERY / 2), None);
        }
        assert_eq!(told.tell(start + TELL_EVERY), Some(1_000));
        assert_eq!(told.tell(start + TELL_EVERY * 3), Some(0));
    }
}
