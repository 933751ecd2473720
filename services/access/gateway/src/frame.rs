//! The frames of `kith.v1.json`: what a client sends, decoded, and what the server sends, written. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use kith_proto::chat::v1::Receipt;
use kith_rpc::error::Error;
use kith_send::{
    Door, Draft, Target,
    json::{Object, U64},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::machine::order::Item;

/// Close codes of API.md.
pub mod close {
    /// Drained: reconnect after the hint.
    pub const DRAINED: u16 = 4000;
    /// Authentication failed: do not retry.
    pub const AUTHENTICATION: u16 = 4001;
    /// The token has expired: get a new one.
    pub const EXPIRED: u16 = 4002;
    /// Kicked, or logged in elsewhere: do not retry.
    pub const KICKED: u16 = 4003;
    /// Too slow a reader: reconnect and sync.
    pub const TOO_SLOW: u16 = 4004;
    /// Protocol error.
    pub const PROTOCOL: u16 = 4008;
    /// Too many connections or frames: reconnect with back-off.
    pub const TOO_MANY: u16 = 4029;
}

/// The longest client frame: a message of 64 KiB, escaped, or a thousand cursors.
pub const MAX_FRAME_BYTES: usize = 512 << 10;
/// The longest id of a `send` frame.
const MAX_SEND_ID_BYTES: usize = 128;
/// Positions in one `ack` frame, and cursors in an `auth` frame.
const MAX_ACKS: usize = 100;
const MAX_CURSORS: usize = 1_000;

/// A frame of the client; what a `send` brings is only read when it is wanted.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// The first frame, or a fresh token later.
    Auth(Auth),
    /// What arrived at the device.
    Ack(Vec<(String, u64)>),
    /// A message to send.
    Send {
        /// The client's own, repeated in the answer.
        id: String,
        /// What to send.
        message: Unread<'a>,
    },
    /// The user is typing.
    Typing(String),
    /// A sign of life.
    Ping,
}

/// The `auth` frame.
#[derive(Debug, Default, Deserialize)]
pub struct Auth {
    /// The JWT; absent where it came in the header.
    #[serde(default)]
    pub token: Option<String>,
    /// Where the client is, by conversation.
    #[serde(default)]
    cursors: Option<BTreeMap<String, U64>>,
    /// From an earlier hello or reconnect.
    #[serde(default)]
    pub resume_token: Option<String>,
}

impl Auth {
    /// The cursors as places.
    pub fn cursors(&self) -> impl Iterator<Item = (&str, u64)> {
        self.cursors.iter().flatten().map(|(id, seq)| (id.as_str(), seq.0))
    }
}

/// The message of a `send` frame, known to be JSON and no more.
#[derive(Debug, Clone, Copy)]
pub struct Unread<'a>(&'a RawValue);

impl Unread<'_> {
    /// What it says, or what is wrong with it.
    pub fn read(self) -> Result<Outgoing, Error> {
        let read: Result<Object<Outgoing>, _> = serde_json::from_str(self.0.get());
        read.map(|message| message.0).map_err(|e| Error::invalid(format!("message: {e}")))
    }
}

/// The message of a `send` frame, as in POST /v1/messages.
#[derive(Debug, Deserialize)]
pub struct Outgoing {
    client_msg_id: String,
    #[serde(default)]
    conversation_id: Option<String>,
    #[serde(default)]
    recipient_id: Option<String>,
    r#type: String,
    content: Box<RawValue>,
    #[serde(default)]
    mentions: Option<Vec<String>>,
    #[serde(default)]
    ext: Option<BTreeMap<String, String>>,
}

impl Outgoing {
    /// The draft of `sender_id`.
    pub fn draft(self, sender_id: &str) -> Result<Draft, Error> {
        Ok(Draft {
            door: Door::Client,
            sender_id: sender_id.to_owned(),
            target: Target::of(self.conversation_id, self.recipient_id)?,
            client_msg_id: self.client_msg_id,
            kind: self.r#type,
            content: self.content,
            mentions: self.mentions.unwrap_or_default(),
            ext: self.ext.unwrap_or_default(),
        })
    }
}

/// What tells frames apart, and the parts of a `send` as they came: the one frame that comes often is walked through once.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    message: Option<&'a RawValue>,
}

/// A field that is there, also as `null`: that is wrong, but not missing.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

#[derive(Deserialize)]
struct AckFrame {
    acks: Vec<Object<AckItem>>,
}

#[derive(Deserialize)]
struct AckItem {
    conversation_id: String,
    seq: U64,
}

#[derive(Deserialize)]
struct TypingFrame {
    conversation_id: String,
}

/// Reads a client frame. An error is a protocol error, in words for the close frame; a `send` whose message is wrong is none.
pub fn decode(text: &str) -> Result<ClientFrame<'_>, String> {
    let Object::<Head<'_>>(head) = serde_json::from_str(text).map_err(|e| format!("not a frame: {e}"))?;
    Ok(match head.r#type.as_ref() {
        "auth" => {
            let auth: Auth = body(text)?;
            if auth.cursors.as_ref().is_some_and(|c| c.len() > MAX_CURSORS) {
                return Err(format!("cursors: at most {MAX_CURSORS}"));
            }
            for (id, _) in auth.cursors() {
                kith_contract::ids::check_conversation_id("cursors", id).map_err(|e| e.to_string())?;
            }
            ClientFrame::Auth(auth)
        }
        "ack" => {
            let AckFrame { acks } = body(text)?;
            if acks.len() > MAX_ACKS {
                return Err(format!("acks: at most {MAX_ACKS}"));
            }
            for Object(ack) in &acks {
                kith_contract::ids::check_conversation_id("acks.conversation_id", &ack.conversation_id)
                    .map_err(|e| e.to_string())?;
            }
            ClientFrame::Ack(acks.into_iter().map(|Object(a)| (a.conversation_id, a.seq.0)).collect())
        }
        "send" => {
            let id: String =
                serde_json::from_str(head.id.ok_or("id is missing")?.get()).map_err(|e| format!("id: {e}"))?;
            if id.len() > MAX_SEND_ID_BYTES {
                return Err(format!("id: at most {MAX_SEND_ID_BYTES} bytes"));
            }
            ClientFrame::Send { id, message: Unread(head.message.ok_or("message is missing")?) }
        }
        "typing" => {
            let TypingFrame { conversation_id } = body(text)?;
            kith_contract::ids::check_conversation_id("conversation_id", &conversation_id)
                .map_err(|e| e.to_string())?;
            ClientFrame::Typing(conversation_id)
        }
        "ping" => ClientFrame::Ping,
        other => return Err(format!("unknown frame type {:?}", shorten(other))),
    })
}

fn body<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map(|Object(body)| body).map_err(|e| e.to_string())
}

/// Words that a client chose, short enough for a close frame.
fn shorten(text: &str) -> String {
    text.chars().take(32).collect()
}

/// What the server sends, but for messages and events, whose parts are JSON already.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ServerFrame<'a> {
    Hello {
        session_id: &'a str,
        user_id: &'a str,
        heartbeat_ms: U64,
        resumed: bool,
        resume_token: &'a str,
        server_time: U64,
    },
    Sent {
        id: &'a str,
        message_id: &'a str,
        conversation_id: &'a str,
        seq: U64,
        sent_at: U64,
        duplicate: bool,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        code: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        detail: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<U64>,
    },
    Pong,
    Reconnect {
        after_ms: U64,
        resume_token: &'a str,
    },
}

impl ServerFrame<'_> {
    fn text(&self) -> String {
        // Strings, integers and booleans always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn unsigned(ms: i64) -> U64 {
    U64(u64::try_from(ms).unwrap_or(0))
}

/// The first frame of an authenticated connection.
pub fn hello(
    session_id: &str,
    user_id: &str,
    heartbeat_ms: u64,
    resumed: bool,
    resume_token: &str,
    server_time: i64,
) -> String {
    ServerFrame::Hello {
        session_id,
        user_id,
        heartbeat_ms: U64(heartbeat_ms),
        resumed,
        resume_token,
        server_time: unsigned(server_time),
    }
    .text()
}

/// The answer to a `send`.
pub fn sent(id: &str, result: &Result<Receipt, Error>) -> String {
    match result {
        Ok(receipt) => ServerFrame::Sent {
            id,
            message_id: &receipt.message_id,
            conversation_id: &receipt.conversation_id,
            seq: U64(receipt.seq),
            sent_at: unsigned(receipt.sent_at),
            duplicate: receipt.duplicate,
        }
        .text(),
        Err(error) => ServerFrame::Error {
            id: Some(id),
            code: error.code_name(),
            reason: error.reason.as_deref(),
            detail: &error.detail,
            retry_after_ms: error.retry_after.map(|d| U64(d.as_millis() as u64)),
        }
        .text(),
    }
}

/// The answer to a `ping`.
pub fn pong() -> String {
    ServerFrame::Pong.text()
}

/// The hint before a drain closes the socket.
pub fn reconnect(after_ms: u64, resume_token: &str) -> String {
    ServerFrame::Reconnect { after_ms: U64(after_ms), resume_token }.text()
}

/// A batch of messages. Ids are of an alphabet that needs no escapes.
pub fn messages<'a>(items: &[Item], more: impl IntoIterator<Item = &'a str>) -> String {
    let size = items.iter().map(|i| i.json.len() + 1).sum::<usize>() + 64;
    let mut text = String::with_capacity(size);
    text.push_str(r#"{"type":"messages","messages":["#);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&item.json);
    }
    text.push_str(r#"],"has_more":{"#);
    for (at, id) in more.into_iter().enumerate() {
        text.push_str(if at > 0 { ",\"" } else { "\"" });
        text.push_str(id);
        text.push_str("\":true");
    }
    text.push_str("}}");
    text
}

/// The events that API.md names.
const EVENTS: [&str; 11] = [
    "read",
    "recalled",
    "edited",
    "reaction",
    "profile",
    "friend",
    "friend_request",
    "group",
    "conversation",
    "presence",
    "typing",
];

/// An event whose data is JSON; none when it is not, or has a name that clients do not know.
pub fn event(name: &str, data: &[u8]) -> Option<String> {
    let data: &RawValue = serde_json::from_slice(data).ok()?;
    EVENTS.contains(&name).then(|| format!(r#"{{"type":"event","event":"{name}","data":{}}}"#, data.get()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_frames_of_the_contract_are_read() {
        let auth = decode(r#"{"type":"auth","token":"t","cursors":{"d:alice:bob":"41"},"resume_token":"r"}"#).unwrap();
        let ClientFrame::Auth(auth) = auth else { panic!("{auth:?}") };
        assert_eq!(auth.cursors().collect::<Vec<_>>(), [("d:alice:bob", 41)]);
        assert_eq!(auth.token.as_deref(), Some("t"));
        let ack = decode(r#"{"type":"ack","acks":[{"conversation_id":"d:alice:bob","seq":"42"}]}"#).unwrap();
        assert!(matches!(ack, ClientFrame::Ack(acks) if acks == [("d:alice:bob".to_owned(), 42)]));
        assert!(matches!(decode(r#"{"type":"ping"}"#).unwrap(), ClientFrame::Ping));
        assert!(matches!(decode(r#"{"type":"typing","conversation_id":"d:a:b"}"#).unwrap(), ClientFrame::Typing(_)));
    }

    #[test]
    fn a_wrong_message_is_an_answer_and_not_the_end_of_the_connection() {
        let frame = decode(r#"{"type":"send","id":"1","message":{"type":"text"}}"#).unwrap();
        let ClientFrame::Send { id, message } = frame else { panic!("{frame:?}") };
        let error = message.read().unwrap_err();
        assert!(error.detail.contains("client_msg_id"), "{error}");
        let text = sent(&id, &Err(error));
        assert!(text.starts_with(r#"{"type":"error","id":"1","code":"INVALID_ARGUMENT""#), "{text}");
        let frame = decode(r#"{"type":"send","id":"1","message":null}"#).unwrap();
        let ClientFrame::Send { message, .. } = frame else { panic!("{frame:?}") };
        assert!(message.read().unwrap_err().detail.contains("null"));
        let array = r#"{"type":"send","id":"1","message":["c","d:a:b",null,"text",{"text":"hi"}]}"#;
        let ClientFrame::Send { message, .. } = decode(array).unwrap() else { panic!("{array}") };
        assert!(message.read().unwrap_err().detail.contains("object"));
    }

    #[test]
    fn protocol_errors_say_what_is_wrong() {
        for (text, words) in [
            ("", "not a frame"),
            ("[]", "not a frame"),
            (r#"["ping",null,null]"#, "not a frame"),
            (r#"{"type":"ack","acks":[["d:a:b","1"]]}"#, "object"),
            (r#"{"type":1}"#, "not a frame"),
            (r#"{"type":"dance"}"#, "dance"),
            (r#"{"type":"ack"}"#, "acks"),
            (r#"{"type":"ack","acks":[{"conversation_id":"x","seq":"1"}]}"#, "conversation"),
            (r#"{"type":"send","message":{}}"#, "id is missing"),
            (r#"{"type":"send","id":7,"message":{}}"#, "id: "),
            (r#"{"type":"send","id":"7"}"#, "message is missing"),
            (r#"{"type":"typing","conversation_id":""}"#, "conversation_id"),
            (r#"{"type":"auth","cursors":{"x":"1"}}"#, "cursors"),
        ] {
            let error = decode(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn server_frames_are_what_the_contract_shows() {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let items: Vec<_> = (1..=2)
            .map(|seq| Item { conversation_id: "d:a:b".into(), seq, json: format!("{{\"seq\":\"{seq}\"}}").into() })
            .collect();
        assert_eq!(
            json(&messages(&items, ["d:a:b", "d:a:c"])),
            serde_json::json!({"type": "messages", "messages": [{"seq": "1"}, {"seq": "2"}], "has_more": {"d:a:b": true, "d:a:c": true}})
        );
        assert_eq!(json(&pong()), serde_json::json!({"type": "pong"}));
        assert_eq!(
            json(&reconnect(1_200, "r")),
            serde_json::json!({"type": "reconnect", "after_ms": "1200", "resume_token": "r"})
        );
        assert_eq!(
            json(&hello("s", "alice", 30_000, false, "r", 5)),
            serde_json::json!({"type": "hello", "session_id": "s", "user_id": "alice", "heartbeat_ms": "30000", "resumed": false,
                "resume_token": "r", "server_time": "5"})
        );
        assert_eq!(json(&event("typing", b"{\"a\":1}").unwrap())["data"]["a"], 1);
        assert!(event("typing", b"{").is_none());
        assert!(event("dance", b"{}").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn no_text_stops_the_decoder(text in "\\PC{0,300}") {
            let _ = decode(&text);
        }

        #[test]
        fn no_json_stops_the_decoder(kind in "(auth|ack|send|typing|ping|x)", key in "(token|cursors|acks|id|message|conversation_id)", value in json_value()) {
            let frame = serde_json::json!({"type": kind, key: value}).to_string();
            if let Ok(ClientFrame::Send { message, .. }) = decode(&frame) {
                let _ = message.read();
            }
        }
    }

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "\\PC{0,20}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::btree_map("[a-z_]{0,16}", inner, 0..4)
                    .prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }
}
