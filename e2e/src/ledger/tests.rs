//! The ledger finds each kind of broken promise, and nothing where all were kept.

use super::*;

fn sent(seq: u64) -> Sent {
    Sent { message_id: format!("m{seq}"), conversation_id: "d:a:b".to_owned(), seq, sent_at: 1, duplicate: false }
}

fn message(seq: u64, id: &str, client: &str) -> Message {
    serde_json::from_value(serde_json::json!({
        "conversation_id": "d:a:b", "seq": seq.to_string(), "message_id": id, "client_msg_id": client, "sender_id": "a",
        "sent_at": "1", "type": "text", "content": {"text": "x"},
    }))
    .unwrap()
}

fn ledger(seqs: &[u64]) -> Ledger {
    let ledger = Ledger::default();
    for seq in seqs {
        ledger.acknowledged("a", &format!("c{seq}"), &sent(*seq), Duration::from_millis(2));
    }
    ledger
}

#[test]
fn kept_promises_make_a_clean_report() {
    let ledger = ledger(&[1, 2]);
    ledger.check_history("d:a:b", &[message(1, "m1", "c1"), message(2, "m2", "c2"), message(3, "m3", "given up")]);
    assert!(ledger.report().is_clean(), "{}", ledger.report());
}

#[test]
fn a_missing_and_a_replaced_message_are_lost() {
    let ledger = ledger(&[1, 2]);
    ledger.check_history("d:a:b", &[message(1, "other", "c1")]);
    assert_eq!(ledger.report().lost, 2);
}

#[test]
fn a_message_stored_twice_is_doubled_and_a_hole_is_a_gap() {
    let ledger = ledger(&[1]);
    ledger.check_history("d:a:b", &[message(1, "m1", "c1"), message(3, "m3", "c1")]);
    let report = ledger.report();
    assert_eq!((report.doubled, report.gaps, report.lost), (1, 1, 0));
}

#[test]
fn a_seq_that_goes_back_is_reordered() {
    assert_eq!(ledger(&[2, 1]).report().reordered, 1);
}

#[test]
fn a_device_that_missed_a_message_is_named() {
    let ledger = ledger(&[1, 2]);
    let mut inbox = Inbox::default();
    inbox.take(message(1, "m1", "c1"));
    ledger.check_delivery("b", &inbox, "d:a:b", &[message(1, "m1", "c1"), message(2, "m2", "c2")]);
    let report = ledger.report();
    assert_eq!(report.undelivered, 1);
    assert!(report.to_string().contains("b was never shown it"));
}

#[test]
fn a_refusal_lasts_from_the_first_failed_try_to_the_next_success() {
    let ledger = ledger(&[1]);
    ledger.failed_try("d:a:b", "UNAVAILABLE");
    std::thread::sleep(Duration::from_millis(5));
    ledger.failed_try("d:a:b", "UNAVAILABLE");
    ledger.acknowledged("a", "c2", &sent(2), Duration::from_millis(9));
    let report = ledger.report();
    assert!(report.longest_refusal >= Duration::from_millis(5), "{report}");
    assert_eq!(report.failed_tries["UNAVAILABLE"], 2);
}

#[test]
fn the_course_tells_faults_and_slow_stretches_in_their_order() {
    let ledger = ledger(&[1]);
    ledger.injected("primary killed");
    ledger.acknowledged("a", "c2", &sent(2), Duration::from_millis(900));
    ledger.acknowledged("a", "c3", &sent(3), Duration::from_millis(700));
    let report = ledger.report();
    assert_eq!(report.course, ["0 s: primary killed", "0-0 s: 2 slow, the slowest 0.90 s"]);
    assert!(report.slowest >= Duration::from_millis(900));
}

#[test]
fn a_refusal_is_put_down_to_what_was_injected_before_it_began() {
    let ledger = ledger(&[1]);
    ledger.injected("shards changed");
    ledger.failed_try("d:a:b", "UNAVAILABLE");
    ledger.injected("primary killed");
    ledger.acknowledged("a", "c2", &sent(2), Duration::from_millis(40));
    let after = ledger.report().after;
    assert!(after["after nothing"].starts_with("ack p50 2.0"), "{after:?}");
    assert!(after["after shards changed"].starts_with("ack p50 0.0"), "{after:?}");
    assert!(after["after primary killed"].starts_with("ack p50 40."), "{after:?}");
    assert!(after["after primary killed"].ends_with("longest refusal 0.00 s"), "{after:?}");
}
