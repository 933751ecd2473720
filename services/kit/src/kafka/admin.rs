//! Topics: made once with a fixed number of partitions, and checked.

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    types::RDKafkaErrorCode,
};

use thiserror::Error;

use super::{KafkaConfigError, client_config};
use crate::config::Kafka;

const DEADLINE: Duration = Duration::from_secs(10);

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
}

/// Makes the topic if it is not there, and refuses one with another number of partitions. Idempotent.
pub async fn ensure_topic(kafka: &Kafka, topic: &Topic) -> Result<(), TopicError> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka)?.create()?;
    let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
    let min_insync = kafka.min_insync.to_string();
    let retention = topic.retention.map(|r| r.as_millis().to_string());
    let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    let mut new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(i32::from(kafka.replication_factor)))
        .set("min.insync.replicas", &min_insync);
    if let Some(retention) = &retention {
        new = new.set("retention.ms", retention);
    }
    for outcome in admin.create_topics([&new], &options).await? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(TopicError::Topic { topic: name, problem: code.to_string() }),
        }
    }
    // The library's metadata call blocks.
    let name = topic.name.clone();
    let found = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(Some(&name), DEADLINE)?;
        Ok::<_, rdkafka::error::KafkaError>(
            metadata.topics().iter().find(|t| t.name() == name).map_or(0, |t| t.partitions().len()),
        )
    })
    .await
    .map_err(|e| TopicError::Topic { topic: topic.name.clone(), problem: e.to_string() })??;
    if found == topic.partitions as usize {
        Ok(())
    } else {
        let problem = format!("has {found} partitions, must have {}", topic.partitions);
        Err(TopicError::Topic { topic: topic.name.clone(), problem })
    }
}
