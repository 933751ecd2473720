//! What the fields of the partition's hashes mean: members, conversations, list settings, overlays. Reading is total.

pub(crate) mod cursor;

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_proto::{
    chat::v1::{Message, Reaction},
    storage::v1::{Conversation, Group, Member, Role},
};
use kith_rpc::error::Error;
use serde::{Deserialize, Serialize};

use crate::{
    codec,
    engine::{Field, HeadRow, Last},
};

/// A stored value that is not what this version writes; the log names the key.
pub(crate) fn corrupt(key: &str, what: &str) -> Error {
    tracing::error!(key, what, "a stored value cannot be read");
    Error::data_loss()
}

pub(crate) fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn number<T: std::str::FromStr>(bytes: &Bytes) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Up to here the library counts on: its numbers are doubles. What a call adds to such a number stays far from the ends of its type.
pub(crate) const MOST: u64 = (1 << 53) - 1;

/// A stored number that counts something; none for what cannot be one, whatever stands there.
pub(crate) fn whole<T: TryFrom<u64>>(bytes: &Bytes) -> Option<T> {
    let digits = bytes.iter().all(u8::is_ascii_digit);
    number::<u64>(bytes).filter(|n| digits && *n <= MOST).and_then(|n| T::try_from(n).ok())
}

/// [`whole`], of a field that must hold such a number.
pub(crate) fn whole_of<T: TryFrom<u64>>(field: &Field, bytes: &Bytes) -> Result<T, Error> {
    whole(bytes).ok_or_else(|| corrupt(&format!("{} {}", field.key, field.name), "not a number that counts"))
}

/// Keys of a conversation and of a user, without the partition's tag.
pub(crate) mod key {
    pub(crate) fn conversation(id: &str) -> String {
        format!("c:{id}")
    }
    pub(crate) fn members(id: &str) -> String {
        format!("g:{id}")
    }
    pub(crate) fn joins(id: &str) -> String {
        format!("j:{id}")
    }
    pub(crate) fn changes(id: &str) -> String {
        format!("w:{id}")
    }
    pub(crate) fn cursors(id: &str) -> String {
        format!("r:{id}")
    }
    pub(crate) fn overlays(id: &str) -> String {
        format!("x:{id}")
    }
    pub(crate) fn profile(id: &str) -> String {
        format!("u:{id}")
    }
    pub(crate) fn list(id: &str) -> String {
        format!("l:{id}")
    }
    pub(crate) fn settings(id: &str) -> String {
        format!("s:{id}")
    }
    pub(crate) fn friends(id: &str) -> String {
        format!("f:{id}")
    }
    pub(crate) fn blocks(id: &str) -> String {
        format!("b:{id}")
    }
    pub(crate) fn devices(id: &str) -> String {
        format!("k:{id}")
    }
}

/// A member's row: `role|joined_seq|joined_at|muted_until|blocked`. The append function reads it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemberData {
    pub(crate) role: u8,
    pub(crate) joined_seq: u64,
    pub(crate) joined_at: i64,
    pub(crate) muted_until: i64,
    pub(crate) blocked: bool,
}

impl MemberData {
    pub(crate) fn new(role: Role, joined_seq: u64, joined_at: i64) -> Self {
        Self { role: role as u8, joined_seq, joined_at, muted_until: 0, blocked: false }
    }

    pub(crate) fn pack(&self) -> Bytes {
        self.packed(self.joined_seq)
    }

    /// With this first seq in the row, or with the mark in the place of one that the function finds.
    pub(crate) fn packed(&self, joined_seq: impl std::fmt::Display) -> Bytes {
        let Self { role, joined_at, muted_until, blocked, .. } = self;
        format!("{role}|{joined_seq}|{joined_at}|{muted_until}|{}", u8::from(*blocked)).into()
    }

    pub(crate) fn unpack(row: &Bytes) -> Option<Self> {
        let mut parts = std::str::from_utf8(row).ok()?.split('|');
        let mut next = || parts.next();
        let whole = |part: &str| whole(&Bytes::copy_from_slice(part.as_bytes()));
        let data = Self {
            role: u8::try_from(whole(next()?)?).ok()?,
            joined_seq: whole(next()?)?,
            joined_at: i64::try_from(whole(next()?)?).ok()?,
            // Given by callers, and only compared.
            muted_until: next()?.parse().ok().filter(|until: &i64| !until.is_negative())?,
            blocked: next()? == "1",
        };
        parts.next().is_none().then_some(data)
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.role >= Role::Admin as u8
    }

    pub(crate) fn into_member(self, user_id: String) -> Member {
        Member {
            user_id,
            role: i32::from(self.role),
            joined_seq: self.joined_seq,
            joined_at: self.joined_at,
            muted_until: self.muted_until,
            blocked: self.blocked,
        }
    }
}

/// A conversation's hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: i32,
    pub(crate) seq: u64,
    pub(crate) floor: u64,
    pub(crate) activity: i64,
    pub(crate) members: u32,
    pub(crate) member_version: u64,
    pub(crate) joins: i64,
    pub(crate) version: u64,
    pub(crate) created_at: i64,
    pub(crate) owner: String,
    pub(crate) group: Group,
    pub(crate) dissolved: bool,
    pub(crate) idempotency_key: String,
}

impl Head {
    /// None: no such conversation (an unopened one may have a member row, but no hash).
    pub(crate) fn read(fields: &[(String, Bytes)]) -> Option<Self> {
        let mut head = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "k" => head.kind = whole(value)?,
                "s" => head.seq = whole(value)?,
                "f" => head.floor = whole(value)?,
                "a" => head.activity = whole(value)?,
                "n" => head.members = whole(value)?,
                "mv" => head.member_version = whole(value)?,
                "jn" => head.joins = whole(value)?,
                "v" => head.version = whole(value)?,
                "ca" => head.created_at = whole(value)?,
                "ow" => head.owner = text(value),
                "na" => head.group.name = text(value),
                "av" => head.group.avatar_url = text(value),
                "an" => head.group.announcement = text(value),
                "jo" => head.group.join = text(value),
                "mu" => head.group.muted = value.as_ref() == b"1",
                "di" => head.dissolved = value.as_ref() == b"1",
                "ik" => head.idempotency_key = text(value),
                _ => {}
            }
        }
        (head.kind != 0).then_some(head)
    }
}

/// A conversation as one user (or a trusted caller) sees it.
pub(crate) struct Seen {
    pub(crate) head: Head,
    pub(crate) member: Option<MemberData>,
    pub(crate) read: u64,
    pub(crate) cleared: u64,
    pub(crate) delivered: u64,
    last: Last,
}

impl Seen {
    /// None: no such conversation.
    pub(crate) fn read(id: &str, row: HeadRow) -> Result<Option<Self>, Error> {
        let Some(head) = Head::read(&row.fields) else {
            return if row.fields.is_empty() {
                Ok(None)
            } else {
                Err(corrupt(&key::conversation(id), "not a conversation"))
            };
        };
        let member = match &row.member {
            None => None,
            Some(bytes) => {
                Some(MemberData::unpack(bytes).ok_or_else(|| corrupt(&key::members(id), "not a member row"))?)
            }
        };
        let cursor = |stored: Option<&Bytes>| {
            stored.map_or(Ok(0), |at| whole(at).ok_or_else(|| corrupt(&key::cursors(id), "not a cursor")))
        };
        Ok(Some(Self {
            head,
            member,
            // Who sends has read. Older versions have not written that down.
            read: cursor(row.read.as_ref())?.max(cursor(row.own.as_ref())?),
            cleared: cursor(row.cleared.as_ref())?,
            delivered: cursor(row.delivered.as_ref())?,
            last: row.last,
        }))
    }

    /// The last seq that the user may not see (any more).
    pub(crate) fn hidden(&self) -> u64 {
        let joined = self.member.map_or(0, |m| m.joined_seq.saturating_sub(1));
        self.head.floor.max(joined).max(self.cleared)
    }

    /// Whether there is a last message that the user may see, and for which there was no room.
    pub(crate) fn is_last_over(&self) -> bool {
        self.last == Last::Over && self.head.seq > self.hidden()
    }

    pub(crate) fn unread(&self) -> u64 {
        self.head.seq.saturating_sub(self.hidden().max(self.read))
    }

    pub(crate) fn into_conversation(self, id: &str, viewer: &str) -> Result<Conversation, Error> {
        let (unread, hidden) = (self.unread(), self.hidden());
        let last_message = match self.last {
            Last::Row(row, overlay) if self.head.seq > hidden => {
                Some(message(id, self.head.seq, row, overlay.as_ref(), viewer)?)
            }
            _ => None,
        };
        let is_group = self.head.kind == kith_proto::chat::v1::ConversationKind::Group as i32;
        Ok(Conversation {
            conversation_id: id.to_owned(),
            kind: self.head.kind,
            seq: self.head.seq,
            read_seq: self.read.max(self.head.floor),
            unread,
            last_message,
            pinned: false,
            muted: false,
            updated_at: self.head.activity,
            member_count: self.head.members,
            member_version: self.head.member_version,
            group: is_group.then_some(self.head.group),
            owner_id: self.head.owner,
            dissolved: self.head.dissolved,
            version: self.head.version,
            created_at: self.head.created_at,
            error: None,
        })
    }
}

/// What came upon a message after it was stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// Recalled at, Unix ms; 0: not.
    #[serde(default, rename = "d", skip_serializing_if = "is_zero")]
    pub(crate) recalled_at: i64,
    #[serde(default, rename = "t", skip_serializing_if = "is_zero")]
    pub(crate) edited_at: i64,
    #[serde(default, rename = "c", skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(default, rename = "r", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) reactions: BTreeMap<String, Vec<String>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form that serde asks for
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl Overlay {
    pub(crate) fn read(bytes: Option<&Bytes>) -> Option<Self> {
        bytes.map_or_else(|| Some(Self::default()), |b| serde_json::from_slice(b).ok())
    }
}

/// Names that an answer shows of those who reacted alike.
pub(crate) const NAMED_REACTORS: usize = 20;

/// A message as it stands now, as `viewer` sees it (empty: nobody's view).
pub(crate) fn message(
    conversation_id: &str,
    seq: u64,
    row: Bytes,
    overlay: Option<&Bytes>,
    viewer: &str,
) -> Result<Message, Error> {
    let bad = |what: &str| corrupt(&format!("m:{conversation_id} {seq}"), what);
    let mut message = codec::unpack(row).map_err(|e| bad(&e.to_string()))?.into_message(conversation_id, seq);
    if overlay.is_some() {
        let overlay = Overlay::read(overlay).ok_or_else(|| bad("its overlay is not one"))?;
        if let Some(content) = overlay.content {
            message.content = content.into();
        }
        message.edited_at = overlay.edited_at;
        message.reactions =
            overlay.reactions.into_iter().map(|(emoji, users)| reaction(emoji, users, viewer)).collect();
        if overlay.recalled_at != 0 {
            message.recalled = true;
            message.content = Bytes::new();
            message.mentions.clear();
            message.ext.clear();
            message.reactions.clear();
        }
    }
    Ok(message)
}

fn reaction(emoji: String, mut user_ids: Vec<String>, viewer: &str) -> Reaction {
    let count = u32::try_from(user_ids.len()).unwrap_or(u32::MAX);
    let mine = user_ids.iter().any(|user| user == viewer);
    user_ids.truncate(NAMED_REACTORS);
    Reaction { emoji, user_ids, count, mine }
}

/// A user's settings of a conversation: `pinned|muted|cleared`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EntryData {
    pub(crate) pinned: bool,
    pub(crate) muted: bool,
    pub(crate) cleared: u64,
}

impl EntryData {
    pub(crate) fn pack(self) -> Bytes {
        format!("{}|{}|{}", u8::from(self.pinned), u8::from(self.muted), self.cleared).into()
    }

    pub(crate) fn unpack(bytes: Option<&Bytes>) -> Option<Self> {
        let Some(bytes) = bytes else { return Some(Self::default()) };
        let mut parts = std::str::from_utf8(bytes).ok()?.split('|');
        let (pinned, muted, cleared) = (parts.next()?, parts.next()?, parts.next()?);
        let cleared = whole(&Bytes::copy_from_slice(cleared.as_bytes()))?;
        Some(Self { pinned: pinned == "1", muted: muted == "1", cleared })
    }
}

/// A friend: `since|version|alias`.
pub(crate) struct FriendRow {
    pub(crate) since: i64,
    pub(crate) version: u64,
    pub(crate) alias: String,
}

impl FriendRow {
    pub(crate) fn pack(&self) -> Bytes {
        format!("{}|{}|{}", self.since, self.version, self.alias).into()
    }

    pub(crate) fn unpack(key: &str, bytes: &Bytes) -> Result<Self, Error> {
        let read = || {
            let mut parts = std::str::from_utf8(bytes).ok()?.splitn(3, '|');
            Some(Self {
                since: parts.next()?.parse().ok()?,
                version: parts.next()?.parse().ok()?,
                alias: parts.next()?.to_owned(),
            })
        };
        read().ok_or_else(|| corrupt(key, "not a friend"))
    }
}

/// The last record of a line's source about a friend: `version|at`.
pub(crate) struct SourceRow {
    pub(crate) version: u64,
    pub(crate) at: i64,
}

impl SourceRow {
    pub(crate) fn pack(&self) -> Bytes {
        format!("{}|{}", self.version, self.at).into()
    }

    pub(crate) fn unpack(key: &str, bytes: &Bytes) -> Result<Self, Error> {
        let read = || {
            let (version, at) = std::str::from_utf8(bytes).ok()?.split_once('|')?;
            Some(Self { version: version.parse().ok()?, at: at.parse().ok()? })
        };
        read().ok_or_else(|| corrupt(key, "not the version of a source"))
    }
}

#[cfg(test)]
mod tests {
    use kith_contract::ids;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::CursorKind;

    /// Everything that is glued from ids: what it is and of which parts, and the key and field that these make.
    fn glued(user: &str, device: &str, talk: &str, seq: u64) -> Vec<(String, (String, String))> {
        let mut all = Vec::new();
        let mut add = |what: &str, parts: &[&str], key: String, field: String| {
            all.push((format!("{what} of {parts:?}"), (key, field)));
        };
        for (what, key) in [
            ("profile", key::profile as fn(&str) -> String),
            ("list", key::list),
            ("settings", key::settings),
            ("friends", key::friends),
            ("blocks", key::blocks),
            ("devices", key::devices),
        ] {
            add(what, &[user], key(user), String::new());
        }
        for (what, key) in [
            ("conversation", key::conversation as fn(&str) -> String),
            ("members", key::members),
            ("joins", key::joins),
            ("changes", key::changes),
            ("cursors", key::cursors),
            ("overlays", key::overlays),
        ] {
            add(what, &[talk], key(talk), String::new());
        }
        for side in ["f", "v", "i", "o"] {
            add(side, &[user, device], key::friends(user), format!("{side}{device}"));
        }
        add("device", &[user, device], key::devices(user), format!("d{device}"));
        add("device that is gone", &[user, device], key::devices(user), format!("g{device}"));
        add("revoked device", &[user, device], key::devices(user), format!("r{device}"));
        add("revoked user", &[user], key::devices(user), "R".to_owned());
        let delivered = CursorKind::Delivered(device.to_owned());
        add("read", &[talk, user], key::cursors(talk), CursorKind::Read.field(user));
        add("cleared", &[talk, user], key::cursors(talk), CursorKind::Cleared.field(user));
        add("sent", &[talk, user], key::cursors(talk), format!("s{user}"));
        add("delivered to devices that are gone", &[talk, user], key::cursors(talk), cursor::gone(user));
        add("devices of a member", &[talk, user], key::cursors(talk), cursor::devices(user));
        add("delivered", &[talk, user, device], key::cursors(talk), delivered.field(user));
        let body = crate::event::message_body(talk, seq, false);
        add("outbox entry", &[talk, &seq.to_string()], String::new(), text(&body));
        all
    }

    proptest! {
        #[test]
        fn different_parts_make_different_keys(
            users in proptest::collection::btree_set("[rscd][a.@-]{0,2}", 3),
            devices in proptest::collection::btree_set("[rscdR][a.@-]{0,2}", 2),
            seqs in proptest::collection::btree_set(1..200_u64, 2),
        ) {
            let users: Vec<_> = users.into_iter().collect();
            let mut made = BTreeMap::new();
            for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                let talk = ids::direct_conversation_id(&users[a], &users[b]).unwrap();
                for ((user, device), seq) in users.iter().flat_map(|u| devices.iter().map(move |d| (u, d))).zip(seqs.iter().cycle()) {
                    for (what, place) in glued(user, device, &talk, *seq) {
                        let before = made.insert(place.clone(), what.clone());
                        prop_assert!(before.as_ref().is_none_or(|b| *b == what), "{place:?}: {what}, and {before:?}");
                    }
                }
            }
        }

        #[test]
        fn a_member_row_reads_back_as_it_was(role in 1..4_u8, joined_seq in 1..u64::from(u32::MAX), joined_at in 0..1_i64 << 50, muted_until in 0..1_i64 << 50, blocked in any::<bool>()) {
            let data = MemberData { role, joined_seq, joined_at, muted_until, blocked };
            prop_assert_eq!(MemberData::unpack(&data.pack()), Some(data));
        }

        #[test]
        fn arbitrary_values_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let bytes = Bytes::from(bytes);
            MemberData::unpack(&bytes);
            EntryData::unpack(Some(&bytes));
            Overlay::read(Some(&bytes));
            for field in ["k", "s", "f", "a", "n", "mv", "ow", "mu"] {
                Head::read(&[(field.to_owned(), bytes.clone())]);
            }
        }
    }
}
