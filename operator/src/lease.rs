//! Leader election by a Lease: one operator acts, and it knows how long it still may.
//!
//! Time is judged by this process's own monotonic clock only: a holder counts from the moment before it asked for the renewal, a
//! candidate from the moment at which it last saw the record change. So clocks that differ do no harm.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// How long a lease lasts without renewal.
pub const LEASE: Duration = Duration::from_secs(6);
/// Between two renewals.
const RENEW: Duration = Duration::from_millis(1_500);
/// Between two looks of a candidate.
const LOOK: Duration = Duration::from_millis(500);
/// One request about the lease.
const REQUEST_DEADLINE: Duration = Duration::from_millis(1_500);
/// A holder gives up this long before its lease ends, so that it is silent when another begins.
const MARGIN: Duration = Duration::from_millis(500);

/// How long this process may still act as the leader. Cheap to clone and to ask.
#[derive(Clone)]
pub struct LeaseGuard {
    base: Instant,
    until_ms: Arc<AtomicU64>,
}

/// The lease is lost or too short for what was to be done.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("leadership lasts {left_ms} ms more, {wanted_ms} ms are needed")]
pub struct LeaseTooShort {
    /// What is left, ms.
    pub left_ms: u128,
    /// What was asked for, ms.
    pub wanted_ms: u128,
}

impl LeaseGuard {
    /// A guard without a lease.
    pub fn new() -> Self {
        Self { base: Instant::now(), until_ms: Arc::new(AtomicU64::new(0)) }
    }

    /// A guard that lasts a day, for tests and tools that run without a competitor.
    pub fn unopposed() -> Self {
        let guard = Self::new();
        guard.set_until(Instant::now() + Duration::from_secs(86_400));
        guard
    }

    /// How long this process is the leader for sure.
    pub fn time_left(&self) -> Duration {
        Duration::from_millis(self.until_ms.load(Ordering::Acquire)).saturating_sub(self.base.elapsed())
    }

    /// Whether at least `wanted` is left; asked before every write to the data plane.
    pub fn check(&self, wanted: Duration) -> Result<(), LeaseTooShort> {
        let left = self.time_left();
        if left >= wanted {
            Ok(())
        } else {
            Err(LeaseTooShort { left_ms: left.as_millis(), wanted_ms: wanted.as_millis() })
        }
    }

    fn set_until(&self, until: Instant) {
        let ms = u64::try_from(until.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX);
        self.until_ms.store(ms, Ordering::Release);
    }

    fn clear(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

impl Default for LeaseGuard {
    fn default() -> Self {
        Self::new()
    }
}

/// Why the election failed.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The API server refused or did not answer.
    #[error("lease: {0}")]
    Kube(#[from] kube::Error),
    /// No answer in time.
    #[error("lease: the API server did not answer in time")]
    Deadline,
    /// Another process took it, or it could not be renewed in time.
    #[error("lease: lost")]
    Lost,
}

/// A candidate for the Lease.
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    guard: LeaseGuard,
}

impl Election {
    /// For the Lease `name` in `namespace` under `identity` (the pod's name).
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            guard: LeaseGuard::new(),
        }
    }

    /// The guard, which follows the lease.
    pub fn guard(&self) -> LeaseGuard {
        self.guard.clone()
    }

    /// Waits until this process is the leader, or `shutdown`; answers whether it is.
    pub async fn acquire(&self, shutdown: &CancellationToken) -> bool {
        let mut seen: Option<(Option<String>, Instant)> = None;
        let mut failures = 0_u32;
        loop {
            let pause = match self.try_acquire(&mut seen).await {
                Ok(true) => return true,
                Ok(false) => {
                    failures = 0;
                    LOOK
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "the lease could not be read or taken");
                    }
                    crate::backoff::delay(failures, LOOK, Duration::from_secs(5))
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return false;
            }
        }
    }

    async fn try_acquire(&self, seen: &mut Option<(Option<String>, Instant)>) -> Result<bool, LeaseError> {
        let Some(lease) = within(self.api.get_opt(&self.name)).await? else {
            let asked = Instant::now();
            let lease = self.record(None, 0);
            return self.written(asked, within(self.api.create(&PostParams::default(), &lease)).await);
        };
        if !is_free(&lease, &self.identity, seen, Instant::now()) {
            return Ok(false);
        }
        let transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0).saturating_add(1);
        let asked = Instant::now();
        let record = self.record(Some(&lease), transitions);
        self.written(asked, within(self.api.replace(&self.name, &PostParams::default(), &record)).await)
    }

    /// A conflict means that another candidate was quicker.
    fn written(&self, asked: Instant, result: Result<Lease, LeaseError>) -> Result<bool, LeaseError> {
        match result {
            Ok(_) => {
                self.guard.set_until(asked + LEASE.saturating_sub(MARGIN));
                Ok(true)
            }
            Err(LeaseError::Kube(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn record(&self, current: Option<&Lease>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        let acquired = current
            .filter(|lease| lease.spec.as_ref().is_some_and(|s| s.holder_identity.as_deref() == Some(&self.identity)))
            .and_then(|lease| lease.spec.as_ref()?.acquire_time.clone());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: current.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Renews until `shutdown` (then the lease is given back, `Ok`) or until it is lost (`Err`): the caller must end the process.
    pub async fn hold(&self, shutdown: &CancellationToken) -> Result<(), LeaseError> {
        loop {
            if shutdown.run_until_cancelled(tokio::time::sleep(RENEW)).await.is_none() {
                return Ok(());
            }
            match self.renew().await {
                Ok(()) => {}
                Err(LeaseError::Lost) => {
                    self.guard.clear();
                    return Err(LeaseError::Lost);
                }
                Err(error) => {
                    tracing::warn!(%error, left_ms = %self.guard.time_left().as_millis(), "the lease could not be renewed");
                    if self.guard.time_left().is_zero() {
                        return Err(LeaseError::Lost);
                    }
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), LeaseError> {
        let lease = within(self.api.get(&self.name)).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Err(LeaseError::Lost);
        }
        let asked = Instant::now();
        let record = self.record(Some(&lease), spec.lease_transitions.unwrap_or(0));
        if self.written(asked, within(self.api.replace(&self.name, &PostParams::default(), &record)).await)? {
            Ok(())
        } else {
            // A write in between: the next round sees whose.
            Err(LeaseError::Deadline)
        }
    }

    /// Gives the lease back so that the other replica takes over at once. Call after everything that acts has ended.
    pub async fn release(&self) -> Result<(), LeaseError> {
        self.guard.clear();
        let mut lease = within(self.api.get(&self.name)).await?;
        if let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity)) {
            spec.holder_identity = Some(String::new());
            within(self.api.replace(&self.name, &PostParams::default(), &lease)).await?;
        }
        Ok(())
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, LeaseError> {
    match tokio::time::timeout(REQUEST_DEADLINE, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(LeaseError::Deadline),
    }
}

/// Whether a candidate may take the lease: it has no other holder, or its record has not changed for as long as a lease lasts. `seen` is
/// the version that this candidate saw last, and since when.
fn is_free(lease: &Lease, identity: &str, seen: &mut Option<(Option<String>, Instant)>, now: Instant) -> bool {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let version = &lease.metadata.resource_version;
    let unchanged_for = match seen {
        Some((last, since)) if last == version => now.saturating_duration_since(*since),
        _ => {
            *seen = Some((version.clone(), now));
            Duration::ZERO
        }
    };
    holder.is_empty() || holder == identity || unchanged_for >= LEASE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_judged_by_its_changes_and_never_by_its_timestamps() {
        let held = |version: &str, renewed_s: i64| Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some("other".to_owned()),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed_s).unwrap())),
                ..LeaseSpec::default()
            }),
        };
        let (now, start) = (Timestamp::now().as_second(), Instant::now());
        // Clocks two minutes apart, in both directions.
        for renewed in [now - 120, now + 120] {
            let mut seen = None;
            assert!(!is_free(&held("1", renewed), "me", &mut seen, start), "seen for the first time");
            assert!(!is_free(&held("1", renewed), "me", &mut seen, start + LEASE / 2));
            assert!(!is_free(&held("2", renewed), "me", &mut seen, start + LEASE), "it was renewed");
            assert!(!is_free(&held("2", renewed), "me", &mut seen, start + LEASE + LEASE / 2));
            assert!(is_free(&held("2", renewed), "me", &mut seen, start + LEASE * 2), "not renewed for a whole lease");
        }
        assert!(is_free(&held("1", now), "other", &mut None, start), "one's own");
    }

    #[test]
    fn a_guard_without_a_lease_allows_nothing() {
        let guard = LeaseGuard::new();
        assert_eq!(guard.time_left(), Duration::ZERO);
        assert!(guard.check(Duration::from_millis(1)).is_err());
        assert!(LeaseGuard::unopposed().check(Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn a_cleared_guard_refuses_at_once() {
        let guard = LeaseGuard::unopposed();
        guard.clear();
        let refused = guard.check(Duration::from_secs(1)).unwrap_err();
        assert_eq!(refused, LeaseTooShort { left_ms: 0, wanted_ms: 1000 });
    }
}
