//! ImBusiness: the internal gRPC endpoint of business lines.
//!
//! A line is known by its client certificate and acts only for its own users: [`line`] decides that, [`service`] answers the calls.
//! It never knows a shard, and sends only through `kith_send`.

pub mod line;
mod service;
mod users;
mod weight;

use std::time::Duration;

use kith_clients::{
    auth::{KeyError, Signer},
    sessions::Sessions,
    storage::Storage,
};
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    shutdown::CancellationToken,
};
use kith_proto::business::v1::im_business_server::ImBusinessServer;
use kith_rpc::{
    route::RouteError,
    server::{self, Allow, ServeError},
};
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::{line::Lines, service::Business, weight::Weighed};

/// The largest request: a batch of 100 messages of 64 KiB, and room.
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Why the service ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Token keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The way to storage and sessions.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The gRPC server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves ImBusiness on `listener` until `shutdown`.
pub async fn run(
    config: Config,
    _instance: Instance,
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    readiness.expect("storage");
    let signer = Signer::load(&config.auth.keys_dir, &config.cluster.name)?;
    let storage = Storage::new(&config, shutdown.clone())?;
    let sessions = Sessions::new(&config, shutdown.clone())?;
    let known = storage.clone();
    tokio::spawn(async move {
        known.discovered().await;
        readiness.ready("storage");
    });
    let token_ttl = Duration::from_secs(config.auth.token_ttl_s.into());
    // Without TLS (processes on one machine) there are no certificates: every caller is the line `default`.
    let anonymous = config.tls.is_none().then(|| "default".to_owned());
    let business = Business::new(Lines::new(storage.clone(), anonymous), storage, sessions, signer, token_ttl);
    let service = ImBusinessServer::new(business).max_decoding_message_size(MAX_REQUEST_BYTES);
    Ok(server::serve(&config, listener, Routes::new(Weighed::new(service)), Allow::Lines, shutdown).await?)
}
