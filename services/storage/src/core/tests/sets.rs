//! Sets of a user: what is made up leaves no row, each has a bound that its owner can get out of, and rows go with what they belong to.

use kith_proto::{
    chat::v1::{ConversationKind, Position},
    storage::v1::{
        AckRequest, AnswerFriendRequestRequest, CreateConversationRequest, DeleteFriendRequest, FriendRequest,
        ListFriendRequestsRequest, ListFriendsRequest, PutFriendRequest, RemoveMembersRequest, RequestFriendRequest,
        SetBlockRequest,
    },
};

use super::*;
use crate::core::requests::LIFE_MS;

const GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";

async fn ask(world: &World, from: &str, to: &str) -> Result<(), Error> {
    let request = RequestFriendRequest { user_id: from.into(), target_id: to.into(), text: "hi".into() };
    world.core.request_friend(request).await
}

async fn answer(world: &World, user: &str, peer: &str, accept: bool) -> Result<(), Error> {
    let request = AnswerFriendRequestRequest { user_id: user.into(), requester_id: peer.into(), accept };
    world.core.answer_friend_request(request).await
}

async fn requests(world: &World, user: &str) -> Vec<FriendRequest> {
    let request = ListFriendRequestsRequest { user_id: user.into(), limit: 1_000, cursor: String::new() };
    world.core.list_friend_requests(request).await.unwrap().requests
}

fn rows(world: &World, user: &str) -> Vec<String> {
    world
        .by_hand(user, |data| data.hashes.get(&key::friends(user)).into_iter().flatten().map(|f| f.0.clone()).collect())
}

/// Rows of friends or requests, made by hand.
fn fill(world: &World, user: &str, side: char, count: usize, value: &str) {
    world.by_hand(user, |data| {
        let rows = data.hashes.entry(key::friends(user)).or_default();
        rows.extend((0..count).map(|n| (format!("{side}x{n:05}"), value.to_owned().into())));
    });
}

async fn block(world: &World, target: &str, blocked: bool) -> Result<bool, Error> {
    world.core.set_block(SetBlockRequest { user_id: "me".into(), target_id: target.into(), blocked }).await
}

#[tokio::test]
async fn what_is_made_up_leaves_no_row() {
    let world = World::with(&["me", "bob"]).await;
    let before = world.state();
    is(ask(&world, "me", "nobody").await, Code::NotFound, "no such user");
    is(ask(&world, "nobody", "me").await, Code::NotFound, "no such user");
    is(block(&world, "nobody", true).await, Code::NotFound, "no such user");
    assert!(!block(&world, "nobody", false).await.unwrap());
    for (user_id, friend_id) in [("me", "nobody"), ("nobody", "me")] {
        let put = PutFriendRequest { user_id: user_id.into(), friend_id: friend_id.into(), ..Default::default() };
        is(world.core.put_friend(put).await, Code::NotFound, "no such user");
    }
    let acks = ["d:me:nobody", GROUP].map(|id| Position { conversation_id: id.into(), seq: 1 }).into();
    let acked = world.core.ack(AckRequest { user_id: "me".into(), device_id: "phone".into(), acks }).await.unwrap();
    assert_eq!((acked.delivered.len(), acked.errors.len()), (0, 2));
    assert!(world.state() == before, "a refused call changes nothing");
    // Blocking somebody one never wrote to leaves nothing once it is taken back.
    assert!(block(&world, "bob", true).await.unwrap() && block(&world, "bob", false).await.unwrap());
    let none =
        world.by_hand("d:bob:me", |data| data.hashes.get(&key::members("d:bob:me")).is_none_or(BTreeMap::is_empty));
    assert!(none);
}

#[tokio::test]
async fn a_friend_request_is_taken_back_by_either_side_and_leaves_nothing() {
    let world = World::with(&["me", "bob"]).await;
    for (by, of) in [("me", "bob"), ("bob", "me")] {
        ask(&world, "me", "bob").await.unwrap();
        assert!(requests(&world, "me").await[0].outgoing && !requests(&world, "bob").await[0].outgoing);
        answer(&world, by, of, false).await.unwrap();
        assert!(rows(&world, "me").is_empty() && rows(&world, "bob").is_empty());
    }
    is(answer(&world, "me", "bob", false).await, Code::NotFound, "requester_id");
    ask(&world, "me", "bob").await.unwrap();
    let delete = DeleteFriendRequest { user_id: "me".into(), friend_id: "bob".into(), version: 0 };
    assert!(world.core.delete_friend(delete).await.unwrap());
    assert!(rows(&world, "me").is_empty() && rows(&world, "bob").is_empty());
    is(answer(&world, "me", "bob", true).await, Code::NotFound, "requester_id");
}

#[tokio::test]
async fn a_retry_heals_a_request_that_was_made_on_one_side_alone() {
    let world = World::with(&["me", "bob"]).await;
    ask(&world, "me", "bob").await.unwrap();
    for user in ["me", "bob"] {
        world.by_hand(user, |data| data.hashes.remove(&key::friends(user)));
        ask(&world, "me", "bob").await.unwrap();
        assert_eq!((rows(&world, "me"), rows(&world, "bob")), (vec!["obob".to_owned()], vec!["ime".to_owned()]));
    }
}

#[tokio::test]
async fn who_has_asked_two_hundred_is_refused_until_one_is_taken_back_or_over() {
    let world = World::with(&["me", "bob", "carol"]).await;
    let now = Core::now();
    fill(&world, "me", 'o', 200, &format!("{now}|hi"));
    is(ask(&world, "me", "bob").await, Code::ResourceExhausted, "200");
    assert!(rows(&world, "bob").is_empty(), "a refused request leaves nothing with the other");
    world.by_hand("me", |data| data.hashes.get_mut(&key::friends("me")).unwrap().remove("ox00000"));
    ask(&world, "me", "bob").await.unwrap();
    is(ask(&world, "me", "carol").await, Code::ResourceExhausted, "200");
    fill(&world, "me", 'o', 200, &format!("{}|hi", now - LIFE_MS - 1));
    ask(&world, "me", "carol").await.unwrap();
    assert_eq!(rows(&world, "me"), ["obob", "ocarol"], "those whose time is over are gone");
}

#[tokio::test]
async fn nobody_can_fill_anothers_inbox_for_good() {
    let world = World::with(&["me", "bob"]).await;
    let now = Core::now();
    fill(&world, "me", 'i', 1_000, &format!("{}|spam", now - 1_000));
    ask(&world, "bob", "me").await.unwrap();
    let found = requests(&world, "me").await;
    assert!(found.iter().any(|r| r.user_id == "bob") && found.len() <= 1_000, "{}", found.len());
}

#[tokio::test]
async fn a_request_is_over_after_thirty_days() {
    let world = World::with(&["me", "bob"]).await;
    ask(&world, "me", "bob").await.unwrap();
    for (user, row) in [("me", "obob"), ("bob", "ime")] {
        let old = format!("{}|hi", Core::now() - LIFE_MS - 1);
        world
            .by_hand(user, |data| data.hashes.get_mut(&key::friends(user)).unwrap().insert(row.to_owned(), old.into()));
        assert!(requests(&world, user).await.is_empty());
    }
    is(answer(&world, "bob", "me", true).await, Code::NotFound, "requester_id");
    ask(&world, "me", "bob").await.unwrap();
    answer(&world, "bob", "me", true).await.unwrap();
    assert_eq!((rows(&world, "me"), rows(&world, "bob")), (vec!["fbob".to_owned()], vec!["fme".to_owned()]));
}

#[tokio::test]
async fn friends_are_bounded_on_both_sides_and_one_less_makes_room() {
    let world = World::with(&["me", "bob"]).await;
    let put = |a: &str, b: &str| PutFriendRequest { user_id: a.into(), friend_id: b.into(), ..Default::default() };
    fill(&world, "bob", 'f', 5_000, "1|1|");
    let before = world.state();
    is(world.core.put_friend(put("me", "bob")).await, Code::ResourceExhausted, "5,000");
    is(world.core.put_friend(put("bob", "me")).await, Code::ResourceExhausted, "5,000");
    assert!(world.state() == before, "a refused call changes nothing");
    let delete = DeleteFriendRequest { user_id: "bob".into(), friend_id: "x00000".into(), version: 0 };
    world.core.delete_friend(delete).await.unwrap();
    world.core.put_friend(put("me", "bob")).await.unwrap();
    let request = ListFriendsRequest { user_id: "bob".into(), limit: 2, ..Default::default() };
    assert_eq!(world.core.list_friends(request).await.unwrap().friends[0].user_id, "me");
}

#[tokio::test]
async fn blocks_are_bounded_and_taking_one_back_makes_room() {
    let world = World::with(&["me", "bob"]).await;
    world.by_hand("me", |data| {
        let rows = data.hashes.entry(key::blocks("me")).or_default();
        rows.extend((0..5_000).map(|n| (format!("x{n:05}"), "1".into())));
    });
    let before = world.state();
    is(block(&world, "bob", true).await, Code::ResourceExhausted, "5,000");
    assert!(world.state() == before, "a refused call changes nothing");
    assert!(block(&world, "x00000", false).await.unwrap());
    assert!(block(&world, "bob", true).await.unwrap());
}

fn cursors(world: &World) -> Vec<String> {
    world.by_hand(GROUP, |data| {
        data.hashes.get(&key::cursors(GROUP)).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    })
}

async fn group(world: &World) {
    let create = CreateConversationRequest {
        conversation_id: GROUP.into(),
        kind: ConversationKind::Group as i32,
        owner_id: "me".into(),
        member_ids: vec!["bob".into()],
        ..Default::default()
    };
    world.core.create_conversation(create).await.unwrap();
    world.by_hand(GROUP, |data| {
        data.hashes.get_mut(&key::conversation(GROUP)).unwrap().insert("s".to_owned(), "9".into())
    });
}

async fn ack(world: &World, device: &str, seq: u64) {
    let acks = vec![Position { conversation_id: GROUP.into(), seq }];
    let request = AckRequest { user_id: "bob".into(), device_id: device.into(), acks };
    assert!(world.core.ack(request).await.unwrap().errors.is_empty());
}

#[tokio::test]
async fn delivered_cursors_go_with_their_member() {
    let world = World::with(&["me", "bob"]).await;
    group(&world).await;
    for device in ["phone", "tablet", "phone"] {
        ack(&world, device, 3).await;
    }
    assert_eq!(cursors(&world), ["Dbob", "dbob/phone", "dbob/tablet"]);
    let remove =
        RemoveMembersRequest { conversation_id: GROUP.into(), user_ids: vec!["bob".into()], actor_id: "me".into() };
    world.core.remove_members(remove).await.unwrap();
    assert!(cursors(&world).is_empty());
}

#[tokio::test]
async fn delivered_cursors_of_one_member_are_bounded() {
    let world = World::with(&["me", "bob"]).await;
    group(&world).await;
    for device in 0..120 {
        ack(&world, &format!("device-{device:03}"), 3).await;
    }
    let found = cursors(&world);
    assert_eq!(found.len(), 101);
    assert!(found.contains(&"dbob/device-119".to_owned()) && !found.contains(&"dbob/device-019".to_owned()));
}
