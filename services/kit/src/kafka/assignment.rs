//! The partitions that a consumer holds now: their order, their workers, their commits, and what happens when they come and go.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Message},
    types::RDKafkaRespErr,
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    consumer::{ConsumerError, Decoded, Event, Handler, Subscription, Ticket, Work, decode, work},
    sequence::{HighWater, Inflight, Sequencer, Verdict},
};

/// Events that wait for a partition's worker; more pauses the partition.
const INBOX: usize = 1_024;
/// Between two commits, and two looks at gaps.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// What a revoked partition may take to finish what it has in hand: the whole group waits for it.
const REVOKE_GRACE: Duration = Duration::from_millis(500);
const REVOKE_POLL: Duration = Duration::from_millis(2);
/// Reading committed offsets and their metadata at an assignment.
const COMMITTED_DEADLINE: Duration = Duration::from_secs(3);
const COMMITTED_TRIES: u32 = 3;

type GroupConsumer<H> = BaseConsumer<GroupContext<H>>;

/// One assigned partition.
struct Partition {
    sequencer: Sequencer<Event>,
    work: Arc<Work>,
    inbox: mpsc::Sender<Event>,
    /// Released events that found the inbox full.
    stash: VecDeque<Event>,
    paused: bool,
}

/// All assigned partitions, used by the polling thread alone.
pub(super) struct Assignments<H> {
    subscription: Subscription,
    handler: Arc<H>,
    runtime: Handle,
    partitions: HashMap<i32, Partition>,
    released: Vec<Event>,
    kept: Instant,
}

impl<H: Handler> Assignments<H> {
    pub(super) fn new(subscription: Subscription, handler: Arc<H>, runtime: Handle) -> Self {
        let (partitions, released, kept) = (HashMap::new(), Vec::new(), Instant::now());
        Self { subscription, handler, runtime, partitions, released, kept }
    }

    /// Takes in one record.
    pub(super) fn receive(
        &mut self,
        consumer: &GroupConsumer<H>,
        message: &BorrowedMessage<'_>,
    ) -> Result<(), ConsumerError> {
        let (number, offset) = (message.partition(), message.offset());
        let Some(partition) = self.partitions.get_mut(&number) else {
            tracing::warn!(partition = number, offset, "record of a partition that is not assigned: left to its owner");
            return Ok(());
        };
        let decoded = decode(message);
        let place = decoded.as_ref().ok().and_then(|d| d.place);
        if !partition.work.inflight.lock().begin(offset, place.map(|p| (p.stream, p.ver))) {
            return Ok(());
        }
        let ticket = Ticket::new(partition.work.clone(), offset);
        let outcome = match decoded {
            Err(poison) => {
                tracing::error!(topic = self.subscription.topic, partition = number, offset, %poison, "record skipped: it can never be read");
                ticket.done();
                "poison"
            }
            Ok(Decoded { kind, key, data, place, .. }) => {
                let ver = place.map(|p| (p.stream, p.ver));
                let event = Event { kind, key, data, partition: number, ver, ticket: ticket.clone() };
                match place {
                    None => {
                        self.released.push(event);
                        "taken"
                    }
                    Some(place) => match partition.sequencer.offer(Instant::now(), place, event, &mut self.released) {
                        Verdict::Taken => "taken",
                        Verdict::Held => "held",
                        Verdict::Duplicate => {
                            ticket.done();
                            "duplicate"
                        }
                        Verdict::WentBack => {
                            tracing::error!(
                                topic = self.subscription.topic,
                                partition = number,
                                offset,
                                kith_partition = place.stream,
                                ver = place.ver,
                                "the count of a kith partition went back: acknowledged data may be lost; see `kith repair`"
                            );
                            ticket.done();
                            "went_back"
                        }
                    },
                }
            }
        };
        metrics::counter!("kith_consumer_records_total", "group" => self.subscription.group.clone(), "outcome" => outcome).increment(1);
        self.hand_over(consumer, number)
    }

    /// Gives released events to the partition's worker; what finds no room waits, and the partition pauses.
    fn hand_over(&mut self, consumer: &GroupConsumer<H>, number: i32) -> Result<(), ConsumerError> {
        let Some(partition) = self.partitions.get_mut(&number) else { return Ok(()) };
        partition.stash.extend(self.released.drain(..));
        while let Some(event) = partition.stash.pop_front() {
            match partition.inbox.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    partition.stash.push_front(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(ConsumerError::Worker(number)),
            }
        }
        let full = !partition.stash.is_empty();
        if full != partition.paused {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.subscription.topic, number);
            if full {
                consumer.pause(&list)?;
            } else {
                consumer.resume(&list)?;
            }
            partition.paused = full;
        }
        Ok(())
    }

    /// Housekeeping after each round of polling: room for stashed events, and at intervals gaps and commits.
    pub(super) fn keep(&mut self, consumer: &GroupConsumer<H>) -> Result<(), ConsumerError> {
        let waiting: Vec<i32> = self.partitions.iter().filter(|(_, p)| !p.stash.is_empty()).map(|(n, _)| *n).collect();
        for number in waiting {
            self.hand_over(consumer, number)?;
        }
        let now = Instant::now();
        if now.duration_since(self.kept) < COMMIT_EVERY {
            return Ok(());
        }
        self.kept = now;
        self.expire(consumer, now)?;
        let all: Vec<i32> = self.partitions.keys().copied().collect();
        self.commit(consumer, &all);
        let (open, held) = self
            .partitions
            .values()
            .fold((0, 0), |(open, held), p| (open + p.work.inflight.lock().len(), held + p.sequencer.held()));
        metrics::gauge!("kith_consumer_open_events", "group" => self.subscription.group.clone()).set(open as f64);
        metrics::gauge!("kith_consumer_held_events", "group" => self.subscription.group.clone()).set(held as f64);
        Ok(())
    }

    fn expire(&mut self, consumer: &GroupConsumer<H>, now: Instant) -> Result<(), ConsumerError> {
        let held: Vec<i32> = self.partitions.iter().filter(|(_, p)| p.sequencer.held() > 0).map(|(n, _)| *n).collect();
        for number in held {
            let Some(partition) = self.partitions.get_mut(&number) else { continue };
            for gap in partition.sequencer.expire(now, &mut self.released) {
                metrics::counter!("kith_consumer_gaps_total", "group" => self.subscription.group.clone()).increment(1);
                tracing::error!(
                    topic = self.subscription.topic,
                    partition = number,
                    kith_partition = gap.stream,
                    missing = gap.missing,
                    resumed = gap.resumed,
                    "events are missing from the log: going on without them; see `kith repair`"
                );
            }
            self.hand_over(consumer, number)?;
        }
        Ok(())
    }

    /// Hands commits over; a failure is told to the callback and repeated with the next progress.
    fn commit(&mut self, consumer: &GroupConsumer<H>, numbers: &[i32]) {
        let mut list = TopicPartitionList::new();
        for number in numbers {
            let Some(partition) = self.partitions.get(number) else { continue };
            let mut inflight = partition.work.inflight.lock();
            let Some((next, high_water)) = inflight.commit_point() else { continue };
            let metadata = high_water.encode();
            let mut entry = list.add_partition(&self.subscription.topic, *number);
            if let Err(error) = entry.set_offset(Offset::Offset(next)) {
                tracing::error!(partition = number, next, %error, "offset cannot be committed");
                continue;
            }
            entry.set_metadata(metadata);
            inflight.committed(next);
        }
        if list.count() > 0
            && let Err(error) = consumer.commit(&list, CommitMode::Async)
        {
            self.commit_failed(&list, &error);
        }
    }

    fn commit_failed(&self, list: &TopicPartitionList, error: &KafkaError) {
        metrics::counter!("kith_consumer_commit_failures_total", "group" => self.subscription.group.clone())
            .increment(1);
        tracing::warn!(topic = self.subscription.topic, %error, "offsets were not committed; the next commit covers them");
        for entry in list.elements() {
            if let Some(partition) = self.partitions.get(&entry.partition()) {
                partition.work.inflight.lock().uncommitted();
            }
        }
    }

    /// Starts workers for new partitions and assigns them from their committed offsets.
    fn assign(&mut self, consumer: &GroupConsumer<H>, list: &TopicPartitionList) {
        let list = committed(consumer, list);
        for entry in list.elements() {
            self.handler.assigned(entry.partition());
            let high_water = HighWater::decode(entry.metadata()).unwrap_or_default();
            let work_of = Arc::new(Work {
                inflight: Mutex::new(Inflight::new(high_water.clone())),
                stop: CancellationToken::new(),
            });
            let (inbox, events) = mpsc::channel(INBOX);
            self.runtime.spawn(work(self.handler.clone(), events, work_of.stop.clone()));
            let partition = Partition {
                sequencer: Sequencer::new(&high_water),
                work: work_of,
                inbox,
                stash: VecDeque::new(),
                paused: false,
            };
            if let Some(before) = self.partitions.insert(entry.partition(), partition) {
                before.work.stop.cancel();
            }
        }
        tracing::info!(topic = self.subscription.topic, group = self.subscription.group, partitions = ?numbers(&list), "partitions assigned");
        if let Err(error) = consumer.incremental_assign(&list) {
            tracing::error!(topic = self.subscription.topic, %error, "partitions could not be assigned");
        }
        self.count();
    }

    /// Lets partitions finish what they have in hand for a moment, commits and gives them away.
    fn revoke(&mut self, consumer: &GroupConsumer<H>, list: &TopicPartitionList) {
        let numbers = numbers(list);
        let lost = consumer.assignment_lost();
        if !lost {
            self.finish(&numbers);
            self.commit(consumer, &numbers);
        }
        for number in &numbers {
            if let Some(partition) = self.partitions.remove(number) {
                partition.work.stop.cancel();
            }
        }
        tracing::info!(topic = self.subscription.topic, group = self.subscription.group, partitions = ?numbers, lost, "partitions revoked");
        if let Err(error) = consumer.incremental_unassign(list) {
            tracing::error!(topic = self.subscription.topic, %error, "partitions could not be given away");
        }
        self.count();
    }

    /// Waits until nothing of these partitions is open but what gaps hold, at most [`REVOKE_GRACE`].
    fn finish(&self, numbers: &[i32]) {
        let end = Instant::now() + REVOKE_GRACE;
        let open = |number: &i32| {
            self.partitions
                .get(number)
                .is_some_and(|p| p.work.inflight.lock().len() > p.sequencer.held() + p.stash.len())
        };
        while numbers.iter().any(open) && Instant::now() < end {
            std::thread::sleep(REVOKE_POLL);
        }
    }

    fn count(&self) {
        metrics::gauge!("kith_consumer_partitions", "group" => self.subscription.group.clone())
            .set(self.partitions.len() as f64);
    }
}

impl<H> Drop for Assignments<H> {
    fn drop(&mut self) {
        for partition in self.partitions.values() {
            partition.work.stop.cancel();
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

/// The list with committed offsets and their metadata. Without them the broker's own commit decides where to start, and each kith
/// partition is taken from its next record on.
fn committed<H: Handler>(consumer: &GroupConsumer<H>, list: &TopicPartitionList) -> TopicPartitionList {
    for _ in 0..COMMITTED_TRIES {
        match consumer.committed_offsets(list.clone(), COMMITTED_DEADLINE) {
            Ok(found) => return found,
            Err(error) => tracing::warn!(%error, "committed offsets could not be read"),
        }
    }
    list.clone()
}

/// librdkafka's callbacks.
pub(super) struct GroupContext<H> {
    assignments: Mutex<Assignments<H>>,
    group: String,
}

impl<H: Handler> GroupContext<H> {
    pub(super) fn new(assignments: Assignments<H>) -> Self {
        Self { group: assignments.subscription.group.clone(), assignments: Mutex::new(assignments) }
    }

    pub(super) fn assignments(&self) -> &Mutex<Assignments<H>> {
        &self.assignments
    }
}

impl<H: Handler> ClientContext for GroupContext<H> {
    fn stats(&self, statistics: Statistics) {
        let partitions = statistics.topics.values().flat_map(|t| t.partitions.values());
        let lag: i64 = partitions.map(|p| p.consumer_lag.max(0)).sum();
        metrics::gauge!("kith_consumer_lag_events", "group" => self.group.clone()).set(lag as f64);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Brokers come and go; the client reconnects by itself.
        tracing::warn!(group = self.group, %error, reason, "kafka client");
    }
}

impl<H: Handler> ConsumerContext for GroupContext<H> {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let mut assignments = self.assignments.lock();
        match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => assignments.assign(consumer, list),
            _ => assignments.revoke(consumer, list),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = result {
            self.assignments.lock().commit_failed(offsets, &error);
        }
    }
}
