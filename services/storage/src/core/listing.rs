//! Pages of a user's list, newest activity first.
//!
//! Entries stand in the order of activity hints, which may be somewhat older than the truth (see [`super::hints`]). A page therefore comes
//! from a window of entries: at least 50, and beyond those as many as may be more active than their hints say. Heads are read for the whole
//! window, sorted by true activity, and shown page by page until the window is through; then the next one begins. Each window is the same
//! stretch of the list for all of its pages, so that every entry is shown once, whatever its hint says.

use std::{cmp::Reverse, time::Duration};

use kith_kit::{error::Error, ids};
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{Conversation, ListConversationsRequest, ListConversationsResponse, step_result},
};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Code;

use super::{
    Core, check, hints,
    lists::head_step,
    model::{EntryData, corrupt, key},
    peers,
};
use crate::engine::{ListRow, Spot};

/// Entries of a window, and how many more where hints may be stale.
const WINDOW: u32 = 50;
const BEYOND: u32 = 150;
/// Entries read at once where a window goes on: more than one has.
const STRETCH: u32 = 400;
/// Heads with their last messages that are read at once; a page ends after those with which it weighs so much.
const CHUNK: usize = 50;
const PAGE_BYTES: usize = 2 << 20;
/// How long heads may take, and after how long a call ends with what it has: well before its caller asks anew.
pub(super) const HEADS: Duration = Duration::from_millis(900);
pub(super) const ENOUGH: Duration = Duration::from_secs(1);

/// Where a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The entry behind which the window begins; none: the newest.
    behind: Option<Spot>,
    /// The window's last entry, and what of it was shown last, by true activity; none: a new window.
    within: Option<(Spot, Spot)>,
}

/// One conversation of a window.
struct Shown {
    conversation: Conversation,
    row: ListRow,
}

impl Shown {
    fn spot(&self) -> Spot {
        Spot(self.conversation.updated_at, self.conversation.conversation_id.clone())
    }
}

/// Just above a row: no id holds a tilde, and all that they hold comes before it.
fn above(row: &ListRow) -> Spot {
    Spot(row.activity, format!("{}~", row.conversation_id))
}

/// How many of the rows, which are the next ones of the list, make a window for pages of `limit`.
fn window(rows: &[ListRow], limit: u32) -> usize {
    let least = rows.len().min(limit.max(WINDOW) as usize);
    let Some(last) = rows.get(rows.len().min(limit as usize).saturating_sub(1)) else { return 0 };
    // Whatever may be as active as the last one of the first page.
    let stale = |row: &ListRow| row.activity.saturating_add(hints::most_stale(&row.conversation_id)) >= last.activity;
    rows.iter().rposition(stale).map_or(least, |at| least.max(at + 1))
}

/// Outcomes of which some may have failed; where all did because something did not answer, the call fails as a whole, to be tried again.
pub(super) fn told_apart(outcomes: Vec<peers::Outcome>) -> Result<Vec<peers::Outcome>, Error> {
    let silent = |o: &peers::Outcome| matches!(o, Err(e) if e.is_retryable() || e.code == Code::DeadlineExceeded);
    match outcomes.first() {
        Some(Err(error)) if outcomes.iter().all(silent) => Err(error.clone()),
        _ => Ok(outcomes),
    }
}

/// A conversation that could not be read: nothing but its name and the reason.
fn failed(row: &ListRow, error: Error) -> Conversation {
    let id = &row.conversation_id;
    let kind = match ids::check_conversation_id("conversation_id", id) {
        Ok(ids::ConversationId::Group(_)) => ConversationKind::Group,
        Ok(ids::ConversationId::System { .. }) => ConversationKind::System,
        _ => ConversationKind::Direct,
    };
    Conversation {
        conversation_id: id.clone(),
        kind: kind as i32,
        updated_at: row.activity,
        error: Some(error.into()),
        ..Conversation::default()
    }
}

impl Core {
    /// One page of a user's list.
    pub(crate) async fn list_conversations(
        &self,
        request: ListConversationsRequest,
    ) -> Result<ListConversationsResponse, Error> {
        let ListConversationsRequest { user_id, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        let limit = check::limit(limit, 50, 200)?;
        let owner = [user_id.as_str()];
        let mut place: Option<Place> = Some(self.0.cursors.read("conversations", &owner, &cursor)?.unwrap_or_default());
        let enough = Instant::now() + ENOUGH;
        let mut conversations = Vec::new();
        let mut bytes = 0;
        while let Some(at) = place.take() {
            let (mut page, next) = self.next_of_window(&user_id, at, limit, &mut bytes).await?;
            conversations.append(&mut page);
            place = next;
            if !conversations.is_empty() || Instant::now() >= enough {
                break;
            }
        }
        let next_cursor = match &place {
            Some(place) => self.0.cursors.write("conversations", &owner, place)?,
            None => String::new(),
        };
        Ok(ListConversationsResponse { conversations, next_cursor })
    }

    /// What a window still has to show, at most `limit`, and where it goes on.
    async fn next_of_window(
        &self,
        user_id: &str,
        place: Place,
        limit: u32,
        bytes: &mut usize,
    ) -> Result<(Vec<Conversation>, Option<Place>), Error> {
        let Place { behind, within } = place;
        let (end, after) = within.unzip();
        let (rows, more) = match &end {
            Some(end) => self.stretch(user_id, behind.clone(), end).await?,
            None => {
                let most = limit.max(WINDOW) + BEYOND;
                let list = self.engine().list(self.partition(user_id), user_id, behind.as_ref(), most, Self::end());
                let mut rows = list.await?;
                let taken = window(&rows, limit);
                let more = rows.len() == most as usize || taken < rows.len();
                rows.truncate(taken);
                (rows, more)
            }
        };
        // What rises above the newest entry while the window is shown is not part of it.
        let behind = behind.or_else(|| rows.first().map(above));
        let Some(end) = end.or_else(|| rows.last().map(ListRow::spot)) else { return Ok((Vec::new(), None)) };
        let with_last = rows.len() <= CHUNK;
        let mut shown = self.heads_of(user_id, rows, with_last).await?;
        shown.sort_by_key(|s| Reverse(s.spot()));
        if let Some(after) = after {
            shown.retain(|s| s.spot() < after);
        }
        let left = shown.split_off(shown.len().min(limit as usize));
        let mut page = Vec::with_capacity(shown.len());
        let mut last = None;
        let mut cut = false;
        let mut shown = shown.into_iter();
        loop {
            let chunk: Vec<Shown> = shown.by_ref().take(CHUNK).collect();
            let Some(newest) = chunk.last().map(Shown::spot) else { break };
            last = Some(newest);
            let chunk = if with_last {
                chunk
            } else {
                let rows = chunk.into_iter().map(|s| s.row).collect();
                self.heads_of(user_id, rows, true).await?
            };
            self.raise_stale(user_id, &chunk);
            *bytes += chunk.iter().map(|s| s.conversation.encoded_len()).sum::<usize>();
            page.extend(chunk.into_iter().map(|s| s.conversation));
            if *bytes >= PAGE_BYTES {
                cut = shown.len() > 0;
                break;
            }
        }
        let next = match last {
            Some(last) if cut || !left.is_empty() => Some(Place { behind, within: Some((end, last)) }),
            _ if more => Some(Place { behind: Some(end), within: None }),
            _ => None,
        };
        Ok((page, next))
    }

    /// The entries from behind a place to the end of a window, and whether there are more.
    async fn stretch(
        &self,
        user_id: &str,
        mut behind: Option<Spot>,
        end: &Spot,
    ) -> Result<(Vec<ListRow>, bool), Error> {
        let mut found = Vec::new();
        loop {
            let list = self.engine().list(self.partition(user_id), user_id, behind.as_ref(), STRETCH, Self::end());
            let rows = list.await?;
            let read = rows.len();
            behind = rows.last().map(ListRow::spot);
            found.extend(rows);
            let inside = found.partition_point(|row| row.spot() >= *end);
            if inside < found.len() {
                found.truncate(inside);
                return Ok((found, true));
            }
            if read < STRETCH as usize {
                return Ok((found, false));
            }
        }
    }

    /// The conversations of entries. Those that the user may not see (any more) or has cleared are left out; one that cannot be read is
    /// named with its error.
    async fn heads_of(&self, user_id: &str, rows: Vec<ListRow>, with_last: bool) -> Result<Vec<Shown>, Error> {
        let steps = rows.iter().map(|r| head_step(&r.conversation_id, user_id, "", with_last)).collect();
        let outcomes = told_apart(self.apply_within(steps, HEADS).await?)?;
        let mut shown = Vec::with_capacity(rows.len());
        for (row, outcome) in rows.into_iter().zip(outcomes) {
            let settings = || corrupt(&key::settings(user_id), "not settings");
            let read = match outcome {
                Ok(step_result::Result::Head(head)) => {
                    EntryData::unpack(row.settings.as_ref()).ok_or_else(settings).map(|entry| (head, entry))
                }
                Ok(_) => Err(Error::internal("a head step without a head")),
                Err(error) => Err(error),
            };
            let conversation = match read {
                Err(error) => failed(&row, error),
                Ok((head, entry)) => {
                    let Some(mut conversation) = head.conversation else { continue };
                    let cleared = entry.cleared.max(head.cleared_seq);
                    if cleared > 0 && cleared >= conversation.seq {
                        continue;
                    }
                    conversation.pinned = entry.pinned;
                    conversation.muted = entry.muted;
                    conversation
                }
            };
            shown.push(Shown { conversation, row });
        }
        Ok(shown)
    }

    /// Puts hints right that are older than they may be: one was lost with an instance that ended.
    fn raise_stale(&self, user_id: &str, shown: &[Shown]) {
        let lags = |s: &&Shown| {
            let most = hints::most_stale(&s.row.conversation_id).saturating_mul(2);
            s.conversation.updated_at.saturating_sub(s.row.activity) > most
        };
        let steps: Vec<_> = shown
            .iter()
            .filter(lags)
            .map(|s| peers::hint(user_id, &s.row.conversation_id, s.conversation.updated_at))
            .collect();
        if !steps.is_empty() {
            let core = self.clone();
            tokio::spawn(async move { core.send_hints(steps).await });
        }
    }
}
