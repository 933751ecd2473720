//! The operator's process.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kith_operator::{
    run::{Args, Place, run},
    uninstall::uninstall,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "kith-operator", version, about = "Turns Kith's custom resources into a running chat platform")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Looks after ChatClusters until it is asked to end.
    Run(Box<Args>),
    /// Lets go of what an operator that was removed holds on to: run it once, after the last of its pods has been asked to end.
    Uninstall(Place),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run(*args).await,
        Command::Uninstall(place) => uninstall(&place).await,
    }
}
