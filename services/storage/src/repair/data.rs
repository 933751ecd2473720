//! The data of events, as much of them as restoring needs. What is missing here was not written by this version.

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_contract::ids;
use kith_proto::{
    chat::v1::Draft,
    storage::v1::{Group, Role},
};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use ulid::Ulid;

use super::change::Unrestorable;
use crate::{
    codec,
    core::{
        conversations,
        model::{SourceRow, key},
        users,
    },
    engine::{Field, Op, Write},
    event,
};

/// A whole number: the contract writes 64-bit ones as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Num<T>(pub(super) T);

impl<'de, T: std::str::FromStr> Deserialize<'de> for Num<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelt {
            Text(String),
            Number(serde_json::Number),
        }
        let text = match Spelt::deserialize(deserializer)? {
            Spelt::Text(text) => text,
            Spelt::Number(number) => number.to_string(),
        };
        text.parse().map(Self).map_err(|_| de::Error::custom(format!("{text:?} is no whole number in its range")))
    }
}

/// A message's seq, from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seq(pub(super) u64);

impl<'de> Deserialize<'de> for Seq {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Num::<u64>::deserialize(deserializer)?.0 {
            0 => Err(de::Error::custom("seq 0")),
            seq => Ok(Self(seq)),
        }
    }
}

pub(super) fn role(name: &str) -> Result<Role, Unrestorable> {
    match name {
        "member" => Ok(Role::Member),
        "admin" => Ok(Role::Admin),
        "owner" => Ok(Role::Owner),
        other => Err(Unrestorable::Data(format!("data.role: {other:?} is no role"))),
    }
}

/// The bytes that the caller gave.
fn content(json: &RawValue, bytes: Option<&String>) -> Result<Bytes, Unrestorable> {
    match bytes {
        None => Ok(Bytes::copy_from_slice(json.get().as_bytes())),
        Some(hex) => {
            let bytes =
                event::from_hex(hex).ok_or_else(|| Unrestorable::Data("data.content_bytes: no bytes".into()))?;
            Ok(bytes.into())
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) conversation_id: String,
    pub(super) seq: Seq,
    message_id: String,
    pub(super) client_msg_id: String,
    pub(super) sender_id: String,
    pub(super) sent_at: Num<i64>,
    r#type: String,
    content: Box<RawValue>,
    #[serde(default)]
    content_bytes: Option<String>,
    #[serde(default)]
    mentions: Vec<String>,
    #[serde(default)]
    ext: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) privileged: bool,
}

impl Message {
    /// The row as it was stored.
    pub(super) fn row(self) -> Result<Bytes, Unrestorable> {
        ids::check_conversation_id("conversation_id", &self.conversation_id)?;
        ids::check_client_msg_id(&self.client_msg_id)?;
        ids::check_id("sender_id", &self.sender_id)?;
        for mention in &self.mentions {
            ids::check_id("mentions", mention)?;
        }
        let id =
            Ulid::from_string(&self.message_id).map_err(|e| Unrestorable::Data(format!("data.message_id: {e}")))?;
        if i64::try_from(id.timestamp_ms()) != Ok(self.sent_at.0) {
            return Err(Unrestorable::Data("data.sent_at: not the time of the message id".into()));
        }
        let kind = event::type_of(&self.r#type)
            .ok_or_else(|| Unrestorable::Data(format!("data.type: {:?} is no message type", self.r#type)))?;
        let draft = Draft {
            content: content(&self.content, self.content_bytes.as_ref())?,
            client_msg_id: self.client_msg_id,
            sender_id: self.sender_id,
            r#type: kind as i32,
            mentions: self.mentions,
            ext: self.ext,
        };
        Ok(codec::pack(id, &draft))
    }
}

#[derive(Deserialize)]
pub(super) struct Recalled {
    pub(super) conversation_id: String,
    pub(super) seq: Seq,
    pub(super) recalled_at: Num<i64>,
}

#[derive(Deserialize)]
pub(super) struct Edited {
    pub(super) conversation_id: String,
    pub(super) seq: Seq,
    content: Box<RawValue>,
    #[serde(default)]
    content_bytes: Option<String>,
    pub(super) edited_at: Num<i64>,
}

impl Edited {
    pub(super) fn content(&self) -> Result<Bytes, Unrestorable> {
        content(&self.content, self.content_bytes.as_ref())
    }
}

#[derive(Deserialize)]
pub(super) struct Reaction {
    pub(super) conversation_id: String,
    pub(super) seq: Seq,
    pub(super) user_id: String,
    pub(super) emoji: String,
    pub(super) added: bool,
}

#[derive(Deserialize)]
pub(super) struct Read {
    pub(super) conversation_id: String,
    pub(super) user_id: String,
    pub(super) read_seq: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Delivered {
    pub(super) conversation_id: String,
    pub(super) user_id: String,
    pub(super) device_id: String,
    pub(super) seq: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Cleared {
    pub(super) conversation_id: String,
    pub(super) user_id: String,
    pub(super) cleared_seq: Num<u64>,
}

/// A group's own fields, as its events spell them.
#[derive(Deserialize)]
pub(super) struct GroupFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    avatar_url: String,
    #[serde(default)]
    announcement: String,
    #[serde(default)]
    join: String,
    #[serde(default)]
    muted: bool,
}

impl GroupFields {
    pub(super) fn writes(&self, key: &str) -> Vec<Write> {
        let Self { name, avatar_url, announcement, join, muted } = self;
        let group = Group {
            name: name.clone(),
            avatar_url: avatar_url.clone(),
            announcement: announcement.clone(),
            join: join.clone(),
            muted: *muted,
        };
        conversations::group_ops(key, &group).into_iter().map(Write::Op).collect()
    }
}

#[derive(Deserialize)]
pub(super) struct Created {
    pub(super) conversation_id: String,
    pub(super) kind: String,
    pub(super) created_at: Num<i64>,
    #[serde(default)]
    pub(super) owner_id: String,
    pub(super) member_ids: Vec<String>,
    #[serde(default)]
    pub(super) idempotency_key: String,
    #[serde(flatten)]
    pub(super) group: GroupFields,
}

#[derive(Deserialize)]
pub(super) struct Updated {
    pub(super) conversation_id: String,
    pub(super) version: Num<u64>,
    #[serde(default)]
    pub(super) owner_id: Option<String>,
    #[serde(default)]
    pub(super) previous_owner_id: Option<String>,
    #[serde(flatten)]
    pub(super) group: GroupFields,
}

#[derive(Deserialize)]
pub(super) struct Dissolved {
    pub(super) conversation_id: String,
}

#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) conversation_id: String,
    pub(super) user_ids: Vec<String>,
    pub(super) role: String,
    pub(super) joined_at: Num<i64>,
    pub(super) joined_seq: Num<u64>,
    pub(super) join_order: Num<i64>,
    pub(super) member_count: Num<u64>,
    pub(super) member_version: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Removed {
    pub(super) conversation_id: String,
    pub(super) user_ids: Vec<String>,
    pub(super) member_count: Num<u64>,
    pub(super) member_version: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Member {
    pub(super) conversation_id: String,
    pub(super) user_id: String,
    pub(super) role: String,
    pub(super) muted_until: Num<i64>,
    pub(super) member_version: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Blocked {
    pub(super) conversation_id: String,
    pub(super) user_id: String,
    pub(super) blocked: bool,
    pub(super) joined_at: Num<i64>,
}

#[derive(Deserialize)]
pub(super) struct FriendAdded {
    pub(super) user_id: String,
    pub(super) friend_id: String,
    pub(super) alias: String,
    pub(super) since: Num<i64>,
    pub(super) version: Num<u64>,
    #[serde(flatten)]
    pub(super) source: Source,
}

/// Which record of a line's source an event of a friend came from; absent or 0: none.
#[derive(Deserialize)]
pub(super) struct Source {
    #[serde(default)]
    source_version: Option<Num<u64>>,
    #[serde(default)]
    at: Option<Num<i64>>,
}

impl Source {
    pub(super) fn write(&self, user_id: &str, friend_id: &str) -> Option<Write> {
        let (version, at) = (self.source_version?.0, self.at?.0);
        let row = SourceRow { version, at }.pack();
        (version != 0).then(|| Write::Op(Op::Set(Field::new(key::friends(user_id), format!("v{friend_id}")), row)))
    }
}

#[derive(Deserialize)]
pub(super) struct FriendRemoved {
    pub(super) user_id: String,
    pub(super) friend_id: String,
    #[serde(flatten)]
    pub(super) source: Source,
}

#[derive(Deserialize)]
pub(super) struct Requested {
    pub(super) user_id: String,
    pub(super) requester_id: String,
    pub(super) text: String,
    pub(super) requested_at: Num<i64>,
}

#[derive(Deserialize)]
pub(super) struct RequestSent {
    pub(super) user_id: String,
    pub(super) target_id: String,
    pub(super) text: String,
    pub(super) requested_at: Num<i64>,
}

#[derive(Deserialize)]
pub(super) struct Settled {
    pub(super) user_id: String,
    pub(super) peer_id: String,
    /// `i` or `o`: of these alone; empty: of both.
    #[serde(default)]
    pub(super) side: String,
}

#[derive(Deserialize)]
pub(super) struct Block {
    pub(super) user_id: String,
    pub(super) target_id: String,
    #[serde(default)]
    pub(super) at: Option<Num<i64>>,
}

#[derive(Deserialize)]
pub(super) struct Profile {
    pub(super) user_id: String,
    nickname: String,
    avatar_url: String,
    attrs: BTreeMap<String, String>,
    version: Num<u64>,
    #[serde(default)]
    source_version: Option<Num<u64>>,
    line: String,
}

impl Profile {
    pub(super) fn writes(self) -> Result<Vec<Write>, Unrestorable> {
        let user = kith_proto::storage::v1::User {
            user_id: self.user_id,
            nickname: self.nickname,
            avatar_url: self.avatar_url,
            attrs: self.attrs,
            version: self.version.0,
            source_version: self.source_version.map_or(0, |v| v.0),
            line: self.line,
            last_seen: 0,
        };
        let ops: Vec<Op> = users::profile_ops(&user)?;
        Ok(ops.into_iter().map(Write::Op).collect())
    }
}

#[derive(Deserialize)]
pub(super) struct Listed {
    pub(super) user_id: String,
    pub(super) conversation_id: String,
    pub(super) activity: Num<i64>,
}

#[derive(Deserialize)]
pub(super) struct Unlisted {
    pub(super) user_id: String,
    pub(super) conversation_id: String,
}

#[derive(Deserialize)]
pub(super) struct Settings {
    pub(super) user_id: String,
    pub(super) conversation_id: String,
    pub(super) pinned: bool,
    pub(super) muted: bool,
    pub(super) cleared_seq: Num<u64>,
}

#[derive(Deserialize)]
pub(super) struct Revoked {
    pub(super) user_id: String,
    pub(super) device_id: String,
    pub(super) issued_at_or_before: Num<i64>,
    /// What the revocation of all tokens was raised to, since there were too many of single devices.
    #[serde(default)]
    pub(super) all_issued_at_or_before: Option<Num<i64>>,
    /// Devices whose revocations have become superfluous.
    #[serde(default)]
    pub(super) dropped: Vec<String>,
}
