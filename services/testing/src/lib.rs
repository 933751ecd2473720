//! Real Valkey nodes and Kafka brokers as child processes, and certificates, for integration tests.
//!
//! Everything listens on 127.0.0.1, writes to a temporary folder and ends with the value that started it. The binaries come from the
//! cache `${KITH_CACHE:-$HOME/.cache/kith}/bin` (made by `e2e/local/deps.sh`).

mod kafka;
mod pki;
mod process;
mod valkey;

use std::{collections::BTreeSet, net::TcpListener, path::PathBuf, time::Duration};

pub use kafka::{Jit, KafkaBroker};
use parking_lot::Mutex;
pub use pki::Pki;
pub use process::Process;
use rand::RngExt;
use thiserror::Error;
pub use valkey::{ValkeyCluster, ValkeyNode, ValkeyOptions};

/// Ports are taken from below the range that the kernel hands out to clients, so that a stopped node finds its port free again.
const PORTS: std::ops::Range<u16> = 12_000..28_000;
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Why a test process could not be used.
#[derive(Debug, Error)]
pub enum TestError {
    /// A file or process operation.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A command to a Valkey node.
    #[error(transparent)]
    Valkey(#[from] kith_kit::valkey::ValkeyError),
    /// Certificates.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A condition did not come true in time.
    #[error("waited too long for {what}\n{log}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// The end of the process's log.
        log: String,
    },
}

impl TestError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A port of 127.0.0.1 that nobody listens on now, and that this process has not been given before: who asked may not listen there yet.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::rng().random_range(PORTS);
        if GIVEN.lock().insert(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The folder with the built tools.
pub fn bin_dir() -> PathBuf {
    let cache = std::env::var_os("KITH_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/kith"),
        PathBuf::from,
    );
    cache.join("bin")
}

/// Asks `condition` again and again until it holds; fails with `what` after `limit`.
pub async fn eventually<F, Fut>(what: &str, limit: Duration, mut condition: F) -> Result<(), TestError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = tokio::time::Instant::now() + limit;
    while !condition().await {
        if tokio::time::Instant::now() > end {
            return Err(TestError::Timeout { what: what.to_owned(), log: String::new() });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
