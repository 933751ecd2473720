//! The blocking part: how far the consumers of a ChatCluster are behind its topics, from what they committed.

use std::time::Duration;

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use crate::eventlog::{Target, client_config};

/// One question; there are three for each group.
const ASK: Duration = Duration::from_secs(5);

/// A group and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Its name.
    pub(super) name: String,
    /// By partition.
    pub(super) positions: Vec<Position>,
}

/// Where a group is in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The partition.
    pub(super) partition: i32,
    /// The next event that it has to handle.
    pub(super) next: i64,
    /// The next event that will be written.
    pub(super) end: i64,
}

impl Position {
    /// Events that wait.
    pub(super) fn lag(self) -> u64 {
        u64::try_from(self.end.saturating_sub(self.next)).unwrap_or(0)
    }
}

/// Asks the brokers for these groups. Joins none and reads no event.
pub(super) fn measure(target: &Target, consumers: &[kith_platform::Consumer]) -> KafkaResult<Vec<Group>> {
    let named = |name: &str| format!("{}.{name}", target.cluster_name);
    consumers.iter().map(|of| of_group(target, named(of.group), &named(of.topic))).collect()
}

fn of_group(target: &Target, group: String, topic: &str) -> KafkaResult<Group> {
    let mut config = client_config(target);
    config.set("group.id", &group).set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create()?;
    let list = |offset: Offset| -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for partition in 0..i32::try_from(target.partitions).unwrap_or(i32::MAX) {
            list.add_partition_offset(topic, partition, offset)?;
        }
        Ok(list)
    };
    let ends = consumer.offsets_for_times(list(Offset::End)?, ASK)?;
    let begins = consumer.offsets_for_times(list(Offset::Beginning)?, ASK)?;
    let committed = consumer.committed_offsets(list(Offset::Invalid)?, ASK)?;
    let of = |list: &TopicPartitionList, partition| -> KafkaResult<Option<i64>> {
        let Some(element) = list.find_partition(topic, partition) else { return Ok(None) };
        element.error()?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    };
    let mut positions = Vec::new();
    for partition in 0..i32::try_from(target.partitions).unwrap_or(i32::MAX) {
        let Some(end) = of(&ends, partition)? else {
            return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition));
        };
        let begin = of(&begins, partition)?.unwrap_or(0);
        // What a group has never been at it begins at the first event; what has been deleted nobody waits for.
        let next = of(&committed, partition)?.unwrap_or(begin).max(begin);
        positions.push(Position { partition, next, end });
    }
    Ok(Group { name: group, positions })
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        consumer::CommitMode,
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, Producer},
    };

    use super::*;

    #[test]
    fn the_lag_is_what_was_written_and_not_committed() {
        let brokers = MockCluster::new(1).unwrap();
        for topic in ["demo.events", "demo.sessions"] {
            brokers.create_topic(topic, 2, 1).unwrap();
        }
        let target = Target { partitions: 2, ..Target::plain(brokers.bootstrap_servers()) };
        let producer: BaseProducer = client_config(&target).create().unwrap();
        for n in 0..10 {
            let record = BaseRecord::to("demo.events").partition(n % 2).key("k").payload("v");
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        let mut config = client_config(&target);
        let group: BaseConsumer = config.set("group.id", "demo.tasks").create().unwrap();
        let mut done = TopicPartitionList::new();
        done.add_partition_offset("demo.events", 1, Offset::Offset(3)).unwrap();
        group.commit(&done, CommitMode::Sync).unwrap();

        let groups = measure(&target, kith_platform::Service::Tasks.log().consumes).unwrap();
        let lags: Vec<(&str, Vec<u64>)> =
            groups.iter().map(|g| (g.name.as_str(), g.positions.iter().map(|p| p.lag()).collect())).collect();
        assert_eq!(lags, [("demo.tasks", vec![5, 2]), ("demo.tasks-login", vec![0, 0])]);
    }
}
