//! What the data of events become in storage: rows and fields, as they were written.

use bytes::Bytes;
use kith_contract::{
    events::{ConversationCreated, GroupUpdated, ProfileUpdated},
    ids,
    json::{I64, U64},
    message::{Given, MessageCreated},
};
use kith_proto::{
    chat::v1::{Draft, MessageType},
    storage::v1::{Group, User},
};
use serde_json::value::RawValue;
use ulid::Ulid;

use super::change::Unrestorable;
use crate::{
    codec,
    core::{
        conversations,
        model::{MOST, SourceRow, key},
        users,
    },
    engine::{Field, Op, Write},
};

/// A message's seq, from 1.
pub(super) fn seq(seq: u64) -> Result<u64, Unrestorable> {
    if seq == 0 { Err(Unrestorable::Data("data.seq: from 1".into())) } else { Ok(seq) }
}

/// A number that storage would not read is not written.
pub(super) fn counts(field: &str, number: u64) -> Result<u64, Unrestorable> {
    if number <= MOST { Ok(number) } else { Err(Unrestorable::Data(format!("data.{field}: {number}"))) }
}

/// A time that a member's row can hold.
pub(super) fn time(field: &str, at: i64) -> Result<i64, Unrestorable> {
    let fits = u64::try_from(at).is_ok_and(|at| at <= MOST);
    if fits { Ok(at) } else { Err(Unrestorable::Data(format!("data.{field}: {at}"))) }
}

/// The bytes that the caller gave.
pub(super) fn content(json: Option<&RawValue>, hex: Option<&str>) -> Result<Bytes, Unrestorable> {
    let json = json.ok_or_else(|| Unrestorable::Data("data.content: missing".into()))?;
    let bytes = Given::bytes(json, hex).ok_or_else(|| Unrestorable::Data("data.content_bytes: no bytes".into()))?;
    Ok(Bytes::copy_from_slice(&bytes))
}

/// The row of a message as it was stored.
pub(super) fn row(message: MessageCreated<'_, Option<&RawValue>>) -> Result<Bytes, Unrestorable> {
    ids::check_conversation_id("conversation_id", &message.conversation_id)?;
    ids::check_client_msg_id(&message.client_msg_id)?;
    ids::check_id("sender_id", &message.sender_id)?;
    for mention in message.mentions.iter() {
        ids::check_id("mentions", mention)?;
    }
    let id = Ulid::from_string(&message.message_id).map_err(|e| Unrestorable::Data(format!("data.message_id: {e}")))?;
    if i64::try_from(id.timestamp_ms()) != Ok(message.sent_at) {
        return Err(Unrestorable::Data("data.sent_at: not the time of the message id".into()));
    }
    let draft = Draft {
        content: content(message.content, message.content_bytes.as_deref())?,
        client_msg_id: message.client_msg_id.into_owned(),
        sender_id: message.sender_id.into_owned(),
        r#type: MessageType::from(message.kind).into(),
        mentions: message.mentions.into_owned(),
        ext: message.ext.into_owned(),
    };
    Ok(codec::pack(id, &draft))
}

fn group_writes(key: &str, group: &Group) -> Vec<Write> {
    conversations::group_ops(key, group).into_iter().map(Write::Op).collect()
}

/// A group's own fields as it was made.
pub(super) fn created_group(key: &str, d: &ConversationCreated<'_>) -> Vec<Write> {
    let text = |field: &Option<std::borrow::Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
    let group = Group {
        name: text(&d.name),
        avatar_url: text(&d.avatar_url),
        announcement: text(&d.announcement),
        join: text(&d.join),
        muted: d.muted.unwrap_or_default(),
    };
    group_writes(key, &group)
}

/// A group's own fields as it was changed.
pub(super) fn updated_group(key: &str, d: &GroupUpdated<'_>) -> Vec<Write> {
    let group = Group {
        name: d.name.clone().into_owned(),
        avatar_url: d.avatar_url.clone().into_owned(),
        announcement: d.announcement.clone().into_owned(),
        join: d.join.clone().into_owned(),
        muted: d.muted,
    };
    group_writes(key, &group)
}

/// The version of a line's own record that an event of a friend came from; absent or 0: none.
pub(super) fn source(user_id: &str, friend_id: &str, version: Option<U64>, at: Option<I64>) -> Option<Write> {
    let (U64(version), I64(at)) = (version?, at?);
    let row = SourceRow { version, at }.pack();
    (version != 0).then(|| Write::Op(Op::Set(Field::new(key::friends(user_id), format!("v{friend_id}")), row)))
}

/// A profile, all but when its user was seen last.
pub(super) fn profile(d: ProfileUpdated<'_>) -> Result<Vec<Write>, Unrestorable> {
    let user = User {
        user_id: d.user_id.into_owned(),
        nickname: d.nickname.into_owned(),
        avatar_url: d.avatar_url.into_owned(),
        attrs: d.attrs.into_owned(),
        version: d.version,
        source_version: d.source_version.map_or(0, |v| v.0),
        line: d.line.into_owned(),
        last_seen: 0,
    };
    let ops: Vec<Op> = users::profile_ops(&user)?;
    Ok(ops.into_iter().map(Write::Op).collect())
}
