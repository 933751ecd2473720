//! Calls to a keyed service: rendezvous routing over the ready instances, WRONG_HOLDER hints followed, retries with back-off, jitter
//! and the call's own deadline as their end.

use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryFutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::{
    client::{Dialer, Transport, health},
    discovery::Discovery,
    error::{Error, reason},
    pulse,
};
use kith_kit::{backoff::Backoff, config::Config, rendezvous};
use kith_platform::Service;

/// First pause before a retry; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Hints and endpoints found dead are remembered this long: until discovery has caught up.
const MEMORY: Duration = Duration::from_secs(3);
/// A single attempt may not eat the whole deadline, if the call is one that may be repeated.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(2_500);
/// An instance that has not answered for so long is asked whether it lives, while the call goes on.
const SILENCE: Duration = Duration::from_millis(500);
/// How long it may take to say so. A stopped instance costs a call both; a busy one is left in peace.
const PULSE: Duration = Duration::from_millis(600);

/// Why a router could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The configuration does not tell where the service is.
    #[error("configuration: services.{0}: missing")]
    NotConfigured(String),
    /// The endpoints string.
    #[error(transparent)]
    Endpoints(#[from] crate::discovery::SpecError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] kith_kit::tls::TlsError),
}

/// Routes calls to the instance that owns a key. Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    component: &'static str,
    dialer: Dialer,
    discovery: Discovery,
    /// What callers learnt that discovery does not know yet.
    learnt: Mutex<Learnt>,
}

#[derive(Default)]
struct Learnt {
    holders: HashMap<u64, (String, Instant)>,
    dead: HashMap<String, Instant>,
}

impl Router {
    /// For the instances of `service`, found as the configuration tells.
    pub fn new(config: &Config, service: Service, shutdown: CancellationToken) -> Result<Self, RouteError> {
        let found = config.services.get(service).ok_or_else(|| RouteError::NotConfigured(service.field()))?;
        let component = service.name();
        let dialer = Dialer::new(config, component)?;
        let listed = Discovery::start(&found.endpoints, shutdown.clone())?;
        let discovery = pulse::living(&listed, component, dialer.clone(), shutdown.clone());
        let mut changes = discovery.watch();
        let pruned = dialer.clone();
        tokio::spawn(async move {
            while let Some(Ok(())) = shutdown.run_until_cancelled(changes.changed()).await {
                let live = changes.borrow_and_update().clone();
                pruned.retain(&live);
            }
        });
        Ok(Self(Arc::new(Inner { component, dialer, discovery, learnt: Mutex::default() })))
    }

    /// The ready instances that answer.
    pub fn discovery(&self) -> &Discovery {
        &self.0.discovery
    }

    /// Channels by address.
    pub fn dialer(&self) -> &Dialer {
        &self.0.dialer
    }

    /// The instance to ask for `key` now; none while no instance is known.
    pub fn address(&self, key: u64) -> Option<String> {
        let endpoints = self.0.discovery.current();
        let learnt = self.0.learnt.lock();
        if let Some((holder, at)) = learnt.holders.get(&key)
            && at.elapsed() < MEMORY
            && !learnt.is_dead(holder)
        {
            return Some(holder.clone());
        }
        if learnt.dead.is_empty() {
            return rendezvous::owner(&endpoints, key).cloned();
        }
        let alive: Vec<&str> = endpoints.iter().map(String::as_str).filter(|e| !learnt.is_dead(e)).collect();
        match rendezvous::owner(&alive, key) {
            Some(owner) => Some((*owner).to_owned()),
            None => rendezvous::owner(&endpoints, key).cloned(),
        }
    }

    /// Groups keys by the instance to ask, for batched calls.
    pub fn group<K>(&self, keys: impl IntoIterator<Item = (u64, K)>) -> HashMap<Option<String>, Vec<K>> {
        let mut groups: HashMap<Option<String>, Vec<K>> = HashMap::new();
        for (key, item) in keys {
            groups.entry(self.address(key)).or_default().push(item);
        }
        groups
    }

    /// Remembers what a failed call taught, and says whether it is worth another try.
    pub fn learn(&self, key: u64, address: &str, error: &Error) -> bool {
        self.0.learnt.lock().learn(key, address, error);
        if error.is_retryable() {
            self.0.discovery.look_again();
        }
        error.is_retryable()
    }

    /// Calls the owner of `key` until it answers, refuses for good, or `deadline` is over. The call must be one that may be repeated:
    /// all of storage's and sessions' are. `f` makes one attempt on a transport, with the request that it is given.
    pub async fn call<Req, Res, F, Fut>(&self, key: u64, deadline: Duration, message: Req, f: F) -> Result<Res, Error>
    where
        Req: Clone,
        F: Fn(Transport, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        self.repeat(key, deadline, |address, limit| {
            let mut request = Request::new(message.clone());
            request.set_timeout(limit);
            f(self.0.dialer.channel(address), request).map_ok(Response::into_inner).err_into()
        })
        .await
    }

    /// The same for attempts that are not a call on a transport: `f` makes one at an address, to be answered within the time given.
    pub async fn repeat<Res, F, Fut>(&self, key: u64, deadline: Duration, f: F) -> Result<Res, Error>
    where
        F: Fn(&str, Duration) -> Fut,
        Fut: Future<Output = Result<Res, Error>>,
    {
        let end = Instant::now() + deadline;
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut last: Option<Error> = None;
        let mut hinted = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.out_of_time(last));
            }
            let Some(address) = self.address(key) else {
                let error = Error::unavailable(format!("no {} instance is ready", self.0.component));
                self.0.discovery.look_again();
                backoff.pause_until(end).await;
                last = Some(error);
                continue;
            };
            let limit = left.min(ATTEMPT);
            // Boxed: the futures of generated clients are large, and would be copied into those of all callers above.
            let error = match self.attempt(&address, limit, Box::pin(f(&address, limit))).await {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => error,
                None => Error::new(Code::DeadlineExceeded, format!("{} did not answer in time", self.0.component)),
            };
            let timed_out = error.code == Code::DeadlineExceeded;
            if !self.learn(key, &address, &error) && !timed_out {
                return Err(error);
            }
            metrics::counter!("kith_client_retries_total", "component" => self.0.component, "code" => error.code_name()).increment(1);
            // A hint is followed at once, a few times: two instances that point at each other must not make a hot loop.
            let follow = error.metadata.contains_key("holder") && hinted < 2;
            hinted += u32::from(follow);
            last = Some(error);
            if !follow {
                backoff.pause_until(end).await;
            }
        }
    }

    /// Waits for an answer; none when it takes longer than `limit` or the instance turns out to be silent, which is remembered.
    pub(crate) async fn attempt<T, E>(
        &self,
        address: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, E>>,
    ) -> Option<Result<T, E>> {
        tokio::select! {
            biased;
            outcome = tokio::time::timeout(limit, call) => outcome.ok(),
            () = self.silent(address) => {
                tracing::debug!(component = self.0.component, %address, "an instance is silent");
                self.0.learnt.lock().dead.insert(address.to_owned(), Instant::now());
                None
            }
        }
    }

    /// Resolves when the instance does not even say whether it is healthy; never while it does.
    async fn silent(&self, address: &str) {
        loop {
            tokio::time::sleep(SILENCE).await;
            // A refused connection is an answer here: the call itself meets it, too. Boxed: it is rare, and every call would carry it.
            if Box::pin(health(self.0.dialer.channel(address), PULSE)).await.is_none() {
                return;
            }
        }
    }

    fn out_of_time(&self, last: Option<Error>) -> Error {
        match last {
            // A refusal that names its reason says more than "too late"; routing refusals say nothing to callers.
            Some(error) if error.code == Code::Unavailable => error,
            _ => Error::new(
                Code::DeadlineExceeded,
                format!("{} gave no answer in time: retry with the same ids", self.0.component),
            ),
        }
    }
}

impl Learnt {
    fn learn(&mut self, key: u64, address: &str, error: &Error) {
        if error.reason.as_deref() == Some(reason::WRONG_HOLDER) {
            match error.metadata.get("holder") {
                Some(holder) if holder != address => {
                    self.holders.insert(key, (holder.clone(), Instant::now()));
                }
                _ => {
                    self.holders.remove(&key);
                }
            }
        } else if error.unanswered {
            self.holders.retain(|_, (holder, _)| holder != address);
            self.dead.insert(address.to_owned(), Instant::now());
        }
        if self.holders.len() > 65_536 {
            self.holders.retain(|_, (_, at)| at.elapsed() < MEMORY);
        }
        self.dead.retain(|_, at| at.elapsed() < MEMORY);
    }

    fn is_dead(&self, address: &str) -> bool {
        self.dead.get(address).is_some_and(|at| at.elapsed() < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_refuses_in_words_is_asked_again_and_one_that_is_silent_is_not() {
        let mut learnt = Learnt::default();
        // What a call meets whose partition moves to another node of the engine.
        learnt.learn(1, "a:1", &Error::unavailable("the partition is moving: try again"));
        assert!(!learnt.is_dead("a:1"));
        learnt.learn(1, "a:1", &Error::wrong_holder(Some("b:1")));
        assert!(!learnt.is_dead("a:1"));
        assert_eq!(learnt.holders[&1].0, "b:1");
        learnt.learn(2, "b:1", &Error::unanswered("the stream ended"));
        assert!(learnt.is_dead("b:1") && learnt.holders.is_empty(), "hints at it are forgotten, too");
    }
}
