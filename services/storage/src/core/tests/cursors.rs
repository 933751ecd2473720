//! Cursors of every list: given out and taken back, and nothing else.

use kith_proto::storage::v1::{
    ListBehindRequest, ListBlocksRequest, ListFriendRequestsRequest, ListFriendsRequest, ListMembersRequest,
    PutFriendRequest, RequestFriendRequest, SetBlockRequest,
};
use proptest::prelude::*;

use super::*;

const LISTS: [&str; 6] = ["conversations", "behind", "friends", "requests", "blocks", "members"];

/// A page of one of the lists: what it holds, and the next cursor.
async fn page(core: &Core, list: &str, user: &str, cursor: &str) -> Result<(Vec<String>, String), Error> {
    let (user_id, limit, cursor) = (user.to_owned(), 2, cursor.to_owned());
    Ok(match list {
        "conversations" => {
            let page = core.list_conversations(ListConversationsRequest { user_id, limit, cursor }).await?;
            (page.conversations.into_iter().map(|c| c.conversation_id).collect(), page.next_cursor)
        }
        "behind" => {
            let (device_id, cursors) = ("phone".to_owned(), Vec::new());
            let page = core.list_behind(ListBehindRequest { user_id, device_id, cursors, limit, cursor }).await?;
            (page.behind.into_iter().map(|b| b.conversation_id).collect(), page.next_cursor)
        }
        "friends" => {
            let page = core.list_friends(ListFriendsRequest { user_id, limit, cursor, ..Default::default() }).await?;
            (page.friends.into_iter().map(|f| f.user_id).collect(), page.next_cursor)
        }
        "requests" => {
            let page = core.list_friend_requests(ListFriendRequestsRequest { user_id, limit, cursor }).await?;
            (page.requests.into_iter().map(|r| r.user_id).collect(), page.next_cursor)
        }
        "blocks" => {
            let page = core.list_blocks(ListBlocksRequest { user_id, limit, cursor }).await?;
            (page.user_ids, page.next_cursor)
        }
        _ => {
            let conversation_id = "d:me:p0".to_owned();
            let page = core
                .list_members(ListMembersRequest { conversation_id, limit: 1, cursor, user_id, ..Default::default() })
                .await?;
            (page.members.into_iter().map(|m| m.user_id).collect(), page.next_cursor)
        }
    })
}

/// Five of everything, for `me`.
async fn world() -> World {
    let world = World::with(&["me", "p0", "p1", "p2", "p3", "p4", "q0", "q1", "q2", "q3", "q4"]).await;
    let core = &world.core;
    for n in 0..5 {
        let peer = format!("p{n}");
        world.talk("me", &peer, 1_000 + n, 1_000 + n).await;
        let friend = PutFriendRequest { user_id: "me".into(), friend_id: peer.clone(), ..PutFriendRequest::default() };
        core.put_friend(friend).await.unwrap();
        let block = SetBlockRequest { user_id: "me".into(), target_id: peer, blocked: true };
        core.set_block(block).await.unwrap();
        let (a, b) = if n < 2 { ("me".to_owned(), format!("q{n}")) } else { (format!("q{n}"), "me".to_owned()) };
        core.request_friend(RequestFriendRequest { user_id: a, target_id: b, text: String::new() }).await.unwrap();
    }
    world
}

#[tokio::test]
async fn every_list_is_paged_to_its_end_with_what_it_gives_out() {
    let world = world().await;
    for list in LISTS {
        let (mut found, mut cursor) = page(&world.core, list, "me", "").await.unwrap();
        while !cursor.is_empty() {
            let (more, next) = page(&world.core, list, "me", &cursor).await.unwrap();
            found.extend(more);
            cursor = next;
        }
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!((found.len(), all), if list == "members" { (2, 2) } else { (5, 5) }, "{list}: {found:?}");
    }
}

#[tokio::test]
async fn a_cursor_of_another_list_or_another_user_is_refused_by_its_name() {
    let world = world().await;
    for from in LISTS {
        let cursor = page(&world.core, from, "me", "").await.unwrap().1;
        assert!(!cursor.is_empty(), "{from}");
        for to in LISTS.into_iter().filter(|to| *to != from) {
            is(page(&world.core, to, "me", &cursor).await, Code::InvalidArgument, "cursor:");
        }
        is(page(&world.core, from, "p0", &cursor).await, Code::InvalidArgument, "cursor:");
    }
}

#[test]
fn no_text_that_was_not_given_out_is_a_cursor_and_none_panics() {
    let text = prop_oneof![
        Just("9999999999999.0.18446744073709551615".to_owned()),
        Just("0.0.18446744073709551615".to_owned()),
        Just("zzzzz".to_owned()),
        "\\PC{1,60}",
        "-?[0-9]{1,25}(\\.-?[0-9]{1,25}){0,3}",
        "[A-Za-z0-9_-]{1,120}",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(world());
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = proptest::test_runner::TestRunner::new(config).run(&text, |text| {
        for list in LISTS {
            let refused = runtime.block_on(page(&world.core, list, "me", &text)).unwrap_err();
            prop_assert!(refused.code == Code::InvalidArgument && refused.detail.starts_with("cursor:"), "{}", refused);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
