//! Kicks that are remembered for a while, so that a session which was on its way when its tokens were revoked is closed when it arrives.
//! Values without a clock of their own.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a kick is remembered: longer than gateways go without looking whether a token has been revoked.
pub const MEMORY: Duration = Duration::from_secs(300);
/// Kicks that are remembered; beyond that the oldest are forgotten.
const MAX_KICKS: usize = 20_000;

/// What was learnt lately: bounded in number, the oldest give way, and in time.
#[derive(Debug)]
pub struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    /// In the order of writing; an entry that was written again is in it more than once.
    order: VecDeque<(Instant, K, u64)>,
    written: u64,
    most: usize,
    life: Duration,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// For at most `most` entries, each for `life`.
    pub fn new(most: usize, life: Duration) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), written: 0, most: most.max(1), life }
    }

    /// Remembers an entry from `now` on.
    pub fn insert(&mut self, key: K, value: V, now: Instant) {
        self.written += 1;
        self.order.push_back((now, key.clone(), self.written));
        self.entries.insert(key, (self.written, value));
        while self.order.len() > self.most {
            self.forget_oldest();
        }
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= self.life) {
            self.forget_oldest();
        }
    }

    /// What is remembered of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key, written)) = self.order.pop_front()
            && self.entries.get(&key).is_some_and(|(newest, _)| *newest == written)
        {
            self.entries.remove(&key);
        }
    }
}

/// A user, and the device that was kicked; none: all of them.
type Whose = (Arc<str>, Option<Arc<str>>);

/// Up to when the tokens of users and devices were revoked, Unix ms.
#[derive(Debug)]
pub struct Kicks(Recent<Whose, i64>);

impl Default for Kicks {
    fn default() -> Self {
        Self(Recent::new(MAX_KICKS, MEMORY))
    }
}

impl Kicks {
    /// Remembers that tokens of a user (on one device, or on all) that were issued at or before `at` are dead.
    pub fn add(&mut self, user: &str, device: Option<&str>, at: i64, now: Instant) {
        let whose: Whose = (user.into(), device.map(Arc::from));
        let at = self.0.get(&whose).copied().unwrap_or(i64::MIN).max(at);
        self.0.insert(whose, at, now);
    }

    /// Whether a token of that user and device that was issued at `issued_at` has been kicked.
    pub fn reach(&self, user: &Arc<str>, device: &Arc<str>, issued_at: i64) -> bool {
        let until = |device| self.0.get(&(user.clone(), device)).copied();
        until(None).max(until(Some(device.clone()))).is_some_and(|at| issued_at <= at)
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Instant) {
        self.0.expire(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_reaches_older_tokens_of_its_device_and_ends() {
        let (mut kicks, now) = (Kicks::default(), Instant::now());
        let (alice, phone, web): (Arc<str>, Arc<str>, Arc<str>) = ("alice".into(), "phone".into(), "web".into());
        kicks.add("alice", Some("phone"), 10, now);
        kicks.add("alice", Some("phone"), 5, now);
        assert!(kicks.reach(&alice, &phone, 10) && !kicks.reach(&alice, &phone, 11) && !kicks.reach(&alice, &web, 1));
        kicks.add("alice", None, 20, now);
        assert!(kicks.reach(&alice, &web, 20) && !kicks.reach(&"bob".into(), &web, 1));
        kicks.expire(now + MEMORY);
        assert!(!kicks.reach(&alice, &web, 1));
    }

    #[test]
    fn the_oldest_give_way_and_what_was_written_again_stays() {
        let (mut recent, now) = (Recent::new(3, MEMORY), Instant::now());
        for key in [1, 2, 1, 3] {
            recent.insert(key, key, now);
        }
        assert_eq!([1, 2, 3].map(|key| recent.get(&key).is_some()), [true, true, true]);
        recent.insert(4, 4, now);
        assert_eq!([1, 2, 3, 4].map(|key| recent.get(&key).is_some()), [true, false, true, true]);
        recent.insert(5, 5, now);
        assert_eq!([1, 3, 4, 5].map(|key| recent.get(&key).is_some()), [false, true, true, true]);
        assert!(recent.order.len() <= 3 && recent.entries.len() <= 3);
    }
}
