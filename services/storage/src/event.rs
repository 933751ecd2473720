//! Events: how one stands in the outbox, and what it is on the event log (CloudEvents 1.0, binary mode).
//!
//! A stored message is in the outbox by its place alone (`m<seq> <conversation>`): its row is in the conversation already. Everything else
//! carries its data: `j<type>\n<key>\n<time>\n<JSON>`. Reading is total.

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_proto::chat::v1::{Message, MessageType};
use serde_json::{Map, Value, json};

use crate::codec;

/// In the data of an event: replaced by the value that the function found (JSON text never holds this byte).
pub(crate) const FOUND: char = '\u{1}';

/// A body for the outbox.
pub(crate) fn body(kind: &str, key: &str, at_ms: i64, data: &Value) -> Bytes {
    format!("j{kind}\n{key}\n{at_ms}\n{data}").into()
}

/// The outbox body of a message.
pub(crate) fn message_body(conversation_id: &str, seq: u64) -> Bytes {
    format!("m{seq} {conversation_id}").into()
}

/// A record of the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message.created` and so on.
    pub(crate) kind: String,
    /// Conversation or user id.
    pub(crate) key: String,
    /// Unix ms.
    pub(crate) at_ms: i64,
    /// JSON.
    pub(crate) data: Vec<u8>,
}

/// Reads an outbox entry; `row` is the message's, where the entry is one.
pub(crate) fn read(body: &[u8], row: Option<Bytes>) -> Result<Event, String> {
    let text = std::str::from_utf8(body).map_err(|_| "an outbox entry that is not text".to_owned())?;
    if let Some(place) = text.strip_prefix('m') {
        let (seq, conversation_id) = place.split_once(' ').ok_or("an outbox entry without a conversation")?;
        let seq = seq.parse().map_err(|_| "an outbox entry without a seq".to_owned())?;
        let row = row.ok_or_else(|| format!("the row of {conversation_id} seq {seq} is missing"))?;
        let row = codec::unpack(row).map_err(|e| format!("{conversation_id} seq {seq}: {e}"))?;
        let (at_ms, message) = (row.sent_at(), row.into_message(conversation_id, seq));
        let data = message_json(&message).to_string().into_bytes();
        return Ok(Event { kind: "message.created".to_owned(), key: conversation_id.to_owned(), at_ms, data });
    }
    let rest = text.strip_prefix('j').ok_or("an outbox entry of an unknown kind")?;
    let mut parts = rest.splitn(4, '\n');
    let mut next = || parts.next().ok_or("an outbox entry that ends early");
    let (kind, key, at, data) = (next()?, next()?, next()?, next()?);
    let at_ms = at.parse().map_err(|_| "an outbox entry without a time".to_owned())?;
    Ok(Event { kind: kind.to_owned(), key: key.to_owned(), at_ms, data: data.as_bytes().to_vec() })
}

/// The contract's name of a message type.
pub(crate) fn type_name(kind: i32) -> &'static str {
    match MessageType::try_from(kind).unwrap_or_default() {
        MessageType::Unspecified | MessageType::Custom => "custom",
        MessageType::Text => "text",
        MessageType::Image => "image",
        MessageType::File => "file",
        MessageType::Audio => "audio",
        MessageType::Video => "video",
        MessageType::Location => "location",
        MessageType::Card => "card",
        MessageType::System => "system",
    }
}

/// A message as the external contract spells it.
pub(crate) fn message_json(message: &Message) -> Value {
    let content = serde_json::from_slice(&message.content).unwrap_or_else(|_| Value::Object(Map::new()));
    let reactions: BTreeMap<&str, &[String]> =
        message.reactions.iter().map(|r| (r.emoji.as_str(), r.user_ids.as_slice())).collect();
    json!({
        "conversation_id": message.conversation_id,
        "seq": message.seq.to_string(),
        "message_id": message.message_id,
        "client_msg_id": message.client_msg_id,
        "sender_id": message.sender_id,
        "sent_at": message.sent_at.to_string(),
        "type": type_name(message.r#type),
        "content": content,
        "mentions": message.mentions,
        "ext": message.ext,
        "recalled": message.recalled,
        "edited_at": (message.edited_at != 0).then(|| message.edited_at.to_string()),
        "reactions": reactions,
    })
}

/// Unix ms as RFC 3339 in UTC, for `ce_time`.
pub(crate) fn rfc3339(at_ms: i64) -> String {
    let (days, ms) = (at_ms.div_euclid(86_400_000), at_ms.rem_euclid(86_400_000));
    // Civil date from a day number, with years that begin in March so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_spelt_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
    }

    #[test]
    fn an_event_reads_back_as_it_was_put() {
        let put = body("receipt.read", "d:a:b", 7, &json!({"seq": "3"}));
        let event = read(&put, None).unwrap();
        assert_eq!((event.kind.as_str(), event.key.as_str(), event.at_ms), ("receipt.read", "d:a:b", 7));
        assert_eq!(event.data, br#"{"seq":"3"}"#);
    }

    #[test]
    fn a_message_whose_row_is_missing_is_named() {
        assert!(read(&message_body("d:a:b", 4), None).unwrap_err().contains("d:a:b seq 4"));
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(entry in proptest::collection::vec(any::<u8>(), 0..200), row in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200))) {
            drop(read(&entry, row.map(Bytes::from)));
        }
    }
}
