//! The admin port of every process: `/healthz`, `/readyz`, `/metrics`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Which parts of the process are ready; all must be.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// Names a part that is not ready yet.
    pub fn expect(&self, part: &'static str) {
        self.not_ready(part, "starting");
    }

    /// Says that a part is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.lock().insert(part, None);
    }

    /// Says that a part is not ready, and why.
    pub fn not_ready(&self, part: &'static str, why: impl Into<String>) {
        self.0.lock().insert(part, Some(why.into()));
    }

    /// Whether all parts are ready.
    pub fn is_ready(&self) -> bool {
        self.0.lock().values().all(Option::is_none)
    }

    /// The parts that are not ready, a line each.
    pub fn report(&self) -> Result<(), String> {
        let parts = self.0.lock();
        let waiting: Vec<_> =
            parts.iter().filter_map(|(part, why)| why.as_ref().map(|why| format!("{part}: {why}\n"))).collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting.concat()) }
    }
}

#[cfg(feature = "grpc")]
mod serving {
    //! The server.

    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use axum::{Router, extract::State, http::StatusCode, routing::get};
    use metrics_exporter_prometheus::PrometheusHandle;
    use tokio::{net::TcpListener, time::MissedTickBehavior};
    use tokio_util::sync::CancellationToken;

    use super::Readiness;
    use crate::{admission::Seats, http};

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
            .route(
                "/metrics",
                get(|State(admin): State<Admin>| async move { admin.metrics.render() + &(admin.more)() }),
            )
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
}

#[cfg(feature = "grpc")]
pub use serving::{serve, serve_with};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_the_part_that_waits() {
        let readiness = Readiness::default();
        readiness.expect("kafka");
        readiness.ready("valkey");
        assert!(!readiness.is_ready());
        assert!(readiness.report().unwrap_err().contains("kafka: starting"));
        readiness.ready("kafka");
        assert_eq!(readiness.report(), Ok(()));
    }
}
