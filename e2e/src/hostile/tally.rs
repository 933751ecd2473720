//! What the attacker was answered, by attack and answer.

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;

/// Counts by attack and answer. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>>>);

impl Tally {
    /// Counts one answer.
    pub(super) fn count(&self, attack: &'static str, answer: impl Into<String>) {
        *self.0.lock().entry(attack).or_default().entry(answer.into()).or_default() += 1;
    }

    /// How often an attack was answered so.
    pub fn of(&self, attack: &str, answer: &str) -> u64 {
        self.0.lock().get(attack).and_then(|answers| answers.get(answer)).copied().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (attack, answers) in self.0.lock().iter() {
            let answers: Vec<String> = answers.iter().map(|(answer, n)| format!("{answer} × {n}")).collect();
            writeln!(f, "  {attack:<14} {}", answers.join(", "))?;
        }
        Ok(())
    }
}
