//! The gRPC surface: checks what comes in, translates, and waits where the contract says so.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use kith_contract::ids;
use kith_kit::clock;
use kith_proto::{
    chat::v1::Position,
    sessions::v1::{
        AttachRequest, AttachResponse, DeliverRequest, DeliverResponse, KickRequest, KickResponse, Presence,
        QueryPresenceRequest, QueryPresenceResponse, Session as Reported, SessionAckRequest, SessionAckResponse,
        attach_request::{Close, Frame, Hello},
        attach_response::Welcome,
        deliver_request::Item,
        deliver_response::Outcome,
        sessions_server::Sessions,
    },
};
use kith_rpc::error::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    hub::Hub,
    outlet::Outlet,
    registry::{SETTLE, Session, StreamId},
};

/// Items of one Deliver.
const MAX_ITEMS: usize = 500;
/// Users of one Deliver, over all items.
const MAX_USERS: usize = 20_000;
const MAX_PRESENCE: usize = 100;
/// Positions of one acknowledgement, and cursors of one report.
const MAX_POSITIONS: usize = 5_000;
/// A gateway that does not say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks whether an absent user has been reported meanwhile.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// The service.
pub(crate) struct Service {
    pub(crate) hub: Arc<Hub>,
    /// This instance's address.
    pub(crate) me: Arc<str>,
    /// Ends every stream.
    pub(crate) ending: CancellationToken,
}

type Frames = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Sessions for Service {
    type AttachStream = Frames;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Frames>, Status> {
        let end = self.ending.child_token();
        let (stream, outlet, frames) = self.hub.attach(end.clone());
        let (hub, me) = (self.hub.clone(), self.me.clone());
        tokio::spawn(async move {
            let mut reports = request.into_inner();
            let done = end.clone();
            let read = read(&hub, &me, stream, outlet, &mut reports);
            if let Some(Err(status)) = end.run_until_cancelled(read).await {
                tracing::info!(code = ?status.code(), message = status.message(), "a gateway's stream ended");
            }
            hub.detach(stream);
            done.cancel();
        });
        Ok(Response::new(Box::pin(frames)))
    }

    async fn deliver(&self, request: Request<DeliverRequest>) -> Result<Response<DeliverResponse>, Status> {
        let items = request.into_inner().items;
        check_items(&items)?;
        self.hub.check_owner(items.iter().flat_map(|i| i.user_ids.iter().map(String::as_str)))?;
        let mut outcomes = self.hub.deliver(&items);
        if outcomes.iter().any(|o| !o.offline_user_ids.is_empty()) && !self.hub.is_settled() {
            self.settle(items, &mut outcomes).await;
        }
        Ok(Response::new(DeliverResponse { outcomes }))
    }

    async fn query_presence(
        &self,
        request: Request<QueryPresenceRequest>,
    ) -> Result<Response<QueryPresenceResponse>, Status> {
        let users = request.into_inner().user_ids;
        if users.len() > MAX_PRESENCE {
            return Err(Error::invalid(format!("user_ids: {} users, at most {MAX_PRESENCE}", users.len())).into());
        }
        let end = Instant::now() + SETTLE * 2;
        loop {
            self.hub.check_owner(users.iter().map(String::as_str))?;
            // Looked at before the look-up: who is absent after it is offline for sure.
            let sure = self.hub.is_settled() || Instant::now() >= end;
            let presence: Vec<_> = users.iter().map(|user_id| self.presence(user_id)).collect();
            if sure || presence.iter().all(|p| p.online) {
                return Ok(Response::new(QueryPresenceResponse { presence }));
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }

    async fn kick(&self, request: Request<KickRequest>) -> Result<Response<KickResponse>, Status> {
        let request = request.into_inner();
        check_id("user_id", &request.user_id)?;
        let device = (!request.device_id.is_empty()).then_some(request.device_id.as_str());
        if let Some(device) = device {
            check_id("device_id", device)?;
        }
        // Whoever owns the user: a session may be known here still, or may be reported here in a moment.
        let at = if request.issued_at_or_before > 0 { request.issued_at_or_before } else { clock::now_ms() };
        let sessions = self.hub.kick(&request.user_id, device, at);
        tracing::info!(user = request.user_id, sessions, reason = request.reason, "kicked by request");
        Ok(Response::new(KickResponse { sessions }))
    }

    async fn ack(&self, request: Request<SessionAckRequest>) -> Result<Response<SessionAckResponse>, Status> {
        accept_ack(&self.hub, request.into_inner())?;
        Ok(Response::new(SessionAckResponse {}))
    }
}

impl Service {
    /// Who is not here was seen last when storage says so: the caller's client asks it.
    fn presence(&self, user_id: &str) -> Presence {
        let found = self.hub.presence(user_id);
        let (user_id, online) = (user_id.to_owned(), found.is_some());
        Presence { user_id, online, platforms: found.unwrap_or_default().platforms, last_seen: 0 }
    }

    /// Tries users that seem offline again until their gateways have had the time to report them.
    async fn settle(&self, mut items: Vec<Item>, outcomes: &mut [Outcome]) {
        let end = Instant::now() + SETTLE * 2;
        while Instant::now() < end {
            tokio::time::sleep(SETTLE_POLL).await;
            // Looked at before the delivery: who is absent after it is offline for sure.
            let settled = self.hub.is_settled();
            for (item, outcome) in items.iter_mut().zip(outcomes.iter()) {
                item.user_ids.clone_from(&outcome.offline_user_ids);
            }
            for (outcome, again) in outcomes.iter_mut().zip(self.hub.deliver(&items)) {
                outcome.offline_user_ids = again.offline_user_ids;
                outcome.delivered += again.delivered;
                outcome.overflowed += again.overflowed;
            }
            if settled || outcomes.iter().all(|o| o.offline_user_ids.is_empty()) {
                return;
            }
        }
    }
}

/// Takes a gateway's reports until its stream ends.
async fn read(
    hub: &Hub,
    me: &str,
    stream: StreamId,
    outlet: Outlet,
    reports: &mut Streaming<AttachRequest>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, reports.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
    let Some(AttachRequest { frame: Some(Frame::Hello(Hello { gateway })) }) = first else {
        return Err(Status::invalid_argument("the first frame must be a hello"));
    };
    if gateway.is_empty() || gateway.len() > 256 {
        return Err(Status::invalid_argument("hello.gateway: 1 to 256 bytes"));
    }
    hub.hello(stream, outlet, &gateway, Welcome { instance: me.to_owned() });
    tracing::info!(gateway, stream, "a gateway attached");
    while let Some(report) = reports.message().await? {
        if let Err(error) = accept(hub, stream, report) {
            // One bad report must not cost the others their sessions.
            metrics::counter!("kith_sessions_bad_reports_total").increment(1);
            tracing::warn!(gateway, %error, "a gateway's report was refused");
        }
    }
    Ok(())
}

fn accept(hub: &Hub, stream: StreamId, report: AttachRequest) -> Result<(), Error> {
    match report.frame {
        Some(Frame::Open(reported)) => {
            let fresh = reported.fresh;
            hub.open(stream, session(reported)?, fresh);
        }
        Some(Frame::Close(Close { session_id, moved, .. })) => hub.close(stream, &session_id, moved),
        Some(Frame::Synced(_)) => hub.synced(stream),
        Some(Frame::Ack(ack)) => accept_ack(hub, ack)?,
        Some(Frame::Hello(_)) | None => {
            return Err(Error::invalid("frame: a second hello, or none of the known frames"));
        }
    }
    Ok(())
}

fn session(reported: Reported) -> Result<Session, Error> {
    check_id("session_id", &reported.session_id)?;
    check_id("user_id", &reported.user_id)?;
    check_id("device_id", &reported.device_id)?;
    if reported.cursors.len() > MAX_POSITIONS || reported.line.len() > 256 {
        return Err(Error::invalid(format!(
            "cursors: {}, at most {MAX_POSITIONS}; line: at most 256 bytes",
            reported.cursors.len()
        )));
    }
    Ok(Session {
        id: reported.session_id.into(),
        user: reported.user_id.into(),
        device: reported.device_id.into(),
        platform: reported.platform,
        line: reported.line.into(),
        opened_at: reported.opened_at,
        cursors: positions(reported.cursors)?,
        token_issued_at: reported.token_issued_at,
    })
}

fn accept_ack(hub: &Hub, ack: SessionAckRequest) -> Result<(), Error> {
    check_id("user_id", &ack.user_id)?;
    check_id("device_id", &ack.device_id)?;
    if ack.acks.len() > MAX_POSITIONS {
        return Err(Error::invalid(format!("acks: {}, at most {MAX_POSITIONS}", ack.acks.len())));
    }
    hub.pending.ack(&ack.user_id, &ack.device_id, positions(ack.acks)?).map_err(|_| {
        metrics::counter!("kith_sessions_acks_dropped_total").increment(1);
        Error::exhausted(
            "too many cursors of this user, or in all, wait to be written: acknowledge again later",
            Duration::from_secs(2),
        )
    })
}

fn positions(positions: Vec<Position>) -> Result<Vec<(String, u64)>, Error> {
    positions
        .into_iter()
        .map(|p| {
            ids::check_conversation_id("conversation_id", &p.conversation_id)?;
            Ok((p.conversation_id, p.seq))
        })
        .collect()
}

fn check_id(field: &'static str, id: &str) -> Result<(), Error> {
    Ok(ids::check_id(field, id)?)
}

fn check_items(items: &[Item]) -> Result<(), Error> {
    if items.len() > MAX_ITEMS {
        return Err(Error::invalid(format!("items: {}, at most {MAX_ITEMS}", items.len())));
    }
    let users: usize = items.iter().map(|i| i.user_ids.len()).sum();
    if users > MAX_USERS {
        return Err(Error::invalid(format!("items: {users} users in all, at most {MAX_USERS}")));
    }
    for (at, item) in items.iter().enumerate() {
        if item.user_ids.is_empty() {
            return Err(Error::invalid(format!("items[{at}].user_ids: must not be empty")));
        }
        if item.delivery.as_ref().is_none_or(|d| d.payload.is_none()) {
            return Err(Error::invalid(format!("items[{at}].delivery: must hold messages or an event")));
        }
    }
    Ok(())
}
