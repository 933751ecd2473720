//! Where a Kafka partition holds more kith partitions than the metadata of an offset can name, a restart still knows where each stood.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use kith_contract::ids;
use tokio::time::timeout;

use crate::world::{LIMIT, World, Written};

const PARTITIONS: u32 = 2_048;
/// Versions that need all of their bytes.
const FIRST: u64 = 1 << 62;
const STREAMS: usize = 1_000;

/// One conversation in each of many kith partitions.
fn conversations() -> Vec<String> {
    let mut seen = BTreeSet::new();
    let names = (0..).map(|n| format!("d:a{n}:bob"));
    names.filter(|id| seen.insert(ids::partition_of(id, PARTITIONS))).take(STREAMS).collect()
}

async fn write(world: &World, conversations: &[String], ver: u64) {
    let placed = |id: &String| Written::placed(PARTITIONS, 1, id, ver);
    let deliveries: Vec<_> = conversations.iter().map(|id| world.write(&placed(id))).collect();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

/// Every conversation's message of this version, each once.
async fn expect(world: &mut World, conversations: &[String], ver: u64) {
    let mut missing: BTreeSet<&str> = conversations.iter().map(String::as_str).collect();
    while !missing.is_empty() {
        let (id, seq, _) = timeout(LIMIT, world.taken.recv()).await.expect("delivered in time").unwrap();
        assert_eq!(seq, ver, "{id}");
        assert!(missing.remove(id.as_str()), "{id} twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_a_high_water_that_fits_no_metadata() {
    let mut world = World::with(PARTITIONS, 1).await;
    let conversations = conversations();
    world.committed.store(FIRST, Ordering::Relaxed);
    let (end, running) = world.start();
    write(&world, &conversations, FIRST).await;
    expect(&mut world, &conversations, FIRST).await;
    let metadata = world.all_committed(0).await;
    assert!(metadata.starts_with("3;"), "a checkpoint: {metadata}");
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();

    // From now on storage confirms nothing: only what is remembered tells where each kith partition stands.
    world.committed.store(0, Ordering::Relaxed);
    let (end, running) = world.start();
    write(&world, &conversations, FIRST).await;
    write(&world, &conversations, FIRST + 1).await;
    expect(&mut world, &conversations, FIRST + 1).await;
    end.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert!(world.taken.try_recv().is_err(), "nothing twice");
}
