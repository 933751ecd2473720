//! The OpenAPI 3.1 document around the operations, which the router brings: its head, what holds for every call, and its text.

use kith_contract::problem;
use utoipa::{
    OpenApi as _,
    openapi::{
        ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::schema::Problem;

/// Where the document is served. The one route that it does not describe: whoever reads it has found it.
pub(crate) const PATH: &str = "/v1/openapi.json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Kith",
        description = "The short-connection API. 64-bit integers are strings. Retry 503 and 504 with the same client_msg_id.",
        version = "v1"
    ),
    components(schemas(Problem)),
    security(("token" = []))
)]
struct Head;

/// What every call may be answered with.
const PROBLEM: &str = "A problem document: `code` tells what kind, `reason` more where it helps, `detail` what to do about it. \
    400 INVALID_ARGUMENT (413 with reason TOO_LARGE, 415 without JSON): malformed; the detail names the field. 401 UNAUTHENTICATED: no token, or \
    one that is bad, expired or revoked. 403 PERMISSION_DENIED: reason NOT_MEMBER, BLOCKED, MUTED or NOT_ALLOWED. 404 NOT_FOUND: also where \
    the caller may not know that it exists. 409 ALREADY_EXISTS: a client_msg_id that stands for another message; ABORTED, \
    FAILED_PRECONDITION: it does not fit what is there. 429 RESOURCE_EXHAUSTED: later, see Retry-After. 503 UNAVAILABLE, \
    504 DEADLINE_EXCEEDED: outcome unknown or not done; retry with the same client_msg_id. 500 INTERNAL, DATA_LOSS: it has been logged.";

/// The document before any route has been added.
pub(crate) fn head() -> OpenApi {
    Head::openapi()
}

/// The document of these operations as pretty JSON, with what holds for every call: the token, and problem documents.
pub(crate) fn text(mut api: OpenApi) -> String {
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.bearer_format = Some("JWT".to_owned());
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    for path in api.paths.paths.values_mut() {
        let operations = [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete];
        for operation in operations.into_iter().filter_map(Option::as_mut) {
            add_problem(operation);
        }
    }
    match api.to_pretty_json() {
        Ok(text) => text + "\n",
        Err(error) => {
            tracing::error!(%error, "the OpenAPI document could not be written");
            String::new()
        }
    }
}

fn add_problem(operation: &mut Operation) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description(PROBLEM).content(problem::MEDIA_TYPE, content).build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(problem));
}
