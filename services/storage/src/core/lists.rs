//! Users' lists: entries in the order of their activity hints, heads read for the page alone, and the caller's settings.

use std::{cmp::Reverse, collections::HashMap};

use kith_kit::error::Error;
use kith_proto::{
    chat::v1::Position,
    storage::v1::{
        Behind, ClearAt, ClearRequest, ClearResponse, Conversation, EntrySettings, Head, ListBehindRequest,
        ListBehindResponse, ListConversationsRequest, ListConversationsResponse, SetListEntryRequest, Settings,
        SettingsResult, Step, step, step_result,
    },
};

use serde_json::json;

use super::{
    Core, Plan, check,
    model::{EntryData, corrupt, key},
    no_conversation, no_user,
};
use crate::{
    engine::{Condition, CursorKind, EngineError, Expect, Field, Got, ListRow, Op, Swap, Walk, Want},
    event,
};

/// Entries that one walk through the pages comes past.
const MOST_WALKED: u64 = 5_000;
/// Pages looked at in one call when entries are hidden or nothing is behind.
const ROUNDS: u32 = 25;

/// Where a walk goes on: the activity, how many entries with that activity were passed, and how many in all.
struct Place {
    activity: i64,
    offset: u32,
    walked: u64,
}

impl Place {
    fn read(cursor: &str) -> Result<Option<Self>, Error> {
        if cursor.is_empty() {
            return Ok(None);
        }
        let parse = || {
            let mut parts = cursor.split('.');
            let place = Self {
                activity: parts.next()?.parse().ok()?,
                offset: parts.next()?.parse().ok()?,
                walked: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(place)
        };
        parse().map(Some).ok_or_else(|| Error::invalid("cursor: not one that was given out"))
    }

    fn write(&self) -> String {
        format!("{}.{}.{}", self.activity, self.offset, self.walked)
    }

    /// Behind `rows`, which were read from this place on.
    fn behind(before: Option<&Self>, rows: &[ListRow]) -> Option<Self> {
        let last = rows.last()?;
        let same = rows.iter().filter(|r| r.activity == last.activity).count() as u32;
        let carried = before.filter(|b| b.activity == last.activity).map_or(0, |b| b.offset);
        let walked = before.map_or(0, |b| b.walked) + rows.len() as u64;
        Some(Self { activity: last.activity, offset: same + carried, walked })
    }
}

fn head_step(conversation_id: &str, user_id: &str, device_id: &str, with_last_message: bool) -> Step {
    let head = Head { user_id: user_id.to_owned(), device_id: device_id.to_owned(), with_last_message };
    Step { id: conversation_id.to_owned(), step: Some(step::Step::Head(head)) }
}

impl Core {
    pub(super) async fn enter_list(&self, user_id: &str, conversation_id: &str, activity: i64) -> Result<bool, Error> {
        check::user("user_id", user_id)?;
        check::conversation(conversation_id)?;
        let partition = self.partition(user_id);
        // One call that asks and writes: a user is made once and never unmade.
        let made = Condition { field: Field::new(key::profile(user_id), "v"), expect: Expect::Present };
        let entry = Op::Score { key: key::list(user_id), score: activity, member: conversation_id.to_owned() };
        let data = json!({"user_id": user_id, "conversation_id": conversation_id, "activity": activity.to_string()});
        let event = Op::Emit(event::body("list.entered", user_id, Self::now(), &data));
        let swap = Swap { conditions: vec![made], ops: vec![entry, event] };
        match self.engine().swap(partition, swap, Self::end()).await {
            Ok(()) => Ok(true),
            Err(EngineError::Conflict) => Err(no_user()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn leave_list(&self, user_id: &str, conversation_id: &str) -> Result<bool, Error> {
        let data = json!({"user_id": user_id, "conversation_id": conversation_id});
        let ops = vec![
            Op::Unscore { key: key::list(user_id), member: conversation_id.to_owned() },
            Op::Delete(Field::new(key::settings(user_id), conversation_id)),
            Op::Emit(event::body("list.left", user_id, Self::now(), &data)),
        ];
        let swap = Swap { conditions: Vec::new(), ops };
        self.engine().swap(self.partition(user_id), swap, Self::end()).await?;
        Ok(true)
    }

    async fn list_rows(
        &self,
        user_id: &str,
        walk: impl Fn(Option<i64>) -> Walk,
        place: Option<&Place>,
        limit: u32,
    ) -> Result<Vec<ListRow>, Error> {
        let offset = place.map_or(0, |p| p.offset);
        let walk = walk(place.map(|p| p.activity));
        Ok(self.engine().list(self.partition(user_id), user_id, walk, offset, limit, Self::end()).await?)
    }

    /// One page of a user's list, newest first.
    pub(crate) async fn list_conversations(
        &self,
        request: ListConversationsRequest,
    ) -> Result<ListConversationsResponse, Error> {
        let ListConversationsRequest { user_id, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        let limit = check::limit(limit, 50, 200)?;
        let mut place = Place::read(&cursor)?;
        let mut conversations: Vec<Conversation> = Vec::new();
        for _ in 0..ROUNDS {
            let want = limit - conversations.len() as u32;
            let rows = self.list_rows(&user_id, Walk::Down, place.as_ref(), want).await?;
            let full = rows.len() == want as usize;
            if let Some(next) = Place::behind(place.as_ref(), &rows) {
                place = Some(next);
            }
            conversations.extend(self.page_heads(&user_id, rows).await?);
            if !full || place.as_ref().is_some_and(|p| p.walked >= MOST_WALKED) {
                place = None;
                break;
            }
            if conversations.len() as u32 == limit {
                break;
            }
        }
        conversations.sort_by_key(|c| Reverse(c.updated_at));
        Ok(ListConversationsResponse { conversations, next_cursor: place.map(|p| p.write()).unwrap_or_default() })
    }

    /// The heads of a page's entries; entries that the user may not see (any more) or has cleared are left out.
    async fn page_heads(&self, user_id: &str, rows: Vec<ListRow>) -> Result<Vec<Conversation>, Error> {
        let steps = rows.iter().map(|r| head_step(&r.conversation_id, user_id, "", true)).collect();
        let outcomes = self.apply(steps).await?;
        let mut page = Vec::with_capacity(rows.len());
        for (row, outcome) in rows.into_iter().zip(outcomes) {
            let step_result::Result::Head(head) = outcome? else {
                return Err(Error::internal("a head step without a head"));
            };
            let Some(mut conversation) = head.conversation else { continue };
            let entry = EntryData::unpack(row.settings.as_ref())
                .ok_or_else(|| corrupt(&key::settings(user_id), "not settings"))?;
            if entry.cleared > 0 && entry.cleared >= conversation.seq {
                continue;
            }
            conversation.pinned = entry.pinned;
            conversation.muted = entry.muted;
            page.push(conversation);
        }
        Ok(page)
    }

    /// What a device has not received yet, oldest activity first.
    pub(crate) async fn list_behind(&self, request: ListBehindRequest) -> Result<ListBehindResponse, Error> {
        let ListBehindRequest { user_id, device_id, cursors, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        check::user("device_id", &device_id)?;
        check::count("cursors", cursors.len(), MOST_WALKED as usize)?;
        let limit = check::limit(limit, 100, 200)?;
        let given: HashMap<String, u64> =
            cursors.into_iter().map(|Position { conversation_id, seq }| (conversation_id, seq)).collect();
        let mut place = Place::read(&cursor)?;
        let mut behind = Vec::new();
        for _ in 0..ROUNDS {
            let want = limit - behind.len() as u32;
            let rows = self.list_rows(&user_id, Walk::Up, place.as_ref(), want).await?;
            let full = rows.len() == want as usize;
            if let Some(next) = Place::behind(place.as_ref(), &rows) {
                place = Some(next);
            }
            behind.extend(self.page_behind(&user_id, &device_id, &given, &rows).await?);
            if !full || place.as_ref().is_some_and(|p| p.walked >= MOST_WALKED) {
                place = None;
                break;
            }
            if behind.len() as u32 == limit {
                break;
            }
        }
        Ok(ListBehindResponse { behind, next_cursor: place.map(|p| p.write()).unwrap_or_default() })
    }

    async fn page_behind(
        &self,
        user_id: &str,
        device_id: &str,
        given: &HashMap<String, u64>,
        rows: &[ListRow],
    ) -> Result<Vec<Behind>, Error> {
        let steps = rows.iter().map(|r| head_step(&r.conversation_id, user_id, device_id, false)).collect();
        let outcomes = self.apply(steps).await?;
        let mut behind = Vec::new();
        for (row, outcome) in rows.iter().zip(outcomes) {
            let step_result::Result::Head(head) = outcome? else {
                return Err(Error::internal("a head step without a head"));
            };
            let Some(conversation) = head.conversation else { continue };
            let stored = head.delivered_seq.max(head.visible_seq.saturating_sub(1));
            let known = given.get(&row.conversation_id).copied().unwrap_or(0).min(conversation.seq);
            let delivered_seq = stored.max(known);
            if delivered_seq < conversation.seq {
                behind.push(Behind {
                    conversation_id: row.conversation_id.clone(),
                    delivered_seq,
                    seq: conversation.seq,
                });
            }
        }
        Ok(behind)
    }

    /// Up to where a device has received a conversation that its user may see; what the user may not see counts as received.
    pub(super) async fn delivered(&self, conversation_id: &str, user_id: &str, device_id: &str) -> Result<u64, Error> {
        let step = head_step(conversation_id, user_id, device_id, false);
        match self.apply(vec![step]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Head(head))) if head.conversation.is_some() => {
                Ok(head.delivered_seq.max(head.visible_seq.saturating_sub(1)))
            }
            Some(Ok(step_result::Result::Head(_))) => Err(no_conversation()),
            Some(Err(error)) => Err(error),
            _ => Err(Error::internal("a head step without a head")),
        }
    }

    /// The user's settings of conversations; those without any are left out.
    pub(super) async fn entry_settings(&self, user_id: &str, ids: Vec<String>) -> Result<SettingsResult, Error> {
        let wants = ids.iter().map(|id| Want::Field(Field::new(key::settings(user_id), id.clone()))).collect();
        let got = self.engine().get(self.partition(user_id), wants, Self::end()).await?;
        let mut entries = Vec::new();
        for (conversation_id, got) in ids.into_iter().zip(got) {
            let Got::Field(Some(bytes)) = got else { continue };
            let entry =
                EntryData::unpack(Some(&bytes)).ok_or_else(|| corrupt(&key::settings(user_id), "not settings"))?;
            entries.push(EntrySettings {
                conversation_id,
                pinned: entry.pinned,
                muted: entry.muted,
                cleared_seq: entry.cleared,
            });
        }
        Ok(SettingsResult { entries })
    }

    /// Settings by conversation, from wherever the user's partition is.
    pub(super) async fn settings_of(
        &self,
        user_id: &str,
        ids: Vec<String>,
    ) -> Result<HashMap<String, EntrySettings>, Error> {
        let step =
            Step { id: user_id.to_owned(), step: Some(step::Step::Settings(Settings { conversation_ids: ids })) };
        match self.apply(vec![step]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Settings(found))) => {
                Ok(found.entries.into_iter().map(|e| (e.conversation_id.clone(), e)).collect())
            }
            Some(Err(error)) => Err(error),
            _ => Err(Error::internal("a settings step without settings")),
        }
    }

    pub(crate) async fn set_list_entry(&self, request: SetListEntryRequest) -> Result<(), Error> {
        let SetListEntryRequest { user_id, conversation_id, pinned, muted } = request;
        check::user("user_id", &user_id)?;
        check::conversation(&conversation_id)?;
        self.visible(&user_id, &conversation_id).await?;
        self.change_entry(&user_id, &conversation_id, |entry| {
            entry.pinned = pinned.unwrap_or(entry.pinned);
            entry.muted = muted.unwrap_or(entry.muted);
        })
        .await
    }

    async fn visible(&self, user_id: &str, conversation_id: &str) -> Result<(), Error> {
        match self.apply(vec![head_step(conversation_id, user_id, "", false)]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Head(head))) if head.conversation.is_some() => Ok(()),
            Some(Err(error)) => Err(error),
            _ => Err(no_conversation()),
        }
    }

    async fn change_entry(
        &self,
        user_id: &str,
        conversation_id: &str,
        change: impl Fn(&mut EntryData) + Send + Sync,
    ) -> Result<(), Error> {
        let field = Field::new(key::settings(user_id), conversation_id);
        self.update(self.partition(user_id), vec![field.clone()], |values| {
            let mut entry = EntryData::unpack(values[0].as_ref()).ok_or_else(|| corrupt(&field.key, "not settings"))?;
            let before = entry;
            change(&mut entry);
            if entry == before {
                return Ok(Plan::nothing(()));
            }
            let op = if entry == EntryData::default() {
                Op::Delete(field.clone())
            } else {
                Op::Set(field.clone(), entry.pack())
            };
            let data = json!({
                "user_id": user_id, "conversation_id": conversation_id, "pinned": entry.pinned, "muted": entry.muted,
                "cleared_seq": entry.cleared.to_string(),
            });
            let event = Op::Emit(event::body("list.updated", user_id, Self::now(), &data));
            Ok(Plan::new(vec![op, event], ()))
        })
        .await
    }

    /// Hides everything up to now: first where history is read, then in the list.
    pub(crate) async fn clear(&self, request: ClearRequest) -> Result<ClearResponse, Error> {
        let ClearRequest { user_id, conversation_id } = request;
        check::user("user_id", &user_id)?;
        check::conversation(&conversation_id)?;
        let step =
            Step { id: conversation_id.clone(), step: Some(step::Step::ClearAt(ClearAt { user_id: user_id.clone() })) };
        let cleared_seq = match self.apply(vec![step]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Seq(seq))) => seq,
            Some(Err(error)) => return Err(error),
            _ => return Err(Error::internal("a clear step without a seq")),
        };
        self.change_entry(&user_id, &conversation_id, |entry| entry.cleared = entry.cleared.max(cleared_seq)).await?;
        Ok(ClearResponse { cleared_seq })
    }

    pub(super) async fn clear_at(&self, conversation_id: &str, user_id: &str) -> Result<u64, Error> {
        self.seen(user_id, conversation_id).await?;
        let data =
            json!({"conversation_id": conversation_id, "user_id": user_id, "cleared_seq": event::FOUND.to_string()});
        self.move_cursor(conversation_id, user_id, CursorKind::Cleared, 0, "conversation.cleared", data).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_one_that_was_given_out_or_refused(text in "\\PC{0,40}", activity in any::<i64>(), offset in any::<u32>(), walked in any::<u64>()) {
            drop(Place::read(&text));
            let place = Place { activity, offset, walked };
            let back = Place::read(&place.write()).unwrap().unwrap();
            prop_assert_eq!((back.activity, back.offset, back.walked), (activity, offset, walked));
        }
    }
}
