//! What a message, a reaction or a push token may be.

use kith_contract::kinds::MessageType;
use kith_e2e::{
    client::{DeviceOptions, Draft, http::Page},
    target::Target,
};
use kith_proto::business::v1::SendMessageRequest;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Proof, say, two};

/// Blanks of many kinds: white space, characters without width, fillers.
const BLANKS: [&str; 5] = [" ", "\t\n", "\u{3000}\u{a0}", "\u{200b}\u{feff}\u{2060}", "\u{3164}\u{2800}"];

pub async fn a_text_of_blanks_is_refused_and_changes_nothing(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["hi"]).await?[0].conversation_id.clone();
    for blank in BLANKS {
        let refused = alice.api.send(&Draft::to(&bob.id, blank)).await.expect_err("blank");
        assert_eq!(refused.code(), Some("INVALID_ARGUMENT"), "{blank:?}: {refused}");
        assert!(refused.to_string().contains("content.text"), "{refused}");
        let edit = json!({"content": {"text": blank}});
        let path = format!("/v1/conversations/{id}/messages/1");
        assert_eq!(alice.api.raw(Method::PATCH, &path, Some(edit)).await?.status, 400, "{blank:?}");
    }
    let history = bob.api.history(&id, Page::default()).await?.messages;
    assert_eq!((history.len(), &history[0].content), (1, &json!({"text": "hi"})));
    Ok(())
}

pub async fn a_reaction_is_one_emoji_in_one_spelling_or_a_shortcode(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["hi"]).await?[0].conversation_id.clone();
    let react = async |method: Method, emoji: &str| {
        let path: Vec<String> = emoji.bytes().map(|b| format!("%{b:02X}")).collect();
        let path = path.concat();
        bob.api.raw(method, &format!("/v1/conversations/{id}/messages/1/reactions/{path}"), None).await
    };
    for bad in ["hello world", "👍👍", "Thumbs", " ", "👍a", "\u{200d}", "é", "javascript:"] {
        for method in [Method::PUT, Method::DELETE] {
            let answer = react(method, bad).await?;
            assert_eq!(answer.status, 400, "{bad:?}");
            assert!(answer.problem()?.detail.starts_with("emoji"), "{bad:?}");
        }
    }
    let changed = async |method: Method, emoji: &str| -> Result<Value, super::Failure> {
        let answer = react(method, emoji).await?;
        assert_eq!(answer.status, 200, "{emoji}");
        Ok(answer.json()?["changed"].clone())
    };
    assert_eq!(changed(Method::PUT, "❤\u{fe0f}").await?, true);
    assert_eq!(changed(Method::PUT, "❤").await?, false);
    assert_eq!(changed(Method::PUT, "👨‍👩‍👧‍👦").await?, true);
    assert_eq!(changed(Method::PUT, "thumbs_up").await?, true);
    let shown = alice.api.history(&id, Page::default()).await?.messages.remove(0);
    let all = ["thumbs_up", "❤", "👨‍👩‍👧‍👦"];
    assert_eq!(shown.reactions.keys().collect::<Vec<_>>(), all);
    assert_eq!(shown.reaction_counts.into_iter().collect::<Vec<_>>(), all.map(|emoji| (emoji.into(), 1)));
    assert!(shown.my_reactions.is_empty(), "none is of hers");
    assert_eq!(bob.api.history(&id, Page::default()).await?.messages[0].my_reactions, all);
    let last = bob.api.conversations(10, None).await?.conversations.remove(0).last_message;
    assert_eq!(last.ok_or("no last message")?.my_reactions, all);
    assert_eq!(changed(Method::DELETE, "❤\u{fe0f}").await?, true);
    assert_eq!(changed(Method::DELETE, "❤").await?, false);
    Ok(())
}

pub async fn a_system_message_comes_from_a_business_line_alone(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let system =
        json!({"client_msg_id": "c-1", "recipient_id": bob.id, "type": "system", "content": {"text": "you have won"}});
    let answer = alice.api.raw(Method::POST, "/v1/messages", Some(system)).await?;
    assert_eq!((answer.status, answer.problem()?.code.as_ref()), (400, "INVALID_ARGUMENT"));
    assert!(answer.problem()?.detail.starts_with("type"));
    let device = target.device(&alice, DeviceOptions::default()).await?;
    let mut draft = Draft::to(&bob.id, "you have won");
    draft.kind = MessageType::System.to_string();
    let refused = device.send(&draft).await.expect_err("a client");
    assert_eq!(refused.code(), Some("INVALID_ARGUMENT"), "{refused}");
    assert!(bob.api.conversations(10, None).await?.conversations.is_empty());
    let sent = target
        .business
        .send(SendMessageRequest {
            sender_id: alice.id.clone(),
            recipient_id: bob.id.clone(),
            client_msg_id: "c-1".to_owned(),
            r#type: "system".to_owned(),
            content_json: r#"{"text":"your order is on its way"}"#.to_owned(),
            ..Default::default()
        })
        .await?;
    // Nor does a client make other words of one.
    let path = format!("/v1/conversations/{}/messages/{}", sent.conversation_id, sent.seq);
    let edit = alice.api.raw(Method::PATCH, &path, Some(json!({"content": {"text": "you have won"}}))).await?;
    assert_eq!((edit.status, edit.problem()?.reason.as_deref()), (403, Some("NOT_ALLOWED")));
    Ok(())
}

pub async fn a_push_token_is_set_and_taken_off(target: &Target) -> Proof {
    let alice = target.new_user("alice").await?;
    let put = async |provider: &str, token: &str| {
        let body = json!({"provider": provider, "token": token});
        alice.api.raw(Method::PUT, "/v1/devices/push-token", Some(body)).await
    };
    let provider = async || -> Result<Value, super::Failure> {
        let devices = alice.api.raw(Method::GET, "/v1/devices", None).await?.json()?;
        Ok(devices["devices"][0]["push_provider"].clone())
    };
    for (name, token) in
        [("apns", "00ff"), ("webpush", r#"{"endpoint":"https://push.example"}"#), ("webhook", "any text")]
    {
        assert_eq!(put(name, token).await?.status, 200, "{name}");
        assert_eq!(provider().await?, name);
    }
    for (name, token) in [("webpush", "[]"), ("webhook", "a\r\nb"), ("pigeon", "t"), ("apns", ""), ("", "t")] {
        assert_eq!(put(name, token).await?.status, 400, "{name:?} {token:?}");
        assert_eq!(provider().await?, "webhook");
    }
    assert_eq!(put("", "").await?.status, 200);
    assert_eq!(provider().await?, Value::Null);
    Ok(())
}
