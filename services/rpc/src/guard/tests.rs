//! The guard over real connections: every component at every method, and handlers that panic.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use futures::{StreamExt, future::ready};
use kith_proto::DESCRIPTORS;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, service::Routes};
use tonic_prost::ProstCodec;

use super::*;
use crate::{
    client::{Dialer, Transport},
    error::Error,
    server::{self, Allow},
};
use kith_kit::config::Config;
use kith_platform::{OPERATOR, Serves, Service};
use kith_testing::Pki;

/// Paths of all methods of the descriptor set.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let files = set.file.iter();
    let services = files.flat_map(|f| f.service.iter().map(move |s| (format!("/{}.{}/", f.package(), s.name()), s)));
    services.flat_map(|(prefix, s)| s.method.iter().map(move |m| format!("{prefix}{}", m.name()))).collect()
}

fn config(pki: Option<&Pki>, component: &str) -> Config {
    let mut config: Config = serde_json::from_value(serde_json::json!({
        "cluster": {"name": "demo", "uid": "u-1", "partitions": 16, "eventPartitions": 4},
        "services": {"storage": {"endpoints": "static:127.0.0.1:1"}, "sessions": {"endpoints": "static:127.0.0.1:1"}},
        "auth": {"keysDir": "/nonexistent"},
    }))
    .unwrap();
    config.tls = pki.map(|pki| pki.service(component).unwrap());
    config
}

/// A server of the platform whose address is returned.
async fn start(config: Config, routes: Routes, end: &CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let end = end.clone();
    tokio::spawn(async move { server::serve(&config, listener, routes, Allow::Platform, end).await.unwrap() });
    address
}

/// Calls a method with an empty message.
async fn call(transport: Transport, path: &str) -> Result<(), Error> {
    let mut client = tonic::client::Grpc::new(transport);
    client.ready().await.map_err(|_| Error::unanswered("not ready"))?;
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let mut answers = client.server_streaming(Request::new(()), path, codec).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

#[test]
fn every_internal_method_has_callers_and_the_table_names_no_other() {
    let ours = |path: &&String| {
        let of_lines =
            |service: &Service| matches!(service.serves(), Serves::Lines(name) if path[1..].starts_with(name));
        !Service::ALL.iter().any(of_lines)
    };
    let declared: BTreeSet<_> = methods().iter().filter(ours).cloned().collect();
    let rpcs = Service::ALL.iter().filter_map(|service| service.rpcs()).flatten();
    let listed: BTreeSet<_> =
        rpcs.flat_map(|rpc| rpc.methods.iter().map(move |(method, _)| format!("/{}/{method}", rpc.name))).collect();
    assert_eq!(listed, declared);
}

#[tokio::test]
async fn a_certificate_calls_what_the_table_says_and_nothing_else() {
    kith_kit::tls::install_provider();
    let pki = Pki::new("demo", "u-1").unwrap();
    let end = CancellationToken::new();
    // No handler: who comes through is told that the method is not implemented.
    let address = start(config(Some(&pki), "storage"), Routes::default(), &end).await;
    let mut methods = methods();
    methods.push("/grpc.health.v1.Health/Check".to_owned());
    let components = Service::ALL.iter().map(|service| service.name());
    for component in components.chain([OPERATOR, "valkey", "kafka", "nobody"]) {
        let dialer = Dialer::new(&config(Some(&pki), component), "storage").unwrap();
        for path in &methods {
            let refused = match call(dialer.channel(&address), path).await {
                Ok(()) => false,
                Err(error) if error.code == Code::PermissionDenied => true,
                Err(error) => {
                    assert_eq!(error.code, Code::Unimplemented, "{component} {path}: {error}");
                    false
                }
            };
            assert_eq!(refused, !may_call(component, path), "{component} {path}");
        }
    }
    end.cancel();
}

#[tokio::test]
async fn a_certificate_of_a_line_or_of_another_cluster_calls_nothing_inside() {
    kith_kit::tls::install_provider();
    let pki = Pki::new("demo", "u-1").unwrap();
    let end = CancellationToken::new();
    let address = start(config(Some(&pki), "storage"), Routes::default(), &end).await;
    let mut line = config(None, "");
    line.tls = Some(pki.line("default").unwrap());
    let dialer = Dialer::new(&line, "storage").unwrap();
    for path in methods().iter().map(String::as_str).chain(["/grpc.health.v1.Health/Check"]) {
        assert_eq!(call(dialer.channel(&address), path).await.unwrap_err().code, Code::PermissionDenied, "{path}");
    }
    end.cancel();
}

/// Panics, at once or in its stream.
#[derive(Clone)]
struct Panics;

impl tonic::server::NamedService for Panics {
    const NAME: &'static str = "kith.test.Panics";
}

impl tower::Service<http::Request<Body>> for Panics {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path() {
            "/kith.test.Panics/Now" => panic!("now"),
            "/kith.test.Panics/Later" => Box::pin(async {
                tokio::task::yield_now().await;
                panic!("later")
            }),
            "/kith.test.Panics/Reset" => {
                let stream = futures::stream::once(ready(Err::<Frame<Bytes>, _>(Status::internal("a broken body"))));
                let body = Body::new(http_body_util::StreamBody::new(stream));
                let response = http::Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                Box::pin(ready(Ok(response)))
            }
            _ => {
                let stream = futures::stream::once(ready(()))
                    .map(|()| -> Result<Frame<Bytes>, Status> { panic!("in the stream") });
                let body = Body::new(http_body_util::StreamBody::new(stream));
                let response = http::Response::builder().header("content-type", "application/grpc").body(body).unwrap();
                Box::pin(ready(Ok(response)))
            }
        }
    }
}

#[tokio::test]
async fn a_panic_is_answered_and_its_instance_goes_on() {
    let end = CancellationToken::new();
    let address = start(config(None, ""), Routes::new(Panics), &end).await;
    let dialer = Dialer::plain("storage");
    for path in ["/kith.test.Panics/Now", "/kith.test.Panics/Later", "/kith.test.Panics/Stream"] {
        let error = call(dialer.channel(&address), path).await.unwrap_err();
        assert_eq!(error.code, Code::Internal, "{path}");
        assert!(!error.unanswered && !error.is_retryable(), "{path}");
        assert!(crate::client::is_alive(dialer.channel(&address), Duration::from_secs(2)).await);
    }
    let reset = call(dialer.channel(&address), "/kith.test.Panics/Reset").await.unwrap_err();
    assert!(!reset.unanswered, "a reset stream says nothing against its instance: {reset}");
    end.cancel();
}
