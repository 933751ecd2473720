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

use super::milestones::Milestones;
use crate::dataplane::{
    readiness::ShardHealth,
    types::{Problem, Reason},
};

/// Replicas must have been missing for so long: what is restarted or fails over is back sooner.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is remembered of shards whose writes fewer replicas acknowledge, or soon do no longer.
#[derive(Debug, Default)]
pub struct Shortage {
    /// Since when each shard has fewer replicas in step than must acknowledge.
    since: HashMap<String, Instant>,
    /// By shard, how far its primary had written when it was first seen to want as many as it does now: whoever holds the stream up to there
    /// holds whatever was acknowledged by fewer.
    told: Milestones,
}

/// Whether the StorageShard says that fewer replicas acknowledge.
pub(super) fn is_lowered(shard: &StorageShard) -> bool {
    let conditions = shard.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::get(conditions, conditions::DEGRADED)
        .is_some_and(|c| c.status == "True" && c.reason == reason::ACKNOWLEDGEMENT_LOWERED)
}

/// How many replicas certainly hold each acknowledged write, as the StorageShard has it; a new one as many as are asked for.
pub(super) fn sure(asked: u32, shard: &StorageShard) -> u32 {
    shard.status.as_ref().and_then(|s| s.ack_replicas).unwrap_or(asked).min(asked)
}

fn in_step(health: &ShardHealth) -> usize {
    health.members.iter().filter(|m| m.in_step && !m.primary).count()
}

/// How many replicas the engine must want for a write: all that were asked for, or none while it is lowered and they are not back. Where
/// that is permitted no longer, all at once: nothing more is acknowledged by fewer.
pub(super) fn wanted(asked: u32, lowered: bool, policy: WhenDegraded, last: Option<&ShardHealth>) -> u32 {
    let back = last.is_some_and(|h| h.primary.is_some() && in_step(h) >= asked as usize);
    if lowered && policy == WhenDegraded::Accept && !back { 0 } else { asked }
}

impl Shortage {
    /// Whether at least `asked` replicas hold everything that was acknowledged before the primary began to want as many.
    fn is_settled(&mut self, asked: u32, health: &ShardHealth) -> bool {
        if health.wanted != Some(asked) || health.primary.is_none() {
            self.told.forget(&health.shard);
            return false;
        }
        self.told.reached(&health.shard, asked, health, |_| true)
    }

    /// How many replicas certainly hold each acknowledged write from now on, when it was `sure` until now and `asked` are asked for: fewer
    /// at once, more when they are all written and held. Promotion counts by it.
    pub(super) fn sure(&mut self, asked: u32, sure: u32, health: &ShardHealth) -> u32 {
        if asked <= sure || self.is_settled(asked, health) { asked } else { sure }
    }

    /// What is to be said of a shard, if fewer replicas are to acknowledge from now on, or still.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        policy: WhenDegraded,
        asked: u32,
        lowered: bool,
        health: &ShardHealth,
    ) -> Option<Problem> {
        let left = in_step(health);
        if lowered {
            // A primary that is silent for a moment ends nothing that was begun.
            if self.is_settled(asked, health) {
                self.since.remove(&health.shard);
                return None;
            }
        } else {
            let short = left < asked as usize && health.primary.is_some() && policy == WhenDegraded::Accept;
            if !short {
                self.since.remove(&health.shard);
                return None;
            }
            let since = *self.since.entry(health.shard.clone()).or_insert(now);
            if now.saturating_duration_since(since) < PATIENCE {
                return None;
            }
            self.told.forget(&health.shard);
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
    fn it_stays_lowered_across_operators_until_enough_replicas_hold_all_that_was_acknowledged_by_fewer() {
        let (mut fresh, now) = (Shortage::default(), Instant::now());
        let mut judge = |health: &ShardHealth| fresh.judge(now, WhenDegraded::Accept, 1, true, health).is_some();
        assert!(judge(&health(2)));
        // They are back, and the engine is not told yet: what is acknowledged now may be on none of them.
        let mut back = ShardHealth { wanted: Some(0), ..health(1) };
        assert!(judge(&back));
        (back.wanted, back.offset) = (Some(1), 2_000);
        assert!(judge(&back), "told, and the replicas are behind what was written before");
        back.offset = 2_500;
        back.members[1].offset = 1_999;
        assert!(judge(&back));
        back.members.iter_mut().for_each(|m| m.offset = 2_000);
        assert!(!judge(&back));
    }

    #[test]
    fn the_engine_wants_all_again_when_they_are_back_or_fewer_are_no_longer_permitted() {
        let accept = |lowered, last: Option<&ShardHealth>| wanted(1, lowered, WhenDegraded::Accept, last);
        assert_eq!(accept(true, None), 0);
        assert_eq!(accept(true, Some(&health(2))), 0);
        assert_eq!(accept(true, Some(&health(1))), 1);
        assert_eq!(accept(false, Some(&health(2))), 1);
        assert_eq!(wanted(1, true, WhenDegraded::Refuse, Some(&health(2))), 1);
        let (mut shortage, now) = (Shortage::default(), Instant::now());
        let refused = shortage.judge(now, WhenDegraded::Refuse, 1, true, &health(2));
        assert!(refused.is_some(), "what was acknowledged by fewer is still on them alone");
    }

    #[test]
    fn a_raised_count_is_sure_when_all_that_was_written_before_is_held_by_as_many() {
        let mut shortage = Shortage::default();
        let mut health = ShardHealth { wanted: Some(1), ..health(0) };
        assert_eq!(shortage.sure(2, 1, &health), 1, "the engine is not told");
        health.wanted = Some(2);
        health.offset = 5_000;
        assert_eq!(shortage.sure(2, 1, &health), 1);
        health.members.iter_mut().skip(1).for_each(|m| m.offset = 5_000);
        assert_eq!(shortage.sure(2, 1, &health), 2);
        assert_eq!(shortage.sure(1, 2, &health), 1, "fewer at once");
    }
}
