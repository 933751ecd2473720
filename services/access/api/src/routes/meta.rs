//! What needs no token: the API's description and the token keys.

use std::sync::LazyLock;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use crate::app::Shared;

static DOCUMENT: LazyLock<String> = LazyLock::new(crate::openapi::document);

/// The OpenAPI 3.1 document.
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=300")], DOCUMENT.as_str())
        .into_response()
}

/// The keys that client tokens are verified with.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "meta", security(()), responses((status = 200, description = "A JWK set", body = Object)))]
pub(crate) async fn jwks(State(app): State<Shared>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=60")],
        app.authenticator.jwks(),
    )
        .into_response()
}
