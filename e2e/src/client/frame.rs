//! The frames of the WebSocket, protocol `kith.v1.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{Draft, Message, Position, decimal};

/// The subprotocol.
pub const SUBPROTOCOL: &str = "kith.v1.json";

/// What a client sends.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame<'a> {
    /// The first frame, where the token was not in the header.
    Auth {
        /// The token.
        token: &'a str,
        /// Newest seq known by conversation.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursors: Option<BTreeMap<String, String>>,
        /// From the hello before.
        #[serde(skip_serializing_if = "Option::is_none")]
        resume_token: Option<&'a str>,
    },
    /// Received up to.
    Ack {
        /// Positions.
        acks: &'a [Position],
    },
    /// A message.
    Send {
        /// The client's own, echoed in the answer.
        id: &'a str,
        /// As POST /v1/messages.
        message: &'a Draft,
    },
    /// The user types.
    Typing {
        /// Where.
        conversation_id: &'a str,
    },
    /// Keeps the connection.
    Ping,
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// Accepted.
    Hello(Hello),
    /// Messages, ascending by conversation.
    Messages {
        /// The messages.
        messages: Vec<Message>,
        /// Conversations with more than was pushed.
        #[serde(default)]
        has_more: BTreeMap<String, bool>,
    },
    /// A send was stored.
    Sent(SentFrame),
    /// A frame was refused.
    Error(ErrorFrame),
    /// Something happened.
    Event {
        /// What.
        event: String,
        /// Its fields.
        #[serde(default)]
        data: Value,
    },
    /// The answer to a ping.
    Pong,
    /// The gateway drains: come back after a while.
    Reconnect {
        /// Milliseconds.
        #[serde(with = "decimal")]
        after_ms: u64,
        /// To present again.
        #[serde(default)]
        resume_token: Option<String>,
    },
}

/// The server's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hello {
    /// This connection.
    pub session_id: String,
    /// Whose token it is.
    pub user_id: String,
    /// Silence after which the server closes.
    #[serde(with = "decimal")]
    pub heartbeat_ms: u64,
    /// Whether the session before goes on.
    pub resumed: bool,
    /// To present at the next connection.
    #[serde(default)]
    pub resume_token: Option<String>,
    /// Unix ms.
    #[serde(with = "decimal")]
    pub server_time: i64,
}

/// A stored send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SentFrame {
    /// The client's own id of the frame.
    pub id: String,
    /// ULID.
    pub message_id: String,
    /// Where it went.
    pub conversation_id: String,
    /// Its place.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// Unix ms.
    #[serde(with = "decimal")]
    pub sent_at: i64,
    /// Whether an earlier call had stored it.
    #[serde(default)]
    pub duplicate: bool,
}

/// A refused frame.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ErrorFrame {
    /// The client's own id of the frame, where it had one.
    #[serde(default)]
    pub id: Option<String>,
    /// gRPC code name.
    pub code: String,
    /// Where it helps.
    #[serde(default)]
    pub reason: Option<String>,
    /// What to do.
    #[serde(default)]
    pub detail: String,
}

/// Close codes of the contract.
pub mod close {
    /// Drained: reconnect after the hint.
    pub const DRAINED: u16 = 4000;
    /// Authentication failed: do not retry.
    pub const AUTH_FAILED: u16 = 4001;
    /// Token expired: get a new one.
    pub const TOKEN_EXPIRED: u16 = 4002;
    /// Kicked or logged in elsewhere: do not retry.
    pub const KICKED: u16 = 4003;
    /// Too slow a reader: reconnect and sync.
    pub const SLOW_READER: u16 = 4004;
    /// Protocol error.
    pub const PROTOCOL: u16 = 4008;
    /// Too many connections or frames: reconnect with back-off.
    pub const TOO_MANY: u16 = 4029;

    /// Whether a client must stay away.
    pub const fn is_final(code: u16) -> bool {
        matches!(code, AUTH_FAILED | TOKEN_EXPIRED | KICKED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_frames_are_read() {
        let hello = r#"{"type":"hello","session_id":"s","user_id":"alice","heartbeat_ms":"30000","resumed":false,"resume_token":"r","server_time":"1"}"#;
        assert!(matches!(serde_json::from_str(hello).unwrap(), ServerFrame::Hello(h) if h.heartbeat_ms == 30_000));
        let back = r#"{"type":"reconnect","after_ms":"1200","resume_token":"r"}"#;
        assert!(matches!(serde_json::from_str(back).unwrap(), ServerFrame::Reconnect { after_ms: 1_200, .. }));
        assert_eq!(serde_json::from_str::<ServerFrame>(r#"{"type":"pong"}"#).unwrap(), ServerFrame::Pong);
    }

    #[test]
    fn frames_are_written_as_the_contract_says() {
        let ack = ClientFrame::Ack { acks: &[Position { conversation_id: "d:alice:bob".to_owned(), seq: 42 }] };
        let json = r#"{"type":"ack","acks":[{"conversation_id":"d:alice:bob","seq":"42"}]}"#;
        assert_eq!(serde_json::to_string(&ack).unwrap(), json);
        assert_eq!(serde_json::to_string(&ClientFrame::Ping).unwrap(), r#"{"type":"ping"}"#);
    }
}
