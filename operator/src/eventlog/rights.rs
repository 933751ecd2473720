//! Who may do what on the managed event log, as one table, and what must change at the brokers to make it so. Pure.
//!
//! Brokers refuse what the table does not allow. It names no right to write with an idempotent producer: whoever may write to any topic has
//! it. Nobody writes in transactions. A right to read or write a topic or group is one to describe it as well.

use std::collections::BTreeSet;

use kith_crds::chatcluster::ListenerSecurity;
use kith_eventlog::{MARKS_GROUP, MARKS_SUFFIX, SCAN_GROUP};

use kith_platform::{
    Service,
    topic::{EVENTS, SESSIONS},
};

use crate::{
    plan::{KafkaPlan, Plan},
    render::{
        kafka_access::{ANONYMOUS, component, is_ours, line},
        meta::DEFAULT_LINE,
        versions,
    },
};

/// One access control list entry that allows something. Numbers are those of Kafka's protocol: entries of people may say anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// Who.
    pub principal: String,
    /// From where; `*`: from anywhere.
    pub host: String,
    /// A kind of resource, for example [`TOPIC`].
    pub resource: i8,
    /// How `name` is meant: [`LITERAL`] or [`PREFIXED`].
    pub pattern: i8,
    /// The resource's name, or how it begins.
    pub name: String,
    /// What, for example [`READ`].
    pub operation: i8,
}

/// Topics.
pub const TOPIC: i8 = 2;
/// Consumer groups.
pub const GROUP: i8 = 3;
/// The resource of exactly that name.
pub const LITERAL: i8 = 3;
/// All resources whose names begin so.
pub const PREFIXED: i8 = 4;
/// To fetch records; to be a member of a group and commit its offsets.
pub const READ: i8 = 3;
/// To produce.
pub const WRITE: i8 = 4;
/// To make the topic.
pub const CREATE: i8 = 5;
/// To ask where it is and how far it goes.
pub const DESCRIBE: i8 = 8;

/// On what a right is: kind, pattern, name.
type On = (i8, i8, String);

/// The rights on a ChatCluster's managed brokers; none for brokers of somebody else.
pub fn of(plan: &Plan) -> Option<BTreeSet<Right>> {
    let KafkaPlan::Managed(managed) = &plan.event_log.kafka else { return None };
    let external = managed.spec.external_access.as_ref();
    let anyone = external.is_some_and(|access| access.security == ListenerSecurity::Plaintext);
    Some(table(&plan.cluster_name, &versions::services(&plan.version), &[DEFAULT_LINE], anyone))
}

/// Groups that readers from outside may use begin so. No name of a ChatCluster or a line has an underscore: none of them begins like
/// another, or like a group of the platform's own.
pub fn group_prefix(line: Option<&str>) -> String {
    line.map_or_else(|| "anonymous_".to_owned(), |line| format!("line_{line}_"))
}

/// Who may do what in the ChatCluster named `cluster`, to whom these services and business lines belong. `anyone`: there is a listener without
/// certificates, through which everybody reads.
fn table(cluster: &str, services: &[Service], lines: &[&str], anyone: bool) -> BTreeSet<Right> {
    let topic = |name: &str| (TOPIC, LITERAL, format!("{cluster}.{name}"));
    let group = |name: &str| (GROUP, LITERAL, format!("{cluster}.{name}"));
    let shared = |name: &str| (GROUP, LITERAL, name.to_owned());
    let marks = |group: &str| topic(&format!("{group}{MARKS_SUFFIX}"));
    let mut rows: Vec<(String, On, &[i8])> = Vec::new();
    for service in services {
        let (who, log) = (component((*service).into()), service.log());
        rows.extend(log.writes.iter().map(|name| (who.clone(), topic(name), &[WRITE][..])));
        for name in log.scans {
            rows.push((who.clone(), topic(name), &[READ]));
            rows.push((who.clone(), shared(SCAN_GROUP), &[DESCRIBE]));
        }
        for consumer in log.consumes {
            rows.push((who.clone(), topic(consumer.topic), &[READ]));
            rows.push((who.clone(), group(consumer.group), &[READ]));
            rows.push((who.clone(), shared(MARKS_GROUP), &[DESCRIBE]));
            // Made when it is first needed.
            rows.push((who.clone(), marks(consumer.group), &[CREATE, READ, WRITE]));
        }
        rows.extend(log.makes.iter().map(|name| (who.clone(), topic(name), &[CREATE, WRITE][..])));
    }
    let outside = lines.iter().map(|name| (line(name), group_prefix(Some(*name))));
    for (who, groups) in outside.chain(anyone.then(|| (ANONYMOUS.to_owned(), group_prefix(None)))) {
        rows.push((who.clone(), topic(EVENTS), &[READ]));
        rows.push((who.clone(), topic(SESSIONS), &[READ]));
        rows.push((who, (GROUP, PREFIXED, groups), &[READ]));
    }
    let entries = |(principal, (resource, pattern, name), operations): (String, On, &[i8])| {
        let right = move |operation: &i8| Right {
            principal: principal.clone(),
            host: "*".to_owned(),
            resource,
            pattern,
            name: name.clone(),
            operation: *operation,
        };
        operations.iter().map(right).collect::<Vec<_>>()
    };
    rows.into_iter().flat_map(entries).collect()
}

/// What must be added to and taken from the rights that brokers have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be added.
    pub missing: Vec<Right>,
    /// To be taken away: more than the table gives to those whose rights it decides.
    pub surplus: Vec<Right>,
}

/// From what is there to what is wanted.
pub fn changes(wanted: &BTreeSet<Right>, found: &BTreeSet<Right>) -> Changes {
    let surplus = found.difference(wanted).filter(|right| is_ours(&right.principal));
    Changes { missing: wanted.difference(found).cloned().collect(), surplus: surplus.cloned().collect() }
}

#[cfg(test)]
mod tests {
    use kith_crds::ChatCluster;
    use serde_json::json;

    use super::*;
    use crate::{plan::tests::release, render::meta::Component};

    fn demo() -> BTreeSet<Right> {
        table("demo", Service::ALL, &["default"], true)
    }

    fn may(rights: &BTreeSet<Right>, who: &str, operation: i8, resource: i8, name: &str) -> bool {
        rights.iter().any(|r| {
            let named = if r.pattern == PREFIXED { name.starts_with(&r.name) } else { name == r.name };
            r.principal == who && r.operation == operation && r.resource == resource && named
        })
    }

    /// Who has this right, of all who are known.
    fn who(operation: i8, resource: i8, name: &str) -> Vec<String> {
        let rights = demo();
        let known = Component::all().map(component).chain([line("default"), ANONYMOUS.to_owned()]);
        known.filter(|who| may(&rights, who, operation, resource, name)).collect()
    }

    #[test]
    fn each_topic_is_written_by_one_service_and_deleted_by_nobody() {
        assert_eq!(who(WRITE, TOPIC, "demo.events"), [component(Component::STORAGE)]);
        assert_eq!(who(WRITE, TOPIC, "demo.sessions"), [component(Component::SESSIONS)]);
        for topic in ["demo.events.dlq", "demo.tasks.marks", "demo.tasks-login.marks"] {
            assert_eq!(who(WRITE, TOPIC, topic), [component(Component::TASKS)], "{topic}");
            assert_eq!(who(CREATE, TOPIC, topic), [component(Component::TASKS)], "{topic}");
        }
        for topic in ["demo.meta", "demo.other", "other.events", "__consumer_offsets"] {
            assert!(who(WRITE, TOPIC, topic).is_empty() && who(READ, TOPIC, topic).is_empty(), "{topic}");
        }
        assert!(demo().iter().all(|r| [READ, WRITE, CREATE, DESCRIBE].contains(&r.operation)), "nothing else is given");
        assert!(demo().iter().all(|r| [TOPIC, GROUP].contains(&r.resource)), "nothing on the Kafka cluster itself");
    }

    #[test]
    fn whoever_is_outside_reads_events_in_groups_of_their_own_and_no_more() {
        let (line, anyone) = (line("default"), ANONYMOUS.to_owned());
        assert_eq!(
            who(READ, TOPIC, "demo.events"),
            [component(Component::STORAGE), component(Component::TASKS), line.clone(), anyone.clone()]
        );
        assert_eq!(who(READ, TOPIC, "demo.sessions"), [component(Component::TASKS), line.clone(), anyone.clone()]);
        assert_eq!(who(READ, GROUP, "line_default_replay"), [line.as_str()]);
        assert_eq!(who(READ, GROUP, "anonymous_replay"), [anyone.as_str()]);
        // Whoever joined these would take the partitions away from the platform.
        for group in ["demo.tasks", "demo.tasks-login"] {
            assert_eq!(who(READ, GROUP, group), [component(Component::TASKS)], "{group}");
        }
        let rights = demo();
        for outside in [line, anyone] {
            assert!(rights.iter().filter(|r| r.principal == outside).all(|r| r.operation == READ), "{outside}");
        }
    }

    #[test]
    fn services_without_an_event_log_have_no_rights_there() {
        let rights = demo();
        for none in Component::all() {
            if none.service().is_some_and(|service| service.log().is_used()) {
                continue;
            }
            assert!(rights.iter().all(|r| r.principal != component(none)), "{none:?}");
        }
    }

    #[test]
    fn everybody_reads_only_where_a_listener_asks_for_no_certificate() {
        let of = |spec: serde_json::Value| {
            let cluster: ChatCluster = serde_json::from_value(json!({
                "apiVersion": kith_crds::API_VERSION, "kind": "ChatCluster",
                "metadata": {"name": "demo", "namespace": "ns", "uid": "u-1"}, "spec": {"eventLog": spec}
            }))
            .expect("a ChatCluster");
            of(&Plan::resolve(&cluster, &release("0.1.0")).expect("a plan"))
        };
        assert_eq!(of(json!({})), Some(table("demo", Service::ALL, &["default"], false)));
        let outside = |security: &str| of(json!({"managed": {"externalAccess": {"security": security}}}));
        assert_eq!(outside("MutualTLS"), Some(table("demo", Service::ALL, &["default"], false)));
        assert_eq!(outside("Plaintext"), Some(demo()));
        assert_eq!(of(json!({"external": {"bootstrapServers": ["kafka:9092"]}})), None, "their owner decides");
    }

    #[test]
    fn rights_that_are_missing_are_added_and_too_many_taken_away_from_those_we_know() {
        let wanted = demo();
        assert_eq!(changes(&wanted, &wanted), Changes::default());
        let none = changes(&wanted, &BTreeSet::new());
        assert_eq!((none.missing.len(), none.surplus.len()), (wanted.len(), 0));

        let given = |principal: &str, operation| Right {
            principal: principal.to_owned(),
            host: "*".to_owned(),
            resource: TOPIC,
            pattern: LITERAL,
            name: "demo.events".to_owned(),
            operation,
        };
        let mut found = wanted.clone();
        let lost = found.pop_first().expect("a right");
        let by_hand = [given("User:line-default", WRITE), given("User:service-business", 6)];
        found.extend(by_hand.clone());
        found.insert(given("User:CN=auditor", READ));
        let both = changes(&wanted, &found);
        assert_eq!(both.missing, [lost]);
        assert_eq!(both.surplus.len(), 2, "{both:?}");
        assert!(by_hand.iter().all(|r| both.surplus.contains(r)), "{both:?}");
        // A listener without certificates that is gone takes its rights along.
        let closed = changes(&table("demo", Service::ALL, &["default"], false), &wanted);
        assert!(closed.missing.is_empty() && closed.surplus.iter().all(|r| r.principal == ANONYMOUS));
        assert_eq!(closed.surplus.len(), 3);
    }
}
