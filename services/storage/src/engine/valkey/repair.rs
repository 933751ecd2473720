//! What a repair does with a partition: closes it to everybody, holds it under a claim of its own, and gives it back.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Decided, ValkeyEngine, claims,
    hub::Hub,
    partition::{Claim, Loss, Partition, State},
    wire::{self, Emits},
};
use crate::engine::{EngineError, Field, Got, Restoring, Want, Write};

/// One call of a repair.
const CALL: Duration = Duration::from_secs(5);

/// How a partition of this instance stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Open, committed up to this version.
    Open(u64),
    Lost(Loss),
}

impl Hub {
    /// How a partition stands once its claim is decided; an error where it is another instance's.
    pub(crate) async fn standing(self: &Arc<Self>, number: u32, end: Instant) -> Result<Standing, EngineError> {
        match self.decided(&self.partitions[number as usize], end).await? {
            Decided::Open(claim) => Ok(Standing::Open(claim.committed())),
            Decided::Lost(loss) => self.owned(number).map(|()| Standing::Lost(loss)),
        }
    }

    /// The highest version that this instance has seen committed.
    pub(crate) fn acknowledged(&self, number: u32) -> u64 {
        self.partitions[number as usize].high.load(Ordering::Acquire)
    }

    /// Closes a partition for its repair. Until it is given back, calls are answered DATA_LOSS.
    pub(crate) fn hold(self: &Arc<Self>, number: u32, loss: Loss) -> Result<Held, EngineError> {
        let partition = self.partitions[number as usize].clone();
        let closed = match partition.claim() {
            Some(claim) => {
                let closed = partition.close(&claim, State::Repairing);
                if closed {
                    self.closed(&partition);
                }
                closed
            }
            None => partition.state.send_if_modified(|state| {
                let lost = matches!(state, State::Lost(_));
                if lost {
                    *state = State::Repairing;
                }
                lost
            }),
        };
        if closed {
            Ok(Held { hub: self.clone(), partition, loss: Some(loss) })
        } else {
            Err(EngineError::Unavailable("the partition changes hands: try again".into()))
        }
    }
}

/// A partition that is closed for its repair; closed as lost when this is dropped.
pub(crate) struct Held {
    hub: Arc<Hub>,
    partition: Arc<Partition>,
    /// Why it is closed; none: it is given back.
    loss: Option<Loss>,
}

impl Held {
    /// Claims it anew: its stored version, and the right to restore it, which ends with the next claim of anybody.
    pub(crate) async fn take(&self) -> Result<(u64, Restored), EngineError> {
        let taken = claims::take(&self.hub, &self.partition).await?;
        let ver = taken.claimed.ver;
        let claim = Arc::new(Claim::new(taken.token, taken.node, ver));
        Ok((ver, Restored { hub: self.hub.clone(), partition: self.partition.clone(), claim }))
    }

    /// Gives it back: it opens with an ordinary claim, which compares versions once more.
    pub(crate) fn give_back(mut self) {
        self.loss = None;
    }

    /// From now on closed for this reason.
    pub(crate) fn say(&mut self, loss: Loss) {
        self.loss = Some(loss);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let next = self.loss.take().map_or(State::Closed(None), State::Lost);
        let back = matches!(next, State::Closed(_));
        self.partition.state.send_if_modified(|state| {
            let held = matches!(state, State::Repairing);
            if held {
                *state = next;
            }
            held
        });
        if back {
            claims::start(&self.hub, &self.partition);
        }
    }
}

/// A partition under the claim of its repair.
pub(crate) struct Restored {
    hub: Arc<Hub>,
    partition: Arc<Partition>,
    claim: Arc<Claim>,
}

#[async_trait]
impl Restoring for Restored {
    async fn fields(&self, fields: Vec<Field>) -> Result<Vec<Option<Bytes>>, EngineError> {
        let wants: Vec<Want> = fields.into_iter().map(Want::Field).collect();
        let end = Instant::now() + CALL;
        let build = |call| wire::get(call, &wants);
        let (values, _) = self.hub.read(&self.partition, &self.claim, "k1_get", build, end).await?;
        let got = wire::read_get(&wants, values)?;
        Ok(got.into_iter().map(Got::field).collect())
    }

    async fn restore(&self, ver: u64, writes: Vec<Write>) -> Result<(), EngineError> {
        let end = Instant::now() + CALL;
        let build = |call| (wire::restore(call, ver, &writes), Emits::Nothing);
        ValkeyEngine::submit(&self.partition, self.claim.clone(), "k1_restore", build, end)?
            .await
            .map_err(|_| EngineError::Unavailable("the storage engine's node is gone".into()))?
            .map(drop)
    }
}
