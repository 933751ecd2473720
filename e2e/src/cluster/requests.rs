//! Writes to the API server, counted by the API server itself.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use tonic::codegen::http::Request;

use super::{Cluster, ClusterError};
use crate::wait::await_every;

/// What writes.
const VERBS: [&str; 5] = ["POST", "PUT", "PATCH", "APPLY", "DELETE"];
/// Resources that Kubernetes itself writes while nothing happens: leases, what kubelets report about nodes and pods, and the tokens
/// and reviews that clients ask for.
const NOT_OURS: [&str; 8] = [
    "leases",
    "nodes",
    "serviceaccounts/token",
    "tokenreviews",
    "subjectaccessreviews",
    "selfsubjectaccessreviews",
    "csinodes",
    "selfsubjectreviews",
];

/// Writes by resource since the API server started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes(BTreeMap<String, u64>);

impl Writes {
    /// What was written between `earlier` and this count.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let more = self.0.iter().filter_map(|(resource, count)| {
            let new = count - earlier.0.get(resource).copied().unwrap_or(0).min(*count);
            (new > 0).then(|| (resource.clone(), new))
        });
        Self(more.collect())
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(resource, count)| format!("{resource} × {count}")).collect();
        f.write_str(&all.join(", "))
    }
}

impl Cluster {
    /// Writes so far, without those that Kubernetes makes by itself.
    pub async fn writes(&self) -> Result<Writes, ClusterError> {
        let request = Request::get("/metrics").body(Vec::new()).map_err(|e| ClusterError::Missing(e.to_string()))?;
        Ok(parse(&self.client.request_text(request).await?))
    }

    /// Waits until nothing has been written for `span`: what was done before, pods that end and a new leader's first pass, is over.
    pub async fn await_quiet(&self, span: Duration, deadline: Duration) -> Result<(), ClusterError> {
        let last = tokio::sync::Mutex::new((Writes::default(), Instant::now()));
        await_every(Duration::from_millis(500), "the API server to be left alone", deadline, || async {
            let now = self.writes().await.map_err(|e| e.to_string())?;
            let mut last = last.lock().await;
            let written = now.since(&last.0);
            if !written.is_empty() {
                *last = (now, Instant::now());
                return Err(written.to_string());
            }
            if last.1.elapsed() < span { Err("quiet, but not for long enough".to_owned()) } else { Ok(()) }
        })
        .await?;
        Ok(())
    }
}

fn parse(metrics: &str) -> Writes {
    let mut writes = BTreeMap::new();
    for line in metrics.lines() {
        let Some((labels, value)) = line.strip_prefix("apiserver_request_total{").and_then(|l| l.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value)
        };
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else { continue };
        let subresource = label("subresource").unwrap_or_default();
        let name = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        let ours = VERBS.contains(&verb) && !NOT_OURS.contains(&name.as_str()) && !NOT_OURS.contains(&resource);
        if ours && let Ok(count) = value.trim().parse::<f64>() {
            *writes.entry(format!("{} {name}", verb.to_lowercase())).or_insert(0) += count as u64;
        }
    }
    Writes(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_resource_and_leases_are_left_out() {
        let text = "# TYPE apiserver_request_total counter\n\
            apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"kith.dev\",resource=\"chatclusters\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\",version=\"v1alpha1\"} 3\n\
            apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"coordination.k8s.io\",resource=\"leases\",scope=\"resource\",subresource=\"\",verb=\"PUT\",version=\"v1\"} 9\n\
            apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\"} 4\n";
        let before = parse(text);
        assert_eq!(before.to_string(), "patch chatclusters/status × 3");
        let after = parse(&text.replace("} 3\n", "} 5\n"));
        assert_eq!(after.since(&before).to_string(), "patch chatclusters/status × 2");
        assert!(before.since(&before).is_empty());
    }
}
