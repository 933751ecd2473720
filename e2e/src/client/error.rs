//! What a client's call can come to besides its answer.

use std::time::Duration;

use super::{frame::ErrorFrame, model::Problem};

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The platform refused in the words of the contract.
    #[error("{} {}{}: {}", problem.status, problem.code, problem.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default(), problem.detail)]
    Refused {
        /// The problem document.
        problem: Box<Problem>,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A frame of the socket was refused.
    #[error("{}{}: {}", .0.code, .0.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default(), .0.detail)]
    Frame(Box<ErrorFrame>),
    /// No answer: the outcome is unknown.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// An answer outside the contract.
    #[error("an answer outside the contract: {0}")]
    Contract(String),
}

impl ClientError {
    /// The gRPC code name, when the platform answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => Some(&problem.code),
            Self::Frame(frame) => Some(&frame.code),
            Self::Unanswered(_) | Self::Contract(_) => None,
        }
    }

    /// The reason, when the platform gave one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => problem.reason.as_deref(),
            Self::Frame(frame) => frame.reason.as_deref(),
            Self::Unanswered(_) | Self::Contract(_) => None,
        }
    }

    /// The text that says what to do.
    pub fn detail(&self) -> &str {
        match self {
            Self::Refused { problem, .. } => &problem.detail,
            Self::Frame(frame) => &frame.detail,
            Self::Unanswered(text) | Self::Contract(text) => text,
        }
    }

    /// Whether the contract says to send the same again: 429, 503, 504, and no answer at all.
    pub fn is_retryable(&self) -> bool {
        match self.code() {
            Some(code) => matches!(code, "RESOURCE_EXHAUSTED" | "UNAVAILABLE" | "DEADLINE_EXCEEDED"),
            None => matches!(self, Self::Unanswered(_)),
        }
    }

    /// How long the platform asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
