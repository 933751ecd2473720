//! Which business line calls, and which users are its own.

use std::{collections::HashMap, time::Duration};

use kith_clients::storage::Storage;
use kith_contract::ids::{self, ConversationId};
use kith_proto::storage::v1::ListMembersRequest;
use kith_rpc::{
    error::{Error, reason},
    server::{Identity, Peer},
};
use moka::future::Cache;
use tonic::Code;

/// Users whose line is remembered. A user's line never changes.
const USERS: u64 = 200_000;
const USER_TTL: Duration = Duration::from_secs(600);
/// Conversations that a line was found to take part in, remembered briefly: members come and go.
const CONVERSATIONS: u64 = 50_000;
const CONVERSATION_TTL: Duration = Duration::from_secs(30);
/// Members looked at to find one of the line's own.
const MEMBERS: u32 = 1_000;
/// Users that storage takes in one call.
const USERS_A_CALL: usize = 100;

/// Lines and their users.
#[derive(Clone)]
pub struct Lines {
    storage: Storage,
    anonymous: Option<String>,
    users: Cache<String, String>,
    conversations: Cache<(String, String), ()>,
}

impl Lines {
    /// Asks `storage`. `anonymous`: the line of callers without a certificate where there are no certificates at all.
    pub fn new(storage: Storage, anonymous: Option<String>) -> Self {
        Self {
            storage,
            anonymous,
            users: Cache::builder().max_capacity(USERS).time_to_live(USER_TTL).build(),
            conversations: Cache::builder().max_capacity(CONVERSATIONS).time_to_live(CONVERSATION_TTL).build(),
        }
    }

    /// The line that a request comes from.
    pub fn of<T>(&self, request: &tonic::Request<T>) -> Result<String, Error> {
        let identity = request.extensions().get::<Peer>().map(|p| p.identity.clone()).unwrap_or_default();
        match (identity, &self.anonymous) {
            (Identity::Line(line), _) => Ok(line),
            (Identity::Anonymous, Some(line)) => Ok(line.clone()),
            (Identity::Anonymous, None) => Err(Error::unauthenticated(
                "show the client certificate of a business line (Secret of the BusinessLine)",
            )),
            (Identity::Service(_), _) => {
                Err(Error::denied(reason::NOT_ALLOWED, "a service certificate is no business line's"))
            }
        }
    }

    /// The lines of the users that exist.
    pub async fn of_users(&self, user_ids: &[String]) -> Result<HashMap<String, String>, Error> {
        let mut found = HashMap::with_capacity(user_ids.len());
        let mut unknown = Vec::new();
        for user_id in user_ids {
            match self.users.get(user_id).await {
                Some(line) => {
                    found.insert(user_id.clone(), line);
                }
                None => unknown.push(user_id.clone()),
            }
        }
        for chunk in unknown.chunks(USERS_A_CALL) {
            for user in self.storage.get_users(chunk.to_vec()).await? {
                self.users.insert(user.user_id.clone(), user.line.clone()).await;
                found.insert(user.user_id, user.line);
            }
        }
        Ok(found)
    }

    /// Refuses a user that is not the line's own: NOT_FOUND when it does not exist, PERMISSION_DENIED when it is another's.
    pub async fn check_user(&self, line: &str, field: &'static str, user_id: &str) -> Result<(), Error> {
        ids::check_id(field, user_id)?;
        let found = self.of_users(&[user_id.to_owned()]).await?;
        match found.get(user_id) {
            Some(owner) if owner == line => Ok(()),
            Some(_) => Err(not_own(field, user_id)),
            None => Err(Error::not_found(format!("{field}: no user {user_id}; make it with UpsertUsers"))),
        }
    }

    /// Refuses a conversation that none of the line's users takes part in, as if it did not exist.
    pub async fn check_conversation(&self, line: &str, conversation_id: &str) -> Result<(), Error> {
        ids::check_conversation_id("conversation_id", conversation_id)?;
        let key = (line.to_owned(), conversation_id.to_owned());
        if self.conversations.get(&key).await.is_some() {
            return Ok(());
        }
        let request =
            ListMembersRequest { conversation_id: conversation_id.to_owned(), limit: MEMBERS, ..Default::default() };
        let missing = || Error::not_found("conversation_id: no such conversation");
        let members = self.storage.list_members(request).await.map_err(|error| match error.code {
            Code::NotFound => missing(),
            _ => error,
        })?;
        let members = members.members;
        let user_ids: Vec<_> = members.into_iter().map(|m| m.user_id).collect();
        for chunk in user_ids.chunks(USERS_A_CALL) {
            if self.of_users(chunk).await?.values().any(|owner| owner == line) {
                self.conversations.insert(key, ()).await;
                return Ok(());
            }
        }
        Err(missing())
    }

    /// Whether a group was made by one of the line's users: its own to write into without being a member.
    pub async fn owns_group(&self, line: &str, conversation_id: &str) -> Result<bool, Error> {
        if matches!(ids::check_conversation_id("conversation_id", conversation_id)?, ConversationId::Direct(..)) {
            return Ok(false);
        }
        let found = self.storage.get_conversations("", vec![conversation_id.to_owned()], false).await?;
        let Some(owner) = found.into_iter().next().map(|c| c.owner_id).filter(|o| !o.is_empty()) else {
            return Ok(false);
        };
        Ok(self.of_users(std::slice::from_ref(&owner)).await?.get(&owner).is_some_and(|l| l == line))
    }
}

/// The refusal for another line's user.
pub fn not_own(field: &str, user_id: &str) -> Error {
    Error::denied(reason::NOT_ALLOWED, format!("{field}: {user_id} belongs to another business line"))
}
