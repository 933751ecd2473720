//! Valkey nodes with the settings of the platform, formed into a cluster of N shards with R replicas each.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use redis::{Value, cmd};
use tempfile::TempDir;

use super::{POLL, Process, TestError, bin_dir, free_port};
use kith_kit::{
    config::{Tls, Valkey},
    valkey::{Connection, Connector},
};

const SLOTS: usize = 16_384;
/// Starting, meeting and syncing; generous because test machines are small and shared.
const FORM_DEADLINE: Duration = Duration::from_secs(40);
const RESPONSE_DEADLINE: Duration = Duration::from_secs(2);

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct ValkeyOptions {
    /// Primaries that share the slots evenly.
    pub shards: usize,
    /// Replicas of each.
    pub replicas: usize,
    /// `always`, `everysec` or `no`.
    pub fsync: &'static str,
    /// `min-replicas-to-write`.
    pub ack_replicas: u32,
    /// A function library loaded on every primary.
    pub library: Option<String>,
    /// Certificate of the component `valkey`; the nodes speak TLS alone then, and the helpers here use the same files.
    pub tls: Option<Tls>,
    /// The ChatCluster's name, for the certificates.
    pub cluster: String,
}

impl Default for ValkeyOptions {
    fn default() -> Self {
        Self {
            shards: 1,
            replicas: 1,
            fsync: "always",
            ack_replicas: 1,
            library: None,
            tls: None,
            cluster: "test".to_owned(),
        }
    }
}

/// One Valkey node; its data outlives its process, not its value.
pub struct ValkeyNode {
    port: u16,
    bus_port: u16,
    dir: PathBuf,
    options: ValkeyOptions,
    connector: Connector,
    process: Process,
}

impl ValkeyNode {
    fn start(dir: PathBuf, options: &ValkeyOptions) -> Result<Self, TestError> {
        std::fs::create_dir_all(&dir).map_err(TestError::io(dir.display().to_string()))?;
        let (port, bus_port) = (free_port(), free_port());
        let access = Valkey { seeds: Vec::new(), username: None, password_file: None, tls: options.tls.is_some() };
        let connector = Connector::with_parts(&access, options.tls.as_ref(), &options.cluster)?;
        let process = spawn(&dir, port, bus_port, options)?;
        Ok(Self { port, bus_port, dir, options: options.clone(), connector, process })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process, for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A connection to it.
    pub async fn connect(&self) -> Result<Connection, TestError> {
        Ok(self.connector.connect(&self.address(), RESPONSE_DEADLINE).await?)
    }

    /// One command on a connection of its own.
    pub async fn command(&self, words: &[&str]) -> Result<Value, TestError> {
        let mut command = cmd(words.first().copied().unwrap_or("PING"));
        for word in words.iter().skip(1) {
            command.arg(*word);
        }
        Ok(self.connect().await?.command(&command).await?)
    }

    /// Starts it again on its own data after it was killed or stopped, and waits until it has loaded them.
    pub async fn restart(&mut self) -> Result<(), TestError> {
        self.process.kill()?;
        self.process = spawn(&self.dir, self.port, self.bus_port, &self.options)?;
        self.answers().await
    }

    /// Whether it says that it is a primary; false when it does not answer.
    pub async fn is_primary(&self) -> bool {
        matches!(self.command(&["ROLE"]).await, Ok(Value::Array(role)) if text(role.first()) == "master")
    }

    /// Its replication offset as it says itself; none when it does not answer.
    pub async fn offset(&self) -> Option<u64> {
        let info = self.info("replication").await?;
        let field =
            if info_field(&info, "role") == Some("master") { "master_repl_offset" } else { "slave_repl_offset" };
        info_field(&info, field)?.parse().ok()
    }

    async fn info(&self, section: &str) -> Option<String> {
        match self.command(&["INFO", section]).await {
            Ok(Value::BulkString(bytes)) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            _ => None,
        }
    }

    async fn is_synced(&self) -> bool {
        self.info("replication").await.is_some_and(|info| info_field(&info, "master_link_status") == Some("up"))
    }

    async fn id(&self) -> Result<String, TestError> {
        Ok(text(Some(&self.command(&["CLUSTER", "MYID"]).await?)))
    }

    async fn answers(&mut self) -> Result<(), TestError> {
        let end = tokio::time::Instant::now() + FORM_DEADLINE;
        while self.command(&["PING"]).await.is_err() {
            if !self.process.is_running() || tokio::time::Instant::now() > end {
                return Err(self.process.too_long(format!("Valkey at {} to answer", self.address())));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn spawn(dir: &Path, port: u16, bus_port: u16, options: &ValkeyOptions) -> Result<Process, TestError> {
    let mut command = Command::new(bin_dir().join("valkey-server"));
    let tls = options.tls.as_ref();
    let mut set = |name: &str, value: &str| {
        command.arg(format!("--{name}")).arg(value);
    };
    let port = port.to_string();
    match tls {
        None => set("port", &port),
        Some(files) => {
            set("port", "0");
            set("tls-port", &port);
            set("tls-cluster", "yes");
            set("tls-replication", "yes");
            set("tls-ca-cert-file", &files.ca.to_string_lossy());
            set("tls-cert-file", &files.cert.to_string_lossy());
            set("tls-key-file", &files.key.to_string_lossy());
        }
    }
    let bus_port = bus_port.to_string();
    let ack_replicas = options.ack_replicas.to_string();
    for (name, value) in [
        ("bind", "127.0.0.1"),
        ("protected-mode", "no"),
        ("cluster-enabled", "yes"),
        ("cluster-port", &bus_port),
        ("cluster-announce-ip", "127.0.0.1"),
        ("cluster-node-timeout", "2000"),
        ("cluster-replica-no-failover", "yes"),
        ("cluster-allow-replica-migration", "no"),
        ("cluster-require-full-coverage", "no"),
        ("appendonly", "yes"),
        ("appendfsync", options.fsync),
        ("auto-aof-rewrite-min-size", "256mb"),
        ("save", ""),
        ("maxmemory-policy", "noeviction"),
        ("repl-diskless-sync-delay", "0"),
        ("repl-diskless-load", "disabled"),
        ("min-replicas-to-write", &ack_replicas),
        ("min-replicas-max-lag", "5"),
        ("daemonize", "no"),
    ] {
        set(name, value);
    }
    set("dir", &dir.to_string_lossy());
    Process::spawn(format!("valkey:{port}"), command, &dir.join("valkey.log"))
}

/// Shards of one primary and its replicas, joined, all slots owned, replicas synced.
pub struct ValkeyCluster {
    options: ValkeyOptions,
    shards: Vec<Vec<ValkeyNode>>,
    _dir: TempDir,
}

impl ValkeyCluster {
    /// Starts and forms it.
    pub async fn start(options: ValkeyOptions) -> Result<Self, TestError> {
        let dir = TempDir::with_prefix("kith-valkey-").map_err(TestError::io("temporary folder"))?;
        let mut shards = Vec::new();
        for shard in 0..options.shards {
            let mut nodes = Vec::new();
            for index in 0..=options.replicas {
                nodes.push(ValkeyNode::start(dir.path().join(format!("{shard}-{index}")), &options)?);
            }
            shards.push(nodes);
        }
        let mut cluster = Self { options, shards, _dir: dir };
        cluster.form().await?;
        Ok(cluster)
    }

    async fn form(&mut self) -> Result<(), TestError> {
        for node in self.shards.iter_mut().flatten() {
            node.answers().await?;
        }
        let (count, mut epoch) = (self.shards.len(), 0);
        for (shard, nodes) in self.shards.iter().enumerate() {
            for node in nodes {
                epoch += 1;
                node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]).await?;
            }
            let (from, to) = (shard * SLOTS / count, (shard + 1) * SLOTS / count - 1);
            nodes[0].command(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await?;
        }
        let first = &self.shards[0][0];
        for node in self.shards.iter().flatten().skip(1) {
            let words = ["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &node.bus_port.to_string()];
            first.command(&words).await?;
        }
        let all = self.shards.iter().flatten().count();
        for node in self.shards.iter().flatten() {
            wait(node, "all nodes to know each other", async || node.known().await == all).await?;
        }
        for nodes in &self.shards {
            let primary = nodes[0].id().await?;
            for replica in &nodes[1..] {
                replica.command(&["CLUSTER", "REPLICATE", &primary]).await?;
            }
        }
        for node in self.shards.iter().flatten() {
            wait(node, "the cluster to be ok", async || node.state_ok().await).await?;
        }
        for shard in 0..count {
            self.synced(shard).await?;
        }
        if let Some(library) = self.options.library.clone() {
            self.load(&library).await?;
        }
        Ok(())
    }

    /// Waits until every running replica of a shard has its primary's data and the primary counts it.
    pub async fn synced(&self, shard: usize) -> Result<(), TestError> {
        for node in &self.shards[shard] {
            wait(node, "a replica to be in sync", async || {
                node.is_primary().await || node.is_synced().await || node.command(&["PING"]).await.is_err()
            })
            .await?;
        }
        // The primary refuses writes until it has heard from as many replicas as `min-replicas-to-write` says.
        if self.options.ack_replicas > 0 {
            let primary = self.primary(shard).await?;
            let node = &self.shards[shard][primary];
            let enough = u64::from(self.options.ack_replicas);
            wait(node, "the primary to count its replicas", async || node.good_replicas().await >= enough).await?;
        }
        Ok(())
    }

    /// Loads (or replaces) a function library on every primary.
    pub async fn load(&self, library: &str) -> Result<(), TestError> {
        for shard in 0..self.shards.len() {
            let primary = self.primary(shard).await?;
            self.shards[shard][primary].command(&["FUNCTION", "LOAD", "REPLACE", library]).await?;
        }
        Ok(())
    }

    /// What a service's configuration says about it.
    pub fn config(&self) -> Valkey {
        Valkey {
            seeds: self.shards.iter().flatten().map(ValkeyNode::address).collect(),
            username: None,
            password_file: None,
            tls: self.options.tls.is_some(),
        }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// A node of a shard; the number does not change with its role.
    pub fn node(&mut self, shard: usize, index: usize) -> &mut ValkeyNode {
        &mut self.shards[shard][index]
    }

    /// The nodes of a shard.
    pub fn nodes(&self, shard: usize) -> &[ValkeyNode] {
        &self.shards[shard]
    }

    /// Which node of a shard says that it is the primary.
    pub async fn primary(&self, shard: usize) -> Result<usize, TestError> {
        let end = tokio::time::Instant::now() + FORM_DEADLINE;
        loop {
            for (index, node) in self.shards[shard].iter().enumerate() {
                if node.is_primary().await {
                    return Ok(index);
                }
            }
            if tokio::time::Instant::now() > end {
                return Err(TestError::Timeout { what: format!("a primary of shard {shard}"), log: String::new() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Promotes the running replica with the highest offset, as the operator does, and returns its number.
    pub async fn promote(&self, shard: usize) -> Result<usize, TestError> {
        let mut best: Option<(u64, usize)> = None;
        for (index, node) in self.shards[shard].iter().enumerate() {
            if let Some(offset) = node.offset().await
                && !node.is_primary().await
                && best.is_none_or(|(highest, _)| offset > highest)
            {
                best = Some((offset, index));
            }
        }
        let Some((_, index)) = best else {
            return Err(TestError::Timeout {
                what: format!("a replica of shard {shard} to promote"),
                log: String::new(),
            });
        };
        let node = &self.shards[shard][index];
        node.command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await?;
        wait(node, "the replica to take over", async || node.is_primary().await).await?;
        Ok(index)
    }

    /// SIGKILLs the primary of a shard and returns its number.
    pub async fn kill_primary(&mut self, shard: usize) -> Result<usize, TestError> {
        let index = self.primary(shard).await?;
        self.shards[shard][index].process.kill()?;
        Ok(index)
    }
}

impl ValkeyNode {
    async fn known(&self) -> usize {
        match self.command(&["CLUSTER", "NODES"]).await {
            Ok(nodes) => {
                let nodes = text(Some(&nodes));
                nodes.lines().filter(|l| !l.contains("handshake") && !l.contains("noaddr") && !l.is_empty()).count()
            }
            Err(_) => 0,
        }
    }

    async fn state_ok(&self) -> bool {
        self.command(&["CLUSTER", "INFO"]).await.is_ok_and(|info| text(Some(&info)).contains("cluster_state:ok"))
    }

    async fn good_replicas(&self) -> u64 {
        let info = self.info("replication").await.unwrap_or_default();
        info_field(&info, "min_slaves_good_slaves").and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

async fn wait(node: &ValkeyNode, what: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<(), TestError> {
    let end = tokio::time::Instant::now() + FORM_DEADLINE;
    while !condition().await {
        if tokio::time::Instant::now() > end {
            return Err(node.process.too_long(format!("{what} ({})", node.address())));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::SimpleString(text)) => text.clone(),
        _ => String::new(),
    }
}

fn info_field<'a>(info: &'a str, field: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}
