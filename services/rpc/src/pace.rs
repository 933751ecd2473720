//! How a connection of an HTTP server gets on: a first request soon, an end after it has been idle, and answers that are taken.
//!
//! Pure: time passes in. HTTP/2 needs this beside [`crate::progress`]: its peer may read the connection and still take no byte of an answer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long a connection whose caller is not known yet may take to its first request, and between two.
pub(crate) const UNKNOWN: Duration = Duration::from_secs(10);
/// An answer of which nothing was taken for so long is given up with its connection.
pub(crate) const STALL: Duration = Duration::from_secs(30);

/// What is to be done about a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing until then.
    Wait(Instant),
    /// Nobody asks anything any more: it ends in good order.
    Idle,
    /// An answer is not taken: it ends at once.
    Stalled,
}

/// The requests and answers of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    idle: Duration,
    /// Requests that a handler works on.
    working: usize,
    /// Answers under way, with when some of each was taken last.
    answers: HashMap<u64, Instant>,
    last_id: u64,
    /// Since when there has been neither.
    quiet_since: Instant,
}

impl Pace {
    /// A connection that has just been accepted.
    pub(crate) fn new(idle: Duration, now: Instant) -> Self {
        Self { idle, working: 0, answers: HashMap::new(), last_id: 0, quiet_since: now }
    }

    /// A request came.
    pub(crate) fn asked(&mut self) {
        self.working += 1;
    }

    /// It has its answer, which is to be sent.
    pub(crate) fn answered(&mut self, now: Instant) -> u64 {
        self.last_id += 1;
        self.answers.insert(self.last_id, now);
        self.last_id
    }

    /// The handler of a request is over, with or without an answer.
    pub(crate) fn worked(&mut self, now: Instant) {
        self.working = self.working.saturating_sub(1);
        self.rest(now);
    }

    /// More of an answer was taken.
    pub(crate) fn taken(&mut self, id: u64, now: Instant) {
        if let Some(at) = self.answers.get_mut(&id) {
            *at = now;
        }
    }

    /// An answer is through, or nobody wants it any more.
    pub(crate) fn through(&mut self, id: u64, now: Instant) {
        self.answers.remove(&id);
        self.rest(now);
    }

    fn rest(&mut self, now: Instant) {
        if self.working == 0 && self.answers.is_empty() {
            self.quiet_since = now;
        }
    }

    /// What is to be done now. A connection whose caller is `known` may be idle for longer.
    pub(crate) fn look(&self, known: bool, now: Instant) -> Verdict {
        if let Some(oldest) = self.answers.values().min() {
            let due = *oldest + STALL;
            return if now >= due { Verdict::Stalled } else { Verdict::Wait(due) };
        }
        if self.working > 0 {
            // Handlers have deadlines of their own.
            return Verdict::Wait(now + STALL);
        }
        let due = self.quiet_since + if known { self.idle } else { self.idle.min(UNKNOWN) };
        if now >= due { Verdict::Idle } else { Verdict::Wait(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(90);

    #[test]
    fn a_connection_that_asks_nothing_ends_soon_and_a_known_one_later() {
        let start = Instant::now();
        let pace = Pace::new(IDLE, start);
        assert_eq!(pace.look(false, start), Verdict::Wait(start + UNKNOWN));
        assert_eq!(pace.look(false, start + UNKNOWN), Verdict::Idle);
        assert_eq!(pace.look(true, start + UNKNOWN), Verdict::Wait(start + IDLE));
        assert_eq!(pace.look(true, start + IDLE), Verdict::Idle);
    }

    #[test]
    fn idleness_counts_from_the_end_of_the_last_answer() {
        let start = Instant::now();
        let mut pace = Pace::new(IDLE, start);
        pace.asked();
        let id = pace.answered(start);
        pace.worked(start + Duration::from_secs(1));
        pace.taken(id, start + Duration::from_secs(20));
        assert!(matches!(pace.look(true, start + STALL), Verdict::Wait(_)), "some of it was taken");
        let through = start + Duration::from_secs(40);
        pace.through(id, through);
        assert_eq!(pace.look(true, through), Verdict::Wait(through + IDLE));
    }

    #[test]
    fn one_answer_that_nobody_takes_ends_the_connection_whatever_else_goes_on() {
        let start = Instant::now();
        let mut pace = Pace::new(IDLE, start);
        let (stuck, lively) = (pace.answered(start), pace.answered(start));
        let later = start + STALL;
        pace.taken(lively, later);
        assert_eq!(pace.look(true, later), Verdict::Stalled);
        pace.through(stuck, later);
        assert_eq!(pace.look(true, later), Verdict::Wait(later + STALL));
    }

    #[test]
    fn a_handler_at_work_is_not_idleness() {
        let start = Instant::now();
        let mut pace = Pace::new(IDLE, start);
        pace.asked();
        assert!(matches!(pace.look(false, start + IDLE * 2), Verdict::Wait(_)));
        pace.worked(start + IDLE * 2);
        assert_eq!(pace.look(false, start + IDLE * 2), Verdict::Wait(start + IDLE * 2 + UNKNOWN));
    }
}
