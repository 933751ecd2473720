//! The configuration of every service: a JSON file that the operator renders (ConfigMap `<cluster>-<service>-config`) and the service reads.
//!
//! Both sides use these types, so what is rendered is what is read. A service's file holds the sections that it uses: the rest is absent or
//! as by default, whatever the platform is set to. A new use of a section begins in the operator (`render/settings.rs`). Unknown fields are
//! named and have no effect. Secrets are never in it, only the paths of the files that hold them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use kith_platform::topic;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::services::{Service, Services};

/// The longest life of a client token, from its issue: the most that `spec.auth.tokenTtl` may be. Revocations of older tokens can be
/// forgotten.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(8_760 * 3_600);

/// Where a pod finds its certificate files.
pub const TLS_DIR: &str = "/etc/kith/tls";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Who this platform is.
    pub cluster: Cluster,
    /// Where those are found that others call.
    pub services: Services,
    /// The certificate of this process; absent only where processes run on one machine without Kubernetes (tests, benchmarks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The storage engine; read by `storage` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valkey: Option<Valkey>,
    /// The event log; read by those that do something there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<Kafka>,
    /// Client tokens; how long they live is read by `business` alone.
    pub auth: Auth,
    /// Promises about writes; read by `storage` alone.
    #[serde(default)]
    pub durability: Durability,
    /// Fixed bounds: the operator renders the defaults, and only tests set others.
    #[serde(default)]
    pub limits: Limits,
    /// This Gateway's own settings; only in a Gateway's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

/// Identity of a ChatCluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// `spec.clusterName`: prefix of the topics, issuer of the tokens.
    pub name: String,
    /// The ChatCluster's UID: written into the engine and the event log, checked at every start.
    pub uid: String,
    /// P, a power of two; immutable.
    pub partitions: u32,
    /// K, partitions of the event topic; immutable.
    pub event_partitions: u32,
}

/// Certificate files (PEM), re-read when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The ChatCluster's CA.
    pub ca: PathBuf,
    /// This process's certificate chain.
    pub cert: PathBuf,
    /// Its key, PKCS#8.
    pub key: PathBuf,
}

impl Tls {
    /// The files of a folder as a Secret of type `kubernetes.io/tls` is mounted.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { ca: dir.join("ca.crt"), cert: dir.join("tls.crt"), key: dir.join("tls.key") }
    }
}

/// The certificate of a listener for clients (PEM files), re-read when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertFiles {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How `storage` reaches Valkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Valkey {
    /// `host:port` of some nodes; the rest is learnt from the cluster itself.
    pub seeds: Vec<String>,
    /// ACL user; absent: the default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The file that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Whether nodes speak TLS under the ChatCluster's CA (they present the component `valkey`).
    pub tls: bool,
}

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kafka {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// Client TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<KafkaTls>,
    /// SASL login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
    /// Copies of each topic that Kith creates.
    pub replication_factor: u16,
    /// Copies that must have a record before it is acknowledged.
    pub min_insync: u16,
}

/// TLS towards Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTls {
    /// CA file; absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Client certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// SASL towards Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// The file that holds the user name.
    pub username_file: PathBuf,
    /// The file that holds the password.
    pub password_file: PathBuf,
}

/// Client tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// The folder with `jwks.json` and, for `business` alone, `<kid>.pem` private keys.
    pub keys_dir: PathBuf,
    /// Lifetime of a token whose caller names none, in seconds.
    #[serde(default = "default_token_ttl_s")]
    pub token_ttl_s: u32,
}

const fn default_token_ttl_s() -> u32 {
    86_400
}

impl Auth {
    /// Keys in this folder, all else as by default.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { keys_dir: dir.into(), token_ttl_s: default_token_ttl_s() }
    }
}

/// When a write counts as done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Durability {
    /// Replicas that hold a write before it is acknowledged (k of DESIGN 3), until a primary says itself how many it wants.
    pub ack_replicas: u32,
}

impl Default for Durability {
    fn default() -> Self {
        Self { ack_replicas: 1 }
    }
}

/// Bounds with their defaults, which hold everywhere but in tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Bytes of unpublished events a storage instance keeps over all its partitions before it refuses writes.
    pub outbox_bytes: u64,
    /// Messages kept hot per conversation; the next is refused.
    pub messages_per_conversation: u64,
    /// Members of a conversation.
    pub members_per_conversation: u32,
    /// Sends per user and second, with a burst of three times that; 0: no limit.
    pub sends_per_second: u32,
    /// How long a sender may recall or edit, in milliseconds.
    pub recall_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            outbox_bytes: 256 << 20,
            messages_per_conversation: 1_000_000,
            members_per_conversation: 100_000,
            sends_per_second: 50,
            recall_ms: 120_000,
        }
    }
}

const DEFAULT_IDLE_MS: u32 = 90_000;
const DEFAULT_SENT_BYTES: u32 = 4 << 20;
/// Bounds of what one user may send in a minute: the largest message, and some; and what a pod could take.
const SENT_BYTES: std::ops::RangeInclusive<u32> = 128 << 10..=1 << 30;

// By reference, as serde hands fields over.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_idle(idle_ms: &u32) -> bool {
    *idle_ms == DEFAULT_IDLE_MS
}

/// What a Gateway has that says nothing, as in its CRD.
const DEFAULT_BURST: u32 = 100;
const DEFAULT_IN_FLIGHT: u32 = 1_024;
const DEFAULT_QUEUED: u32 = 256;

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_burst(burst: &u32) -> bool {
    *burst == DEFAULT_BURST
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_in_flight(requests: &u32) -> bool {
    *requests == DEFAULT_IN_FLIGHT
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_queued(frames: &u32) -> bool {
    *frames == DEFAULT_QUEUED
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_sent_bytes(bytes: &u32) -> bool {
    *bytes == DEFAULT_SENT_BYTES
}

/// One Gateway's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// WebSocket heartbeat, milliseconds.
    pub heartbeat_ms: u32,
    /// Connections per gateway instance.
    pub max_connections: u32,
    /// Connections of one user at one gateway instance: of different devices.
    pub max_sessions_per_user: u32,
    /// Client frames per second and connection.
    pub frames_per_second: u32,
    /// How long a drain may take, milliseconds; the pod's grace period is longer.
    pub drain_ms: u32,
    /// Connections closed per second in a drain.
    pub drain_per_second: u32,
    /// HTTP requests per second and user; 0: no limit.
    pub requests_per_second: u32,
    /// Requests that a user may make at once before the average counts.
    #[serde(skip_serializing_if = "is_default_burst")]
    pub burst: u32,
    /// Requests that an instance works on at the same time.
    #[serde(skip_serializing_if = "is_default_in_flight")]
    pub requests_in_flight: u32,
    /// Frames that may wait for a slow reader.
    #[serde(skip_serializing_if = "is_default_queued")]
    pub frames_queued: u32,
    /// Bytes of messages that one user may send in a minute, and at once; left out where it is the default.
    #[serde(skip_serializing_if = "is_default_sent_bytes")]
    pub sent_bytes_per_minute: u32,
    /// How long an HTTP connection of a known user may wait for its next request, milliseconds. Left out where it is the default, as the
    /// origins are: services of the version before refuse fields that they do not know.
    #[serde(skip_serializing_if = "is_default_idle")]
    pub idle_ms: u32,
    /// Web pages that may call the API, besides those of its own host: origins, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_origins: Vec<String>,
    /// Web pages that may open a WebSocket, besides those of its own host: origins, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub websocket_origins: Vec<String>,
    /// The certificate with which the listeners end TLS themselves; absent: they speak plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<CertFiles>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            heartbeat_ms: 30_000,
            max_connections: 20_000,
            max_sessions_per_user: 10,
            frames_per_second: 50,
            drain_ms: 30_000,
            drain_per_second: 500,
            requests_per_second: 100,
            burst: DEFAULT_BURST,
            requests_in_flight: DEFAULT_IN_FLIGHT,
            frames_queued: DEFAULT_QUEUED,
            sent_bytes_per_minute: DEFAULT_SENT_BYTES,
            idle_ms: DEFAULT_IDLE_MS,
            api_origins: Vec::new(),
            websocket_origins: Vec::new(),
            tls: None,
        }
    }
}

/// What differs between two pods of one Deployment; from the environment, not the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The address that others dial: `POD_IP` and the listener's port.
    pub advertise: SocketAddr,
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what these types describe.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A value is out of its bounds.
    #[error("configuration: {field}: {problem}")]
    Value {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let path = path.into();
        let text = std::fs::read(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let (config, unknown) = Self::parse(&text).map_err(|source| ConfigError::Parse { path, source })?;
        if !unknown.is_empty() {
            tracing::warn!(fields = ?unknown, "the configuration has fields that this version does not know; they have no effect");
        }
        config.check()?;
        Ok(config)
    }

    /// The configuration, and the paths of fields that are not known here: those of a later version must not keep an older one from
    /// starting, which may come back at any time.
    fn parse(text: &[u8]) -> Result<(Self, Vec<String>), serde_json::Error> {
        let mut unknown = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let config = serde_ignored::deserialize(&mut deserializer, |path| unknown.push(path.to_string()))?;
        deserializer.end()?;
        Ok((config, unknown))
    }

    /// Checks the bounds that types cannot say.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, problem: &str| Err(ConfigError::Value { field, problem: problem.to_owned() });
        if self.cluster.name.is_empty() || self.cluster.name.len() > 40 {
            return bad("cluster.name", "1 to 40 bytes");
        }
        if self.cluster.uid.is_empty() {
            return bad("cluster.uid", "must not be empty");
        }
        if !self.cluster.partitions.is_power_of_two() || self.cluster.partitions > 16_384 {
            return bad("cluster.partitions", "a power of two up to 16,384");
        }
        if self.cluster.event_partitions == 0 || self.cluster.event_partitions > 4_096 {
            return bad("cluster.eventPartitions", "1 to 4,096");
        }
        if !(60..=MAX_TOKEN_LIFE.as_secs()).contains(&self.auth.token_ttl_s.into()) {
            return bad("auth.tokenTtlS", "60 to 31,536,000 seconds");
        }
        if self.gateway.as_ref().is_some_and(|g| !SENT_BYTES.contains(&g.sent_bytes_per_minute)) {
            return bad("gateway.sentBytesPerMinute", "128 KiB to 1 GiB");
        }
        if self.valkey.as_ref().is_some_and(|v| v.seeds.is_empty()) {
            return bad("valkey.seeds", "name at least one node");
        }
        if self.valkey.as_ref().is_some_and(|v| v.tls) && self.tls.is_none() {
            return bad("valkey.tls", "needs the process's own certificate (tls)");
        }
        Ok(())
    }

    /// The event topic.
    pub fn events_topic(&self) -> String {
        self.topic(topic::EVENTS)
    }

    /// The topic of logins and logouts, and of sessions that were taken up again.
    pub fn sessions_topic(&self) -> String {
        self.topic(topic::SESSIONS)
    }

    /// The topic of this name in the table of services.
    pub fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.cluster.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> serde_json::Value {
        serde_json::json!({
            "cluster": {"name": "demo", "uid": "u-1", "partitions": 1024, "eventPartitions": 32},
            "services": {"storage": {"endpoints": "static:127.0.0.1:1"}, "sessions": {"endpoints": "static:127.0.0.1:2"}},
            "auth": {"keysDir": "/etc/kith/keys"},
        })
    }

    #[test]
    fn a_minimal_file_gets_the_documented_defaults() {
        let config: Config = serde_json::from_value(sample()).unwrap();
        config.check().unwrap();
        assert_eq!(config.durability.ack_replicas, 1);
        assert_eq!(config.limits.messages_per_conversation, 1_000_000);
        assert_eq!(config.events_topic(), "demo.events");
    }

    #[test]
    fn a_field_of_a_later_version_is_named_and_keeps_nobody_from_starting() {
        let mut later = sample();
        later["cluster"]["colour"] = "red".into();
        later["services"]["colours"] = serde_json::json!({"endpoints": "static:127.0.0.1:3"});
        let (config, unknown) = Config::parse(later.to_string().as_bytes()).unwrap();
        assert_eq!(unknown, ["cluster.colour", "services.colours"]);
        assert_eq!(config, serde_json::from_value(sample()).unwrap());
        assert!(Config::parse(b"{} {}").is_err());
    }

    #[test]
    fn a_wrong_value_is_named() {
        let mut wrong = sample();
        wrong["cluster"]["partitions"] = 1000.into();
        let config: Config = serde_json::from_value(wrong).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("cluster.partitions"));
    }

    #[test]
    fn what_a_user_may_send_in_a_minute_has_bounds_and_is_left_out_where_it_is_the_default() {
        let text = serde_json::to_string(&Gateway::default()).unwrap();
        assert!(!text.contains("sentBytes"), "services of the version before do not know it: {text}");
        for (bytes, taken) in
            [(0, false), ((128 << 10) - 1, false), (128 << 10, true), (1 << 30, true), ((1 << 30) + 1, false)]
        {
            let mut config = sample();
            config["gateway"]["sentBytesPerMinute"] = bytes.into();
            let config: Config = serde_json::from_value(config).unwrap();
            assert_eq!(config.check().is_ok(), taken, "{bytes}");
            assert_eq!(config.gateway.unwrap().sent_bytes_per_minute, bytes);
        }
    }
}
