//! What every Kith process shares: configuration, readiness, telemetry, shutdown, TLS, back-off, and connections to Valkey nodes. It knows
//! no message semantics: a module comes here when a third crate needs it.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod readiness;
pub mod rendezvous;
pub mod services;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod valkey;
