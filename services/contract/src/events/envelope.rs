//! The attributes around an event: headers of its Kafka record (CloudEvents 1.0, binary mode).

/// Names of the headers.
pub mod header {
    /// The version of CloudEvents.
    pub const SPEC_VERSION: &str = "ce_specversion";
    /// Unique per source.
    pub const ID: &str = "ce_id";
    /// What it tells: see [`Kind::ce_type`](crate::events::Kind::ce_type).
    pub const TYPE: &str = "ce_type";
    /// Who tells it: `kith://<cluster>/<service>`.
    pub const SOURCE: &str = "ce_source";
    /// When it happened, RFC 3339 in UTC.
    pub const TIME: &str = "ce_time";
    /// The record's key.
    pub const PARTITION_KEY: &str = "ce_partitionkey";
    /// The UID of the ChatCluster.
    pub const CLUSTER: &str = "ce_kithcluster";
    /// Kith's own partition of the key.
    pub const PARTITION: &str = "ce_kithpartition";
    /// The place in that partition: rises by one with every event on `<cluster>.events`.
    pub const VERSION: &str = "ce_kithver";
    /// On records that were set aside: why.
    pub const ERROR: &str = "ce_kitherror";
    /// What the data are.
    pub const CONTENT_TYPE: &str = "content-type";
}

/// The value of [`header::SPEC_VERSION`].
pub const SPEC_VERSION: &str = "1.0";
/// The value of [`header::CONTENT_TYPE`].
pub const CONTENT_TYPE: &str = "application/json";

/// The attributes of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Unique per source.
    pub id: &'a str,
    /// `ce_type`.
    pub ce_type: &'a str,
    /// See [`source`].
    pub source: &'a str,
    /// RFC 3339 in UTC.
    pub time: &'a str,
    /// The record's key.
    pub key: &'a str,
    /// The UID of the ChatCluster.
    pub cluster: &'a str,
}

impl<'a> Envelope<'a> {
    /// The headers of a record that has a place: Kith's partition, and its version there.
    pub fn placed(&self, partition: &'a str, version: &'a str) -> [(&'static str, &'a str); 10] {
        let [spec, id, kind, source, time, key, cluster, content] = self.unplaced();
        let place = [(header::PARTITION, partition), (header::VERSION, version)];
        [spec, id, kind, source, time, key, cluster, place[0], place[1], content]
    }

    /// The headers of a record that has none.
    pub fn unplaced(&self) -> [(&'static str, &'a str); 8] {
        [
            (header::SPEC_VERSION, SPEC_VERSION),
            (header::ID, self.id),
            (header::TYPE, self.ce_type),
            (header::SOURCE, self.source),
            (header::TIME, self.time),
            (header::PARTITION_KEY, self.key),
            (header::CLUSTER, self.cluster),
            (header::CONTENT_TYPE, CONTENT_TYPE),
        ]
    }
}

/// `ce_source` of the records that a service of a ChatCluster writes.
pub fn source(cluster: &str, service: &str) -> String {
    format!("kith://{cluster}/{service}")
}
