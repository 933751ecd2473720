//! How a message is packed into its row. Reading is total: bytes that are not a row give an error, never a panic.
//!
//! ```text
//! 16  message id (ULID; its time is sent_at)
//!  1  length of the sender, then the sender          \ the identity, by which a retry is found
//!  1  length of the client's id, then the id         /
//!  1  type
//!  v  length of the content, then the content
//!  v  number of mentions, then each: 1 length, bytes     \ left out when both are empty
//!  v  number of extensions, then each: v v key, value    /
//! ```
//!
//! Everything behind the message id depends on the draft alone, so two rows of the same draft are equal from byte 16 on.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kith_proto::chat::v1::{Draft, Message};
use thiserror::Error;
use ulid::Ulid;

/// Bytes of the message id.
pub(crate) const ID_BYTES: usize = 16;

/// A row that this version of the library did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a message row: {0}")]
pub(crate) struct Corrupt(&'static str);

/// A row as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Message id.
    pub(crate) id: Ulid,
    /// Who wrote it.
    pub(crate) sender_id: String,
    /// The sender's own id.
    pub(crate) client_msg_id: String,
    /// `MessageType`.
    pub(crate) kind: u8,
    /// JSON.
    pub(crate) content: Bytes,
    /// Mentioned users.
    pub(crate) mentions: Vec<String>,
    /// Extensions.
    pub(crate) ext: BTreeMap<String, String>,
}

/// Bytes of the identity in the row of `draft`.
pub(crate) fn identity_len(draft: &Draft) -> usize {
    2 + draft.sender_id.len() + draft.client_msg_id.len()
}

/// Packs a draft whose fields have been checked (ids of at most 255 bytes).
pub(crate) fn pack(id: Ulid, draft: &Draft) -> Bytes {
    let mut out = BytesMut::with_capacity(ID_BYTES + identity_len(draft) + draft.content.len() + 8);
    out.put_slice(&id.to_bytes());
    for text in [&draft.sender_id, &draft.client_msg_id] {
        out.put_u8(text.len() as u8);
        out.put_slice(text.as_bytes());
    }
    out.put_u8(draft.r#type as u8);
    put_varint(&mut out, draft.content.len());
    out.put_slice(&draft.content);
    if !draft.mentions.is_empty() || !draft.ext.is_empty() {
        put_varint(&mut out, draft.mentions.len());
        for mention in &draft.mentions {
            out.put_u8(mention.len() as u8);
            out.put_slice(mention.as_bytes());
        }
        put_varint(&mut out, draft.ext.len());
        for (key, value) in &draft.ext {
            for text in [key, value] {
                put_varint(&mut out, text.len());
                out.put_slice(text.as_bytes());
            }
        }
    }
    out.freeze()
}

/// Reads a row.
pub(crate) fn unpack(mut row: Bytes) -> Result<Row, Corrupt> {
    if row.len() < ID_BYTES {
        return Err(Corrupt("too short"));
    }
    let mut id = [0; ID_BYTES];
    row.copy_to_slice(&mut id);
    let sender_id = short_text(&mut row)?;
    let client_msg_id = short_text(&mut row)?;
    let kind = byte(&mut row)?;
    let length = varint(&mut row)?;
    let content = take(&mut row, length)?;
    let (mut mentions, mut ext) = (Vec::new(), BTreeMap::new());
    if row.has_remaining() {
        for _ in 0..varint(&mut row)? {
            mentions.push(short_text(&mut row)?);
        }
        for _ in 0..varint(&mut row)? {
            let key = long_text(&mut row)?;
            ext.insert(key, long_text(&mut row)?);
        }
        if row.has_remaining() {
            return Err(Corrupt("bytes behind the end"));
        }
    }
    Ok(Row { id: Ulid::from_bytes(id), sender_id, client_msg_id, kind, content, mentions, ext })
}

impl Row {
    /// When storage took it, Unix ms.
    pub(crate) fn sent_at(&self) -> i64 {
        i64::try_from(self.id.timestamp_ms()).unwrap_or(i64::MAX)
    }

    /// The message at `seq`, without recalls, edits and reactions.
    pub(crate) fn into_message(self, conversation_id: &str, seq: u64) -> Message {
        Message {
            conversation_id: conversation_id.to_owned(),
            seq,
            message_id: self.id.to_string(),
            sent_at: self.sent_at(),
            client_msg_id: self.client_msg_id,
            sender_id: self.sender_id,
            r#type: i32::from(self.kind),
            content: self.content,
            mentions: self.mentions,
            ext: self.ext,
            recalled: false,
            edited_at: 0,
            reactions: Vec::new(),
        }
    }
}

/// When a row was stored, Unix ms; none for bytes that are too short.
#[cfg(test)]
pub(crate) fn sent_at(row: &[u8]) -> Option<i64> {
    let (first, _) = row.split_first_chunk::<6>()?;
    Some(first.iter().fold(0, |at, byte| at << 8 | i64::from(*byte)))
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn byte(row: &mut Bytes) -> Result<u8, Corrupt> {
    if row.has_remaining() { Ok(row.get_u8()) } else { Err(Corrupt("ends early")) }
}

fn varint(row: &mut Bytes) -> Result<usize, Corrupt> {
    let mut value = 0_usize;
    for shift in [0, 7, 14, 21] {
        let next = byte(row)?;
        value |= usize::from(next & 0x7F) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Corrupt("a length that no row has"))
}

fn take(row: &mut Bytes, length: usize) -> Result<Bytes, Corrupt> {
    if length > row.len() { Err(Corrupt("ends early")) } else { Ok(row.split_to(length)) }
}

fn text(bytes: Bytes) -> Result<String, Corrupt> {
    String::from_utf8(bytes.into()).map_err(|_| Corrupt("text that is not UTF-8"))
}

fn short_text(row: &mut Bytes) -> Result<String, Corrupt> {
    let length = usize::from(byte(row)?);
    text(take(row, length)?)
}

fn long_text(row: &mut Bytes) -> Result<String, Corrupt> {
    let length = varint(row)?;
    text(take(row, length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draft() -> impl Strategy<Value = Draft> {
        (
            "[a-z]{1,64}",
            "[a-z0-9-]{1,64}",
            1..10_i32,
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec("[a-z]{1,64}", 0..4),
            proptest::collection::btree_map(".{0,20}", ".{0,200}", 0..4),
        )
            .prop_map(|(sender_id, client_msg_id, kind, content, mentions, ext)| Draft {
                client_msg_id,
                sender_id,
                r#type: kind,
                content: content.into(),
                mentions,
                ext,
            })
    }

    proptest! {
        #[test]
        fn a_packed_draft_reads_back_as_it_was(draft in draft(), id in any::<u128>()) {
            let id = Ulid::from(id);
            let row = unpack(pack(id, &draft)).unwrap();
            prop_assert_eq!(row.id, id);
            let back = Draft {
                client_msg_id: row.client_msg_id, sender_id: row.sender_id, r#type: i32::from(row.kind),
                content: row.content, mentions: row.mentions, ext: row.ext,
            };
            prop_assert_eq!(back, draft);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(unpack(bytes.into()));
        }

        #[test]
        fn a_damaged_row_never_panics(draft in draft(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = pack(Ulid::from(1_u128), &draft).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(cut.index(bytes.len() + 1));
            drop(unpack(bytes.into()));
        }
    }

    #[test]
    fn a_sixty_byte_message_takes_little_more_than_its_content() {
        let draft = Draft {
            client_msg_id: "c-123456".into(),
            sender_id: "alice".into(),
            r#type: 1,
            content: vec![b'x'; 60].into(),
            ..Draft::default()
        };
        assert!(pack(Ulid::from(1_u128), &draft).len() <= 60 + 34);
    }
}
