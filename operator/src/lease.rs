//! Leader election by a Lease: one operator acts, and it knows how long it still may.
//!
//! Time is judged by this process's own monotonic clock only: a holder counts from the moment before it asked for the renewal, a
//! candidate from the moment at which it last saw the record change. So clocks that differ do no harm.
//!
//! Each release of the operator has a Lease of its own, for which its replicas compete. Releases that look after the same namespaces keep out
//! of each other's way besides; see [`rivals`].

pub mod notice;
pub mod rivals;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use json_patch::{AddOperation, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        rbac::v1::ClusterRole,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kith_crds::names;
use kith_kit::backoff::Backoff;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::rivals::{Own, Rivals, Verdict};

/// How long a lease lasts without renewal.
pub const LEASE: Duration = Duration::from_secs(6);
/// Renewals that are under way at once: more would only add to the load of an API server that answers slowly.
const RENEWALS_MAX: usize = 4;
/// Between two looks at an operator that one gave way to.
const GIVEN_WAY: Duration = Duration::from_secs(2);
/// The longest pause after looks that failed; the first is that of a candidate.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Everything about a lease that is measured in time, in proportion to how long it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a lease lasts without renewal.
    pub lease: Duration,
}

impl Timing {
    /// Between the beginnings of two renewals, however long the answers take: an API server that takes longer than that to answer has several
    /// before it, and the lease is renewed as long as each answer comes within `term`, less this.
    pub fn renew(self) -> Duration {
        self.lease / 4
    }

    /// Between two looks of a candidate.
    pub fn look(self) -> Duration {
        self.lease / 12
    }

    /// How long a holder acts after it asked for a renewal: it is silent a little before another may begin. Answers that come later than
    /// that are of no use, so it is also the deadline of each request.
    pub fn term(self) -> Duration {
        self.lease.saturating_sub(self.lease / 12)
    }
}

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
        guard.extend(Instant::now() + Duration::from_secs(86_400));
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

    /// Lasts until then at least: answers of renewals may come in another order than they were asked for.
    fn extend(&self, until: Instant) {
        let ms = u64::try_from(until.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(ms, Ordering::AcqRel);
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
    /// A time could not be written as JSON.
    #[error("lease: {0}")]
    Json(#[from] serde_json::Error),
}

/// A candidate for the Lease.
pub struct Election {
    client: Client,
    api: Api<Lease>,
    own: Own,
    identity: String,
    timing: Timing,
    guard: LeaseGuard,
    /// The operator that stands in the way, in words.
    rival: watch::Sender<Option<String>>,
}

/// What became of a candidate that holds its release's Lease.
enum Entry {
    /// It leads.
    Leads,
    /// Begin again: the Lease was given back, or lost.
    Again,
    /// The process is to end.
    Ends,
}

impl Election {
    /// For the Lease that `own` names, under `identity` (the pod's name).
    pub fn new(client: Client, own: Own, identity: &str, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client.clone(), &own.namespace),
            client,
            own,
            identity: identity.to_owned(),
            timing,
            guard: LeaseGuard::new(),
            rival: watch::Sender::new(None),
        }
    }

    /// The guard, which follows the lease.
    pub fn guard(&self) -> LeaseGuard {
        self.guard.clone()
    }

    /// The operator of another release that stands in the way, in words, while there is one.
    pub fn rival(&self) -> watch::Receiver<Option<String>> {
        self.rival.subscribe()
    }

    /// Waits until this process is the leader, or `shutdown`; answers whether it is.
    pub async fn acquire(&self, shutdown: &CancellationToken) -> bool {
        let mut rivals = Rivals::new(&self.own);
        loop {
            let Some(asked) = self.take(shutdown).await else { return false };
            match self.enter(asked, &mut rivals, shutdown).await {
                Entry::Leads => return true,
                Entry::Again => {}
                Entry::Ends => {
                    if let Err(error) = self.release().await {
                        tracing::warn!(%error, "the lease could not be given back");
                    }
                    return false;
                }
            }
        }
    }

    /// Waits for the release's own Lease; answers when it was asked for, or nothing at `shutdown`.
    async fn take(&self, shutdown: &CancellationToken) -> Option<Instant> {
        let mut seen = None;
        let (mut failures, mut backoff) = (0_u32, Backoff::new(self.timing.look(), LONGEST_PAUSE));
        loop {
            let pause = match self.try_take(&mut seen).await {
                Ok(Some(asked)) => return Some(asked),
                Ok(None) => {
                    failures = 0;
                    backoff.reset();
                    self.timing.look()
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "the lease could not be read or taken");
                    }
                    backoff.after_failure()
                }
            };
            shutdown.run_until_cancelled(tokio::time::sleep(pause)).await?;
        }
    }

    async fn try_take(&self, seen: &mut Option<(Option<String>, Instant)>) -> Result<Option<Instant>, LeaseError> {
        let current = self.within(self.api.get_opt(&self.own.lease)).await?;
        let asked;
        let written = match &current {
            None => {
                asked = Instant::now();
                let record = self.record(None, 0);
                self.within(self.api.create(&PostParams::default(), &record)).await
            }
            Some(lease) => {
                if !is_free(lease, &self.identity, seen, self.timing.lease, Instant::now()) {
                    return Ok(None);
                }
                let transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0).saturating_add(1);
                asked = Instant::now();
                let record = self.record(Some(lease), transitions);
                self.within(self.api.replace(&self.own.lease, &PostParams::default(), &record)).await
            }
        };
        match written {
            Ok(_) => Ok(Some(asked)),
            // Another candidate was quicker.
            Err(LeaseError::Kube(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
                Ok(None)
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
                name: Some(self.own.lease.clone()),
                resource_version: current.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                // Only whole seconds can be said; the shortest is one.
                lease_duration_seconds: i32::try_from(self.timing.lease.as_secs().max(1)).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Waits, holding the release's own Lease since `asked`, until no operator of another release stands in the way.
    async fn enter(&self, mut asked: Instant, rivals: &mut Rivals, shutdown: &CancellationToken) -> Entry {
        loop {
            // Both at once: the lease is to last for a while when it is known that nobody stands in the way.
            let (verdict, renewed) = tokio::join!(self.look_around(rivals), self.renew());
            let unbroken = asked.elapsed() < self.timing.term();
            match renewed {
                Ok(renewed) => asked = renewed,
                Err(LeaseError::Lost) => return Entry::Again,
                Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
            }
            match verdict {
                // Where the lease may have run out meanwhile, another may have seen nobody before it: then it is looked again.
                Ok(Verdict::Clear) if !unbroken => {}
                Ok(Verdict::Clear) => {
                    self.guard.extend(asked + self.timing.term());
                    self.say(None);
                    return Entry::Leads;
                }
                Ok(Verdict::Wait(who)) => self.say(Some(who)),
                Ok(Verdict::GiveWay(who)) => {
                    self.say(Some(who));
                    return self.give_way(rivals, shutdown).await;
                }
                Err(error) => tracing::warn!(%error, "other operators could not be looked for; trying again"),
            }
            let pause = self.timing.renew().saturating_sub(asked.elapsed()).max(self.timing.look());
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Entry::Ends;
            }
        }
    }

    /// Gives the Lease back, so that the other operator sees nobody before it, and waits until that one is gone.
    async fn give_way(&self, rivals: &mut Rivals, shutdown: &CancellationToken) -> Entry {
        if let Err(error) = self.release().await {
            tracing::warn!(%error, "the lease could not be given back; the other operator waits until it ends");
        }
        loop {
            if shutdown.run_until_cancelled(tokio::time::sleep(GIVEN_WAY.min(self.timing.lease))).await.is_none() {
                return Entry::Ends;
            }
            match self.look_around(rivals).await {
                Ok(Verdict::Clear) => return Entry::Again,
                Ok(Verdict::Wait(who) | Verdict::GiveWay(who)) => self.say(Some(who)),
                Err(error) => tracing::warn!(%error, "other operators could not be looked for; trying again"),
            }
        }
    }

    fn say(&self, rival: Option<String>) {
        self.rival.send_if_modified(|current| {
            let differs = *current != rival;
            if differs {
                *current = rival;
            }
            differs
        });
    }

    /// Looks for operators of other releases that look after the same namespaces and hold their Lease.
    async fn look_around(&self, rivals: &mut Rivals) -> Result<Verdict, LeaseError> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(&format!("{}={}", names::LABEL_NAME, names::FIELD_MANAGER));
        let others = match self.within(roles.list(&ours)).await {
            Ok(list) => rivals.overlapping(&list.items),
            Err(error) => return self.unseen(error),
        };
        let leases = others.iter().map(|other| async {
            let api: Api<Lease> = Api::namespaced(self.client.clone(), &other.namespace);
            self.within(api.get_opt(&other.lease)).await
        });
        match try_join_all(leases).await {
            Ok(leases) => Ok(rivals.look(others.into_iter().zip(leases), self.timing.lease, Instant::now())),
            Err(error) => self.unseen(error),
        }
    }

    /// Without the right to look, who made the roles by hand answers for it that there is no other operator: failover matters more.
    fn unseen(&self, error: LeaseError) -> Result<Verdict, LeaseError> {
        match &error {
            LeaseError::Kube(kube::Error::Api(status)) if status.is_forbidden() => {
                tracing::warn!(lease = %self.own.lease, %error, "whether another operator looks after the same namespaces cannot be seen: its rights are missing");
                Ok(Verdict::Clear)
            }
            _ => Err(error),
        }
    }

    /// Renews until `shutdown` (then the lease can be given back, `Ok`) or until it is lost (`Err`): the caller must end the process. It is
    /// lost when another holds it, or when no renewal was answered for as long as it lasts, and not before.
    pub async fn hold(&self, shutdown: &CancellationToken) -> Result<(), LeaseError> {
        let mut tick = tokio::time::interval(self.timing.renew());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut under_way = FuturesUnordered::new();
        loop {
            let ends = tokio::time::sleep(self.guard.time_left());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(answer) = under_way.next() => match answer {
                    Ok(asked) => self.guard.extend(asked + self.timing.term()),
                    Err(LeaseError::Lost) => {
                        self.guard.clear();
                        return Err(LeaseError::Lost);
                    }
                    Err(error) => {
                        tracing::warn!(%error, left_ms = %self.guard.time_left().as_millis(), "the lease could not be renewed");
                    }
                },
                () = ends => return Err(LeaseError::Lost),
                _ = tick.tick(), if under_way.len() < RENEWALS_MAX => under_way.push(self.renew()),
            }
        }
    }

    /// Asks for a renewal, which the API server grants only to the holder, in one request; answers when it was asked for.
    async fn renew(&self) -> Result<Instant, LeaseError> {
        let asked = Instant::now();
        let now = serde_json::to_value(MicroTime(Timestamp::now()))?;
        let renewed = AddOperation { path: PointerBuf::from_tokens(["spec", "renewTime"]), value: now };
        self.change(renewed).await.map(|()| asked)
    }

    /// Gives the lease back so that another takes over at once. Call after everything that acts has ended.
    pub async fn release(&self) -> Result<(), LeaseError> {
        self.guard.clear();
        let nobody = AddOperation { path: PointerBuf::from_tokens(["spec", "holderIdentity"]), value: "".into() };
        match self.change(nobody).await {
            Err(LeaseError::Lost) => Ok(()),
            done => done,
        }
    }

    /// Deletes the Lease, which nobody needs any more. Only its holder may.
    pub async fn remove(&self) -> Result<(), LeaseError> {
        let lease = self.within(self.api.get(&self.own.lease)).await?;
        if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) != Some(&self.identity) {
            return Err(LeaseError::Lost);
        }
        let exactly = Preconditions { uid: lease.metadata.uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        self.within(self.api.delete(&self.own.lease, &params)).await.map(drop)
    }

    /// Changes the record, provided that this process holds it.
    async fn change(&self, change: AddOperation) -> Result<(), LeaseError> {
        let holder = PointerBuf::from_tokens(["spec", "holderIdentity"]);
        let patch = json_patch::Patch(vec![
            PatchOperation::Test(TestOperation { path: holder, value: self.identity.as_str().into() }),
            PatchOperation::Add(change),
        ]);
        let patch = Patch::<()>::Json(patch);
        match self.within(self.api.patch(&self.own.lease, &PatchParams::default(), &patch)).await {
            Ok(_) => Ok(()),
            Err(LeaseError::Kube(kube::Error::Api(status))) if status.is_invalid() => Err(LeaseError::Lost),
            Err(error) => Err(error),
        }
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, LeaseError> {
        match tokio::time::timeout(self.timing.term(), call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(LeaseError::Deadline),
        }
    }
}

/// Whether a candidate may take the lease: it has no other holder, or its record has not changed for as long as a lease lasts. `seen` is
/// the version that this candidate saw last, and since when.
fn is_free(
    lease: &Lease,
    identity: &str,
    seen: &mut Option<(Option<String>, Instant)>,
    lasts: Duration,
    now: Instant,
) -> bool {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let version = &lease.metadata.resource_version;
    let unchanged_for = match seen {
        Some((last, since)) if last == version => now.saturating_duration_since(*since),
        _ => {
            *seen = Some((version.clone(), now));
            Duration::ZERO
        }
    };
    holder.is_empty() || holder == identity || unchanged_for >= lasts
}
