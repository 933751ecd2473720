//! Whether the engine's files fill their volumes: a condition with a gap between its beginning and its end. Pure.
//!
//! What a disk has left is known to the kubelet alone, and asking it takes rights over nodes. What the engine itself says of its files,
//! against the size of the claim, is a sound lower bound: nothing else of size is on the volume.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kith_crds::conditions::{self, Finding, reason};

use super::{
    pressure::{BEGINS, ENDS, level},
    readiness::{MemberHealth, ShardHealth},
};

/// DiskPressure from what these shards' members keep; `capacity` answers the bytes of a pod's volume. None where no member has said it.
pub fn finding<'a>(
    shards: impl IntoIterator<Item = &'a ShardHealth>,
    capacity: impl Fn(&str) -> Option<u64>,
    before: Option<&Condition>,
) -> Option<Finding> {
    let kind = conditions::DISK_PRESSURE;
    let held = before.is_some_and(|b| b.status == "True");
    let told = before.map_or("", |b| b.message.as_str());
    let (mut known, mut begins) = (false, held);
    let mut filling = Vec::new();
    for member in shards.into_iter().flat_map(|s| &s.members) {
        if member.primary && member.disk.failed {
            let message = format!(
                "{} could not write to its volume and refuses writes: see its log, and raise storage.volume.size if it is full",
                member.pod
            );
            return Some(Finding::holds(kind, reason::DISK_WRITE_FAILED, message));
        }
        let Some((percent, bytes)) = percent(member, &capacity) else { continue };
        known = true;
        begins |= percent >= BEGINS;
        if percent >= ENDS {
            let level = level(&member.pod, percent, told);
            filling.push(format!("{} uses {level} % or more of {} MiB", member.pod, bytes >> 20));
        }
    }
    if !known {
        return None;
    }
    if !begins || filling.is_empty() {
        return Some(Finding::fails(
            kind,
            reason::ALL_READY,
            "every volume of the engine has room for a rewrite of its file",
        ));
    }
    let message = format!(
        "{}, the next rewrite of its append-only file included: an engine whose disk is full ends; raise storage.volume.size (the StorageClass must allow it), or add shards",
        filling.join(", ")
    );
    Some(Finding::holds(kind, reason::VOLUME_FILLING, message))
}

/// How much of its volume a member needs when it rewrites its file, in percent, and the volume's bytes.
fn percent(member: &MemberHealth, capacity: impl Fn(&str) -> Option<u64>) -> Option<(u64, u64)> {
    let bytes = capacity(&member.pod).filter(|bytes| *bytes > 0)?;
    // A rewrite makes the new file beside the old one.
    let needed = member.disk.used.saturating_add(member.disk.rewrite);
    (member.disk.used > 0).then(|| (needed.saturating_mul(100) / bytes, bytes))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::dataplane::{
        fake::{Fake, desired},
        readiness::readiness,
        types::Disk,
    };

    const MIB: u64 = 1 << 20;

    fn shards(used: u64, rewrite: u64, failed: bool) -> Vec<ShardHealth> {
        let wish = desired(1);
        let fake = Fake::formed(&wish);
        let mut shards = readiness(&wish, &fake.observe(&wish)).shards;
        // Any copy's volume counts, not the primary's alone.
        let last = shards[0].members.last_mut().unwrap();
        last.disk = Disk { used: used * MIB, rewrite: rewrite * MIB, failed: false };
        for member in shards[0].members.iter_mut().filter(|m| m.primary) {
            member.disk.failed = failed;
        }
        shards
    }

    /// Of every pod.
    const CAPACITY: Option<u64> = Some(1_000 * MIB);

    #[test]
    fn a_volume_is_filling_when_the_next_rewrite_would_take_four_fifths_of_it() {
        let mut conditions = Vec::new();
        let mut held = Vec::new();
        for (used, rewrite) in [(500, 250), (550, 250), (510, 250), (490, 250)] {
            let before = conditions::get(&conditions, conditions::DISK_PRESSURE).cloned();
            let finding = finding(&shards(used, rewrite, false), |_: &str| CAPACITY, before.as_ref()).unwrap();
            held.push(finding.holds == Some(true));
            if used == 550 {
                assert!(
                    finding.message.starts_with("demo-0-valkey-2 uses 80 % or more of 1000 MiB"),
                    "{}",
                    finding.message
                );
                assert_eq!(finding.reason, reason::VOLUME_FILLING);
            }
            conditions::set(&mut conditions, finding, Some(1), Timestamp::from_second(1).unwrap());
        }
        assert_eq!(held, [false, true, true, false]);
    }

    #[test]
    fn a_primary_that_cannot_write_is_said_to_refuse_writes() {
        let finding = finding(&shards(1, 1, true), |_: &str| CAPACITY, None).unwrap();
        assert_eq!((finding.holds, finding.reason), (Some(true), reason::DISK_WRITE_FAILED));
        assert!(finding.message.contains("refuses writes"), "{}", finding.message);
    }

    #[test]
    fn a_volume_of_unknown_size_or_a_silent_engine_changes_nothing() {
        assert!(finding(&shards(900, 0, false), |_: &str| None, None).is_none());
        assert!(finding(&shards(0, 0, false), |_: &str| CAPACITY, None).is_none());
    }
}
