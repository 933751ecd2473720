//! What messages weigh in an answer: one measure for all answers that hold messages, and the bound of one answer.
//!
//! The library's functions count by it, too (`BESIDE` in `kith1.lua`), so that an engine reads and gives no more than is answered. What a
//! message weighs is at least what its answer takes: its row has the content, the mentions and the extensions; its overlay has the text of
//! an edit and the reactions; the rest is [`BESIDE`].

use crate::core::{
    check::{CONTENT_BYTES, EXT_BYTES, EXT_ENTRIES, MENTIONS},
    messages::{REACTIONS, REACTORS},
};

/// What one answer may weigh. Callers count on it: the API reserves as much for a page before it asks.
pub(crate) const PAGE: usize = kith_clients::storage::PAGE_BYTES;

/// What the messages of one page may weigh, where there is more than one: a page of the largest ones would keep the engine from everybody else
/// for as long as a hundred small calls, and some three times as long those who pass it on.
pub(crate) const GATHERED: usize = 1 << 20;

/// What a message weighs beside its row and its overlay, at most: its own id and its conversation's, positions, times, and what the form of
/// answers adds to each mention, extension and reaction.
pub(crate) const BESIDE: usize = 1024;

/// What a message weighs: the library's own words, for the engine in memory.
#[cfg(test)]
pub(crate) fn of(row: usize, overlay: usize) -> usize {
    row + overlay + BESIDE
}

/// The largest message that can be stored. As text in an overlay, an edited content may take twice its bytes; an id takes its length and
/// two quotes, and a comma or a length beside it.
const LARGEST_ROW: usize = 160 + CONTENT_BYTES + MENTIONS * ID + EXT_BYTES + EXT_ENTRIES * 8;
const LARGEST_OVERLAY: usize = 100 + 2 * CONTENT_BYTES + REACTIONS * (ID + 8 + REACTORS * ID);
const ID: usize = kith_contract::ids::MAX_ID_BYTES + 3;

// One message always fits into an answer.
const _: () = assert!(LARGEST_ROW + LARGEST_OVERLAY + BESIDE <= PAGE);

/// The row and the overlay of the largest message.
#[cfg(test)]
pub(crate) fn largest() -> (kith_proto::chat::v1::Draft, crate::core::model::Overlay) {
    let id = |n: usize| format!("{n:0>64}");
    let draft = kith_proto::chat::v1::Draft {
        client_msg_id: id(1),
        sender_id: id(2),
        r#type: 1,
        content: format!("{{\"text\":\"{}\"}}", "x".repeat(CONTENT_BYTES - 11)).into(),
        mentions: (0..MENTIONS).map(id).collect(),
        ext: (0..EXT_ENTRIES).map(|n| (id(n), "\u{1}".repeat(EXT_BYTES / EXT_ENTRIES - 64))).collect(),
    };
    let names: Vec<String> = (0..REACTORS).map(id).collect();
    let overlay = crate::core::model::Overlay {
        edited_at: i64::MAX,
        content: Some(format!("{{\"text\":\"{}\"}}", "\\\"".repeat(CONTENT_BYTES / 2 - 6))),
        reactions: (0..REACTIONS).map(|n| (id(n), names.clone())).collect(),
        ..crate::core::model::Overlay::default()
    };
    (draft, overlay)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kith_proto::chat::v1::Draft;
    use proptest::prelude::*;
    use prost::Message as _;
    use ulid::Ulid;

    use super::*;
    use crate::{
        codec,
        core::model::{self, Overlay},
    };

    fn weight_and_answer(id: &str, draft: &Draft, overlay: Option<&Overlay>) -> (usize, usize) {
        let row = codec::pack(Ulid::from(u128::MAX >> 1), draft);
        let overlay = overlay.map(|o| serde_json::to_vec(o).unwrap().into());
        let weight = of(row.len(), overlay.as_ref().map_or(0, bytes::Bytes::len));
        (weight, model::message(id, u64::MAX, row, overlay.as_ref(), "u").unwrap().encoded_len() + 8)
    }

    #[test]
    fn the_largest_message_fits_into_an_answer_and_takes_no_more_than_its_weight() {
        let (draft, overlay) = largest();
        let talk = "d".repeat(kith_contract::ids::MAX_CONVERSATION_ID_BYTES);
        for overlay in [None, Some(&overlay)] {
            let (weight, answer) = weight_and_answer(&talk, &draft, overlay);
            assert!(answer <= weight && weight <= PAGE, "{answer}, {weight}");
        }
        let row = codec::pack(Ulid::from(u128::MAX >> 1), &draft).len();
        let overlay = serde_json::to_vec(&overlay).unwrap().len();
        assert!(row <= LARGEST_ROW && overlay <= LARGEST_OVERLAY, "{row}, {overlay}");
    }

    #[test]
    fn the_library_counts_by_the_same_measure() {
        assert!(crate::LIBRARY.contains(&format!("local BESIDE = {BESIDE}\n")));
    }

    proptest! {
        #[test]
        fn no_answer_takes_more_than_its_message_weighs(
            content in "[ -~]{0,80}",
            mentions in proptest::collection::vec("[a-z]{1,3}", 0..=MENTIONS),
            ext in proptest::collection::btree_map("[a-z]{1,3}", ".{0,3}", 0..=EXT_ENTRIES),
            edited in proptest::option::of("[ -~]{0,80}"),
            reactions in proptest::collection::btree_map("[a-z]{1,32}", proptest::collection::vec("[a-z]{1,3}", 1..4), 0..=REACTIONS),
        ) {
            let draft = Draft { client_msg_id: "c".into(), sender_id: "a".into(), r#type: 1, content: content.into(), mentions, ext: BTreeMap::from_iter(ext) };
            let overlay = Overlay { edited_at: 1, content: edited, reactions, ..Overlay::default() };
            for overlay in [None, Some(&overlay)] {
                let (weight, answer) = weight_and_answer("d:a:b", &draft, overlay);
                prop_assert!(answer <= weight, "{answer}, {weight}");
            }
        }
    }
}
