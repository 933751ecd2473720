//! Kith's gRPC contracts: the `.proto` files under `kith/` and the Rust code generated from them.
//!
//! `tests/bootstrap.rs` regenerates `src/gen` and fails when it differs from what is committed.
#![allow(missing_docs, clippy::pedantic, clippy::all, unreachable_pub)]

mod kinds;

/// `kith.chat.v1`: what a message is.
pub mod chat {
    /// Version 1.
    pub mod v1 {
        include!("gen/kith.chat.v1.rs");
    }
}
/// `kith.storage.v1`: the storage layer's API.
pub mod storage {
    /// Version 1.
    pub mod v1 {
        include!("gen/kith.storage.v1.rs");
    }
}
/// `kith.sessions.v1`: presence and delivery.
pub mod sessions {
    /// Version 1.
    pub mod v1 {
        include!("gen/kith.sessions.v1.rs");
    }
}
/// `kith.business.v1`: ImBusiness.
pub mod business {
    /// Version 1.
    pub mod v1 {
        include!("gen/kith.business.v1.rs");
    }
}
/// Every descriptor, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
