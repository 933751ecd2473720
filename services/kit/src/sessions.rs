//! The typed client of `sessions`: a user belongs to one instance, found by rendezvous hashing of the user's id.

use std::time::Duration;

use kith_proto::sessions::v1::{
    KickRequest, KickResponse, Presence, QueryPresenceRequest, SessionAckRequest, SessionAckResponse,
    sessions_client::SessionsClient,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    batch::{Settled, settled, timed},
    config::Config,
    error::Error,
    route::{RouteError, Router},
    storage::Storage,
};

/// How long a call may take, retries included: shorter than storage's, since nothing is lost with it.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// The routing key of a user.
pub fn key(user_id: &str) -> u64 {
    xxh3_64(user_id.as_bytes())
}

/// `sessions` as its callers see it. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    router: Router,
}

impl Sessions {
    /// Those of the ChatCluster in `config`.
    pub fn new(config: &Config, shutdown: CancellationToken) -> Result<Self, RouteError> {
        Ok(Self { router: Router::new(config, "sessions", &config.services.sessions, shutdown)? })
    }

    /// The routing beneath.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Who is online, and where; `storage` knows when those who are not were seen last. In the order of `user_ids`.
    pub async fn presence(&self, storage: &Storage, user_ids: Vec<String>) -> Result<Vec<Presence>, Error> {
        let found = self
            .router
            .batch(
                DEADLINE,
                user_ids.clone(),
                |id| key(id),
                |transport, user_ids| async move {
                    let request = timed(QueryPresenceRequest { user_ids });
                    let response = SessionsClient::new(transport).query_presence(request).await?.into_inner();
                    Ok(response.presence.into_iter().map(Settled::Done).collect())
                },
            )
            .await?;
        let mut found = settled(found)?;
        let unseen: Vec<_> = user_ids
            .iter()
            .filter(|id| !found.iter().any(|p| p.user_id == **id && (p.online || p.last_seen > 0)))
            .cloned()
            .collect();
        let stored = if unseen.is_empty() { Vec::new() } else { storage.get_users(unseen).await? };
        Ok(user_ids
            .into_iter()
            .map(|user_id| {
                let at = found.iter().position(|p| p.user_id == user_id);
                let mut presence = at.map(|at| found.swap_remove(at)).unwrap_or_default();
                if let Some(user) = stored.iter().find(|u| u.user_id == user_id) {
                    presence.last_seen = presence.last_seen.max(user.last_seen);
                }
                Presence { user_id, ..presence }
            })
            .collect())
    }

    /// Closes a user's sessions.
    pub async fn kick(&self, request: KickRequest) -> Result<KickResponse, Error> {
        let key = key(&request.user_id);
        self.router
            .call(key, DEADLINE, request, |transport, request| async move {
                SessionsClient::new(transport).kick(request).await
            })
            .await
    }

    /// Moves delivered cursors; coalesced there and stored within seconds.
    pub async fn ack(&self, request: SessionAckRequest) -> Result<SessionAckResponse, Error> {
        let key = key(&request.user_id);
        self.router
            .call(key, DEADLINE, request, |transport, request| async move {
                SessionsClient::new(transport).ack(request).await
            })
            .await
    }
}
