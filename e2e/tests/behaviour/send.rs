//! Sending and receiving.

use kith_contract::kinds::MessageType;
use kith_e2e::{
    client::{DeviceOptions, Draft},
    target::Target,
};
use kith_proto::business::v1::{ListMessagesRequest, SendMessageRequest};

use super::{Failure, Proof, SOON, two};

pub async fn a_message_is_stored_and_reaches_the_other_users_socket(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let mut draft = Draft::to(&bob.id, "hi").with_id("c-1");
    draft.ext.insert("k".to_owned(), "v".to_owned());
    draft.mentions.push(bob.id.clone());
    let sent = alice.api.send(&draft).await?;
    assert_eq!(sent.seq, 1);
    assert!(!sent.duplicate);
    assert_eq!(sent.message_id.len(), 26, "a ULID");
    let shown = device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, 1).cloned()).await?;
    assert_eq!(shown.message_id, sent.message_id);
    assert_eq!(shown.client_msg_id, "c-1");
    assert_eq!(shown.sender_id, alice.id);
    assert_eq!(shown.sent_at, sent.sent_at);
    assert_eq!((shown.kind.as_str(), &shown.content), ("text", &draft.content));
    assert_eq!((&*shown.mentions, &*shown.ext), (&*draft.mentions, &draft.ext));
    assert!(!shown.recalled && shown.edited_at.is_none() && shown.reactions.is_empty());
    let history = bob.api.whole_history(&sent.conversation_id, SOON).await?;
    assert_eq!(history, [shown]);
    Ok(())
}

pub async fn a_message_sent_on_the_socket_is_acknowledged_and_delivered(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let from = target.device(&alice, DeviceOptions::default()).await?;
    let to = target.device(&bob, DeviceOptions::default()).await?;
    let sent = from.send(&Draft::to(&bob.id, "over the socket")).await?;
    let shown = to.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).cloned()).await?;
    assert_eq!(shown.message_id, sent.message_id);
    let answer = to.send(&Draft::into_conversation(&sent.conversation_id, "and back")).await?;
    assert_eq!(answer.seq, sent.seq + 1);
    from.until("the answer", SOON, |inbox| inbox.get(&sent.conversation_id, answer.seq).map(drop)).await?;
    Ok(())
}

pub async fn every_device_of_the_recipient_gets_the_message(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let tablet = target.user_on(&bob.id, "tablet", "web").await?;
    let first = target.device(&bob, DeviceOptions::default()).await?;
    let second = target.device(&tablet, DeviceOptions::default()).await?;
    let sent = alice.api.send(&Draft::to(&bob.id, "to all of you")).await?;
    for device in [&first, &second] {
        device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).map(drop)).await?;
    }
    Ok(())
}

pub async fn a_conversation_is_gapless_and_in_order_from_both_sides(target: &Target) -> Proof {
    const EACH: usize = 25;
    let (alice, bob) = two(target).await?;
    let a = target.device(&alice, DeviceOptions::default()).await?;
    let b = target.device(&bob, DeviceOptions::default()).await?;
    let talk = async |from: &kith_e2e::client::Device, to: &str| {
        let mut seqs = Vec::new();
        for n in 0..EACH {
            seqs.push(from.send_until_stored(&Draft::to(to, &format!("{n}")), SOON).await?.seq);
        }
        Ok::<_, Failure>(seqs)
    };
    let (of_alice, of_bob) = tokio::join!(talk(&a, &bob.id), talk(&b, &alice.id));
    let (of_alice, of_bob) = (of_alice?, of_bob?);
    assert!(of_alice.is_sorted() && of_bob.is_sorted(), "a sender's own messages keep their order");
    let id = kith_contract::ids::direct_conversation_id(&alice.id, &bob.id)?;
    for (user, device, others) in [(&alice, &a, &of_bob), (&bob, &b, &of_alice)] {
        let history = user.api.whole_history(&id, SOON).await?;
        let seqs: Vec<u64> = history.iter().map(|m| m.seq).collect();
        assert_eq!(seqs, (1..=2 * EACH as u64).collect::<Vec<_>>());
        device
            .until("all of the other's messages", SOON, |inbox| {
                others.iter().all(|seq| inbox.get(&id, *seq).is_some()).then_some(())
            })
            .await?;
        device.inbox(|inbox| assert!(inbox.contradictions.is_empty(), "{:?}", inbox.contradictions));
    }
    Ok(())
}

pub async fn a_business_line_sends_for_its_user(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let device = target.device(&bob, DeviceOptions::default()).await?;
    let request = SendMessageRequest {
        sender_id: alice.id.clone(),
        recipient_id: bob.id.clone(),
        client_msg_id: "b-1".to_owned(),
        r#type: "text".to_owned(),
        content_json: r#"{"text":"from the line"}"#.to_owned(),
        ..SendMessageRequest::default()
    };
    let sent = target.business.send(request.clone()).await?;
    assert!(!sent.duplicate);
    let again = target.business.send(request).await?;
    assert!(again.duplicate && again.message_id == sent.message_id && again.seq == sent.seq);
    let shown = device.until("the message", SOON, |inbox| inbox.get(&sent.conversation_id, sent.seq).cloned()).await?;
    assert_eq!((&*shown.sender_id, &*shown.message_id), (&*alice.id, &*sent.message_id));
    let page =
        ListMessagesRequest { conversation_id: sent.conversation_id, limit: 10, ..ListMessagesRequest::default() };
    assert_eq!(target.business.list_messages(page).await?.messages.len(), 1);
    Ok(())
}

pub async fn content_of_every_type_comes_back_as_it_was_sent(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let mut sent = Vec::new();
    for kind in MessageType::ALL.iter().filter(|kind| **kind != MessageType::System) {
        let mut draft = Draft::to(&bob.id, "ünï \"quoted\" \\ \u{1F44D} \n");
        draft.kind = kind.to_string();
        draft.content["nested"] = serde_json::json!({"list": [1, 2.5, null, true], "empty": {}});
        let answer = alice.api.send(&draft).await.map_err(|e| format!("{kind}: {e}"))?;
        sent.push((answer, draft));
    }
    let history = bob.api.whole_history(&sent[0].0.conversation_id, SOON).await?;
    for ((answer, draft), message) in sent.iter().zip(&history) {
        assert_eq!(
            (answer.seq, &draft.kind, &draft.content),
            (message.seq, &message.kind.to_string(), &message.content)
        );
    }
    assert_eq!(history.len(), sent.len());
    Ok(())
}
