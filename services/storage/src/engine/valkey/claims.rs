//! Claiming: eagerly for all partitions that the view gives to this instance, at start and at every change, and on demand.

use std::{sync::Arc, time::Duration};

use kith_kit::{backoff::Backoff, readiness::Readiness};
use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    hub::Hub,
    node::{Item, Node},
    partition::{Claim, Loss, Partition, State},
    wire::{self, Call, Claimed, Emits},
};
use crate::engine::EngineError;

/// Pauses between attempts at one claim.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// An attempt that takes longer is made again.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Looks that need no change: what was left unclaimed for want of a primary is tried again.
const SWEEP: Duration = Duration::from_secs(5);
const READY: Duration = Duration::from_millis(50);

/// The part of readiness that says whether the first claims are done.
pub(super) const PART: &str = "engine";

/// Claims what the view gives to this instance, as long as it lives.
pub(super) async fn run(
    hub: Arc<Hub>,
    mut wanted: mpsc::UnboundedReceiver<u32>,
    readiness: Readiness,
    end: CancellationToken,
) {
    let mut topology = hub.watcher.changes();
    let (mut discovered, mut told) = hub.view.changes();
    tokio::spawn(report(hub.clone(), readiness, end.clone()));
    loop {
        let next = tokio::select! {
            () = end.cancelled() => return,
            Ok(()) = topology.changed() => None,
            Ok(()) = discovered.changed() => None,
            Ok(()) = told.changed() => None,
            Some(partition) = wanted.recv() => Some(partition),
            () = tokio::time::sleep(SWEEP) => None,
        };
        if let Some(number) = next {
            if let Some(partition) = hub.partitions.get(number as usize)
                && hub.view.owner(number).as_deref() == Some(hub.view.me())
            {
                start(&hub, partition);
            }
        } else {
            hub.follow();
            for number in hub.view.mine(hub.partitions.len() as u32) {
                start(&hub, &hub.partitions[number as usize]);
            }
        }
    }
}

/// Says that the instance is ready once it holds everything that the view gives it.
async fn report(hub: Arc<Hub>, readiness: Readiness, end: CancellationToken) {
    loop {
        let mine = hub.view.mine(hub.partitions.len() as u32);
        let waiting = mine
            .iter()
            .filter(|p| matches!(&*hub.partitions[**p as usize].state.borrow(), State::Closed(_) | State::Claiming))
            .count();
        if waiting == 0 {
            readiness.ready(PART);
            tracing::info!(partitions = mine.len(), "the first claims are done");
            return;
        }
        let why = hub.library.lock().clone().unwrap_or_else(|| format!("{waiting} partitions are not open yet"));
        readiness.not_ready(PART, why);
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(READY) => {}
        }
    }
}

/// Begins a claim unless the partition is open, being claimed or lost.
pub(super) fn start(hub: &Arc<Hub>, partition: &Arc<Partition>) {
    let begins = partition.state.send_if_modified(|state| {
        let closed = matches!(state, State::Closed(_));
        if closed {
            *state = State::Claiming;
        }
        closed
    });
    if begins {
        tokio::spawn(claim(hub.clone(), partition.clone()));
    }
}

async fn claim(hub: Arc<Hub>, partition: Arc<Partition>) {
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    let mut topology = hub.watcher.changes();
    loop {
        topology.mark_unchanged();
        if hub.view.owner(partition.number).as_deref() != Some(hub.view.me()) {
            partition.state.send_replace(State::Closed(None));
            return;
        }
        match attempt(&hub, &partition).await {
            Ok(()) => return,
            Err(Failed::Lost(loss)) => {
                let what = &loss.what;
                tracing::error!(partition = partition.number, %what, "the partition is closed until it is repaired: see `kith repair`");
                partition.state.send_replace(State::Lost(loss));
                return;
            }
            Err(Failed::Again(error)) => {
                tracing::debug!(partition = partition.number, %error, "a claim did not succeed");
            }
        }
        // Another primary is worth another try at once, and owes nothing to the one before.
        if tokio::time::timeout(backoff.after_failure(), topology.changed()).await.is_ok() {
            backoff.reset();
        }
    }
}

/// Why a claim did not open its partition.
enum Failed {
    /// It is closed until it is repaired.
    Lost(Loss),
    Again(EngineError),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::DataLoss(what) => Self::Lost(Loss { what, stored: None }),
            error => Self::Again(error),
        }
    }
}

/// A claim that the store has taken.
pub(super) struct Taken {
    pub(super) token: [u8; 16],
    pub(super) node: Arc<Node>,
    pub(super) claimed: Claimed,
}

/// Writes a new token into the store: whoever held the partition before is fenced.
pub(super) async fn take(hub: &Arc<Hub>, partition: &Arc<Partition>) -> Result<Taken, EngineError> {
    let Some(primary) = hub.primary_of(partition.number) else {
        hub.watcher.look_again();
        return Err(EngineError::Unavailable("no primary has the partition".into()));
    };
    let node = hub.node(&primary);
    let token: [u8; 16] = rand::rng().random();
    let call = Call::mutation("k1_claim", &partition.key, &token, 0).arg(hub.view.me()).arg(&hub.meta);
    let (done, answer) = oneshot::channel();
    let end = Instant::now() + ATTEMPT;
    let item = Item {
        partition: partition.clone(),
        claim: None,
        command: call.command,
        bytes: call.bytes,
        emits: Emits::Nothing,
        end,
        done,
    };
    node.submit_patiently(item).await?;
    let values = match tokio::time::timeout_at(end, answer).await {
        Ok(Ok(outcome)) => outcome?,
        Ok(Err(_)) => return Err(EngineError::Unavailable("the storage engine's node is gone".into())),
        Err(_) => return Err(EngineError::Deadline),
    };
    let claimed = wire::read_claim(&values)
        .ok_or_else(|| EngineError::DataLoss(format!("{}: the claim's answer cannot be read", partition.key)))?;
    Ok(Taken { token, node, claimed })
}

async fn attempt(hub: &Arc<Hub>, partition: &Arc<Partition>) -> Result<(), Failed> {
    let Taken { token, node, claimed: Claimed { ver, entries, before } } = take(hub, partition).await?;
    let high = partition.high.load(std::sync::atomic::Ordering::Acquire);
    if ver < high {
        metrics::counter!("kith_storage_data_loss_total").increment(1);
        let what = format!("partition {}: version {ver} is stored, {high} was acknowledged", partition.number);
        return Err(Failed::Lost(Loss { what, stored: Some(ver) }));
    }
    tracing::debug!(partition = partition.number, ver, entries, %before, "claimed");
    partition.high.fetch_max(ver, std::sync::atomic::Ordering::AcqRel);
    let claim = Arc::new(Claim::new(token, node, ver));
    hub.opened();
    hub.outbox.opened(hub, partition, &claim, ver, entries);
    Ok(())
}
