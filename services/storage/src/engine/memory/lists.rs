//! Users' lists and hashes that are read in pages, in memory.

use std::{collections::BTreeMap, ops::Bound};

use super::Data;
use crate::{
    engine::{EngineError, Entry, FieldPage, ListRow, Range, Refusal, Spot},
    event, weight,
};

impl Data {
    /// Raises activity hints; says whether the list holds all of these entries.
    pub(super) fn raise(&mut self, user: &str, hints: Vec<(String, i64)>) -> bool {
        let list = self.scores.entry(format!("l:{user}")).or_default();
        let mut whole = true;
        for (id, activity) in hints {
            match list.get_mut(&id) {
                Some(score) => *score = activity.max(*score),
                None => whole = false,
            }
        }
        whole
    }

    pub(super) fn number_of(&self, key: &str, prefix: &str) -> u64 {
        let names = self.hashes.get(key).into_iter().flatten().filter(|(name, _)| name.starts_with(prefix)).count();
        (names + self.scores.get(key).map_or(0, BTreeMap::len)) as u64
    }

    pub(super) fn enter(&mut self, entry: Entry) -> Result<bool, EngineError> {
        let Entry { user_id, conversation_id, activity, most, gives_way, entered, left } = entry;
        let (list, settings) = (format!("l:{user_id}"), format!("s:{user_id}"));
        if self.field(&format!("u:{user_id}"), "v").is_none() {
            return Err(EngineError::Refused(Refusal::NoUser));
        }
        if let Some(score) = self.scores.get_mut(&list).and_then(|l| l.get_mut(&conversation_id)) {
            *score = activity.max(*score);
            return Ok(false);
        }
        if self.number_of(&list, "") >= most {
            let gone = self.gives_way(&list, &settings, gives_way).ok_or(EngineError::Refused(Refusal::Full))?;
            self.scores.entry(list.clone()).or_default().remove(&gone);
            self.hashes.entry(settings).or_default().remove(&gone);
            self.emit(event::filled(&left, &gone));
        }
        self.scores.entry(list).or_default().insert(conversation_id, activity);
        self.emit(entered);
        Ok(true)
    }

    /// The entry of a full list that gives way.
    fn gives_way(&self, list: &str, settings: &str, any: bool) -> Option<String> {
        let oldest: Vec<(i64, String)> = self.scored(list).into_iter().take(100).collect();
        let (score, first) = oldest.first()?;
        if *score <= 0 {
            return Some(first.clone());
        }
        let pinned = |id: &str| self.field(settings, id).is_some_and(|s| s.starts_with(b"1"));
        any.then(|| oldest.iter().map(|(_, id)| id).find(|id| !pinned(id)).unwrap_or(first).clone())
    }

    pub(super) fn page(&self, range: &Range) -> FieldPage {
        let from = if range.after.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.after.as_str()) };
        let to = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end) };
        let fields = self.hashes.get(&range.key).into_iter().flat_map(|h| h.range::<str, _>((from, to)));
        let mut page = FieldPage { fields: Vec::new(), more: false };
        let mut bytes = 0;
        for (name, value) in fields {
            bytes += name.len() + value.len();
            page.more = page.fields.len() == range.limit as usize || bytes > weight::PAGE && !page.fields.is_empty();
            if page.more {
                break;
            }
            page.fields.push((name.clone(), value.clone()));
        }
        page
    }

    pub(super) fn list(&self, user: &str, behind: Option<&Spot>, limit: usize) -> Vec<ListRow> {
        let mut rows = self.scored(&format!("l:{user}"));
        rows.reverse();
        rows.retain(|(score, id)| behind.is_none_or(|b| (*score, id) < (b.0, &b.1)));
        let page = rows.into_iter().take(limit);
        page.map(|(activity, id)| ListRow {
            settings: self.field(&format!("s:{user}"), &id).cloned(),
            conversation_id: id,
            activity,
        })
        .collect()
    }
}
