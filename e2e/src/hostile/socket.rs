//! Attacks on the long connection: frames as fast as it takes them, and logins with made-up cursors.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{
    attack::{Attack, Attacker},
    calls::made_up_conversation,
};
use crate::client::{
    ClientFrame, Connection,
    connection::{OpenError, TokenIn},
};

/// Cursors of one login.
const CURSORS: u64 = 1_000;
/// Between two connections that were refused.
const PAUSE: Duration = Duration::from_millis(20);
/// Frames that are written with one flush.
const BURST: u64 = 50;
/// A frame above what a gateway takes.
const TOO_LARGE: usize = 600 << 10;

async fn open(attacker: &Attacker, frame: Option<&ClientFrame<'_>>) -> Result<Connection, OpenError> {
    let stream = attacker.connect(attacker.ws).await.map_err(|e| OpenError::Unanswered(e.to_string()))?;
    let url = format!("ws://{}/v1/connect", attacker.ws);
    Connection::open_on(stream, &url, attacker.api().token(), TokenIn::Frame, frame).await
}

fn told(error: &OpenError) -> String {
    match error {
        OpenError::Status(status) => format!("upgrade {status}"),
        OpenError::Closed(closed) => format!("closed {}", closed.code.unwrap_or(0)),
        OpenError::Unanswered(_) => "no answer".to_owned(),
        OpenError::Contract(_) => "OUTSIDE THE CONTRACT".to_owned(),
    }
}

pub(super) async fn frames(attacker: &Attacker) {
    for n in 0_u64.. {
        let answer = match open(attacker, None).await {
            Err(error) => told(&error),
            Ok(connection) => flood(attacker, connection, n).await,
        };
        attacker.count(Attack::Frames, answer);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes one kind of frame until the gateway has enough.
async fn flood(attacker: &Attacker, connection: Connection, n: u64) -> String {
    let Connection { mut reader, mut writer, .. } = connection;
    let frame = |i: u64| match n % 6 {
        0 => json!({"type": "ping"}).to_string(),
        1 => {
            let acks: Vec<_> = (0..100)
                .map(|k| json!({"conversation_id": made_up_conversation(n * 1_000 + i, k), "seq": "9"}))
                .collect();
            json!({"type": "ack", "acks": acks}).to_string()
        }
        2 => json!({"type": "typing", "conversation_id": attacker.conversation}).to_string(),
        3 => json!({"type": "send", "id": i.to_string(), "message": {
            "client_msg_id": format!("f-{n}-{i}"), "recipient_id": "nobody", "type": "text", "content": {"text": "x"}}})
        .to_string(),
        4 => r#"["ping",null,null]"#.to_owned(),
        _ => "x".repeat(TOO_LARGE),
    };
    let write = async {
        let mut i = 0;
        loop {
            let burst = if n % 6 == 5 { 1 } else { BURST };
            let texts = (i..i + burst).map(frame).collect();
            i += burst;
            if writer.send_texts(texts).await.is_err() {
                // The reader has the better word.
                std::future::pending::<()>().await;
            }
        }
    };
    let read = async {
        loop {
            if let Err(closed) = reader.next_text().await {
                return closed.code.map_or_else(|| "broke".to_owned(), |code| format!("closed {code}"));
            }
        }
    };
    tokio::select! {
        () = write => String::new(),
        end = read => end,
        () = tokio::time::sleep(Duration::from_secs(10)) => "took it for 10 s".to_owned(),
    }
}

pub(super) async fn logins(attacker: &Attacker) {
    for n in 0_u64.. {
        let cursors: BTreeMap<_, _> = (0..CURSORS).map(|i| (made_up_conversation(n, i), "7".to_owned())).collect();
        let api = attacker.api();
        let auth = ClientFrame::Auth { token: api.token(), cursors: Some(cursors), resume_token: None };
        let answer = match open(attacker, Some(&auth)).await {
            Ok(mut connection) => {
                connection.writer.close().await;
                "hello".to_owned()
            }
            Err(error) => told(&error),
        };
        attacker.count(Attack::Logins, answer);
        tokio::time::sleep(PAUSE).await;
    }
}
