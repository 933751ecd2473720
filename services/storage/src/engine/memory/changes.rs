//! Changes of members, in memory.

use super::Data;
use crate::{
    core::model::{MOST, key, whole},
    engine::{ChangePage, EngineError, MemberChange, Since},
};

/// Changes of members of one conversation that are remembered.
const MOST_CHANGES: usize = 10_000;

impl Data {
    /// The number behind one that counts.
    pub(super) fn next(&self, key: &str, name: &str) -> Result<u64, EngineError> {
        let found = self.count(key, name)?.filter(|found| *found < MOST);
        found.map(|found| found + 1).ok_or_else(|| EngineError::DataLoss(format!("{key} {name}")))
    }

    /// The library's `note_changes`.
    pub(super) fn note_changes(&mut self, id: &str, from: u64, to: u64) {
        let (head, set) = (key::conversation(id), key::changes(id));
        let stored = |name: &str| self.field(&head, name).and_then(whole::<u64>);
        let (first, last) = (stored("wf"), stored("wt"));
        if first.is_some() && last == Some(to) {
            return;
        }
        let mut first = first.filter(|_| last == Some(from)).unwrap_or(from);
        let changes = self.scored(&set);
        for (version, member) in changes.iter().take(changes.len().saturating_sub(MOST_CHANGES)) {
            first = first.max(version.unsigned_abs());
            self.scores.entry(set.clone()).or_default().remove(member);
        }
        self.set(head.clone(), "wf", first.to_string());
        self.set(head, "wt", to.to_string());
    }

    pub(super) fn changes(&self, id: &str, since: &Since) -> Result<Option<ChangePage>, EngineError> {
        let head = key::conversation(id);
        let Some(version) = self.count(&head, "mv")? else { return Ok(None) };
        let count = self.count(&head, "n")?.unwrap_or(0);
        let page = |changes| Ok(Some(ChangePage { version, count, changes }));
        if since.version == version {
            return page(Some(Vec::new()));
        }
        let stored = |name: &str| self.field(&head, name).and_then(whole::<u64>);
        let whole = stored("wf").is_some_and(|first| since.version >= first) && stored("wt") == Some(version);
        if since.version > version || !whole {
            return page(None);
        }
        let changes = self.scored(&key::changes(id)).into_iter().map(|(at, member)| (at.unsigned_abs(), member));
        let changes = changes.filter(|change| change.0 > since.version);
        let rest = changes.filter(|change| since.behind.as_ref().is_none_or(|behind| change > behind));
        let changes = rest.take(since.limit as usize).map(|(version, user_id)| MemberChange {
            row: self.field(&key::members(id), &user_id).cloned(),
            user_id,
            version,
        });
        page(Some(changes.collect()))
    }
}
