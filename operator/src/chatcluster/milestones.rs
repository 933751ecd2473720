//! Places in a shard's stream of changes that replicas must reach before something that was acknowledged by fewer, or by others, is safe. Pure.

use std::collections::HashMap;

use crate::dataplane::readiness::{MemberHealth, ShardHealth};

/// What awaits its place, by name.
#[derive(Debug, Default)]
pub(super) struct Milestones(HashMap<String, Place>);

/// How far a primary had written, in which history, when `asked` replicas were first awaited there.
#[derive(Debug)]
struct Place {
    history: String,
    asked: u32,
    offset: u64,
}

impl Milestones {
    /// Whether `asked` replicas of those that `count` hold all that the primary had written when `name` was first asked about. Another
    /// history, whose offsets cannot be compared, and another number begin anew.
    pub(super) fn reached(
        &mut self,
        name: &str,
        asked: u32,
        health: &ShardHealth,
        count: impl Fn(&MemberHealth) -> bool,
    ) -> bool {
        let standing = self.0.get(name).filter(|place| place.history == health.history && place.asked == asked);
        let offset = standing.map_or(health.offset, |place| place.offset);
        self.0.insert(name.to_owned(), Place { history: health.history.clone(), asked, offset });
        let holds = health.members.iter().filter(|m| m.in_step && !m.primary && m.offset >= offset && count(m));
        holds.count() >= asked as usize
    }

    /// The next question about `name` is the first again.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}
