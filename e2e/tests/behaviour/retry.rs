//! The same message sent again.

use futures::future::join_all;
use kith_e2e::{
    client::Draft,
    target::{Target, unique},
};
use reqwest::Method;

use super::{Proof, SOON, two};

pub async fn the_same_client_msg_id_is_stored_once_and_answers_the_same_ids(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let draft = Draft::to(&bob.id, "once");
    let body = serde_json::to_value(&draft)?;
    let first = alice.api.raw(Method::POST, "/v1/messages", Some(body.clone())).await?;
    let again = alice.api.raw(Method::POST, "/v1/messages", Some(body)).await?;
    assert_eq!((first.status, again.status), (201, 200));
    let (first, again) = (first.json()?, again.json()?);
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&false.into(), &true.into()));
    for field in ["message_id", "conversation_id", "seq", "sent_at"] {
        assert_eq!(first[field], again[field], "{field}");
        assert!(first[field].is_string(), "{field} is a string");
    }
    // By the conversation's id instead of the recipient's it is the same message too.
    let id = first["conversation_id"].as_str().unwrap_or_default();
    let mut direct = Draft::into_conversation(id, "once").with_id(&draft.client_msg_id);
    direct.content.clone_from(&draft.content);
    assert!(alice.api.send(&direct).await?.duplicate);
    assert_eq!(bob.api.whole_history(id, SOON).await?.len(), 1);
    Ok(())
}

pub async fn the_same_client_msg_id_with_another_payload_is_a_conflict(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = unique("c");
    let sent = alice.api.send(&Draft::to(&bob.id, "one").with_id(&id)).await?;
    let refused = alice.api.send(&Draft::to(&bob.id, "another").with_id(&id)).await.expect_err("another payload");
    assert_eq!(refused.code(), Some("ALREADY_EXISTS"), "{refused}");
    let history = bob.api.whole_history(&sent.conversation_id, SOON).await?;
    assert_eq!((history.len(), &history[0].content["text"]), (1, &"one".into()));
    Ok(())
}

pub async fn the_same_client_msg_id_of_another_sender_is_another_message(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = unique("c");
    let first = alice.api.send(&Draft::to(&bob.id, "mine").with_id(&id)).await?;
    let second = bob.api.send(&Draft::to(&alice.id, "mine").with_id(&id)).await?;
    assert_eq!((first.seq, second.seq, second.duplicate), (1, 2, false));
    Ok(())
}

pub async fn concurrent_retries_are_stored_once(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let draft = Draft::to(&bob.id, "at once");
    let answers = join_all((0..8).map(|_| alice.api.send_until_stored(&draft, SOON))).await;
    let mut sent = Vec::new();
    for answer in answers {
        sent.push(answer?);
    }
    assert!(sent.iter().all(|s| s.message_id == sent[0].message_id && s.seq == 1), "{sent:?}");
    assert_eq!(sent.iter().filter(|s| !s.duplicate).count(), 1, "one was the first: {sent:?}");
    assert_eq!(bob.api.whole_history(&sent[0].conversation_id, SOON).await?.len(), 1);
    Ok(())
}
