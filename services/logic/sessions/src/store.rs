//! What sessions leave in storage: delivered cursors about two seconds after the first of a device, device rows with `last_seen` soon after a
//! login or logout, and both once more at the end.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kith_clients::storage::Storage;
use kith_kit::backoff::jittered;
use kith_proto::{
    chat::v1::Position,
    storage::v1::{Device, ItemError, PutDeviceRequest},
};
use kith_rpc::error::{Error, reason};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    acks::{self, Acks, Batch, Full},
    registry::Session,
};

/// How long a device's cursors gather, give or take half of it: devices that began together do not stay together.
const GATHER: Duration = Duration::from_secs(2);
/// Between two looks at whose cursors are due: often, since what is written at once stands between messages and their disk writes.
const LOOK: Duration = Duration::from_millis(10);
/// The same while none wait.
const IDLE_LOOK: Duration = Duration::from_millis(100);
/// Device rows are written this often.
const ROWS_EVERY: Duration = Duration::from_secs(2);
/// Calls at once.
const CONCURRENCY: usize = 32;
/// What the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(6);
/// Device rows that wait; a login beyond it writes its row at logout.
const MAX_DEVICES: usize = 100_000;

struct Seen {
    platform: i32,
    at: i64,
    /// When the session's token was issued: one that was revoked since leaves no row.
    token_issued_at: i64,
}

impl Seen {
    /// Two sessions of one device, or one that was looked at twice: the later one counts.
    fn join(&mut self, other: &Self) {
        if other.at >= self.at {
            self.platform = other.platform;
        }
        self.at = self.at.max(other.at);
        self.token_issued_at = self.token_issued_at.max(other.token_issued_at);
    }
}

/// What waits to be written.
#[derive(Default)]
pub struct Pending {
    acks: Mutex<Acks>,
    devices: Mutex<HashMap<acks::Device, Seen>>,
}

impl Pending {
    /// Remembers delivered cursors until they are due.
    pub fn ack(&self, user: &str, device: &str, cursors: impl IntoIterator<Item = (String, u64)>) -> Result<(), Full> {
        self.acks.lock().add(user, device, cursors, due())
    }

    /// Remembers that a device was seen.
    pub fn seen(&self, session: &Session, at: i64) {
        let mut devices = self.devices.lock();
        let key = (session.user.clone(), session.device.clone());
        if devices.len() < MAX_DEVICES || devices.contains_key(&key) {
            let seen = Seen { platform: session.platform, at, token_issued_at: session.issued_at() };
            devices.entry(key).and_modify(|known| known.join(&seen)).or_insert(seen);
        } else {
            metrics::counter!("kith_sessions_device_rows_dropped_total").increment(1);
        }
    }

    /// Flushes until `shutdown`, then once more.
    pub async fn run(&self, storage: &Storage, shutdown: CancellationToken) {
        let mut rows_due = Instant::now() + ROWS_EVERY;
        loop {
            let pause = if self.acks.lock().is_empty() { IDLE_LOOK } else { LOOK };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
            let now = Instant::now();
            let rows = now >= rows_due;
            if rows {
                rows_due = now + ROWS_EVERY;
            }
            self.flush(storage, now, rows).await;
        }
        if tokio::time::timeout(LAST_FLUSH, self.flush(storage, far(), true)).await.is_err() {
            tracing::warn!(
                "storage did not take all delivered cursors before the end: clients get a few messages twice"
            );
        }
    }

    /// Writes the cursors that are due at `now`, and device rows if `rows`.
    async fn flush(&self, storage: &Storage, now: Instant, rows: bool) {
        let batches = self.acks.lock().take(now);
        let devices: Vec<_> = if rows { self.devices.lock().drain().collect() } else { Vec::new() };
        let acks = batches.into_iter().map(|batch| self.write_acks(storage, batch)).collect::<Vec<_>>();
        let rows = devices.into_iter().map(|(key, seen)| self.write_device(storage, key, seen)).collect::<Vec<_>>();
        tokio::join!(
            stream::iter(acks).buffer_unordered(CONCURRENCY).collect::<()>(),
            stream::iter(rows).buffer_unordered(CONCURRENCY).collect::<()>(),
        );
    }

    async fn write_acks(&self, storage: &Storage, batch: Batch) {
        let positions = batch
            .cursors
            .iter()
            .map(|(id, seq)| Position { conversation_id: id.clone(), seq: *seq })
            .collect::<Vec<_>>();
        let (user, device) = (batch.device.0.clone(), batch.device.1.clone());
        match storage.ack(&user, &device, positions).await {
            Ok(response) => {
                let again: HashMap<_, _> = response.errors.into_iter().map(|e| (e.conversation_id, e.error)).collect();
                let is_worth_it =
                    |error: &Option<ItemError>| error.as_ref().is_some_and(|e| is_passing(Code::from_i32(e.code)));
                let cursors = batch.cursors.into_iter().filter(|(id, _)| again.get(id).is_some_and(is_worth_it));
                self.keep(&user, &device, cursors.collect());
            }
            Err(error) if is_passing(error.code) => self.keep(&user, &device, batch.cursors),
            Err(error) => {
                metrics::counter!("kith_sessions_acks_refused_total").increment(batch.cursors.len() as u64);
                tracing::warn!(user = %user, %error, "storage refused delivered cursors");
            }
        }
    }

    /// Puts cursors back, to be written later.
    fn keep(&self, user: &str, device: &str, cursors: Vec<(String, u64)>) {
        if !cursors.is_empty() && self.acks.lock().add(user, device, cursors, due()).is_err() {
            metrics::counter!("kith_sessions_acks_dropped_total").increment(1);
        }
    }

    async fn write_device(&self, storage: &Storage, key: acks::Device, seen: Seen) {
        let device =
            Device { device_id: key.1.to_string(), platform: seen.platform, last_seen: seen.at, ..Device::default() };
        let request = PutDeviceRequest {
            user_id: key.0.to_string(),
            device: Some(device),
            set_push: false,
            token_issued_at: seen.token_issued_at,
        };
        match storage.put_device(request).await {
            Ok(_) => {}
            Err(error) if is_passing(error.code) => {
                self.devices.lock().entry(key).and_modify(|known| known.join(&seen)).or_insert(seen);
            }
            // It was sent away meanwhile, and is not listed again.
            Err(error) if error.reason.as_deref() == Some(reason::REVOKED) => {}
            Err(error) => refused(&key.0, &error),
        }
    }
}

fn due() -> Instant {
    Instant::now() + jittered(GATHER)
}

/// When everything is due.
fn far() -> Instant {
    Instant::now() + GATHER * 2
}

fn refused(user: &Arc<str>, error: &Error) {
    metrics::counter!("kith_sessions_device_rows_dropped_total").increment(1);
    tracing::warn!(user = %user, %error, "storage refused a device row");
}

/// Whether the same write may work in two seconds.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::FailedPrecondition
    )
}
