//! Cursors of a device: acknowledge what arrived, pull what did not.

use std::{collections::BTreeMap, ops::Bound};

use axum::{Json, extract::State};
use kith_contract::ids;
use kith_contract::json::{Object, U64};
use kith_proto::{
    chat::v1 as chat,
    storage::v1::{ConversationMessages, ListBehindRequest},
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tonic::Code;
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    budget::PAGE,
    caller::Caller,
    extract::{Body, limit},
    state::{App, Shared},
    view::{self, Failure, Position, ROOM},
};

/// Positions in one acknowledgement.
const MAX_ACKS: usize = 100;
/// Cursors in one sync.
const MAX_CURSORS: usize = 1_000;
/// Messages per conversation of a sync.
const MAX_PER_CONVERSATION: u32 = 200;
/// Conversations asked for at once: bounds what one answer of storage can weigh.
const STEP: usize = 10;
/// A page of a sync ends after the step that reaches one of these; what one step finds has room beside them.
const PAGE_CONVERSATIONS: usize = 50;
const PAGE_BYTES: usize = 1 << 20;
/// Steps of one page: a device that is far ahead must not make one request walk all its cursors.
const PAGE_STEPS: usize = 30;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default().routes(routes!(ack)).routes(routes!(sync).layer(PAGE))
}

/// What arrived at this device.
#[derive(Debug, Deserialize, ToSchema)]
struct Acks {
    /// 1 to 100.
    #[schema(value_type = Vec<Position>)]
    acks: Vec<Object<Position>>,
}

/// A position that could not be acknowledged.
#[derive(Debug, Serialize, ToSchema)]
struct AckError {
    conversation_id: String,
    code: String,
    detail: String,
}

/// The delivered cursors of this device as they stand.
#[derive(Debug, Serialize, ToSchema)]
struct Delivered {
    delivered: Vec<Position>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<AckError>,
}

/// Moves delivered cursors of the caller's device forward, never back.
#[utoipa::path(post, path = "/v1/ack", operation_id = "ack_delivered", tag = "sync", request_body = Acks,
    responses((status = 200, description = "The cursors of this device", body = Delivered)))]
async fn ack(
    State(app): State<Shared>,
    caller: Caller,
    Body(Acks { acks }): Body<Acks>,
) -> Result<Json<Delivered>, Error> {
    if acks.is_empty() || acks.len() > MAX_ACKS {
        return Err(Error::invalid(format!("acks: {}, give 1 to {MAX_ACKS}", acks.len())));
    }
    // The highest of each conversation is what counts.
    let mut highest: BTreeMap<String, u64> = BTreeMap::new();
    for Object(ack) in acks {
        ids::check_conversation_id("acks.conversation_id", &ack.conversation_id)?;
        let seq = highest.entry(ack.conversation_id).or_default();
        *seq = ack.seq.0.max(*seq);
    }
    caller.charge(&app, highest.len())?;
    let positions = highest.into_iter().map(|(conversation_id, seq)| chat::Position { conversation_id, seq }).collect();
    let answer = app.storage.ack(&caller.claims().sub, caller.device(), positions).await?;
    let mut errors = Vec::with_capacity(answer.errors.len());
    for failed in answer.errors {
        let error = Error::from(failed.error.unwrap_or_default());
        if answer.delivered.is_empty() {
            return Err(error);
        }
        let code = error.code_name().to_owned();
        errors.push(AckError { conversation_id: failed.conversation_id, code, detail: error.detail.into_owned() });
    }
    let shown = |p: chat::Position| Position { conversation_id: p.conversation_id, seq: U64(p.seq) };
    Ok(Json(Delivered { delivered: answer.delivered.into_iter().map(shown).collect(), errors }))
}

/// What the client has.
#[derive(Debug, Deserialize, ToSchema)]
struct Sync {
    /// The newest seq that the client holds, by conversation; at most 1,000. Other conversations start at this device's delivered cursor.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    cursors: BTreeMap<String, U64>,
    /// Messages per conversation, 1 to 200; 50 when absent.
    #[serde(default)]
    limit: Option<u32>,
    /// `next_cursor` of the page before; `cursors` must be the same as there.
    #[serde(default)]
    cursor: Option<String>,
}

/// News of one conversation.
#[derive(Debug, Serialize, ToSchema)]
struct SyncConversation {
    conversation_id: String,
    /// The newest seq there is.
    #[schema(value_type = String)]
    seq: U64,
    /// Ascending.
    #[schema(value_type = Vec<crate::schema::Message>)]
    messages: Vec<Box<RawValue>>,
    has_more: bool,
    /// Only where this conversation could not be read now: ask for it again. The others are not affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

/// A page of news.
#[derive(Debug, Serialize, ToSchema)]
struct Synced {
    /// Those that have something newer.
    conversations: Vec<SyncConversation>,
    /// Empty at the end.
    next_cursor: String,
}

/// Where the next page starts: behind one of the given cursors, or in storage's list of conversations that are behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// Behind this conversation, in the order of ids.
    Given(String),
    Behind(String),
}

/// Pulls what is newer than the client's cursors.
#[utoipa::path(post, path = "/v1/sync", operation_id = "sync_conversations", tag = "sync", request_body = Sync,
    responses((status = 200, description = "A page", body = Synced)))]
async fn sync(State(app): State<Shared>, caller: Caller, Body(sync): Body<Sync>) -> Result<Json<Synced>, Error> {
    let limit = limit(sync.limit, MAX_PER_CONVERSATION)?;
    if sync.cursors.len() > MAX_CURSORS {
        return Err(Error::invalid(format!("cursors: {}, at most {MAX_CURSORS}", sync.cursors.len())));
    }
    for id in sync.cursors.keys() {
        ids::check_conversation_id("cursors", id)?;
    }
    let owner = [caller.claims().sub.as_str(), caller.device()];
    let cursor = sync.cursor.as_deref().unwrap_or_default();
    let begin = || Place::Given(String::new());
    let mut place = Some(app.cursors.read("sync", &owner, cursor)?.unwrap_or_else(begin));
    let mut page: Vec<SyncConversation> = Vec::new();
    let mut bytes = 0;
    for round in 0..PAGE_STEPS {
        match caller.charge(&app, STEP) {
            Ok(()) => {}
            Err(refused) if round == 0 => return Err(refused),
            // What was found is an answer; the next page waits.
            Err(_) => break,
        }
        let Some(at) = place.take() else { break };
        let (after, failed, next) = step(&app, &caller, &sync.cursors, at).await?;
        place = next;
        page.extend(failed);
        if !after.is_empty() {
            for found in app.storage.list_after(&caller.claims().sub, after, limit).await? {
                if let Some(news) = news(found, ROOM.saturating_sub(bytes)) {
                    bytes += news.messages.iter().map(|m| m.get().len()).sum::<usize>();
                    page.push(news);
                }
            }
        }
        if page.len() >= PAGE_CONVERSATIONS || bytes >= PAGE_BYTES {
            break;
        }
    }
    let next_cursor = match place {
        Some(place) => app.cursors.write("sync", &owner, &place)?,
        None => String::new(),
    };
    Ok(Json(Synced { conversations: page, next_cursor }))
}

fn position(conversation_id: String, seq: u64) -> chat::Position {
    chat::Position { conversation_id, seq }
}

/// The positions of the next step, conversations of which nothing can be read, and the place after it.
async fn step(
    app: &App,
    caller: &Caller,
    cursors: &BTreeMap<String, U64>,
    place: Place,
) -> Result<(Vec<chat::Position>, Vec<SyncConversation>, Option<Place>), Error> {
    let cursor = match place {
        Place::Given(after) => {
            let rest = cursors.range::<String, _>((Bound::Excluded(&after), Bound::Unbounded));
            let given: Vec<_> = rest.take(STEP).map(|(id, seq)| position(id.clone(), seq.0)).collect();
            if let Some(last) = given.last().map(|p| p.conversation_id.clone()) {
                return Ok((given, Vec::new(), Some(Place::Given(last))));
            }
            String::new()
        }
        Place::Behind(cursor) => cursor,
    };
    let request = ListBehindRequest {
        user_id: caller.user(),
        device_id: caller.device().to_owned(),
        cursors: Vec::new(),
        limit: STEP as u32,
        cursor,
    };
    let found = app.storage.list_behind(request).await?;
    let (mut after, mut failed) = (Vec::new(), Vec::new());
    for behind in found.behind.into_iter().filter(|b| !cursors.contains_key(&b.conversation_id)) {
        match behind.error {
            None => after.push(position(behind.conversation_id, behind.delivered_seq)),
            Some(error) => failed.push(unreadable(behind.conversation_id, error.into())),
        }
    }
    Ok((after, failed, Some(found.next_cursor).filter(|c| !c.is_empty()).map(Place::Behind)))
}

/// A conversation that cannot be read now: it is named, and the client asks for it again.
fn unreadable(conversation_id: String, error: Error) -> SyncConversation {
    SyncConversation { conversation_id, seq: U64(0), messages: Vec::new(), has_more: true, error: Some(error.into()) }
}

/// What is new in a conversation, as far as there is room for it; nothing when the client is up to date or may no longer see it.
fn news(found: ConversationMessages, room: usize) -> Option<SyncConversation> {
    if let Some(error) = found.error {
        let error = Error::from(error);
        let gone = matches!(error.code, Code::NotFound | Code::PermissionDenied);
        return (!gone).then(|| unreadable(found.conversation_id, error));
    }
    if found.messages.is_empty() && !found.has_more {
        return None;
    }
    match view::messages(found.messages.iter(), room) {
        Err(error) => Some(unreadable(found.conversation_id, error)),
        Ok(messages) => Some(SyncConversation {
            conversation_id: found.conversation_id,
            seq: U64(found.seq),
            has_more: found.has_more || messages.len() < found.messages.len(),
            messages,
            error: None,
        }),
    }
}
