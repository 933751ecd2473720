//! Small writes for groups whose replicas are slow to acknowledge.
//!
//! Valkey (9.1 at least) leaves Nagle's algorithm on at the replica's end of the replication connection. An acknowledgement that follows the
//! one which replicas send every second by themselves is held back there until the primary's kernel confirms the first: with something to
//! send at once, else 40 ms later. The primary has nothing to send, since the next group waits for this one.

use std::{sync::Arc, time::Duration};

use kith_kit::valkey::{Connection, Connector};
use tokio::sync::Mutex;

use super::{
    partition::{Claim, Partition},
    wire::Call,
};

const ANSWER: Duration = Duration::from_secs(2);

/// Another connection to a primary.
pub(super) struct Nudger {
    connector: Connector,
    address: String,
    connection: Mutex<Option<Connection>>,
}

impl Nudger {
    pub(super) fn new(connector: Connector, address: String) -> Self {
        Self { connector, address, connection: Mutex::default() }
    }

    /// Writes the version that it finds, unless a nudge is under way already.
    pub(super) async fn nudge(self: Arc<Self>, partition: Arc<Partition>, claim: Arc<Claim>) {
        let Ok(mut known) = self.connection.try_lock() else { return };
        let connection = match &mut *known {
            Some(connection) if !connection.is_closed() => connection,
            gone => match self.connector.connect(&self.address, ANSWER).await {
                Ok(fresh) => gone.insert(fresh),
                // The group's own connection tells what is wrong.
                Err(_) => return,
            },
        };
        metrics::counter!("kith_storage_nudges_total").increment(1);
        let touch = Call::mutation("k1_trim", &partition.key, &claim.token, 0);
        // Whatever the answer is, the group's own says it too.
        drop(connection.command(&touch.command).await);
    }
}
