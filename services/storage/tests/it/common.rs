//! Storage instances in this process, over a real engine and a real event log.

#![allow(unreachable_pub)]

use std::{collections::BTreeMap, io::Write, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use kith_clients::storage::Storage;
use kith_eventlog::client_config;
use kith_kit::{
    config::{Auth, Cluster, Config, Durability, Instance, Limits, Services},
    readiness::Readiness,
};
use kith_proto::{
    chat::v1::{Draft, MessageType},
    storage::v1::{AppendRequest, UserUpdate},
};
use kith_testing::{KafkaBroker, Process, ValkeyCluster, ValkeyOptions, eventually, free_port};
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    message::Headers as _,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const PARTITIONS: u32 = 64;
pub const EVENT_PARTITIONS: u32 = 4;
const READY: Duration = Duration::from_secs(30);

/// An engine, an event log and the file in which ready instances stand.
pub struct Platform {
    pub valkey: ValkeyCluster,
    pub kafka: KafkaBroker,
    pub config: Config,
    dir: TempDir,
}

/// An instance and what it says of itself.
pub struct Starting {
    pub running: Running,
    pub readiness: Readiness,
}

/// A running instance.
pub struct Running {
    pub address: String,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<(), kith_storage::Error>>,
}

impl Platform {
    pub async fn start(shards: usize, replicas: usize) -> Self {
        let options = ValkeyOptions {
            shards,
            replicas,
            library: Some(kith_storage::LIBRARY.to_owned()),
            ..ValkeyOptions::default()
        };
        let (valkey, kafka) = tokio::join!(ValkeyCluster::start(options), KafkaBroker::start());
        let (valkey, kafka) = (valkey.unwrap(), kafka.unwrap());
        let dir = TempDir::new().unwrap();
        let endpoints = format!("file:{}", dir.path().join("storage").display());
        std::fs::write(dir.path().join("storage"), "").unwrap();
        let config = Config {
            cluster: Cluster {
                name: "test".to_owned(),
                uid: "uid-1".to_owned(),
                partitions: PARTITIONS,
                event_partitions: EVENT_PARTITIONS,
            },
            services: Services::all(|_| endpoints.clone()),
            tls: None,
            valkey: Some(valkey.config()),
            kafka: Some(kafka.config()),
            auth: Auth { keys_dir: PathBuf::from("/nonexistent"), token_ttl_s: 60 },
            durability: Durability::default(),
            limits: Limits::default(),
            gateway: None,
        };
        Self { valkey, kafka, config, dir }
    }

    /// Starts an instance; once it is ready it stands in the file.
    pub async fn instance(&self) -> Running {
        let Starting { running, readiness } = self.starting().await;
        eventually("the instance to be ready", READY, async || readiness.is_ready()).await.unwrap();
        self.list(|lines| lines.push(running.address.clone()));
        running
    }

    /// Starts an instance that may never be ready.
    pub async fn starting(&self) -> Starting {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise: SocketAddr = listener.local_addr().unwrap();
        let (readiness, shutdown) = (Readiness::default(), CancellationToken::new());
        readiness.expect("start");
        let run = kith_storage::run(
            self.config.clone(),
            Instance { advertise },
            listener,
            readiness.clone(),
            shutdown.clone(),
        );
        let task = tokio::spawn(run);
        readiness.ready("start");
        Starting { running: Running { address: advertise.to_string(), shutdown, task }, readiness }
    }

    /// Starts an instance as a process of its own: this test binary, asked to run `instance_process` alone. It is listed once it is ready.
    pub async fn process(&self) -> InstanceProcess {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let (config, ready) =
            (self.dir.path().join(format!("{port}.json")), self.dir.path().join(format!("{port}.ready")));
        std::fs::write(&config, serde_json::to_vec(&self.config).unwrap()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "faults::instance_process", "--nocapture"])
            .env(ADDRESS, &address)
            .env(CONFIG, &config)
            .env(READY_FILE, &ready);
        let process =
            Process::spawn(format!("storage:{port}"), command, &self.dir.path().join(format!("{port}.log"))).unwrap();
        eventually("the instance process to be ready", READY, async || ready.exists()).await.unwrap();
        self.list(|lines| lines.push(address.clone()));
        InstanceProcess { address, process }
    }

    /// Takes an instance out of the file.
    pub fn unlist(&self, address: &str) {
        self.list(|lines| lines.retain(|l| l != address));
    }

    /// Puts an instance back into the file.
    pub fn relist(&self, address: &str) {
        self.list(|lines| lines.push(address.to_owned()));
    }

    fn list(&self, change: impl FnOnce(&mut Vec<String>)) {
        let path = self.dir.path().join("storage");
        let mut lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        change(&mut lines);
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        file.write_all(lines.join("\n").as_bytes()).unwrap();
        file.persist(path).unwrap();
    }

    /// A client that has seen an instance.
    pub async fn client(&self) -> Storage {
        let client = Storage::new(&self.config, CancellationToken::new()).unwrap();
        client.discovered().await;
        client
    }
}

/// An instance in a process of its own.
pub struct InstanceProcess {
    pub address: String,
    pub process: Process,
}

const ADDRESS: &str = "KITH_TEST_ADDRESS";
const CONFIG: &str = "KITH_TEST_CONFIG";
const READY_FILE: &str = "KITH_TEST_READY";

/// The body of the test `instance_process`: serves when it was started by [`Platform::process`], else does nothing.
pub async fn serve_if_asked() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    kith_kit::telemetry::init_tracing();
    let config = Config::load(std::env::var(CONFIG).unwrap()).unwrap();
    let listener = TcpListener::bind(&address).await.unwrap();
    let readiness = Readiness::default();
    readiness.expect("start");
    let shutdown = kith_kit::shutdown::on_signal().unwrap();
    let instance = Instance { advertise: address.parse().unwrap() };
    let run = tokio::spawn(kith_storage::run(config, instance, listener, readiness.clone(), shutdown));
    readiness.ready("start");
    eventually("readiness", READY, async || readiness.is_ready()).await.unwrap();
    std::fs::write(std::env::var(READY_FILE).unwrap(), "").unwrap();
    run.await.unwrap().unwrap();
}

impl Running {
    /// Ends it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Every record of the event log until `done` says that all are there: kind and data by partition and version.
pub async fn events(platform: &Platform, limit: Duration, done: impl Fn(&Events) -> bool) -> Events {
    let consumer: StreamConsumer =
        client_config(platform.config.kafka.as_ref().unwrap()).unwrap().set("group.id", "test").create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..EVENT_PARTITIONS {
        list.add_partition_offset("test.events", partition as i32, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut found = Events::new();
    let end = tokio::time::Instant::now() + limit;
    while !done(&found) {
        let record = tokio::time::timeout_at(end, consumer.recv())
            .await
            .unwrap_or_else(|_| panic!("{} events came", found.len()))
            .unwrap();
        let text = |h: rdkafka::message::Header<'_, &[u8]>| {
            (h.key.to_owned(), String::from_utf8(h.value.unwrap().to_vec()).unwrap())
        };
        let headers: BTreeMap<String, String> = record.headers().unwrap().iter().map(text).collect();
        if !headers.contains_key("ce_kithver") {
            // A repair's marker.
            continue;
        }
        let (partition, ver) =
            (headers["ce_kithpartition"].parse::<u32>().unwrap(), headers["ce_kithver"].parse().unwrap());
        assert_eq!(headers["ce_id"], format!("{partition}-{ver}"));
        assert_eq!(partition, kith_contract::ids::partition_of(&headers["ce_partitionkey"], PARTITIONS));
        assert_eq!(record.partition() as u32, partition % EVENT_PARTITIONS);
        let data: serde_json::Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
        let event = (headers["ce_type"].clone(), data);
        let before = found.insert((partition, ver), event.clone());
        assert!(before.is_none_or(|b| b == event), "a version is told in two ways: {partition}-{ver}");
    }
    found
}

/// Events by partition and version.
pub type Events = BTreeMap<(u32, u64), (String, serde_json::Value)>;

pub fn user(id: &str) -> UserUpdate {
    UserUpdate { user_id: id.to_owned(), nickname: Some(id.to_uppercase()), ..UserUpdate::default() }
}

pub fn text(conversation_id: &str, sender: &str, client_msg_id: &str, text: &str) -> AppendRequest {
    AppendRequest {
        conversation_id: conversation_id.to_owned(),
        draft: Some(Draft {
            client_msg_id: client_msg_id.to_owned(),
            sender_id: sender.to_owned(),
            r#type: MessageType::Text as i32,
            content: serde_json::json!({"text": text}).to_string().into(),
            ..Draft::default()
        }),
        ..AppendRequest::default()
    }
}
