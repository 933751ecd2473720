//! Trims the outboxes of partitions that have gone quiet: where writes go on, each takes the trim along.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    hub::Hub,
    node::Item,
    wire::{Call, Emits},
};

/// Between two looks, and how long a trim may take.
const QUIET: Duration = Duration::from_secs(5);

/// Trims partitions whose last events were published after their last write.
pub(super) async fn quiet(hub: Arc<Hub>, end: CancellationToken) {
    while end.run_until_cancelled(tokio::time::sleep(QUIET)).await.is_some() {
        for partition in &hub.partitions {
            let (published, trimmed) = {
                let backlog = partition.backlog.lock();
                (backlog.published, backlog.trimmed)
            };
            let Some(claim) = partition.claim() else { continue };
            if published <= trimmed {
                continue;
            }
            let call = Call::mutation("k1_trim", &partition.key, &claim.token, published);
            let (done, answer) = oneshot::channel();
            let node = claim.node.clone();
            let end = Instant::now() + QUIET;
            let item = Item {
                partition: partition.clone(),
                claim: Some(claim),
                command: call.command,
                bytes: call.bytes,
                emits: Emits::Nothing,
                end,
                done,
            };
            if node.submit(item).is_ok() && matches!(answer.await, Ok(Ok(_))) {
                let mut backlog = partition.backlog.lock();
                backlog.trimmed = backlog.trimmed.max(published.min(backlog.published));
            }
        }
    }
}
