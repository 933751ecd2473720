//! Checks of what callers give; each refusal names the field.

use kith_contract::{ids, text::is_blank};
use kith_proto::chat::v1::{Draft, MessageType};
use kith_rpc::error::Error;
use serde::{Deserialize, de::IgnoredAny};

use super::no_conversation;

/// Content of a message, bytes of JSON.
pub(crate) const CONTENT_BYTES: usize = 65_536;
pub(crate) const MENTIONS: usize = 200;
pub(crate) const EXT_ENTRIES: usize = 64;
pub(crate) const EXT_BYTES: usize = 8_192;
/// Bytes of a name, an announcement, a URL.
const TEXT_BYTES: usize = 4_096;

pub(super) fn user(field: &'static str, id: &str) -> Result<(), Error> {
    Ok(ids::check_id(field, id)?)
}

pub(super) fn conversation(id: &str) -> Result<ids::ConversationId<'_>, Error> {
    Ok(ids::check_conversation_id("conversation_id", id)?)
}

/// A conversation that the user can be in: whatever rows stand, a direct one is of the two users that its id names, and for anybody else
/// there is none. Asked at every entrance that names a user; a caller without one is trusted.
pub(super) fn place(id: &str, user_id: &str) -> Result<(), Error> {
    let parsed = conversation(id)?;
    if user_id.is_empty() || parsed.admits(user_id) { Ok(()) } else { Err(no_conversation()) }
}

/// A number of items with a default, or a refusal.
pub(super) fn limit(given: u32, default: u32, most: u32) -> Result<u32, Error> {
    match given {
        0 => Ok(default),
        n if n <= most => Ok(n),
        n => Err(Error::invalid(format!("limit: {n}, at most {most}"))),
    }
}

pub(super) fn count(field: &str, given: usize, most: usize) -> Result<(), Error> {
    if given > most { Err(Error::invalid(format!("{field}: {given} items, at most {most}"))) } else { Ok(()) }
}

pub(super) fn text(field: &str, given: &str) -> Result<(), Error> {
    if given.len() > TEXT_BYTES {
        Err(Error::invalid(format!("{field}: {} bytes, at most {TEXT_BYTES}", given.len())))
    } else {
        Ok(())
    }
}

#[derive(Deserialize)]
struct TextContent<'a> {
    #[serde(borrow)]
    text: std::borrow::Cow<'a, str>,
}

/// A JSON object within the limit; of a text message one with a `text`.
pub(super) fn content(kind: i32, content: &[u8]) -> Result<(), Error> {
    if content.len() > CONTENT_BYTES {
        return Err(Error::invalid(format!("content: {} bytes, at most {CONTENT_BYTES}", content.len())));
    }
    let object = content.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    if !object || serde_json::from_slice::<IgnoredAny>(content).is_err() {
        return Err(Error::invalid("content: must be a JSON object"));
    }
    if kind == MessageType::Text as i32 {
        let found: Result<TextContent<'_>, _> = serde_json::from_slice(content);
        if !found.is_ok_and(|c| !is_blank(&c.text)) {
            return Err(Error::invalid("content.text: must be a text that is not blank"));
        }
    }
    Ok(())
}

pub(super) fn draft(draft: &Draft) -> Result<(), Error> {
    ids::check_client_msg_id(&draft.client_msg_id)?;
    user("sender_id", &draft.sender_id)?;
    if !MessageType::try_from(draft.r#type).is_ok_and(|t| t != MessageType::Unspecified) {
        return Err(Error::invalid(format!("type: {} is no message type", draft.r#type)));
    }
    content(draft.r#type, &draft.content)?;
    count("mentions", draft.mentions.len(), MENTIONS)?;
    for mention in &draft.mentions {
        user("mentions", mention)?;
    }
    count("ext", draft.ext.len(), EXT_ENTRIES)?;
    let bytes: usize = draft.ext.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > EXT_BYTES {
        return Err(Error::invalid(format!("ext: {bytes} bytes, at most {EXT_BYTES}")));
    }
    Ok(())
}
