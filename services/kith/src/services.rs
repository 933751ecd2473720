//! The subcommands that run services, and what each of them runs. Written by `cargo servicegen` from `services/platform`: change it there.

use clap::Subcommand;
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    shutdown::CancellationToken,
};
use kith_platform::Service;
use tokio::net::TcpListener;

use crate::{Failure, Run};

/// A service to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The only service that reads and writes chat data. Its pods share the partitions among them.
    Storage(Run),
    /// Delivers what the event log tells to those who are online, and what a device missed when it logs in.
    Tasks(Run),
    /// Knows who is online where.
    Sessions(Run),
    /// ImBusiness, the endpoint of business lines.
    Business(Run),
    /// The HTTP API, for short connections of clients.
    Api(Run),
    /// The WebSocket, for long connections of clients.
    Gateway(Run),
}

impl Command {
    /// Which service, and what it is told.
    pub(crate) fn parts(self) -> (Service, Run) {
        match self {
            Self::Storage(run) => (Service::Storage, run),
            Self::Tasks(run) => (Service::Tasks, run),
            Self::Sessions(run) => (Service::Sessions, run),
            Self::Business(run) => (Service::Business, run),
            Self::Api(run) => (Service::Api, run),
            Self::Gateway(run) => (Service::Gateway, run),
        }
    }
}

/// Runs a service until `shutdown`; `listener` is there for those that listen.
pub(crate) async fn run(
    service: Service,
    config: Config,
    instance: Instance,
    listener: Option<TcpListener>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let bound = listener.ok_or_else(|| Failure::from("no listener"));
    match service {
        Service::Storage => kith_storage::run(config, instance, bound?, readiness, shutdown).await?,
        Service::Tasks => kith_tasks::run(config, instance, readiness, shutdown).await?,
        Service::Sessions => kith_sessions::run(config, instance, bound?, readiness, shutdown).await?,
        Service::Business => kith_business::run(config, instance, bound?, readiness, shutdown).await?,
        Service::Api => kith_api::run(config, instance, bound?, readiness, shutdown).await?,
        Service::Gateway => kith_gateway::run(config, instance, bound?, readiness, shutdown).await?,
    }
    Ok(())
}
