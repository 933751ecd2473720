//! Certificates of the platform straight at the managed brokers: each may do what its holder needs, and nothing beyond that.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kith_e2e::{cluster::Cluster, env::Env};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord},
};

use crate::{
    alone,
    behaviour::{self, Failure, Proof, SOON},
};

/// A client of the brokers with the certificate in a Secret.
async fn login(cluster: &Cluster, secret: &str) -> Result<ClientConfig, Failure> {
    let name = format!("{}-{secret}", cluster.name);
    let files = cluster.api::<Secret>().get(&name).await?.data.unwrap_or_default();
    let file = |key: &str| -> Result<String, Failure> {
        let bytes = files.get(key).ok_or_else(|| format!("Secret {name} has no {key}"))?;
        Ok(String::from_utf8(bytes.0.clone())?)
    };
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", Env::load()?.kafka)
        .set("security.protocol", "ssl")
        .set("ssl.ca.pem", file("ca.crt")?)
        .set("ssl.certificate.pem", file("tls.crt")?)
        .set("ssl.key.pem", file("tls.key")?)
        .set("message.timeout.ms", "20000");
    Ok(config)
}

/// What the brokers say to a record.
async fn produce(login: &ClientConfig, topic: &str) -> Result<Option<RDKafkaErrorCode>, Failure> {
    let producer: FutureProducer = login.create()?;
    let record = FutureRecord::to(topic).key("d:mallory:bob").payload("{}").partition(0);
    match producer.send(record, SOON).await {
        Ok(_) => Ok(None),
        Err((KafkaError::MessageProduction(code), _)) => Ok(Some(code)),
        Err((error, _)) => Err(error.into()),
    }
}

/// What the brokers say to the deletion of a topic.
async fn delete(login: &ClientConfig, topic: &str) -> Result<Option<RDKafkaErrorCode>, Failure> {
    let admin: AdminClient<DefaultClientContext> = login.create()?;
    let options = AdminOptions::new().request_timeout(Some(SOON)).operation_timeout(Some(SOON));
    let outcomes = admin.delete_topics(&[topic], &options).await?;
    Ok(outcomes.into_iter().find_map(|outcome| outcome.err().map(|(_, code)| code)))
}

/// What the brokers say to a new member of a group.
async fn join(login: &ClientConfig, group: String, topic: String) -> Result<Option<RDKafkaErrorCode>, Failure> {
    let mut config = login.clone();
    config.remove("message.timeout.ms");
    config.set("group.id", group).set("enable.auto.commit", "false");
    tokio::task::spawn_blocking(move || -> Result<Option<RDKafkaErrorCode>, Failure> {
        let consumer: BaseConsumer = config.create()?;
        consumer.subscribe(&[&topic])?;
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            if let Some(Err(KafkaError::MessageConsumption(code))) = consumer.poll(Duration::from_millis(200))
                && code == RDKafkaErrorCode::GroupAuthorizationFailed
            {
                return Ok(Some(code));
            }
            if !consumer.assignment()?.elements().is_empty() {
                return Ok(None);
            }
        }
        Err("the brokers neither took the member nor refused it".into())
    })
    .await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_may_do_at_the_brokers_what_its_holder_needs_and_no_more() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let (events, sessions) = (target.events_topic.clone(), format!("{}.sessions", cluster.name));
    let refused = Some(RDKafkaErrorCode::TopicAuthorizationFailed);
    // Whoever may not write is tried first: nothing is deleted by brokers that let everybody in.
    for (secret, topic) in [
        ("business-client", &events),
        ("business-client", &sessions),
        ("business-tls", &events),
        ("tasks-tls", &events),
        ("tasks-tls", &sessions),
        ("sessions-tls", &events),
        ("storage-tls", &sessions),
    ] {
        let login = login(&cluster, secret).await?;
        assert_eq!(produce(&login, topic).await?, refused, "{secret} wrote to {topic}");
    }
    for secret in ["business-client", "business-tls", "tasks-tls", "sessions-tls", "storage-tls"] {
        let login = login(&cluster, secret).await?;
        assert_eq!(delete(&login, &events).await?, refused, "{secret} deleted {events}");
    }
    // A member that does not belong there would take the partitions away from `tasks`.
    let line = login(&cluster, "business-client").await?;
    for group in ["tasks", "tasks-login"] {
        let answer = join(&line, format!("{}.{group}", cluster.name), events.clone()).await?;
        assert_eq!(answer, Some(RDKafkaErrorCode::GroupAuthorizationFailed), "{group}");
    }
    let own = kith_e2e::target::unique("line_default_access");
    assert_eq!(join(&line, own, events.clone()).await?, None, "a line reads in groups of its own");
    // Storage writes and tasks read: a message reaches the log, and from there whoever is online.
    behaviour::send::a_message_is_stored_and_reaches_the_other_users_socket(&target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_certificate_is_refused_by_the_brokers() -> Proof {
    let (_guard, cluster, target) = alone().await?;
    let mut config = login(&cluster, "business-client").await?;
    for setting in ["ssl.certificate.pem", "ssl.key.pem", "message.timeout.ms"] {
        config.remove(setting);
    }
    config.set("group.id", "line_default_nobody");
    let found = tokio::task::spawn_blocking(move || -> Result<(), KafkaError> {
        let consumer: BaseConsumer = config.create()?;
        consumer.fetch_metadata(Some(&target.events_topic), Duration::from_secs(5)).map(drop)
    })
    .await?;
    assert!(found.is_err(), "somebody without a certificate was let in");
    Ok(())
}
