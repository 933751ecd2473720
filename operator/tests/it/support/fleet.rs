//! Real Valkey processes as the pods of a ChatCluster that the data plane code forms and keeps.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kith_kit::{config::Valkey, valkey::Connector};
use kith_operator::{
    dataplane::{
        Gate, Links, Outcome, Prober, Report, converge,
        observe::{Depth, observe},
        settings,
        types::{Desired, DesiredShard, Library, Member, Observation, Presence},
    },
    lease::LeaseGuard,
};
use kith_testing::{Process, bin_dir, free_port};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A library with one counter: enough to see what a move or a failover does to writes.
pub(crate) const COUNTER: &str = "#!lua name=kith1\nserver.register_function('incr', function(keys, args) return server.call('INCRBY', keys[1], args[1]) end)\n";

/// One pod.
pub(crate) struct Node {
    pub(crate) pod: String,
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) bus_port: u16,
    pub(crate) process: Option<Process>,
}

/// All pods of a ChatCluster and the wish for it.
pub(crate) struct Fleet {
    pub(crate) desired: Desired,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    pub(crate) guard: LeaseGuard,
    pub(crate) root: TempDir,
    /// Ends last: the next fleet starts when this one's nodes are gone.
    _turn: MutexGuard<'static, ()>,
}

/// One fleet at a time: several of them on two cores answer too late to tell anything.
static TURN: Mutex<()> = Mutex::new(());

impl Fleet {
    /// Starts empty nodes for `shards` shards with `replicas` replicas each.
    pub(crate) fn start(shards: usize, replicas: u32) -> Self {
        let desired = Desired { ack_replicas: 1.min(replicas), ..nothing() };
        let root = TempDir::with_prefix("kith-dataplane-").expect("a temporary folder");
        // A test that failed has left nothing behind that matters here.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = LeaseGuard::unopposed();
        let mut fleet = Self { desired, nodes: Vec::new(), links: links(), guard, root, _turn: turn };
        for _ in 0..shards {
            fleet.add_shard(replicas);
        }
        fleet
    }

    /// One more shard of empty nodes.
    pub(crate) fn add_shard(&mut self, replicas: u32) {
        let n = self.desired.shards.len();
        let mut members = Vec::new();
        for i in 0..=replicas {
            let pod = format!("demo-{n}-valkey-{i}");
            let dir = self.root.path().join(&pod);
            std::fs::create_dir_all(&dir).expect("a folder");
            let mut node = Node { pod: pod.clone(), dir, port: free_port(), bus_port: free_port(), process: None };
            node.start(1.min(replicas));
            members.push(Member {
                pod,
                uid: format!("uid-{n}-{i}"),
                node: Some(format!("node-{i}")),
                address: Some(SocketAddr::from(([127, 0, 0, 1], node.port))),
                bus_port: node.bus_port,
                presence: Presence::Running,
                copy: true,
            });
            self.nodes.push(node);
        }
        self.desired.shards.push(DesiredShard {
            name: format!("demo-{n}"),
            weight: 100,
            replicas,
            draining: false,
            acknowledged_by: 1,
            min_replicas_to_write: 1.min(replicas),
            lowered: false,
            force_promote: None,
            hand_over: None,
            members,
        });
    }

    pub(crate) fn node(&mut self, pod: &str) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.pod == pod).expect("a pod")
    }

    /// Gives a pod another address, as Kubernetes does when it is made anew, and starts it on its own data.
    pub(crate) fn restart_elsewhere(&mut self, pod: &str) {
        let acks = self.desired.ack_replicas;
        let (port, bus_port) = (free_port(), free_port());
        let node = self.node(pod);
        node.kill();
        (node.port, node.bus_port) = (port, bus_port);
        node.start(acks);
        let member = self.member(pod);
        member.address = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        member.bus_port = bus_port;
    }

    pub(crate) fn member(&mut self, pod: &str) -> &mut Member {
        self.desired.shards.iter_mut().flat_map(|s| &mut s.members).find(|m| m.pod == pod).expect("a pod")
    }

    pub(crate) async fn look(&self) -> Observation {
        observe(&self.links, &self.desired, Depth::Full).await
    }

    pub(crate) async fn pass(&self) -> Outcome {
        converge(&self.links, &self.guard, &Gate::default(), &self.desired, Duration::from_secs(5)).await
    }

    /// Passes until the data plane is ready; how long that took.
    pub(crate) async fn ready(&self, limit: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let outcome = self.pass().await;
            if outcome.readiness.is_ready() && !outcome.unfinished {
                return begun.elapsed();
            }
            if begun.elapsed() > limit {
                self.tell();
                panic!("not ready: {:#?} {:#?}", outcome.readiness.problems, outcome.problems);
            }
        }
    }

    /// Starts a prober over `links`: the way to tell it a new wish, what it finds, and what ends it.
    pub(crate) fn probe(
        &self,
        links: Links,
        gate: Gate,
    ) -> (watch::Sender<Arc<Desired>>, watch::Receiver<Report>, CancellationToken) {
        let (publish, desired) = watch::channel(Arc::new(self.desired.clone()));
        let end = CancellationToken::new();
        let report = Prober { links, guard: self.guard.clone(), desired, gate }.start(end.clone());
        (publish, report, end)
    }

    /// The pod that is the primary of a shard.
    pub(crate) async fn primary(&self, shard: &str) -> Option<String> {
        let seen = self.look().await;
        let ready = kith_operator::dataplane::readiness::readiness(&self.desired, &seen);
        ready.shards.into_iter().find(|s| s.shard == shard).and_then(|s| s.primary)
    }

    /// What every node wrote.
    pub(crate) fn logs(&self) -> Vec<String> {
        self.nodes.iter().map(|n| log_of(&n.dir)).collect()
    }

    /// Prints the end of what every node wrote.
    fn tell(&self) {
        for (node, log) in self.nodes.iter().zip(self.logs()) {
            let lines: Vec<_> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            println!("{} at {}, bus {}:\n{}\n", node.pod, node.port, node.bus_port, end.join("\n"));
        }
    }

    /// One command to a pod.
    pub(crate) async fn command(&self, pod: &str, words: &[&str]) -> Result<redis::Value, String> {
        let address = self.desired.member(pod).and_then(|(_, m)| m.address).expect("an address");
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        self.links.ask_one(address, &command).await.map_err(|e| e.to_string())
    }
}

impl Node {
    pub(crate) fn start(&mut self, min_replicas: u32) {
        let mut command = Command::new(bin_dir().join("valkey-server"));
        let mut set = |name: &str, value: &str| {
            command.arg(format!("--{name}")).arg(value);
        };
        for (name, value) in settings::FIXED {
            set(name, value);
        }
        for (name, value) in [
            ("bind", "127.0.0.1"),
            ("cluster-enabled", "yes"),
            ("cluster-announce-ip", "127.0.0.1"),
            ("appendfsync", "always"),
            ("save", ""),
            ("daemonize", "no"),
            // For faults that need the engine's help.
            ("enable-debug-command", "local"),
        ] {
            set(name, value);
        }
        set("port", &self.port.to_string());
        set("cluster-port", &self.bus_port.to_string());
        set("min-replicas-to-write", &min_replicas.to_string());
        set("dir", &self.dir.to_string_lossy());
        let log = self.dir.join("valkey.log");
        self.process = Some(Process::spawn(format!("valkey:{}", self.port), command, &log).expect("valkey-server"));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
        }
    }
}

/// Connections without TLS.
pub(crate) fn links() -> Links {
    let access = Valkey { seeds: Vec::new(), username: None, password_file: None, tls: false };
    Links::new(Connector::with_parts(&access, None, "demo").expect("a connector"))
}

/// A wish without shards.
fn nothing() -> Desired {
    Desired {
        cluster: "demo".to_owned(),
        cluster_uid: "11111111-2222-3333-4444-555555555555".to_owned(),
        partitions: 1024,
        ack_replicas: 1,
        fsync: "always".to_owned(),
        formed: false,
        library: Some(Library { name: "kith1".to_owned(), code: COUNTER.into() }),
        shards: Vec::new(),
    }
}

/// The shards and pods of a wish, for another process.
pub(crate) fn to_text(desired: &Desired) -> String {
    let line = |(shard, member): (&DesiredShard, &Member)| {
        let address = member.address.map(|a| a.to_string()).unwrap_or_default();
        let (name, replicas, draining) = (&shard.name, shard.replicas, shard.draining);
        format!("{name} {replicas} {draining} {} {address} {}\n", member.pod, member.bus_port)
    };
    desired.members().map(line).collect()
}

/// Reads it back.
pub(crate) fn from_text(text: &str) -> Desired {
    let mut desired = Desired { formed: true, ..nothing() };
    for line in text.lines() {
        let [name, replicas, draining, pod, address, bus_port] = line.split(' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        let replicas: u32 = replicas.parse().expect("a number");
        let member = Member {
            pod: pod.to_owned(),
            uid: format!("uid-{pod}"),
            node: None,
            address: address.parse().ok(),
            bus_port: bus_port.parse().expect("a port"),
            presence: Presence::Running,
            copy: true,
        };
        if desired.shards.last().is_none_or(|s| s.name != name) {
            desired.shards.push(DesiredShard {
                name: name.to_owned(),
                weight: 100,
                replicas,
                draining: draining.parse().expect("whether it drains"),
                acknowledged_by: 1,
                min_replicas_to_write: 1.min(replicas),
                lowered: false,
                force_promote: None,
                hand_over: None,
                members: Vec::new(),
            });
        }
        desired.shards.last_mut().expect("just pushed").members.push(member);
    }
    desired
}

/// Waits until `condition` holds; how long that took.
pub(crate) async fn eventually(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < limit, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

/// For messages about what a node wrote.
pub(crate) fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("valkey.log")).unwrap_or_default()
}
