//! A rollout of `sessions`: whoever holds a user's sessions changes all the time, and a device that is sent away is out all the same.

use std::time::{Duration, Instant};

use kith_e2e::{
    client::{
        Connection,
        connection::{OpenError, TokenIn},
        frame::close,
    },
    local::{Instances, Options, Platform},
    target::{Target, User, unique},
    wait::await_until,
};
use kith_platform::Service;
use reqwest::Method;
use serde_json::json;

/// What the contract promises, and a second for two busy cores.
const KICKED_WITHIN: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(30);
/// Each instance is replaced so many times.
const ROUNDS: usize = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One device is sent away, whatever happens to `sessions` meanwhile; how long its connection lived on.
async fn send_one_away(target: &Target, round: usize) -> Result<Duration, Failure> {
    let owner = target.user_on(&unique("owner"), "desk", "web").await?;
    let phone = target.user_on(&owner.id, "phone", "ios").await?;
    let desk = open_until_taken(target, &owner).await?;
    let mut open = open_until_taken(target, &phone).await?;
    await_until("the phone to be listed", SOON, || listed(&owner, true)).await?;
    await_until("the device to be sent away", SOON, || async {
        let answer = owner.api.raw(Method::DELETE, "/v1/devices/phone", None).await.map_err(|e| e.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(format!("status {}", answer.status)) }
    })
    .await?;
    let begun = Instant::now();
    // Again at once, with the same token.
    match Connection::open(&target.ws, phone.api.token(), TokenIn::Frame, None).await {
        Err(OpenError::Closed(closed)) => assert_eq!(closed.code, Some(close::AUTHENTICATION), "{closed}"),
        other => return Err(format!("a revoked token: {:?}", other.map(|c| c.hello).err()).into()),
    }
    let closed = tokio::time::timeout(KICKED_WITHIN, async {
        loop {
            if let Err(closed) = open.reader.next().await {
                return closed;
            }
        }
    });
    let closed = closed.await.map_err(|_| format!("round {round}: the kicked connection still stands"))?;
    assert!(matches!(closed.code, Some(close::KICKED | close::AUTHENTICATION)), "{closed}");
    let took = begun.elapsed();
    await_until("the device to be no more", SOON, || listed(&owner, false)).await?;
    // The other device never left.
    await_until("the other device to be online alone", SOON, || async {
        let answer = owner.api.raw(Method::POST, "/v1/presence:query", Some(json!({"user_ids": [owner.id]}))).await;
        let answer = answer.and_then(|a| a.json()).map_err(|e| e.to_string())?;
        let found = &answer["presence"][&owner.id];
        if found["online"] == true && found["platforms"] == json!(["web"]) { Ok(()) } else { Err(answer.to_string()) }
    })
    .await?;
    drop(desk);
    Ok(took)
}

async fn open_until_taken(target: &Target, user: &User) -> Result<Connection, Failure> {
    let end = Instant::now() + SOON;
    loop {
        match Connection::open(&target.ws, user.api.token(), TokenIn::Frame, None).await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > end => return Err(format!("not let in: {error:?}").into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn listed(owner: &User, wanted: bool) -> Result<(), String> {
    let answer = owner.api.raw(Method::GET, "/v1/devices", None).await.and_then(|a| a.json());
    let answer = answer.map_err(|e| e.to_string())?;
    let found = answer["devices"].as_array().into_iter().flatten().any(|d| d["device_id"] == "phone");
    if found == wanted { Ok(()) } else { Err(answer.to_string()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_holds_while_instances_of_sessions_are_replaced_one_after_the_other() {
    let options = Options {
        instances: Instances::default().with(Service::Sessions, 2),
        log: "warn".to_owned(),
        ..Options::default()
    };
    let mut platform = Platform::start(options).await.expect("the local platform");
    let target = platform.target().await.expect("addresses");
    let (end, ended) = tokio::sync::watch::channel(false);
    let kicks = tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        let mut rounds = 0;
        while !*ended.borrow() {
            // Several owners at once: some of them are of the instance that leaves, some of the one that stays.
            let tries = (0..4).map(|_| send_one_away(&target, rounds));
            for took in futures::future::try_join_all(tries).await.map_err(|e| e.to_string())? {
                slowest = slowest.max(took);
            }
            rounds += 1;
        }
        Ok::<_, String>((rounds, slowest))
    });
    for round in 0..ROUNDS * 2 {
        let at = platform.find(Service::Sessions, round % 2).expect("an instance");
        // As in a rollout mostly, and as when a node dies.
        if round % 3 == 2 {
            platform.kill(at).expect("killed");
        } else {
            platform.stop(at).await.expect("stopped");
        }
        platform.restart(at).await.expect("ready again");
    }
    end.send_replace(true);
    let (rounds, slowest) = kicks.await.expect("no panic").unwrap_or_else(|failure| panic!("{failure}"));
    println!("{rounds} rounds of four kicks; the slowest held after {slowest:?}");
    assert!(rounds > 0, "nobody was kicked");
}
