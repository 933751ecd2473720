//! How many frames a client may send: a token bucket that is told the time. Pure.

use std::time::{Duration, Instant};

/// A bucket of twice the rate, full at the start.
#[derive(Debug)]
pub struct Bucket {
    per_second: u32,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// `per_second` on average; 0: no limit.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, tokens: f64::from(per_second) * 2.0, filled: now }
    }

    /// Takes one; false when it is empty.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.per_second == 0 {
            return true;
        }
        let rate = f64::from(self.per_second);
        let gained = now.saturating_duration_since(self.filled).min(Duration::from_secs(60)).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(rate * 2.0);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_twice_the_rate_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 20);
        assert!(bucket.take(start + Duration::from_millis(101)));
        assert!(!bucket.take(start + Duration::from_millis(102)));
        assert!((0..1_000).all(|_| Bucket::new(0, start).take(start)));
    }
}
