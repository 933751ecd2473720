//! The long-connection access layer: WebSocket sessions.
//!
//! A connection is a state machine ([`machine`]) and a thin loop around it. The gateway dials every instance of `sessions` and holds a
//! stream to each; what comes down is shown in order, and what a delivery did not bring is read from storage. It decides nothing about
//! who may see what, and keeps nothing that must survive it.

mod accept;
mod connection;
mod drain;
pub mod frame;
mod inbound;
mod jobs;
mod links;
pub mod machine;
mod registry;
pub mod resume;
mod typing;

use std::{sync::Arc, time::Duration};

use kith_clients::{
    auth::{KeyError, Verifier},
    login::Authenticator,
    sessions::Sessions,
    storage::Storage,
};
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    shutdown::CancellationToken,
    tls::{self, TlsError},
};
use kith_rpc::{admission::Seats, http, origins::Origins, route::RouteError};
use kith_send::{Doorway, Limiter};
use tokio::{net::TcpListener, time::Instant};

use crate::{accept::Gate, jobs::Worker, links::Links, machine::io::Settings, registry::Registry, typing::Typists};

/// Connections of one address that have shown no token yet.
const UNKNOWN_PER_ADDRESS: usize = 512;
/// Connections of one user that count as known; `sessions` bounds how many may stay.
const PER_USER: usize = 256;
/// Connections beyond those of the Gateway's limit, which are told so in the WebSocket's own words.
const REFUSED: usize = 1_024;
/// A connection that is not upgraded has no reason to wait.
const IDLE: Duration = Duration::from_secs(10);
/// How long it goes on accepting after it was asked to end, so that load balancers notice first.
const LAME_DUCK: Duration = Duration::from_millis(1_500);
/// Requests that are not upgraded may take this long after that.
const GRACE: Duration = Duration::from_secs(2);
/// What is spoken in TLS: WebSockets begin as HTTP/1.1.
const PROTOCOLS: [&str; 1] = ["http/1.1"];
/// What the last close frames may take.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Token keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The way to storage and sessions.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The certificate that clients are shown.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Serves WebSockets on `listener` until `shutdown`, then drains.
pub async fn run(
    config: Config,
    instance: Instance,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    readiness.expect("storage");
    let limits = config.gateway.clone().unwrap_or_default();
    let tls = limits.tls.as_ref().map(|files| tls::listener(files, &PROTOCOLS)).transpose()?;
    let verifier = Verifier::load(&config.auth.keys_dir, &config.cluster.name)?;
    // Upstream connections outlive the listener: the drain still needs them.
    let ended = CancellationToken::new();
    let _end_of_upstream = ended.clone().drop_guard();
    let storage = Storage::new(&config, ended.clone())?;
    let sessions = Sessions::new(&config, ended.clone())?;
    let (known, ready) = (storage.clone(), readiness.clone());
    tokio::spawn(async move {
        known.discovered().await;
        ready.ready("storage");
    });
    let registry = Arc::new(Registry::new(limits.max_sessions_per_user));
    let router = sessions.router().clone();
    let links = Links::start(
        instance.advertise.to_string(),
        router.discovery().clone(),
        router.dialer().clone(),
        registry.clone(),
        ended,
    );
    let doorway = Doorway::of_clients(storage.clone(), limits.sent_bytes_per_minute);
    let worker = Arc::new(Worker::new(
        storage.clone(),
        Authenticator::new(verifier, storage.clone()),
        links,
        Typists::new(storage, sessions),
        Limiter::new(config.limits.sends_per_second),
        doorway,
    ));
    let settings = Settings {
        heartbeat: Duration::from_millis(limits.heartbeat_ms.max(1_000).into()),
        frames_per_second: limits.frames_per_second,
        frames_queued: limits.frames_queued.max(1) as usize,
    };
    let seats = Seats {
        all: limits.max_connections as usize + REFUSED,
        unknown_per_address: UNKNOWN_PER_ADDRESS,
        per_caller: PER_USER,
    };
    let gate = Gate::new(worker, settings, Origins::new(&limits.websocket_origins), limits.max_connections);
    let stop = CancellationToken::new();
    let serving = http::serve(
        listener,
        tls,
        accept::router(gate.clone()),
        http::Bounds { seats, idle: IDLE, grace: GRACE },
        stop.clone(),
    );
    let draining = async {
        shutdown.cancelled().await;
        readiness.not_ready("listener", "draining");
        let deadline = Instant::now() + Duration::from_millis(limits.drain_ms.into());
        tokio::time::sleep(LAME_DUCK).await;
        stop.cancel();
        drain::drain(&registry, &gate, limits.drain_per_second, deadline).await;
        if tokio::time::timeout(LAST_WORDS, gate.end()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    };
    tokio::join!(serving, draining);
    Ok(())
}
