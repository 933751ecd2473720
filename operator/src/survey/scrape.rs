//! Reads the metrics of services off their admin ports: the few that say something of the event log.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{StatusCode, Uri},
};
use futures::{StreamExt, future, stream};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use thiserror::Error;

/// One pod may take this long to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest page read; a service's takes some tens of KiB.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Pods asked at once.
const SIDE_BY_SIDE: usize = 8;

/// Bytes of events that an instance of storage has not published.
const OUTBOX: &str = "kith_storage_outbox_bytes";
/// Kafka clients that failed and were made anew.
const REPLACED: [&str; 2] = ["kith_producer_replacements_total", "kith_consumer_restarts_total"];

/// What a pod says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Bytes of events in its outbox; absent: it has none.
    pub(super) outbox_bytes: Option<u64>,
    /// Kafka clients replaced since it began.
    pub(super) replaced: u64,
}

#[derive(Debug, Error)]
enum ScrapeError {
    #[error(transparent)]
    Uri(#[from] axum::http::uri::InvalidUri),
    #[error(transparent)]
    Request(#[from] hyper_util::client::legacy::Error),
    #[error(transparent)]
    Read(#[from] axum::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("did not answer in time")]
    Deadline,
}

/// Asks all of them; who does not answer is left out.
pub(super) async fn all(pods: &[(String, SocketAddr)]) -> Vec<(String, Sample)> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http::<Body>();
    let client = &client;
    let looks = stream::iter(pods.to_vec()).map(|(name, address)| async move {
        let read = tokio::time::timeout(DEADLINE, page(client, address)).await;
        match read.unwrap_or(Err(ScrapeError::Deadline)) {
            Ok(page) => Some((name, sample(&page))),
            Err(error) => {
                tracing::debug!(pod = name, %error, "the pod's metrics are not known");
                None
            }
        }
    });
    looks.buffer_unordered(SIDE_BY_SIDE).filter_map(future::ready).collect().await
}

async fn page(client: &Client<HttpConnector, Body>, address: SocketAddr) -> Result<String, ScrapeError> {
    let uri: Uri = format!("http://{address}/metrics").parse()?;
    let answer = client.get(uri).await?;
    if answer.status() != StatusCode::OK {
        return Err(ScrapeError::Status(answer.status()));
    }
    let bytes = to_bytes(Body::new(answer.into_body()), PAGE_BYTES_MAX).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The numbers that are looked for, summed over their labels.
fn sample(page: &str) -> Sample {
    let mut sample = Sample::default();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or_default();
        // Counts and bytes: what is no number, or below nought, says nothing.
        let value = value.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0).unwrap_or(0.0) as u64;
        if name == OUTBOX {
            sample.outbox_bytes = Some(sample.outbox_bytes.unwrap_or(0).saturating_add(value));
        } else if REPLACED.contains(&name) {
            sample.replaced = sample.replaced.saturating_add(value);
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};

    use super::*;

    const PAGE: &str = "# TYPE kith_storage_outbox_bytes gauge
kith_storage_outbox_bytes 1048576
# TYPE kith_producer_replacements_total counter
kith_producer_replacements_total{client=\"kith-storage\"} 2
kith_producer_replacements_total{client=\"other client\"} 1
kith_consumer_restarts_total{group=\"demo.tasks\"} 4
kith_storage_outbox_bytes_other 7
";

    #[test]
    fn the_numbers_that_matter_are_read_and_nothing_else_is_taken_for_them() {
        assert_eq!(sample(PAGE), Sample { outbox_bytes: Some(1 << 20), replaced: 7 });
        assert_eq!(
            sample("kith_storage_outbox_bytes NaN\nbad line\n\n"),
            Sample { outbox_bytes: Some(0), replaced: 0 }
        );
        assert_eq!(sample(""), Sample::default());
    }

    #[tokio::test]
    async fn who_does_not_answer_is_left_out_and_the_others_are_heard() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = axum::serve(listener, Router::new().route("/metrics", get(|| async { PAGE }))).into_future();
        let server = tokio::spawn(served);
        // A port that was given away and is free again.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let pods = [("gone".to_owned(), gone), ("there".to_owned(), address)];
        let found = all(&pods).await;
        assert_eq!(found, [("there".to_owned(), Sample { outbox_bytes: Some(1 << 20), replaced: 7 })]);
        server.abort();
    }
}
