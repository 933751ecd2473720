//! The JSON of a message as API.md shows it; 64-bit integers are strings.

use std::{collections::BTreeMap, marker::PhantomData};

use kith_proto::chat::v1::{Message, Platform, Reaction};
use kith_rpc::error::Error;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, value::MapAccessDeserializer},
};
use serde_json::value::RawValue;

use crate::draft::type_name;

/// What a client gives as a JSON object, and never as an array: a derived struct would take its fields from one by their order. Stands at
/// every place of a body or frame where a struct is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

/// A 64-bit integer: a string in what we write, a string or a number in what we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct U64(pub u64);

impl Serialize for U64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for U64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = U64;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an unsigned 64-bit integer as a string")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<U64, E> {
                Ok(U64(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<U64, E> {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let parsed = digits.then(|| value.parse().ok()).flatten();
                parsed.map(U64).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Times in Unix ms.
// By reference, as serde hands fields over.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn time<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(ms)
}

/// A message as clients see it; borrows from the stored one.
#[derive(Debug, Serialize)]
pub struct MessageView<'a> {
    conversation_id: &'a str,
    seq: U64,
    message_id: &'a str,
    client_msg_id: &'a str,
    sender_id: &'a str,
    #[serde(serialize_with = "time")]
    sent_at: i64,
    r#type: &'static str,
    content: &'a RawValue,
    mentions: &'a [String],
    ext: &'a BTreeMap<String, String>,
    recalled: bool,
    edited_at: Option<U64>,
    #[serde(serialize_with = "names")]
    reactions: &'a [Reaction],
    #[serde(serialize_with = "counts")]
    reaction_counts: &'a [Reaction],
    #[serde(serialize_with = "mine")]
    my_reactions: &'a [Reaction],
}

fn names<S: Serializer>(reactions: &&[Reaction], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(reactions.iter().map(|r| (&r.emoji, &r.user_ids)))
}

fn counts<S: Serializer>(reactions: &&[Reaction], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(reactions.iter().map(|r| (&r.emoji, r.count)))
}

fn mine<S: Serializer>(reactions: &&[Reaction], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(reactions.iter().filter(|r| r.mine).map(|r| &r.emoji))
}

impl<'a> MessageView<'a> {
    /// The view of a stored message; DATA_LOSS when its content is no JSON.
    pub fn of(message: &'a Message) -> Result<Self, Error> {
        // A recalled message has lost its content: an empty object keeps the field's type.
        let content: &RawValue = if message.content.is_empty() {
            serde_json::from_str("{}")
        } else {
            serde_json::from_slice(&message.content)
        }
        .map_err(|error| {
            let (conversation_id, seq) = (&message.conversation_id, message.seq);
            tracing::error!(%conversation_id, seq, %error, "stored content is not JSON");
            Error::data_loss()
        })?;
        Ok(Self {
            conversation_id: &message.conversation_id,
            seq: U64(message.seq),
            message_id: &message.message_id,
            client_msg_id: &message.client_msg_id,
            sender_id: &message.sender_id,
            sent_at: message.sent_at,
            r#type: type_name(message.r#type()),
            content,
            mentions: &message.mentions,
            ext: &message.ext,
            recalled: message.recalled,
            edited_at: u64::try_from(message.edited_at).ok().filter(|at| *at > 0).map(U64),
            reactions: &message.reactions,
            reaction_counts: &message.reactions,
            my_reactions: &message.reactions,
        })
    }
}

/// The JSON text of a message.
pub fn message_json(message: &Message) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(&MessageView::of(message)?).map_err(|error| {
        tracing::error!(%error, "a message could not be written as JSON");
        Error::internal("a message could not be written as JSON")
    })
}

/// A platform by its contract name.
pub fn platform(name: &str) -> Option<Platform> {
    Some(match name {
        "ios" => Platform::Ios,
        "android" => Platform::Android,
        "web" => Platform::Web,
        "mweb" => Platform::Mweb,
        "pc" => Platform::Pc,
        _ => return None,
    })
}

/// The contract name of a platform; none for an unspecified one.
pub fn platform_name(platform: Platform) -> Option<&'static str> {
    Some(match platform {
        Platform::Ios => "ios",
        Platform::Android => "android",
        Platform::Web => "web",
        Platform::Mweb => "mweb",
        Platform::Pc => "pc",
        Platform::Unspecified => return None,
    })
}

#[cfg(test)]
mod tests {
    use kith_proto::chat::v1::MessageType;
    use tonic::Code;

    use super::*;

    fn message() -> Message {
        Message {
            conversation_id: "d:alice:bob".into(),
            seq: 42,
            message_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            client_msg_id: "c-1".into(),
            sender_id: "alice".into(),
            sent_at: 1_790_000_000_000,
            r#type: MessageType::Text.into(),
            content: r#"{"text":"hi"}"#.into(),
            mentions: vec!["bob".into()],
            ext: [("k".to_owned(), "v".to_owned())].into(),
            recalled: false,
            edited_at: 0,
            reactions: vec![
                Reaction { emoji: "👍".into(), user_ids: vec!["bob".into()], count: 1_000, mine: true },
                Reaction { emoji: "ok".into(), user_ids: vec!["ann".into()], count: 1, mine: false },
            ],
        }
    }

    #[test]
    fn a_message_is_what_the_contract_shows() {
        let json: serde_json::Value = serde_json::from_str(message_json(&message()).unwrap().get()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"conversation_id": "d:alice:bob", "seq": "42", "message_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "client_msg_id": "c-1", "sender_id": "alice", "sent_at": "1790000000000", "type": "text",
                "content": {"text": "hi"}, "mentions": ["bob"], "ext": {"k": "v"}, "recalled": false, "edited_at": null,
                "reactions": {"👍": ["bob"], "ok": ["ann"]}, "reaction_counts": {"👍": 1000, "ok": 1}, "my_reactions": ["👍"]})
        );
    }

    #[test]
    fn a_recalled_message_keeps_its_seq_and_an_empty_content() {
        let recalled = Message { recalled: true, content: bytes::Bytes::new(), edited_at: 5, ..message() };
        let json: serde_json::Value = serde_json::from_str(message_json(&recalled).unwrap().get()).unwrap();
        assert_eq!(
            (&json["seq"], &json["content"], &json["edited_at"]),
            (&"42".into(), &serde_json::json!({}), &"5".into())
        );
    }

    #[test]
    fn damaged_content_is_an_error_and_not_a_panic() {
        for damaged in [&b"{"[..], b"\xff", b"{} x"] {
            let damaged = Message { content: bytes::Bytes::copy_from_slice(damaged), ..message() };
            assert_eq!(message_json(&damaged).unwrap_err().code, Code::DataLoss);
        }
    }

    #[test]
    fn an_object_is_never_taken_from_an_array() {
        #[derive(Debug, Deserialize)]
        struct Inner<'a> {
            #[serde(borrow)]
            raw: &'a RawValue,
            #[serde(default)]
            seq: Option<U64>,
        }
        #[derive(Debug, Deserialize)]
        struct Outer<'a> {
            #[serde(borrow)]
            items: Vec<Object<Inner<'a>>>,
        }
        fn read(text: &str) -> Result<Object<Outer<'_>>, serde_json::Error> {
            serde_json::from_str(text)
        }
        let Object(outer) = read(r#"{"items":[{"raw":{"a": 1.50},"seq":"7"}]}"#).unwrap();
        assert_eq!((outer.items[0].0.raw.get(), outer.items[0].0.seq), (r#"{"a": 1.50}"#, Some(U64(7))));
        for bad in
            ["[[]]", r#"[[{"raw":1}]]"#, r#"{"items":[[1,"7"]]}"#, r#"{"items":[{"raw":1},[1]]}"#, "null", "1", "\"\""]
        {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{bad}: {error}");
        }
    }

    #[test]
    fn integers_are_taken_as_strings_and_as_numbers() {
        assert_eq!(serde_json::from_str::<U64>("\"18446744073709551615\"").unwrap(), U64(u64::MAX));
        assert_eq!(serde_json::from_str::<U64>("7").unwrap(), U64(7));
        for bad in ["\"\"", "\"+1\"", "\"-1\"", "-1", "1.5", "\"18446744073709551616\"", "null", "true"] {
            assert!(serde_json::from_str::<U64>(bad).is_err(), "{bad}");
        }
    }
}
