//! Numbers that are damaged in the engine: DATA_LOSS for their own conversation, and nothing else.

use crate::common::{Platform, text, user};
use kith_clients::storage::Storage;
use kith_proto::{
    chat::v1::{ConversationKind, Position},
    storage::v1::{
        AddMembersRequest, CreateConversationRequest, ListConversationsRequest, ListMembersRequest,
        ListMessagesRequest, MarkReadRequest,
    },
};
use kith_rpc::error::Error;
use redis::Value;
use tonic::Code;

const HURT: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAV";
const WHOLE: &str = "g:01ARZ3NDEKTSV4RRFFQ69G5FAW";

/// Calls that read or count on what is stored: those that need the seq, and those that need the members.
async fn calls(client: &Storage, id: &str, n: usize) -> Vec<(&'static str, Result<(), Error>)> {
    let (user_id, conversation_id) = ("bob".to_owned(), id.to_owned());
    let history =
        ListMessagesRequest { conversation_id: id.to_owned(), user_id: user_id.clone(), ..Default::default() };
    let read = MarkReadRequest { user_id: user_id.clone(), conversation_id: id.to_owned(), seq: 1 };
    let position = Position { conversation_id: id.to_owned(), seq: 1 };
    let acked = client.ack("bob", "phone", vec![position]).await.unwrap();
    let members = ListMembersRequest { conversation_id: id.to_owned(), ..Default::default() };
    let add = AddMembersRequest { conversation_id, user_ids: vec!["carol".to_owned()], ..Default::default() };
    vec![
        ("append", client.append(text(id, "bob", &format!("c-{n}"), "hello")).await.map(drop)),
        ("list_messages", client.list_messages(history).await.map(drop)),
        ("mark_read", client.mark_read(read).await.map(drop)),
        ("ack", acked.errors.into_iter().next().map_or(Ok(()), |e| Err(e.error.unwrap().into()))),
        ("list_members", client.list_members(members).await.map(drop)),
        ("add_members", client.add_members(add).await.map(drop)),
    ]
}

async fn set(platform: &Platform, key: &str, field: &str, value: &[u8]) -> Option<Vec<u8>> {
    let mut connection = platform.valkey.nodes(0)[0].connect().await.unwrap();
    let before = connection.command(redis::cmd("HGET").arg(key).arg(field)).await.unwrap();
    connection.command(redis::cmd("HSET").arg(key).arg(field).arg(value)).await.unwrap();
    if let Value::BulkString(before) = before { Some(before) } else { None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_damaged_in_the_engine_is_data_loss_of_its_conversation_alone() {
    let platform = Platform::start(1, 1).await;
    let one = platform.instance().await;
    let client = platform.client().await;
    client.upsert_users(["alice", "bob", "carol"].map(user).to_vec()).await.unwrap();
    for id in [HURT, WHOLE] {
        let create = CreateConversationRequest {
            conversation_id: id.to_owned(),
            kind: ConversationKind::Group as i32,
            owner_id: "alice".to_owned(),
            member_ids: vec!["bob".to_owned()],
            ..Default::default()
        };
        client.create_conversation(create).await.unwrap();
        client.append(text(id, "alice", "c-0", "hello")).await.unwrap();
    }
    let keys = platform.valkey.nodes(0)[0].command(&["KEYS", &format!("*c:{HURT}")]).await.unwrap();
    let Value::Array(keys) = keys else { panic!("{keys:?}") };
    let [Value::BulkString(key)] = keys.as_slice() else { panic!("{keys:?}") };
    let key = String::from_utf8(key.clone()).unwrap();
    let values = ["18446744073709551615", "9007199254740993", "-1", "1e300", "nan", "inf", "0x10", "1.5", ""];
    let mut n = 0;
    for (field, hurt) in
        [("s", &["append", "list_messages", "mark_read", "ack"][..]), ("mv", &["list_members", "add_members"])]
    {
        for value in values {
            let before = set(&platform, &key, field, value.as_bytes()).await.unwrap();
            n += 1;
            for (name, outcome) in calls(&client, HURT, n).await {
                let code = outcome.as_ref().err().map(|error| error.code);
                if hurt.contains(&name) {
                    assert_eq!(code, Some(Code::DataLoss), "{field} {value:?}: {name}: {outcome:?}");
                } else {
                    assert!(matches!(code, None | Some(Code::DataLoss)), "{field} {value:?}: {name}: {outcome:?}");
                }
            }
            let list = ListConversationsRequest { user_id: "bob".to_owned(), ..Default::default() };
            for conversation in client.list_conversations(list).await.unwrap().conversations {
                assert_eq!(conversation.error.is_some(), conversation.conversation_id == HURT, "{field} {value:?}");
            }
            for (name, outcome) in calls(&client, WHOLE, n).await {
                outcome.unwrap_or_else(|error| panic!("{name} of another conversation: {error}"));
            }
            set(&platform, &key, field, &before).await;
        }
    }
    // A seq behind the messages that stand is no script error, and stores nothing.
    let before = set(&platform, &key, "s", b"0").await.unwrap();
    let refused = client.append(text(HURT, "bob", "c-behind", "hello")).await.unwrap_err();
    assert_eq!(refused.code, Code::DataLoss, "{refused}");
    set(&platform, &key, "s", &before).await;
    for (name, outcome) in calls(&client, HURT, 99).await {
        outcome.unwrap_or_else(|error| panic!("{name} when it is whole again: {error}"));
    }
    one.stop().await;
}
