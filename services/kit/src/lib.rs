//! What every Kith process shares: configuration, identity, telemetry, shutdown, errors, servers, clients, Kafka and Valkey
//! connections. It knows no message semantics: a module comes here when a third crate needs it.

pub mod clock;
#[cfg(feature = "config")]
pub mod config;
pub mod ids;
pub mod rendezvous;

#[cfg(feature = "telemetry")]
pub mod admin;
#[cfg(feature = "grpc")]
pub mod admission;
#[cfg(feature = "grpc")]
mod append;
#[cfg(feature = "grpc")]
pub mod auth;
#[cfg(any(feature = "grpc", feature = "kafka"))]
pub mod backoff;
#[cfg(feature = "grpc")]
pub mod batch;
#[cfg(feature = "grpc")]
pub mod budget;
pub mod callers;
#[cfg(feature = "grpc")]
pub mod client;
#[cfg(feature = "grpc")]
pub mod cursor;
#[cfg(feature = "grpc")]
pub mod discovery;
#[cfg(feature = "grpc")]
pub mod error;
#[cfg(feature = "grpc")]
mod guard;
#[cfg(feature = "grpc")]
mod handshake;
#[cfg(feature = "grpc")]
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "grpc")]
mod linger;
#[cfg(feature = "grpc")]
pub mod login;
#[cfg(feature = "grpc")]
pub mod origins;
#[cfg(feature = "grpc")]
mod pace;
#[cfg(feature = "grpc")]
mod progress;
#[cfg(feature = "grpc")]
mod pulse;
#[cfg(feature = "grpc")]
pub mod push;
#[cfg(feature = "grpc")]
pub mod request;
#[cfg(feature = "grpc")]
pub mod route;
#[cfg(feature = "grpc")]
pub mod server;
#[cfg(feature = "grpc")]
pub mod sessions;
#[cfg(feature = "telemetry")]
pub mod shutdown;
#[cfg(feature = "grpc")]
pub mod storage;
#[cfg(feature = "telemetry")]
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "grpc")]
pub mod text;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "valkey")]
pub mod valkey;
