//! The service against a real Kafka and a `sessions` written here: every message of the log once, in order, through refusals, a restart
//! of the service and one of the broker. Direct messages need no look-up, so storage stays away.
#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kith_kit::{
    admin::Readiness,
    config::{Config, Instance},
    error::Error,
    kafka::{
        admin::{Topic, ensure_topic},
        producer::{Delivery, Producer, Record},
    },
    testing::{KafkaBroker, free_port},
};
use kith_proto::sessions::v1::{
    AttachRequest, AttachResponse, DeliverRequest, DeliverResponse, KickRequest, KickResponse, QueryPresenceRequest,
    QueryPresenceResponse, SessionAckRequest, SessionAckResponse,
    deliver_response::Outcome,
    delivery::Payload,
    sessions_server::{Sessions, SessionsServer},
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 8;

/// Takes deliveries; refuses the first calls.
struct FakeSessions {
    taken: mpsc::UnboundedSender<(String, u64, Instant)>,
    refusals: Arc<AtomicU32>,
}

type Frames = Pin<Box<dyn tokio_stream::Stream<Item = Result<AttachResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Sessions for FakeSessions {
    type AttachStream = Frames;

    async fn attach(&self, _: Request<Streaming<AttachRequest>>) -> Result<Response<Frames>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    async fn deliver(&self, request: Request<DeliverRequest>) -> Result<Response<DeliverResponse>, Status> {
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::unavailable("not now").with_reason("TEST").into());
        }
        let items = request.into_inner().items;
        let outcomes = items.iter().map(|_| Outcome { delivered: 1, ..Outcome::default() }).collect();
        for item in items {
            if let Some(Payload::Messages(messages)) = item.delivery.and_then(|d| d.payload)
                && item.user_ids.iter().any(|u| u == "bob")
            {
                for message in messages.messages {
                    self.taken.send((message.conversation_id, message.seq, Instant::now())).unwrap();
                }
            }
        }
        Ok(Response::new(DeliverResponse { outcomes }))
    }

    async fn query_presence(
        &self,
        _: Request<QueryPresenceRequest>,
    ) -> Result<Response<QueryPresenceResponse>, Status> {
        Ok(Response::new(QueryPresenceResponse::default()))
    }

    async fn kick(&self, _: Request<KickRequest>) -> Result<Response<KickResponse>, Status> {
        Ok(Response::new(KickResponse::default()))
    }

    async fn ack(&self, _: Request<SessionAckRequest>) -> Result<Response<SessionAckResponse>, Status> {
        Ok(Response::new(SessionAckResponse::default()))
    }
}

struct World {
    broker: KafkaBroker,
    producer: Producer,
    config: Config,
    taken: mpsc::UnboundedReceiver<(String, u64, Instant)>,
    refusals: Arc<AtomicU32>,
}

impl World {
    async fn new() -> Self {
        let broker = KafkaBroker::start().await.unwrap();
        for name in ["demo.events", "demo.sessions"] {
            let topic = Topic { name: name.to_owned(), partitions: 4, retention: None, settings: Vec::new() };
            let made = async {
                while ensure_topic(&broker.config(), &topic).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            };
            timeout(LIMIT, made).await.unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, taken) = mpsc::unbounded_channel();
        let refusals = Arc::new(AtomicU32::new(0));
        let sessions = FakeSessions { taken: sender, refusals: refusals.clone() };
        let server = tonic::transport::Server::builder().add_service(SessionsServer::new(sessions));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut config: Config = serde_json::from_value(serde_json::json!({
            "cluster": {"name": "demo", "uid": "u-1", "partitions": PARTITIONS, "eventPartitions": 4},
            "services": {
                "storage": {"endpoints": format!("static:127.0.0.1:{}", free_port())},
                "sessions": {"endpoints": format!("static:{address}")},
            },
            "auth": {"keysDir": "/nonexistent"},
        }))
        .unwrap();
        config.kafka = Some(broker.config());
        let producer = Producer::new(&broker.config(), "test").unwrap();
        Self { broker, producer, config, taken, refusals }
    }

    fn start(&self) -> (CancellationToken, tokio::task::JoinHandle<Result<(), kith_tasks::Error>>) {
        let end = CancellationToken::new();
        let instance = Instance { advertise: "127.0.0.1:1".parse().unwrap() };
        (end.clone(), tokio::spawn(kith_tasks::run(self.config.clone(), instance, Readiness::default(), end)))
    }

    /// Publishes a message as storage does; its seq is its ver.
    async fn publish(&self, conversation: &str, seq: u64) {
        self.hand_over(conversation, seq).await.unwrap();
    }

    fn hand_over(&self, conversation: &str, seq: u64) -> Delivery {
        let partition = kith_kit::ids::partition_of(conversation, PARTITIONS);
        let data = serde_json::json!({
            "conversation_id": conversation, "seq": seq.to_string(), "message_id": format!("m{seq}"), "client_msg_id": "c",
            "sender_id": "alice", "sent_at": kith_kit::clock::now_ms().to_string(), "type": "text", "content": {"text": "hi"},
        });
        let (partition_text, ver) = (partition.to_string(), seq.to_string());
        let headers =
            [("ce_type", "dev.kith.message.created.v1"), ("ce_kithpartition", &*partition_text), ("ce_kithver", &*ver)];
        let payload = data.to_string();
        let record = Record {
            topic: "demo.events",
            partition: Some(partition % 4),
            key: conversation,
            headers: &headers,
            payload: payload.as_bytes(),
        };
        self.producer.send(&record).unwrap()
    }

    async fn expect(&mut self, conversation: &str, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            self.expect_one(conversation, seq).await;
        }
    }

    /// The next delivery; says when it was taken.
    async fn expect_one(&mut self, conversation: &str, seq: u64) -> Instant {
        let (got, at, when) = timeout(LIMIT, self.taken.recv()).await.expect("delivered in time").unwrap();
        assert_eq!((got.as_str(), at), (conversation, seq));
        when
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_delivered_once_and_in_order_through_restarts() {
    let mut world = World::new().await;
    let conversation = "d:alice:bob";
    let (end, running) = world.start();
    world.refusals.store(5, Ordering::Relaxed);
    for seq in 1..=20 {
        world.publish(conversation, seq).await;
    }
    // Sent again by a new holder: known.
    for seq in 15..=20 {
        world.publish(conversation, seq).await;
    }
    // Out of order: held until the missing one comes.
    world.publish(conversation, 22).await;
    world.publish(conversation, 21).await;
    world.expect(conversation, 1..=22).await;

    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    world.publish(conversation, 22).await;
    world.publish(conversation, 23).await;
    let (end, running) = world.start();
    world.expect(conversation, 23..=23).await;

    world.broker.restart().await.unwrap();
    for seq in 24..=30 {
        world.publish(conversation, seq).await;
    }
    world.expect(conversation, 24..=30).await;
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert!(world.taken.try_recv().is_err(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_a_second_arrive_within_milliseconds() {
    let mut world = World::new().await;
    let (end, running) = world.start();
    world.publish("d:alice:bob", 1).await;
    world.expect("d:alice:bob", 1..=1).await;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut handed = Vec::new();
    for seq in 2..=3_001 {
        tick.tick().await;
        handed.push((Instant::now(), world.hand_over("d:alice:bob", seq)));
    }
    let mut latencies = Vec::new();
    for (seq, (at, delivery)) in (2..).zip(handed) {
        delivery.await.unwrap();
        latencies.push(world.expect_one("d:alice:bob", seq).await - at);
    }
    // The first second warms the broker up.
    let mut latencies = latencies.split_off(1_000);
    latencies.sort_unstable();
    let (p50, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
    println!("Kafka to sessions at 1,000/s: p50 {p50:?}, p99 {p99:?}, max {:?}", latencies[latencies.len() - 1]);
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
}
