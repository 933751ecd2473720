//! The handler of `<cluster>.sessions`: after a login, what the device has not received yet goes to its session, in order and in bounded
//! batches, the last one marked. Users are worked on side by side, one user's logins one after the other.

use std::{collections::HashMap, time::Duration};

use kith_clients::{
    sessions::{Sessions, key},
    storage::Storage,
};
use kith_eventlog::{
    consumer::{Event, Handler, Ticket},
    origin::{Foreign, Stray, Verified},
};
use kith_proto::{
    chat::v1::Position,
    sessions::v1::{
        DeliverRequest, Delivery,
        deliver_request::Item,
        delivery::{Messages, Payload},
        sessions_client::SessionsClient,
    },
    storage::v1::{Behind, ListBehindRequest},
};
use kith_rpc::{client::MAX_MESSAGE_BYTES, error::Error};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;

use crate::{
    aside::Aside,
    catchup::Batches,
    change::{self, Login},
    pauses,
};

/// Catch-ups at once.
const WORKERS: usize = 64;
/// Logins that wait for one worker.
const WAITING: usize = 64;
/// Conversations of one page, and of one request for their messages.
const PAGE: u32 = 100;
const CONVERSATIONS: usize = 20;
/// Messages of one conversation and request.
const MESSAGES: u32 = 50;
/// A conversation that is further behind is left to the client's own sync, told by `has_more`.
const MAX_PER_CONVERSATION: u64 = 1_000;
/// So is everything beyond this many messages of one login.
const MAX_PER_LOGIN: usize = 20_000;
/// How often a conversation that cannot be read now is tried, while the others go on.
const CONVERSATION_TRIES: u32 = 3;
/// One step of a catch-up is repeated this long; then the client is left to its own sync.
const STEP_DEADLINE: Duration = Duration::from_secs(60);
const DELIVER_DEADLINE: Duration = Duration::from_secs(6);

/// Catches sessions up.
pub struct Logins {
    workers: Vec<mpsc::Sender<(Login, Ticket)>>,
    aside: Aside,
}

/// Why a catch-up ended early.
enum End {
    /// The session is gone or too slow; its next login starts again.
    Gone,
    /// Another process owns the partition now.
    Stopped,
    /// Storage or sessions did not do their part in time, or refused.
    Failed(Error),
}

impl Logins {
    /// Starts the workers; they end with `shutdown`.
    pub fn start(
        storage: &Storage,
        sessions: &Sessions,
        aside: Aside,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let workers = (0..WORKERS).map(|_| {
            let (sender, mut logins) = mpsc::channel::<(Login, Ticket)>(WAITING);
            let worker = Worker { storage: storage.clone(), sessions: sessions.clone() };
            let end = shutdown.clone();
            tracker.spawn(end.run_until_cancelled_owned(async move {
                while let Some((login, ticket)) = logins.recv().await {
                    if !ticket.is_stopped() {
                        worker.serve(&login, &ticket).await;
                    }
                }
            }));
            sender
        });
        Self { workers: workers.collect(), aside }
    }
}

impl Handler for Logins {
    /// None: it asks for nothing.
    type Item = Option<Login>;

    fn read(&self, record: &Verified) -> Result<Option<Login>, String> {
        change::login(&record.kind, &record.key, &record.data).map_err(|e| e.to_string())
    }

    fn set_aside(&self, record: Stray, why: &Foreign) {
        self.aside.put(record, why);
    }

    async fn handle(&self, events: Vec<Event<Option<Login>>>) {
        for Event { item, ticket, .. } in events {
            match item {
                None => ticket.done(),
                Some(login) => {
                    let worker = key(&login.user) as usize % self.workers.len();
                    // Refused only when the workers have ended with the process: the login comes again from the log.
                    drop(self.workers[worker].send((login, ticket)).await);
                }
            }
        }
    }
}

struct Worker {
    storage: Storage,
    sessions: Sessions,
}

impl Worker {
    async fn serve(&self, login: &Login, ticket: &Ticket) {
        let started = std::time::Instant::now();
        let mut batches = Batches::new(login.fresh);
        let complete = match self.catch_up(login, ticket, &mut batches).await {
            Ok(()) => Ok(true),
            Err(End::Failed(error)) => {
                tracing::error!(user = login.user, session = login.session, %error, "a catch-up failed: the session's gateway goes on with it");
                Ok(false)
            }
            Err(end) => Err(end),
        };
        // Live messages wait for the end of the catch-up, also of one that failed: then the gateway reads the rest.
        let outcome = match complete {
            Ok(complete) => match batches.finish(complete) {
                Some(last) => self.deliver(login, ticket, last).await.map(|()| complete),
                None => Ok(complete),
            },
            Err(end) => Err(end),
        };
        let outcome = match outcome {
            Ok(true) => "done",
            Ok(false) => "failed",
            Err(End::Gone) => "gone",
            Err(End::Failed(error)) => {
                tracing::error!(user = login.user, session = login.session, %error, "the end of a catch-up could not be delivered");
                "failed"
            }
            Err(End::Stopped) => return,
        };
        metrics::counter!("kith_tasks_catch_ups_total", "outcome" => outcome).increment(1);
        metrics::histogram!("kith_tasks_catch_up_seconds").record(started.elapsed());
        ticket.done();
    }

    async fn catch_up(&self, login: &Login, ticket: &Ticket, batches: &mut Batches) -> Result<(), End> {
        let cursors: Vec<_> =
            login.cursors.iter().map(|(id, seq)| Position { conversation_id: id.clone(), seq: *seq }).collect();
        let mut cursor = String::new();
        let mut sent = 0;
        loop {
            let request = ListBehindRequest {
                user_id: login.user.clone(),
                device_id: login.device.clone(),
                cursors: cursors.clone(),
                limit: PAGE,
                cursor,
            };
            let page = repeat(ticket, || self.storage.list_behind(request.clone())).await?;
            let (failed, behind): (Vec<_>, Vec<_>) = page.behind.into_iter().partition(|b| b.error.is_some());
            for behind in behind.chunks(CONVERSATIONS) {
                sent += self.send(login, ticket, behind, sent, batches).await?;
            }
            for Behind { conversation_id, error, .. } in failed {
                self.left_out(login, ticket, &conversation_id, &error.unwrap_or_default().into(), batches).await?;
            }
            cursor = page.next_cursor;
            if cursor.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends what some conversations have; returns how many messages.
    async fn send(
        &self,
        login: &Login,
        ticket: &Ticket,
        behind: &[Behind],
        before: usize,
        batches: &mut Batches,
    ) -> Result<usize, End> {
        let mut sent = 0;
        let mut tries: HashMap<String, u32> = HashMap::new();
        let first = |b: &Behind| Position { conversation_id: b.conversation_id.clone(), seq: b.delivered_seq };
        let mut after: Vec<Position> = behind.iter().map(first).collect();
        while !after.is_empty() {
            let found = repeat(ticket, || self.storage.list_after(&login.user, after.clone(), MESSAGES)).await?;
            let (mut next, mut more, mut found_any) = (Vec::new(), Vec::new(), false);
            for (position, answer) in after.into_iter().zip(found) {
                if let Some(error) = answer.error {
                    let error = Error::from(error);
                    // Left or dissolved meanwhile: there is nothing to catch up with.
                    if matches!(error.code, Code::NotFound | Code::PermissionDenied) {
                        continue;
                    }
                    let tried = tries.entry(position.conversation_id.clone()).or_default();
                    *tried += 1;
                    if is_passing(&error) && *tried < CONVERSATION_TRIES {
                        next.push(position);
                        continue;
                    }
                    self.left_out(login, ticket, &position.conversation_id, &error, batches).await?;
                    continue;
                }
                let start = behind
                    .iter()
                    .find(|b| b.conversation_id == position.conversation_id)
                    .map_or(0, |b| b.delivered_seq);
                let last = answer.messages.last().map_or(position.seq, |m| m.seq);
                found_any |= !answer.messages.is_empty();
                sent += answer.messages.len();
                for batch in batches.add(&position.conversation_id, answer.messages, answer.has_more) {
                    self.deliver(login, ticket, batch).await?;
                }
                let within = before + sent < MAX_PER_LOGIN && last.saturating_sub(start) < MAX_PER_CONVERSATION;
                if answer.has_more && within {
                    more.push(Position { seq: last, ..position });
                }
            }
            // Others may have left no room for a conversation's next message: it has its turn as long as the whole gets on.
            if found_any {
                next.extend(more);
            }
            after = next;
        }
        Ok(sent)
    }

    /// A conversation that could not be read: the client is told that there is more.
    async fn left_out(
        &self,
        login: &Login,
        ticket: &Ticket,
        conversation: &str,
        error: &Error,
        batches: &mut Batches,
    ) -> Result<(), End> {
        metrics::counter!("kith_tasks_catch_up_conversations_failed_total").increment(1);
        tracing::warn!(user = login.user, conversation, %error, "left out of a catch-up: the client is told that there is more");
        for batch in batches.add(conversation, Vec::new(), true) {
            self.deliver(login, ticket, batch).await?;
        }
        Ok(())
    }

    async fn deliver(&self, login: &Login, ticket: &Ticket, messages: Messages) -> Result<(), End> {
        let request = DeliverRequest {
            items: vec![Item {
                user_ids: vec![login.user.clone()],
                session_id: login.session.clone(),
                except_device_id: String::new(),
                delivery: Some(Delivery { session_ids: Vec::new(), payload: Some(Payload::Messages(messages)) }),
            }],
        };
        let router = self.sessions.router();
        let response = repeat(ticket, || {
            router.call(key(&login.user), DELIVER_DEADLINE, request.clone(), |transport, request| async move {
                SessionsClient::new(transport).max_decoding_message_size(MAX_MESSAGE_BYTES).deliver(request).await
            })
        })
        .await?;
        if response.outcomes.iter().all(|o| o.offline_user_ids.is_empty() && o.overflowed == 0) {
            Ok(())
        } else {
            Err(End::Gone)
        }
    }
}

fn is_passing(error: &Error) -> bool {
    error.is_retryable() || matches!(error.code, Code::DeadlineExceeded | Code::ResourceExhausted)
}

/// Repeats a step until it is done, refused for good, no longer ours or too late.
async fn repeat<T, F, Fut>(ticket: &Ticket, step: F) -> Result<T, End>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let end = tokio::time::Instant::now() + STEP_DEADLINE;
    let mut backoff = pauses();
    loop {
        if ticket.is_stopped() {
            return Err(End::Stopped);
        }
        let error = match step().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !is_passing(&error) || tokio::time::Instant::now() >= end {
            return Err(End::Failed(error));
        }
        metrics::counter!("kith_tasks_retries_total", "step" => "catch_up").increment(1);
        backoff.pause().await;
    }
}
