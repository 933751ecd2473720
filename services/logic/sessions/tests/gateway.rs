//! The service over loopback with a gateway written here; Kafka and storage are away, which must hold nobody up.
#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
};
use kith_proto::sessions::v1::{
    AttachRequest, AttachResponse, DeliverRequest, DeliverResponse, Delivery, KickRequest, QueryPresenceRequest,
    Session,
    attach_request::{Close, Frame as Up, Hello, Synced},
    attach_response::Frame as Down,
    deliver_request::Item,
    delivery::{Event, Payload},
    sessions_client::SessionsClient,
};
use kith_rpc::error::{Error, reason};
use kith_testing::free_port;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

const SOON: Duration = Duration::from_secs(5);

struct Running {
    address: SocketAddr,
    end: CancellationToken,
    service: JoinHandle<Result<(), kith_sessions::Error>>,
}

impl Running {
    /// One instance; `others` are in its endpoints too.
    async fn start(others: &[SocketAddr]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints: Vec<String> = others.iter().chain([&address]).map(ToString::to_string).collect();
        let config: Config = serde_json::from_value(serde_json::json!({
            "cluster": {"name": "demo", "uid": "u-1", "partitions": 16, "eventPartitions": 4},
            "services": {
                "storage": {"endpoints": format!("static:127.0.0.1:{}", free_port())},
                "sessions": {"endpoints": format!("static:{}", endpoints.join(","))},
            },
            "kafka": {"bootstrap": format!("127.0.0.1:{}", free_port()), "replicationFactor": 1, "minInsync": 1},
            "auth": {"keysDir": "/nonexistent"},
        }))
        .unwrap();
        let end = CancellationToken::new();
        let instance = Instance { advertise: address };
        let service = tokio::spawn(kith_sessions::run(config, instance, listener, Readiness::default(), end.clone()));
        Self { address, end, service }
    }

    async fn client(&self) -> SessionsClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        SessionsClient::new(endpoint.connect().await.unwrap())
    }
}

struct Gateway {
    up: mpsc::Sender<AttachRequest>,
    down: Streaming<AttachResponse>,
}

impl Gateway {
    async fn attach(running: &Running, name: &str) -> Self {
        let (up, frames) = mpsc::channel(64);
        let mut gateway =
            Self { down: running.client().await.attach(ReceiverStream::new(frames)).await.unwrap().into_inner(), up };
        gateway.say(Up::Hello(Hello { gateway: name.to_owned() })).await;
        assert!(matches!(gateway.hear().await, Down::Welcome(_)));
        gateway
    }

    async fn say(&self, frame: Up) {
        self.up.send(AttachRequest { frame: Some(frame) }).await.unwrap();
    }

    async fn open(&self, session: &str, user: &str, device: &str, opened_at: i64) {
        let session = Session {
            session_id: session.to_owned(),
            user_id: user.to_owned(),
            device_id: device.to_owned(),
            platform: 1,
            line: "default".to_owned(),
            opened_at,
            cursors: Vec::new(),
            fresh: true,
            token_issued_at: opened_at,
        };
        self.say(Up::Open(session)).await;
    }

    async fn hear(&mut self) -> Down {
        timeout(SOON, self.down.message()).await.unwrap().unwrap().unwrap().frame.unwrap()
    }
}

fn item(users: &[&str], event: &str) -> Item {
    let payload = Payload::Event(Event { event: event.to_owned(), data: "{}".into() });
    Item {
        user_ids: users.iter().map(ToString::to_string).collect(),
        delivery: Some(Delivery { session_ids: Vec::new(), payload: Some(payload) }),
        ..Item::default()
    }
}

fn kick_of(user: &str, device: &str, issued_at_or_before: i64) -> KickRequest {
    let (user_id, device_id) = (user.to_owned(), device.to_owned());
    KickRequest { user_id, device_id, reason: "test".to_owned(), issued_at_or_before }
}

async fn deliver(client: &mut SessionsClient<Channel>, items: Vec<Item>) -> Result<DeliverResponse, Error> {
    timeout(SOON, client.deliver(DeliverRequest { items }))
        .await
        .unwrap()
        .map(tonic::Response::into_inner)
        .map_err(Error::from)
}

/// Waits until the instance knows its own endpoints and a user is where the test says.
async fn until_online(client: &mut SessionsClient<Channel>, user: &str, online: bool) {
    let asked = async {
        loop {
            let request = QueryPresenceRequest { user_ids: vec![user.to_owned()] };
            if let Ok(found) = client.query_presence(request).await
                && found.get_ref().presence[0].online == online
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), asked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_reaches_every_session_of_a_user_and_names_who_is_offline() {
    let running = Running::start(&[]).await;
    let mut client = running.client().await;
    let mut gateway = Gateway::attach(&running, "gw-1").await;
    gateway.open("s1", "alice", "d1", 1).await;
    gateway.open("s2", "alice", "d2", 2).await;
    gateway.say(Up::Synced(Synced {})).await;
    until_online(&mut client, "alice", true).await;

    let outcomes =
        deliver(&mut client, vec![item(&["alice", "bob"], "read"), item(&["alice"], "typing")]).await.unwrap().outcomes;
    assert_eq!((outcomes[0].delivered, &outcomes[0].offline_user_ids[..]), (2, &["bob".to_owned()][..]));
    assert_eq!(outcomes[1].delivered, 2);
    for event in ["read", "typing"] {
        let Down::Delivery(delivery) = gateway.hear().await else { panic!("a delivery") };
        assert_eq!(delivery.session_ids, ["s1", "s2"]);
        assert!(matches!(delivery.payload, Some(Payload::Event(e)) if e.event == event));
    }
    let one = Item { session_id: "s2".to_owned(), ..item(&["alice"], "read") };
    assert_eq!(deliver(&mut client, vec![one]).await.unwrap().outcomes[0].delivered, 1);
    let other = Item { except_device_id: "d2".to_owned(), ..item(&["alice"], "read") };
    assert_eq!(deliver(&mut client, vec![other]).await.unwrap().outcomes[0].delivered, 1);
    running.end.cancel();
    timeout(Duration::from_secs(20), running.service).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_login_of_a_device_and_a_kick_close_sessions() {
    let running = Running::start(&[]).await;
    let mut client = running.client().await;
    let mut gateway = Gateway::attach(&running, "gw-1").await;
    gateway.open("old", "alice", "d1", 1).await;
    gateway.open("new", "alice", "d1", 2).await;
    let Down::Kick(kick) = gateway.hear().await else { panic!("a kick") };
    assert_eq!((kick.session_id.as_str(), kick.code), ("old", 4003));
    until_online(&mut client, "alice", true).await;
    let request = kick_of("alice", "", 2);
    assert_eq!(client.kick(request).await.unwrap().into_inner().sessions, 1);
    assert!(matches!(gateway.hear().await, Down::Kick(kick) if kick.session_id == "new"));
    until_online(&mut client, "alice", false).await;
    running.end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_reaches_a_session_that_arrives_later_at_an_instance_that_does_not_own_its_user() {
    let other: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let running = Running::start(&[other]).await;
    let mut client = running.client().await;
    let mut gateway = Gateway::attach(&running, "gw-1").await;
    for user in (0..8).map(|n| format!("user-{n}")) {
        assert_eq!(client.kick(kick_of(&user, "d1", 10)).await.unwrap().into_inner().sessions, 0);
        gateway.open(&format!("{user}.old"), &user, "d1", 10).await;
        let Down::Kick(kicked) = gateway.hear().await else { panic!("a kick") };
        assert_eq!((kicked.session_id, kicked.code), (format!("{user}.old"), 4003));
        // What has logged in again, and another device, stay.
        gateway.open(&format!("{user}.new"), &user, "d1", 11).await;
        gateway.open(&format!("{user}.other"), &user, "d2", 9).await;
        client.kick(kick_of(&user, "d2", 9)).await.unwrap();
        assert!(matches!(gateway.hear().await, Down::Kick(kick) if kick.session_id == format!("{user}.other")));
    }
    running.end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_called_offline_before_the_gateways_have_had_the_time_to_report() {
    let running = Running::start(&[]).await;
    let mut client = running.client().await;
    let request = || QueryPresenceRequest { user_ids: vec!["alice".to_owned()] };
    // Asked while the instance has just started: the answer waits for the report.
    let asked = tokio::spawn({
        let mut client = client.clone();
        async move {
            loop {
                match client.query_presence(request()).await {
                    Ok(found) => return found.into_inner().presence.remove(0).online,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        }
    });
    let gateway = Gateway::attach(&running, "gw-1").await;
    gateway.open("s1", "alice", "d1", 1).await;
    assert!(timeout(SOON, asked).await.unwrap().unwrap(), "an unsettled instance says nothing about who is absent");
    let absent = QueryPresenceRequest { user_ids: vec!["bob".to_owned()] };
    let found = timeout(SOON, client.query_presence(absent)).await.unwrap().unwrap().into_inner();
    assert!(!found.presence[0].online);
    running.end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_too_many_is_told_to_come_back_later() {
    let running = Running::start(&[]).await;
    let mut gateway = Gateway::attach(&running, "gw-1").await;
    for n in 0..17_i64 {
        gateway.open(&format!("s{n}"), "alice", &format!("d{n}"), 1 + n).await;
    }
    let Down::Kick(kick) = gateway.hear().await else { panic!("a kick") };
    assert_eq!((kick.session_id.as_str(), kick.code), ("s0", 4029));
    running.end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_while_the_gateways_stream_is_broken_follows_when_it_is_back() {
    let running = Running::start(&[]).await;
    let mut client = running.client().await;
    let gateway = Gateway::attach(&running, "gw-1").await;
    gateway.open("s1", "alice", "d1", 1).await;
    until_online(&mut client, "alice", true).await;
    drop(gateway);
    // Whether the instance has noticed the break or not: it is accepted once, and must arrive once the gateway is back.
    let outcome = deliver(&mut client, vec![item(&["alice"], "read")]).await.unwrap().outcomes.remove(0);
    assert_eq!((outcome.delivered, outcome.overflowed, outcome.offline_user_ids.len()), (1, 0, 0));
    let mut gateway = Gateway::attach(&running, "gw-1").await;
    gateway.open("s1", "alice", "d1", 1).await;
    gateway.say(Up::Synced(Synced {})).await;
    deliver(&mut client, vec![item(&["alice"], "typing")]).await.unwrap();
    assert!(matches!(gateway.hear().await, Down::Delivery(_)));
    gateway.say(Up::Close(Close { session_id: "s1".to_owned(), user_id: "alice".to_owned(), moved: false })).await;
    until_online(&mut client, "alice", false).await;
    running.end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_another_instance_are_refused_with_its_address_and_bad_input_by_field() {
    let other: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let running = Running::start(&[other]).await;
    let mut client = running.client().await;
    let mut refused = 0;
    for user in (0..50).map(|i| format!("user-{i}")) {
        match client.query_presence(QueryPresenceRequest { user_ids: vec![user] }).await.map_err(Error::from) {
            Ok(_) => {}
            Err(error) if error.reason.as_deref() == Some(reason::WRONG_HOLDER) => {
                assert_eq!(error.metadata["holder"], other.to_string());
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!((10..40).contains(&refused), "{refused}: about half are the other's");
    let empty = deliver(&mut client, vec![item(&[], "read")]).await.unwrap_err();
    assert!(empty.detail.contains("items[0].user_ids"), "{empty}");
    let hollow = deliver(&mut client, vec![Item { delivery: None, ..item(&["alice"], "read") }]).await.unwrap_err();
    assert!(hollow.detail.contains("items[0].delivery"), "{hollow}");
    running.end.cancel();
}
