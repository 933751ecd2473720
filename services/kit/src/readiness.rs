//! Whether a process is ready, part by part.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Which parts of the process are ready; all must be.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// Names a part that is not ready yet.
    pub fn expect(&self, part: &'static str) {
        self.not_ready(part, "starting");
    }

    /// Says that a part is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.lock().insert(part, None);
    }

    /// Says that a part is not ready, and why.
    pub fn not_ready(&self, part: &'static str, why: impl Into<String>) {
        self.0.lock().insert(part, Some(why.into()));
    }

    /// Whether all parts are ready.
    pub fn is_ready(&self) -> bool {
        self.0.lock().values().all(Option::is_none)
    }

    /// The parts that are not ready, a line each.
    pub fn report(&self) -> Result<(), String> {
        let parts = self.0.lock();
        let waiting: Vec<_> =
            parts.iter().filter_map(|(part, why)| why.as_ref().map(|why| format!("{part}: {why}\n"))).collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting.concat()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_the_part_that_waits() {
        let readiness = Readiness::default();
        readiness.expect("kafka");
        readiness.ready("valkey");
        assert!(!readiness.is_ready());
        assert!(readiness.report().unwrap_err().contains("kafka: starting"));
        readiness.ready("kafka");
        assert_eq!(readiness.report(), Ok(()));
    }
}
