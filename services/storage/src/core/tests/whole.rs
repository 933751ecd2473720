//! A refused call leaves nothing, wherever it is refused: in one of the partitions that it spans, or before all of them.

use std::collections::BTreeMap;

use futures::{FutureExt, future::BoxFuture};
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{
        AddMembersRequest, AddMembersResponse, AnswerFriendRequestRequest, CreateConversationRequest, DissolveRequest,
        ListBlocksRequest, ListFriendRequestsRequest, ListFriendsRequest, PutFriendRequest, RequestFriendRequest,
        SetBlockRequest,
    },
};

use super::*;

const GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";
const OTHER: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAW";
const USERS: [&str; 6] = ["alice", "bob", "carol", "dave", "eve", "frank"];

fn s(text: &str) -> String {
    text.to_owned()
}

fn group(id: &str, members: &[&str], key: &str) -> CreateConversationRequest {
    CreateConversationRequest {
        conversation_id: s(id),
        kind: ConversationKind::Group as i32,
        owner_id: s("alice"),
        member_ids: members.iter().map(|m| s(m)).collect(),
        group: None,
        idempotency_key: s(key),
    }
}

fn add(id: &str, users: &[&str]) -> AddMembersRequest {
    AddMembersRequest {
        conversation_id: s(id),
        user_ids: users.iter().map(|m| s(m)).collect(),
        ..AddMembersRequest::default()
    }
}

impl World {
    /// All that is stored but the events and their count: where two partitions differ, what was entered is taken back, and both are told.
    fn rows(&self) -> BTreeMap<u32, Data> {
        let mut state = self.state();
        for data in state.values_mut() {
            (data.ver, data.outbox) = (0, Vec::new());
        }
        state.retain(|_, data| *data != Data::default());
        state
    }

    async fn add(&self, id: &str, users: &[&str]) -> Result<AddMembersResponse, Error> {
        self.core.add_members(add(id, users)).await
    }
}

#[tokio::test]
async fn members_who_are_refused_and_a_group_that_is_refused_leave_nothing() {
    let five = Limits { members_per_conversation: 3, ..Limits::default() };
    let world = World::with(&USERS).await;
    let small = Core::new(world.engine.clone(), PARTITIONS, five, None);
    world.core.create_conversation(group(GROUP, &["bob"], "one")).await.unwrap();
    world.core.create_conversation(group(OTHER, &[], "two")).await.unwrap();
    world.core.dissolve(DissolveRequest { conversation_id: s(OTHER), actor_id: s("alice") }).await.unwrap();
    while !world.core.list_conversations_of("alice").await.contains(&s(GROUP)) || world.rows_of(OTHER) != 0 {
        tokio::task::yield_now().await;
    }
    let new = "g:01ARZ3NDEKTSV4RRFFQ69G5FAX";
    let before = world.state();
    is(world.add(GROUP, &["carol", "nobody"]).await, Code::NotFound, "user_ids: there is no user nobody");
    is(world.add(OTHER, &["carol"]).await, Code::NotFound, "dissolved");
    is(world.add(new, &["carol"]).await, Code::NotFound, "no such conversation");
    is(small.add_members(add(GROUP, &["carol", "dave"])).await, Code::FailedPrecondition, "at most 3 members");
    let make = async |core: &Core, request| core.create_conversation(request).await;
    is(make(&world.core, group(GROUP, &["carol"], "else")).await, Code::AlreadyExists, "conversation_id: ");
    is(make(&world.core, group(new, &["carol", "nobody"], "")).await, Code::NotFound, "there is no user nobody");
    is(make(&world.core, group(new, &["carol", "n:o"], "")).await, Code::InvalidArgument, "member_ids: ");
    is(make(&small, group(new, &["bob", "carol", "dave"], "")).await, Code::FailedPrecondition, "at most 3 members");
    world.engine.fill(true);
    is(world.add(GROUP, &["carol"]).await, Code::ResourceExhausted, "memory is full");
    is(make(&world.core, group(new, &["carol"], "")).await, Code::ResourceExhausted, "memory is full");
    assert!(world.state() == before, "no row, no entry and no event");
    world.engine.fill(false);
    assert_eq!(world.add(GROUP, &["carol"]).await.unwrap().added, ["carol"]);
    let made = make(&small, group(new, &["bob", "carol"], "")).await.unwrap();
    assert_eq!(made.conversation.unwrap().member_count, 3);
    assert!(world.core.list_conversations_of("carol").await.contains(&s(new)));
}

impl World {
    /// Members' rows of a conversation.
    fn rows_of(&self, id: &str) -> usize {
        self.by_hand(id, |data| data.hashes.get(&key::members(id)).map_or(0, BTreeMap::len))
    }
}

impl Core {
    async fn list_conversations_of(&self, user: &str) -> Vec<String> {
        let request = ListConversationsRequest { user_id: s(user), limit: 200, cursor: String::new() };
        let page = self.list_conversations(request).await.unwrap();
        page.conversations.into_iter().map(|c| c.conversation_id).collect()
    }
}

type Call = for<'a> fn(&'a Core) -> BoxFuture<'a, Result<(), Error>>;

/// Calls that span partitions, and store.
const SPANNING: [(&str, Call); 7] = [
    ("open_direct", |core| {
        core.open_direct(OpenDirectRequest { user_a: s("alice"), user_b: s("carol") }).map(|r| r.map(drop)).boxed()
    }),
    ("create_conversation", |core| {
        core.create_conversation(group(OTHER, &USERS[1..], "once")).map(|r| r.map(drop)).boxed()
    }),
    ("add_members", |core| core.add_members(add(GROUP, &USERS[2..])).map(|r| r.map(drop)).boxed()),
    ("set_block", |core| {
        let request = SetBlockRequest { user_id: s("alice"), target_id: s("dave"), blocked: true };
        core.set_block(request).map(|r| r.map(drop)).boxed()
    }),
    ("put_friend", |core| {
        let request = PutFriendRequest { user_id: s("alice"), friend_id: s("carol"), ..PutFriendRequest::default() };
        core.put_friend(request).map(|r| r.map(drop)).boxed()
    }),
    ("request_friend", |core| {
        core.request_friend(RequestFriendRequest { user_id: s("alice"), target_id: s("frank"), text: s("hi") }).boxed()
    }),
    ("answer_friend_request", |core| {
        let request = AnswerFriendRequestRequest { user_id: s("alice"), requester_id: s("bob"), accept: true };
        core.answer_friend_request(request).boxed()
    }),
];

#[tokio::test]
async fn a_call_that_one_full_shard_refuses_leaves_nothing_in_the_others() {
    let mut all = 0;
    for (name, call) in SPANNING {
        let mut refused = 0;
        for full in 0..PARTITIONS {
            let world = World::with(&USERS).await;
            world.core.create_conversation(group(GROUP, &["bob"], "")).await.unwrap();
            let ask = RequestFriendRequest { user_id: s("bob"), target_id: s("alice"), text: s("hello") };
            world.core.request_friend(ask).await.unwrap();
            let before = world.rows();
            world.engine.fill_one(full);
            if let Err(error) = call(&world.core).await {
                assert_eq!(error.code, Code::ResourceExhausted, "{name}: {error}");
                assert!(world.rows() == before, "{name}, refused by partition {full}, left something");
                refused += 1;
            }
            world.engine.fill(false);
            call(&world.core).await.unwrap_or_else(|error| panic!("{name} with room again: {error}"));
            assert!(world.rows() != before, "{name} does something");
        }
        assert!(refused >= 1, "{name} is refused somewhere");
        all += refused;
    }
    assert!(all >= 2 * SPANNING.len(), "they span partitions: {all}");
}

#[tokio::test]
async fn what_frees_is_done_in_full_shards_too() {
    let world = World::with(&USERS).await;
    let block = |blocked| SetBlockRequest { user_id: s("alice"), target_id: s("dave"), blocked };
    let friend = PutFriendRequest { user_id: s("alice"), friend_id: s("eve"), ..PutFriendRequest::default() };
    world.core.set_block(block(true)).await.unwrap();
    world.core.put_friend(friend).await.unwrap();
    for (from, to) in [("alice", "frank"), ("bob", "alice")] {
        let ask = RequestFriendRequest { user_id: s(from), target_id: s(to), text: s("hello") };
        world.core.request_friend(ask).await.unwrap();
    }
    world.engine.fill(true);
    assert!(world.core.set_block(block(false)).await.unwrap());
    let end = kith_proto::storage::v1::DeleteFriendRequest { user_id: s("alice"), friend_id: s("eve"), version: 0 };
    assert!(world.core.delete_friend(end).await.unwrap());
    for other in ["frank", "bob"] {
        let end = AnswerFriendRequestRequest { user_id: s("alice"), requester_id: s(other), accept: false };
        world.core.answer_friend_request(end).await.unwrap();
    }
    for user in USERS {
        let blocks = ListBlocksRequest { user_id: s(user), ..ListBlocksRequest::default() };
        assert!(world.core.list_blocks(blocks).await.unwrap().user_ids.is_empty());
        let friends = ListFriendsRequest { user_id: s(user), ..ListFriendsRequest::default() };
        assert!(world.core.list_friends(friends).await.unwrap().friends.is_empty());
        let requests = ListFriendRequestsRequest { user_id: s(user), ..ListFriendRequestsRequest::default() };
        assert!(world.core.list_friend_requests(requests).await.unwrap().requests.is_empty());
    }
}
