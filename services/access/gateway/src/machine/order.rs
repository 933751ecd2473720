//! What one connection has been shown of each conversation, so that it sees every seq once, ascending and without a hole. Pure.
//!
//! A live message that follows what was shown is shown. One that leaves a gap waits, and a [`Need`] says what to read from storage to
//! close it; the answer comes back by [`Order::pulled`]. Of a conversation that was not met yet, nobody knows here what the device has,
//! so that is asked for first ([`Need::Base`]). Where the client says it is counts only as far as it is borne out: by storage
//! ([`Order::verified`]) or by a message that follows. Until then live messages wait, so that a claim above the end hides none. Memory is
//! bounded: what does not fit is forgotten and read from storage again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A gap of more messages than this is not closed by the gateway: the client is told `has_more` and pulls.
pub const MAX_GAP: u64 = 1_000;
/// Messages that wait for a gap to close, per conversation and per connection.
const MAX_WAITING: usize = 64;
const MAX_WAITING_IN_ALL: usize = 512;
/// Bytes of those of a connection. One message may be larger: then it alone waits.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// Conversations remembered by a connection before those at rest are forgotten.
const MAX_TRACKS: usize = 8_192;
/// Reads without progress before a gap counts as one that the user may not see.
const MAX_STALLS: u8 = 3;

/// A message ready to be shown: its place and its JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where.
    pub conversation_id: Arc<str>,
    /// At which place.
    pub seq: u64,
    /// The message object.
    pub json: Arc<str>,
}

/// What must be read from storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The device's delivered cursor of a conversation.
    Base(Arc<str>),
    /// The messages after a place.
    Pull {
        /// Of this conversation.
        conversation_id: Arc<str>,
        /// After this seq.
        after: u64,
    },
}

impl Need {
    /// The conversation that it is about.
    pub fn conversation_id(&self) -> &Arc<str> {
        match self {
            Self::Base(conversation_id) | Self::Pull { conversation_id, .. } => conversation_id,
        }
    }
}

/// What an input leads to, in order.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be shown.
    pub show: Vec<Item>,
    /// Conversations that have more than is shown: the client pulls.
    pub more: Vec<Arc<str>>,
    /// To be read now.
    pub needs: Vec<Need>,
    /// To be read after a pause: storage did not have it yet.
    pub later: Vec<Need>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not met yet: what the device has is not known.
    #[default]
    Unknown,
    /// The device's cursor is being read.
    Asking,
    /// `seen` is where the client says that it is.
    Claimed,
    /// `seen` is what was shown last.
    Steady,
    /// Messages after `seen` are being read.
    Pulling,
}

#[derive(Debug, Default)]
struct Track {
    state: State,
    seen: u64,
    /// The highest seq heard of.
    target: u64,
    waiting: BTreeMap<u64, Item>,
    /// Messages read since the gap was met.
    read: u64,
    stalls: u8,
}

/// All conversations of one connection.
#[derive(Debug, Default)]
pub struct Order {
    tracks: HashMap<Arc<str>, Track>,
    /// Live messages wait until the catch-up is done.
    held: bool,
    waiting: Waiting,
}

/// What waits on a connection, in all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Waiting {
    items: usize,
    bytes: usize,
}

impl Waiting {
    fn has_room(&self, item: &Item) -> bool {
        self.items == 0 || self.items < MAX_WAITING_IN_ALL && self.bytes + item.json.len() <= MAX_WAITING_BYTES
    }

    fn add(&mut self, item: &Item) {
        self.items += 1;
        self.bytes += item.json.len();
    }

    fn take(&mut self, item: &Item) {
        self.items -= 1;
        self.bytes -= item.json.len();
    }

    fn forget(&mut self, track: &Track) {
        for item in track.waiting.values() {
            self.take(item);
        }
    }
}

impl Order {
    /// A connection that starts with a catch-up, and with the cursors that its client gave.
    pub fn new(cursors: impl IntoIterator<Item = (Arc<str>, u64)>) -> Self {
        let claimed = |(id, seen)| (id, Track { state: State::Claimed, seen, ..Track::default() });
        Self { tracks: cursors.into_iter().map(claimed).collect(), held: true, waiting: Waiting::default() }
    }

    /// Adds a cursor that came later; what has been shown already stays. Says whether it is to be verified.
    pub fn claim(&mut self, conversation_id: Arc<str>, seen: u64) -> bool {
        self.bound_tracks();
        if self.tracks.len() >= MAX_TRACKS && !self.tracks.contains_key(&conversation_id) {
            return false;
        }
        let track = self.tracks.entry(conversation_id).or_default();
        let is_new = track.state == State::Unknown;
        if is_new {
            track.state = State::Claimed;
            track.seen = seen;
        }
        is_new
    }

    /// Where the client says that it is in a conversation, until that is borne out.
    pub fn claimed(&self, conversation_id: &str) -> Option<u64> {
        self.tracks.get(conversation_id).filter(|t| t.state == State::Claimed).map(|t| t.seen)
    }

    /// The conversation ends at `end`: the client's claim counts up to there, and up to what has come since.
    pub fn verified(&mut self, conversation_id: &Arc<str>, end: u64) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(track) = self.tracks.get_mut(conversation_id)
            && track.state == State::Claimed
        {
            track.seen = track.seen.min(end);
            bear_out(track);
            if !self.held {
                settle_known(conversation_id, track, &mut self.waiting, &mut outcome);
            }
        }
        outcome
    }

    /// A claim could not be looked at: the conversation is as one that was not met yet.
    pub fn unverified(&mut self, conversation_id: &Arc<str>) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(track) = self.tracks.get_mut(conversation_id)
            && track.state == State::Claimed
        {
            track.state = State::Unknown;
            track.seen = 0;
            if !self.held {
                settle(conversation_id, track, &mut self.waiting, &mut outcome);
            }
        }
        outcome
    }

    /// A claim is about a conversation that the user may not see: it is forgotten.
    pub fn denied(&mut self, conversation_id: &str) {
        if self.claimed(conversation_id).is_some()
            && let Some(track) = self.tracks.remove(conversation_id)
        {
            self.waiting.forget(&track);
        }
    }

    /// What was shown last of a conversation, when it is known.
    pub fn seen(&self, conversation_id: &str) -> Option<u64> {
        self.tracks.get(conversation_id).filter(|t| matches!(t.state, State::Steady | State::Pulling)).map(|t| t.seen)
    }

    /// What was shown last of all conversations of which it is known, or where the client says that it is.
    pub fn known(&self) -> Vec<(Arc<str>, u64)> {
        let is_known = |t: &Track| matches!(t.state, State::Steady | State::Pulling | State::Claimed);
        let known = self.tracks.iter().filter(|(_, t)| is_known(t));
        known.map(|(id, t)| (id.clone(), t.seen)).collect()
    }

    /// Whether live messages wait for a catch-up.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Something may have been lost: live messages wait again until [`Order::release`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// The catch-up is done: what waited is shown, or its gap closed first.
    pub fn release(&mut self) -> Outcome {
        self.held = false;
        let mut outcome = Outcome::default();
        for (id, track) in &mut self.tracks {
            settle(id, track, &mut self.waiting, &mut outcome);
        }
        outcome
    }

    /// A live message.
    pub fn live(&mut self, item: Item) -> Outcome {
        let mut outcome = Outcome::default();
        self.bound_tracks();
        let id = item.conversation_id.clone();
        let track = self.tracks.entry(id.clone()).or_default();
        follows(track, item.seq);
        let known = matches!(track.state, State::Steady | State::Pulling);
        if known && item.seq <= track.seen {
            return outcome;
        }
        if self.held || track.state != State::Steady || item.seq != track.seen + 1 {
            wait(track, item, &mut self.waiting);
            if !self.held {
                settle(&id, track, &mut self.waiting, &mut outcome);
            }
            return outcome;
        }
        track.seen = item.seq;
        track.target = track.target.max(item.seq);
        outcome.show.push(item);
        outcome
    }

    /// A message of the catch-up: it starts where the device's cursor stands, so the first one of a conversation says where that is.
    pub fn caught_up(&mut self, item: Item) -> Outcome {
        let mut outcome = Outcome::default();
        self.bound_tracks();
        let id = item.conversation_id.clone();
        let track = self.tracks.entry(id.clone()).or_default();
        follows(track, item.seq);
        match track.state {
            State::Unknown | State::Asking => {
                track.state = State::Steady;
                track.seen = item.seq.saturating_sub(1);
            }
            State::Claimed => {
                // Not believed: storage has it that the device lacks this one.
                wait(track, item, &mut self.waiting);
                return outcome;
            }
            State::Steady | State::Pulling => {}
        }
        if item.seq <= track.seen {
            return outcome;
        }
        if item.seq == track.seen + 1 {
            track.seen = item.seq;
            track.target = track.target.max(item.seq);
            outcome.show.push(item);
        } else {
            // The client's cursor is older than what storage took it for.
            wait(track, item, &mut self.waiting);
        }
        if !self.held {
            settle_known(&id, track, &mut self.waiting, &mut outcome);
        }
        outcome
    }

    /// The answer to [`Need::Base`].
    pub fn base(&mut self, conversation_id: &Arc<str>, delivered: u64) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(track) = self.tracks.get_mut(conversation_id)
            && track.state == State::Asking
        {
            track.state = State::Steady;
            track.seen = delivered;
            if !self.held {
                settle(conversation_id, track, &mut self.waiting, &mut outcome);
            }
        }
        outcome
    }

    /// The answer to [`Need::Pull`]: messages after the place, ascending. What the user may not see is not among them.
    pub fn pulled(&mut self, conversation_id: &Arc<str>, items: Vec<Item>, has_more: bool) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(track) = self.tracks.get_mut(conversation_id) else { return outcome };
        if track.state != State::Pulling {
            return outcome;
        }
        let before = track.seen;
        for item in items {
            if item.seq > track.seen {
                track.seen = item.seq;
                track.read += 1;
                outcome.show.push(item);
            }
        }
        track.target = track.target.max(track.seen);
        track.state = State::Steady;
        drop_seen(track, &mut self.waiting);
        if track.seen > before {
            track.stalls = 0;
        } else if !has_more && track.target > track.seen {
            track.stalls += 1;
            if track.stalls < MAX_STALLS {
                track.state = State::Pulling;
                outcome.later.push(Need::Pull { conversation_id: conversation_id.clone(), after: track.seen });
                return outcome;
            }
            // Storage has nothing there that this user may see: what waits is next.
            track.seen = first_waiting(track).min(track.target + 1) - 1;
        }
        if has_more && track.target <= track.seen {
            // There is more than was heard of; it is heard of when it is delivered, or the client pulls.
            outcome.more.push(conversation_id.clone());
        }
        settle_known(conversation_id, track, &mut self.waiting, &mut outcome);
        outcome
    }

    /// The answer to a need is that the user may no longer see the conversation: what waits for it is dropped. An answer that nobody
    /// waits for changes nothing.
    pub fn lost(&mut self, need: &Need) {
        let awaited = match need {
            Need::Base(_) => State::Asking,
            Need::Pull { .. } => State::Pulling,
        };
        let id = need.conversation_id();
        if self.tracks.get(id).is_some_and(|t| t.state == awaited)
            && let Some(track) = self.tracks.remove(id)
        {
            self.waiting.forget(&track);
        }
    }

    /// Forgets conversations at rest when there are too many; they are asked for again when they are met again.
    fn bound_tracks(&mut self) {
        if self.tracks.len() >= MAX_TRACKS {
            self.tracks.retain(|_, t| t.state != State::Steady || !t.waiting.is_empty() || t.target > t.seen);
        }
    }
}

/// A claim that a message comes behind is one that may be true.
fn follows(track: &mut Track, seq: u64) {
    if track.state == State::Claimed && seq > track.seen {
        bear_out(track);
    }
}

/// Takes the client's word, but for what has come meanwhile: that is shown whatever the client says.
fn bear_out(track: &mut Track) {
    track.state = State::Steady;
    track.seen = track.seen.min(first_waiting(track).saturating_sub(1));
}

/// Keeps a message that cannot be shown yet, or only its seq when there is no room.
fn wait(track: &mut Track, item: Item, in_all: &mut Waiting) {
    track.target = track.target.max(item.seq);
    if track.waiting.len() < MAX_WAITING && in_all.has_room(&item) {
        in_all.add(&item);
        if let Some(before) = track.waiting.insert(item.seq, item) {
            in_all.take(&before);
        }
    }
}

fn first_waiting(track: &Track) -> u64 {
    track.waiting.first_key_value().map_or(u64::MAX, |(seq, _)| *seq)
}

fn drop_seen(track: &mut Track, in_all: &mut Waiting) {
    while let Some(entry) = track.waiting.first_entry()
        && *entry.key() <= track.seen
    {
        in_all.take(&entry.remove());
    }
}

/// Shows what waits and fits, then asks for what is missing.
fn settle(id: &Arc<str>, track: &mut Track, in_all: &mut Waiting, outcome: &mut Outcome) {
    match track.state {
        State::Asking | State::Pulling | State::Claimed => {}
        State::Steady => settle_known(id, track, in_all, outcome),
        State::Unknown if track.target == 0 => {}
        // The first message of all: nothing can be missing before it.
        State::Unknown if first_waiting(track) == 1 => {
            track.state = State::Steady;
            settle_known(id, track, in_all, outcome);
        }
        State::Unknown => {
            track.state = State::Asking;
            outcome.needs.push(Need::Base(id.clone()));
        }
    }
}

fn settle_known(id: &Arc<str>, track: &mut Track, in_all: &mut Waiting, outcome: &mut Outcome) {
    if track.state != State::Steady {
        return;
    }
    drop_seen(track, in_all);
    loop {
        while let Some(entry) = track.waiting.first_entry()
            && *entry.key() == track.seen + 1
        {
            track.seen += 1;
            let item = entry.remove();
            in_all.take(&item);
            outcome.show.push(item);
        }
        if track.target <= track.seen {
            track.read = 0;
            track.stalls = 0;
            return;
        }
        let missing = track.target - track.seen;
        if missing <= MAX_GAP && track.read <= 2 * MAX_GAP {
            track.state = State::Pulling;
            outcome.needs.push(Need::Pull { conversation_id: id.clone(), after: track.seen });
            return;
        }
        // Too much for the gateway: the client is told, and goes on from what is new.
        outcome.more.push(id.clone());
        track.read = 0;
        track.seen = first_waiting(track).min(track.target + 1) - 1;
    }
}

#[cfg(test)]
mod tests;
