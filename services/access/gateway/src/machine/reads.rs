//! How a connection reads from storage what deliveries did not bring: its catch-up, gaps, and the client's own cursors.

use std::{sync::Arc, time::Instant};

use kith_rpc::error::Error;
use tonic::Code;

use super::{
    AFTER_FAILURE, COMPARE, CatchUp, HELD_FAILURES, MOST_PATIENT, Machine,
    io::{CatchUpPage, Compared, Job, Output, Pulled},
    order::{Item, Need},
};

impl Machine {
    /// The catch-up by `tasks` is done. The gateway's own, where it runs already, goes on.
    pub(super) fn catch_up_done(&mut self) {
        let Some(identified) = &mut self.identified else { return };
        if matches!(identified.catch_up, CatchUp::Awaited(_)) {
            identified.catch_up = CatchUp::Done;
            let outcome = self.order.release();
            self.apply(outcome);
            self.compare();
        }
    }

    /// `tasks` could not finish the catch-up: the gateway goes on from what it has shown.
    pub(super) fn catch_up_failed(&mut self) {
        if self.identified.as_ref().is_some_and(|i| matches!(i.catch_up, CatchUp::Awaited(_))) {
            self.start_catch_up();
        }
    }

    pub(super) fn suspect(&mut self) {
        let Some(identified) = &mut self.identified else { return };
        match identified.catch_up {
            CatchUp::Own | CatchUp::OwnAgain => identified.catch_up = CatchUp::OwnAgain,
            // A catch-up by `tasks` that was on its way may be what got lost.
            CatchUp::Awaited(_) | CatchUp::Retry(_) => {}
            CatchUp::Done => self.start_catch_up(),
        }
    }

    /// Deliveries had no room here, and may have been of the catch-up by `tasks`: its end would say nothing.
    pub(super) fn left_out(&mut self) {
        if self.identified.as_ref().is_some_and(|i| matches!(i.catch_up, CatchUp::Awaited(_))) {
            self.start_catch_up();
        } else {
            self.suspect();
        }
    }

    pub(super) fn start_catch_up(&mut self) {
        if let Some(identified) = &mut self.identified {
            identified.catch_up = CatchUp::Own;
            if identified.failures < HELD_FAILURES {
                self.order.hold();
            }
            self.catch_up_page(None);
        }
    }

    fn catch_up_page(&mut self, cursor: Option<String>) {
        let known = self.order.known();
        self.out.push(Output::Job(Job::CatchUp { cursor, known }));
    }

    pub(super) fn caught_up(&mut self, result: Result<CatchUpPage, Error>, now: Instant) {
        let Some(identified) = &mut self.identified else { return };
        let Ok(page) = result else {
            identified.failures = identified.failures.saturating_add(1);
            identified.catch_up = CatchUp::Retry(now + AFTER_FAILURE * identified.failures.min(MOST_PATIENT));
            if identified.failures == HELD_FAILURES {
                // Each conversation that has something new is still read from where the device stands.
                let outcome = self.order.release();
                self.apply(outcome);
                self.compare();
            }
            return;
        };
        let again = matches!(identified.catch_up, CatchUp::OwnAgain);
        let done = page.next.is_none() && !again;
        if done {
            identified.catch_up = CatchUp::Done;
            identified.failures = 0;
        }
        self.show_caught_up(page.items);
        self.more.extend(page.more);
        if done {
            let outcome = self.order.release();
            self.apply(outcome);
            self.compare();
        } else if page.next.is_some() {
            self.catch_up_page(page.next);
        } else {
            self.start_catch_up();
        }
    }

    fn show_caught_up(&mut self, items: Vec<Item>) {
        for item in items {
            let outcome = self.order.caught_up(item);
            self.apply(outcome);
        }
    }

    /// Compares the client's cursors with storage, a few at a time: a client that lost data is behind what its device acknowledged, and
    /// one that is wrong may name what does not exist.
    pub(super) fn compare(&mut self) {
        let Some(identified) = &mut self.identified else { return };
        if !identified.comparing.is_empty() {
            return;
        }
        identified.compare_at = None;
        while identified.comparing.len() < COMPARE
            && let Some((id, seq)) = identified.cursors.pop()
        {
            // What the catch-up has borne out needs no second look.
            if self.order.claimed(&id) == Some(seq) {
                identified.comparing.push((id, seq));
            }
        }
        if !identified.comparing.is_empty() {
            self.out.push(Output::Job(Job::Compare(identified.comparing.clone())));
        }
    }

    pub(super) fn compared(&mut self, result: Result<Vec<(Arc<str>, Compared)>, Error>) {
        let Some(identified) = &mut self.identified else { return };
        let asked = std::mem::take(&mut identified.comparing);
        let Ok(compared) = result else {
            // Live messages of these conversations wait for it.
            identified.cursors.extend(asked);
            identified.compare_at = Some(self.now + AFTER_FAILURE);
            return;
        };
        for (id, compared) in compared {
            match compared {
                Compared::Found { items, has_more, end } => {
                    let outcome = self.order.verified(&id, end);
                    self.apply(outcome);
                    self.show_caught_up(items);
                    if has_more {
                        self.more.insert(id);
                    }
                }
                Compared::Invisible => self.order.denied(&id),
                Compared::Failed => {
                    let outcome = self.order.unverified(&id);
                    self.apply(outcome);
                    self.more.insert(id);
                }
            }
        }
        self.compare();
    }

    pub(super) fn base(&mut self, id: &Arc<str>, result: Result<u64, Error>, now: Instant) {
        match result {
            Ok(delivered) => {
                let outcome = self.order.base(id, delivered);
                self.apply(outcome);
            }
            Err(error) => self.unread(Need::Base(id.clone()), &error, now),
        }
    }

    pub(super) fn pulled(&mut self, id: &Arc<str>, result: Result<Pulled, Error>, now: Instant) {
        match result {
            Ok(Pulled { items, has_more }) => {
                let outcome = self.order.pulled(id, items, has_more);
                self.apply(outcome);
            }
            Err(error) => {
                let after = self.order.seen(id).unwrap_or(0);
                self.unread(Need::Pull { conversation_id: id.clone(), after }, &error, now);
            }
        }
    }

    /// A read failed: for good when the user may not see the conversation, else it is tried again.
    fn unread(&mut self, need: Need, error: &Error, now: Instant) {
        if matches!(error.code, Code::NotFound | Code::PermissionDenied) {
            self.order.lost(&need);
        } else {
            self.later.push((now + AFTER_FAILURE, need));
        }
    }
}
