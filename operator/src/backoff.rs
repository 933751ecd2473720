//! Pauses after failed passes, longer with each failure in a row of one object.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kith_kit::backoff::Backoff;

/// First pause after a failed pass.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause between failing passes.
const MAX: Duration = Duration::from_secs(60);

/// Failures in a row per object.
#[derive(Default)]
pub struct Failures(Mutex<HashMap<String, Backoff>>);

impl Failures {
    /// Counts a failure of `key` and answers how long to wait.
    pub fn failed(&self, key: &str) -> Duration {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(key.to_owned()).or_insert_with(|| Backoff::new(FIRST, MAX)).after_failure()
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
