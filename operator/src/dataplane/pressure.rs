//! Whether the engine's memory runs out: a condition with a gap between its beginning and its end, and numbers that stand still, so that
//! an unchanged platform gives an unchanged status. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kith_crds::conditions::{self, Finding, reason};

use super::readiness::ShardHealth;

/// Percent of a primary's memory from which the condition holds, and below which it ends.
pub(super) const BEGINS: u64 = 80;
pub(super) const ENDS: u64 = 75;
/// Percent from which writes count as refused, and below which they do not any more: the engine refuses what does not fit, so that its use
/// stands just below its bound while it does.
const FULL: u64 = 99;
const FREE: u64 = 97;
/// Percentages are told in steps of this, and one that was told stays until the use is this much further below it.
const STEP: u64 = 5;
const SLACK: u64 = 2;

/// MemoryPressure from what these shards' primaries use; none where no primary has said it.
pub fn finding<'a>(shards: impl IntoIterator<Item = &'a ShardHealth>, before: Option<&Condition>) -> Option<Finding> {
    let held = before.is_some_and(|b| b.status == "True");
    let told = before.map_or("", |b| b.message.as_str());
    let mut known = false;
    let mut full = Vec::new();
    let mut begins = held;
    for shard in shards {
        let Some(percent) = percent(shard) else { continue };
        known = true;
        begins |= percent >= BEGINS;
        if percent >= ENDS {
            full.push((shard, level(&shard.shard, percent, told)));
        }
    }
    if !known {
        return None;
    }
    let kind = conditions::MEMORY_PRESSURE;
    if !begins || full.is_empty() {
        return Some(Finding::fails(kind, reason::ALL_READY, "every primary has memory left"));
    }
    let was_full = before.is_some_and(|b| b.reason == reason::ENGINE_FULL);
    let refuses = |shard: &ShardHealth| {
        percent(shard).is_some_and(|p| p >= FULL || p >= FREE && was_full && told.contains(&full_words(shard)))
    };
    let spent: Vec<String> =
        full.iter().filter(|(shard, _)| refuses(shard)).map(|(shard, _)| full_words(shard)).collect();
    if !spent.is_empty() {
        let message = format!(
            "{}: writes are refused until there is room; raise storage.maxMemory with the pods' memory, or add shards",
            spent.join(", ")
        );
        return Some(Finding::holds(kind, reason::ENGINE_FULL, message));
    }
    let named: Vec<String> = full
        .iter()
        .map(|(shard, level)| format!("{} uses {level} % or more of {} MiB", shard.shard, shard.max_memory >> 20))
        .collect();
    let message = format!(
        "{}: writes are refused when it is full; raise storage.maxMemory with the pods' memory, or add shards",
        named.join(", ")
    );
    Some(Finding::holds(kind, reason::ENGINE_MEMORY_HIGH, message))
}

fn full_words(shard: &ShardHealth) -> String {
    format!("{} has used up its {} MiB", shard.shard, shard.max_memory >> 20)
}

/// The condition, when it holds now and did not before.
pub fn begun<'a>(before: &[Condition], now: &'a [Condition]) -> Option<&'a Condition> {
    let now = conditions::get(now, conditions::MEMORY_PRESSURE)?;
    let begins = now.status == "True" && !conditions::is_true(before, conditions::MEMORY_PRESSURE);
    begins.then_some(now)
}

fn percent(shard: &ShardHealth) -> Option<u64> {
    let answered = shard.primary.is_some() && shard.max_memory > 0;
    answered.then(|| shard.memory.saturating_mul(100) / shard.max_memory)
}

/// The step that is told: the one told before as long as the use lies about there.
pub(super) fn level(name: &str, percent: u64, told: &str) -> u64 {
    let level = percent / STEP * STEP;
    let start = format!("{name} uses ");
    let before = told
        .split(", ")
        .find_map(|part| part.strip_prefix(start.as_str())?.split(' ').next()?.parse::<u64>().ok())
        .filter(|before| *before == level + STEP && percent + SLACK >= *before);
    before.unwrap_or(level)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::dataplane::slots::SlotSet;

    fn shard(name: &str, percent: u64) -> ShardHealth {
        ShardHealth {
            shard: name.to_owned(),
            primary: Some(format!("{name}-valkey-0")),
            primary_id: None,
            slots: SlotSet::all(),
            wanted: None,
            history: String::new(),
            offset: 0,
            keys: 0,
            memory: (512 << 20) / 100 * percent + (1 << 16),
            max_memory: 512 << 20,
            members: Vec::new(),
            whole: true,
        }
    }

    /// The conditions that one use after the other gives.
    fn life(uses: &[u64]) -> Vec<(String, String)> {
        let mut conditions = Vec::new();
        let mut told = Vec::new();
        for (at, percent) in uses.iter().enumerate() {
            let before = conditions::get(&conditions, conditions::MEMORY_PRESSURE).cloned();
            let finding = finding(&[shard("demo-0", *percent), shard("demo-1", 10)], before.as_ref()).unwrap();
            conditions::set(&mut conditions, finding, Some(1), Timestamp::from_second(at as i64).unwrap());
            let now = conditions::get(&conditions, conditions::MEMORY_PRESSURE).unwrap();
            told.push((now.status.clone(), now.message.clone()));
        }
        told
    }

    #[test]
    fn memory_pressure_begins_at_eighty_percent_and_ends_below_seventy_five() {
        let held: Vec<bool> =
            life(&[10, 79, 80, 79, 76, 75, 74, 79, 100]).into_iter().map(|(status, _)| status == "True").collect();
        assert_eq!(held, [false, false, true, true, true, true, false, false, true]);
        let message = &life(&[86])[0].1;
        assert!(message.starts_with("demo-0 uses 85 % or more of 512 MiB: writes are refused"), "{message}");
    }

    #[test]
    fn the_beginning_of_memory_pressure_is_told_once() {
        let of = |percent| {
            let mut conditions = Vec::new();
            let finding = finding(&[shard("demo-0", percent)], None).unwrap();
            conditions::set(&mut conditions, finding, Some(1), Timestamp::from_second(1).unwrap());
            conditions
        };
        assert!(begun(&[], &of(85)).is_some() && begun(&of(10), &of(85)).is_some());
        assert!(
            begun(&of(85), &of(95)).is_none() && begun(&of(85), &of(10)).is_none() && begun(&[], &of(10)).is_none()
        );
    }

    #[test]
    fn a_full_engine_is_said_to_refuse_writes_until_there_is_room() {
        let told = life(&[95, 99, 98, 97, 96]);
        let refused: Vec<bool> = told.iter().map(|(_, message)| message.contains("writes are refused until")).collect();
        assert_eq!(refused, [false, true, true, true, false], "{told:#?}");
        assert!(told[1].1.starts_with("demo-0 has used up its 512 MiB: writes are refused"), "{}", told[1].1);
    }

    #[test]
    fn a_use_that_trembles_leaves_the_condition_as_it_is() {
        let messages: Vec<String> =
            life(&[85, 84, 85, 83, 85, 84, 89]).into_iter().map(|(_, message)| message).collect();
        assert!(messages.iter().all(|m| *m == messages[0]), "{messages:#?}");
        assert_ne!(life(&[85, 82])[1].1, messages[0]);
    }

    #[test]
    fn a_primary_that_says_nothing_changes_nothing() {
        let mut silent = shard("demo-0", 90);
        silent.primary = None;
        assert!(finding(&[silent], None).is_none());
        let mut unlimited = shard("demo-0", 90);
        unlimited.max_memory = 0;
        assert!(finding(&[unlimited], None).is_none());
    }
}
