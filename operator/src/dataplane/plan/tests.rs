//! Plans against the cluster in memory: it must come to rest where it should, and stop where it must not write.

use super::*;
use crate::dataplane::{
    fake::{Fake, desired, id},
    readiness::readiness,
    slots::SLOTS,
};

fn reasons(plan: &Plan) -> Vec<Reason> {
    plan.problems.iter().map(|p| p.reason).collect()
}

#[test]
fn empty_nodes_become_a_whole_cluster() {
    for shards in [1, 3] {
        let wish = desired(shards);
        let mut fake = Fake::empty(&wish);
        fake.settle(&wish, 20);
        let ready = readiness(&wish, &fake.observe(&wish));
        assert!(ready.is_ready(), "{:?}", ready.problems);
        assert_eq!(ready.slots_served, u32::from(SLOTS));
        let epochs: std::collections::BTreeSet<u64> = fake.nodes.iter().map(|n| n.epoch).collect();
        assert_eq!(epochs.len(), fake.nodes.len(), "every node has an epoch of its own");
    }
}

#[test]
fn a_whole_cluster_is_left_alone() {
    let wish = desired(3);
    let fake = Fake::formed(&wish);
    for formed in [false, true] {
        let plan = plan(&Desired { formed, ..wish.clone() }, &fake.observe(&wish));
        assert!(plan.is_clean(), "{plan:?}");
    }
}

#[test]
fn forming_that_is_cut_off_anywhere_goes_on() {
    let wish = desired(2);
    let mut fake = Fake::empty(&wish);
    let mut rng = 7_u32;
    for _ in 0..200 {
        let actions = plan(&wish, &fake.observe(&wish)).actions;
        // Only a part of each stage is carried out before the operator dies.
        for action in actions.iter().take(1 + (rng % 2) as usize) {
            fake.obey(&wish, action);
        }
        rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) >> 3;
    }
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

#[test]
fn weights_decide_about_the_first_partitions() {
    let mut wish = desired(3);
    wish.shards[2].weight = 200;
    wish.shards[0].draining = true;
    let given = allocate(&wish);
    assert!(given[0].1.is_empty());
    assert_eq!((given[1].1.len() + given[2].1.len()), u32::from(SLOTS));
    assert!((f64::from(given[2].1.len()) / f64::from(given[1].1.len()) - 2.0).abs() < 0.02);
    assert!(given.iter().all(|(_, s)| s.len() % 16 == 0), "partitions stay whole");
}

#[test]
fn a_new_shard_joins_without_slots() {
    let mut fake = Fake::formed(&desired(1));
    let wish = Desired { formed: true, ..desired(2) };
    let fresh = Fake::empty(&wish);
    fake.nodes.extend(fresh.nodes.into_iter().filter(|n| n.shard == "demo-1"));
    fake.settle(&wish, 20);
    let ready = readiness(&wish, &fake.observe(&wish));
    assert!(ready.is_ready(), "{:?}", ready.problems);
    assert!(ready.shards[1].slots.is_empty() && ready.shards[1].whole);
    assert!(ready.shards[0].slots == crate::dataplane::slots::SlotSet::all());
}

#[test]
fn slots_without_an_owner_are_never_given_out_again() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::empty(&wish);
    for _ in 0..20 {
        for action in plan(&wish, &fake.observe(&wish)).actions {
            assert!(!matches!(action, Action::AddSlots { .. }));
            fake.obey(&wish, &action);
        }
    }
    let plan = plan(&wish, &fake.observe(&wish));
    let problem = plan.problems.iter().find(|p| p.reason == Reason::SlotsUncovered).expect("said in words");
    assert!(problem.command.as_ref().is_some_and(|c| c.contains("ADDSLOTSRANGE 0 16383")), "{problem}");
}

#[test]
fn forming_waits_for_every_member() {
    let wish = desired(1);
    let mut fake = Fake::empty(&wish);
    fake.nodes[2].up = false;
    for _ in 0..20 {
        for action in plan(&wish, &fake.observe(&wish)).actions {
            assert!(!matches!(action, Action::AddSlots { .. } | Action::Replicate { .. }));
            fake.obey(&wish, &action);
        }
    }
    fake.nodes[2].up = true;
    fake.settle(&wish, 20);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

#[test]
fn data_of_another_cluster_stop_everything() {
    let other = Desired { cluster_uid: "somebody-else".to_owned(), ..desired(1) };
    let fake = Fake::formed(&other);
    let plan = plan(&desired(1), &fake.observe(&other));
    assert!(plan.actions.is_empty());
    assert_eq!(reasons(&plan)[0], Reason::ForeignData);
    assert!(plan.problems[0].message.contains("somebody-else"));
}

#[test]
fn unmarked_data_stop_forming() {
    let wish = desired(1);
    let mut fake = Fake::empty(&wish);
    fake.nodes[1].keys = 3;
    let plan = plan(&wish, &fake.observe(&wish));
    assert!(plan.actions.is_empty());
    assert_eq!(reasons(&plan), [Reason::ForeignData]);
}

#[test]
fn a_member_with_slots_that_the_cluster_does_not_know_stays_outside() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::formed(&desired(1));
    let gone = fake.nodes[2].id.clone();
    for node in &mut fake.nodes {
        node.known.retain(|(id, _)| *id != gone);
    }
    let node = &mut fake.nodes[2];
    (node.replicates, node.id, node.slots, node.epoch) =
        (None, id(99), crate::dataplane::slots::SlotSet::from_ranges([(0, 99)]), 0);
    node.known.clear();
    let plan = plan(&wish, &fake.observe(&wish));
    assert!(plan.actions.iter().all(|a| !matches!(a, Action::Meet { .. })), "{plan:?}");
    assert!(reasons(&plan).contains(&Reason::ForeignData));
}

#[test]
fn pods_with_new_addresses_are_introduced_again() {
    let mut wish = Desired { formed: true, ..desired(3) };
    let mut fake = Fake::formed(&desired(3));
    for (shard, n) in wish.shards.iter_mut().zip(0..) {
        for (member, i) in shard.members.iter_mut().zip(0..) {
            let new = SocketAddr::from(([10, 9, n, i], 6379));
            fake.node(&member.pod).address = new;
            member.address = Some(new);
        }
    }
    assert!(matches!(plan(&wish, &fake.observe(&wish)).actions[0], Action::Meet { .. }));
    fake.settle(&wish, 20);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

#[test]
fn a_replaced_member_joins_and_the_lost_one_is_forgotten() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::formed(&desired(1));
    let mut lost = fake.nodes[2].clone();
    lost.up = false;
    lost.address = SocketAddr::from(([10, 0, 7, 7], 6379));
    let mut fresh = Fake::empty(&wish).nodes.remove(2);
    fresh.id = id(50);
    fake.nodes[2] = fresh;
    let ghost = lost.id.clone();
    fake.nodes.push(lost);
    fake.settle(&wish, 20);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
    assert!(fake.nodes.iter().all(|n| n.known.iter().all(|(known, _)| *known != ghost)));
}

#[test]
fn an_owner_of_slots_is_never_forgotten() {
    let wish = Desired { formed: true, ..desired(2) };
    let mut fake = Fake::formed(&desired(2));
    // The whole of shard 1 comes back empty, under new ids; its slots belong to a node that is gone.
    for n in 3..6 {
        let mut lost = fake.nodes[n].clone();
        lost.up = false;
        lost.address = SocketAddr::from(([10, 0, 8, n as u8], 6379));
        let mut fresh = Fake::empty(&wish).nodes.remove(n);
        fresh.id = id(60 + n);
        fake.nodes[n] = fresh;
        fake.nodes.push(lost);
    }
    for _ in 0..20 {
        for action in plan(&wish, &fake.observe(&wish)).actions {
            if let Action::Forget { id, .. } = &action {
                let owner = fake.nodes.iter().find(|n| n.id == *id).expect("known");
                assert!(owner.slots.is_empty(), "an owner was forgotten");
            }
            fake.obey(&wish, &action);
        }
    }
    let plan = plan(&wish, &fake.observe(&wish));
    assert!(reasons(&plan).contains(&Reason::OwnerMissing), "{plan:?}");
}

#[test]
fn a_lost_library_and_a_wrong_setting_are_put_right() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::formed(&desired(1));
    fake.nodes[1].library = false;
    fake.nodes[1].wrong = vec![("cluster-replica-no-failover".to_owned(), "no".to_owned())];
    let first = plan(&wish, &fake.observe(&wish)).actions;
    assert_eq!(
        first,
        [Action::Set {
            pod: "demo-0-valkey-1".to_owned(),
            name: "cluster-replica-no-failover".to_owned(),
            value: "yes".to_owned()
        }]
    );
    fake.settle(&wish, 20);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

#[test]
fn the_old_primary_follows_the_new_one() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::formed(&desired(1));
    fake.takeover("demo-0-valkey-1");
    // It came back emptied and did not join by itself.
    let old = fake.node("demo-0-valkey-0");
    (old.replicates, old.keys) = (None, 0);
    let plan = plan(&wish, &fake.observe(&wish));
    assert_eq!(plan.actions, [Action::Replicate { pod: "demo-0-valkey-0".to_owned(), primary: id(2) }]);
    fake.settle(&wish, 5);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

/// The primary of the second shard, which owns nothing, was replaced and is back: both call themselves primaries, and the third follows the
/// old one, whose epoch is the lower.
fn returned() -> (Desired, Fake) {
    let mut fake = Fake::formed(&desired(1));
    let wish = Desired { formed: true, ..desired(2) };
    fake.nodes.extend(Fake::empty(&wish).nodes.into_iter().filter(|n| n.shard == "demo-1"));
    fake.settle(&wish, 20);
    let top = fake.nodes.iter().map(|n| n.epoch).max().expect("nodes");
    let heir = fake.nodes.iter_mut().find(|n| n.shard == "demo-1" && n.replicates.is_some()).expect("a replica");
    (heir.replicates, heir.epoch) = (None, top + 1);
    (wish, fake)
}

#[test]
fn whoever_leads_an_empty_shard_outranks_who_led_it_before_that_one_follows() {
    let (wish, mut fake) = returned();
    assert!(matches!(plan(&wish, &fake.observe(&wish)).actions[..], [Action::Raise { .. }]));
    // The fake refuses a replica that the others would not believe.
    fake.settle(&wish, 20);
    assert!(readiness(&wish, &fake.observe(&wish)).is_ready());
}

#[test]
fn a_replica_that_the_others_still_take_for_the_primary_it_was_is_put_right() {
    let (wish, fake) = returned();
    let mut seen = fake.observe(&wish);
    let heir = fake.nodes.iter().filter(|n| n.shard == "demo-1").max_by_key(|n| n.epoch).expect("nodes");
    let leads = fake.nodes.iter().find(|n| n.shard == "demo-1" && n.replicates.is_none() && n.id != heir.id);
    let leads = leads.expect("the old primary");
    let node = seen.nodes.iter_mut().find(|n| n.pod == heir.pod).expect("a pod");
    let crate::dataplane::types::Seen::Up(state) = &mut node.seen else { panic!("it is up") };
    // It follows already, and only it knows.
    state.role = Role::Replica { link_up: true, last_io_s: Some(0), down_s: None, syncing: false };
    let me = state.view.iter_mut().find(|n| n.myself).expect("itself");
    (me.primary, me.replicates, me.epoch) = (false, Some(leads.id.clone()), leads.epoch);
    assert_eq!(plan(&wish, &seen).actions, [Action::Raise { pod: leads.pod.clone() }]);
}

#[test]
fn a_hidden_node_is_a_problem_in_words() {
    let wish = Desired { formed: true, ..desired(1) };
    let mut fake = Fake::formed(&desired(1));
    let mut stray = fake.nodes[2].clone();
    (stray.id, stray.address, stray.replicates) = (id(77), SocketAddr::from(([10, 1, 1, 1], 6379)), None);
    let known = (stray.id.clone(), stray.address);
    fake.nodes[0].known.push(known);
    fake.nodes.push(stray);
    let plan = plan(&wish, &fake.observe(&wish));
    assert_eq!(reasons(&plan), [Reason::StrayNode]);
    assert!(plan.actions.is_empty());
}
