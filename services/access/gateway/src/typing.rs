//! "Is typing": told to the other members' sessions, best effort, never stored.

use std::{sync::Arc, time::Duration};

use kith_clients::{
    sessions::{Sessions, key},
    storage::Storage,
};
use kith_contract::frames::{EventName, server::Typing};
use kith_proto::{
    sessions::v1::{DeliverRequest, Delivery, deliver_request, delivery, sessions_client::SessionsClient},
    storage::v1::ListMembersRequest,
};
use kith_rpc::batch::{Settled, settled, timed};
use moka::future::Cache;

/// Members are remembered this long: one who was removed may show as typing for that long.
const MEMBERS_TTL: Duration = Duration::from_secs(15);
const MEMBERS: u64 = 10_000;
/// Larger groups are not told.
const MAX_MEMBERS: u32 = 200;
/// A delivery that takes longer is given up: the moment has passed.
const DEADLINE: Duration = Duration::from_secs(1);

/// Tells who is typing.
pub(crate) struct Typists {
    storage: Storage,
    sessions: Sessions,
    /// The others, by (user, conversation).
    members: Cache<(String, String), Arc<[String]>>,
}

impl Typists {
    pub(crate) fn new(storage: Storage, sessions: Sessions) -> Self {
        let members = Cache::builder().max_capacity(MEMBERS).time_to_live(MEMBERS_TTL).build();
        Self { storage, sessions, members }
    }

    /// Tells the other members of a conversation. Nobody is told of one that the user is not in, or where the peer blocks them.
    pub(crate) async fn tell(&self, user: &str, conversation_id: String) {
        let others =
            self.members.try_get_with((user.to_owned(), conversation_id.clone()), self.others(user, &conversation_id));
        let others = match others.await {
            Ok(others) if !others.is_empty() => others,
            Ok(_) => return,
            Err(error) => return tracing::debug!(%error, "typing is not passed on"),
        };
        let typing = Typing { conversation_id: (&conversation_id).into(), user_id: user.into() };
        let event = delivery::Event { event: EventName::Typing.to_string(), data: typing.json().into() };
        let delivery = Delivery { session_ids: Vec::new(), payload: Some(delivery::Payload::Event(event)) };
        let told = self.sessions.router().batch(
            DEADLINE,
            others.to_vec(),
            |user| key(user),
            |transport, user_ids| {
                let item = deliver_request::Item { user_ids, delivery: Some(delivery.clone()), ..Default::default() };
                async move {
                    SessionsClient::new(transport).deliver(timed(DeliverRequest { items: vec![item] })).await?;
                    Ok(Vec::<Settled<String, ()>>::new())
                }
            },
        );
        if let Err(error) = told.await.and_then(settled) {
            tracing::debug!(%error, "typing was not passed on");
        }
    }

    async fn others(&self, user: &str, conversation_id: &str) -> Result<Arc<[String]>, kith_rpc::error::Error> {
        let request = ListMembersRequest {
            conversation_id: conversation_id.to_owned(),
            limit: MAX_MEMBERS,
            user_id: user.to_owned(),
            ..Default::default()
        };
        let found = self.storage.list_members(request).await?;
        let blocked = found.members.iter().any(|m| m.user_id == user && m.blocked);
        if blocked || !found.next_cursor.is_empty() {
            return Ok(Arc::new([]));
        }
        Ok(found.members.into_iter().map(|m| m.user_id).filter(|id| id != user).collect())
    }
}
