//! The typed clients of the services that others call, and the client tokens that the doors issue and verify.

mod append;
pub mod auth;
pub mod login;
pub mod sessions;
pub mod storage;
