//! Events as the contract writes them, and as nobody should.

use proptest::prelude::*;

use super::*;

fn data(value: impl std::borrow::Borrow<serde_json::Value>) -> Bytes {
    serde_json::to_vec(value.borrow()).unwrap().into()
}

const CREATED: &str = Kind::MessageCreated.ce_type();

#[test]
fn a_message_of_the_contract_is_read_whole() {
    let json = serde_json::json!({
        "conversation_id": "d:alice:bob", "seq": "42", "message_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "client_msg_id": "c-1",
        "sender_id": "alice", "sent_at": "1790000000000", "type": "text", "content": {"text": "hi \u{1F44D} \"there\""},
        "mentions": ["bob"], "ext": {"k": "v"}, "recalled": false, "edited_at": null, "reactions": {"👍": ["bob"]}
    });
    let Change::Message(message) = read(CREATED, "d:alice:bob", &data(json)).unwrap() else { panic!() };
    assert_eq!((message.seq, message.sent_at, message.r#type), (42, 1_790_000_000_000, MessageType::Text as i32));
    let content: serde_json::Value = serde_json::from_slice(&message.content).unwrap();
    assert_eq!(content["text"], "hi \u{1F44D} \"there\"");
    assert_eq!((message.mentions.len(), message.ext.len(), message.reactions.len(), message.edited_at), (1, 1, 1, 0));
}

#[test]
fn what_is_no_message_is_refused_in_words() {
    for (json, says) in [
        (serde_json::json!({}), "conversation_id"),
        (serde_json::json!([1]), "invalid"),
        (
            serde_json::json!({"conversation_id": "c", "seq": "x", "message_id": "m", "sender_id": "a", "sent_at": "1", "type": "text"}),
            "64-bit integer",
        ),
        (
            serde_json::json!({"conversation_id": "c", "seq": 1, "message_id": "m", "sender_id": "a", "sent_at": "1", "type": "smell"}),
            "smell",
        ),
    ] {
        let error = read(CREATED, "c", &data(json)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn membership_events_say_who_is_concerned_and_that_members_changed() {
    let json = serde_json::json!({"conversation_id": "g:1", "user_ids": ["bob", "carol"], "actor_id": "alice"});
    let Change::Conversation(change) = read(Kind::MemberRemoved.ce_type(), "g:1", &data(json)).unwrap() else {
        panic!()
    };
    assert_eq!((change.event, change.members_changed), (EventName::Group, true));
    assert_eq!(change.others, ["bob", "carol"]);
    let seen: serde_json::Value = serde_json::from_slice(&change.data).unwrap();
    assert_eq!((&seen["change"], &seen["conversation_id"]), (&Kind::MemberRemoved.name().into(), &"g:1".into()));
}

#[test]
fn a_receipt_names_its_reader() {
    let json = serde_json::json!({"conversation_id": "d:alice:bob", "user_id": "bob", "seq": "7"});
    let Change::Conversation(change) = read(Kind::ReceiptRead.ce_type(), "d:alice:bob", &data(json)).unwrap() else {
        panic!()
    };
    assert_eq!((change.event, change.actor.as_deref(), change.members_changed), (EventName::Read, Some("bob"), false));
    assert!(change.others.is_empty());
}

#[test]
fn a_friend_event_goes_to_its_own_side() {
    let json = serde_json::json!({"user_id": "alice", "friend_id": "bob"});
    let Change::Users { event, users, .. } = read(Kind::FriendAdded.ce_type(), "alice", &data(json)).unwrap() else {
        panic!()
    };
    assert_eq!((event, users), (EventName::Friend, vec!["alice".to_owned()]));
}

#[test]
fn a_new_conversation_is_told_to_its_first_members() {
    let json = serde_json::json!({"conversation_id": "d:alice:bob", "kind": "direct", "member_ids": ["alice", "bob"]});
    let Change::Users { event, users, data } =
        read(Kind::ConversationCreated.ce_type(), "d:alice:bob", &data(json)).unwrap()
    else {
        panic!()
    };
    assert_eq!((event, users), (EventName::Conversation, vec!["alice".to_owned(), "bob".to_owned()]));
    let seen: serde_json::Value = serde_json::from_slice(&data).unwrap();
    assert_eq!(seen["change"], Kind::ConversationCreated.name());
}

#[test]
fn types_that_are_not_known_are_left_alone() {
    for kind in [
        Kind::ReceiptDelivered.ce_type(),
        Kind::BlockAdded.ce_type(),
        &CREATED.replace(".v1", ".v2"),
        "org.other.thing",
        "",
    ] {
        assert_eq!(read(kind, "k", &Bytes::from_static(b"not json")).unwrap(), Change::Ignored, "{kind}");
    }
}

#[test]
fn a_login_carries_its_cursors_and_a_logout_asks_for_nothing() {
    let json = data(serde_json::json!({
        "user_id": "bob", "device_id": "d1", "session_id": "s1", "platform": "ios", "line": "l", "gateway": "g", "cursors": {"d:alice:bob": "41"}
    }));
    let opened = login(Kind::SessionOpened.ce_type(), "bob", &json).unwrap().unwrap();
    assert!(opened.fresh);
    assert_eq!(opened.cursors, [("d:alice:bob".to_owned(), 41)]);
    assert!(!login(Kind::SessionResumed.ce_type(), "bob", &json).unwrap().unwrap().fresh);
    assert_eq!(login(Kind::SessionClosed.ce_type(), "bob", &json).unwrap(), None);
    assert!(matches!(login(Kind::SessionOpened.ce_type(), "eve", &json), Err(Unreadable::Key("user_id"))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6_usize) {
        let kinds = [CREATED, Kind::MemberAdded.ce_type(), Kind::ReceiptRead.ce_type(), Kind::ProfileUpdated.ce_type(), Kind::FriendAdded.ce_type(), "x"];
        let bytes = Bytes::from(bytes);
        let _ = read(kinds[kind], "k", &bytes);
        let _ = login(Kind::SessionOpened.ce_type(), "bob", &bytes);
    }
}
