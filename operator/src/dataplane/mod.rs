//! The Valkey data plane: what the storage layer is, and the steps that bring it to what it should be.

pub mod slots;
pub mod types;
