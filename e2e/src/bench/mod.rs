//! Benchmarks on local processes and on what `make up` runs: open loop, so that latency counts from the moment at which a message was meant to be sent, and beside
//! the floor that the bare engine sets in the same run.

pub mod deployed;
mod fleet;
pub mod floor;
mod pace;
pub mod path;
mod phases;
mod processes;
mod stats;
pub mod storage;
mod usage;

pub use stats::{Phase, Stats};

use crate::{client::ClientError, local::LocalError, target::TargetError, wait::TimedOut};

/// Why a benchmark ended early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The processes.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Users and sockets.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A call.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Valkey.
    #[error(transparent)]
    Test(#[from] kith_testing::TestError),
    /// Valkey's answers.
    #[error("engine: {0}")]
    Engine(String),
    /// Storage's answers.
    #[error("storage: {0}")]
    Storage(#[from] kith_rpc::error::Error),
    /// The way to storage.
    #[error(transparent)]
    Route(#[from] kith_rpc::route::RouteError),
    /// Something did not come in time.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
}
