//! Pages of conversations and their heads, in memory.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use super::Data;
use crate::{
    engine::{CursorKind, EngineError, HeadRow, History, Last, Page, Stored, Window},
    weight,
};

impl Data {
    fn overlay(&self, id: &str, seq: u64) -> Option<&Bytes> {
        self.field(&format!("x:{id}"), &seq.to_string())
    }

    fn weight(&self, id: &str, seq: u64, row: &Bytes) -> usize {
        weight::of(row.len(), self.overlay(id, seq).map_or(0, Bytes::len))
    }

    pub(super) fn history(&self, id: &str, page: Page) -> Result<Option<History>, EngineError> {
        let head = format!("c:{id}");
        let Some(seq) = self.count(&head, "s")? else { return Ok(None) };
        let none = BTreeMap::new();
        let rows = self.messages.get(id).unwrap_or(&none);
        let found: Box<dyn Iterator<Item = (&u64, &Bytes)>> = match page.window {
            Window::Newest => Box::new(rows.iter().rev()),
            Window::Before(before) => Box::new(rows.range(..before).rev()),
            Window::After(after) => Box::new(rows.range((Bound::Excluded(after), Bound::Unbounded))),
        };
        let floor = self.count(&head, "f")?.unwrap_or(0);
        let mut history = History { seq, floor, messages: Vec::new(), cut: false };
        let mut bytes = 0;
        for (seq, row) in found.take(page.limit as usize) {
            bytes += self.weight(id, *seq, row);
            if bytes > page.bytes && !(page.first && history.messages.is_empty()) {
                history.cut = true;
                break;
            }
            history.messages.push(Stored { seq: *seq, row: row.clone(), overlay: self.overlay(id, *seq).cloned() });
        }
        history.messages.sort_by_key(|m| m.seq);
        Ok(Some(history))
    }

    pub(super) fn heads(&self, ids: &[String], user: &str, device: &str, last: usize) -> Vec<HeadRow> {
        let mut left = last;
        ids.iter().map(|id| self.head(id, user, device, (last > 0).then_some(&mut left))).collect()
    }

    fn head(&self, id: &str, user: &str, device: &str, left: Option<&mut usize>) -> HeadRow {
        let fields = self.all(&format!("c:{id}"));
        if fields.is_empty() {
            return HeadRow::default();
        }
        let cursor = |name: String| self.field(&format!("r:{id}"), &name).filter(|_| !user.is_empty()).cloned();
        let newest = self.messages.get(id).and_then(|rows| rows.last_key_value());
        let last = match (newest, left) {
            (Some((seq, row)), Some(left)) => match left.checked_sub(self.weight(id, *seq, row)) {
                Some(rest) => {
                    *left = rest;
                    Last::Row(row.clone(), self.overlay(id, *seq).cloned())
                }
                None => Last::Over,
            },
            _ => Last::None,
        };
        HeadRow {
            fields,
            member: self.field(&format!("g:{id}"), user).cloned(),
            read: cursor(CursorKind::Read.field(user)),
            own: cursor(format!("s{user}")),
            cleared: cursor(CursorKind::Cleared.field(user)),
            delivered: cursor(CursorKind::Delivered(device.to_owned()).field(user)),
            last,
        }
    }
}
