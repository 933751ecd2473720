//! Holds writes back at a giver that has not heard yet that its slots were taken.

use std::time::{Duration, Instant};

use super::{Executor, address_of};
use crate::dataplane::{
    link::LinkError,
    types::{Desired, NodeId},
};

/// The bus carries the news within milliseconds; before this there is nothing to hold.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long writes are held back by one order. Whoever moves next goes on holding them; without anybody they go on after it.
const PAUSE: Duration = Duration::from_secs(20);
/// An order is renewed after this time.
const RENEW: Duration = Duration::from_secs(5);

/// Writes held back at one node, or at none.
pub(super) struct Hold<'a> {
    executor: &'a Executor,
    desired: &'a Desired,
    since: Option<Instant>,
    held: Option<(String, NodeId, Instant)>,
}

impl<'a> Hold<'a> {
    /// Nothing is held yet.
    pub(super) fn new(executor: &'a Executor, desired: &'a Desired) -> Self {
        Self { executor, desired, since: None, held: None }
    }

    /// Called at each look at which the giver does not know; holds its writes back once that has lasted longer than news take.
    pub(super) async fn keep(&mut self, pod: &str, id: &NodeId) -> Result<(), LinkError> {
        if self.since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(());
        }
        if self.held.as_ref().is_none_or(|(_, held, at)| held != id || at.elapsed() > RENEW) {
            tracing::warn!(cluster = %self.desired.cluster, %pod, "slots were taken from a primary that has not heard of it: its writes are held back");
            metrics::counter!("kith_rebalance_holds_total").increment(1);
            self.pause(pod, id).await?;
        }
        Ok(())
    }

    /// Holds writes back now.
    pub(super) async fn pause(&mut self, pod: &str, id: &NodeId) -> Result<(), LinkError> {
        let Some(address) = address_of(self.desired, pod) else { return Ok(()) };
        let mut command = redis::cmd("CLIENT");
        command.arg("PAUSE").arg(PAUSE.as_millis() as u64).arg("WRITE");
        self.executor.links.write(address, id, &command, &self.executor.guard).await?;
        self.held = Some((pod.to_owned(), id.clone(), Instant::now()));
        Ok(())
    }

    /// Writes go on. A node that does not take the order goes on by itself.
    pub(super) async fn release(&mut self) {
        self.since = None;
        let Some((pod, id, _)) = self.held.take() else { return };
        let Some(address) = address_of(self.desired, &pod) else { return };
        let mut command = redis::cmd("CLIENT");
        command.arg("UNPAUSE");
        if let Err(error) = self.executor.links.write(address, &id, &command, &self.executor.guard).await {
            tracing::warn!(cluster = %self.desired.cluster, %pod, %error, "writes that were held back go on only with the end of the pause");
        }
    }
}
