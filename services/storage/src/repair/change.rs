//! What an event of the log changed, as writes that bring it back: pure, for every event that storage emits.
//!
//! Reading is total. An event that says too little (an older version wrote it, or it is damaged) or does not fit what is stored is refused
//! with a reason, and nothing is guessed. Applying an event again changes nothing.

use std::borrow::Cow;

use bytes::Bytes;
use kith_contract::{
    events::{
        ConversationCreated, GroupUpdated, Kind, MemberAdded, MemberBlocked, MemberRemoved, MemberUpdated,
        MessageEdited, MessageReaction, MessageRecalled, Topic,
    },
    found::Found,
    ids,
    json::U64,
    message::MessageCreated,
};
use kith_proto::{chat::v1::ConversationKind, storage::v1::Role};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{data, of_user};
use crate::{
    core::{
        conversations::conversation_ops,
        messages::set_reaction,
        model::{MemberData, Overlay, cursor as names, key, number},
        roster::{forgotten, noted},
    },
    engine::{CursorKind, Field, Op, Write},
};

/// Why an event was not restored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Unrestorable {
    /// Its data are not what its type promises, or say too little.
    #[error("{0}")]
    Data(String),
    /// A type that this version does not know.
    #[error("no event type of this version: {0:?}")]
    Kind(String),
    /// The record is about another entity than its key says.
    #[error("the record's key is {key:?}, its data are about {about:?}")]
    Key {
        /// The record's key.
        key: String,
        /// Conversation or user of the data.
        about: String,
    },
    /// It changes what is not stored.
    #[error("{0} is not stored")]
    Missing(String),
    /// It does not fit what is stored.
    #[error("{0}")]
    Unfit(String),
}

impl From<serde_json::Error> for Unrestorable {
    fn from(error: serde_json::Error) -> Self {
        Self::Data(format!("data: {error}"))
    }
}

impl From<ids::IdError> for Unrestorable {
    fn from(error: ids::IdError) -> Self {
        Self::Data(format!("data: {error}"))
    }
}

/// Seqs of a conversation of which no event is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeqGap {
    pub(crate) conversation_id: String,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// What restores one event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) writes: Vec<Write>,
    pub(crate) gap: Option<SeqGap>,
}

type Decide = Box<dyn Fn(&[Option<Bytes>]) -> Result<Restored, Unrestorable> + Send + Sync>;

/// An event that was read: the stored fields that decide what it changes, and the decision.
pub(crate) struct Change {
    pub(crate) reads: Vec<Field>,
    decide: Decide,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl Change {
    /// The same writes whatever is stored.
    pub(super) fn plain(writes: Vec<Write>) -> Self {
        Self { reads: Vec::new(), decide: Box::new(move |_| Ok(Restored { writes: writes.clone(), gap: None })) }
    }

    fn with(
        reads: Vec<Field>,
        decide: impl Fn(&[Option<Bytes>]) -> Result<Vec<Write>, Unrestorable> + Send + Sync + 'static,
    ) -> Self {
        Self { reads, decide: Box::new(move |values| Ok(Restored { writes: decide(values)?, gap: None })) }
    }

    /// The writes, given the values of [`Change::reads`] in their order.
    pub(crate) fn decide(&self, values: &[Option<Bytes>]) -> Result<Restored, Unrestorable> {
        (self.decide)(values)
    }
}

pub(super) fn set(key: String, name: impl Into<String>, value: impl Into<Bytes>) -> Write {
    Write::Op(Op::Set(Field::new(key, name), value.into()))
}

pub(super) fn delete(key: String, name: impl Into<String>) -> Write {
    Write::Op(Op::Delete(Field::new(key, name)))
}

/// An event whose content, where it has one, is as it came.
pub(super) type Event<'a> = kith_contract::events::Event<'a, Option<&'a RawValue>>;

/// Reads an event: the name of its kind, the record's key, and its data.
pub(crate) fn read(kind: &str, key: &str, data: &[u8]) -> Result<Change, Unrestorable> {
    let known = Kind::of_name(kind).filter(|kind| kind.topic() == Topic::Events);
    let event = Event::read(known.ok_or_else(|| Unrestorable::Kind(kind.to_owned()))?, data)?;
    same(key, event.key())?;
    match event {
        Event::MessageCreated(d) => message(d),
        Event::MessageRecalled(d) => recalled(&d),
        Event::MessageEdited(d) => edited(&d),
        Event::MessageReaction(d) => reaction(d),
        Event::ReceiptRead(d) => {
            cursor(&d.conversation_id, CursorKind::Read.field(&d.user_id), &d.user_id, found(d.read_seq)?)
        }
        Event::ReceiptDelivered(d) => {
            ids::check_id("device_id", &d.device_id)?;
            delivered(&d.conversation_id, &d.user_id, &d.device_id, found(d.seq)?)
        }
        Event::ConversationCleared(d) => {
            cursor(&d.conversation_id, CursorKind::Cleared.field(&d.user_id), &d.user_id, found(d.cleared_seq)?)
        }
        Event::ConversationCreated(d) => created(d),
        Event::GroupUpdated(d) => updated(d),
        Event::GroupDissolved(d) => Ok(Change::plain(vec![set(key::conversation(&d.conversation_id), "di", "1")])),
        Event::MemberAdded(d) => added(&d),
        Event::MemberRemoved(d) => removed(&d),
        Event::MemberUpdated(d) => member_updated(&d),
        Event::MemberBlocked(d) => member_blocked(&d),
        of_user => of_user::read(key, of_user),
    }
}

fn found(seq: Found<U64>) -> Result<u64, Unrestorable> {
    seq.told().map(|seq| seq.0).ok_or_else(|| Unrestorable::Data("data: a seq that was not put in".into()))
}

fn same(key: &str, about: &str) -> Result<(), Unrestorable> {
    if key == about && !key.is_empty() {
        Ok(())
    } else {
        Err(Unrestorable::Key { key: key.to_owned(), about: about.to_owned() })
    }
}

/// A stored number; a value that is none is not overwritten by a guess.
fn stored(field: &Field, value: Option<&Bytes>) -> Result<Option<u64>, Unrestorable> {
    value
        .map(|v| number(v).ok_or_else(|| Unrestorable::Unfit(format!("{} {} is no number", field.key, field.name))))
        .transpose()
}

fn message(d: MessageCreated<'_, Option<&RawValue>>) -> Result<Change, Unrestorable> {
    let (id, seq, sent_at) = (d.conversation_id.clone().into_owned(), data::seq(d.seq)?, d.sent_at);
    let (sender_id, client_msg_id, privileged) =
        (d.sender_id.clone().into_owned(), d.client_msg_id.clone().into_owned(), d.privileged);
    let row = data::row(d)?;
    let c = key::conversation(&id);
    let reads =
        vec![Field::new(c.clone(), "k"), Field::new(c.clone(), "s"), Field::new(key::members(&id), sender_id.clone())];
    let last = reads[1].clone();
    let decide = move |values: &[Option<Bytes>]| {
        if values[0].is_none() {
            return Err(Unrestorable::Missing(format!("conversation {id} of seq {seq}")));
        }
        let before = stored(&last, values[1].as_ref())?.unwrap_or(0);
        let mut writes = vec![Write::Row { conversation_id: id.clone(), seq, row: row.clone() }];
        if seq > before {
            writes.extend([set(c.clone(), "s", seq.to_string()), set(c.clone(), "a", sent_at.to_string())]);
            // Who sends has read.
            if !privileged || values[2].is_some() {
                let cursor = |kind| set(key::cursors(&id), format!("{kind}{sender_id}"), seq.to_string());
                writes.extend(["s", "r"].map(cursor));
            }
        }
        writes.push(Write::Sent {
            conversation_id: id.clone(),
            sender_id: sender_id.clone(),
            client_msg_id: client_msg_id.clone(),
            sent_at,
            seq,
        });
        let gap = (seq > before + 1).then(|| SeqGap { conversation_id: id.clone(), first: before + 1, last: seq - 1 });
        Ok(Restored { writes, gap })
    };
    Ok(Change { reads, decide: Box::new(decide) })
}

fn overlay(
    id: &str,
    seq: u64,
    change: impl Fn(&mut Overlay) -> Result<bool, Unrestorable> + Send + Sync + 'static,
) -> Change {
    let field = Field::new(key::overlays(id), seq.to_string());
    let decide = move |values: &[Option<Bytes>]| {
        let bad = || Unrestorable::Unfit(format!("{} {} cannot be read", field.key, field.name));
        let mut overlay = Overlay::read(values[0].as_ref()).ok_or_else(bad)?;
        if !change(&mut overlay)? {
            return Ok(Vec::new());
        }
        Ok(vec![Write::Op(Op::Set(field.clone(), serde_json::to_vec(&overlay)?.into()))])
    };
    Change::with(vec![Field::new(key::overlays(id), seq.to_string())], decide)
}

fn recalled(d: &MessageRecalled<'_>) -> Result<Change, Unrestorable> {
    let recalled_at = d.recalled_at;
    Ok(overlay(&d.conversation_id, data::seq(d.seq)?, move |overlay| {
        *overlay = Overlay { recalled_at, ..Overlay::default() };
        Ok(true)
    }))
}

fn edited(d: &MessageEdited<'_, Option<&RawValue>>) -> Result<Change, Unrestorable> {
    let content = data::content(d.content, d.content_bytes.as_deref())?;
    let text = String::from_utf8(content.to_vec()).map_err(|_| Unrestorable::Data("data.content: no text".into()))?;
    let edited_at = d.edited_at;
    Ok(overlay(&d.conversation_id, data::seq(d.seq)?, move |overlay| {
        // A recall is for good.
        if overlay.recalled_at == 0 {
            overlay.edited_at = edited_at;
            overlay.content = Some(text.clone());
        }
        Ok(overlay.recalled_at == 0)
    }))
}

fn reaction(d: MessageReaction<'_>) -> Result<Change, Unrestorable> {
    ids::check_id("user_id", &d.user_id)?;
    let (emoji, user_id, added) = (d.emoji.into_owned(), d.user_id.into_owned(), d.added);
    Ok(overlay(&d.conversation_id, data::seq(d.seq)?, move |overlay| {
        if overlay.recalled_at != 0 {
            return Ok(false);
        }
        set_reaction(overlay, &emoji, &user_id, added).map_err(|e| Unrestorable::Unfit(e.detail.into_owned()))
    }))
}

/// A cursor never moves back.
fn cursor(id: &str, name: String, user_id: &str, seq: u64) -> Result<Change, Unrestorable> {
    ids::check_id("user_id", user_id)?;
    let field = Field::new(key::cursors(id), name);
    Ok(Change::with(vec![field.clone()], move |values| {
        let before = stored(&field, values[0].as_ref())?.unwrap_or(0);
        Ok(if seq > before { vec![set(field.key.clone(), field.name.clone(), seq.to_string())] } else { Vec::new() })
    }))
}

/// The same for a device's cursor, with the note of the devices that have one.
fn delivered(id: &str, user_id: &str, device_id: &str, seq: u64) -> Result<Change, Unrestorable> {
    let cursor = cursor(id, names::delivered(user_id, device_id), user_id, seq)?;
    let devices = Field::new(key::cursors(id), names::devices(user_id));
    let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
    let reads = vec![cursor.reads[0].clone(), devices.clone()];
    Ok(Change::with(reads, move |values| {
        let mut writes = cursor.decide(&values[..1])?.writes;
        if let Some((noted, forgotten)) =
            names::note_device(values[1].as_ref(), &device_id).filter(|_| !writes.is_empty())
        {
            writes.push(set(devices.key.clone(), devices.name.clone(), noted));
            writes.extend(forgotten.map(|device| delete(devices.key.clone(), names::delivered(&user_id, &device))));
        }
        Ok(writes)
    }))
}

fn created(d: ConversationCreated<'_>) -> Result<Change, Unrestorable> {
    ids::check_conversation_id("conversation_id", &d.conversation_id)?;
    for user in d.member_ids.iter() {
        member("member_ids", &d.conversation_id, user)?;
    }
    let kind = ConversationKind::from(d.kind);
    let role = if kind == ConversationKind::Direct { Role::Member } else { Role::Owner };
    let id = d.conversation_id.clone().into_owned();
    let group = data::created_group(&key::conversation(&id), &d);
    let (created_at, members) = (d.created_at, d.member_ids.into_owned());
    let owner_id = d.owner_id.unwrap_or_default().into_owned();
    let idempotency_key = d.idempotency_key.unwrap_or_default().into_owned();
    let mut reads = vec![Field::new(key::conversation(&id), "k")];
    reads.extend(members.iter().map(|user| Field::new(key::members(&id), user.clone())));
    let decide = move |values: &[Option<Bytes>]| {
        if values[0].is_some() {
            return Ok(Vec::new());
        }
        let c = key::conversation(&id);
        let fields = conversation_ops(&c, kind as i32, members.len(), created_at);
        let mut writes: Vec<Write> = fields.into_iter().map(Write::Op).collect();
        if kind != ConversationKind::Direct {
            writes.push(set(c.clone(), "ow", owner_id.clone()));
            writes.extend(group.clone());
            if !idempotency_key.is_empty() {
                writes.push(set(c, "ik", idempotency_key.clone()));
            }
        }
        for (order, user) in (1..).zip(&members) {
            // A row may stand before its conversation.
            if values.get(order as usize).is_none_or(Option::is_none) {
                writes.push(set(key::members(&id), user.clone(), MemberData::new(role, 1, created_at).pack()));
            }
            writes.push(Write::Op(Op::Score { key: key::joins(&id), score: order, member: user.clone() }));
        }
        writes.extend(changes(&id, members.iter().map(String::as_str), 1));
        Ok(writes)
    };
    Ok(Change::with(reads, decide))
}

fn updated(d: GroupUpdated<'_>) -> Result<Change, Unrestorable> {
    let id = d.conversation_id.clone().into_owned();
    let mut roles: Vec<(Field, Role)> = Vec::new();
    for (user, role) in [(&d.previous_owner_id, Role::Admin), (&d.owner_id, Role::Owner)] {
        if let Some(user) = user.as_ref().filter(|user| !user.is_empty()) {
            ids::check_id("owner_id", user)?;
            roles.push((Field::new(key::members(&id), user.as_ref()), role));
        }
    }
    let reads = roles.iter().map(|(field, _)| field.clone()).collect();
    let group = data::updated_group(&key::conversation(&id), &d);
    let (version, owner_id) = (d.version, d.owner_id.map(Cow::into_owned));
    let decide = move |values: &[Option<Bytes>]| {
        let c = key::conversation(&id);
        let mut writes = vec![set(c.clone(), "v", version.to_string())];
        writes.extend(group.clone());
        for ((field, role), value) in roles.iter().zip(values) {
            let Some(row) = value else { continue };
            let mut member = member_of(field, row)?;
            member.role = *role as u8;
            writes.push(Write::Op(Op::Set(field.clone(), member.pack())));
        }
        if let Some(owner) = &owner_id {
            writes.push(set(c, "ow", owner.clone()));
        }
        Ok(writes)
    };
    Ok(Change::with(reads, decide))
}

/// Checks that the user can be in the conversation: a direct one is of the two users that its id names.
fn member(field: &'static str, conversation_id: &str, user_id: &str) -> Result<(), Unrestorable> {
    ids::check_id(field, user_id)?;
    if ids::check_conversation_id("conversation_id", conversation_id)?.admits(user_id) {
        Ok(())
    } else {
        Err(Unrestorable::Data(format!("data.{field}: not a user of the direct conversation")))
    }
}

fn member_of(field: &Field, row: &Bytes) -> Result<MemberData, Unrestorable> {
    MemberData::unpack(row).ok_or_else(|| Unrestorable::Unfit(format!("{} {} is no member row", field.key, field.name)))
}

fn counts(id: &str, count: u64, version: u64) -> Result<[Write; 2], Unrestorable> {
    let c = key::conversation(id);
    let (count, version) = (data::counts("member_count", count)?, data::counts("member_version", version)?);
    Ok([set(c.clone(), "n", count.to_string()), set(c, "mv", version.to_string())])
}

/// The change stands in the set of the newest ones. Each brings the members one version further.
fn changes<'a>(id: &str, users: impl IntoIterator<Item = &'a str>, version: u64) -> impl Iterator<Item = Write> {
    noted(id, users, version.saturating_sub(1), version).into_iter().map(Write::Op)
}

fn added(d: &MemberAdded<'_>) -> Result<Change, Unrestorable> {
    if d.join_order < 1 {
        return Err(Unrestorable::Data(format!("data.join_order: {}", d.join_order)));
    }
    let last = d.join_order.unsigned_abs().saturating_add(d.user_ids.len() as u64).saturating_sub(1);
    let last = data::counts("join_order", last)?;
    let joined_seq = data::counts("joined_seq", found(d.joined_seq)?)?;
    let row = MemberData::new(d.role.into(), joined_seq, data::time("joined_at", d.joined_at)?).pack();
    let mut writes: Vec<Write> = counts(&d.conversation_id, d.member_count, d.member_version)?.into();
    for (score, user) in (d.join_order..).zip(d.user_ids.iter()) {
        member("user_ids", &d.conversation_id, user)?;
        writes.push(set(key::members(&d.conversation_id), user.clone(), row.clone()));
        writes.push(Write::Op(Op::Score { key: key::joins(&d.conversation_id), score, member: user.clone() }));
    }
    writes.extend(changes(&d.conversation_id, d.user_ids.iter().map(String::as_str), d.member_version));
    // Orders are never given twice, not even after their members have gone.
    let field = Field::new(key::conversation(&d.conversation_id), "jn");
    Ok(Change::with(vec![field.clone()], move |values| {
        let mut writes = writes.clone();
        if stored(&field, values[0].as_ref())?.is_none_or(|joins| joins < last) {
            writes.push(set(field.key.clone(), "jn", last.to_string()));
        }
        Ok(writes)
    }))
}

fn removed(d: &MemberRemoved<'_>) -> Result<Change, Unrestorable> {
    let id = d.conversation_id.clone().into_owned();
    let mut writes: Vec<Write> = counts(&id, d.member_count, d.member_version)?.into();
    for user in d.user_ids.iter() {
        ids::check_id("user_ids", user)?;
        writes.push(delete(key::members(&id), user.clone()));
        writes.push(Write::Op(Op::Unscore { key: key::joins(&id), member: user.clone() }));
    }
    let (users, version) = (d.user_ids.clone().into_owned(), d.member_version);
    let mut reads = vec![Field::new(key::conversation(&id), "di")];
    reads.extend(users.iter().map(|user| Field::new(key::cursors(&id), names::devices(user))));
    Ok(Change::with(reads, move |values| {
        let mut writes = writes.clone();
        let gone = users.iter().map(String::as_str);
        // Of a dissolved group nobody will ask what has changed.
        if values[0].is_some() {
            writes.extend(forgotten(&id, gone).into_iter().map(Write::Op));
        } else {
            writes.extend(changes(&id, gone, version));
        }
        for (user, devices) in users.iter().zip(&values[1..]) {
            let cursors = names::of_member(user, devices.as_ref());
            writes.extend(cursors.into_iter().map(|name| delete(key::cursors(&id), name)));
        }
        Ok(writes)
    }))
}

fn member_updated(d: &MemberUpdated<'_>) -> Result<Change, Unrestorable> {
    member("user_id", &d.conversation_id, &d.user_id)?;
    if d.muted_until.is_negative() {
        return Err(Unrestorable::Data(format!("data.muted_until: {}", d.muted_until)));
    }
    let (role, muted_until, version) =
        (Role::from(d.role), d.muted_until, data::counts("member_version", d.member_version)?);
    let (id, user) = (d.conversation_id.clone().into_owned(), d.user_id.clone().into_owned());
    let field = Field::new(key::members(&id), user.clone());
    Ok(Change::with(vec![field.clone()], move |values| {
        let row = values[0].as_ref().ok_or_else(|| Unrestorable::Missing(format!("{} {}", field.key, field.name)))?;
        let mut member = member_of(&field, row)?;
        (member.role, member.muted_until) = (role as u8, muted_until);
        let mut writes = vec![
            Write::Op(Op::Set(field.clone(), member.pack())),
            set(key::conversation(&id), "mv", version.to_string()),
        ];
        writes.extend(changes(&id, [user.as_str()], version));
        Ok(writes)
    }))
}

fn member_blocked(d: &MemberBlocked<'_>) -> Result<Change, Unrestorable> {
    let (blocked, joined_at) = (d.blocked, data::time("joined_at", d.joined_at)?);
    member("user_id", &d.conversation_id, &d.user_id)?;
    let field = Field::new(key::members(&d.conversation_id), d.user_id.as_ref());
    let opened = Field::new(key::conversation(&d.conversation_id), "k");
    Ok(Change::with(vec![field.clone(), opened], move |values| {
        let member = match &values[0] {
            Some(row) => member_of(&field, row)?,
            None => MemberData::new(Role::Member, 1, joined_at),
        };
        if !blocked && values[1].is_none() {
            return Ok(vec![delete(field.key.clone(), field.name.clone())]);
        }
        Ok(vec![Write::Op(Op::Set(field.clone(), MemberData { blocked, ..member }.pack()))])
    }))
}
