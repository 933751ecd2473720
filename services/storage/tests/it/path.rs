//! The way of a message through storage: over gRPC, a real engine with a replica, and a real Kafka.

use std::{collections::BTreeSet, time::Duration};

use crate::common::{Platform, events, text, user};
use kith_contract::events::Kind;
use kith_proto::{
    chat::v1::Position,
    storage::v1::{
        AppendRequest, ClearRequest, CreateConversationRequest, Device, GetReceiptsRequest, GetRevocationRequest,
        ListBehindRequest, ListConversationsRequest, ListMembersRequest, ListMessagesRequest, MarkReadRequest,
        OpenDirectRequest, PutDeviceRequest, ReactRequest, RecallRequest, RemoveMembersRequest, RevokeTokensRequest,
        SetBlockRequest, SetListEntryRequest,
    },
};
use kith_rpc::error::reason;
use tonic::Code;

async fn history(client: &kith_clients::storage::Storage, id: &str, user: &str) -> Vec<(u64, String)> {
    let request = ListMessagesRequest {
        conversation_id: id.to_owned(),
        user_id: user.to_owned(),
        limit: 200,
        ..Default::default()
    };
    let page = client.list_messages(request).await.unwrap();
    page.messages.into_iter().map(|m| (m.seq, m.client_msg_id)).collect()
}

fn first(sender: &str, peers: &[&str], client_msg_id: &str) -> AppendRequest {
    let id = kith_contract::ids::direct_conversation_id(sender, peers[0]).unwrap();
    AppendRequest { peers: peers.iter().map(|&p| p.to_owned()).collect(), ..text(&id, sender, client_msg_id, "hi") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_message_opens_its_conversation_once_and_only_with_someone_who_exists() {
    let platform = Platform::start(1, 1).await;
    let one = platform.instance().await;
    let client = platform.client().await;
    client.upsert_users(["alice", "bob", "c"].map(user).to_vec()).await.unwrap();

    let nobody = client.append(first("alice", &["nobody"], "c-1")).await.unwrap_err();
    assert_eq!(nobody.code, Code::NotFound);
    let stranger = AppendRequest { peers: vec!["bob".to_owned()], ..text("d:alice:carol", "alice", "c-1", "hi") };
    let error = client.append(stranger).await.unwrap_err();
    assert_eq!((error.code, error.detail.starts_with("peers: ")), (Code::InvalidArgument, true));
    let list = |user: &str| ListConversationsRequest { user_id: user.to_owned(), limit: 0, cursor: String::new() };
    assert!(client.list_conversations(list("alice")).await.unwrap().conversations.is_empty());

    // Both write first, at the same moment.
    let (a, b) =
        tokio::join!(client.append(first("alice", &["bob"], "c-1")), client.append(first("bob", &["alice"], "c-1")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(BTreeSet::from([a.seq, b.seq]), BTreeSet::from([1, 2]));
    for user in ["alice", "bob"] {
        let page = client.list_conversations(list(user)).await.unwrap().conversations;
        assert_eq!((page.len(), page[0].seq, page[0].member_count), (1, 2, 2));
    }
    let again = client.append(first("alice", &["bob"], "c-1")).await.unwrap();
    assert_eq!((again.seq, again.duplicate), (a.seq, true));

    // A block stands before the conversation: it is opened, and the blocked one is told.
    let block = SetBlockRequest { user_id: "bob".to_owned(), target_id: "c".to_owned(), blocked: true };
    client.set_block(block).await.unwrap();
    let refused = client.append(first("c", &["bob"], "c-1")).await.unwrap_err();
    assert_eq!(refused.reason.as_deref(), Some(reason::BLOCKED));
    assert_eq!(client.append(first("bob", &["c"], "c-1")).await.unwrap().seq, 1);

    // Of users who are known to exist everything is written at once.
    let (a, c) =
        tokio::join!(client.append(first("alice", &["c"], "c-1")), client.append(first("c", &["alice"], "c-1")));
    assert_eq!(BTreeSet::from([a.unwrap().seq, c.unwrap().seq]), BTreeSet::from([1, 2]));
    for user in ["alice", "c"] {
        let page = client.list_conversations(list(user)).await.unwrap().conversations;
        let opened = page.iter().find(|c| c.conversation_id == "d:alice:c").unwrap();
        assert_eq!((opened.seq, opened.member_count), (2, 2));
    }
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_stored_once_listed_counted_and_on_the_event_log() {
    let platform = Platform::start(1, 1).await;
    let one = platform.instance().await;
    let client = platform.client().await;

    let made = client.upsert_users(vec![user("alice"), user("bob"), user("carol")]).await.unwrap();
    assert!(made.iter().all(|r| r.created && r.error.is_none()), "{made:?}");
    assert_eq!(client.get_users(vec!["alice".to_owned(), "nobody".to_owned()]).await.unwrap().len(), 1);

    let open = |a: &str, b: &str| OpenDirectRequest { user_a: a.to_owned(), user_b: b.to_owned() };
    assert_eq!(client.open_direct(open("alice", "nobody")).await.unwrap_err().code, Code::NotFound);
    let opened = client.open_direct(open("bob", "alice")).await.unwrap();
    let id = opened.conversation_id.clone();
    assert_eq!((id.as_str(), opened.created), ("d:alice:bob", true));
    assert!(!client.open_direct(open("alice", "bob")).await.unwrap().created);

    let first = client.append(text(&id, "alice", "c-1", "hi")).await.unwrap();
    assert_eq!((first.seq, first.duplicate), (1, false));
    let again = client.append(text(&id, "alice", "c-1", "hi")).await.unwrap();
    assert_eq!(
        (again.seq, again.duplicate, again.message_id, again.sent_at),
        (1, true, first.message_id, first.sent_at)
    );
    assert_eq!(client.append(text(&id, "alice", "c-1", "other")).await.unwrap_err().code, Code::AlreadyExists);
    let absent = client.append(text("d:alice:carol", "alice", "c-1", "hi")).await.unwrap_err();
    assert_eq!(absent.code, Code::NotFound);
    assert_eq!(client.append(text(&id, "carol", "c-1", "hi")).await.unwrap_err(), absent, "as if it were not there");
    assert_eq!(client.append(text(&id, "bob", "c-1", "hello")).await.unwrap().seq, 2);
    assert_eq!(history(&client, &id, "alice").await, [(1, "c-1".to_owned()), (2, "c-1".to_owned())]);

    let list = |user: &str| ListConversationsRequest { user_id: user.to_owned(), limit: 0, cursor: String::new() };
    let page = client.list_conversations(list("alice")).await.unwrap();
    assert_eq!((page.conversations[0].unread, page.conversations[0].seq), (1, 2));
    assert_eq!(page.conversations[0].last_message.as_ref().unwrap().sender_id, "bob");
    assert_eq!(client.list_conversations(list("bob")).await.unwrap().conversations[0].unread, 0);

    let read = MarkReadRequest { user_id: "alice".to_owned(), conversation_id: id.clone(), seq: 99 };
    let read = client.mark_read(read).await.unwrap();
    assert_eq!((read.read_seq, read.unread), (2, 0));
    let behind = ListBehindRequest { user_id: "alice".to_owned(), device_id: "d1".to_owned(), ..Default::default() };
    let found = client.list_behind(behind.clone()).await.unwrap().behind;
    assert_eq!((found.len(), found[0].delivered_seq, found[0].seq), (1, 0, 2));
    let acked = client.ack("alice", "d1", vec![Position { conversation_id: id.clone(), seq: 2 }]).await.unwrap();
    assert_eq!(acked.delivered[0].seq, 2);
    assert!(client.list_behind(behind).await.unwrap().behind.is_empty());
    let receipts = GetReceiptsRequest { user_id: "bob".to_owned(), conversation_id: id.clone(), seq: 2 };
    let receipts = client.get_receipts(receipts).await.unwrap();
    // Who has sent it has read it.
    assert_eq!(receipts.read_by, ["alice", "bob"]);
    assert_eq!(receipts.delivered_to, ["alice"]);

    let found = events(&platform, Duration::from_secs(20), |found| found.len() == 3 + 2 + 1 + 2 + 2).await;
    let created: Vec<_> = found.values().filter(|(kind, _)| kind == Kind::MessageCreated.ce_type()).collect();
    assert_eq!(created.len(), 2);
    assert_eq!(created[0].1["content"]["text"], "hi");
    assert_eq!(created[0].1["seq"], "1");
    let read: Vec<_> = found.values().filter(|(kind, _)| kind == Kind::ReceiptRead.ce_type()).collect();
    assert_eq!(read[0].1["read_seq"], "2");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_blocks_recalls_and_settings_do_what_they_say() {
    let platform = Platform::start(2, 1).await;
    let (one, two) = (platform.instance().await, platform.instance().await);
    let client = platform.client().await;
    client.upsert_users(["alice", "bob", "carol", "dave"].map(user).to_vec()).await.unwrap();

    let group = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
    let create = CreateConversationRequest {
        conversation_id: group.clone(),
        kind: 2,
        owner_id: "alice".to_owned(),
        member_ids: vec!["bob".to_owned(), "carol".to_owned()],
        group: None,
        idempotency_key: "k-1".to_owned(),
    };
    let made = client.create_conversation(create.clone()).await.unwrap();
    assert_eq!((made.created, made.conversation.unwrap().member_count), (true, 3));
    assert!(!client.create_conversation(create).await.unwrap().created);
    client.append(text(&group, "bob", "c-1", "to all")).await.unwrap();
    let outside = client.append(text(&group, "dave", "c-1", "let me in")).await.unwrap_err();
    let absent = client.append(text("g:01ARZ3NDEKTSV4RRFFQ69G5FAW", "dave", "c-1", "let me in")).await.unwrap_err();
    assert_eq!((absent.code, &outside), (Code::NotFound, &absent), "as if it were not there");
    let members = ListMembersRequest { conversation_id: group.clone(), limit: 2, ..Default::default() };
    let page = client.list_members(members.clone()).await.unwrap();
    assert_eq!(page.members.iter().map(|m| m.user_id.as_str()).collect::<Vec<_>>(), ["alice", "bob"]);
    let rest = client.list_members(ListMembersRequest { cursor: page.next_cursor, ..members }).await.unwrap();
    assert_eq!(rest.members[0].user_id, "carol");
    let remove = RemoveMembersRequest {
        conversation_id: group.clone(),
        user_ids: vec!["carol".to_owned()],
        actor_id: "alice".to_owned(),
    };
    assert_eq!(client.remove_members(remove).await.unwrap().removed, ["carol"]);
    let list = |user: &str| ListConversationsRequest { user_id: user.to_owned(), limit: 0, cursor: String::new() };
    assert!(client.list_conversations(list("carol")).await.unwrap().conversations.is_empty());
    let unseen =
        ListMessagesRequest { conversation_id: group.clone(), user_id: "carol".to_owned(), ..Default::default() };
    assert_eq!(client.list_messages(unseen).await.unwrap_err().code, Code::NotFound);

    let react = ReactRequest {
        conversation_id: group.clone(),
        seq: 1,
        user_id: "alice".to_owned(),
        emoji: "👍".to_owned(),
        add: true,
    };
    assert!(client.react(react.clone()).await.unwrap().changed);
    assert!(!client.react(react).await.unwrap().changed);
    let recall = RecallRequest {
        conversation_id: group.clone(),
        seq: 1,
        user_id: "bob".to_owned(),
        limit_ms: 60_000,
        privileged: false,
    };
    assert!(client.recall(recall.clone()).await.unwrap().changed);
    assert!(!client.recall(recall).await.unwrap().changed);
    let page =
        ListMessagesRequest { conversation_id: group.clone(), user_id: "alice".to_owned(), ..Default::default() };
    let page = client.list_messages(page).await.unwrap();
    assert!(page.messages[0].recalled && page.messages[0].content.is_empty());

    let block = SetBlockRequest { user_id: "bob".to_owned(), target_id: "alice".to_owned(), blocked: true };
    assert!(client.set_block(block).await.unwrap().changed);
    let open = OpenDirectRequest { user_a: "alice".to_owned(), user_b: "bob".to_owned() };
    let direct = client.open_direct(open).await.unwrap().conversation_id;
    assert_eq!(
        client.append(text(&direct, "alice", "c-9", "hey")).await.unwrap_err().reason.as_deref(),
        Some(reason::BLOCKED)
    );
    client.append(text(&direct, "bob", "c-9", "one way")).await.unwrap();

    let entry = SetListEntryRequest {
        user_id: "alice".to_owned(),
        conversation_id: direct.clone(),
        pinned: Some(true),
        muted: None,
    };
    client.set_list_entry(entry).await.unwrap();
    let seen = client.get_conversations("alice", vec![direct.clone()], true).await.unwrap();
    assert!(seen[0].pinned && seen[0].last_message.is_some());
    client.clear(ClearRequest { user_id: "alice".to_owned(), conversation_id: direct.clone() }).await.unwrap();
    assert!(history(&client, &direct, "alice").await.is_empty());
    assert_eq!(history(&client, &direct, "bob").await.len(), 1);

    let device = Device {
        device_id: "d1".to_owned(),
        platform: 1,
        push_provider: "apns".to_owned(),
        push_token: "t".to_owned(),
        last_seen: 5,
    };
    let request = PutDeviceRequest { user_id: "alice".to_owned(), device: Some(device), ..Default::default() };
    client.put_device(request).await.unwrap();
    let revoke =
        RevokeTokensRequest { user_id: "alice".to_owned(), device_id: "d1".to_owned(), issued_at_or_before: 7 };
    client.revoke_tokens(revoke).await.unwrap();
    let revoked = client
        .get_revocation(GetRevocationRequest { user_id: "alice".to_owned(), device_id: "d1".to_owned() })
        .await
        .unwrap();
    assert_eq!(revoked.device_issued_at_or_before["d1"], 7);
    one.stop().await;
    two.stop().await;
}
