//! The streams to `sessions`: one to each ready instance, held open and made again when it breaks. Each reports the sessions of the users
//! that its instance owns, and brings deliveries and kicks.
//!
//! What is to be reported is derived again from the registry and the endpoints at every change, never remembered as a list of changes,
//! so nothing can be missed: an overflowing queue only means one more look.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kith_clients::sessions::key;
use kith_kit::{backoff::Backoff, rendezvous};
use kith_proto::sessions::v1::{
    AttachRequest, SessionAckRequest, attach_request, attach_response, sessions_client::SessionsClient,
};
use kith_rpc::{
    client::Dialer,
    discovery::{Discovery, Endpoints},
};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    inbound,
    registry::{Command, Handle, Registry},
};

/// Changes that wait to be reported on one stream.
const CHANGES: usize = 1_024;
/// Frames that wait for the wire.
const WIRE: usize = 256;
/// Pauses before a stream is made again.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The instance answers the hello within this.
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);
/// A stream that takes no frame for this long is broken.
const WIRE_DEADLINE: Duration = Duration::from_secs(5);
/// After a session was reported to another owner, a kick may have missed it on its way: an owner that has just started remembers none.
const RECHECK_WITHIN: Duration = Duration::from_millis(1_500);
/// After a session was reported to another owner, deliveries may still have missed it for a moment.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

/// A change that a stream's instance is told of.
#[derive(Debug)]
enum Change {
    Opened(Arc<Handle>),
    Renewed(Arc<Handle>),
    Closed(String),
    Ack(SessionAckRequest),
}

/// The streams. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links(Arc<Inner>);

struct Inner {
    gateway: String,
    discovery: Discovery,
    dialer: Dialer,
    registry: Arc<Registry>,
    links: Mutex<HashMap<String, Link>>,
}

struct Link {
    changes: mpsc::Sender<Change>,
    /// Look at everything again.
    again: Arc<Notify>,
    end: CancellationToken,
}

impl Links {
    /// Streams of the gateway at address `gateway` for the sessions of `registry`, until `shutdown`.
    pub(crate) fn start(
        gateway: String,
        discovery: Discovery,
        dialer: Dialer,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> Self {
        let links = Self(Arc::new(Inner { gateway, discovery, dialer, registry, links: Mutex::default() }));
        let manager = links.clone();
        tokio::spawn(async move { manager.manage(shutdown).await });
        links
    }

    /// Makes a session known.
    pub(crate) fn open(&self, handle: Arc<Handle>) {
        self.0.registry.insert(&handle);
        let user_id = handle.session.user_id.clone();
        self.tell(&user_id, Change::Opened(handle));
    }

    /// The client of a session has given a newer token.
    pub(crate) fn renewed(&self, handle: &Arc<Handle>) {
        self.tell(&handle.session.user_id, Change::Renewed(handle.clone()));
    }

    /// A session has ended.
    pub(crate) fn close(&self, handle: &Handle) {
        self.0.registry.remove(&handle.session.session_id);
        self.tell(&handle.session.user_id, Change::Closed(handle.session.session_id.clone()));
    }

    /// Passes delivered cursors on; false when there is no way to the owner now.
    pub(crate) fn ack(&self, ack: SessionAckRequest) -> bool {
        let endpoints = self.0.discovery.current();
        let Some(owner) = rendezvous::owner(&endpoints, key(&ack.user_id)) else { return false };
        let links = self.0.links.lock();
        links.get(owner).is_some_and(|link| link.changes.try_send(Change::Ack(ack)).is_ok())
    }

    fn tell(&self, user_id: &str, change: Change) {
        let endpoints = self.0.discovery.current();
        let Some(owner) = rendezvous::owner(&endpoints, key(user_id)) else { return };
        let links = self.0.links.lock();
        if let Some(link) = links.get(owner)
            && link.changes.try_send(change).is_err()
        {
            link.again.notify_one();
        }
    }

    async fn manage(self, shutdown: CancellationToken) {
        let mut endpoints = self.0.discovery.watch();
        loop {
            let live = endpoints.borrow_and_update().clone();
            self.keep(&live, &shutdown);
            match shutdown.run_until_cancelled(endpoints.changed()).await {
                Some(Ok(())) => {}
                _ => return,
            }
        }
    }

    /// Starts streams to new instances, ends those to instances that are gone, and lets the others look again: owners have changed.
    fn keep(&self, live: &Endpoints, shutdown: &CancellationToken) {
        let mut links = self.0.links.lock();
        links.retain(|address, link| {
            let stays = live.contains(address);
            if stays {
                link.again.notify_one();
            } else {
                link.end.cancel();
            }
            stays
        });
        for address in live.iter() {
            if links.contains_key(address) {
                continue;
            }
            let (changes, receiver) = mpsc::channel(CHANGES);
            let again = Arc::new(Notify::new());
            let end = shutdown.child_token();
            let stream =
                Stream { inner: self.0.clone(), address: address.clone(), again: again.clone(), end: end.clone() };
            tokio::spawn(stream.run(receiver));
            links.insert(address.clone(), Link { changes, again, end });
        }
        metrics::gauge!("kith_gateway_links").set(links.len() as f64);
        self.0.dialer.retain(live);
    }
}

/// The task of one stream.
struct Stream {
    inner: Arc<Inner>,
    address: String,
    again: Arc<Notify>,
    end: CancellationToken,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("the instance did not answer in time")]
    Late,
    #[error("the instance ended the stream")]
    Ended,
}

impl Stream {
    async fn run(self, mut changes: mpsc::Receiver<Change>) {
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        loop {
            let started = tokio::time::Instant::now();
            match self.end.run_until_cancelled(self.attach(&mut changes)).await {
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(sessions = %self.address, %error, "the stream to sessions broke; making it again");
                    metrics::counter!("kith_gateway_link_breaks_total").increment(1);
                }
                Some(Ok(())) => return,
            }
            if started.elapsed() > MAX_PAUSE {
                backoff.reset();
            }
            if self.end.run_until_cancelled(backoff.pause()).await.is_none() {
                return;
            }
            self.inner.discovery.look_again();
        }
    }

    /// One life of the stream.
    async fn attach(&self, changes: &mut mpsc::Receiver<Change>) -> Result<(), Broken> {
        let (wire, frames) = mpsc::channel::<AttachRequest>(WIRE);
        let hello = attach_request::Hello { gateway: self.inner.gateway.clone() };
        send(&wire, attach_request::Frame::Hello(hello)).await?;
        let mut client = SessionsClient::new(self.inner.dialer.channel(&self.address))
            .max_decoding_message_size(kith_rpc::client::MAX_MESSAGE_BYTES);
        let opening = client.attach(ReceiverStream::new(frames));
        let response = tokio::time::timeout(WELCOME_DEADLINE, opening).await.map_err(|_| Broken::Late)??;
        let mut incoming = response.into_inner();
        let first = tokio::time::timeout(WELCOME_DEADLINE, incoming.message()).await.map_err(|_| Broken::Late)??;
        let registry = &self.inner.registry;
        match first.and_then(|f| f.frame) {
            None => return Err(Broken::Ended),
            Some(attach_response::Frame::Welcome(welcome)) => {
                tracing::info!(sessions = %self.address, instance = %welcome.instance, "attached");
            }
            Some(frame) => inbound::handle(registry, frame),
        }
        let receive = async {
            while let Some(response) = incoming.message().await? {
                if let Some(frame) = response.frame {
                    inbound::handle(registry, frame);
                }
            }
            Err::<(), Broken>(Broken::Ended)
        };
        tokio::select! {
            ended = receive => ended,
            ended = self.report(&wire, changes) => ended,
        }
    }

    /// Tells the instance of its sessions: all at first and after every change of owners, then one by one.
    async fn report(
        &self,
        wire: &mpsc::Sender<AttachRequest>,
        changes: &mut mpsc::Receiver<Change>,
    ) -> Result<(), Broken> {
        // What this stream's instance knows: user by session.
        let mut reported: HashMap<String, String> = HashMap::new();
        self.reconcile(wire, &mut reported).await?;
        loop {
            tokio::select! {
                () = self.again.notified() => self.reconcile(wire, &mut reported).await?,
                change = changes.recv() => match change {
                    // The sender lives as long as the link.
                    None => return Ok(()),
                    Some(Change::Opened(handle)) => {
                        // It may have ended, or its owner may have changed, since it was queued.
                        if self.inner.registry.contains(&handle.session.session_id) && self.owns(&handle.session.user_id) {
                            self.open(wire, &mut reported, &handle).await?;
                        }
                    }
                    Some(Change::Renewed(handle)) => {
                        if reported.contains_key(&handle.session.session_id) {
                            send(wire, attach_request::Frame::Open(handle.report(false))).await?;
                        }
                    }
                    Some(Change::Closed(session_id)) => {
                        if let Some(user_id) = reported.remove(&session_id) {
                            close(wire, session_id, user_id, false).await?;
                        }
                    }
                    Some(Change::Ack(ack)) => send(wire, attach_request::Frame::Ack(ack)).await?,
                },
            }
        }
    }

    fn owns(&self, user_id: &str) -> bool {
        let endpoints = self.inner.discovery.current();
        rendezvous::owner(&endpoints, key(user_id)) == Some(&self.address)
    }

    async fn open(
        &self,
        wire: &mpsc::Sender<AttachRequest>,
        reported: &mut HashMap<String, String>,
        handle: &Arc<Handle>,
    ) -> Result<(), Broken> {
        let session = &handle.session;
        if reported.insert(session.session_id.clone(), session.user_id.clone()).is_some() {
            return Ok(());
        }
        let fresh = handle.is_fresh();
        send(wire, attach_request::Frame::Open(handle.report(fresh))).await?;
        if !fresh {
            recheck_soon(handle.clone());
            suspect_later(handle.clone());
        }
        Ok(())
    }

    /// Opens what the instance owns and does not know, closes what it knows and does not own.
    async fn reconcile(
        &self,
        wire: &mpsc::Sender<AttachRequest>,
        reported: &mut HashMap<String, String>,
    ) -> Result<(), Broken> {
        let gone: Vec<_> = reported
            .iter()
            .filter_map(|(session_id, user_id)| {
                let over = !self.inner.registry.contains(session_id);
                (over || !self.owns(user_id)).then(|| (session_id.clone(), user_id.clone(), !over))
            })
            .collect();
        for (session_id, user_id, moved) in gone {
            reported.remove(&session_id);
            close(wire, session_id, user_id, moved).await?;
        }
        for handle in self.inner.registry.snapshot() {
            if self.owns(&handle.session.user_id) {
                self.open(wire, reported, &handle).await?;
            }
        }
        send(wire, attach_request::Frame::Synced(attach_request::Synced {})).await
    }
}

/// Lets a connection see whether its token has been revoked while its owner changed. Jittered, as below.
fn recheck_soon(handle: Arc<Handle>) {
    let pause = RECHECK_WITHIN.mul_f64(rand::rng().random_range(0.1..1.0));
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        handle.tell(Command::Recheck);
    });
}

/// Lets a connection read from storage what may have missed it while its owner changed. Jittered: many sessions move at once.
fn suspect_later(handle: Arc<Handle>) {
    let pause = SUSPECT_AFTER.mul_f64(rand::rng().random_range(1.0..3.0));
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        handle.tell(Command::Suspect);
    });
}

async fn send(wire: &mpsc::Sender<AttachRequest>, frame: attach_request::Frame) -> Result<(), Broken> {
    match tokio::time::timeout(WIRE_DEADLINE, wire.send(AttachRequest { frame: Some(frame) })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Broken::Ended),
        Err(_) => Err(Broken::Late),
    }
}

async fn close(
    wire: &mpsc::Sender<AttachRequest>,
    session_id: String,
    user_id: String,
    moved: bool,
) -> Result<(), Broken> {
    send(wire, attach_request::Frame::Close(attach_request::Close { session_id, user_id, moved })).await
}
