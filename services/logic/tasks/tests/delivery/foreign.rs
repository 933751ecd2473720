//! Whoever may write to the event log can put anything on it: true records are delivered as if nothing else were there, and what is foreign
//! is shown to nobody and can be looked at.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use kith_eventlog::{client_config, producer::Record};
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    message::Headers as _,
};
use tokio::time::timeout;

use crate::world::{EVENT_PARTITIONS, LIMIT, World, Written};

const CONVERSATION: &str = "d:alice:bob";

/// Copies on the dead-letter topic: how often each reason was given.
async fn dead_letters(world: &World, count: usize) -> BTreeMap<String, usize> {
    let consumer: StreamConsumer =
        client_config(&world.broker.config()).unwrap().set("group.id", "look").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("demo.events.dlq", 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut found = BTreeMap::new();
    let mut copies = 0;
    while copies < count {
        let record = timeout(LIMIT, consumer.recv()).await.unwrap_or_else(|_| panic!("{found:?} of {count}"));
        // The topic is made for the first copy.
        let Ok(record) = record else { continue };
        let header = |name: &str| {
            let found = record.headers().unwrap().iter().find(|h| h.key == name).and_then(|h| h.value);
            String::from_utf8(found.unwrap().to_vec()).unwrap()
        };
        assert!(record.payload().unwrap_or_default().len() <= 64 << 10, "a copy is bounded");
        assert!(header("kith_offset").parse::<i64>().is_ok());
        let why = header("ce_kitherror");
        *found.entry(why.split(':').next().unwrap().to_owned()).or_default() += 1;
        copies += 1;
    }
    found
}

/// Every kind of record that is not storage's, as one that would come after `seq`, with the reason that is given for it.
fn foreign(seq: u64) -> Vec<(&'static str, Written)> {
    let next = seq + 1;
    let message = |ver: u64| Written::message(CONVERSATION, ver);
    let mut bare = message(next);
    bare.headers.clear();
    let (mut elsewhere, mut junk, mut huge, mut other) = (message(next), message(next), message(next), message(next));
    elsewhere.partition = (elsewhere.partition + 1) % EVENT_PARTITIONS;
    "\u{1}{\"not\": json".clone_into(&mut junk.data);
    huge.data = format!("[\"{}\"]", "x".repeat(900_000));
    // Another conversation's message under this one's key.
    other.data = Written::message("d:carol:dave", next).data;
    let mut unkeyed = message(next);
    unkeyed.key = String::new();
    vec![
        ("headers", bare),
        ("headers", message(next).without("ce_kithver")),
        ("headers", message(next).without("ce_kithpartition")),
        ("headers", message(next).without("ce_kithver").without("ce_kithpartition")),
        ("headers", message(next).without("ce_source")),
        ("headers", message(next).without("ce_type")),
        ("headers", message(next).at("seven")),
        ("headers", message(next).at("-1")),
        ("headers", message(next).at("0")),
        ("headers", message(next).at("18446744073709551616")),
        ("headers", unkeyed),
        ("cluster", message(next).with("ce_kithcluster", "another")),
        ("cluster", message(next).without("ce_kithcluster")),
        ("cluster", message(next).with("ce_source", "kith://other/storage")),
        ("partition", elsewhere),
        ("partition", message(next).with("ce_kithpartition", "9")),
        ("version", message(next).at(&(1_u64 << 63).to_string())),
        ("version", message(next).at(&u64::MAX.to_string())),
        ("version", message(next).at(&(next + 1_000).to_string())),
        ("data", junk),
        ("data", huge),
        ("data", other),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_records_of_every_kind_are_set_aside_and_stop_nothing() {
    let mut world = World::new().await;
    let (end, running) = world.start();
    world.publish(CONVERSATION, 1).await;
    world.expect(CONVERSATION, 1..=1).await;
    let mut reasons = BTreeMap::new();
    let mut seq = 1;
    for at in 0..foreign(0).len() {
        let (reason, record) = foreign(seq).swap_remove(at);
        *reasons.entry(reason.to_owned()).or_default() += 1;
        world.write(&record).await.unwrap();
        // A version that is asked about must not wait for the answer to a message that came later.
        seq += 1;
        world.publish(CONVERSATION, seq).await;
        world.expect(CONVERSATION, seq..=seq).await;
    }
    // A flood of them, and a true gap among them that is filled later.
    for _ in 0..500 {
        drop(world.write(&Written::message(CONVERSATION, seq).at(&u64::MAX.to_string())));
    }
    world.committed.store(seq + 3, Ordering::Relaxed);
    world.publish(CONVERSATION, seq + 2).await;
    world.publish(CONVERSATION, seq + 3).await;
    world.publish(CONVERSATION, seq + 1).await;
    world.expect(CONVERSATION, seq + 1..=seq + 3).await;
    seq += 3;
    let copies: usize = reasons.values().sum();
    let found = dead_letters(&world, copies).await;
    for (reason, count) in &reasons {
        let copied = found.get(reason).copied().unwrap_or(0);
        assert!(copied >= *count || reason == "version", "{reason}: {found:?}, expected {reasons:?}");
    }

    // None of them is remembered as a position.
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    let (end, running) = world.start();
    world.publish(CONVERSATION, seq + 1).await;
    world.expect(CONVERSATION, seq + 1..=seq + 1).await;
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert!(world.taken.try_recv().is_err(), "nothing foreign is shown, and nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_comes_late_begins_where_storage_is_and_not_where_a_foreign_record_says() {
    let mut world = World::new().await;
    world.write(&Written::message(CONVERSATION, 1).at(&(1_u64 << 63).to_string())).await.unwrap();
    for seq in 100..=110 {
        world.publish(CONVERSATION, seq).await;
    }
    // A login that is none stands in front of nobody either.
    let record = Record { topic: "demo.sessions", partition: None, key: "bob", headers: &[], payload: b"{}" };
    world.producer.send(&record).unwrap().await.unwrap();
    let (end, running) = world.start();
    world.expect(CONVERSATION, 100..=110).await;
    assert_eq!(dead_letters(&world, 2).await, BTreeMap::from([("headers".to_owned(), 1), ("version".to_owned(), 1)]));
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
}
