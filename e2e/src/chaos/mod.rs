//! The fault run: shards are added, drained, weighted and stopped half-way while things die and people chat; afterwards every promise is
//! held against what was kept.

pub mod faults;
mod shards;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kith_crds::shardrebalance::RebalancePhase;
use kith_kit::backoff::jittered;
use rand::seq::SliceRandom;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::faults::Fault;
use crate::{
    cluster::{Cluster, ClusterError},
    ledger::{Ledger, Report},
    load::{Load, LoadError, LoadOptions},
    target::Target,
    wait::TimedOut,
};

/// One change of the shards, until all is in place, faults included.
const CHANGE: Duration = Duration::from_secs(420);
/// From the last fault to healthy conditions: what the platform promises.
const HEALED: Duration = Duration::from_secs(60);
/// Between two looks whether slots move.
const WATCH: Duration = Duration::from_millis(500);
/// Reading everything back.
pub const READ_BACK: Duration = Duration::from_secs(180);
/// A longer run kills everything as often again for each of these.
const PER_QUOTA: Duration = Duration::from_secs(660);
/// How long a dead node stays dead.
const NODE_GONE: Duration = Duration::from_secs(45);

/// What is done.
#[derive(Debug, Clone)]
pub struct ChaosOptions {
    /// The load.
    pub load: LoadOptions,
    /// For how long faults are injected at least.
    pub lasts: Duration,
    /// How often each thing is killed at least.
    pub faults: Vec<(Fault, u32)>,
    /// The shard counts gone through, in order.
    pub shards: Vec<u32>,
    /// Whether weights are changed and a rebalance is stopped and taken up again.
    pub steer: bool,
    /// Whether all changes are gone through once before anything dies: what moves alone cost.
    pub calm_first: bool,
    /// Nodes of the cluster, for bringing back the one that died.
    pub nodes: u32,
}

impl ChaosOptions {
    /// The long run: `make chaos`.
    pub fn long(lasts: Duration, nodes: u32) -> Self {
        let mut faults =
            vec![(Fault::Operator, 20), (Fault::Primary, 10), (Fault::Replica, 10), (Fault::PrimaryWithOperator, 2)];
        faults.extend([(Fault::FrozenPrimary, 2), (Fault::SlowApi, 1), (Fault::FullDisk, 1)]);
        if nodes > 2 {
            faults.extend([(Fault::Node, 1), (Fault::OneWay, 1), (Fault::Broker, 2)]);
        }
        let times = (lasts.as_secs() / PER_QUOTA.as_secs()).max(1) as u32;
        for (_, count) in &mut faults {
            *count *= times;
        }
        // Twenty busy conversations among two hundred users.
        let load = LoadOptions { pairs: 20, bystanders: 160, rate: 300.0, ..LoadOptions::default() };
        Self { load, lasts, faults, shards: vec![3, 5, 2], steer: true, calm_first: true, nodes }
    }

    /// The short one of every check.
    pub fn short() -> Self {
        Self {
            load: LoadOptions { pairs: 20, rate: 60.0, ..LoadOptions::default() },
            lasts: Duration::from_secs(60),
            faults: vec![(Fault::Operator, 3), (Fault::Primary, 2), (Fault::Replica, 2)],
            shards: vec![2],
            steer: false,
            calm_first: false,
            nodes: 1,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was promised and kept.
    pub report: Report,
    /// From the last fault to healthy conditions, every partition open and the imbalance within its bound.
    pub healed_in: Duration,
    /// How long each change of the shards took, faults included.
    pub changes: Vec<(String, Duration)>,
}

impl Outcome {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && self.report.given_up == 0 && self.healed_in <= HEALED
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.report)?;
        writeln!(f, "  {:<28} {:.1} s", "healed after the last fault", self.healed_in.as_secs_f64())?;
        for (name, took) in &self.changes {
            writeln!(f, "  {name:<28} {:.1} s", took.as_secs_f64())?;
        }
        Ok(())
    }
}

/// Why a run could not be carried through.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A condition.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The task that injects faults died.
    #[error("faults: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The whole run. The shards are what they were afterwards, also when it fails.
pub async fn run(cluster: &Cluster, target: &Target, options: &ChaosOptions) -> Result<Outcome, ChaosError> {
    let before = cluster.wanted_shards().await?;
    let result = faulted(cluster, target, options).await;
    if options.nodes > 1 {
        faults::revive(options.nodes).await?;
    }
    cluster.scale(before).await?;
    cluster.await_balanced(before as usize, CHANGE).await?;
    result
}

async fn faulted(cluster: &Cluster, target: &Target, options: &ChaosOptions) -> Result<Outcome, ChaosError> {
    let load = Load::start(target, options.load.clone()).await?;
    load.all_serve(HEALED).await?;
    let ledger = load.ledger().clone();
    let mut changes = Vec::new();
    let _watching = AbortOnDropHandle::new(tokio::spawn(watch_moves(cluster.clone(), ledger.clone())));
    if options.calm_first {
        changes = change_shards(cluster, options, &ledger, Amid::Nothing).await?;
    }
    if !options.faults.is_empty() {
        changes.extend(amid_faults(cluster, options, &ledger).await?);
    }
    let healing = Instant::now();
    let last = cluster.wanted_shards().await?;
    cluster.await_balanced(last as usize, HEALED * 3).await?;
    load.all_serve(HEALED).await?;
    let healed_in = healing.elapsed();
    let report = load.finish(READ_BACK).await?;
    Ok(Outcome { report, healed_in, changes })
}

/// Changes the shards again and again while everything that was asked for dies.
async fn amid_faults(
    cluster: &Cluster,
    options: &ChaosOptions,
    ledger: &Arc<Ledger>,
) -> Result<Vec<(String, Duration)>, ChaosError> {
    let (begun, end, mut changes) = (Instant::now(), CancellationToken::new(), Vec::new());
    let injecting = tokio::spawn(inject_all(cluster.clone(), options.clone(), ledger.clone(), end.clone()));
    let changed = loop {
        match change_shards(cluster, options, ledger, Amid::Faults).await {
            Ok(more) => changes.extend(more),
            Err(failed) => break Err(failed),
        }
        let left = options.lasts.saturating_sub(begun.elapsed());
        // With one count to go to there is nothing to do again.
        if left.is_zero() || options.shards.len() < 2 {
            tokio::time::sleep(left).await;
            break Ok(());
        }
    };
    end.cancel();
    // The quota is kept also when the shards were quicker than it.
    injecting.await??;
    changed?;
    Ok(changes)
}

/// Lets the ledger know when slots move. Within a poll of it, which a move outlasts.
async fn watch_moves(cluster: Cluster, ledger: Arc<Ledger>) {
    loop {
        if let Ok(rebalances) = cluster.rebalances().await {
            let moving = rebalances.iter().any(|r| shards::phase(r) == RebalancePhase::Rebalancing);
            ledger.meanwhile(moving.then(|| "while slots move".to_owned()));
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// When shards are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amid {
    Nothing,
    Faults,
}

impl fmt::Display for Amid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "alone",
            Self::Faults => "amid faults",
        })
    }
}

/// Goes through the shard counts; in between weights and a stop.
async fn change_shards(
    cluster: &Cluster,
    options: &ChaosOptions,
    ledger: &Arc<Ledger>,
    amid: Amid,
) -> Result<Vec<(String, Duration)>, ClusterError> {
    let in_place = async |shards: u32| match amid {
        Amid::Nothing => cluster.await_balanced(shards as usize, CHANGE).await,
        Amid::Faults => cluster.await_spread(shards as usize, CHANGE).await,
    };
    let mut took = Vec::new();
    for (step, shards) in options.shards.iter().enumerate() {
        let begun = Instant::now();
        tracing::info!(shards, %amid, "scaling");
        ledger.injected(&format!("shards changed {amid}"));
        cluster.scale(*shards).await?;
        if options.steer && step == 1 {
            stop_and_resume(cluster, ledger, amid).await?;
        }
        in_place(*shards).await?;
        took.push((format!("to {shards} shards {amid}"), begun.elapsed()));
        if options.steer && step == 0 && *shards >= 3 {
            let begun = Instant::now();
            let heavy = format!("{}-2", cluster.name);
            ledger.injected(&format!("weights changed {amid}"));
            cluster.weigh(&heavy, 200).await?;
            cluster.await_moving(CHANGE).await?;
            in_place(*shards).await?;
            took.push((format!("weights 1:1:2 {amid}"), begun.elapsed()));
        }
    }
    Ok(took)
}

/// Stops the rebalance that moves slots, waits until nothing moves, takes it up again.
async fn stop_and_resume(cluster: &Cluster, ledger: &Arc<Ledger>, amid: Amid) -> Result<(), ClusterError> {
    let Some(name) = cluster.await_moving(CHANGE).await? else { return Ok(()) };
    cluster.tell(&name, "stop").await?;
    ledger.injected(&format!("rebalance stopped {amid}"));
    let api = cluster.api::<kith_crds::ShardRebalance>();
    let still = |r: &kith_crds::ShardRebalance| r.status.as_ref().is_some_and(|s| s.phase.is_final());
    cluster.await_object(&api, &name, "the rebalance to stop", CHANGE, still).await?;
    cluster.tell(&name, "refresh").await
}

/// Injects every fault as often as asked, mixed, until that is done and `end` says so.
async fn inject_all(
    cluster: Cluster,
    options: ChaosOptions,
    ledger: Arc<Ledger>,
    end: CancellationToken,
) -> Result<(), ClusterError> {
    let mut order: Vec<Fault> =
        options.faults.iter().flat_map(|(fault, n)| std::iter::repeat_n(*fault, *n as usize)).collect();
    order.shuffle(&mut rand::rng());
    // Spread over the time that is there; a shard that heals slowly makes it longer.
    let pause = options.lasts.div_f64(order.len().max(1) as f64 * 1.5);
    for fault in order {
        // After the changes of the shards are through what is left follows without pauses.
        end.run_until_cancelled(tokio::time::sleep(jittered(pause))).await;
        if fault.touches_data() {
            faults::await_whole(&cluster).await?;
        }
        tracing::info!(%fault, "injecting");
        ledger.injected(&fault.to_string());
        inject(&cluster, fault, &options).await?;
    }
    Ok(())
}

async fn inject(cluster: &Cluster, fault: Fault, options: &ChaosOptions) -> Result<(), ClusterError> {
    faults::inject(cluster, fault).await?;
    if fault == Fault::Node {
        tokio::time::sleep(NODE_GONE).await;
        faults::revive(options.nodes).await?;
    }
    Ok(())
}
