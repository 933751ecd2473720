//! `whenDegraded: accept`: when writes may be acknowledged by fewer replicas than asked for, and when no longer. Pure.
//!
//! The decision is written into the StorageShard's condition Degraded before the engine is told, and is read from there: an operator that comes
//! later must not promote an absent copy, since none need hold what was acknowledged meanwhile. It ends when enough replicas are in step.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kith_crds::{
    StorageShard,
    chatcluster::WhenDegraded,
    conditions::{self, reason},
};

use crate::dataplane::{
    readiness::ShardHealth,
    types::{Problem, Reason},
};

/// Replicas must have been missing for so long: what is restarted or fails over is back sooner.
const PATIENCE: Duration = Duration::from_secs(15);

/// Since when each shard has fewer replicas in step than must acknowledge.
#[derive(Debug, Default)]
pub struct Shortage(HashMap<String, Instant>);

/// Whether the StorageShard says that fewer replicas acknowledge.
pub(super) fn is_lowered(shard: &StorageShard) -> bool {
    let conditions = shard.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::get(conditions, conditions::DEGRADED)
        .is_some_and(|c| c.status == "True" && c.reason == reason::ACKNOWLEDGEMENT_LOWERED)
}

fn in_step(health: &ShardHealth) -> usize {
    health.members.iter().filter(|m| m.in_step && !m.primary).count()
}

/// How many replicas the engine must want for a write: all that were asked for, or none while it is lowered and they are not back.
pub(super) fn wanted(asked: u32, lowered: bool, last: Option<&ShardHealth>) -> u32 {
    let back = last.is_some_and(|h| h.primary.is_some() && in_step(h) >= asked as usize);
    if lowered && !back { 0 } else { asked }
}

impl Shortage {
    /// What is to be said of a shard, if fewer replicas are to acknowledge from now on, or still. `raised` says that the engine wants all
    /// of them again.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        policy: WhenDegraded,
        asked: u32,
        lowered: bool,
        health: &ShardHealth,
    ) -> Option<Problem> {
        let left = in_step(health);
        let enough = left >= asked as usize;
        if enough || health.primary.is_none() || policy == WhenDegraded::Refuse {
            self.0.remove(&health.shard);
        }
        let since = match (enough, health.primary.is_some(), policy) {
            (false, true, WhenDegraded::Accept) => *self.0.entry(health.shard.clone()).or_insert(now),
            // A primary that is silent for a moment ends nothing that was begun.
            (false, false, _) if lowered => now,
            _ => return None,
        };
        if !lowered && now.saturating_duration_since(since) < PATIENCE {
            return None;
        }
        let message = format!(
            "{left} of the {asked} replicas that should hold a write are in step, and whenDegraded: accept lets the copies that are left acknowledge. No absent copy is promoted until they are back: if the primary is lost now, what it acknowledged meanwhile is lost with it."
        );
        Some(Problem::new(Reason::AcknowledgementLowered, message).of(&health.shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        readiness::readiness,
        types::Desired,
    };

    fn health(missing: usize) -> ShardHealth {
        let wish = desired(1);
        let mut fake = Fake::formed(&wish);
        for node in fake.nodes.iter_mut().skip(1).take(missing) {
            node.up = false;
        }
        let wish = Desired { formed: true, ..wish };
        readiness(&wish, &fake.observe(&wish)).shards.remove(0)
    }

    #[test]
    fn acknowledgement_is_lowered_after_patience_and_only_when_permitted() {
        let (mut shortage, begin) = (Shortage::default(), Instant::now());
        let later = begin + PATIENCE;
        let short = health(2);
        assert_eq!(shortage.judge(begin, WhenDegraded::Accept, 1, false, &short), None);
        assert!(shortage.judge(later, WhenDegraded::Accept, 1, false, &short).is_some());
        assert_eq!(shortage.judge(later, WhenDegraded::Refuse, 1, false, &short), None);
        assert_eq!(shortage.judge(later, WhenDegraded::Accept, 1, false, &short), None, "patience begins anew");
        assert_eq!(shortage.judge(later, WhenDegraded::Accept, 1, false, &health(1)), None, "one is enough");
    }

    #[test]
    fn it_stays_lowered_across_operators_until_enough_replicas_are_in_step() {
        let mut fresh = Shortage::default();
        assert!(fresh.judge(Instant::now(), WhenDegraded::Accept, 1, true, &health(2)).is_some());
        assert_eq!(wanted(1, true, None), 0);
        assert_eq!(wanted(1, true, Some(&health(2))), 0);
        assert_eq!(wanted(1, true, Some(&health(1))), 1);
        assert_eq!(fresh.judge(Instant::now(), WhenDegraded::Accept, 1, true, &health(1)), None);
        assert_eq!(wanted(1, false, Some(&health(2))), 1);
    }
}
