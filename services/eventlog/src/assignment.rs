//! The partitions that a consumer holds now: their order, their workers, their commits, and what happens when they come and go.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Message},
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{
    callbacks::GroupContext,
    consumer::{ConsumerError, Event, Handler, Subscription, Ticket, Work, work},
    doubts::{Doubtful, Doubts},
    marks::{Marks, text},
    origin::{Foreign, Stray},
    sequence::{HighWater, Inflight, Place, Sequencer, Verdict},
    stalls::{Stall, Watch, position},
};

/// Events that wait for a partition's worker; more pauses the partition.
const INBOX: usize = 1_024;
/// Bytes of a partition's unfinished records; more pauses the partition.
const MAX_BYTES: usize = 16 << 20;
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
struct Partition<T> {
    sequencer: Sequencer<Event<T>>,
    work: Arc<Work>,
    inbox: mpsc::Sender<Event<T>>,
    /// Released events that found the inbox full.
    stash: VecDeque<Event<T>>,
    doubts: Doubts<T>,
    paused: bool,
}

impl<T> Partition<T> {
    /// Whether no more should come in for now.
    fn is_full(&self) -> bool {
        !self.stash.is_empty() || self.doubts.is_full() || self.is_heavy()
    }

    /// Whether unfinished records take as much memory as they may.
    fn is_heavy(&self) -> bool {
        self.work.inflight.lock().bytes() > MAX_BYTES
    }

    /// Whether they do and none of them will be finished before a gap is given up.
    fn is_stuck(&self) -> bool {
        self.is_heavy() && self.work.inflight.lock().open() <= self.sequencer.held()
    }
}

/// All assigned partitions, used by the polling thread alone.
pub(super) struct Assignments<H: Handler> {
    subscription: Subscription,
    handler: Arc<H>,
    marks: Arc<Marks>,
    runtime: Handle,
    partitions: HashMap<i32, Partition<H::Item>>,
    released: Vec<Event<H::Item>>,
    kept: Instant,
    watch: Watch,
}

impl<H: Handler> Assignments<H> {
    pub(super) fn new(
        subscription: Subscription,
        handler: Arc<H>,
        marks: Arc<Marks>,
        watch: Watch,
        runtime: Handle,
    ) -> Self {
        let (partitions, released, kept) = (HashMap::new(), Vec::new(), Instant::now());
        Self { subscription, handler, marks, runtime, partitions, released, kept, watch }
    }

    /// The consumer group.
    pub(super) fn group(&self) -> &str {
        &self.subscription.group
    }

    /// Takes in one record.
    pub(super) fn receive(
        &mut self,
        consumer: &GroupConsumer<H>,
        message: &BorrowedMessage<'_>,
    ) -> Result<(), ConsumerError> {
        let (number, offset) = (message.partition(), message.offset());
        let Some(partition) = self.partitions.get(&number) else {
            tracing::warn!(partition = number, offset, "record of a partition that is not assigned: left to its owner");
            return Ok(());
        };
        if !partition.work.inflight.lock().begin(offset, message.payload_len() + message.key_len()) {
            return Ok(());
        }
        let ticket = Ticket::new(partition.work.clone(), offset);
        let read = self.subscription.origin.verify(message).and_then(|record| {
            let item = self.handler.read(&record).map_err(Foreign::Data)?;
            Ok((record.place, item))
        });
        match read {
            Err(why) => {
                ticket.done();
                self.set_aside(Stray::of(message), &why);
            }
            Ok((place, item)) => {
                let ver = place.map(|p| (p.stream, p.ver));
                let event = Event { item, partition: number, ver, ticket };
                match place {
                    None => {
                        self.outcome("taken");
                        self.released.push(event);
                    }
                    Some(place) => self.place(number, place, event, message),
                }
            }
        }
        self.hand_over(consumer, number)
    }

    /// A record with a place in the order: offered, or asked about first.
    fn place(&mut self, number: i32, place: Place, event: Event<H::Item>, message: &BorrowedMessage<'_>) {
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        if partition.sequencer.is_plausible(place.stream, place.ver) {
            self.offer(number, place, event, || Stray::of(message));
            return;
        }
        let begins = partition.doubts.add(Doubtful { place, event, stray: Stray::of(message) });
        self.outcome("doubted");
        if begins {
            self.ask(number, place.stream);
        }
    }

    /// Asks storage how far a kith partition has come; the answer is found by [`Assignments::keep`].
    fn ask(&self, number: i32, stream: u32) {
        let Some(partition) = self.partitions.get(&number) else { return };
        let (question, work) = (self.handler.newest(stream), partition.work.clone());
        self.runtime.spawn(async move {
            if let Some(newest) = work.stop.run_until_cancelled(question).await {
                work.answers.lock().push((stream, newest));
            }
        });
    }

    /// Judges what storage has answered about.
    fn settle(&mut self, number: i32) {
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        let answers = std::mem::take(&mut *partition.work.answers.lock());
        for (stream, newest) in answers {
            let Some(partition) = self.partitions.get_mut(&number) else { return };
            partition.sequencer.reached(stream, newest);
            let settled = partition.doubts.answered(stream, newest);
            if settled.again {
                self.ask(number, stream);
            }
            for Doubtful { place, event, stray } in settled.believed {
                self.offer(number, place, event, || stray);
            }
            for Doubtful { place, event, stray } in settled.foreign {
                event.ticket.done();
                self.set_aside(stray, &Foreign::Version { stream, ver: place.ver, newest });
            }
        }
    }

    fn offer(&mut self, number: i32, place: Place, event: Event<H::Item>, stray: impl FnOnce() -> Stray) {
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        let ticket = event.ticket.clone();
        partition.work.inflight.lock().mark(ticket.offset(), place.stream, place.ver);
        let verdict = partition.sequencer.offer(Instant::now(), place, event, &mut self.released);
        match verdict {
            Verdict::Taken => self.outcome("taken"),
            Verdict::Held => self.outcome("held"),
            Verdict::Duplicate => {
                ticket.done();
                self.outcome("duplicate");
            }
            Verdict::WentBack => {
                ticket.done();
                self.outcome("went_back");
                tracing::error!(
                    topic = self.subscription.topic,
                    partition = number,
                    offset = ticket.offset(),
                    kith_partition = place.stream,
                    ver = place.ver,
                    "a version is told in two ways: one of them is foreign, or the count went back and acknowledged data may be lost; see `kith repair`"
                );
                self.handler.set_aside(stray(), &Foreign::Retold { stream: place.stream, ver: place.ver });
            }
        }
    }

    fn set_aside(&self, stray: Stray, why: &Foreign) {
        self.outcome("foreign");
        self.handler.set_aside(stray, why);
    }

    fn outcome(&self, outcome: &'static str) {
        metrics::counter!("kith_consumer_records_total", "group" => self.subscription.group.clone(), "outcome" => outcome).increment(1);
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
        let full = partition.is_full();
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

    /// What the library says of itself, at intervals: from it is found out whether it still takes records.
    pub(super) fn observe(&mut self, statistics: &Statistics) {
        let of_topic = statistics.topics.get(&self.subscription.topic);
        let place = |(number, partition): (&i32, &Partition<H::Item>)| {
            let told = of_topic.and_then(|t| t.partitions.get(number)).filter(|t| t.fetchq_cnt == 0)?;
            (!partition.paused).then_some((*number, position(told)))
        };
        let places: Vec<_> = self.partitions.iter().filter_map(place).collect();
        let settled = statistics.cgrp.as_ref().is_none_or(|group| group.join_state == "steady");
        self.watch.observe(&places, settled);
    }

    /// Housekeeping after each round of polling: room for stashed events, and at intervals gaps and commits.
    pub(super) fn keep(&mut self, consumer: &GroupConsumer<H>) -> Result<(), ConsumerError> {
        match self.watch.take() {
            None => {}
            Some(Stall::Partition(number)) => return Err(ConsumerError::Stalled(number)),
            Some(Stall::Group) => return Err(ConsumerError::Unsettled),
        }
        let answered = |p: &Partition<H::Item>| !p.work.answers.lock().is_empty();
        let waiting: Vec<i32> =
            self.partitions.iter().filter(|(_, p)| p.paused || answered(p)).map(|(n, _)| *n).collect();
        for number in waiting {
            self.settle(number);
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
            .fold((0, 0), |(open, held), p| (open + p.work.inflight.lock().open(), held + p.sequencer.held()));
        metrics::gauge!("kith_consumer_open_events", "group" => self.subscription.group.clone()).set(open as f64);
        metrics::gauge!("kith_consumer_held_events", "group" => self.subscription.group.clone()).set(held as f64);
        Ok(())
    }

    fn expire(&mut self, consumer: &GroupConsumer<H>, now: Instant) -> Result<(), ConsumerError> {
        let held: Vec<i32> = self.partitions.iter().filter(|(_, p)| p.sequencer.held() > 0).map(|(n, _)| *n).collect();
        for number in held {
            let Some(partition) = self.partitions.get_mut(&number) else { continue };
            for gap in partition.sequencer.expire(now, partition.is_stuck(), &mut self.released) {
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
            let checkpoint = partition.work.checkpoint.lock().clone();
            let (next, metadata) = match (text(high_water, checkpoint.as_ref()), checkpoint) {
                (Some(metadata), _) => (next, metadata),
                (None, checkpoint) => {
                    self.checkpoint(*number, &partition.work, next, high_water.clone());
                    // Meanwhile what the one before it covers is committed, so that there is progress however much moves.
                    let Some(checkpoint) = checkpoint else { continue };
                    let Some(offset) = checkpoint.offset.filter(|offset| inflight.is_behind(*offset)) else { continue };
                    (offset, checkpoint.text())
                }
            };
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

    /// Begins to write a checkpoint; the next commits build on it.
    fn checkpoint(&self, number: i32, work: &Arc<Work>, next: i64, high_water: HighWater) {
        if work.checkpointing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (marks, work) = (self.marks.clone(), work.clone());
        self.runtime.spawn(async move {
            if let Some(written) = marks.write(number, next, high_water, &work.stop).await {
                *work.checkpoint.lock() = Some(written);
            }
            work.checkpointing.store(false, Ordering::Release);
        });
    }

    pub(super) fn commit_failed(&self, list: &TopicPartitionList, error: &KafkaError) {
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
    pub(super) fn assign(&mut self, consumer: &GroupConsumer<H>, list: &TopicPartitionList) {
        let list = committed(consumer, list);
        for entry in list.elements() {
            self.handler.assigned(entry.partition());
            let (high_water, checkpoint) = self.marks.restore(entry.partition(), entry.metadata());
            let work_of = Arc::new(Work {
                inflight: Mutex::new(Inflight::new(high_water.clone())),
                checkpoint: Mutex::new(checkpoint),
                ..Work::default()
            });
            let (inbox, events) = mpsc::channel(INBOX);
            self.runtime.spawn(work(self.handler.clone(), events, work_of.stop.clone()));
            let partition = Partition {
                sequencer: Sequencer::new(&high_water),
                work: work_of,
                inbox,
                stash: VecDeque::new(),
                doubts: Doubts::default(),
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
        // The library remembers a pause of the partition's time here before, which nobody else would end.
        if let Err(error) = consumer.resume(&list) {
            tracing::error!(topic = self.subscription.topic, %error, "partitions could not be resumed");
        }
        self.count();
    }

    /// Lets partitions finish what they have in hand for a moment, commits and gives them away.
    pub(super) fn revoke(&mut self, consumer: &GroupConsumer<H>, list: &TopicPartitionList) {
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

    /// Waits until nothing of these partitions is open but what gaps and doubts hold, at most [`REVOKE_GRACE`].
    fn finish(&self, numbers: &[i32]) {
        let end = Instant::now() + REVOKE_GRACE;
        let open = |number: &i32| {
            self.partitions
                .get(number)
                .is_some_and(|p| p.work.inflight.lock().open() > p.sequencer.held() + p.stash.len() + p.doubts.len())
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

impl<H: Handler> Drop for Assignments<H> {
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
