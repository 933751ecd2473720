//! The event log replays to the same state as the store: from nothing, and from any older copy of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use kith_contract::{
    events::{CORRUPT_NAME, Kind, Topic},
    ids,
};
use kith_kit::config::Limits;
use kith_proto::{
    chat::v1::{ConversationKind, Draft, Position},
    storage::v1::{
        AckRequest, AddMembersRequest, AnswerFriendRequestRequest, AppendRequest, ClearRequest,
        CreateConversationRequest, DeleteFriendRequest, Device, DissolveRequest, EditRequest, Group, MarkReadRequest,
        OpenDirectRequest, PutDeviceRequest, PutFriendRequest, ReactRequest, RecallRequest, RemoveMembersRequest,
        RequestFriendRequest, RevokeTokensRequest, SetBlockRequest, SetListEntryRequest, UpdateConversationRequest,
        UpdateMemberRequest, UpsertUsersRequest, UserUpdate,
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, TestCaseError, TestRunner},
};

use super::{
    change,
    restorer::{Flaw, Logged, Restorer},
};
use crate::{
    core::Core,
    engine::{
        Restoring,
        memory::{Data, MemoryEngine, RestoringMemory},
    },
    event,
};

const PARTITIONS: u32 = 4;
const USERS: u8 = 4;
const GROUPS: [&str; 2] = ["g:01ARZ3NDEKTSV4RRFFQ69G5FAV", "g:01ARZ3NDEKTSV4RRFFQ69G5FAW"];
const SYSTEM: &str = "s:shop:news";
const CONTENTS: [&str; 5] = [
    r#"{"text":"hi"}"#,
    r#"{"text": "two\nlines", "z":1, "a":1.50, "big":123456789012345678901234567890}"#,
    "  {\"text\":\"space around\"}\n",
    r#"{"text":"k","deep":{"a":[1,2,{"b":null}]}}"#,
    r#"{"text":"ünï\u0041"}"#,
];
const EMOJI: [&str; 2] = ["👍", "🎉"];

/// One change; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
struct Act {
    what: u8,
    a: u8,
    b: u8,
    n: u8,
    flag: bool,
    /// What the engine does meanwhile: see [`MemoryEngine::schedule`].
    schedule: Vec<u8>,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let kinds = prop_oneof![6 => Just(0_u8), 14 => 1..24_u8];
    let schedule = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(any::<u8>(), 0..4)];
    let act = (kinds, any::<u8>(), any::<u8>(), any::<u8>(), any::<bool>(), schedule)
        .prop_map(|(what, a, b, n, flag, schedule)| Act { what, a, b, n, flag, schedule });
    proptest::collection::vec(act, 1..160)
}

fn user(n: u8) -> String {
    format!("u{}", n % USERS)
}

fn other(a: u8, b: u8) -> String {
    user(a.wrapping_add(1 + b % (USERS - 1)))
}

fn talk(n: u8) -> String {
    // Most in one, so that what one act makes another finds.
    match n % 8 {
        0..=3 => ids::direct_conversation_id("u0", "u1").unwrap(),
        4 => ids::direct_conversation_id("u0", "u2").unwrap(),
        5 => GROUPS[0].to_owned(),
        6 => GROUPS[1].to_owned(),
        _ => SYSTEM.to_owned(),
    }
}

/// Makes the change, or is refused: both are fine here.
async fn act(core: &Core, act: &Act) {
    let Act { what, a, b, n, flag, .. } = *act;
    let (conversation_id, user_id, peer) = (talk(b), user(a), other(a, b));
    let (seq, group_id) = (u64::from(n % 4) + 1, GROUPS[usize::from(b % 2)].to_owned());
    let content: Bytes = CONTENTS[usize::from(n) % CONTENTS.len()].into();
    match what {
        0 => {
            let draft = Draft {
                client_msg_id: format!("c{}", n % 16),
                sender_id: user_id,
                r#type: i32::from(n % 9) + 1,
                content,
                mentions: if flag { vec![peer, "u0".to_owned()] } else { Vec::new() },
                ext: if n.is_multiple_of(3) { [("k".to_owned(), "v\n".to_owned())].into() } else { BTreeMap::new() },
            };
            let request = AppendRequest {
                conversation_id,
                draft: Some(draft),
                privileged: n.is_multiple_of(4),
                ..AppendRequest::default()
            };
            drop(core.append(request).await);
        }
        1 => drop(core.open_direct(OpenDirectRequest { user_a: "u0".into(), user_b: user(1 + b % 2) }).await),
        2 => {
            let (id, kind) =
                if flag { (SYSTEM.to_owned(), ConversationKind::System) } else { (group_id, ConversationKind::Group) };
            let request = CreateConversationRequest {
                conversation_id: id,
                kind: kind as i32,
                owner_id: if flag { String::new() } else { user_id },
                member_ids: if n.is_multiple_of(2) { vec![peer] } else { Vec::new() },
                group: Some(Group { name: format!("g{n}"), muted: n.is_multiple_of(3), ..Group::default() }),
                idempotency_key: if n.is_multiple_of(5) { "key".into() } else { String::new() },
            };
            drop(core.create_conversation(request).await);
        }
        3 => {
            let request = RecallRequest { conversation_id, seq, user_id, limit_ms: 0, privileged: flag };
            drop(core.recall(request).await);
        }
        4 => drop(core.edit(EditRequest { conversation_id, seq, user_id, content, limit_ms: 0 }).await),
        5 | 6 => {
            let emoji = EMOJI[usize::from(n) % 2].to_owned();
            drop(core.react(ReactRequest { conversation_id, seq, user_id, emoji, add: flag }).await);
        }
        7 => drop(core.mark_read(MarkReadRequest { user_id, conversation_id, seq }).await),
        8 => {
            let acks = vec![Position { conversation_id, seq }];
            drop(core.ack(AckRequest { user_id, device_id: format!("d{}", n % 2), acks }).await);
        }
        9 => drop(core.clear(ClearRequest { user_id, conversation_id }).await),
        10 | 11 => {
            let user_ids = vec![user_id, peer];
            let request =
                AddMembersRequest { conversation_id, user_ids, role: i32::from(n % 3), actor_id: "u0".into() };
            drop(core.add_members(request).await);
        }
        12 => {
            let request = RemoveMembersRequest { conversation_id, user_ids: vec![user_id], actor_id: "u0".into() };
            drop(core.remove_members(request).await);
        }
        13 => {
            let request = UpdateMemberRequest {
                conversation_id,
                user_id,
                role: flag.then_some(i32::from(n % 2) + 1),
                muted_until: (!flag).then_some(i64::from(n % 3) * 1_000),
                actor_id: "u0".into(),
            };
            drop(core.update_member(request).await);
        }
        14 => {
            let request = UpdateConversationRequest {
                conversation_id,
                name: flag.then(|| format!("n{n}")),
                muted: (!flag).then_some(n.is_multiple_of(4)),
                owner_id: n.is_multiple_of(2).then_some(user_id),
                actor_id: "u0".into(),
                ..UpdateConversationRequest::default()
            };
            drop(core.update_conversation(request).await);
        }
        15 if n < 64 => drop(core.dissolve(DissolveRequest { conversation_id, actor_id: user_id }).await),
        16 => {
            let alias = flag.then(|| format!("al|{n}"));
            let request =
                PutFriendRequest { user_id, friend_id: peer, alias, version: u64::from(n % 4), must_exist: false };
            drop(core.put_friend(request).await);
        }
        17 => {
            drop(core.delete_friend(DeleteFriendRequest { user_id, friend_id: peer, version: u64::from(n % 5) }).await);
        }
        18 => {
            let text = if flag { "let me | in\n".into() } else { String::new() };
            drop(core.request_friend(RequestFriendRequest { user_id, target_id: peer, text }).await);
        }
        19 => {
            let request = AnswerFriendRequestRequest { user_id, requester_id: peer, accept: flag };
            drop(core.answer_friend_request(request).await);
        }
        20 => drop(core.set_block(SetBlockRequest { user_id, target_id: peer, blocked: flag }).await),
        21 => {
            let request = SetListEntryRequest {
                user_id,
                conversation_id,
                pinned: Some(flag),
                muted: n.is_multiple_of(2).then_some(n.is_multiple_of(4)),
            };
            drop(core.set_list_entry(request).await);
        }
        22 => {
            let version = if flag { u64::from(n) } else { 0 };
            let users = vec![UserUpdate { version, ..update(a, n) }];
            drop(core.upsert_users(UpsertUsersRequest { users }).await);
        }
        _ => {
            let device_id = if flag { format!("d{}", n % 2) } else { String::new() };
            let request =
                RevokeTokensRequest { user_id: user_id.clone(), device_id, issued_at_or_before: i64::from(n) };
            drop(core.revoke_tokens(request).await);
            let device = Device {
                device_id: "d1".into(),
                push_provider: "apns".into(),
                push_token: "secret-token".into(),
                last_seen: i64::from(n),
                platform: 1,
            };
            drop(core.put_device(PutDeviceRequest { user_id, device: Some(device), ..Default::default() }).await);
        }
    }
}

fn update(a: u8, n: u8) -> UserUpdate {
    UserUpdate {
        user_id: user(a),
        nickname: Some(format!("nick{n}")),
        attrs: [(format!("k{}", n % 3), "\"v\"".to_owned())].into(),
        ..UserUpdate::default()
    }
}

/// What the log has to bring back: all but what is derived (the order of lists, when somebody was seen last) and devices, whose push
/// tokens are secrets.
fn essence(mut state: BTreeMap<u32, Data>) -> BTreeMap<u32, Data> {
    for data in state.values_mut() {
        data.outbox.clear();
        for (key, fields) in &mut data.hashes {
            fields.retain(|name, _| match key.split_once(':') {
                Some(("u", _)) => name != "ls",
                Some(("k", _)) => !name.starts_with('d'),
                _ => true,
            });
        }
        data.hashes.retain(|_, fields| !fields.is_empty());
        for (key, scores) in &mut data.scores {
            if key.starts_with("l:") {
                for score in scores.values_mut() {
                    *score = 0;
                }
            }
        }
        data.scores.retain(|_, scores| !scores.is_empty());
        data.messages.retain(|_, rows| !rows.is_empty());
    }
    state.retain(|_, data| *data != Data::default());
    state
}

/// The log as consumers have it, by partition.
fn log_of(engine: &MemoryEngine) -> BTreeMap<u32, Vec<Logged>> {
    let mut log: BTreeMap<u32, Vec<Logged>> = BTreeMap::new();
    for (partition, ver, body, row) in engine.events() {
        let event = event::read(&body, row).unwrap();
        assert!(!String::from_utf8_lossy(&event.data).contains("secret-token"), "{}", event.kind);
        let logged = Logged { ver, kind: event.kind.into_owned(), key: event.key, data: event.data.into() };
        log.entry(partition).or_default().push(logged);
    }
    log
}

async fn replay(log: &BTreeMap<u32, Vec<Logged>>, from: BTreeMap<u32, Data>) -> (BTreeMap<u32, Data>, Vec<Flaw>) {
    let engine = MemoryEngine::with(from);
    let mut all = Vec::new();
    for (partition, events) in log {
        let ver = engine.by_hand(*partition, |data| data.ver);
        let mut restorer = Restorer::new(RestoringMemory(&engine, *partition), ver);
        for event in events {
            restorer.take(event.clone()).await.unwrap();
        }
        let (ver, flaws) = restorer.finish(0).await.unwrap();
        assert_eq!(ver, events.last().unwrap().ver);
        all.extend(flaws);
    }
    (engine.copy(), all)
}

/// Each event twice, the second time on what the first has left.
async fn twice(log: &BTreeMap<u32, Vec<Logged>>) -> Result<BTreeMap<u32, Data>, TestCaseError> {
    let engine = MemoryEngine::default();
    for (partition, events) in log {
        for event in events {
            let mut left = None;
            for _ in 0..2 {
                let change = change::read(&event.kind, &event.key, &event.data)
                    .map_err(|e| TestCaseError::fail(format!("{}: {e}", event.kind)))?;
                let values = RestoringMemory(&engine, *partition).fields(change.reads.clone()).await.unwrap();
                let restored =
                    change.decide(&values).map_err(|e| TestCaseError::fail(format!("{}: {e}", event.kind)))?;
                let now = engine.by_hand(*partition, |data| {
                    data.rewrite(restored.writes).unwrap();
                    data.ver = event.ver;
                    data.clone()
                });
                prop_assert!(left.is_none_or(|left| left == now), "{} changes something again", event.kind);
                left = Some(now);
            }
        }
    }
    Ok(engine.copy())
}

fn differences(found: &BTreeMap<u32, Data>, wanted: &BTreeMap<u32, Data>) -> Result<(), TestCaseError> {
    let partitions = found.keys().chain(wanted.keys()).copied();
    for partition in partitions {
        prop_assert_eq!(found.get(&partition), wanted.get(&partition), "partition {}", partition);
    }
    Ok(())
}

#[test]
fn the_event_log_replays_to_the_same_state_as_the_store_from_any_older_copy() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases = std::env::var("KITH_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut runner = TestRunner::new(Cases { cases, failure_persistence: None, ..Cases::default() });
    let kinds = parking_lot::Mutex::new(BTreeSet::new());
    let outcome = runner.run(&(acts(), any::<proptest::sample::Index>()), |(acts, middle)| {
        runtime.block_on(async {
            let engine = Arc::new(MemoryEngine::default());
            let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            let users = (0..USERS).map(|n| update(n, n)).collect();
            core.upsert_users(UpsertUsersRequest { users }).await.unwrap();
            let (middle, mut older) = (middle.index(acts.len()), BTreeMap::new());
            for (at, one) in acts.iter().enumerate() {
                if at == middle {
                    older = engine.copy();
                }
                engine.schedule(one.schedule.iter().copied());
                act(&core, one).await;
            }
            // Nothing runs between these two.
            let (whole, log) = (essence(engine.copy()), log_of(&engine));
            kinds.lock().extend(log.values().flatten().map(|event| event.kind.clone()));
            let (from_nothing, flaws) = replay(&log, BTreeMap::new()).await;
            prop_assert_eq!(flaws, Vec::new());
            differences(&essence(from_nothing), &whole)?;
            let (from_older, flaws) = replay(&log, older).await;
            prop_assert_eq!(flaws, Vec::new());
            differences(&essence(from_older), &whole)?;
            differences(&essence(twice(&log).await?), &whole)
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    if cases >= 300 {
        let kinds = kinds.into_inner();
        let of_storage = Kind::ALL.iter().filter(|kind| kind.topic() == Topic::Events);
        let never: Vec<_> = of_storage.filter(|kind| !kinds.contains(kind.name())).collect();
        assert!(never.is_empty(), "never tried: {never:?}");
    }
}

/// Of every kind, and of none.
fn names() -> Vec<&'static str> {
    Kind::ALL.iter().map(|kind| kind.name()).chain(["no.such"]).collect()
}

fn logged(ver: u64, kind: &str, key: &str, data: &serde_json::Value) -> Logged {
    Logged { ver, kind: kind.to_owned(), key: key.to_owned(), data: data.to_string().into() }
}

fn created(ver: u64) -> Logged {
    let data =
        serde_json::json!({"conversation_id": "d:a:b", "kind": "direct", "member_ids": ["a", "b"], "created_at": "7"});
    logged(ver, Kind::ConversationCreated.name(), "d:a:b", &data)
}

fn message(ver: u64, seq: u64, text: &str) -> Logged {
    let id = ulid::Ulid::from_parts(1_000, u128::from(seq));
    let data = serde_json::json!({
        "conversation_id": "d:a:b", "seq": seq.to_string(), "message_id": id.to_string(), "client_msg_id": format!("c{text}"),
        "sender_id": "a", "sent_at": "1000", "type": "text", "content": {"text": text},
    });
    logged(ver, Kind::MessageCreated.name(), "d:a:b", &data)
}

async fn restored(events: Vec<Logged>, from: BTreeMap<u32, Data>) -> (BTreeMap<u32, Data>, Vec<Flaw>) {
    replay(&BTreeMap::from([(0, events)]), from).await
}

#[tokio::test]
async fn messages_keep_their_seq_and_the_seqs_that_are_lost_are_told() {
    let (state, flaws) = restored(vec![created(1), message(2, 1, "x"), message(9, 5, "y")], BTreeMap::new()).await;
    assert_eq!(state[&0].messages["d:a:b"].keys().copied().collect::<Vec<_>>(), [1, 5]);
    let gap = change::SeqGap { conversation_id: "d:a:b".to_owned(), first: 2, last: 4 };
    assert_eq!((flaws, state[&0].ver), (vec![Flaw::Gap { ver: 9, gap }], 9));
}

#[tokio::test]
async fn an_event_that_does_not_fit_is_told_and_the_others_are_restored() {
    let older = restored(vec![created(1), message(2, 1, "mine")], BTreeMap::new()).await.0;
    let old_event = logged(
        4,
        Kind::MemberRemoved.name(),
        "d:a:b",
        &serde_json::json!({"conversation_id": "d:a:b", "user_ids": ["a"]}),
    );
    let other_key = logged(5, Kind::GroupDissolved.name(), "d:a:b", &serde_json::json!({"conversation_id": "d:x:y"}));
    let events = vec![
        message(3, 1, "other"),
        old_event,
        other_key,
        message(6, 2, "next"),
        logged(7, CORRUPT_NAME, "", &serde_json::json!({})),
    ];
    let (state, flaws) = restored(events, older).await;
    let told: Vec<(u64, String)> = flaws
        .into_iter()
        .map(|flaw| match flaw {
            Flaw::Unrestored { ver, why } => (ver, why.to_string()),
            Flaw::Gap { gap, .. } => panic!("{gap:?}"),
        })
        .collect();
    assert_eq!(told.iter().map(|(ver, _)| *ver).collect::<Vec<_>>(), [3, 4, 5, 7]);
    assert!(told[0].1.contains("m:d:a:b 1"), "{told:?}");
    assert!(told[1].1.contains("member_count"), "{told:?}");
    assert!(told[2].1.contains("d:x:y"), "{told:?}");
    assert!(told[3].1.contains("corrupt"), "{told:?}");
    assert_eq!((state[&0].messages["d:a:b"].len(), state[&0].ver), (2, 7));
}

#[tokio::test]
async fn a_message_of_a_conversation_that_is_not_stored_is_not_guessed_at() {
    let (state, flaws) = restored(vec![message(1, 1, "x")], BTreeMap::new()).await;
    assert!(state[&0].messages.is_empty() && state[&0].hashes.is_empty());
    assert!(matches!(&flaws[..], [Flaw::Unrestored { ver: 1, .. }]), "{flaws:?}");
}

proptest! {
    #[test]
    fn no_record_makes_a_panic(kind in proptest::sample::select(names()), key in "(d:a:b|u0|\\PC{0,10})", noise in proptest::collection::vec(any::<u8>(), 0..200), fields in proptest::collection::btree_map("(conversation_id|user_id|user_ids|seq|join_order|member_count|role|content|[a-z_]{1,12})", "(d:a:b|u0|[0-9]{1,22}|-1|\\PC{0,8})", 0..12), stored in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))) {
        let damaged = serde_json::to_vec(&fields).unwrap();
        let whole = message(1, 1, "x").data;
        for data in [&noise[..], &damaged, &whole, &whole[..noise.len().min(whole.len())]] {
            if let Ok(change) = change::read(kind, &key, data) {
                let values = vec![stored.clone().map(Bytes::from); change.reads.len()];
                drop(change.decide(&values));
            }
        }
    }
}
