//! The brokers of all ChatClusters, imitated: one for a few of them, with their topics and the marks that say whose they are.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};

/// One imitated broker. Its answers are the real client library's.
pub(crate) struct Broker {
    imitation: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
}

impl Broker {
    /// Without topics.
    pub(crate) fn start() -> Self {
        let imitation = MockCluster::new(1).expect("an imitated broker");
        let producer = ClientConfig::new().set("bootstrap.servers", imitation.bootstrap_servers()).create();
        Self { imitation, producer: producer.expect("a producer") }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        self.imitation.bootstrap_servers()
    }

    /// Makes the topics of a ChatCluster as its operator would, which the imitation cannot be asked for.
    pub(crate) fn make_topics(&self, cluster: &str, uid: &str, partitions: u32) {
        let partitions = i32::try_from(partitions).expect("a small number");
        let meta = format!("{cluster}.meta");
        for (topic, partitions) in
            [(format!("{cluster}.events"), partitions), (format!("{cluster}.sessions"), partitions), (meta.clone(), 1)]
        {
            self.imitation.create_topic(&topic, partitions, 1).expect("a topic");
        }
        let mark = BaseRecord::to(&meta).partition(0).key("cluster-uid").payload(uid);
        assert!(self.producer.send(mark).is_ok(), "the mark of {cluster} is not taken");
    }

    /// Waits until all marks are written.
    pub(crate) fn flush(&self) {
        self.producer.flush(Duration::from_secs(30)).expect("all marks");
    }
}
