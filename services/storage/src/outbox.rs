//! Publishing: each partition's committed events go to the event log in version order, and are trimmed from the engine once they are there.
//!
//! A partition's task runs while it has something to publish. Events come from memory; what memory has let go of, and what an earlier
//! holder left, comes from the engine, which keeps all of it. A record that is not delivered stops its partition until it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kith_contract::events::{self, RepairMarker, envelope::Envelope};
use kith_eventlog::{
    admin::{Topic, ensured},
    origin::Origin,
    producer::{Delivery, ProduceError, Record},
    scan::Log,
    supervised::Supervised,
};
use kith_kit::{
    backoff::Backoff,
    config::{Cluster, Kafka},
};
use kith_platform::Service;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::valkey::{Backlog, Claim, Hub, Partition, Pending},
    event,
};

/// Records under way per partition before their acknowledgements are awaited.
const CHUNK: usize = 256;
const CHUNK_BYTES: u64 = 1 << 20;
/// Events that one partition keeps in memory; the rest is read back from the engine.
const KEPT_BYTES: u64 = 256 << 10;
/// The same over all partitions.
const KEPT_IN_ALL_BYTES: u64 = 16 << 20;
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// What an entry counts that an earlier holder left, until it is read.
const UNREAD_BYTES: u64 = 256;
/// Published entries that may lie untrimmed before a write takes the trim along.
const TRIM_EVERY: u64 = 32;
/// Events are kept for consumers this long.
const RETENTION: Duration = Duration::from_secs(7 * 86_400);

/// The publisher of all partitions.
pub(crate) struct Outbox {
    kafka: Kafka,
    producer: Supervised,
    topic: String,
    source: String,
    uid: String,
    origin: Origin,
    event_partitions: u32,
    bound: u64,
    backlog: AtomicU64,
    kept: AtomicU64,
    /// Whether the topic is there and right.
    ready: watch::Sender<bool>,
    end: CancellationToken,
}

impl Outbox {
    /// Kafka may be down: storage serves, and publishes when it comes.
    pub(crate) fn new(
        kafka: &Kafka,
        cluster: &Cluster,
        topic: String,
        bound: u64,
        end: CancellationToken,
    ) -> Result<Self, ProduceError> {
        let producer = Supervised::new(kafka, "kith-storage")?;
        let ready = watch::Sender::new(false);
        let wanted = Topic {
            name: topic.clone(),
            partitions: cluster.event_partitions,
            retention: Some(RETENTION),
            settings: Vec::new(),
        };
        tokio::spawn(prepare(kafka.clone(), wanted, ready.clone(), end.clone()));
        Ok(Self {
            kafka: kafka.clone(),
            producer,
            topic,
            source: Origin::source(cluster, Service::Storage.name()),
            uid: cluster.uid.clone(),
            origin: Origin::counted(cluster),
            event_partitions: cluster.event_partitions,
            bound,
            backlog: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            ready,
            end,
        })
    }

    /// The Kafka partition that holds a partition's events, among others'.
    pub(crate) fn part(&self, partition: u32) -> u32 {
        partition % self.event_partitions
    }

    /// That part of the event log.
    pub(crate) fn log(&self, partition: u32) -> Log {
        Log::new(&self.kafka, &self.topic, self.part(partition), &self.origin)
    }

    /// Writes a marker behind everything that this instance has handed over for a partition, and waits until it is on the log. Consumers
    /// pass it by: it has no version.
    pub(crate) async fn mark(&self, partition: u32, id: &str) -> Result<(), ProduceError> {
        let (key, time) = (format!("repair:{partition}"), event::rfc3339(kith_kit::clock::now_ms()));
        let envelope = Envelope {
            id,
            ce_type: events::REPAIR_MARKER,
            source: &self.source,
            time: &time,
            key: &key,
            cluster: &self.uid,
        };
        let headers = envelope.unplaced();
        // A number and a text always serialize.
        let payload = serde_json::to_string(&RepairMarker { partition, repair_id: id.into() }).unwrap_or_default();
        let marker = Record {
            topic: &self.topic,
            partition: Some(self.part(partition)),
            key: &key,
            headers: &headers,
            payload: payload.as_bytes(),
        };
        self.producer.send(&marker)?.await
    }

    /// Whether writes must wait until something is published.
    pub(crate) fn is_full(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) >= self.bound
    }

    /// A claim stands at `ver`, with so many entries of earlier holders.
    pub(crate) fn opened(
        &self,
        hub: &Arc<Hub>,
        partition: &Arc<Partition>,
        claim: &Arc<Claim>,
        ver: u64,
        entries: u64,
    ) {
        let mut backlog = partition.backlog.lock();
        let running = backlog.running;
        *backlog = Backlog { running, ..Backlog::default() };
        // Under the lock, so that a task of the claim before finds its successor.
        partition.open(claim);
        if entries == 0 {
            backlog.published = ver;
            backlog.trimmed = ver;
        } else {
            backlog.bytes = entries * UNREAD_BYTES;
            self.count(backlog.bytes, 0);
            Self::run(hub, partition, claim, &mut backlog);
        }
    }

    /// A claim has ended: its successor counts anew.
    pub(crate) fn closed(&self, partition: &Partition) {
        let mut backlog = partition.backlog.lock();
        self.count(0, backlog.bytes);
        self.kept.fetch_sub(backlog.queue_bytes, Ordering::Relaxed);
        let running = backlog.running;
        *backlog = Backlog { running, ..Backlog::default() };
    }

    /// Events are committed, in version order.
    pub(crate) fn committed(
        &self,
        hub: &Arc<Hub>,
        partition: &Arc<Partition>,
        claim: &Arc<Claim>,
        events: Vec<Pending>,
    ) {
        let mut backlog = partition.backlog.lock();
        if claim.is_over() {
            return;
        }
        for event in events {
            if event.ver <= backlog.published {
                // The task has read it from the engine already.
                continue;
            }
            let bytes = event.bytes();
            self.count(bytes, 0);
            backlog.bytes += bytes;
            backlog.queue_bytes += bytes;
            self.kept.fetch_add(bytes, Ordering::Relaxed);
            backlog.queue.push_back(event);
        }
        if backlog.queue_bytes > KEPT_BYTES || self.kept.load(Ordering::Relaxed) > KEPT_IN_ALL_BYTES {
            self.kept.fetch_sub(backlog.queue_bytes, Ordering::Relaxed);
            backlog.queue.clear();
            backlog.queue_bytes = 0;
        }
        Self::run(hub, partition, claim, &mut backlog);
    }

    /// The version up to which the next write may trim; 0: not worth it yet.
    pub(crate) fn trim(partition: &Partition) -> u64 {
        let mut backlog = partition.backlog.lock();
        if backlog.published < backlog.trimmed + TRIM_EVERY {
            return 0;
        }
        backlog.trimmed = backlog.published;
        backlog.published
    }

    fn count(&self, more: u64, less: u64) {
        let before = self.backlog.fetch_add(more, Ordering::Relaxed);
        self.backlog.fetch_sub(less, Ordering::Relaxed);
        metrics::gauge!("kith_storage_outbox_bytes").set((before + more).saturating_sub(less) as f64);
    }

    fn run(hub: &Arc<Hub>, partition: &Arc<Partition>, claim: &Arc<Claim>, backlog: &mut Backlog) {
        if !backlog.running {
            backlog.running = true;
            tokio::spawn(publish(hub.clone(), partition.clone(), claim.clone()));
        }
    }

    /// The next events in order, from memory or from the engine; and the version up to which there are no others, if there are none.
    async fn next(
        &self,
        hub: &Arc<Hub>,
        partition: &Arc<Partition>,
        claim: &Arc<Claim>,
    ) -> Result<(u64, Vec<Pending>), String> {
        let published = {
            let backlog = partition.backlog.lock();
            if backlog.queue.front().is_some_and(|e| e.ver == backlog.published + 1) {
                let mut bytes = 0;
                let fits = |e: &&Pending| {
                    bytes += e.bytes();
                    bytes <= CHUNK_BYTES
                };
                let chunk: Vec<Pending> = backlog.queue.iter().take(CHUNK).take_while(fits).cloned().collect();
                let chunk = if chunk.is_empty() { backlog.queue.front().cloned().into_iter().collect() } else { chunk };
                return Ok((backlog.published, chunk));
            }
            backlog.published
        };
        hub.outbox_entries(partition, claim, published, CHUNK, CHUNK_BYTES).await.map_err(|e| e.to_string())
    }

    /// Hands events over in order and waits for all of them; the version up to which all are delivered, and the first failure.
    async fn deliver(&self, partition: u32, events: Vec<Pending>) -> (Option<u64>, Option<ProduceError>) {
        let mut under_way = Vec::with_capacity(events.len());
        let mut failure = None;
        for pending in events {
            match self.hand_over(partition, &pending) {
                Ok(delivery) => under_way.push((pending.ver, delivery)),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let mut delivered = None;
        let mut broken = false;
        for (ver, delivery) in under_way {
            match delivery.await {
                Ok(()) if !broken => delivered = Some(ver),
                Ok(()) => {}
                Err(error) => {
                    if !broken {
                        failure = Some(error);
                    }
                    broken = true;
                }
            }
        }
        (delivered, failure)
    }

    fn hand_over(&self, partition: u32, pending: &Pending) -> Result<Delivery, ProduceError> {
        let event = match event::read(&pending.body, pending.row.clone()) {
            Ok(event) => event,
            Err(problem) => {
                // Its place must not stay empty: consumers wait for every version.
                tracing::error!(partition, ver = pending.ver, %problem, "an outbox entry cannot be read; its place is marked on the event log");
                metrics::counter!("kith_storage_outbox_corrupt_total").increment(1);
                event::corrupt()
            }
        };
        let (id, number, ver) =
            (format!("{partition}-{}", pending.ver), partition.to_string(), pending.ver.to_string());
        let (ce_type, time) = (events::type_of(&event.kind), event::rfc3339(event.at_ms));
        let envelope = Envelope {
            id: &id,
            ce_type: &ce_type,
            source: &self.source,
            time: &time,
            key: &event.key,
            cluster: &self.uid,
        };
        let headers = envelope.placed(&number, &ver);
        self.producer.send(&Record {
            topic: &self.topic,
            partition: Some(self.part(partition)),
            key: &event.key,
            headers: &headers,
            payload: &event.data,
        })
    }

    fn advance(&self, partition: &Partition, claim: &Claim, ver: u64) {
        let mut backlog = partition.backlog.lock();
        if claim.is_over() || ver <= backlog.published {
            return;
        }
        metrics::counter!("kith_storage_published_total").increment(ver - backlog.published.min(ver));
        backlog.published = ver;
        let mut freed = 0;
        while backlog.queue.front().is_some_and(|e| e.ver <= ver) {
            freed += backlog.queue.pop_front().map_or(0, |e| e.bytes());
        }
        backlog.queue_bytes -= freed;
        self.kept.fetch_sub(freed, Ordering::Relaxed);
        // What was read back from the engine is counted by share: at the end nothing is left over.
        let left = if ver >= claim.committed() { 0 } else { backlog.bytes.saturating_sub(freed.max(1)) };
        self.count(0, backlog.bytes - left);
        backlog.bytes = left;
    }

    /// Whether the task may end; decided under the lock under which it is started.
    fn finished(partition: &Partition, claim: &Claim) -> bool {
        let mut backlog = partition.backlog.lock();
        let finished = !claim.is_over() && backlog.published >= claim.committed() && backlog.queue.is_empty();
        if finished {
            backlog.running = false;
        }
        finished
    }
}

async fn publish(hub: Arc<Hub>, partition: Arc<Partition>, mut claim: Arc<Claim>) {
    let outbox = &hub.outbox;
    let mut ready = outbox.ready.subscribe();
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    loop {
        if claim.is_over() {
            let mut backlog = partition.backlog.lock();
            let Some(successor) = partition.current() else {
                backlog.running = false;
                return;
            };
            // Of this instance's own: go on under it.
            claim = successor;
        }
        if Outbox::finished(&partition, &claim) {
            return;
        }
        let go = async { ready.wait_for(|ready| *ready).await.is_ok() };
        if outbox.end.run_until_cancelled(go).await != Some(true) {
            return;
        }
        let problem = match outbox.next(&hub, &partition, &claim).await {
            Ok((ver, events)) if events.is_empty() => {
                // Nothing is stored behind what is published: an earlier holder had trimmed it.
                outbox.advance(&partition, &claim, ver);
                None
            }
            Ok((_, events)) => {
                let (delivered, failure) = outbox.deliver(partition.number, events).await;
                if let Some(ver) = delivered {
                    outbox.advance(&partition, &claim, ver);
                    backoff.reset();
                }
                failure.map(|f| f.to_string())
            }
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            tracing::warn!(partition = partition.number, %problem, "publishing stopped; it is tried again in order");
            metrics::counter!("kith_storage_publish_failures_total").increment(1);
            if outbox.end.run_until_cancelled(backoff.pause()).await.is_none() {
                return;
            }
        }
    }
}

/// Makes the topic; until it is there and right, events wait in the outbox.
async fn prepare(kafka: Kafka, topic: Topic, ready: watch::Sender<bool>, end: CancellationToken) {
    if ensured(&kafka, &topic, &end).await {
        ready.send_replace(true);
    }
}
