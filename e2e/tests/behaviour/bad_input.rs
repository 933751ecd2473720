//! What is wrong with a request is said by name, and changes nothing.

use kith_e2e::{client::http::Page, target::Target};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Proof, SOON, say, two};

fn message(change: impl FnOnce(&mut Value)) -> Value {
    let mut body =
        json!({"client_msg_id": "c-1", "recipient_id": "someone", "type": "text", "content": {"text": "hi"}});
    change(&mut body);
    body
}

fn without(field: &str) -> Value {
    message(|m| drop(m.as_object_mut().expect("an object").remove(field)))
}

pub async fn a_malformed_request_is_refused_with_the_fields_name(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    let post = |body: Value, field: &'static str| (Method::POST, "/v1/messages".to_owned(), Some(body), field);
    let get = |path: &str, field: &'static str| (Method::GET, path.to_owned(), None, field);
    let cases = [
        post(without("client_msg_id"), "client_msg_id"),
        post(message(|m| m["client_msg_id"] = "".into()), "client_msg_id"),
        post(message(|m| m["client_msg_id"] = "x".repeat(65).into()), "client_msg_id"),
        post(message(|m| m["client_msg_id"] = 7.into()), "client_msg_id"),
        post(without("recipient_id"), "recipient_id"),
        post(message(|m| m["recipient_id"] = "a b".into()), "recipient_id"),
        post(message(|m| m["recipient_id"] = "x".repeat(65).into()), "recipient_id"),
        post(message(|m| m["recipient_id"] = alice.id.clone().into()), "recipient_id"),
        post(message(|m| m["conversation_id"] = "d:a:b".into()), "recipient_id"),
        post(
            message(|m| {
                m.as_object_mut().expect("an object").remove("recipient_id");
                m["conversation_id"] = "nonsense".into();
            }),
            "conversation_id",
        ),
        post(without("type"), "type"),
        post(message(|m| m["type"] = "telepathy".into()), "type"),
        post(without("content"), "content"),
        post(message(|m| m["content"] = "hi".into()), "content"),
        post(message(|m| m["content"] = json!({})), "text"),
        post(message(|m| m["content"] = json!({"text": ""})), "text"),
        post(message(|m| m["mentions"] = json!(["a b"])), "mentions"),
        post(message(|m| m["ext"] = json!({"k": 1})), "ext"),
        get("/v1/conversations/d:a:b/messages?limit=0", "limit"),
        get("/v1/conversations/d:a:b/messages?limit=201", "limit"),
        get("/v1/conversations/d:a:b/messages?limit=many", "limit"),
        get("/v1/conversations/d:a:b/messages?before_seq=x", "before_seq"),
        get("/v1/conversations/d:a:b/messages?before_seq=5&after_seq=1", "after_seq"),
        get("/v1/conversations/nonsense/messages", "conversation_id"),
        get("/v1/conversations?limit=0", "limit"),
        get("/v1/conversations?cursor=%00", "cursor"),
        (Method::POST, "/v1/conversations/d:a:b/read".to_owned(), Some(json!({"seq": "x"})), "seq"),
        (Method::POST, "/v1/conversations/d:a:b/read".to_owned(), Some(json!({})), "seq"),
        (Method::POST, "/v1/ack".to_owned(), Some(json!({"acks": [{"conversation_id": "d:a:b", "seq": "-1"}]})), "seq"),
        (Method::POST, "/v1/ack".to_owned(), Some(json!({"acks": [{"seq": "1"}]})), "conversation_id"),
        (Method::POST, "/v1/sync".to_owned(), Some(json!({"cursors": {"d:a:b": "x"}})), "cursors"),
        (Method::POST, "/v1/messages".to_owned(), Some(json!([])), ""),
    ];
    let mut wrong = Vec::new();
    for (method, path, body, field) in cases {
        let case = format!("{method} {path} {}", body.as_ref().map(Value::to_string).unwrap_or_default());
        let answer = alice.api.raw(method, &path, body).await?;
        let problem = answer.problem();
        match problem {
            Ok(p)
                if answer.status == 400
                    && p.code == "INVALID_ARGUMENT"
                    && p.status == 400
                    && p.detail.contains(field) =>
            {
                assert_eq!(answer.content_type, "application/problem+json", "{case}");
                assert!(!p.title.is_empty() && !p.kind.is_empty(), "{case}");
            }
            other => wrong.push(format!("{case}: wanted 400 naming {field:?}, got {} {other:?}", answer.status)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

pub async fn a_body_of_another_kind_or_size_is_refused_by_status(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let post = async |kind: &str, body: Vec<u8>| alice.api.raw_body(Method::POST, "/v1/messages", kind, body).await;
    let text = post("text/plain", b"hi".to_vec()).await?;
    assert_eq!((text.status, text.problem()?.code.as_ref()), (415, "INVALID_ARGUMENT"));
    let broken = post("application/json", b"{\"client_msg_id\":".to_vec()).await?;
    assert_eq!((broken.status, broken.problem()?.code.as_ref()), (400, "INVALID_ARGUMENT"));
    let large = message(|m| {
        m["recipient_id"] = bob.id.clone().into();
        m["content"]["text"] = "x".repeat(70 << 10).into();
    });
    let large = alice.api.raw(Method::POST, "/v1/messages", Some(large)).await?;
    assert!(matches!(large.status, 400 | 413), "content above 64 KiB: {}", large.status);
    for bytes in [2 << 20, 4 << 20, 8 << 20] {
        let huge = post("application/json", vec![b' '; bytes]).await?;
        assert_eq!((huge.status, huge.problem()?.code.as_ref()), (413, "INVALID_ARGUMENT"), "{bytes} bytes");
    }
    let missing = alice.api.raw(Method::GET, "/v1/nothing-here", None).await?;
    assert_eq!((missing.status, missing.problem()?.code.as_ref()), (404, "NOT_FOUND"));
    Ok(())
}

pub async fn a_refused_message_changes_nothing(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["1"]).await?[0].conversation_id.clone();
    let bad = message(|m| {
        m["recipient_id"] = bob.id.clone().into();
        m["content"] = json!({"text": ""});
    });
    assert_eq!(alice.api.raw(Method::POST, "/v1/messages", Some(bad)).await?.status, 400);
    assert_eq!(alice.api.conversation(&id).await?.seq, 1);
    assert_eq!(bob.api.history(&id, Page::default()).await?.messages.len(), 1);
    // The client_msg_id of a refused message is free.
    let good = message(|m| m["recipient_id"] = bob.id.clone().into());
    assert_eq!(alice.api.raw(Method::POST, "/v1/messages", Some(good)).await?.status, 201);
    Ok(())
}

pub async fn an_unknown_recipient_is_not_found(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    let nobody = kith_e2e::target::unique("nobody");
    let refused = alice.api.send(&kith_e2e::client::Draft::to(&nobody, "hello?")).await.expect_err("nobody is there");
    assert_eq!(refused.code(), Some("NOT_FOUND"), "{refused}");
    assert!(alice.api.conversations(10, None).await?.conversations.is_empty(), "no conversation was made");
    kith_e2e::wait::await_until("the user to be made", SOON, || async {
        target.user_on(&nobody, "d1", "ios").await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    assert_eq!(alice.api.send(&kith_e2e::client::Draft::to(&nobody, "now")).await?.seq, 1);
    Ok(())
}
