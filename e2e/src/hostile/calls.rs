//! Attacks by ordinary calls of the HTTP API: numbers, things that do not exist, bytes, broken bodies.

use std::collections::BTreeMap;

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    attack::{Attack, Attacker, LARGE_BYTES},
    raw,
};
use crate::{client::Draft, target::unique};

/// Calls of one attack at once.
const PARALLEL: usize = 8;
/// Items of one call: as many as it takes, and far more.
const MANY: usize = 1_000;

/// What is called again and again.
type Call = (Method, String, Option<Value>);

/// Goes through calls for ever, several at once.
async fn over_and_over(attacker: &Attacker, attack: Attack, calls: impl Fn(u64) -> Call) {
    let worker = |first: usize| {
        let calls = &calls;
        async move {
            for n in (first as u64..).step_by(PARALLEL) {
                let (method, path, body) = calls(n);
                let answer = match attacker.api().raw(method, &path, body).await {
                    Ok(answer) => answer.status.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                attacker.count(attack, answer);
            }
        }
    };
    join_all((0..PARALLEL).map(worker)).await;
}

pub(super) async fn numbers(attacker: &Attacker) {
    let id = &attacker.conversation;
    let edges = ["18446744073709551615", "18446744073709551614", "9223372036854775807", "9007199254740993", "0"];
    let mut calls: Vec<Call> = Vec::new();
    for edge in edges {
        let place = format!("/v1/conversations/{id}/messages");
        for query in [format!("before_seq={edge}"), format!("after_seq={edge}"), format!("limit=1&before_seq={edge}")] {
            calls.push((Method::GET, format!("{place}?{query}"), None));
        }
        calls.push((Method::POST, format!("{place}/{edge}/recall"), None));
        calls.push((Method::PATCH, format!("{place}/{edge}"), Some(json!({"content": {"text": "x"}}))));
        calls.push((Method::PUT, format!("{place}/{edge}/reactions/%F0%9F%91%8D"), None));
        calls.push((Method::DELETE, format!("{place}/{edge}/reactions/%F0%9F%91%8D"), None));
        calls.push((Method::GET, format!("/v1/conversations/{id}/receipts?seq={edge}"), None));
        calls.push((Method::POST, format!("/v1/conversations/{id}/read"), Some(json!({"seq": edge}))));
        calls.push((Method::POST, "/v1/sync".to_owned(), Some(json!({"cursors": {id: edge}}))));
    }
    let cursors = [
        "9999999999999.0.18446744073709551615",
        "-9223372036854775808.4294967295.0",
        "zzzzz",
        "%00",
        "18446744073709551615",
        "1.2.3.4",
    ];
    for cursor in cursors {
        for list in ["/v1/conversations", "/v1/friends", "/v1/friends/requests", "/v1/blocks"] {
            calls.push((Method::GET, format!("{list}?cursor={cursor}"), None));
        }
        for prefix in ["b:", "g:", ""] {
            let body = json!({"cursors": {}, "cursor": format!("{prefix}{cursor}")});
            calls.push((Method::POST, "/v1/sync".to_owned(), Some(body)));
        }
    }
    over_and_over(attacker, Attack::Numbers, |n| calls[(n % calls.len() as u64) as usize].clone()).await;
}

pub(super) async fn made_up(attacker: &Attacker) {
    let many_acks = |n: u64| {
        let acks: Vec<_> =
            (0..100).map(|i| json!({"conversation_id": made_up_conversation(n, i), "seq": "7"})).collect();
        json!({"acks": acks})
    };
    let many_cursors = |n: u64| {
        let cursors: BTreeMap<_, _> = (0..MANY as u64).map(|i| (made_up_conversation(n, i), "7")).collect();
        json!({"cursors": cursors})
    };
    over_and_over(attacker, Attack::MadeUp, |n| match n % 8 {
        0 => (Method::DELETE, format!("/v1/devices/made-up-{n}"), None),
        1 => (Method::POST, "/v1/friends/requests".to_owned(), Some(json!({"user_id": format!("nobody-{n}")}))),
        2 => (Method::POST, "/v1/ack".to_owned(), Some(many_acks(n))),
        3 => (Method::POST, "/v1/sync".to_owned(), Some(many_cursors(n))),
        4 => (Method::PUT, format!("/v1/blocks/nobody-{n}"), None),
        5 => {
            (Method::PATCH, format!("/v1/conversations/{}", made_up_conversation(n, 0)), Some(json!({"pinned": true})))
        }
        6 => {
            let ids: Vec<_> = (0..100).map(|i| format!("nobody-{n}-{i}")).collect();
            (Method::POST, "/v1/presence:query".to_owned(), Some(json!({"user_ids": ids})))
        }
        _ => (Method::POST, "/v1/messages".to_owned(), Some(message(&format!("nobody-{n}"), "hello?"))),
    })
    .await;
}

/// A conversation that is not there.
pub(super) fn made_up_conversation(n: u64, i: u64) -> String {
    format!("d:a-{n}-{i}:b-{n}-{i}")
}

fn message(to: &str, text: &str) -> Value {
    json!({"client_msg_id": unique("m"), "recipient_id": to, "type": "text", "content": {"text": text}})
}

pub(super) async fn bytes(attacker: &Attacker) {
    let text = "x".repeat(LARGE_BYTES);
    let worker = || async {
        loop {
            let answer = match attacker.api().send(&Draft::to(&attacker.accomplice.id, &text)).await {
                Ok(_) => "stored".to_owned(),
                Err(error) => error.code().unwrap_or("no answer").to_owned(),
            };
            attacker.count(Attack::Bytes, answer);
        }
    };
    tokio::join!(worker(), worker());
}

pub(super) async fn garbage(attacker: &Attacker) {
    let deep = "[".repeat(100_000);
    let bodies: Vec<Vec<u8>> = vec![
        b"{".to_vec(),
        b"[]".to_vec(),
        br#"["c-1",null,"someone","text",{}]"#.to_vec(),
        b"\xff\xfe".to_vec(),
        deep.into_bytes(),
        vec![b' '; 600 << 10],
        br#"{"client_msg_id":"c","recipient_id":"x","type":"text","content":{"text":"\ud800"}}"#.to_vec(),
        br#"{"client_msg_id":"c","recipient_id":"x","type":"text","content":{"n":1e999999999}}"#.to_vec(),
        json!({"acks": (0..10_000).map(|i| json!({"conversation_id": made_up_conversation(0, i), "seq": "1"})).collect::<Vec<_>>()})
            .to_string()
            .into_bytes(),
    ];
    let paths =
        ["/v1/messages", "/v1/ack", "/v1/sync", "/v1/presence:query", "/v1/users:batchGet", "/v1/friends/requests"];
    let by_calls = async {
        for n in 0_usize.. {
            let (body, path) = (bodies[n % bodies.len()].clone(), paths[n % paths.len()]);
            let answer = match attacker.api().raw_body(Method::POST, path, "application/json", body).await {
                Ok(answer) => answer.status.to_string(),
                // A server may cut off who sends too much.
                Err(_) => "cut off".to_owned(),
            };
            attacker.count(Attack::Garbage, answer);
        }
    };
    tokio::join!(by_calls, raw::broken_requests(attacker));
}
