//! The external contract, written once: ids, texts, and where pushes go. It knows no transport and no process.

use std::borrow::Cow;

pub mod ids;
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
