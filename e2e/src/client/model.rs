//! What a client holds: the contract's messages, and the answers of the HTTP API as a client developer would write them down. 64-bit integers
//! are strings and nothing else.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
};

use kith_contract::{
    kinds::{ConversationKind, MessageType},
    message, problem,
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error as _};
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
pub type Message = message::Message<'static, Value>;
/// A problem document.
pub type Problem = problem::Problem<'static>;

/// Reads what the platform wrote, to the letter: of the fields that the contract has, each must be spelt as the contract spells it. A
/// number where a string belongs is refused, though the contract's types, which read what clients write, take it.
pub fn exact<T: DeserializeOwned + Serialize>(text: &str) -> Result<T, serde_json::Error> {
    exact_value(&serde_json::from_str(text)?)
}

fn exact_value<T: DeserializeOwned + Serialize>(given: &Value) -> Result<T, serde_json::Error> {
    let read: T = serde_json::from_value(given.clone())?;
    match difference(given, &serde_json::to_value(&read)?) {
        None => Ok(read),
        Some((given, spelt)) => Err(serde_json::Error::custom(format!("{given} instead of {spelt}"))),
    }
}

/// The first of the given fields that is spelt otherwise; what a later version has added is none.
fn difference(given: &Value, spelt: &Value) -> Option<(String, String)> {
    match (given, spelt) {
        (Value::Object(given), Value::Object(spelt)) => {
            given.iter().find_map(|(name, value)| difference(value, spelt.get(name)?))
        }
        (Value::Array(given), Value::Array(spelt)) if given.len() == spelt.len() => {
            given.iter().zip(spelt).find_map(|(given, spelt)| difference(given, spelt))
        }
        _ => (given != spelt).then(|| (given.to_string(), spelt.to_string())),
    }
}

fn exact_messages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Message>, D::Error> {
    let given = Vec::<Value>::deserialize(deserializer)?;
    given.into_iter().map(|message| exact_value(&message).map_err(D::Error::custom)).collect()
}

fn exact_message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Message>, D::Error> {
    let given = Option::<Value>::deserialize(deserializer)?;
    given.map(|message| exact_value(&message).map_err(D::Error::custom)).transpose()
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Draft(message::SendMessage<Value>);

impl Deref for Draft {
    type Target = message::SendMessage<Value>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Draft {
    /// A text to a user, with a fresh client_msg_id.
    pub fn to(recipient: impl Into<String>, text: &str) -> Self {
        Self(message::SendMessage { recipient_id: Some(recipient.into()), ..Self::text(text) })
    }

    /// A text into a conversation, with a fresh client_msg_id.
    pub fn into_conversation(conversation: impl Into<String>, text: &str) -> Self {
        Self(message::SendMessage { conversation_id: Some(conversation.into()), ..Self::text(text) })
    }

    /// The same draft under another client_msg_id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.0.client_msg_id = id.into();
        self
    }

    fn text(text: &str) -> message::SendMessage<Value> {
        message::SendMessage {
            client_msg_id: ulid::Ulid::generate().to_string(),
            conversation_id: None,
            recipient_id: None,
            kind: MessageType::Text.to_string(),
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

pub use kith_contract::message::Position;

/// An entry of a user's list.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Conversation {
    /// Which.
    pub conversation_id: String,
    /// What it is.
    pub kind: ConversationKind,
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
    #[serde(default, deserialize_with = "exact_message")]
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
    #[serde(deserialize_with = "exact_messages")]
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
    #[serde(deserialize_with = "exact_messages")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_message_is_read_and_a_number_where_a_string_belongs_is_refused() {
        let text = r#"{"conversation_id":"d:alice:bob","seq":"42","message_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","client_msg_id":"c-1",
            "sender_id":"alice","sent_at":"1790000000000","type":"text","content":{"text":"hi"},"mentions":["bob"],"ext":{"k":"v"},
            "recalled":false,"edited_at":null,"reactions":{"👍":["bob"]}}"#;
        let message: Message = exact(text).unwrap();
        assert_eq!((message.seq, message.edited_at), (42, None));
        assert!(exact::<Message>(&text.replace("\"42\"", "42")).is_err());
        assert!(exact::<Message>(&text.replace("\"ext\"", "\"of_a_later_version\":1,\"ext\"")).is_ok());
    }
}
