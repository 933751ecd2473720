//! Connections to nodes: kept open between passes, dropped on the first failure, every call with a deadline.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use kith_kit::valkey::{Connector, Dialogue, ValkeyError};
use redis::{Cmd, Pipeline, Value};
use thiserror::Error;
use tokio::sync::Mutex;

use super::{parse, types::NodeId};
use crate::lease::{LeaseGuard, LeaseTooShort};

/// Connecting and asking one node in a pass.
pub const READ_DEADLINE: Duration = Duration::from_secs(1);
/// One command that changes something. The lease must last at least this long when it is sent.
pub const WRITE_DEADLINE: Duration = Duration::from_millis(1_500);

/// A library's text that was seen on a node is taken to be there for so long, unless the node was started anew.
const TEXT_HOLDS: Duration = Duration::from_secs(600);

/// The engine gives up a handshake after the node timeout.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Why a node did not do what it was asked.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No connection, or it broke.
    #[error(transparent)]
    Valkey(#[from] ValkeyError),
    /// No answer in time; the outcome is unknown.
    #[error("{0}: no answer in time")]
    Deadline(SocketAddr),
    /// It answered with something else than its documentation says.
    #[error(transparent)]
    Parse(#[from] parse::ParseError),
    /// This process may not act as the leader any more.
    #[error(transparent)]
    Lease(#[from] LeaseTooShort),
    /// Another node answers at this address than the one that was observed there.
    #[error("{address}: {found} answers where {wanted} was seen")]
    Stranger {
        /// The address.
        address: SocketAddr,
        /// The node that was meant.
        wanted: NodeId,
        /// What answered.
        found: String,
    },
}

impl LinkError {
    /// Whether the node said that it still loads its data.
    pub fn is_loading(&self) -> bool {
        matches!(self, Self::Valkey(ValkeyError::Redis { source, .. }) if source.code() == Some("LOADING"))
    }

    /// Whether nobody listens at the address.
    pub fn is_connection_refused(&self) -> bool {
        matches!(self, Self::Valkey(ValkeyError::Connect { source, .. }) if source.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// Whether the node itself refused: the command had no effect. Everything else leaves the outcome open.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Valkey(ValkeyError::Redis { source, .. }) => source.code().is_some() && !source.is_io_error(),
            Self::Lease(_) | Self::Stranger { .. } => true,
            _ => false,
        }
    }
}

/// What is kept of a node. Hundreds of nodes are: a connection takes no memory beyond its socket between two questions.
#[derive(Default)]
struct Node {
    /// None before the first question. Whoever asks holds it meanwhile.
    dialogue: Mutex<Option<Dialogue>>,
    /// The hash of the library's text that was seen behind the connection, and when.
    text: std::sync::Mutex<Option<(u64, Instant)>>,
}

impl Node {
    fn text(&self) -> std::sync::MutexGuard<'_, Option<(u64, Instant)>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the connection stands: one that is in use does.
    fn is_open(&self) -> bool {
        match self.dialogue.try_lock() {
            Ok(mut dialogue) => dialogue.as_mut().is_some_and(Dialogue::is_open),
            Err(_) => true,
        }
    }
}

/// The connections of one ChatCluster. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Links {
    connector: Connector,
    open: Arc<Mutex<HashMap<SocketAddr, Arc<Node>>>>,
    introduced: Arc<Mutex<HashMap<(SocketAddr, SocketAddr), Instant>>>,
}

impl Links {
    /// None open yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, open: Arc::default(), introduced: Arc::default() }
    }

    /// Asks a node several things at once. Refusals are values; an error means that nothing is known.
    pub async fn ask(
        &self,
        address: SocketAddr,
        commands: &Pipeline,
        deadline: Duration,
    ) -> Result<Vec<Value>, LinkError> {
        self.question(address, deadline, async |dialogue| dialogue.pipeline(commands).await).await
    }

    /// The same on a connection of its own, which ends with it: a large answer would leave the buffers of its encryption with a connection
    /// that is kept.
    pub async fn ask_apart(
        &self,
        address: SocketAddr,
        commands: &Pipeline,
        deadline: Duration,
    ) -> Result<Vec<Value>, LinkError> {
        let asked = async { Ok(self.connector.dialogue(&address.to_string()).await?.pipeline(commands).await?) };
        tokio::time::timeout(deadline, asked).await.unwrap_or(Err(LinkError::Deadline(address)))
    }

    /// Whether the library's text of this hash was seen on the node behind the connection that stands, not long ago.
    pub async fn has_seen_text(&self, address: SocketAddr, hash: u64) -> bool {
        let open = self.open.lock().await;
        let text = open.get(&address).filter(|node| node.is_open()).and_then(|node| *node.text());
        text.is_some_and(|(seen, at)| seen == hash && at.elapsed() < TEXT_HOLDS)
    }

    /// Remembers that it was seen.
    pub async fn saw_text(&self, address: SocketAddr, hash: u64) {
        if let Some(node) = self.open.lock().await.get(&address) {
            *node.text() = Some((hash, Instant::now()));
        }
    }

    /// Asks a node one thing.
    pub async fn ask_one(&self, address: SocketAddr, command: &Cmd) -> Result<Value, LinkError> {
        self.call(address, command, READ_DEADLINE).await
    }

    /// Changes something on the node `id`, and on no other that might have taken its address: its id is asked for on the same
    /// connection first, and the lease must outlast the call.
    pub async fn write(
        &self,
        address: SocketAddr,
        id: &NodeId,
        command: &Cmd,
        guard: &LeaseGuard,
    ) -> Result<Value, LinkError> {
        let mut who = redis::cmd("CLUSTER");
        who.arg("MYID");
        let found = self.call(address, &who, READ_DEADLINE).await?;
        let found = parse::text(&found).unwrap_or_default();
        if found != id.as_str() {
            self.open.lock().await.remove(&address);
            return Err(LinkError::Stranger { address, wanted: id.clone(), found });
        }
        guard.check(WRITE_DEADLINE)?;
        self.call(address, command, WRITE_DEADLINE).await
    }

    /// Forgets connections to addresses that are not in `wanted`.
    pub async fn keep_only(&self, wanted: &[SocketAddr]) {
        self.open.lock().await.retain(|address, _| wanted.contains(address));
        self.introduced.lock().await.retain(|_, at| at.elapsed() < HANDSHAKE);
    }

    /// Whether `node` may be introduced to `other` now. A handshake that is begun anew before the last one is over gets in its way.
    pub async fn may_introduce(&self, node: SocketAddr, other: SocketAddr) -> bool {
        let mut introduced = self.introduced.lock().await;
        let due = introduced.get(&(node, other)).is_none_or(|at| at.elapsed() >= HANDSHAKE);
        if due {
            introduced.insert((node, other), Instant::now());
        }
        due
    }

    async fn call(&self, address: SocketAddr, command: &Cmd, deadline: Duration) -> Result<Value, LinkError> {
        self.question(address, deadline, async |dialogue| dialogue.command(command).await).await
    }

    /// Puts a question to a node on the connection that is kept. One that failed is not kept; one over which the node refused is.
    async fn question<T>(
        &self,
        address: SocketAddr,
        deadline: Duration,
        ask: impl AsyncFnOnce(&mut Dialogue) -> Result<T, ValkeyError>,
    ) -> Result<T, LinkError> {
        let asked = async {
            let node = self.node(address).await;
            let mut held = node.dialogue.lock().await;
            Ok(ask(self.dialogue(address, &node, &mut held).await?).await?)
        };
        let result = tokio::time::timeout(deadline, asked).await.unwrap_or(Err(LinkError::Deadline(address)));
        if result.as_ref().is_err_and(|e| !e.is_refusal()) {
            self.open.lock().await.remove(&address);
        }
        result
    }

    async fn node(&self, address: SocketAddr) -> Arc<Node> {
        self.open.lock().await.entry(address).or_default().clone()
    }

    /// The connection that stands, or a new one. Those who ask the same node wait meanwhile, each until its own deadline, and nobody else.
    async fn dialogue<'a>(
        &self,
        address: SocketAddr,
        node: &Node,
        held: &'a mut Option<Dialogue>,
    ) -> Result<&'a mut Dialogue, LinkError> {
        let standing = held.take().and_then(|mut dialogue| dialogue.is_open().then_some(dialogue));
        let dialogue = match standing {
            Some(dialogue) => dialogue,
            None => {
                // Behind a new connection may be a node that was started anew.
                *node.text() = None;
                self.connector.dialogue(&address.to_string()).await?
            }
        };
        Ok(held.insert(dialogue))
    }
}

#[cfg(test)]
mod tests;
