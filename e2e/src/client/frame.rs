//! The frames of the WebSocket as a client holds them: the contract's, with content that is read.

use kith_contract::frames;
use serde_json::Value;

use super::model::Draft;

pub use kith_contract::frames::{Auth, EventName, Reconnect, SUBPROTOCOL, close};

/// What a client sends.
pub type ClientFrame<'a> = frames::ClientFrame<&'a Draft>;
/// What the server sends.
pub type ServerFrame = frames::ServerFrame<'static, Value>;
/// The server's greeting.
pub type Hello = frames::Hello<'static>;
/// A refused frame.
pub type ErrorFrame = frames::Refusal<'static>;

/// The first frame of a client that has nothing but a token.
pub fn auth(token: &str) -> ClientFrame<'static> {
    ClientFrame::Auth(Auth { token: Some(token.to_owned()), ..Auth::default() })
}

#[cfg(test)]
mod tests {
    use kith_contract::frames::example;

    use super::{super::model::exact, *};

    #[test]
    fn the_contracts_frames_are_read_and_a_number_where_a_string_belongs_is_refused() {
        for (name, text) in example::SERVER {
            exact::<ServerFrame>(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let number = r#"{"type":"reconnect","after_ms":1200,"resume_token":"r"}"#;
        assert!(exact::<ServerFrame>(number).is_err());
    }
}
