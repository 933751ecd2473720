//! `kith-e2e`: the first message, client tokens, benchmarks and fault runs from the command line.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use kith_e2e::{
    bench::{self, deployed::DeployedOptions, path::PathOptions, storage::StorageOptions},
    business::Business,
    chaos::{self, ChaosOptions},
    cluster::Cluster,
    env::Env,
    load::{Load, LoadOptions, Via},
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
    /// Changes the shards and kills things under load on the local cluster, then holds every promise against what was kept.
    Chaos {
        /// Seconds for which things die.
        #[arg(long, default_value_t = 660)]
        seconds: u64,
        /// Nodes of the local cluster; with more than one, one dies.
        #[arg(long, env = "NODES", default_value_t = 1)]
        nodes: u32,
        /// Messages per second.
        #[arg(long, default_value_t = 300.0)]
        rate: f64,
        /// Conversations, each of two users.
        #[arg(long, default_value_t = 20)]
        pairs: usize,
        /// The short run of every check instead.
        #[arg(long)]
        short: bool,
        /// The shards are left as they are.
        #[arg(long)]
        faults_only: bool,
        /// Nothing dies.
        #[arg(long, conflicts_with = "faults_only")]
        shards_only: bool,
        /// Only these happen, each three times.
        #[arg(long, value_delimiter = ',')]
        only: Vec<chaos::faults::Fault>,
    },
    /// Chats on the running platform at a steady rate, then holds every promise against what was kept.
    Load {
        /// Seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Messages per second.
        #[arg(long, default_value_t = 300.0)]
        rate: f64,
        /// Conversations, each of two users.
        #[arg(long, default_value_t = 20)]
        pairs: usize,
        /// Sends over HTTP instead of the socket.
        #[arg(long)]
        http: bool,
    },
    /// Measures on local processes, without Kubernetes, or what `make up` runs.
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
    /// From a client's socket to another client's socket, on the platform that `make up` runs.
    Cluster {
        /// Messages per second; where a sweep begins.
        #[arg(long, default_value_t = 1_000.0)]
        rate: f64,
        /// Seconds of each phase.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Phases at that rate.
        #[arg(long, default_value_t = 2)]
        phases: u32,
        /// Users, in pairs.
        #[arg(long, default_value_t = 200)]
        users: usize,
        /// Bytes of text.
        #[arg(long, default_value_t = 128)]
        payload: usize,
        /// Looks for the highest rate that is held and for what happens past it.
        #[arg(long)]
        sweep: bool,
        /// Sends over HTTP instead of the socket.
        #[arg(long)]
        http: bool,
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
        /// Partitions of the event log.
        #[arg(long, default_value_t = 4)]
        event_partitions: u32,
        /// Seconds of load before anything is measured: a broker's compiler is done after about ninety.
        #[arg(long, default_value_t = 90)]
        warm_up: u64,
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
        Command::Load { seconds, rate, pairs, http } => {
            kith_kit::telemetry::init_tracing();
            let options = LoadOptions { pairs, rate, via: via(http), ..LoadOptions::default() };
            let load = Load::start(&Target::of_env().await?, options).await?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let report = load.finish(chaos::READ_BACK).await?;
            println!("{report}");
            return Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Chaos { seconds, nodes, rate, pairs, short, faults_only, shards_only, only } => {
            let mut options = ChaosOptions::long(Duration::from_secs(seconds), nodes);
            if short {
                options = ChaosOptions::short();
            } else {
                (options.load.rate, options.load.pairs) = (rate, pairs);
            }
            if shards_only {
                options.faults.clear();
            }
            if faults_only {
                options.shards.clear();
            }
            if !only.is_empty() {
                options.faults = only.into_iter().map(|fault| (fault, 3)).collect();
            }
            return run_chaos(&options).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_chaos(options: &ChaosOptions) -> Result<ExitCode, Failure> {
    kith_kit::telemetry::init_tracing();
    let (cluster, target) = (Cluster::connect(&Env::load()?).await?, Target::of_env().await?);
    let outcome = chaos::run(&cluster, &target, options).await?;
    println!("{outcome}");
    Ok(if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn via(http: bool) -> Via {
    if http { Via::Http } else { Via::Socket }
}

async fn run_bench(what: Bench) -> Result<(), Failure> {
    match what {
        Bench::Storage { rate, common, payload, storages } => {
            let Common { seconds, users, plaintext } = common;
            bench::storage::run(StorageOptions { rate, seconds, users, payload, tls: !plaintext, storages }).await?;
        }
        Bench::Cluster { rate, seconds, phases, users, payload, sweep, http } => {
            let via = via(http);
            bench::deployed::run(DeployedOptions { rate, seconds, phases, users, payload, via, sweep }).await?;
        }
        Bench::Path {
            rate,
            common,
            payload,
            new_conversations_per_second,
            sweep,
            http,
            storages,
            event_partitions,
            warm_up,
        } => {
            let Common { seconds, users, plaintext } = common;
            bench::path::run(PathOptions {
                rate,
                seconds,
                users,
                payload,
                new_conversations: new_conversations_per_second,
                sweep,
                tls: !plaintext,
                via: via(http),
                storages,
                event_partitions,
                warm_up: Duration::from_secs(warm_up),
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
