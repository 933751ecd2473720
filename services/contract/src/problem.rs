//! Problem documents (RFC 9457): what a refused or failed call is answered with.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of the document.
pub const MEDIA_TYPE: &str = "application/problem+json";
/// The `type` of every problem: `code` and `reason` say more than an address would.
pub const TYPE: &str = "about:blank";

/// Any error (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem<'a> {
    /// Always about:blank.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
    /// The HTTP status in words.
    pub title: Cow<'a, str>,
    /// The HTTP status.
    pub status: u16,
    /// What to do about it.
    pub detail: Cow<'a, str>,
    /// A gRPC code's name, for example INVALID_ARGUMENT.
    pub code: Cow<'a, str>,
    /// NOT_MEMBER, BLOCKED, MUTED, NOT_ALLOWED, ANTISPAM, EXPIRED, REVOKED, …; absent where the code says all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
}

/// Reasons that callers act upon.
pub mod reason {
    /// The instance does not hold the partition; metadata `holder` names who does, when known.
    pub const WRONG_HOLDER: &str = "WRONG_HOLDER";
    /// The sender is not in the conversation.
    pub const NOT_MEMBER: &str = "NOT_MEMBER";
    /// The recipient blocks the sender.
    pub const BLOCKED: &str = "BLOCKED";
    /// The sender, or the group, is muted.
    pub const MUTED: &str = "MUTED";
    /// The caller's role or credentials do not allow it.
    pub const NOT_ALLOWED: &str = "NOT_ALLOWED";
    /// The verdict of `antispam`.
    pub const ANTISPAM: &str = "ANTISPAM";
    /// A token that has been revoked.
    pub const REVOKED: &str = "REVOKED";
    /// A token past its `exp`.
    pub const EXPIRED: &str = "EXPIRED";
    /// Content over its bound: 413 in HTTP.
    pub const TOO_LARGE: &str = "TOO_LARGE";
    /// Stored data is missing or damaged; the partition is closed until it is repaired.
    pub const DATA_LOSS: &str = "DATA_LOSS";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_written_and_read_and_has_a_reason_only_where_there_is_one() {
        let text = r#"{"type":"about:blank","title":"Forbidden","status":403,"detail":"d","code":"PERMISSION_DENIED","reason":"BLOCKED"}"#;
        let problem: Problem<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&problem).unwrap(), text);
        let plain = Problem { reason: None, ..problem };
        assert!(!serde_json::to_string(&plain).unwrap().contains("reason"));
    }
}
