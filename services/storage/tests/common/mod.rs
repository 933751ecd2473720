//! Storage instances in this process, over a real engine and a real event log.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::{io::Write, net::SocketAddr, path::PathBuf, time::Duration};

use kith_kit::{
    admin::Readiness,
    config::{Auth, Cluster, Config, Durability, Instance, Limits, Service, Services},
    storage::Storage,
    testing::{KafkaBroker, ValkeyCluster, ValkeyOptions, eventually},
};
use kith_proto::{
    chat::v1::{Draft, MessageType},
    storage::v1::{AppendRequest, UserUpdate},
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

/// A running instance.
pub struct Running {
    pub address: String,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<Result<(), kith_storage::Error>>,
}

impl Platform {
    pub async fn start(shards: usize, replicas: usize) -> Self {
        let options = ValkeyOptions { shards, replicas, library: Some(kith_storage::LIBRARY.to_owned()), ..ValkeyOptions::default() };
        let (valkey, kafka) = tokio::join!(ValkeyCluster::start(options), KafkaBroker::start());
        let (valkey, kafka) = (valkey.unwrap(), kafka.unwrap());
        let dir = TempDir::new().unwrap();
        let endpoints = format!("file:{}", dir.path().join("storage").display());
        std::fs::write(dir.path().join("storage"), "").unwrap();
        let service = |endpoints: &str| Service { endpoints: endpoints.to_owned() };
        let config = Config {
            cluster: Cluster { name: "test".to_owned(), uid: "uid-1".to_owned(), partitions: PARTITIONS, event_partitions: EVENT_PARTITIONS },
            services: Services { storage: service(&endpoints), sessions: service("static:127.0.0.1:1") },
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise: SocketAddr = listener.local_addr().unwrap();
        let (readiness, shutdown) = (Readiness::default(), CancellationToken::new());
        readiness.expect("start");
        let run = kith_storage::run(self.config.clone(), Instance { advertise }, listener, readiness.clone(), shutdown.clone());
        let task = tokio::spawn(run);
        readiness.ready("start");
        eventually("the instance to be ready", READY, async || readiness.is_ready()).await.unwrap();
        let address = advertise.to_string();
        self.list(|lines| lines.push(address.clone()));
        Running { address, shutdown, task }
    }

    /// Takes an instance out of the file.
    pub fn unlist(&self, address: &str) {
        self.list(|lines| lines.retain(|l| l != address));
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

impl Running {
    /// Ends it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

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
        privileged: false,
    }
}
