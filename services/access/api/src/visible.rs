//! Whom a caller may see: users of the same business line, friends, the other side of a direct conversation that stands, and fellow
//! members of a conversation that is named. Anybody else is as one who does not exist.

use std::collections::HashSet;

use kith_contract::ids;
use kith_proto::storage::v1::{ListFriendsRequest, ListMembersRequest, User};
use kith_rpc::error::Error;

use crate::{caller::Caller, state::App};

/// The profiles of those of `user_ids` (at most 100) whom the caller may see, in no order. `among`: a conversation in which the caller is; its
/// members count too.
pub(crate) async fn users(
    app: &App,
    caller: &Caller,
    user_ids: Vec<String>,
    among: Option<String>,
) -> Result<Vec<User>, Error> {
    let claims = caller.claims();
    let own = |user: &User| user.line == claims.line || user.user_id == claims.sub;
    let (mut seen, strangers): (Vec<_>, Vec<_>) = app.storage.get_users(user_ids).await?.into_iter().partition(own);
    let ids: Vec<String> = strangers.iter().map(|user| user.user_id.clone()).collect();
    let (friends, peers, fellows) = tokio::try_join!(
        friends(app, caller, ids.clone()),
        peers(app, caller, &ids),
        fellows(app, caller, ids.clone(), among)
    )?;
    let known: HashSet<String> = friends.into_iter().chain(peers).chain(fellows).collect();
    seen.extend(strangers.into_iter().filter(|user| known.contains(&user.user_id)));
    Ok(seen)
}

async fn friends(app: &App, caller: &Caller, user_ids: Vec<String>) -> Result<Vec<String>, Error> {
    if user_ids.is_empty() {
        return Ok(Vec::new());
    }
    let request = ListFriendsRequest { user_id: caller.user(), user_ids, ..Default::default() };
    Ok(app.storage.list_friends(request).await?.friends.into_iter().map(|friend| friend.user_id).collect())
}

async fn peers(app: &App, caller: &Caller, user_ids: &[String]) -> Result<Vec<String>, Error> {
    let me = &caller.claims().sub;
    let talks: Vec<String> = user_ids.iter().filter_map(|id| ids::direct_conversation_id(me, id).ok()).collect();
    if talks.is_empty() {
        return Ok(Vec::new());
    }
    let stand = app.storage.get_conversations(me, talks, false).await?;
    Ok(stand.iter().filter_map(|talk| ids::direct_peer(&talk.conversation_id, me)).map(str::to_owned).collect())
}

async fn fellows(
    app: &App,
    caller: &Caller,
    mut user_ids: Vec<String>,
    among: Option<String>,
) -> Result<Vec<String>, Error> {
    let Some(conversation_id) = among else { return Ok(Vec::new()) };
    // Asked also when there are no strangers: whether the caller is a member is answered alike.
    if user_ids.is_empty() {
        user_ids.push(caller.user());
    }
    let request = ListMembersRequest { conversation_id, user_id: caller.user(), user_ids, ..Default::default() };
    Ok(app.storage.list_members(request).await?.members.into_iter().map(|member| member.user_id).collect())
}
