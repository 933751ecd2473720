//! The packages. Written by `cargo protogen` from the `.proto` files.

/// `kith.business`.
pub mod business {
    /// `kith.business.v1`.
    pub mod v1 {
        include!("kith.business.v1.rs");
    }
}

/// `kith.chat`.
pub mod chat {
    /// `kith.chat.v1`.
    pub mod v1 {
        include!("kith.chat.v1.rs");
    }
}

/// `kith.sessions`.
pub mod sessions {
    /// `kith.sessions.v1`.
    pub mod v1 {
        include!("kith.sessions.v1.rs");
    }
}

/// `kith.storage`.
pub mod storage {
    /// `kith.storage.v1`.
    pub mod v1 {
        include!("kith.storage.v1.rs");
    }
}
