//! Users' lists: their order, their end, their bound, and what one damaged conversation does to the others.

use std::collections::BTreeSet;

use kith_proto::storage::v1::{
    Behind, ClearRequest, EnterList, GetConversationsRequest, ListBehindRequest, OpenDirectRequest,
};
use proptest::prelude::*;

use super::*;
use crate::core::lists::MOST_ENTRIES;

const NOW: i64 = 1_790_000_000_000;

fn peers(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("p{n:05}")).collect()
}

async fn with_talks(count: usize, activity: impl Fn(usize) -> (i64, i64)) -> (World, Vec<String>) {
    let peers = peers(count);
    let users: Vec<&str> = ["me"].into_iter().chain(peers.iter().map(String::as_str)).collect();
    let world = World::with(&users).await;
    let mut ids = Vec::with_capacity(count);
    for (n, peer) in peers.iter().enumerate() {
        let (activity, hint) = activity(n);
        ids.push(world.talk("me", peer, activity, hint).await);
    }
    (world, ids)
}

async fn behind(world: &World, limit: u32, cursor: &str) -> (Vec<Behind>, String) {
    let request = ListBehindRequest {
        user_id: "me".to_owned(),
        device_id: "phone".to_owned(),
        cursors: Vec::new(),
        limit,
        cursor: cursor.to_owned(),
    };
    let page = world.core.list_behind(request).await.unwrap();
    assert!(page.behind.len() <= limit as usize);
    (page.behind, page.next_cursor)
}

#[tokio::test]
async fn a_page_of_one_shows_the_conversation_that_is_newest_whatever_hints_say() {
    // The hints of 0 to 9 are in their order; number 3 has had a message since.
    let (world, ids) = with_talks(10, |n| (NOW - n as i64 * 10_000, NOW - n as i64 * 10_000)).await;
    world.activity("me", &ids[3], NOW + 20_000, NOW - 30_000);
    let (page, cursor) = world.page("me", 1, "").await;
    assert_eq!(ids_of(&page), [&ids[3]]);
    let (page, _) = world.page("me", 1, &cursor).await;
    assert_eq!(ids_of(&page), [&ids[0]]);
}

#[test]
fn pages_show_every_conversation_once_and_in_order_whatever_hints_say() {
    let talk = (0..400_000_i64, prop_oneof![8 => 0..60_000_i64, 1 => 0..4_000_000_i64], any::<bool>());
    let talks = proptest::collection::vec(talk, 0..130);
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&(talks, proptest::collection::vec(1..201_u32, 1..4)), |(talks, limits)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Many share an activity, and some hints were lost.
            let place = |n: usize| {
                let (activity, lag, rough) = talks[n];
                let activity = NOW + if rough { activity / 50_000 * 50_000 } else { activity };
                (activity, activity - lag)
            };
            let (world, ids) = with_talks(talks.len(), place).await;
            let shown = world.listed_by("me", &limits).await;
            let found: BTreeSet<&str> = ids_of(&shown).into_iter().collect();
            prop_assert_eq!(found.len(), shown.len(), "shown twice");
            prop_assert_eq!(found, ids.iter().map(String::as_str).collect());
            if talks.len() <= 50 {
                // One window: the order is that of the truth.
                prop_assert!(shown.is_sorted_by(|a, b| a.updated_at >= b.updated_at));
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[tokio::test]
async fn a_list_of_six_thousand_conversations_is_walked_to_its_end() {
    const COUNT: usize = 6_000;
    let (world, ids) = with_talks(COUNT, |n| (NOW + n as i64, NOW + n as i64)).await;
    let shown = world.listed("me", 200).await;
    let newest: Vec<&str> = ids.iter().rev().map(String::as_str).collect();
    assert_eq!(ids_of(&shown), newest, "newest first, and the newest are there");

    let (mut all, mut cursor) = behind(&world, 200, "").await;
    while !cursor.is_empty() {
        let (page, next) = behind(&world, 200, &cursor).await;
        all.extend(page);
        cursor = next;
    }
    let found: Vec<&str> = all.iter().map(|b| b.conversation_id.as_str()).collect();
    assert_eq!(found, newest);
}

#[tokio::test]
async fn what_becomes_active_during_a_walk_is_not_missed_by_it() {
    let (world, ids) = with_talks(120, |n| (NOW + n as i64, NOW + n as i64)).await;
    let (page, mut cursor) = behind(&world, 10, "").await;
    let mut found: BTreeSet<String> = page.into_iter().map(|b| b.conversation_id).collect();
    // Number 0 is far below and gets a message: it moves to the top.
    world.activity("me", &ids[0], NOW + 5_000, NOW + 5_000);
    while !cursor.is_empty() {
        let (page, next) = behind(&world, 10, &cursor).await;
        found.extend(page.into_iter().map(|b| b.conversation_id));
        cursor = next;
    }
    assert_eq!(found.len(), ids.len());
}

#[tokio::test]
async fn one_damaged_conversation_is_named_and_hides_no_other() {
    let (world, ids) = with_talks(5, |n| (NOW + n as i64, NOW + n as i64)).await;
    world.by_hand(&ids[2], |data| {
        data.hashes.get_mut(&key::conversation(&ids[2])).unwrap().insert("s".to_owned(), "x".into())
    });
    world.by_hand("me", |data| {
        data.hashes.entry(key::settings("me")).or_default().insert(ids[4].clone(), "nonsense".into())
    });
    let (page, cursor) = world.page("me", 50, "").await;
    assert_eq!((ids_of(&page).len(), cursor.as_str()), (5, ""));
    for conversation in page {
        let damaged = [&ids[2], &ids[4]].contains(&&conversation.conversation_id);
        let code = conversation.error.map(|e| Error::from(e).code);
        assert_eq!(code, damaged.then_some(Code::DataLoss), "{}", conversation.conversation_id);
    }
    let (page, _) = behind(&world, 50, "").await;
    let failed: Vec<&str> = page.iter().filter(|b| b.error.is_some()).map(|b| b.conversation_id.as_str()).collect();
    assert_eq!((page.len(), failed), (5, vec![ids[2].as_str()]));
    let request =
        GetConversationsRequest { user_id: "me".into(), conversation_ids: ids.clone(), with_last_message: true };
    let heads = world.core.get_conversations(request).await.unwrap();
    assert_eq!(heads.iter().filter(|c| c.error.is_none()).count(), 4);
}

/// Fills a list with entries that are active at 1, 2, 3 …
fn fill(world: &World, user: &str, count: u64) {
    world.by_hand(user, |data| {
        let list = data.scores.entry(key::list(user)).or_default();
        let entries = (1..=count).map(|n| (format!("d:{user}:x{n:06}"), n as i64));
        list.extend(entries);
    });
}

fn entries(world: &World, user: &str) -> usize {
    world.by_hand(user, |data| data.scores[&key::list(user)].len())
}

async fn enter(world: &World, user: &str, peer: &str, own: bool) -> Result<bool, Error> {
    let id = ids::direct_conversation_id(user, peer).unwrap();
    let EnterList { conversation_id, activity, own } = EnterList { conversation_id: id, activity: NOW, own };
    world.core.enter_list(user, &conversation_id, activity, own).await
}

#[tokio::test]
async fn a_full_list_refuses_what_its_owner_begins_and_takes_what_others_begin() {
    let world = World::with(&["me", "bob", "carol"]).await;
    fill(&world, "me", MOST_ENTRIES);
    world.by_hand("me", |data| {
        data.hashes.entry(key::settings("me")).or_default().insert("d:me:x000001".to_owned(), "1|0|0".into())
    });
    is(enter(&world, "me", "bob", true).await, Code::ResourceExhausted, "20,000");
    assert!(enter(&world, "me", "bob", false).await.unwrap());
    let held = |id: &str| world.by_hand("me", |data| data.scores[&key::list("me")].contains_key(id));
    assert!(held("d:bob:me") && held("d:me:x000001") && !held("d:me:x000002"), "a pinned one does not give way");
    assert_eq!(entries(&world, "me") as u64, MOST_ENTRIES);
    // One that is deleted makes room for what the owner begins.
    world.by_hand("me", |data| data.scores.get_mut(&key::list("me")).unwrap().insert("d:me:x000300".to_owned(), 0));
    assert!(enter(&world, "me", "carol", true).await.unwrap());
    assert!(!held("d:me:x000300") && held("d:carol:me"));
    assert_eq!(entries(&world, "me") as u64, MOST_ENTRIES);
}

#[tokio::test]
async fn a_conversation_that_gave_way_comes_back_with_its_next_message() {
    let world = World::with(&["me", "bob"]).await;
    let id = world.talk("me", "bob", NOW, NOW).await;
    world.by_hand("me", |data| data.scores.get_mut(&key::list("me")).unwrap().remove(&id));
    world.core.hint("me", &id, NOW + 1).await.unwrap();
    assert_eq!(ids_of(&world.listed("me", 10).await), [&id]);
    // Nobody gets an entry of what they cannot see.
    world.core.hint("me", "d:x:y", NOW).await.unwrap();
    assert_eq!(entries(&world, "me"), 1);
}

#[tokio::test]
async fn a_refused_opening_leaves_nothing_in_the_other_list() {
    let world = World::with(&["me", "bob"]).await;
    fill(&world, "me", MOST_ENTRIES);
    let before = world.state();
    let draft = kith_proto::chat::v1::Draft {
        client_msg_id: "c-1".to_owned(),
        sender_id: "me".to_owned(),
        r#type: 1,
        content: r#"{"text":"hi"}"#.into(),
        ..Default::default()
    };
    let request = kith_proto::storage::v1::AppendRequest {
        conversation_id: "d:bob:me".to_owned(),
        draft: Some(draft),
        peers: vec!["bob".to_owned()],
        ..Default::default()
    };
    is(world.core.append(request).await, Code::ResourceExhausted, "20,000");
    assert!(world.state() == before);
    // The other side may begin it.
    let opened = OpenDirectRequest { user_a: "bob".to_owned(), user_b: "me".to_owned() };
    assert!(world.core.open_direct(opened).await.unwrap().created);
}

#[tokio::test]
async fn deleting_a_conversation_puts_it_where_it_gives_way_first_and_a_message_brings_it_back() {
    let world = World::with(&["me", "bob"]).await;
    let id = world.talk("me", "bob", NOW, NOW).await;
    let clear = ClearRequest { user_id: "me".to_owned(), conversation_id: id.clone() };
    world.core.clear(clear).await.unwrap();
    assert!(world.listed("me", 10).await.is_empty());
    assert_eq!(world.by_hand("me", |data| data.scores[&key::list("me")][&id]), 0);
    assert!(!world.core.0.hints.knows(&id), "so that its next message raises it at once");
}
