//! What is read while the watch is behind one's own writes, ahead of them, or broken.

mod reading;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::*;
use crate::stores::kinds::Kind;

fn map(name: &str, version: u64, text: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
            "labels": {"app.kubernetes.io/instance": "demo"}},
        "data": {"text": text}
    }))
    .expect("a map")
}

fn synced(objects: &[ConfigMap]) -> Memory<ConfigMap> {
    let mut memory = Memory::new(ConfigMap::cluster);
    memory.begin();
    for object in objects {
        memory.add(object);
    }
    memory.done(Instant::now());
    memory
}

fn get(memory: &Memory<ConfigMap>, name: &str) -> Option<ConfigMap> {
    memory.get("ns", name).expect("readable")
}

fn texts(memory: &Memory<ConfigMap>) -> Vec<(String, String)> {
    let all = memory.of_cluster("ns", "demo", None).expect("readable");
    all.into_iter().map(|(name, map)| (name, map.data.expect("data")["text"].clone())).collect()
}

fn is(memory: &Memory<ConfigMap>, wanted: &[(&str, &str)]) {
    let wanted: Vec<_> = wanted.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    assert_eq!(texts(memory), wanted);
}

#[test]
fn nothing_is_read_before_all_was_told() {
    let mut memory = Memory::new(ConfigMap::cluster);
    assert!(!memory.is_usable());
    memory.begin();
    memory.add(&map("a", 5, "old"));
    assert!(!memory.is_usable() && texts(&memory).is_empty());
    memory.done(Instant::now());
    assert!(memory.is_usable());
    is(&memory, &[("a", "old")]);
}

#[test]
fn a_write_is_read_at_once_and_until_the_watch_has_told_it_or_something_newer() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "old")]);
    memory.wrote(map("a", 9, "written"), now);
    is(&memory, &[("a", "written")]);
    // Somebody else's change of before.
    memory.changed(&map("a", 7, "between"), now);
    is(&memory, &[("a", "written")]);
    memory.changed(&map("a", 12, "newer"), now);
    is(&memory, &[("a", "newer")]);
    assert!(memory.written.is_empty());
    // An answer that comes in after the watch is of the past.
    memory.wrote(map("a", 9, "written"), now);
    is(&memory, &[("a", "newer")]);
}

#[test]
fn of_two_answers_the_newer_one_stands_in_whatever_order_they_come() {
    let now = Instant::now();
    let mut memory = synced(&[]);
    memory.wrote(map("a", 9, "second"), now);
    memory.wrote(map("a", 8, "first"), now);
    is(&memory, &[("a", "second")]);
}

#[test]
fn what_was_made_is_there_until_the_watch_passes_it_without_it() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "a")]);
    memory.wrote(map("b", 9, "b"), now);
    is(&memory, &[("a", "a"), ("b", "b")]);
    assert!(get(&memory, "b").is_some());
    memory.changed(&map("a", 8, "a"), now);
    is(&memory, &[("a", "a"), ("b", "b")]);
    // Made and deleted by somebody else while nobody told: the watch is past it.
    memory.changed(&map("a", 10, "a"), now);
    is(&memory, &[("a", "a")]);
    assert!(get(&memory, "b").is_none());
}

#[test]
fn what_was_deleted_reads_as_going_and_a_new_one_of_its_name_does_not() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "a")]);
    memory.deleted(&map("a", 5, "a"), now);
    let going = |memory: &Memory<ConfigMap>| get(memory, "a").map(|m| m.metadata.deletion_timestamp.is_some());
    assert_eq!(going(&memory), Some(true));
    memory.changed(&map("a", 6, "touched by another"), now);
    assert_eq!(going(&memory), Some(true));
    memory.gone(&map("a", 8, "a"), now);
    assert_eq!(going(&memory), None);
    assert!(memory.written.is_empty());
    let mut new = map("a", 9, "anew");
    new.metadata.uid = Some("another".to_owned());
    memory.deleted(&map("a", 5, "a"), now);
    memory.changed(&new, now);
    assert_eq!(going(&memory), Some(false));
}

#[test]
fn a_list_replaces_everything_and_a_broken_watch_is_not_believed_until_then() {
    let start = Instant::now();
    let mut memory = synced(&[map("a", 5, "a"), map("b", 6, "b")]);
    assert!(!memory.failed(start));
    assert!(memory.is_usable(), "once is nothing");
    for seconds in 1..BROKEN_AFTER.as_secs() {
        assert!(!memory.failed(start + Duration::from_secs(seconds)));
    }
    let now = start + BROKEN_AFTER;
    assert!(memory.failed(now));
    assert!(!memory.is_usable());
    // Passes read lists meanwhile, and what they read is not unread.
    memory.listed(20);
    memory.begin();
    memory.add(&map("b", 15, "b"));
    memory.done(now);
    assert!(memory.synced && !memory.is_usable());
    memory.changed(&map("b", 20, "b later"), now);
    assert!(memory.is_usable());
    is(&memory, &[("b", "b later")]);
}

#[test]
fn what_a_list_showed_and_was_deleted_since_holds_nobody_up() {
    let mut memory = synced(&[map("a", 5, "a")]);
    memory.listed(20);
    assert!(!memory.is_usable());
    memory.listed(5);
    assert!(memory.is_usable());
}

#[test]
fn failures_with_a_long_rest_between_them_are_not_one() {
    let start = Instant::now();
    let mut memory = synced(&[]);
    assert!(!memory.failed(start));
    assert!(!memory.failed(start + APART + Duration::from_secs(1)));
    assert!(memory.is_usable());
    // An event says that it is well.
    assert!(!memory.failed(start + APART + Duration::from_secs(20)));
    memory.changed(&map("a", 1, "a"), start + APART + Duration::from_secs(21));
    assert!(!memory.failed(start + APART + Duration::from_secs(40)));
}

#[test]
fn writes_are_remembered_for_a_while_and_in_bounded_number() {
    let now = Instant::now();
    let mut memory = synced(&[]);
    memory.wrote(map("a", 9, "a"), now);
    memory.forget(now + END);
    assert!(memory.written.is_empty());
    for i in 0..BOUND + 10 {
        memory.wrote(map(&format!("m-{i}"), 10, "x"), now + Duration::from_millis(i as u64));
    }
    assert_eq!(memory.written.len(), BOUND);
    assert!(get(&memory, "m-0").is_none() && get(&memory, "m-20").is_some());
}

#[test]
fn a_version_that_was_found_right_is_right_for_the_same_wish_alone() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "a")]);
    memory.found_current(&map("a", 5, "a"), 77);
    assert!(memory.is_current(&map("a", 5, "a"), 77));
    assert!(!memory.is_current(&map("a", 5, "a"), 78) && !memory.is_current(&map("a", 6, "a"), 77));
    // Two who look at it with wishes of their own do not make each other look again.
    memory.found_current(&map("a", 5, "a"), 78);
    assert!(memory.is_current(&map("a", 5, "a"), 77) && memory.is_current(&map("a", 5, "a"), 78));
    // Found of what was written, before the watch has told it; and kept over a list that is told anew.
    memory.found_current(&map("a", 7, "a"), 77);
    memory.changed(&map("a", 7, "a"), now);
    memory.begin();
    memory.add(&map("a", 7, "a"));
    memory.done(now);
    assert!(memory.is_current(&map("a", 7, "a"), 77) && !memory.is_current(&map("a", 5, "a"), 77));
    assert!(!memory.is_current(&map("a", 7, "a"), 78), "that was of another version");
    memory.gone(&map("a", 8, "a"), now);
    memory.changed(&map("a", 7, "a"), now);
    assert!(!memory.is_current(&map("a", 7, "a"), 77));
    memory.found_current(&map("b", 5, "b"), 77);
    assert!(!memory.is_current(&map("b", 5, "b"), 77), "what is not watched is not remembered");
}

#[test]
fn an_object_that_moves_to_another_cluster_is_found_there() {
    let now = Instant::now();
    let mut memory = synced(&[map("a", 5, "a")]);
    let mut moved = map("a", 6, "a");
    moved.metadata.labels = Some([("app.kubernetes.io/instance".to_owned(), "other".to_owned())].into());
    memory.changed(&moved, now);
    assert!(texts(&memory).is_empty());
    assert_eq!(memory.of_cluster("ns", "other", None).expect("readable").len(), 1);
    assert_eq!((memory.names("ns", "demo").len(), memory.names("ns", "other").len()), (0, 1));
}
