//! What a gateway sends. Messages and events, which come often and whose parts are JSON already, are put together from their parts.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::{
    json::{AnyObject, Decimal, U64},
    message::Message,
};

/// A frame of the server; `C` is how content and the data of events are held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(bound = "C: JsonSchema + Default")]
pub enum ServerFrame<'a, C> {
    /// The first frame of an authenticated connection.
    Hello(Hello<'a>),
    /// Messages: live ones, and what the device has not had yet.
    Messages {
        /// Ascending by conversation.
        messages: Vec<Message<'a, C>>,
        /// Conversations that have more than was pushed: pull it, by POST /v1/sync or the history.
        #[serde(default)]
        has_more: BTreeMap<Cow<'a, str>, bool>,
    },
    /// A `send` was stored.
    Sent(Sent<'a>),
    /// A `send` was refused, or failed.
    Error(Refusal<'a>),
    /// Something happened; never stored, and not repeated.
    Event {
        /// What.
        event: EventName<'a>,
        /// The fields that say it.
        #[serde(default)]
        #[schemars(with = "AnyObject")]
        data: C,
    },
    /// The answer to a `ping`.
    Pong,
    /// The gateway is going away: come back after a while. Then it closes with 4000.
    Reconnect(Reconnect<'a>),
}

/// The `hello` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello<'a> {
    /// This connection.
    pub session_id: Cow<'a, str>,
    /// Whose token it is.
    pub user_id: Cow<'a, str>,
    /// Milliseconds: a client that has not sent anything for so long sends a `ping`.
    #[serde(with = "Decimal")]
    pub heartbeat_ms: u64,
    /// True: the client's cursors were taken as they are, and everything after them follows.
    pub resumed: bool,
    /// To present at the next connection.
    #[serde(default)]
    pub resume_token: Cow<'a, str>,
    /// Unix ms.
    #[serde(with = "Decimal")]
    pub server_time: i64,
}

/// The `sent` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sent<'a> {
    /// Of the `send` frame.
    pub id: Cow<'a, str>,
    /// ULID.
    pub message_id: Cow<'a, str>,
    /// Where it went.
    pub conversation_id: Cow<'a, str>,
    /// Its place.
    #[serde(with = "Decimal")]
    pub seq: u64,
    /// Unix ms.
    #[serde(with = "Decimal")]
    pub sent_at: i64,
    /// Whether an earlier call with the same client_msg_id had stored it.
    #[serde(default)]
    pub duplicate: bool,
}

/// The `error` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal<'a> {
    /// Of the `send` frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// A gRPC code's name, as in problem documents.
    pub code: Cow<'a, str>,
    /// Where it helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// What to do about it.
    #[serde(default)]
    pub detail: Cow<'a, str>,
    /// When to try again, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<U64>,
}

/// The `reconnect` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reconnect<'a> {
    /// When, milliseconds.
    #[serde(with = "Decimal")]
    pub after_ms: u64,
    /// To present then.
    #[serde(default)]
    pub resume_token: Cow<'a, str>,
}

/// What an `event` frame tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventName<'a> {
    /// `receipt.read`
    Read,
    /// `message.recalled`
    Recalled,
    /// `message.edited`
    Edited,
    /// `message.reaction`
    Reaction,
    /// `profile.updated`
    Profile,
    /// `friend.added` or `friend.removed`; `change` says which.
    Friend,
    /// `friend.requested`
    FriendRequest,
    /// `group.updated`, `group.dissolved`, `member.added`, `member.removed` or `member.updated`; `change` says which.
    Group,
    /// `conversation.created`
    Conversation,
    /// Somebody came online or went.
    Presence,
    /// Somebody is typing.
    Typing,
    /// Of a later version: skip it.
    Other(Cow<'a, str>),
}

impl EventName<'static> {
    /// Those of this version, with what they tell.
    pub const ALL: [(Self, &'static str); 11] = [
        (
            Self::Read,
            "The data of the event `receipt.read`; in groups of more than 200 only to the reader's own devices.",
        ),
        (Self::Recalled, "The data of the event `message.recalled`."),
        (Self::Edited, "The data of the event `message.edited`."),
        (Self::Reaction, "The data of the event `message.reaction`."),
        (Self::Profile, "The data of the event `profile.updated`: of a friend, or the user's own."),
        (Self::Friend, "`change` says which: `friend.added` or `friend.removed`, and its data."),
        (Self::FriendRequest, "`change` is `friend.requested`, and its data."),
        (
            Self::Group,
            "`change` says which: `group.updated`, `group.dissolved`, `member.added`, `member.removed` or `member.updated`, and its data.",
        ),
        (Self::Conversation, "`change` is `conversation.created`, and its data."),
        (Self::Presence, "Not sent by this version."),
        (Self::Typing, "`conversation_id`, and `user_id`: who is typing there."),
    ];

    /// The name, if clients of this version know it.
    pub fn known(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::Read,
            "recalled" => Self::Recalled,
            "edited" => Self::Edited,
            "reaction" => Self::Reaction,
            "profile" => Self::Profile,
            "friend" => Self::Friend,
            "friend_request" => Self::FriendRequest,
            "group" => Self::Group,
            "conversation" => Self::Conversation,
            "presence" => Self::Presence,
            "typing" => Self::Typing,
            _ => return None,
        })
    }
}

impl EventName<'_> {
    /// As frames spell it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Read => "read",
            Self::Recalled => "recalled",
            Self::Edited => "edited",
            Self::Reaction => "reaction",
            Self::Profile => "profile",
            Self::Friend => "friend",
            Self::FriendRequest => "friend_request",
            Self::Group => "group",
            Self::Conversation => "conversation",
            Self::Presence => "presence",
            Self::Typing => "typing",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for EventName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventName<'static> {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(Self::known(name).unwrap_or_else(|| Self::Other(name.to_owned().into())))
    }
}

impl Serialize for EventName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EventName<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        Ok(EventName::known(&name).unwrap_or_else(|| EventName::Other(name.into_owned().into())))
    }
}

impl JsonSchema for EventName<'_> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "EventName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<String> = EventName::ALL.iter().map(|(name, _)| name.to_string()).collect();
        json_schema!({"type": "string", "enum": names})
    }
}

impl<C: Serialize> ServerFrame<'_, C> {
    /// The frame as text.
    pub fn text(&self) -> String {
        // Strings, integers, booleans, and maps whose keys are strings: they always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// As much of a frame as a client needs that counts and acknowledges what comes, and no more: frames of all types are read into it.
#[derive(Debug, Deserialize)]
pub struct Glance<'a> {
    /// Which frame.
    #[serde(rename = "type")]
    pub kind: FrameKind,
    /// Of `sent` and `error`.
    #[serde(borrow, default)]
    pub id: Option<Cow<'a, str>>,
    /// Of `error`.
    #[serde(borrow, default)]
    pub code: Option<Cow<'a, str>>,
    /// Of `messages`.
    #[serde(borrow, default)]
    pub messages: Vec<MessageGlance<'a>>,
}

/// The types of frames of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    /// [`Hello`]
    Hello,
    /// [`ServerFrame::Messages`]
    Messages,
    /// [`Sent`]
    Sent,
    /// [`Refusal`]
    Error,
    /// [`ServerFrame::Event`]
    Event,
    /// [`ServerFrame::Pong`]
    Pong,
    /// [`Reconnect`]
    Reconnect,
    /// Of a later version.
    #[serde(other)]
    Other,
}

/// As much of a message.
#[derive(Debug, Deserialize)]
pub struct MessageGlance<'a> {
    /// Where.
    #[serde(borrow)]
    pub conversation_id: Cow<'a, str>,
    /// Its place.
    #[serde(with = "Decimal")]
    pub seq: u64,
    /// The sender's own id.
    #[serde(borrow)]
    pub client_msg_id: Cow<'a, str>,
    /// Who.
    #[serde(borrow)]
    pub sender_id: Cow<'a, str>,
}

/// A `messages` frame from messages that are JSON already, and the conversations that have more: ids, of an alphabet that needs no escapes.
pub fn messages<'a, 'b>(
    messages: impl Iterator<Item = &'a str> + Clone,
    more: impl IntoIterator<Item = &'b str>,
) -> String {
    let size = messages.clone().map(|json| json.len() + 1).sum::<usize>() + 64;
    let mut text = String::with_capacity(size);
    text.push_str(r#"{"type":"messages","messages":["#);
    for (at, json) in messages.enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(json);
    }
    text.push_str(r#"],"has_more":{"#);
    for (at, id) in more.into_iter().enumerate() {
        text.push_str(if at > 0 { ",\"" } else { "\"" });
        text.push_str(id);
        text.push_str("\":true");
    }
    text.push_str("}}");
    text
}

/// An `event` frame from data that are JSON already; none when they are not, or when clients do not know the name.
pub fn event(name: &str, data: &[u8]) -> Option<String> {
    let data: &RawValue = serde_json::from_slice(data).ok()?;
    let name = EventName::known(name)?;
    Some(format!(r#"{{"type":"event","event":"{name}","data":{}}}"#, data.get()))
}

/// The data of an event with its kind as `change`, where one name of a frame stands for several kinds.
pub fn named(kind: &str, data: &[u8]) -> Vec<u8> {
    let rest = data.iter().position(|b| *b == b'{').map_or(data, |at| &data[at + 1..]);
    let comma = if rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'}') { "" } else { "," };
    let mut named = format!("{{\"change\":\"{kind}\"{comma}").into_bytes();
    named.extend_from_slice(rest);
    named
}

/// The data of a `typing` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Typing<'a> {
    /// Where.
    pub conversation_id: Cow<'a, str>,
    /// Who.
    pub user_id: Cow<'a, str>,
}

impl Typing<'_> {
    /// As it goes into a frame.
    pub fn json(&self) -> String {
        // Two strings always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{super::example, *};
    use crate::events::Kind;

    type Frame = ServerFrame<'static, Value>;

    #[test]
    fn the_examples_are_written_as_they_were_read() {
        for (name, text) in example::SERVER {
            let frame: Frame = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(frame.text(), text, "{name}");
            let glance: Glance<'_> = serde_json::from_str(text).unwrap();
            assert!(
                glance.kind != FrameKind::Other && glance.messages.len() == usize::from(name == "messages"),
                "{name}"
            );
            assert!(text.starts_with(&format!("{{\"type\":\"{name}\"")), "{name}");
        }
        assert_eq!(example::SERVER.len(), 7);
    }

    #[test]
    fn frames_from_parts_are_the_frames_that_types_read() {
        let one = r#"{"conversation_id":"d:a:b","seq":"1","message_id":"m","sender_id":"a","sent_at":"1","type":"text","content":{}}"#;
        let other = one.replace("\"seq\":\"1\"", "\"seq\":\"2\"");
        let text = messages([one, other.as_str()].into_iter(), ["d:a:b", "d:a:c"]);
        let Frame::Messages { messages, has_more } = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(has_more, [("d:a:b".into(), true), ("d:a:c".into(), true)].into());
        let none = super::messages(std::iter::empty(), []);
        assert_eq!(serde_json::from_str::<Frame>(&none).unwrap().text(), none);
        for (name, _) in EventName::ALL {
            let text = event(name.as_str(), b" {\"a\": 1.50}").unwrap();
            assert_eq!(
                serde_json::from_str::<Frame>(&text).unwrap(),
                Frame::Event { event: name, data: json!({"a": 1.5}) }
            );
        }
        assert!(event("typing", b"{").is_none() && event("dance", b"{}").is_none());
    }

    #[test]
    fn an_event_of_a_later_version_is_read_and_keeps_its_name() {
        let text = r#"{"type":"event","event":"dance","data":{}}"#;
        let frame: Frame = serde_json::from_str(text).unwrap();
        assert_eq!(frame.text(), text);
    }

    #[test]
    fn an_empty_object_stays_json_when_it_is_named() {
        for (text, fields) in [("{}", 1), (" { } ", 1), ("{\"a\":1}", 2)] {
            let value: Value = serde_json::from_slice(&named(Kind::GroupUpdated.name(), text.as_bytes())).unwrap();
            assert_eq!(
                (&value["change"], value.as_object().unwrap().len()),
                (&Kind::GroupUpdated.name().into(), fields)
            );
        }
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_written(
            id in "\\PC{0,20}", number in any::<u64>(), time in any::<i64>(), flag in any::<bool>(), wait in proptest::option::of(any::<u64>()),
        ) {
            let id = || Cow::Owned(id.clone());
            for frame in [
                Frame::Hello(Hello { session_id: id(), user_id: id(), heartbeat_ms: number, resumed: flag, resume_token: id(), server_time: time }),
                Frame::Sent(Sent { id: id(), message_id: id(), conversation_id: id(), seq: number, sent_at: time, duplicate: flag }),
                Frame::Error(Refusal { id: flag.then(id), code: id(), reason: flag.then(id), detail: id(), retry_after_ms: wait.map(U64) }),
                Frame::Pong,
                Frame::Reconnect(Reconnect { after_ms: number, resume_token: id() }),
            ] {
                prop_assert_eq!(serde_json::from_str::<Frame>(&frame.text()).unwrap(), frame);
            }
        }
    }
}
