//! How fast one user may go: a bucket per user, in bounded memory; and how fast who goes too fast is told so.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use governor::{
    InsufficientCapacity, NotUntil, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::DashMapStateStore,
};
use kith_proto::chat::v1::Draft;
use kith_rpc::error::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

/// Users that are remembered before those who have come to rest are forgotten.
const SWEEP_AT: usize = 65_536;

/// A token bucket per key. `None` inside: no limit.
pub struct Limiter {
    buckets: Option<RateLimiter<String, DashMapStateStore<String>, DefaultClock>>,
    checks: AtomicUsize,
}

impl Limiter {
    /// `per_second` on average with bursts of three times that; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self::with_burst(per_second, per_second.saturating_mul(3))
    }

    /// `per_second` on average, and `burst` at once; 0 a second: no limit.
    pub fn with_burst(per_second: u32, burst: u32) -> Self {
        let quota = NonZeroU32::new(per_second)
            .map(|rate| Quota::per_second(rate).allow_burst(NonZeroU32::new(burst).unwrap_or(rate)));
        Self { buckets: quota.map(RateLimiter::dashmap), checks: AtomicUsize::new(0) }
    }

    /// Takes one from the bucket of `key`; how long to wait when it is empty.
    pub fn check(&self, key: &str) -> Result<(), Duration> {
        self.check_n(key, 1)
    }

    /// Takes `count` from the bucket of `key`, all or none; how long to wait when it does not hold as many. More than it can ever hold
    /// count as a full one.
    pub fn check_n(&self, key: &str, count: usize) -> Result<(), Duration> {
        let Some((buckets, count)) = self.buckets.as_ref().zip(NonZeroU32::new(count.try_into().unwrap_or(u32::MAX)))
        else {
            return Ok(());
        };
        // A full bucket needs no memory. The sweep walks all of them, so it comes seldom.
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_AT == SWEEP_AT - 1 {
            buckets.retain_recent();
        }
        let (key, wait) = (key.to_owned(), |until: NotUntil<_>| until.wait_time_from(DefaultClock::default().now()));
        match buckets.check_key_n(&key, count) {
            Ok(taken) => taken.map_err(wait),
            Err(InsufficientCapacity(most)) => {
                match NonZeroU32::new(most).map(|most| buckets.check_key_n(&key, most)) {
                    Some(Ok(taken)) => taken.map_err(wait),
                    Some(Err(_)) | None => Ok(()),
                }
            }
        }
    }
}

/// How long whoever went too fast waits for the answer that says so.
const LATE: Duration = Duration::from_secs(1);
/// Answers that wait at once; who comes then has theirs at once.
const WAITING: usize = 4_096;

/// Refusals that come late. A client that asks again as soon as it is answered would spend the platform's cores on refusals alone;
/// this way it is as slow as the answers are, and whoever keeps to `Retry-After` loses nothing.
pub struct LateRefusals {
    waiting: Semaphore,
    late: Duration,
}

impl Default for LateRefusals {
    fn default() -> Self {
        Self { waiting: Semaphore::new(WAITING), late: LATE }
    }
}

impl LateRefusals {
    /// Returns when the refusal may be answered.
    pub async fn wait(&self) {
        if let Ok(_place) = self.waiting.try_acquire() {
            sleep(self.late).await;
        }
    }
}

/// Bytes of answers that one user may take a second on average, and at once: thousands of ordinary messages a second, and an end to
/// having the largest pages read over and over.
const TAKEN: (u32, u32) = (2 << 20, 8 << 20);
/// How long an answer waits for its user's share.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bytes that each user was answered lately.
pub struct TakenBytes {
    taken: Limiter,
    patience: Duration,
}

impl Default for TakenBytes {
    fn default() -> Self {
        Self { taken: Limiter::with_burst(TAKEN.0, TAKEN.1), patience: PATIENCE }
    }
}

impl TakenBytes {
    /// Returns when an answer of these bytes may be handed to `user`; RESOURCE_EXHAUSTED after five seconds in which it might not.
    pub async fn take(&self, user: &str, bytes: usize) -> Result<(), Error> {
        let end = Instant::now() + self.patience;
        while let Err(wait) = self.taken.check_n(user, bytes) {
            if Instant::now() + wait > end {
                sleep_until(end).await;
                let detail = format!("too many bytes in the answers to this user: at most {} a second", TAKEN.0);
                return Err(Error::exhausted(detail, wait));
            }
            sleep(wait).await;
        }
        Ok(())
    }
}

/// What a message weighs beside what its sender gives.
const MESSAGE_BYTES: usize = 128;

/// The bytes that each sender has sent lately: thousands of ordinary messages a minute, and an end to filling the engine.
pub struct SentBytes {
    sent: Limiter,
    per_minute: u32,
}

impl SentBytes {
    /// `per_minute` on average, and as many at once.
    pub fn new(per_minute: u32) -> Self {
        Self { sent: Limiter::with_burst((per_minute / 60).max(1), per_minute), per_minute }
    }

    /// Takes what a message weighs from its sender's share; RESOURCE_EXHAUSTED, and nothing taken, when that is used up.
    pub fn check(&self, draft: &Draft) -> Result<(), Error> {
        let mentions: usize = draft.mentions.iter().map(String::len).sum();
        let ext: usize = draft.ext.iter().map(|(key, value)| key.len() + value.len()).sum();
        let bytes = MESSAGE_BYTES + draft.content.len() + mentions + ext;
        self.sent.check_n(&draft.sender_id, bytes).map_err(|wait| {
            Error::exhausted(format!("too many bytes of this user: at most {} a minute", self.per_minute), wait)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_sends_so_many_bytes_a_minute_and_others_are_not_touched() {
        let draft = |sender: &str, bytes: usize| Draft {
            sender_id: sender.to_owned(),
            content: vec![b'x'; bytes].into(),
            ..Draft::default()
        };
        let large = draft("mallory", 60 << 10);
        for per_minute in [128 << 10, 4 << 20, 16 << 20] {
            let sent = SentBytes::new(per_minute);
            let taken = (0..1_000).take_while(|_| sent.check(&large).is_ok()).count();
            let fits = per_minute as usize / (MESSAGE_BYTES + (60 << 10));
            assert!((fits..=fits + 2).contains(&taken), "{per_minute}: {taken}");
            let refused = sent.check(&large).unwrap_err();
            assert_eq!(refused.http_status(), 429);
            assert!(refused.retry_after.is_some() && refused.detail.contains(&per_minute.to_string()), "{refused}");
            assert!(sent.check(&draft("alice", 60 << 10)).is_ok());
        }
        let (sent, ordinary) = (SentBytes::new(4 << 20), draft("bob", 128));
        assert!((0..3_000).all(|_| sent.check(&ordinary).is_ok()), "nobody meets it who chats");
    }

    #[test]
    fn a_burst_ends_and_others_are_not_touched() {
        let limiter = Limiter::new(10);
        let taken = (0..100).filter(|_| limiter.check("alice").is_ok()).count();
        assert!((30..=32).contains(&taken), "{taken}");
        assert!(limiter.check("alice").unwrap_err() <= Duration::from_millis(100));
        assert!(limiter.check("bob").is_ok());
    }

    #[test]
    fn many_at_once_count_one_by_one() {
        let limiter = Limiter::with_burst(10, 100);
        assert!(limiter.check_n("alice", 0).is_ok() && limiter.check_n("alice", 60).is_ok());
        assert!(limiter.check_n("alice", 60).is_err());
        assert!(limiter.check_n("alice", 40).is_ok(), "a refusal takes nothing");
        assert!(limiter.check_n("bob", 1_000).is_ok() && limiter.check("bob").is_err());
    }

    #[tokio::test]
    async fn a_refusal_comes_late_unless_too_many_wait_already() {
        let refusals = LateRefusals { waiting: Semaphore::new(2), late: Duration::from_millis(200) };
        let begun = Instant::now();
        let waits = || async {
            refusals.wait().await;
            begun.elapsed()
        };
        let (first, second, third) = tokio::join!(waits(), waits(), waits());
        assert!(first >= refusals.late && second >= refusals.late, "{first:?} {second:?}");
        assert!(third < first && third < second, "bounded: {third:?}");
    }

    #[tokio::test]
    async fn answers_of_one_user_wait_for_that_users_share_and_others_do_not() {
        let patience = Duration::from_millis(300);
        let taken = TakenBytes { taken: Limiter::with_burst(1 << 20, 8 << 20), patience };
        for _ in 0..2 {
            taken.take("mallory", 4 << 20).await.unwrap();
        }
        let begun = Instant::now();
        taken.take("mallory", 1 << 17).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(50), "an eighth of a second's share: {:?}", begun.elapsed());
        let begun = Instant::now();
        let refused = taken.take("mallory", 8 << 20).await.unwrap_err();
        assert!(begun.elapsed() >= patience, "who is refused has waited");
        assert_eq!(refused.http_status(), 429);
        assert!(refused.retry_after.is_some_and(|wait| wait > Duration::from_secs(1)), "{refused}");
        taken.take("alice", 4 << 20).await.unwrap();
    }

    #[test]
    fn zero_means_no_limit() {
        let limiter = Limiter::new(0);
        assert!((0..10_000).all(|_| limiter.check("alice").is_ok()));
    }
}
