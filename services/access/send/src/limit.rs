//! How fast one user may go: a bucket per user, in bounded memory.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use governor::{
    InsufficientCapacity, NotUntil, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::DashMapStateStore,
};

/// Users that are remembered before those who have come to rest are forgotten.
const SWEEP_AT: usize = 65_536;

/// A token bucket per key. `None` inside: no limit.
pub struct Limiter {
    buckets: Option<RateLimiter<String, DashMapStateStore<String>, DefaultClock>>,
    checks: AtomicUsize,
}

impl Limiter {
    /// `per_second` on average with bursts of three times that; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self::with_burst(per_second, per_second.saturating_mul(3))
    }

    /// `per_second` on average, and `burst` at once; 0 a second: no limit.
    pub fn with_burst(per_second: u32, burst: u32) -> Self {
        let quota = NonZeroU32::new(per_second)
            .map(|rate| Quota::per_second(rate).allow_burst(NonZeroU32::new(burst).unwrap_or(rate)));
        Self { buckets: quota.map(RateLimiter::dashmap), checks: AtomicUsize::new(0) }
    }

    /// Takes one from the bucket of `key`; how long to wait when it is empty.
    pub fn check(&self, key: &str) -> Result<(), Duration> {
        self.check_n(key, 1)
    }

    /// Takes `count` from the bucket of `key`, all or none; how long to wait when it does not hold as many. More than it can ever hold
    /// count as a full one.
    pub fn check_n(&self, key: &str, count: usize) -> Result<(), Duration> {
        let Some((buckets, count)) = self.buckets.as_ref().zip(NonZeroU32::new(count.try_into().unwrap_or(u32::MAX)))
        else {
            return Ok(());
        };
        // A full bucket needs no memory. The sweep walks all of them, so it comes seldom.
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_AT == SWEEP_AT - 1 {
            buckets.retain_recent();
        }
        let (key, wait) = (key.to_owned(), |until: NotUntil<_>| until.wait_time_from(DefaultClock::default().now()));
        match buckets.check_key_n(&key, count) {
            Ok(taken) => taken.map_err(wait),
            Err(InsufficientCapacity(most)) => {
                match NonZeroU32::new(most).map(|most| buckets.check_key_n(&key, most)) {
                    Some(Ok(taken)) => taken.map_err(wait),
                    Some(Err(_)) | None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_and_others_are_not_touched() {
        let limiter = Limiter::new(10);
        let taken = (0..100).filter(|_| limiter.check("alice").is_ok()).count();
        assert!((30..=32).contains(&taken), "{taken}");
        assert!(limiter.check("alice").unwrap_err() <= Duration::from_millis(100));
        assert!(limiter.check("bob").is_ok());
    }

    #[test]
    fn many_at_once_count_one_by_one() {
        let limiter = Limiter::with_burst(10, 100);
        assert!(limiter.check_n("alice", 0).is_ok() && limiter.check_n("alice", 60).is_ok());
        assert!(limiter.check_n("alice", 60).is_err());
        assert!(limiter.check_n("alice", 40).is_ok(), "a refusal takes nothing");
        assert!(limiter.check_n("bob", 1_000).is_ok() && limiter.check("bob").is_err());
    }

    #[test]
    fn zero_means_no_limit() {
        let limiter = Limiter::new(0);
        assert!((0..10_000).all(|_| limiter.check("alice").is_ok()));
    }
}
