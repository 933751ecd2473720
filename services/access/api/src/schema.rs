//! The contract's own shapes as schemas of the OpenAPI document. Below the views and routes that name them.

use kith_contract::kinds;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

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
    /// What a conversation is.
    ConversationKind: kinds::ConversationKind;
    /// What a device runs.
    Platform: kinds::Platform;
    /// Who delivers offline pushes.
    Provider: kinds::Provider;
}

/// Who delivers offline pushes; empty: nobody.
pub(crate) struct MaybeProvider;

impl PartialSchema for MaybeProvider {
    fn schema() -> RefOr<Schema> {
        let names: Vec<&str> = [""].iter().chain(kinds::Provider::NAMES).copied().collect();
        described(json!({"type": "string", "enum": names}))
    }
}

impl ToSchema for MaybeProvider {}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_described_message_has_the_fields_that_are_written() {
        let message = kith_proto::chat::v1::Message { content: "{}".into(), ..Default::default() };
        let written = kith_send::json::message_json(&message).unwrap();
        let written: serde_json::Map<String, Value> = serde_json::from_str(written.get()).unwrap();
        let described = serde_json::to_value(Message::schema()).unwrap();
        let described = described["properties"].as_object().unwrap();
        assert_eq!(written.keys().collect::<BTreeSet<_>>(), described.keys().collect::<BTreeSet<_>>());
    }
}
