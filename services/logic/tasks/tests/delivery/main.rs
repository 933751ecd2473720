//! The service against a real Kafka and a `sessions` written here: every message of the log once, in order, through refusals, a restart
//! of the service and one of the broker. Direct messages need no look-up, so storage is asked for versions alone.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod foreign;
mod restart;
mod world;

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout};
use world::{EVENT_PARTITIONS, LIMIT, PARTITIONS, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_delivered_once_and_in_order_through_restarts() {
    let mut world = World::new().await;
    let conversation = "d:alice:bob";
    let (end, running) = world.start();
    world.refusals.store(5, Ordering::Relaxed);
    for seq in 1..=20 {
        world.publish(conversation, seq).await;
    }
    // Sent again by a new holder: known.
    for seq in 15..=20 {
        world.publish(conversation, seq).await;
    }
    // Out of order: held until the missing one comes.
    world.publish(conversation, 22).await;
    world.publish(conversation, 21).await;
    world.expect(conversation, 1..=22).await;

    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    world.publish(conversation, 22).await;
    world.publish(conversation, 23).await;
    let (end, running) = world.start();
    world.expect(conversation, 23..=23).await;

    // What is not committed when the broker goes comes again.
    let partition = kith_contract::ids::partition_of(conversation, PARTITIONS) % EVENT_PARTITIONS;
    world.all_committed(partition as i32).await;
    world.broker.restart().await.unwrap();
    for seq in 24..=30 {
        world.publish(conversation, seq).await;
    }
    world.expect(conversation, 24..=30).await;
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert!(world.taken.try_recv().is_err(), "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_a_second_arrive_within_milliseconds() {
    let mut world = World::new().await;
    let (end, running) = world.start();
    world.publish("d:alice:bob", 1).await;
    world.expect("d:alice:bob", 1..=1).await;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut handed = Vec::new();
    for seq in 2..=3_001 {
        tick.tick().await;
        handed.push((Instant::now(), world.hand_over("d:alice:bob", seq)));
    }
    let mut latencies = Vec::new();
    for (seq, (at, delivery)) in (2..).zip(handed) {
        delivery.await.unwrap();
        latencies.push(world.expect_one("d:alice:bob", seq).await - at);
    }
    // The first second warms the broker up.
    let mut latencies = latencies.split_off(1_000);
    latencies.sort_unstable();
    let (p50, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
    println!("Kafka to sessions at 1,000/s: p50 {p50:?}, p99 {p99:?}, max {:?}", latencies[latencies.len() - 1]);
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
}
