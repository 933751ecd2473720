//! An acknowledged message is never lost, reordered or doubled: faults under load, on real processes, checked against history and the
//! event log. `KITH_FAULT_ROUNDS` sets how often each fault is tried (default 1).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::common::{InstanceProcess, Platform, events, text, user};
use kith_clients::storage::Storage;
use kith_contract::events::Kind;
use kith_kit::valkey::WANTED;
use kith_proto::storage::v1::{ListMessagesRequest, OpenDirectRequest};
use kith_testing::eventually;
use parking_lot::Mutex;
use tonic::Code;

const PAIRS: usize = 16;
/// Between faults, load goes on for so long.
const CALM: Duration = Duration::from_millis(1_500);
/// A send is given up, and the test failed, when it was not acknowledged for so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn instance_process() {
    crate::common::serve_if_asked().await;
}

/// Senders that note what they were promised.
struct Load {
    /// seq by conversation and client_msg_id.
    promised: Mutex<HashMap<String, BTreeMap<String, u64>>>,
    acknowledged: AtomicU64,
    longest: Mutex<Duration>,
    end: AtomicBool,
}

impl Load {
    async fn send_on(self: Arc<Self>, client: Storage, id: String, sender: String) {
        let mut number = 0;
        while !self.end.load(Ordering::Relaxed) {
            number += 1;
            let client_msg_id = format!("{sender}-{number}");
            let began = Instant::now();
            loop {
                match client.append(text(&id, &sender, &client_msg_id, "something to say")).await {
                    Ok(receipt) => {
                        self.promised.lock().entry(id.clone()).or_default().insert(client_msg_id, receipt.seq);
                        break;
                    }
                    Err(error) => {
                        let known =
                            matches!(error.code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted);
                        assert!(known, "a fault shows itself as {error}");
                        assert!(began.elapsed() < PATIENCE, "not acknowledged for {PATIENCE:?}: {error}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            let mut longest = self.longest.lock();
            *longest = longest.max(began.elapsed());
        }
    }

    /// Waits until every sender was acknowledged since.
    async fn recovered(&self) {
        let at = self.acknowledged.load(Ordering::Relaxed);
        eventually("sends to go on", PATIENCE, async || {
            self.acknowledged.load(Ordering::Relaxed) > at + 4 * PAIRS as u64
        })
        .await
        .unwrap();
    }
}

async fn kill_primary(platform: &mut Platform, shard: usize) {
    let dead = platform.valkey.kill_primary(shard).await.unwrap();
    platform.valkey.promote(shard).await.unwrap();
    platform.valkey.node(shard, dead).restart().await.unwrap();
    platform.valkey.synced(shard).await.unwrap();
}

async fn pause_primary(platform: &mut Platform, shard: usize) {
    let asleep = platform.valkey.primary(shard).await.unwrap();
    platform.valkey.node(shard, asleep).process().pause().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let others: Vec<usize> = (0..platform.valkey.nodes(shard).len()).filter(|i| *i != asleep).collect();
    for other in others {
        let node = platform.valkey.node(shard, other);
        if node.command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await.is_ok() {
            break;
        }
    }
    tokio::time::sleep(CALM).await;
    platform.valkey.node(shard, asleep).process().resume().unwrap();
    let node = &platform.valkey.nodes(shard)[asleep];
    eventually("the deposed primary to step down", PATIENCE, async || !node.is_primary().await).await.unwrap();
    platform.valkey.synced(shard).await.unwrap();
}

async fn pause_replica(platform: &mut Platform, shard: usize) {
    let primary = platform.valkey.primary(shard).await.unwrap();
    let replica = (primary + 1) % platform.valkey.nodes(shard).len();
    platform.valkey.node(shard, replica).process().pause().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    platform.valkey.node(shard, replica).process().resume().unwrap();
    platform.valkey.synced(shard).await.unwrap();
}

async fn kill_instance(platform: &Platform, instances: &mut Vec<InstanceProcess>) {
    let mut victim = instances.remove(0);
    victim.process.kill().unwrap();
    platform.unlist(&victim.address);
    instances.push(platform.process().await);
}

async fn stop_instance(platform: &Platform, instances: &mut Vec<InstanceProcess>) {
    let mut victim = instances.remove(0);
    victim.process.stop(Duration::from_secs(20)).await.unwrap();
    platform.unlist(&victim.address);
    instances.push(platform.process().await);
}

async fn pause_instance(platform: &Platform, instances: &[InstanceProcess]) {
    let victim = &instances[0];
    victim.process.pause().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    platform.unlist(&victim.address);
    tokio::time::sleep(Duration::from_secs(4)).await;
    // It wakes up and believes that it holds what others hold now.
    victim.process.resume().unwrap();
    tokio::time::sleep(CALM).await;
    platform.relist(&victim.address);
}

async fn history(client: &Storage, id: &str) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    loop {
        let after_seq = found.last().map_or(0, |(seq, _)| *seq);
        let request =
            ListMessagesRequest { conversation_id: id.to_owned(), after_seq, limit: 200, ..Default::default() };
        // At the very start there is no "after": the first page is read before seq 201.
        let request = if after_seq == 0 { ListMessagesRequest { before_seq: 201, ..request } } else { request };
        let page = client.list_messages(request).await.unwrap();
        let more = found.len() + page.messages.len() < page.seq as usize && !page.messages.is_empty();
        found.extend(page.messages.into_iter().map(|m| (m.seq, m.client_msg_id)));
        if !more {
            return found;
        }
    }
}

/// Compares what was promised with history and the event log.
async fn check(platform: &Platform, client: &Storage, load: &Load) -> usize {
    let promised = load.promised.lock().clone();
    let mut stored = BTreeSet::new();
    for (id, promises) in &promised {
        let found = history(client, id).await;
        let seqs: Vec<u64> = found.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (1..=found.len() as u64).collect::<Vec<_>>(), "{id}: seqs are gapless from 1");
        let by_id: HashMap<&str, u64> = found.iter().map(|(seq, id)| (id.as_str(), *seq)).collect();
        assert_eq!(by_id.len(), found.len(), "{id}: nothing is stored twice");
        for (client_msg_id, seq) in promises {
            assert_eq!(
                by_id.get(client_msg_id.as_str()),
                Some(seq),
                "{id} {client_msg_id}: stands where it was promised"
            );
        }
        stored.extend(found.into_iter().map(|(seq, client_msg_id)| (id.clone(), seq, client_msg_id)));
    }
    let messages = |found: &crate::common::Events| {
        let created = found.values().filter(|(kind, _)| kind == Kind::MessageCreated.ce_type());
        let place = |d: &serde_json::Value| {
            let text = |name: &str| d[name].as_str().unwrap().to_owned();
            (text("conversation_id"), text("seq").parse::<u64>().unwrap(), text("client_msg_id"))
        };
        created.map(|(_, data)| place(data)).collect::<BTreeSet<_>>()
    };
    let enough = stored.len();
    let replay =
        events(platform, Duration::from_secs(60), |found| found.len() >= enough && messages(found).len() >= enough)
            .await;
    assert_eq!(messages(&replay), stored, "the event log replays to what is stored");
    enough
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_every_single_fault() {
    let rounds: usize = std::env::var("KITH_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut platform = Platform::start(1, 2).await;
    let mut instances = vec![platform.process().await, platform.process().await];
    let client = platform.client().await;
    let users: Vec<String> = (0..PAIRS).flat_map(|i| [format!("a{i}"), format!("b{i}")]).collect();
    for made in client.upsert_users(users.iter().map(|u| user(u)).collect()).await.unwrap() {
        assert!(made.error.is_none(), "{made:?}");
    }
    let load = Arc::new(Load {
        promised: Mutex::default(),
        acknowledged: AtomicU64::new(0),
        longest: Mutex::default(),
        end: AtomicBool::new(false),
    });
    let mut senders = Vec::new();
    for i in 0..PAIRS {
        let (a, b) = (format!("a{i}"), format!("b{i}"));
        let id = client
            .open_direct(OpenDirectRequest { user_a: a.clone(), user_b: b.clone() })
            .await
            .unwrap()
            .conversation_id;
        senders.push(tokio::spawn(load.clone().send_on(client.clone(), id.clone(), a)));
        senders.push(tokio::spawn(load.clone().send_on(client.clone(), id, b)));
    }
    let faults = [
        "kill instance",
        "stop instance",
        "pause instance",
        "kill primary",
        "pause primary",
        "pause replica",
        "restart Kafka",
    ];
    for round in 1..=rounds {
        for fault in faults {
            tokio::time::sleep(CALM).await;
            let (before, began) = (load.acknowledged.load(Ordering::Relaxed), Instant::now());
            *load.longest.lock() = Duration::ZERO;
            match fault {
                "kill instance" => kill_instance(&platform, &mut instances).await,
                "stop instance" => stop_instance(&platform, &mut instances).await,
                "pause instance" => pause_instance(&platform, &instances).await,
                "kill primary" => kill_primary(&mut platform, 0).await,
                "pause primary" => pause_primary(&mut platform, 0).await,
                "pause replica" => pause_replica(&mut platform, 0).await,
                _ => platform.kafka.restart().await.unwrap(),
            }
            load.recovered().await;
            let (after, longest) = (load.acknowledged.load(Ordering::Relaxed), *load.longest.lock());
            println!(
                "round {round}: {fault:<16} {:>6} acknowledged in {:>5.1} s, longest wait {:>5.2} s",
                after - before,
                began.elapsed().as_secs_f64(),
                longest.as_secs_f64()
            );
        }
    }
    load.end.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let stored = check(&platform, &client, &load).await;
    println!(
        "{} acknowledged, {stored} stored, 0 lost, 0 doubled, 0 reordered",
        load.acknowledged.load(Ordering::Relaxed)
    );
}

/// What the operator does when `whenDegraded: accept` lowers the count, and when it raises it again.
async fn tell(platform: &Platform, replicas: u32) {
    let node = &platform.valkey.nodes(0)[platform.valkey.primary(0).await.unwrap()];
    let code = format!(
        "#!lua name={WANTED}\nserver.register_function{{function_name='{WANTED}', callback=function() return {replicas} end, flags={{'no-writes'}}}}\n"
    );
    let count = replicas.to_string();
    // Where replicas are wanted and missing, the engine takes no library: fewer are wanted first, more last.
    let settings: [&[&str]; 2] =
        [&["CONFIG", "SET", "min-replicas-to-write", &count], &["FUNCTION", "LOAD", "REPLACE", &code]];
    for words in settings {
        node.command(words).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_acknowledged_by_as_many_replicas_as_its_primary_wants_at_that_time() {
    let mut platform = Platform::start(1, 1).await;
    let instance = platform.instance().await;
    let client = platform.client().await;
    client.upsert_users(vec![user("alice"), user("bob")]).await.unwrap();
    let request = OpenDirectRequest { user_a: "alice".to_owned(), user_b: "bob".to_owned() };
    let id = client.open_direct(request).await.unwrap().conversation_id;
    let send = |n: u32| client.append(text(&id, "alice", &format!("c{n}"), "something to say"));
    // Nothing was told yet: as the configuration says.
    send(1).await.unwrap();
    let replica = 1 - platform.valkey.primary(0).await.unwrap();
    platform.valkey.node(0, replica).process().pause().unwrap();
    let refused = |error: kith_rpc::error::Error| matches!(error.code, Code::Unavailable | Code::DeadlineExceeded);
    assert!(refused(send(2).await.unwrap_err()));
    tell(&platform, 0).await;
    eventually("a write that the primary alone holds", PATIENCE, async || send(2).await.is_ok()).await.unwrap();
    let began = Instant::now();
    for n in 3..13 {
        send(n).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "nobody is waited for: {:?}", began.elapsed());
    platform.valkey.node(0, replica).process().resume().unwrap();
    // The engine refuses what its replicas are missing for until they are back.
    let primary = &platform.valkey.nodes(0)[1 - replica];
    primary.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await.unwrap();
    platform.valkey.synced(0).await.unwrap();
    tell(&platform, 1).await;
    send(13).await.unwrap();
    platform.valkey.node(0, replica).process().pause().unwrap();
    assert!(refused(send(14).await.unwrap_err()), "it is waited for again");
    platform.valkey.node(0, replica).process().resume().unwrap();
    eventually("the replica to hold it", PATIENCE, async || send(14).await.is_ok()).await.unwrap();
    let history = client
        .list_messages(ListMessagesRequest {
            conversation_id: id.clone(),
            limit: 100,
            ..ListMessagesRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(history.messages.iter().map(|m| m.seq).collect::<Vec<_>>(), (1..=14).collect::<Vec<_>>());
    instance.stop().await;
}
