//! What a device has not received yet, newest activity first.
//!
//! A walk goes through the whole list, page after page. What becomes active meanwhile moves to the top, behind the walk; once the walk is at
//! the bottom it therefore goes over what has moved above the entry where it began.

use std::collections::HashMap;

use kith_proto::{
    chat::v1::Position,
    storage::v1::{Behind, ListBehindRequest, ListBehindResponse, step_result},
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Core, check,
    listing::{ENOUGH, HEADS, told_apart},
    lists::{MOST_ENTRIES, head_step},
    no_conversation,
};
use crate::engine::{ListRow, Spot};

/// Entries that are looked at together, at least.
const CHUNK: u32 = 50;

/// Where a walk goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The entry where the walk began.
    top: Spot,
    /// The entry behind which it goes on; none: at the newest.
    behind: Option<Spot>,
    /// Whether it goes over what has moved above `top`.
    again: bool,
}

impl Core {
    /// Conversations of which a device lacks something.
    pub(crate) async fn list_behind(&self, request: ListBehindRequest) -> Result<ListBehindResponse, Error> {
        let ListBehindRequest { user_id, device_id, cursors, limit, cursor } = request;
        check::user("user_id", &user_id)?;
        check::user("device_id", &device_id)?;
        check::count("cursors", cursors.len(), MOST_ENTRIES as usize)?;
        let limit = check::limit(limit, 100, 200)? as usize;
        let given: HashMap<String, u64> =
            cursors.into_iter().map(|Position { conversation_id, seq }| (conversation_id, seq)).collect();
        let owner = [user_id.as_str(), device_id.as_str()];
        let mut place: Option<Place> = self.0.cursors.read("behind", &owner, &cursor)?;
        let enough = Instant::now() + ENOUGH;
        let mut behind = Vec::new();
        loop {
            let want = CHUNK.max((limit - behind.len()) as u32);
            let from = place.as_ref().and_then(|p| p.behind.as_ref());
            let mut rows = self.engine().list(self.partition(&user_id), &user_id, from, want, Self::end()).await?;
            let mut ended = rows.len() < want as usize;
            let again = place.as_ref().is_some_and(|p| p.again);
            let Some(top) = place.take().map(|p| p.top).or_else(|| rows.first().map(ListRow::spot)) else { break };
            if again {
                let before = rows.len();
                rows.retain(|row| row.spot() > top);
                ended |= rows.len() < before;
            }
            let mut last = rows.last().map(ListRow::spot);
            let looked = rows.len();
            for (at, (row, found)) in self.look(&user_id, &device_id, &given, rows).await?.into_iter().enumerate() {
                behind.extend(found);
                if behind.len() == limit && at + 1 < looked {
                    // The rest is looked at again with the next page.
                    (last, ended) = (Some(row.spot()), false);
                    break;
                }
            }
            if ended && again {
                break;
            }
            place = Some(Place { top, behind: if ended { None } else { last }, again: again || ended });
            if behind.len() >= limit || Instant::now() >= enough {
                break;
            }
        }
        let next_cursor = match &place {
            Some(place) => self.0.cursors.write("behind", &owner, place)?,
            None => String::new(),
        };
        Ok(ListBehindResponse { behind, next_cursor })
    }

    /// Entries, each with what the device lacks of it.
    async fn look(
        &self,
        user_id: &str,
        device_id: &str,
        given: &HashMap<String, u64>,
        rows: Vec<ListRow>,
    ) -> Result<Vec<(ListRow, Option<Behind>)>, Error> {
        let steps = rows.iter().map(|r| head_step(&r.conversation_id, user_id, device_id, 0)).collect();
        let outcomes = told_apart(self.apply_within(steps, HEADS).await?)?;
        let lacks = |row: &ListRow, outcome| {
            let conversation_id = row.conversation_id.clone();
            let head = match outcome {
                Ok(step_result::Result::Head(head)) => head,
                Ok(_) => return Some(failed(conversation_id, Error::internal("a head step without a head"))),
                Err(error) => return Some(failed(conversation_id, error)),
            };
            let seq = head.conversation?.seq;
            let stored = head.delivered_seq.max(head.visible_seq.saturating_sub(1));
            let known = given.get(&conversation_id).copied().unwrap_or(0).min(seq);
            let delivered_seq = stored.max(known);
            (delivered_seq < seq).then_some(Behind { conversation_id, delivered_seq, seq, error: None })
        };
        Ok(rows
            .into_iter()
            .zip(outcomes)
            .map(|(row, outcome)| {
                let found = lacks(&row, outcome);
                (row, found)
            })
            .collect())
    }

    /// Up to where a device has received a conversation that its user may see; what the user may not see counts as received.
    pub(super) async fn delivered(&self, conversation_id: &str, user_id: &str, device_id: &str) -> Result<u64, Error> {
        let step = head_step(conversation_id, user_id, device_id, 0);
        match self.apply(vec![step]).await?.into_iter().next() {
            Some(Ok(step_result::Result::Head(head))) if head.conversation.is_some() => {
                Ok(head.delivered_seq.max(head.visible_seq.saturating_sub(1)))
            }
            Some(Ok(step_result::Result::Head(_))) => Err(no_conversation()),
            Some(Err(error)) => Err(error),
            _ => Err(Error::internal("a head step without a head")),
        }
    }
}

fn failed(conversation_id: String, error: Error) -> Behind {
    Behind { conversation_id, error: Some(error.into()), ..Behind::default() }
}
