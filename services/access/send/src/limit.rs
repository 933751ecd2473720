//! How fast one user may go: a bucket per user, in bounded memory.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
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
        let quota = NonZeroU32::new(per_second)
            .map(|rate| Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::MIN.saturating_add(2))));
        Self { buckets: quota.map(RateLimiter::dashmap), checks: AtomicUsize::new(0) }
    }

    /// Takes one from the bucket of `key`; how long to wait when it is empty.
    pub fn check(&self, key: &str) -> Result<(), Duration> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        // A full bucket needs no memory. The sweep walks all of them, so it comes seldom.
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_AT == SWEEP_AT - 1 {
            buckets.retain_recent();
        }
        buckets.check_key(&key.to_owned()).map_err(|until| until.wait_time_from(DefaultClock::default().now()))
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
    fn zero_means_no_limit() {
        let limiter = Limiter::new(0);
        assert!((0..10_000).all(|_| limiter.check("alice").is_ok()));
    }
}
