//! The OpenAPI 3.1 document, from the handlers' own descriptions. `tests/openapi.rs` keeps `docs/openapi.json` equal to it.

use kith_contract::problem;
use serde_json::Value;
use utoipa::{
    Modify, OpenApi, PartialSchema, ToSchema,
    openapi::{
        ContentBuilder, Ref, RefOr, ResponseBuilder, Schema,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::routes::{blocks, conversations, devices, friends, messages, meta, presence, sync, users};

/// Schemas of the contract under their names in the document: they are described once, in `kith_contract`.
macro_rules! of_contract {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                described(kith_contract::json::schema::<$type>())
            }
        }

        impl ToSchema for $name {}
    )*};
}
of_contract! {
    /// A message.
    Message: kith_contract::message::Message<'static, Value>;
    /// The body of a send.
    SendMessage: kith_contract::message::SendMessage<Value>;
    /// Any error.
    Problem: kith_contract::problem::Problem<'static>;
}

/// A schema of the contract in the words of OpenAPI 3.1, which are those of JSON Schema.
fn described(mut schema: Value) -> RefOr<Schema> {
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("$schema");
        fields.remove("title");
    }
    serde_json::from_value(schema).unwrap_or_else(|error| {
        tracing::error!(%error, "a schema of the contract is none of OpenAPI");
        RefOr::T(Schema::default())
    })
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Kith",
        description = "The short-connection API. 64-bit integers are strings. Retry 503 and 504 with the same client_msg_id.",
        version = "v1"
    ),
    paths(
        messages::send, messages::history, messages::recall, messages::edit, messages::react, messages::unreact,
        conversations::list, conversations::get, conversations::update, conversations::clear, conversations::read,
        conversations::receipts, sync::ack, sync::sync, users::me, users::update_me, users::get, users::batch_get,
        friends::list, friends::update, friends::remove, friends::requests, friends::request, friends::accept,
        friends::reject, friends::withdraw, blocks::list, blocks::block, blocks::unblock, presence::query, devices::list,
        devices::push_token, devices::remove, meta::jwks,
    ),
    components(schemas(Message, SendMessage, Problem)),
    security(("token" = [])),
    modifiers(&Common)
)]
struct Api;

/// What every call may be answered with.
const PROBLEM: &str = "A problem document: `code` tells what kind, `reason` more where it helps, `detail` what to do about it. \
    400 INVALID_ARGUMENT (413 with reason TOO_LARGE, 415 without JSON): malformed; the detail names the field. 401 UNAUTHENTICATED: no token, or \
    one that is bad, expired or revoked. 403 PERMISSION_DENIED: reason NOT_MEMBER, BLOCKED, MUTED or NOT_ALLOWED. 404 NOT_FOUND: also where \
    the caller may not know that it exists. 409 ALREADY_EXISTS: a client_msg_id that stands for another message; ABORTED, \
    FAILED_PRECONDITION: it does not fit what is there. 429 RESOURCE_EXHAUSTED: later, see Retry-After. 503 UNAVAILABLE, \
    504 DEADLINE_EXCEEDED: outcome unknown or not done; retry with the same client_msg_id. 500 INTERNAL, DATA_LOSS: it has been logged.";

/// What holds for every call: the token, and problem documents.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
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
    }
}

fn add_problem(operation: &mut Operation) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description(PROBLEM).content(problem::MEDIA_TYPE, content).build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(problem));
}

/// The document as pretty JSON.
pub fn document() -> String {
    match Api::openapi().to_pretty_json() {
        Ok(text) => text + "\n",
        Err(error) => {
            tracing::error!(%error, "the OpenAPI document could not be written");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_described_message_has_the_fields_that_are_written() {
        let message = kith_proto::chat::v1::Message { content: "{}".into(), ..Default::default() };
        let written = kith_send::json::message_json(&message).unwrap();
        let written: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_str(written.get()).unwrap();
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let described = document["components"]["schemas"]["Message"]["properties"].as_object().unwrap();
        assert_eq!(
            written.keys().collect::<Vec<_>>(),
            described.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        );
        assert_eq!(document["openapi"], "3.1.0");
    }
}
