//! Friends and friend requests.

use axum::{Json, extract::State, http::StatusCode};
use kith_contract::ids;
use kith_contract::json::U64;
use kith_proto::storage::v1::{
    AnswerFriendRequestRequest, DeleteFriendRequest, ListFriendRequestsRequest, ListFriendsRequest, PutFriendRequest,
    RequestFriendRequest,
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::{
    budget::PAGE,
    caller::Caller,
    extract::{Body, Params, Segments, limit},
    state::{App, Shared},
    view::{Changed, Page, ms},
};

/// Friends or requests of one page.
const MAX_PAGE: u32 = 200;
/// The words of a request, and an alias.
const MAX_TEXT_BYTES: usize = 1_024;
const MAX_ALIAS_BYTES: usize = 256;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default()
        .routes(routes!(list).layer(PAGE))
        .routes(routes!(update))
        .routes(routes!(remove))
        .routes(routes!(requests).layer(PAGE))
        // `requests` is also the id of a user: what the fixed word does not take is that user's.
        .routes(routes!(request).map(|methods| {
            methods
                .patch(|app, caller, body| update(app, caller, Segments("requests".to_owned()), body))
                .delete(|app, caller| remove(app, caller, Segments("requests".to_owned())))
        }))
        .routes(routes!(accept))
        .routes(routes!(withdraw))
        .routes(routes!(reject))
}

/// A friend.
#[derive(Debug, Serialize, ToSchema)]
struct Friend {
    user_id: String,
    alias: String,
    #[schema(value_type = String)]
    since: U64,
}

/// A page of friends.
#[derive(Debug, Serialize, ToSchema)]
struct Friends {
    friends: Vec<Friend>,
    /// Empty at the end.
    next_cursor: String,
}

/// The caller's friends.
#[utoipa::path(get, path = "/v1/friends", operation_id = "list_friends", tag = "friends", params(Page),
    responses((status = 200, description = "A page", body = Friends)))]
async fn list(State(app): State<Shared>, caller: Caller, Params(page): Params<Page>) -> Result<Json<Friends>, Error> {
    let limit = limit(page.limit, MAX_PAGE)?;
    let request = ListFriendsRequest { user_id: caller.user(), limit, cursor: page.cursor, ..Default::default() };
    let found = app.storage.list_friends(request).await?;
    let friends = found.friends.into_iter().map(|f| Friend { user_id: f.user_id, alias: f.alias, since: ms(f.since) });
    Ok(Json(Friends { friends: friends.collect(), next_cursor: found.next_cursor }))
}

/// How the caller calls a friend.
#[derive(Debug, Deserialize, ToSchema)]
struct Alias {
    /// Empty: none.
    alias: String,
}

/// Changes a friend's alias.
#[utoipa::path(patch, path = "/v1/friends/{user}", operation_id = "update_friend", tag = "friends",
    request_body = Alias, params(("user" = String, Path, description = "user_id")),
    responses((status = 200, description = "Stands", body = Changed)))]
async fn update(
    State(app): State<Shared>,
    caller: Caller,
    Segments(friend_id): Segments<String>,
    Body(Alias { alias }): Body<Alias>,
) -> Result<Json<Changed>, Error> {
    ids::check_id("user", &friend_id)?;
    bounded("alias", &alias, MAX_ALIAS_BYTES)?;
    let request =
        PutFriendRequest { user_id: caller.user(), friend_id, alias: Some(alias), version: 0, must_exist: true };
    Ok(Json(Changed { changed: app.storage.put_friend(request).await?.changed }))
}

/// Ends a friendship, for both.
#[utoipa::path(delete, path = "/v1/friends/{user}", operation_id = "remove_friend", tag = "friends",
    params(("user" = String, Path, description = "user_id")),
    responses((status = 200, description = "Ended", body = Changed)))]
async fn remove(
    State(app): State<Shared>,
    caller: Caller,
    Segments(friend_id): Segments<String>,
) -> Result<Json<Changed>, Error> {
    ids::check_id("user", &friend_id)?;
    let request = DeleteFriendRequest { user_id: caller.user(), friend_id, version: 0 };
    Ok(Json(Changed { changed: app.storage.delete_friend(request).await?.changed }))
}

/// A friend request that waits for an answer.
#[derive(Debug, Serialize, ToSchema)]
struct FriendRequest {
    /// Who asked, or who is asked when it is outgoing.
    user_id: String,
    text: String,
    #[schema(value_type = String)]
    requested_at: U64,
    /// Made by the caller.
    outgoing: bool,
}

/// A page of requests.
#[derive(Debug, Serialize, ToSchema)]
struct FriendRequests {
    requests: Vec<FriendRequest>,
    /// Empty at the end.
    next_cursor: String,
}

/// Friend requests to and from the caller.
#[utoipa::path(get, path = "/v1/friends/requests", operation_id = "list_friend_requests", tag = "friends", params(Page),
    responses((status = 200, description = "A page", body = FriendRequests)))]
async fn requests(
    State(app): State<Shared>,
    caller: Caller,
    Params(page): Params<Page>,
) -> Result<Json<FriendRequests>, Error> {
    let limit = limit(page.limit, MAX_PAGE)?;
    let request = ListFriendRequestsRequest { user_id: caller.user(), limit, cursor: page.cursor };
    let found = app.storage.list_friend_requests(request).await?;
    let shown = found.requests.into_iter().map(|r| FriendRequest {
        user_id: r.user_id,
        text: r.text,
        requested_at: ms(r.requested_at),
        outgoing: r.outgoing,
    });
    Ok(Json(FriendRequests { requests: shown.collect(), next_cursor: found.next_cursor }))
}

/// Whom to ask, and in which words.
#[derive(Debug, Deserialize, ToSchema)]
struct AskFriend {
    user_id: String,
    #[serde(default)]
    text: String,
}

/// Nothing more to say.
#[derive(Debug, Serialize, ToSchema)]
struct Done {}

/// Asks a user to be friends.
#[utoipa::path(post, path = "/v1/friends/requests", operation_id = "request_friend", tag = "friends", request_body = AskFriend,
    responses((status = 201, description = "Asked", body = Done)))]
async fn request(
    State(app): State<Shared>,
    caller: Caller,
    Body(ask): Body<AskFriend>,
) -> Result<(StatusCode, Json<Done>), Error> {
    ids::check_id("user_id", &ask.user_id)?;
    bounded("text", &ask.text, MAX_TEXT_BYTES)?;
    if ask.user_id == caller.claims().sub {
        return Err(Error::invalid("user_id: that is you"));
    }
    let request = RequestFriendRequest { user_id: caller.user(), target_id: ask.user_id, text: ask.text };
    app.storage.request_friend(request).await?;
    Ok((StatusCode::CREATED, Json(Done {})))
}

/// Accepts a friend request.
#[utoipa::path(post, path = "/v1/friends/requests/{user}/accept", operation_id = "accept_friend_request", tag = "friends",
    params(("user" = String, Path, description = "Who asked")),
    responses((status = 200, description = "Friends now", body = Done)))]
async fn accept(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Done>, Error> {
    answer(&app, &caller, user, true).await
}

/// Takes back a friend request that waits for an answer.
#[utoipa::path(delete, path = "/v1/friends/requests/{user}", operation_id = "withdraw_friend_request", tag = "friends",
    params(("user" = String, Path, description = "Who was asked")),
    responses((status = 200, description = "Taken back", body = Done)))]
async fn withdraw(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Done>, Error> {
    answer(&app, &caller, user, false).await
}

/// Rejects a friend request, or takes one's own back.
#[utoipa::path(post, path = "/v1/friends/requests/{user}/reject", operation_id = "reject_friend_request", tag = "friends",
    params(("user" = String, Path, description = "Who asked")),
    responses((status = 200, description = "Rejected", body = Done)))]
async fn reject(
    State(app): State<Shared>,
    caller: Caller,
    Segments(user): Segments<String>,
) -> Result<Json<Done>, Error> {
    answer(&app, &caller, user, false).await
}

async fn answer(app: &App, caller: &Caller, requester_id: String, accept: bool) -> Result<Json<Done>, Error> {
    ids::check_id("user", &requester_id)?;
    let request = AnswerFriendRequestRequest { user_id: caller.user(), requester_id, accept };
    app.storage.answer_friend_request(request).await?;
    Ok(Json(Done {}))
}

fn bounded(field: &str, text: &str, max: usize) -> Result<(), Error> {
    if text.len() > max { Err(Error::invalid(format!("{field}: {} bytes, at most {max}", text.len()))) } else { Ok(()) }
}
