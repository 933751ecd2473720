//! What the parts of the engine share: partitions, nodes, the view, and what happens to a claim.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kith_kit::valkey::{Connection, Connector, ValkeyError};
use parking_lot::Mutex;
use redis::{Value, cmd};
use tokio::sync::mpsc;

use super::{
    node::Node,
    partition::{Claim, Partition, Pending, State},
    topology::{Primary, Watcher},
    view::View,
};
use crate::{outbox::Outbox, tags};

/// The library version that this service needs: same major, at least this minor.
const LIBRARY: (u32, u32) = (1, 4);

/// Shared by all parts of the engine.
pub(crate) struct Hub {
    pub(super) connector: Connector,
    pub(super) watcher: Arc<Watcher>,
    pub(crate) view: Arc<View>,
    pub(crate) partitions: Vec<Arc<Partition>>,
    pub(super) nodes: Mutex<HashMap<String, Arc<Node>>>,
    /// Partitions to claim.
    pub(super) wanted: mpsc::UnboundedSender<u32>,
    pub(crate) outbox: Outbox,
    /// `uid/P/K`: whose data these are.
    pub(super) meta: String,
    ack_replicas: u32,
    /// Why the library will not do; for readiness.
    pub(super) library: Mutex<Option<String>>,
    pub(super) open: AtomicU64,
}

impl Hub {
    pub(super) fn new(
        connector: Connector,
        watcher: Arc<Watcher>,
        view: Arc<View>,
        outbox: Outbox,
        cluster: &kith_kit::config::Cluster,
        ack_replicas: u32,
        wanted: mpsc::UnboundedSender<u32>,
    ) -> Arc<Self> {
        let count = cluster.partitions;
        let partitions = (0..count).map(|p| Arc::new(Partition::new(p, tags::version_key(p, count)))).collect();
        Arc::new(Self {
            connector,
            watcher,
            view,
            partitions,
            nodes: Mutex::default(),
            wanted,
            outbox,
            meta: format!("{}/{}/{}", cluster.uid, count, cluster.event_partitions),
            ack_replicas,
            library: Mutex::default(),
            open: AtomicU64::new(0),
        })
    }

    pub(super) fn ack_replicas(&self) -> u32 {
        self.ack_replicas
    }

    /// The primary that has the partition's slot now.
    pub(super) fn primary_of(&self, partition: u32) -> Option<Primary> {
        let slot = tags::first_slot(partition, self.partitions.len() as u32);
        self.watcher.current().owner(slot).cloned()
    }

    /// The node of a primary, started if it is new.
    pub(super) fn node(self: &Arc<Self>, primary: &Primary) -> Arc<Node> {
        let mut nodes = self.nodes.lock();
        match nodes.get(&primary.id) {
            Some(node) if node.primary == *primary => node.clone(),
            _ => {
                let node = Node::start(primary.clone(), self);
                if let Some(elsewhere) = nodes.insert(primary.id.clone(), node.clone()) {
                    elsewhere.deposed.cancel();
                }
                node
            }
        }
    }

    /// Ends the claims whose slots another node has now, and what waits for nodes that are no primaries any more.
    pub(super) fn follow(&self) {
        let topology = self.watcher.current();
        // One that is silent stays until it is known who follows: what waits for it must hear of that.
        self.nodes.lock().retain(|_, node| {
            let deposed = topology.deposes(&node.primary);
            if deposed {
                node.deposed.cancel();
            }
            !deposed
        });
        for partition in &self.partitions {
            if let Some(claim) = partition.claim()
                && let Some(primary) = self.primary_of(partition.number)
                && primary != claim.node.primary
            {
                self.void(partition, &claim);
            }
        }
    }

    /// A write is committed: reads may show it, the event log gets its events.
    pub(super) fn committed(
        self: &Arc<Self>,
        partition: &Arc<Partition>,
        claim: &Arc<Claim>,
        ver: u64,
        events: Vec<Pending>,
    ) {
        partition.commit(claim, ver);
        if !events.is_empty() {
            self.outbox.committed(self, partition, claim, events);
        }
    }

    /// What the last group left open only the store knows: the claim ends, and another is made if the partition is still this instance's.
    pub(super) fn void(&self, partition: &Partition, claim: &Arc<Claim>) {
        if partition.close(claim, State::Closed(None)) {
            self.closed(partition);
            metrics::counter!("kith_storage_claims_voided_total").increment(1);
            self.want(partition);
        }
    }

    /// Another instance has claimed the partition (or the node has changed under the claim).
    pub(super) fn fenced(&self, partition: &Partition, claim: &Arc<Claim>, holder: Option<String>) {
        let other = holder.filter(|h| h != self.view.me());
        if let Some(other) = &other {
            self.view.holds(other);
        }
        let ours = other.is_none();
        if partition.close(claim, State::Closed(other)) {
            self.closed(partition);
            metrics::counter!("kith_storage_claims_fenced_total").increment(1);
            if ours {
                self.want(partition);
            }
        }
    }

    fn want(&self, partition: &Partition) {
        if self.wanted.send(partition.number).is_err() {
            tracing::debug!(partition = partition.number, "not claimed again: storage is ending");
        }
    }

    pub(super) fn closed(&self, partition: &Partition) {
        self.outbox.closed(partition);
        self.gauge(self.open.fetch_sub(1, Ordering::AcqRel) - 1);
    }

    pub(super) fn opened(&self) {
        self.gauge(self.open.fetch_add(1, Ordering::AcqRel) + 1);
    }

    #[allow(clippy::unused_self)] // reads as a method beside the counter
    fn gauge(&self, open: u64) {
        metrics::gauge!("kith_storage_partitions_open").set(open as f64);
    }

    /// Refuses a node whose function library is missing or too old, by name.
    pub(super) async fn check_library(&self, connection: &Connection) -> Result<(), ValkeyError> {
        let mut connection = connection.clone();
        let asked = connection.command(cmd("FCALL_RO").arg("k1_version").arg(0)).await;
        let problem = match asked {
            Ok(Value::BulkString(version)) => {
                let text = String::from_utf8_lossy(&version).into_owned();
                let parts =
                    text.split_once('.').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
                match parts {
                    Some((major, minor)) if major == LIBRARY.0 && minor >= LIBRARY.1 => None,
                    _ => Some(format!("function library kith1 is version {text}")),
                }
            }
            Err(ValkeyError::Redis { source, .. }) if source.to_string().contains("unction not found") => {
                Some("function library kith1 is not loaded".to_owned())
            }
            Err(error) => return Err(error),
            Ok(_) => Some("function library kith1 does not tell its version".to_owned()),
        };
        let Some(problem) = problem else {
            *self.library.lock() = None;
            return Ok(());
        };
        let problem = format!("{}: {problem}, kith1 {}.{} is needed", connection.address(), LIBRARY.0, LIBRARY.1);
        tracing::error!(%problem, "this storage engine is not served");
        *self.library.lock() = Some(problem.clone());
        let source = redis::RedisError::from((redis::ErrorKind::Client, "function library", problem));
        Err(ValkeyError::Redis { address: connection.address().to_owned(), source })
    }
}

impl Hub {
    /// What is known of these partitions; of none named, of all that are or should be this instance's, and of those that it found lost.
    pub(crate) fn report(&self, asked: &[u32]) -> Vec<kith_proto::storage::v1::Partition> {
        let named: std::collections::HashSet<u32> = asked.iter().copied().collect();
        let mine = if asked.is_empty() { self.view.mine(self.partitions.len() as u32) } else { Vec::new() };
        let listed = |p: &Partition| {
            let kept = || matches!(&*p.state.borrow(), State::Open(_) | State::Lost(_) | State::Repairing);
            if asked.is_empty() { kept() || mine.contains(&p.number) } else { named.contains(&p.number) }
        };
        self.partitions.iter().filter(|p| listed(p)).map(|p| describe(p)).collect()
    }

    /// Whether any partition is held.
    pub(crate) fn holds_any(&self) -> bool {
        self.partitions.iter().any(|p| p.claim().is_some())
    }
}

fn describe(partition: &Partition) -> kith_proto::storage::v1::Partition {
    let (state, reason, ver) = match &*partition.state.borrow() {
        State::Closed(holder) => ("closed", holder.clone().unwrap_or_default(), partition.high.load(Ordering::Acquire)),
        State::Claiming => ("claiming", String::new(), partition.high.load(Ordering::Acquire)),
        State::Open(claim) => ("open", String::new(), claim.committed()),
        State::Lost(loss) => ("data_loss", loss.what.clone(), partition.high.load(Ordering::Acquire)),
        State::Repairing => ("repairing", String::new(), partition.high.load(Ordering::Acquire)),
    };
    let backlog = partition.backlog.lock();
    kith_proto::storage::v1::Partition {
        partition: partition.number,
        state: state.to_owned(),
        ver,
        published_ver: backlog.published,
        outbox_bytes: backlog.bytes,
        reason,
    }
}
