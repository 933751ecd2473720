//! What a load client was promised and what it later read: acknowledged, lost, doubled, reordered, undelivered, refused.

mod report;

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

pub use report::Report;

use crate::client::{Inbox, Message, Sent};

/// Latencies above count as this.
const MAX_MICROS: u64 = 600_000_000;
/// How many examples of each fault a report shows.
const EXAMPLES: usize = 10;
/// An acknowledgement that took longer is worth a line in the course of the run.
const SLOW: Duration = Duration::from_millis(500);
/// Seconds of the course that are kept.
const COURSE: usize = 4_000;

/// An acknowledged message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Promise {
    message_id: String,
    client_msg_id: String,
    sender: String,
}

#[derive(Debug)]
struct State {
    promises: HashMap<String, BTreeMap<u64, Promise>>,
    /// Newest acknowledged seq of a sender who waits for each answer, by conversation and sender.
    last: HashMap<(String, String), u64>,
    /// When a conversation last took a message.
    taken: HashMap<String, Instant>,
    /// Since when a conversation refuses, and what had been injected last then.
    refusing: HashMap<String, (Instant, String)>,
    longest_refusal: Duration,
    longest_refusal_of: String,
    failed_tries: BTreeMap<String, u64>,
    given_up: HashSet<String>,
    acknowledged: u64,
    latency: Histogram<u64>,
    injected: BTreeMap<String, u64>,
    /// What was injected last.
    last_injected: String,
    /// How it went until the next one, by what was injected.
    after: BTreeMap<String, After>,
    /// What goes on besides, if something does; it has its own place among `after`.
    meanwhile: Option<String>,
    began: Instant,
    /// What happened, and how many acknowledgements were slow, by the second in which they were due.
    course: BTreeMap<u64, Second>,
    checks: Checks,
}

/// How it went after one kind of fault or change, until the next one.
#[derive(Debug, Clone)]
struct After {
    latency: Histogram<u64>,
    longest_refusal: Duration,
}

impl Default for After {
    fn default() -> Self {
        Self { latency: histogram(), longest_refusal: Duration::ZERO }
    }
}

impl After {
    fn told(&self) -> String {
        let ms = |q| self.latency.value_at_quantile(q) as f64 / 1_000.0;
        let refused = self.longest_refusal.as_secs_f64();
        format!("ack p50 {:.1}, p99 {:.1} ms; longest refusal {refused:.2} s", ms(0.5), ms(0.99))
    }
}

/// A second of the run in which something happened.
#[derive(Debug, Default, Clone)]
struct Second {
    happened: Vec<String>,
    slow: u64,
    slowest: Duration,
}

/// What the checks found; examples are bounded, counts are not.
#[derive(Debug, Default, Clone)]
struct Checks {
    conversations: u64,
    lost: u64,
    doubled: u64,
    reordered: u64,
    gaps: u64,
    undelivered: u64,
    log_differences: u64,
    examples: Vec<String>,
}

impl Checks {
    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

/// The record of a run. Senders write while it lasts, checks read afterwards.
#[derive(Debug)]
pub struct Ledger(Mutex<State>);

impl Default for Ledger {
    fn default() -> Self {
        Self(Mutex::new(State {
            promises: HashMap::new(),
            last: HashMap::new(),
            taken: HashMap::new(),
            refusing: HashMap::new(),
            longest_refusal: Duration::ZERO,
            longest_refusal_of: String::new(),
            failed_tries: BTreeMap::new(),
            given_up: HashSet::new(),
            acknowledged: 0,
            latency: histogram(),
            injected: BTreeMap::new(),
            last_injected: "nothing".to_owned(),
            after: BTreeMap::new(),
            meanwhile: None,
            began: Instant::now(),
            course: BTreeMap::new(),
            checks: Checks::default(),
        }))
    }
}

impl State {
    /// The second of the course to which a moment belongs; `None` when the course is full.
    fn second(&mut self, at: Duration) -> Option<&mut Second> {
        let full = self.course.len() >= COURSE;
        match self.course.entry(at.as_secs()) {
            Entry::Vacant(_) if full => None,
            entry => Some(entry.or_default()),
        }
    }

    /// The course in words: faults, and the stretches of seconds in which acknowledgements were slow.
    fn told(&self) -> Vec<String> {
        let mut stretches: Vec<(u64, u64, Second)> = Vec::new();
        for (&at, second) in &self.course {
            match stretches.last_mut() {
                Some((_, to, last)) if second.happened.is_empty() && last.slow > 0 && at <= *to + 1 => {
                    *to = at;
                    last.slow += second.slow;
                    last.slowest = last.slowest.max(second.slowest);
                }
                _ => stretches.push((at, at, second.clone())),
            }
        }
        let mut lines = Vec::new();
        for (from, to, Second { happened, slow, slowest }) in stretches {
            if !happened.is_empty() {
                lines.push(format!("{from} s: {}", happened.join(", ")));
            }
            if slow > 0 {
                lines.push(format!("{from}-{to} s: {slow} slow, the slowest {:.2} s", slowest.as_secs_f64()));
            }
        }
        lines
    }
}

/// A histogram of microseconds with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_MICROS, 3).expect("the bounds are in order")
}

/// A duration as the histograms count it.
pub fn micros(duration: Duration) -> u64 {
    (duration.as_micros() as u64).clamp(1, MAX_MICROS)
}

impl Ledger {
    /// The platform acknowledged a message, `latency` after it was meant to be sent. The sender sends one after the other, so
    /// its seqs must rise.
    pub fn acknowledged(&self, sender: &str, client_msg_id: &str, sent: &Sent, latency: Duration) {
        let mut state = self.0.lock();
        let state = &mut *state;
        state.acknowledged += 1;
        state.latency.saturating_record(micros(latency));
        let after = format!("after {}", state.last_injected);
        for when in std::iter::once(after).chain(state.meanwhile.clone()) {
            state.after.entry(when).or_default().latency.saturating_record(micros(latency));
        }
        if latency > SLOW {
            let due = state.began.elapsed().saturating_sub(latency);
            if let Some(second) = state.second(due) {
                second.slow += 1;
                second.slowest = second.slowest.max(latency);
            }
        }
        state.taken.insert(sent.conversation_id.clone(), Instant::now());
        if let Some((since, after)) = state.refusing.remove(&sent.conversation_id) {
            let refused = since.elapsed();
            let after = state.after.entry(format!("after {after}")).or_default();
            after.longest_refusal = after.longest_refusal.max(refused);
            if refused > state.longest_refusal {
                state.longest_refusal = refused;
                state.longest_refusal_of.clone_from(&sent.conversation_id);
            }
        }
        let last = state.last.entry((sent.conversation_id.clone(), sender.to_owned())).or_insert(0);
        if sent.seq <= *last {
            let text = format!("{}: {sender} got seq {} after {last}", sent.conversation_id, sent.seq);
            state.checks.reordered += 1;
            state.checks.example(|| text);
        }
        *last = sent.seq;
        let promise = Promise {
            message_id: sent.message_id.clone(),
            client_msg_id: client_msg_id.to_owned(),
            sender: sender.to_owned(),
        };
        let conversation = state.promises.entry(sent.conversation_id.clone()).or_default();
        if let Some(other) = conversation.insert(sent.seq, promise.clone())
            && other != promise
        {
            let text = format!("{} seq {}: promised twice, {other:?} and {promise:?}", sent.conversation_id, sent.seq);
            state.checks.doubled += 1;
            state.checks.example(|| text);
        }
    }

    /// A try failed in a way that the contract says to repeat.
    pub fn failed_try(&self, conversation: &str, code: &str) {
        let mut state = self.0.lock();
        let state = &mut *state;
        state.refusing.entry(conversation.to_owned()).or_insert_with(|| (Instant::now(), state.last_injected.clone()));
        *state.failed_tries.entry(code.to_owned()).or_default() += 1;
    }

    /// A sender gave up: the message may be stored or not, but not twice.
    pub fn gave_up(&self, client_msg_id: &str) {
        self.0.lock().given_up.insert(client_msg_id.to_owned());
    }

    /// A fault or a change is injected now: what follows until the next one is put down to it.
    pub fn injected(&self, fault: &str) {
        let mut state = self.0.lock();
        *state.injected.entry(fault.to_owned()).or_default() += 1;
        fault.clone_into(&mut state.last_injected);
        drop(state);
        self.note(fault);
    }

    /// The 99th percentile of acknowledgements between what was injected under this name and the next injection.
    pub fn p99_after(&self, injected: &str) -> Option<Duration> {
        let state = self.0.lock();
        let after = state.after.get(&format!("after {injected}"))?;
        Some(Duration::from_micros(after.latency.value_at_quantile(0.99)))
    }

    /// What goes on from now until the next call, besides what is injected: acknowledgements meanwhile are told apart.
    pub fn meanwhile(&self, what: Option<String>) {
        self.0.lock().meanwhile = what;
    }

    /// Something happened that is no fault: for the course.
    pub fn note(&self, what: &str) {
        let mut state = self.0.lock();
        let now = state.began.elapsed();
        if let Some(second) = state.second(now) {
            second.happened.push(what.to_owned());
        }
    }

    /// Messages acknowledged so far.
    pub fn count(&self) -> u64 {
        self.0.lock().acknowledged
    }

    /// Whether a conversation has taken a message since then.
    pub fn took_since(&self, conversation: &str, then: Instant) -> bool {
        self.0.lock().taken.get(conversation).is_some_and(|at| *at > then)
    }

    /// Conversations with a promise.
    pub fn conversations(&self) -> Vec<String> {
        self.0.lock().promises.keys().cloned().collect()
    }

    /// Holds the promises of a conversation against its whole history.
    pub fn check_history(&self, conversation: &str, history: &[Message]) {
        let mut state = self.0.lock();
        let State { promises, checks, .. } = &mut *state;
        checks.conversations += 1;
        for (at, message) in history.iter().enumerate() {
            if message.seq != at as u64 + 1 {
                checks.gaps += 1;
                checks.example(|| format!("{conversation}: seq {} stands at place {}", message.seq, at + 1));
                break;
            }
        }
        let (mut ids, mut client_ids) = (HashSet::new(), HashSet::new());
        for message in history {
            let twice = !ids.insert(&message.message_id)
                || (!message.client_msg_id.is_empty()
                    && !client_ids.insert((&message.sender_id, &message.client_msg_id)));
            if twice {
                checks.doubled += 1;
                checks.example(|| {
                    format!("{conversation} seq {}: {} is there twice", message.seq, message.client_msg_id)
                });
            }
        }
        let by_seq: HashMap<u64, &Message> = history.iter().map(|m| (m.seq, m)).collect();
        for (seq, promise) in promises.get(conversation).into_iter().flatten() {
            let kept = by_seq.get(seq).is_some_and(|m| {
                m.message_id == promise.message_id
                    && m.client_msg_id == promise.client_msg_id
                    && m.sender_id == promise.sender
            });
            if !kept {
                checks.lost += 1;
                checks
                    .example(|| format!("{conversation} seq {seq}: promised {promise:?}, found {:?}", by_seq.get(seq)));
            }
        }
    }

    /// Holds what a member's device was shown of the others' messages against the history.
    pub fn check_delivery(&self, user: &str, inbox: &Inbox, conversation: &str, history: &[Message]) {
        let mut state = self.0.lock();
        let checks = &mut state.checks;
        for message in history.iter().filter(|m| m.sender_id != user) {
            let shown = inbox.get(conversation, message.seq).is_some_and(|m| m.message_id == message.message_id);
            if !shown {
                checks.undelivered += 1;
                checks.example(|| format!("{conversation} seq {}: {user} was never shown it", message.seq));
            }
        }
        checks.doubled += inbox.contradictions.len() as u64;
        for text in &inbox.contradictions {
            checks.example(|| format!("{user}: {text}"));
        }
    }

    /// Holds what a user without conversations was shown against nothing.
    pub fn check_bystander(&self, user: &str, inbox: &Inbox) {
        let mut state = self.0.lock();
        for message in inbox.all() {
            state.checks.doubled += 1;
            let (conversation, seq) = (&message.conversation_id, message.seq);
            state.checks.example(|| format!("{user} was shown {conversation} {seq}, which is not theirs"));
        }
    }

    /// Takes what differs between the event log and the store.
    pub fn log_differences(&self, differences: &[String]) {
        let mut state = self.0.lock();
        state.checks.log_differences += differences.len() as u64;
        for text in differences {
            state.checks.example(|| format!("event log: {text}"));
        }
    }

    /// The result so far.
    pub fn report(&self) -> Report {
        let state = self.0.lock();
        // A conversation that refuses to the end counts up to now.
        let open = state.refusing.iter().map(|(id, (since, _))| (since.elapsed(), id)).max();
        let mut after = state.after.clone();
        for (since, cause) in state.refusing.values() {
            let after = after.entry(format!("after {cause}")).or_default();
            after.longest_refusal = after.longest_refusal.max(since.elapsed());
        }
        let (longest, of) = match open {
            Some((open, id)) if open > state.longest_refusal => (open, id.clone()),
            _ => (state.longest_refusal, state.longest_refusal_of.clone()),
        };
        let quantile = |q| Duration::from_micros(state.latency.value_at_quantile(q));
        let checks = state.checks.clone();
        Report {
            injected: state.injected.clone(),
            acknowledged: state.acknowledged,
            given_up: state.given_up.len() as u64,
            failed_tries: state.failed_tries.clone(),
            conversations_checked: checks.conversations,
            lost: checks.lost,
            doubled: checks.doubled,
            reordered: checks.reordered,
            gaps: checks.gaps,
            undelivered: checks.undelivered,
            log_differences: checks.log_differences,
            longest_refusal: longest,
            longest_refusal_of: of,
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            slowest: Duration::from_micros(state.latency.max()),
            after: after.into_iter().map(|(cause, after)| (cause, after.told())).collect(),
            course: state.told(),
            examples: checks.examples,
        }
    }
}

#[cfg(test)]
mod tests;
