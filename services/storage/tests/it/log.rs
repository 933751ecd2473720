//! The event log's side of storage: a Kafka client that fails for good takes no event with it.

use std::time::Duration;

use crate::common::{EVENT_PARTITIONS, PARTITIONS, Platform, events, text, user};
use kith_contract::events::Kind;
use kith_proto::storage::v1::OpenDirectRequest;
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_in_order_when_the_producer_has_failed_for_good() {
    let mut platform = Platform::start(1, 1).await;
    let brokers = MockCluster::new(1).unwrap();
    brokers.create_topic("test.events", EVENT_PARTITIONS as i32, 1).unwrap();
    platform.config.kafka.as_mut().unwrap().bootstrap = brokers.bootstrap_servers();
    // Its login is refused once: fatal to an idempotent producer before it has sent anything.
    brokers.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED],
    );
    let instance = platform.instance().await;
    let client = platform.client().await;
    client.upsert_users(vec![user("a"), user("b")]).await.unwrap();
    let open = OpenDirectRequest { user_a: "a".to_owned(), user_b: "b".to_owned() };
    let id = client.open_direct(open).await.unwrap().conversation_id;
    let partition = kith_contract::ids::partition_of(&id, PARTITIONS);

    let (rounds, sends) = (3, 20);
    for round in 0..rounds {
        for send in 0..sends {
            if send == sends / 2 {
                let desynchronized = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
                brokers.request_errors(RDKafkaApiKey::Produce, &desynchronized);
            }
            client.append(text(&id, "a", &format!("{round}-{send}"), "hi")).await.unwrap();
        }
        let told = (round + 1) * sends;
        let messages = |found: &crate::common::Events| {
            found.values().filter(|(kind, _)| kind == Kind::MessageCreated.ce_type()).count() == told
        };
        let found = events(&platform, LIMIT, messages).await;
        let vers: Vec<u64> = found.keys().filter(|(p, _)| *p == partition).map(|(_, ver)| *ver).collect();
        assert_eq!(vers, (1..=vers.len() as u64).collect::<Vec<_>>(), "no version is missing");
    }
    instance.stop().await;
}
