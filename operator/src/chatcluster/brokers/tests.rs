//! Which broker is restarted, which starts anew, and which counts as caught up.

use k8s_openapi::jiff::Span;
use serde_json::{Value, json};

use super::*;
use crate::eventlog::seen;

const SET: &str = "demo-kafka";

struct Stage {
    set: StatefulSet,
    pods: Live<Pod>,
    claims: Live<PersistentVolumeClaim>,
    volumes: BTreeMap<String, PersistentVolume>,
    nodes: Live<Node>,
    asked: Option<String>,
    sight: Option<Sight>,
    brokers: u32,
}

fn name(broker: u32) -> String {
    format!("{SET}-{broker}")
}

fn begin() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap()
}

fn later(seconds: i64) -> Timestamp {
    begin().checked_add(Span::new().seconds(seconds)).unwrap()
}

/// A pod made at the beginning.
fn pod(broker: u32, revision: &str, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name(broker), "labels": {tend::REVISION: revision}, "creationTimestamp": begin().to_string(),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": SET, "uid": "u", "controller": true}]
        },
        "status": status
    }))
    .unwrap()
}

fn running(broker: u32, revision: &str) -> Pod {
    let at = begin().to_string();
    let holds = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at});
    let state = json!([{"name": "kafka", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
    let conditions = ["Ready", "ContainersReady", names::CONDITION_IN_SYNC].map(holds);
    pod(broker, revision, &json!({"conditions": conditions, "containerStatuses": state}))
}

fn waiting(broker: u32, revision: &str) -> Pod {
    pod(broker, revision, &json!({"phase": "Pending"}))
}

impl Stage {
    /// Three brokers that run, in sync, a minute after they began; the template is this one.
    fn new(template: &str) -> Self {
        let set = json!({
            "metadata": {"name": SET, "generation": 2}, "status": {"observedGeneration": 2, "replicas": 3, "updateRevision": template}
        });
        let claim = |broker: u32| {
            let claim = replace::claim_of(&name(broker));
            (claim.clone(), serde_json::from_value(json!({"metadata": {"name": claim}})).unwrap())
        };
        Self {
            set: serde_json::from_value(set).unwrap(),
            pods: (0..3).map(|broker| (name(broker), running(broker, "old"))).collect(),
            claims: (0..3).map(claim).collect(),
            volumes: BTreeMap::new(),
            nodes: Live::new(),
            asked: None,
            sight: Some(seen(later(60), &[0, 1, 2], &[0, 1, 2])),
            brokers: 3,
        }
    }

    fn scene(&self, seconds: i64) -> Scene<'_> {
        Scene {
            name: SET,
            set: &self.set,
            brokers: self.brokers,
            min_insync: 2,
            pods: &self.pods,
            claims: &self.claims,
            volumes: &self.volumes,
            nodes: &self.nodes,
            asked: self.asked.as_deref(),
            sight: self.sight.as_ref(),
            now: later(seconds),
        }
    }

    fn next(&self) -> (Option<Step>, Vec<String>) {
        next(&self.scene(61))
    }

    fn put(&mut self, pod: Pod) {
        self.pods.insert(pod.metadata.name.clone().unwrap(), pod);
    }

    fn lose_claim(&mut self, broker: u32) {
        let claim = json!({"metadata": {"name": replace::claim_of(&name(broker))}, "status": {"phase": "Lost"}});
        self.claims.insert(replace::claim_of(&name(broker)), serde_json::from_value(claim).unwrap());
    }
}

fn restarted(outcome: &(Option<Step>, Vec<String>)) -> Option<&str> {
    match &outcome.0 {
        Some(Step::Restart { pod, .. }) => Some(pod),
        _ => None,
    }
}

#[test]
fn a_new_template_reaches_one_broker_at_a_time_and_only_while_all_copies_are_in_sync() {
    assert_eq!(Stage::new("old").next(), (None, vec![]));
    let mut stage = Stage::new("new");
    assert_eq!(restarted(&stage.next()), Some("demo-kafka-0"));
    stage.sight = Some(seen(later(60), &[0, 1, 2], &[0, 1]));
    assert_eq!(stage.next().0, None, "a copy lags");
    stage.sight = Some(seen(later(60), &[0, 1], &[0, 1, 2]));
    assert_eq!(stage.next().0, None, "a voter is missing");
    stage.sight = Some(seen(later(60 - FRESH_S), &[0, 1, 2], &[0, 1, 2]));
    assert_eq!(stage.next().0, None, "that was long ago");
    stage.sight = None;
    assert_eq!(stage.next().0, None);
}

#[test]
fn what_was_seen_before_a_broker_was_back_does_not_restart_the_next() {
    let mut stage = Stage::new("new");
    let mut back = running(0, "new");
    for condition in back.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten()) {
        condition.last_transition_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(later(59)));
    }
    stage.put(back);
    assert_eq!(stage.next().0, None, "seen a second after it listened");
    stage.sight = Some(seen(later(61), &[0, 1, 2], &[0, 1, 2]));
    assert_eq!(restarted(&stage.next()), Some("demo-kafka-1"));
    stage.put(waiting(0, "new"));
    assert_eq!(stage.next().0, None, "it is on its way");
}

#[test]
fn the_only_broker_is_restarted_since_nothing_better_can_be_waited_for() {
    let mut stage = Stage::new("new");
    (stage.brokers, stage.sight) = (1, None);
    assert_eq!(restarted(&stage.next()), Some("demo-kafka-0"));
    stage.put(running(0, "new"));
    assert_eq!(stage.next().0, None);
}

#[test]
fn a_broker_that_does_not_run_gets_the_corrected_template_whatever_else_is_the_matter() {
    let mut stage = Stage::new("new");
    stage.sight = None;
    stage.put(waiting(2, "old"));
    assert_eq!(restarted(&stage.next()), Some("demo-kafka-2"));
    assert_eq!(next(&stage.scene(STUCK_S - 1)).0, None, "it may be about to run");
    stage.put(waiting(1, "new"));
    assert_eq!(stage.next().0, None, "the newest template does not run either");
    for broker in 0..3 {
        stage.put(waiting(broker, "old"));
    }
    assert_eq!(restarted(&stage.next()), Some("demo-kafka-0"), "none of them runs");
}

#[test]
fn a_broker_that_runs_and_does_not_serve_gets_it_only_while_another_answers() {
    let mut stage = Stage::new("new");
    let mut hung = running(1, "old");
    let ready = hung.status.as_mut().and_then(|s| s.conditions.as_mut()?.iter_mut().find(|c| c.type_ == "Ready"));
    ready.unwrap().status = "False".to_owned();
    stage.put(hung);
    stage.sight = Some(seen(later(SILENT_S), &[0, 2], &[0, 2]));
    assert_eq!(restarted(&next(&stage.scene(SILENT_S))), Some("demo-kafka-1"));
    stage.sight = Some(seen(later(SILENT_S), &[], &[]));
    assert_eq!(next(&stage.scene(SILENT_S)).0, None, "nobody else is seen");
}

#[test]
fn a_broker_whose_volume_is_lost_starts_anew_when_the_others_hold_everything() {
    let mut stage = Stage::new("old");
    stage.put(waiting(2, "old"));
    stage.lose_claim(2);
    stage.sight = Some(seen(later(60), &[0, 1], &[0, 1]));
    let (step, problems) = stage.next();
    assert!(matches!(step, Some(Step::Replace { pod, asked: false, .. }) if pod == "demo-kafka-2"), "{problems:?}");
    assert_eq!(next(&stage.scene(LOST_S - 1)), (None, vec![]), "it went away a moment ago");
    stage.sight = Some(seen(later(60), &[0, 1], &[0]));
    let (step, problems) = stage.next();
    assert!(step.is_none() && problems[0].contains("topic demo.events partition 0"), "{problems:?}");
    stage.sight = Some(seen(later(60), &[0], &[0, 1]));
    let (step, problems) = stage.next();
    assert!(step.is_none() && problems[0].contains("demo-kafka-1 does not serve"), "{problems:?}");
    stage.sight = None;
    assert!(stage.next().1[0].contains("no other broker answers"));
}

#[test]
fn a_volume_is_lost_with_its_node_and_never_by_silence() {
    let mut stage = Stage::new("old");
    stage.put(waiting(2, "old"));
    stage.sight = Some(seen(later(60), &[0, 1], &[0, 1]));
    assert_eq!(stage.next(), (None, vec![]), "silent");
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]}]}]);
    let volume = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    stage.volumes.insert(replace::claim_of(&name(2)), serde_json::from_value(volume).unwrap());
    assert!(matches!(stage.next().0, Some(Step::Replace { .. })), "its node is no more");
    let node = serde_json::from_value(json!({"metadata": {"name": "node-2"}})).unwrap();
    stage.nodes.insert("node-2".to_owned(), node);
    assert_eq!(stage.next(), (None, vec![]), "its node may return");
}

#[test]
fn a_person_may_give_a_broker_up_that_serves_and_never_the_only_one() {
    let mut stage = Stage::new("old");
    stage.asked = Some("demo-kafka-1".to_owned());
    assert!(matches!(stage.next().0, Some(Step::Replace { pod, asked: true, .. }) if pod == "demo-kafka-1"));
    stage.brokers = 1;
    stage.asked = Some("demo-kafka-0".to_owned());
    let (step, problems) = stage.next();
    assert!(step.is_none() && problems[0].contains("it is the only broker"), "{problems:?}");
}

#[test]
fn a_pod_counts_as_caught_up_only_by_what_was_seen_of_itself() {
    let mut stage = Stage::new("old");
    assert!(standing(&stage.scene(61)).is_empty(), "it says so already");
    stage.sight = Some(seen(later(60), &[0, 1, 2], &[0, 1]));
    assert_eq!(standing(&stage.scene(61)), [("demo-kafka-2".to_owned(), false)]);
    stage.put(waiting(2, "old"));
    assert!(standing(&stage.scene(61)).is_empty(), "it is on its way");
    stage.sight = None;
    assert!(standing(&stage.scene(61)).is_empty(), "nothing is seen, nothing changes");
    let mut ended = running(1, "old");
    let listens =
        ended.status.as_mut().and_then(|s| s.conditions.as_mut()?.iter_mut().find(|c| c.type_ == "ContainersReady"));
    listens.unwrap().status = "False".to_owned();
    stage.put(ended);
    assert_eq!(standing(&stage.scene(61)), [("demo-kafka-1".to_owned(), false)], "its process ended");
}

#[test]
fn a_broker_that_was_not_restarted_shows_the_former_certificate_until_it_ends() {
    let started = |broker: u32, notes: &[(&str, String)]| {
        let mut pod = running(broker, "a");
        pod.metadata.annotations = Some(notes.iter().map(|(key, text)| ((*key).to_owned(), text.clone())).collect());
        pod
    };
    let ends = later(5 * 86_400).as_second();
    let notes = |hash: &str| {
        [(kafka::ANNOTATION_CERTIFICATE, hash.to_owned()), (kafka::ANNOTATION_CERTIFICATE_ENDS, ends.to_string())]
    };
    let (new, old) = (started(0, &notes("new")), started(1, &notes("old")));
    let unsaid = started(2, &[(kafka::ANNOTATION_CERTIFICATE, "older".to_owned())]);
    let mut going = old.clone();
    going.metadata.deletion_timestamp = unsaid.metadata.creation_timestamp.clone();
    let found = former_certificates([&new, &old, &unsaid, &going], Some("new"));
    let least = later(certificates::LEFT_AT_START_S).as_second();
    let told: Vec<_> = found.iter().map(|c| (c.place.as_str(), c.ends_s)).collect();
    assert_eq!(told, [("pod demo-kafka-1", ends), ("pod demo-kafka-2", least)]);
    assert!(found.iter().all(|c| c.renewed == Renewed::ByRestart));
    let finding = certificates::finding(&found, None, begin()).unwrap();
    assert_eq!(finding.holds, Some(true), "before it ends: {}", finding.message);
    assert!(finding.message.contains("pod demo-kafka-1"), "{}", finding.message);
}
