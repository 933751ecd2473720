//! The short-connection external HTTP API.
//!
//! Each route translates: it checks what it can tell alone, asks storage or sessions, and shows the answer as the contract has it. Sending
//! goes through `kith_send`. It never knows a shard, and decides nothing about membership: storage does.
//!
//! State and schemas are below, the routes above them, the router on top; each uses only what is below it.

mod budget;
mod caller;
mod extract;
mod middleware;
mod openapi;
mod places;
mod router;
mod routes;
mod schema;
mod state;
mod view;
mod visible;

use std::time::Duration;

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
use kith_rpc::{admission::Seats, http, route::RouteError};
use tokio::net::TcpListener;

pub use crate::router::document;
use crate::state::App;

/// Connections of one instance; of an address that have shown no token yet; of one user (a backend may call for many).
const SEATS: Seats = Seats { all: 16_384, unknown_per_address: 512, per_caller: 128 };
/// How long it goes on serving after it was asked to end, so that load balancers notice first.
const LAME_DUCK: Duration = Duration::from_millis(1_500);
/// Open requests may take this long after that.
const GRACE: Duration = Duration::from_secs(10);
/// What is spoken in TLS, the best first.
const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

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

/// Serves the HTTP API on `listener` until `shutdown`.
pub async fn run(
    config: Config,
    _instance: Instance,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    readiness.expect("storage");
    let files = config.gateway.as_ref().and_then(|gateway| gateway.tls.as_ref());
    let tls = files.map(|files| tls::listener(files, &PROTOCOLS)).transpose()?;
    let verifier = Verifier::load(&config.auth.keys_dir, &config.cluster.name)?;
    // Upstream connections outlive the listener: open requests still need them.
    let ended = CancellationToken::new();
    let _end_of_upstream = ended.clone().drop_guard();
    let storage = Storage::new(&config, ended.clone())?;
    let sessions = Sessions::new(&config, ended)?;
    let (known, ready) = (storage.clone(), readiness.clone());
    tokio::spawn(async move {
        known.discovered().await;
        ready.ready("storage");
    });
    let authenticator = Authenticator::new(verifier, storage.clone());
    let router = router::router(App::new(&config, storage, sessions, authenticator));
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        shutdown.cancelled().await;
        readiness.not_ready("listener", "draining");
        tokio::time::sleep(LAME_DUCK).await;
        stopping.cancel();
    });
    let idle = Duration::from_millis(config.gateway.unwrap_or_default().idle_ms.into());
    http::serve(listener, tls, router, http::Bounds { seats: SEATS, idle, grace: GRACE }, stop).await;
    Ok(())
}
