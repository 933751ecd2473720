//! The event log on Kafka: connections, the producer's and the consumer's side, topics.

pub mod admin;
mod assignment;
mod callbacks;
pub mod consumer;
mod doubts;
pub mod highwater;
mod marks;
pub mod origin;
pub mod producer;
pub mod scan;
mod secrets;
pub mod sequence;
mod stalls;
pub mod supervised;

use rdkafka::{ClientConfig, types::RDKafkaErrorCode};
use thiserror::Error;

use kith_kit::config::Kafka;

/// The group that clients name which read a stretch of a topic once. The library asks for its coordinator; nothing is committed in it.
pub const SCAN_GROUP: &str = "kith-scan";
/// The same for clients that read checkpoints of a group's high-water.
pub const MARKS_GROUP: &str = "kith-marks";
/// What a consumer group's name is followed by in the name of the topic with its checkpoints.
pub const MARKS_SUFFIX: &str = ".marks";

/// Whether the brokers refused because no right allows it; and if so, counts it. Rights may be on their way: whoever asked tries again.
pub(crate) fn denied(topic: &str, code: Option<RDKafkaErrorCode>) -> bool {
    let denied = matches!(
        code,
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    );
    if denied {
        metrics::counter!("kith_kafka_denied_total", "topic" => topic.to_owned()).increment(1);
    }
    denied
}

/// Why a Kafka client could not be set up.
#[derive(Debug, Error)]
pub enum KafkaConfigError {
    /// A file with a login is missing or not text.
    #[error("kafka login {path}: {source}")]
    Login {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What every client of the configured brokers shares: addresses, TLS, login, quick reconnects.
pub fn client_config(kafka: &Kafka) -> Result<ClientConfig, KafkaConfigError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.bootstrap)
        .set("client.id", "kith")
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("allow.auto.create.topics", "false");
    if let Some(tls) = &kafka.tls {
        for (name, path) in
            [("ssl.ca.location", &tls.ca), ("ssl.certificate.location", &tls.cert), ("ssl.key.location", &tls.key)]
        {
            if let Some(path) = path {
                config.set(name, path.display().to_string());
            }
        }
    }
    if let Some(sasl) = &kafka.sasl {
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|source| KafkaConfigError::Login { path: path.to_owned(), source })
        };
        config
            .set("sasl.mechanism", &sasl.mechanism)
            .set("sasl.username", read(&sasl.username_file)?)
            .set("sasl.password", read(&sasl.password_file)?);
    }
    let protocol = match (&kafka.tls, &kafka.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    Ok(config)
}
