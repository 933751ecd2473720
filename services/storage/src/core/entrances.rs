//! Nobody but its two users comes into a direct conversation, by whatever entrance, and whatever rows stand.

use std::sync::Arc;

use kith_contract::ids;
use kith_kit::config::Limits;
use kith_proto::{
    chat::v1::{Draft, MessageType, Position},
    storage::v1::{
        AckRequest, AddMembersRequest, AppendRequest, ClearRequest, DirectBlock, EditRequest, EnterList,
        GetConversationsRequest, GetReceiptsRequest, Head, ListAfterRequest, ListConversationsRequest,
        ListMembersRequest, ListMessagesRequest, MarkReadRequest, OpenDirectRequest, ReactRequest, RecallRequest,
        RemoveMembersRequest, Role, SetListEntryRequest, Step, UpdateMemberRequest, UpsertUsersRequest, UserUpdate,
        step, step_result,
    },
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core,
    model::{MemberData, key},
    no_conversation,
};
use crate::engine::memory::MemoryEngine;

const PARTITIONS: u32 = 8;
const TALK: &str = "d:alice:bob";

fn message(sender: &str, client_msg_id: &str) -> AppendRequest {
    let draft = Draft {
        client_msg_id: client_msg_id.to_owned(),
        sender_id: sender.to_owned(),
        r#type: MessageType::Text as i32,
        content: r#"{"text":"hi"}"#.into(),
        ..Draft::default()
    };
    AppendRequest { conversation_id: TALK.to_owned(), draft: Some(draft), ..AppendRequest::default() }
}

fn step(id: &str, step: step::Step) -> Step {
    Step { id: id.to_owned(), step: Some(step) }
}

/// What every call about messages says to `user`.
async fn of_messages(core: &Core, user: &str) -> Vec<(&'static str, Result<(), Error>)> {
    let (u, c) = (|| user.to_owned(), || TALK.to_owned());
    let history = ListMessagesRequest { conversation_id: c(), user_id: u(), ..Default::default() };
    let after = vec![Position { conversation_id: c(), seq: 0 }];
    let after = core.list_after(ListAfterRequest { user_id: u(), after, limit: 0, bytes: 0 }).await.unwrap();
    let after = after.conversations.into_iter().find_map(|c| c.error).map_or(Ok(()), |e| Err(e.into()));
    let content = r#"{"text":"mine"}"#.into();
    let edit = EditRequest { conversation_id: c(), seq: 1, user_id: u(), content, limit_ms: 0 };
    let react = ReactRequest { conversation_id: c(), seq: 1, user_id: u(), emoji: "+1".to_owned(), add: true };
    let receipts = GetReceiptsRequest { user_id: u(), conversation_id: c(), seq: 1 };
    let recall = RecallRequest { conversation_id: c(), seq: 1, user_id: u(), ..Default::default() };
    vec![
        ("append", core.append(message(user, "c-2")).await.map(drop)),
        ("list_messages", core.list_messages(history).await.map(drop)),
        ("list_after", after),
        ("edit", core.edit(edit).await.map(drop)),
        ("react", core.react(react).await.map(drop)),
        ("get_receipts", core.get_receipts(receipts).await.map(drop)),
        ("recall", core.recall(recall).await.map(drop)),
    ]
}

/// The same of calls about the conversation itself.
async fn of_conversation(core: &Core, user: &str) -> Vec<(&'static str, Result<(), Error>)> {
    let (u, c) = (|| user.to_owned(), || TALK.to_owned());
    let acked = async |seq| {
        let acks = vec![Position { conversation_id: c(), seq }];
        let answer = core.ack(AckRequest { user_id: u(), device_id: "d1".to_owned(), acks }).await.unwrap();
        answer.errors.into_iter().find_map(|e| e.error).map_or(Ok(()), |e| Err(e.into()))
    };
    let head = step(TALK, step::Step::Head(Head { user_id: u(), ..Head::default() }));
    let head = match core.step(head).await {
        Ok(step_result::Result::Head(found)) if found.conversation.is_none() => Err(no_conversation()),
        other => other.map(drop),
    };
    let heads = GetConversationsRequest { user_id: u(), conversation_ids: vec![c()], with_last_message: true };
    let heads = core.get_conversations(heads).await.map(|found| found.is_empty());
    let members = ListMembersRequest { conversation_id: c(), user_id: u(), ..Default::default() };
    let among = ListMembersRequest { user_ids: vec![u()], ..members.clone() };
    let entry = SetListEntryRequest { user_id: u(), conversation_id: c(), pinned: Some(true), muted: None };
    let enter =
        step(user, step::Step::EnterList(EnterList { conversation_id: c(), activity: 1, ..Default::default() }));
    let block = step(TALK, step::Step::DirectBlock(DirectBlock { user_id: u(), blocked: true }));
    let add = AddMembersRequest { conversation_id: c(), user_ids: vec![u()], ..Default::default() };
    let role = Some(Role::Admin as i32);
    let update = UpdateMemberRequest { conversation_id: c(), user_id: u(), role, ..Default::default() };
    vec![
        ("mark_read", core.mark_read(MarkReadRequest { user_id: u(), conversation_id: c(), seq: 1 }).await.map(drop)),
        ("ack", acked(1).await),
        ("ack of 0", acked(0).await),
        ("head", head),
        ("get_conversations", heads.and_then(|none| if none { Err(no_conversation()) } else { Ok(()) })),
        ("list_members", core.list_members(members).await.map(drop)),
        ("list_members of some", core.list_members(among).await.map(drop)),
        ("set_list_entry", core.set_list_entry(entry).await),
        ("enter_list", core.step(enter).await.map(drop)),
        ("direct_block", core.step(block).await.map(drop)),
        ("add_members", core.add_members(add).await.map(drop)),
        ("update_member", core.update_member(update).await.map(drop)),
        ("clear", core.clear(ClearRequest { user_id: u(), conversation_id: c() }).await.map(drop)),
    ]
}

async fn every_entrance(core: &Core, user: &str) -> Vec<(&'static str, Result<(), Error>)> {
    let mut all = of_messages(core, user).await;
    all.extend(of_conversation(core, user).await);
    all
}

#[tokio::test]
async fn a_row_that_should_not_stand_lets_nobody_into_a_direct_conversation() {
    let engine = Arc::new(MemoryEngine::default());
    let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
    let users = ["alice", "bob", "carol"].map(|id| UserUpdate { user_id: id.to_owned(), ..UserUpdate::default() });
    core.upsert_users(UpsertUsersRequest { users: users.into() }).await.unwrap();
    core.open_direct(OpenDirectRequest { user_a: "alice".to_owned(), user_b: "bob".to_owned() }).await.unwrap();
    core.append(message("alice", "c-1")).await.unwrap();
    // What no call writes: a third member, who has the conversation in her list.
    engine.by_hand(ids::partition_of(TALK, PARTITIONS), |data| {
        let row = MemberData::new(Role::Owner, 1, 1).pack();
        data.hashes.entry(key::members(TALK)).or_default().insert("carol".to_owned(), row);
    });
    engine.by_hand(ids::partition_of("carol", PARTITIONS), |data| {
        data.scores.entry(key::list("carol")).or_default().insert(TALK.to_owned(), 1);
    });
    let before = engine.copy();
    for (call, outcome) in every_entrance(&core, "carol").await {
        assert_eq!(outcome, Err(no_conversation()), "{call}");
    }
    let list = ListConversationsRequest { user_id: "carol".to_owned(), ..Default::default() };
    assert!(core.list_conversations(list).await.unwrap().conversations.is_empty());
    assert_eq!(engine.copy(), before, "who is refused changes nothing");
    // To its own users every entrance is open.
    for (call, outcome) in every_entrance(&core, "alice").await {
        assert_eq!(outcome, Ok(()), "{call}");
    }
    let (conversation_id, user_ids) = (TALK.to_owned(), vec!["alice".to_owned()]);
    let leave = RemoveMembersRequest { conversation_id, user_ids, ..Default::default() };
    assert_eq!(core.remove_members(leave).await.unwrap_err().code, Code::InvalidArgument);
}
