//! Frames.

use kith_e2e::{
    client::{Connection, DeviceOptions, Draft, Position, connection::TokenIn, frame::close},
    target::Target,
};

use super::{Proof, SOON, say, two};

pub async fn a_ping_is_answered(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    let device = target.device(&alice, DeviceOptions { token_in: TokenIn::Header, ..DeviceOptions::default() }).await?;
    device.ping(SOON).await?;
    device.ping(SOON).await?;
    Ok(())
}

pub async fn a_broken_frame_closes_with_the_protocol_code(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    for text in ["not json", "[]", r#"{"type":"teleport"}"#, r#"{"no":"type"}"#] {
        let device = target.device(&alice, DeviceOptions::default()).await?;
        device.send_text(text).await?;
        let code = device.until("the close", SOON, |inbox| inbox.closes.first().cloned()).await?;
        assert_eq!(code.code, Some(close::PROTOCOL), "{text}: {code}");
    }
    Ok(())
}

pub async fn a_frame_that_is_too_long_closes_with_the_protocol_code(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    // From just over the bound to what is still on its way when the refusal is written.
    for bytes in [(512 << 10) + 1, 1 << 20, 2 << 20, 4 << 20, 8 << 20] {
        let device = target.device(&alice, DeviceOptions::default()).await?;
        device.send_text("x".repeat(bytes)).await?;
        let code = device.until("the close", SOON, |inbox| inbox.closes.first().cloned()).await?;
        assert_eq!(code.code, Some(close::PROTOCOL), "{bytes} bytes: {code}");
    }
    Ok(())
}

pub async fn a_refused_send_names_the_frame_and_keeps_the_connection(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let device = target.device(&alice, DeviceOptions::default()).await?;
    let mut empty = Draft::to(&bob.id, "x");
    empty.content = serde_json::json!({"text": ""});
    let refused = device.send(&empty).await.expect_err("an empty text");
    assert_eq!(refused.code(), Some("INVALID_ARGUMENT"), "{refused}");
    assert!(refused.detail().contains("text"), "{refused}");
    let sent = device.send(&Draft::to(&bob.id, "and now")).await?;
    assert_eq!(sent.seq, 1);
    device.inbox(|inbox| assert_eq!((inbox.hellos.len(), inbox.closes.len()), (1, 0)));
    Ok(())
}

pub async fn an_acknowledgement_on_the_socket_moves_the_cursor(target: &Target) -> Proof {
    let quiet = DeviceOptions { ack: false, pull: false, token_in: TokenIn::Frame };
    let (alice, bob) = two(target).await?;
    let device = target.device(&bob, quiet).await?;
    let id = say(&alice, &bob, &["1", "2", "3"]).await?[0].conversation_id.clone();
    device.until("three messages", SOON, |inbox| (inbox.contiguous(&id) == 3).then_some(())).await?;
    // An answer that the socket no longer takes must not hold up what came with it.
    device.send_text(r#"{"type":"ping"}"#).await?;
    device.ack(vec![Position { conversation_id: id.clone(), seq: 3 }]).await?;
    // Cursors of sockets are flushed together, every few seconds and when a session closes.
    device.stop().await;
    say(&alice, &bob, &["4"]).await?;
    kith_e2e::wait::await_until("a login that is pushed the fourth alone", SOON, || async {
        let device = target.device(&bob, quiet).await.map_err(|e| e.to_string())?;
        device.until("the fourth", SOON, |inbox| inbox.get(&id, 4).map(drop)).await.map_err(|e| e.to_string())?;
        let seqs: Vec<u64> = device.inbox(|inbox| inbox.conversation(&id)).iter().map(|m| m.seq).collect();
        if seqs == [4] { Ok(()) } else { Err(format!("pushed {seqs:?}")) }
    })
    .await?;
    Ok(())
}

pub async fn a_clients_close_frame_is_answered(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    for _ in 0..5 {
        let mut open = Connection::open(&target.ws, alice.api.token(), TokenIn::Frame, None).await?;
        open.writer.say_goodbye().await?;
        let closed = tokio::time::timeout(SOON, async {
            loop {
                if let Err(closed) = open.reader.next().await {
                    return closed;
                }
            }
        });
        let closed = closed.await?;
        assert_eq!(closed.code, Some(1000), "the close is answered with its own code: {closed}");
    }
    Ok(())
}
