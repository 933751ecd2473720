//! The external contract, written once: ids, texts, names, messages, events, frames, problems. It knows no transport and no process.
//!
//! Each type is written and read by serde and described by a JSON Schema; `docs/events.md`, `docs/websocket.md` and `docs/schemas` are
//! generated from them (see `pages`, which compares them in a test). Nobody else spells an event, a frame or a name of [`kinds`].

use std::borrow::Cow;

pub mod events;
pub mod found;
pub mod frames;
pub mod ids;
pub mod json;
pub mod kinds;
pub mod message;
#[cfg(test)]
mod pages;
pub mod problem;
pub mod push;
pub mod text;

/// A value that the contract does not allow; the text begins with the name of the field and is safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(Cow<'static, str>);

impl Refused {
    /// `detail`: the field, a colon, what it may be.
    pub fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self(detail.into())
    }

    /// The text.
    pub fn into_detail(self) -> Cow<'static, str> {
        self.0
    }
}
