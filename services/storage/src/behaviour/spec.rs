//! What the public operations mean, in the plainest form: one list of messages a conversation, no partitions, no cursors on disk.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::Model;

/// Users 0 to 3; user 0 makes the group.
pub(super) const USERS: u8 = 4;
/// Talks: 0 and 1 are user 0's with users 1 and 2, 2 is the group.
pub(super) const PAIRS: [(u8, u8); 2] = [(0, 1), (0, 2)];
pub(super) const GROUP: u8 = 2;

/// Which part of a history.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Newest,
    Before(u8),
    After(u8),
}

/// One call.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Open {
        talk: u8,
    },
    Append {
        talk: u8,
        by: u8,
        id: u8,
        text: u8,
    },
    /// An append that opens its conversation, in one.
    First {
        talk: u8,
        by: u8,
        id: u8,
        text: u8,
    },
    History {
        talk: u8,
        by: Option<u8>,
        part: Part,
        limit: u8,
    },
    Recall {
        talk: u8,
        seq: u8,
        by: u8,
    },
    Edit {
        talk: u8,
        seq: u8,
        by: u8,
        text: u8,
    },
    React {
        talk: u8,
        seq: u8,
        by: u8,
        emoji: u8,
        add: bool,
    },
    Read {
        talk: u8,
        by: u8,
        seq: u8,
    },
    Ack {
        talk: u8,
        by: u8,
        seq: u8,
    },
    Join {
        user: u8,
    },
    Leave {
        user: u8,
    },
    Clear {
        talk: u8,
        by: u8,
    },
    Block {
        talk: u8,
        turned: bool,
        blocked: bool,
    },
    Head {
        talk: u8,
        by: u8,
    },
    List {
        by: u8,
    },
}

/// What a caller saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// Done or not.
    Unknown,
    /// Code and reason.
    Refused(String),
    Done,
    Changed(bool),
    Stored {
        seq: u64,
        duplicate: bool,
    },
    At(u64),
    Page {
        seq: u64,
        has_more: bool,
        rows: Vec<Row>,
    },
    Head(Option<HeadView>),
    List(Vec<(u8, u64, u64)>),
}

/// A message as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) by: u8,
    pub(super) id: u8,
    /// None: recalled.
    pub(super) text: Option<u8>,
    pub(super) edited: bool,
    pub(super) reactions: BTreeMap<u8, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeadView {
    pub(super) seq: u64,
    pub(super) read: u64,
    pub(super) unread: u64,
    pub(super) members: u64,
    pub(super) last: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    by: u8,
    id: u8,
    text: u8,
    edited: Option<u8>,
    recalled: bool,
    reactions: BTreeMap<u8, Vec<u8>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    /// What lies before its joining.
    hidden: u64,
    cleared: u64,
    admin: bool,
    blocked: bool,
    read: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Talk {
    open: bool,
    members: BTreeMap<u8, Member>,
    messages: Vec<Message>,
    delivered: BTreeMap<u8, u64>,
}

/// The state of the model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spec {
    talks: [Talk; 3],
    blocks: BTreeSet<(u8, u8)>,
}

fn refused(what: &str) -> Seen {
    Seen::Refused(what.to_owned())
}

impl Model for Spec {
    type Act = Act;
    type Seen = Seen;
    const UNKNOWN: Seen = Seen::Unknown;

    fn apply(&mut self, act: &Act) -> Seen {
        self.carry_out(act)
    }
}

impl Spec {
    /// The group of user 0 stands, with user 1 in it.
    pub(super) fn new() -> Self {
        let mut group = Talk { open: true, ..Talk::default() };
        group.members.insert(0, Member { admin: true, ..Member::default() });
        group.members.insert(1, Member::default());
        Self { talks: [Talk::default(), Talk::default(), group], blocks: BTreeSet::new() }
    }

    /// Carries a call out.
    fn carry_out(&mut self, act: &Act) -> Seen {
        match *act {
            Act::Open { talk } => self.open(talk),
            Act::Append { talk, by, id, text } => self.talks[usize::from(talk)].append(by, id, text),
            Act::First { talk, by, id, text } => self.first(talk, by, id, text),
            Act::History { talk, by, part, limit } => self.talks[usize::from(talk)].history(by, part, limit),
            Act::Recall { talk, seq, by } => self.talks[usize::from(talk)].recall(seq, by),
            Act::Edit { talk, seq, by, text } => self.talks[usize::from(talk)].edit(seq, by, text),
            Act::React { talk, seq, by, emoji, add } => self.talks[usize::from(talk)].react(seq, by, emoji, add),
            Act::Read { talk, by, seq } => self.talks[usize::from(talk)].read(by, seq),
            Act::Ack { talk, by, seq } => self.talks[usize::from(talk)].ack(by, seq),
            Act::Join { user } => self.join(user),
            Act::Leave { user } => self.talks[usize::from(GROUP)].leave(user),
            Act::Clear { talk, by } => self.talks[usize::from(talk)].clear(by),
            Act::Block { talk, turned, blocked } => self.block(talk, turned, blocked),
            Act::Head { talk, by } => Seen::Head(self.talks[usize::from(talk)].head(by)),
            Act::List { by } => self.list(by),
        }
    }

    fn open(&mut self, talk: u8) -> Seen {
        let (pair, talk) = (PAIRS[usize::from(talk)], &mut self.talks[usize::from(talk)]);
        for user in [pair.0, pair.1] {
            talk.members.entry(user).or_default();
        }
        Seen::Changed(!std::mem::replace(&mut talk.open, true))
    }

    /// Refused, it opens nothing.
    fn first(&mut self, talk: u8, by: u8, id: u8, text: u8) -> Seen {
        let found = &self.talks[usize::from(talk)];
        if !found.open && found.members.get(&by).is_some_and(|m| m.blocked) {
            return refused("PERMISSION_DENIED BLOCKED");
        }
        if !found.open {
            self.open(talk);
        }
        self.talks[usize::from(talk)].append(by, id, text)
    }

    fn join(&mut self, user: u8) -> Seen {
        let group = &mut self.talks[usize::from(GROUP)];
        let fresh = !group.members.contains_key(&user);
        let hidden = group.messages.len() as u64;
        group.members.entry(user).or_insert_with(|| Member { hidden, ..Member::default() });
        Seen::Changed(fresh)
    }

    fn block(&mut self, talk: u8, turned: bool, blocked: bool) -> Seen {
        let (a, b) = PAIRS[usize::from(talk)];
        let (by, target) = if turned { (b, a) } else { (a, b) };
        let members = &mut self.talks[usize::from(talk)].members;
        if blocked {
            members.entry(target).or_default().blocked = true;
        } else if let Some(member) = members.get_mut(&target) {
            member.blocked = false;
        }
        Seen::Changed(if blocked { self.blocks.insert((by, target)) } else { self.blocks.remove(&(by, target)) })
    }

    fn list(&self, by: u8) -> Seen {
        let heads = (0..3).filter_map(|at| {
            let talk = &self.talks[usize::from(at)];
            let (head, cleared) = (talk.head(by)?, talk.members.get(&by)?.cleared);
            (cleared == 0 || cleared < head.seq).then_some((at, head.seq, head.unread))
        });
        Seen::List(heads.collect())
    }
}

impl Member {
    fn behind(&self) -> u64 {
        self.hidden.max(self.cleared)
    }
}

impl Talk {
    fn seq(&self) -> u64 {
        self.messages.len() as u64
    }

    fn append(&mut self, by: u8, id: u8, text: u8) -> Seen {
        if !self.open {
            return refused("NOT_FOUND");
        }
        if let Some(at) = self.messages.iter().position(|m| m.by == by && m.id == id) {
            let same = self.messages[at].text == text;
            return if same { Seen::Stored { seq: at as u64 + 1, duplicate: true } } else { refused("ALREADY_EXISTS") };
        }
        let seq = self.seq() + 1;
        match self.members.get_mut(&by) {
            None => return refused("NOT_FOUND"),
            Some(member) if member.blocked => return refused("PERMISSION_DENIED BLOCKED"),
            Some(member) => member.read = seq,
        }
        self.messages.push(Message { by, id, text, edited: None, recalled: false, reactions: BTreeMap::new() });
        Seen::Stored { seq, duplicate: false }
    }

    /// The owner stays; who comes back begins anew.
    fn leave(&mut self, user: u8) -> Seen {
        if user == 0 {
            return refused("FAILED_PRECONDITION");
        }
        self.delivered.remove(&user);
        Seen::Changed(self.members.remove(&user).is_some())
    }

    /// The member, if the talk is one that it may look at.
    fn viewer(&self, by: u8) -> Option<&Member> {
        self.members.get(&by).filter(|_| self.open)
    }

    fn history(&self, by: Option<u8>, part: Part, limit: u8) -> Seen {
        let hidden = match by {
            None if self.open => 0,
            None => return refused("NOT_FOUND"),
            Some(by) => match self.viewer(by) {
                None => return refused("NOT_FOUND"),
                Some(member) => member.behind(),
            },
        };
        let limit = usize::from(limit);
        // The newest before a seq are counted first, then those are left out that this user may not see.
        let newest = |before: u64| {
            let first = before.saturating_sub(limit as u64).max(1);
            (first..before).filter(|s| *s > hidden).collect::<Vec<u64>>()
        };
        let (seqs, has_more) = match part {
            Part::Newest => (newest(self.seq() + 1), None),
            Part::Before(seq) => (newest(u64::from(seq).min(self.seq() + 1)), None),
            Part::After(after) => {
                let seqs: Vec<u64> = (u64::from(after).max(hidden) + 1..=self.seq()).take(limit).collect();
                let more = seqs.last().is_some_and(|last| *last < self.seq());
                (seqs, Some(more))
            }
        };
        let has_more = has_more.unwrap_or_else(|| seqs.first().is_some_and(|first| *first > hidden + 1));
        Seen::Page { seq: self.seq(), has_more, rows: seqs.into_iter().map(|s| self.row(s)).collect() }
    }

    fn row(&self, seq: u64) -> Row {
        let message = &self.messages[seq as usize - 1];
        Row {
            seq,
            by: message.by,
            id: message.id,
            text: (!message.recalled).then(|| message.edited.unwrap_or(message.text)),
            edited: message.edited.is_some(),
            reactions: message.reactions.clone(),
        }
    }

    /// A message that `by` may see.
    fn visible(&mut self, seq: u8, by: u8) -> Option<&mut Message> {
        let hidden = self.viewer(by)?.behind();
        let at = u64::from(seq).checked_sub(1).filter(|at| *at >= hidden)?;
        self.messages.get_mut(at as usize)
    }

    fn recall(&mut self, seq: u8, by: u8) -> Seen {
        let admin = self.viewer(by).is_some_and(|m| m.admin);
        let Some(message) = self.visible(seq, by) else { return refused("NOT_FOUND") };
        if message.by != by && !admin {
            return refused("PERMISSION_DENIED NOT_ALLOWED");
        }
        let changed = !message.recalled;
        if changed {
            *message = Message { recalled: true, edited: None, reactions: BTreeMap::new(), ..message.clone() };
        }
        Seen::Changed(changed)
    }

    fn edit(&mut self, seq: u8, by: u8, text: u8) -> Seen {
        let blocked = self.viewer(by).is_some_and(|m| m.blocked);
        let Some(message) = self.visible(seq, by) else { return refused("NOT_FOUND") };
        if message.by != by {
            return refused("PERMISSION_DENIED NOT_ALLOWED");
        }
        if message.recalled {
            return refused("NOT_FOUND");
        }
        if blocked {
            return refused("PERMISSION_DENIED BLOCKED");
        }
        message.edited = Some(text);
        Seen::Done
    }

    fn react(&mut self, seq: u8, by: u8, emoji: u8, add: bool) -> Seen {
        let blocked = self.viewer(by).is_some_and(|m| m.blocked);
        let Some(message) = self.visible(seq, by) else { return refused("NOT_FOUND") };
        if message.recalled {
            return refused("NOT_FOUND");
        }
        let users = message.reactions.entry(emoji).or_default();
        let before = users.len();
        if !add {
            users.retain(|u| *u != by);
        } else if !users.contains(&by) && !blocked {
            users.push(by);
        } else if !users.contains(&by) {
            message.reactions.retain(|_, users| !users.is_empty());
            return refused("PERMISSION_DENIED BLOCKED");
        }
        let changed = users.len() != before;
        message.reactions.retain(|_, users| !users.is_empty());
        Seen::Changed(changed)
    }

    fn read(&mut self, by: u8, seq: u8) -> Seen {
        let last = self.seq();
        match self.members.get_mut(&by).filter(|_| self.open) {
            None => refused("NOT_FOUND"),
            Some(member) => {
                member.read = member.read.max(u64::from(seq).min(last));
                Seen::At(member.read)
            }
        }
    }

    fn ack(&mut self, by: u8, seq: u8) -> Seen {
        if self.viewer(by).is_none() {
            return refused("NOT_FOUND");
        }
        let (last, delivered) = (self.seq(), self.delivered.entry(by).or_default());
        *delivered = (*delivered).max(u64::from(seq).min(last));
        Seen::At(*delivered)
    }

    fn clear(&mut self, by: u8) -> Seen {
        let last = self.seq();
        match self.members.get_mut(&by).filter(|_| self.open) {
            None => refused("NOT_FOUND"),
            Some(member) => {
                member.cleared = last;
                Seen::At(last)
            }
        }
    }

    fn head(&self, by: u8) -> Option<HeadView> {
        let member = self.viewer(by)?;
        let seq = self.seq();
        Some(HeadView {
            seq,
            read: member.read,
            unread: seq.saturating_sub(member.behind().max(member.read)),
            members: self.members.len() as u64,
            last: (seq > member.behind()).then_some(seq),
        })
    }
}

fn talk() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0_u8), 1 => Just(1_u8), 3 => Just(GROUP)]
}

/// Calls that may run at the same time as others.
pub(super) fn together() -> impl Strategy<Value = Act> {
    let part = prop_oneof![Just(Part::Newest), (1..12_u8).prop_map(Part::Before), (1..12_u8).prop_map(Part::After)];
    let (user, seq) = (0..USERS, 1..10_u8);
    prop_oneof![
        8 => (talk(), user.clone(), 0..3_u8, 0..2_u8).prop_map(|(talk, by, id, text)| Act::Append { talk, by, id, text }),
        4 => (0..2_u8, any::<bool>(), 0..3_u8, 0..2_u8).prop_map(|(talk, turned, id, text)| {
            let (a, b) = PAIRS[usize::from(talk)];
            Act::First { talk, by: if turned { b } else { a }, id, text }
        }),
        2 => (0..2_u8).prop_map(|talk| Act::Open { talk }),
        2 => (talk(), part, 1..5_u8).prop_map(|(talk, part, limit)| Act::History { talk, by: None, part, limit }),
        2 => (talk(), seq.clone(), user.clone()).prop_map(|(talk, seq, by)| Act::Recall { talk, seq, by }),
        2 => (talk(), seq.clone(), user.clone(), 0..2_u8).prop_map(|(talk, seq, by, text)| Act::Edit { talk, seq, by, text }),
        2 => (talk(), seq.clone(), user.clone(), 0..2_u8, any::<bool>()).prop_map(|(talk, seq, by, emoji, add)| Act::React { talk, seq, by, emoji, add }),
        2 => (talk(), user.clone(), seq.clone()).prop_map(|(talk, by, seq)| Act::Read { talk, by, seq }),
        2 => (talk(), user.clone(), seq).prop_map(|(talk, by, seq)| Act::Ack { talk, by, seq }),
        2 => user.clone().prop_map(|user| Act::Join { user }),
        1 => user.prop_map(|user| Act::Leave { user }),
    ]
}

/// Calls that are made of several steps: nothing else runs meanwhile.
pub(super) fn alone() -> impl Strategy<Value = Act> {
    let part = prop_oneof![Just(Part::Newest), (1..12_u8).prop_map(Part::Before), (1..12_u8).prop_map(Part::After)];
    let user = 0..USERS;
    prop_oneof![
        1 => (talk(), user.clone()).prop_map(|(talk, by)| Act::Clear { talk, by }),
        1 => (0..2_u8, any::<bool>(), any::<bool>()).prop_map(|(talk, turned, blocked)| Act::Block { talk, turned, blocked }),
        3 => (talk(), user.clone(), part, 1..5_u8).prop_map(|(talk, by, part, limit)| Act::History { talk, by: Some(by), part, limit }),
        2 => (talk(), user.clone()).prop_map(|(talk, by)| Act::Head { talk, by }),
        2 => user.prop_map(|by| Act::List { by }),
    ]
}
