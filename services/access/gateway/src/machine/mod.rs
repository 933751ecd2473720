//! One connection as a state machine: what comes in (frames, deliveries, answers, time) and what is to be done about it. Pure: no
//! socket, no clock, no storage. `connection` is the loop around it.

pub mod bucket;
pub mod io;
pub mod order;
mod reads;
pub mod sends;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::ws::Utf8Bytes;
use kith_kit::{
    auth::Claims,
    error::{Error, reason},
};
use tonic::Code;

use self::{
    bucket::Bucket,
    io::{Delivery, Input, Job, Opened, Output, Settings},
    order::{Item, Need, Order, Outcome},
    sends::{Send, Sends},
};
use crate::{
    frame::{self, Auth, ClientFrame, close},
    resume,
};

/// The first frame must have come by then.
pub const AUTH_DEADLINE: Duration = Duration::from_secs(5);
/// `tasks` must have caught the session up by then; else the gateway does it itself.
pub const CATCH_UP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks whether the token has been revoked. Kicks come at once; this is for one that got lost.
const RECHECK: Duration = Duration::from_secs(120);
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
/// Cursors compared with storage at once.
const COMPARE: usize = 20;

/// Who the client is, once it is known.
#[derive(Debug)]
struct Identified {
    claims: Arc<Claims>,
    expires: Instant,
    recheck: Instant,
    catch_up: CatchUp,
    /// Cursors of the client that are still to be compared with storage.
    cursors: Vec<(Arc<str>, u64)>,
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
        let mut next = (self.heard + self.settings.heartbeat * 2).min(self.next_ping);
        match &self.identified {
            None => next = next.min(self.auth_deadline),
            Some(identified) => {
                next = next.min(identified.expires).min(identified.recheck);
                if let CatchUp::Awaited(at) | CatchUp::Retry(at) = identified.catch_up {
                    next = next.min(at);
                }
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
            Input::Control => self.heard = now,
            Input::Authenticated(result) => self.authenticated(result, now, now_ms),
            Input::Rechecked(result) => self.rechecked(result),
            Input::Delivery(delivery) => self.delivery(delivery),
            Input::Suspect => self.suspect(),
            Input::Sent { key, id, result } => {
                let next = self.sends.end(&key);
                self.frame(frame::sent(&id, &result));
                self.start_send(next);
            }
            Input::Base(id, result) => self.base(&id, result, now),
            Input::Pulled(id, result) => self.pulled(&id, result, now),
            Input::CaughtUp(result) => self.caught_up(result, now),
            Input::Compared(result) => self.compared(result),
            Input::Kick { code, reason } => self.close(code, reason),
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
        match frame::decode(&text) {
            Err(problem) => self.close(close::PROTOCOL, problem),
            Ok(ClientFrame::Ping) => self.frame(frame::pong()),
            Ok(ClientFrame::Auth(auth)) => self.auth(auth),
            Ok(_) if self.identified.is_none() => self.early(text),
            Ok(ClientFrame::Ack(acks)) => self.out.push(Output::Job(Job::Ack(acks))),
            Ok(ClientFrame::Send { id, message }) => self.send(id, message),
            Ok(ClientFrame::Typing(conversation_id)) => self.typing(conversation_id),
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

    fn auth(&mut self, auth: Auth) {
        if self.authenticating {
            // The header's token is being verified: the frame may still bring cursors.
            if self.pending.is_none() && auth.token.is_none() {
                self.pending = Some(auth);
            } else {
                self.close(close::PROTOCOL, "authentication is under way");
            }
            return;
        }
        match (&auth.token, &self.identified) {
            (None, None) => self.close(close::AUTHENTICATION, "auth needs a token"),
            (None, Some(_)) => self.know_cursors(&auth),
            (Some(token), _) => {
                self.authenticating = true;
                self.out.push(Output::Job(Job::Authenticate(token.clone())));
                self.pending = Some(auth);
            }
        }
    }

    fn authenticated(&mut self, result: Result<Arc<Claims>, Error>, now: Instant, now_ms: i64) {
        self.authenticating = false;
        let auth = self.pending.take();
        let claims = match result {
            Ok(claims) => claims,
            Err(error) => return self.refuse(&error),
        };
        let left_ms = i64::try_from(claims.exp).unwrap_or(i64::MAX).saturating_mul(1_000).saturating_sub(now_ms);
        // Bounded, since an Instant has an end.
        let left = Duration::from_millis(left_ms.max(0).unsigned_abs()).min(Duration::from_secs(400 * 86_400));
        if let Some(identified) = &mut self.identified {
            // A fresh token on a living connection: of the same user and device, or it is another's.
            if identified.claims.sub != claims.sub || identified.claims.dev != claims.dev {
                return self.close(close::AUTHENTICATION, "the token is of another user or device");
            }
            identified.expires = now + left;
            identified.claims = claims;
            if let Some(auth) = auth {
                self.know_cursors(&auth);
            }
            return;
        }
        self.open(claims, left, auth.unwrap_or_default(), now, now_ms);
    }

    fn open(&mut self, claims: Arc<Claims>, left: Duration, auth: Auth, now: Instant, now_ms: i64) {
        let cursors: Vec<(Arc<str>, u64)> = auth.cursors().map(|(id, seq)| (Arc::from(id), seq)).collect();
        let resumed = !cursors.is_empty()
            && auth.resume_token.is_some_and(|token| resume::accepts(&token, &claims.sub, &claims.dev, now_ms));
        let resume_token = resume::issue(&self.session_id, &claims.sub, &claims.dev, now_ms);
        let heartbeat_ms = self.settings.heartbeat.as_millis() as u64;
        self.frame(frame::hello(&self.session_id, &claims.sub, heartbeat_ms, resumed, &resume_token, now_ms));
        self.order = Order::new(cursors.iter().cloned());
        self.out.push(Output::Opened(Opened {
            claims: claims.clone(),
            session_id: self.session_id.clone(),
            cursors: cursors.clone(),
            opened_at: now_ms,
        }));
        self.identified = Some(Identified {
            claims,
            expires: now + left,
            recheck: now + RECHECK,
            catch_up: CatchUp::Awaited(now + CATCH_UP_DEADLINE),
            cursors,
        });
        for text in std::mem::take(&mut self.early) {
            self.read(text);
        }
    }

    fn refuse(&mut self, error: &Error) {
        let code = match (error.code, error.reason.as_deref()) {
            (Code::Unauthenticated, Some(reason::EXPIRED)) => close::EXPIRED,
            (Code::Unauthenticated, Some(reason::REVOKED)) if self.identified.is_some() => close::KICKED,
            (Code::Unauthenticated, _) => close::AUTHENTICATION,
            // A part of the platform does not answer: the token may be good.
            _ => close::TOO_MANY,
        };
        self.close(code, error.detail.as_ref());
    }

    fn rechecked(&mut self, result: Result<(), Error>) {
        match result {
            Err(error) if error.code == Code::Unauthenticated => self.refuse(&error),
            // Storage does not answer: what was true stays true.
            Ok(()) | Err(_) => {}
        }
    }

    /// Cursors that came after the session had begun.
    fn know_cursors(&mut self, auth: &Auth) {
        let Some(identified) = &mut self.identified else { return };
        let cursors: Vec<(Arc<str>, u64)> = auth.cursors().map(|(id, seq)| (Arc::from(id), seq)).collect();
        for (id, seq) in &cursors {
            self.order.know(id.clone(), *seq);
        }
        identified.cursors.extend(cursors);
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
        match message.read().and_then(|m| m.draft(&identified.claims.sub)) {
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
            Delivery::Messages { items, more, catch_up, done } => {
                for item in items.iter() {
                    let item = item.clone();
                    let outcome = if catch_up { self.order.caught_up(item) } else { self.order.live(item) };
                    self.apply(outcome);
                }
                self.more.extend(more.iter().cloned());
                if done {
                    self.catch_up_done();
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
        if now >= self.heard + self.settings.heartbeat * 2 {
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
        if now >= identified.recheck {
            identified.recheck = now + RECHECK;
            self.out.push(Output::Job(Job::Recheck));
        }
        if let CatchUp::Awaited(at) | CatchUp::Retry(at) = identified.catch_up
            && now >= at
        {
            self.start_catch_up();
        }
    }
}

#[cfg(test)]
mod tests;
