//! Who the client is: its token, at the beginning and anew later, and whether that has been revoked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kith_clients::auth::Claims;
use kith_rpc::error::{Error, reason};
use tonic::Code;

use super::{
    CATCH_UP_DEADLINE, CatchUp, FIRST_RECHECK, Identified, Machine, RECHECK, RECHECK_AFTER_FAILURE,
    io::{Job, Opened, Output},
    order::Order,
};
use crate::{
    frame::{self, Auth, close},
    resume,
};

impl Machine {
    pub(super) fn auth(&mut self, auth: Auth) {
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

    pub(super) fn authenticated(&mut self, result: Result<Arc<Claims>, Error>, now: Instant, now_ms: i64) {
        self.authenticating = false;
        let auth = self.pending.take();
        let claims = match result {
            Ok(claims) => claims,
            Err(error) => return self.refuse(&error),
        };
        let left_ms = claims.ends_at_ms().saturating_sub(now_ms);
        // Bounded, since an Instant has an end.
        let left = Duration::from_millis(left_ms.max(0).unsigned_abs()).min(Duration::from_secs(400 * 86_400));
        if let Some(identified) = &mut self.identified {
            // A fresh token on a living connection: of the same user and device, or it is another's.
            if identified.claims.sub != claims.sub || identified.claims.dev != claims.dev {
                return self.close(close::AUTHENTICATION, "the token is of another user or device");
            }
            // The newest token is what the session stands on, whichever was given last.
            if claims.issued_at_ms() >= identified.claims.issued_at_ms() {
                identified.expires = now + left;
                identified.recheck = now + FIRST_RECHECK;
                identified.claims = claims.clone();
                self.out.push(Output::Renewed(claims));
            }
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
            recheck: now + FIRST_RECHECK,
            catch_up: CatchUp::Awaited(now + CATCH_UP_DEADLINE),
            failures: 0,
            cursors,
            comparing: Vec::new(),
            compare_at: None,
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

    pub(super) fn recheck(&mut self) {
        if let Some(identified) = &mut self.identified {
            identified.recheck = self.now + RECHECK;
            self.out.push(Output::Job(Job::Recheck(identified.claims.clone())));
        }
    }

    pub(super) fn rechecked(&mut self, claims: &Arc<Claims>, result: Result<(), Error>) {
        let Some(identified) = &mut self.identified else { return };
        match result {
            Ok(()) => {}
            Err(error) if error.code == Code::Unauthenticated => {
                // What became of a token that the client has replaced meanwhile is of no account.
                if Arc::ptr_eq(claims, &identified.claims) {
                    self.refuse(&error);
                }
            }
            // Storage does not answer: what was true stays true, for now.
            Err(_) => identified.recheck = identified.recheck.min(self.now + RECHECK_AFTER_FAILURE),
        }
    }
}
