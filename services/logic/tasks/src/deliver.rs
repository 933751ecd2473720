//! Hands deliveries to `sessions`: one call at a time for each lane, with everything that waits in it, repeated until it is taken.
//!
//! There is no end to the repeats but the partition's revocation and the shutdown: the event log is the queue, its offsets stay behind,
//! and giving up would lose a message for someone who is online. What bounds memory is the budget of [`Deliverer::push`].

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use kith_clients::sessions::key;
use kith_eventlog::consumer::Ticket;
use kith_kit::clock;
use kith_proto::sessions::v1::{
    DeliverRequest, DeliverResponse, Delivery, deliver_request::Item, deliver_response::Outcome, delivery::Payload,
    sessions_client::SessionsClient,
};
use kith_rpc::{
    client::MAX_MESSAGE_BYTES,
    error::{Error, reason},
    route::Router,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;

use crate::{
    lanes::{Lane, Lanes, Part},
    pauses,
    plan::Planned,
};

/// Of one Deliver call.
const MAX_ITEMS: usize = 500;
const MAX_USERS: usize = 5_000;
const MAX_BYTES: usize = 4 << 20;
/// Above the time that `sessions` may wait for gateways to report.
const ATTEMPT: Duration = Duration::from_secs(6);
/// The least time from one call of a lane to the next: what comes in meanwhile shares it. A delivery that finds the lane at rest does not
/// wait.
const SPACING: Duration = Duration::from_millis(3);
/// A lane without work is given up after this.
const IDLE: Duration = Duration::from_secs(30);
/// What may wait in all lanes together, in units of one user or [`UNIT_BYTES`].
const BUDGET: usize = 1 << 18;
const UNIT_BYTES: usize = 256;
/// Users of one part: a large group is cut, so that a call stays small.
const PART_USERS: usize = 1_000;

/// One event's delivery, shared by its parts in several lanes.
#[derive(Debug)]
struct Job {
    payload: Payload,
    bytes: usize,
    sent_at: i64,
    /// Parts that are not worked off.
    open: AtomicUsize,
    ticket: Ticket,
    _budget: OwnedSemaphorePermit,
}

impl Job {
    fn part_done(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.ticket.done();
        }
    }
}

/// The way to `sessions`. Cheap to clone.
#[derive(Clone)]
pub struct Deliverer(Arc<Inner>);

struct Inner {
    router: Router,
    lanes: Mutex<Lanes<Arc<Job>>>,
    wakes: Mutex<HashMap<Lane, Arc<Notify>>>,
    budget: Arc<Semaphore>,
    workers: TaskTracker,
    shutdown: CancellationToken,
}

impl Deliverer {
    /// Delivers through `router` until `shutdown`.
    pub fn new(router: Router, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            router,
            lanes: Mutex::default(),
            wakes: Mutex::default(),
            budget: Arc::new(Semaphore::new(BUDGET)),
            workers: TaskTracker::new(),
            shutdown,
        }))
    }

    /// Queues a delivery; waits while too much waits already. The ticket is done when all recipients' instances have taken it.
    pub async fn push(&self, planned: Planned, ticket: Ticket) {
        let bytes = payload_bytes(&planned.payload);
        let weight = (planned.recipients.len() + bytes / UNIT_BYTES).clamp(1, BUDGET);
        let Ok(permit) = self.0.budget.clone().acquire_many_owned(weight as u32).await else { return };
        let sent_at = match &planned.payload {
            Payload::Messages(messages) => messages.messages.first().map_or(0, |m| m.sent_at),
            Payload::Event(_) => 0,
        };
        let open = AtomicUsize::new(0);
        let job = Arc::new(Job { payload: planned.payload, bytes, sent_at, open, ticket, _budget: permit });
        let mut woken = Vec::with_capacity(1);
        {
            let mut lanes = self.0.lanes.lock();
            // One more than there are parts while they are queued, so that a quick worker does not finish the job before the last one.
            job.open.store(1, Ordering::Release);
            for users in planned.recipients.chunks(PART_USERS) {
                let touched = lanes.push(&job, users.iter().cloned(), |user| {
                    self.0.router.address(key(user)).unwrap_or_default().into()
                });
                job.open.fetch_add(touched.len(), Ordering::AcqRel);
                for (lane, is_new) in touched {
                    if is_new {
                        self.start(&lane);
                    }
                    woken.push(lane);
                }
            }
        }
        job.part_done();
        let wakes = self.0.wakes.lock();
        for lane in woken {
            if let Some(wake) = wakes.get(&lane) {
                wake.notify_one();
            }
        }
    }

    /// Waits until the workers have ended, after the shutdown.
    pub async fn ended(&self) {
        self.0.workers.close();
        self.0.workers.wait().await;
    }

    fn start(&self, lane: &Lane) {
        let wake = Arc::new(Notify::new());
        self.0.wakes.lock().insert(lane.clone(), wake.clone());
        let (inner, lane) = (self.0.clone(), lane.clone());
        self.0.workers.spawn(async move {
            let end = inner.shutdown.clone();
            // None means that the end was asked for: what is left comes again from the log.
            let _ = end.run_until_cancelled(inner.work(&lane, &wake)).await;
        });
    }
}

impl Inner {
    /// Works a lane off until it has been idle for long.
    async fn work(&self, lane: &Lane, wake: &Notify) {
        let mut next = Instant::now();
        loop {
            tokio::time::sleep_until(next.into()).await;
            let parts = self.take(lane);
            if !parts.is_empty() {
                next = Instant::now() + SPACING;
                self.deliver(parts).await;
                continue;
            }
            if tokio::time::timeout(IDLE, wake.notified()).await.is_ok() {
                continue;
            }
            let mut lanes = self.lanes.lock();
            if lanes.retire(lane) {
                self.wakes.lock().remove(lane);
                return;
            }
        }
    }

    fn take(&self, lane: &str) -> Vec<Part<Arc<Job>>> {
        let (mut items, mut users, mut bytes) = (0, 0, 0);
        self.lanes.lock().take(lane, |part| {
            items += 1;
            users += part.users.len();
            bytes += part.job.bytes;
            items <= MAX_ITEMS && users <= MAX_USERS && bytes <= MAX_BYTES
        })
    }

    /// Delivers parts until all are taken, or nobody wants them any more.
    async fn deliver(&self, parts: Vec<Part<Arc<Job>>>) {
        let mut open: Vec<Vec<Arc<str>>> = parts.iter().map(|p| p.users.clone()).collect();
        let (mut backoff, mut alone) = (pauses(), false);
        loop {
            for (part, users) in parts.iter().zip(&mut open) {
                if part.job.ticket.is_stopped() {
                    users.clear();
                }
            }
            let (calls, homeless) = self.calls(&parts, &open, alone);
            if calls.is_empty() && !homeless {
                break;
            }
            let mut again = homeless;
            for (call, outcome) in join_all(calls.into_iter().map(|call| self.call(&parts, call))).await {
                match outcome {
                    Ok(response) => taken(&parts, &mut open, &call, &response),
                    Err(error) if is_permanent(&error) => match &call.items[..] {
                        [(at, users)] => {
                            metrics::counter!("kith_tasks_events_skipped_total", "reason" => "refused").increment(1);
                            tracing::error!(%error, users = users.len(), "sessions refuses a delivery for good: skipped");
                            open[*at].retain(|u| !users.contains(u));
                        }
                        // One of them is at fault: find it.
                        _ => alone = true,
                    },
                    Err(error) => {
                        self.learn(&call, &error);
                        again = true;
                    }
                }
            }
            if again {
                self.router.discovery().look_again();
                backoff.pause().await;
            }
        }
        let mut lanes = self.lanes.lock();
        for part in &parts {
            lanes.finish(&part.users);
        }
        drop(lanes);
        for part in parts {
            if !part.job.ticket.is_stopped() {
                part.job.part_done();
            }
        }
    }

    /// Groups what is open by the instance to ask now; `true` when some user has none.
    fn calls(&self, parts: &[Part<Arc<Job>>], open: &[Vec<Arc<str>>], alone: bool) -> (Vec<Call>, bool) {
        let mut calls: Vec<Call> = Vec::with_capacity(1);
        let mut homeless = false;
        for (at, users) in open.iter().enumerate() {
            for user in users {
                let Some(address) = self.router.address(key(user)) else {
                    homeless = true;
                    continue;
                };
                let known = calls
                    .iter_mut()
                    .rev()
                    .find(|c| c.address == address && (!alone || c.items.iter().all(|(i, _)| *i == at)));
                match known {
                    None => calls.push(Call { address, items: vec![(at, vec![user.clone()])] }),
                    Some(call) => match call.items.last_mut() {
                        Some((last, users)) if *last == at => users.push(user.clone()),
                        _ => call.items.push((at, vec![user.clone()])),
                    },
                }
            }
        }
        debug_assert!(calls.iter().all(|c| c.items.iter().all(|(at, _)| *at < parts.len())));
        (calls, homeless)
    }

    async fn call(&self, parts: &[Part<Arc<Job>>], call: Call) -> (Call, Result<DeliverResponse, Error>) {
        let items = call.items.iter().map(|(at, users)| Item {
            user_ids: users.iter().map(ToString::to_string).collect(),
            session_id: String::new(),
            except_device_id: String::new(),
            delivery: Some(Delivery { session_ids: Vec::new(), payload: Some(parts[*at].job.payload.clone()) }),
        });
        let mut request = tonic::Request::new(DeliverRequest { items: items.collect() });
        request.set_timeout(ATTEMPT);
        let started = Instant::now();
        let mut client = SessionsClient::new(self.router.dialer().channel(&call.address))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let outcome = match tokio::time::timeout(ATTEMPT, client.deliver(request)).await {
            Ok(Ok(response)) if response.get_ref().outcomes.len() == call.items.len() => Ok(response.into_inner()),
            Ok(Ok(_)) => Err(Error::internal("sessions answered another number of items than asked")),
            Ok(Err(status)) => Err(Error::from(status)),
            Err(_) => Err(Error::unavailable("sessions did not answer in time")),
        };
        metrics::histogram!("kith_tasks_deliver_call_seconds").record(started.elapsed());
        metrics::histogram!("kith_tasks_deliver_call_items").record(call.items.len() as f64);
        (call, outcome)
    }

    /// Remembers what a failure says about who owns whom.
    fn learn(&self, call: &Call, error: &Error) {
        metrics::counter!("kith_tasks_retries_total", "step" => "deliver").increment(1);
        let named = error.metadata.get("user_id").map(String::as_str);
        let first = call.items.first().and_then(|(_, users)| users.first()).map(|u| &**u);
        if let Some(user) = named.or(first) {
            self.router.learn(key(user), &call.address, error);
        }
        if error.reason.as_deref() == Some(reason::WRONG_HOLDER) {
            tracing::debug!(address = call.address, %error, "another instance owns a user");
        } else {
            tracing::warn!(address = call.address, %error, "a delivery was not taken: trying again");
        }
    }
}

/// One Deliver call: indexes of parts with the users meant.
struct Call {
    address: String,
    items: Vec<(usize, Vec<Arc<str>>)>,
}

fn taken(parts: &[Part<Arc<Job>>], open: &mut [Vec<Arc<str>>], call: &Call, response: &DeliverResponse) {
    let now = clock::now_ms();
    let (mut delivered, mut offline, mut overflowed) = (0, 0, 0);
    for ((at, users), outcome) in call.items.iter().zip(&response.outcomes) {
        let Outcome { offline_user_ids, overflowed: full, delivered: took } = outcome;
        delivered += u64::from(*took);
        overflowed += u64::from(*full);
        offline += offline_user_ids.len() as u64;
        if users.len() == open[*at].len() {
            open[*at].clear();
        } else {
            open[*at].retain(|u| !users.contains(u));
        }
        let job = &parts[*at].job;
        if job.sent_at > 0 {
            metrics::histogram!("kith_tasks_delivery_seconds").record(((now - job.sent_at).max(0) as f64) / 1_000.0);
        }
    }
    metrics::counter!("kith_tasks_delivered_total", "outcome" => "online").increment(delivered);
    metrics::counter!("kith_tasks_delivered_total", "outcome" => "offline").increment(offline);
    metrics::counter!("kith_tasks_delivered_total", "outcome" => "overflowed").increment(overflowed);
}

/// Whether the same call will be refused again whatever happens.
fn is_permanent(error: &Error) -> bool {
    matches!(error.code, Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented | Code::PermissionDenied)
}

fn payload_bytes(payload: &Payload) -> usize {
    match payload {
        Payload::Messages(messages) => messages.messages.iter().map(|m| m.encoded_len() + UNIT_BYTES).sum(),
        Payload::Event(event) => event.data.len(),
    }
}
