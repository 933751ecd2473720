//! A store that has lost what was acknowledged, and the real `kith repair`: on real Valkey, Kafka and service processes.

use std::{process::Output, time::Duration};

use kith_clients::storage::Storage;
use kith_contract::ids;
use kith_e2e::{
    kafka,
    local::{Instance, Instances, Options, Platform},
    wait::await_until,
};
use kith_kit::valkey::Connection;
use kith_platform::Service;
use kith_proto::{
    chat::v1::{ConversationKind, Draft, Message, MessageType},
    storage::v1::{
        AppendRequest, CreateConversationRequest, EditRequest, ListMessagesRequest, MarkReadRequest, OpenDirectRequest,
        Partition, PartitionsRequest, ReactRequest, RecallRequest, RepairRequest, UserUpdate, peer_client::PeerClient,
    },
};
use kith_rpc::{
    client::Dialer,
    error::{Error, reason},
};
use redis::{Value, cmd};
use tokio_util::sync::CancellationToken;
use tonic::Code;

const PARTITIONS: u32 = 1024;
const SOON: Duration = Duration::from_secs(30);

struct World {
    platform: Platform,
    client: Storage,
    /// As a storage instance sees the others.
    peers: Dialer,
    end: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// Storage and the consumer that takes events strictly in order; nothing else is needed.
async fn world(storages: usize) -> World {
    let instances = Instances::default().with(Service::Storage, storages).closed();
    let options = Options { instances, log: "warn".to_owned(), ..Options::default() };
    let platform = Platform::start(options).await.expect("the local platform");
    let end = CancellationToken::new();
    let config = platform.client_config("api").expect("a configuration");
    let client = Storage::new(&config, end.clone()).expect("a client");
    client.discovered().await;
    let peers = Dialer::new(&platform.client_config("storage").expect("a configuration"), "storage").expect("a dialer");
    World { platform, client, peers, end }
}

impl World {
    async fn append(&self, id: &str, sender: &str, name: &str) -> Result<(u64, bool), Error> {
        let draft = Draft {
            client_msg_id: name.to_owned(),
            sender_id: sender.to_owned(),
            r#type: MessageType::Text as i32,
            content: format!(r#"{{"text": "{name}"}}"#).into(),
            ..Draft::default()
        };
        let request = AppendRequest { conversation_id: id.to_owned(), draft: Some(draft), ..AppendRequest::default() };
        let receipt = self.client.append(request).await?;
        Ok((receipt.seq, receipt.duplicate))
    }

    async fn say(&self, id: &str, sender: &str, names: std::ops::Range<u64>) {
        for name in names {
            let stored = self.append(id, sender, &format!("m{name}")).await.expect("an append");
            assert_eq!(stored, (name, false));
        }
    }

    async fn history(&self, id: &str) -> Vec<Message> {
        let request = ListMessagesRequest { conversation_id: id.to_owned(), limit: 200, ..Default::default() };
        self.client.list_messages(request).await.expect("a history").messages
    }

    fn storages(&self) -> Vec<&Instance> {
        let storages = 0..self.platform.count(Service::Storage);
        storages.filter_map(|n| self.platform.find(Service::Storage, n)).map(|at| self.platform.instance(at)).collect()
    }

    /// How a partition stands at the instance that holds it, or has found it lost.
    async fn standing(&self, partition: u32) -> Partition {
        for storage in self.storages() {
            let channel = self.peers.channel(&storage.listen.to_string());
            let request = PartitionsRequest { partitions: vec![partition] };
            let Ok(answer) = PeerClient::new(channel).partitions(request).await else { continue };
            if let Some(found) = answer.into_inner().partitions.pop().filter(|p| p.state != "closed") {
                return found;
            }
        }
        Partition::default()
    }

    async fn published(&self, partition: u32) -> Partition {
        await_until("the partition's events to be on the log", SOON, || async {
            let found = self.standing(partition).await;
            let all = found.state == "open" && found.published_ver == found.ver;
            if all { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await
        .expect("events are published")
    }

    async fn primary(&self) -> Connection {
        let primary = self.platform.valkey.primary(0).await.expect("a primary");
        self.platform.valkey.nodes(0)[primary].connect().await.expect("a connection")
    }

    async fn repair(&self, arguments: &[&str]) -> (Output, String) {
        let output = self.storages()[0].run("repair", arguments).await.expect("kith repair runs");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("kith repair {}:\n{text}", arguments.join(" "));
        (output, text)
    }

    /// The partition's keys, as they are now.
    async fn copy(&self, partition: u32) -> Copy {
        let mut primary = self.primary().await;
        let mut copy = Vec::new();
        for key in keys(&mut primary, partition).await {
            let Value::BulkString(dump) = run(&mut primary, cmd("DUMP").arg(&key)).await else { panic!("no dump") };
            copy.push((key, dump));
        }
        copy
    }

    /// Puts the partition back to a copy, and ends the claim that its holder has: what a failover to a replica that lags would do.
    async fn put_back(&self, partition: u32, copy: &Copy) {
        let mut primary = self.primary().await;
        let found = keys(&mut primary, partition).await;
        run(&mut primary, &cmd("MULTI")).await;
        for key in found {
            run(&mut primary, cmd("DEL").arg(&key)).await;
        }
        for (key, dump) in copy {
            run(&mut primary, cmd("RESTORE").arg(key).arg(0).arg(dump)).await;
        }
        let version = copy.iter().map(|(key, _)| key).find(|key| key.ends_with(b"}v")).expect("the version's key");
        run(&mut primary, cmd("HSET").arg(version).arg("claim").arg("nobody's")).await;
        run(&mut primary, &cmd("EXEC")).await;
    }

    /// What stands in the store, claims apart: they say who asked last.
    async fn stored(&self, partition: u32) -> Copy {
        let mut copy = self.copy(partition).await;
        copy.retain(|(key, _)| !key.ends_with(b"}v"));
        copy.sort();
        copy
    }
}

type Copy = Vec<(Vec<u8>, Vec<u8>)>;

async fn run(connection: &mut Connection, command: &redis::Cmd) -> Value {
    match connection.command(command).await.expect("Valkey answers") {
        Value::ServerError(error) => panic!("{error:?}"),
        value => value,
    }
}

/// All keys of a partition lie in its first slot.
async fn keys(connection: &mut Connection, partition: u32) -> Vec<Vec<u8>> {
    let slot = partition * (16_384 / PARTITIONS);
    let found = run(connection, cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(10_000)).await;
    let Value::Array(keys) = found else { panic!("no keys: {found:?}") };
    let key = |value| if let Value::BulkString(key) = value { key } else { panic!("no key: {value:?}") };
    keys.into_iter().map(key).collect()
}

async fn users(world: &World, names: &[&str]) {
    let update = |name: &&str| UserUpdate { user_id: (*name).to_owned(), ..UserUpdate::default() };
    let made = world.client.upsert_users(names.iter().map(update).collect()).await.expect("users");
    assert!(made.iter().all(|m| m.error.is_none()), "{made:?}");
}

async fn direct(world: &World, a: &str, b: &str) -> String {
    users(world, &[a, b]).await;
    let request = OpenDirectRequest { user_a: a.to_owned(), user_b: b.to_owned() };
    world.client.open_direct(request).await.expect("a conversation").conversation_id
}

/// A group in the same partition as `id`, so that more than one conversation is lost.
async fn group_beside(world: &World, id: &str) -> String {
    let partition = ids::partition_of(id, PARTITIONS);
    let group = std::iter::repeat_with(|| format!("g:{}", ulid::Ulid::generate()))
        .find(|group| ids::partition_of(group, PARTITIONS) == partition)
        .expect("an id in the partition");
    let request = CreateConversationRequest {
        conversation_id: group.clone(),
        kind: ConversationKind::Group as i32,
        owner_id: "alice".to_owned(),
        member_ids: vec!["bob".to_owned()],
        ..CreateConversationRequest::default()
    };
    world.client.create_conversation(request).await.expect("a group");
    group
}

async fn assert_lost(world: &World, id: &str) {
    let error = world.append(id, "alice", "refused").await.expect_err("a lost partition takes nothing");
    assert_eq!((error.code, error.reason.as_deref()), (Code::DataLoss, Some(reason::DATA_LOSS)), "{error}");
}

async fn assert_only_the_holder_repairs(world: &World, partition: u32) {
    let mut refused = 0;
    for storage in world.storages() {
        let channel = world.peers.channel(&storage.listen.to_string());
        match PeerClient::new(channel).repair(RepairRequest { partition, ..RepairRequest::default() }).await {
            Ok(report) => assert_eq!((report.get_ref().state.as_str(), report.get_ref().restored), ("open", 0)),
            Err(status) => {
                assert_eq!(Error::from(status).reason.as_deref(), Some(reason::WRONG_HOLDER));
                refused += 1;
            }
        }
    }
    assert_eq!(refused, world.storages().len() - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_went_back_is_repaired_from_the_event_log() {
    let world = world(2).await;
    let id = direct(&world, "alice", "bob").await;
    let partition = ids::partition_of(&id, PARTITIONS);
    world.say(&id, "alice", 1..4).await;
    world.published(partition).await;
    let older = world.copy(partition).await;

    world.say(&id, "bob", 4..9).await;
    let group = group_beside(&world, &id).await;
    world.say(&group, "bob", 1..3).await;
    let (conversation_id, user_id) = (id.clone(), "alice".to_owned());
    let content = r#"{"text":"m2, edited"}"#.into();
    let edit = EditRequest { conversation_id, seq: 2, user_id, content, limit_ms: 0 };
    world.client.edit(edit).await.expect("an edit");
    let (conversation_id, user_id) = (id.clone(), "alice".to_owned());
    let react = ReactRequest { conversation_id, seq: 5, user_id, emoji: "👍".to_owned(), add: true };
    world.client.react(react).await.expect("a reaction");
    let (conversation_id, user_id) = (id.clone(), "bob".to_owned());
    let recall = RecallRequest { conversation_id, seq: 6, user_id, limit_ms: 0, privileged: false };
    world.client.recall(recall).await.expect("a recall");
    let (conversation_id, user_id) = (id.clone(), "alice".to_owned());
    world.client.mark_read(MarkReadRequest { user_id, conversation_id, seq: 7 }).await.expect("a cursor");
    let whole = world.published(partition).await;
    let (before, before_group) = (world.history(&id).await, world.history(&group).await);

    world.put_back(partition, &older).await;
    assert_lost(&world, &id).await;
    assert_eq!(world.standing(partition).await.state, "data_loss");
    let lost = world.stored(partition).await;

    let (output, text) = world.repair(&["--dry-run"]).await;
    assert!(!output.status.success() && text.contains("data_loss"), "{text}");
    assert_eq!(world.stored(partition).await, lost, "a dry run changes nothing");
    assert_lost(&world, &id).await;

    let (output, text) = world.repair(&[]).await;
    assert!(output.status.success() && text.contains("1 of 1 partitions are whole"), "{text}");
    assert_eq!((world.history(&id).await, world.history(&group).await), (before, before_group));
    let open = world.standing(partition).await;
    assert_eq!((open.state.as_str(), open.ver), ("open", whole.ver));
    assert_only_the_holder_repairs(&world, partition).await;
    // A retry of what was acknowledged is known, and the next message follows.
    assert_eq!(world.append(&id, "bob", "m8").await.expect("a retry"), (8, true));
    assert_eq!(world.append(&id, "alice", "m9").await.expect("an append"), (9, false));
    assert_eq!(world.append(&group, "alice", "m3").await.expect("an append"), (3, false));
    assert_eq!(world.published(partition).await.ver, whole.ver + 2);

    // The log is one story without a hole, and the consumer that insists on that has nothing to say.
    let replay = kafka::replay(&kafka::Reader::plain(&world.platform.kafka.bootstrap()), "local.events", SOON)
        .await
        .expect("a replay");
    assert!(replay.faults.is_empty(), "{:?}", replay.faults);
    let tasks = world.platform.instance(world.platform.find(Service::Tasks, 0).expect("tasks")).log();
    assert!(!tasks.contains("went back") && !tasks.contains("are missing"), "{tasks}");

    let (output, text) = world.repair(&["--all"]).await;
    assert!(output.status.success() && text.contains("1024 of 1024 partitions are whole"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_event_log_never_got_is_told_by_number_and_the_partition_goes_on() {
    let mut world = world(1).await;
    let id = direct(&world, "alice", "bob").await;
    let partition = ids::partition_of(&id, PARTITIONS);
    world.say(&id, "alice", 1..3).await;
    let before = world.published(partition).await;
    // An instance that has not found the event log hands nothing over: what it stores is in the store alone.
    let storage = world.platform.find(Service::Storage, 0).expect("storage");
    world.platform.stop(storage).await.expect("storage ends");
    world.platform.kafka.stop().await.expect("Kafka ends");
    world.platform.restart(storage).await.expect("storage starts");
    let older = world.copy(partition).await;
    world.say(&id, "alice", 3..6).await;
    world.put_back(partition, &older).await;
    assert_lost(&world, &id).await;
    world.platform.kafka.restart().await.expect("Kafka starts");

    let number = partition.to_string();
    let (output, text) = world.repair(&["--partition", &number]).await;
    assert!(!output.status.success(), "{text}");
    let (first, last) = (before.ver + 1, before.ver + 3);
    let lost = format!("3 versions are not on the event log and are lost: {first}-{last}");
    assert!(text.contains(&lost), "{text}");
    assert_eq!(world.history(&id).await.len(), 2);
    // The next change is above everything that was ever acknowledged.
    assert_eq!(world.append(&id, "alice", "m6").await.expect("an append"), (3, false));
    assert_eq!(world.published(partition).await.ver, last + 1);
    let (output, text) = world.repair(&["--partition", &number]).await;
    assert!(output.status.success(), "{text}");
}
