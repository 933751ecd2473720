//! The OpenAPI 3.1 document, from the handlers' own descriptions. `tests/openapi.rs` keeps `docs/openapi.json` equal to it.

use std::collections::BTreeMap;

use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        ContentBuilder, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::routes::{blocks, conversations, devices, friends, messages, meta, presence, sync, users};

/// A message, as `kith_send::json` writes it.
#[derive(ToSchema)]
#[allow(dead_code)] // A description: nothing builds it.
pub(crate) struct Message {
    #[schema(example = "d:alice:bob")]
    conversation_id: String,
    /// From "1", without a hole, per conversation.
    #[schema(example = "42")]
    seq: String,
    /// ULID.
    message_id: String,
    client_msg_id: String,
    sender_id: String,
    /// Unix ms.
    sent_at: String,
    /// text, image, file, audio, video, location, card, custom, system
    r#type: String,
    /// Empty when recalled.
    #[schema(value_type = Object)]
    content: (),
    mentions: Vec<String>,
    ext: BTreeMap<String, String>,
    recalled: bool,
    /// Unix ms; null: never edited.
    edited_at: Option<String>,
    /// Users by emoji: at most 20 each, the first who reacted so.
    reactions: BTreeMap<String, Vec<String>>,
    /// How many reacted so, by emoji.
    reaction_counts: BTreeMap<String, u32>,
    /// The reactions of the user who asks.
    my_reactions: Vec<String>,
}

/// Any error (RFC 9457).
#[derive(ToSchema)]
#[allow(dead_code)] // A description: `kith_rpc::http` writes it.
pub(crate) struct Problem {
    r#type: String,
    title: String,
    status: u16,
    /// What to do about it.
    detail: String,
    /// A gRPC code's name, for example INVALID_ARGUMENT.
    code: String,
    /// NOT_MEMBER, BLOCKED, MUTED, NOT_ALLOWED, ANTISPAM, EXPIRED, REVOKED, …
    reason: Option<String>,
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
    components(schemas(Message, Problem)),
    security(("token" = [])),
    modifiers(&Common)
)]
struct Api;

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
    let problem = ResponseBuilder::new()
        .description("A problem; see the table of codes in API.md")
        .content(kith_rpc::http::PROBLEM_JSON, content)
        .build();
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
        let written: BTreeMap<String, serde_json::Value> = serde_json::from_str(written.get()).unwrap();
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let described = document["components"]["schemas"]["Message"]["properties"].as_object().unwrap();
        assert_eq!(
            written.keys().collect::<Vec<_>>(),
            described.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        );
        assert_eq!(document["openapi"], "3.1.0");
    }
}
