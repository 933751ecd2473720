//! `kith-e2e`: the first message, client tokens, benchmarks and fault runs from the command line.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kith_e2e::{
    bench::{self, path::PathOptions, storage::StorageOptions},
    business::Business,
    env::Env,
    load::Via,
    smoke,
    target::Target,
};

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends a message from one user to another's WebSocket on the running platform and prints how long it took.
    Smoke {
        /// Who sends.
        #[arg(long, default_value = "alice")]
        from: String,
        /// Who receives.
        #[arg(long, default_value = "bob")]
        to: String,
    },
    /// Prints a client token that ImBusiness issues; makes the user when absent.
    Token {
        /// User id.
        #[arg(long)]
        user: String,
        /// Device id.
        #[arg(long, default_value = "d1")]
        device: String,
        /// ios, android, web, mweb or pc.
        #[arg(long, default_value = "ios")]
        platform: String,
    },
    /// Measures on local processes, without Kubernetes.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Storage alone, beside the floor that the bare engine sets.
    Storage {
        /// Appends per second of the open loop; 0: half of what storage reaches.
        #[arg(long, default_value_t = 0.0)]
        rate: f64,
        #[command(flatten)]
        common: Common,
        /// Bytes of content.
        #[arg(long, default_value_t = 60)]
        payload: usize,
        /// Instances of storage.
        #[arg(long, default_value_t = 1)]
        storages: usize,
    },
    /// From a client's socket to another client's socket.
    Path {
        /// Messages per second; where a sweep begins.
        #[arg(long, default_value_t = 1_000.0)]
        rate: f64,
        #[command(flatten)]
        common: Common,
        /// Bytes of text.
        #[arg(long, default_value_t = 128)]
        payload: usize,
        /// First messages of new conversations per second, instead of messages in known ones.
        #[arg(long, default_value_t = 0.0)]
        new_conversations_per_second: f64,
        /// Looks for the highest rate that is held and for what happens past it.
        #[arg(long)]
        sweep: bool,
        /// Sends over HTTP instead of the socket.
        #[arg(long)]
        http: bool,
        /// Instances of storage.
        #[arg(long, default_value_t = 1)]
        storages: usize,
    },
}

#[derive(Args)]
struct Common {
    /// Seconds of each run.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Users, in pairs.
    #[arg(long, default_value_t = 200)]
    users: usize,
    /// No mTLS between the services.
    #[arg(long)]
    plaintext: bool,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Smoke { from, to } => {
            let target = Target::of_env().await?;
            println!("{}", smoke::smoke(&target, &from, &to).await?);
        }
        Command::Token { user, device, platform } => {
            let business = Business::connect(&Env::load()?).await?;
            println!("{}", business.token(&user, &device, &platform).await?);
        }
        Command::Bench { what } => run_bench(what).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_bench(what: Bench) -> Result<(), Failure> {
    match what {
        Bench::Storage { rate, common, payload, storages } => {
            let Common { seconds, users, plaintext } = common;
            bench::storage::run(StorageOptions { rate, seconds, users, payload, tls: !plaintext, storages }).await?;
        }
        Bench::Path { rate, common, payload, new_conversations_per_second, sweep, http, storages } => {
            let Common { seconds, users, plaintext } = common;
            bench::path::run(PathOptions {
                rate,
                seconds,
                users,
                payload,
                new_conversations: new_conversations_per_second,
                sweep,
                tls: !plaintext,
                via: if http { Via::Http } else { Via::Socket },
                storages,
            })
            .await?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Cli::parse();
    kith_kit::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kith-e2e: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kith-e2e: {error}");
            ExitCode::FAILURE
        }
    }
}
