//! Whatever callers give and whatever bytes are stored: a documented refusal that names the field or the key, never a panic.

use std::sync::Arc;

use bytes::Bytes;
use kith_kit::config::Limits;
use kith_proto::{
    chat::v1::{Draft, Position},
    storage::v1::{
        AckRequest, AddMembersRequest, AppendRequest, ClearRequest, CreateConversationRequest, EditRequest,
        GetConversationsRequest, GetReceiptsRequest, ListAfterRequest, ListBehindRequest, ListConversationsRequest,
        ListMembersRequest, ListMessagesRequest, MarkReadRequest, OpenDirectRequest, ReactRequest, RecallRequest,
        RemoveMembersRequest, SetBlockRequest, UpdateConversationRequest, UpdateMemberRequest,
    },
};
use kith_rpc::error::Error;
use proptest::{prelude::*, test_runner::TestCaseError};
use tonic::Code;

use super::{PARTITIONS, run::Caller, runner, spec::Act};
use crate::{core::Core, engine::memory::MemoryEngine};

/// Ids: some good, some bad, some that are no ids at all.
fn id() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("u0".to_owned()),
        Just("d:u0:u1".to_owned()),
        "[a-zA-Z0-9._:@-]{0,70}",
        "(d|g|s):[a-z0-9:]{0,20}",
        "\\PC{0,20}",
    ]
}

async fn every_call(core: &Core, a: String, b: String, seq: u64, number: u32, bytes: Vec<u8>) -> Vec<Option<Error>> {
    let draft = Draft {
        client_msg_id: b.clone(),
        sender_id: a.clone(),
        r#type: number as i32,
        content: bytes.into(),
        mentions: vec![b.clone()],
        ..Draft::default()
    };
    let append = AppendRequest {
        conversation_id: b.clone(),
        draft: Some(draft),
        privileged: number.is_multiple_of(2),
        ..AppendRequest::default()
    };
    let list = ListMessagesRequest {
        conversation_id: b.clone(),
        user_id: a.clone(),
        before_seq: seq,
        after_seq: u64::from(number % 2),
        limit: number,
    };
    let recall = RecallRequest {
        conversation_id: b.clone(),
        seq,
        user_id: a.clone(),
        limit_ms: -1,
        privileged: number.is_multiple_of(2),
    };
    let react = ReactRequest {
        conversation_id: b.clone(),
        seq,
        user_id: a.clone(),
        emoji: b.clone(),
        add: number.is_multiple_of(2),
    };
    let acks = vec![Position { conversation_id: b.clone(), seq }];
    let receipts = GetReceiptsRequest { user_id: a.clone(), conversation_id: b.clone(), seq };
    let conversations =
        GetConversationsRequest { user_id: a.clone(), conversation_ids: vec![b.clone()], with_last_message: true };
    let (user_id, conversation_id) = (a.clone(), b.clone());
    let members =
        ListMembersRequest { conversation_id: b.clone(), cursor: a.clone(), limit: number, ..Default::default() };
    vec![
        core.append(append).await.err(),
        core.list_messages(list).await.err(),
        core.recall(recall).await.err(),
        core.react(react).await.err(),
        core.mark_read(MarkReadRequest { user_id: a.clone(), conversation_id: b.clone(), seq }).await.err(),
        core.ack(AckRequest { user_id: a.clone(), device_id: b.clone(), acks }).await.err(),
        core.clear(ClearRequest { user_id, conversation_id }).await.err(),
        core.get_receipts(receipts).await.err(),
        core.get_conversations(conversations).await.err(),
        core.list_members(members).await.err(),
        core.list_conversations(ListConversationsRequest { user_id: a.clone(), cursor: b.clone(), limit: number })
            .await
            .err(),
        core.open_direct(OpenDirectRequest { user_a: a.clone(), user_b: b.clone() }).await.err(),
        core.set_block(SetBlockRequest { user_id: a, target_id: b, blocked: true }).await.err(),
    ]
}

fn documented(error: &Error) -> Result<(), TestCaseError> {
    let known = matches!(
        error.code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::DataLoss
    );
    prop_assert!(known, "{} is no answer to bad input: {}", error.code_name(), error);
    // "field: what"
    let names = error.code != Code::InvalidArgument || error.detail.contains(':');
    prop_assert!(names, "{} names nothing: {}", error.code_name(), error);
    // The log names the key, and a caller never sees it.
    prop_assert!(
        error.code != Code::DataLoss || *error == Error::data_loss(),
        "{} shows: {}",
        error.code_name(),
        error
    );
    Ok(())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn arbitrary_input_is_refused_by_the_name_of_its_field() {
    let input = (id(), id(), any::<u64>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..60));
    let outcome = runner(2_000).run(&input, |(a, b, seq, number, bytes)| {
        block_on(async {
            let core = Core::new(Arc::new(MemoryEngine::default()), PARTITIONS, Limits::default(), None);
            Caller::new(core.clone(), "u").await;
            for error in every_call(&core, a, b, seq, number, bytes).await.iter().flatten() {
                documented(error)?;
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn damaged_stored_bytes_are_reported_without_their_key() {
    let damage = (any::<prop::sample::Index>(), proptest::collection::vec(any::<u8>(), 0..60), any::<bool>());
    let outcome = runner(2_000).run(&damage, |(at, bytes, cut)| {
        block_on(async {
            let engine = Arc::new(MemoryEngine::default());
            let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            let caller = Caller::new(core.clone(), "u").await;
            for act in [
                Act::Open { talk: 0 },
                Act::Append { talk: 0, by: 0, id: 0, text: 0 },
                Act::React { talk: 0, seq: 1, by: 1, emoji: 0, add: true },
                Act::Read { talk: 0, by: 1, seq: 1 },
                Act::Clear { talk: 0, by: 1 },
            ] {
                caller.call(&act).await;
            }
            let over = |value: &Bytes| {
                let rest = if cut { value.slice(bytes.len().min(value.len())..) } else { Bytes::new() };
                [bytes.as_slice(), &rest].concat().into()
            };
            engine.damage(|_| true, |places| at.index(places), over);
            for error in every_call(&core, "u0".into(), "d:u0:u1".into(), 1, 1, b"{}".to_vec()).await.iter().flatten() {
                documented(error)?;
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

const GROUP: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// Numbers that no field holds: too large for it, below zero, not whole, none.
const NUMBERS: [&str; 14] = [
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "9223372036854775808",
    "9007199254740993",
    "4294967296",
    "4294967295",
    "-1",
    "-9223372036854775808",
    "1e300",
    "nan",
    "inf",
    "0x10",
    "",
];

/// A value with one of its numbers replaced; rows have several, with bars between them.
fn with_number(value: &Bytes, part: usize, number: &str) -> Bytes {
    let text = String::from_utf8_lossy(value);
    let mut parts: Vec<&str> = text.split('|').collect();
    let at = part % parts.len();
    parts[at] = number;
    parts.join("|").into()
}

/// Whatever counts in a group, or adds to what is stored.
async fn group_calls(core: &Core) -> Vec<Option<Error>> {
    let (id, by) = (GROUP.to_owned(), "u1".to_owned());
    let content = || Bytes::from_static(br#"{"text":"x"}"#);
    let draft =
        Draft { client_msg_id: "c-9".into(), sender_id: by.clone(), r#type: 1, content: content(), ..Draft::default() };
    let append = AppendRequest { conversation_id: id.clone(), draft: Some(draft), ..AppendRequest::default() };
    let list = ListMessagesRequest { conversation_id: id.clone(), user_id: by.clone(), ..Default::default() };
    let edit =
        EditRequest { conversation_id: id.clone(), seq: 1, user_id: by.clone(), content: content(), limit_ms: 1_000 };
    let mute = UpdateMemberRequest {
        conversation_id: id.clone(),
        user_id: by.clone(),
        muted_until: Some(1),
        ..Default::default()
    };
    let rename =
        UpdateConversationRequest { conversation_id: id.clone(), name: Some("n".into()), ..Default::default() };
    let add = AddMembersRequest {
        conversation_id: id.clone(),
        user_ids: vec!["u2".into(), "u3".into()],
        ..Default::default()
    };
    let remove =
        RemoveMembersRequest { conversation_id: id.clone(), user_ids: vec!["u2".into()], ..Default::default() };
    let acks = vec![Position { conversation_id: id.clone(), seq: 2 }];
    let acked = core.ack(AckRequest { user_id: by.clone(), device_id: "phone".into(), acks: acks.clone() }).await;
    let behind = ListAfterRequest { user_id: by.clone(), after: acks, limit: 2, bytes: 0 };
    let members = |user_ids| ListMembersRequest { conversation_id: id.clone(), user_ids, ..Default::default() };
    vec![
        acked.err(),
        core.append(append.clone()).await.err(),
        core.append(append).await.err(),
        core.list_messages(list).await.err(),
        core.list_after(behind).await.err(),
        core.edit(edit).await.err(),
        core.mark_read(MarkReadRequest { user_id: by.clone(), conversation_id: id.clone(), seq: 2 }).await.err(),
        core.get_receipts(GetReceiptsRequest { user_id: by.clone(), conversation_id: id.clone(), seq: 1 }).await.err(),
        core.list_members(members(Vec::new())).await.err(),
        core.list_members(members(vec![by.clone()])).await.err(),
        core.update_member(mute).await.err(),
        core.update_conversation(rename).await.err(),
        core.add_members(add).await.err(),
        core.remove_members(remove).await.err(),
        core.clear(ClearRequest { user_id: by, conversation_id: id.clone() }).await.err(),
    ]
}

#[test]
fn damaged_stored_numbers_fail_their_own_conversation_alone_and_never_wrap() {
    let damage = (any::<prop::sample::Index>(), 0..5_usize, prop::sample::select(&NUMBERS[..]), any::<bool>());
    let outcome = runner(2_000).run(&damage, |(at, part, number, direct)| {
        block_on(async {
            let engine = Arc::new(MemoryEngine::default());
            let core = Core::new(engine.clone(), PARTITIONS, Limits::default(), None);
            let caller = Caller::new(core.clone(), "u").await;
            let create = CreateConversationRequest {
                conversation_id: GROUP.into(),
                kind: 2,
                owner_id: "u0".into(),
                member_ids: vec!["u1".into()],
                ..Default::default()
            };
            core.create_conversation(create).await.unwrap();
            for act in [
                Act::Open { talk: 0 },
                Act::Append { talk: 0, by: 0, id: 0, text: 0 },
                Act::Ack { talk: 0, by: 1, seq: 1 },
                Act::Clear { talk: 0, by: 1 },
            ] {
                caller.call(&act).await;
            }
            for (error, call) in group_calls(&core).await.iter().zip(0..) {
                prop_assert!(error.is_none(), "call {}: {:?}", call, error);
            }
            let hurt = if direct { "d:u0:u1" } else { GROUP };
            engine.damage(
                |key| key.ends_with(hurt),
                |places| at.index(places),
                |value| with_number(value, part, number),
            );
            for error in group_calls(&core).await.iter().flatten() {
                documented(error)?;
            }
            for error in every_call(&core, "u0".into(), "d:u0:u1".into(), 1, 1, b"{}".to_vec()).await.iter().flatten() {
                documented(error)?;
            }
            // The others are told, in lists too.
            for user in ["u0", "u1"] {
                let request = ListConversationsRequest { user_id: user.into(), limit: 0, cursor: String::new() };
                let listed = core.list_conversations(request).await.unwrap().conversations;
                prop_assert!(listed.iter().all(|c| c.error.is_none() || c.conversation_id == hurt), "{:?}", listed);
                let request = ListBehindRequest { user_id: user.into(), device_id: "new".into(), ..Default::default() };
                let behind = core.list_behind(request).await.unwrap().behind;
                prop_assert!(behind.iter().all(|c| c.error.is_none() || c.conversation_id == hurt), "{:?}", behind);
            }
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
