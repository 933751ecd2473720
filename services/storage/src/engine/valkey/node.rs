//! One primary: the queue of its writer, and the connection for reads.

use std::{sync::Arc, time::Duration};

use kith_kit::valkey::{Connection, Connector, ValkeyError};
use redis::{Cmd, Value};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    hub::Hub,
    partition::{Claim, Partition},
    topology::Primary,
    wire::Emits,
    writer::Writer,
};
use crate::engine::EngineError;

/// Calls waiting for a primary; beyond it callers are told to come back.
pub(super) const QUEUE: usize = 8_192;
const READ_ANSWER: Duration = Duration::from_secs(2);
pub(super) const FULL: EngineError =
    EngineError::Exhausted("the storage engine's queue is full", Duration::from_millis(250));

/// One call to the engine.
pub(super) struct Item {
    pub(super) partition: Arc<Partition>,
    /// None: the call makes a claim.
    pub(super) claim: Option<Arc<Claim>>,
    pub(super) command: Cmd,
    pub(super) bytes: usize,
    pub(super) emits: Emits,
    pub(super) end: Instant,
    pub(super) done: oneshot::Sender<Result<Vec<Value>, EngineError>>,
}

/// A primary of the engine.
pub(crate) struct Node {
    pub(super) primary: Primary,
    queue: mpsc::Sender<Item>,
    reader: Mutex<Option<Connection>>,
    connector: Connector,
    /// Ends what waits for it once another primary has its slots.
    pub(super) deposed: CancellationToken,
}

impl Node {
    /// Starts the writer; it ends when the last handle is dropped.
    pub(super) fn start(primary: Primary, hub: &Arc<Hub>) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE);
        let connector = hub.connector.clone();
        let deposed = CancellationToken::new();
        let writer = Writer::new(primary.clone(), connector.clone(), hub.clone(), deposed.clone());
        tokio::spawn(writer.run(items));
        Arc::new(Self { primary, queue, reader: Mutex::new(None), connector, deposed })
    }

    /// Puts a call into the queue; a full queue refuses at once.
    pub(super) fn submit(&self, item: Item) -> Result<(), EngineError> {
        self.queue.try_send(item).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => FULL,
            mpsc::error::TrySendError::Closed(_) => {
                EngineError::Unavailable("the storage engine's node is gone".into())
            }
        })
    }

    /// Waits for a place in the queue: for claims, which no caller bounds.
    pub(super) async fn submit_patiently(&self, item: Item) -> Result<(), EngineError> {
        let gone = |_| EngineError::Unavailable("the storage engine's node is gone".into());
        self.queue.send(item).await.map_err(gone)
    }

    /// The connection for reads, opened when there is none.
    pub(super) async fn reader(&self) -> Result<Connection, ValkeyError> {
        let mut reader = self.reader.lock().await;
        match &*reader {
            Some(connection) if !connection.is_closed() => Ok(connection.clone()),
            _ => {
                let fresh = self.connector.connect(&self.primary.address, READ_ANSWER).await?;
                *reader = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }
}
