//! A stored message in the contract's words, for clients and for the event log: the one place where their fields meet.

use std::borrow::Cow;

use kith_contract::message::{self, MessageCreated};

use crate::chat::v1::Message;

/// What clients and the event log have in common, as in the contract; each adds its own fields.
macro_rules! told {
    ($row:expr => $contract:path { $($own:tt)* }) => {{
        let row = $row;
        $contract {
            conversation_id: row.conversation_id.as_str().into(),
            seq: row.seq,
            message_id: row.message_id.as_str().into(),
            client_msg_id: row.client_msg_id.as_str().into(),
            sender_id: row.sender_id.as_str().into(),
            sent_at: row.sent_at,
            kind: row.r#type().into(),
            mentions: row.mentions.as_slice().into(),
            ext: Cow::Borrowed(&row.ext),
            recalled: row.recalled,
            edited_at: (row.edited_at != 0).then_some(row.edited_at),
            reactions: row.reactions.iter().map(|r| (r.emoji.as_str().into(), r.user_ids.as_slice().into())).collect(),
            $($own)*
        }
    }};
}

impl Message {
    /// The message as a client sees it; it borrows what it can. `content` is what the caller makes of the row's bytes, which need not be
    /// JSON.
    pub fn shown<C>(&self, content: C) -> message::Message<'_, C> {
        told!(self => message::Message {
            content,
            reaction_counts: self.reactions.iter().map(|r| (r.emoji.as_str().into(), r.count)).collect(),
            my_reactions: self.reactions.iter().filter(|r| r.mine).map(|r| r.emoji.as_str().into()).collect(),
        })
    }

    /// The message as the event log tells of it; `content` and `content_bytes` as [`kith_contract::message::Given`] has them.
    pub fn created<'a, C>(
        &'a self,
        content: C,
        content_bytes: Option<Cow<'a, str>>,
        privileged: bool,
    ) -> MessageCreated<'a, C> {
        told!(self => MessageCreated { content, content_bytes, privileged })
    }
}
