//! What needs no token: the API's description and the token keys.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::state::Shared;

/// The routes of this file, but that of the description: whoever has made it serves it.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::default().routes(routes!(jwks))
}

/// Answers with the OpenAPI 3.1 document.
pub(crate) fn openapi(document: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=300")], document)
        .into_response()
}

/// The keys that client tokens are verified with.
#[utoipa::path(get, path = "/.well-known/jwks.json", operation_id = "get_jwks", tag = "meta", security(()),
    responses((status = 200, description = "A JWK set", body = Object)))]
async fn jwks(State(app): State<Shared>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=60")],
        app.authenticator.jwks(),
    )
        .into_response()
}
