//! librdkafka's callbacks of a consumer: what comes and goes, what was committed, and what the library says of itself.

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};

use super::{assignment::Assignments, consumer::Handler};

/// The context of a consumer.
pub(super) struct GroupContext<H: Handler> {
    assignments: Mutex<Assignments<H>>,
    group: String,
}

impl<H: Handler> GroupContext<H> {
    pub(super) fn new(assignments: Assignments<H>) -> Self {
        Self { group: assignments.group().to_owned(), assignments: Mutex::new(assignments) }
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
        self.assignments.lock().observe(&statistics);
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
