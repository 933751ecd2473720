//! Login and logout events to `<cluster>.sessions`: queued here, so that a Kafka that is down holds no login up, and sent until they are
//! acknowledged. An opened session whose event found no room is announced later from the registry: its catch-up must happen.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use kith_contract::{
    events::{Plain, SessionData, envelope::Envelope},
    ids,
    json::U64,
};
use kith_eventlog::{
    admin::{Topic, ensured},
    origin::Origin,
    producer::{Delivery, ProduceError, Record},
    supervised::Supervised,
};
use kith_kit::{
    backoff::Backoff,
    config::{Cluster, Config},
};
use kith_platform::Service;
use kith_proto::chat::v1::Platform;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::registry::Session;

/// Events that wait for Kafka.
const MAX_QUEUED: usize = 100_000;
/// Events handed to the Kafka client and not acknowledged.
const MAX_INFLIGHT: usize = 1_000;
/// Pauses after a failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long the end of the process waits for Kafka.
const FLUSH: Duration = Duration::from_secs(3);

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A login.
    Opened,
    /// It came from another owner, or from before a restart.
    Resumed,
    /// A logout, or a connection that ended.
    Closed,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEvent {
    /// What.
    pub kind: Kind,
    /// Of which session.
    pub session: Session,
    /// On which gateway.
    pub gateway: Arc<str>,
    /// Unix ms.
    pub at: i64,
    /// Rises with every event of this instance; by the clock, so that the next owner of a user goes on above it. Given by the queue.
    pub ver: u64,
}

impl Kind {
    /// In the id of its event.
    fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Resumed => "resumed",
            Self::Closed => "closed",
        }
    }
}

impl SessionEvent {
    fn told(&self) -> Plain<'_> {
        let session = &self.session;
        let data = SessionData {
            user_id: Cow::Borrowed(&session.user),
            device_id: Cow::Borrowed(&session.device),
            session_id: Cow::Borrowed(&session.id),
            platform: Platform::try_from(session.platform).unwrap_or_default().known(),
            line: Cow::Borrowed(&session.line),
            gateway: Cow::Borrowed(&self.gateway),
            opened_at: session.opened_at,
            cursors: session.cursors.iter().map(|(id, seq)| (id.as_str().into(), U64(*seq))).collect(),
        };
        match self.kind {
            Kind::Opened => Plain::SessionOpened(data),
            Kind::Resumed => Plain::SessionResumed(data),
            Kind::Closed => Plain::SessionClosed(data),
        }
    }

    fn send(&self, sender: &Sender) -> Result<Delivery, String> {
        let Sender { producer, topic, source, cluster } = sender;
        let (told, name) = (self.told(), self.kind.name());
        let data = told.json();
        let id = format!("{}.{name}.{}", self.session.id, self.at);
        let time = jiff::Timestamp::from_millisecond(self.at).unwrap_or_default().to_string();
        let stream = ids::partition_of(&self.session.user, cluster.partitions);
        // Where a consumer looks for it: it checks that a record stands in its key's partition.
        let place = stream % cluster.event_partitions;
        let (partition, ver) = (stream.to_string(), self.ver.to_string());
        let envelope = Envelope {
            id: &id,
            ce_type: told.kind().ce_type(),
            source,
            time: &time,
            key: told.key(),
            cluster: &cluster.uid,
        };
        let record = Record {
            topic,
            partition: Some(place),
            key: told.key(),
            headers: &envelope.placed(&partition, &ver),
            payload: data.as_bytes(),
        };
        producer.send(&record).map_err(|e| e.to_string())
    }
}

/// Why the producer could not be set up.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The configuration or the client library.
    #[error(transparent)]
    Produce(#[from] ProduceError),
    /// No event log is configured.
    #[error("configuration: kafka: sessions need the event log")]
    NoKafka,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<SessionEvent>,
    /// Sessions whose opening found no room.
    overdue: HashSet<Arc<str>>,
    /// The `ver` that was given last.
    ver: u64,
}

/// The queue of events.
#[derive(Default)]
pub struct Publisher {
    queue: Mutex<Queue>,
    wake: Notify,
}

impl Publisher {
    /// Queues an event. Never waits.
    pub fn push(&self, mut event: SessionEvent) {
        let mut queue = self.queue.lock();
        let micros = u64::try_from(event.at).unwrap_or(0).saturating_mul(1_000);
        queue.ver = queue.ver.saturating_add(1).max(micros);
        event.ver = queue.ver;
        if event.kind == Kind::Closed && queue.overdue.remove(&event.session.id) {
            // Neither its beginning nor its end was told.
            return;
        }
        if queue.events.len() < MAX_QUEUED {
            queue.events.push_back(event);
            drop(queue);
            self.wake.notify_one();
        } else if event.kind == Kind::Closed {
            metrics::counter!("kith_sessions_events_dropped_total").increment(1);
        } else {
            queue.overdue.insert(event.session.id);
        }
    }

    /// Events that wait.
    pub fn backlog(&self) -> usize {
        let queue = self.queue.lock();
        queue.events.len() + queue.overdue.len()
    }

    fn take(&self) -> Option<SessionEvent> {
        self.queue.lock().events.pop_front()
    }

    fn put_back(&self, event: SessionEvent) {
        self.queue.lock().events.push_front(event);
    }

    /// Sessions to announce after all, when there is room again.
    fn overdue(&self) -> Vec<Arc<str>> {
        let mut queue = self.queue.lock();
        if queue.overdue.is_empty() || queue.events.len() > MAX_QUEUED / 2 {
            return Vec::new();
        }
        queue.overdue.drain().take(MAX_QUEUED / 4).collect()
    }

    /// Sends until `shutdown`, and what is left then for a moment longer. `find` makes the event of a session that is overdue.
    pub async fn run(
        &self,
        config: &Config,
        find: impl Fn(&str) -> Option<SessionEvent>,
        shutdown: CancellationToken,
    ) -> Result<(), PublishError> {
        let kafka = config.kafka.as_ref().ok_or(PublishError::NoKafka)?;
        // Until it is there events wait in the queue.
        let topic = Topic {
            name: config.sessions_topic(),
            partitions: config.cluster.event_partitions,
            retention: None,
            settings: Vec::new(),
        };
        ensured(kafka, &topic, &shutdown).await;
        let sender = Sender::new(config)?;
        let mut inflight = FuturesUnordered::new();
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut deadline = None;
        loop {
            if shutdown.is_cancelled() {
                let end = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + FLUSH);
                if (inflight.is_empty() && self.backlog() == 0) || tokio::time::Instant::now() >= end {
                    break;
                }
            }
            for event in self.overdue().iter().filter_map(|id| find(id)) {
                self.push(event);
            }
            while inflight.len() < MAX_INFLIGHT
                && let Some(event) = self.take()
            {
                inflight.push(sender.send(event));
            }
            let wait_end = async {
                match deadline {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => shutdown.cancelled().await,
                }
            };
            let outcome = tokio::select! {
                Some(outcome) = inflight.next() => outcome,
                () = self.wake.notified(), if inflight.len() < MAX_INFLIGHT => continue,
                () = wait_end => continue,
            };
            let Err((event, error)) = outcome else {
                backoff.reset();
                continue;
            };
            metrics::counter!("kith_sessions_events_failed_total").increment(1);
            tracing::warn!(%error, "a session event was not taken by Kafka: trying again");
            self.put_back(event);
            backoff.pause().await;
        }
        let left = self.backlog() + inflight.len();
        if left > 0 {
            tracing::error!(left, "session events were not taken by Kafka before the end");
        }
        Ok(())
    }
}

/// The Kafka client.
struct Sender {
    producer: Supervised,
    topic: String,
    source: String,
    cluster: Cluster,
}

impl Sender {
    fn new(config: &Config) -> Result<Self, PublishError> {
        let kafka = config.kafka.as_ref().ok_or(PublishError::NoKafka)?;
        Ok(Self {
            producer: Supervised::new(kafka, "kith-sessions")?,
            topic: config.sessions_topic(),
            source: Origin::source(&config.cluster, Service::Sessions.name()),
            cluster: config.cluster.clone(),
        })
    }

    fn send(&self, event: SessionEvent) -> impl Future<Output = Result<(), (SessionEvent, String)>> + use<> {
        let delivery = event.send(self);
        async move {
            match delivery {
                Ok(delivery) => delivery.await.map_err(|error| (event, error.to_string())),
                Err(error) => Err((event, error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, n: usize) -> SessionEvent {
        let session = Session {
            id: format!("s{n}").into(),
            user: "alice".into(),
            device: "d1".into(),
            platform: Platform::Ios as i32,
            line: "default".into(),
            opened_at: 1_790_000_000_000,
            cursors: vec![("d:alice:bob".to_owned(), 41)],
            token_issued_at: 1_789_999_999_000,
        };
        SessionEvent { kind, session, gateway: "10.0.0.9:8081".into(), at: 1_790_000_000_001, ver: 0 }
    }

    #[test]
    fn versions_rise_with_every_event_and_never_below_the_clock() {
        let publisher = Publisher::default();
        for n in 0..3 {
            publisher.push(event(Kind::Opened, n));
        }
        let given: Vec<u64> = std::iter::from_fn(|| publisher.take()).map(|e| e.ver).collect();
        assert_eq!(given, [1_790_000_000_001_000, 1_790_000_000_001_001, 1_790_000_000_001_002]);
    }

    #[test]
    fn the_data_are_what_the_contract_says() {
        let data: serde_json::Value = serde_json::from_str(&event(Kind::Opened, 1).told().json()).unwrap();
        assert_eq!(
            data,
            serde_json::json!({
                "user_id": "alice", "device_id": "d1", "session_id": "s1", "platform": "ios", "line": "default",
                "gateway": "10.0.0.9:8081", "opened_at": "1790000000000", "cursors": {"d:alice:bob": "41"},
            })
        );
    }

    #[test]
    fn a_full_queue_forgets_no_login_that_is_still_open() {
        let publisher = Publisher::default();
        for n in 0..MAX_QUEUED {
            publisher.push(event(Kind::Closed, n));
        }
        publisher.push(event(Kind::Opened, MAX_QUEUED));
        publisher.push(event(Kind::Opened, MAX_QUEUED + 1));
        publisher.push(event(Kind::Closed, MAX_QUEUED + 1));
        assert!(publisher.overdue().is_empty(), "no room yet");
        for _ in 0..=MAX_QUEUED / 2 {
            publisher.take().unwrap();
        }
        assert_eq!(publisher.overdue(), [Arc::<str>::from(format!("s{MAX_QUEUED}"))]);
    }
}
