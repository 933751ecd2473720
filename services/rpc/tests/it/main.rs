//! Listeners over real connections, in TLS and plain.
#![allow(missing_docs)]

mod listener;
mod listener_tls;
