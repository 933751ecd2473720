//! The one service binary: a subcommand per service.

mod repair;
mod services;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use kith_kit::{
    config::{Config, Instance},
    readiness::Readiness,
    shutdown, telemetry, tls,
};
use kith_platform::{ADMIN_PORT, Service};
use kith_rpc::admin::{self};
use tokio::net::TcpListener;

/// Most of what services allocate is small and short-lived, on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kith's services.
#[derive(Debug, Parser)]
#[command(name = "kith", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Service(services::Command),
    /// Restores what the storage engine has lost from the event log: the partitions that are closed with DATA_LOSS, or those that are named.
    Repair(repair::Args),
}

/// What every service is told.
#[derive(Debug, Args)]
struct Run {
    /// The configuration file.
    #[arg(long, env = "KITH_CONFIG", default_value = "/etc/kith/config.json")]
    config: PathBuf,
    /// Where the service listens; its contract port by default.
    #[arg(long, env = "KITH_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "KITH_ADMIN", default_value_t = (Ipv4Addr::UNSPECIFIED, ADMIN_PORT).into())]
    admin: SocketAddr,
    /// The address that others dial; by default POD_IP with the listener's port, or the listener's own address.
    #[arg(long, env = "KITH_ADVERTISE")]
    advertise: Option<SocketAddr>,
    /// The pod's address.
    #[arg(long, env = "POD_IP", hide = true)]
    pod_ip: Option<std::net::IpAddr>,
}

/// Any reason to end with an error; its text is the one line that the process leaves.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match runtime() {
        Ok(runtime) => runtime.block_on(run(command)),
        Err(error) => {
            eprintln!("kith: no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One worker for two cores that this process may use: its work comes in small pieces that are handed over often, and a second worker
/// is woken for most of them (measured on two cores: twice the latency at half the load). `TOKIO_WORKER_THREADS` says otherwise.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(cores.div_ceil(2));
    }
    builder.enable_all().build()
}

async fn run(command: Command) -> ExitCode {
    let (service, run) = match command {
        Command::Service(command) => command.parts(),
        Command::Repair(args) => return repair::run(args).await,
    };
    telemetry::init_tracing();
    match start(service, run).await {
        Ok(()) => {
            tracing::info!(service = service.name(), "ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(service = service.name(), "{error}");
            eprintln!("kith {}: {error}", service.name());
            ExitCode::FAILURE
        }
    }
}

/// Starts a service and waits for its end.
async fn start(service: Service, run: Run) -> Result<(), Failure> {
    tls::install_provider();
    let config = Config::load(&run.config)?;
    let metrics = telemetry::init_metrics()?;
    let shutdown = shutdown::on_signal()?;
    let listen = run.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], service.port())));
    // Who serves nobody binds nothing but its admin port.
    let listener = if service.listens() {
        Some(TcpListener::bind(listen).await.map_err(|e| format!("cannot listen on {listen}: {e}"))?)
    } else {
        None
    };
    let bound = listener.as_ref().map_or(Ok(listen), TcpListener::local_addr)?;
    let advertise = run.advertise.unwrap_or_else(|| match run.pod_ip {
        Some(ip) => SocketAddr::new(ip, bound.port()),
        None => bound,
    });
    let instance = Instance { advertise };
    let readiness = Readiness::default();
    // The admin port outlives the service: its last state is still to be seen while it drains.
    let admin_end = shutdown::CancellationToken::new();
    let admin = tokio::spawn(admin::serve(run.admin, readiness.clone(), metrics, admin_end.clone()));
    tracing::info!(service = service.name(), version = env!("CARGO_PKG_VERSION"), listen = %bound, %advertise, admin = %run.admin, "starting");
    let ended = tokio::select! {
        ended = services::run(service, config, instance, listener, readiness, shutdown) => ended,
        failed = admin => match failed {
            Ok(Err(error)) => Err(format!("cannot serve the admin port {}: {error}", run.admin).into()),
            Ok(Ok(())) => Err("the admin port ended".into()),
            Err(error) => Err(error.into()),
        },
    };
    admin_end.cancel();
    ended
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["kith", "gateway", "--config", "c.json", "--listen", "127.0.0.1:1"]).unwrap();
        let Command::Service(command) = cli.command else { panic!("a service") };
        let (service, run) = command.parts();
        assert_eq!((service, run.listen), (Service::Gateway, Some("127.0.0.1:1".parse().unwrap())));
    }

    #[test]
    fn every_service_is_a_subcommand_of_its_name() {
        for service in Service::ALL {
            let cli = Cli::try_parse_from(["kith", service.name()]).unwrap();
            let Command::Service(command) = cli.command else { panic!("a service") };
            assert_eq!(command.parts().0, *service);
        }
    }
}
