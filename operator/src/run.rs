//! The process: election, controllers, the admin port, and an orderly end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use kith_kit::{readiness::Readiness, shutdown, telemetry, tls};
use kith_platform::ADMIN_PORT;
use kith_rpc::admin::{self};
use kube::Client;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    api_client::{self, RequestCounts},
    context::Context,
    controllers::{self, Standby},
    figures::Figures,
    lease::{
        Election, LEASE, Timing,
        notice::Speaker,
        rivals::{Own, Watches},
    },
    panics,
    release::ReleaseArgs,
};

/// What the end may take: passes finish, the lease is given back.
const GRACE: Duration = Duration::from_secs(8);

/// Who this process is among the operators of a cluster.
#[derive(Debug, Clone, Parser)]
pub struct Place {
    /// Name of this pod, by which it holds the lease.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Namespace of this pod, where the lease is.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
    /// Name of the Lease for which the replicas of one release compete.
    #[arg(long, env = "KITH_LEASE", default_value = "kith-operator")]
    pub lease: String,
    /// Namespaces to look after, comma-separated; none: all.
    #[arg(long, env = "WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
}

impl Place {
    /// A candidate for the lease.
    pub fn election(&self, client: Client) -> Election {
        let own = Own {
            namespace: self.pod_namespace.clone(),
            lease: self.lease.clone(),
            watches: Watches::of(&self.watch_namespace),
        };
        Election::new(client, own, &self.pod_name, Timing { lease: LEASE })
    }
}

/// Settings, by flag or environment.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Who this process is.
    #[command(flatten)]
    pub place: Place,
    /// What it brings.
    #[command(flatten)]
    pub release: ReleaseArgs,
    /// Address of the admin port.
    #[arg(long, env = "KITH_ADMIN", default_value_t = (Ipv4Addr::UNSPECIFIED, ADMIN_PORT).into())]
    pub admin: SocketAddr,
    /// A private folder for logins at the engines, best in memory.
    #[arg(long, env = "KITH_RUN_DIR", default_value = "/run/kith-operator")]
    pub run_dir: PathBuf,
}

/// Why the process could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Metrics.
    #[error("metrics: {0}")]
    Metrics(String),
    /// Signals or the admin port.
    #[error("start: {0}")]
    Io(#[from] std::io::Error),
    /// Where the API server is.
    #[error("the API server's address is not known: {0}")]
    Config(String),
    /// The client.
    #[error("client: {0}")]
    Client(#[from] kube::Error),
}

/// Runs until it is asked to end or loses the lease.
pub async fn run(args: Args) -> ExitCode {
    telemetry::init_tracing();
    match start(args).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "the operator cannot start");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> Result<ExitCode, StartError> {
    panics::end_the_process();
    tls::install_provider();
    let metrics = telemetry::init_metrics().map_err(|e| StartError::Metrics(e.to_string()))?;
    let shutdown = shutdown::on_signal()?;
    let readiness = Readiness::default();
    readiness.expect("api-server");
    // The admin port outlives the controllers, so that probes do not fail while they end.
    let admin_end = CancellationToken::new();
    // A replica that does not lead has nothing to say of objects.
    let figures = Arc::new(OnceLock::<Figures>::new());
    let of_objects = {
        let figures = figures.clone();
        move || figures.get().map(Figures::render).unwrap_or_default()
    };
    let admin_task =
        tokio::spawn(admin::serve_with(args.admin, readiness.clone(), metrics, of_objects, admin_end.clone()));
    let config = kube::Config::infer().await.map_err(|e| StartError::Config(e.to_string()))?;
    let client = api_client::client(config, RequestCounts::default())?;
    let code = lead(&args, client, readiness, &figures, shutdown).await;
    admin_end.cancel();
    if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), admin_task).await.unwrap_or(Ok(Ok(()))) {
        tracing::error!(%error, "the admin port failed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(code)
}

async fn lead(
    args: &Args,
    client: Client,
    readiness: Readiness,
    figures: &OnceLock<Figures>,
    shutdown: CancellationToken,
) -> ExitCode {
    let place = &args.place;
    let election = place.election(client.clone());
    let speaker =
        Speaker { pod: place.pod_name.clone(), namespace: place.pod_namespace.clone(), readiness: readiness.clone() };
    tokio::spawn(speaker.follow(client.clone(), election.rival(), shutdown.clone()));
    // A replica that waits for its turn is as ready as one that acts.
    readiness.ready("api-server");
    let work = shutdown.child_token();
    let (context, wakes) = Context::new(
        client,
        args.release.release(),
        election.guard(),
        &place.pod_name,
        args.run_dir.clone(),
        work.clone(),
    );
    let standby = Standby::begin(&context, place.watch_namespace.clone());
    tracing::info!(identity = %place.pod_name, lease = %place.lease, "waiting for the lease");
    if !election.acquire(&shutdown).await {
        work.cancel();
        return ExitCode::SUCCESS;
    }
    tracing::info!(identity = %place.pod_name, "leading");
    metrics::gauge!("kith_operator_leader").set(1.0);
    figures.get_or_init(|| context.figures.clone());
    let mut controllers = tokio::spawn(controllers::run(context, wakes, standby));
    // The lease is held until everything that acts has ended, and longer than the request to end.
    let hold_end = CancellationToken::new();
    let held = election.hold(&hold_end);
    tokio::pin!(held);
    tokio::select! {
        biased;
        lost = &mut held => {
            if let Err(error) = lost {
                tracing::error!(%error, "another operator acts now: leaving at once");
                std::process::exit(1);
            }
        }
        () = shutdown.cancelled() => {}
        // Nothing is looked after by halves while the lease is held.
        ended = &mut controllers => {
            tracing::error!(?ended, "the controllers ended: so does the process, and another takes over");
            std::process::exit(1);
        }
    }
    work.cancel();
    tokio::select! {
        lost = &mut held => if lost.is_err() { std::process::exit(1) },
        ended = tokio::time::timeout(GRACE, &mut controllers) => {
            if ended.is_err() {
                tracing::warn!("some passes did not end in time");
            }
        }
    }
    hold_end.cancel();
    if let Err(error) = election.release().await {
        tracing::warn!(%error, "the lease could not be given back; the other replica waits until it ends");
    }
    ExitCode::SUCCESS
}
