//! Whom the caller blocks: their messages are refused with reason BLOCKED.

use axum::{Json, extract::State};
use kith_contract::ids;
use kith_proto::storage::v1::{ListBlocksRequest, SetBlockRequest};
use kith_rpc::error::Error;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    caller::Caller,
    extract::{Params, Segments, limit},
    state::{App, Shared},
    view::{Changed, Page},
};

/// Blocked users of one page.
const MAX_PAGE: u32 = 200;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(block)).routes(routes!(unblock))
}

/// A blocked user.
#[derive(Debug, Serialize, ToSchema)]
struct Block {
    user_id: String,
}

/// A page of blocked users.
#[derive(Debug, Serialize, ToSchema)]
struct Blocks {
    blocks: Vec<Block>,
    /// Empty at the end.
    next_cursor: String,
}

/// Whom the caller blocks.
#[utoipa::path(get, path = "/v1/blocks", operation_id = "list_blocks", tag = "blocks", params(Page),
    responses((status = 200, description = "A page", body = Blocks)))]
async fn list(State(app): State<Shared>, caller: Caller, Params(page): Params<Page>) -> Result<Json<Blocks>, Error> {
    let limit = limit(page.limit, MAX_PAGE)?;
    let request = ListBlocksRequest { user_id: caller.user(), limit, cursor: page.cursor };
    let found = app.storage.list_blocks(request).await?;
    let blocks = found.user_ids.into_iter().map(|user_id| Block { user_id }).collect();
    Ok(Json(Blocks { blocks, next_cursor: found.next_cursor }))
}

/// Blocks a user.
#[utoipa::path(put, path = "/v1/blocks/{user}", operation_id = "block_user", tag = "blocks", params(("user" = String, Path, description = "user_id")),
    responses((status = 200, description = "Blocked", body = Changed)))]
async fn block(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Changed>, Error> {
    set(&app, &caller, user, true).await
}

/// Takes a block away.
#[utoipa::path(delete, path = "/v1/blocks/{user}", operation_id = "unblock_user", tag = "blocks",
    params(("user" = String, Path, description = "user_id")),
    responses((status = 200, description = "Not blocked", body = Changed)))]
async fn unblock(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Changed>, Error> {
    set(&app, &caller, user, false).await
}

async fn set(app: &App, caller: &Caller, target_id: String, blocked: bool) -> Result<Json<Changed>, Error> {
    ids::check_id("user", &target_id)?;
    if target_id == caller.claims().sub {
        return Err(Error::invalid("user: that is you"));
    }
    let request = SetBlockRequest { user_id: caller.user(), target_id, blocked };
    Ok(Json(Changed { changed: app.storage.set_block(request).await?.changed }))
}
