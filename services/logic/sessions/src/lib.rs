//! Long-connection logic: who is online on which gateway; delivers down the gateways' own streams.
//!
//! A user belongs to one instance, by rendezvous hashing over the ready ones. Each gateway holds one Attach stream to every instance and
//! reports the sessions of the users that the instance owns. All of this is in memory: after a restart, or when owners change, gateways
//! report again, and for a moment ([`registry::SETTLE`]) an absent user is not called offline. A session that arrives from another owner
//! is announced as `session.resumed`, from which `tasks` sends what may have slipped through on the way.
//!
//! Rooms: [`registry`], [`kicks`] and [`owners`] decide (pure), `hub` joins them with the queues, `service` translates gRPC, [`publish`] tells
//! Kafka, [`store`] tells storage.

pub mod acks;
mod hub;
pub mod kicks;
mod outlet;
pub mod owners;
pub mod publish;
pub mod registry;
mod service;
pub mod store;

use std::{sync::Arc, time::Duration};

use kith_clients::{sessions::Sessions, storage::Storage};
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
};
use kith_proto::sessions::v1::sessions_server::SessionsServer;
use kith_rpc::{
    client::MAX_MESSAGE_BYTES,
    discovery::Discovery,
    route::RouteError,
    server::{self, Allow, ServeError},
};
use thiserror::Error;
use tokio::{net::TcpListener, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{hub::Hub, publish::PublishError, service::Service};

/// Sessions of one user at a time, over all gateways.
const SESSIONS_PER_USER: usize = 16;
/// Between two looks at sessions whose time is over.
const TICK: Duration = Duration::from_millis(250);
/// An ending instance serves on until the others have stopped seeing it, at most this long.
const LEAVE: Duration = Duration::from_secs(2);
const LEAVE_POLL: Duration = Duration::from_millis(50);

/// Why the service ended or did not start.
#[derive(Debug, Error)]
pub enum Error {
    /// Storage or the other instances cannot be routed to.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The event log cannot be written.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A part of the service panicked.
    #[error("a part of the service ended by itself: {0}")]
    Panicked(tokio::task::JoinError),
}

/// Serves until `shutdown`, then hands its users over and writes what waits.
pub async fn run(
    config: Config,
    instance: Instance,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    readiness.expect("sessions");
    if config.kafka.is_none() {
        return Err(PublishError::NoKafka.into());
    }
    // In the order of the end: streams and server, then what writes for them, then their own connections.
    let (serving, writing, connected) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let storage = Storage::new(&config, connected.clone())?;
    let peers = Sessions::new(&config, connected.clone())?;
    let me = instance.advertise.to_string();
    let hub = Arc::new(Hub::new(me.clone(), SESSIONS_PER_USER));

    let background = TaskTracker::new();
    background.spawn(watch_owners(hub.clone(), peers.router().discovery().clone(), connected.clone()));
    background.spawn(tick(hub.clone(), connected.clone()));
    let (flushed, flush_end) = (hub.clone(), writing.clone());
    let flusher = tokio::spawn(async move { flushed.pending.run(&storage, flush_end).await });
    let (published, publish_end, publish_config, failed) =
        (hub.clone(), writing.clone(), config.clone(), serving.clone());
    let publisher = tokio::spawn(async move {
        let outcome = published.publisher.run(&publish_config, |id| published.event_of(id), publish_end).await;
        // It ends before it is asked to only when it cannot work at all.
        failed.cancel();
        outcome
    });
    background.spawn(leave(hub.clone(), shutdown, serving.clone()));

    let service = Service { hub: hub.clone(), me: me.into(), ending: serving.clone() };
    let server = SessionsServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
    readiness.ready("sessions");
    let served = server::serve(&config, listener, Routes::new(server), Allow::Platform, serving.clone()).await;

    serving.cancel();
    writing.cancel();
    background.close();
    let (published, flushed) = tokio::join!(publisher, flusher);
    connected.cancel();
    background.wait().await;
    flushed.map_err(Error::Panicked)?;
    published.map_err(Error::Panicked)??;
    Ok(served?)
}

async fn watch_owners(hub: Arc<Hub>, discovery: Discovery, end: CancellationToken) {
    let mut changes = discovery.watch();
    loop {
        hub.owners_changed(changes.borrow_and_update().clone());
        if !matches!(end.run_until_cancelled(changes.changed()).await, Some(Ok(()))) {
            return;
        }
    }
}

async fn tick(hub: Arc<Hub>, end: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while end.run_until_cancelled(tick.tick()).await.is_some() {
        hub.expire();
    }
}

/// At the end: waits until callers go elsewhere, then ends the streams and the server.
async fn leave(hub: Arc<Hub>, shutdown: CancellationToken, serving: CancellationToken) {
    if serving.run_until_cancelled(shutdown.cancelled()).await.is_none() {
        return;
    }
    let end = tokio::time::Instant::now() + LEAVE;
    while hub.is_listed() && tokio::time::Instant::now() < end {
        tokio::time::sleep(LEAVE_POLL).await;
    }
    hub.end_streams();
    serving.cancel();
}
