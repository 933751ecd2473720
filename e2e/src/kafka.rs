//! The event log as a business backend reads it: CloudEvents in binary mode, and a replay that rebuilds the conversations.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use kith_contract::{
    events::{
        self, Kind, MessageEdited, MessageRecalled, REPAIR_MARKER,
        envelope::{self, header},
    },
    message::MessageCreated,
};
use kith_kit::config::Tls;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::model::Message;

/// A question to the broker.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

/// Where the log is, and as whom it is read.
#[derive(Debug, Clone)]
pub struct Reader {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// The certificate of a business line; none where the brokers ask for none.
    pub certificate: Option<Tls>,
}

impl Reader {
    /// Brokers without TLS.
    pub fn plain(bootstrap: &str) -> Self {
        Self { bootstrap: bootstrap.to_owned(), certificate: None }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        // Required by the client; nothing is ever committed under it. Who may use which groups goes by their names.
        let who = if self.certificate.is_some() { "line_default" } else { "anonymous" };
        config.set("group.id", format!("{who}_e2e-replay"));
        if let Some(tls) = &self.certificate {
            config
                .set("security.protocol", "ssl")
                .set("ssl.ca.location", tls.ca.display().to_string())
                .set("ssl.certificate.location", tls.cert.display().to_string())
                .set("ssl.key.location", tls.key.display().to_string());
        }
        config
    }
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Kafka.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The end was not reached in time.
    #[error("the event log was not read to its end within {0:?}")]
    TimedOut(Duration),
    /// The reading thread ended.
    #[error("reading the event log: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A record outside the contract.
    #[error("partition {partition} offset {offset}: {problem}")]
    Contract {
        /// Kafka partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// What is wrong.
        problem: String,
    },
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `ce_id`
    pub id: String,
    /// `ce_type`
    pub kind: String,
    /// `ce_source`
    pub source: String,
    /// `ce_time`
    pub time: String,
    /// The record's key: conversation or user.
    pub key: String,
    /// Kith's own partition.
    pub partition: u32,
    /// Its version: rises by one with every event of the partition.
    pub ver: u64,
    /// The payload.
    pub data: Value,
}

/// None: a marker.
fn event(record: &BorrowedMessage<'_>) -> Result<Option<Event>, String> {
    let mut headers = HashMap::new();
    if let Some(all) = record.headers() {
        for header in all.iter() {
            let value = String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned();
            headers.insert(header.key.to_owned(), value);
        }
    }
    if headers.get(header::TYPE).is_some_and(|kind| kind == REPAIR_MARKER) {
        return Ok(None);
    }
    let mut take = |name: &str| headers.remove(name).ok_or_else(|| format!("no header {name}"));
    let (version, content_type) = (take(header::SPEC_VERSION)?, take(header::CONTENT_TYPE)?);
    if version != envelope::SPEC_VERSION || !content_type.starts_with(envelope::CONTENT_TYPE) {
        return Err(format!("specversion {version}, content-type {content_type}"));
    }
    let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
    let partition_key = take(header::PARTITION_KEY)?;
    if key.is_empty() || partition_key != key {
        return Err(format!("key {key:?}, ce_partitionkey {partition_key:?}"));
    }
    let number = |name: &str, text: String| text.parse::<u64>().map_err(|e| format!("{name} {text:?}: {e}"));
    Ok(Some(Event {
        id: take(header::ID)?,
        kind: take(header::TYPE)?,
        source: take(header::SOURCE)?,
        time: take(header::TIME)?,
        partition: number(header::PARTITION, take(header::PARTITION)?)? as u32,
        ver: number(header::VERSION, take(header::VERSION)?)?,
        key,
        data: serde_json::from_slice(record.payload().unwrap_or_default()).map_err(|e| format!("payload: {e}"))?,
    }))
}

/// What the log says, rebuilt from its beginning.
#[derive(Debug, Default)]
pub struct Replay {
    /// Messages by conversation and seq, edits and recalls applied.
    pub conversations: HashMap<String, BTreeMap<u64, Message>>,
    /// Records read.
    pub records: u64,
    /// Records of a version that was known already: allowed, dropped.
    pub repeated: u64,
    /// Versions that were skipped, two messages at one place, and whatever else may not be.
    pub faults: Vec<String>,
    /// Events by type.
    pub kinds: BTreeMap<String, u64>,
    versions: HashMap<u32, u64>,
}

impl Replay {
    /// Takes the next event of its partition.
    pub fn apply(&mut self, event: &Event) {
        self.records += 1;
        let known = self.versions.entry(event.partition).or_insert(0);
        if event.ver <= *known {
            self.repeated += 1;
            return;
        }
        if event.ver != *known + 1 {
            self.faults.push(format!("partition {}: version {} follows {known}", event.partition, event.ver));
        }
        *known = event.ver;
        *self.kinds.entry(event.kind.clone()).or_default() += 1;
        match Kind::of_type(&event.kind) {
            Some(Kind::MessageCreated) => self.created(event),
            Some(Kind::MessageRecalled) => self.change(
                event,
                |recalled: &MessageRecalled<'_>| recalled.seq,
                |m, _| {
                    m.recalled = true;
                    m.content = Value::Null;
                },
            ),
            Some(Kind::MessageEdited) => {
                self.change(
                    event,
                    |edited: &MessageEdited<'_, Value>| edited.seq,
                    |m, edited| {
                        m.content = edited.content;
                        m.edited_at = Some(edited.edited_at);
                    },
                );
            }
            Some(_) => {}
            // A later version may tell more.
            None if events::name_of(&event.kind).is_some() => {}
            None => self.faults.push(format!("an event type outside the contract: {}", event.kind)),
        }
    }

    fn created(&mut self, event: &Event) {
        match serde_json::from_value::<MessageCreated<'static, Value>>(event.data.clone()) {
            Err(error) => self.faults.push(format!("{}: {} is no message: {error}", event.key, event.kind)),
            Ok(created) => {
                let message = shown(created);
                if message.conversation_id != event.key {
                    self.faults.push(format!("{}: key of a message of {}", event.key, message.conversation_id));
                }
                let place = format!("{} seq {}", message.conversation_id, message.seq);
                let conversation = self.conversations.entry(message.conversation_id.to_string()).or_default();
                let expected = conversation.last_key_value().map_or(1, |(seq, _)| seq + 1);
                if message.seq != expected {
                    self.faults.push(format!("{place}: the log's next seq would be {expected}"));
                }
                if let Some(before) = conversation.insert(message.seq, message) {
                    self.faults.push(format!("{place}: created twice, first as {}", before.message_id));
                }
            }
        }
    }

    fn change<T: DeserializeOwned>(
        &mut self,
        event: &Event,
        seq: impl FnOnce(&T) -> u64,
        change: impl FnOnce(&mut Message, T),
    ) {
        let data: T = match serde_json::from_value(event.data.clone()) {
            Ok(data) => data,
            Err(error) => return self.faults.push(format!("{}: {}: {error}", event.key, event.kind)),
        };
        match self.conversations.get_mut(&event.key).and_then(|messages| messages.get_mut(&seq(&data))) {
            Some(message) => change(message, data),
            None => self.faults.push(format!("{}: {} of a message that was never created", event.key, event.kind)),
        }
    }

    /// What differs between the log and a history that was read from the platform; empty when nothing does.
    pub fn differences(&self, conversation: &str, history: &[Message]) -> Vec<String> {
        let none = BTreeMap::new();
        let logged = self.conversations.get(conversation).unwrap_or(&none);
        let mut found = Vec::new();
        for message in history {
            match logged.get(&message.seq) {
                None => found.push(format!("{conversation} seq {}: not in the log", message.seq)),
                Some(other) if !same(other, message) => {
                    found.push(format!(
                        "{conversation} seq {}: the log says {other:?}, history {message:?}",
                        message.seq
                    ));
                }
                Some(_) => {}
            }
        }
        if logged.len() > history.len() {
            found.push(format!("{conversation}: {} messages in the log, {} in history", logged.len(), history.len()));
        }
        found
    }
}

/// A message as a client would be shown it now.
fn shown(created: MessageCreated<'static, Value>) -> Message {
    Message {
        conversation_id: created.conversation_id,
        seq: created.seq,
        message_id: created.message_id,
        client_msg_id: created.client_msg_id,
        sender_id: created.sender_id,
        sent_at: created.sent_at,
        kind: created.kind,
        content: created.content,
        mentions: created.mentions,
        ext: created.ext,
        recalled: created.recalled,
        edited_at: created.edited_at,
        reactions: created.reactions,
        reaction_counts: BTreeMap::new(),
        my_reactions: Vec::new(),
    }
}

fn same(a: &Message, b: &Message) -> bool {
    let key = |m: &Message| {
        (m.message_id.clone(), m.client_msg_id.clone(), m.sender_id.clone(), m.sent_at, m.kind, m.recalled)
    };
    let content = a.content == b.content || (a.recalled && b.recalled);
    key(a) == key(b) && content && a.mentions == b.mentions && a.ext == b.ext
}

/// Reads the topic from its beginning to where it ends now, and rebuilds.
pub async fn replay(reader: &Reader, topic: &str, deadline: Duration) -> Result<Replay, LogError> {
    let mut replay = Replay::default();
    let events = read(reader, topic, deadline).await?;
    for event in &events {
        replay.apply(event);
    }
    Ok(replay)
}

/// All events of a topic, each Kafka partition in its order.
pub async fn read(reader: &Reader, topic: &str, deadline: Duration) -> Result<Vec<Event>, LogError> {
    let (reader, topic) = (reader.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_blocking(&reader, &topic, deadline)).await?
}

fn read_blocking(reader: &Reader, topic: &str, deadline: Duration) -> Result<Vec<Event>, LogError> {
    let end = Instant::now() + deadline;
    let consumer: BaseConsumer =
        reader.config().set("enable.auto.commit", "false").set("enable.partition.eof", "false").create()?;
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE)?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .flat_map(|t| t.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect();
    let mut list = TopicPartitionList::new();
    let mut left = HashMap::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, DEADLINE)?;
        if high > low {
            list.add_partition_offset(topic, partition, Offset::Offset(low))?;
            left.insert(partition, high);
        }
    }
    consumer.assign(&list)?;
    let mut events = Vec::new();
    while !left.is_empty() {
        if Instant::now() > end {
            return Err(LogError::TimedOut(deadline));
        }
        let Some(record) = consumer.poll(POLL) else { continue };
        let record = record?;
        let (partition, offset) = (record.partition(), record.offset());
        let Some(high) = left.get(&partition).copied() else { continue };
        if offset < high {
            let event = event(&record).map_err(|problem| LogError::Contract { partition, offset, problem })?;
            events.extend(event);
        }
        if offset + 1 >= high {
            left.remove(&partition);
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use kith_contract::kinds::MessageType;

    use super::*;

    fn created(ver: u64, seq: u64) -> Event {
        Event {
            id: ver.to_string(),
            kind: Kind::MessageCreated.ce_type().to_owned(),
            source: "kith".to_owned(),
            time: String::new(),
            key: "d:a:b".to_owned(),
            partition: 7,
            ver,
            data: serde_json::json!({"conversation_id": "d:a:b", "seq": seq.to_string(), "message_id": format!("m{seq}"),
                "sender_id": "a", "sent_at": "1", "type": MessageType::Text, "content": {"text": "x"}}),
        }
    }

    #[test]
    fn a_repeat_is_dropped_and_a_gap_is_a_fault() {
        let mut replay = Replay::default();
        for (ver, seq) in [(1, 1), (2, 2), (2, 2), (4, 4)] {
            replay.apply(&created(ver, seq));
        }
        assert_eq!((replay.repeated, replay.conversations["d:a:b"].len()), (1, 3));
        assert_eq!(replay.faults.len(), 2, "{:?}", replay.faults);
        let mut history: Vec<Message> = replay.conversations["d:a:b"].values().cloned().collect();
        assert!(replay.differences("d:a:b", &history).is_empty());
        history[0].content = serde_json::json!({"text": "y"});
        assert_eq!(replay.differences("d:a:b", &history).len(), 1);
    }
}
