//! Pauses between attempts: doubling, with jitter, up to a bound. Whoever repeats something over the network waits by this, so that what
//! failed together does not come again together.
//!
//! The numbers are those of `backon`. Its own loops are not used: the platform's follow a server's hint, end with a shutdown in the middle
//! of a pause, and begin again with the shortest one after a success.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rand::RngExt;

/// Half to one and a half times `pause`.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

/// The pauses of one series of attempts. Its end is its caller's: a deadline, the shutdown, a partition that has gone to another.
#[derive(Debug)]
pub struct Backoff {
    plan: ExponentialBuilder,
    pauses: ExponentialBackoff,
    most: Duration,
}

impl Backoff {
    /// The first pause is between half of and the whole `least`; none is above `most`.
    pub fn new(least: Duration, most: Duration) -> Self {
        // The library adds as much again at most: half of a pause is certain, and half is chance.
        let plan = ExponentialBuilder::new().with_min_delay(least.min(most) / 2).with_max_delay(most / 2);
        let plan = plan.with_jitter().without_max_times();
        Self { plan, pauses: plan.build(), most }
    }

    /// The same with pauses that grow by `factor` instead of doubling.
    #[must_use]
    pub fn by(self, factor: f32) -> Self {
        let plan = self.plan.with_factor(factor);
        Self { plan, pauses: plan.build(), most: self.most }
    }

    /// How long to wait before the next attempt; longer each time.
    pub fn after_failure(&mut self) -> Duration {
        // Without a greatest number of attempts they do not end.
        self.pauses.next().unwrap_or(self.most)
    }

    /// The same after a server has said how long to stay away: about so long, if that is longer.
    pub fn after_refusal(&mut self, hint: Option<Duration>) -> Duration {
        self.after_failure().max(jittered(hint.unwrap_or_default()))
    }

    /// Waits; longer each time.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.after_failure()).await;
    }

    /// Waits; longer each time, and never beyond `end`.
    pub async fn pause_until(&mut self, end: Instant) {
        let left = end.saturating_duration_since(Instant::now());
        tokio::time::sleep(self.after_failure().min(left)).await;
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.pauses = self.plan.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(10);
    const MOST: Duration = Duration::from_secs(1);

    /// Half of and the whole pause; the library counts in floats.
    fn is_about(pause: Duration, whole: Duration) -> bool {
        pause >= whole.mul_f64(0.499) && pause <= whole.mul_f64(1.001)
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_start_again() {
        let mut backoff = Backoff::new(LEAST, MOST);
        for n in 0..50 {
            let (pause, whole) = (backoff.after_failure(), LEAST.saturating_mul(1 << n.min(20)).min(MOST));
            assert!(is_about(pause, whole), "{n}: {pause:?}");
        }
        backoff.reset();
        assert!(is_about(backoff.after_failure(), LEAST));
    }

    #[test]
    fn those_who_failed_together_do_not_wait_alike() {
        let pauses: Vec<Duration> = (0..50).map(|_| Backoff::new(MOST, MOST).after_failure()).collect();
        assert!(pauses.iter().any(|pause| *pause < MOST * 7 / 10), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause > MOST * 8 / 10), "{pauses:?}");
    }

    #[test]
    fn pauses_may_grow_faster_and_the_first_is_not_above_the_bound() {
        let mut backoff = Backoff::new(LEAST, MOST).by(4.0);
        for whole in [10, 40, 160, 640, 1_000, 1_000].map(Duration::from_millis) {
            assert!(is_about(backoff.after_failure(), whole));
        }
        backoff.reset();
        assert!(is_about(backoff.after_failure(), LEAST));
        assert!(is_about(Backoff::new(MOST, LEAST).after_failure(), LEAST));
    }

    #[test]
    fn a_server_s_hint_is_followed_where_it_is_longer() {
        let mut backoff = Backoff::new(LEAST, MOST);
        assert!(backoff.after_refusal(Some(MOST * 4)) >= MOST * 2);
        assert!(is_about(backoff.after_refusal(None), LEAST * 2));
    }

    #[tokio::test]
    async fn a_pause_ends_with_the_deadline() {
        let begun = Instant::now();
        Backoff::new(MOST * 60, MOST * 60).pause_until(begun + LEAST).await;
        assert!(begun.elapsed() >= LEAST && begun.elapsed() < MOST * 20);
    }
}
