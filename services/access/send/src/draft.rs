//! What a sender gives, checked: ids, type, content, mentions, ext. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use kith_contract::{ids, kinds::MessageType, message::SendMessage, text::is_blank};
use kith_proto::chat::v1 as chat;
use kith_rpc::error::{Error, reason};
use serde_json::{Value, value::RawValue};

/// Content as compact JSON.
pub const MAX_CONTENT_BYTES: usize = 64 << 10;
/// Users mentioned by one message.
pub const MAX_MENTIONS: usize = 100;
/// Entries of `ext`.
pub const MAX_EXT_ENTRIES: usize = 32;
/// Keys of `ext`.
pub const MAX_EXT_KEY_BYTES: usize = 64;
/// Keys and values of `ext` together.
pub const MAX_EXT_BYTES: usize = 4 << 10;

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A conversation that is there, or a direct one of the sender that may yet have to be opened.
    Conversation(String),
    /// The direct conversation with this user.
    Recipient(String),
}

impl Target {
    /// Exactly one of the two must be given.
    pub fn of(conversation_id: Option<String>, recipient_id: Option<String>) -> Result<Self, Error> {
        let given = |id: Option<String>| id.filter(|id| !id.is_empty());
        match (given(conversation_id), given(recipient_id)) {
            (Some(id), None) => Ok(Self::Conversation(id)),
            (None, Some(id)) => Ok(Self::Recipient(id)),
            (None, None) => Err(Error::invalid("conversation_id: give it, or recipient_id")),
            (Some(_), Some(_)) => Err(Error::invalid("recipient_id: give it or conversation_id, not both")),
        }
    }
}

/// Through which door a message comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A user's client, over HTTP or a socket.
    Client,
    /// A business line, which sends for its users and for the platform.
    Line,
}

/// What a sender gives.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Which door it came through.
    pub door: Door,
    /// Who sends; authenticated by the caller.
    pub sender_id: String,
    /// Where to.
    pub target: Target,
    /// The sender's own id, for retries.
    pub client_msg_id: String,
    /// Type by its contract name.
    pub kind: String,
    /// The content as the sender wrote it.
    pub content: Box<RawValue>,
    /// Users that the message is about.
    pub mentions: Vec<String>,
    /// The sender's own facts.
    pub ext: BTreeMap<String, String>,
}

/// A draft that has passed every check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The conversation's id, made from the two users where a recipient was named.
    pub conversation_id: String,
    /// The peer, where a recipient was named.
    pub recipient_id: Option<String>,
    /// What storage takes.
    pub draft: chat::Draft,
}

impl Draft {
    /// What a client gives, in the name of `sender_id`.
    pub fn of_client(message: SendMessage<Box<RawValue>>, sender_id: &str) -> Result<Self, Error> {
        Ok(Self {
            door: Door::Client,
            sender_id: sender_id.to_owned(),
            target: Target::of(message.conversation_id, message.recipient_id)?,
            client_msg_id: message.client_msg_id,
            kind: message.kind,
            content: message.content,
            mentions: message.mentions,
            ext: message.ext,
        })
    }

    /// Checks everything that can be told without asking storage; the first fault is named by its field.
    pub fn check(self) -> Result<Checked, Error> {
        ids::check_id("sender_id", &self.sender_id)?;
        ids::check_client_msg_id(&self.client_msg_id)?;
        let (conversation_id, recipient_id) = match self.target {
            Target::Conversation(id) => {
                ids::check_conversation_id("conversation_id", &id)?;
                (id, None)
            }
            Target::Recipient(peer) => {
                ids::check_id("recipient_id", &peer)?;
                (ids::direct_conversation_id(&self.sender_id, &peer)?, Some(peer))
            }
        };
        let kind_of_message: MessageType = self.kind.parse()?;
        if kind_of_message == MessageType::System && self.door == Door::Client {
            return Err(Error::invalid("type: system messages come from business lines and the platform only"));
        }
        let content = check_content("content", kind_of_message, &self.content)?;
        check_mentions(&self.mentions)?;
        check_ext(&self.ext)?;
        let draft = chat::Draft {
            client_msg_id: self.client_msg_id,
            sender_id: self.sender_id,
            r#type: chat::MessageType::from(kind_of_message).into(),
            content,
            mentions: self.mentions,
            ext: self.ext,
        };
        Ok(Checked { conversation_id, recipient_id, draft })
    }
}

/// Checks content and makes it compact: a JSON object of at most 64 KiB, with a `text` that is not blank where the type asks for it.
pub fn check_content(field: &'static str, kind: MessageType, content: &RawValue) -> Result<Bytes, Error> {
    let too_large = || {
        Error::invalid(format!("{field}: more than {MAX_CONTENT_BYTES} bytes as JSON")).with_reason(reason::TOO_LARGE)
    };
    let compact = compact(content.get());
    if compact.len() > MAX_CONTENT_BYTES {
        return Err(too_large());
    }
    // A whole parse, though its result is dropped: it refuses what some reader could not take (lone surrogates, numbers without a
    // value, nesting beyond 128).
    let value: Value = serde_json::from_str(&compact).map_err(|e| Error::invalid(format!("{field}: {e}")))?;
    let Value::Object(object) = value else {
        return Err(Error::invalid(format!("{field}: must be a JSON object")));
    };
    if kind == MessageType::Text && object.get("text").and_then(Value::as_str).is_none_or(is_blank) {
        return Err(Error::invalid(format!("{field}.text: a text message needs a string that is not blank")));
    }
    Ok(match compact {
        Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    })
}

fn check_mentions(mentions: &[String]) -> Result<(), Error> {
    if mentions.len() > MAX_MENTIONS {
        return Err(Error::invalid(format!("mentions: {} users, at most {MAX_MENTIONS}", mentions.len())));
    }
    for user in mentions {
        ids::check_id("mentions", user)?;
    }
    Ok(())
}

fn check_ext(ext: &BTreeMap<String, String>) -> Result<(), Error> {
    if ext.len() > MAX_EXT_ENTRIES {
        return Err(Error::invalid(format!("ext: {} entries, at most {MAX_EXT_ENTRIES}", ext.len())));
    }
    if ext.keys().any(|k| k.is_empty() || k.len() > MAX_EXT_KEY_BYTES) {
        return Err(Error::invalid(format!("ext: keys have 1 to {MAX_EXT_KEY_BYTES} bytes")));
    }
    let bytes: usize = ext.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAX_EXT_BYTES {
        return Err(Error::invalid(format!("ext: {bytes} bytes in all, at most {MAX_EXT_BYTES}")));
    }
    Ok(())
}

/// Valid JSON without the white space between its tokens; numbers and strings stay as they were written.
fn compact(json: &str) -> Cow<'_, str> {
    const SPACE: [char; 4] = [' ', '\n', '\r', '\t'];
    if !json.contains(SPACE) {
        return Cow::Borrowed(json);
    }
    let (mut in_string, mut escaped) = (false, false);
    let kept = json.chars().filter(|c| {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            return true;
        }
        in_string = *c == '"';
        !SPACE.contains(c)
    });
    Cow::Owned(kept.collect())
}

#[cfg(test)]
mod tests;
