//! An engine at its `maxmemory`: what frees or moves positions goes on, what stores is refused whole, and everything can be read.

use std::{collections::BTreeMap, time::Duration};

use crate::common::{Platform, text, user};
use futures::{FutureExt, future::BoxFuture};
use kith_clients::storage::Storage;
use kith_contract::ids;
use kith_proto::{
    chat::v1::{ConversationKind, Position},
    storage::v1::{
        AddMembersRequest, AnswerFriendRequestRequest, AppendRequest, ClearRequest, CreateConversationRequest,
        DeleteDeviceRequest, DeleteFriendRequest, Device, DissolveRequest, EditRequest, GetReceiptsRequest,
        GetRevocationRequest, ListBehindRequest, ListBlocksRequest, ListConversationsRequest, ListDevicesRequest,
        ListFriendRequestsRequest, ListFriendsRequest, ListMembersRequest, ListMessagesRequest, MarkReadRequest,
        OpenDirectRequest, PutDeviceRequest, PutFriendRequest, ReactRequest, RecallRequest, RemoveMembersRequest,
        RequestFriendRequest, RevokeTokensRequest, SetBlockRequest, SetListEntryRequest, UpdateConversationRequest,
        UpdateMemberRequest,
    },
};
use kith_rpc::error::Error;
use kith_testing::eventually;
use redis::Value;
use tonic::Code;

const GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";
const SECOND: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAW";
const NEW_GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAX";
const TALK: &str = "d:alice:bob";

type Call<'a> = (&'static str, BoxFuture<'a, Result<(), Error>>);

fn s(text: &str) -> String {
    text.to_owned()
}

/// Every stored value but the outbox, which is trimmed at any time.
async fn stored(platform: &Platform) -> BTreeMap<String, Vec<u8>> {
    let mut connection = platform.valkey.nodes(0)[0].connect().await.unwrap();
    let Value::Array(keys) = connection.command(redis::cmd("KEYS").arg("*")).await.unwrap() else { panic!("no keys") };
    let mut found = BTreeMap::new();
    for key in keys {
        let Value::BulkString(key) = key else { panic!("{key:?}") };
        let name = String::from_utf8(key.clone()).unwrap();
        if name.ends_with("}o") {
            continue;
        }
        if let Value::BulkString(bytes) = connection.command(redis::cmd("DUMP").arg(&key)).await.unwrap() {
            found.insert(name, bytes);
        }
    }
    found
}

async fn limit_memory(platform: &Platform, bytes: &str) {
    platform.valkey.nodes(0)[0].command(&["CONFIG", "SET", "maxmemory", bytes]).await.unwrap();
}

fn group(id: &str, members: &[&str]) -> CreateConversationRequest {
    CreateConversationRequest {
        conversation_id: s(id),
        kind: ConversationKind::Group as i32,
        owner_id: s("alice"),
        member_ids: members.iter().map(|m| s(m)).collect(),
        group: None,
        idempotency_key: s("once"),
    }
}

fn device(id: &str, last_seen: i64, push: Option<&str>) -> PutDeviceRequest {
    let token = push.unwrap_or_default();
    let provider = if token.is_empty() { "" } else { "fcm" };
    let device = Device { device_id: s(id), platform: 1, push_provider: s(provider), push_token: s(token), last_seen };
    PutDeviceRequest { user_id: s("alice"), device: Some(device), set_push: push.is_some(), token_issued_at: 0 }
}

fn react(seq: u64, add: bool) -> ReactRequest {
    ReactRequest { conversation_id: s(TALK), seq, user_id: s("alice"), emoji: s("👍"), add }
}

fn block(target: &str, blocked: bool) -> SetBlockRequest {
    SetBlockRequest { user_id: s("alice"), target_id: s(target), blocked }
}

fn ask(from: &str, to: &str) -> RequestFriendRequest {
    RequestFriendRequest { user_id: s(from), target_id: s(to), text: s("hello") }
}

fn answer(user: &str, other: &str, accept: bool) -> AnswerFriendRequestRequest {
    AnswerFriendRequestRequest { user_id: s(user), requester_id: s(other), accept }
}

fn friend(id: &str, alias: &str) -> PutFriendRequest {
    PutFriendRequest { user_id: s("alice"), friend_id: s(id), alias: Some(s(alias)), version: 0, must_exist: false }
}

fn settings(id: &str, pinned: bool) -> SetListEntryRequest {
    SetListEntryRequest { user_id: s("alice"), conversation_id: s(id), pinned: Some(pinned), muted: None }
}

macro_rules! call {
    ($client:ident . $name:ident ( $($request:expr),* )) => {
        (stringify!($name), $client.$name($($request),*).map(|answer| answer.map(drop)).boxed())
    };
}

async fn upsert(client: &Storage, id: &str) -> Result<(), Error> {
    let made = client.upsert_users(vec![user(id)]).await?;
    made.into_iter().find_map(|one| one.error).map_or(Ok(()), |error| Err(error.into()))
}

async fn ack(client: &Storage, device: &str, seq: u64) -> Result<(), Error> {
    let moved = client.ack("alice", device, vec![Position { conversation_id: s(TALK), seq }]).await?;
    moved.errors.into_iter().find_map(|one| one.error).map_or(Ok(()), |error| Err(error.into()))
}

/// Two conversations of five users, with something of everything that a user may have.
async fn furnish(client: &Storage) {
    for id in ["alice", "bob", "carol", "dave", "eve", "frank"] {
        upsert(client, id).await.unwrap();
    }
    client.open_direct(OpenDirectRequest { user_a: s("alice"), user_b: s("bob") }).await.unwrap();
    for n in 1..=6 {
        client.append(text(TALK, "alice", &format!("c-{n}"), "hello")).await.unwrap();
    }
    client.react(react(1, true)).await.unwrap();
    for id in [GROUP, SECOND] {
        client.create_conversation(group(id, &["bob", "carol", "dave"])).await.unwrap();
        client.append(text(id, "bob", "c-1", "to all")).await.unwrap();
    }
    client.set_list_entry(settings(GROUP, true)).await.unwrap();
    client.set_block(block("eve", true)).await.unwrap();
    client.put_friend(friend("carol", "")).await.unwrap();
    for (from, to) in [("alice", "dave"), ("bob", "alice"), ("frank", "alice")] {
        client.request_friend(ask(from, to)).await.unwrap();
    }
    for (id, push) in [("phone", Some("token-1")), ("tablet", None)] {
        client.put_device(device(id, 1, push)).await.unwrap();
        ack(client, id, 1).await.unwrap();
    }
}

/// What stores.
fn growing(client: &Storage) -> Vec<Call<'_>> {
    let first = AppendRequest { peers: vec![s("carol")], ..text("d:alice:carol", "alice", "c-1", "first") };
    let edit = EditRequest {
        conversation_id: s(TALK),
        seq: 2,
        user_id: s("alice"),
        content: r#"{"text":"edited"}"#.into(),
        limit_ms: 0,
    };
    let add =
        AddMembersRequest { conversation_id: s(GROUP), user_ids: vec![s("eve"), s("frank")], ..Default::default() };
    let rename = UpdateConversationRequest { conversation_id: s(GROUP), name: Some(s("name")), ..Default::default() };
    vec![
        call!(client.append(text(TALK, "bob", "c-9", "one more"))),
        call!(client.append(first)),
        ("a new user", upsert(client, "grace").boxed()),
        call!(client.open_direct(OpenDirectRequest { user_a: s("bob"), user_b: s("carol") })),
        call!(client.create_conversation(group(NEW_GROUP, &["bob", "eve"]))),
        call!(client.add_members(add)),
        call!(client.update_conversation(rename)),
        call!(client.edit(edit)),
        call!(client.react(react(2, true))),
        call!(client.request_friend(ask("alice", "eve"))),
        call!(client.answer_friend_request(answer("alice", "frank", true))),
        call!(client.put_friend(friend("bob", "Bobby"))),
        call!(client.set_block(block("frank", true))),
        call!(client.set_list_entry(settings(SECOND, true))),
        call!(client.put_device(device("watch", 1, None))),
        call!(client.put_device(device("phone", 2, Some("token-2")))),
    ]
}

/// What is read.
fn reads(client: &Storage) -> Vec<Call<'_>> {
    let alice = || s("alice");
    let history = ListMessagesRequest { conversation_id: s(TALK), user_id: alice(), ..Default::default() };
    let list = ListConversationsRequest { user_id: alice(), ..Default::default() };
    let behind = ListBehindRequest { user_id: alice(), device_id: s("phone"), ..Default::default() };
    let receipts = GetReceiptsRequest { user_id: alice(), conversation_id: s(TALK), seq: 1 };
    let position = Position { conversation_id: s(TALK), seq: 1 };
    vec![
        call!(client.list_messages(history)),
        call!(client.list_after("alice", vec![position], 10)),
        call!(client.list_conversations(list)),
        call!(client.get_conversations("alice", vec![s(TALK)], true)),
        call!(client.list_behind(behind)),
        call!(client.get_receipts(receipts)),
        call!(client.list_members(ListMembersRequest { conversation_id: s(GROUP), ..Default::default() })),
        call!(client.get_users(vec![alice()])),
        call!(client.list_friends(ListFriendsRequest { user_id: alice(), ..Default::default() })),
        call!(client.list_friend_requests(ListFriendRequestsRequest { user_id: alice(), ..Default::default() })),
        call!(client.list_blocks(ListBlocksRequest { user_id: alice(), ..Default::default() })),
        call!(client.list_devices(ListDevicesRequest { user_id: alice() })),
        call!(client.get_revocation(GetRevocationRequest { user_id: alice(), device_id: s("phone") })),
    ]
}

/// What takes away, and what moves a position or writes over little.
fn freeing(client: &Storage) -> Vec<Call<'_>> {
    let alice = || s("alice");
    let mute = UpdateMemberRequest {
        conversation_id: s(GROUP),
        user_id: s("bob"),
        muted_until: Some(9_999_999_999_999),
        ..Default::default()
    };
    let recall = RecallRequest { conversation_id: s(TALK), seq: 3, user_id: alice(), limit_ms: 0, privileged: false };
    let remove = RemoveMembersRequest { conversation_id: s(GROUP), user_ids: vec![s("carol")], actor_id: alice() };
    let revoke = RevokeTokensRequest { user_id: alice(), device_id: s("tablet"), issued_at_or_before: 1_000 };
    vec![
        call!(client.mark_read(MarkReadRequest { user_id: s("bob"), conversation_id: s(TALK), seq: 4 })),
        ("ack", ack(client, "phone", 5).boxed()),
        ("ack of a new device", ack(client, "watch", 5).boxed()),
        call!(client.recall(recall)),
        call!(client.react(react(1, false))),
        call!(client.update_member(mute)),
        call!(client.remove_members(remove)),
        call!(client.set_list_entry(settings(GROUP, false))),
        call!(client.clear(ClearRequest { user_id: alice(), conversation_id: s(TALK) })),
        call!(client.set_block(block("eve", false))),
        call!(client.delete_friend(DeleteFriendRequest { user_id: alice(), friend_id: s("carol"), version: 0 })),
        ("withdraw", client.answer_friend_request(answer("alice", "dave", false)).map(|r| r.map(drop)).boxed()),
        ("decline", client.answer_friend_request(answer("alice", "bob", false)).map(|r| r.map(drop)).boxed()),
        call!(client.put_device(device("phone", 3, None))),
        ("no push", client.put_device(device("phone", 0, Some(""))).map(|r| r.map(drop)).boxed()),
        call!(client.delete_device(DeleteDeviceRequest { user_id: alice(), device_id: s("phone") })),
        call!(client.revoke_tokens(revoke)),
        call!(client.dissolve(DissolveRequest { conversation_id: s(SECOND), actor_id: alice() })),
    ]
}

/// What the freeing calls leave.
async fn all_freed(client: &Storage) {
    let alice = || s("alice");
    let blocks = ListBlocksRequest { user_id: alice(), ..Default::default() };
    assert!(client.list_blocks(blocks).await.unwrap().user_ids.is_empty());
    for one in ["alice", "carol"] {
        let friends = ListFriendsRequest { user_id: s(one), ..Default::default() };
        assert!(client.list_friends(friends).await.unwrap().friends.is_empty(), "{one}");
    }
    for (one, waiting) in [("alice", 1), ("bob", 0), ("dave", 0), ("frank", 1)] {
        let requests = ListFriendRequestsRequest { user_id: s(one), ..Default::default() };
        assert_eq!(client.list_friend_requests(requests).await.unwrap().requests.len(), waiting, "{one}");
    }
    let devices = client.list_devices(ListDevicesRequest { user_id: alice() }).await.unwrap().devices;
    assert_eq!(devices.iter().map(|d| d.device_id.as_str()).collect::<Vec<_>>(), ["tablet"]);
    let history = ListMessagesRequest { conversation_id: s(TALK), user_id: alice(), ..Default::default() };
    assert!(client.list_messages(history).await.unwrap().messages.is_empty(), "cleared");
    let gone = async || {
        let members = ListMembersRequest { conversation_id: s(SECOND), ..Default::default() };
        client.list_members(members).await.unwrap().members.is_empty()
    };
    eventually("the dissolved group's members to be gone", Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_full_memory_what_frees_or_moves_positions_goes_on_and_what_stores_is_refused_whole() {
    let platform = Platform::start(1, 1).await;
    let one = platform.instance().await;
    let client = platform.client().await;
    furnish(&client).await;
    assert_eq!(ids::direct_conversation_id("alice", "bob").unwrap(), TALK);

    limit_memory(&platform, "1").await;
    for (name, call) in reads(&client) {
        call.await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, call) in growing(&client) {
        let before = settled(&platform).await;
        let refused = call.await.err().unwrap_or_else(|| panic!("{name} was done"));
        assert_eq!(refused.code, Code::ResourceExhausted, "{name}: {refused}");
        assert!(refused.retry_after.is_some(), "{name}: says when to come back");
        assert_eq!(changed(&before, &settled(&platform).await), [""; 0], "{name} left something");
    }
    for (name, call) in freeing(&client) {
        call.await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    all_freed(&client).await;
    for (name, call) in reads(&client) {
        // Its message is cleared away.
        if name != "get_receipts" {
            call.await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    limit_memory(&platform, "0").await;
    for (name, call) in growing(&client) {
        call.await
            .or_else(|error| if is_gone(name, &error) { Ok(()) } else { Err(error) })
            .unwrap_or_else(|error| panic!("{name} with room again: {error}"));
    }
    one.stop().await;
}

/// What was cleared, muted or dissolved before is refused for that.
fn is_gone(name: &str, error: &Error) -> bool {
    matches!(name, "edit" | "react" | "set_list_entry") && error.code == Code::NotFound
}

/// The store once nothing in the background writes to it.
async fn settled(platform: &Platform) -> BTreeMap<String, Vec<u8>> {
    let mut last = stored(platform).await;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = stored(platform).await;
        if now == last {
            return now;
        }
        last = now;
    }
}

fn changed(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    keys.filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}
