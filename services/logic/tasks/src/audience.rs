//! Looks up who is concerned: members of conversations (remembered) and friends (asked for each time).
//!
//! What is remembered stays right because the events that change it come in order in the same Kafka partition: they make it forgotten. A
//! partition that comes from another process may have seen such events there, so everything is forgotten then.

use std::{sync::Arc, time::Duration};

use kith_clients::storage::Storage;
use kith_proto::storage::v1::{ListFriendsRequest, ListMembersRequest};
use kith_rpc::error::Error;
use moka::future::Cache;
use tonic::Code;

use crate::{
    pauses,
    plan::{Audience, Member, Members, Needs},
};

/// Member rows remembered, over all conversations: about 100 bytes each.
const MAX_MEMBERS: u64 = 1_000_000;
/// A safety net below the events.
const TTL: Duration = Duration::from_secs(300);
const MEMBERS_PAGE: u32 = 1_000;
const FRIENDS_PAGE: u32 = 200;
/// Friends who are told of a profile change; the rest sees it at the next login.
const MAX_FRIENDS: usize = 5_000;

/// The look-ups.
#[derive(Clone)]
pub struct Audiences {
    storage: Storage,
    members: Cache<String, Arc<Members>>,
}

impl Audiences {
    /// Asks `storage`.
    pub fn new(storage: Storage) -> Self {
        let members = Cache::builder()
            .max_capacity(MAX_MEMBERS)
            .weigher(|_: &String, members: &Arc<Members>| {
                u32::try_from(members.len()).unwrap_or(u32::MAX).saturating_add(1)
            })
            .time_to_live(TTL)
            .build();
        Self { storage, members }
    }

    /// Whether a look-up would ask storage.
    pub fn is_known(&self, needs: &Needs) -> bool {
        match needs {
            Needs::Nobody => true,
            Needs::Members(conversation) => self.members.contains_key(conversation),
            Needs::Friends(_) => false,
        }
    }

    /// The audience, asked for until storage answers; the caller drops the future when the work is no longer its own.
    pub async fn find(&self, needs: Needs) -> Audience {
        let mut backoff = pauses();
        loop {
            let found = match &needs {
                Needs::Nobody => return Audience::Nobody,
                Needs::Members(conversation) => match self.members.get(conversation).await {
                    Some(members) => return Audience::Members(members),
                    // Boxed: it is rare, and large for events whose audience is known.
                    None => Box::pin(self.members(conversation)).await.map(Audience::Members),
                },
                Needs::Friends(user) => Box::pin(self.friends(user)).await.map(Audience::Friends),
            };
            let error = match found {
                Ok(audience) => return audience,
                Err(error) => error,
            };
            if matches!(
                error.code,
                Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented | Code::DataLoss
            ) {
                metrics::counter!("kith_tasks_events_skipped_total", "reason" => "audience").increment(1);
                tracing::error!(?needs, %error, "storage refuses to say who is concerned: the event reaches nobody");
                return Audience::Nobody;
            }
            metrics::counter!("kith_tasks_retries_total", "step" => "audience").increment(1);
            tracing::warn!(?needs, %error, "who is concerned is not known yet: asking again");
            backoff.pause().await;
        }
    }

    /// The members may have changed.
    pub async fn forget(&self, conversation: &str) {
        self.members.invalidate(conversation).await;
    }

    /// Events may have been consumed elsewhere.
    pub fn forget_all(&self) {
        self.members.invalidate_all();
    }

    async fn members(&self, conversation: &str) -> Result<Arc<Members>, Error> {
        let load = async {
            let mut members = Vec::new();
            let mut cursor = String::new();
            loop {
                let request = ListMembersRequest {
                    conversation_id: conversation.to_owned(),
                    limit: MEMBERS_PAGE,
                    cursor,
                    ..Default::default()
                };
                let page = match self.storage.list_members(request).await {
                    Ok(page) => page,
                    // Dissolved meanwhile: nobody is left to be told.
                    Err(error) if error.code == Code::NotFound => break,
                    Err(error) => return Err(error),
                };
                members.extend(
                    page.members.into_iter().map(|m| Member { user: m.user_id.into(), joined_seq: m.joined_seq }),
                );
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    break;
                }
            }
            Ok(Arc::new(Members::new(members)))
        };
        self.members.try_get_with_by_ref(conversation, load).await.map_err(|error| Error::clone(&error))
    }

    async fn friends(&self, user: &str) -> Result<Vec<Arc<str>>, Error> {
        let mut friends: Vec<Arc<str>> = Vec::new();
        let mut cursor = String::new();
        while friends.len() < MAX_FRIENDS {
            let request =
                ListFriendsRequest { user_id: user.to_owned(), limit: FRIENDS_PAGE, cursor, ..Default::default() };
            let page = match self.storage.list_friends(request).await {
                Ok(page) => page,
                Err(error) if error.code == Code::NotFound => break,
                Err(error) => return Err(error),
            };
            friends.extend(page.friends.into_iter().map(|f| f.user_id.into()));
            cursor = page.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        Ok(friends)
    }
}
