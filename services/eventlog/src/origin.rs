//! Where a record comes from: whoever may write to a topic can put anything on it, so nothing of a record is believed before its headers,
//! its ChatCluster and its place are checked.
//!
//! What is checked here costs nothing. Two things more are asked elsewhere: that the data are what the type promises (the handler reads
//! them before the record takes its place in the order), and that a version which is not the next one has been reached at all (storage
//! is asked). A record that passes all of it was written by someone who knows the log and may write to it: rights at the brokers are for
//! that.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::sequence::Place;
use kith_contract::{
    events::{
        CORRUPT, REPAIR_MARKER,
        envelope::{self, header},
    },
    ids,
};
use kith_kit::config::Cluster;

/// Of a record that was set aside: bytes of its key and data, headers, and bytes of each.
const KEPT_BYTES: usize = 64 << 10;
const KEPT_HEADERS: usize = 32;
const KEPT_HEADER_BYTES: usize = 1 << 10;

/// Whose records are taken, and what their places must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    cluster: Cluster,
    /// Whether every record has a version (`<cluster>.events`) or none counts (`<cluster>.sessions`).
    counted: bool,
}

/// Why a record is not this ChatCluster's, or can never be worked on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Foreign {
    /// The key is no text, or longer than any id.
    #[error("the key is not an id")]
    Key,
    /// A header that every record has.
    #[error("header {0} is missing or not what it must be")]
    Header(&'static str),
    /// It says that it comes from elsewhere, or not where it comes from.
    #[error("it is not of this ChatCluster: {0}")]
    Cluster(String),
    /// It stands where its key's records do not.
    #[error("its key belongs to another partition")]
    Partition,
    /// Storage has not come so far.
    #[error("version {ver} of kith partition {stream}, of which storage has committed {newest}")]
    Version {
        /// Kith partition.
        stream: u32,
        /// The record's.
        ver: u64,
        /// Storage's.
        newest: u64,
    },
    /// Its version was told before with other contents: it is foreign, that one was, or the count went back.
    #[error("version {ver} of kith partition {stream} was told before with other contents")]
    Retold {
        /// Kith partition.
        stream: u32,
        /// The record's.
        ver: u64,
    },
    /// Not the JSON that its type promises.
    #[error("data: {0}")]
    Data(String),
}

impl Foreign {
    /// One word, for metrics and headers.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key | Self::Header(_) => "headers",
            Self::Cluster(_) => "cluster",
            Self::Partition => "partition",
            Self::Version { .. } => "version",
            Self::Retold { .. } => "retold",
            Self::Data(_) => "data",
        }
    }
}

/// A record's parts, all of them checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// `ce_type`
    pub kind: String,
    /// The key.
    pub key: String,
    /// `data`
    pub data: Bytes,
    /// Where it stands in the order; none: it has no place.
    pub place: Option<Place>,
    /// Of its key, type and data: equal for a record that was sent twice.
    pub fingerprint: u64,
}

/// A record that was set aside, as much of it as is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Where it was found.
    pub topic: String,
    /// Kafka partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key, cut.
    pub key: Bytes,
    /// Its headers, cut.
    pub headers: Vec<(String, Bytes)>,
    /// Its data, cut.
    pub data: Bytes,
    /// How many bytes its data were.
    pub data_bytes: usize,
}

impl Stray {
    /// Of a record.
    pub fn of(message: &BorrowedMessage<'_>) -> Self {
        let cut = |bytes: &[u8], most: usize| Bytes::copy_from_slice(&bytes[..bytes.len().min(most)]);
        let data = message.payload().unwrap_or_default();
        let headers = message.headers().map_or_else(Vec::new, |all| {
            let kept = all.iter().take(KEPT_HEADERS);
            let name = |key: &str| key.chars().take(KEPT_HEADER_BYTES / 4).collect();
            kept.map(|h| (name(h.key), cut(h.value.unwrap_or_default(), KEPT_HEADER_BYTES))).collect()
        });
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: cut(message.key().unwrap_or_default(), KEPT_HEADER_BYTES),
            headers,
            data: cut(data, KEPT_BYTES),
            data_bytes: data.len(),
        }
    }
}

/// The headers of a record that say something, as far as they are there.
#[derive(Debug, Default)]
struct Said<'a> {
    kind: Option<&'a str>,
    id: Option<&'a str>,
    source: Option<&'a str>,
    version: Option<&'a str>,
    key: Option<&'a str>,
    cluster: Option<&'a str>,
    stream: Option<u64>,
    ver: Option<u64>,
}

impl<'a> Said<'a> {
    fn read(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Self, Foreign> {
        let mut said = Self::default();
        for (name, value) in headers {
            match name {
                header::TYPE => said.kind = Some(text(value, header::TYPE)?),
                header::ID => said.id = Some(text(value, header::ID)?),
                header::SOURCE => said.source = Some(text(value, header::SOURCE)?),
                header::SPEC_VERSION => said.version = Some(text(value, header::SPEC_VERSION)?),
                header::PARTITION_KEY => said.key = Some(text(value, header::PARTITION_KEY)?),
                header::CLUSTER => said.cluster = Some(text(value, header::CLUSTER)?),
                header::PARTITION => said.stream = Some(number(value, header::PARTITION)?),
                header::VERSION => said.ver = Some(number(value, header::VERSION)?),
                _ => {}
            }
        }
        Ok(said)
    }
}

fn text<'a>(value: Option<&'a [u8]>, name: &'static str) -> Result<&'a str, Foreign> {
    value.and_then(|v| std::str::from_utf8(v).ok()).ok_or(Foreign::Header(name))
}

/// Digits alone, as the producers write them: no sign, no zero in front.
fn number(value: Option<&[u8]>, name: &'static str) -> Result<u64, Foreign> {
    let text = text(value, name)?;
    let number: u64 = text.parse().map_err(|_| Foreign::Header(name))?;
    if number.to_string() == text { Ok(number) } else { Err(Foreign::Header(name)) }
}

impl Origin {
    /// Records of `<cluster>.events`: each has a version.
    pub fn counted(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), counted: true }
    }

    /// Records of `<cluster>.sessions`: they are taken as they come.
    pub fn uncounted(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), counted: false }
    }

    /// `ce_source` of the records that a service writes.
    pub fn source(cluster: &Cluster, service: &str) -> String {
        envelope::source(&cluster.name, service)
    }

    /// Checks a record.
    pub(super) fn verify(&self, message: &BorrowedMessage<'_>) -> Result<Verified, Foreign> {
        let headers = message.headers().into_iter().flat_map(|all| all.iter().map(|h| (h.key, h.value)));
        let said = Said::read(headers)?;
        let key = std::str::from_utf8(message.key().unwrap_or_default()).map_err(|_| Foreign::Key)?;
        if key.len() > ids::MAX_CONVERSATION_ID_BYTES {
            return Err(Foreign::Key);
        }
        self.check(&said, key, message.partition())?;
        let kind = said.kind.unwrap_or_default();
        let data = message.payload().unwrap_or_default();
        let seed = xxh3_64_with_seed(key.as_bytes(), xxh3_64_with_seed(kind.as_bytes(), 0));
        let fingerprint = xxh3_64_with_seed(data, seed);
        let place = match (said.stream, said.ver) {
            (Some(stream), Some(ver)) if self.counted => {
                let stream = u32::try_from(stream).map_err(|_| Foreign::Partition)?;
                Some(Place { stream, ver, fingerprint })
            }
            _ => None,
        };
        let (kind, key) = (kind.to_owned(), key.to_owned());
        Ok(Verified { kind, key, data: Bytes::copy_from_slice(data), place, fingerprint })
    }

    fn check(&self, said: &Said<'_>, key: &str, partition: i32) -> Result<(), Foreign> {
        let kind = said.kind.filter(|k| !k.is_empty()).ok_or(Foreign::Header(header::TYPE))?;
        if said.version != Some(envelope::SPEC_VERSION) {
            return Err(Foreign::Header(header::SPEC_VERSION));
        }
        let id = said.id.filter(|id| !id.is_empty()).ok_or(Foreign::Header(header::ID))?;
        // An empty value may come back as none.
        if said.key.unwrap_or_default() != key {
            return Err(Foreign::Header(header::PARTITION_KEY));
        }
        self.check_cluster(said)?;
        if self.counted && kind == REPAIR_MARKER {
            let stream = key.strip_prefix("repair:").and_then(|n| n.parse().ok()).ok_or(Foreign::Key)?;
            return self.check_place(stream, partition);
        }
        let Some(stream) = said.stream else {
            return if self.counted { Err(Foreign::Header(header::PARTITION)) } else { Ok(()) };
        };
        let stream = u32::try_from(stream).map_err(|_| Foreign::Partition)?;
        self.check_place(stream, partition)?;
        let homeless = kind == CORRUPT && key.is_empty();
        if !homeless && ids::partition_of(key, self.cluster.partitions) != stream {
            return Err(Foreign::Partition);
        }
        if self.counted {
            let ver = said.ver.filter(|ver| *ver != 0).ok_or(Foreign::Header(header::VERSION))?;
            if id != format!("{stream}-{ver}") {
                return Err(Foreign::Header(header::ID));
            }
        }
        Ok(())
    }

    /// A kith partition's records stand in one Kafka partition.
    fn check_place(&self, stream: u32, partition: i32) -> Result<(), Foreign> {
        let home = stream.checked_rem(self.cluster.event_partitions);
        let right = stream < self.cluster.partitions && home.is_some() && home == u32::try_from(partition).ok();
        if right { Ok(()) } else { Err(Foreign::Partition) }
    }

    fn check_cluster(&self, said: &Said<'_>) -> Result<(), Foreign> {
        let source = said.source.ok_or(Foreign::Header(header::SOURCE))?;
        let name = &self.cluster.name;
        let ours = source.strip_prefix("kith://").and_then(|rest| rest.strip_prefix(name.as_str()));
        let (ours, older) = match ours {
            // As written before records carried the UID; they are on the log for as long as it keeps them.
            Some("") => (true, true),
            Some(rest) => (rest.starts_with('/'), false),
            None => (*source == format!("/kith/{name}/sessions"), true),
        };
        match said.cluster {
            Some(uid) if ours && uid == self.cluster.uid => Ok(()),
            None if ours && older => Ok(()),
            uid => Err(Foreign::Cluster(
                format!("{source} {}", uid.unwrap_or("without a UID")).chars().take(200).collect(),
            )),
        }
    }
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
