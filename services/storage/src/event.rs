//! Events: how one stands in the outbox, and what it is on the event log (CloudEvents 1.0, binary mode).
//!
//! A stored message is in the outbox by its place alone (`m<seq> <conversation>`, with `M` where it was privileged): its row is in the
//! conversation already. Everything else carries its data: `j<type>\n<key>\n<time>\n<JSON>`. Reading is total.
//!
//! The data of an event is enough to restore what it changed (see [`crate::repair`]): where the contract's own fields are not, others
//! stand beside them.

use std::collections::BTreeMap;

use bytes::Bytes;
use kith_proto::chat::v1::{Message, MessageType};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::codec;

/// In the data of an event: replaced by the value that the function found (JSON text never holds this byte).
pub(crate) const FOUND: char = '\u{1}';

/// A body for the outbox.
pub(crate) fn body(kind: &str, key: &str, at_ms: i64, data: &Value) -> Bytes {
    format!("j{kind}\n{key}\n{at_ms}\n{data}").into()
}

/// A body with a place for what the function finds: JSON text spells the byte as an escape, the function looks for the byte itself.
pub(crate) fn with_found(body: &Bytes) -> Bytes {
    String::from_utf8_lossy(body).replace("\\u0001", &FOUND.to_string()).into()
}

/// A body whose data is JSON text already.
pub(crate) fn body_of<T: Serialize>(kind: &str, key: &str, at_ms: i64, data: &T) -> Result<Bytes, serde_json::Error> {
    Ok(format!("j{kind}\n{key}\n{at_ms}\n{}", serde_json::to_string(data)?).into())
}

/// The outbox body of a message.
pub(crate) fn message_body(conversation_id: &str, seq: u64, privileged: bool) -> Bytes {
    let mark = if privileged { 'M' } else { 'm' };
    format!("{mark}{seq} {conversation_id}").into()
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
    if let Some(place) = text.strip_prefix(['m', 'M']) {
        let privileged = text.starts_with('M');
        let (seq, conversation_id) = place.split_once(' ').ok_or("an outbox entry without a conversation")?;
        let seq = seq.parse().map_err(|_| "an outbox entry without a seq".to_owned())?;
        let row = row.ok_or_else(|| format!("the row of {conversation_id} seq {seq} is missing"))?;
        let row = codec::unpack(row).map_err(|e| format!("{conversation_id} seq {seq}: {e}"))?;
        let (at_ms, message) = (row.sent_at(), row.into_message(conversation_id, seq));
        let data = message_data(&message, privileged).map_err(|e| format!("{conversation_id} seq {seq}: {e}"))?;
        return Ok(Event { kind: "message.created".to_owned(), key: conversation_id.to_owned(), at_ms, data });
    }
    let rest = text.strip_prefix('j').ok_or("an outbox entry of an unknown kind")?;
    let mut parts = rest.splitn(4, '\n');
    let mut next = || parts.next().ok_or("an outbox entry that ends early");
    let (kind, key, at, data) = (next()?, next()?, next()?, next()?);
    let at_ms = at.parse().map_err(|_| "an outbox entry without a time".to_owned())?;
    Ok(Event { kind: kind.to_owned(), key: key.to_owned(), at_ms, data: data.as_bytes().to_vec() })
}

/// The message type of a contract's name; none for a name that is none.
pub(crate) fn type_of(name: &str) -> Option<MessageType> {
    (0..).map_while(|n| MessageType::try_from(n).ok()).skip(1).find(|kind| type_name(*kind as i32) == name)
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

/// JSON that a caller gave, as it goes into an event: as it is. What a reader of JSON would not give back byte by byte (space around it,
/// text that is no JSON) stands beside it in hexadecimal.
#[derive(Debug, Serialize)]
pub(crate) struct Content {
    content: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_bytes: Option<String>,
}

impl Content {
    pub(crate) fn new(given: &[u8]) -> Result<Self, serde_json::Error> {
        // Raw text is taken more freely than most readers take it: only what all of them read is passed on.
        let raw = serde_json::from_slice::<Value>(given).and_then(|_| serde_json::from_slice::<Box<RawValue>>(given));
        let content = match raw {
            Ok(raw) => raw,
            Err(_) => RawValue::from_string("{}".to_owned())?,
        };
        let content_bytes = (content.get().as_bytes() != given).then(|| to_hex(given));
        Ok(Self { content, content_bytes })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Bytes that were written by [`Content`]; none for anything else.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(((digit(*high)? << 4) | digit(*low)?) as u8)).collect()
}

/// A message as the external contract spells it.
#[derive(Serialize)]
struct MessageData<'a> {
    conversation_id: &'a str,
    seq: String,
    message_id: &'a str,
    client_msg_id: &'a str,
    sender_id: &'a str,
    sent_at: String,
    r#type: &'static str,
    #[serde(flatten)]
    content: Content,
    mentions: &'a [String],
    ext: &'a BTreeMap<String, String>,
    recalled: bool,
    edited_at: Option<String>,
    reactions: BTreeMap<&'a str, &'a [String]>,
    /// Not counted as read by its sender.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    privileged: bool,
}

fn message_data(message: &Message, privileged: bool) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&MessageData {
        conversation_id: &message.conversation_id,
        seq: message.seq.to_string(),
        message_id: &message.message_id,
        client_msg_id: &message.client_msg_id,
        sender_id: &message.sender_id,
        sent_at: message.sent_at.to_string(),
        r#type: type_name(message.r#type),
        content: Content::new(&message.content)?,
        mentions: &message.mentions,
        ext: &message.ext,
        recalled: message.recalled,
        edited_at: (message.edited_at != 0).then(|| message.edited_at.to_string()),
        reactions: message.reactions.iter().map(|r| (r.emoji.as_str(), r.user_ids.as_slice())).collect(),
        privileged,
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
    use serde_json::json;

    #[test]
    fn content_stands_in_an_event_as_it_was_given_and_no_byte_is_lost() {
        let text = |given: &[u8]| serde_json::to_string(&Content::new(given).unwrap()).unwrap();
        assert_eq!(text(br#"{"b": 1.0, "a":1e2}"#), r#"{"content":{"b": 1.0, "a":1e2}}"#);
        assert_eq!(text(b" {} "), r#"{"content":{},"content_bytes":"207b7d20"}"#);
        assert_eq!(text(b"{\xff"), r#"{"content":{},"content_bytes":"7bff"}"#);
        assert_eq!(from_hex("7bff").unwrap(), b"{\xff");
        assert!(from_hex("7b0").is_none() && from_hex("zz").is_none());
    }

    #[test]
    fn a_type_is_found_by_its_name() {
        for kind in 1..10 {
            assert_eq!(type_of(type_name(kind)).unwrap() as i32, kind);
        }
        assert_eq!(type_of("smell"), None);
    }

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
        assert!(read(&message_body("d:a:b", 4, false), None).unwrap_err().contains("d:a:b seq 4"));
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(entry in proptest::collection::vec(any::<u8>(), 0..200), row in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200))) {
            drop(read(&entry, row.map(Bytes::from)));
        }
    }
}
