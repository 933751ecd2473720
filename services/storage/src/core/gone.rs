//! Delivered cursors go with their device.
//!
//! They stand in the partitions of the conversations, so a device that is deleted or gives way to another leaves a mark beside the devices
//! of its user, in the same write. A walk through the user's list then takes its cursors away, one device after the other, page by page,
//! and the mark at the end. What is left by an instance that ends, or where a partition does not answer, is taken away when the user's next
//! device comes or goes. That something was delivered stays known: of all devices that are gone one cursor stays.

use std::time::Duration;

use bytes::Bytes;
use kith_proto::storage::v1::{ForgetDevice, Step, step};
use kith_rpc::error::Error;
use tokio::sync::mpsc;
use tonic::Code;

use super::{
    Core, Plan, check,
    model::{cursor, key, number, whole_of},
};
use crate::engine::{Field, ListRow, Op, Spot, Swap};

/// Devices that wait for their walk; of more the mark waits.
const JOBS: usize = 4_096;
/// Conversations looked at together, and the pause behind each page: a walk is in no hurry.
const PAGE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);
/// Marks of one user; a device more leaves its cursors, of which each conversation keeps a bounded number.
const MARKS: usize = 100;
/// After this a walk is taken for lost.
const LEFT_MS: i64 = 60_000;
/// The mark of a device in the hash of devices.
const MARK: char = 'g';

/// A device that is gone.
pub(super) struct Job {
    user_id: String,
    device_id: String,
}

/// To the walk.
pub(super) struct Gone(mpsc::Sender<Job>);

impl Gone {
    pub(super) fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS);
        (Self(jobs), queue)
    }

    /// Lets the cursors of these devices be taken away, and those of devices whose marks have been left.
    pub(super) fn walk<'a>(&self, marks: &'a Marks, devices: impl IntoIterator<Item = &'a str>) {
        for device_id in devices.into_iter().chain(marks.left.iter().map(String::as_str)) {
            let job = Job { user_id: marks.user_id.clone(), device_id: device_id.to_owned() };
            if self.0.try_send(job).is_err() {
                metrics::counter!("kith_storage_device_walks_dropped_total").increment(1);
            }
        }
    }
}

/// The marks of a user's devices that are gone.
pub(super) struct Marks {
    user_id: String,
    now: i64,
    /// Whether one more fits beside those that stand.
    room: bool,
    /// Devices of which nobody seems to take the cursors away.
    left: Vec<String>,
}

impl Marks {
    /// As they stand among the devices.
    pub(super) fn of(user_id: &str, rows: &[(String, Bytes)], now: i64) -> Self {
        let marks: Vec<_> = rows.iter().filter_map(|(name, at)| Some((name.strip_prefix(MARK)?, at))).collect();
        let old = |at: &Bytes| number::<i64>(at).is_none_or(|at| at.saturating_add(LEFT_MS) < now);
        let left = marks.iter().filter(|(_, at)| old(at)).map(|(device, _)| (*device).to_owned()).collect();
        Self { user_id: user_id.to_owned(), now, room: marks.len() < MARKS, left }
    }

    /// The mark of one more device; none where there are too many.
    pub(super) fn of_device(&self, device_id: &str) -> Option<(Field, Bytes)> {
        self.room.then(|| (mark(&self.user_id, device_id), self.now.to_string().into()))
    }
}

fn mark(user_id: &str, device_id: &str) -> Field {
    Field::new(key::devices(user_id), format!("{MARK}{device_id}"))
}

/// Walks as long as the core lives.
pub(super) fn start(core: &Core, mut jobs: mpsc::Receiver<Job>) {
    let weak = std::sync::Arc::downgrade(&core.0);
    tokio::spawn(async move {
        while let Some(Job { user_id, device_id }) = jobs.recv().await {
            let Some(inner) = weak.upgrade() else { return };
            if let Err(error) = Core(inner).forget_device(&user_id, &device_id).await {
                tracing::debug!(%error, user_id, "delivered cursors of a device that is gone wait for the user's next device");
            }
        }
    });
}

impl Core {
    async fn forget_device(&self, user_id: &str, device_id: &str) -> Result<(), Error> {
        let partition = self.partition(user_id);
        let (device, mark) = (Field::new(key::devices(user_id), format!("d{device_id}")), mark(user_id, device_id));
        let fields = [device, mark.clone()];
        let (mut top, mut behind, mut again): (Option<Spot>, Option<Spot>, bool) = (None, None, false);
        loop {
            let values = self.fields(partition, &fields, Self::end()).await?;
            if values[1].is_none() {
                return Ok(());
            }
            // It has come back: its cursors are its own again.
            if values[0].is_some() {
                break;
            }
            let mut rows = self.engine().list(partition, user_id, behind.as_ref(), PAGE, Self::end()).await?;
            let mut ended = rows.len() < PAGE as usize;
            if again {
                // What has become active meanwhile has moved above the entry where the walk began.
                let before = rows.len();
                rows.retain(|row| top.as_ref().is_none_or(|top| row.spot() > *top));
                ended |= rows.len() < before;
            }
            top = top.or_else(|| rows.first().map(ListRow::spot));
            behind = rows.last().map(ListRow::spot);
            let gone = || ForgetDevice { user_id: user_id.to_owned(), device_id: device_id.to_owned() };
            let step = |id: String| Step { id, step: Some(step::Step::ForgetDevice(gone())) };
            for outcome in self.apply(rows.into_iter().map(|row| step(row.conversation_id)).collect()).await? {
                match outcome {
                    // One that is damaged, or no conversation, does not keep the others.
                    Err(error) if !matches!(error.code, Code::NotFound | Code::DataLoss) => return Err(error),
                    _ => {}
                }
            }
            if ended && again {
                break;
            }
            if ended {
                (again, behind) = (true, None);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let swap = Swap { conditions: Vec::new(), ops: vec![Op::Delete(mark)] };
        Ok(self.engine().free(partition, swap, Self::end()).await?)
    }

    /// Takes a device's delivered cursor out of a conversation; what it had received stays known of its user.
    pub(super) async fn forget_delivered(&self, id: &str, user_id: &str, device_id: &str) -> Result<bool, Error> {
        check::user("user_id", user_id)?;
        check::user("device_id", device_id)?;
        check::place(id, user_id)?;
        let names = [cursor::delivered(user_id, device_id), cursor::devices(user_id), cursor::gone(user_id)];
        let fields = names.map(|name| Field::new(key::cursors(id), name));
        self.update(self.partition(id), fields.to_vec(), |values| {
            let [at, devices, gone] = &fields;
            let mut ops = Vec::new();
            if let Some(stored) = &values[0] {
                let seq: u64 = whole_of(at, stored)?;
                let before = values[2].as_ref().map_or(Ok(0), |before| whole_of(gone, before))?;
                ops.push(Op::Delete(at.clone()));
                if seq > before {
                    ops.push(Op::Set(gone.clone(), stored.clone()));
                }
            }
            ops.extend(cursor::without_device(values[1].as_ref(), device_id).map(|left| {
                if left.is_empty() { Op::Delete(devices.clone()) } else { Op::Set(devices.clone(), left) }
            }));
            let changed = !ops.is_empty();
            Ok(Plan::freeing(ops, changed))
        })
        .await
    }
}
