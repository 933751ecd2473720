//! The topics' settings follow the spec, and what others set there otherwise is put back (blocking).

use futures::executor::block_on;
use kith_crds::conditions::reason;
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigResource, ConfigSource, OwnedResourceSpecifier,
        ResourceSpecifier,
    },
    error::KafkaError,
};

use super::{
    Target, Trouble,
    admin::{ASK, Topic, Words, client_config, topics},
};

/// Brings the settings of the topics to what is wanted. They hold from when they are set on; an event log that does not let the operator
/// see or set them works all the same.
pub(super) fn follow(target: &Target) -> Result<(), Trouble> {
    let words = Words::default();
    let failed =
        |what: &str, error: &KafkaError| told(format!("{what}: {}", words.best().unwrap_or_else(|| error.to_string())));
    let admin: AdminClient<Words> = client_config(target)
        .create_with_context(words.clone())
        .map_err(|error| failed("the topics' settings cannot be read", &error))?;
    let options = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK * 2));
    let wanted = topics(target);
    let names: Vec<_> = wanted.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let found = block_on(admin.describe_configs(&names, &options))
        .map_err(|error| failed("the topics' settings cannot be read", &error))?;
    let found: Vec<ConfigResource> = found.into_iter().flatten().collect();
    let mut changes = Vec::new();
    for topic in &wanted {
        let its =
            |r: &&ConfigResource| matches!(&r.specifier, OwnedResourceSpecifier::Topic(name) if *name == topic.name);
        let entries = found.iter().find(its).map_or(&[][..], |resource| resource.entries.as_slice());
        if let Some(settings) = changed(topic, entries).map_err(told)? {
            changes.push((topic, settings));
        }
    }
    let requests: Vec<AlterConfig<'_>> = changes
        .iter()
        .map(|(topic, settings)| {
            let request = AlterConfig::new(ResourceSpecifier::Topic(&topic.name));
            settings.iter().fold(request, |request, (key, value)| request.set(key, value))
        })
        .collect();
    if requests.is_empty() {
        return Ok(());
    }
    let results = block_on(admin.alter_configs(&requests, &options))
        .map_err(|error| failed("the topics' settings cannot be changed", &error))?;
    for (result, (topic, _)) in results.into_iter().zip(&changes) {
        match result {
            Ok(_) => tracing::info!(topic = %topic.name, "the topic's settings are as the spec says again"),
            Err((_, code)) => {
                return Err(told(format!(
                    "topic {} should have {}, and the brokers refuse to set it ({}): let the operator alter the topic's settings, or set \
                     them yourself",
                    topic.name,
                    topic.config.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", "),
                    KafkaError::AdminOp(code),
                )));
            }
        }
    }
    Ok(())
}

fn told(message: String) -> Trouble {
    Trouble { reason: reason::TOPIC_SETTINGS, message }
}

/// All settings that a topic is to have of its own, if one that is wanted is not as it should be. The request replaces all of them, so what
/// others have set besides goes along. The sentence says why nothing can be decided.
fn changed(topic: &Topic, entries: &[ConfigEntry]) -> Result<Option<Vec<(String, String)>>, String> {
    // The client library keeps to itself that a topic may not be described.
    if entries.is_empty() {
        return Err(format!(
            "the brokers do not show the settings of topic {}: let the operator describe and alter its settings",
            topic.name
        ));
    }
    let holds = |key: &str, value: &str| entries.iter().any(|e| e.name == key && e.value.as_deref() == Some(value));
    if topic.config.iter().all(|(key, value)| holds(key, value)) {
        return Ok(None);
    }
    let mut settings: Vec<(String, String)> =
        topic.config.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    for entry in entries.iter().filter(|e| e.source == ConfigSource::DynamicTopic) {
        if topic.config.iter().any(|(key, _)| entry.name == *key) {
            continue;
        }
        let Some(value) = &entry.value else {
            return Err(format!(
                "topic {} has a setting {} that cannot be read and would be lost: set what the spec says yourself",
                topic.name, entry.name
            ));
        };
        settings.push((entry.name.clone(), value.clone()));
    }
    Ok(Some(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: Option<&str>, source: ConfigSource) -> ConfigEntry {
        ConfigEntry {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            is_default: source == ConfigSource::Default,
            source,
            is_read_only: false,
            is_sensitive: false,
        }
    }

    fn topic(retention_ms: u64) -> Topic {
        Topic {
            name: "demo.events".to_owned(),
            partitions: 4,
            config: vec![
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention_ms.to_string()),
                ("min.insync.replicas", "2".to_owned()),
            ],
        }
    }

    fn entries() -> Vec<ConfigEntry> {
        vec![
            entry("cleanup.policy", Some("delete"), ConfigSource::Default),
            entry("retention.ms", Some("1000"), ConfigSource::DynamicTopic),
            entry("min.insync.replicas", Some("2"), ConfigSource::DynamicTopic),
            entry("compression.type", Some("zstd"), ConfigSource::DynamicTopic),
            entry("segment.bytes", Some("1"), ConfigSource::StaticBroker),
        ]
    }

    #[test]
    fn a_changed_retention_reaches_the_topic_and_leaves_what_others_set() {
        assert_eq!(changed(&topic(1_000), &entries()), Ok(None), "all is as it should be");
        let pairs = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "2000"),
            ("min.insync.replicas", "2"),
            ("compression.type", "zstd"),
        ];
        let wanted = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        assert_eq!(changed(&topic(2_000), &entries()), Ok(Some(wanted)));
    }

    #[test]
    fn what_others_change_at_a_topic_is_put_back() {
        let mut drifted = entries();
        drifted[2].value = Some("1".to_owned());
        let settings = changed(&topic(1_000), &drifted).unwrap().unwrap();
        assert!(settings.contains(&("min.insync.replicas".to_owned(), "2".to_owned())), "{settings:?}");
    }

    #[test]
    fn a_topic_whose_settings_are_not_shown_is_told_and_left_alone() {
        assert!(changed(&topic(1_000), &[]).unwrap_err().contains("do not show the settings of topic demo.events"));
        let mut hidden = entries();
        hidden[3].value = None;
        assert_eq!(changed(&topic(1_000), &hidden), Ok(None), "nothing is to be set, so nothing is lost");
        assert!(changed(&topic(2_000), &hidden).unwrap_err().contains("compression.type"));
    }
}
