//! Conversations: the list, one of them, read cursors and receipts.

use axum::{Json, extract::State};
use kith_contract::ids;
use kith_contract::json::U64;
use kith_proto::storage::v1::{
    ClearRequest, GetReceiptsRequest, ListConversationsRequest, MarkReadRequest, SetListEntryRequest,
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    budget::PAGE,
    caller::Caller,
    extract::{Body, Params, Segments, limit},
    state::{App, Shared},
    view::{Conversation, Page},
};

/// Conversations of one page.
const MAX_PAGE: u32 = 200;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default()
        .routes(routes!(list).layer(PAGE))
        .routes(routes!(get).layer(PAGE))
        .routes(routes!(update).layer(PAGE))
        .routes(routes!(clear))
        .routes(routes!(read))
        .routes(routes!(receipts))
}

/// A page of the caller's conversations.
#[derive(Debug, Serialize, ToSchema)]
struct Conversations {
    /// Newest activity first.
    conversations: Vec<Conversation>,
    /// Empty at the end.
    next_cursor: String,
}

/// The caller's conversations, newest activity first. One that cannot be read carries an `error` and hides no other.
#[utoipa::path(get, path = "/v1/conversations", operation_id = "list_conversations", tag = "conversations", params(Page),
    responses((status = 200, description = "A page", body = Conversations)))]
async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<Conversations>, Error> {
    let limit = limit(page.limit, MAX_PAGE)?;
    let request = ListConversationsRequest { user_id: caller.user(), limit, cursor: page.cursor };
    let found = app.storage.list_conversations(request).await?;
    let conversations = found.conversations.into_iter().map(Conversation::from).collect();
    Ok(Json(Conversations { conversations, next_cursor: found.next_cursor }))
}

/// One conversation of the caller.
#[utoipa::path(get, path = "/v1/conversations/{id}", operation_id = "get_conversation", tag = "conversations",
    params(("id" = String, Path, description = "conversation_id")), responses((status = 200, description = "It", body = Conversation)))]
async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
) -> Result<Json<Conversation>, Error> {
    one(&app, &caller, conversation_id).await
}

async fn one(app: &App, caller: &Caller, conversation_id: String) -> Result<Json<Conversation>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    let missing = Error::not_found(format!("no conversation {conversation_id}"));
    let found = app.storage.get_conversations(&caller.claims().sub, vec![conversation_id], true).await?;
    found.into_iter().next().map(|found| Json(found.into())).ok_or(missing)
}

/// The caller's own settings of a conversation; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
struct UpdateConversation {
    #[serde(default)]
    pinned: Option<bool>,
    #[serde(default)]
    muted: Option<bool>,
}

/// Changes the caller's own settings of a conversation.
#[utoipa::path(patch, path = "/v1/conversations/{id}", operation_id = "update_conversation", tag = "conversations", request_body = UpdateConversation,
    params(("id" = String, Path, description = "conversation_id")), responses((status = 200, description = "As it is now", body = Conversation)))]
async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
    Body(update): Body<UpdateConversation>,
) -> Result<Json<Conversation>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    if update.pinned.is_none() && update.muted.is_none() {
        return Err(Error::invalid("pinned: give it or muted"));
    }
    let request = SetListEntryRequest {
        user_id: caller.user(),
        conversation_id: conversation_id.clone(),
        pinned: update.pinned,
        muted: update.muted,
    };
    app.storage.set_list_entry(request).await?;
    one(&app, &caller, conversation_id).await
}

/// A conversation that the caller has cleared.
#[derive(Debug, Serialize, ToSchema)]
struct Cleared {
    conversation_id: String,
    /// The last message that the caller no longer sees.
    #[schema(value_type = String)]
    cleared_seq: U64,
}

/// Hides everything up to now from the caller's list and history; the other members keep it.
#[utoipa::path(delete, path = "/v1/conversations/{id}", operation_id = "clear_conversation", tag = "conversations",
    params(("id" = String, Path, description = "conversation_id")), responses((status = 200, description = "Cleared for the caller", body = Cleared)))]
async fn clear(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
) -> Result<Json<Cleared>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    let request = ClearRequest { user_id: caller.user(), conversation_id: conversation_id.clone() };
    let cleared_seq = U64(app.storage.clear(request).await?.cleared_seq);
    Ok(Json(Cleared { conversation_id, cleared_seq }))
}

/// Up to where the caller has read.
#[derive(Debug, Deserialize, ToSchema)]
struct Read {
    #[schema(value_type = String)]
    seq: U64,
}

/// The caller's read cursor as it stands.
#[derive(Debug, Serialize, ToSchema)]
struct ReadState {
    #[schema(value_type = String)]
    read_seq: U64,
    #[schema(value_type = String)]
    unread: U64,
}

/// Moves the caller's read cursor forward; never back, never past the newest message.
#[utoipa::path(post, path = "/v1/conversations/{id}/read", operation_id = "mark_read", tag = "conversations", request_body = Read,
    params(("id" = String, Path, description = "conversation_id")), responses((status = 200, description = "As it stands", body = ReadState)))]
async fn read(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
    Body(Read { seq }): Body<Read>,
) -> Result<Json<ReadState>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    let request = MarkReadRequest { user_id: caller.user(), conversation_id, seq: seq.0 };
    let state = app.storage.mark_read(request).await?;
    Ok(Json(ReadState { read_seq: U64(state.read_seq), unread: U64(state.unread) }))
}

/// Whose receipts.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ReceiptsOf {
    /// The message.
    #[param(value_type = String)]
    seq: U64,
}

/// Who has a message.
#[derive(Debug, Serialize, ToSchema)]
struct Receipts {
    read_by: Vec<String>,
    delivered_to: Vec<String>,
}

/// Who has read and received a message; for conversations of at most 200 members.
#[utoipa::path(get, path = "/v1/conversations/{id}/receipts", operation_id = "get_receipts", tag = "conversations",
    params(("id" = String, Path, description = "conversation_id"), ReceiptsOf), responses((status = 200, description = "Who", body = Receipts)))]
async fn receipts(
    State(app): State<Shared>,
    caller: Caller,
    Segments(conversation_id): Segments<String>,
    Params(of): Params<ReceiptsOf>,
) -> Result<Json<Receipts>, Error> {
    ids::check_conversation_id("conversation_id", &conversation_id)?;
    let request = GetReceiptsRequest { user_id: caller.user(), conversation_id, seq: of.seq.0 };
    let found = app.storage.get_receipts(request).await?;
    Ok(Json(Receipts { read_by: found.read_by, delivered_to: found.delivered_to }))
}
