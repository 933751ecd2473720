//! Events: how one stands in the outbox, and what it is on the event log (CloudEvents 1.0, binary mode).
//!
//! A stored message is in the outbox by its place alone (`m<seq> <conversation>`, with `M` where it was privileged): its row is in the
//! conversation already. Everything else carries its data: `j<type>\n<key>\n<time>\n<JSON>`. Reading is total.
//!
//! The data of an event is enough to restore what it changed (see [`crate::repair`]): where the contract's own fields are not, others
//! stand beside them.

use std::borrow::Cow;

use bytes::Bytes;
use kith_contract::{
    events::{self, Kind},
    found,
    message::Given,
};
use kith_proto::chat::v1::Message;
use serde::Serialize;

use crate::codec;

/// The events of storage, all but messages without content.
pub(crate) use kith_contract::events::{Event as Told, Plain};

/// A body for the outbox.
pub(crate) fn body<C: Serialize>(event: &Told<'_, C>, at_ms: i64) -> Bytes {
    format!("j{}\n{}\n{at_ms}\n{}", event.kind().name(), event.key(), event.json()).into()
}

/// A body with a place for what the function finds: see [`kith_contract::found`].
pub(crate) fn open_body(event: &Plain<'_>, at_ms: i64) -> Bytes {
    format!("j{}\n{}\n{at_ms}\n{}", event.kind().name(), event.key(), found::open(&event.json())).into()
}

/// The body with what the function found.
pub(crate) fn filled(open: &[u8], found: impl std::fmt::Display) -> Bytes {
    found::fill(open, found).into()
}

/// The outbox body of a message.
pub(crate) fn message_body(conversation_id: &str, seq: u64, privileged: bool) -> Bytes {
    let mark = if privileged { 'M' } else { 'm' };
    format!("{mark}{seq} {conversation_id}").into()
}

/// A record of the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The name of its kind; another version may have written one that is not known here.
    pub(crate) kind: Cow<'static, str>,
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
        return Ok(Event { kind: Kind::MessageCreated.name().into(), key: conversation_id.to_owned(), at_ms, data });
    }
    let rest = text.strip_prefix('j').ok_or("an outbox entry of an unknown kind")?;
    let mut parts = rest.splitn(4, '\n');
    let mut next = || parts.next().ok_or("an outbox entry that ends early");
    let (kind, key, at, data) = (next()?, next()?, next()?, next()?);
    let at_ms = at.parse().map_err(|_| "an outbox entry without a time".to_owned())?;
    let kind = Kind::of_name(kind).map_or_else(|| kind.to_owned().into(), |kind| kind.name().into());
    Ok(Event { kind, key: key.to_owned(), at_ms, data: data.as_bytes().to_vec() })
}

/// What takes the place of an entry that cannot be read: consumers wait for every version.
pub(crate) fn corrupt() -> Event {
    Event {
        kind: events::CORRUPT_NAME.into(),
        key: String::new(),
        at_ms: 0,
        data: events::CORRUPT_DATA.as_bytes().to_vec(),
    }
}

fn message_data(message: &Message, privileged: bool) -> Result<Vec<u8>, serde_json::Error> {
    let Given { content, content_bytes } = Given::new(&message.content)?;
    serde_json::to_vec(&message.created(content, content_bytes, privileged))
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
    use kith_contract::{events::ReceiptRead, found::Found, json::U64};
    use proptest::prelude::*;

    #[test]
    fn times_are_spelt_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
    }

    #[test]
    fn an_event_reads_back_as_it_was_put() {
        let read_seq = |found| {
            Plain::ReceiptRead(ReceiptRead { conversation_id: "d:a:b".into(), read_seq: found, user_id: "a".into() })
        };
        let known = body(&read_seq(Found::Is(U64(3))), 7);
        assert_eq!(
            known,
            b"jreceipt.read\nd:a:b\n7\n{\"conversation_id\":\"d:a:b\",\"read_seq\":\"3\",\"user_id\":\"a\"}"[..]
        );
        let open = open_body(&read_seq(Found::Later), 7);
        assert_eq!(open.split(|byte| *byte == 1).count(), 2);
        assert_eq!(filled(&open, 3), known);
        let event = read(&known, None).unwrap();
        assert_eq!((&*event.kind, event.key.as_str(), event.at_ms), (Kind::ReceiptRead.name(), "d:a:b", 7));
        assert_eq!(event.data, &known[known.len() - event.data.len()..]);
    }

    #[test]
    fn an_entry_of_another_version_keeps_its_name() {
        let event = read(b"jof.later\nk\n7\n{}", None).unwrap();
        assert_eq!((&*event.kind, &event.data[..]), ("of.later", &b"{}"[..]));
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
