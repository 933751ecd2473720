//! A stored message as clients see it: the contract's JSON.

use kith_contract::message;
use kith_proto::chat::v1::Message;
use kith_rpc::error::Error;
use serde_json::value::RawValue;

/// The view of a stored message, which it borrows; DATA_LOSS when its content is no JSON.
fn view(message: &Message) -> Result<message::Message<'_, &RawValue>, Error> {
    // A recalled message has lost its content: an empty object keeps the field's type.
    let content: &RawValue =
        if message.content.is_empty() { serde_json::from_str("{}") } else { serde_json::from_slice(&message.content) }
            .map_err(|error| {
                let (conversation_id, seq) = (&message.conversation_id, message.seq);
                tracing::error!(%conversation_id, seq, %error, "stored content is not JSON");
                Error::data_loss()
            })?;
    Ok(message.shown(content))
}

/// The JSON text of a message.
pub fn message_json(message: &Message) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(&view(message)?).map_err(|error| {
        tracing::error!(%error, "a message could not be written as JSON");
        Error::internal("a message could not be written as JSON")
    })
}

#[cfg(test)]
mod tests {
    use kith_proto::chat::v1::{MessageType, Reaction};
    use tonic::Code;

    use super::*;

    fn message() -> Message {
        Message {
            conversation_id: "d:alice:bob".into(),
            seq: 42,
            message_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            client_msg_id: "c-1".into(),
            sender_id: "alice".into(),
            sent_at: 1_790_000_000_000,
            r#type: MessageType::Text.into(),
            content: r#"{"text":"hi"}"#.into(),
            mentions: vec!["bob".into()],
            ext: [("k".to_owned(), "v".to_owned())].into(),
            recalled: false,
            edited_at: 0,
            reactions: vec![
                Reaction { emoji: "👍".into(), user_ids: vec!["bob".into()], count: 1_000, mine: true },
                Reaction { emoji: "ok".into(), user_ids: vec!["ann".into()], count: 1, mine: false },
            ],
        }
    }

    #[test]
    fn a_message_is_what_the_contract_shows() {
        let json: serde_json::Value = serde_json::from_str(message_json(&message()).unwrap().get()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"conversation_id": "d:alice:bob", "seq": "42", "message_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "client_msg_id": "c-1", "sender_id": "alice", "sent_at": "1790000000000", "type": "text",
                "content": {"text": "hi"}, "mentions": ["bob"], "ext": {"k": "v"}, "recalled": false, "edited_at": null,
                "reactions": {"👍": ["bob"], "ok": ["ann"]}, "reaction_counts": {"👍": 1000, "ok": 1}, "my_reactions": ["👍"]})
        );
    }

    #[test]
    fn a_recalled_message_keeps_its_seq_and_an_empty_content() {
        let recalled = Message { recalled: true, content: bytes::Bytes::new(), edited_at: 5, ..message() };
        let json: serde_json::Value = serde_json::from_str(message_json(&recalled).unwrap().get()).unwrap();
        assert_eq!(
            (&json["seq"], &json["content"], &json["edited_at"]),
            (&"42".into(), &serde_json::json!({}), &"5".into())
        );
    }

    #[test]
    fn damaged_content_is_an_error_and_not_a_panic() {
        for damaged in [&b"{"[..], b"\xff", b"{} x"] {
            let damaged = Message { content: bytes::Bytes::copy_from_slice(damaged), ..message() };
            assert_eq!(message_json(&damaged).unwrap_err().code, Code::DataLoss);
        }
    }
}
