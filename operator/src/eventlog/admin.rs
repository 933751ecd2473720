//! The blocking part: asks the brokers, makes topics, reads and writes the marker.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kith_crds::conditions::reason;
use kith_platform::topic::{EVENTS, SESSIONS};
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::{Target, Trouble};

/// One question to the brokers.
pub(super) const ASK: Duration = Duration::from_secs(5);
/// Reading the whole marker topic, which holds a record or two.
const READ_MARKER: Duration = Duration::from_secs(10);
/// Key of the record that carries the ChatCluster's UID.
const MARKER_KEY: &str = "cluster-uid";
/// The sessions' events matter for a day at most.
const SESSIONS_RETENTION_MS: u64 = 86_400_000;

/// Remembers what librdkafka says about connections: its calls only answer "transport failure".
#[derive(Clone, Default)]
pub(super) struct Words(Arc<Mutex<Vec<String>>>);

impl ClientContext for Words {
    fn error(&self, error: KafkaError, reason: &str) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < 16 {
            words.push(format!("{error}: {reason}"));
        }
    }
}

impl ConsumerContext for Words {}

impl Words {
    /// The sentence that says most about why there is no connection.
    pub(super) fn best(&self) -> Option<String> {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let telling =
            |w: &&String| ["SSL", "ssl", "SASL", "Authentication", "certificate"].iter().any(|t| w.contains(t));
        words
            .iter()
            .find(telling)
            .or_else(|| words.iter().find(|w| !w.contains("brokers are down")))
            .or(words.first())
            .cloned()
    }
}

/// How the operator connects to the brokers.
pub(crate) fn client_config(target: &Target) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &target.bootstrap)
        .set("client.id", "kith-operator")
        .set("allow.auto.create.topics", "false")
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("socket.timeout.ms", "10000")
        .set("log.connection.close", "false");
    let security = &target.security;
    if let Some(ca) = &security.ca_pem {
        config.set("ssl.ca.pem", ca);
    }
    if let Some((cert, key)) = &security.client {
        config.set("ssl.certificate.pem", cert).set("ssl.key.pem", key);
    }
    if let Some((mechanism, user, password)) = &security.sasl {
        config.set("sasl.mechanism", mechanism).set("sasl.username", user).set("sasl.password", password);
    }
    let protocol = match (security.tls, security.sasl.is_some()) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    config
}

fn trouble(target: &Target, words: &Words, what: &str, error: &KafkaError) -> Trouble {
    let detail = words.best().unwrap_or_else(|| error.to_string());
    let refused = ["Authentication failed", "SASL authentication", "handshake failed", "certificate", "SSL"]
        .iter()
        .any(|t| detail.contains(t));
    let denied = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
        )
    );
    if refused || denied {
        return Trouble {
            reason: reason::EVENT_LOG_UNAUTHORIZED,
            message: format!(
                "the brokers at {} refuse the operator ({what}: {detail}): check TLS, user name and password, and that it may create and describe topics",
                target.bootstrap
            ),
        };
    }
    Trouble {
        reason: reason::EVENT_LOG_UNREACHABLE,
        message: format!(
            "no broker answers at {} ({what}: {detail}): check that they run, that the addresses are right and that network policies let the operator in",
            target.bootstrap
        ),
    }
}

/// A topic as it is to be.
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) config: Vec<(&'static str, String)>,
}

pub(super) fn topics(target: &Target) -> [Topic; 3] {
    let name = &target.cluster_name;
    let partitions = i32::try_from(target.partitions).unwrap_or(i32::MAX);
    let min_insync = ("min.insync.replicas", target.min_insync.to_string());
    let deleted =
        |ms: u64| vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", ms.to_string()), min_insync.clone()];
    [
        Topic { name: format!("{name}.{EVENTS}"), partitions, config: deleted(target.retention_ms) },
        Topic {
            name: format!("{name}.{SESSIONS}"),
            partitions,
            config: deleted(target.retention_ms.min(SESSIONS_RETENTION_MS)),
        },
        Topic {
            name: marker_topic(target),
            partitions: 1,
            config: vec![("cleanup.policy", "compact".to_owned()), min_insync.clone()],
        },
    ]
}

fn marker_topic(target: &Target) -> String {
    format!("{}.meta", target.cluster_name)
}

/// Makes sure of everything: the brokers answer, the marker is this ChatCluster's, the topics are there with the right partitions.
pub(super) fn ensure(target: &Target) -> Result<(), Trouble> {
    let words = Words::default();
    let config = client_config(target);
    let failed = |what: &'static str| {
        let words = words.clone();
        move |error: KafkaError| trouble(target, &words, what, &error)
    };
    let admin: AdminClient<Words> =
        config.create_with_context(words.clone()).map_err(failed("setting up the connection"))?;
    let metadata = admin.inner().fetch_metadata(None, ASK).map_err(failed("asking for the topics"))?;
    let wanted = topics(target);
    for topic in &wanted {
        check_partitions(&metadata, topic)?;
    }
    // Whose topics these are is settled before any of them is made or used.
    let [events, sessions, meta] = wanted;
    make(target, &words, &admin, &metadata, std::slice::from_ref(&meta))?;
    mark(target, &words, &config, partitions_of(&metadata, &events.name).is_some())?;
    make(target, &words, &admin, &metadata, &[events, sessions])
}

fn partitions_of(metadata: &Metadata, name: &str) -> Option<usize> {
    metadata.topics().iter().find(|t| t.name() == name && t.error().is_none()).map(|t| t.partitions().len())
}

fn check_partitions(metadata: &Metadata, topic: &Topic) -> Result<(), Trouble> {
    match partitions_of(metadata, &topic.name) {
        Some(found) if found != 0 && i32::try_from(found) != Ok(topic.partitions) => Err(Trouble {
            reason: reason::TOPIC_PARTITIONS_CHANGED,
            message: format!(
                "topic {} has {found} partitions, {} were fixed at creation and the order of events hangs on them: use another spec.clusterName, or make the topic anew with {} partitions if its events may be lost",
                topic.name, topic.partitions, topic.partitions
            ),
        }),
        _ => Ok(()),
    }
}

fn make(
    target: &Target,
    words: &Words,
    admin: &AdminClient<Words>,
    metadata: &Metadata,
    topics: &[Topic],
) -> Result<(), Trouble> {
    let missing: Vec<&Topic> = topics.iter().filter(|t| partitions_of(metadata, &t.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let replication = i32::try_from(target.replication).unwrap_or(1);
    let requests: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|t| {
            let topic = NewTopic::new(&t.name, t.partitions, TopicReplication::Fixed(replication));
            t.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK * 2));
    let results = futures::executor::block_on(admin.create_topics(&requests, &options))
        .map_err(|error| trouble(target, words, "creating topics", &error))?;
    for result in results {
        match result {
            Ok(name) => tracing::info!(topic = %name, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                return Err(Trouble {
                    reason: reason::EVENT_LOG_UNREACHABLE,
                    message: format!(
                        "topic {name} needs {} brokers, fewer are there: wait until all brokers run, or lower replicationFactor",
                        target.replication
                    ),
                });
            }
            Err((name, code)) => {
                let error = KafkaError::AdminOp(code);
                return Err(trouble(target, words, &format!("creating topic {name}"), &error));
            }
        }
    }
    Ok(())
}

/// Reads the marker; writes it where there is none and nothing else is there either; refuses another's.
fn mark(target: &Target, words: &Words, config: &ClientConfig, used: bool) -> Result<(), Trouble> {
    match read_marker(target, words, config)? {
        Some(uid) if uid == target.uid => Ok(()),
        Some(uid) => Err(Trouble {
            reason: reason::FOREIGN_TOPIC,
            message: format!(
                "the topics {}.* belong to the ChatCluster with UID {uid}: choose another spec.clusterName, or set spec.restoreFrom.clusterUid to adopt its data",
                target.cluster_name
            ),
        }),
        None if used => Err(Trouble {
            reason: reason::FOREIGN_TOPIC,
            message: format!(
                "topic {0}.{EVENTS} exists and {0}.meta does not say whose it is: delete it if it is a leftover, or choose another spec.clusterName",
                target.cluster_name
            ),
        }),
        None => write_marker(target, words, config),
    }
}

fn read_marker(target: &Target, words: &Words, config: &ClientConfig) -> Result<Option<String>, Trouble> {
    let topic = marker_topic(target);
    let failed = |what: &'static str| move |error: KafkaError| trouble(target, words, what, &error);
    let mut config = config.clone();
    config
        .set("group.id", "kith-operator-unused")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "false");
    let consumer: BaseConsumer<Words> =
        config.create_with_context(words.clone()).map_err(failed("setting up the connection"))?;
    let end = Instant::now() + READ_MARKER;
    let (low, high) = loop {
        // A topic made a moment ago has no leader yet.
        match consumer.fetch_watermarks(&topic, 0, ASK) {
            Ok(marks) => break marks,
            Err(error) if Instant::now() >= end => return Err(trouble(target, words, "reading the marker", &error)),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    if low >= high {
        return Ok(None);
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic, 0, Offset::Offset(low)).map_err(failed("reading the marker"))?;
    consumer.assign(&assignment).map_err(failed("reading the marker"))?;
    let mut found = None;
    loop {
        if Instant::now() >= end {
            return Err(Trouble {
                reason: reason::EVENT_LOG_UNREACHABLE,
                message: format!("topic {topic} could not be read in time: check the brokers' load and storage"),
            });
        }
        let Some(record) = consumer.poll(Duration::from_millis(200)) else {
            // Compaction and transaction marks leave offsets without a record; the position tells the end.
            let position =
                consumer.position().ok().and_then(|p| p.find_partition(&topic, 0).and_then(|e| e.offset().to_raw()));
            if position.is_some_and(|p| p >= high) {
                return Ok(found);
            }
            continue;
        };
        let record = record.map_err(failed("reading the marker"))?;
        if record.key() == Some(MARKER_KEY.as_bytes()) {
            found = record.payload().map(|uid| String::from_utf8_lossy(uid).into_owned());
        }
        if record.offset() + 1 >= high {
            return Ok(found);
        }
    }
}

fn write_marker(target: &Target, words: &Words, config: &ClientConfig) -> Result<(), Trouble> {
    let topic = marker_topic(target);
    let failed = |what: &'static str| move |error: KafkaError| trouble(target, words, what, &error);
    let mut config = config.clone();
    config.set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", "8000");
    let producer: BaseProducer = config.create().map_err(failed("setting up the connection"))?;
    let record = BaseRecord::to(&topic).partition(0).key(MARKER_KEY).payload(target.uid.as_str());
    producer.send(record).map_err(|(error, _)| failed("writing the marker")(error))?;
    producer.flush(ASK * 2).map_err(failed("writing the marker"))?;
    // What counts is what is there, not what was sent: another operator may have been quicker.
    match read_marker(target, words, &config)? {
        Some(uid) if uid == target.uid => Ok(()),
        other => Err(Trouble {
            reason: reason::FOREIGN_TOPIC,
            message: match other {
                Some(uid) => {
                    format!("topic {topic} was marked for the ChatCluster with UID {uid} while this one marked it")
                }
                None => {
                    format!("topic {topic} does not hold the mark that was just written: check the brokers' storage")
                }
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;

    fn target(brokers: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>, uid: &str) -> Target {
        Target { uid: uid.to_owned(), ..Target::plain(brokers.bootstrap_servers()) }
    }

    /// Brokers with these topics; the mock cannot make topics when it is asked to.
    fn brokers(topics: &[(&str, i32)]) -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
        let brokers = MockCluster::new(1).unwrap();
        for (name, partitions) in topics {
            brokers.create_topic(name, *partitions, 1).unwrap();
        }
        brokers
    }

    #[test]
    fn a_topic_with_other_partitions_than_at_creation_is_refused_in_words() {
        let brokers = brokers(&[("demo.meta", 1), ("demo.events", 5), ("demo.sessions", 4)]);
        let trouble = ensure(&target(&brokers, "uid-1")).unwrap_err();
        assert_eq!(trouble.reason, reason::TOPIC_PARTITIONS_CHANGED);
        assert!(trouble.message.contains("demo.events has 5 partitions, 4 were fixed"), "{}", trouble.message);
    }

    #[test]
    fn topics_of_another_cluster_are_refused_in_words() {
        let brokers = brokers(&[("demo.meta", 1), ("demo.events", 4), ("demo.sessions", 4)]);
        let (first, second) = (target(&brokers, "uid-1"), target(&brokers, "uid-2"));
        // Topics that nobody has marked may be anybody's.
        assert_eq!(ensure(&first).unwrap_err().reason, reason::FOREIGN_TOPIC);
        write_marker(&first, &Words::default(), &client_config(&first)).unwrap();
        assert_eq!(ensure(&first), Ok(()));
        let trouble = ensure(&second).unwrap_err();
        assert_eq!(trouble.reason, reason::FOREIGN_TOPIC);
        assert!(trouble.message.contains("uid-1"), "{}", trouble.message);
    }
}
