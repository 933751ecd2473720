//! Users' lists: their entries, and each user's own settings of conversations. See [`super::listing`] and [`super::behind`] for pages of them.

use std::collections::HashMap;

use kith_contract::{
    events::{ConversationCleared, ListEntered, ListLeft, ListUpdated},
    found::Found,
};
use kith_proto::storage::v1::{
    ClearAt, ClearRequest, ClearResponse, EntrySettings, Head, SetListEntryRequest, Settings, SettingsResult, Step,
    step, step_result,
};
use kith_rpc::error::Error;
use tonic::Code;

use super::{
    Core, Plan, check, full,
    model::{EntryData, corrupt, key},
    no_conversation,
};
use crate::{
    engine::{CursorKind, EngineError, Entry, Field, Got, Op, Refusal, Swap, Want},
    event::{self, Plain},
};

/// Entries of one user's list.
pub(super) const MOST_ENTRIES: u64 = 20_000;
/// Settings of conversations of one user: not more than entries.
const MOST_SETTINGS: u64 = MOST_ENTRIES;
const TOO_MANY_SETTINGS: &str = "conversation_id: you have settings of 20,000 conversations: take some back";

/// With the last message if that weighs at most `last`.
pub(super) fn head_step(conversation_id: &str, user_id: &str, device_id: &str, last: usize) -> Step {
    let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
    let head = Head { user_id, device_id, with_last_message: last > 0, last_message_bytes: last as u32 };
    Step { id: conversation_id.to_owned(), step: Some(step::Step::Head(head)) }
}

impl Core {
    /// Enters a conversation into a list. Where it is full, a cleared conversation gives way; if the user did not ask for the entry, any
    /// may, the oldest first: it comes back with its next message.
    pub(super) async fn enter_list(
        &self,
        user_id: &str,
        conversation_id: &str,
        activity: i64,
        own: bool,
    ) -> Result<bool, Error> {
        check::user("user_id", user_id)?;
        check::place(conversation_id, user_id)?;
        let now = Self::now();
        let entered = Plain::ListEntered(ListEntered {
            activity,
            conversation_id: conversation_id.into(),
            user_id: user_id.into(),
        });
        let left = Plain::ListLeft(ListLeft { conversation_id: Found::Later, user_id: user_id.into() });
        let entry = Entry {
            user_id: user_id.to_owned(),
            conversation_id: conversation_id.to_owned(),
            activity,
            most: MOST_ENTRIES,
            gives_way: !own,
            entered: event::body(&entered, now),
            left: event::open_body(&left, now),
        };
        match self.engine().enter(self.partition(user_id), entry, Self::end()).await {
            Err(EngineError::Refused(Refusal::Full)) => {
                Err(full("your list holds 20,000 conversations: delete one before you begin another"))
            }
            outcome => Ok(outcome?),
        }
    }

    /// Raises an entry's activity hint. One that had given way to others comes back, if its user still sees the conversation.
    pub(super) async fn hint(&self, user_id: &str, conversation_id: &str, activity: i64) -> Result<(), Error> {
        let hints = vec![(conversation_id.to_owned(), activity)];
        if self.engine().hints(self.partition(user_id), user_id, hints, Self::end()).await?
            || self.visible(user_id, conversation_id).await.is_err()
        {
            return Ok(());
        }
        self.enter_list(user_id, conversation_id, activity, false).await?;
        // Who is removed in this moment may have been taken out of the list just before.
        match self.visible(user_id, conversation_id).await {
            Err(error) if error.code == Code::NotFound => self.leave_list(user_id, conversation_id).await.map(drop),
            outcome => outcome,
        }
    }

    pub(super) async fn leave_list(&self, user_id: &str, conversation_id: &str) -> Result<bool, Error> {
        let left =
            Plain::ListLeft(ListLeft { conversation_id: Found::Is(conversation_id.into()), user_id: user_id.into() });
        let ops = vec![
            Op::Unscore { key: key::list(user_id), member: conversation_id.to_owned() },
            Op::Delete(Field::new(key::settings(user_id), conversation_id)),
            Op::Emit(event::body(&left, Self::now())),
        ];
        let swap = Swap { conditions: Vec::new(), ops };
        self.engine().free(self.partition(user_id), swap, Self::end()).await?;
        Ok(true)
    }

    /// The user's settings of conversations; those without any are left out.
    pub(super) async fn entry_settings(&self, user_id: &str, ids: Vec<String>) -> Result<SettingsResult, Error> {
        let wants = ids.iter().map(|id| Want::Field(Field::new(key::settings(user_id), id.clone()))).collect();
        let got = self.engine().get(self.partition(user_id), wants, Self::end()).await?;
        let mut entries = Vec::new();
        for (conversation_id, got) in ids.into_iter().zip(got) {
            let Got::Field(Some(bytes)) = got else { continue };
            let Some(entry) = EntryData::unpack(Some(&bytes)) else {
                // It is told in the log; one damaged row does not hide the others.
                corrupt(&key::settings(user_id), "not settings");
                continue;
            };
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
        check::place(&conversation_id, &user_id)?;
        self.visible(&user_id, &conversation_id).await?;
        self.change_entry(&user_id, &conversation_id, None, |entry| {
            entry.pinned = pinned.unwrap_or(entry.pinned);
            entry.muted = muted.unwrap_or(entry.muted);
        })
        .await
    }

    async fn visible(&self, user_id: &str, conversation_id: &str) -> Result<(), Error> {
        match self.apply(vec![head_step(conversation_id, user_id, "", 0)]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Head(head))) if head.conversation.is_some() => Ok(()),
            Some(Err(error)) => Err(error),
            _ => Err(no_conversation()),
        }
    }

    /// Changes the settings of an entry, and its activity hint where one is given.
    async fn change_entry(
        &self,
        user_id: &str,
        conversation_id: &str,
        activity: Option<i64>,
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
            let updated = Plain::ListUpdated(ListUpdated {
                cleared_seq: entry.cleared,
                conversation_id: conversation_id.into(),
                muted: entry.muted,
                pinned: entry.pinned,
                user_id: user_id.into(),
            });
            let event = Op::Emit(event::body(&updated, Self::now()));
            let key = key::list(user_id);
            let hint = activity.map(|score| Op::Rescore { key, score, member: conversation_id.to_owned() });
            let ops: Vec<Op> = [op, event].into_iter().chain(hint).collect();
            // Settings that stand are written over, and what clears moves a position.
            let plan = if values[0].is_some() || entry.cleared > before.cleared {
                Plan::freeing(ops, ())
            } else {
                Plan::new(ops, ())
            };
            let room = Field::new(key::settings(user_id), "");
            Ok(if values[0].is_some() { plan } else { plan.within(room, MOST_SETTINGS, TOO_MANY_SETTINGS) })
        })
        .await
    }

    /// Hides everything up to now: first where history is read, then in the list.
    pub(crate) async fn clear(&self, request: ClearRequest) -> Result<ClearResponse, Error> {
        let ClearRequest { user_id, conversation_id } = request;
        check::user("user_id", &user_id)?;
        check::place(&conversation_id, &user_id)?;
        let step =
            Step { id: conversation_id.clone(), step: Some(step::Step::ClearAt(ClearAt { user_id: user_id.clone() })) };
        let cleared_seq = match self.apply(vec![step]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Seq(seq))) => seq,
            Some(Err(error)) => return Err(error),
            _ => return Err(Error::internal("a clear step without a seq")),
        };
        // To the bottom of the list, where it is the first to give way to others; its next message raises it.
        let cleared = |entry: &mut EntryData| entry.cleared = entry.cleared.max(cleared_seq);
        self.change_entry(&user_id, &conversation_id, Some(0), cleared).await?;
        Ok(ClearResponse { cleared_seq })
    }

    pub(super) async fn clear_at(&self, conversation_id: &str, user_id: &str) -> Result<u64, Error> {
        self.seen(user_id, conversation_id).await?;
        let cleared = Plain::ConversationCleared(ConversationCleared {
            cleared_seq: Found::Later,
            conversation_id: conversation_id.into(),
            user_id: user_id.into(),
        });
        let seq = self.move_cursor(conversation_id, user_id, CursorKind::Cleared, 0, &cleared).await?;
        // The next message raises the entry at once.
        self.0.hints.forget(conversation_id);
        Ok(seq)
    }
}
