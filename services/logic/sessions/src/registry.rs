//! Who is online, on which gateway stream: a state machine over values, without I/O and without a clock of its own.
//!
//! A session is *attached* (its gateway's stream is here) or *lost* (the stream broke a moment ago). A lost session counts as online until
//! its gateway reports it again or [`LOST_GRACE`] is over; what is delivered to it meanwhile is held and follows when it is back.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use kith_contract::frames::close;

use crate::kicks::{Kicks, Recent};

/// How long a session outlives its stream.
pub const LOST_GRACE: Duration = Duration::from_secs(5);
/// After a start or a change of owners, an absent user is called offline only when all gateways have reported or this is over.
pub const SETTLE: Duration = Duration::from_millis(1_500);
/// Deliveries held for one lost session; with more it is closed as too slow when it is back, and catches up at its next login.
const MAX_HELD: usize = 128;
/// How long a closed session that is reported once more is closed once more, and how many are remembered.
const KICKED_MEMORY: Duration = Duration::from_secs(60);
const MAX_KICKED: usize = 10_000;

/// One gateway stream.
pub type StreamId = u64;

/// A session as its gateway reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Unique over the platform.
    pub id: Arc<str>,
    /// Whose.
    pub user: Arc<str>,
    /// On which device.
    pub device: Arc<str>,
    /// `kith.chat.v1.Platform`.
    pub platform: i32,
    /// Business line.
    pub line: Arc<str>,
    /// Unix ms.
    pub opened_at: i64,
    /// Where the client says it is, for the catch-up.
    pub cursors: Vec<(String, u64)>,
    /// When the newest token that the client gave was issued, Unix ms; 0: not known.
    pub token_issued_at: i64,
}

impl Session {
    /// Up to when its token was issued at the latest, Unix ms.
    pub fn issued_at(&self) -> i64 {
        if self.token_issued_at > 0 { self.token_issued_at } else { self.opened_at }
    }
}

/// What follows from an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<P> {
    /// Hand a held delivery to a session.
    Send {
        /// By which stream.
        stream: StreamId,
        /// To whom.
        session: Arc<str>,
        /// What.
        payload: P,
    },
    /// Tell the gateway to close a session.
    Kick {
        /// By which stream.
        stream: StreamId,
        /// Which.
        session: Arc<str>,
        /// A constant of [`close`].
        code: u16,
        /// For people.
        reason: &'static str,
    },
    /// A login: to be announced, the catch-up follows from it.
    Opened(Session, Arc<str>),
    /// A session that was open elsewhere, or before this process: deliveries may have missed it on its way.
    Resumed(Session, Arc<str>),
    /// The end of a session.
    Closed(Session, Arc<str>),
}

/// What a user's presence looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    /// Platforms of the open sessions, without repeats.
    pub platforms: Vec<i32>,
}

/// Where a user's deliveries go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Down this stream.
    Stream(StreamId),
    /// Held until its gateway is back.
    Held,
}

#[derive(Debug)]
struct Stream {
    gateway: Arc<str>,
    sessions: HashSet<Arc<str>>,
    /// The ownership epoch of its last "all reported".
    synced: Option<u64>,
}

#[derive(Debug)]
struct Entry<P> {
    session: Session,
    gateway: Arc<str>,
    place: Place<P>,
}

#[derive(Debug)]
enum Place<P> {
    Attached(StreamId),
    Lost { until: Instant, held: VecDeque<P>, missed: bool },
}

#[derive(Debug)]
struct Kicked {
    code: u16,
    reason: &'static str,
}

/// All sessions of the users that this instance owns. `P` is what is delivered.
#[derive(Debug)]
pub struct Registry<P> {
    streams: HashMap<StreamId, Stream>,
    sessions: HashMap<Arc<str>, Entry<P>>,
    users: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Sessions that were closed here.
    kicked: Recent<Arc<str>, Kicked>,
    /// Kicks by request.
    kicks: Kicks,
    lost: usize,
    max_per_user: usize,
    epoch: u64,
    unsettled_until: Instant,
    starting: bool,
}

impl<P: Clone> Registry<P> {
    /// Empty, and unsettled: nobody has reported yet.
    pub fn new(max_per_user: usize, now: Instant) -> Self {
        Self {
            streams: HashMap::new(),
            sessions: HashMap::new(),
            users: HashMap::new(),
            kicked: Recent::new(MAX_KICKED, KICKED_MEMORY),
            kicks: Kicks::default(),
            lost: 0,
            max_per_user: max_per_user.max(1),
            epoch: 0,
            unsettled_until: now + SETTLE,
            starting: true,
        }
    }

    /// The ready instances changed: users may have come whose gateways have not said so yet.
    pub fn owners_changed(&mut self, now: Instant) {
        self.epoch += 1;
        self.unsettled_until = now + SETTLE;
    }

    /// Whether a user without a session is offline for sure. At a start unknown gateways may still come, so time alone decides; after a
    /// change of owners it is enough that every attached gateway has reported since.
    pub fn is_settled(&self, now: Instant) -> bool {
        let reported = !self.starting && self.streams.values().all(|s| s.synced == Some(self.epoch));
        reported || now >= self.unsettled_until
    }

    /// A gateway attached a stream.
    pub fn attach(&mut self, stream: StreamId, gateway: Arc<str>) {
        self.streams.insert(stream, Stream { gateway, sessions: HashSet::new(), synced: None });
    }

    /// A stream has ended. Its sessions are lost until they are reported again.
    pub fn detach(&mut self, stream: StreamId, now: Instant) {
        let Some(stream) = self.streams.remove(&stream) else { return };
        for id in stream.sessions {
            if let Some(entry) = self.sessions.get_mut(&id) {
                entry.place = Place::Lost { until: now + LOST_GRACE, held: VecDeque::new(), missed: false };
                self.lost += 1;
            }
        }
    }

    /// A gateway has reported all its sessions: those of its earlier streams that it did not name are over.
    pub fn synced(&mut self, stream: StreamId) -> Vec<Effect<P>> {
        let epoch = self.epoch;
        let Some(reported) = self.streams.get_mut(&stream) else { return Vec::new() };
        reported.synced = Some(epoch);
        let gateway = reported.gateway.clone();
        self.end_lost(|entry, _| entry.gateway == gateway)
    }

    /// Ends lost sessions whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Effect<P>> {
        if now >= self.unsettled_until {
            self.starting = false;
        }
        self.kicked.expire(now);
        self.kicks.expire(now);
        self.end_lost(|_, until| until <= now)
    }

    fn end_lost(&mut self, over: impl Fn(&Entry<P>, Instant) -> bool) -> Vec<Effect<P>> {
        if self.lost == 0 {
            return Vec::new();
        }
        let ended: Vec<_> = self
            .sessions
            .values()
            .filter(|e| matches!(&e.place, Place::Lost { until, .. } if over(e, *until)))
            .map(|e| e.session.id.clone())
            .collect();
        ended.iter().filter_map(|id| self.remove(id)).map(|e| Effect::Closed(e.session, e.gateway)).collect()
    }

    /// A gateway reports a session, `fresh` when it has just logged in.
    pub fn open(&mut self, stream: StreamId, session: Session, fresh: bool, now: Instant) -> Vec<Effect<P>> {
        let Some(at) = self.streams.get(&stream) else { return Vec::new() };
        let gateway = at.gateway.clone();
        if let Some(kicked) = self.kicked.get(&session.id) {
            return vec![Effect::Kick { stream, session: session.id, code: kicked.code, reason: kicked.reason }];
        }
        if let Some(known) = self.sessions.get_mut(&session.id) {
            // One id, two users: the gateway's mistake; the first stands.
            if known.session.user != session.user {
                return Vec::new();
            }
            known.session.token_issued_at = known.session.token_issued_at.max(session.token_issued_at);
            return self.reattach(stream, gateway, &session.id);
        }
        if self.kicks.reach(&session.user, &session.device, session.issued_at()) {
            self.remember_kick(session.id.clone(), close::KICKED, BY_REQUEST, now);
            return vec![Effect::Kick { stream, session: session.id, code: close::KICKED, reason: BY_REQUEST }];
        }
        let mut effects = Vec::new();
        let newer = |a: &Session, b: &Session| (a.opened_at, &a.id) > (b.opened_at, &b.id);
        let same_device = self.of_user(&session.user).find(|e| e.session.device == session.device);
        if let Some(other) = same_device.map(|e| e.session.clone()) {
            if newer(&other, &session) {
                self.remember_kick(session.id.clone(), close::KICKED, ELSEWHERE, now);
                return vec![Effect::Kick { stream, session: session.id, code: close::KICKED, reason: ELSEWHERE }];
            }
            effects.extend(self.end(&other.id, close::KICKED, ELSEWHERE, now));
        }
        self.insert(stream, gateway.clone(), session.clone());
        effects.push(if fresh {
            Effect::Opened(session.clone(), gateway)
        } else {
            Effect::Resumed(session.clone(), gateway)
        });
        while self.users.get(&session.user).is_some_and(|s| s.len() > self.max_per_user) {
            let oldest = self.of_user(&session.user).map(|e| &e.session).min_by_key(|s| (s.opened_at, s.id.clone()));
            let Some(oldest) = oldest.map(|s| s.id.clone()) else { break };
            effects.extend(self.end(&oldest, close::TOO_MANY, TOO_MANY, now));
        }
        effects
    }

    /// A known session is reported on another stream, or once more on its own.
    fn reattach(&mut self, stream: StreamId, gateway: Arc<str>, id: &Arc<str>) -> Vec<Effect<P>> {
        let Some(entry) = self.sessions.get_mut(id) else { return Vec::new() };
        entry.gateway = gateway;
        let before = std::mem::replace(&mut entry.place, Place::Attached(stream));
        if let Some(at) = self.streams.get_mut(&stream) {
            at.sessions.insert(id.clone());
        }
        match before {
            Place::Attached(old) if old != stream => {
                if let Some(old) = self.streams.get_mut(&old) {
                    old.sessions.remove(id);
                }
                Vec::new()
            }
            Place::Attached(_) => Vec::new(),
            Place::Lost { missed: true, .. } => {
                self.lost -= 1;
                self.end_quietly(id, close::TOO_SLOW, SLOW)
            }
            Place::Lost { held, .. } => {
                self.lost -= 1;
                held.into_iter().map(|payload| Effect::Send { stream, session: id.clone(), payload }).collect()
            }
        }
    }

    /// A gateway says that a session is over here; `moved` when it goes on at another owner.
    pub fn close(&mut self, stream: StreamId, id: &str, moved: bool) -> Vec<Effect<P>> {
        let elsewhere = |e: &Entry<P>| matches!(e.place, Place::Attached(at) if at != stream);
        if self.sessions.get(id).is_none_or(elsewhere) {
            return Vec::new();
        }
        match self.remove(id) {
            Some(entry) if !moved => vec![Effect::Closed(entry.session, entry.gateway)],
            _ => Vec::new(),
        }
    }

    /// Closes a user's sessions on one device, or on all, whose token was issued at or before `at`, and those that are reported later.
    pub fn kick(&mut self, user: &str, device: Option<&str>, at: i64, now: Instant) -> (u32, Vec<Effect<P>>) {
        self.kicks.add(user, device, at, now);
        let ids: Vec<_> = self
            .of_user(user)
            .filter(|e| device.is_none_or(|d| *e.session.device == *d) && e.session.issued_at() <= at)
            .map(|e| e.session.id.clone())
            .collect();
        let effects = ids.iter().flat_map(|id| self.end(id, close::KICKED, BY_REQUEST, now)).collect();
        (ids.len() as u32, effects)
    }

    /// A session's queue was full: it is closed as too slow a reader and catches up at its next login.
    pub fn overflowed(&mut self, id: &str) -> Vec<Effect<P>> {
        self.end_quietly(id, close::TOO_SLOW, SLOW)
    }

    /// Each session of a user with where its deliveries go.
    pub fn routes(&self, user: &str) -> impl Iterator<Item = (&Session, Route)> {
        self.of_user(user).map(|entry| {
            let route = match entry.place {
                Place::Attached(stream) => Route::Stream(stream),
                Place::Lost { .. } => Route::Held,
            };
            (&entry.session, route)
        })
    }

    /// Holds a delivery for a lost session; false when there is no room and it will have to catch up.
    pub fn hold(&mut self, id: &str, payload: P) -> bool {
        match self.sessions.get_mut(id).map(|e| &mut e.place) {
            Some(Place::Lost { held, missed, .. }) => {
                if *missed {
                    return false;
                }
                if held.len() < MAX_HELD {
                    held.push_back(payload);
                } else {
                    *missed = true;
                    held.clear();
                }
                !*missed
            }
            _ => false,
        }
    }

    /// Whether and where a user is online.
    pub fn presence(&self, user: &str) -> Option<Presence> {
        let mut platforms: Vec<i32> = self.of_user(user).map(|e| e.session.platform).collect();
        if platforms.is_empty() {
            return None;
        }
        platforms.sort_unstable();
        platforms.dedup();
        Some(Presence { platforms })
    }

    /// A session, if it is open.
    pub fn session(&self, id: &str) -> Option<(&Session, &Arc<str>)> {
        self.sessions.get(id).map(|e| (&e.session, &e.gateway))
    }

    /// Open sessions, lost ones included.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody is online.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Attached gateway streams.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    fn of_user(&self, user: &str) -> impl Iterator<Item = &Entry<P>> {
        self.users.get(user).into_iter().flatten().filter_map(|id| self.sessions.get(id))
    }

    fn insert(&mut self, stream: StreamId, gateway: Arc<str>, session: Session) {
        if let Some(at) = self.streams.get_mut(&stream) {
            at.sessions.insert(session.id.clone());
        }
        self.users.entry(session.user.clone()).or_default().push(session.id.clone());
        self.sessions.insert(session.id.clone(), Entry { session, gateway, place: Place::Attached(stream) });
    }

    fn remove(&mut self, id: &str) -> Option<Entry<P>> {
        let entry = self.sessions.remove(id)?;
        match entry.place {
            Place::Attached(stream) => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.sessions.remove(id);
                }
            }
            Place::Lost { .. } => self.lost -= 1,
        }
        if let Some(ids) = self.users.get_mut(&entry.session.user) {
            ids.retain(|other| **other != *id);
            if ids.is_empty() {
                self.users.remove(&entry.session.user);
            }
        }
        Some(entry)
    }

    /// Removes a session, kicks it and remembers that, so that a gateway that missed the kick gets it again.
    fn end(&mut self, id: &Arc<str>, code: u16, reason: &'static str, now: Instant) -> Vec<Effect<P>> {
        let effects = self.end_quietly(id, code, reason);
        if !effects.is_empty() {
            self.remember_kick(id.clone(), code, reason, now);
        }
        effects
    }

    fn end_quietly(&mut self, id: &str, code: u16, reason: &'static str) -> Vec<Effect<P>> {
        let Some(entry) = self.remove(id) else { return Vec::new() };
        let mut effects = Vec::with_capacity(2);
        if let Place::Attached(stream) = entry.place {
            effects.push(Effect::Kick { stream, session: entry.session.id.clone(), code, reason });
        }
        effects.push(Effect::Closed(entry.session, entry.gateway));
        effects
    }

    fn remember_kick(&mut self, id: Arc<str>, code: u16, reason: &'static str, now: Instant) {
        self.kicked.insert(id, Kicked { code, reason }, now);
    }
}

const ELSEWHERE: &str = "logged in again on this device";
const TOO_MANY: &str = "too many sessions of this user";
const BY_REQUEST: &str = "kicked";
const SLOW: &str = "too slow a reader: reconnect and sync";

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
