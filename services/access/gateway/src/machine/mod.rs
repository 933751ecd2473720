//! One connection as a state machine: what comes in (frames, deliveries, answers, time) and what is to be done about it. Pure: no
//! socket, no clock, no storage. `connection` is the loop around it.

pub mod bucket;
pub mod io;
mod login;
pub mod order;
mod reads;
pub mod sends;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::ws::Utf8Bytes;
use kith_clients::auth::Claims;
use kith_rpc::error::Error;
use kith_send::Draft;

use self::{
    bucket::Bucket,
    io::{Delivery, Input, Job, Output, Settings},
    order::{Item, Need, Order, Outcome},
    sends::{Send, Sends},
};
use crate::{
    frame::{self, Auth, ClientFrame, close},
    resume,
};

/// The first frame must have come by then.
pub const AUTH_DEADLINE: Duration = Duration::from_secs(frame::AUTH_SECONDS);
/// `tasks` must have caught the session up by then; else the gateway does it itself.
pub const CATCH_UP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks whether the token has been revoked. Kicks come at once; this is for one that got lost.
const RECHECK: Duration = Duration::from_secs(120);
/// The first look after a token was taken: a kick that came while the session was not known to its owner yet holds within two seconds.
const FIRST_RECHECK: Duration = Duration::from_millis(1_500);
/// The next look where storage did not answer.
const RECHECK_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// The pause before storage is asked again for what it did not have.
const LATER: Duration = Duration::from_millis(500);
/// The pause before a failed read is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// Messages and bytes of one frame.
const FRAME_MESSAGES: usize = 100;
const FRAME_BYTES: usize = 256 << 10;
/// One `typing` per conversation in this time is passed on.
const TYPING_PAUSE: Duration = Duration::from_secs(2);
const TYPING_CONVERSATIONS: usize = 16;
/// Frames that may come before hello.
const MAX_EARLY: usize = 16;
/// Cursors compared with storage at once, and cursors that may wait for that.
const COMPARE: usize = 20;
const MAX_COMPARES: usize = 2_000;
/// A catch-up that failed as often as that holds live messages up no longer. It is tried again all the same, with longer pauses.
const HELD_FAILURES: u32 = 3;
const MOST_PATIENT: u32 = 8;

/// Who the client is, once it is known.
#[derive(Debug)]
struct Identified {
    claims: Arc<Claims>,
    expires: Instant,
    recheck: Instant,
    catch_up: CatchUp,
    /// How often the gateway's own catch-up has failed in a row.
    failures: u32,
    /// Cursors of the client that are still to be compared with storage.
    cursors: Vec<(Arc<str>, u64)>,
    /// Those that are being compared.
    comparing: Vec<(Arc<str>, u64)>,
    /// When a comparison that failed is tried again.
    compare_at: Option<Instant>,
}

#[derive(Debug)]
enum CatchUp {
    /// `tasks` does it, until then.
    Awaited(Instant),
    /// The gateway does it.
    Own,
    /// Something was lost while the gateway caught up: once more.
    OwnAgain,
    /// The gateway's own failed; again then.
    Retry(Instant),
    Done,
}

/// One connection.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    session_id: String,
    /// The time of the input that is being handled.
    now: Instant,
    heard: Instant,
    next_ping: Instant,
    auth_deadline: Instant,
    bucket: Bucket,
    /// The first `auth` frame, until its token is verified.
    pending: Option<Auth>,
    authenticating: bool,
    /// Frames that came before the header's token was verified.
    early: Vec<Utf8Bytes>,
    identified: Option<Identified>,
    order: Order,
    sends: Sends,
    later: Vec<(Instant, Need)>,
    typing: Vec<(String, Instant)>,
    batch: Vec<Item>,
    more: BTreeSet<Arc<str>>,
    batch_bytes: usize,
    closed: bool,
    out: Vec<Output>,
}

impl Machine {
    /// A connection that was just made, and the id that its session will have.
    pub fn new(settings: Settings, session_id: String, now: Instant) -> Self {
        Self {
            session_id,
            now,
            heard: now,
            next_ping: now + settings.heartbeat,
            auth_deadline: now + AUTH_DEADLINE,
            bucket: Bucket::new(settings.frames_per_second, now),
            settings,
            pending: None,
            authenticating: false,
            early: Vec::new(),
            identified: None,
            order: Order::default(),
            sends: Sends::default(),
            later: Vec::new(),
            typing: Vec::new(),
            batch: Vec::new(),
            more: BTreeSet::new(),
            batch_bytes: 0,
            closed: false,
            out: Vec::new(),
        }
    }

    /// The token came in the header: no first frame is needed.
    pub fn token_in_header(&mut self, token: String) {
        self.authenticating = true;
        self.out.push(Output::Job(Job::Authenticate(token)));
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the client has sent more than may wait.
    pub fn is_full(&self) -> bool {
        self.sends.is_full()
    }

    /// When [`Input::Tick`] is due.
    pub fn next_tick(&self) -> Instant {
        let mut next = (self.heard + self.settings.heartbeat * frame::SILENT_HEARTBEATS).min(self.next_ping);
        match &self.identified {
            None => next = next.min(self.auth_deadline),
            Some(identified) => {
                next = next.min(identified.expires).min(identified.recheck);
                if let CatchUp::Awaited(at) | CatchUp::Retry(at) = identified.catch_up {
                    next = next.min(at);
                }
                next = identified.compare_at.map_or(next, |at| next.min(at));
            }
        }
        self.later.iter().map(|(at, _)| *at).fold(next, Instant::min)
    }

    /// Takes an input; `now_ms` is the wall clock, `now` the one that only runs forward. Takes effect by [`Machine::take`].
    pub fn handle(&mut self, input: Input, now: Instant, now_ms: i64) {
        if self.closed {
            return;
        }
        self.now = now;
        match input {
            Input::Text(text) => self.text(text, now),
            Input::Binary => self.close(close::PROTOCOL, "this subprotocol has text frames only"),
            Input::Control => {
                self.heard = now;
                if !self.bucket.take(now) {
                    self.close(close::TOO_MANY, "too many frames");
                }
            }
            Input::Authenticated(result) => self.authenticated(result, now, now_ms),
            Input::Recheck => self.recheck(),
            Input::Rechecked(claims, result) => self.rechecked(&claims, result),
            Input::Delivery(delivery) => self.delivery(delivery),
            Input::Suspect => self.suspect(),
            Input::LeftOut => self.left_out(),
            Input::Sent { key, id, result } => {
                let next = self.sends.end(&key);
                self.frame(frame::sent(&id, &result));
                self.start_send(next);
            }
            Input::Base(id, result) => self.base(&id, result, now),
            Input::Pulled(id, result) => self.pulled(&id, result, now),
            Input::CaughtUp(result) => self.caught_up(result, now),
            Input::Compared(result) => self.compared(result),
            Input::Exhausted(error) => self.close(close::TOO_MANY, error.detail.as_ref()),
            Input::Drain { after_ms } => self.drain(after_ms, now_ms),
            Input::Tick => self.tick(now),
        }
    }

    /// What is to be done, in order.
    pub fn take(&mut self) -> Vec<Output> {
        self.flush_batch();
        std::mem::take(&mut self.out)
    }

    fn close(&mut self, code: u16, reason: impl Into<String>) {
        if !self.closed {
            self.flush_batch();
            self.closed = true;
            self.out.push(Output::Close { code, reason: reason.into() });
        }
    }

    fn frame(&mut self, text: String) {
        // What was shown before stays before.
        self.flush_batch();
        self.out.push(Output::Frame(text));
    }

    fn flush_batch(&mut self) {
        if !self.batch.is_empty() || !self.more.is_empty() {
            let text = frame::messages(&self.batch, self.more.iter().map(AsRef::as_ref));
            self.batch.clear();
            self.more.clear();
            self.batch_bytes = 0;
            self.out.push(Output::Frame(text));
        }
    }

    fn show(&mut self, item: Item) {
        self.batch_bytes += item.json.len();
        self.batch.push(item);
        if self.batch.len() >= FRAME_MESSAGES || self.batch_bytes >= FRAME_BYTES {
            self.flush_batch();
        }
    }

    fn apply(&mut self, outcome: Outcome) {
        for item in outcome.show {
            self.show(item);
        }
        self.more.extend(outcome.more);
        self.out.extend(outcome.needs.into_iter().map(|need| Output::Job(Job::Read(need))));
        let at = self.now + LATER;
        self.later.extend(outcome.later.into_iter().map(|need| (at, need)));
    }

    fn text(&mut self, text: Utf8Bytes, now: Instant) {
        self.heard = now;
        if !self.bucket.take(now) {
            return self.close(close::TOO_MANY, "too many frames");
        }
        self.read(text);
    }

    fn read(&mut self, text: Utf8Bytes) {
        match ClientFrame::read(&text) {
            Err(refused) => self.close(close::PROTOCOL, refused.into_detail()),
            Ok(ClientFrame::Ping) => self.frame(frame::pong()),
            Ok(ClientFrame::Auth(auth)) => self.auth(auth),
            Ok(_) if self.identified.is_none() => self.early(text),
            Ok(ClientFrame::Ack { acks }) => self.out.push(Output::Job(Job::Ack(acks))),
            Ok(ClientFrame::Send { id, message }) => self.send(id, message),
            Ok(ClientFrame::Typing { conversation_id }) => self.typing(conversation_id),
        }
    }

    /// A client whose token is being verified need not wait for hello.
    fn early(&mut self, text: Utf8Bytes) {
        if !self.authenticating {
            self.close(close::AUTHENTICATION, "the first frame must be auth");
        } else if self.early.len() >= MAX_EARLY {
            self.close(close::PROTOCOL, "too many frames before hello");
        } else {
            self.early.push(text);
        }
    }

    /// Cursors that came after the session had begun.
    fn know_cursors(&mut self, auth: &Auth) {
        let Some(identified) = &mut self.identified else { return };
        for (id, seq) in auth.cursors().map(|(id, seq)| (Arc::<str>::from(id), seq)) {
            if self.order.claim(id.clone(), seq) {
                identified.cursors.push((id, seq));
            }
        }
        if identified.cursors.len() > MAX_COMPARES {
            return self.close(close::TOO_MANY, "too many cursors");
        }
        if matches!(identified.catch_up, CatchUp::Done) {
            self.compare();
        }
    }

    fn send(&mut self, id: String, message: frame::Unread<'_>) {
        let Some(identified) = &self.identified else { return };
        if self.sends.is_full() {
            let error = Error::exhausted("too many messages are under way", Duration::from_millis(500));
            return self.frame(frame::sent(&id, &Err(error)));
        }
        let read = message.read().map_err(Error::from);
        match read.and_then(|message| Draft::of_client(message, &identified.claims.sub)) {
            Ok(draft) => {
                let started = self.sends.push(Send { id, draft });
                self.start_send(started);
            }
            Err(error) => self.frame(frame::sent(&id, &Err(error))),
        }
    }

    fn start_send(&mut self, send: Option<(String, Send)>) {
        if let Some((key, send)) = send {
            self.out.push(Output::Job(Job::Send { key, send }));
        }
    }

    fn typing(&mut self, conversation_id: String) {
        let now = self.now;
        self.typing.retain(|(_, at)| now.saturating_duration_since(*at) < TYPING_PAUSE);
        let known = self.typing.iter().any(|(id, _)| *id == conversation_id);
        if !known && self.typing.len() < TYPING_CONVERSATIONS {
            self.typing.push((conversation_id.clone(), now));
            self.out.push(Output::Job(Job::Typing(conversation_id)));
        }
    }

    fn delivery(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Event(text) => self.frame(text.as_ref().to_owned()),
            Delivery::Messages { items, more, catch_up, done, failed } => {
                for item in items.iter() {
                    let item = item.clone();
                    let outcome = if catch_up { self.order.caught_up(item) } else { self.order.live(item) };
                    self.apply(outcome);
                }
                self.more.extend(more.iter().cloned());
                if done {
                    self.catch_up_done();
                } else if failed {
                    self.catch_up_failed();
                }
            }
        }
    }

    fn drain(&mut self, after_ms: u64, now_ms: i64) {
        if let Some(identified) = &self.identified {
            let claims = &identified.claims;
            let token = resume::issue(&self.session_id, &claims.sub, &claims.dev, now_ms);
            self.frame(frame::reconnect(after_ms, &token));
        }
        self.close(close::DRAINED, "this gateway is going away: reconnect");
    }

    fn tick(&mut self, now: Instant) {
        if now >= self.heard + self.settings.heartbeat * frame::SILENT_HEARTBEATS {
            return self.close(close::TOO_SLOW, "no sign of life for two heartbeats");
        }
        if now >= self.next_ping {
            self.next_ping = now + self.settings.heartbeat;
            self.out.push(Output::Ping);
        }
        let mut due = Vec::new();
        self.later.retain(|(at, need)| {
            let is_due = *at <= now;
            if is_due {
                due.push(need.clone());
            }
            !is_due
        });
        self.out.extend(due.into_iter().map(|need| Output::Job(Job::Read(need))));
        let Some(identified) = &mut self.identified else {
            if now >= self.auth_deadline && !self.authenticating {
                self.close(close::AUTHENTICATION, "no auth frame within 5 s");
            } else if now >= self.auth_deadline {
                self.auth_deadline = now + AUTH_DEADLINE;
            }
            return;
        };
        if now >= identified.expires {
            return self.close(close::EXPIRED, "the token has expired: get a new one");
        }
        let look = now >= identified.recheck;
        let compare = identified.compare_at.is_some_and(|at| now >= at);
        if let CatchUp::Awaited(at) | CatchUp::Retry(at) = identified.catch_up
            && now >= at
        {
            self.start_catch_up();
        }
        if look {
            self.recheck();
        }
        if compare {
            self.compare();
        }
    }
}

#[cfg(test)]
mod tests;
