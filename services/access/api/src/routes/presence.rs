//! Who is online.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use kith_contract::{json::U64, kinds::Platform};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::unique_users;
use crate::{caller::Caller, extract::Body, schema, state::Shared, view::ms, visible};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default().routes(routes!(query))
}

/// Which users.
#[derive(Debug, Deserialize, ToSchema)]
struct PresenceOf {
    /// 1 to 100.
    user_ids: Vec<String>,
}

/// A user's presence.
#[derive(Debug, Serialize, ToSchema)]
struct Presence {
    online: bool,
    /// Where.
    #[schema(value_type = Vec<schema::Platform>)]
    platforms: Vec<Platform>,
    /// Unix ms; "0": never seen.
    #[schema(value_type = String)]
    last_seen: U64,
}

/// Presence by user.
#[derive(Debug, Serialize, ToSchema)]
struct Presences {
    presence: BTreeMap<String, Presence>,
}

/// Who of these users is online; those whom the caller may not see are left out, as are users that do not exist.
#[utoipa::path(post, path = "/v1/presence:query", operation_id = "query_presence", tag = "presence", request_body = PresenceOf,
    responses((status = 200, description = "Each whom the caller may see", body = Presences)))]
async fn query(
    State(app): State<Shared>,
    caller: Caller,
    Body(of): Body<PresenceOf>,
) -> Result<Json<Presences>, Error> {
    let user_ids = unique_users(of.user_ids)?;
    caller.charge(&app, user_ids.len())?;
    let seen = visible::users(&app, &caller, user_ids, None).await?;
    let user_ids = seen.into_iter().map(|user| user.user_id).collect();
    let found = app.sessions.presence(&app.storage, user_ids).await?;
    let shown = found.into_iter().map(|p| {
        let platforms = p.platforms().filter_map(kith_proto::chat::v1::Platform::known).collect();
        (p.user_id, Presence { online: p.online, platforms, last_seen: ms(p.last_seen) })
    });
    Ok(Json(Presences { presence: shown.collect() }))
}
