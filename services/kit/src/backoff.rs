//! Pauses between attempts: doubling, with jitter, up to a bound. Whoever repeats something over the network waits by this, so that what
//! failed together does not come again together.

use std::time::Duration;

use rand::RngExt;

/// Half to one and a half times `pause`.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

/// The pauses of one series of attempts. Its end is its caller's: a deadline, the shutdown, a partition that has gone to another.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    least: Duration,
    most: Duration,
}

impl Backoff {
    /// The first pause is about `least`, none is above one and a half times `most`.
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { next: least, least, most }
    }

    /// How long to wait before the next attempt; longer each time.
    pub fn after_failure(&mut self) -> Duration {
        let pause = jittered(self.next);
        self.next = self.next.saturating_mul(2).min(self.most);
        pause
    }

    /// Waits; longer each time.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.after_failure()).await;
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_again() {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(1));
        let mut backoff = Backoff::new(least, most);
        let pauses: Vec<Duration> = (0..50).map(|_| backoff.after_failure()).collect();
        assert!(pauses[0] >= least / 2 && pauses[0] < least * 2);
        assert!(pauses.iter().all(|p| *p < most * 3 / 2));
        assert!(pauses[20..].iter().all(|p| *p >= most / 2));
        backoff.reset();
        assert!(backoff.after_failure() < least * 2);
    }
}
