//! The service between a real Kafka, a `sessions` that takes everything and a `storage` that only knows how far it has come.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use kith_contract::events::Kind;
use kith_eventlog::{
    admin::{Topic, ensure_topic},
    client_config,
    producer::{Delivery, Producer, Record},
};
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
};
use kith_proto::{
    sessions::v1::{
        AttachRequest, AttachResponse, DeliverRequest, DeliverResponse, KickRequest, KickResponse,
        QueryPresenceRequest, QueryPresenceResponse, SessionAckRequest, SessionAckResponse,
        deliver_response::Outcome,
        delivery::Payload,
        sessions_server::{Sessions, SessionsServer},
    },
    storage::v1::{
        self as storage,
        conversations_server::{Conversations, ConversationsServer},
    },
};
use kith_rpc::error::Error;
use kith_testing::{KafkaBroker, eventually};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const LIMIT: Duration = Duration::from_secs(60);
pub const PARTITIONS: u32 = 8;
pub const EVENT_PARTITIONS: u32 = 4;

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

pub struct World {
    pub broker: KafkaBroker,
    pub producer: Producer,
    pub config: Config,
    pub taken: mpsc::UnboundedReceiver<(String, u64, Instant)>,
    pub refusals: Arc<AtomicU32>,
    /// How far storage says that every partition has come.
    pub committed: Arc<AtomicU64>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(PARTITIONS, EVENT_PARTITIONS).await
    }

    /// With so many kith partitions, and partitions of the topics.
    pub async fn with(partitions: u32, event_partitions: u32) -> Self {
        let broker = KafkaBroker::start().await.unwrap();
        for name in ["demo.events", "demo.sessions"] {
            let topic =
                Topic { name: name.to_owned(), partitions: event_partitions, retention: None, settings: Vec::new() };
            let made = async {
                while ensure_topic(&broker.config(), &topic).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            };
            timeout(LIMIT, made).await.unwrap();
        }
        let (listener, storage) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (address, storage_address) = (listener.local_addr().unwrap(), storage.local_addr().unwrap());
        let committed = Arc::new(AtomicU64::new(0));
        let server =
            tonic::transport::Server::builder().add_service(ConversationsServer::new(FakeStorage(committed.clone())));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(storage)));
        let (sender, taken) = mpsc::unbounded_channel();
        let refusals = Arc::new(AtomicU32::new(0));
        let sessions = FakeSessions { taken: sender, refusals: refusals.clone() };
        let server = tonic::transport::Server::builder().add_service(SessionsServer::new(sessions));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut config: Config = serde_json::from_value(serde_json::json!({
            "cluster": {"name": "demo", "uid": "u-1", "partitions": partitions, "eventPartitions": event_partitions},
            "services": {
                "storage": {"endpoints": format!("static:{storage_address}")},
                "sessions": {"endpoints": format!("static:{address}")},
            },
            "auth": {"keysDir": "/nonexistent"},
        }))
        .unwrap();
        config.kafka = Some(broker.config());
        let producer = Producer::new(&broker.config(), "test").unwrap();
        Self { broker, producer, config, taken, refusals, committed }
    }

    pub fn start(&self) -> (CancellationToken, tokio::task::JoinHandle<Result<(), kith_tasks::Error>>) {
        let end = CancellationToken::new();
        let instance = Instance { advertise: "127.0.0.1:1".parse().unwrap() };
        (end.clone(), tokio::spawn(kith_tasks::run(self.config.clone(), instance, Readiness::default(), end)))
    }

    /// Publishes a message as storage does; its seq is its ver.
    pub async fn publish(&self, conversation: &str, seq: u64) {
        self.hand_over(conversation, seq).await.unwrap();
    }

    pub fn hand_over(&self, conversation: &str, seq: u64) -> Delivery {
        self.committed.fetch_max(seq, Ordering::Relaxed);
        self.write(&Written::message(conversation, seq))
    }

    pub fn write(&self, written: &Written) -> Delivery {
        let headers: Vec<(&str, &str)> = written.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let record = Record {
            topic: "demo.events",
            partition: Some(written.partition),
            key: &written.key,
            headers: &headers,
            payload: written.data.as_bytes(),
        };
        self.producer.send(&record).unwrap()
    }

    /// Waits until everything that stands in a partition of the event log is committed; the metadata of that offset.
    pub async fn all_committed(&self, partition: i32) -> String {
        let mut config = client_config(&self.broker.config()).unwrap();
        config.set("group.id", "demo.tasks");
        let metadata = parking_lot::Mutex::new(String::new());
        eventually("everything to be committed", LIMIT, || async {
            let consumer: BaseConsumer = config.create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition("demo.events", partition);
            let Ok(found) = consumer.committed_offsets(list, LIMIT) else { return false };
            let Ok((_, end)) = consumer.fetch_watermarks("demo.events", partition, LIMIT) else { return false };
            let entry = found.find_partition("demo.events", partition).unwrap();
            entry.metadata().clone_into(&mut metadata.lock());
            entry.offset() == Offset::Offset(end)
        })
        .await
        .unwrap();
        metadata.into_inner()
    }

    pub async fn expect(&mut self, conversation: &str, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            self.expect_one(conversation, seq).await;
        }
    }

    /// The next delivery; says when it was taken.
    pub async fn expect_one(&mut self, conversation: &str, seq: u64) -> Instant {
        let (got, at, when) = timeout(LIMIT, self.taken.recv()).await.expect("delivered in time").unwrap();
        assert_eq!((got.as_str(), at), (conversation, seq));
        when
    }
}

/// A record as storage writes it, for tests to spoil.
#[derive(Clone)]
pub struct Written {
    pub partition: u32,
    pub key: String,
    pub headers: BTreeMap<&'static str, String>,
    pub data: String,
}

impl Written {
    pub fn message(conversation: &str, seq: u64) -> Self {
        Self::placed(PARTITIONS, EVENT_PARTITIONS, conversation, seq)
    }

    pub fn placed(partitions: u32, event_partitions: u32, conversation: &str, seq: u64) -> Self {
        let stream = kith_contract::ids::partition_of(conversation, partitions);
        let data = serde_json::json!({
            "conversation_id": conversation, "seq": seq.to_string(), "message_id": format!("m{seq}"), "client_msg_id": "c",
            "sender_id": conversation.split(':').nth(1), "sent_at": kith_kit::clock::now_ms().to_string(), "type": "text", "content": {"text": "hi"},
        });
        let headers = [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", format!("{stream}-{seq}")),
            ("ce_type", Kind::MessageCreated.ce_type().to_owned()),
            ("ce_source", "kith://demo/storage".to_owned()),
            ("ce_partitionkey", conversation.to_owned()),
            ("ce_kithcluster", "u-1".to_owned()),
            ("ce_kithpartition", stream.to_string()),
            ("ce_kithver", seq.to_string()),
        ];
        Self {
            partition: stream % event_partitions,
            key: conversation.to_owned(),
            headers: headers.into(),
            data: data.to_string(),
        }
    }

    /// With this version, wherever it stands.
    pub fn at(mut self, ver: &str) -> Self {
        let id = format!("{}-{ver}", self.headers["ce_kithpartition"]);
        self.headers.extend([("ce_kithver", ver.to_owned()), ("ce_id", id)]);
        self
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.to_owned());
        self
    }

    pub fn without(mut self, name: &'static str) -> Self {
        self.headers.remove(name);
        self
    }
}

/// Knows how far it has come, and nothing else.
struct FakeStorage(Arc<AtomicU64>);

macro_rules! refuse {
    ($($call:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Conversations for FakeStorage {
            async fn get_version(
                &self,
                _: Request<storage::GetVersionRequest>,
            ) -> Result<Response<storage::GetVersionResponse>, Status> {
                let ver = self.0.load(Ordering::Relaxed);
                Ok(Response::new(storage::GetVersionResponse { ver }))
            }

            $(
                async fn $call(&self, _: Request<storage::$request>) -> Result<Response<storage::$response>, Status> {
                    Err(Status::unimplemented("not asked for"))
                }
            )*
        }
    };
}

refuse! {
    open_direct(OpenDirectRequest) -> OpenDirectResponse;
    create_conversation(CreateConversationRequest) -> CreateConversationResponse;
    update_conversation(UpdateConversationRequest) -> UpdateConversationResponse;
    dissolve(DissolveRequest) -> DissolveResponse;
    get_conversations(GetConversationsRequest) -> GetConversationsResponse;
    list_conversations(ListConversationsRequest) -> ListConversationsResponse;
    set_list_entry(SetListEntryRequest) -> SetListEntryResponse;
    clear(ClearRequest) -> ClearResponse;
    mark_read(MarkReadRequest) -> MarkReadResponse;
    ack(AckRequest) -> AckResponse;
    list_behind(ListBehindRequest) -> ListBehindResponse;
    get_receipts(GetReceiptsRequest) -> GetReceiptsResponse;
    add_members(AddMembersRequest) -> AddMembersResponse;
    remove_members(RemoveMembersRequest) -> RemoveMembersResponse;
    update_member(UpdateMemberRequest) -> UpdateMemberResponse;
    list_members(ListMembersRequest) -> ListMembersResponse;
}
