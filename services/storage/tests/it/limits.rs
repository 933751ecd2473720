//! What happens when something that storage needs is missing: the documented refusal in time, and a retry that succeeds once.

use std::time::{Duration, Instant};

use crate::common::{Platform, events, text, user};
use kith_clients::storage::Storage;
use kith_contract::{events::Kind, ids};
use kith_proto::storage::v1::{ListConversationsRequest, ListMessagesRequest, OpenDirectRequest};
use kith_testing::eventually;
use tonic::Code;

/// What a call may take in all, and some for a busy machine.
const DEADLINE: Duration = Duration::from_secs(8);

async fn pair(client: &Storage) -> String {
    for made in client.upsert_users(vec![user("alice"), user("bob")]).await.unwrap() {
        assert!(made.error.is_none(), "{made:?}");
    }
    let open = OpenDirectRequest { user_a: "alice".to_owned(), user_b: "bob".to_owned() };
    client.open_direct(open).await.unwrap().conversation_id
}

async fn history(client: &Storage, id: &str) -> Result<Vec<(u64, String)>, kith_rpc::error::Error> {
    let request = ListMessagesRequest {
        conversation_id: id.to_owned(),
        user_id: "bob".to_owned(),
        limit: 200,
        ..ListMessagesRequest::default()
    };
    let page = client.list_messages(request).await?;
    assert_eq!(page.seq, page.messages.last().map_or(0, |m| m.seq), "the head tells what the page shows");
    Ok(page.messages.into_iter().map(|m| (m.seq, m.client_msg_id)).collect())
}

fn created(found: &crate::common::Events, id: &str) -> Vec<(u64, String)> {
    let messages = found.values().filter(|(kind, _)| kind == Kind::MessageCreated.ce_type());
    let messages = messages.filter(|(_, data)| data["conversation_id"] == id);
    messages
        .map(|(_, data)| {
            (data["seq"].as_str().unwrap().parse().unwrap(), data["client_msg_id"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_refuses_in_time_and_drains_in_order_when_kafka_returns() {
    let mut platform = Platform::start(1, 1).await;
    platform.config.limits.outbox_bytes = 8 << 10;
    let one = platform.instance().await;
    let client = platform.client().await;
    let id = pair(&client).await;
    client.append(text(&id, "alice", "c-0", "before")).await.unwrap();
    events(&platform, Duration::from_secs(30), |found| !created(found, &id).is_empty()).await;
    platform.kafka.stop().await.unwrap();

    let mut stored: Vec<(u64, String)> = vec![(1, "c-0".to_owned())];
    let refused = loop {
        let client_msg_id = format!("c-{}", stored.len());
        let began = Instant::now();
        match client.append(text(&id, "alice", &client_msg_id, "while Kafka is down")).await {
            Ok(answer) => stored.push((answer.seq, client_msg_id)),
            Err(error) => {
                assert!(began.elapsed() < DEADLINE);
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
                assert!(error.retry_after.is_some(), "says when to come back");
                break client_msg_id;
            }
        }
        assert!(stored.len() < 1_000, "the outbox has a bound");
    };
    assert!(stored.len() > 10, "sends go on while the outbox has room");
    assert_eq!(history(&client, &id).await.unwrap(), stored, "reads go on, and show nothing of what was refused");

    platform.kafka.restart().await.unwrap();
    let taken = async || {
        let answer = client.append(text(&id, "alice", &refused, "while Kafka is down")).await;
        let Ok(receipt) = answer else { return false };
        assert_eq!((receipt.seq, receipt.duplicate), (stored.len() as u64 + 1, false), "stored by the retry alone");
        true
    };
    eventually("the outbox to drain", Duration::from_secs(60), taken).await.unwrap();
    stored.push((stored.len() as u64 + 1, refused.clone()));
    let found = events(&platform, Duration::from_secs(60), |found| created(found, &id).len() >= stored.len()).await;
    assert_eq!(created(&found, &id), stored, "every event once, in order");
    assert_eq!(history(&client, &id).await.unwrap(), stored);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replicas_writes_are_refused_reads_go_on_and_a_retry_is_stored_once() {
    let mut platform = Platform::start(1, 1).await;
    let one = platform.instance().await;
    let client = platform.client().await;
    let id = pair(&client).await;
    client.append(text(&id, "alice", "c-1", "held by both")).await.unwrap();
    let replica = 1 - platform.valkey.primary(0).await.unwrap();
    platform.valkey.node(0, replica).process().pause().unwrap();

    let began = Instant::now();
    let refused = client.append(text(&id, "alice", "c-2", "held by one")).await.unwrap_err();
    assert!(matches!(refused.code, Code::Unavailable | Code::DeadlineExceeded), "{refused}");
    assert!(began.elapsed() < DEADLINE);
    // It stands on the primary alone: nobody may see it yet.
    assert_eq!(history(&client, &id).await.unwrap(), [(1, "c-1".to_owned())]);
    let list = ListConversationsRequest { user_id: "bob".to_owned(), limit: 0, cursor: String::new() };
    let seen = client.list_conversations(list.clone()).await.unwrap().conversations;
    assert_eq!((seen[0].seq, seen[0].unread), (1, 1));
    assert_eq!(seen[0].last_message.as_ref().unwrap().client_msg_id, "c-1");

    platform.valkey.node(0, replica).process().resume().unwrap();
    let taken = async || {
        let Ok(answer) = client.append(text(&id, "alice", "c-2", "held by one")).await else { return false };
        assert_eq!(answer.seq, 2);
        true
    };
    eventually("writes to be taken again", Duration::from_secs(60), taken).await.unwrap();
    assert_eq!(history(&client, &id).await.unwrap(), [(1, "c-1".to_owned()), (2, "c-2".to_owned())]);
    assert_eq!(client.list_conversations(list).await.unwrap().conversations[0].unread, 2);
    let found = events(&platform, Duration::from_secs(30), |found| created(found, &id).len() >= 2).await;
    assert_eq!(created(&found, &id), [(1, "c-1".to_owned()), (2, "c-2".to_owned())]);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_are_claimed_and_open_soon_after_a_promotion() {
    let mut platform = Platform::start(1, 2).await;
    platform.config.cluster.partitions = 1_024;
    let one = platform.instance().await;
    let client = platform.client().await;
    let id = pair(&client).await;
    let before = client.append(text(&id, "alice", "c-1", "before")).await.unwrap();
    // A user in each partition: who answers for it has a claim on the new primary.
    let mut users = vec![None; 1_024];
    for id in (0..).map(|n| format!("u{n}")) {
        users[ids::partition_of(&id, 1_024) as usize].get_or_insert(id);
        if users.iter().all(Option::is_some) {
            break;
        }
    }
    let users: Vec<String> = users.into_iter().flatten().collect();
    platform.valkey.kill_primary(0).await.unwrap();
    platform.valkey.promote(0).await.unwrap();
    let began = Instant::now();
    let asked = users.chunks(100).map(|chunk| client.get_users(chunk.to_vec()));
    for answered in futures::future::join_all(asked).await {
        answered.unwrap();
    }
    println!("1,024 partitions open {:.2} s after the promotion (wanted: 3)", began.elapsed().as_secs_f64());
    let after = client.append(text(&id, "alice", "c-2", "after")).await.unwrap();
    assert_eq!((before.seq, after.seq), (1, 2));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_function_library_is_refused_by_name() {
    let platform = Platform::start(1, 1).await;
    let old = kith_storage::LIBRARY.replace("local VERSION = '1.", "local VERSION = '0.");
    assert_ne!(old, kith_storage::LIBRARY);
    platform.valkey.load(&old).await.unwrap();
    let starting = platform.starting().await;
    let named = async || {
        let why = starting.readiness.report().err().unwrap_or_default();
        why.contains("kith1") && why.contains("version 0.") && why.contains("is needed")
    };
    eventually("the library to be refused by name", Duration::from_secs(20), named).await.unwrap();
    assert!(!starting.readiness.is_ready());
    // The upgrade in place is all it takes.
    platform.valkey.load(kith_storage::LIBRARY).await.unwrap();
    let ready = async || starting.readiness.is_ready();
    eventually("the instance to serve with the new library", Duration::from_secs(20), ready).await.unwrap();
    starting.running.stop().await;
}
