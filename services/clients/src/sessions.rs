//! The typed client of `sessions`: a user belongs to one instance, found by rendezvous hashing of the user's id.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use kith_proto::sessions::v1::{
    KickRequest, KickResponse, Presence, QueryPresenceRequest, SessionAckRequest, SessionAckResponse,
    sessions_client::SessionsClient,
};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use xxhash_rust::xxh3::xxh3_64;

use crate::storage::Storage;
use kith_kit::{backoff::Backoff, clock, config::Config};
use kith_platform::Service;
use kith_rpc::{
    batch::{Settled, settled, timed},
    error::{Error, reason},
    route::{RouteError, Router},
};

/// How long a call may take, retries included: shorter than storage's, since nothing is lost with it.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// One attempt to tell an instance of a kick, and the pauses between two.
const KICK_ATTEMPT: Duration = Duration::from_secs(1);
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(250);

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
        Ok(Self { router: Router::new(config, Service::Sessions, shutdown)? })
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

    /// Closes a user's sessions, wherever they are: every instance is asked, also those that appear meanwhile. A session may be on its way
    /// from one owner to the next, and an instance that was told closes it when it arrives. An error means that some instance may not
    /// know; asking again is safe.
    pub async fn kick(&self, mut request: KickRequest) -> Result<KickResponse, Error> {
        if request.issued_at_or_before == 0 {
            request.issued_at_or_before = clock::now_ms();
        }
        let end = Instant::now() + DEADLINE;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut told: HashSet<String> = HashSet::new();
        let mut response = KickResponse::default();
        loop {
            let instances = self.router.discovery().current();
            let mut asked = FuturesUnordered::new();
            for address in instances.iter().filter(|address| !told.contains(*address)) {
                asked.push(self.kick_at(address.clone(), request.clone(), end));
            }
            let nobody = instances.is_empty();
            let mut last = nobody.then(|| Error::unavailable("no sessions instance is ready"));
            while let Some((address, answer)) = asked.next().await {
                match answer {
                    Ok(sessions) => {
                        told.insert(address);
                        response.sessions = response.sessions.saturating_add(sessions);
                    }
                    Err(error) => last = Some(error),
                }
            }
            let Some(error) = last else {
                // Who appeared while the others were asked is asked, too.
                if self.router.discovery().current().iter().all(|address| told.contains(address)) {
                    return Ok(response);
                }
                continue;
            };
            if Instant::now() >= end {
                tracing::warn!(%error, "an instance of sessions could not be told of a kick");
                return Err(Error::unavailable("a part of the platform could not be told of the kick: try again"));
            }
            self.router.discovery().look_again();
            backoff.pause_until(end).await;
        }
    }

    /// One attempt at one instance.
    async fn kick_at(&self, address: String, request: KickRequest, end: Instant) -> (String, Result<u32, Error>) {
        let limit = end.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), KICK_ATTEMPT);
        let mut call = Request::new(request);
        call.set_timeout(limit);
        let mut client = SessionsClient::new(self.router.dialer().channel(&address));
        let outcome = match tokio::time::timeout(limit, client.kick(call)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().sessions),
            Ok(Err(status)) => match Error::from(status) {
                // The version before leaves it to the owner, which is asked as well.
                error if error.reason.as_deref() == Some(reason::WRONG_HOLDER) => Ok(0),
                error => Err(error),
            },
            Err(_) => Err(Error::unavailable("sessions did not answer in time")),
        };
        (address, outcome)
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
