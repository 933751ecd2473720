//! The JSON objects of the HTTP API besides messages, which are the contract's; 64-bit integers are strings.

use std::collections::BTreeMap;

use kith_contract::{json::U64, kinds::ConversationKind};
use kith_proto::{
    chat::v1::{Message, Receipt},
    storage::v1 as storage,
};
use kith_rpc::error::Error;
use kith_send::json::message_json;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// What the messages of one answer may take as JSON; one always fits.
pub(crate) const ROOM: usize = kith_clients::storage::PAGE_BYTES;

/// A time in Unix ms; 0 for what never was.
pub(crate) fn ms(time: i64) -> U64 {
    U64(u64::try_from(time).unwrap_or(0))
}

/// Messages as they are shown, in their order, as far as there is `room` for them: with escapes they may take more bytes than they weigh in
/// storage. Those that come first in `stored` have it first.
pub(crate) fn messages<'a>(
    stored: impl Iterator<Item = &'a Message>,
    room: usize,
) -> Result<Vec<Box<RawValue>>, Error> {
    let mut left = room;
    let mut shown = Vec::new();
    for message in stored {
        let json = message_json(message)?;
        let Some(rest) = left.checked_sub(json.get().len()) else { break };
        left = rest;
        shown.push(json);
    }
    Ok(shown)
}

/// A message that has been stored.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sent {
    message_id: String,
    conversation_id: String,
    #[schema(value_type = String, example = "42")]
    seq: U64,
    #[schema(value_type = String, example = "1790000000000")]
    sent_at: U64,
    /// True when an earlier call with the same client_msg_id had stored it.
    pub(crate) duplicate: bool,
}

impl From<Receipt> for Sent {
    fn from(receipt: Receipt) -> Self {
        Self {
            message_id: receipt.message_id,
            conversation_id: receipt.conversation_id,
            seq: U64(receipt.seq),
            sent_at: ms(receipt.sent_at),
            duplicate: receipt.duplicate,
        }
    }
}

/// Why one of several could not be told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure {
    /// A gRPC code name, as in problem documents.
    code: String,
    detail: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: error.code_name().to_owned(), detail: error.detail.into_owned() }
    }
}

/// A conversation as its member sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Conversation {
    conversation_id: String,
    #[schema(value_type = crate::schema::ConversationKind)]
    kind: ConversationKind,
    /// The newest message.
    #[schema(value_type = String)]
    seq: U64,
    /// Up to where the caller has read.
    #[schema(value_type = String)]
    read_seq: U64,
    #[schema(value_type = String)]
    unread: U64,
    #[schema(value_type = Option<crate::schema::Message>)]
    last_message: Option<Box<RawValue>>,
    pinned: bool,
    muted: bool,
    #[schema(value_type = String)]
    updated_at: U64,
    /// Only where this conversation could not be read: then nothing but its id is known. The others are not affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl From<storage::Conversation> for Conversation {
    fn from(stored: storage::Conversation) -> Self {
        let kind = ConversationKind::from(stored.kind());
        let (last_message, unreadable) = match stored.last_message.as_ref().map(message_json).transpose() {
            Ok(last) => (last, None),
            Err(error) => (None, Some(error)),
        };
        let error = stored.error.map(Error::from).or(unreadable);
        Self {
            kind,
            seq: U64(stored.seq),
            read_seq: U64(stored.read_seq),
            unread: U64(stored.unread),
            last_message,
            pinned: stored.pinned,
            muted: stored.muted,
            updated_at: ms(stored.updated_at),
            error: error.map(Failure::from),
            conversation_id: stored.conversation_id,
        }
    }
}

/// A profile.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct User {
    user_id: String,
    nickname: String,
    avatar_url: String,
    attrs: BTreeMap<String, String>,
    #[schema(value_type = String)]
    version: U64,
}

impl From<storage::User> for User {
    fn from(stored: storage::User) -> Self {
        Self {
            user_id: stored.user_id,
            nickname: stored.nickname,
            avatar_url: stored.avatar_url,
            attrs: stored.attrs,
            version: U64(stored.version),
        }
    }
}

/// A place in a conversation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Position {
    pub(crate) conversation_id: String,
    #[schema(value_type = String, example = "42")]
    pub(crate) seq: U64,
}

/// Whether a call changed something; false when it had been so before.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Changed {
    pub(crate) changed: bool,
}

/// A page of results: how many, and from where.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// 1 to 200; 50 when absent.
    pub(crate) limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default)]
    pub(crate) cursor: String,
}
