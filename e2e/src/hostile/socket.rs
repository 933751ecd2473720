//! Attacks on the long connection: frames as fast as it takes them, and logins with made-up cursors.

use std::{collections::BTreeMap, time::Duration};

use kith_contract::json::U64;

use super::{
    attack::{Attack, Attacker},
    calls::made_up_conversation,
};
use crate::client::{
    ClientFrame, Connection, Draft, Position,
    connection::{OpenError, TokenIn},
    frame::Auth,
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

fn written(frame: &ClientFrame<'_>) -> String {
    serde_json::to_string(frame).expect("strings always serialize")
}

/// Writes one kind of frame until the gateway has enough.
async fn flood(attacker: &Attacker, connection: Connection, n: u64) -> String {
    let Connection { mut reader, mut writer, .. } = connection;
    let frame = |i: u64| match n % 6 {
        0 => written(&ClientFrame::Ping),
        1 => {
            let place = |k| Position { conversation_id: made_up_conversation(n * 1_000 + i, k), seq: 9 };
            written(&ClientFrame::Ack { acks: (0..100).map(place).collect() })
        }
        2 => written(&ClientFrame::Typing { conversation_id: attacker.conversation.clone() }),
        3 => {
            let message = &Draft::to("nobody", "x").with_id(format!("f-{n}-{i}"));
            written(&ClientFrame::Send { id: i.to_string(), message })
        }
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
        let cursors: BTreeMap<_, _> = (0..CURSORS).map(|i| (made_up_conversation(n, i), U64(7))).collect();
        let api = attacker.api();
        let auth =
            ClientFrame::Auth(Auth { token: Some(api.token().to_owned()), cursors: Some(cursors), resume_token: None });
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
