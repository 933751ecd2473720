//! Kith's gRPC contracts: the `.proto` files under `kith/` and the Rust code generated from them, one module a package.
//!
//! `tests/bootstrap.rs` regenerates `src/gen` and fails when it differs from what is committed.
#![allow(missing_docs, clippy::pedantic, clippy::all, unreachable_pub)]

mod kinds;
mod messages;
#[path = "gen/mod.rs"]
mod packages;

pub use packages::*;

/// Every descriptor, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
