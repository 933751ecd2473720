//! Messages as JSON: one that is stored, one to send, and a place in a conversation.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{
    json::{AnyObject, Decimal, MaybeDecimal},
    kinds::MessageType,
};

/// Users by emoji.
pub type Reactions<'a> = BTreeMap<Cow<'a, str>, Cow<'a, [String]>>;

/// What clients and the event log have in common stands here once; each adds fields behind the content and at the end.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { content: [$($content:tt)*], end: [$($end:tt)*] })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[schemars(bound = "C: JsonSchema + Default")]
        pub struct $name<'a, C> {
            /// Where.
            pub conversation_id: Cow<'a, str>,
            /// From "1", without a hole, per conversation.
            #[serde(with = "Decimal")]
            pub seq: u64,
            /// ULID, made once by storage.
            pub message_id: Cow<'a, str>,
            /// The sender's own, for retries.
            #[serde(default)]
            pub client_msg_id: Cow<'a, str>,
            /// Who.
            pub sender_id: Cow<'a, str>,
            /// Unix ms, storage's clock.
            #[serde(with = "Decimal")]
            pub sent_at: i64,
            /// What it is.
            #[serde(rename = "type")]
            pub kind: MessageType,
            /// At most 64 KiB; empty when recalled.
            #[serde(default)]
            #[schemars(with = "AnyObject")]
            pub content: C,
            $($content)*
            /// Users that it is about.
            #[serde(default)]
            pub mentions: Cow<'a, [String]>,
            /// The sender's own facts.
            #[serde(default)]
            pub ext: Cow<'a, BTreeMap<String, String>>,
            /// Taken back: it keeps its seq and has lost its content.
            #[serde(default)]
            pub recalled: bool,
            /// Unix ms; null: never edited.
            #[serde(default, with = "MaybeDecimal")]
            pub edited_at: Option<i64>,
            /// Users by emoji: at most 20 each, the first who reacted so.
            #[serde(default)]
            pub reactions: Reactions<'a>,
            $($end)*
        }
    )*};
}

messages! {
    /// A message as a client sees it.
    Message {
        content: [],
        end: [
            /// How many reacted so, by emoji.
            #[serde(default)]
            pub reaction_counts: BTreeMap<Cow<'a, str>, u32>,
            /// The reactions of the user who asks.
            #[serde(default)]
            pub my_reactions: Vec<Cow<'a, str>>,
        ]
    }

    /// A message as the event log tells of it.
    MessageCreated {
        content: [
            /// The content in hexadecimal, where it was given in a way that JSON does not give back byte by byte; else absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub content_bytes: Option<Cow<'a, str>>,
        ],
        end: [
            /// Not counted as read by its sender: a business line wrote it into a conversation of others. Absent where it does not hold.
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            pub privileged: bool,
        ]
    }
}

/// A message to send; exactly one of `conversation_id` and `recipient_id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SendMessage<C> {
    /// The sender's own, for retries: 1 to 64 bytes of [A-Za-z0-9._:@-].
    pub client_msg_id: String,
    /// A conversation that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// Opens the direct conversation where there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient_id: Option<String>,
    /// What it is; not yet checked. `system` is for business lines only.
    #[serde(rename = "type")]
    #[schemars(with = "MessageType")]
    pub kind: String,
    /// A JSON object of at most 64 KiB; type text needs a `text` that is not blank.
    #[schemars(with = "AnyObject")]
    pub content: C,
    /// At most 100 users.
    #[serde(default, deserialize_with = "or_none", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub mentions: Vec<String>,
    /// At most 32 entries, 4 KiB in all.
    #[serde(default, deserialize_with = "or_none", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub ext: BTreeMap<String, String>,
}

/// What is null is as good as absent.
fn or_none<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A place in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    /// Where.
    pub conversation_id: String,
    /// Up to and with this message.
    #[serde(with = "Decimal")]
    pub seq: u64,
}

/// JSON that a caller gave, as it goes into an event: as it is. What a reader of JSON would not give back byte by byte (space around it,
/// text that is no JSON) stands beside it in hexadecimal.
#[derive(Debug, Clone)]
pub struct Given<'a> {
    /// `content`
    pub content: &'a RawValue,
    /// `content_bytes`
    pub content_bytes: Option<Cow<'static, str>>,
}

impl<'a> Given<'a> {
    /// As it goes into an event.
    pub fn new(given: &'a [u8]) -> Result<Self, serde_json::Error> {
        // Raw text is taken more freely than most readers take it: only what all of them read is passed on.
        let raw = serde_json::from_slice::<serde_json::Value>(given).and_then(|_| serde_json::from_slice(given));
        let content: &RawValue = match raw {
            Ok(raw) => raw,
            Err(_) => serde_json::from_str("{}")?,
        };
        let content_bytes = (content.get().as_bytes() != given).then(|| to_hex(given).into());
        Ok(Self { content, content_bytes })
    }

    /// The bytes that the caller gave, from the fields of an event; none if the hexadecimal ones are no bytes.
    pub fn bytes<'b>(content: &'b RawValue, content_bytes: Option<&str>) -> Option<Cow<'b, [u8]>> {
        match content_bytes {
            None => Some(Cow::Borrowed(content.get().as_bytes())),
            Some(hex) => from_hex(hex).map(Cow::Owned),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(((digit(*high)? << 4) | digit(*low)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn content_stands_in_an_event_as_it_was_given_and_no_byte_is_lost() {
        for (given, content, hex) in [
            (&br#"{"b": 1.0, "a":1e2}"#[..], r#"{"b": 1.0, "a":1e2}"#, None),
            (b" {} ", "{}", Some("207b7d20")),
            (b"{\xff", "{}", Some("7bff")),
            (br#"{"n":1e999}"#, "{}", Some("7b226e223a31653939397d")),
        ] {
            let told = Given::new(given).unwrap();
            assert_eq!((told.content.get(), told.content_bytes.as_deref()), (content, hex));
            assert_eq!(Given::bytes(told.content, hex).unwrap(), given);
        }
        assert!(from_hex("7b0").is_none() && from_hex("zz").is_none());
    }

    #[test]
    fn what_a_message_may_lack_has_a_default() {
        let text =
            r#"{"conversation_id":"c","seq":1,"message_id":"m","sender_id":"a","sent_at":"2","type":"text","more":1}"#;
        let message: Message<'_, Value> = serde_json::from_str(text).unwrap();
        assert_eq!((message.seq, message.sent_at, message.edited_at, &message.content), (1, 2, None, &Value::Null));
        let created: MessageCreated<'_, Option<&RawValue>> = serde_json::from_str(text).unwrap();
        assert!(created.content.is_none() && !created.privileged);
        let null = text.replace("\"more\":1", "\"content\":null,\"edited_at\":null");
        assert!(serde_json::from_str::<MessageCreated<'_, Option<&RawValue>>>(&null).unwrap().content.is_none());
    }

    proptest! {
        #[test]
        fn a_message_reads_back_as_it_was_written(
            text in "\\PC{0,12}", seq in any::<u64>(), time in any::<i64>(), kind in proptest::sample::select(MessageType::ALL),
            edited in proptest::option::of(any::<i64>()), names in proptest::collection::vec("[a-z]{1,4}", 0..3), flag in any::<bool>(),
        ) {
            let written = MessageCreated {
                conversation_id: text.as_str().into(), seq, message_id: "m".into(), client_msg_id: "c".into(), sender_id: "a".into(),
                sent_at: time, kind, content: Value::String(text.clone()), content_bytes: flag.then(|| "00".into()),
                mentions: names.clone().into(), ext: Cow::Owned([(text.clone(), text.clone())].into()), recalled: flag, edited_at: edited,
                reactions: [(Cow::from(text.as_str()), Cow::from(names.clone()))].into(), privileged: flag,
            };
            let json = serde_json::to_string(&written).unwrap();
            prop_assert_eq!(&serde_json::from_str::<MessageCreated<'_, Value>>(&json).unwrap(), &written);
            let seen: Message<'_, Value> = serde_json::from_str(&json).unwrap();
            let again = serde_json::to_string(&seen).unwrap();
            prop_assert_eq!(serde_json::from_str::<Message<'_, Value>>(&again).unwrap(), seen);
        }
    }
}
