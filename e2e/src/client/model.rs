//! The contract's JSON, as a client developer would write it down: 64-bit integers are strings and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// 64-bit integers as decimal strings; a JSON number is refused, because the contract says string.
pub mod decimal {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the number as a string.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads the number from a string.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|e| D::Error::custom(format!("{text:?}: {e}")))
    }

    /// The same for a field that may be null or absent.
    pub mod option {
        use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer};

        /// Writes the number as a string, none as null.
        pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.collect_str(value),
                None => serializer.serialize_none(),
            }
        }

        /// Reads the number from a string, null as none.
        pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
        where
            T: FromStr,
            T::Err: Display,
            D: Deserializer<'de>,
        {
            let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.map(|text| text.parse().map_err(|e| D::Error::custom(format!("{text:?}: {e}")))).transpose()
        }
    }
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Where.
    pub conversation_id: String,
    /// Its place, from 1 without a hole.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// ULID.
    pub message_id: String,
    /// The sender's own id.
    #[serde(default)]
    pub client_msg_id: String,
    /// Who.
    pub sender_id: String,
    /// Unix ms.
    #[serde(with = "decimal")]
    pub sent_at: i64,
    /// text, image, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Null or empty when recalled.
    #[serde(default)]
    pub content: Value,
    /// Mentioned users.
    #[serde(default)]
    pub mentions: Vec<String>,
    /// The sender's own keys.
    #[serde(default)]
    pub ext: BTreeMap<String, String>,
    /// Whether it lost its content.
    #[serde(default)]
    pub recalled: bool,
    /// Unix ms of the last edit.
    #[serde(default, with = "decimal::option")]
    pub edited_at: Option<i64>,
    /// Who reacted with what.
    #[serde(default)]
    pub reactions: BTreeMap<String, Vec<String>>,
    /// How many reacted so.
    #[serde(default)]
    pub reaction_counts: BTreeMap<String, u32>,
    /// The reader's own.
    #[serde(default)]
    pub my_reactions: Vec<String>,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Draft {
    /// Idempotency id.
    pub client_msg_id: String,
    /// A known conversation, or
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// the other user of a direct one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient_id: Option<String>,
    /// text, image, …
    #[serde(rename = "type")]
    pub kind: String,
    /// A JSON object.
    pub content: Value,
    /// Mentioned users.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<String>,
    /// The sender's own keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ext: BTreeMap<String, String>,
}

impl Draft {
    /// A text to a user, with a fresh client_msg_id.
    pub fn to(recipient: impl Into<String>, text: &str) -> Self {
        Self { recipient_id: Some(recipient.into()), ..Self::text(text) }
    }

    /// A text into a conversation, with a fresh client_msg_id.
    pub fn into_conversation(conversation: impl Into<String>, text: &str) -> Self {
        Self { conversation_id: Some(conversation.into()), ..Self::text(text) }
    }

    /// The same draft under another client_msg_id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.client_msg_id = id.into();
        self
    }

    fn text(text: &str) -> Self {
        Self {
            client_msg_id: ulid::Ulid::generate().to_string(),
            conversation_id: None,
            recipient_id: None,
            kind: "text".to_owned(),
            content: serde_json::json!({"text": text}),
            mentions: Vec::new(),
            ext: BTreeMap::new(),
        }
    }
}

/// The answer to a send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sent {
    /// ULID.
    pub message_id: String,
    /// Where it went.
    pub conversation_id: String,
    /// Its place.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// Unix ms.
    #[serde(with = "decimal")]
    pub sent_at: i64,
    /// Whether an earlier call had stored it.
    pub duplicate: bool,
}

/// A position in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Where.
    pub conversation_id: String,
    /// Up to and with.
    #[serde(with = "decimal")]
    pub seq: u64,
}

/// An entry of a user's list.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Conversation {
    /// Which.
    pub conversation_id: String,
    /// direct, group or system.
    pub kind: String,
    /// Newest seq.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// Read up to.
    #[serde(with = "decimal")]
    pub read_seq: u64,
    /// Not read yet.
    #[serde(with = "decimal")]
    pub unread: u64,
    /// The newest message.
    #[serde(default)]
    pub last_message: Option<Message>,
    /// Pinned by the caller.
    #[serde(default)]
    pub pinned: bool,
    /// Muted by the caller.
    #[serde(default)]
    pub muted: bool,
    /// Unix ms.
    #[serde(with = "decimal")]
    pub updated_at: i64,
}

/// A page of a user's list.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Conversations {
    /// Newest activity first.
    pub conversations: Vec<Conversation>,
    /// Absent, null or empty at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A page of history.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct History {
    /// Ascending.
    pub messages: Vec<Message>,
    /// Whether there is more in the direction asked for.
    pub has_more: bool,
}

/// The answer to a read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Read {
    /// Read up to.
    #[serde(with = "decimal")]
    pub read_seq: u64,
    /// Not read yet.
    #[serde(with = "decimal")]
    pub unread: u64,
}

/// One conversation of a sync.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Synced {
    /// Which.
    pub conversation_id: String,
    /// Newest seq.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// After the cursor, ascending.
    pub messages: Vec<Message>,
    /// Whether more follow.
    pub has_more: bool,
}

/// A page of a sync.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sync {
    /// What is behind.
    pub conversations: Vec<Synced>,
    /// Absent, null or empty at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// URI of the kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short text.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What to do.
    pub detail: String,
    /// gRPC code name.
    pub code: String,
    /// Where it helps.
    #[serde(default)]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_message_is_read_and_a_number_where_a_string_belongs_is_refused() {
        let text = r#"{"conversation_id":"d:alice:bob","seq":"42","message_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","client_msg_id":"c-1",
            "sender_id":"alice","sent_at":"1790000000000","type":"text","content":{"text":"hi"},"mentions":["bob"],"ext":{"k":"v"},
            "recalled":false,"edited_at":null,"reactions":{"👍":["bob"]}}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!((message.seq, message.edited_at), (42, None));
        assert!(serde_json::from_str::<Message>(&text.replace("\"42\"", "42")).is_err());
    }
}
