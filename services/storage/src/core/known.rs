//! Users who are known to exist: a user is made once and never unmade.

use std::collections::HashSet;

use parking_lot::Mutex;

/// Users remembered; at the bound all are forgotten, which costs a look each.
const REMEMBERED: usize = 100_000;

/// Some of those who exist.
#[derive(Default)]
pub(super) struct Known(Mutex<HashSet<String>>);

impl Known {
    /// Whether the user is known; false says nothing.
    pub(super) fn holds(&self, user_id: &str) -> bool {
        self.0.lock().contains(user_id)
    }

    pub(super) fn add(&self, user_id: &str) {
        let mut known = self.0.lock();
        if !known.contains(user_id) {
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(user_id.to_owned());
        }
    }
}
