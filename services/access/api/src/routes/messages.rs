//! Messages: send, history, recall, edit, reactions.

use axum::{Json, extract::State, http::StatusCode};
use kith_contract::{ids, json::U64, message::SendMessage, text};
use kith_proto::{
    chat::v1 as chat,
    storage::v1::{EditRequest, ListMessagesRequest, ReactRequest, RecallRequest},
};
use kith_rpc::error::Error;
use kith_send::{Draft, draft::check_content};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    budget::PAGE,
    caller::Caller,
    extract::{Body, Params, Segments, limit},
    schema,
    state::{App, Shared},
    view::{self, Changed, ROOM, Sent, ms},
};

/// Messages of one page.
const MAX_PAGE: u32 = 200;

/// Sends a message. A success is durable. A retry with the same client_msg_id within 24 h is answered 200 with the same ids.
#[utoipa::path(post, path = "/v1/messages", operation_id = "send_message", tag = "messages", request_body = schema::SendMessage,
    responses((status = 201, description = "Stored", body = Sent), (status = 200, description = "Had been stored before", body = Sent)))]
async fn send(
    State(app): State<Shared>,
    caller: Caller,
    Body(message): Body<SendMessage<Box<RawValue>>>,
) -> Result<(StatusCode, Json<Sent>), Error> {
    app.sends
        .check(&caller.claims().sub)
        .map_err(|wait| Error::exhausted("too many messages of this user: slow down", wait))?;
    let draft = Draft::of_client(message, &caller.claims().sub)?;
    let sent = Sent::from(app.doorway.send(draft).await?);
    let status = if sent.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(sent)))
}

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default()
        .routes(routes!(send))
        .routes(routes!(history).layer(PAGE))
        .routes(routes!(recall))
        .routes(routes!(edit))
        .routes(routes!(react))
        .routes(routes!(unreact))
}

/// Where in the history.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Range {
    /// Messages before this one, the newest of them.
    #[param(value_type = Option<String>)]
    before_seq: Option<U64>,
    /// Messages after this one, the oldest of them. Without either: the newest messages.
    #[param(value_type = Option<String>)]
    after_seq: Option<U64>,
    /// 1 to 200; 50 when absent.
    limit: Option<u32>,
}

/// Messages of a conversation.
#[derive(Debug, Serialize, ToSchema)]
struct History {
    /// Ascending.
    #[schema(value_type = Vec<crate::schema::Message>)]
    messages: Vec<Box<RawValue>>,
    /// Whether there are more in the direction asked for.
    has_more: bool,
}

/// Messages of a conversation in ascending seq.
#[utoipa::path(get, path = "/v1/conversations/{id}/messages", operation_id = "list_messages", tag = "messages",
    params(("id" = String, Path, description = "conversation_id"), Range), responses((status = 200, description = "A page", body = History)))]
async fn history(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
    Params(range): Params<Range>,
) -> Result<Json<History>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    let limit = limit(range.limit, MAX_PAGE)?;
    let (found, has_more) = match (range.before_seq, range.after_seq) {
        (Some(_), Some(_)) => return Err(Error::invalid("after_seq: give it or before_seq, not both")),
        (None, Some(U64(after))) => after_seq(&app, &caller, conversation_id, after, limit).await?,
        // Nothing is before the first message; 0 would mean "the newest" to storage.
        (Some(U64(0)), None) => return Err(Error::invalid("before_seq: at least 1")),
        (before, None) => {
            let request = ListMessagesRequest {
                conversation_id,
                user_id: caller.user(),
                before_seq: before.map_or(0, |b| b.0),
                after_seq: 0,
                limit,
            };
            let found = app.storage.list_messages(request).await?;
            (found.messages, found.has_more)
        }
    };
    let messages = if range.after_seq.is_some() {
        view::messages(found.iter(), ROOM)?
    } else {
        let mut newest = view::messages(found.iter().rev(), ROOM)?;
        newest.reverse();
        newest
    };
    let has_more = has_more || messages.len() < found.len();
    Ok(Json(History { messages, has_more }))
}

/// Messages after a position, the first of all included.
async fn after_seq(
    app: &App,
    caller: &Caller,
    conversation_id: String,
    after: u64,
    limit: u32,
) -> Result<(Vec<chat::Message>, bool), Error> {
    let position = chat::Position { conversation_id, seq: after };
    let found = app.storage.list_after(&caller.claims().sub, vec![position], limit).await?;
    let found = found.into_iter().next().unwrap_or_default();
    match found.error {
        Some(error) => Err(error.into()),
        None => Ok((found.messages, found.has_more)),
    }
}

/// A recalled message.
#[derive(Debug, Serialize, ToSchema)]
struct Recalled {
    conversation_id: String,
    #[schema(value_type = String)]
    seq: U64,
    recalled: bool,
}

/// Takes a message back: the sender within the limit, or a group's owner or admin. It keeps its seq and loses its content.
#[utoipa::path(post, path = "/v1/conversations/{id}/messages/{seq}/recall", operation_id = "recall_message", tag = "messages",
    params(("id" = String, Path, description = "conversation_id"), ("seq" = String, Path, description = "The message")),
    responses((status = 200, description = "Recalled, now or before", body = Recalled)))]
async fn recall(
    State(app): State<Shared>,
    caller: Caller,
    Segments((conversation_id, seq)): Segments<(String, U64)>,
) -> Result<Json<Recalled>, Error> {
    check_place(&conversation_id, seq)?;
    let request = RecallRequest {
        conversation_id: conversation_id.clone(),
        seq: seq.0,
        user_id: caller.user(),
        limit_ms: app.recall_ms,
        privileged: false,
    };
    app.storage.recall(request).await?;
    Ok(Json(Recalled { conversation_id, seq, recalled: true }))
}

/// New content of a message.
#[derive(Debug, Deserialize, ToSchema)]
struct EditMessage {
    /// As for a new message of the same type.
    #[schema(value_type = Object)]
    content: Box<RawValue>,
}

/// An edited message.
#[derive(Debug, Serialize, ToSchema)]
struct Edited {
    conversation_id: String,
    #[schema(value_type = String)]
    seq: U64,
    #[schema(value_type = String)]
    edited_at: U64,
}

/// Replaces the content of one's own message, within the same limit as a recall.
#[utoipa::path(patch, path = "/v1/conversations/{id}/messages/{seq}", operation_id = "edit_message", tag = "messages", request_body = EditMessage,
    params(("id" = String, Path, description = "conversation_id"), ("seq" = String, Path, description = "The message")),
    responses((status = 200, description = "Edited", body = Edited)))]
async fn edit(
    State(app): State<Shared>,
    caller: Caller,
    Segments((conversation_id, seq)): Segments<(String, U64)>,
    Body(edit): Body<EditMessage>,
) -> Result<Json<Edited>, Error> {
    check_place(&conversation_id, seq)?;
    // The type decides what content is valid.
    let (found, _) = after_seq(&app, &caller, conversation_id.clone(), seq.0 - 1, 1).await?;
    let message = found
        .first()
        .filter(|m| m.seq == seq.0)
        .ok_or_else(|| Error::not_found(format!("no message {} in {conversation_id}", seq.0)))?;
    let content = check_content("content", message.r#type().into(), &edit.content)?;
    let request = EditRequest {
        conversation_id: conversation_id.clone(),
        seq: seq.0,
        user_id: caller.user(),
        content,
        limit_ms: app.recall_ms,
    };
    let edited_at = ms(app.storage.edit(request).await?.edited_at);
    Ok(Json(Edited { conversation_id, seq, edited_at }))
}

/// Adds one's reaction to a message.
#[utoipa::path(put, path = "/v1/conversations/{id}/messages/{seq}/reactions/{emoji}", operation_id = "add_reaction", tag = "messages",
    params(("id" = String, Path, description = "conversation_id"), ("seq" = String, Path, description = "The message"), ("emoji" = String, Path, description = "One emoji, URL-encoded, or a shortcode of a-z 0-9 _ + -")),
    responses((status = 200, description = "Stands", body = Changed)))]
async fn react(
    State(app): State<Shared>,
    caller: Caller,
    Segments((conversation_id, seq, emoji)): Segments<(String, U64, String)>,
) -> Result<Json<Changed>, Error> {
    set_reaction(&app, &caller, conversation_id, seq, emoji, true).await
}

/// Takes one's reaction away.
#[utoipa::path(delete, path = "/v1/conversations/{id}/messages/{seq}/reactions/{emoji}", operation_id = "remove_reaction", tag = "messages",
    params(("id" = String, Path, description = "conversation_id"), ("seq" = String, Path, description = "The message"), ("emoji" = String, Path, description = "One emoji, URL-encoded, or a shortcode of a-z 0-9 _ + -")),
    responses((status = 200, description = "Gone", body = Changed)))]
async fn unreact(
    State(app): State<Shared>,
    caller: Caller,
    Segments((conversation_id, seq, emoji)): Segments<(String, U64, String)>,
) -> Result<Json<Changed>, Error> {
    set_reaction(&app, &caller, conversation_id, seq, emoji, false).await
}

async fn set_reaction(
    app: &App,
    caller: &Caller,
    conversation_id: String,
    seq: U64,
    emoji: String,
    add: bool,
) -> Result<Json<Changed>, Error> {
    check_place(&conversation_id, seq)?;
    let emoji = text::reaction(&emoji)?.into_owned();
    let request = ReactRequest { conversation_id, seq: seq.0, user_id: caller.user(), emoji, add };
    let changed = app.storage.react(request).await?.changed;
    Ok(Json(Changed { changed }))
}

fn check_place(conversation_id: &str, seq: U64) -> Result<(), Error> {
    ids::check_conversation_id("conversation_id", conversation_id)?;
    if seq.0 == 0 { Err(Error::invalid("seq: at least 1")) } else { Ok(()) }
}
