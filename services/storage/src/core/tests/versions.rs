//! Two writers of a profile and of a friend: the line's source, whose records have versions, and the user.

use kith_proto::storage::v1::{DeleteFriendRequest, ListFriendsRequest, PutFriendRequest, UpsertResult};

use super::*;

async fn write(world: &World, nickname: &str, version: u64) -> UpsertResult {
    let update = UserUpdate { user_id: "me".into(), nickname: Some(nickname.into()), version, ..UserUpdate::default() };
    world.core.upsert_users(UpsertUsersRequest { users: vec![update] }).await.unwrap().results.remove(0)
}

fn told(result: &UpsertResult) -> (bool, &str, u64, u64) {
    assert!(result.error.is_none(), "{result:?}");
    let user = result.user.as_ref().unwrap();
    (result.changed, user.nickname.as_str(), user.version, user.source_version)
}

#[tokio::test]
async fn a_lines_newer_record_is_taken_after_a_users_own_edits() {
    let world = World::with(&["me"]).await;
    assert_eq!(told(&write(&world, "line 5", 5).await), (true, "line 5", 2, 5));
    for (n, name) in ["mine", "mine too", "and this"].into_iter().enumerate() {
        assert_eq!(told(&write(&world, name, 0).await), (true, name, 3 + n as u64, 5));
    }
    assert_eq!(told(&write(&world, "line 6", 6).await), (true, "line 6", 6, 6));
    for again in [6, 5, 1] {
        assert_eq!(told(&write(&world, "late", again).await), (false, "line 6", 6, 6), "{again}");
    }
    assert_eq!(told(&write(&world, "line 6", 0).await), (false, "line 6", 6, 6), "nothing is changed");
}

#[tokio::test]
async fn the_highest_version_of_a_source_stops_no_later_edit() {
    let world = World::with(&["me"]).await;
    assert_eq!(told(&write(&world, "last", u64::MAX).await), (true, "last", 2, u64::MAX));
    assert_eq!(told(&write(&world, "mine", 0).await), (true, "mine", 3, u64::MAX));
    assert_eq!(told(&write(&world, "late", u64::MAX).await), (false, "mine", 3, u64::MAX));
    // What the version before stored: one version for both writers.
    world.by_hand("me", |data| {
        data.hashes.get_mut(&key::profile("me")).unwrap().insert("v".to_owned(), u64::MAX.to_string().into())
    });
    assert_eq!(told(&write(&world, "mine too", 0).await), (true, "mine too", u64::MAX, u64::MAX));
}

fn put(version: u64, alias: &str) -> PutFriendRequest {
    PutFriendRequest {
        user_id: "me".into(),
        friend_id: "bob".into(),
        alias: Some(alias.into()),
        version,
        must_exist: false,
    }
}

fn delete(version: u64) -> DeleteFriendRequest {
    DeleteFriendRequest { user_id: "me".into(), friend_id: "bob".into(), version }
}

async fn friends(world: &World, user: &str) -> Vec<String> {
    let request = ListFriendsRequest { user_id: user.to_owned(), ..Default::default() };
    world.core.list_friends(request).await.unwrap().friends.into_iter().map(|f| f.alias).collect()
}

#[tokio::test]
async fn a_record_that_comes_again_does_not_bring_back_a_friend() {
    let world = World::with(&["me", "bob"]).await;
    let core = &world.core;
    assert!(core.put_friend(put(5, "Bobby")).await.unwrap());
    assert!(core.put_friend(put(0, "my own")).await.unwrap());
    assert!(!core.put_friend(put(5, "Bobby")).await.unwrap(), "comes again");
    assert_eq!(friends(&world, "me").await, ["my own"]);
    assert!(core.put_friend(put(6, "Bob")).await.unwrap());
    assert_eq!(friends(&world, "me").await, ["Bob"]);
    assert!(!core.delete_friend(delete(6)).await.unwrap(), "not newer");
    assert!(core.delete_friend(delete(7)).await.unwrap());
    for version in [5, 6, 7] {
        assert!(!core.put_friend(put(version, "back")).await.unwrap());
        assert!(friends(&world, "me").await.is_empty() && friends(&world, "bob").await.is_empty());
    }
    assert!(core.put_friend(put(8, "anew")).await.unwrap());
    assert!(core.delete_friend(delete(0)).await.unwrap(), "the user ends it");
    assert!(!core.put_friend(put(8, "anew")).await.unwrap());
    assert!(core.put_friend(put(u64::MAX, "last")).await.unwrap());
    assert!(core.put_friend(put(0, "mine")).await.unwrap());
    assert_eq!((friends(&world, "me").await, friends(&world, "bob").await.len()), (vec!["mine".to_owned()], 1));
}
