//! Profiles: one's own and others'.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use kith_contract::ids;
use kith_proto::storage::v1::UserUpdate;
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::unique_users;
use crate::{
    budget::PAGE,
    caller::Caller,
    extract::{Body, Segments},
    state::{App, Shared},
    view::User,
    visible,
};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default()
        .routes(routes!(me))
        .routes(routes!(update_me))
        .routes(routes!(get))
        .routes(routes!(batch_get).layer(PAGE))
}

/// The caller's profile.
#[utoipa::path(get, path = "/v1/me", operation_id = "get_me", tag = "users", responses((status = 200, description = "It", body = User)))]
async fn me(State(app): State<Shared>, caller: Caller) -> Result<Json<User>, Error> {
    one(&app, &caller, caller.user()).await
}

/// Changes of a profile; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
struct UpdateUser {
    #[serde(default)]
    nickname: Option<String>,
    #[serde(default)]
    avatar_url: Option<String>,
    /// Replaces all attributes.
    #[serde(default)]
    attrs: Option<BTreeMap<String, String>>,
}

/// Changes the caller's profile.
#[utoipa::path(patch, path = "/v1/me", operation_id = "update_me", tag = "users", request_body = UpdateUser,
    responses((status = 200, description = "As it is now", body = User)))]
async fn update_me(
    State(app): State<Shared>,
    caller: Caller,
    Body(update): Body<UpdateUser>,
) -> Result<Json<User>, Error> {
    if update.nickname.is_none() && update.avatar_url.is_none() && update.attrs.is_none() {
        return Err(Error::invalid("nickname: give it, avatar_url or attrs"));
    }
    let update = UserUpdate {
        user_id: caller.user(),
        nickname: update.nickname,
        avatar_url: update.avatar_url,
        set_attrs: update.attrs.is_some(),
        attrs: update.attrs.unwrap_or_default(),
        version: 0,
        line: caller.claims().line.clone(),
    };
    let result = app.storage.upsert_users(vec![update]).await?.into_iter().next().unwrap_or_default();
    match (result.error, result.user) {
        (Some(error), _) => Err(error.into()),
        (None, Some(user)) => Ok(Json(user.into())),
        (None, None) => one(&app, &caller, caller.user()).await,
    }
}

/// The profile of a user whom the caller may see.
#[utoipa::path(get, path = "/v1/users/{id}", operation_id = "get_user", tag = "users", params(("id" = String, Path, description = "user_id")),
    responses((status = 200, description = "It", body = User)))]
async fn get(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user_id): Segments<String>,
) -> Result<Json<User>, Error> {
    ids::check_id("user_id", &user_id)?;
    one(&app, &caller, user_id).await
}

async fn one(app: &App, caller: &Caller, user_id: String) -> Result<Json<User>, Error> {
    let missing = Error::not_found(format!("no user {user_id}"));
    let user = visible::users(app, caller, vec![user_id], None).await?.into_iter().next().ok_or(missing)?;
    Ok(Json(user.into()))
}

/// Which users.
#[derive(Debug, Deserialize, ToSchema)]
struct UserIds {
    /// 1 to 100.
    user_ids: Vec<String>,
    /// A conversation of the caller: its members are shown too.
    #[serde(default)]
    conversation_id: Option<String>,
}

/// The profiles that the caller may see.
#[derive(Debug, Serialize, ToSchema)]
struct Users {
    users: Vec<User>,
}

/// Many profiles at once: users of the caller's line, friends, the other sides of direct conversations, and fellow members of the
/// conversation that is named. Others are left out, as are users that do not exist.
#[utoipa::path(post, path = "/v1/users:batchGet", operation_id = "batch_get_users", tag = "users", request_body = UserIds,
    responses((status = 200, description = "Those that the caller may see", body = Users)))]
async fn batch_get(
    State(app): State<Shared>,
    caller: Caller,
    Body(UserIds { user_ids, conversation_id }): Body<UserIds>,
) -> Result<Json<Users>, Error> {
    if let Some(id) = &conversation_id {
        ids::check_conversation_id("conversation_id", id)?;
    }
    let user_ids = unique_users(user_ids)?;
    caller.charge(&app, user_ids.len())?;
    let found = visible::users(&app, &caller, user_ids, conversation_id).await?;
    Ok(Json(Users { users: found.into_iter().map(User::from).collect() }))
}
