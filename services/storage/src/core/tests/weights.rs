//! Answers that hold the largest messages: each can be given, and all of them together hold everything.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kith_proto::{
    chat::v1::Position,
    storage::v1::{GetConversationsRequest, ListAfterRequest, ListMessagesRequest, ListMessagesResponse},
};
use prost::Message as _;
use ulid::Ulid;

use super::*;
use crate::{codec, core::model, weight};

/// The largest row and the largest overlay.
fn largest() -> (Bytes, Bytes) {
    let (draft, overlay) = weight::largest();
    (codec::pack(Ulid::from(1_u128), &draft), serde_json::to_vec(&overlay).unwrap().into())
}

impl World {
    /// Puts messages into a conversation: a row and an overlay each.
    fn fill(&self, id: &str, messages: &[(Bytes, Option<Bytes>)]) {
        self.by_hand(id, |data| {
            for (seq, (row, overlay)) in (1..).zip(messages) {
                data.messages.entry(id.to_owned()).or_default().insert(seq, row.clone());
                if let Some(overlay) = overlay {
                    let overlays = data.hashes.entry(key::overlays(id)).or_default();
                    overlays.insert(seq.to_string(), overlay.clone());
                }
            }
            let head = data.hashes.get_mut(&key::conversation(id)).unwrap();
            head.insert("s".to_owned(), messages.len().to_string().into());
        });
    }

    async fn history(&self, id: &str, before_seq: u64, after_seq: u64) -> ListMessagesResponse {
        let (conversation_id, user_id) = (id.to_owned(), "me".to_owned());
        let request = ListMessagesRequest { conversation_id, user_id, before_seq, after_seq, limit: 200 };
        let page = self.core.list_messages(request).await.unwrap();
        let (bytes, count) = (page.encoded_len(), page.messages.len());
        assert!(bytes <= weight::GATHERED || count == 1 && bytes <= weight::PAGE, "{count}: {bytes}");
        page
    }
}

#[tokio::test]
async fn a_page_of_the_largest_messages_can_be_given_and_every_one_is_reached() {
    let world = World::with(&["me", "you"]).await;
    let id = world.talk("me", "you", 1, 1).await;
    let (row, overlay) = largest();
    // Many that have no more than a large content, between those that weigh the most.
    let mut messages = vec![(row.clone(), None); 120];
    for at in [0, 1, 40, 80, 118, 119] {
        messages[at].1 = Some(overlay.clone());
    }
    world.fill(&id, &messages);
    let (mut forward, mut after) = (Vec::new(), 0);
    let begin = ListAfterRequest {
        user_id: "me".to_owned(),
        after: vec![Position { conversation_id: id.clone(), seq: 0 }],
        limit: 200,
        bytes: 0,
    };
    let first = world.core.list_after(begin).await.unwrap().conversations.remove(0);
    assert!(first.encoded_len() <= weight::PAGE && first.has_more);
    forward.extend(first.messages.iter().map(|m| m.seq));
    loop {
        after = forward.last().copied().unwrap_or(after);
        let page = world.history(&id, 0, after).await;
        assert!(!page.messages.is_empty());
        forward.extend(page.messages.iter().map(|m| m.seq));
        if !page.has_more {
            break;
        }
    }
    assert_eq!(forward, (1..=120).collect::<Vec<_>>());
    let (mut back, mut before) = (Vec::new(), 0);
    loop {
        let page = world.history(&id, before, 0).await;
        assert!(!page.messages.is_empty());
        back.extend(page.messages.iter().rev().map(|m| m.seq));
        before = page.messages[0].seq;
        if !page.has_more {
            break;
        }
    }
    assert_eq!(back, (1..=120).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn what_lies_behind_many_positions_is_bounded_in_bytes_and_everything_is_reached() {
    let peers: Vec<String> = (0..12).map(|n| format!("p{n}")).collect();
    let users: Vec<&str> = ["me"].into_iter().chain(peers.iter().map(String::as_str)).collect();
    let world = World::with(&users).await;
    let (row, overlay) = largest();
    let mut wanted = BTreeMap::new();
    for (n, peer) in peers.iter().enumerate() {
        let id = world.talk("me", peer, 1, 1).await;
        let large = (row.clone(), Some(overlay.clone()));
        let messages = match n % 3 {
            0 => vec![large; 2],
            1 => vec![(row.clone(), None); 30],
            _ => [vec![(row.clone(), None); 2], vec![large], vec![(row.clone(), None); 2]].concat(),
        };
        world.fill(&id, &messages);
        wanted.insert(id, messages.len() as u64);
    }
    let mut have: BTreeMap<String, u64> = wanted.keys().map(|id| (id.clone(), 0)).collect();
    let mut calls = 0;
    while have != wanted {
        calls += 1;
        let after = have.iter().map(|(id, seq)| Position { conversation_id: id.clone(), seq: *seq }).collect();
        let request = ListAfterRequest { user_id: "me".to_owned(), after, limit: 200, bytes: 0 };
        let answer = world.core.list_after(request).await.unwrap();
        assert!(answer.encoded_len() <= weight::PAGE + (16 << 10), "{}", answer.encoded_len());
        let before = have.clone();
        for found in answer.conversations {
            assert!(found.error.is_none());
            let have = have.get_mut(&found.conversation_id).unwrap();
            for message in &found.messages {
                assert_eq!(message.seq, *have + 1, "no gap");
                *have = message.seq;
            }
            assert_eq!(found.has_more, *have < wanted[&found.conversation_id], "{}", found.conversation_id);
        }
        assert_ne!(before, have, "call {calls} has brought nothing");
    }
    // Less room than one message takes: nothing comes, and that there is more is said.
    let id = wanted.keys().find(|id| wanted[*id] == 2).unwrap();
    let after = vec![Position { conversation_id: id.clone(), seq: 1 }];
    let request = ListAfterRequest { user_id: "me".to_owned(), after, limit: 200, bytes: 1 << 20 };
    let found = world.core.list_after(request).await.unwrap().conversations.remove(0);
    assert!(found.messages.is_empty() && found.has_more);
}

#[tokio::test]
async fn a_list_whose_last_messages_are_the_largest_can_be_given_and_shows_each_conversation_once() {
    for count in [7_usize, 70] {
        let peers: Vec<String> = (0..count).map(|n| format!("p{n:02}")).collect();
        let users: Vec<&str> = ["me"].into_iter().chain(peers.iter().map(String::as_str)).collect();
        let world = World::with(&users).await;
        let (row, overlay) = largest();
        let mut ids = Vec::new();
        for (n, peer) in peers.iter().enumerate() {
            let id = world.talk("me", peer, 1_000 - n as i64, 1_000 - n as i64).await;
            world.fill(&id, &[(row.clone(), n.is_multiple_of(6).then(|| overlay.clone()))]);
            ids.push(id);
        }
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let request = ListConversationsRequest { user_id: "me".to_owned(), limit: 200, cursor };
            let page = world.core.list_conversations(request).await.unwrap();
            assert!(page.encoded_len() <= weight::PAGE, "{}", page.encoded_len());
            assert!(!page.conversations.is_empty());
            for conversation in &page.conversations {
                assert!(conversation.error.is_none());
                assert!(
                    conversation.last_message.is_some(),
                    "{} has lost its last message",
                    conversation.conversation_id
                );
            }
            seen.extend(page.conversations.into_iter().map(|c| c.conversation_id));
            cursor = page.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(seen, ids);
        let one = |ids: &[String]| GetConversationsRequest {
            user_id: "me".to_owned(),
            conversation_ids: ids.to_vec(),
            with_last_message: true,
        };
        let alone = world.core.get_conversations(one(&ids[..1])).await.unwrap();
        assert!(alone[0].error.is_none() && alone[0].last_message.is_some());
        let together = world.core.get_conversations(one(&ids)).await.unwrap();
        let bytes: usize = together.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes <= weight::PAGE + (64 << 10), "{bytes}");
        let named: BTreeSet<_> = together.iter().map(|c| c.conversation_id.clone()).collect();
        assert_eq!(named, ids.iter().cloned().collect());
        assert!(together.iter().any(|c| c.error.is_some()), "not all had room");
    }
}

#[tokio::test]
async fn a_message_names_twenty_of_those_who_reacted_alike_counts_all_and_tells_each_reader_their_own() {
    let world = World::with(&["me", "you"]).await;
    let id = world.talk("me", "you", 1, 1).await;
    let mut names: Vec<String> = (0..24).map(|n| format!("u{n}")).collect();
    names.push("me".to_owned());
    let overlay = model::Overlay {
        reactions: [("ok".to_owned(), names.clone()), ("no".to_owned(), vec!["you".to_owned()])].into(),
        ..model::Overlay::default()
    };
    world.fill(&id, &[(largest().0, Some(serde_json::to_vec(&overlay).unwrap().into()))]);
    let read = async |user: &str| {
        let request =
            ListMessagesRequest { conversation_id: id.clone(), user_id: user.to_owned(), ..Default::default() };
        let page = world.core.list_messages(request).await.unwrap().messages.remove(0).reactions;
        page.into_iter().map(|r| (r.emoji, r.user_ids, r.count, r.mine)).collect::<Vec<_>>()
    };
    let shown = |mine: [bool; 2]| {
        vec![
            ("no".to_owned(), vec!["you".to_owned()], 1, mine[0]),
            ("ok".to_owned(), names[..20].to_vec(), 25, mine[1]),
        ]
    };
    assert_eq!(read("me").await, shown([false, true]));
    assert_eq!(read("you").await, shown([true, false]));
    assert_eq!(read("").await, shown([false, false]), "nobody's view");
    let request =
        GetConversationsRequest { user_id: "me".into(), conversation_ids: vec![id.clone()], with_last_message: true };
    let listed = world.core.get_conversations(request).await.unwrap().remove(0);
    let last = listed.last_message.unwrap().reactions;
    assert_eq!(last.iter().map(|r| (r.count, r.mine)).collect::<Vec<_>>(), [(1, false), (25, true)]);
}
