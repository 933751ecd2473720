//! Topics: made once with a fixed number of partitions, and checked.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::KafkaError,
    metadata::MetadataTopic,
    types::RDKafkaErrorCode,
};

use thiserror::Error;

use tokio_util::sync::CancellationToken;

use super::{KafkaConfigError, client_config, denied};
use kith_kit::{backoff::Backoff, config::Kafka};

const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts at a topic.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Why a topic could not be made or used.
#[derive(Debug, Error)]
pub enum TopicError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] KafkaConfigError),
    /// The client library or the broker.
    #[error("Kafka: {0}")]
    Client(#[from] rdkafka::error::KafkaError),
    /// It cannot be made or is not what it must be.
    #[error("Kafka topic {topic}: {problem}")]
    Topic {
        /// Its name.
        topic: String,
        /// What is wrong.
        problem: String,
    },
}

/// What a topic must be.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its number of partitions, for good.
    pub partitions: u32,
    /// How long records are kept; none: the broker's default.
    pub retention: Option<Duration>,
    /// Settings besides these, by the broker's names.
    pub settings: Vec<(&'static str, String)>,
}

/// Makes the topic if it is not there, and refuses one with another number of partitions. Idempotent. A topic that is there is used
/// without the right to make topics.
pub async fn ensure_topic(kafka: &Kafka, topic: &Topic) -> Result<(), TopicError> {
    let admin: Admin = Arc::new(client(kafka)?);
    let mut found = partitions_of(&admin, topic).await?;
    if found == 0 {
        make(&admin, kafka, topic).await?;
        found = partitions_of(&admin, topic).await?;
    }
    if found == topic.partitions as usize {
        Ok(())
    } else {
        let problem = format!("has {found} partitions, must have {}", topic.partitions);
        Err(TopicError::Topic { topic: topic.name.clone(), problem })
    }
}

/// The same, as often as it takes until it succeeds; false when `end` came first.
pub async fn ensured(kafka: &Kafka, topic: &Topic, end: &CancellationToken) -> bool {
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    loop {
        match end.run_until_cancelled(ensure_topic(kafka, topic)).await {
            None => return false,
            Some(Ok(())) => {
                tracing::info!(topic = %topic.name, "the topic is there");
                return true;
            }
            Some(Err(error)) => tracing::warn!(topic = %topic.name, %error, "the topic is not there yet"),
        }
        if end.run_until_cancelled(backoff.pause()).await.is_none() {
            return false;
        }
    }
}

type Admin = Arc<AdminClient<DefaultClientContext>>;

/// A client that asks the brokers and neither takes nor sends records.
pub(super) fn client(kafka: &Kafka) -> Result<AdminClient<DefaultClientContext>, TopicError> {
    Ok(client_config(kafka)?.create()?)
}

async fn make(admin: &Admin, kafka: &Kafka, topic: &Topic) -> Result<(), TopicError> {
    let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
    let min_insync = kafka.min_insync.to_string();
    let retention = topic.retention.map(|r| r.as_millis().to_string());
    let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    let mut new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(i32::from(kafka.replication_factor)))
        .set("min.insync.replicas", &min_insync);
    if let Some(retention) = &retention {
        new = new.set("retention.ms", retention);
    }
    for (name, value) in &topic.settings {
        new = new.set(name, value);
    }
    for outcome in admin.create_topics([&new], &options).await? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                denied(&name, Some(code));
                return Err(TopicError::Topic { topic: name, problem: code.to_string() });
            }
        }
    }
    Ok(())
}

/// How many partitions the topic has now; 0: it is not there.
async fn partitions_of(admin: &Admin, topic: &Topic) -> Result<usize, TopicError> {
    let (admin, name) = (admin.clone(), topic.name.clone());
    // The library's metadata call blocks.
    let found = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(Some(&name), DEADLINE)?;
        let found = metadata.topics().iter().find(|t| t.name() == name);
        // To whom it is hidden, it looks like none.
        if let Some(code) = found.and_then(MetadataTopic::error).map(RDKafkaErrorCode::from)
            && denied(&name, Some(code))
        {
            return Err(KafkaError::MetadataFetch(code));
        }
        Ok(found.map_or(0, |t| t.partitions().len()))
    });
    let found = found.await.map_err(|e| TopicError::Topic { topic: topic.name.clone(), problem: e.to_string() })?;
    Ok(found?)
}
