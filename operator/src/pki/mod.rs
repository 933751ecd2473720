//! Keys and certificates of one ChatCluster: pure functions from a name, a clock and randomness to PEM.

mod authority;
mod rollover;
mod tokens;
pub mod users;

pub use authority::{Authority, LINES, Leaf, LeafRequest, Renewal, hosts_of};
pub use rollover::{Asked, Authorities, Step};
pub use tokens::{TokenKeys, public_set};
pub use users::{EngineUsers, USERS};

use thiserror::Error;

/// Why a key or certificate could not be made or read. No message holds key material.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A certificate or key could not be made.
    #[error("{what}: {source}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// Stored PEM cannot be read.
    #[error("{what}: {problem}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A time outside of what certificates can say.
    #[error("the clock shows a time that certificates cannot hold")]
    Clock,
}

impl PkiError {
    fn read(what: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Read { what, problem: problem.to_string() }
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
