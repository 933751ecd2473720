//! Answers in bytes, through the network: whatever messages hold, what is asked for can be answered, and all of it is reached.

use std::collections::BTreeMap;

use crate::common::{Platform, user};
use futures::{StreamExt, stream};
use kith_clients::storage::{PAGE_BYTES, Storage};
use kith_proto::{
    chat::v1::{Draft, MessageType, Position},
    storage::v1::{AppendRequest, ListConversationsRequest, ListMessagesRequest, OpenDirectRequest},
};
use prost::Message as _;

const PEERS: usize = 10;
const MESSAGES: u64 = 100;

/// Little content, and as many mentions and extensions as are taken.
fn heavy(conversation_id: &str, sender: &str, number: u64) -> AppendRequest {
    AppendRequest {
        conversation_id: conversation_id.to_owned(),
        draft: Some(Draft {
            client_msg_id: format!("c-{number}"),
            sender_id: sender.to_owned(),
            r#type: MessageType::Text as i32,
            content: r#"{"text":"x"}"#.into(),
            mentions: (0..200).map(|n| format!("{n:0>64}")).collect(),
            ext: (0..64).map(|n| (format!("{n:0>4}"), "\u{1}".repeat(124))).collect(),
        }),
        ..AppendRequest::default()
    }
}

async fn fill(client: &Storage) -> BTreeMap<String, u64> {
    let peers: Vec<String> = (0..PEERS).map(|n| format!("p{n}")).collect();
    let users = ["me".to_owned()].into_iter().chain(peers.clone());
    client.upsert_users(users.map(|id| user(&id)).collect()).await.unwrap();
    let mut wanted = BTreeMap::new();
    for peer in &peers {
        let request = OpenDirectRequest { user_a: "me".to_owned(), user_b: peer.clone() };
        let id = client.open_direct(request).await.unwrap().conversation_id;
        let sends = (1..=MESSAGES).map(|n| client.append(heavy(&id, peer, n)));
        let sent: Vec<_> = stream::iter(sends).buffer_unordered(16).collect().await;
        assert!(sent.into_iter().all(|s| s.is_ok()));
        wanted.insert(id, MESSAGES);
    }
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_messages_full_of_mentions_and_extensions_is_answered_and_reaches_everything() {
    let platform = Platform::start(1, 1).await;
    let (one, two) = (platform.instance().await, platform.instance().await);
    let client = platform.client().await;
    let wanted = fill(&client).await;
    let mut have: BTreeMap<String, u64> = wanted.keys().map(|id| (id.clone(), 0)).collect();
    let mut calls = 0;
    while have != wanted {
        calls += 1;
        assert!(calls < 60, "{have:?}");
        let after = have.iter().map(|(id, seq)| Position { conversation_id: id.clone(), seq: *seq }).collect();
        let found = client.list_after("me", after, 200).await.unwrap();
        let bytes: usize = found.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes <= PAGE_BYTES + (16 << 10), "{bytes}");
        let before = have.clone();
        for found in found {
            assert!(found.error.is_none(), "{:?}", found.error);
            let have = have.get_mut(&found.conversation_id).unwrap();
            for message in &found.messages {
                assert_eq!(message.seq, *have + 1, "no gap");
                *have = message.seq;
            }
            assert_eq!(found.has_more, *have < MESSAGES);
        }
        assert_ne!(before, have, "call {calls} has brought nothing");
    }
    for id in wanted.keys() {
        let (conversation_id, user_id) = (id.clone(), "me".to_owned());
        let request = ListMessagesRequest { conversation_id, user_id, limit: 200, ..Default::default() };
        let page = client.list_messages(request).await.unwrap();
        assert!(page.encoded_len() <= PAGE_BYTES && page.messages.last().unwrap().seq == MESSAGES);
    }
    let list = ListConversationsRequest { user_id: "me".to_owned(), limit: 200, cursor: String::new() };
    let page = client.list_conversations(list).await.unwrap();
    assert_eq!(page.conversations.len(), PEERS);
    assert!(page.conversations.iter().all(|c| c.error.is_none() && c.last_message.is_some()));
    one.stop().await;
    two.stop().await;
}
