//! How Kith's processes speak to each other and are spoken to: gRPC servers and clients with mTLS, discovery, routing and liveness of
//! instances, HTTP servers, admission of connections, and errors with their one mapping to gRPC and HTTP codes.

pub mod admin;
pub mod admission;
pub mod batch;
pub mod budget;
pub mod client;
pub mod cursor;
pub mod discovery;
pub mod error;
mod guard;
mod handshake;
pub mod http;
mod linger;
pub mod origins;
mod pace;
mod progress;
mod pulse;
pub mod request;
pub mod route;
pub mod server;
