//! What an event of the log says, read once: the JSON of a CloudEvent into a typed change.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bytes::Bytes;
use kith_proto::chat::v1::{Message, MessageType, Reaction};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

/// A change that may concern someone who is online.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// message.created
    Message(Box<Message>),
    /// Something in a conversation that its members see at once.
    Conversation(ConversationChange),
    /// Something between users.
    Users {
        /// The contract's event name.
        event: &'static str,
        /// Who sees it.
        users: Vec<String>,
        /// As it goes to clients.
        data: Bytes,
    },
    /// profile.updated: friends see it, and the user's own devices.
    Profile {
        /// Whose.
        user: String,
        /// As it goes to clients.
        data: Bytes,
    },
    /// Nothing that is delivered.
    Ignored,
}

/// A change in a conversation, other than a message.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationChange {
    /// Which conversation.
    pub conversation: String,
    /// The contract's event name.
    pub event: &'static str,
    /// Who did it, where the event says so.
    pub actor: Option<String>,
    /// Users whom it concerns besides the members: those who were removed.
    pub others: Vec<String>,
    /// Whether the members may be others now.
    pub members_changed: bool,
    /// Whether it matters only in small conversations: read receipts in large ones would be a flood.
    pub small_only: bool,
    /// As it goes to clients.
    pub data: Bytes,
}

/// Why an event can never be worked on.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// Not the JSON that its type promises.
    #[error("data: {0}")]
    Data(#[from] serde_json::Error),
    /// The key is another entity than the one that the data are about.
    #[error("data.{0}: the record's key is another one")]
    Key(&'static str),
    /// A message of a type that is not known.
    #[error("data.type: {0:?} is no message type")]
    MessageType(String),
}

/// Reads an event.
pub fn read(kind: &str, key: &str, data: &Bytes) -> Result<Change, Unreadable> {
    let name = kind.strip_prefix("dev.kith.").and_then(|k| k.strip_suffix(".v1")).unwrap_or_default();
    if name == "message.created" {
        let message = message(data)?;
        same(Some(&message.conversation_id), key, "conversation_id")?;
        return Ok(Change::Message(Box::new(message)));
    }
    let (event, members_changed, small_only) = match name {
        "message.recalled" => ("recalled", false, false),
        "message.edited" => ("edited", false, false),
        "message.reaction" => ("reaction", false, false),
        "receipt.read" => ("read", false, true),
        "group.updated" => ("group", false, false),
        "group.dissolved" | "member.added" | "member.removed" | "member.updated" => ("group", true, false),
        "profile.updated" => {
            let who: Who<'_> = serde_json::from_slice(data)?;
            same(who.user_id.as_deref(), key, "user_id")?;
            let user = who.user_id.map_or_else(|| key.to_owned(), Cow::into_owned);
            return Ok(Change::Profile { user, data: data.clone() });
        }
        "friend.added" | "friend.removed" | "friend.requested" | "conversation.created" => {
            return users(name, key, data);
        }
        // Delivered cursors and blocks are nobody else's business; types that are not known are newer than this build.
        _ => return Ok(Change::Ignored),
    };
    let who: Who<'_> = serde_json::from_slice(data)?;
    same(who.conversation_id.as_deref(), key, "conversation_id")?;
    let conversation = who.conversation_id.map_or_else(|| key.to_owned(), Cow::into_owned);
    let mut others: Vec<String> = who.user_ids.into_iter().map(Cow::into_owned).collect();
    let subject = who.user_id.map(Cow::into_owned);
    if members_changed {
        others.extend(subject.clone());
    }
    let actor = who.actor_id.map(Cow::into_owned).or(subject);
    let data = if event == "group" { named(name, data) } else { data.clone() };
    Ok(Change::Conversation(ConversationChange {
        conversation,
        event,
        actor,
        others,
        members_changed,
        small_only,
        data,
    }))
}

/// What an event says about its entity is true: the key decided about its place, and the rest of the events of that entity are there.
fn same(named: Option<&str>, key: &str, field: &'static str) -> Result<(), Unreadable> {
    if named.is_none_or(|named| named == key) { Ok(()) } else { Err(Unreadable::Key(field)) }
}

/// Events that name all whom they concern: those between two users are told on each side under that user's key.
fn users(name: &str, key: &str, data: &Bytes) -> Result<Change, Unreadable> {
    let (event, users) = match name {
        "conversation.created" => {
            let who: Who<'_> = serde_json::from_slice(data)?;
            same(who.conversation_id.as_deref(), key, "conversation_id")?;
            ("conversation", who.member_ids.into_iter().map(Cow::into_owned).collect())
        }
        "friend.requested" => ("friend_request", vec![key.to_owned()]),
        _ => ("friend", vec![key.to_owned()]),
    };
    Ok(Change::Users { event, users, data: named(name, data) })
}

/// The data with what happened as `change`, where one event name of the contract stands for several types.
fn named(name: &str, data: &Bytes) -> Bytes {
    let rest = data.iter().position(|b| *b == b'{').map_or(&data[..], |at| &data[at + 1..]);
    let comma = if rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'}') { "" } else { "," };
    let mut named = format!("{{\"change\":\"{name}\"{comma}").into_bytes();
    named.extend_from_slice(rest);
    named.into()
}

/// The fields that say whom an event concerns.
#[derive(Deserialize)]
struct Who<'a> {
    #[serde(borrow, default)]
    conversation_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user_ids: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    member_ids: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    actor_id: Option<Cow<'a, str>>,
}

/// The Message object of the external contract.
#[derive(Deserialize)]
struct MessageData<'a> {
    conversation_id: String,
    seq: Number,
    message_id: String,
    #[serde(default)]
    client_msg_id: String,
    sender_id: String,
    sent_at: Number,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(default)]
    mentions: Vec<String>,
    #[serde(default)]
    ext: BTreeMap<String, String>,
    #[serde(default)]
    recalled: bool,
    #[serde(default)]
    edited_at: Option<Number>,
    #[serde(default)]
    reactions: BTreeMap<String, Vec<String>>,
}

fn message(data: &Bytes) -> Result<Message, Unreadable> {
    let read: MessageData<'_> = serde_json::from_slice(data)?;
    let kind = message_type(&read.r#type).ok_or_else(|| Unreadable::MessageType(read.r#type.to_string()))?;
    // The content stays where it is: a slice of the record.
    let content = match read.content {
        Some(raw) if raw.get() != "null" => data.slice_ref(raw.get().as_bytes()),
        _ => Bytes::new(),
    };
    Ok(Message {
        conversation_id: read.conversation_id,
        seq: read.seq.0,
        message_id: read.message_id,
        client_msg_id: read.client_msg_id,
        sender_id: read.sender_id,
        sent_at: read.sent_at.signed(),
        r#type: kind as i32,
        content,
        mentions: read.mentions,
        ext: read.ext,
        recalled: read.recalled,
        edited_at: read.edited_at.map_or(0, Number::signed),
        reactions: read
            .reactions
            .into_iter()
            .map(|(emoji, user_ids)| Reaction { count: user_ids.len() as u32, mine: false, emoji, user_ids })
            .collect(),
    })
}

fn message_type(name: &str) -> Option<MessageType> {
    Some(match name {
        "text" => MessageType::Text,
        "image" => MessageType::Image,
        "file" => MessageType::File,
        "audio" => MessageType::Audio,
        "video" => MessageType::Video,
        "location" => MessageType::Location,
        "card" => MessageType::Card,
        "custom" => MessageType::Custom,
        "system" => MessageType::System,
        _ => return None,
    })
}

/// A 64-bit integer: a string in the contract's JSON; a number is taken too.
struct Number(u64);

impl Number {
    fn signed(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer, as a string or a number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map(Number).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                u64::try_from(number).map(Number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What a login event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Who.
    pub user: String,
    /// On which device.
    pub device: String,
    /// Where to deliver.
    pub session: String,
    /// Where the client says it is.
    pub cursors: Vec<(String, u64)>,
    /// Whether live messages wait for the end of the catch-up: at a login, but not when a session only changed its owner.
    pub fresh: bool,
}

#[derive(Deserialize)]
struct LoginData {
    user_id: String,
    device_id: String,
    session_id: String,
    #[serde(default)]
    cursors: BTreeMap<String, Number>,
}

/// Reads an event of `<cluster>.sessions`; none when it asks for nothing.
pub fn login(kind: &str, key: &str, data: &Bytes) -> Result<Option<Login>, Unreadable> {
    let fresh = match kind {
        "dev.kith.session.opened.v1" => true,
        "dev.kith.session.resumed.v1" => false,
        _ => return Ok(None),
    };
    let read: LoginData = serde_json::from_slice(data)?;
    same(Some(&read.user_id), key, "user_id")?;
    Ok(Some(Login {
        user: read.user_id,
        device: read.device_id,
        session: read.session_id,
        cursors: read.cursors.into_iter().map(|(id, seq)| (id, seq.0)).collect(),
        fresh,
    }))
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
