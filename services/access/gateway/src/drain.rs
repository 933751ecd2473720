//! Draining: clients are told when to come back and are let go at a paced rate, so that the other gateways meet no herd.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::{
    accept::Gate,
    registry::{Command, Registry},
};

/// Between two groups of clients.
const STEP: Duration = Duration::from_millis(50);
/// Clients come back within this, each at its own moment.
const AFTER_MS: std::ops::RangeInclusive<u64> = 100..=3_000;

/// Lets all sessions go at `per_second`, until `deadline`; then whatever is left at once.
pub(crate) async fn drain(registry: &Registry, gate: &Gate, per_second: u32, deadline: Instant) {
    let sessions = registry.snapshot();
    tracing::info!(sessions = sessions.len(), "draining");
    let group = group(per_second);
    let paced = async {
        let mut tick = tokio::time::interval(STEP);
        for sessions in sessions.chunks(group) {
            tick.tick().await;
            for session in sessions {
                session.tell(Command::Drain { after_ms: rand::rng().random_range(AFTER_MS) });
            }
        }
        while gate.open() > 0 {
            // Those that came in meanwhile, and those that have not answered yet.
            tick.tick().await;
            for session in registry.snapshot() {
                session.tell(Command::Drain { after_ms: rand::rng().random_range(AFTER_MS) });
            }
        }
    };
    if tokio::time::timeout_at(deadline, paced).await.is_err() {
        tracing::warn!(left = registry.len(), "the drain's time is over; closing the rest");
    }
}

/// Clients of one step.
fn group(per_second: u32) -> usize {
    let steps_per_second = (1_000 / STEP.as_millis()).max(1) as u32;
    per_second.div_ceil(steps_per_second).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_in_steps_and_never_stops() {
        assert_eq!(group(500), 25);
        assert_eq!(group(1), 1);
        assert_eq!(group(0), 1);
    }
}
