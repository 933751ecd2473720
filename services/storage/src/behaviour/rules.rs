//! The rules of writing, in memory and in a real Valkey alike: who may write, what a retry finds, what a position may be, what a failure is
//! called.

use std::sync::Arc;

use bytes::Bytes;
use kith_contract::ids;
use kith_kit::config::Limits;
use kith_proto::{
    chat::v1::{ConversationKind, Draft, Message, MessageType, Position, Receipt},
    storage::v1::{
        AckRequest, AppendRequest, CreateConversationRequest, DissolveRequest, EditRequest, GetConversationsRequest,
        GetReceiptsRequest, ListAfterRequest, ListMessagesRequest, MarkReadRequest, OpenDirectRequest, ReactRequest,
        RecallRequest, SetBlockRequest, UpdateConversationRequest, UpdateMemberRequest, UpsertUsersRequest, UserUpdate,
    },
};
use kith_rpc::error::{Error, reason};
use kith_testing::{ValkeyCluster, ValkeyOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use ulid::Ulid;

use super::{PARTITIONS, config, engine_of};
use crate::{
    codec,
    core::Core,
    engine::{Append, Engine, memory::MemoryEngine},
    tags,
};

const DIRECT: &str = "d:alice:bob";
pub(super) const GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// Runs a check over the engine in memory, then over a real one.
pub(super) fn on_both<F: Future<Output = ()>>(check: impl Fn(Arc<dyn Engine>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        check(Arc::new(MemoryEngine::default())).await;
        let (_cluster, engine, end) = real().await;
        check(engine).await;
        end.cancel();
    });
}

pub(super) async fn real() -> (ValkeyCluster, Arc<dyn Engine>, CancellationToken) {
    let options = ValkeyOptions { library: Some(crate::LIBRARY.to_owned()), ..ValkeyOptions::default() };
    let (cluster, end) = (ValkeyCluster::start(options).await.unwrap(), CancellationToken::new());
    let engine = engine_of(&config(&cluster), &end).await;
    (cluster, Arc::new(engine), end)
}

/// Alice and Bob, their conversation, and Alice's group with Bob in it.
pub(super) async fn core(engine: Arc<dyn Engine>) -> Core {
    let core = Core::new(engine, PARTITIONS, Limits::default(), None);
    let users = ["alice", "bob"].map(|id| UserUpdate { user_id: id.to_owned(), ..UserUpdate::default() });
    core.upsert_users(UpsertUsersRequest { users: users.into() }).await.unwrap();
    core.open_direct(OpenDirectRequest { user_a: "alice".into(), user_b: "bob".into() }).await.unwrap();
    let group = CreateConversationRequest {
        conversation_id: GROUP.to_owned(),
        kind: ConversationKind::Group as i32,
        owner_id: "alice".to_owned(),
        member_ids: vec!["bob".to_owned()],
        ..CreateConversationRequest::default()
    };
    core.create_conversation(group).await.unwrap();
    core
}

pub(super) fn draft(sender: &str, client_msg_id: &str, content: &str) -> Draft {
    Draft {
        client_msg_id: client_msg_id.to_owned(),
        sender_id: sender.to_owned(),
        r#type: MessageType::Text as i32,
        content: Bytes::copy_from_slice(content.as_bytes()),
        ..Draft::default()
    }
}

pub(super) async fn send(core: &Core, id: &str, draft: Draft) -> Result<Receipt, Error> {
    core.append(AppendRequest { conversation_id: id.to_owned(), draft: Some(draft), ..AppendRequest::default() }).await
}

async fn edit(core: &Core, id: &str, seq: u64, user: &str) -> Result<(), Error> {
    let content = Bytes::from_static(br#"{"text":"changed"}"#);
    let (conversation_id, user_id) = (id.to_owned(), user.to_owned());
    core.edit(EditRequest { conversation_id, seq, user_id, content, limit_ms: 0 }).await.map(drop)
}

async fn react(core: &Core, id: &str, seq: u64, user: &str, add: bool) -> Result<bool, Error> {
    let (conversation_id, user_id) = (id.to_owned(), user.to_owned());
    let request = ReactRequest { conversation_id, seq, user_id, emoji: "👍".to_owned(), add };
    Ok(core.react(request).await?.changed)
}

async fn recall(core: &Core, id: &str, seq: u64, user: &str) -> Result<bool, Error> {
    let (conversation_id, user_id) = (id.to_owned(), user.to_owned());
    let request = RecallRequest { conversation_id, seq, user_id, limit_ms: 0, privileged: false };
    Ok(core.recall(request).await?.changed)
}

async fn newest(core: &Core, id: &str) -> Message {
    let request = ListMessagesRequest { conversation_id: id.to_owned(), ..ListMessagesRequest::default() };
    core.list_messages(request).await.unwrap().messages.pop().unwrap()
}

/// Alice may neither add nor change anything, and take hers back.
async fn may_only_take_back(core: &Core, id: &str, seq: u64, code: Code, why: Option<&str>) {
    let before = newest(core, id).await;
    for refused in [
        send(core, id, draft("alice", "c-late", r#"{"text":"late"}"#)).await.err(),
        edit(core, id, seq, "alice").await.err(),
        react(core, id, seq - 1, "alice", true).await.err(),
    ] {
        let refused = refused.unwrap();
        assert_eq!((refused.code, refused.reason.as_deref()), (code, why), "{refused}");
    }
    assert_eq!(newest(core, id).await, before, "a refused call changes nothing");
    assert!(react(core, id, seq, "alice", false).await.unwrap());
    assert!(recall(core, id, seq, "alice").await.unwrap());
    assert!(newest(core, id).await.recalled);
}

/// Bob's message, and Alice's behind it, to which she has reacted.
async fn two_messages(core: &Core, id: &str, name: &str) -> u64 {
    send(core, id, draft("bob", name, r#"{"text":"of bob"}"#)).await.unwrap();
    let seq = send(core, id, draft("alice", name, r#"{"text":"of alice"}"#)).await.unwrap().seq;
    assert!(react(core, id, seq, "alice", true).await.unwrap());
    seq
}

#[test]
fn who_may_not_write_neither_edits_nor_reacts_and_may_take_back() {
    on_both(|engine| async {
        let core = core(engine).await;
        let mute = |muted_until| UpdateMemberRequest {
            conversation_id: GROUP.to_owned(),
            user_id: "bob".to_owned(),
            muted_until: Some(muted_until),
            ..UpdateMemberRequest::default()
        };
        let seq = two_messages(&core, DIRECT, "c-1").await;
        let block = |blocked| SetBlockRequest { user_id: "bob".into(), target_id: "alice".into(), blocked };
        core.set_block(block(true)).await.unwrap();
        may_only_take_back(&core, DIRECT, seq, Code::PermissionDenied, Some(reason::BLOCKED)).await;
        core.set_block(block(false)).await.unwrap();
        let seq = two_messages(&core, DIRECT, "c-2").await;
        edit(&core, DIRECT, seq, "alice").await.unwrap();

        // A muted member, and a plain one in a group that is muted as a whole.
        let seq = send(&core, GROUP, draft("bob", "c-1", r#"{"text":"hi"}"#)).await.unwrap().seq;
        core.update_member(mute(i64::MAX)).await.unwrap();
        let muted = |error: Error| assert_eq!(error.reason.as_deref(), Some(reason::MUTED), "{error}");
        muted(edit(&core, GROUP, seq, "bob").await.unwrap_err());
        muted(react(&core, GROUP, seq, "bob", true).await.unwrap_err());
        core.update_member(mute(0)).await.unwrap();
        let silence = UpdateConversationRequest {
            conversation_id: GROUP.to_owned(),
            muted: Some(true),
            ..UpdateConversationRequest::default()
        };
        core.update_conversation(silence).await.unwrap();
        muted(edit(&core, GROUP, seq, "bob").await.unwrap_err());
        muted(react(&core, GROUP, seq, "bob", true).await.unwrap_err());
        assert!(react(&core, GROUP, seq, "alice", true).await.unwrap(), "its owner may");

        let dissolve = DissolveRequest { conversation_id: GROUP.to_owned(), actor_id: "alice".to_owned() };
        core.dissolve(dissolve).await.unwrap();
        // Its members are taken out in the background: who is none any more hears that.
        let gone = |error: Error| assert!(matches!(error.code, Code::NotFound | Code::PermissionDenied), "{error}");
        gone(edit(&core, GROUP, seq, "bob").await.unwrap_err());
        gone(react(&core, GROUP, seq, "bob", true).await.unwrap_err());
    });
}

#[test]
fn a_retry_around_midnight_finds_its_message_whichever_clock_is_ahead() {
    const DAY: i64 = 86_400_000;
    const MINUTE: i64 = 60_000;
    on_both(|engine| async move {
        core(engine.clone()).await;
        let midnight = 20_000 * DAY;
        let append = async |client_msg_id: &str, now_ms: i64| {
            let draft = draft("alice", client_msg_id, r#"{"text":"hi"}"#);
            let append = Append {
                conversation_id: DIRECT.to_owned(),
                sender_id: "alice".to_owned(),
                client_msg_id: client_msg_id.to_owned(),
                row: codec::pack(Ulid::from_parts(now_ms.unsigned_abs(), 1), &draft),
                identity_len: codec::identity_len(&draft),
                now_ms,
                privileged: false,
                hot_limit: 1_000,
                opening: Vec::new(),
            };
            let end = Instant::now() + std::time::Duration::from_secs(10);
            engine.append(ids::partition_of(DIRECT, PARTITIONS), append, end).await.unwrap()
        };
        // By the clock of the instance that stored it, and by that of the one that the retry comes to.
        let clocks = [
            ("ahead", midnight + MINUTE, midnight - MINUTE),
            ("behind", midnight - MINUTE, midnight + MINUTE),
            ("ahead, a day later", midnight + MINUTE, midnight + DAY - MINUTE),
            ("behind, a day later", midnight - MINUTE, midnight + DAY + MINUTE),
        ];
        for (n, (what, stored_at, retried_at)) in clocks.into_iter().enumerate() {
            let first = append(&format!("c-{n}"), stored_at).await;
            assert!(first.earlier.is_none(), "{what}");
            let again = append(&format!("c-{n}"), retried_at).await;
            assert_eq!((again.seq, again.earlier.is_some()), (first.seq, true), "{what}");
        }
        let first = append("c-old", midnight - MINUTE).await;
        let much_later = append("c-old", midnight - MINUTE + 2 * DAY + 1).await;
        assert_eq!((much_later.seq, much_later.earlier), (first.seq + 1, None), "after 48 hours it is another message");
    });
}

#[test]
fn a_retry_is_compared_by_value_and_another_payload_leaves_no_trace() {
    on_both(|engine| async {
        let core = core(engine).await;
        let given = Draft {
            mentions: vec!["bob".to_owned(), "alice".to_owned()],
            ext: [("k".to_owned(), "v".to_owned())].into(),
            ..draft("alice", "c-1", r#"{"text":"ü/","n":1.50}"#)
        };
        let first = send(&core, DIRECT, given.clone()).await.unwrap();
        let mentions = vec!["alice".to_owned(), "bob".to_owned(), "alice".to_owned()];
        let spelt = Bytes::from_static(br#"{ "n": 1.5, "text": "\u00fc\/" }"#);
        for same in [
            given.clone(),
            Draft { mentions: mentions.clone(), ..given.clone() },
            Draft { content: spelt.clone(), ..given.clone() },
            Draft { content: spelt, mentions, ..given.clone() },
        ] {
            let again = send(&core, DIRECT, same).await.unwrap();
            assert_eq!((again.seq, &again.message_id, again.duplicate), (1, &first.message_id, true));
        }
        for other in [
            draft("alice", "c-1", r#"{"text":"ü/","n":1.50}"#),
            Draft { content: Bytes::from_static(r#"{"text":"ü/","n":1.51}"#.as_bytes()), ..given.clone() },
            Draft { r#type: MessageType::Custom as i32, ..given.clone() },
            Draft { mentions: vec!["bob".to_owned()], ..given.clone() },
            Draft { ext: [("k".to_owned(), "w".to_owned())].into(), ..given.clone() },
        ] {
            assert_eq!(send(&core, DIRECT, other).await.unwrap_err().code, Code::AlreadyExists);
        }
        let stored = newest(&core, DIRECT).await;
        assert_eq!((stored.seq, stored.content, stored.mentions), (1, given.content, given.mentions), "as it was sent");
    });
}

#[test]
fn who_sends_has_read_and_receipts_say_so() {
    on_both(|engine| async {
        let core = core(engine).await;
        for n in 0..3 {
            send(&core, DIRECT, draft("bob", &format!("c-{n}"), r#"{"text":"hi"}"#)).await.unwrap();
        }
        let sent = send(&core, DIRECT, draft("alice", "c-1", r#"{"text":"hi"}"#)).await.unwrap();
        let head = async |user: &str| {
            let (user_id, conversation_ids) = (user.to_owned(), vec![DIRECT.to_owned()]);
            let request = GetConversationsRequest { user_id, conversation_ids, with_last_message: false };
            let head = core.get_conversations(request).await.unwrap().remove(0);
            (head.read_seq, head.unread)
        };
        assert_eq!((head("alice").await, head("bob").await), ((sent.seq, 0), (3, 1)));
        let read = MarkReadRequest { user_id: "alice".into(), conversation_id: DIRECT.into(), seq: 1 };
        let read = core.mark_read(read).await.unwrap();
        assert_eq!((read.read_seq, read.unread), (sent.seq, 0), "never back");
        let receipts = GetReceiptsRequest { user_id: "bob".into(), conversation_id: DIRECT.into(), seq: 3 };
        assert_eq!(core.get_receipts(receipts).await.unwrap().read_by, ["alice", "bob"]);
    });
}

#[test]
fn positions_near_the_end_of_their_numbers_are_clamped_or_unknown_messages() {
    on_both(|engine| async {
        let core = core(engine).await;
        send(&core, DIRECT, draft("alice", "c-1", r#"{"text":"hi"}"#)).await.unwrap();
        for position in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 53) + 1, 1 << 53, 2] {
            let page = |before_seq, after_seq| ListMessagesRequest {
                conversation_id: DIRECT.to_owned(),
                user_id: "bob".to_owned(),
                before_seq,
                after_seq,
                limit: 10,
            };
            let before = core.list_messages(page(position, 0)).await.unwrap();
            assert_eq!((before.messages.len(), before.has_more, before.seq), (1, false, 1), "{position}");
            let after = core.list_messages(page(0, position)).await.unwrap();
            assert_eq!((after.messages.len(), after.has_more, after.seq), (0, false, 1), "{position}");
            let at = Position { conversation_id: DIRECT.to_owned(), seq: position };
            let synced = ListAfterRequest { user_id: "bob".into(), after: vec![at.clone()], limit: 10, bytes: 0 };
            let synced = core.list_after(synced).await.unwrap().conversations.remove(0);
            assert_eq!((synced.messages.len(), synced.seq, synced.error), (0, 1, None), "{position}");
            for error in [
                recall(&core, DIRECT, position, "alice").await.err(),
                edit(&core, DIRECT, position, "alice").await.err(),
                react(&core, DIRECT, position, "alice", true).await.err(),
            ] {
                assert_eq!(error.unwrap().code, Code::NotFound, "{position}");
            }
            let read = MarkReadRequest { user_id: "bob".into(), conversation_id: DIRECT.into(), seq: position };
            assert_eq!(core.mark_read(read).await.unwrap().read_seq, 1, "{position}");
            let ack = AckRequest { user_id: "bob".into(), device_id: "phone".into(), acks: vec![at] };
            assert_eq!(core.ack(ack).await.unwrap().delivered[0].seq, 1, "{position}");
        }
    });
}

#[test]
fn a_function_that_fails_is_internal_and_others_go_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (cluster, engine, end) = real().await;
        let core = core(engine).await;
        send(&core, DIRECT, draft("alice", "c-1", r#"{"text":"hi"}"#)).await.unwrap();
        // A key of another type, as only somebody's hand makes it.
        let version = tags::version_key(ids::partition_of(DIRECT, PARTITIONS), PARTITIONS);
        let key = format!("{}r:{DIRECT}", version.trim_end_matches('v'));
        let primary = &cluster.nodes(0)[cluster.primary(0).await.unwrap()];
        primary.command(&["SET", &key, "not a hash"]).await.unwrap();
        let read = MarkReadRequest { user_id: "bob".into(), conversation_id: DIRECT.into(), seq: 1 };
        let failed = core.mark_read(read).await.unwrap_err();
        assert_eq!(failed.code, Code::Internal, "{failed}");
        assert!(!failed.is_retryable());
        send(&core, GROUP, draft("bob", "c-1", r#"{"text":"hi"}"#)).await.unwrap();
        end.cancel();
    });
}
