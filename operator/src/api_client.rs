//! The client of the API server: every request has a deadline and is counted by verb and resource.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower::{BoxError, Layer, Service};

/// An answer must begin within this time; a watch answers at once and then stays open.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Requests so far, by verb and resource (`create secrets`, `update leases`, `patch chatclusters/status`).
#[derive(Clone, Default)]
pub struct RequestCounts(Arc<Mutex<BTreeMap<(&'static str, String), u64>>>);

impl RequestCounts {
    /// All counts.
    pub fn snapshot(&self) -> BTreeMap<(&'static str, String), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that could change something, leases left out.
    pub fn writes(&self) -> u64 {
        let reads = ["get", "list", "watch"];
        self.snapshot()
            .iter()
            .filter(|((verb, what), _)| !reads.contains(verb) && what != "leases")
            .map(|(_, n)| n)
            .sum()
    }

    fn count(&self, verb: &'static str, resource: String) {
        metrics::counter!("kith_operator_api_requests_total", "verb" => verb, "resource" => resource.clone())
            .increment(1);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((verb, resource)).or_insert(0) += 1;
    }
}

/// A client for `config` whose requests are counted in `counts`.
pub fn client(mut config: Config, counts: RequestCounts) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT_DEADLINE);
    Ok(ClientBuilder::try_from(config)?.with_layer(&Counting { counts }).build())
}

/// The verb and the resource of a request, as RBAC names them.
fn classify(method: &Method, path: &str, query: Option<&str>) -> (&'static str, String) {
    let mut parts = path.trim_matches('/').split('/');
    match parts.next() {
        Some("api") => drop(parts.next()),
        Some("apis") => drop(parts.nth(1)),
        _ => return ("get", "other".to_owned()),
    }
    let mut rest: Vec<&str> = parts.collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let resource = match (rest.first(), rest.get(2)) {
        (Some(kind), Some(sub)) => format!("{kind}/{sub}"),
        (Some(kind), None) => (*kind).to_owned(),
        (None, _) => "other".to_owned(),
    };
    let watch = query.is_some_and(|q| q.split('&').any(|p| p == "watch=true"));
    let verb = match *method {
        Method::GET if watch => "watch",
        Method::GET if rest.len() < 2 => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

struct Counting {
    counts: RequestCounts,
}

impl<S> Layer<S> for Counting {
    type Service = CountingService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountingService { inner, counts: self.counts.clone() }
    }
}

/// Counts and bounds each request, then passes it on.
#[derive(Clone)]
pub struct CountingService<S> {
    inner: S,
    counts: RequestCounts,
}

impl<S, B> Service<Request<Body>> for CountingService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = classify(request.method(), request.uri().path(), request.uri().query());
        self.counts.count(verb, resource);
        let answer = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err("the API server did not answer in time".into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_as_rbac_names_them() {
        let cases = [
            (Method::GET, "/api/v1/namespaces/a/secrets", None, ("list", "secrets")),
            (Method::GET, "/api/v1/namespaces/a/secrets/b", None, ("get", "secrets")),
            (Method::GET, "/api/v1/pods", Some("limit=5&watch=true"), ("watch", "pods")),
            (Method::GET, "/api/v1/namespaces/a", None, ("get", "namespaces")),
            (
                Method::PATCH,
                "/apis/kith.dev/v1alpha1/namespaces/a/chatclusters/b/status",
                Some("force=true"),
                ("patch", "chatclusters/status"),
            ),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", None, ("update", "leases")),
            (Method::POST, "/apis/apps/v1/namespaces/a/deployments", None, ("create", "deployments")),
            (Method::GET, "/version", None, ("get", "other")),
        ];
        for (method, path, query, (verb, resource)) in cases {
            assert_eq!(classify(&method, path, query), (verb, resource.to_owned()), "{path}");
        }
    }

    #[test]
    fn leases_and_reads_are_no_writes() {
        let counts = RequestCounts::default();
        counts.count("update", "leases".to_owned());
        counts.count("list", "pods".to_owned());
        assert_eq!(counts.writes(), 0);
        counts.count("patch", "deployments".to_owned());
        assert_eq!(counts.writes(), 1);
    }
}
