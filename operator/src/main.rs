//! The operator's process.

use std::process::ExitCode;

use clap::Parser;
use kith_operator::run::{Args, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    run(Args::parse()).await
}
