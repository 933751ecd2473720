//! Which pods of a shard may hold acknowledged writes: promotion counts by them, so the list is written down before a pod can become one of
//! them, and keeps those that were taken away until the others hold all that was acknowledged meanwhile. Pure.

use super::milestones::Milestones;
use crate::{
    dataplane::{
        readiness::ShardHealth,
        types::{DesiredShard, Member, Presence},
    },
    render::meta,
};

/// Whether a pod is one more than is wanted.
pub(super) fn is_surplus(shard: &DesiredShard, pod: &str) -> bool {
    meta::ordinal(pod).is_some_and(|ordinal| ordinal > shard.replicas)
}

/// By pod, how far its primary had written when the pod was first seen to be gone.
#[derive(Debug, Default)]
pub struct Departures(Milestones);

impl Departures {
    /// The pods that may hold acknowledged writes from now on. `asked` replicas acknowledge each.
    pub(super) fn copies(&mut self, shard: &DesiredShard, asked: u32, health: &ShardHealth) -> Vec<String> {
        let stays = |member: &&Member| {
            if is_surplus(shard, &member.pod) {
                return member.copy && !self.is_dispensable(shard, member, asked, health);
            }
            // It is about to be let in.
            member.copy || member.presence == Presence::Running
        };
        shard.members.iter().filter(stays).map(|member| member.pod.clone()).collect()
    }

    /// Whether a pod that was taken away is gone, and the others hold all that it may have acknowledged.
    fn is_dispensable(&mut self, shard: &DesiredShard, member: &Member, asked: u32, health: &ShardHealth) -> bool {
        let gone = member.uid.is_empty() && member.presence == Presence::Gone;
        if !gone || health.primary.is_none() {
            self.0.forget(&member.pod);
            return false;
        }
        self.0.reached(&member.pod, asked, health, |m| !is_surplus(shard, &m.pod))
    }
}

/// Whether the StatefulSet may take away the pods that are more than wanted: none of them leads, and all that stay are in step.
pub(super) fn may_shrink(shard: &DesiredShard, health: &ShardHealth) -> bool {
    let leads = health.primary.as_deref().is_some_and(|primary| !is_surplus(shard, primary));
    leads && health.members.iter().filter(|m| !is_surplus(shard, &m.pod)).all(|m| m.in_step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        promote::{self, LastKnown, Verdict},
        readiness::readiness,
        types::Desired,
    };

    fn stage() -> (Desired, Fake) {
        let desired = Desired { formed: true, ..desired(1) };
        let fake = Fake::formed(&Desired { formed: false, ..desired.clone() });
        (desired, fake)
    }

    fn health(desired: &Desired, fake: &Fake) -> ShardHealth {
        readiness(desired, &fake.observe(desired)).shards.remove(0)
    }

    #[test]
    fn a_new_pod_is_written_down_when_it_runs_and_counts_for_nothing_before() {
        let (mut desired, mut fake) = stage();
        desired.shards[0].members[2].copy = false;
        desired.shards[0].members[2].presence = Presence::Starting;
        let copies = |desired: &Desired, fake: &Fake| {
            Departures::default().copies(&desired.shards[0], 1, &health(desired, fake))
        };
        assert_eq!(copies(&desired, &fake).len(), 2);
        desired.shards[0].members[2].presence = Presence::Running;
        assert_eq!(copies(&desired, &fake).len(), 3);
        // The primary dies meanwhile: one replica of one is enough, whatever the new pod is.
        let dead = fake.nodes[0].id.clone();
        fake.nodes[0].up = false;
        fake.nodes[2].up = false;
        let verdict = |desired: &Desired, fake: &Fake| {
            promote::verdict(desired, &desired.shards[0], &dead, &LastKnown::default(), &fake.observe(desired))
        };
        assert!(matches!(verdict(&desired, &fake), Verdict::Promote { .. }));
        desired.shards[0].members[2].copy = true;
        assert!(matches!(verdict(&desired, &fake), Verdict::Blocked(_)), "it may hold what the other does not");
    }

    #[test]
    fn a_pod_that_was_taken_away_counts_until_the_others_hold_what_it_may_have_acknowledged() {
        let (mut desired, mut fake) = stage();
        desired.shards[0].replicas = 1;
        assert!(
            is_surplus(&desired.shards[0], "demo-0-valkey-2") && !is_surplus(&desired.shards[0], "demo-0-valkey-1")
        );
        let mut departures = Departures::default();
        let mut copies =
            |desired: &Desired, health: &ShardHealth| departures.copies(&desired.shards[0], 1, health).len();
        assert_eq!(copies(&desired, &health(&desired, &fake)), 3, "it is still there");
        fake.nodes[2].up = false;
        let member = &mut desired.shards[0].members[2];
        (member.presence, member.uid) = (Presence::Gone, String::new());
        fake.nodes[0].offset = 2_000;
        fake.nodes[1].offset = 1_990;
        assert_eq!(copies(&desired, &health(&desired, &fake)), 3, "ten bytes are on the primary alone");
        fake.nodes[0].offset = 2_100;
        fake.nodes[1].offset = 2_000;
        assert_eq!(copies(&desired, &health(&desired, &fake)), 2, "all that was written before it left");
    }

    #[test]
    fn pods_are_taken_away_only_when_none_of_them_leads_and_the_rest_is_in_step() {
        let (mut desired, mut fake) = stage();
        desired.shards[0].replicas = 1;
        assert!(may_shrink(&desired.shards[0], &health(&desired, &fake)));
        fake.nodes[1].link_up = false;
        assert!(!may_shrink(&desired.shards[0], &health(&desired, &fake)));
        fake.nodes[1].link_up = true;
        fake.takeover("demo-0-valkey-2");
        assert!(!may_shrink(&desired.shards[0], &health(&desired, &fake)), "it leads");
    }
}
