//! Events: what storage and sessions tell on the event log (CloudEvents 1.0, binary mode).
//!
//! [`Kind`] says which there are, [`Event`] holds the data of each, [`envelope`] the attributes around them. Readers skip kinds and fields
//! that they do not know.

mod data;
pub mod envelope;
pub mod example;

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::data::*;
use crate::{Refused, message::MessageCreated};

/// In front of and behind a kind's name in `ce_type`.
const PREFIX: &str = "dev.kith.";
const VERSION: &str = ".v1";

/// `ce_type` of where a repair's reading ends; the one record on `<cluster>.events` that has no place in the order.
pub const REPAIR_MARKER: &str = "dev.kith.repair.marker.v1";
/// Of an entry of the outbox that could not be read: it has a place and says nothing, not even whom it was about. Its key is empty.
pub const CORRUPT: &str = "dev.kith.corrupt.v1";
/// The name of that kind.
pub const CORRUPT_NAME: &str = "corrupt";
/// Its data.
pub const CORRUPT_DATA: &str = "{}";

/// Where events stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// `<cluster>.events`: everything that storage changed, in order per key.
    Events,
    /// `<cluster>.sessions`: logins and logouts.
    Sessions,
}

/// Declares the kinds: name, topic, whether consumers outside may rely on it, data, and the field that is the record's key.
macro_rules! events {
    ($($(#[doc = $doc:literal])* $kind:ident = $name:literal, $topic:ident, $reader:ident, $data:ident<$($generic:tt),+>, $key:ident;)*) => {
        /// What an event tells.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[doc = $doc])* $kind,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The name, without what `ce_type` has around it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// `ce_type`.
            pub const fn ce_type(self) -> &'static str {
                match self { $(Self::$kind => concat!("dev.kith.", $name, ".v1"),)* }
            }

            /// Where it stands.
            pub const fn topic(self) -> Topic {
                match self { $(Self::$kind => Topic::$topic,)* }
            }

            /// Whether only the platform itself reads it: others skip it.
            pub const fn is_internal(self) -> bool {
                match self { $(Self::$kind => is_internal!($reader),)* }
            }

            /// The field of the data that is the record's key.
            pub const fn key_field(self) -> &'static str {
                match self { $(Self::$kind => stringify!($key),)* }
            }

            /// What it tells, in a sentence.
            pub fn what(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc,)*).trim_start(),)* }
            }

            /// The kind of a name.
            pub fn of_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }

        /// An event's data; `C` is how content is held: as it came, or read.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Event<'a, C> { $($(#[doc = $doc])* $kind($data<$($generic),+>),)* }

        impl<'a, C> Event<'a, C> {
            /// Which one.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// The record's key: the conversation or user that it is about.
            pub fn key(&self) -> &str {
                match self { $(Self::$kind(data) => &data.$key,)* }
            }
        }

        impl<'de, C: Deserialize<'de> + Default> Event<'de, C> {
            /// Reads the data of a kind.
            pub fn read(kind: Kind, data: &'de [u8]) -> Result<Self, serde_json::Error> {
                Ok(match kind { $(Kind::$kind => Self::$kind(serde_json::from_slice(data)?),)* })
            }
        }

        /// The schema of a kind's data.
        pub fn schema(kind: Kind) -> serde_json::Value {
            type C = serde_json::Value;
            match kind { $(Kind::$kind => crate::json::schema::<schema_of!($data<$($generic),+>)>(),)* }
        }
    };
}

macro_rules! is_internal {
    (internal) => {
        true
    };
    (public) => {
        false
    };
}

/// The type of some data, of no lifetime.
macro_rules! schema_of {
    ($data:ident<'a, C>) => { $data<'static, C> };
    ($data:ident<'a>) => { $data<'static> };
}

events! {
    /// A message was stored.
    MessageCreated = "message.created", Events, public, MessageCreated<'a, C>, conversation_id;
    /// A message was taken back: it keeps its seq and loses its content.
    MessageRecalled = "message.recalled", Events, public, MessageRecalled<'a>, conversation_id;
    /// A message has another content.
    MessageEdited = "message.edited", Events, public, MessageEdited<'a, C>, conversation_id;
    /// A user's reaction to a message stands, or is gone.
    MessageReaction = "message.reaction", Events, public, MessageReaction<'a>, conversation_id;
    /// A member has read up to a message.
    ReceiptRead = "receipt.read", Events, public, ReceiptRead<'a>, conversation_id;
    /// Messages arrived at a member's device.
    ReceiptDelivered = "receipt.delivered", Events, public, ReceiptDelivered<'a>, conversation_id;
    /// A conversation begins; those of its members who are not named here follow in `member.added`.
    ConversationCreated = "conversation.created", Events, public, ConversationCreated<'a>, conversation_id;
    /// A member has cleared the conversation for themselves.
    ConversationCleared = "conversation.cleared", Events, internal, ConversationCleared<'a>, conversation_id;
    /// A group's own fields, or its owner, are others.
    GroupUpdated = "group.updated", Events, public, GroupUpdated<'a>, conversation_id;
    /// A group has ended; its members go in `member.removed`.
    GroupDissolved = "group.dissolved", Events, public, GroupDissolved<'a>, conversation_id;
    /// Users have come in, at most 500 an event.
    MemberAdded = "member.added", Events, public, MemberAdded<'a>, conversation_id;
    /// Members have gone, at most 500 an event.
    MemberRemoved = "member.removed", Events, public, MemberRemoved<'a>, conversation_id;
    /// A member's role or mute is another.
    MemberUpdated = "member.updated", Events, public, MemberUpdated<'a>, conversation_id;
    /// Messages of one side of a direct conversation are refused, or are taken again.
    MemberBlocked = "member.blocked", Events, internal, MemberBlocked<'a>, conversation_id;
    /// A user has a friend, or the friendship has another alias; each side is told under its own user.
    FriendAdded = "friend.added", Events, public, FriendAdded<'a>, user_id;
    /// A friendship has ended, on this side.
    FriendRemoved = "friend.removed", Events, public, FriendRemoved<'a>, user_id;
    /// Somebody asks the user to be friends.
    FriendRequested = "friend.requested", Events, public, FriendRequested<'a>, user_id;
    /// The user has asked somebody.
    FriendRequestSent = "friend.request_sent", Events, internal, FriendRequestSent<'a>, user_id;
    /// A request waits no longer.
    FriendRequestSettled = "friend.request_settled", Events, internal, FriendRequestSettled<'a>, user_id;
    /// The user blocks somebody.
    BlockAdded = "block.added", Events, public, Block<'a>, user_id;
    /// The user blocks somebody no longer.
    BlockRemoved = "block.removed", Events, public, Block<'a>, user_id;
    /// A user was made, or has another profile.
    ProfileUpdated = "profile.updated", Events, public, ProfileUpdated<'a>, user_id;
    /// A conversation stands in the user's list.
    ListEntered = "list.entered", Events, internal, ListEntered<'a>, user_id;
    /// A conversation stands there no longer.
    ListLeft = "list.left", Events, internal, ListLeft<'a>, user_id;
    /// The user's own settings of a conversation.
    ListUpdated = "list.updated", Events, internal, ListUpdated<'a>, user_id;
    /// Tokens of the user are dead.
    TokenRevoked = "token.revoked", Events, internal, TokenRevoked<'a>, user_id;
    /// A login: the session begins.
    SessionOpened = "session.opened", Sessions, public, SessionData<'a>, user_id;
    /// A session that goes on has another owner among the instances of `sessions`.
    SessionResumed = "session.resumed", Sessions, internal, SessionData<'a>, user_id;
    /// A logout, or a connection that ended.
    SessionClosed = "session.closed", Sessions, public, SessionData<'a>, user_id;
}

impl Kind {
    /// The kind of a `ce_type`; none for one of another version, or of somebody else.
    pub fn of_type(ce_type: &str) -> Option<Self> {
        name_of(ce_type).and_then(Self::of_name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Refused;

    fn from_str(name: &str) -> Result<Self, Refused> {
        Self::of_name(name).ok_or_else(|| Refused::new(format!("kind: {name:?} is no kind of event")))
    }
}

/// The name in a `ce_type`, whether this version knows it or not; none where it is not spelt as one.
pub fn name_of(ce_type: &str) -> Option<&str> {
    ce_type.strip_prefix(PREFIX)?.strip_suffix(VERSION)
}

/// The `ce_type` of a name, whether this version knows it or not: another version's entries are passed on.
pub fn type_of(name: &str) -> Cow<'static, str> {
    match Kind::of_name(name) {
        Some(kind) => kind.ce_type().into(),
        None => format!("{PREFIX}{name}{VERSION}").into(),
    }
}

impl<C: Serialize> Event<'_, C> {
    /// The data as JSON.
    pub fn json(&self) -> String {
        // Strings, numbers, booleans, and maps whose keys are strings: they always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// An event without content, as most are written.
pub type Plain<'a> = Event<'a, ()>;

/// Whom an event concerns: as much of the data of any kind as it takes to pass it on to them.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Concerned<'a> {
    /// The conversation.
    #[serde(borrow, default)]
    pub conversation_id: Option<Cow<'a, str>>,
    /// The user that it is about, or who did it.
    #[serde(borrow, default)]
    pub user_id: Option<Cow<'a, str>>,
    /// Users who have come or gone.
    #[serde(default)]
    pub user_ids: Vec<String>,
    /// The first members.
    #[serde(default)]
    pub member_ids: Vec<String>,
    /// Who did it, where that is another.
    #[serde(borrow, default)]
    pub actor_id: Option<Cow<'a, str>>,
}

impl<'a> Concerned<'a> {
    /// Reads them.
    pub fn read(data: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(data)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_kind_has_one_name_and_one_type() {
        for kind in Kind::ALL {
            assert_eq!((Kind::of_name(kind.name()), Kind::of_type(kind.ce_type())), (Some(*kind), Some(*kind)));
            assert_eq!(type_of(kind.name()), kind.ce_type());
        }
        for unknown in ["dev.kith.message.created.v2", "message.created", "org.other.thing", ""] {
            assert_eq!(Kind::of_type(unknown), None, "{unknown}");
        }
        assert_eq!(
            (type_of("of.later"), name_of("dev.kith.of.later.v1")),
            ("dev.kith.of.later.v1".into(), Some("of.later"))
        );
        assert_eq!(type_of(CORRUPT_NAME), CORRUPT);
    }

    #[test]
    fn the_example_of_every_kind_is_written_as_it_was_read_and_is_about_its_key() {
        for kind in Kind::ALL {
            let text = example::of(*kind);
            let event: Event<'_, Value> = Event::read(*kind, text.as_bytes()).unwrap_or_else(|e| panic!("{kind}: {e}"));
            assert_eq!((event.kind(), event.json().as_str()), (*kind, text), "{kind}");
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value[kind.key_field()], event.key(), "{kind}");
            let who = Concerned::read(text.as_bytes()).unwrap();
            let key = if kind.key_field() == "user_id" { who.user_id } else { who.conversation_id };
            assert_eq!(key.as_deref(), Some(event.key()), "{kind}");
        }
    }

    #[test]
    fn fields_are_written_in_the_order_of_their_names_as_they_have_always_been() {
        for kind in Kind::ALL {
            let text = example::of(*kind);
            // Read and written by name: a map without an order of its own.
            let sorted = serde_json::from_str::<Value>(text).unwrap().to_string();
            let by_name = sorted == text;
            let otherwise =
                matches!(kind, Kind::MessageCreated | Kind::MessageEdited) || kind.topic() == Topic::Sessions;
            assert_eq!(by_name, !otherwise, "{kind}");
        }
    }

    #[test]
    fn readers_skip_what_they_do_not_know_and_refuse_what_says_too_little() {
        for kind in Kind::ALL {
            let mut value: Value = serde_json::from_str(example::of(*kind)).unwrap();
            value["of_a_later_version"] = serde_json::json!({"a": 1});
            let text = value.to_string();
            let event: Event<'_, Value> = Event::read(*kind, text.as_bytes()).unwrap_or_else(|e| panic!("{kind}: {e}"));
            assert_eq!(event.json(), example::of(*kind), "{kind}");
            assert!(Event::<Value>::read(*kind, b"{}").is_err(), "{kind}");
        }
    }
}
