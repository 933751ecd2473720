//! Pages of a user's list, newest activity first.
//!
//! Entries stand in the order of activity hints, which may be somewhat older than the truth (see [`super::hints`]). A page therefore comes
//! from a window of entries: at least 50, and beyond those as many as may be more active than their hints say. Heads are read for the whole
//! window, sorted by true activity, and shown page by page until the window is through; then the next one begins. Each window is the same
//! stretch of the list for all of its pages, so that every entry is shown once, whatever its hint says.

use std::time::Duration;

use kith_contract::ids;
use kith_proto::{
    chat::v1::ConversationKind,
    storage::v1::{Conversation, ListConversationsRequest, ListConversationsResponse, step_result},
};
use kith_rpc::error::Error;
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
use crate::{
    engine::{ListRow, Spot},
    weight,
};

/// Entries of a window, and how many more where hints may be stale.
const WINDOW: u32 = 50;
const BEYOND: u32 = 150;
/// Entries read at once where a window goes on: more than one has.
const STRETCH: u32 = 400;
/// Heads with their last messages that are read at once.
const CHUNK: usize = 50;
/// What the conversations of a page weigh at most: an answer without its cursor; and what each takes beside itself.
const ROOM: usize = weight::PAGE - (8 << 10);
const BESIDE: usize = 8;
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
    /// Where it stands by true activity.
    spot: Spot,
    /// It has a last message that weighs more than was asked for.
    over: bool,
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
        // Of the page, everything counted.
        let mut bytes = 0;
        while let Some(at) = place.take() {
            let (mut page, next) = self.next_of_window(&user_id, at, limit, enough, &mut bytes).await?;
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
        enough: Instant,
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
        let share = if with_last { ROOM / rows.len().max(1) } else { 0 };
        let mut shown = self.heads_of(user_id, rows, share).await?;
        shown.sort_by(|a, b| b.spot.cmp(&a.spot));
        if let Some(after) = &after {
            shown.retain(|s| s.spot < *after);
        }
        let left = shown.split_off(shown.len().min(limit as usize));
        let mut page = Vec::with_capacity(shown.len());
        // What was shown last: the page goes on below it.
        let mut last = after;
        let mut cut = false;
        let mut shown = shown.into_iter();
        'page: loop {
            let chunk: Vec<Shown> = shown.by_ref().take(CHUNK).collect();
            let Some(lowest) = chunk.last().map(|s| s.spot.clone()) else { break };
            let chunk = if with_last { chunk } else { self.with_last(user_id, chunk, *bytes).await? };
            self.raise_stale(user_id, &chunk);
            for one in chunk {
                let spot = one.spot.clone();
                let Some(conversation) = self.fitting(user_id, one, enough, *bytes).await else {
                    cut = true;
                    break 'page;
                };
                *bytes += conversation.encoded_len() + BESIDE;
                page.push(conversation);
                last = Some(spot);
            }
            last = Some(lowest);
        }
        let next = match last {
            last if cut || !left.is_empty() => Some(Place { behind, within: last.map(|last| (end, last)) }),
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

    /// Conversations again, now with their last messages where there is room for those beside the page's `bytes`.
    async fn with_last(&self, user_id: &str, chunk: Vec<Shown>, bytes: usize) -> Result<Vec<Shown>, Error> {
        let share = (ROOM.saturating_sub(bytes) / chunk.len().max(1)).max(1);
        let (spots, rows): (Vec<_>, Vec<_>) = chunk.into_iter().map(|s| (s.spot, s.row)).unzip();
        let mut again = self.heads_of(user_id, rows, share).await?;
        for shown in &mut again {
            // It keeps its place in the window, whatever has come meanwhile.
            if let Some(spot) = spots.iter().find(|spot| spot.1 == shown.row.conversation_id) {
                shown.spot = spot.clone();
            }
        }
        Ok(again)
    }

    /// A conversation for which there is room beside the page's `bytes`, and always for the first of a page. One whose last message took
    /// more than its share is read again, with all that is left.
    async fn fitting(&self, user_id: &str, shown: Shown, enough: Instant, bytes: usize) -> Option<Conversation> {
        let room = ROOM.saturating_sub(bytes);
        let (first, row) = (bytes == 0, shown.row.clone());
        let conversation = if !shown.over {
            shown.conversation
        } else if !first && (room <= weight::BESIDE || Instant::now() >= enough) {
            return None;
        } else {
            match self.heads_of(user_id, vec![shown.row], room).await.map(|mut again| again.pop()) {
                Ok(Some(again)) if again.over && !first => return None,
                Ok(Some(again)) => again.conversation,
                // Left or cleared meanwhile: as it was a moment ago.
                Ok(None) => shown.conversation,
                Err(error) => failed(&row, error),
            }
        };
        (first || conversation.encoded_len() + BESIDE <= room).then_some(conversation)
    }

    /// The conversations of entries. Those that the user may not see (any more) or has cleared are left out; one that cannot be read is
    /// named with its error. Each has its last message if that weighs at most `last`.
    async fn heads_of(&self, user_id: &str, rows: Vec<ListRow>, last: usize) -> Result<Vec<Shown>, Error> {
        let steps = rows.iter().map(|r| head_step(&r.conversation_id, user_id, "", last)).collect();
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
            let mut over = false;
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
                    over = last > 0 && head.last_message_over;
                    conversation
                }
            };
            let spot = Spot(conversation.updated_at, conversation.conversation_id.clone());
            shown.push(Shown { conversation, row, spot, over });
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
