//! What a client sends: typed for writing, and read in one walk by the gateway.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{MAX_ACKS, MAX_CURSORS, MAX_SEND_ID_BYTES};
use crate::{
    Refused, ids,
    json::{Object, U64},
    message::{Position, SendMessage},
};

/// A frame of the client; `M` is the message of a `send`, which a gateway reads only when it is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame<M> {
    /// The first frame, or a fresh token later.
    Auth(Auth),
    /// What arrived at the device; at most 100 positions. Not answered.
    Ack {
        /// Up to where, by conversation.
        acks: Vec<Position>,
    },
    /// A message to send; answered by `sent`, or by `error` with the same id.
    Send {
        /// The client's own, repeated in the answer; at most 128 bytes.
        id: String,
        /// As POST /v1/messages.
        message: M,
    },
    /// The user is typing: told to the other members who are online. Not answered.
    Typing {
        /// Where.
        conversation_id: String,
    },
    /// A sign of life; answered by `pong`.
    Ping,
}

/// The `auth` frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Auth {
    /// The JWT; absent where it came in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The newest seq that the client holds without a hole before it, by conversation; at most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursors: Option<BTreeMap<String, U64>>,
    /// From an earlier `hello` or `reconnect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    pub fn read(self) -> Result<SendMessage<Box<RawValue>>, Refused> {
        let read: Result<Object<_>, _> = serde_json::from_str(self.0.get());
        read.map(|Object(message)| message).map_err(|e| Refused::new(format!("message: {e}")))
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
struct AckBody {
    acks: Vec<Object<Position>>,
}

#[derive(Deserialize)]
struct TypingBody {
    conversation_id: String,
}

impl<'a> ClientFrame<Unread<'a>> {
    /// Reads a frame. An error is a protocol error, in words for the close frame; a `send` whose message is wrong is none.
    pub fn read(text: &'a str) -> Result<Self, Refused> {
        let Object::<Head<'_>>(head) =
            serde_json::from_str(text).map_err(|e| Refused::new(format!("not a frame: {e}")))?;
        Ok(match head.r#type.as_ref() {
            "auth" => {
                let auth: Auth = body(text)?;
                if auth.cursors.as_ref().is_some_and(|c| c.len() > MAX_CURSORS) {
                    return Err(Refused::new(format!("cursors: at most {MAX_CURSORS}")));
                }
                for (id, _) in auth.cursors() {
                    place("cursors", id)?;
                }
                Self::Auth(auth)
            }
            "ack" => {
                let AckBody { acks } = body(text)?;
                if acks.len() > MAX_ACKS {
                    return Err(Refused::new(format!("acks: at most {MAX_ACKS}")));
                }
                for Object(ack) in &acks {
                    place("acks.conversation_id", &ack.conversation_id)?;
                }
                Self::Ack { acks: acks.into_iter().map(|Object(ack)| ack).collect() }
            }
            "send" => {
                let id = head.id.ok_or(Refused::new("id is missing"))?;
                let id: String = serde_json::from_str(id.get()).map_err(|e| Refused::new(format!("id: {e}")))?;
                if id.len() > MAX_SEND_ID_BYTES {
                    return Err(Refused::new(format!("id: at most {MAX_SEND_ID_BYTES} bytes")));
                }
                Self::Send { id, message: Unread(head.message.ok_or(Refused::new("message is missing"))?) }
            }
            "typing" => {
                let TypingBody { conversation_id } = body(text)?;
                place("conversation_id", &conversation_id)?;
                Self::Typing { conversation_id }
            }
            "ping" => Self::Ping,
            other => {
                // Words that a client chose, short enough for a close frame.
                let shown: String = other.chars().take(32).collect();
                return Err(Refused::new(format!("unknown frame type {shown:?}")));
            }
        })
    }
}

fn body<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refused> {
    serde_json::from_str(text).map(|Object(body)| body).map_err(|e| Refused::new(e.to_string()))
}

fn place(field: &'static str, id: &str) -> Result<(), Refused> {
    ids::check_conversation_id(field, id).map(drop).map_err(|e| Refused::new(e.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{super::example, *};

    #[test]
    fn the_frames_of_the_contract_are_read() {
        let read = ClientFrame::read;
        let auth = read(r#"{"type":"auth","token":"t","cursors":{"d:alice:bob":"41"},"resume_token":"r"}"#).unwrap();
        let ClientFrame::Auth(auth) = auth else { panic!("{auth:?}") };
        assert_eq!(auth.cursors().collect::<Vec<_>>(), [("d:alice:bob", 41)]);
        assert_eq!(auth.token.as_deref(), Some("t"));
        let ack = read(r#"{"type":"ack","acks":[{"conversation_id":"d:alice:bob","seq":"42"}]}"#).unwrap();
        let place = Position { conversation_id: "d:alice:bob".to_owned(), seq: 42 };
        assert!(matches!(ack, ClientFrame::Ack { acks } if acks == [place]));
        assert!(matches!(read(r#"{"type":"ping"}"#).unwrap(), ClientFrame::Ping));
        assert!(matches!(read(r#"{"type":"typing","conversation_id":"d:a:b"}"#).unwrap(), ClientFrame::Typing { .. }));
    }

    /// As a client writes it again what a gateway has read.
    fn again(text: &str) -> String {
        let frame: ClientFrame<SendMessage<Box<RawValue>>> = match ClientFrame::read(text).unwrap() {
            ClientFrame::Auth(auth) => ClientFrame::Auth(auth),
            ClientFrame::Ack { acks } => ClientFrame::Ack { acks },
            ClientFrame::Send { id, message } => ClientFrame::Send { id, message: message.read().unwrap() },
            ClientFrame::Typing { conversation_id } => ClientFrame::Typing { conversation_id },
            ClientFrame::Ping => ClientFrame::Ping,
        };
        serde_json::to_string(&frame).unwrap()
    }

    #[test]
    fn the_examples_are_written_as_they_were_read() {
        for (name, text) in example::CLIENT {
            assert_eq!(again(text), text, "{name}");
            assert!(text.starts_with(&format!("{{\"type\":\"{name}\"")), "{name}");
        }
        // An example for each: the compiler counts the frames above, this the examples.
        assert_eq!(example::CLIENT.len(), 5);
    }

    #[test]
    fn a_wrong_message_is_an_answer_and_not_the_end_of_the_connection() {
        for (message, words) in [
            (r#"{"type":"text"}"#, "client_msg_id"),
            ("null", "null"),
            (r#"["c","d:a:b",null,"text",{"text":"hi"}]"#, "object"),
        ] {
            let text = format!(r#"{{"type":"send","id":"1","message":{message}}}"#);
            let ClientFrame::Send { id, message } = ClientFrame::read(&text).unwrap() else { panic!("{text}") };
            let error = message.read().unwrap_err().to_string();
            assert!(id == "1" && error.starts_with("message: ") && error.contains(words), "{error}");
        }
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
            let error = ClientFrame::read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}", kind in "(auth|ack|send|typing|ping)", key in "(id|acks|message|cursors|conversation_id)", value in any::<u8>()) {
            let _ = ClientFrame::read(&text);
            let frame = serde_json::json!({"type": kind, key: value}).to_string();
            let _ = ClientFrame::read(&frame);
        }

        #[test]
        fn a_frame_reads_back_as_it_was_written(id in "\\PC{0,20}", token in proptest::option::of("\\PC{0,8}"), seq in any::<u64>(), content in "\\PC{0,20}") {
            let message = SendMessage {
                client_msg_id: id.clone(), conversation_id: token.clone(), recipient_id: None, kind: "text".into(),
                content: Value::String(content), mentions: vec![id.clone()], ext: BTreeMap::new(),
            };
            let place = Position { conversation_id: "d:a:b".into(), seq };
            let cursors = Some([("d:a:b".to_owned(), U64(seq))].into());
            for frame in [
                ClientFrame::Auth(Auth { token: token.clone(), cursors, resume_token: token.clone() }),
                ClientFrame::Ack { acks: vec![place] },
                ClientFrame::Send { id: id.clone(), message },
                ClientFrame::Ping,
            ] {
                let text = serde_json::to_string(&frame).unwrap();
                prop_assert_eq!(again(&text), text);
            }
        }
    }
}
