//! Whatever callers give and whatever bytes are stored: a documented refusal that names the field or the key, never a panic.

use std::sync::Arc;

use kith_kit::{config::Limits, error::Error};
use kith_proto::{
    chat::v1::{Draft, Position},
    storage::v1::{
        AckRequest, AppendRequest, ClearRequest, GetConversationsRequest, GetReceiptsRequest, ListConversationsRequest,
        ListMembersRequest, ListMessagesRequest, MarkReadRequest, OpenDirectRequest, ReactRequest, RecallRequest,
        SetBlockRequest,
    },
};
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
            engine.damage(|places| at.index(places), &bytes, cut);
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
