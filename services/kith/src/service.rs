//! Which service this process is.

use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    shutdown::CancellationToken,
};
use tokio::net::TcpListener;

use crate::Failure;

/// A service of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Storage,
    Tasks,
    Sessions,
    Api,
    Gateway,
    Business,
}

impl Service {
    /// Its name on the command line and in certificates.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Tasks => "tasks",
            Self::Sessions => "sessions",
            Self::Api => "api",
            Self::Gateway => "gateway",
            Self::Business => "business",
        }
    }

    /// Its port of docs/names.md.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Storage | Self::Tasks | Self::Sessions | Self::Business => 7443,
            Self::Api => 8080,
            Self::Gateway => 8081,
        }
    }

    /// Runs it until `shutdown`.
    pub(crate) async fn run(
        self,
        config: Config,
        instance: Instance,
        listener: Option<TcpListener>,
        readiness: Readiness,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let bound = listener.ok_or_else(|| Failure::from("no listener"));
        match self {
            Self::Api => kith_api::run(config, instance, bound?, readiness, shutdown).await?,
            Self::Gateway => kith_gateway::run(config, instance, bound?, readiness, shutdown).await?,
            Self::Business => kith_business::run(config, instance, bound?, readiness, shutdown).await?,
            Self::Storage => kith_storage::run(config, instance, bound?, readiness, shutdown).await?,
            Self::Sessions => kith_sessions::run(config, instance, bound?, readiness, shutdown).await?,
            Self::Tasks => kith_tasks::run(config, instance, readiness, shutdown).await?,
        }
        Ok(())
    }
}
