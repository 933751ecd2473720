//! Offline, then online again.

use std::collections::BTreeMap;

use kith_e2e::{
    client::{DeviceOptions, Position},
    target::Target,
};

use super::{Proof, SOON, say, two};

/// What the server pushes by itself is what is looked at.
const PUSH_ALONE: DeviceOptions =
    DeviceOptions { ack: false, pull: false, token_in: kith_e2e::client::connection::TokenIn::Frame };

pub async fn messages_sent_while_offline_are_pushed_at_login_in_order(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let sent = say(&alice, &bob, &["1", "2", "3", "4", "5"]).await?;
    let id = &sent[0].conversation_id;
    let device = target.device(&bob, PUSH_ALONE).await?;
    device.until("all five", SOON, |inbox| (inbox.contiguous(id) == 5).then_some(())).await?;
    let texts: Vec<_> =
        device.inbox(|inbox| inbox.conversation(id)).into_iter().map(|m| m.content["text"].clone()).collect();
    assert_eq!(texts, ["1", "2", "3", "4", "5"]);
    Ok(())
}

pub async fn what_a_device_has_acknowledged_is_not_pushed_to_it_again(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let sent = say(&alice, &bob, &["1", "2", "3", "4", "5"]).await?;
    let id = &sent[0].conversation_id;
    bob.api.ack(&[Position { conversation_id: id.clone(), seq: 3 }]).await?;
    let device = target.device(&bob, PUSH_ALONE).await?;
    device.until("the last one", SOON, |inbox| inbox.get(id, 5).map(drop)).await?;
    let seqs: Vec<u64> = device.inbox(|inbox| inbox.conversation(id)).iter().map(|m| m.seq).collect();
    assert_eq!(seqs, [4, 5], "what lies before the device's cursor is known to it");
    // Another device of the same user has cursors of its own.
    let other = target.user_on(&bob.id, "other", "web").await?;
    let other = target.device(&other, PUSH_ALONE).await?;
    other.until("all five", SOON, |inbox| (inbox.contiguous(id) == 5).then_some(())).await?;
    Ok(())
}

pub async fn a_dropped_connection_comes_back_without_a_hole(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let device = target.device(&bob, DeviceOptions { ack: true, ..PUSH_ALONE }).await?;
    let sent = say(&alice, &bob, &["1", "2"]).await?;
    let id = &sent[0].conversation_id;
    device.until("the first two", SOON, |inbox| (inbox.contiguous(id) == 2).then_some(())).await?;
    device.drop_connection().await?;
    say(&alice, &bob, &["3", "4", "5"]).await?;
    device.until("a second hello", SOON, |inbox| (inbox.hellos.len() > 1).then_some(())).await?;
    say(&alice, &bob, &["6"]).await?;
    device.until("all six", SOON, |inbox| (inbox.contiguous(id) == 6).then_some(())).await?;
    device.inbox(|inbox| assert!(inbox.contradictions.is_empty(), "{:?}", inbox.contradictions));
    Ok(())
}

pub async fn sync_gives_what_lies_after_each_cursor(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let carol = target.new_user("carol").await?;
    let with_alice = say(&alice, &bob, &["1", "2", "3"]).await?[0].conversation_id.clone();
    let with_carol = say(&carol, &bob, &["1", "2"]).await?[0].conversation_id.clone();
    let cursors = BTreeMap::from([(with_alice.clone(), 1), (with_carol.clone(), 2)]);
    let synced = bob.api.sync(&cursors, 100).await?;
    let found = synced.conversations.iter().find(|c| c.conversation_id == with_alice).expect("the one that is behind");
    assert_eq!(found.messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((found.seq, found.has_more), (3, false));
    let nothing =
        synced.conversations.iter().filter(|c| c.conversation_id == with_carol).all(|c| c.messages.is_empty());
    assert!(nothing, "the one that is up to date has nothing new");
    // Without cursors everything is new, and a small limit says that there is more.
    let mut seen = 0;
    let mut cursors = BTreeMap::new();
    for _ in 0..20 {
        let page = bob.api.sync(&cursors, 1).await?;
        for conversation in &page.conversations {
            seen += conversation.messages.len();
            if let Some(last) = conversation.messages.last() {
                cursors.insert(conversation.conversation_id.clone(), last.seq);
            }
        }
        if seen == 5 {
            break;
        }
    }
    assert_eq!(seen, 5, "paging by cursors reaches everything");
    Ok(())
}
