//! What an event of the log says, read once: the JSON of a CloudEvent into a typed change.

use std::borrow::Cow;

use bytes::Bytes;
use kith_contract::{
    events::{Concerned, Kind, SessionData},
    frames::{EventName, server},
    message::MessageCreated,
};
use kith_proto::chat::v1::{Message, MessageType, Reaction};
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
        event: EventName<'static>,
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
    pub event: EventName<'static>,
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
}

/// Reads an event.
pub fn read(ce_type: &str, key: &str, data: &Bytes) -> Result<Change, Unreadable> {
    // Types that are not known are newer than this build.
    let Some(kind) = Kind::of_type(ce_type) else { return Ok(Change::Ignored) };
    let (event, members_changed, small_only) = match kind {
        Kind::MessageCreated => {
            let message = message(data)?;
            same(Some(&message.conversation_id), key, "conversation_id")?;
            return Ok(Change::Message(Box::new(message)));
        }
        Kind::MessageRecalled => (EventName::Recalled, false, false),
        Kind::MessageEdited => (EventName::Edited, false, false),
        Kind::MessageReaction => (EventName::Reaction, false, false),
        Kind::ReceiptRead => (EventName::Read, false, true),
        Kind::GroupUpdated => (EventName::Group, false, false),
        Kind::GroupDissolved | Kind::MemberAdded | Kind::MemberRemoved | Kind::MemberUpdated => {
            (EventName::Group, true, false)
        }
        Kind::ProfileUpdated => {
            let who = Concerned::read(data)?;
            same(who.user_id.as_deref(), key, "user_id")?;
            let user = who.user_id.map_or_else(|| key.to_owned(), Cow::into_owned);
            return Ok(Change::Profile { user, data: data.clone() });
        }
        Kind::ConversationCreated => {
            let who = Concerned::read(data)?;
            same(who.conversation_id.as_deref(), key, "conversation_id")?;
            return Ok(Change::Users {
                event: EventName::Conversation,
                users: who.member_ids,
                data: named(kind, data),
            });
        }
        // What is between two users is told on each side under that user's key.
        Kind::FriendAdded | Kind::FriendRemoved => return Ok(to_user(EventName::Friend, key, kind, data)),
        Kind::FriendRequested => return Ok(to_user(EventName::FriendRequest, key, kind, data)),
        // Nobody else's business.
        Kind::ReceiptDelivered
        | Kind::ConversationCleared
        | Kind::MemberBlocked
        | Kind::FriendRequestSent
        | Kind::FriendRequestSettled
        | Kind::BlockAdded
        | Kind::BlockRemoved
        | Kind::ListEntered
        | Kind::ListLeft
        | Kind::ListUpdated
        | Kind::TokenRevoked
        | Kind::SessionOpened
        | Kind::SessionResumed
        | Kind::SessionClosed => return Ok(Change::Ignored),
    };
    let who = Concerned::read(data)?;
    same(who.conversation_id.as_deref(), key, "conversation_id")?;
    let conversation = who.conversation_id.map_or_else(|| key.to_owned(), Cow::into_owned);
    let mut others = who.user_ids;
    let subject = who.user_id.map(Cow::into_owned);
    if members_changed {
        others.extend(subject.clone());
    }
    let actor = who.actor_id.map(Cow::into_owned).or(subject);
    let data = if event == EventName::Group { named(kind, data) } else { data.clone() };
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

fn to_user(event: EventName<'static>, key: &str, kind: Kind, data: &Bytes) -> Change {
    Change::Users { event, users: vec![key.to_owned()], data: named(kind, data) }
}

/// The data with what happened, where one event name of the contract stands for several kinds.
fn named(kind: Kind, data: &Bytes) -> Bytes {
    server::named(kind.name(), data).into()
}

fn message(data: &Bytes) -> Result<Message, Unreadable> {
    let read: MessageCreated<'_, Option<&RawValue>> = serde_json::from_slice(data)?;
    // The content stays where it is: a slice of the record.
    let content = read.content.map_or_else(Bytes::new, |raw| data.slice_ref(raw.get().as_bytes()));
    let reaction = |(emoji, user_ids): (Cow<'_, str>, Cow<'_, [String]>)| {
        let (emoji, user_ids) = (emoji.into_owned(), user_ids.into_owned());
        Reaction { count: user_ids.len() as u32, mine: false, emoji, user_ids }
    };
    Ok(Message {
        conversation_id: read.conversation_id.into_owned(),
        seq: read.seq,
        message_id: read.message_id.into_owned(),
        client_msg_id: read.client_msg_id.into_owned(),
        sender_id: read.sender_id.into_owned(),
        sent_at: read.sent_at,
        r#type: MessageType::from(read.kind).into(),
        content,
        mentions: read.mentions.into_owned(),
        ext: read.ext.into_owned(),
        recalled: read.recalled,
        edited_at: read.edited_at.unwrap_or(0),
        reactions: read.reactions.into_iter().map(reaction).collect(),
    })
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

/// Reads an event of `<cluster>.sessions`; none when it asks for nothing.
pub fn login(ce_type: &str, key: &str, data: &Bytes) -> Result<Option<Login>, Unreadable> {
    let fresh = match Kind::of_type(ce_type) {
        Some(Kind::SessionOpened) => true,
        Some(Kind::SessionResumed) => false,
        _ => return Ok(None),
    };
    let read: SessionData<'_> = serde_json::from_slice(data)?;
    same(Some(&read.user_id), key, "user_id")?;
    Ok(Some(Login {
        user: read.user_id.into_owned(),
        device: read.device_id.into_owned(),
        session: read.session_id.into_owned(),
        cursors: read.cursors.into_iter().map(|(id, seq)| (id.into_owned(), seq.0)).collect(),
        fresh,
    }))
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
