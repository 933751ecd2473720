//! What weighs much, as clients meet it: whatever others have written, a user's own reads are answered and reach everything.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, future::try_join_all, stream};
use kith_e2e::{
    client::{Connection, DeviceOptions, Draft, connection::TokenIn},
    local::{Options, Platform},
    target::{Target, User},
};
use kith_platform::Service;
use reqwest::Method;
use serde_json::json;

use crate::{behaviour::Failure, shared};

const SENDERS: usize = 10;
/// Fewer than a user may have.
const DEVICES: usize = 14;
/// More than one page of a conversation, within one sender's share of bytes.
const MESSAGES: u64 = 220;
const LONG: Duration = Duration::from_secs(90);
/// Of an answer with messages, everything counted.
const PAGE_BYTES: usize = 4 << 20;

/// Little content, and as many mentions and extensions as are taken.
fn heavy(to: &str) -> Draft {
    let mentions = (0..100).map(|n| format!("{n:0>64}")).collect();
    let ext = (0..32).map(|n| (format!("{n:0>4}"), "x".repeat(124))).collect();
    let mut draft = Draft::to(to, "x");
    (draft.mentions, draft.ext) = (mentions, ext);
    draft
}

/// Conversations that each hold as much as one sender may send at once.
async fn filled(target: &Target, bob: &User) -> Result<Vec<String>, Failure> {
    try_join_all((0..SENDERS).map(async |n| {
        let sender = target.new_user(&format!("sender{n}")).await?;
        let id = sender.api.send_until_stored(&heavy(&bob.id), LONG).await?.conversation_id;
        let rest = stream::iter(1..MESSAGES).map(async |_| sender.api.send_until_stored(&heavy(&bob.id), LONG).await);
        let sent: Vec<_> = rest.buffer_unordered(4).collect().await;
        sent.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Failure>(id)
    }))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whom_others_send_heavy_messages_can_sync_and_log_in_and_gets_everything() -> Result<(), Failure> {
    let platform = shared().await;
    let target = platform.target().await?;
    let bob = target.new_user("bob").await?;
    let ids = filled(&target, &bob).await?;

    let mut have: BTreeMap<String, u64> = ids.iter().map(|id| (id.clone(), 0)).collect();
    let mut calls = 0;
    while have.values().any(|seq| *seq < MESSAGES) {
        calls += 1;
        assert!(calls < 60, "{have:?}");
        let before = have.clone();
        for found in bob.api.sync(&have, 200).await?.conversations {
            let have = have.get_mut(&found.conversation_id).expect("one of these");
            for message in &found.messages {
                assert_eq!(message.seq, *have + 1, "no gap");
                *have = message.seq;
            }
            assert_eq!(found.has_more, *have < MESSAGES);
        }
        assert_ne!(before, have, "call {calls} has brought nothing");
    }
    let answer = bob.api.raw(Method::POST, "/v1/sync", Some(json!({"limit": 200}))).await?;
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() <= PAGE_BYTES + (64 << 10), "{}", answer.body.len());
    assert_eq!(bob.api.conversations(200, None).await?.conversations.len(), SENDERS);

    // What the platform does not push it says to be there, and the device pulls it.
    let device = target.device(&bob, DeviceOptions { ack: true, pull: true, token_in: TokenIn::Frame }).await?;
    let all = |inbox: &kith_e2e::client::Inbox| ids.iter().all(|id| inbox.contiguous(id) == MESSAGES).then_some(());
    device.until("everything", LONG, all).await?;
    device.inbox(|inbox| assert!(inbox.contradictions.is_empty(), "{:?}", inbox.contradictions));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_take_nothing_of_heavy_messages_cost_little_memory() -> Result<(), Failure> {
    // Alone, so that no other test's connections are counted.
    let platform = Platform::start(Options::default()).await?;
    let target = platform.target().await?;
    let bob = target.new_user("bob").await?;
    filled(&target, &bob).await?;
    let gateways: Vec<usize> =
        (0..platform.count(Service::Gateway)).filter_map(|n| platform.find(Service::Gateway, n)).collect();
    let memory = || gateways.iter().filter_map(|at| platform.memory(*at)).max().unwrap_or(0);
    let before = memory();
    let mut silent = Vec::new();
    for n in 0..DEVICES {
        let device = target.user_on(&bob.id, &format!("d{n}"), "web").await?;
        silent.push(Connection::open(&target.ws, device.api.token(), TokenIn::Frame, None).await?);
    }
    let mut most = before;
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        most = most.max(memory());
    }
    drop(silent);
    let mib = (most - before) >> 20;
    println!("{DEVICES} devices that take nothing: {mib} MiB more");
    assert!(mib <= 150, "{mib} MiB for {DEVICES} devices of one user");
    Ok(())
}
