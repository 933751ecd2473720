//! Members of groups, in memory and in a real Valkey alike: what has changed since a version, who may become what, and numbers at the ends of
//! their ranges.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kith_contract::ids;
use kith_proto::storage::v1::{
    AddMembersRequest, DissolveRequest, ListMembersRequest, ListMembersResponse, RemoveMembersRequest, Role,
    UpdateConversationRequest, UpdateMemberRequest, UpsertUsersRequest, UserUpdate,
};
use kith_rpc::error::Error;
use tokio::time::Instant;
use tonic::Code;

use super::{
    PARTITIONS,
    rules::{GROUP, core, draft, on_both, send},
};
use crate::{
    core::{
        Core,
        model::{MemberData, key},
    },
    engine::{Engine, Field, Op, Swap},
};

async fn since(core: &Core, version: u64) -> ListMembersResponse {
    page(core, version, 0, "").await.unwrap()
}

async fn page(core: &Core, version: u64, limit: u32, cursor: &str) -> Result<ListMembersResponse, Error> {
    let (since_version, cursor) = (Some(version), cursor.to_owned());
    let request =
        ListMembersRequest { conversation_id: GROUP.into(), since_version, limit, cursor, ..Default::default() };
    core.list_members(request).await
}

fn names(page: &ListMembersResponse) -> (Vec<&str>, Vec<&str>) {
    let members = page.members.iter().map(|m| m.user_id.as_str()).collect();
    (members, page.removed.iter().map(String::as_str).collect())
}

async fn add(core: &Core, users: &[&str], role: i32) -> Result<u64, Error> {
    let user_ids = users.iter().map(|user| (*user).to_owned()).collect();
    let request = AddMembersRequest { conversation_id: GROUP.into(), user_ids, role, actor_id: "alice".into() };
    Ok(core.add_members(request).await?.member_version)
}

async fn remove(core: &Core, users: &[&str]) -> Result<u64, Error> {
    let user_ids = users.iter().map(|user| (*user).to_owned()).collect();
    let request = RemoveMembersRequest { conversation_id: GROUP.into(), user_ids, actor_id: "alice".into() };
    Ok(core.remove_members(request).await?.member_version)
}

async fn update(core: &Core, user: &str, role: Option<i32>, muted_until: Option<i64>) -> Result<i64, Error> {
    let (conversation_id, user_id, actor_id) = (GROUP.into(), user.into(), "alice".into());
    let request = UpdateMemberRequest { conversation_id, user_id, role, muted_until, actor_id };
    Ok(core.update_member(request).await?.muted_until)
}

async fn transfer(core: &Core, to: &str) -> Result<(), Error> {
    let (conversation_id, owner_id) = (GROUP.into(), Some(to.into()));
    core.update_conversation(UpdateConversationRequest { conversation_id, owner_id, ..Default::default() })
        .await
        .map(drop)
}

async fn make(core: &Core, users: impl IntoIterator<Item = String>) {
    let users = users.into_iter().map(|user_id| UserUpdate { user_id, ..UserUpdate::default() }).collect();
    core.upsert_users(UpsertUsersRequest { users }).await.unwrap();
}

/// Writes as another version of storage would.
async fn write(engine: &Arc<dyn Engine>, ops: Vec<Op>) {
    let end = Instant::now() + Duration::from_secs(10);
    let swap = Swap { conditions: Vec::new(), ops };
    engine.swap(ids::partition_of(GROUP, PARTITIONS), swap, end).await.unwrap();
}

fn set(key: String, name: &str, value: &str) -> Op {
    Op::Set(Field::new(key, name), Bytes::copy_from_slice(value.as_bytes()))
}

async fn owners(core: &Core) -> Vec<String> {
    let request = ListMembersRequest { conversation_id: GROUP.into(), ..Default::default() };
    let members = core.list_members(request).await.unwrap().members;
    members.into_iter().filter(|m| m.role() == Role::Owner).map(|m| m.user_id).collect()
}

#[test]
fn who_has_a_version_is_told_only_what_has_changed_since() {
    on_both(|engine| async {
        let core = core(engine).await;
        make(&core, ["carol", "dave"].map(String::from)).await;
        let made = since(&core, 0).await;
        assert_eq!((names(&made), made.reset, made.member_version), ((vec!["alice", "bob"], vec![]), false, 2));
        let joined = add(&core, &["carol", "dave"], 0).await.unwrap();
        update(&core, "bob", None, Some(7)).await.unwrap();
        let removed = remove(&core, &["carol"]).await.unwrap();
        assert_eq!((joined, removed), (3, 5), "each change is one more");
        let all = since(&core, 2).await;
        assert_eq!(names(&all), (vec!["dave", "bob"], vec!["carol"]), "in the order of the last changes");
        assert_eq!((all.members[1].muted_until, all.member_version, all.member_count), (7, 5, 3));
        assert_eq!(names(&since(&core, 4).await), (vec![], vec!["carol"]));
        let now = since(&core, 5).await;
        assert_eq!((names(&now), now.reset, now.next_cursor.as_str()), ((vec![], vec![]), false, ""));
        transfer(&core, "dave").await.unwrap();
        let moved = since(&core, 5).await;
        assert_eq!(
            (names(&moved), moved.member_version),
            ((vec!["alice", "dave"], vec![]), 6),
            "both have other roles"
        );
        add(&core, &["carol"], 0).await.unwrap();
        assert_eq!(names(&since(&core, 5).await), (vec!["alice", "dave", "carol"], vec![]), "back again");
        for unknown in [8, 1 << 53, (1 << 53) + 1, 1 << 63, u64::MAX] {
            let page = since(&core, unknown).await;
            assert_eq!((names(&page), page.reset, page.member_version), ((vec![], vec![]), true, 7), "{unknown}");
        }
        let both = ListMembersRequest {
            conversation_id: GROUP.into(),
            user_ids: vec!["bob".into()],
            since_version: Some(1),
            ..Default::default()
        };
        assert_eq!(core.list_members(both).await.unwrap_err().code, Code::InvalidArgument);
    });
}

#[test]
fn changes_come_in_pages_that_lose_nothing_and_belong_to_their_version() {
    on_both(|engine| async {
        let core = core(engine).await;
        let users: Vec<String> = (0..7).map(|n| format!("{}{n}", if n % 2 == 0 { "B" } else { "a" })).collect();
        make(&core, users.clone()).await;
        let all: Vec<&str> = users.iter().map(String::as_str).collect();
        add(&core, &all, 0).await.unwrap();
        remove(&core, &all[..2]).await.unwrap();
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let found = page(&core, 2, 3, &cursor).await.unwrap();
            let told = found.members.iter().map(|m| m.user_id.clone()).chain(found.removed.clone());
            seen.extend(told);
            assert!(seen.len() <= 7 + 1);
            if seen.len() == 3 {
                // It has been told, and is told again at the end.
                update(&core, &seen[0].clone(), Some(Role::Admin as i32), None).await.unwrap();
            }
            if found.next_cursor.is_empty() {
                assert_eq!(found.member_version, 5);
                break;
            }
            assert_eq!(page(&core, 3, 3, &found.next_cursor).await.unwrap_err().code, Code::InvalidArgument);
            cursor = found.next_cursor;
        }
        assert_eq!(seen.iter().filter(|user| **user == seen[0]).count(), 2, "who has changed meanwhile");
        seen.sort_unstable();
        seen.dedup();
        let mut users = users;
        users.sort_unstable();
        assert_eq!(seen, users);
    });
}

#[test]
fn changes_of_a_storage_that_does_not_note_them_are_a_reset_and_no_gap() {
    on_both(|engine| async move {
        let core = core(engine.clone()).await;
        make(&core, ["carol", "dave"].map(String::from)).await;
        // As version 0.1.0 brings somebody in: the rows and the version alone.
        let c = key::conversation(GROUP);
        let row = MemberData::new(Role::Member, 1, 1).pack();
        write(
            &engine,
            vec![
                Op::Set(Field::new(key::members(GROUP), "carol"), row),
                Op::Score { key: key::joins(GROUP), score: 3, member: "carol".into() },
                set(c.clone(), "n", "3"),
                set(c.clone(), "jn", "3"),
                set(c.clone(), "mv", "3"),
            ],
        )
        .await;
        for before in [0, 1, 2] {
            let page = since(&core, before).await;
            assert_eq!((names(&page), page.reset, page.member_version), ((vec![], vec![]), true, 3), "{before}");
        }
        assert!(!since(&core, 3).await.reset, "who is at the present version lacks nothing");
        add(&core, &["dave"], 0).await.unwrap();
        assert!(since(&core, 2).await.reset, "of the change in between nothing is known for good");
        assert_eq!(names(&since(&core, 3).await), (vec!["dave"], vec![]));
        // A group that has never had such a set.
        write(&engine, ["wf", "wt"].map(|name| Op::Delete(Field::new(c.clone(), name))).into()).await;
        assert!(since(&core, 3).await.reset && !since(&core, 4).await.reset);
        // What cannot be read is as good as nothing.
        write(&engine, vec![set(c.clone(), "wf", "-1"), set(c, "wt", "x")]).await;
        assert!(since(&core, 3).await.reset);
        update(&core, "dave", None, Some(1)).await.unwrap();
        assert_eq!(names(&since(&core, 4).await), (vec!["dave"], vec![]));
    });
}

#[test]
fn of_many_changes_the_newest_ten_thousand_are_kept() {
    on_both(|engine| async move {
        let core = core(engine.clone()).await;
        // As many as are kept, in chunks of as many as one call may bring in.
        for chunk in 0..20_u64 {
            let from = chunk + 2;
            let note =
                |n| Op::Score { key: key::changes(GROUP), score: from as i64 + 1, member: format!("u{chunk}-{n}") };
            let mut ops: Vec<Op> = (0..500).map(note).collect();
            ops.push(Op::Noted { conversation_id: GROUP.into(), from, to: from + 1 });
            ops.push(set(key::conversation(GROUP), "mv", &(from + 1).to_string()));
            write(&engine, ops).await;
        }
        assert!(since(&core, 1).await.reset, "that of bob has given way");
        let page = since(&core, 2).await;
        assert_eq!((page.removed.len(), page.reset, page.member_version), (200, false, 22));
        update(&core, "bob", None, Some(1)).await.unwrap();
        assert!(since(&core, 2).await.reset, "one of version 3 has given way");
        assert_eq!(since(&core, 3).await.removed.len(), 200);
    });
}

#[test]
fn a_group_has_one_owner_whatever_is_asked() {
    on_both(|engine| async {
        let core = core(engine).await;
        make(&core, ["carol".to_owned()]).await;
        let code = |outcome: Result<(), Error>| outcome.map_err(|e| e.code);
        let owner = Role::Owner as i32;
        assert_eq!(code(add(&core, &["carol"], owner).await.map(drop)), Err(Code::InvalidArgument));
        add(&core, &["carol"], 0).await.unwrap();
        for (user, role, refusal) in [
            ("bob", owner, Code::InvalidArgument),
            ("bob", 0, Code::InvalidArgument),
            ("bob", 4, Code::InvalidArgument),
            ("bob", -1, Code::InvalidArgument),
            ("alice", Role::Member as i32, Code::FailedPrecondition),
            ("alice", 0, Code::InvalidArgument),
            ("nobody", Role::Admin as i32, Code::NotFound),
        ] {
            assert_eq!(code(update(&core, user, Some(role), None).await.map(drop)), Err(refusal), "{user} {role}");
        }
        assert_eq!(code(remove(&core, &["bob", "alice"]).await.map(drop)), Err(Code::FailedPrecondition));
        assert_eq!(owners(&core).await, ["alice"]);
        for round in 0..10 {
            let (to, other) = if round % 2 == 0 { ("bob", "carol") } else { ("carol", "bob") };
            let (first, second) = tokio::join!(transfer(&core, to), transfer(&core, other));
            assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
            assert_eq!(owners(&core).await.len(), 1);
        }
    });
}

#[test]
fn a_new_member_does_not_see_what_was_sent_before() {
    on_both(|engine| async {
        let core = core(engine).await;
        for n in 0..20 {
            let user = format!("late{n}");
            make(&core, [user.clone()]).await;
            let sends = async {
                let mut last = 0;
                for m in 0..5 {
                    let message = draft("bob", &format!("c-{n}-{m}"), r#"{"text":"hi"}"#);
                    last = send(&core, GROUP, message).await.unwrap().seq;
                    let request = ListMembersRequest {
                        conversation_id: GROUP.into(),
                        user_ids: vec![user.clone()],
                        ..Default::default()
                    };
                    let inside = !core.list_members(request).await.unwrap().members.is_empty();
                    if inside {
                        return last;
                    }
                }
                last + 1
            };
            let users = [user.as_str()];
            let (added, first) = tokio::join!(add(&core, &users, 0), sends);
            added.unwrap();
            let request = ListMembersRequest {
                conversation_id: GROUP.into(),
                user_ids: vec![user.clone()],
                ..Default::default()
            };
            let joined = core.list_members(request).await.unwrap().members[0].joined_seq;
            assert!(joined >= first, "{user} sees from {joined} on, and was not in before {first}");
        }
    });
}

#[test]
fn mutes_are_from_zero_to_the_end_of_time_and_the_far_end_mutes() {
    on_both(|engine| async {
        let core = core(engine).await;
        for negative in [-1, i64::MIN] {
            assert_eq!(update(&core, "bob", None, Some(negative)).await.unwrap_err().code, Code::InvalidArgument);
        }
        for far in [i64::MAX, (1 << 53) + 1, 1 << 62] {
            assert_eq!(update(&core, "bob", None, Some(far)).await.unwrap(), far);
            let refused = send(&core, GROUP, draft("bob", "c-1", r#"{"text":"hi"}"#)).await.unwrap_err();
            assert_eq!(refused.code, Code::PermissionDenied, "{far}");
            let listed = since(&core, 2).await;
            assert_eq!(listed.members[0].muted_until, far);
        }
        update(&core, "bob", None, Some(0)).await.unwrap();
        send(&core, GROUP, draft("bob", "c-1", r#"{"text":"hi"}"#)).await.unwrap();
    });
}

#[test]
fn versions_at_the_end_of_what_is_counted_are_reported_and_not_passed() {
    on_both(|engine| async move {
        let core = core(engine.clone()).await;
        make(&core, ["carol".to_owned()]).await;
        let most = ((1_u64 << 53) - 1).to_string();
        for field in ["mv", "jn", "s", "v"] {
            let c = key::conversation(GROUP);
            let end = Instant::now() + Duration::from_secs(10);
            let wants = vec![crate::engine::Want::Field(Field::new(c.clone(), field))];
            let before = engine.get(ids::partition_of(GROUP, PARTITIONS), wants, end).await.unwrap();
            write(&engine, vec![set(c.clone(), field, &most)]).await;
            let refused = match field {
                "v" => transfer(&core, "bob").await.unwrap_err(),
                _ => add(&core, &["carol"], 0).await.unwrap_err(),
            };
            assert_eq!(refused.code, Code::DataLoss, "{field}");
            if field == "mv" {
                assert_eq!(update(&core, "bob", None, Some(1)).await.unwrap_err().code, Code::DataLoss);
                assert_eq!(remove(&core, &["bob"]).await.unwrap_err().code, Code::DataLoss);
            }
            let value = before.into_iter().next().and_then(crate::engine::Got::field).unwrap();
            write(&engine, vec![Op::Set(Field::new(c, field), value)]).await;
        }
        assert_eq!(owners(&core).await, ["alice"]);
        assert_eq!(add(&core, &["carol"], 0).await.unwrap(), 3);
    });
}

#[test]
fn a_dissolved_group_takes_nobody_in_and_changes_nothing() {
    on_both(|engine| async {
        let core = core(engine).await;
        make(&core, ["carol".to_owned()]).await;
        core.dissolve(DissolveRequest { conversation_id: GROUP.into(), actor_id: "alice".into() }).await.unwrap();
        for refused in [
            add(&core, &["carol"], 0).await.map(drop),
            update(&core, "bob", Some(Role::Admin as i32), None).await.map(drop),
            transfer(&core, "bob").await,
        ] {
            assert_eq!(refused.unwrap_err().code, Code::NotFound);
        }
    });
}
