//! Sending a device away, and what clients claim.

use std::{collections::BTreeMap, time::Duration};

use kith_contract::json::U64;
use kith_e2e::{
    client::{
        Connection, Draft,
        connection::{OpenError, TokenIn},
        frame::{Auth, ClientFrame, ServerFrame, close},
    },
    target::{Target, User},
    wait::await_until,
};
use reqwest::Method;

use super::{Failure, Proof, SOON, say, two};

async fn send_away(by: &User, device: &str) -> Result<serde_json::Value, Failure> {
    let answer = by.api.raw(Method::DELETE, &format!("/v1/devices/{device}"), None).await?;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    Ok(answer.json()?)
}

async fn devices(user: &User) -> Result<Vec<String>, Failure> {
    let listed = user.api.raw(Method::GET, "/v1/devices", None).await?.json()?;
    let ids = listed["devices"].as_array().into_iter().flatten();
    Ok(ids.filter_map(|d| d["device_id"].as_str().map(str::to_owned)).collect())
}

pub async fn a_device_that_was_sent_away_is_out_at_once_and_not_listed_again(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    let phone = target.user_on(&alice.id, "phone", "ios").await?;
    let mut open = Connection::open(&target.ws, phone.api.token(), TokenIn::Frame, None).await?;
    await_until("the phone to be listed", SOON, || async {
        let listed = devices(&alice).await.map_err(|e| e.to_string())?;
        if listed.iter().any(|id| id == "phone") { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await?;
    assert_eq!(send_away(&alice, "phone").await?["changed"], true);
    // Again at once with the same token, while the connection before is being closed.
    match Connection::open(&target.ws, phone.api.token(), TokenIn::Frame, None).await {
        Err(OpenError::Closed(closed)) => assert_eq!(closed.code, Some(close::AUTHENTICATION), "{closed}"),
        other => return Err(format!("a revoked token: {:?}", other.map(|c| c.hello).err()).into()),
    }
    let closed = tokio::time::timeout(std::time::Duration::from_secs(2), async {
        loop {
            if let Err(closed) = open.reader.next().await {
                return closed;
            }
        }
    });
    assert_eq!(closed.await?.code, Some(close::KICKED));
    await_until("the old token to be refused over HTTP", std::time::Duration::from_secs(2), || async {
        let status = phone.api.raw(Method::GET, "/v1/me", None).await.map_err(|e| e.to_string())?.status;
        if status == 401 { Ok(()) } else { Err(format!("status {status}")) }
    })
    .await?;
    // Device rows are written every two seconds: one login after another goes by without the row coming back.
    for round in 0..3 {
        let other = target.user_on(&alice.id, &format!("web{round}"), "web").await?;
        Connection::open(&target.ws, other.api.token(), TokenIn::Frame, None).await?;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(!devices(&alice).await?.iter().any(|id| id == "phone"));
    }
    let again = target.user_on(&alice.id, "phone", "ios").await?;
    Connection::open(&target.ws, again.api.token(), TokenIn::Frame, None).await?;
    assert!(devices(&alice).await?.iter().any(|id| id == "phone"), "a new token lists it again");
    Ok(())
}

pub async fn sending_made_up_devices_away_keeps_nobody_out(target: &Target) -> Proof {
    let (alice, _) = two(target).await?;
    for n in 0..120 {
        assert_eq!(send_away(&alice, &format!("made-up-{n}")).await?["changed"], false);
    }
    let new = target.user_on(&alice.id, "brand-new", "web").await?;
    Connection::open(&target.ws, new.api.token(), TokenIn::Frame, None).await?;
    let listed = devices(&new).await?;
    assert!(listed.iter().any(|id| id == "brand-new") && !listed.iter().any(|id| id.starts_with("made-up")));
    Ok(())
}

pub async fn a_cursor_above_the_end_hides_no_live_message(target: &Target) -> Proof {
    let (alice, bob) = two(target).await?;
    let id = say(&alice, &bob, &["1", "2", "3"]).await?[0].conversation_id.clone();
    let cursors = BTreeMap::from([(id.clone(), U64(u64::MAX)), ("d:nobody:noone".to_owned(), U64(7))]);
    let auth =
        ClientFrame::Auth(Auth { token: Some(bob.api.token().to_owned()), cursors: Some(cursors), resume_token: None });
    let mut open = Connection::open(&target.ws, bob.api.token(), TokenIn::Frame, Some(&auth)).await?;
    // What is stored before the position has been looked at lies behind the end to which it is clamped: the first ones may not be shown again.
    // From then on every one is.
    let (mut begun, mut shown_in_a_row) = (false, 0);
    for seq in 4..=40 {
        alice.api.send_until_stored(&Draft::to(&bob.id, "live"), SOON).await?;
        let shown = async {
            loop {
                if let ServerFrame::Messages { messages, .. } = open.reader.next().await?
                    && messages.iter().any(|m| m.conversation_id == id && m.seq == seq)
                {
                    return Ok::<_, Failure>(());
                }
            }
        };
        let patience = if begun { SOON } else { Duration::from_millis(500) };
        match tokio::time::timeout(patience, shown).await {
            Ok(shown) => shown?,
            Err(_) if !begun => continue,
            Err(_) => return Err(format!("message {seq} was not shown").into()),
        }
        begun = true;
        shown_in_a_row += 1;
        if shown_in_a_row == 3 {
            return Ok(());
        }
    }
    Err("no live message was shown".into())
}
