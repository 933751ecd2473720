//! Which drafts pass the doorway, and the field that a refusal names.

use kith_rpc::error::Error;
use proptest::prelude::*;

use super::*;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

fn draft() -> Draft {
    Draft {
        door: Door::Client,
        sender_id: "bob".into(),
        target: Target::Recipient("alice".into()),
        client_msg_id: "c-1".into(),
        kind: "text".into(),
        content: raw(r#"{"text":"hi"}"#),
        mentions: vec![],
        ext: BTreeMap::new(),
    }
}

fn refusal(change: impl FnOnce(&mut Draft)) -> Error {
    let mut draft = draft();
    change(&mut draft);
    draft.check().unwrap_err()
}

#[test]
fn a_recipient_becomes_the_sorted_direct_conversation() {
    let checked = draft().check().unwrap();
    assert_eq!(checked.conversation_id, "d:alice:bob");
    assert_eq!(checked.recipient_id.as_deref(), Some("alice"));
    assert_eq!(checked.draft.content, r#"{"text":"hi"}"#);
}

#[test]
fn every_refusal_names_its_field() {
    type Change = Box<dyn FnOnce(&mut Draft)>;
    let long = "x".repeat(65);
    let cases: Vec<(&str, Change)> = vec![
        ("client_msg_id", Box::new(|d| d.client_msg_id = String::new())),
        ("client_msg_id", Box::new(move |d| d.client_msg_id = long)),
        ("recipient_id", Box::new(|d| d.target = Target::Recipient("a b".into()))),
        ("recipient_id", Box::new(|d| d.target = Target::Recipient("bob".into()))),
        ("conversation_id", Box::new(|d| d.target = Target::Conversation("x:1".into()))),
        ("type", Box::new(|d| d.kind = "TEXT".into())),
        ("type", Box::new(|d| d.kind = "system".into())),
        ("content.text", Box::new(|d| d.content = raw(r#"{"text":" \u200b\n\u3164"}"#))),
        ("content", Box::new(|d| d.content = raw("[]"))),
        ("content", Box::new(|d| d.content = raw("null"))),
        ("content", Box::new(|d| d.content = raw(r#"{"text":"\ud800"}"#))),
        ("content.text", Box::new(|d| d.content = raw("{}"))),
        ("content.text", Box::new(|d| d.content = raw(r#"{"text":""}"#))),
        ("content.text", Box::new(|d| d.content = raw(r#"{"text":1}"#))),
        ("mentions", Box::new(|d| d.mentions = vec!["x".into(); 101])),
        ("mentions", Box::new(|d| d.mentions = vec![String::new()])),
        ("ext", Box::new(|d| d.ext = (0..33).map(|i| (i.to_string(), String::new())).collect())),
        ("ext", Box::new(|d| d.ext = [("k".to_owned(), "v".repeat(4_096))].into())),
        ("ext", Box::new(|d| d.ext = [(String::new(), String::new())].into())),
    ];
    for (field, change) in cases {
        let error = refusal(change);
        assert_eq!(error.code, tonic::Code::InvalidArgument);
        assert!(error.detail.starts_with(&format!("{field}:")), "{field}: {error}");
    }
}

#[test]
fn content_over_64_kib_is_told_apart_as_too_large() {
    let fits = format!(r#"{{"text":"{}"}}"#, "x".repeat(MAX_CONTENT_BYTES - 11));
    assert_eq!(fits.len(), MAX_CONTENT_BYTES);
    check_content("content", MessageType::Text, &raw(&fits)).unwrap();
    let error = refusal(|d| d.content = raw(&fits.replacen('x', "xx", 1)));
    assert_eq!(error.reason.as_deref(), Some(reason::TOO_LARGE));
}

#[test]
fn deep_nesting_is_refused_and_no_stack_is_lost() {
    let deep = format!(r#"{{"text":"x","a":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    assert!(refusal(|d| d.content = raw(&deep)).detail.starts_with("content:"));
}

#[test]
fn exactly_one_target_is_taken() {
    assert!(Target::of(None, None).is_err());
    assert!(Target::of(Some("d:a:b".into()), Some("b".into())).is_err());
    assert_eq!(Target::of(Some(String::new()), Some("b".into())).unwrap(), Target::Recipient("b".into()));
}

proptest! {
    #[test]
    fn compact_json_means_the_same(text in "\\PC{0,20}", spaces in "[ \n\r\t]{0,4}", n in any::<i64>()) {
        let text = serde_json::to_string(&text).unwrap();
        let pretty = format!(
            "{{{spaces}\"text\"{spaces}:{spaces}{text}{spaces}, \"n\":[{spaces}{n} ,{{\"k \":{spaces}\" \\\\\\\" \"{spaces}}}{spaces}]}}"
        );
        let parsed: Value = serde_json::from_str(&pretty).unwrap();
        let compacted = compact(&pretty);
        prop_assert_eq!(serde_json::from_str::<Value>(&compacted).unwrap(), parsed.clone());
        let again = compact(&compacted).into_owned();
        prop_assert_eq!(compacted.into_owned(), again);
    }

    #[test]
    fn no_content_stops_the_check(text in "\\PC{0,200}") {
        if let Ok(raw) = RawValue::from_string(text) {
            let _ = check_content("content", MessageType::Text, &raw);
        }
    }
}

#[test]
fn a_system_message_comes_from_a_business_line_alone() {
    let system = Draft { kind: MessageType::System.to_string(), ..draft() };
    let refused = system.clone().check().unwrap_err();
    assert!(refused.detail.starts_with("type: "), "{refused}");
    assert!(Draft { door: Door::Line, ..system }.check().is_ok());
}
