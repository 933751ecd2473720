//! What status says of a ChatCluster.

use serde_json::json;

use super::*;
use crate::dataplane::{readiness::ShardHealth, slots::SlotSet, types::Reason};

fn cluster() -> ChatCluster {
    serde_json::from_value(json!({
        "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
        "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1", "generation": 3}, "spec": {}
    }))
    .unwrap()
}

fn facts(problems: Vec<Problem>) -> Facts {
    let plan = Plan::resolve(&cluster(), &crate::plan::tests::release("0.1.0")).unwrap();
    let whole = problems.is_empty();
    let shard = ShardHealth {
        shard: "demo-0".to_owned(),
        primary: Some("demo-0-valkey-0".to_owned()),
        primary_id: None,
        slots: SlotSet::all(),
        wanted: None,
        history: String::new(),
        offset: 0,
        keys: 0,
        memory: 0,
        max_memory: 0,
        members: Vec::new(),
        whole,
    };
    let readiness = Readiness { shards: vec![shard], slots_served: 16_384, agreed: true, problems };
    let serving = |component| Workload {
        component,
        rollout: Some(Rollout { wanted: 2, ready: 2, newest: true, done: true }),
        waiting: false,
        trouble: None,
    };
    Facts {
        adopted: Some((plan.version.clone(), plan.images.clone())),
        workloads: plan.in_order().into_iter().map(|of| serving(of.service.into())).collect(),
        plan: Some(plan),
        storage: Some(StorageFacts::of(readiness)),
        event_log: Some(Some(Ok(()))),
        gateways: Some(Live::new()),
        ..Facts::default()
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap()
}

fn said<'a>(status: &'a ChatClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = conditions::get(&status.conditions, kind).unwrap();
    assert_eq!(condition.observed_generation, Some(3));
    (&condition.status, &condition.reason, &condition.message)
}

#[test]
fn a_platform_that_serves_is_ready_and_its_status_does_not_change() {
    let mut cluster = cluster();
    let first = status(&cluster, &facts(Vec::new()), now());
    assert_eq!(said(&first, conditions::READY).0, "True");
    assert_eq!(said(&first, conditions::LOGIC_READY), ("True", reason::ALL_READY, "sessions and tasks serve"));
    let access = "business and every Gateway serve";
    assert_eq!(said(&first, conditions::ACCESS_READY), ("True", reason::ALL_READY, access));
    assert_eq!(said(&first, conditions::PROGRESSING), ("False", "Idle", "nothing is under way"));
    cluster.status = Some(first.clone());
    let later = Timestamp::from_second(1_790_000_999).unwrap();
    assert_eq!(status(&cluster, &facts(Vec::new()), later), first);
}

#[test]
fn a_lagging_replica_is_not_ready_and_degraded() {
    let problem = Problem::new(Reason::ReplicaLagging, "not in step with the primary: demo-0-valkey-2").of("demo-0");
    let status = status(&cluster(), &facts(vec![problem]), now());
    assert_eq!(said(&status, conditions::STORAGE_READY).1, reason::REPLICA_LAGGING);
    assert_eq!(said(&status, conditions::READY).0, "False");
    assert_eq!(said(&status, conditions::DEGRADED).0, "True");
}

#[test]
fn ready_pods_alone_never_make_storage_ready() {
    let mut facts = facts(vec![Problem::new(Reason::SlotsUncovered, "0 of 16384 slots are served")]);
    if let Some(storage) = &mut facts.storage {
        storage.readiness.slots_served = 0;
    }
    assert_eq!(said(&status(&cluster(), &facts, now()), conditions::STORAGE_READY).0, "False");
}

#[test]
fn a_pass_that_failed_early_keeps_what_was_known_of_the_layers() {
    let mut cluster = cluster();
    cluster.status = Some(status(&cluster, &facts(Vec::new()), now()));
    let failure = Finding::fails(conditions::READY, reason::INVALID_SPEC, "spec.x is wrong");
    let failed = status(&cluster, &Facts { failure: Some(failure), ..Facts::default() }, now());
    assert_eq!(said(&failed, conditions::READY), ("False", reason::INVALID_SPEC, "spec.x is wrong"));
    assert_eq!(said(&failed, conditions::STORAGE_READY).0, "True");
    assert_eq!(failed.version.as_deref(), Some("0.1.0"));
}

#[test]
fn a_layer_that_waits_says_for_what() {
    let mut facts = facts(Vec::new());
    for workload in &mut facts.workloads[1..] {
        (workload.rollout, workload.waiting) = (None, true);
    }
    let status = status(&cluster(), &facts, now());
    assert_eq!(said(&status, conditions::LOGIC_READY).1, reason::WAITING_FOR_LAYER_BELOW);
    assert_eq!(said(&status, conditions::PROGRESSING).0, "True");
    assert!(said(&status, conditions::READY).2.starts_with("LogicReady: "));
}

#[test]
fn slots_owned_once_are_remembered_for_good() {
    let mut cluster = cluster();
    cluster.status = Some(status(&cluster, &facts(Vec::new()), now()));
    let mut lost = facts(vec![Problem::new(Reason::SlotsUncovered, "gone")]);
    if let Some(storage) = &mut lost.storage {
        storage.readiness.slots_served = 0;
    }
    assert_eq!(status(&cluster, &lost, now()).storage.unwrap().partitions, Some(1024));
}

#[test]
fn a_load_balancer_without_an_address_is_named_and_holds_up_nothing_else() {
    let mut facts = facts(Vec::new());
    let missing = vec!["demo-kafka-external-1".to_owned()];
    facts.brokers = Some(BrokerFacts { serving: 3, ready: 3, wanted: 3, missing, ..BrokerFacts::default() });
    let found = status(&cluster(), &facts, now());
    let (holds, word, message) = said(&found, conditions::EVENT_LOG_READY);
    assert_eq!((holds, word), ("False", reason::ADDRESS_PENDING));
    assert!(message.contains("demo-kafka-external-1"), "{message}");
    assert_eq!(said(&found, conditions::READY).1, reason::ADDRESS_PENDING);
    assert_eq!(said(&found, conditions::LOGIC_READY).0, "True");
}

#[test]
fn a_broker_that_is_behind_degrades_and_too_few_stop_the_log() {
    let mut facts = facts(Vec::new());
    let mut with = |ready| {
        facts.brokers = Some(BrokerFacts { serving: ready, ready, wanted: 3, ..BrokerFacts::default() });
        status(&cluster(), &facts, now())
    };
    let (one_away, two_away) = (with(2), with(1));
    assert_eq!(said(&one_away, conditions::EVENT_LOG_READY).0, "True");
    assert_eq!(said(&one_away, conditions::DEGRADED).0, "True");
    assert_eq!(said(&two_away, conditions::EVENT_LOG_READY).1, reason::PODS_NOT_READY);
}

#[test]
fn a_layer_that_serves_amid_a_rollout_is_ready_and_says_what_is_under_way() {
    let mut facts = facts(Vec::new());
    facts.wanted_below = Some("new".to_owned());
    let mut cluster = cluster();
    cluster.status = Some(status(&cluster, &facts, now()));
    assert_eq!(cluster.status.as_ref().unwrap().rolled_out.as_deref(), Some("new"));
    facts.workloads[0].rollout = Some(Rollout { wanted: 2, ready: 2, newest: false, done: false });
    for above in &mut facts.workloads[1..] {
        above.waiting = true;
    }
    let amid = status(&cluster, &facts, now());
    for (layer, word) in [
        (conditions::STORAGE_READY, reason::ROLLING_OUT),
        (conditions::LOGIC_READY, reason::WAITING_FOR_LAYER_BELOW),
        (conditions::ACCESS_READY, reason::WAITING_FOR_LAYER_BELOW),
    ] {
        assert_eq!((said(&amid, layer).0, said(&amid, layer).1), ("True", word), "{layer}");
    }
    assert_eq!(said(&amid, conditions::PROGRESSING).1, reason::ROLLING_OUT);
    assert_eq!(said(&amid, conditions::READY).0, "True");
    assert_eq!(amid.rolled_out, None, "Gateways wait");
    // A template that cannot start stops the layers above, and that is told.
    facts.workloads[0].trouble = Some((reason::IMAGE_PULL_FAILED, "pod a: no image".to_owned()));
    let stuck = status(&cluster, &facts, now());
    assert_eq!(
        (said(&stuck, conditions::DEGRADED).0, said(&stuck, conditions::DEGRADED).1),
        ("True", reason::IMAGE_PULL_FAILED)
    );
}

#[test]
fn a_store_that_refuses_writes_is_not_ready_although_every_layer_serves() {
    let mut full = facts(Vec::new());
    let shard = &mut full.storage.as_mut().unwrap().readiness.shards[0];
    (shard.memory, shard.max_memory) = (100, 100);
    let full = status(&cluster(), &full, now());
    assert_eq!(said(&full, conditions::STORAGE_READY).0, "True");
    let (ready, word, message) = said(&full, conditions::READY);
    assert_eq!((ready, word), ("False", reason::ENGINE_FULL));
    assert!(message.starts_with("MemoryPressure: demo-0 has used up"), "{message}");

    let mut high = facts(Vec::new());
    let shard = &mut high.storage.as_mut().unwrap().readiness.shards[0];
    (shard.memory, shard.max_memory) = (90, 100);
    let high = status(&cluster(), &high, now());
    assert_eq!(said(&high, conditions::READY).0, "True");
    assert_eq!(said(&high, conditions::DEGRADED).1, reason::ENGINE_MEMORY_HIGH);
}

#[test]
fn a_quota_that_refuses_all_pods_is_told_as_such_and_not_as_a_primary_that_is_silent() {
    let problem = Problem::new(Reason::PrimaryDown, "no primary answers").of("demo-0");
    let mut facts = facts(vec![problem]);
    let refusal = (reason::PODS_REFUSED, "the pods of StatefulSet demo-0-valkey cannot be made: no".to_owned());
    facts.storage.as_mut().unwrap().trouble = Some(refusal.clone());
    facts.alarms.refused = [("demo-kafka".to_owned(), refusal)].into();
    facts.brokers = Some(BrokerFacts { ready: 0, wanted: 3, ..BrokerFacts::default() });
    let status = status(&cluster(), &facts, now());
    for kind in [conditions::STORAGE_READY, conditions::EVENT_LOG_READY, conditions::READY] {
        assert_eq!(said(&status, kind).1, reason::PODS_REFUSED, "{kind}");
        assert!(said(&status, kind).2.contains("cannot be made"), "{kind}");
    }
}
