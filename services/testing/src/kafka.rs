//! One Kafka broker (KRaft, combined with its controller) on 127.0.0.1.

use std::{path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{POLL, Process, TestError, bin_dir, free_port};
use kith_kit::config::Kafka;

/// A JVM on a busy machine takes its time.
const START_DEADLINE: Duration = Duration::from_secs(90);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// How a broker's code is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Once and quickly.
    #[default]
    Quick,
    /// As in production: slow for its first minute, then at its best.
    Full,
}

/// A running broker; its data outlives its process, not its value.
pub struct KafkaBroker {
    port: u16,
    jit: Jit,
    dir: TempDir,
    process: Process,
}

impl KafkaBroker {
    /// Starts it and waits until it listens. Its code is compiled once and quickly: for a short life.
    pub async fn start() -> Result<Self, TestError> {
        Self::start_with(Jit::Quick).await
    }

    /// The same, with its compiler as `jit` says.
    pub async fn start_with(jit: Jit) -> Result<Self, TestError> {
        let dir = TempDir::with_prefix("kith-kafka-").map_err(TestError::io("temporary folder"))?;
        let (port, controller) = (free_port(), free_port());
        let file = dir.path().join("server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\nnum.partitions=1\nauto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nnum.network.threads=2\nnum.io.threads=2\nbackground.threads=2\n",
            dir.path().join("data").display(),
        );
        std::fs::write(&file, text).map_err(TestError::io(file.display().to_string()))?;
        let process = spawn(&dir, port, jit)?;
        let mut broker = Self { port, jit, dir, process };
        broker.listens().await?;
        Ok(broker)
    }

    /// `host:port`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What a service's configuration says about it.
    pub fn config(&self) -> Kafka {
        Kafka { bootstrap: self.bootstrap(), tls: None, sasl: None, replication_factor: 1, min_insync: 1 }
    }

    /// Its process, for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it in order; the data stay.
    pub async fn stop(&mut self) -> Result<(), TestError> {
        self.process.stop(STOP_GRACE).await
    }

    /// Starts it again on its own data and port.
    pub async fn restart(&mut self) -> Result<(), TestError> {
        self.stop().await?;
        self.process = spawn(&self.dir, self.port, self.jit)?;
        self.listens().await
    }

    async fn listens(&mut self) -> Result<(), TestError> {
        let end = tokio::time::Instant::now() + START_DEADLINE;
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if !self.process.is_running() || tokio::time::Instant::now() > end {
                return Err(self.process.too_long("Kafka to listen"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn spawn(dir: &TempDir, port: u16, jit: Jit) -> Result<Process, TestError> {
    let file: PathBuf = dir.path().join("server.properties");
    let mut command = Command::new(bin_dir().join("kafka-server"));
    command
        .arg(file)
        .env("KAFKA_HEAP_OPTS", "-Xmx256m -Xms128m")
        .env("KAFKA_JIT_LEVEL", if jit == Jit::Quick { "1" } else { "4" })
        .env("KAFKA_LOG_LEVEL", "warn")
        .env("KAFKA_CLUSTER_ID", "a2l0aC10ZXN0LWJyb2tlcg");
    Process::spawn(format!("kafka:{port}"), command, &dir.path().join("kafka.log"))
}
