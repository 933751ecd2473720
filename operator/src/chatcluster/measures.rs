//! The live numbers of a ChatCluster, for `/metrics`: they change with every look, so status never holds them. Pure.

use super::Facts;
use crate::{dataplane::readiness::ShardHealth, figures::Figure};

/// What a pass has to say in numbers; none when it did not come as far as the engine: then what was said before stands.
pub(super) fn of(facts: &Facts) -> Option<Vec<Figure>> {
    let storage = facts.storage.as_ref()?;
    let readiness = &storage.readiness;
    let mut figures = vec![
        Figure::new("kith_storage_slots_served", f64::from(readiness.slots_served)),
        Figure::new("kith_storage_ready", f64::from(u8::from(readiness.is_ready()))),
    ];
    figures.extend(readiness.shards.iter().flat_map(|shard| of_shard(shard, facts)));
    for failover in &storage.failovers {
        let changes = |planned: bool, count: u64| {
            Figure::new("kith_storage_failovers_total", count as f64)
                .with("shard", failover.shard.as_str())
                .with("planned", planned.to_string())
        };
        figures.push(changes(true, failover.count.saturating_sub(failover.unplanned)));
        figures.push(changes(false, failover.unplanned));
    }
    for lag in facts.alarms.survey.lags.iter().flatten() {
        figures.push(Figure::new("kith_event_log_lag_events", lag.events as f64).with("group", lag.group.as_str()));
        let stuck = f64::from(u8::from(lag.stuck.is_some()));
        figures.push(Figure::new("kith_event_log_consumer_stuck", stuck).with("group", lag.group.as_str()));
    }
    if !facts.alarms.survey.outboxes.is_empty() {
        let bytes: u64 = facts.alarms.survey.outboxes.iter().map(|(_, bytes)| bytes).sum();
        figures.push(Figure::new("kith_event_log_outbox_bytes", bytes as f64));
    }
    for certificate in facts.alarms.certificates.iter().flatten() {
        let figure = Figure::new("kith_certificate_expiration_timestamp_seconds", certificate.ends_s as f64);
        figures.push(figure.with("place", certificate.place.as_str()));
    }
    Some(figures)
}

fn of_shard(shard: &ShardHealth, facts: &Facts) -> Vec<Figure> {
    let number = |name, value: f64| Figure::new(name, value).with("shard", shard.shard.as_str());
    let lag = shard.members.iter().map(|m| m.lag_bytes).max().unwrap_or(0);
    let mut figures = vec![
        number("kith_storage_shard_keys", shard.keys as f64),
        number("kith_storage_shard_memory_bytes", shard.memory as f64),
        number("kith_storage_shard_slots", f64::from(shard.slots.len())),
        number("kith_storage_shard_lag_bytes", lag as f64),
    ];
    if shard.max_memory > 0 {
        figures.push(number("kith_storage_shard_memory_ratio", shard.memory as f64 / shard.max_memory as f64));
    }
    for member in &shard.members {
        let of_pod = |name, bytes: u64| number(name, bytes as f64).with("pod", member.pod.as_str());
        if member.disk.used > 0 {
            figures.push(of_pod("kith_storage_member_file_bytes", member.disk.used));
        }
        if let Some(bytes) = facts.alarms.capacity.get(&member.pod) {
            figures.push(of_pod("kith_storage_member_volume_bytes", *bytes));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        certificates::{Certificate, Renewed},
        dataplane::{
            fake::{Fake, desired},
            readiness::readiness,
        },
        survey::{Found, GroupLag},
    };

    #[test]
    fn the_numbers_that_on_call_needs_are_there_and_a_pass_that_saw_nothing_says_nothing() {
        assert_eq!(of(&Facts::default()), None);
        let wish = desired(1);
        let mut readiness = readiness(&wish, &Fake::formed(&wish).observe(&wish));
        for shard in &mut readiness.shards {
            (shard.memory, shard.max_memory) = (3, 4);
        }
        let mut facts = Facts { storage: Some(super::super::StorageFacts::of(readiness)), ..Facts::default() };
        facts.alarms.survey = Found {
            lags: Some(vec![GroupLag { group: "demo.tasks".to_owned(), events: 12, stuck: None }]),
            outboxes: vec![("a".to_owned(), 1), ("b".to_owned(), 2)],
            replaced: Vec::new(),
        };
        let certificate = Certificate { place: "Secret x".to_owned(), ends_s: 99, renewed: Renewed::ByGiver };
        facts.alarms.certificates = Some(vec![certificate]);
        let figures = of(&facts).unwrap();
        let value = |name: &str| figures.iter().find(|f| f.name == name).map(|f| f.value);
        for (name, wanted) in [
            ("kith_storage_ready", 1.0),
            ("kith_storage_shard_memory_ratio", 0.75),
            ("kith_event_log_lag_events", 12.0),
            ("kith_event_log_outbox_bytes", 3.0),
            ("kith_certificate_expiration_timestamp_seconds", 99.0),
        ] {
            assert_eq!(value(name), Some(wanted), "{name}");
        }
    }
}
