//! Primaries outrank a taker of slots that died while it took them. Pure but for the last function.
//!
//! A taker writes its claim to its own disk before anybody hears of it. When it dies in between, the giver has the slots still, and after a
//! while goes on with writes; the replica that takes the dead one's place knows nothing of the claim. Back on its feet, the old taker would
//! win the slots with its claim's epoch, and what the giver acknowledged meanwhile would be thrown away. That epoch is at most one above all
//! that was known when it died: so a giver two above is safe, and can be let go on at once.
//!
//! Nor may any other primary have the claim's epoch: of two with the same one the engine raises that of the lower id above all
//! (`clusterHandleConfigEpochCollision`), and the heir's takeover is given the next epoch just as the claim was. So whoever may have the
//! same one rises as well. A node's epoch rises only while another's is as high, and so a third primary may have to rise in between.

use super::{
    apply::node_of,
    bus,
    link::{LinkError, Links},
    migrations::{Job, Jobs},
    ownership::Ownership,
    types::{Desired, KnownNode, NodeState, NodeView, Observation},
};
use crate::lease::LeaseGuard;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// No giver has anything to fear.
    Nothing,
    /// Not yet, and why.
    Wait(String),
    /// This pod's primary takes an epoch above all that it knows.
    Raise {
        /// The pod.
        pod: String,
    },
    /// This pod's primary stops waiting for the dead taker.
    Release {
        /// The pod.
        pod: String,
    },
}

/// The highest epoch that anybody knows of.
pub fn highest_known(seen: &Observation) -> u64 {
    seen.up().map(|(_, state)| state.current_epoch).max().unwrap_or(0)
}

/// Decides. `known` is the highest epoch that was known at some time after the taker died.
pub fn next(desired: &Desired, seen: &Observation, jobs: &Jobs, known: u64) -> Next {
    let ownership = Ownership::of(seen);
    let leads =
        |shard| ownership.primary_of(shard, seen).and_then(|id| seen.by_id(&id)).is_some_and(|(_, s)| s.is_primary());
    if let Some(shard) = desired.shards.iter().find(|shard| !leads(shard)) {
        return Next::Wait(format!("{} has no primary that answers", shard.name));
    }
    let stranded: Vec<(&NodeView, &NodeState, Vec<&Job>)> = seen
        .up()
        .filter(|(_, state)| state.is_primary())
        .filter_map(|(node, state)| {
            let mine = jobs.iter().filter(|(id, _)| *id == state.id).flat_map(|(_, jobs)| jobs);
            let lost: Vec<&Job> = mine.filter(|job| is_lost(job, state, seen)).collect();
            (!lost.is_empty()).then_some((node, state, lost))
        })
        .collect();
    if stranded.is_empty() {
        return Next::Nothing;
    }
    // A taker that lives may be just about to win slots by its epoch.
    if jobs.iter().flat_map(|(_, jobs)| jobs).any(|job| is_under_way(job, seen)) {
        return Next::Wait("other slots move".to_owned());
    }
    let epoch = |state: &NodeState| state.myself().map_or(0, |me| me.epoch);
    let mut primaries: Vec<_> = seen.up().filter(|(_, state)| state.is_primary()).collect();
    primaries.sort_by_key(|(_, state)| epoch(state));
    let top = primaries.last().map_or(0, |(_, state)| epoch(state));
    let safe = known + 2;
    for (node, state, lost) in &stranded {
        // It has heard of what the successor claims, then, and calls nothing its own that the successor has.
        if let Some(why) = bus::out_of_touch(seen, &state.id, None) {
            return Next::Wait(why);
        }
        // What the taker had before its claim; that was its own alone.
        let before = lost.iter().filter_map(|job| taker_of(job, state)).map(|taker| taker.epoch).min().unwrap_or(0);
        let must_rise = |other: &NodeState| epoch(other) < safe && (epoch(other) > before || other.id == state.id);
        if let Some(lowest) = primaries.iter().find(|(_, other)| must_rise(other)) {
            // The engine leaves the highest as it is: another one rises above it first.
            let (next, _) = if epoch(lowest.1) < top { lowest } else { &primaries[0] };
            return Next::Raise { pod: next.pod.clone() };
        }
        if lost.iter().any(|job| job.is_active()) {
            return Next::Release { pod: node.pod.clone() };
        }
    }
    Next::Nothing
}

/// The node that was to take the slots, as the giver knows it.
fn taker_of<'a>(job: &Job, giver: &'a NodeState) -> Option<&'a KnownNode> {
    job.target.as_ref().and_then(|target| giver.knows(target))
}

/// Whether slots move from a primary to one that answers.
fn is_under_way(job: &Job, seen: &Observation) -> bool {
    let answers = job.target.as_ref().is_some_and(|target| seen.by_id(target).is_some());
    job.export && job.is_active() && answers
}

/// Whether slots were to go to a node that is known and does not answer, and have not gone there as far as the giver knows.
fn is_lost(job: &Job, giver: &NodeState, seen: &Observation) -> bool {
    job.export && !job.is_done() && taker_of(job, giver).is_some_and(|taker| seen.by_id(&taker.id).is_none())
}

/// Carries a step out.
pub async fn carry_out(
    links: &Links,
    guard: &LeaseGuard,
    desired: &Desired,
    seen: &Observation,
    next: &Next,
) -> Result<(), LinkError> {
    let (pod, word) = match next {
        Next::Nothing | Next::Wait(_) => return Ok(()),
        Next::Raise { pod } => (pod, "BUMPEPOCH"),
        Next::Release { pod } => (pod, "CANCELSLOTMIGRATIONS"),
    };
    let Some((address, id)) = node_of(desired, seen, pod) else { return Ok(()) };
    let mut command = redis::cmd("CLUSTER");
    command.arg(word);
    links.write(address, &id, &command, guard).await?;
    tracing::warn!(cluster = %desired.cluster, %pod, command = word, "slots were going to a node that died: their giver keeps them");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        slots::SlotSet,
    };

    struct Stage {
        wish: Desired,
        fake: Fake,
        giver: usize,
        taker: usize,
        state: &'static str,
    }

    impl Stage {
        /// The first shard was giving to the second, whose primary is dead and replaced.
        fn new(state: &'static str) -> Self {
            let wish = Desired { formed: true, ..desired(3) };
            let mut fake = Fake::formed(&desired(3));
            let lead = |fake: &Fake, shard: &str| {
                fake.nodes.iter().position(|n| n.shard == shard && n.replicates.is_none()).expect("a primary")
            };
            let (giver, taker) = (lead(&fake, "demo-0"), lead(&fake, "demo-1"));
            fake.nodes[taker].up = false;
            let heir = fake.nodes.iter().find(|n| n.shard == "demo-1" && n.up).expect("a replica").pod.clone();
            fake.takeover(&heir);
            Self { wish, fake, giver, taker, state }
        }

        fn next(&self) -> Next {
            self.next_after(self.fake.nodes.iter().map(|n| n.epoch).max().expect("nodes"))
        }

        fn job(&self, taker: usize) -> Job {
            Job {
                name: "job".to_owned(),
                export: true,
                slots: SlotSet::from_ranges([(0, 15)]),
                target: Some(self.fake.nodes[taker].id.clone()),
                state: self.state.to_owned(),
                message: String::new(),
            }
        }

        fn next_after(&self, known: u64) -> Next {
            self.next_with(&vec![(self.fake.nodes[self.giver].id.clone(), vec![self.job(self.taker)])], known)
        }

        fn next_with(&self, jobs: &Jobs, known: u64) -> Next {
            next(&self.wish, &self.fake.observe(&self.wish), jobs, known)
        }
    }

    #[test]
    fn no_primary_is_left_with_an_epoch_that_the_claim_may_have_and_the_giver_waits_for_nobody() {
        // Also when the giver or the heir has the highest epoch already, which then does not rise by itself.
        for highest in ["demo-0", "demo-1", "demo-2"] {
            let mut stage = Stage::new("failover-granted");
            let giver = stage.fake.nodes[stage.giver].pod.clone();
            let top = stage.fake.nodes.iter().map(|n| n.epoch).max().expect("nodes") + 1;
            let lead = |n: &&mut crate::dataplane::fake::FakeNode| n.shard == highest && n.up && n.replicates.is_none();
            stage.fake.nodes.iter_mut().find(lead).expect("a primary").epoch = top;
            let mut raised = 0;
            while let Next::Raise { pod } = stage.next_after(top) {
                let now = stage.fake.nodes.iter().map(|n| n.epoch).max().expect("nodes");
                let node = stage.fake.node(&pod);
                assert!(node.epoch < now, "the engine leaves the highest as it is");
                node.epoch = now + 1;
                raised += 1;
                assert!(raised <= 6, "it never ends");
            }
            assert!(stage.fake.node(&giver).epoch >= top + 2);
            let before = stage.fake.nodes[stage.taker].epoch;
            for node in stage.fake.nodes.iter().filter(|n| n.up && n.replicates.is_none()) {
                assert!(node.epoch <= before || node.epoch >= top + 2, "{} has {} of {top}", node.pod, node.epoch);
            }
            assert_eq!(stage.next_after(top), Next::Release { pod: giver });
            stage.state = "failed";
            assert_eq!(stage.next_after(top), Next::Nothing);
        }
    }

    #[test]
    fn a_giver_whose_job_failed_rises_as_well() {
        assert!(matches!(Stage::new("failed").next(), Next::Raise { .. }));
        assert_eq!(Stage::new("success").next(), Next::Nothing);
    }

    #[test]
    fn nothing_is_done_before_the_successor_is_there_and_heard() {
        let mut stage = Stage::new("failed");
        let heir = stage
            .fake
            .nodes
            .iter()
            .position(|n| n.shard == "demo-1" && n.replicates.is_none() && n.up)
            .expect("an heir");
        stage.fake.nodes[heir].up = false;
        assert!(matches!(stage.next(), Next::Wait(_)));
        stage.fake.nodes[heir].up = true;
        let id = stage.fake.nodes[heir].id.clone();
        stage.fake.nodes[stage.giver].known.retain(|(known, _)| *known != id);
        assert!(matches!(stage.next(), Next::Wait(_)));
    }

    #[test]
    fn epochs_stay_while_other_slots_move() {
        let stage = Stage::new("failed");
        let (giver, third) = (stage.fake.nodes[stage.giver].id.clone(), "demo-2");
        let third = stage.fake.nodes.iter().find(|n| n.shard == third && n.replicates.is_none()).expect("a primary");
        let mut jobs = vec![stage.job(stage.taker), Job { state: "streaming".to_owned(), ..stage.job(stage.taker) }];
        jobs[1].target = Some(third.id.clone());
        assert!(matches!(stage.next_with(&vec![(giver, jobs)], 9), Next::Wait(_)));
    }

    #[test]
    fn a_taker_that_lives_or_is_forgotten_is_nothing_to_fear() {
        let mut stage = Stage::new("failed");
        stage.fake.nodes[stage.taker].up = true;
        assert_eq!(stage.next(), Next::Nothing);
        let mut stage = Stage::new("failed");
        let id = stage.fake.nodes[stage.taker].id.clone();
        stage.fake.nodes[stage.giver].known.retain(|(known, _)| *known != id);
        assert_eq!(stage.next(), Next::Nothing);
    }
}
