//! Frames in the contract's words: what the machine tells its client. Pure.

use kith_contract::{
    frames::{Hello, Reconnect, Refusal, Sent, ServerFrame, server},
    json::U64,
};
use kith_proto::chat::v1::Receipt;
use kith_rpc::error::Error;

pub use kith_contract::frames::{AUTH_SECONDS, Auth, ClientFrame, MAX_FRAME_BYTES, SILENT_HEARTBEATS, Unread, close};

use crate::machine::order::Item;

/// A frame that holds no content.
type Frame<'a> = ServerFrame<'a, ()>;

/// The first frame of an authenticated connection.
pub fn hello(
    session_id: &str,
    user_id: &str,
    heartbeat_ms: u64,
    resumed: bool,
    resume_token: &str,
    server_time: i64,
) -> String {
    Frame::Hello(Hello {
        session_id: session_id.into(),
        user_id: user_id.into(),
        heartbeat_ms,
        resumed,
        resume_token: resume_token.into(),
        server_time: server_time.max(0),
    })
    .text()
}

/// The answer to a `send`.
pub fn sent(id: &str, result: &Result<Receipt, Error>) -> String {
    match result {
        Ok(receipt) => Frame::Sent(Sent {
            id: id.into(),
            message_id: receipt.message_id.as_str().into(),
            conversation_id: receipt.conversation_id.as_str().into(),
            seq: receipt.seq,
            sent_at: receipt.sent_at.max(0),
            duplicate: receipt.duplicate,
        })
        .text(),
        Err(error) => Frame::Error(Refusal {
            id: Some(id.into()),
            code: error.code_name().into(),
            reason: error.reason.as_deref().map(Into::into),
            detail: error.detail.as_ref().into(),
            retry_after_ms: error.retry_after.map(|d| U64(d.as_millis() as u64)),
        })
        .text(),
    }
}

/// The answer to a `ping`.
pub fn pong() -> String {
    Frame::Pong.text()
}

/// The hint before a drain closes the socket.
pub fn reconnect(after_ms: u64, resume_token: &str) -> String {
    Frame::Reconnect(Reconnect { after_ms, resume_token: resume_token.into() }).text()
}

/// A batch of messages.
pub fn messages<'a>(items: &[Item], more: impl IntoIterator<Item = &'a str>) -> String {
    server::messages(items.iter().map(|item| &*item.json), more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_send_is_answered_with_its_id_and_what_to_do() {
        let read = ClientFrame::read(r#"{"type":"send","id":"1","message":{"type":"text"}}"#).unwrap();
        let ClientFrame::Send { id, message } = read else { panic!("{read:?}") };
        let text = sent(&id, &Err(message.read().unwrap_err().into()));
        assert!(
            text.starts_with(r#"{"type":"error","id":"1","code":"INVALID_ARGUMENT","detail":"message: "#),
            "{text}"
        );
    }

    #[test]
    fn frames_are_what_the_contract_shows() {
        assert_eq!(pong(), r#"{"type":"pong"}"#);
        assert_eq!(reconnect(1_200, "r"), r#"{"type":"reconnect","after_ms":"1200","resume_token":"r"}"#);
        assert_eq!(
            hello("s", "alice", 30_000, false, "r", 5),
            r#"{"type":"hello","session_id":"s","user_id":"alice","heartbeat_ms":"30000","resumed":false,"resume_token":"r","server_time":"5"}"#
        );
        let items = [Item { conversation_id: "d:a:b".into(), seq: 1, json: r#"{"seq":"1"}"#.into() }];
        let text = messages(&items, ["d:a:b"]);
        assert_eq!(text, r#"{"type":"messages","messages":[{"seq":"1"}],"has_more":{"d:a:b":true}}"#);
    }
}
