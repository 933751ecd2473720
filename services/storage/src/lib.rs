//! The storage layer: the only home of chat data; hides sharding.
//!
//! An instance claims the partitions that rendezvous hashing gives it, and is their only writer: calls become function calls on the engine,
//! committed in groups ([`engine`]), and events on the event log, published from the outbox in version order ([`outbox`]). What a call means
//! stands in [`core`]; [`grpc`] only translates. Storage is stateless: everything is in the engine, and a claim on it fences the one before.

#[cfg(test)]
mod behaviour;
mod codec;
pub mod command;
mod core;
mod engine;
mod event;
mod grpc;
mod outbox;
mod repair;
mod tags;
mod weight;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use kith_eventlog::producer::ProduceError;
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    valkey::{Connector, ValkeyError},
};
use kith_platform::Service;
use kith_proto::storage::v1::{LeavingRequest, peer_client::PeerClient};
use kith_rpc::{
    discovery::SpecError,
    route::{RouteError, Router},
    server::{self, Allow, ServeError},
};
use thiserror::Error;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    core::Core,
    engine::valkey::{Hub, ValkeyEngine, View},
    outbox::Outbox,
};

/// The function library that the engine's primaries must have loaded.
pub const LIBRARY: &str = include_str!("../lua/kith1.lua");

/// How long peers may take to hear that this instance leaves.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// How long peers may take to claim what this instance holds.
const HANDOVER: Duration = Duration::from_secs(6);
/// Calls that were sent before their senders heard of the new holders are still answered, with a hint.
const LINGER: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// Why storage did not start, or ended.
#[derive(Debug, Error)]
pub enum Error {
    /// A part of the configuration that storage needs is missing.
    #[error("configuration: {0} must be set for storage")]
    Missing(&'static str),
    /// How instances are found.
    #[error(transparent)]
    Discovery(#[from] SpecError),
    /// How peers are called.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The engine's connection settings.
    #[error(transparent)]
    Engine(#[from] ValkeyError),
    /// The event log's settings.
    #[error(transparent)]
    EventLog(#[from] ProduceError),
    /// The gRPC server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves storage on `listener` until `shutdown`, then hands its partitions over. Ready once the first claims are made; the engine and the
/// event log may come later than storage itself.
pub async fn run(
    config: Config,
    instance: Instance,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let valkey = config.valkey.clone().ok_or(Error::Missing("valkey"))?;
    let kafka = config.kafka.clone().ok_or(Error::Missing("kafka"))?;
    // What runs in the background ends with this token, after the last call; also when this future is dropped.
    let end = CancellationToken::new();
    let _ends = end.clone().drop_guard();
    let me = instance.advertise.to_string();
    let router = Router::new(&config, Service::Storage, end.clone())?;
    let view = Arc::new(View::new(router.discovery().clone(), me));
    let connector = Connector::new(&config, &valkey)?;
    let outbox = Outbox::new(&kafka, &config.cluster, config.events_topic(), config.limits.outbox_bytes, end.clone())?;
    let engine =
        ValkeyEngine::start(&config, connector, valkey.seeds, view.clone(), outbox, readiness.clone(), end.clone());
    let hub = engine.hub().clone();
    let core = Core::start(Arc::new(engine), &config.cluster, config.limits.clone(), Some(router.clone()));
    let stop = CancellationToken::new();
    let routes = grpc::routes(&core, &hub, &view, stop.clone());

    let leave = async {
        shutdown.cancelled().await;
        readiness.not_ready("shutdown", "ending");
        hand_over(&hub, &view, &router).await;
        stop.cancel();
    };
    let serve = server::serve(&config, listener, routes, Allow::Platform, stop.clone());
    let (served, ()) = tokio::join!(
        async {
            let served = serve.await;
            // A server that fails by itself ends the wait for the signal, too.
            shutdown.cancel();
            served
        },
        leave
    );
    Ok(served?)
}

/// Tells the peers, who claim what this instance holds, and answers until they have: every call is served or sent on, none refused.
async fn hand_over(hub: &Arc<Hub>, view: &Arc<View>, router: &Router) {
    let peers: Vec<String> = view.instances().into_iter().filter(|i| i != view.me()).collect();
    view.leave();
    if peers.is_empty() {
        return;
    }
    let told = join_all(peers.iter().map(|peer| async {
        let mut client = PeerClient::new(router.dialer().channel(peer));
        let told = client.leaving(LeavingRequest { address: view.me().to_owned() });
        tokio::time::timeout(LEAVE_DEADLINE, told).await.is_ok_and(|told| told.is_ok())
    }))
    .await;
    tracing::info!(peers = peers.len(), told = told.iter().filter(|t| **t).count(), "leaving");
    let end = Instant::now() + HANDOVER;
    while hub.holds_any() && Instant::now() < end {
        hub.probe().await;
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(LINGER).await;
}
