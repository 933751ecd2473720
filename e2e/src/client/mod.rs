//! A chat client written from the contract alone: the HTTP API, the WebSocket, and a device that stays connected.

pub mod connection;
pub mod device;
pub mod error;
pub mod frame;
pub mod http;
mod inbox;
pub mod model;
pub mod trust;

pub use connection::{Closed, Connection};
pub use device::{Device, DeviceOptions};
pub use error::ClientError;
pub use frame::{ClientFrame, ServerFrame};
pub use http::Api;
pub use inbox::Inbox;
pub use model::{Draft, Message, Position, Sent};
pub use trust::Trust;
