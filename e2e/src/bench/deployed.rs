//! The whole path on the platform that `make up` runs: the same users and rates as on local processes, through the cluster's network and
//! within its limits, from the first minute on.

use std::time::Duration;

use super::{
    BenchError,
    fleet::Fleet,
    phases::{Phases, check},
    processes::Processes,
};
use crate::{load::Via, target::Target};

/// What to run.
#[derive(Debug, Clone)]
pub struct DeployedOptions {
    /// Messages per second; where a sweep begins.
    pub rate: f64,
    /// How long each phase lasts.
    pub seconds: u64,
    /// Phases at that rate, one after the other: the first meets what has not run yet.
    pub phases: u32,
    /// Users, in pairs.
    pub users: usize,
    /// Bytes of text.
    pub payload: usize,
    /// How clients send.
    pub via: Via,
    /// Looks for the highest rate that is held, and what happens past it.
    pub sweep: bool,
}

/// Runs on the platform that is up, prints.
pub async fn run(options: DeployedOptions) -> Result<(), BenchError> {
    check(options.users, options.rate, options.seconds)?;
    let target = Target::of_env().await?;
    let fleet = Fleet::connect(&target, options.users, options.payload).await?;
    println!(
        "as deployed: {} users in {} pairs, {} B, {:?}",
        options.users,
        options.users / 2,
        options.payload,
        options.via
    );
    let phases = Phases { fleet, via: options.via, payload: options.payload };
    let lasts = Duration::from_secs(options.seconds);
    for number in 1..=options.phases {
        let before = Processes::now();
        let stats = phases.phase(options.rate, lasts).await?.stats();
        println!("phase {number} of {}\n{stats}", options.phases);
        println!("{}", Processes::now().since(&before, stats.acked));
    }
    if options.sweep {
        phases.sweep(options.rate, async || Ok(())).await?;
    }
    phases.all_stayed()
}
