//! Frames of the WebSocket, subprotocol `kith.v1.json`: one JSON object each. [`client`] has those of clients, [`server`] those of gateways.

pub mod client;
pub mod close;
pub mod example;
pub mod server;

pub use self::{
    client::{Auth, ClientFrame, Unread},
    server::{EventName, Hello, Reconnect, Refusal, Sent, ServerFrame},
};

/// The subprotocol.
pub const SUBPROTOCOL: &str = "kith.v1.json";
/// The longest client frame, in bytes: a message of 64 KiB, escaped, or a thousand cursors.
pub const MAX_FRAME_BYTES: usize = 512 << 10;
/// The longest id of a `send` frame, in bytes.
pub const MAX_SEND_ID_BYTES: usize = 128;
/// Positions in one `ack` frame.
pub const MAX_ACKS: usize = 100;
/// Cursors in an `auth` frame.
pub const MAX_CURSORS: usize = 1_000;
/// The first frame must have come by then, in seconds, where the token was not in the header.
pub const AUTH_SECONDS: u64 = 5;
/// Without a frame or ping of the client for so many heartbeats (`hello.heartbeat_ms`) the gateway takes it for gone.
pub const SILENT_HEARTBEATS: u32 = 2;
