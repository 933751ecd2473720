//! The registry with its surroundings: what follows from an input is queued, announced and remembered. Never waits.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures::Stream;
use kith_kit::clock;
use kith_proto::sessions::v1::{
    AttachResponse, Delivery, attach_response, deliver_request::Item, deliver_response::Outcome,
};
use kith_rpc::{discovery::Endpoints, error::Error};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    outlet::{Outlet, outlet},
    owners::{Owner, Owners},
    publish::{Kind, Publisher, SessionEvent},
    registry::{Effect, Presence, Registry, Route, Session, StreamId},
    store::Pending,
};

/// Everything that this instance knows.
pub(crate) struct Hub {
    state: Mutex<State>,
    next_stream: AtomicU64,
    pub(crate) publisher: Publisher,
    pub(crate) pending: Pending,
}

struct State {
    registry: Registry<Delivery>,
    outlets: HashMap<StreamId, Outlet>,
    owners: Owners,
}

impl Hub {
    pub(crate) fn new(me: String, max_per_user: usize) -> Self {
        let registry = Registry::new(max_per_user, Instant::now());
        Self {
            state: Mutex::new(State { registry, outlets: HashMap::new(), owners: Owners::new(me) }),
            next_stream: AtomicU64::new(1),
            publisher: Publisher::default(),
            pending: Pending::default(),
        }
    }

    /// The ready instances changed.
    pub(crate) fn owners_changed(&self, endpoints: Endpoints) {
        let mut state = self.state.lock();
        if state.owners.update(endpoints) {
            state.registry.owners_changed(Instant::now());
        }
    }

    /// Whether the others still see this instance.
    pub(crate) fn is_listed(&self) -> bool {
        self.state.lock().owners.is_listed()
    }

    /// Refuses users that belong to another instance, with a hint.
    pub(crate) fn check_owner<'a>(&self, users: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        let state = self.state.lock();
        for user in users {
            match state.owners.of(user) {
                Owner::Me => {}
                Owner::Other(holder) => {
                    let mut error = Error::wrong_holder(Some(holder));
                    error.metadata.insert("user_id".to_owned(), user.to_owned());
                    return Err(error);
                }
                Owner::Unknown => {
                    return Err(
                        Error::unavailable("this instance does not know the others yet").with_reason("STARTING")
                    );
                }
            }
        }
        Ok(())
    }

    /// A gateway's stream begins.
    pub(crate) fn attach(
        &self,
        end: CancellationToken,
    ) -> (StreamId, Outlet, impl Stream<Item = Result<AttachResponse, Status>> + Send + 'static) {
        let (outlet, frames) = outlet(end);
        (self.next_stream.fetch_add(1, Ordering::Relaxed), outlet, frames)
    }

    /// The gateway has said who it is.
    pub(crate) fn hello(&self, stream: StreamId, outlet: Outlet, gateway: &str, welcome: attach_response::Welcome) {
        let mut state = self.state.lock();
        outlet.control(attach_response::Frame::Welcome(welcome));
        state.outlets.insert(stream, outlet);
        state.registry.attach(stream, gateway.into());
        state.count();
    }

    /// A stream has ended.
    pub(crate) fn detach(&self, stream: StreamId) {
        let mut state = self.state.lock();
        state.outlets.remove(&stream);
        state.registry.detach(stream, Instant::now());
        state.count();
    }

    pub(crate) fn open(&self, stream: StreamId, session: Session, fresh: bool) {
        let mut state = self.state.lock();
        let effects = state.registry.open(stream, session, fresh, Instant::now());
        self.carry_out(&mut state, effects);
    }

    pub(crate) fn close(&self, stream: StreamId, session: &str, moved: bool) {
        let mut state = self.state.lock();
        let effects = state.registry.close(stream, session, moved);
        self.carry_out(&mut state, effects);
    }

    pub(crate) fn synced(&self, stream: StreamId) {
        let mut state = self.state.lock();
        let effects = state.registry.synced(stream);
        self.carry_out(&mut state, effects);
    }

    pub(crate) fn expire(&self) {
        let mut state = self.state.lock();
        let effects = state.registry.expire(Instant::now());
        self.carry_out(&mut state, effects);
        metrics::gauge!("kith_sessions_event_backlog").set(self.publisher.backlog() as f64);
    }

    pub(crate) fn kick(&self, user: &str, device: Option<&str>, at: i64) -> u32 {
        let mut state = self.state.lock();
        let (count, effects) = state.registry.kick(user, device, at, Instant::now());
        self.carry_out(&mut state, effects);
        count
    }

    pub(crate) fn presence(&self, user: &str) -> Option<Presence> {
        self.state.lock().registry.presence(user)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.state.lock().registry.is_settled(Instant::now())
    }

    /// The event of an open session, for one whose announcement is overdue.
    pub(crate) fn event_of(&self, session: &str) -> Option<SessionEvent> {
        let state = self.state.lock();
        let (session, gateway) = state.registry.session(session)?;
        Some(SessionEvent {
            kind: Kind::Opened,
            session: session.clone(),
            gateway: gateway.clone(),
            at: clock::now_ms(),
            ver: 0,
        })
    }

    /// Hands items to the sessions of their users.
    pub(crate) fn deliver(&self, items: &[Item]) -> Vec<Outcome> {
        let mut state = self.state.lock();
        items.iter().map(|item| self.deliver_one(&mut state, item)).collect()
    }

    fn deliver_one(&self, state: &mut State, item: &Item) -> Outcome {
        let mut outcome = Outcome::default();
        let mut targets: Vec<(StreamId, Vec<String>)> = Vec::new();
        let mut held = Vec::new();
        let users =
            if item.session_id.is_empty() { &item.user_ids[..] } else { &item.user_ids[..item.user_ids.len().min(1)] };
        for user in users {
            let mut online = false;
            for (session, route) in state.registry.routes(user) {
                if !item.session_id.is_empty() && *session.id != *item.session_id {
                    continue;
                }
                online = true;
                if !item.except_device_id.is_empty() && *session.device == *item.except_device_id {
                    continue;
                }
                match route {
                    Route::Held => held.push(session.id.clone()),
                    Route::Stream(stream) => match targets.iter_mut().find(|(s, _)| *s == stream) {
                        Some((_, sessions)) => sessions.push(session.id.to_string()),
                        None => targets.push((stream, vec![session.id.to_string()])),
                    },
                }
            }
            if !online {
                outcome.offline_user_ids.push(user.clone());
            }
        }
        let payload = item.delivery.as_ref().and_then(|d| d.payload.as_ref());
        for (stream, session_ids) in targets {
            let sessions = session_ids.len() as u32;
            let overflowed = session_ids.clone();
            let delivery = Delivery { session_ids, payload: payload.cloned() };
            if state.outlets.get(&stream).is_some_and(|o| o.deliver(delivery)) {
                outcome.delivered += sessions;
            } else if state.detached(stream) {
                held.extend(overflowed.into_iter().map(Arc::from));
            } else {
                outcome.overflowed += sessions;
                let effects = overflowed.iter().flat_map(|id| state.registry.overflowed(id)).collect();
                self.carry_out(state, effects);
            }
        }
        for id in held {
            let delivery = Delivery { session_ids: vec![id.to_string()], payload: payload.cloned() };
            if state.registry.hold(&id, delivery) { outcome.delivered += 1 } else { outcome.overflowed += 1 }
        }
        metrics::counter!("kith_sessions_overflowed_total").increment(u64::from(outcome.overflowed));
        outcome
    }

    /// Ends all streams: gateways report their sessions to the next owners.
    pub(crate) fn end_streams(&self) {
        self.state.lock().outlets.values().for_each(Outlet::end);
    }

    fn carry_out(&self, state: &mut State, effects: Vec<Effect<Delivery>>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send { stream, session, payload } => {
                    let kept = if state.detached(stream) {
                        state.registry.hold(&session, payload)
                    } else {
                        state.outlets.get(&stream).is_some_and(|o| o.deliver(payload))
                    };
                    if !kept {
                        effects.extend(state.registry.overflowed(&session));
                    }
                }
                Effect::Kick { stream, session, code, reason } => {
                    metrics::counter!("kith_sessions_kicks_total", "code" => code.to_string()).increment(1);
                    if let Some(outlet) = state.outlets.get(&stream) {
                        let kick = attach_response::Kick {
                            session_id: session.to_string(),
                            code: code.into(),
                            reason: reason.to_owned(),
                        };
                        outlet.control(attach_response::Frame::Kick(kick));
                    }
                }
                Effect::Opened(session, gateway) => self.announce(Kind::Opened, session, gateway),
                Effect::Resumed(session, gateway) => self.announce(Kind::Resumed, session, gateway),
                Effect::Closed(session, gateway) => self.announce(Kind::Closed, session, gateway),
            }
        }
        state.count();
    }

    fn announce(&self, kind: Kind, session: Session, gateway: Arc<str>) {
        let at = clock::now_ms();
        if kind != Kind::Resumed {
            self.pending.seen(&session, at);
        }
        self.publisher.push(SessionEvent { kind, session, gateway, at, ver: 0 });
    }
}

impl State {
    /// Whether the stream is over. One that broke a moment ago is not a full one: its sessions are detached, and what is for them waits.
    fn detached(&mut self, stream: StreamId) -> bool {
        let over = self.outlets.get(&stream).is_none_or(Outlet::is_over);
        if over {
            self.registry.detach(stream, Instant::now());
        }
        over
    }

    fn count(&self) {
        metrics::gauge!("kith_sessions_open").set(self.registry.len() as f64);
        metrics::gauge!("kith_sessions_gateway_streams").set(self.registry.stream_count() as f64);
    }
}
