//! Pauses after failures: they double up to a bound and are jittered, so that many objects do not come back at once.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use rand::RngExt;

/// The pause after the `failures`-th failure in a row: between half of and the whole `first · 2^(failures−1)`, at most `max`.
pub fn delay(failures: u32, first: Duration, max: Duration) -> Duration {
    let exponent = failures.saturating_sub(1).min(20);
    let whole = first.saturating_mul(1 << exponent).min(max);
    whole.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Failures in a row per object.
#[derive(Default)]
pub struct Failures(Mutex<HashMap<String, u32>>);

/// First pause after a failed pass.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause between failing passes.
const MAX: Duration = Duration::from_secs(60);

impl Failures {
    /// Counts a failure of `key` and answers how long to wait.
    pub fn failed(&self, key: &str) -> Duration {
        let mut map = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = map.entry(key.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        delay(*count, FIRST, MAX)
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&self, key: &str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_stay_jittered() {
        let (first, max) = (Duration::from_secs(1), Duration::from_secs(60));
        for failures in 1..100 {
            let pause = delay(failures, first, max);
            let whole = first.saturating_mul(1 << (failures - 1).min(20)).min(max);
            assert!(pause >= whole / 2 && pause <= whole, "{failures}: {pause:?}");
        }
    }

    #[test]
    fn success_forgets_failures() {
        let failures = Failures::default();
        for _ in 0..10 {
            failures.failed("a");
        }
        failures.succeeded("a");
        assert!(failures.failed("a") <= FIRST);
    }
}
