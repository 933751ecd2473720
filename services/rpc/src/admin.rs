//! The admin port of every process: `/healthz`, `/readyz`, `/metrics`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{admission::Seats, http};
use kith_kit::readiness::Readiness;

/// Probes and scrapers: few, and none of them says who it is.
const BOUNDS: http::Bounds = http::Bounds {
    seats: Seats { all: 256, unknown_per_address: 64, per_caller: 0 },
    idle: Duration::from_secs(75),
    grace: Duration::from_secs(1),
};

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    metrics: PrometheusHandle,
    more: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Serves the admin port until `shutdown`.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    serve_with(address, readiness, metrics, String::new, shutdown).await
}

/// The same with metrics that the recorder does not keep: `more` answers them at each scrape, as Prometheus reads them. None of their
/// names may be one of the recorder's.
pub async fn serve_with(
    address: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
    more: impl Fn() -> String + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let upkeep = metrics.clone();
    let upkeep_end = shutdown.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while upkeep_end.run_until_cancelled(tick.tick()).await.is_some() {
            upkeep.run_upkeep();
        }
    });
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(admin): State<Admin>| async move { admin.metrics.render() + &(admin.more)() }))
        .with_state(Admin { readiness, metrics, more: Arc::new(more) });
    http::serve(listener, None, app, BOUNDS, shutdown).await;
    Ok(())
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.readiness.report() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, waiting),
    }
}
