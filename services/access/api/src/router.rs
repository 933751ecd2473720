//! The router, above all routes, and the OpenAPI document that follows from it.
//!
//! A route is declared once, at its handler: `#[utoipa::path]` says path, method and operation, and `routes!` brings all three into the
//! router and the document at the same time. So neither has what the other lacks, and a handler that no `routes` function names is dead
//! code, which the linter refuses. Two things stand beside: the document itself ([`openapi::PATH`]), and where a fixed word of a path could
//! also be an id, the methods that the document has at the id. Each `routes!` takes one handler: with several of different paths, all
//! methods would be at each of the paths.

use std::{future::ready, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, routing::get};
use bytes::Bytes;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    extract::MAX_BODY_BYTES,
    middleware, openapi,
    routes::{blocks, conversations, devices, friends, messages, meta, presence, sync, users},
    state::{App, Shared},
};

/// All routes with their operations.
fn described() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::head())
        .merge(messages::routes())
        .merge(conversations::routes())
        .merge(sync::routes())
        .merge(users::routes())
        .merge(friends::routes())
        .merge(blocks::routes())
        .merge(presence::routes())
        .merge(devices::routes())
        .merge(meta::routes())
}

/// The OpenAPI 3.1 document of the HTTP API as pretty JSON. `tests/openapi.rs` keeps `docs/openapi.json` equal to it.
pub fn document() -> String {
    openapi::text(described().into_openapi())
}

/// The HTTP API.
pub(crate) fn router(app: App) -> Router {
    let (routes, operations) = described().split_for_parts();
    let document = Bytes::from(openapi::text(operations));
    let routes = routes
        .route(openapi::PATH, get(move || ready(meta::openapi(document))))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    let app = Arc::new(app);
    middleware::around(routes, &app).with_state(app)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::{
        body::{Body, to_bytes},
        http::{Method, Request, StatusCode, header},
        response::Response,
    };
    use kith_clients::{auth::Verifier, login::Authenticator, sessions::Sessions, storage::Storage};
    use kith_contract::problem;
    use kith_kit::{config::Config, shutdown::CancellationToken};
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    /// The API with nobody behind it.
    fn alone() -> Router {
        let keys = tempfile::tempdir().unwrap();
        let public = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let jwks = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": public}]});
        std::fs::write(keys.path().join("jwks.json"), jwks.to_string()).unwrap();
        let config: Config = serde_json::from_value(json!({
            "cluster": {"name": "demo", "uid": "u-1", "partitions": 16, "eventPartitions": 4},
            "services": {"storage": {"endpoints": "static:127.0.0.1:9"}, "sessions": {"endpoints": "static:127.0.0.1:9"}},
            "auth": {"keysDir": keys.path()},
        }))
        .unwrap();
        let end = CancellationToken::new();
        let storage = Storage::new(&config, end.clone()).unwrap();
        let sessions = Sessions::new(&config, end).unwrap();
        let authenticator = Authenticator::new(Verifier::load(keys.path(), "demo").unwrap(), storage.clone());
        router(App::new(&config, storage, sessions, authenticator))
    }

    async fn ask(api: &Router, method: &str, path: &str) -> Response {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        api.clone().oneshot(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await.unwrap()
    }

    /// The methods of each path of the document.
    fn documented() -> BTreeMap<String, BTreeSet<String>> {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let methods = |item: &Value| item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        document["paths"].as_object().unwrap().iter().map(|(path, item)| (path.clone(), methods(item))).collect()
    }

    #[tokio::test]
    async fn every_path_takes_the_methods_that_the_document_has_and_no_others() {
        let (api, documented) = (alone(), documented());
        for (path, methods) in &documented {
            let answer = ask(&api, "NONE", &path.replace(['{', '}'], "")).await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let taken = answer.headers()[header::ALLOW].to_str().unwrap().split(',').filter(|method| *method != "HEAD");
            let taken: BTreeSet<String> = taken.map(str::to_owned).collect();
            // Where a fixed word could be an id too, what it does not take itself is taken as for any other id.
            let (parent, _) = path.rsplit_once('/').unwrap();
            let by_id = documented.iter().filter(|(other, _)| {
                other.rsplit_once('/').is_some_and(|(beside, last)| beside == parent && last.starts_with('{'))
            });
            let described: BTreeSet<String> = by_id.flat_map(|(_, more)| more).chain(methods).cloned().collect();
            assert_eq!(taken, described, "{path}");
        }
    }

    #[tokio::test]
    async fn what_no_route_takes_is_answered_with_a_problem() {
        let api = alone();
        for (method, path, status) in
            [("GET", "/v1/nothing", 404), ("PUT", "/v1/me", 405), ("POST", openapi::PATH, 405)]
        {
            let answer = ask(&api, method, path).await;
            assert_eq!(answer.status(), status, "{method} {path}");
            assert_eq!(answer.headers()[header::CONTENT_TYPE], problem::MEDIA_TYPE, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn the_document_is_served_as_it_is_committed() {
        let answer = ask(&alone(), "GET", openapi::PATH).await;
        assert_eq!(
            (answer.status(), &answer.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
        assert_eq!(to_bytes(answer.into_body(), usize::MAX).await.unwrap(), document());
    }
}
