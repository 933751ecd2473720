//! `kith repair`: asks the storage instances of the configuration to repair partitions, and prints what they say.

use std::{path::PathBuf, process::ExitCode};

use kith_kit::{config::Config, tls};
use kith_storage::command::{self, Summary, Wish};

use crate::Failure;

/// What to repair.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file; in a storage pod its own.
    #[arg(long, env = "KITH_CONFIG", default_value = "/etc/kith/config.json")]
    config: PathBuf,
    /// A partition to repair; may be repeated.
    #[arg(long = "partition", value_name = "N", conflicts_with = "all")]
    partitions: Vec<u32>,
    /// Compare every partition with the event log: finds losses that no living instance remembers.
    #[arg(long)]
    all: bool,
    /// Only say what would be restored and what is lost; nothing is written.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command; fails when something is left unrepaired or is lost.
pub(crate) async fn run(args: Args) -> ExitCode {
    match repair(args).await {
        Ok(summary) => {
            print!("{summary}");
            if summary.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("kith repair: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn repair(args: Args) -> Result<Summary, Failure> {
    tls::install_provider();
    let config = Config::load(&args.config)?;
    let Args { partitions, all, dry_run, .. } = args;
    Ok(command::repair(&config, &Wish { partitions, all, dry_run }).await?)
}
