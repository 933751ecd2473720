//! Pauses between attempts: doubling, with jitter, up to a bound.

use std::time::Duration;

use rand::RngExt;

const MIN: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_secs(1);

/// The pauses of one series of attempts. Its end is its caller's: a partition that is revoked, a session that is gone, the shutdown.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(MIN)
    }
}

impl Backoff {
    /// Waits; longer each time.
    pub async fn pause(&mut self) {
        let jittered = self.0.mul_f64(rand::rng().random_range(0.5..1.5));
        self.0 = (self.0 * 2).min(MAX);
        tokio::time::sleep(jittered).await;
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.0 = MIN;
    }
}
